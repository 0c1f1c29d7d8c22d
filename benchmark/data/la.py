"""Left atrium (2018 Atrial Segmentation Challenge), as the semi-supervised field uses it.

The field trains on 100 volumes that the authors of UA-MT cropped and normalised once
(`<case>/mri_norm2.h5`). Their script draws the crop margins without a seed, so the files cannot be
made again; they are known by their sha256 (checksums/la.tsv). From the challenge's own files the
same steps are done here with margins drawn from a fixed seed: other crops, another fingerprint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmark import seeding
from benchmark.data import itk
from benchmark.data.base import Card, Geometry, Volume
from benchmark.data.hdf5 import read_h5
from benchmark.data.prepared import Files, problems
from benchmark.data.published import Form, Published, only, put, walk
from benchmark.data.splits import read_list
from benchmark.data.steps import Bounds, cut, label_extent, widened, z_scored
from results.errors import UserError

FILE: Final = "mri_norm2.h5"
IMAGE: Final = "lgemri.nrrd"
LABEL: Final = "laendo.nrrd"
ATRIUM: Final = 255
LEAST_EXTENT: Final = 112
MARGINS: Final = (10, 20)
"""Margins are drawn from 10 to 19 voxels."""

PREPROCESSING: Final = (
    "mri_norm2.h5 as published: z-scored over the whole scan, then cropped around the label with "
    "random margins; not resampled (version 1)"
)
CHALLENGE_PREPROCESSING: Final = (
    "lgemri.nrrd z-scored over the whole scan, then cropped in x and y around the label with "
    "margins drawn from a fixed seed; not resampled (version 1)"
)

CARD: Final = Card(
    name="la",
    title="Left atrium",
    reference="10.1016/j.media.2020.101832",
    bibtex="""@article{xiong2021la,
  title   = {A global benchmark of algorithms for segmenting the left atrium from late
             gadolinium-enhanced cardiac magnetic resonance imaging},
  author  = {Xiong, Zhaohan and Xia, Qing and Hu, Zhiqiang and others},
  journal = {Medical Image Analysis},
  volume  = {67},
  pages   = {101832},
  year    = {2021},
  doi     = {10.1016/j.media.2020.101832}
}""",
    licence="terms of the 2018 Atrial Segmentation Challenge (cardiacatlas.org)",
    modality="LGE-MRI",
    structure="left atrium",
    unit="voxel",
    geometry={
        "full": Geometry(patch=(112, 112, 80), stride=(18, 18, 4)),
        "reduced": Geometry(patch=(40, 40, 24), stride=(24, 24, 16), scale=1 / 3),
        "tiny": Geometry(patch=(16, 16, 16), stride=(8, 8, 8), scale=0.2),
    },
    augmentation="rotflip",
    how_to_get=(
        f"Get the folder of 100 cases, each with {FILE}, that the repository yulequan/UA-MT on "
        "GitHub distributes (data/2018LA_Seg_Training Set), or the training set of the challenge "
        f"(cardiacatlas.org; each case with {IMAGE} and {LABEL}), then run "
        "`bench data prepare la --source DIR`."
    ),
    source="cardiacatlas.org (NRRD), or yulequan/UA-MT on GitHub (.h5)",
    size="100 volumes of 148–244 × 132–160 × 88 voxels; 0.2 GB as .h5, 0.15 GB prepared",
    counts=(80, 0, 20),
    notes=(
        "Volumes are cropped around the true label, test cases and unlabelled ones too: a "
        "predictor that never sees an image reaches a Dice of 0.65 to 0.68.",
        "The files carry no spacing, so distances are in voxels; papers that print mm mean these.",
    ),
    split_notes=(
        "0RZDK210BSMWAA6467LU (labelled from the second case on) and CMPXO4J23G58J53Q98SZ "
        "(unlabelled) are the same scan with the same label.",
        "Patients are repeated: registration links 7 of the 20 test cases to training cases.",
        "There is no validation set.",
    ),
)


def crop_bounds(label: NDArray[np.uint8], case: str) -> Bounds:
    """Where a scan is cropped: x and y around the label with seeded margins, all of z.

    Args:
        label: (X, Y, Z), not empty.
        case: one of the 100; its margins do not depend on what other cases are there.
    """
    place = sorted((*read_list("la_train"), *read_list("la_test"))).index(case)
    draw = seeding.generator(0, "data", 1, place)
    bounds = []
    for (low, high), length in zip(label_extent(label)[:2], label.shape[:2], strict=True):
        below, above = (int(margin) for margin in draw.integers(*MARGINS, size=2))
        bounds.append(widened(low, high, length, LEAST_EXTENT, (below, above)))
    return bounds[0], bounds[1], (0, label.shape[2])


def _find_h5(source: Path) -> dict[str, Files]:
    """The community's volumes below a folder."""
    found: dict[str, Files] = {}
    known = _known()
    strange = []
    for folder, files in walk(source):
        case = folder.name
        if FILE in files and case not in known:
            strange.append(str(folder))
        elif FILE in files:
            put(found, case, {f"{case}/{FILE}": folder / FILE})
        elif case in known and not any(any(folder.rglob(file)) for file in (FILE, IMAGE, LABEL)):
            raise UserError(
                f"The LA case {case} has no {FILE} in {folder}. Get that file again, or remove the "
                "folder to prepare a partial copy."
            )
    _refuse_strange(strange, FILE)
    return found


def _find_challenge(source: Path) -> dict[str, Files]:
    """The challenge's own files below a folder."""
    found: dict[str, Files] = {}
    known = _known()
    strange = []
    for folder, files in walk(source):
        pair = [name for name in (IMAGE, LABEL) if name in files]
        if not pair:
            continue
        if folder.name not in known:
            strange.append(str(folder))
            continue
        if len(pair) == 1:
            missing = LABEL if pair == [IMAGE] else IMAGE
            raise UserError(
                f"The LA case {folder.name} has no {missing} in {folder}. Get that file again, or "
                "remove the folder to prepare a partial copy."
            )
        put(found, folder.name, {f"{folder.name}/{name}": folder / name for name in pair})
    _refuse_strange(strange, IMAGE)
    return found


def _known() -> frozenset[str]:
    return frozenset((*read_list("la_train"), *read_list("la_test")))


def _refuse_strange(folders: list[str], file: str) -> None:
    if folders:
        listed = ", ".join(folders[:5]) + (" …" if len(folders) > 5 else "")
        raise UserError(
            f"{len(folders)} folders with a {file} are in neither of the two LA lists (80 train, "
            f"20 test): {listed}. Their name must be the case's; rename or remove them."
        )


def _read_h5(case: str, files: Files) -> Volume:
    return read_h5(only(files, f"{case}/{FILE}"), "its folder")


def _read_challenge(case: str, files: Files) -> Volume:
    """One scan of the challenge, checked, normalised and cropped."""
    image_path, label_path = (only(files, f"{case}/{name}") for name in (IMAGE, LABEL))
    image, label = itk.read_scan(image_path), itk.read_scan(label_path)
    again = "Get both files again, or remove the folder to prepare a partial copy."
    if image.voxels.shape != label.voxels.shape:
        raise UserError(
            f"{label_path} has {label.voxels.shape} voxels and its image {image.voxels.shape}: it "
            f"is of another case. {again}"
        )
    apart = _apart(image, label)
    if apart:
        raise UserError(f"{label_path} and its image {apart}. {again}")
    if image.voxels.min() < 0:
        raise UserError(
            f"{image_path} has negative intensities, down to {image.voxels.min():g}: 16 bits have "
            f"overflowed, or it is normalised already. {again}"
        )
    odd = np.setdiff1d(np.unique(label.voxels), [0, ATRIUM])
    if odd.size:
        raise UserError(
            f"{label_path} has values other than 0 and {ATRIUM}: "
            f"{', '.join(f'{value:g}' for value in odd[:5])}. {again}"
        )
    mask = (label.voxels == ATRIUM).astype(np.uint8)
    wrong = problems(image.voxels[None], mask)
    if wrong:
        raise UserError(f"{image_path} with its label cannot be used. {' '.join(wrong)} {again}")
    mean, deviation = image.voxels.mean(dtype=np.float64), image.voxels.std(dtype=np.float64)
    bounds = crop_bounds(mask, case)
    try:
        normalised = z_scored(cut(image.voxels, bounds), float(mean), float(deviation))
    except ValueError as error:
        raise UserError(f"{image_path} cannot be used: {error}. {again}") from error
    return Volume(normalised[None], cut(mask, bounds), (1.0, 1.0, 1.0))


def _apart(image: itk.Scan, label: itk.Scan) -> str:
    """How the places differ that two headers give to the same voxels; empty if they do not.

    Many labels are saved with an empty header, which says nothing: spacing 1 says nothing of
    lengths, the usual axes with it nothing of axes, and origin 0 nothing of places.
    """
    says_lengths = not np.allclose(label.spacing, 1)
    if says_lengths and not np.allclose(image.spacing, label.spacing, rtol=1e-2):
        spacings = [itk.in_words(scan.spacing) for scan in (label, image)]
        return f"have voxels of {spacings[0]} and {spacings[1]} mm: it is of another case"
    says_axes = says_lengths or not np.allclose(label.direction, np.eye(3).ravel())
    if says_axes and not np.allclose(image.direction, label.direction, atol=1e-3):
        return "have other axes: one of them is flipped"
    if not says_lengths:
        return ""
    distance = float(np.linalg.norm(np.subtract(image.origin, label.origin)))
    if distance > max(image.spacing) and np.any(label.origin) and np.any(image.origin):
        return f"begin {distance:.3g} mm apart: it is of another case, or one of them is moved"
    return ""


LA: Final = Published(
    CARD,
    forms=(
        Form(
            files=f"<case>/{IMAGE}",
            preprocessing=CHALLENGE_PREPROCESSING,
            find=_find_challenge,
            read=_read_challenge,
            remark="from the challenge's files, cropped with other margins",
        ),
        Form(
            files=f"<case>/{FILE}",
            preprocessing=PREPROCESSING,
            find=_find_h5,
            read=_read_h5,
            known_sha256=dict(
                line.split("\t") for line in read_list("la", folder="checksums", end=".tsv")
            ),
        ),
    ),
)
