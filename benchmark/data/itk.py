"""DICOM series, NRRD files and resampling, all through SimpleITK.

Arrays are in the order of the voxel indices (X, Y, Z): columns, rows, slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from results.errors import UserError

LOWEST_HU: Final = -8192
HIGHEST_HU: Final = 31743
"""What scanners write, with the extended scale for metal; beyond it 16 bits have overflowed."""

STEP_TOLERANCE: Final = 0.05
"""By which share the distances of slices may differ."""


@dataclass(frozen=True)
class Slice:
    """What a DICOM file says about itself, lengths in mm.

    direction: three unit vectors, of columns, rows and slices, as nine numbers by rows.
    """

    path: Path
    number: int
    series: str
    modality: str
    position: tuple[float, ...]
    spacing: tuple[float, ...]
    size: tuple[int, ...]
    direction: tuple[float, ...]

    @property
    def height_mm(self) -> float:
        """Position along the normal of the slice."""
        return float(np.dot(self.position, np.reshape(self.direction, (3, 3))[:, 2]))


@dataclass(frozen=True)
class Scan:
    """A scan with its geometry.

    voxels:    (X, Y, Z).
    spacing:   edge lengths of a voxel in mm.
    direction: as in `Slice`.
    origin:    of the first voxel's centre in mm.
    first_number: InstanceNumber of the first slice of a series.
    """

    voxels: NDArray[Any]
    spacing: tuple[float, float, float]
    direction: tuple[float, ...]
    origin: tuple[float, ...]
    first_number: int = 1


def read_series(paths: Sequence[Path], what: str) -> Scan:
    """A CT series in Hounsfield units, its slices in the order of their InstanceNumber.

    Args:
        paths: the files of one series, in any order.
        what: how messages name it.

    Raises:
        UserError: a file is damaged, slices are missing or doubled or do not belong together, or
            the values are no Hounsfield units.
    """
    slices = sorted((_read_header(path, what) for path in paths), key=lambda s: s.number)
    step = _require_one_series(slices, what)
    first = slices[0]
    columns, rows = first.size[:2]
    voxels: NDArray[Any] | None = None
    for index, header in enumerate(slices):
        plane = _read_plane(header, what)
        if voxels is None:
            integral = np.issubdtype(plane.dtype, np.integer)
            kind = np.int16 if integral else np.float32
            voxels = np.empty((columns, rows, len(slices)), kind, order="F")
        elif voxels.dtype == np.int16 and not np.issubdtype(plane.dtype, np.integer):
            voxels = np.asfortranarray(voxels, dtype=np.float32)
        voxels[:, :, index] = plane
    assert voxels is not None
    x, y = first.spacing[:2]
    return Scan(voxels, (x, y, step), first.direction, first.position, first.number)


def read_scan(path: Path) -> Scan:
    """A file in another format that SimpleITK knows, such as NRRD.

    Raises:
        UserError: it is damaged or has not three axes.
    """
    sitk = _library()
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UserError(
            f"{path} is truncated or damaged ({_reason(error)}). Get it again, or remove its "
            "folder to prepare a partial copy."
        ) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path} has {image.GetDimension()} axes or several channels, not 3 axes.")
    x, y, z = image.GetSpacing()
    voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return Scan(voxels, (x, y, z), image.GetDirection(), image.GetOrigin())


def resample(
    voxels: NDArray[Any], spacing: Sequence[float], *, nearest: bool = False
) -> NDArray[Any]:
    """A scan on a grid of 1 mm that begins at its first voxel; n voxels of s mm become int(n s).

    Images by cubic B-splines, labels from the nearest voxel, with SimpleITK as in MC-Net's
    notebook (ycwu1997/MC-Net, Pre-processing.ipynb).

    Args:
        voxels: (X, Y, Z).
        spacing: edge lengths of a voxel in mm.
        nearest: for labels.

    Returns:
        (X', Y', Z') of the type of `voxels`.
    """
    size = tuple(int(n * mm) for n, mm in zip(voxels.shape, spacing, strict=True))
    return resample_part(voxels, spacing, (0, 0, 0), size, nearest=nearest)


def resample_part(
    voxels: NDArray[Any],
    spacing: Sequence[float],
    begin_mm: Sequence[float],
    size: Sequence[int],
    *,
    nearest: bool = False,
) -> NDArray[Any]:
    """The part of a scan that begins `begin_mm` behind its first voxel, at 1 mm.

    See `resample`.
    """
    sitk = _library()
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
    image.SetSpacing([float(mm) for mm in spacing])
    filter_ = sitk.ResampleImageFilter()
    filter_.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkBSpline)
    filter_.SetOutputOrigin([float(mm) for mm in begin_mm])
    filter_.SetOutputSpacing([1.0, 1.0, 1.0])
    filter_.SetSize([int(n) for n in size])
    out: NDArray[Any] = sitk.GetArrayFromImage(filter_.Execute(image))
    return out.transpose(2, 1, 0)


def in_words(spacing: Sequence[float]) -> str:
    """Edge lengths of a voxel.

    >>> in_words((0.625, 0.625, 1.25))
    '0.625×0.625×1.25'
    """
    return "×".join(f"{mm:.4g}" for mm in spacing)


def _library() -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise UserError(
            "Reading DICOM and NRRD files needs SimpleITK. Install it with "
            "`pip install 'ssl3d-bench[originals]'`."
        ) from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def _read_header(path: Path, what: str) -> Slice:
    reader = _library().ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        position = tuple(float(p) for p in reader.GetMetaData("0020|0032").split("\\"))
        for rescale in ("0028|1052", "0028|1053"):  # read as 0 and 1 where they are missing
            float(reader.GetMetaData(rescale))
        return Slice(
            path=path,
            number=int(reader.GetMetaData("0020|0013")),
            series=reader.GetMetaData("0020|000e").strip(),
            modality=reader.GetMetaData("0008|0060").strip(),
            position=position,
            spacing=reader.GetSpacing(),
            size=reader.GetSize(),
            direction=reader.GetDirection(),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} of {what} is truncated, damaged or no CT slice with number, position and "
            f"rescaling ({_reason(error)}). Get the series again, or remove its folder to prepare "
            "a partial copy."
        ) from error


def _require_one_series(slices: Sequence[Slice], what: str) -> float:
    """Raise unless slices are all of one regular stack of CT; return their distance in mm."""
    again = "Get the series again, or remove its folder to prepare a partial copy."
    first = slices[0]
    for other in slices:
        if other.modality != "CT":
            raise UserError(f"{other.path} of {what} is of modality {other.modality}, not CT.")
        if other.series != first.series:
            raise UserError(
                f"{first.path} and {other.path} of {what} belong to two series. Give a folder "
                "that holds one series a case."
            )
        if other.size != first.size or not np.allclose(
            (*other.spacing[:2], *other.direction),
            (*first.spacing[:2], *first.direction),
            atol=1e-4,
        ):
            raise UserError(
                f"{other.path} of {what} differs from {first.path} in size, spacing or "
                f"direction. {again}"
            )
    if len(slices) < 2:
        raise UserError(f"{what} has one slice, which is no scan. {again}")
    numbers = [s.number for s in slices]
    if len(set(numbers)) < len(numbers):
        twice = next(a for a, b in pairwise(numbers) if a == b)
        raise UserError(f"{what} has two slices with InstanceNumber {twice}. {again}")
    steps = np.diff([s.height_mm for s in slices])
    step = float(np.median(steps))
    odd = np.flatnonzero(np.abs(steps - step) > STEP_TOLERANCE * abs(step) + 1e-3)
    if step == 0 or odd.size:
        at = int(odd[0]) if odd.size else 0
        raise UserError(
            f"{what} is no regular stack: between InstanceNumber {numbers[at]} and "
            f"{numbers[at + 1]} lie {steps[at]:.3g} mm, elsewhere {step:.3g} mm. Slices are "
            f"missing or out of order. {again}"
        )
    return abs(step)


def _read_plane(header: Slice, what: str) -> NDArray[Any]:
    """(X, Y) in Hounsfield units."""
    sitk = _library()
    try:
        plane: NDArray[Any] = sitk.GetArrayFromImage(sitk.ReadImage(str(header.path)))[0].T
    except RuntimeError as error:
        raise UserError(
            f"{header.path} of {what} is truncated or damaged ({_reason(error)}). Get the series "
            "again, or remove its folder to prepare a partial copy."
        ) from error
    low, high = plane.min(), plane.max()
    if not LOWEST_HU <= low <= high <= HIGHEST_HU:
        raise UserError(
            f"{header.path} of {what} has values from {low} to {high}, which are no Hounsfield "
            "units: 16 bits have overflowed or are read with the wrong sign. Get the series again."
        )
    return plane


def _reason(error: Exception) -> str:
    """The last line of what SimpleITK says, or Python."""
    return str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ")
