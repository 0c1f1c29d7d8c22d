"""A predictor that never looks at an image: the mean training label.

Every label is brought to one grid, so that a voxel is known by its place relative to the borders
of its volume, as (0.5, 0.5, 0.5) for the centre. Where volumes are cropped around the truth, that
place says much, and so the score of this predictor is the floor of a dataset.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmark.data.base import Triple
from benchmark.metrics import Mask

GRID: Final[Triple] = (64, 64, 64)


@dataclass(frozen=True, eq=False)
class Atlas:
    """What is foreground where.

    share:     (X, Y, Z) float32 on `GRID`: the share of training labels that are foreground.
    threshold: share from which on a voxel is taken for foreground, so that the atlas holds as many
               voxels of the grid as the mean training label.
    """

    share: NDArray[np.float32]
    threshold: float

    def segment(self, shape: Triple) -> Mask:
        """The atlas as a mask of some shape, interpolated linearly."""
        mask: Mask = _resized(self.share, shape) >= self.threshold
        return mask


def build(labels: Iterable[NDArray[Any]]) -> Atlas:
    """The atlas of some labels, (X, Y, Z) each, of any shapes; foreground is 1.

    Raises:
        ValueError: there is no label.
    """
    total, count = np.zeros(GRID), 0
    for label in labels:
        total += _resized(label, GRID)
        count += 1
    if not count:
        raise ValueError("an atlas needs at least one label")
    share = (total / count).astype(np.float32)
    voxels = max(1, round(float(share.sum(dtype=np.float64))))
    threshold = float(np.partition(share.ravel(), -voxels)[-voxels])
    return Atlas(share, max(threshold, float(np.finfo(np.float32).tiny)))


def _resized(array: NDArray[Any], shape: Triple) -> NDArray[np.float32]:
    values = torch.from_numpy(array.astype(np.float32))[None, None]
    resized: NDArray[np.float32] = F.interpolate(values, shape, mode="trilinear")[0, 0].numpy()
    return resized
