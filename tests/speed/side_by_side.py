"""What all areas of the benchmark share: the volume, the stopwatch, the line of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LA = Path(__file__).resolve().parents[3] / "shared" / "data" / "la"
PATCH, STRIDE = (112, 112, 80), (18, 18, 4)
ROUNDS = 5

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Subject:
    """A volume of the left atrium: image and label (X, Y, Z), and where they are from."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    source: str


class Line(NamedTuple):
    """A row of the table, as text."""

    what: str
    must: str
    field: str
    here: str
    ratio: str
    equality: str


def load_subject() -> Subject:
    """A real LA volume where there is one, else one of its size with an atrium-sized body."""
    files = sorted(LA.glob("*/mri_norm2.h5"))
    if files:
        with h5py.File(files[0]) as file:
            return Subject(file["image"][:], file["label"][:], "A real LA volume")
    rng = np.random.default_rng(0)
    shape = (183, 140, 88)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    body = ((grid / np.array([0.5, 0.5, 0.6])[:, None, None, None]) ** 2).sum(0) < 1
    image = rng.normal(size=shape).astype(np.float32)
    return Subject(image, body.astype(np.uint8), "A made volume")


def typical_prediction(truth: Mask) -> Mask:
    """A mask shifted and elastically deformed by about 4 voxels: DSC 0.88 on the real volume."""
    rng = np.random.default_rng(1)
    smooth = [ndimage.gaussian_filter(rng.normal(size=truth.shape), 8) for _ in range(3)]
    moved = [
        index + 2.4 * s / s.std() for index, s in zip(np.indices(truth.shape), smooth, strict=True)
    ]
    deformed = ndimage.map_coordinates(truth.astype(np.float32), moved, order=1) > 0.5
    shifted: Mask = np.roll(deformed, (1, 1, 0), (0, 1, 2))
    return shifted


def interleaved(
    theirs: Callable[[], object], ours: Callable[[], object], rounds: int = ROUNDS
) -> tuple[float, float]:
    """Median CPU milliseconds of both, called in turns after one call to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for spent, call in zip(times, (theirs, ours), strict=True):
            began = time.process_time()
            call()
            if turn:
                spent.append(1e3 * (time.process_time() - began))
    return statistics.median(times[0]), statistics.median(times[1])


def compared(
    what: str,
    must: float | None,
    theirs: Callable[[], object],
    ours: Callable[[], object],
    equality: str,
    rounds: int = ROUNDS,
) -> Line:
    """Time two ways to do the same thing.

    Args:
        what: is done.
        must: least ratio to reach; None where none was set.
        theirs: the field's way.
        ours: the harness's way.
        equality: of their results.
        rounds: of timing.
    """
    a, b = interleaved(theirs, ours, rounds)
    missed = must is not None and a / b < must
    return Line(
        what,
        f">= {must:g}x" if must is not None else "",
        f"{a:.2f} ms",
        f"{b:.2f} ms",
        f"{a / b:.1f}x{' MISSED' if missed else ''}",
        equality,
    )
