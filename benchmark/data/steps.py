"""The steps that turn scans into what the field trains on: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]
Bounds = tuple[Pair, Pair, Pair]
"""First and one past the last voxel along each axis."""

HISTOGRAM_BINS: Final = 256
BLOCK: Final = 2**20
"""Voxels that are in memory at once in double precision."""


def label_extent(mask: NDArray[Any]) -> Bounds:
    """The smallest box that holds all of a mask that is not zero.

    Raises:
        ValueError: it is zero everywhere.
    """
    bounds = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        if not hit.size:
            raise ValueError("the mask is empty")
        bounds.append((int(hit[0]), int(hit[-1]) + 1))
    return bounds[0], bounds[1], bounds[2]


def widened(low: int, high: int, length: int, least: int, margins: Pair) -> Pair:
    """Bounds of a crop along one axis, as the field computes them.

    With first and last voxel a and b = high - 1 of the label and p = max(least - (b - a), 0) // 2:
    from max(a - margin - p, 0) up to, not including, min(b + margin + p, length). So the upper
    margin is realised one voxel short.

    Args:
        low: first voxel of the label.
        high: one past its last voxel.
        length: of the axis.
        least: up to what extent the label is padded before the margins are added.
        margins: below and above.

    Source: yulequan/UA-MT, la_heart_processing.py; ycwu1997/MC-Net, Pre-processing.ipynb.

    >>> widened(100, 151, 400, 96, (25, 25))
    (52, 198)
    """
    first, last = low, high - 1
    pad = max(least - (last - first), 0) // 2
    return max(first - margins[0] - pad, 0), min(last + margins[1] + pad, length)


def cut(array: NDArray[Any], bounds: Bounds) -> NDArray[Any]:
    """The part of (X, Y, Z) inside bounds, as a view."""
    return array[tuple(slice(low, high) for low, high in bounds)]


def window(image: NDArray[Any], level: float, width: float) -> NDArray[np.float32]:
    """CT clipped to level ± width / 2 and mapped to [0, 1].

    >>> window(np.array([-1000.0, 75.0, 3000.0]), level=75, width=400).tolist()
    [0.0, 0.5, 1.0]
    """
    low = level - width / 2
    clipped = np.clip(image, low, low + width, dtype=np.float32)
    clipped -= np.float32(low)
    clipped /= np.float32(width)
    return clipped


def z_scored(image: NDArray[Any], mean: float, deviation: float) -> NDArray[np.float32]:
    """(image - mean) / deviation, computed in double precision.

    Raises:
        ValueError: the deviation is zero or not a number, which an image of one intensity has.
    """
    if not deviation > 0:
        raise ValueError("the image has the same intensity everywhere")
    return np.asarray((image - np.float64(mean)) / deviation, dtype=np.float32)


def histogram_quantile(image: NDArray[Any], share: float) -> float:
    """The first histogram bin up to which at least a share of the voxels lies.

    Integers have a bin a value, other numbers 256 equal bins between minimum and maximum, of which
    the centre is returned: the cumulative distribution of scikit-image.

    >>> histogram_quantile(np.array([0, 0, 0, 5, 9]), 0.8)
    5.0
    """
    if np.issubdtype(image.dtype, np.integer):
        values, counts = np.unique(image, return_counts=True)
    else:
        counts, edges = np.histogram(image, bins=HISTOGRAM_BINS)
        values = (edges[:-1] + edges[1:]) / 2
    reached = np.cumsum(counts) / image.size >= share
    return float(values[np.argmax(reached)])


def z_scored_in_blocks(
    image: NDArray[Any], limits: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """An image minus its mean over its standard deviation, after clipping it to limits if any.

    To the last bit what NumPy gives for the whole image in double precision, without ever having
    that in memory: sums are over the same halves of halves, in the order of the memory.

    Args:
        image: of any shape and of a type smaller than double precision, or of contiguous memory.
        limits: lowest and highest value.

    Raises:
        ValueError: it has the same intensity everywhere.
    """
    by_memory = sorted(range(image.ndim), key=lambda axis: -abs(image.strides[axis]))
    flat = image.transpose(by_memory).flat

    def values(low: int, high: int) -> NDArray[np.float64]:
        part = np.asarray(flat[low:high], dtype=np.float64)
        return part if limits is None else np.clip(part, *limits)

    def squares(low: int, high: int) -> NDArray[np.float64]:
        return np.square(values(low, high) - mean)

    mean = _sum_of_halves(values, 0, image.size) / image.size
    deviation = np.sqrt(_sum_of_halves(squares, 0, image.size) / image.size)
    if not deviation > 0:
        raise ValueError("the image has the same intensity everywhere")
    out = np.empty(image.shape, dtype=np.float32)
    for plane, into in zip(image, out, strict=True):
        raw = np.asarray(plane, dtype=np.float64)
        into[...] = ((raw if limits is None else np.clip(raw, *limits)) - mean) / deviation
    return out


def _sum_of_halves(
    part: Callable[[int, int], NDArray[np.float64]], low: int, high: int
) -> np.float64:
    """The sum from one place to another, as NumPy adds pairwise: halves are multiples of eight."""
    count = high - low
    if count <= BLOCK:
        return np.float64(np.add.reduce(part(low, high)))
    half = count // 2
    half -= half % 8
    return _sum_of_halves(part, low, low + half) + _sum_of_halves(part, low + half, high)
