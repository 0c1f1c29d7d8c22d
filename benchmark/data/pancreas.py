"""NIH Pancreas-CT with the 62/20 split that most semi-supervised papers share.

The field trains on 82 volumes that the authors of MC-Net resampled, cropped and normalised once
(`imageNNNN_norm.h5`). From the collection's own files the same steps are done here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmark.data import itk
from benchmark.data.alignment import largest_slice, misplaced, placements
from benchmark.data.base import Card, Geometry, Volume
from benchmark.data.hdf5 import read_h5, require_z_scored
from benchmark.data.nifti import Nifti, read_nifti
from benchmark.data.prepared import Files, problems
from benchmark.data.published import Form, Published, only, put, walk
from benchmark.data.steps import Bounds, cut, label_extent, widened, window, z_scored
from results.errors import UserError

CASES: Final = 82
WINDOW_LEVEL_HU: Final = 75.0
WINDOW_WIDTH_HU: Final = 400.0
LEAST_EXTENT: Final = 96
MARGIN: Final = 25
SPLINE_SUPPORT: Final = 24
"""Voxels around the crop that are read for the splines; what lies farther weighs below 1e-13."""

SPACING_TOLERANCE: Final = 0.01
STEP_TOLERANCE: Final = 0.05
AGAIN: Final = "Get both again, or remove the series to prepare a partial copy."
TWINS: Final = ("image0025", "image0070")

PREPROCESSING: Final = (
    "imageNNNN_norm.h5 as published: 1 mm, [-125, 275] HU, cropped in x and y around the label "
    "with 25 voxels, z-scored after the crop (version 1)"
)
ORIGINAL_PREPROCESSING: Final = (
    "DICOM slices by InstanceNumber with the label's spacing, 1 mm by B-splines and nearest "
    "neighbours, [-125, 275] HU, cropped in x and y around the label with 25 voxels, z-scored "
    "after the crop (version 1)"
)

CARD: Final = Card(
    name="pancreas",
    title="Pancreas-CT",
    reference="10.7937/K9/TCIA.2016.tNB1kqBU",
    bibtex="""@misc{roth2016pancreas,
  title     = {Data from {Pancreas-CT}},
  author    = {Roth, Holger R. and Farag, Amal and Turkbey, Evrim B. and Lu, Le and Liu, Jiamin
               and Summers, Ronald M.},
  publisher = {The Cancer Imaging Archive},
  year      = {2016},
  doi       = {10.7937/K9/TCIA.2016.tNB1kqBU}
}""",
    licence="CC BY 3.0",
    modality="CT",
    structure="pancreas",
    unit="mm",
    geometry={
        "full": Geometry(patch=(96, 96, 96), stride=(16, 16, 16)),
        "reduced": Geometry(patch=(48, 40, 48), stride=(24, 20, 24), scale=0.3),
        "tiny": Geometry(patch=(16, 16, 16), stride=(8, 8, 8), scale=0.15),
    },
    augmentation="crop",
    how_to_get=(
        "Get the CT series (PANCREAS_NNNN/) and the label archive (labelNNNN.nii.gz) of the "
        "collection Pancreas-CT from The Cancer Imaging Archive (cancerimagingarchive.net) into "
        "one folder, or the community's 82 imageNNNN_norm.h5 (made with the notebook of "
        "ycwu1997/MC-Net on GitHub), then run `bench data prepare pancreas --source DIR`."
    ),
    source="cancerimagingarchive.net (DICOM and NIfTI), or MC-Net's .h5",
    size="82 volumes, median 184 × 145 × 216 mm; about 10 GB as DICOM, at most 2.5 GB prepared",
    counts=(62, 0, 20),
    notes=(
        "At least five splits are compared in one table in the literature; the usual one here is "
        "the 62/20 of MC-Net. `--split` prepares another: coranet, ccnet, aua, mcf-0 to mcf-3.",
        "Volumes are cropped around the true label with constant margins, test cases too.",
    ),
    split_notes=(
        "Cases 25 and 70 are the same patient, one in the test and one in the training list. TCIA "
        "has withdrawn both, so this split cannot be rebuilt in full from there; "
        "`bench report --cases unlinked` leaves 25 out where 70 is trained on.",
        "There is no validation set.",
    ),
)


def crop_bounds(label: NDArray[np.uint8]) -> Bounds:
    """Where a volume of 1 mm is cropped: x and y around the label, all of z.

    Args:
        label: (X, Y, Z), not empty.
    """
    x, y = (
        widened(low, high, length, LEAST_EXTENT, (MARGIN, MARGIN))
        for (low, high), length in zip(label_extent(label)[:2], label.shape[:2], strict=True)
    )
    return x, y, (0, label.shape[2])


def preprocess(
    image_hu: NDArray[np.generic], label: NDArray[np.uint8], spacing: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """From the scanner's grid to what is trained on.

    Resampled to 1 mm, windowed, cropped, z-scored. Only what the crop needs is resampled.

    Args:
        image_hu: (X, Y, Z).
        label: (X, Y, Z) in {0, 1}, not empty.
        spacing: edge lengths of a voxel in mm.

    Returns:
        Image and label, (X', Y', Z').

    Raises:
        ValueError: nothing of the label is left at 1 mm, or the image is the same everywhere.
    """
    fine_label = itk.resample(label, spacing, nearest=True)
    bounds = crop_bounds(fine_label)
    part, begin_mm = [], []
    for (low, high), mm, length in zip(bounds, spacing, image_hu.shape, strict=True):
        first = max(int(low / mm) - SPLINE_SUPPORT, 0)
        part.append((first, min(int(high / mm) + 1 + SPLINE_SUPPORT, length)))
        begin_mm.append(low - first * mm)
    wanted = cut(image_hu, (part[0], part[1], part[2])).astype(np.float32)
    size = [high - low for low, high in bounds]
    fine = window(
        itk.resample_part(wanted, spacing, begin_mm, size), WINDOW_LEVEL_HU, WINDOW_WIDTH_HU
    )
    mean, deviation = fine.mean(dtype=np.float64), fine.std(dtype=np.float64)
    return z_scored(fine, float(mean), float(deviation)), cut(fine_label, bounds)


def _find_h5(source: Path) -> dict[str, Files]:
    """The community's volumes below a folder."""
    found: dict[str, Files] = {}
    for folder, files in walk(source):
        for file in files:
            match = re.fullmatch(r"(image(\d{4}))_norm\.h5", file)
            if match:
                put(found, _case(match[2], folder / file), {file: folder / file})
    return found


def _find_originals(source: Path) -> dict[str, Files]:
    """The collection's DICOM series and labels below a folder."""
    series: dict[str, Files] = {}
    labels: dict[str, Files] = {}
    empty = set()
    for folder, files in walk(source):
        patients = re.findall(r"PANCREAS_(\d{4})", str(folder.absolute()))
        slices = tuple(folder / file for file in files if file.lower().endswith(".dcm"))
        if slices and not patients:
            raise UserError(
                f"{folder} has DICOM slices, and no folder above it is called PANCREAS_NNNN, so "
                "their case is unknown. Rename a folder above them or move them elsewhere."
            )
        if slices:
            put(series, _case(patients[-1], folder), {"series": slices})
        elif patients and folder.name == f"PANCREAS_{patients[-1]}":
            empty.add(_case(patients[-1], folder))
        for file in files:
            match = re.fullmatch(r"label(\d{4})\.nii(\.gz)?", file)
            if match:
                put(labels, _case(match[1], folder / file), {"label": folder / file})
    if not series:
        return {}
    missing = sorted(empty - series.keys() - set(TWINS))
    if missing:
        raise UserError(
            f"{len(missing)} cases have a folder without DICOM slices: {_some(missing)}. Get their "
            "series again, or remove the folders to prepare a partial copy."
        )
    missing = sorted(series.keys() - labels.keys())
    if missing:
        raise UserError(
            f"{len(missing)} cases have a DICOM series and no label: {_some(missing)}. Get "
            "labelNNNN.nii.gz from the collection's label archive and put them below the same "
            "folder."
        )
    return {case: {**files, **labels[case]} for case, files in series.items()}


def _case(number: str, where: Path) -> str:
    if not 1 <= int(number) <= CASES:
        raise UserError(
            f"{where} is of case {int(number)}, but Pancreas-CT has cases 1 to {CASES}. Rename or "
            "remove it."
        )
    return f"image{number}"


def _read_h5(case: str, files: Files) -> Volume:
    path = only(files, f"{case}_norm.h5")
    volume = read_h5(path)
    require_z_scored(path, volume.image, "the image")
    return volume


def _read_originals(case: str, files: Files) -> Volume:
    """One scan of the collection, checked and preprocessed."""
    slices = files["series"]
    assert isinstance(slices, tuple)
    folder, label_path = slices[0].parent, only(files, "label")
    scan = itk.read_series(slices, f"the series {folder}")
    stored = read_nifti(label_path)
    _require_same_grid(scan, stored, folder, label_path)
    wrong = problems(scan.voxels[None], stored.voxels)
    if wrong:
        raise UserError(f"{label_path} with its series cannot be used. {' '.join(wrong)} {AGAIN}")
    label = np.asarray(stored.voxels, dtype=np.uint8)
    reason = misplaced(placements(scan.voxels, label))
    if reason:
        raise UserError(
            f"{label_path} does not lie on the pancreas of {folder}: {reason}. The label is of "
            "another case, or one of the two is flipped. Look at the slice with InstanceNumber "
            f"{scan.first_number + largest_slice(label)}, where the label is largest. {AGAIN}"
        )
    try:
        image, fine = preprocess(scan.voxels, label, stored.spacing)
    except ValueError as error:
        raise UserError(f"{folder} with {label_path} cannot be used: {error}. {AGAIN}") from error
    return Volume(image[None], fine, (1.0, 1.0, 1.0))


def _require_same_grid(scan: itk.Scan, label: Nifti, folder: Path, path: Path) -> None:
    """Raise unless a label has as many voxels as its scan, of the same size."""
    if scan.voxels.shape != label.voxels.shape:
        raise UserError(
            f"{path} has {'×'.join(map(str, label.voxels.shape))} voxels and the series {folder} "
            f"{'×'.join(map(str, scan.voxels.shape))}: the label is of another case, or slices "
            f"are missing. {AGAIN}"
        )
    ratios = np.abs(np.divide(label.spacing, scan.spacing) - 1)
    if np.any(ratios > (SPACING_TOLERANCE, SPACING_TOLERANCE, STEP_TOLERANCE)):
        raise UserError(
            f"{path} has voxels of {itk.in_words(label.spacing)} mm and the series {folder} of "
            f"{itk.in_words(scan.spacing)} mm: the label is of another case. {AGAIN}"
        )


def _some(cases: list[str]) -> str:
    return ", ".join(cases[:5]) + (" …" if len(cases) > 5 else "")


PANCREAS: Final = Published(
    CARD,
    forms=(
        Form(
            files="PANCREAS_NNNN/…/*.dcm with labelNNNN.nii.gz",
            preprocessing=ORIGINAL_PREPROCESSING,
            find=_find_originals,
            read=_read_originals,
            remark="from DICOM",
        ),
        Form(
            files="imageNNNN_norm.h5",
            preprocessing=PREPROCESSING,
            find=_find_h5,
            read=_read_h5,
        ),
    ),
    twins=(TWINS,),
    withdrawn=TWINS,
)
