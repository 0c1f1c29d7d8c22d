"""One run, from its spec to its rows in the store. Idempotent: finished work is never redone."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch

from benchmark import checkpoint, environment
from benchmark.data import open_dataset
from benchmark.data.base import Dataset, Split, Volume
from benchmark.data.links import linked_cases
from benchmark.data.sampling import Sampler
from benchmark.data.splits import split_labelled
from benchmark.data.volumes import load_volumes
from benchmark.evaluation import Evaluator, Prediction, reference_cache
from benchmark.jobs import Job, row_of, spent
from benchmark.networks import initialise
from benchmark.plugins import digest
from benchmark.prefetch import prefetched
from benchmark.progress import Reporter
from benchmark.spec import RunSpec, canonical_json
from benchmark.trainer import Diverged, Learner, evaluating, make_learner, train
from methods.base import Predictor
from results.claims import Claim
from results.errors import UserError
from results.schema import TABLES
from results.store import RUN_TABLES, Store

Outcome = Literal["finished", "failed"]
EVALUATED_SPLITS: tuple[Split, ...] = ("val", "test")
READ_EVERY = 25
"""Steps between two readings of the terms on a GPU."""


@dataclass(frozen=True)
class World:
    """All data of a run in memory, and which cases are what."""

    dataset: Dataset
    volumes: Mapping[str, Volume]
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    evaluated: Mapping[Split, tuple[str, ...]]


def run(job: Job, store: Store, device: torch.device, threads: int, claim: Claim) -> Outcome:
    """Train, evaluate and store one run; continue it where it was cut; return at once when done.

    Args:
        job: the run.
        store: where it was announced.
        device: to train on.
        threads: CPU threads.
        claim: of the run, held by this process.

    Raises:
        Lost: another process has taken over; what this one did since its last checkpoint is void.
        UserError: bad data, or a store that cannot be written. The run stays unfinished.
        torch.OutOfMemoryError: says what took how much, and what to do.
    """
    run_id = job.spec.run_id
    if not store.is_done(run_id):
        exact = job.spec.profile.precision == "exact"
        environment.make_deterministic(device, threads, exact=exact)
        environment.keep_freed_memory()
        try:
            _Attempt(job, store, claim, device, threads).execute()
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(_out_of_memory(job.spec, device)) from error
    return "finished" if store.state(run_id) == "finished" else "failed"


def load_world(spec: RunSpec, source: str, data: Path) -> World:
    """Read the volumes a run needs.

    Raises:
        UserError: data missing, damaged, or no longer what the spec's fingerprint says.
    """
    dataset = open_dataset(source, data)
    if dataset.fingerprint != spec.fingerprint:
        raise UserError(
            f"{dataset.label} has changed since this run was planned: fingerprint "
            f"{dataset.fingerprint[:12]} now, {spec.fingerprint[:12]} then. Restore the data, or "
            "start a new run with it"
        )
    labelled, unlabelled = split_labelled(
        dataset, spec.labelled, need_unlabelled="unlabelled" in spec.method.inputs
    )
    evaluated = {s: dataset.splits[s] for s in EVALUATED_SPLITS if dataset.splits[s]}
    cases = [*labelled, *unlabelled, *(c for names in evaluated.values() for c in names)]
    volumes = load_volumes(dataset, cases, spec.geometry.scale)
    return World(dataset, volumes, labelled, unlabelled, evaluated)


def build_learner(spec: RunSpec, channels: int, device: torch.device) -> Learner:
    """Networks and optimisers of a run at step 0."""
    profile = spec.profile
    nets = initialise(
        spec.method,
        spec.seed,
        channels=channels,
        width=profile.width,
        levels=profile.levels,
        dropout=profile.dropout,
        precision=profile.precision,
    ).to(device)
    if device.type == "cpu" or profile.channels_last:
        # A quarter to a third faster on CPUs, where convolutions otherwise reorder every tensor.
        for parameter in nets.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
    if profile.compile:
        for net in nets.values():
            net.compile(dynamic=False)
    return make_learner(spec.method, nets, spec.recipe, spec.seed, spec.steps)


def build_sampler(spec: RunSpec, world: World, device: torch.device) -> Sampler:
    """The batches of a run, as a pure function of the step."""
    sampler = Sampler(
        volumes=world.volumes,
        labelled=world.labelled,
        unlabelled=world.unlabelled,
        patch=spec.geometry.patch,
        augmentation=spec.augmentation,
        inputs=spec.method.inputs,
        seed=spec.seed,
        labelled_batch=spec.recipe.labelled,
        unlabelled_batch=spec.recipe.unlabelled,
        device=device,
    )
    sampler.settle()
    return sampler


def chosen_predictors(spec: RunSpec, learner: Learner) -> dict[str, Predictor]:
    """The predictors that the spec asks for.

    Raises:
        UserError: the method has no predictor of that name.
    """
    known = spec.method.predictors(learner.nets)
    missing = set(spec.predictors) - set(known)
    if missing:
        raise UserError(
            f"{spec.method.name} has no predictor {', '.join(sorted(missing))}; "
            f"known: {', '.join(known)}, or all"
        )
    return {name: known[name] for name in spec.predictors}


class Measuring(NamedTuple):
    """An evaluation whose predictions are made: its step, and what waits for its cases."""

    step: int
    rows: Callable[[], list[dict[str, Any]]]


class _Attempt:
    """One attempt at a run: the state of its loop, and nothing that outlives it."""

    def __init__(
        self, job: Job, store: Store, claim: Claim, device: torch.device, threads: int
    ) -> None:
        self.spec, self.run_id, self.store, self.claim = job.spec, job.spec.run_id, store, claim
        self.folder = folder = store.work(self.run_id)
        self.device = device
        # Where a GPU trains, the processor is free to work ahead; on a CPU it would be in the way.
        on_gpu = device.type == "cuda"
        self.helpers, self.read_every = (threads, READ_EVERY) if on_gpu else (0, 1)
        # One thread cannot measure while it trains.
        self.pool = ThreadPoolExecutor(threads) if on_gpu or threads > 1 else None
        self.measuring: Measuring | None = None
        self.due, self.kept = job.spec.evaluated, job.kept
        self.row = row_of(job)
        self.plugins = {Path(p).name: digest(Path(p)) for p in job.plugins}
        if device.type == "cuda":
            torch.cuda.init()  # In a process of its own nothing has, and the next call would fail.
            torch.cuda.reset_peak_memory_stats(device)
        self.reporter = Reporter(folder, job.spec.steps, len(self.due))
        self.world = load_world(job.spec, job.source, job.data)
        cases = sum(len(names) for names in self.world.evaluated.values())
        self.reporter.progress.pseudo = len(self.world.unlabelled) / cases
        self.learner = build_learner(job.spec, self.world.dataset.card.channels, device)
        self.predictors = chosen_predictors(job.spec, self.learner)
        self.references = reference_cache(self.world.volumes)
        self.evaluator = Evaluator(
            volumes=self.world.volumes,
            geometry=job.spec.geometry,
            device=device,
            threads=threads,
            segmented=self._segmented,
        )
        self.environments = [environment.fingerprint(device, threads)]

    def execute(self) -> None:
        """Train to the end from the newest checkpoint, and commit what came of it."""
        done = self._resume()
        self._require_predictions(done)
        self.reporter.begin(done, sum(s <= done for s in self.due))
        try:
            self._train(done)
        except Diverged as failure:
            self._settle()
            if failure.rows:
                stop = failure.rows[-1].step + 1
                self._keep("history", stop, [asdict(r) for r in failure.rows])
            self._commit("failed", str(failure))
        else:
            self._settle()
            self._commit("finished", "")
        finally:
            if self.pool is not None:
                self.pool.shutdown(cancel_futures=True)

    def _train(self, done: int) -> None:
        """From `done` steps to the end, with every evaluation and checkpoint.

        The checkpoint of a step may be there before its cases are, as they may be measured while
        training goes on; but no checkpoint of a later step is. So a run that is continued lacks the
        cases of the step that it continues from at most, whose networks it has.
        """
        if done in self.due and done not in set(
            self.store.read_parts(self.run_id, "cases")["step"]
        ):
            self._evaluate(done)
        sampler = build_sampler(self.spec, self.world, self.device)
        with prefetched(sampler, self.spec.steps, self.helpers) as sample:
            for stop in _stops(self.spec, done):
                with self.reporter.timing("training"):
                    rows = train(
                        *(self.learner, sample, done, stop, self._count),
                        read_every=self.read_every,
                    )
                self._keep("history", stop, [asdict(r) for r in rows])
                self._settle()
                if stop in self.due:
                    self._evaluate(stop)
                self.claim.require()
                checkpoint.save(self.folder, stop, self._state())
                done = stop

    def _resume(self) -> int:
        found = checkpoint.load_newest(self.folder, self.device)
        step = 0
        if found is not None:
            step, state = found
            self.learner.load(state["learner"])
            earlier = json.loads(state["environments"])
            self.environments = [
                e for e in earlier if e != self.environments[0]
            ] + self.environments
        self.claim.require()
        self.store.drop_parts_after(self.run_id, step)
        return step

    def _require_predictions(self, done: int) -> None:
        """Refuse to go on where predictions are asked for that were not kept.

        Raises:
            UserError: says what to do.
        """
        passed = {step for step in self.kept if step <= done}
        if not passed:
            return
        missing = passed - set(self.store.read_parts(self.run_id, "predictions")["step"])
        if missing:
            raise UserError(
                f"run {self.run_id} was evaluated at step {min(missing)} without keeping its "
                "predictions, and is past it. Go on without --keep-predictions, or delete "
                f"{self.folder} to begin it anew"
            )

    def _state(self) -> dict[str, Any]:
        return {"learner": self.learner.state(), "environments": json.dumps(self.environments)}

    def _count(self, done: int) -> None:
        self.reporter.attempt.step = done
        self.reporter.write()

    def _evaluate(self, step: int) -> None:
        with evaluating(self.learner.nets):
            with self.reporter.timing("evaluating"):
                predictions = self.evaluator.predictions(
                    self.predictors, self.world.evaluated, step
                )
            self._measure(step, predictions)
            if step in self.kept:
                self._keep("predictions", step, [p.packed() for p in predictions])
            if step == self.spec.steps and self.world.unlabelled:
                with self.reporter.timing("pseudo-labels"):
                    pseudo = self.evaluator.pseudo(self.predictors, self.world.unlabelled, step)
                self._keep("pseudo", step, pseudo)

    def _measure(self, step: int, predictions: Sequence[Prediction]) -> None:
        if self.pool is None:
            self.measuring = Measuring(
                step, lambda: self.evaluator.cases(predictions, self.references)
            )
            self._settle()
        else:
            rows = self.evaluator.cases_later(predictions, self.references, self.pool)
            self.measuring = Measuring(step, rows)

    def _settle(self) -> None:
        """Keep the cases of the last evaluation, once they are measured."""
        if self.measuring is None:
            return
        step, rows = self.measuring
        with self.reporter.timing("evaluating"):
            cases = rows()
        self._keep("cases", step, cases)
        self.measuring = None
        self.reporter.attempt.evaluations += 1
        self.reporter.progress.evaluated += 1

    def _keep(self, table: str, step: int, rows: list[dict[str, Any]]) -> None:
        names = [c.name for c in TABLES[table]]
        frame = pd.DataFrame([{"run": self.run_id} | r for r in rows], columns=names)
        self.claim.require()
        self.store.write_part(self.run_id, table, step, frame)

    def _commit(self, state: Outcome, error: str) -> None:
        self.reporter.enter("committing")
        names = [*RUN_TABLES, *(["predictions"] if self.kept else [])]
        tables = {name: self.store.read_parts(self.run_id, name) for name in names}
        evaluated = set(tables["cases"]["step"])
        if state == "finished" and evaluated != set(self.due):
            raise UserError(
                f"run {self.run_id} is at its end but evaluations of steps "
                f"{sorted(set(self.due) - evaluated)} are missing from {self.folder}; "
                "delete that folder and run again"
            )
        began_with = self.environments[-1]
        players = self.spec.method.players(self.learner.nets).values()
        record = self.row | {
            "state": state,
            "error": error,
            "parameters": sum({id(p): p.numel() for ps in players for p in ps}.values()),
            "device": environment.device_name(self.device),
            "environment": canonical_json(self.environments),
            "resumed_elsewhere": len(self.environments) > 1,
            "versions": canonical_json(environment.versions()),
            "commit": began_with["commit"],
            "dirty": began_with["dirty"],
        }
        self.claim.require()
        self.store.commit(self.run_id, tables, record, self._sidecar())

    def _segmented(self, seconds: float) -> None:
        attempt = self.reporter.attempt
        attempt.segmented += 1
        attempt.segmenting_seconds += seconds
        self.reporter.write()

    def _sidecar(self) -> dict[str, Any]:
        self.reporter.attempt.peak_memory_bytes = _peak_memory(self.device)
        self.reporter.write(force=True)
        return spent(self.reporter.progress) | {
            "notes": list(self.world.dataset.card.all_notes),
            "linked": linked_cases(self.world.dataset),
            "plugins": self.plugins,
        }


def _stops(spec: RunSpec, done: int) -> list[int]:
    """Steps after `done` where training pauses to evaluate or to save."""
    saves = range(spec.profile.checkpoint_every, spec.steps, spec.profile.checkpoint_every)
    return [s for s in sorted({*saves, *spec.evaluated}) if s > done]


def _peak_memory(device: torch.device) -> int:
    """Of the GPU's memory on a GPU, of this process's elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _out_of_memory(spec: RunSpec, device: torch.device) -> str:
    """What did not fit where, and what to do."""
    recipe, patch = spec.recipe, "x".join(map(str, spec.geometry.patch))
    batch = f"{recipe.labelled} + {recipe.unlabelled} patches of {patch}"
    said = (
        f"out of memory on {device}; run fewer at once (--jobs), or choose a smaller profile: "
        f"{spec.method.name} at profile {spec.profile_label}, {batch} a step"
    )
    if device.type != "cuda":
        return said
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    free, total = (n / 2**30 for n in torch.cuda.mem_get_info(device))
    return f"{said}, had taken {peak:.1f} GiB; {free:.1f} of {total:.1f} GiB are free"
