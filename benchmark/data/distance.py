"""Signed distance maps of masks, exact, on any device and without waiting for one."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

_PAIRS_AT_ONCE: Final = 2**26
"""Sums that `_by_pairs` holds: 256 MiB."""

_LINES_AT_ONCE: Final = 2**13
"""That `_by_shifts` gets, so that they stay in a processor's cache."""


def signed_distance(label: Tensor) -> Tensor:
    r"""Signed distance to the boundary of masks, in [-1, 1], negative inside.

    .. math:: d(v) = \frac{D_{out}(v)}{\max D_{out}} - \frac{D_{in}(v)}{\max D_{in}}

    with D_out the Euclidean distance in voxels to the nearest foreground voxel and D_in that to the
    nearest background voxel; foreground voxels with a background neighbour across a face have 0.
    As the released code of DTC and SASSNet: per patch, and zero everywhere where the patch has no
    foreground. A patch that is all foreground, which they leave undefined, is -1 everywhere.

    Squared distances are whole numbers, and the rest is done in double precision by operations
    that IEEE 754 fixes, so every device gives the same bits.

    Args:
        label: (B, X, Y, Z) in {0, 1}.

    Returns:
        (B, 1, X, Y, Z) float32.
    """
    inside = label.bool()
    outer, inner = squared_distance(inside), squared_distance(~inside)
    signed = _normalised(outer) - _normalised(inner)
    signed = torch.where(inner == 1, 0, signed).float()
    voxels = inside.flatten(1)
    some, every = (x[:, None, None, None] for x in (voxels.any(1), voxels.all(1)))
    return torch.where(every, -1, torch.where(some, signed, 0))[:, None]


def _normalised(squared: Tensor) -> Tensor:
    """Distances from their squares, divided by the largest of each volume, in double precision."""
    roots = _roots(_farthest(squared.shape[1:]) + 1, squared.device)
    distance = roots.index_select(0, squared.flatten()).view(squared.shape)
    largest = distance.flatten(1).amax(1)
    return distance / torch.where(largest > 0, largest, 1)[:, None, None, None]


def squared_distance(feature: Tensor) -> Tensor:
    """Squared Euclidean distance in voxels to the nearest feature of the same volume.

    Along Z by looking back and ahead, then along Y and X each by the smallest sum of what is known
    so far and the square of the step.

    Args:
        feature: (B, X, Y, Z) bool.

    Returns:
        (B, X, Y, Z) int32; where a volume has no feature, one more than any distance in it.
    """
    along_z = _along_last(feature).int()
    unreachable = _farthest(feature.shape[1:]) + 1
    squared = torch.where(along_z < feature.shape[3], along_z.square(), unreachable)
    return _nearest(_nearest(squared, 2), 1).clamp_(max=unreachable)


def _farthest(shape: tuple[int, ...]) -> int:
    """Squared distance between opposite corners."""
    return sum((n - 1) ** 2 for n in shape)


def _along_last(feature: Tensor) -> Tensor:
    """Distance to the nearest feature along the last axis; its length where there is none.

    int16 or int32. Each step doubles how far a voxel has looked, first back and then ahead.
    """
    length = feature.shape[-1]
    kind = torch.int16 if 2 * length < 2**15 else torch.int32
    distance = torch.where(feature, 0, length).to(kind)
    steps = [2**power for power in range((length - 1).bit_length())]
    for behind in (True, False):
        for step in steps:
            low, high = distance[..., :-step], distance[..., step:]
            source, target = (low, high) if behind else (high, low)
            target.copy_(torch.minimum(target, source + step))
    return distance


def _nearest(squared: Tensor, axis: int) -> Tensor:
    """Along an axis, the smallest squared[j] + (i - j)² over j."""
    lines = squared.movedim(axis, 0)
    flat = lines.reshape(len(lines), -1)
    if squared.device.type == "cpu":
        found = torch.cat([_by_shifts(piece) for piece in flat.split(_LINES_AT_ONCE, 1)], 1)
    else:
        pieces = flat.split(max(1, _PAIRS_AT_ONCE // len(lines) ** 2), 1)
        found = torch.cat([_by_pairs(piece) for piece in pieces], 1)
    return found.view(lines.shape).movedim(0, axis)


def _by_shifts(squared: Tensor) -> Tensor:
    """`_nearest` along the first of two axes, by ever longer steps until none can help.

    To know that, it reads a maximum; a GPU would have to be waited for.
    """
    length = len(squared)
    highest = int(squared.max()) + (length - 1) ** 2
    # Twice as fast as int32, where values fit once they are moved into its range.
    kind, moved = (torch.int16, -(2**15)) if highest < 2**16 else (torch.int32, 0)
    given = (squared + moved).to(kind).contiguous()
    best, sums = given.clone(), torch.empty_like(given)
    for step in range(1, length):
        if step % 4 == 1 and step**2 >= int(best.max()) - moved:
            break
        for source, target in (
            (slice(None, -step), slice(step, None)),
            (slice(step, None), slice(None, -step)),
        ):
            torch.add(given[source], step**2, out=sums[target])
            torch.minimum(best[target], sums[target], out=best[target])
    return best.int() - moved


def _by_pairs(squared: Tensor) -> Tensor:
    """`_nearest` along the first of two axes, by all pairs at once."""
    place = torch.arange(len(squared), dtype=torch.int32, device=squared.device)
    steps = (place[:, None] - place).square()
    return (squared + steps[..., None]).amin(1)


@cache
def _roots(largest: int, device: torch.device) -> Tensor:
    """Square roots of 0 … `largest` in double precision, (largest + 1,).

    By NumPy, which rounds them correctly; torch's on CPUs may be off by a bit.
    """
    return torch.from_numpy(np.sqrt(np.arange(largest + 1, dtype=np.float64))).to(device)
