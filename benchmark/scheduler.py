"""From a command to runs that have been worked on: plan, skip what is done, execute, sum up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmark.data import open_dataset
from benchmark.data.base import Dataset
from benchmark.data.splits import labelled_count, split_labelled
from benchmark.executors.base import Ending, Event, Executor, busy
from benchmark.jobs import Job, announce, clean
from benchmark.miniature import LEVELS, WIDTH
from benchmark.networks import initialise
from benchmark.profiles import PROFILES, Profile
from benchmark.spec import RunSpec, method_for, override, recipe_of
from methods.base import Method
from results.claims import BEAT_S, file_system_time
from results.errors import UserError
from results.lookup import find, unknown
from results.schema import Keep
from results.store import Store
from results.text import told

_LOOK_EVERY_S = 0.5
"""At runs that other processes have."""


@dataclass(frozen=True)
class Request:
    """What a user asked for, with names resolved to methods but nothing read from disk.

    ratios:    shares of the training volumes that are labelled.
    labelled:  numbers of labelled volumes; exactly one of the two is given.
    overrides: "method", "profile" or "recipe" -> field -> text.
    keep:      of which evaluations the predictions are stored.
    """

    methods: Mapping[str, type[Method]]
    sources: Sequence[str]
    ratios: Sequence[float]
    labelled: Sequence[int]
    seeds: Sequence[int]
    profile: str
    recipe: str
    predictors: tuple[str, ...]
    overrides: Mapping[str, Mapping[str, str]]
    data: Path
    plugins: tuple[str, ...] = ()
    keep: Keep = Keep.NONE


@dataclass
class Summary:
    """How a grid ended. `errors` are not finished: the same command continues them."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Every run has finished."""
        return not (self.failed or self.errors)


class View(Protocol):
    """What shows a grid while it is worked on."""

    def begin(self, jobs: Sequence[Job], done: Sequence[str], parallel: int) -> None:
        """The grid, those of it that are done already, and how many are worked on at once."""

    def event(self, event: Event) -> None:
        """A run was started or has ended."""

    def refresh(self) -> None:
        """Some time has passed."""

    def end(self) -> None:
        """Nothing more will come."""


def grid(request: Request) -> list[Job]:
    """Every run of the request, seeds outermost: an interrupted grid has compared all methods.

    Raises:
        UserError: any name, number or combination that cannot be run. Nothing has begun.
    """
    profile = find("profile", request.profile, PROFILES)
    profile = override(profile, "profile", request.overrides.get("profile", {}))
    methods = [_method(cls, request) for cls in request.methods.values()]
    unused = set(request.overrides) - {"profile", "recipe", *request.methods}
    if unused:
        raise UserError(f"--set {sorted(unused)[0]}.…: that method is not part of this command")
    settings = [
        (source, dataset, count)
        for source in request.sources
        for dataset in [open_dataset(source, request.data)]
        for count in _counts(dataset, request)
    ]
    jobs = []
    for seed in request.seeds:
        for source, dataset, count in settings:
            for method in methods:
                spec = _spec(method, dataset, count, seed, profile, request)
                jobs.append(
                    Job(
                        spec=spec,
                        source=source,
                        data=request.data,
                        label=dataset.label,
                        unit=dataset.card.unit,
                        unlabelled=len(dataset.splits["train"]) - count,
                        plugins=request.plugins,
                        keep=request.keep,
                    )
                )
    return jobs


def require_predictions(jobs: Sequence[Job], store: Store) -> None:
    """Refuse to ask for predictions of runs that have finished without them.

    Raises:
        UserError: names such runs and says what to do.
    """
    without = []
    for job in jobs:
        run = job.spec.run_id
        if not job.kept or not store.is_done(run) or store.state(run) != "finished":
            continue
        kept = store.read("predictions", [run], ["step"]) if store.has("predictions", run) else None
        if kept is None or set(job.kept) - set(kept["step"]):
            without.append(run)
    if without:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        raise UserError(
            f"finished without the predictions that --keep-predictions {jobs[0].keep} asks for: "
            f"{', '.join(without[:3])}{more}. A finished run is never changed: give another "
            "--store to train them again (their numbers will be the same), or leave the option out"
        )


def execute(jobs: Sequence[Job], store: Store, executor: Executor, view: View) -> Summary:
    """Work on every run that has no record yet, and say how all of them ended.

    Runs that other processes have are waited for, and taken over from those that die.

    Raises:
        KeyboardInterrupt: after the workers have been stopped; nothing is lost.
    """
    by_id = {job.spec.run_id: job for job in jobs}
    done = [run for run in by_id if store.is_done(run)]
    waiting = [run for run in by_id if run not in set(done)]
    for run in done:
        clean(store, run)
    ended: dict[str, Event] = {}

    def notify(event: Event) -> None:
        if event.ending is not None:
            ended[event.run] = event
        view.event(event)

    view.begin(jobs, done, executor.parallel)
    try:
        elsewhere: list[str] = []
        while waiting or elsewhere:
            for run in waiting:
                announce(by_id[run], store)
            executor.execute(waiting, store, notify, view.refresh)
            elsewhere += [run for run in waiting if ended[run].ending is Ending.BUSY]
            waiting = _let_go(elsewhere, store, notify, view.refresh)
    finally:
        view.end()
    return _summary(by_id, ended, store)


def _let_go(
    elsewhere: list[str],
    store: Store,
    notify: Callable[[Event], None],
    idle: Callable[[], None],
) -> list[str]:
    """Wait for others to finish or let go of runs; take from the list, and return, the free ones.

    Waits for a beat more once some are free: those of a machine that died are free one by one.
    Returns nothing when all have a record.
    """
    free: list[str] = []
    enough = math.inf
    while elsewhere and time.monotonic() < enough:
        now = file_system_time(store.path / "work")
        for run in list(elsewhere):
            event = busy(run, store, now)
            if event is not None and event.ending is Ending.BUSY:
                continue
            elsewhere.remove(run)
            if event is None:
                free.append(run)
            else:
                notify(event)
        if free:
            enough = min(enough, time.monotonic() + BEAT_S)
        if elsewhere:
            idle()
            time.sleep(_LOOK_EVERY_S)
    return free


def _summary(by_id: Mapping[str, Job], ended: Mapping[str, Event], store: Store) -> Summary:
    summary = Summary()
    for run in by_id:
        event = ended.get(run)
        if store.is_done(run):
            record = store.record(run)
            if record["state"] == "finished":
                summary.finished.append(run)
            else:
                summary.failed[run] = record["error"]
        else:
            summary.errors[run] = event.message if event is not None else "it was not begun"
    return summary


def _method(cls: type[Method], request: Request) -> Method:
    return override(method_for(cls, request.recipe), cls.name, request.overrides.get(cls.name, {}))


def _counts(dataset: Dataset, request: Request) -> list[int]:
    n_train = len(dataset.splits["train"])
    counts = [*request.labelled, *(labelled_count(r, n_train) for r in request.ratios)]
    return list(dict.fromkeys(counts))


def _spec(
    method: Method,
    dataset: Dataset,
    labelled: int,
    seed: int,
    profile: Profile,
    request: Request,
) -> RunSpec:
    split_labelled(dataset, labelled, need_unlabelled="unlabelled" in method.inputs)
    recipe = recipe_of(type(method), request.recipe)
    recipe = override(recipe, "recipe", request.overrides.get("recipe", {}))
    geometry = find(f"geometry of {dataset.card.name}", profile.geometry, dataset.card.geometry)
    multiple = 2 ** (profile.levels - 1)
    if any(side % multiple for side in geometry.patch):
        raise UserError(
            f"patch {geometry.patch} of {dataset.label} does not suit a network of "
            f"{profile.levels} levels: sides must be multiples of {multiple}"
        )
    return RunSpec(
        method=method,
        recipe=recipe,
        dataset=dataset.card.name,
        fingerprint=dataset.fingerprint,
        geometry=geometry,
        augmentation=dataset.card.augmentation,
        labelled=labelled,
        seed=seed,
        profile=profile,
        predictors=_predictors(method, request.predictors),
    )


def _predictors(method: Method, asked: Sequence[str]) -> tuple[str, ...]:
    """The predictors to evaluate, each once and in the method's order.

    Raises:
        UserError: one that the method does not have, or all without `main`; networks that cannot
            be built at the size of the contract's checks.
    """
    try:
        nets = initialise(method, 0, channels=1, width=WIDTH, levels=LEVELS, dropout=0.0)
        known = tuple(method.predictors(nets))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"method {method.name} cannot be built with {WIDTH} filters and {LEVELS} levels: "
            f"{told(error)}; `bench test-method` says what every method keeps"
        ) from error
    missing = sorted(set(asked) - {*known, "all"})
    if missing:
        raise unknown(f"predictor of {method.name}", missing[0], [*known, "all"])
    if not {"main", "all"} & set(asked):
        raise UserError(
            f"--predictors {','.join(asked)}: main is missing, which the paper of a method reports "
            f"and tables rank; known of {method.name}: {', '.join(known)}, or all"
        )
    return known if "all" in asked else tuple(name for name in known if name in asked)
