"""What a grid would cost here, from a few measured steps at a reduced patch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import numpy as np
import torch

from benchmark import environment
from benchmark.data import open_dataset
from benchmark.data.base import Dataset, Triple
from benchmark.data.sampling import EXTRAS
from benchmark.data.volumes import reduced_shape
from benchmark.evaluation import WINDOWS_AT_ONCE
from benchmark.inference import count_windows
from benchmark.jobs import Job
from benchmark.remaining import Rate
from benchmark.runner import EVALUATED_SPLITS, build_learner, chosen_predictors
from benchmark.spec import RunSpec
from benchmark.trainer import Learner, evaluating, train_step
from methods.base import Batch, Step
from results.errors import UserError
from results.text import told

PROBE_SIDE = 48
"""Longest side of the patch that is timed; cost is taken to grow with the number of voxels."""

PROBED_AT = (1 / 8, 3 / 8, 5 / 8, 7 / 8)
"""Places of a run whose steps are timed: stages, ramps and memories have costs of their own."""

_BYTES_PER_ROW = 40
_BYTES_PER_RUN = 30_000
_BYTES_PER_MASK = 10_000
"""Of a left atrium at full resolution; smaller volumes take less."""


@dataclass(frozen=True)
class Cost:
    """Of one run: seconds on this machine, bytes in the store, bytes of its work folder."""

    seconds: float
    stored_bytes: int
    working_bytes: int


def costs(jobs: Sequence[Job], device: torch.device, threads: int) -> dict[str, Cost]:
    """Cost of every run, by run id; each kind of run is timed once.

    Raises:
        UserError: a run cannot be tried.
    """
    environment.make_deterministic(device, threads)
    measured: dict[object, Cost] = {}
    found = {}
    for job in jobs:
        spec = job.spec
        kind = (spec.method, spec.recipe, spec.dataset, spec.profile, spec.predictors)
        if kind not in measured:
            dataset = open_dataset(job.source, job.data)
            try:
                measured[kind] = _cost(spec, dataset, device, len(job.kept))
            except (UserError, torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # of a method that is not ours
                raise UserError(f"{spec.method.name} cannot be tried: {told(error)}") from error
        found[spec.run_id] = measured[kind]
    return found


def _cost(spec: RunSpec, dataset: Dataset, device: torch.device, kept: int) -> Cost:
    learner = build_learner(spec, dataset.card.channels, device)
    rate = _rate(spec, dataset, learner, device)
    evaluations = len(spec.evaluated)
    cases = sum(len(dataset.splits[s]) for s in EVALUATED_SPLITS)
    unlabelled = len(dataset.splits["train"]) - spec.labelled
    per_evaluation = rate.per_evaluation or 0.0
    trained = spec.steps * rate.per_step
    seconds = trained + per_evaluation * (evaluations + unlabelled / cases)
    predictors = len(spec.predictors)
    state = sum(t.numel() * t.element_size() for t in learner.nets.state_dict().values())
    momentum = sum(p.numel() * 4 for p in learner.nets.parameters() if p.requires_grad)
    return Cost(
        seconds=seconds,
        stored_bytes=_BYTES_PER_RUN
        + _BYTES_PER_ROW * evaluations * cases * predictors
        + _BYTES_PER_MASK * kept * cases * predictors,
        working_bytes=2 * (state + momentum),
    )


def _rate(spec: RunSpec, dataset: Dataset, learner: Learner, device: torch.device) -> Rate:
    geometry = spec.geometry
    multiple = 2 ** (spec.profile.levels - 1)
    probe = _probe_patch(geometry.patch, multiple)
    factor = math.prod(geometry.patch) / math.prod(probe)
    batch = _made_batch(spec, dataset.card.channels, probe, device)
    probed = (Step(int(place * spec.steps), spec.steps) for place in PROBED_AT)
    per_step = factor * fmean(
        _timed(partial(train_step, learner, batch, step), device) for step in probed
    )
    predictors = chosen_predictors(spec, learner)
    with evaluating(learner.nets):
        windows_at_once = batch.image[:1].expand(WINDOWS_AT_ONCE, -1, -1, -1, -1).contiguous()
        spent = sum(_timed(partial(p, windows_at_once), device) for p in predictors.values())
        per_window = factor * spent / WINDOWS_AT_ONCE
    windows = 0
    for split in EVALUATED_SPLITS:
        names = dataset.splits[split]
        if names:
            shape = dataset.load(names[0]).label.shape
            x, y, z = reduced_shape((shape[0], shape[1], shape[2]), geometry.scale)
            windows += len(names) * count_windows((x, y, z), geometry.patch, geometry.stride)
    return Rate(per_step, per_window * windows)


def _probe_patch(patch: Triple, multiple: int) -> Triple:
    x, y, z = (max(multiple, min(n, PROBE_SIDE) // multiple * multiple) for n in patch)
    return x, y, z


def _made_batch(spec: RunSpec, channels: int, patch: Triple, device: torch.device) -> Batch:
    """A batch of noise around a ball."""
    rng = np.random.default_rng(0)
    count, recipe = spec.recipe.labelled, spec.recipe
    unlabelled = recipe.unlabelled if "unlabelled" in spec.method.inputs else 0
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in patch), indexing="ij"))
    ball = ((grid**2).sum(0) < 0.4).astype(np.uint8)
    label = torch.from_numpy(np.stack([ball] * count)).long().to(device)
    noise = rng.normal(size=(count + unlabelled, channels, *patch)).astype(np.float32)
    images = torch.from_numpy(noise).to(device)
    extras = {name: EXTRAS[name](label) for name in spec.method.inputs if name in EXTRAS}
    paired = {"overlap": images, "shift": torch.zeros(len(images), 3, dtype=torch.int64)}
    extras |= {name: x for name, x in paired.items() if name in spec.method.inputs}
    return Batch(images[:count], label, images[count:], extras)


def _timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the faster of two calls after one to warm up."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])
