"""Volumes at the resolution a run uses, in memory."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmark.data.base import Dataset, Triple, Volume
from benchmark.data.manifest import Record, read_manifest
from results.errors import UserError

VERSION: Final = 1
"""Of `reduce_volume`; cached volumes of another version are not used."""


def load_volumes(dataset: Dataset, cases: Iterable[str], scale: float = 1.0) -> dict[str, Volume]:
    """Cases at full or reduced resolution.

    Reduced volumes are kept for the next run in the dataset's folder, and a case is not read at
    full resolution where a sound one is there. Without a folder, or where it cannot be written,
    they are computed each time.

    Raises:
        UserError: a case is damaged, or its label vanishes at this scale.
    """
    if scale == 1:
        return {case: dataset.load(case) for case in cases}
    records = None if dataset.folder is None else read_manifest(dataset.folder).cases
    volumes = {}
    for case in cases:
        try:
            if dataset.folder is None or records is None:
                volumes[case] = reduce_volume(dataset.load(case), scale)
            else:
                volumes[case] = _load_reduced(dataset, dataset.folder, case, records[case], scale)
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
    spacing = _reduced_spacing(volume.spacing, volume.label.shape, size)
    return Volume(image.numpy().astype(np.float32), label, spacing)


def _reduced_spacing(
    spacing: tuple[float, float, float], shape: Sequence[int], size: Sequence[int]
) -> tuple[float, float, float]:
    x, y, z = (mm * n / m for mm, n, m in zip(spacing, shape, size, strict=True))
    return x, y, z


def _load_reduced(dataset: Dataset, root: Path, case: str, whole: Record, scale: float) -> Volume:
    """The reduced volume, from the cache if a sound one of this very volume is there.

    An entry is two .npy files and, written last, the sha256 of both and of what they were made of.
    Whatever does not fit is made again, so entries that several processes write at once do no harm.
    """
    folder = root / f"reduced-{scale:g}-v{VERSION}"
    origin = {"image": whole.image_sha256, "label": whole.label_sha256, "scale": scale}
    files = [folder / f"{case}.image.npy", folder / f"{case}.label.npy"]
    record = folder / f"{case}.json"
    kept = _read_entry(record, files, origin)
    if kept is not None:
        image, label = kept
        spacing = _reduced_spacing(whole.spacing, whole.shape[1:], label.shape)
        return Volume(image, label, spacing)
    reduced = reduce_volume(dataset.load(case), scale)
    contents = [_npy(reduced.image), _npy(reduced.label)]
    with contextlib.suppress(OSError):  # a cache that cannot be written is done without
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(files, contents, strict=True):
            _replace(path, content)
        _replace(record, json.dumps(_described(origin, contents)).encode())
    return reduced


def _described(origin: dict[str, Any], contents: list[bytes]) -> dict[str, Any]:
    """What a cache entry's record says: of what it was made, and the sha256 of its files."""
    return {"origin": origin, "files": [hashlib.sha256(c).hexdigest() for c in contents]}


def _read_entry(
    record: Path, files: list[Path], origin: dict[str, Any]
) -> list[NDArray[Any]] | None:
    """Arrays of a cache entry, or None if it is not whole or was made of something else."""
    try:
        described = json.loads(record.read_bytes())
        contents = [path.read_bytes() for path in files]
        if described != _described(origin, contents):
            return None
        return [
            np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
            for content in contents
        ]
    except (OSError, ValueError, RecursionError):
        return None


def _npy(array: NDArray[Any]) -> bytes:
    """An array in the form of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _replace(path: Path, content: bytes) -> None:
    """Write so that whoever reads meanwhile finds all of it or nothing."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
