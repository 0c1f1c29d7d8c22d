"""Does a label lie where its organ is? Headers of CT and label archives disagree by flips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmark.data.steps import Bounds, cut, label_extent

SOFT_TISSUE_HU: Final = (-50.0, 250.0)
"""Between which the median inside a label of a soft organ lies, with contrast agent or without."""

WINDOW_HU: Final = (-125.0, 275.0)
SHELL_VOXELS: Final = 3
LEAST_CONTRAST_HU: Final = 10.0
MIRRORED_GAIN_HU: Final = 30.0
"""A label is taken to be mirrored where it has less than the least contrast and a mirror image of
it has this much more. An organ is surrounded by fat in part, so inside minus surroundings is well
above zero where the label lies right, and about zero where it lies anywhere."""

AXES: Final = ("x", "y", "z")


@dataclass(frozen=True)
class Placement:
    """How well a label fits when it is mirrored along some axes; none: as it is.

    median_hu:   inside the label.
    contrast_hu: mean inside minus mean in the shell around it, both clipped to the window.
    """

    mirrored: tuple[int, ...]
    median_hu: float
    contrast_hu: float


def placements(image_hu: NDArray[Any], label: NDArray[Any]) -> list[Placement]:
    """The fit of a label as it is, first, and of its seven mirror images.

    Args:
        image_hu: (X, Y, Z).
        label: (X, Y, Z), not empty.
    """
    box = _padded(label_extent(label), label.shape)
    inside = cut(label, box) > 0
    shell = ndimage.binary_dilation(inside, iterations=SHELL_VOXELS) & ~inside
    found = []
    for flips in product((False, True), repeat=3):
        axes = tuple(axis for axis, flipped in enumerate(flips) if flipped)
        where = cut(image_hu, _mirrored(box, label.shape, axes))
        voxels = where[np.flip(inside, axes)]
        around = where[np.flip(shell, axes)]
        contrast = _clipped_mean(voxels) - _clipped_mean(around) if around.size else 0.0
        found.append(Placement(axes, float(np.median(voxels)), contrast))
    return found


def misplaced(found: Iterable[Placement]) -> str:
    """Why a label does not lie where its organ is, in words; empty if it seems to.

    Args:
        found: as `placements` gives them.
    """
    own, *others = found
    low, high = SOFT_TISSUE_HU
    best = max(others, key=lambda placement: placement.contrast_hu)
    reason = ""
    if not low <= own.median_hu <= high:
        reason = f"the median inside it is {own.median_hu:.0f} HU, which is no soft tissue"
    elif (
        own.contrast_hu < LEAST_CONTRAST_HU
        and best.contrast_hu > own.contrast_hu + MIRRORED_GAIN_HU
    ):
        reason = f"it is {own.contrast_hu:.0f} HU brighter than its surroundings"
    if reason and best.contrast_hu > own.contrast_hu + MIRRORED_GAIN_HU:
        axes = " and ".join(AXES[axis] for axis in best.mirrored)
        reason += f", and {best.contrast_hu:.0f} HU when it is mirrored along {axes}"
    return reason


def largest_slice(label: NDArray[Any]) -> int:
    """Index along the last axis of the slice with the most foreground."""
    return int(np.argmax(np.count_nonzero(label, axis=(0, 1))))


def _clipped_mean(values: NDArray[Any]) -> float:
    return float(np.clip(values, *WINDOW_HU).mean(dtype=np.float64))


def _padded(box: Bounds, shape: tuple[int, ...]) -> Bounds:
    x, y, z = (
        (max(low - SHELL_VOXELS, 0), min(high + SHELL_VOXELS, n))
        for (low, high), n in zip(box, shape, strict=True)
    )
    return x, y, z


def _mirrored(box: Bounds, shape: tuple[int, ...], axes: tuple[int, ...]) -> Bounds:
    x, y, z = (
        (n - high, n - low) if axis in axes else (low, high)
        for axis, ((low, high), n) in enumerate(zip(box, shape, strict=True))
    )
    return x, y, z
