"""Every draw is a pure function of (seed, axis, step, slot)."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from benchmark.seeding import (
    AXES,
    generator,
    reseed_torch,
    seeded_torch,
    torch_generator,
    torch_seed,
)


def test_equal_counters_give_equal_draws_whatever_was_drawn_before() -> None:
    first = generator(3, "augment", 10, 1).normal(size=5)
    generator(3, "augment", 9, 1).normal(size=100)
    assert np.array_equal(first, generator(3, "augment", 10, 1).normal(size=5))


def test_every_counter_matters() -> None:
    draws = {
        generator(seed, axis, step, slot).integers(2**63)
        for seed, axis, step, slot in product((0, 1), AXES, (0, 1, 2), (0, 1))
    }
    assert len(draws) == 2 * len(AXES) * 3 * 2


def test_torch_and_numpy_follow_the_same_counters() -> None:
    assert torch_seed(5, "noise", 7) == generator(5, "noise", 7).integers(2**63)
    one = torch.randn(4, generator=torch_generator(5, "noise", 7))
    two = torch.randn(4, generator=torch_generator(5, "noise", 7))
    assert torch.equal(one, two)


def test_seeding_a_block_leaves_the_global_generator_as_it_was() -> None:
    reseed_torch(1, "noise", 0)
    before = torch.get_rng_state()
    with seeded_torch(0, "init", 0):
        inside = torch.randn(3)
    assert torch.equal(before, torch.get_rng_state())
    with seeded_torch(0, "init", 0):
        assert torch.equal(inside, torch.randn(3))
