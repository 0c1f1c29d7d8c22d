"""One augmented labelled patch, against opening and unpacking an .h5 file for each item."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmark.data.base import Volume
from benchmark.data.sampling import Sampler
from tests.speed.side_by_side import PATCH, Line, Subject, compared


def lines(subject: Subject, folder: Path) -> Iterator[Line]:
    """One patch a call."""
    path = folder / "mri_norm2.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=subject.image, compression="gzip")
        file.create_dataset("label", data=subject.label, compression="gzip")
    volume = Volume(subject.image[None], subject.label, (1.0, 1.0, 1.0))
    sampler = Sampler(
        {"case": volume}, ["case"], [], PATCH, "rotflip", ("image", "label"), 0, labelled_batch=1
    )
    steps = itertools.count()

    def field() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        with h5py.File(path) as file:
            x, y = file["image"][:], file["label"][:]
        x, y = np.flip(np.rot90(x, 1), 0).copy(), np.flip(np.rot90(y, 1), 0).copy()
        cut = tuple(slice(0, p) for p in PATCH)
        return x[cut].copy(), y[cut].astype(np.int64)

    equality = "same patch for the same offsets (tests)"
    yield compared("loading one augmented patch", 20, field, lambda: sampler(next(steps)), equality)
