"""What a folder without published facts gets: a drawn split and sizes after its volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from benchmark import seeding
from benchmark.data.base import Geometry, Split, Triple
from benchmark.data.volumes import reduced_shape
from results.errors import UserError

TEST_SHARE: Final = 0.2
VAL_SHARE: Final = 0.1
FULL_CAP: Final = (112, 112, 96)
REDUCED_CAP: Final = (40, 40, 24)
REDUCED_VOXELS: Final = 64 * 48 * 32
TINY_VOXELS: Final = 24**3


def draw_split(cases: Sequence[str]) -> dict[Split, tuple[str, ...]]:
    """20 % test, 10 % validation and the rest for training, in an order drawn from seed 0.

    Args:
        cases: all case names, sorted.

    Raises:
        UserError: there are fewer than four cases.
    """
    if len(cases) < 4:
        raise UserError(f"{len(cases)} cases cannot be split; at least 4 are needed.")
    order = seeding.generator(0, "data", 0).permutation(len(cases))
    drawn = [cases[i] for i in order]
    n_test = max(1, round(TEST_SHARE * len(cases)))
    n_val = round(VAL_SHARE * len(cases))
    return {
        "train": tuple(drawn[n_test + n_val :]),
        "val": tuple(drawn[n_test : n_test + n_val]),
        "test": tuple(drawn[:n_test]),
    }


def derive_geometry(median: Triple) -> dict[str, Geometry]:
    """Sizes for training and evaluation that follow from the median volume.

    "full" has sides that are multiples of 16, as five-level networks need, "reduced" and "tiny"
    multiples of 8. No side exceeds the median (but 16 is the least; volumes that are smaller are
    padded). Windows overlap by half. "reduced" holds at most 64·48·32 voxels, "tiny" 24³.

    Args:
        median: size of the median volume in voxels.
    """
    voxels = float(np.prod(median))
    reduced = _shrink(voxels, REDUCED_VOXELS)
    return {
        "full": _overlapping(_patch(median, 16, FULL_CAP), 1.0),
        "reduced": _overlapping(_patch(reduced_shape(median, reduced), 8, REDUCED_CAP), reduced),
        "tiny": _overlapping((16, 16, 16), _shrink(voxels, TINY_VOXELS)),
    }


def _shrink(voxels: float, limit: float) -> float:
    """The factor per axis, in hundredths, that brings a volume to a number of voxels."""
    return 1.0 if voxels <= limit else max(0.01, int(100 * (limit / voxels) ** (1 / 3)) / 100)


def _patch(shape: Triple, multiple: int, cap: Triple) -> Triple:
    x, y, z = (
        max(16, min(n // multiple * multiple, most)) for n, most in zip(shape, cap, strict=True)
    )
    return x, y, z


def _overlapping(patch: Triple, scale: float) -> Geometry:
    x, y, z = (side // 2 for side in patch)
    return Geometry(patch=patch, stride=(x, y, z), scale=scale)
