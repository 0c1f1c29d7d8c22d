"""What `bench run` and `bench test-method` do, apart from parsing and layout."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmark import environment
from benchmark.attempts import ATTEMPTS
from benchmark.commands_data import EMBEDDED, prepare
from benchmark.contract import CHECKS
from benchmark.data import is_folder, source_for
from benchmark.data.manifest import is_prepared
from benchmark.estimate import Cost, costs
from benchmark.executors import EXECUTORS
from benchmark.executors.base import Executor, Resources
from benchmark.jobs import Job
from benchmark.plugins import from_file, resolve
from benchmark.profiles import PROFILES
from benchmark.remaining import Left, in_words, together
from benchmark.scheduler import Request, Summary, View, execute, grid, require_predictions
from benchmark.spec import parse_overrides, parse_seeds
from benchmark.view import Bars, Lines, Silent
from results.errors import UserError
from results.lookup import find
from results.schema import Keep
from results.store import Store
from results.text import told

INTERRUPTED = 130
ABANDONED_AFTER_H = 24.0
"""Age at which a temporary file in the store belongs to a process that was killed."""


@dataclass(frozen=True)
class Plan:
    """A command's grid and where it will run. Everything is resolved, nothing has begun.

    insisted: the user named the profile.
    """

    request: Request
    store: Path
    executor: Executor
    resources: Resources
    insisted: bool

    @classmethod
    def make(
        cls,
        *,
        methods: Sequence[str],
        sources: Sequence[str],
        ratios: Sequence[float],
        labelled: Sequence[int],
        seeds: str,
        profile: str | None,
        recipe: str,
        predictors: str,
        settings: Sequence[str],
        store: Path,
        data: Path,
        plugins: Sequence[str],
        executor: str,
        jobs: int | None,
        threads: int | None,
        keep_predictions: Keep = Keep.NONE,
        attempts: int = ATTEMPTS,
    ) -> Plan:
        """Resolve every name.

        Raises:
            UserError: one that is unknown or does not fit; nothing has begun.
        """
        if ratios and labelled:
            raise UserError("--ratio and --labelled both given; they say the same, keep one")
        if executor == "inline" and jobs not in (None, 1):
            raise UserError(f"--executor inline with --jobs {jobs}: it works on one run at a time")
        absolute = tuple(str(Path(p).resolve()) for p in plugins)
        known = resolve(methods, absolute)
        default = "demo" if set(sources) == {EMBEDDED} else "paper"
        worker = find("executor", executor, EXECUTORS)
        overrides = parse_overrides(settings, known, [executor] if worker.settings else [])
        resources = Resources(
            jobs=jobs,
            threads=threads,
            gpus=usable_gpus(),
            cores=environment.cores(),
            plugins=absolute,
            attempts=attempts,
            settings=overrides.pop(executor, {}),
        )
        request = Request(
            methods=known,
            sources=list(dict.fromkeys(sources)),
            ratios=ratios,
            labelled=labelled,
            seeds=parse_seeds(seeds),
            profile=find("profile", profile or default, PROFILES).name,
            recipe=recipe,
            predictors=tuple(p.strip() for p in predictors.split(",") if p.strip()),
            overrides=overrides,
            data=data,
            plugins=absolute,
            keep=keep_predictions,
        )
        return cls(request, store, worker.make(resources), resources, profile is not None)

    @cached_property
    def jobs(self) -> list[Job]:
        """The runs of the grid."""
        return grid(self.request)

    def pending(self) -> list[Job]:
        """The runs that have no record yet."""
        store = Store(self.store)
        return [job for job in self.jobs if not store.is_done(job.spec.run_id)]

    def costs(self, jobs: Sequence[Job]) -> dict[str, Cost]:
        """Measured cost of runs, by run id, at the threads they will have."""
        device = torch.device("cuda:0" if self.resources.gpus else "cpu")
        cores = self.resources.cores
        threads = self.resources.threads or max(1, cores // self.executor.parallel)
        return costs(jobs, device, threads)

    def seconds(self, measured: Mapping[str, Cost]) -> float:
        """How long runs of these costs take, as many at once as the executor works on."""
        left = [Left(cost.seconds, True) for cost in measured.values()]
        return together(left, self.executor.parallel).seconds


def usable_gpus() -> tuple[str, ...]:
    """Ids of the GPUs this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if visible:
        return tuple(v.strip() for v in visible.split(",") if v.strip())[:count]
    return tuple(str(i) for i in range(count))


def show_plan(plan: Plan, console: Console) -> None:
    """Print what would run, how long it would take here, and how much disk it needs."""
    pending = plan.pending()
    measured = plan.costs(pending)
    table = Table("method", "dataset", "labelled", "runs", "steps", "time a run", box=None)
    kinds: dict[tuple[str, str, int], list[Job]] = {}
    for job in pending:
        key = (job.spec.method.name, job.spec.dataset, job.spec.labelled)
        kinds.setdefault(key, []).append(job)
    for (method, dataset, labelled), jobs in kinds.items():
        spec = jobs[0].spec
        time = in_words(measured[spec.run_id].seconds)
        table.add_row(method, dataset, str(labelled), str(len(jobs)), f"{spec.steps:,}", time)
    console.print(table)
    total = plan.seconds(measured)
    stored = sum(c.stored_bytes for c in measured.values())
    largest = sorted((c.working_bytes for c in measured.values()), reverse=True)
    working = sum(largest[: plan.executor.parallel])
    done = len(plan.jobs) - len(pending)
    console.print(
        f"{len(pending)} runs to do, {done} done already; profile {plan.request.profile}; "
        f"{plan.executor.parallel} at once: about {in_words(total)} here; "
        f"disk: {stored / 1e6:.1f} MB of results, {working / 1e6:.0f} MB while it runs.",
        highlight=False,
    )


def refuse_unkept(plan: Plan) -> None:
    """Stop where predictions are asked for of runs that have finished without them.

    Raises:
        UserError: names such runs and says what to do.
    """
    require_predictions(plan.jobs, Store(plan.store))


def refuse_endless(plan: Plan) -> None:
    """Stop before days of work that nobody asked for: the paper's scale by default, on a CPU.

    Raises:
        UserError: says how long it would take here, and names the profile for a CPU.
    """
    if plan.insisted or plan.executor.elsewhere:
        return
    if plan.request.profile != "paper" or plan.resources.gpus:
        return
    pending = plan.pending()
    if not pending:
        return
    seconds = plan.seconds(plan.costs(pending))
    raise UserError(
        f"no GPU here: {len(pending)} runs at the paper's scale would take about "
        f"{in_words(seconds)} on this CPU. Add --profile mini for the reduced scale, which takes "
        "minutes a run, or --profile paper to insist"
    )


def run(plan: Plan, display: str, console: Console, *, retry_failed: bool) -> int:
    """Work on the grid and print what came of it; return the exit code."""
    jobs = plan.jobs
    unreachable = plan.executor.unreachable()
    if unreachable:
        raise UserError(unreachable)
    store = Store.open(plan.store, create=True)
    store.sweep_temporary(ABANDONED_AFTER_H)
    store.records()  # says that a store is damaged, or too new, before anything is trained
    if retry_failed:
        for job in jobs:
            run_id = job.spec.run_id
            if store.is_done(run_id) and store.record(run_id)["state"] == "failed":
                store.discard_failed(run_id)
    views: dict[str, Any] = {
        "bars": lambda: Bars(store, console),
        "lines": lambda: Lines(store),
        "none": Silent,
    }
    view: View = views[display]()
    try:
        summary = execute(jobs, store, plan.executor, view)
    except KeyboardInterrupt:
        console.print(escape(plan.executor.farewell(store)), highlight=False, soft_wrap=True)
        return INTERRUPTED
    if display == "bars":
        _show_results(jobs, summary, store, console)
    _show_problems(summary, console if display != "lines" else Console(stderr=True))
    return 0 if summary.ok else 1


def prepare_folders(plan: Plan, console: Console) -> None:
    """Folders given as datasets are prepared on first use.

    Raises:
        UserError: a folder that cannot be prepared.
    """
    for source in plan.request.sources:
        if not is_folder(source):
            continue
        if not is_prepared(plan.request.data / source_for(source).card.name):
            prepare(source, None, plan.request.data, console)


def test_method(plugin: Path, console: Console) -> int:
    """Put every method of a file through the contract; print each rule; return the exit code."""
    broken = 0
    for cls in from_file(plugin):
        for check in CHECKS:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            try:
                check(cls())
            except Exception as error:
                broken += 1
                said = str(error) if isinstance(error, AssertionError) else told(error)
                text = f"[red]broken[/]  {cls.name}: {name}\n        {escape(said)}"
                console.print(text, highlight=False)
            else:
                console.print(f"[green]kept[/]    {cls.name}: {name}", highlight=False)
    return int(broken > 0)


def _show_results(jobs: Sequence[Job], summary: Summary, store: Store, console: Console) -> None:
    from reports.report import tables

    wanted = {job.spec.run_id for job in jobs}
    if summary.finished:
        for table in tables(store.path, "last", runs=wanted):
            console.print(table)


def _show_problems(summary: Summary, console: Console) -> None:
    for word, runs in (
        ("failed", summary.failed),
        ("did not finish", summary.errors),
    ):
        for run_id, message in runs.items():
            console.print(f"[bold]{run_id}[/] {word}: {escape(message)}", highlight=False)
    if summary.failed:
        console.print(
            "Failed runs count in reports; `--retry-failed` forgets them and tries again."
        )
    total = len(summary.finished) + len(summary.failed) + len(summary.errors)
    if not summary.ok:
        console.print(f"{len(summary.finished)} of {total} runs finished.", highlight=False)
