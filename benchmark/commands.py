"""What the commands do, apart from parsing and layout."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmark import environment, floor
from benchmark.attempts import ATTEMPTS
from benchmark.contract import CHECKS
from benchmark.data import SOURCES, is_folder, open_dataset, prepared_folders, source_for
from benchmark.data.base import Card, Dataset
from benchmark.data.inspection import inspect
from benchmark.data.links import linked_cases
from benchmark.data.prepared import is_prepared
from benchmark.data.splits import split_names
from benchmark.estimate import Cost, costs
from benchmark.executors import EXECUTORS
from benchmark.executors.base import Executor, Resources
from benchmark.plugins import from_file, resolve
from benchmark.profiles import PROFILES
from benchmark.remaining import Left, in_words, together
from benchmark.runner import Job
from benchmark.scheduler import Request, Summary, View, execute, grid, require_predictions
from benchmark.spec import parse_overrides, parse_seeds
from benchmark.view import Bars, Lines, Silent
from reports.render import csv_text, write_file
from results.errors import UserError
from results.lookup import find
from results.schema import Keep
from results.store import Store

EMBEDDED = "phantom"
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


def prepare(
    name: str, source: Path | None, data: Path, console: Console, split: str | None = None
) -> None:
    """Prepare a dataset with a progress bar, and print what came of it.

    Raises:
        UserError: bad input; nothing is left half-prepared.
    """
    found = source_for(name)
    if source is None:
        if name in SOURCES and name != EMBEDDED:
            raise UserError(f"--source is missing. {found.card.how_to_get}")
        source = Path(name)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bars:
        task = bars.add_task(f"preparing {found.card.name}", total=None)

        said = ""

        def show(done: int, total: int, what: str) -> None:
            nonlocal said
            said = what
            bars.update(task, completed=done, total=total, description=escape(what))

        folder = found.prepare(source, data, show, split)
    console.print(escape(said), highlight=False)
    console.print(escape(summary_of(open_dataset(folder.name, data))), highlight=False)


def check_data(name: str, data: Path, console: Console) -> int:
    """Check a prepared dataset, print what it holds and what is wrong; return the exit code."""
    dataset = open_dataset(name, data)
    seen = inspect(dataset, environment.cores())
    for finding in seen.findings:
        colour = "red" if finding.severity == "error" else "yellow"
        said = escape(f"{finding.subject}: {finding.text}")
        console.print(f"[{colour}]{finding.severity}[/] {said}", highlight=False)
    facts = Table(box=None, show_header=False, pad_edge=False)
    for what, value in seen.summary():
        facts.add_row(what, escape(value))
    console.print(facts)
    linked = linked_cases(dataset)
    if linked:
        console.print(
            f"{len(linked)} of {len(dataset.splits['test'])} test cases are linked to training "
            "cases; `bench report --cases unlinked` leaves them out.",
            highlight=False,
        )
    console.print(escape(summary_of(dataset)), highlight=False)
    return int(any(finding.severity == "error" for finding in seen.findings))


def show_floor(
    name: str,
    labelled: Sequence[int],
    store: Path | None,
    to: Path | None,
    data: Path,
    console: Console,
) -> None:
    """Measure the atlas of a dataset and print it; write its cases, or add it to a store, if asked.

    Raises:
        UserError: more labelled cases than there are, a store without runs on the dataset, or a
            file that cannot be written.
    """
    dataset = open_dataset(name, data)
    if store is not None:
        if labelled or to is not None:
            raise UserError("--store measures the settings of its runs: leave --labelled and --out")
        runs = floor.add_runs(Store.open(store), dataset, environment.cores())
        console.print(f"{len(runs)} run(s) of {floor.METHOD} are in {store}", highlight=False)
        return
    n_train = len(dataset.splits["train"])
    usual = {max(1, round(share * n_train)) for share in (0.1, 0.2, 1.0)}
    counts = list(dict.fromkeys(labelled)) or sorted(usual)
    unit = dataset.card.unit
    table = Table("labelled", "split", "cases", "DSC %", f"ASD {unit}", f"HD95 {unit}", box=None)
    rows = []
    for count in counts:
        frame = pd.DataFrame(floor.measure(dataset, count, jobs=environment.cores()))
        for split, part in frame.groupby("split", sort=False):
            means = (100 * part["dsc"].mean(), part["asd"].mean(), part["hd95"].mean())
            table.add_row(
                f"{count} of {n_train}", str(split), str(len(part)), *(f"{m:.2f}" for m in means)
            )
        rows.append(frame.assign(labelled=count))
    console.print(table)
    console.print(
        f"Means over cases, volumes at full resolution. {floor.NOTE}", highlight=False, style="dim"
    )
    if to is not None:
        write_file(to, csv_text(pd.concat(rows)))
        console.print(f"wrote {to}", markup=False, highlight=False)


def summary_of(dataset: Dataset) -> str:
    """A prepared dataset in a line: its label (which says if it is partial), cases, fingerprint."""
    counts = ", ".join(f"{len(cases)} {split}" for split, cases in dataset.splits.items())
    return f"{dataset.label}: {counts}; fingerprint {dataset.fingerprint[:12]}"


@dataclass(frozen=True)
class DataState:
    """Where one dataset stands.

    cells:  a row of the table: name, state, cases by split, fingerprint.
    advice: what is wrong with it or special, or how to get it.
    card:   its facts, by what they are of.
    """

    name: str
    cells: tuple[str, ...]
    advice: str
    card: tuple[tuple[str, str], ...]


def data_states(data: Path) -> list[DataState]:
    """Every known dataset and every prepared folder."""
    states = []
    for name in [*SOURCES, *prepared_folders(data)]:
        try:
            dataset = open_dataset(name, data)
        except UserError as error:
            card = card_rows(SOURCES[name].card) if name in SOURCES else ()
            there = is_prepared(data / name)
            row = (name, "damaged" if there else "missing", "", "", "", "")
            states.append(DataState(name, row, str(error), card))
            continue
        counts = tuple(str(len(dataset.splits[s])) for s in ("train", "val", "test"))
        kind = "embedded" if dataset.folder is None else "ready"
        state = kind if dataset.complete else "partial"
        cells = (name, state, *counts, dataset.fingerprint[:12])
        states.append(DataState(name, cells, dataset.remark, card_rows(dataset.card)))
    return states


def card_rows(card: Card) -> tuple[tuple[str, str], ...]:
    """The facts of a card by what they are of; what a dataset does not say is left out."""
    counts = "/".join(map(str, card.counts)) if any(card.counts) else ""
    others = ", ".join(split_names(card.name))
    rows = [
        ("title", f"{card.title}: {card.structure}, {card.modality}"),
        ("from", card.source),
        ("licence", card.licence),
        ("get it", card.how_to_get),
        ("size", card.size),
        ("split", f"{counts} train/val/test" * bool(counts) + f"; --split {others}" * bool(others)),
        ("distances", f"in {card.unit}"),
        *(("note", note) for note in card.notes),
        ("cite", card.reference),
    ]
    return tuple((what, text) for what, text in rows if text)


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
                said = str(error) if isinstance(error, AssertionError) else repr(error)
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
    total = len(summary.finished) + len(summary.failed) + len(summary.errors)
    if not summary.ok:
        console.print(f"{len(summary.finished)} of {total} runs finished.", highlight=False)
