"""A method in miniature: made volumes, small networks and a short training, to look at it closely.

Volumes are 16x16x16 balls in noise, networks have width 4 and depth 3, and a run is 40 steps. What
a method hands over is refused here, with AssertionError, where nothing could be made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.data.sampling import EXTRAS, INPUTS, crop_into
from benchmark.networks import initialise
from benchmark.seeding import generator, seeded_torch, torch_generator
from benchmark.trainer import Learner, make_learner, train_step
from methods.base import Batch, Method, Recipe, Step, Term

SIDE = 16
"""Voxels along each axis of a made volume."""

WIDTH, LEVELS = 4, 3
"""Filters of the first level of the networks, and how many levels they have."""

TOTAL = 40
"""Steps of a whole training run in a check."""

RUN = tuple(Step(index, TOTAL) for index in range(TOTAL))
"""All steps of a run."""

STEPS = (RUN[0], RUN[TOTAL // 2], RUN[-1])
"""Where in the run terms are looked at."""


def demand(kept: bool, message: str) -> None:
    """Raise AssertionError with the message unless the rule is kept (also under `python -O`)."""
    if not kept:
        raise AssertionError(message)


def check_inputs_are_known(method: Method) -> None:
    """`inputs` names only what a batch can carry."""
    unknown = sorted(set(method.inputs) - set(INPUTS))
    demand(not unknown, f"unknown inputs {unknown}; known: {', '.join(INPUTS)}")
    demand(
        len(set(method.inputs)) == len(method.inputs),
        f"inputs {method.inputs} names one twice: remove it",
    )


class DeclaredExtras(dict[str, Tensor]):
    """Extras of a batch that name the rule when an undeclared one is read."""

    def __missing__(self, name: str) -> Tensor:
        raise AssertionError(
            f"extra {name!r} is read but not declared: add it to the method's `inputs`"
        )


def make_batch(method: Method, seed: int) -> Batch:
    """Two labelled and two unlabelled noisy balls, as far as the method declares its inputs.

    Raises:
        AssertionError: the method declares an input that does not exist.
    """
    check_inputs_are_known(method)
    draw = generator(seed, "data", 0)
    grid = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"))
    centre = draw.uniform(0.35 * SIDE, 0.65 * SIDE, size=(4, 3, 1, 1, 1))
    radius = draw.uniform(0.2 * SIDE, 0.3 * SIDE, size=(4, 1, 1, 1))
    label = (((grid - centre) ** 2).sum(axis=1) <= radius**2).astype(np.uint8)
    image = 2.0 * label + draw.normal(0, 0.5, size=label.shape) - 0.5
    images = torch.from_numpy(image).float().unsqueeze(1)
    extras = {
        name: make(torch.from_numpy(label[:2]))
        for name, make in EXTRAS.items()
        if name in method.inputs
    }
    count = 4 if "unlabelled" in method.inputs else 2
    shift = draw.integers(-SIDE // 4, SIDE // 4, size=(count, 3), endpoint=True)
    overlap = torch.zeros_like(images[:count])
    for second, first, (x, y, z) in zip(overlap, images, shift.tolist(), strict=False):
        crop_into(second, first, (x, y, z))
    paired = {"overlap": overlap, "shift": torch.from_numpy(shift)}
    extras |= {name: x for name, x in paired.items() if name in method.inputs}
    return Batch(
        image=images[:2],
        label=torch.from_numpy(label[:2]).long(),
        unlabelled=images[2:] if "unlabelled" in method.inputs else images[:0],
        extras=DeclaredExtras(extras),
    )


def small_learner(method: Method, seed: int = 0, dropout: float = 0.5) -> Learner:
    """The method with small fresh networks in training mode, under the `common` recipe."""
    nets = initialise(method, seed, channels=1, width=WIDTH, levels=LEVELS, dropout=dropout)
    demand(
        isinstance(nets, nn.ModuleDict),
        f"`init` returns a {type(nets).__name__}; return an nn.ModuleDict with all that learns "
        "or remembers, so that it is saved",
    )
    for player, parameters in method.players(nets).items():
        demand(bool(parameters), f"player {player!r} has no parameters: drop it, or unfreeze some")
    return make_learner(method, nets.train(), Recipe(), seed, TOTAL)


def terms_at(learner: Learner, batch: Batch, step: Step) -> dict[str, Term]:
    """The terms of a step, drawn as the trainer draws; torch's global generators stay as found."""
    with seeded_torch(learner.seed, "noise", step.index, 1):
        rng = torch_generator(learner.seed, "noise", step.index)
        return learner.method.losses(learner.nets, batch, step, rng)


def values_at(learner: Learner, batch: Batch, step: Step) -> dict[str, float]:
    """The unweighted values of `terms_at`."""
    return {name: term.value.item() for name, term in terms_at(learner, batch, step).items()}


def train(learner: Learner, batch: Batch, steps: Iterable[Step]) -> list[dict[str, float]]:
    """Train on one batch; return each step's values. Torch's global generators stay as found."""
    history = []
    for step in steps:
        with seeded_torch(learner.seed, "noise", step.index):
            terms = train_step(learner, batch, step)
        history.append({name: term.value.item() for name, term in terms.items()})
    return history


@lru_cache(maxsize=1)
def straight_run(method: Method) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Each step's values of a whole run on one batch, and the learner's state before each and last.

    Several checks look at it; it is made once for all of them.
    """
    learner, batch = small_learner(method), make_batch(method, 0)
    history, states = [], [deepcopy(learner.state())]
    for step in RUN:
        history += train(learner, batch, [step])
        states.append(deepcopy(learner.state()))
    return history, states


def fresh_and_trained(method: Method) -> Iterator[Learner]:
    """The method before, then after forty steps on one batch.

    Terms that count confident voxels only may find none before the networks have learnt anything.
    """
    yield small_learner(method)
    trained = small_learner(method)
    trained.load(deepcopy(straight_run(method)[1][-1]))
    yield trained
