"""Volumes at the resolution a run uses, in memory."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmark.data.base import Dataset, Triple, Volume
from results.errors import UserError

VERSION: Final = 1
"""Of `reduce_volume`; cached volumes of another version are not used."""


def load_volumes(
    dataset: Dataset, cases: Iterable[str], scale: float = 1.0, root_cache: Path | None = None
) -> dict[str, Volume]:
    """Cases at full or reduced resolution.

    At full resolution prepared files are mapped, not read. Reduced volumes are kept for the next
    run in `root_cache`, by default the dataset's own folder; without a folder, or where it cannot
    be written, they are computed each time.

    Raises:
        UserError: a case is damaged, or its label vanishes at this scale.
    """
    if scale == 1:
        return {case: dataset.load(case) for case in cases}
    base = root_cache or dataset.folder
    folder = None if base is None else base / f"reduced-{scale:g}-v{VERSION}"
    volumes = {}
    for case in cases:
        try:
            volumes[case] = _load_reduced(dataset.load(case), case, scale, folder)
        except EmptyLabelError as error:
            raise UserError(
                f"The label of {case} vanishes when {dataset.label} is reduced by {scale:g}: "
                "no voxel is half covered by foreground. Use a profile with a finer resolution."
            ) from error
    return volumes


class EmptyLabelError(ValueError):
    """A label has no foreground left at the reduced resolution."""


def reduced_shape(shape: Triple, scale: float) -> Triple:
    """Number of voxels per axis at a scale: the nearest number, halves upward, at least 1.

    >>> reduced_shape((194, 142, 88), 0.4)
    (78, 57, 35)
    """
    x, y, z = (max(1, int(n * scale + 0.5)) for n in shape)
    return x, y, z


def reduce_volume(volume: Volume, scale: float) -> Volume:
    """Average over areas: voxel i of m along an axis of n covers [floor(i n/m), ceil((i+1) n/m)).

    The label is foreground where at least half of that area is. Spacing grows by the exact n/m of
    each axis, so distances stay in the original unit.

    Raises:
        ValueError: the scale is not in (0, 1].
        EmptyLabelError: nothing of the label is left.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale {scale:g} is not in (0, 1]")
    x, y, z = volume.label.shape
    size = reduced_shape((x, y, z), scale)
    image = F.adaptive_avg_pool3d(torch.tensor(volume.image, dtype=torch.float64), size)
    share = F.adaptive_avg_pool3d(torch.tensor(volume.label, dtype=torch.float64)[None], size)[0]
    label = (share >= 0.5).numpy().astype(np.uint8)
    if not label.any():
        raise EmptyLabelError
    return Volume(image.numpy().astype(np.float32), label, _reduced_spacing(volume, size))


def _reduced_spacing(volume: Volume, size: Triple) -> tuple[float, float, float]:
    x, y, z = (
        mm * n / m for mm, n, m in zip(volume.spacing, volume.label.shape, size, strict=True)
    )
    return x, y, z


def _load_reduced(volume: Volume, case: str, scale: float, folder: Path | None) -> Volume:
    """The reduced volume, from the cache if it is there."""
    if folder is None:
        return reduce_volume(volume, scale)
    x, y, z = volume.label.shape
    size = reduced_shape((x, y, z), scale)
    image_path, label_path = folder / f"{case}.image.npy", folder / f"{case}.label.npy"
    image = _load_array(image_path, (len(volume.image), *size), np.float32)
    label = _load_array(label_path, size, np.uint8)
    if image is not None and label is not None:
        return Volume(image, label, _reduced_spacing(volume, size))
    reduced = reduce_volume(volume, scale)
    with contextlib.suppress(OSError):  # a cache that cannot be written is done without
        folder.mkdir(parents=True, exist_ok=True)
        _save_array(image_path, reduced.image)
        _save_array(label_path, reduced.label)
    return reduced


def _load_array(path: Path, shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any] | None:
    """A cached array, or None if it is not there as expected."""
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == dtype else None


def _save_array(path: Path, array: NDArray[Any]) -> None:
    """Write so that whoever reads meanwhile finds all of it or nothing."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
