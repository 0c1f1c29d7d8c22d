"""BraTS 2019, whole tumour in FLAIR, with the 250/25/60 split of SSL4MIS.

The field trains on 335 volumes that the authors of SSL4MIS cropped and normalised once
(`<case>.h5`). From the organisers' files the same steps are done here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmark.data.base import Card, Geometry, Volume
from benchmark.data.hdf5 import read_h5, require_z_scored
from benchmark.data.nifti import read_nifti
from benchmark.data.prepared import Files, problems
from benchmark.data.published import Form, Published, only, put, walk
from benchmark.data.splits import choose_split
from benchmark.data.steps import Bounds, cut, histogram_quantile, label_extent, z_scored
from results.errors import UserError

IMAGE: Final = "_flair.nii"
LABEL: Final = "_seg.nii"
ENDINGS: Final = ("", ".gz")
AXES: Final = "LPS"
"""Directions that the organisers' files have: to the left, to the back, to the head."""

LABELS: Final = (0, 1, 2, 4)
BRIGHTEST_SHARE: Final = 0.999
SPACING_TOLERANCE: Final = 0.01
MOST_OUTSIDE: Final = 0.5
"""Share of a tumour that may lie where the image is zero."""

AGAIN: Final = "Get the case again, or remove its folder to prepare a partial copy."

PREPROCESSING: Final = (
    "<case>.h5 as published: FLAIR cropped to what is not zero, clipped at 99.9 %, z-scored over "
    "the voxels above zero; all labels as foreground; axes z, y, x (version 1)"
)
ORIGINAL_PREPROCESSING: Final = (
    "*_flair.nii.gz in the directions LPS, cropped to what is not zero (the upper plane of each "
    "axis is lost), clipped at 99.9 %, z-scored over the voxels above zero; all labels as "
    "foreground; axes z, y, x; not resampled (version 1)"
)

CARD: Final = Card(
    name="brats2019",
    title="BraTS 2019",
    reference="10.1109/TMI.2014.2377694",
    bibtex="""@article{menze2015brats,
  title   = {The Multimodal Brain Tumor Image Segmentation Benchmark ({BRATS})},
  author  = {Menze, Bjoern H. and Jakab, Andras and Bauer, Stefan and others},
  journal = {IEEE Transactions on Medical Imaging},
  volume  = {34},
  number  = {10},
  pages   = {1993--2024},
  year    = {2015},
  doi     = {10.1109/TMI.2014.2377694}
}""",
    licence="on request from the BraTS organisers",
    modality="FLAIR-MRI",
    structure="whole tumour",
    unit="mm",
    geometry={
        "full": Geometry(patch=(96, 96, 96), stride=(64, 64, 64)),
        "reduced": Geometry(patch=(48, 48, 48), stride=(24, 24, 24), scale=0.35),
        "tiny": Geometry(patch=(16, 16, 16), stride=(8, 8, 8), scale=0.15),
    },
    augmentation="rotflip",
    how_to_get=(
        "Ask the BraTS organisers for the 2019 training data (HGG/ and LGG/, 335 cases; "
        "www.med.upenn.edu/cbica/brats2019), or the community's 335 <case>.h5 (as the code of "
        "HiLab-git/SSL4MIS on GitHub reads them), then run "
        "`bench data prepare brats2019 --source DIR`."
    ),
    source="www.med.upenn.edu/cbica/brats2019 (NIfTI), or SSL4MIS's .h5",
    size="335 volumes of 240 × 240 × 155 mm before the crop",
    counts=(250, 25, 60),
    notes=(
        "Volumes are cropped to the non-zero image, not to the label.",
        "The axes of the volumes are z, y, x, as in the community's files.",
    ),
    split_notes=(
        "Sites are mixed unevenly: TCIA10 is 20 of 250 training and 12 of 60 test cases.",
    ),
)


def crop_bounds(image: NDArray[np.generic]) -> Bounds:
    """Where FLAIR is cropped: to what is not zero, without the upper plane of each axis.

    Raises:
        ValueError: nothing is left.
    """
    x, y, z = label_extent(image != 0)
    bounds = (x[0], x[1] - 1), (y[0], y[1] - 1), (z[0], z[1] - 1)
    if any(low == high for low, high in bounds):
        raise ValueError("the image is zero but for one plane")
    return bounds


def normalise(image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Clipped above 99.9 % of the histogram, then z-scored by the voxels above zero.

    The background becomes minus mean over deviation. Source: HiLab-git/SSL4MIS,
    brats_proprecessing.py.

    Raises:
        ValueError: no voxel is above zero, or all these are the same.
    """
    clipped = np.minimum(image, histogram_quantile(image, BRIGHTEST_SHARE))
    brain = clipped[clipped > 0]
    if not brain.size:
        raise ValueError("the image has no voxel above zero")
    mean, deviation = brain.mean(dtype=np.float64), brain.std(dtype=np.float64)
    return z_scored(clipped, float(mean), float(deviation))


def _find_h5(source: Path) -> dict[str, Files]:
    """The community's volumes below a folder."""
    found: dict[str, Files] = {}
    strange = []
    known = frozenset(choose_split(CARD.name).cases)
    for folder, files in walk(source):
        for file in files:
            if not (file.startswith("BraTS") and file.endswith(".h5")):
                continue
            case = file.removesuffix(".h5")
            if case not in known:
                strange.append(str(folder / file))
            else:
                put(found, case, {file: folder / file})
    _refuse_strange(strange)
    return found


def _find_originals(source: Path) -> dict[str, Files]:
    """The organisers' cases below a folder, in HGG and LGG or not."""
    found: dict[str, Files] = {}
    strange = []
    known = frozenset(choose_split(CARD.name).cases)
    for folder, files in walk(source):
        pairs: dict[str, dict[str, list[Path]]] = {}
        for file in files:
            for kind in (IMAGE, LABEL):
                for ending in ENDINGS:
                    if file.endswith(kind + ending):
                        case = file.removesuffix(kind + ending)
                        pairs.setdefault(case, {}).setdefault(kind, []).append(folder / file)
        for case, pair in pairs.items():
            if case not in known:
                strange.append(str(folder))
                continue
            for kind in (IMAGE, LABEL):
                if len(pair.get(kind, ())) != 1:
                    there = "no" if kind not in pair else "more than one"
                    raise UserError(
                        f"The case {case} has {there} file {case}{kind}.gz in {folder}. {AGAIN}"
                    )
            put(found, case, {f"{case}{kind}": pair[kind][0] for kind in (IMAGE, LABEL)})
    _refuse_strange(strange)
    return found


def _refuse_strange(places: list[str]) -> None:
    if places:
        listed = ", ".join(places[:5]) + (" …" if len(places) > 5 else "")
        raise UserError(
            f"{len(places)} cases are none of the 335 training cases of BraTS 2019: {listed}. "
            "Another year's cases have other names and sizes; rename or remove them."
        )


def _read_h5(case: str, files: Files) -> Volume:
    path = only(files, f"{case}.h5")
    volume = read_h5(path)
    brain = volume.image[volume.image > volume.image.min()]
    if brain.size:
        require_z_scored(path, brain, "the image above its background")
    return volume


def _read_originals(case: str, files: Files) -> Volume:
    """One case of the organisers, checked and preprocessed; axes z, y, x."""
    image_path, label_path = (only(files, f"{case}{kind}") for kind in (IMAGE, LABEL))
    image, label = read_nifti(image_path, AXES), read_nifti(label_path, AXES)
    if image.voxels.shape != label.voxels.shape:
        raise UserError(
            f"{label_path} has {label.voxels.shape} voxels and its image {image.voxels.shape}: it "
            f"is of another case. {AGAIN}"
        )
    if not np.allclose(image.affine, label.affine, atol=1e-2):
        raise UserError(
            f"{image_path} and its label lie in different places: their affines differ by up to "
            f"{np.abs(image.affine - label.affine).max():.3g} mm. One of them is flipped or "
            f"moved. {AGAIN}"
        )
    if not np.allclose(image.spacing, 1, atol=SPACING_TOLERANCE):
        listed = "×".join(f"{mm:.4g}" for mm in image.spacing)
        raise UserError(
            f"{image_path} has voxels of {listed} mm, not of 1 mm as the organisers' files. {AGAIN}"
        )
    odd = np.setdiff1d(np.unique(label.voxels), LABELS)
    if odd.size:
        raise UserError(
            f"{label_path} has labels other than 0, 1, 2 and 4: "
            f"{', '.join(f'{value:g}' for value in odd[:5])}. {AGAIN}"
        )
    if image.voxels.min() < 0:
        raise UserError(
            f"{image_path} has negative intensities, down to {image.voxels.min():g}: 16 bits have "
            f"overflowed, or it is normalised already. {AGAIN}"
        )
    mask = (label.voxels > 0).astype(np.uint8)
    outside = np.count_nonzero(mask & (image.voxels == 0))
    if outside > MOST_OUTSIDE * np.count_nonzero(mask) and image.voxels.any():
        raise UserError(
            f"{label_path} does not lie in the brain: {outside} of its {np.count_nonzero(mask)} "
            "foreground voxels are where the image is zero. It is of another case, or one of the "
            f"two is flipped. {AGAIN}"
        )
    wrong = problems(image.voxels[None], mask)
    if not wrong:
        try:
            bounds = crop_bounds(image.voxels)
            normalised, mask = normalise(cut(image.voxels, bounds)), cut(mask, bounds)
            wrong = problems(normalised[None], mask)
        except ValueError as error:
            wrong = [f"{str(error).capitalize()}."]
    if wrong:
        raise UserError(f"{image_path} with its label cannot be used. {' '.join(wrong)} {AGAIN}")
    spacing = (1.0, 1.0, 1.0)
    return Volume(normalised.transpose(2, 1, 0)[None], mask.transpose(2, 1, 0), spacing)


BRATS2019: Final = Published(
    CARD,
    forms=(
        Form(
            files="<case>_flair.nii.gz with <case>_seg.nii.gz",
            preprocessing=ORIGINAL_PREPROCESSING,
            find=_find_originals,
            read=_read_originals,
            remark="from the organisers' files",
        ),
        Form(
            files="<case>.h5",
            preprocessing=PREPROCESSING,
            find=_find_h5,
            read=_read_h5,
        ),
    ),
)
