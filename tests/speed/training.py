"""The training step on a CPU, and the harness around it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.data.base import Volume
from benchmark.data.la import CARD
from benchmark.data.sampling import Sampler
from benchmark.networks import initialise
from benchmark.profiles import PROFILES
from benchmark.progress import Reporter
from benchmark.trainer import Learner, make_learner, train, train_step
from methods.base import Batch, Method, Recipe, Step
from methods.supervised import Supervised
from methods.tcseg import TCSeg
from tests.speed.side_by_side import Line, Subject

SIDES, ROUNDS = (48, 64), 5
MINI_STEPS = 10


def lines(_subject: Subject, _folder: Path) -> Iterator[Line]:
    """A step of two patches, and the share of a mini step that is the harness's."""
    for side in SIDES:
        yield step_row(side)
    for method in (Supervised(), TCSeg()):
        yield overhead_row(method)


def step_row(side: int) -> Line:
    """A V-Net step, batch 2: as torch does it by default, and bf16 with channels last."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(2, 1, side, side, side)).astype(np.float32))
    label = (image[:, 0] > 1).long()
    batch = Batch(image, label, image[:0], {})
    plain, quick = learner_of("fp32", last=False), learner_of("bf16", last=True)
    times: tuple[list[float], list[float]] = ([], [])
    losses: list[float] = []
    for turn in range(ROUNDS + 1):
        for spent, learner in zip(times, (plain, quick), strict=True):
            began = time.process_time()
            terms = train_step(learner, batch, Step(turn, 100))
            if turn:
                spent.append(1e3 * (time.process_time() - began))
            else:
                losses.append(terms["supervised"].value.item())
    a, b = (statistics.median(t) for t in times)
    return Line(
        f"V-Net step, 2 x {side}^3, bf16 channels last, against plain fp32",
        ">= 2x",
        f"{a:.0f} ms",
        f"{b:.0f} ms",
        f"{a / b:.2f}x{' MISSED' if a < 2 * b else ''}",
        f"first loss {losses[1] / losses[0] - 1:+.1e}",
    )


def learner_of(precision: str, *, last: bool) -> Learner:
    """A 16-filter V-Net at step 0, without dropout."""
    shape: dict[str, Any] = {"channels": 1, "width": 16, "levels": 5, "dropout": 0.0}
    nets = initialise(Supervised(), 0, **shape, precision=precision)
    for parameter in nets.parameters():
        if last and parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
    nets.train()
    return make_learner(Supervised(), nets, Recipe(), seed=0, total=100)


class Inside:
    """A method that counts the CPU time of what a step cannot do without."""

    def __init__(self, method: Method) -> None:
        self._method, self.seconds = method, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, its time counted."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - began

        return timed

    def losses(self, *args: Any) -> Any:
        """Forward passes and terms."""
        return self.counted(self._method.losses)(*args)

    def after_step(self, *args: Any) -> Any:
        """Of teachers."""
        return self.counted(self._method.after_step)(*args)


@contextmanager
def counting(learner: Learner) -> Iterator[Inside]:
    """Inside the block forward, backward and optimiser are timed."""
    inside = Inside(learner.method)
    backward = torch.Tensor.backward
    learner.method = inside  # type: ignore[assignment]
    for optimiser in learner.optimisers.values():
        optimiser.step = inside.counted(optimiser.step)  # type: ignore[method-assign]
    torch.Tensor.backward = inside.counted(backward)  # type: ignore[method-assign]
    try:
        yield inside
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def overhead_row(method: Method) -> Line:
    """Share of a mini step that is neither forward, backward nor optimiser."""
    profile = replace(PROFILES["mini"], dropout=0.5)
    geometry = CARD.geometry[profile.geometry]
    rng = np.random.default_rng(0)
    shape = (65, 47, 29)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    label = ((grid**2).sum(0) < 0.5).astype(np.uint8)
    volumes = {
        name: Volume(rng.normal(size=(1, *shape)).astype(np.float32) + label, label, (1, 1, 1))
        for name in "abcd"
    }
    sample = Sampler(volumes, "ab", "cd", geometry.patch, CARD.augmentation, method.inputs, 0)
    size = {"width": profile.width, "levels": profile.levels, "dropout": profile.dropout}
    learner = make_learner(method, initialise(method, 0, channels=1, **size), Recipe(), 0, 1000)  # type: ignore[arg-type]
    for parameter in learner.nets.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
    with tempfile.TemporaryDirectory() as folder:
        reporter = Reporter(Path(folder), 1000, 1)
        reporter.begin(0, 0)

        def count(done: int) -> None:
            reporter.attempt.step = done
            reporter.write()

        train(learner, sample, 100, 102, count)
        with counting(learner) as inside:
            began = time.process_time()
            train(learner, sample, 102, 102 + MINI_STEPS, count)
            whole = time.process_time() - began
    around = whole - inside.seconds
    share = around / whole
    return Line(
        f"harness around a mini step of {method.name}",
        "<= 10 % of it",
        f"{1e3 * whole / MINI_STEPS:.0f} ms (all)",
        f"{1e3 * around / MINI_STEPS:.1f} ms",
        f"{share:.1%}{' MISSED' if share > 0.1 else ''}",
        "-",
    )
