"""The sliding window around a network that costs nothing, against the field's loop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.inference import segment, sliding_window
from tests.speed.side_by_side import PATCH, STRIDE, Line, Subject, compared


def lines(subject: Subject, _: Path) -> Iterator[Line]:
    """A whole volume, and a part that is smaller than the patch along two axes.

    The network gives the same probabilities for each window, made before: softmax is its own.
    """
    noise = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 2, *PATCH)))
    probabilities = noise.float().softmax(1)
    for name, image in (("", subject.image), (", padded", subject.image[:90, :, :65])):
        volume = torch.from_numpy(image.copy())[None]

        def ours(volume: torch.Tensor = volume) -> torch.Tensor:
            return segment(sliding_window(lambda _: probabilities, volume, PATCH, STRIDE))

        def field(image: NDArray[np.float32] = image) -> NDArray[np.intp]:
            return fields_loop(image, probabilities)

        differing = int((field() != ours().numpy()).sum())
        what = f"sliding window, zero-cost network{name}"
        yield compared(what, 2, field, ours, f"{differing} differing voxels")


def fields_loop(image: NDArray[np.float32], probabilities: torch.Tensor) -> NDArray[np.intp]:
    """As the released test loops do it, window after window, in NumPy."""
    missing = [max(p - n, 0) for n, p in zip(image.shape, PATCH, strict=True)]
    if any(missing):
        image = np.pad(image, [(m // 2, m - m // 2) for m in missing])
    shape = image.shape
    score = np.zeros((2, *shape), np.float32)
    count = np.zeros(shape, np.float32)
    steps = [range(-(-(n - p) // s) + 1) for n, p, s in zip(shape, PATCH, STRIDE, strict=True)]
    for corner in itertools.product(*steps):
        cut = tuple(
            slice(min(s * k, n - p), min(s * k, n - p) + p)
            for k, n, p, s in zip(corner, shape, PATCH, STRIDE, strict=True)
        )
        # What the network is given; this one does not look at it.
        torch.from_numpy(image[cut][None, None].astype(np.float32))
        score[(slice(None), *cut)] += probabilities.numpy()[0]
        count[cut] += 1
    labels: NDArray[np.intp] = np.argmax(score / count[None], axis=0)
    kept = (slice(m // 2, n - (m - m // 2)) for m, n in zip(missing, shape, strict=True))
    return labels[tuple(kept)]
