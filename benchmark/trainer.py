"""The one training loop. Only here are `backward` and `step` called."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmark import seeding
from methods.base import Batch, Method, Recipe, Step, Term

HISTORY_ROWS = 1_000
"""About how many steps of a run have their terms kept."""

_DROPOUT_SLOT = 1
"""Of the `noise` axis; slot 0 is what methods draw from."""


class Diverged(Exception):
    """A loss or a prediction is no longer finite: the run has failed, by its own doing.

    rows: of the history since training last paused, the step that diverged included.
    """

    def __init__(self, step: int, what: str, rows: Sequence[Row] = ()) -> None:
        super().__init__(f"{what} is not finite at step {step}")
        self.rows = rows


@dataclass
class Learner:
    """All that training changes: networks and optimisers, and what they are trained by."""

    method: Method
    nets: nn.ModuleDict
    optimisers: dict[str, torch.optim.Optimizer]
    recipe: Recipe
    seed: int
    total: int

    def state(self) -> dict[str, Any]:
        """Everything that a continued run needs, as tensors and plain values."""
        return {
            "nets": self.nets.state_dict(),
            "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.nets.load_state_dict(state["nets"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])


@dataclass(frozen=True)
class Row:
    """One term of one step, as the history table keeps it."""

    step: int
    term: str
    value: float
    weight: float


def make_learner(
    method: Method, nets: nn.ModuleDict, recipe: Recipe, seed: int, total: int
) -> Learner:
    """A learner at step 0: per player the recipe's SGD, or the Adam that the method names."""
    optimisers: dict[str, torch.optim.Optimizer] = {}
    for player, parameters in method.players(nets).items():
        if player in method.adam:
            own = method.adam[player]
            optimisers[player] = torch.optim.Adam(parameters, own.learning_rate, own.betas)
        else:
            optimisers[player] = torch.optim.SGD(
                parameters,
                lr=recipe.learning_rate,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
            )
    return Learner(method, nets, optimisers, recipe, seed, total)


def train(
    learner: Learner,
    sample: Callable[[int], Batch],
    start: int,
    stop: int,
    after: Callable[[int], None],
    *,
    read_every: int = 1,
) -> list[Row]:
    """Train from step `start` up to, not including, step `stop`; return the kept history rows.

    Args:
        learner: changed in place.
        sample: the batch of a step; a pure function.
        start: first step, from 0.
        stop: the step before which to end.
        after: the one callback, given the number of steps done, for progress.
        read_every: steps between two readings of the terms. To read is to wait for the device; to
            read later changes nothing but when a run that diverges is stopped.

    Raises:
        Diverged: a term is NaN or infinite; at the first step where one is.
    """
    ledger = _Ledger(learner.total)
    learner.nets.train()
    try:
        for index in range(start, stop):
            terms = train_step(learner, sample(index), Step(index, learner.total))
            ledger.note(index, terms)
            if (index + 1 - start) % read_every == 0:
                ledger.read()
            after(index + 1)
    except Exception:
        ledger.read()  # what a NaN leads to says less than where it first was
        raise
    ledger.read()
    return ledger.rows


class _Ledger:
    """Terms of the steps since training last paused: noted on the device, read in one go.

    rows: of the history, as far as it has been read.
    """

    def __init__(self, total: int) -> None:
        self.rows: list[Row] = []
        self._total = total
        self._keep_every = max(1, total // HISTORY_ROWS)
        self._unread: list[tuple[int, dict[str, float], torch.Tensor]] = []

    def note(self, index: int, terms: Mapping[str, Term]) -> None:
        """Put down the terms of a step, without waiting for their values."""
        values = torch.stack([t.value.detach().float() for t in terms.values()])
        self._unread.append((index, {n: t.weight for n, t in terms.items()}, values))

    def read(self) -> None:
        """Read what was noted.

        Raises:
            Diverged: at the first step with a term that is NaN or infinite.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        numbers = iter(torch.cat([values for _, _, values in unread]).tolist())
        for index, weights, _ in unread:
            values = {name: next(numbers) for name in weights}
            lost = [name for name, value in values.items() if not math.isfinite(value)]
            if lost or index % self._keep_every == 0 or index == self._total - 1:
                self.rows += [Row(index, n, values[n], w) for n, w in weights.items()]
            if lost:
                raise Diverged(index, f"loss term '{lost[0]}'", self.rows)


def train_step(learner: Learner, batch: Batch, step: Step) -> dict[str, Term]:
    """One optimiser step of every player, then what the method updates itself."""
    method, nets = learner.method, learner.nets
    device = batch.image.device
    seeding.reseed_torch(learner.seed, "noise", step.index, _DROPOUT_SLOT)
    rng = seeding.torch_generator(learner.seed, "noise", step.index, device=device)
    terms = method.losses(nets, batch, step, rng)
    _backward(method, nets, terms)
    rate = learner.recipe.learning_rate_at(step)
    for player, optimiser in learner.optimisers.items():
        if player not in method.adam:
            for group in optimiser.param_groups:
                group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    method.after_step(nets, step)
    return terms


def _backward(method: Method, nets: nn.ModuleDict, terms: dict[str, Term]) -> None:
    """Accumulate each player's gradient of its own weighted terms, in its own parameters only."""
    players = method.players(nets)
    objective: dict[str, torch.Tensor] = {}
    for term in terms.values():
        weighted = term.weight * term.value
        objective[term.player] = objective.get(term.player, 0.0) + weighted
    last = len(objective) - 1
    for position, (player, loss) in enumerate(objective.items()):
        loss.backward(inputs=players[player], retain_graph=position < last)


@contextmanager
def evaluating(nets: nn.ModuleDict) -> Iterator[None]:
    """Evaluation mode without gradients inside the block, training mode after it."""
    nets.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        nets.train()
