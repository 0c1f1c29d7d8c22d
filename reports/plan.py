"""What `bench plan` found: seeds, cases, hours and disk, as tables and for other programs.

What a store did not measure is None, and "not measured" in print. Not a report of a store alone:
it answers a question, so it is not among `REPORTS`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import RenderableType

from protocols.metrics import METRICS
from protocols.policies import POLICIES
from protocols.rules import parse_rule
from reports.costs import duration
from reports.render import Section, Sheet, console
from reports.table import NO_VALUE
from results.errors import UserError
from results.lookup import find

NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True)
class Question:
    """What a user wants to know; empty tuples stand for all that the store has.

    detect: difference to find, in percent points for DSC, in its unit for a distance.
    seeds:  of the grid whose cost is told.
    sd:     over the runs of a method; None to take the store's.
    """

    detect: float
    metric: str = "dsc"
    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    labelled: tuple[int, ...] = ()
    profiles: tuple[str, ...] = ()
    seeds: int = 5
    protocol: str = "last"
    empty: str = "tcseg"
    sd: float | None = None
    power: float = 0.8
    alpha: float = 0.05

    def __post_init__(self) -> None:
        parse_rule(self.protocol)
        find("policy", self.empty, POLICIES)
        find("metric", self.metric, METRICS)
        if not 0 < self.detect < math.inf:
            raise UserError(f"--detect {self.detect}: expected a difference above 0")
        if self.sd is not None and not 0 <= self.sd < math.inf:
            raise UserError(f"--sd {self.sd}: expected at least 0")
        if not 0 < self.alpha < self.power < 1:
            raise UserError(
                f"--alpha {self.alpha} --power {self.power}: expected 0 < alpha < power < 1"
            )

    @property
    def scale(self) -> float:
        """From the store's unit to that of `detect`."""
        return 100.0 if self.metric == "dsc" else 1.0

    def wants(self, row: Mapping[Hashable, Any]) -> bool:
        """Whether a row of `runs` or of the summary is asked for."""
        given = (
            ("method", self.methods),
            ("dataset", self.datasets),
            ("labelled", self.labelled),
            ("profile", self.profiles),
        )
        return all(not wanted or row[name] in wanted for name, wanted in given)


@dataclass(frozen=True)
class Spread:
    """How far the runs of one method scatter, and what follows for unpaired comparisons.

    runs:       finished ones.
    sd:         over them, with its 95 % interval.
    detectable: the smallest difference that so many runs of each of two such methods find.
    seeds:      of each method, that find the difference asked for; at both ends of the interval.
    """

    setting: str
    label: str
    runs: int
    sd: float | None
    sd_low: float | None = None
    sd_high: float | None = None
    detectable: float | None = None
    seeds: int | None = None
    seeds_low: int | None = None
    seeds_high: int | None = None


@dataclass(frozen=True)
class Pair:
    """Two methods over the same seeds and cases.

    runs:         common seeds.
    sd:           over seeds, of the difference.
    detectable:   the smallest difference that so many pairs find.
    seeds:        pairs that find the difference asked for.
    sd_case:      over cases, of the difference, free of the noise of seeds, unless that hides it.
    floor:        the smallest difference that so many cases show for new cases, at any seeds.
    cases_needed: for the difference asked for, at any seeds.
    """

    setting: str
    first: str
    second: str
    runs: int
    sd: float | None = None
    detectable: float | None = None
    seeds: int | None = None
    cases: int | None = None
    sd_case: float | None = None
    floor: float | None = None
    cases_needed: int | None = None


@dataclass(frozen=True)
class Cell:
    """Cost of one method in one setting.

    runs:    that were measured.
    seconds: of a run, median; likewise stored_bytes.
    hours:   of the seeds of the grid, one run after the other; likewise total_bytes.
    needed:  seeds for the difference asked for (`Spread.seeds`), and their hours.
    """

    method: str
    setting: str
    runs: int = 0
    device: str | None = None
    seconds: float | None = None
    stored_bytes: float | None = None
    hours: float | None = None
    total_bytes: float | None = None
    needed: int | None = None
    hours_needed: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Budget:
    """The answer."""

    question: Question
    spreads: tuple[Spread, ...]
    pairs: tuple[Pair, ...]
    grid: tuple[Cell, ...]

    @property
    def hours(self) -> float:
        """Of all cells that are measured; of a method's devices the slowest counts."""
        return _total((c, c.hours) for c in self.grid)

    @property
    def total_bytes(self) -> float:
        """Of all cells that are measured; of a method's devices the one with most."""
        return _total((c, c.total_bytes) for c in self.grid)

    @property
    def unmeasured(self) -> int:
        """Cells that no run tells the cost of."""
        return sum(c.hours is None for c in self.grid)

    def as_json(self) -> dict[str, Any]:
        """For other programs; null is not measured."""
        return {
            **asdict(self),
            "total": {
                "hours": self.hours,
                "bytes": self.total_bytes,
                "cells_not_measured": self.unmeasured,
            },
        }

    def tables(self) -> list[RenderableType]:
        """For a terminal."""
        sheets = [_spread_sheet(self), _pair_sheet(self), _grid_sheet(self)]
        return [console(page) for page in sheets if page.sections]


def _total(costs: Iterable[tuple[Cell, float | None]]) -> float:
    """Of every method and setting once, whatever number of devices its runs were on."""
    highest: dict[tuple[str, str], float] = {}
    for cell, cost in costs:
        if cost is not None:
            key = (cell.method, cell.setting)
            highest[key] = max(cost, highest.get(key, 0.0))
    return sum(highest.values())


def place(dataset: str | None, labelled: int | None, profile: str | None) -> str:
    """A setting in words; None for whichever."""
    parts = (dataset or "any dataset", "any" if labelled is None else str(labelled))
    return f"{', '.join(parts)} labelled, profile {profile or 'any'}"


def _spread_sheet(budget: Budget) -> Sheet:
    q = budget.question
    columns = (
        *(("", "method"), ("", "runs"), ("over runs", "SD"), ("over runs", "95 % interval")),
        *(("difference", "found by these"), ("seeds each", f"for {q.detect:g}")),
        ("seeds each", "at the interval's ends"),
    )
    sections = []
    for setting in dict.fromkeys(s.setting for s in budget.spreads):
        rows = [
            (
                s.label,
                str(s.runs),
                _text(s.sd),
                NO_VALUE if s.sd_low is None else f"{_text(s.sd_low)} to {_text(s.sd_high)}",
                _text(s.detectable),
                _count(s.seeds, s.sd),
                NO_VALUE
                if s.sd_low is None
                else f"{_count(s.seeds_low, s.sd)} to {_count(s.seeds_high, s.sd)}",
            )
            for s in budget.spreads
            if s.setting == setting
        ]
        sections.append(Section(setting, tuple(rows)))
    notes = (
        f"{_unit(q)} under protocol {q.protocol}, empty masks by policy {q.empty}. Found with "
        f"probability {q.power:g} by a two-sided t-test at {q.alpha:g} between two methods that "
        "both scatter like this one, each with seeds of its own.",
        "The SD of few runs is itself uncertain: the seeds that its interval stands for are the "
        "honest range.",
    )
    return Sheet("Seeds, unpaired", columns, tuple(sections), notes)


def _pair_sheet(budget: Budget) -> Sheet:
    q = budget.question
    columns = (
        *(("", "methods"), ("over seeds", "pairs"), ("over seeds", "SD")),
        *(("over seeds", "found by these"), ("over seeds", f"pairs for {q.detect:g}")),
        *(("over cases", "cases"), ("over cases", "SD"), ("over cases", "floor")),
        ("over cases", f"cases for {q.detect:g}"),
    )
    sections = []
    for setting in dict.fromkeys(p.setting for p in budget.pairs):
        rows = [
            (
                f"{p.first} – {p.second}",
                str(p.runs),
                _text(p.sd),
                _text(p.detectable),
                _count(p.seeds, p.sd),
                NO_VALUE if p.cases is None else str(p.cases),
                _text(p.sd_case),
                _text(p.floor),
                _count(p.cases_needed, p.sd_case),
            )
            for p in budget.pairs
            if p.setting == setting
        ]
        sections.append(Section(setting, tuple(rows)))
    beyond = [p for p in budget.pairs if p.floor is not None and p.floor > q.detect]
    notes = [
        "Paired: differences of two methods over the seeds that both have.",
        "Floor: the smallest difference that shows beyond these test cases, however many seeds "
        "there are; SD over cases is that of the difference with the noise of seeds taken out.",
    ]
    notes += [
        f"{p.first} – {p.second} ({p.setting}): the noise of {p.runs} seeds hides how the cases "
        "differ; more seeds would tell the floor."
        for p in budget.pairs
        if p.cases is not None and p.sd_case is None
    ]
    notes += [
        f"{p.first} – {p.second} ({p.setting}): no number of seeds shows {q.detect:g} on "
        f"{p.cases} cases; it takes {_count(p.cases_needed, p.sd_case)} cases."
        for p in beyond
    ]
    return Sheet("Seeds and cases, paired", columns, tuple(sections), tuple(notes))


def _grid_sheet(budget: Budget) -> Sheet:
    q = budget.question
    columns = (
        *(("", "method"), ("", "device"), ("measured", "runs"), ("a run", "time"), ("a run", "MB")),
        *((f"{q.seeds} seeds", "time"), (f"{q.seeds} seeds", "MB")),
        *((f"for {q.detect:g}", "seeds"), (f"for {q.detect:g}", "time")),
    )
    sections = []
    for setting in dict.fromkeys(c.setting for c in budget.grid):
        rows = [
            (
                c.method,
                c.device or NOT_MEASURED,
                str(c.runs),
                _time(c.seconds),
                _text(None if c.stored_bytes is None else c.stored_bytes / 1e6),
                _time(c.hours, 3600),
                _text(None if c.total_bytes is None else c.total_bytes / 1e6),
                NO_VALUE if c.needed is None else str(c.needed),
                _time(c.hours_needed, 3600),
            )
            for c in budget.grid
            if c.setting == setting
        ]
        sections.append(Section(setting, tuple(rows)))
    notes = [f"{c.method}, {c.setting}: {NOT_MEASURED}; {c.note}." for c in budget.grid if c.note]
    more = f", and {budget.unmeasured} that are not measured" if budget.unmeasured else ""
    notes.insert(
        0,
        f"Total of {q.seeds} seeds each: {duration(3600 * budget.hours)}, one after the other on "
        f"the device named (of several the slowest), {budget.total_bytes / 1e6:.1f} MB in the "
        f"store{more}.",
    )
    notes.append("Medians over finished runs; times are those of the machine and its load then.")
    return Sheet("Cost", columns, tuple(sections), tuple(notes), left=2)


def _unit(question: Question) -> str:
    label = METRICS[question.metric].label
    return f"{label} in percent points" if question.metric == "dsc" else f"{label} in its unit"


def _text(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


def _time(value: float | None, seconds: int = 1) -> str:
    """A time in units of so many seconds."""
    return NOT_MEASURED if value is None else duration(value * seconds)


def _count(value: int | None, measured: float | None) -> str:
    """A number of seeds or cases; there is one where its SD is known, unless it is endless."""
    if measured is None:
        return NOT_MEASURED
    return "over a million" if value is None else str(value)
