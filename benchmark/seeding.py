"""The only file that may seed anything. Every draw is a pure function of (seed, axis, step, slot).

Nothing depends on how many draws came before, so a run may be cut anywhere and continued.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch

Axis = Literal["init", "order", "augment", "noise", "data"]
AXES: tuple[Axis, ...] = get_args(Axis)


def generator(seed: int, axis: Axis, step: int, slot: int = 0) -> np.random.Generator:
    """A NumPy generator for one purpose at one step.

    Args:
        seed: the run's seed, >= 0.
        axis: what is drawn; axes are independent of each other.
        step: optimiser step, epoch, or 0.
        slot: place in the batch, or another counter inside the step.
    """
    key = (AXES.index(axis), step, slot)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def torch_seed(seed: int, axis: Axis, step: int, slot: int = 0) -> int:
    """A 63-bit seed for torch, from the same counters as `generator`."""
    return int(generator(seed, axis, step, slot).integers(2**63))


def torch_generator(
    seed: int, axis: Axis, step: int, slot: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A torch generator on `device` for one purpose at one step."""
    return torch.Generator(device).manual_seed(torch_seed(seed, axis, step, slot))


def reseed_torch(seed: int, axis: Axis, step: int, slot: int = 0) -> None:
    """Set torch's global generators, which dropout and weight initialisation draw from."""
    torch.manual_seed(torch_seed(seed, axis, step, slot))


@contextmanager
def seeded_torch(seed: int, axis: Axis, step: int, slot: int = 0) -> Iterator[None]:
    """Reseed torch inside the block and restore its global generators after it."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        reseed_torch(seed, axis, step, slot)
        yield
