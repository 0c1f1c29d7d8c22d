"""What a grid looks like while it runs: bars on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmark import progress as run_progress
from benchmark.executors.base import Ending, Event
from benchmark.jobs import Job
from benchmark.remaining import (
    Left,
    Rate,
    mean_rate,
    rate_of,
    rate_of_sidecar,
    remaining,
    together,
)
from benchmark.spec import RunSpec
from results.store import Store

_LINE_EVERY_S = 30.0


class Watch:
    """Follows a grid's runs through their progress files and knows what is left of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._specs: dict[str, RunSpec] = {}
        self._ended: set[str] = set()
        self._rates: dict[str, Rate] = {}
        self._parallel = 1

    def begin(self, jobs: Sequence[Job], done: Sequence[str], parallel: int) -> None:
        """Start from the rates of the runs that are done."""
        self._specs = {job.spec.run_id: job.spec for job in jobs}
        self._ended = set(done)
        self._parallel = parallel
        for run in done:
            self._learn(run)

    def end(self, run: str) -> None:
        """A run needs nothing more; what it took tells about the others."""
        self._ended.add(run)
        self._learn(run)

    def state(self, run: str) -> str | None:
        """Finished or failed; None of a run without a record, which starts again."""
        return str(self._store.record(run)["state"]) if self._store.is_done(run) else None

    @property
    def total(self) -> int:
        """Runs in the grid."""
        return len(self._specs)

    @property
    def ended(self) -> int:
        """Runs that need nothing more."""
        return len(self._ended)

    def spec(self, run: str) -> RunSpec:
        """The spec of a run in the grid."""
        return self._specs[run]

    def progress(self, run: str) -> run_progress.Progress | None:
        """How far a run is."""
        return run_progress.read(self._store.work(run))

    def left(self) -> dict[str, Left | None]:
        """What each run that has not ended still needs; None while nothing tells."""
        now = {run: self.progress(run) for run in self._specs if run not in self._ended}
        known = self._known(now)
        return {run: self._left(run, progress, known) for run, progress in now.items()}

    def together(self, left: Mapping[str, Left | None]) -> Left | None:
        """What the grid still needs; None while nothing tells about some run."""
        known = [item for item in left.values() if item is not None]
        return together(known, self._parallel) if len(known) == len(left) else None

    def remaining_s(self) -> float | None:
        """Its seconds, rounded; None while nothing tells, or something is left out."""
        left = self.together(self.left())
        return round(left.seconds) if left is not None and left.sure else None

    def _learn(self, run: str) -> None:
        if self.state(run) == "finished":
            self._rates[run] = rate_of_sidecar(self._store.sidecar(run))

    def _left(
        self, run: str, now: run_progress.Progress | None, known: Mapping[object, Rate | None]
    ) -> Left | None:
        spec = self._specs[run]
        own, others = (rate_of(now) if now else None), known.get(_kind(spec))
        if own is not None and own.per_evaluation is None and others is not None:
            own = replace(own, per_evaluation=others.per_evaluation, overhead=others.overhead)
        rate = own or others
        if rate is None:
            return None
        return remaining(now, rate, spec.steps, len(spec.evaluated))

    def _known(self, now: Mapping[str, run_progress.Progress | None]) -> dict[object, Rate | None]:
        """By method and setting: the mean rate of its runs, those at work included."""
        found: dict[object, list[Rate]] = {}
        for run, spec in self._specs.items():
            progress = now.get(run)
            rate = self._rates.get(run) or (rate_of(progress) if progress else None)
            if rate is not None:
                found.setdefault(_kind(spec), []).append(rate)
        return {kind: mean_rate(rates) for kind, rates in found.items()}


def _kind(spec: RunSpec) -> object:
    """Runs of one kind take about as long as each other."""
    return spec.method, spec.dataset, spec.profile


class Bars:
    """Progress bars: one for the grid, one for each run at work."""

    def __init__(self, store: Store, console: Console) -> None:
        self._watch = Watch(store)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[count]}"),
            TextColumn("[dim]{task.fields[left]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._console = console
        self._grid: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}

    def begin(self, jobs: Sequence[Job], done: Sequence[str], parallel: int) -> None:
        """See `scheduler.View`."""
        self._watch.begin(jobs, done, parallel)
        if done:
            self._console.print(f"{len(done)} of {len(jobs)} runs are in the store already.")
        if len(done) < len(jobs):
            self._bars.start()
            self._grid = self._bars.add_task(
                "[bold]all runs", total=len(jobs), count="", left="estimating"
            )
            self.refresh()

    def event(self, event: Event) -> None:
        """See `scheduler.View`."""
        spec = self._watch.spec(event.run)
        name = f"{spec.method.name} · {spec.dataset} {spec.labelled} · seed {spec.seed}"
        if event.ending is None:
            if event.run not in self._tasks:
                self._tasks[event.run] = self._bars.add_task(
                    name, total=spec.steps, count="", left="starting"
                )
            return
        if event.ending is not Ending.BUSY:  # another process has those, and their bars go on
            self._watch.end(event.run)
            self._bars.remove_task(self._tasks.pop(event.run))
        if event.ending is not Ending.DONE:
            text = f"[yellow]{escape(name)}[/]: {escape(event.message)}"
            self._console.print(text, highlight=False)

    def refresh(self) -> None:
        """See `scheduler.View`."""
        partial, left = 0.0, self._watch.left()
        for run, task in self._tasks.items():
            now, spec = self._watch.progress(run), self._watch.spec(run)
            if now is None:
                continue
            partial += now.step / spec.steps
            self._bars.update(
                task,
                completed=now.step,
                count=f"{now.step}/{spec.steps}",
                left=f"{now.phase}, {_left(left.get(run))}",
            )
        if self._grid is not None:
            self._bars.update(
                self._grid,
                completed=self._watch.ended + partial,
                count=f"{self._watch.ended}/{self._watch.total}",
                left=_left(self._watch.together(left)),
            )

    def end(self) -> None:
        """See `scheduler.View`."""
        self._bars.stop()


class Lines:
    """One JSON object a line: begin, start, elsewhere, progress (every half minute), end."""

    def __init__(self, store: Store, stream: TextIO | None = None) -> None:
        self._watch = Watch(store)
        self._stream = stream or sys.stdout
        self._last = time.monotonic()

    def begin(self, jobs: Sequence[Job], done: Sequence[str], parallel: int) -> None:
        """See `scheduler.View`."""
        self._watch.begin(jobs, done, parallel)
        self._write({"event": "begin", "runs": len(jobs), "done": len(done), "parallel": parallel})

    def event(self, event: Event) -> None:
        """See `scheduler.View`."""
        if event.ending is None:
            self._write({"event": "start", "run": event.run})
            return
        if event.ending is Ending.BUSY:
            self._write({"event": "elsewhere", "run": event.run, "message": event.message})
            return
        self._watch.end(event.run)
        self._write(
            {
                "event": "end",
                "run": event.run,
                "ending": event.ending.value,
                "state": self._watch.state(event.run),
                "message": event.message,
                "runs_ended": self._watch.ended,
                "runs": self._watch.total,
                "remaining_s": self._watch.remaining_s(),
            }
        )

    def refresh(self) -> None:
        """See `scheduler.View`."""
        if time.monotonic() - self._last >= _LINE_EVERY_S:
            self._last = time.monotonic()
            ended, total = self._watch.ended, self._watch.total
            left = self._watch.remaining_s()
            self._write(
                {"event": "progress", "runs_ended": ended, "runs": total, "remaining_s": left}
            )

    def end(self) -> None:
        """See `scheduler.View`."""

    def _write(self, record: Mapping[str, object]) -> None:
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()


class Silent:
    """Nothing until the end."""

    def begin(self, jobs: Sequence[Job], done: Sequence[str], parallel: int) -> None:
        """See `scheduler.View`."""

    def event(self, event: Event) -> None:
        """See `scheduler.View`."""

    def refresh(self) -> None:
        """See `scheduler.View`."""

    def end(self) -> None:
        """See `scheduler.View`."""


def _left(left: Left | None) -> str:
    return "estimating" if left is None else left.in_words()
