"""Can printed summaries of runs exist together? Only what is impossible is said.

Every printed number stands for the interval that rounds to it. For n runs x₁ ≤ … ≤ xₙ with mean μ,
population standard deviation σ and ℓ = ⌊(n − 1) / 2⌋ runs strictly below the middle:

    minimum ≤ median ≤ maximum, minimum ≤ μ ≤ maximum
    |median − μ| ≤ σ √(ℓ / (n − ℓ))             (for any n: ≤ σ)
    maximum − μ ≤ σ √(n − 1), the same below    Samuelson, JASA 1968
    maximum − minimum ≤ σ √(2n)                 Thomson, Biometrika 1955

These are read by people. What decides is the smallest and the largest σ of any runs that agree with
all other numbers at once (`protocols.feasible.spread`). A sample standard deviation is
σ √(n / (n − 1)), a standard error of the mean σ / √(n − 1).

For the same runs, best ≥ last holds of median, mean, minimum and maximum of the DSC that the best
checkpoint is chosen by. Not checked, because it need not hold: best ≥ last of distances, or of
another selection than on the reported cases; ASD ≤ HD95 (a mean over one direction may exceed the
95th percentile of both); anything of a single number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, sqrt
from typing import Any, Final

import pandas as pd

from protocols.feasible import ANY, Interval, mean_range, rounds_to, spread
from results.published import PERCENTAGES

_OF_VALUES: Final = ("median", "maximum", "minimum", "mean")
"""Statistics that lie among the values of the runs."""

_READINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "std": ("sample", "population"),
    "std_sample": ("sample",),
    "std_population": ("population",),
    "standard_error": ("error",),
    "plus_minus": ("sample", "population", "error"),
}
"""What a printed spread may mean, the one that allows the widest runs last."""

_WORDS: Final = {"sample": "SD (n − 1)", "population": "SD (n)", "error": "standard error"}

GROUP: Final = (
    "source",
    "dataset",
    "labelled",
    "unlabelled",
    "method",
    "reference",
    "metric",
    "protocol_printed",
    "seeds",
)
"""What numbers must share to be of the same runs. An unknown number of runs is one of them."""

_TOLD_APART: Final = ("split", "unit")
"""What else parts them where several are named; one that names none may be of any."""


@dataclass(frozen=True)
class Printed:
    """A number as printed, and where; printed in several places, what all of them allow."""

    value: float
    digits: int
    allows: Interval
    where: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.value:.{self.digits}f}"


@dataclass(frozen=True)
class Finding:
    """Something that cannot be: the statistic that is printed, and why not, with numbers."""

    statistic: str
    text: str


@dataclass(frozen=True)
class Group:
    """Numbers of the same runs, and what came out.

    key:     by name, what is in `GROUP`; `seeds` is None where it is not known. And `split` or
             `unit` where the same runs would otherwise have several.
    rows:    how many numbers there were.
    numbers: one for each statistic, whatever number of places it is printed in.
    checked: what was compared; the range of each number always is.
    """

    key: Mapping[str, Any]
    rows: int
    numbers: Mapping[str, Printed]
    checked: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def audit(table: pd.DataFrame) -> list[Group]:
    """Check printed numbers against each other.

    Args:
        table: as `results.published.read_tables` gives it, in any order.

    Returns:
        One group for all numbers of the same runs and metric, in order of its key.
    """
    by_key: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        key = tuple(None if pd.isna(row[name]) else row[name] for name in GROUP)
        by_key.setdefault(key, []).append({str(k): v for k, v in row.items()})
    groups = []
    on_reported = set()
    for key in sorted(by_key, key=lambda k: [(v is not None, v) for v in k]):
        for more, rows in _apart(by_key[key]):
            whole = dict(zip(GROUP, key, strict=True)) | more
            groups.append(_examined(whole, sorted(rows, key=lambda r: (r["file"], r["line"]))))
            if not any(str(r["protocol_released"]).startswith("best(") for r in rows):
                on_reported.add(tuple(whole.values()))
    return _against_last(groups, on_reported)


def _apart(
    rows: Sequence[dict[str, Any]],
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Rows of one group by split and unit, where these name more than one."""
    names = [n for n in _TOLD_APART if len({row[n] for row in rows} - {""}) > 1]
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: [str(r[n]) for n in names]):
        found.setdefault(tuple(row[n] for n in names), []).append(row)
    return [(dict(zip(names, key, strict=True)), own) for key, own in found.items()]


def _examined(key: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Group:
    bounds = Interval(0.0, 100.0 if key["metric"] in PERCENTAGES else inf)
    found: list[Finding] = []
    by_name: dict[str, list[Printed]] = {}
    for row in rows:
        number = _number(row)
        name = str(row["statistic"])
        if name == "best_run" and key["metric"] == "dsc":
            name = "maximum"
        by_name.setdefault(name, []).append(number)
        found += _range(name, number, bounds)
    checked, numbers = [], {}
    for name, several in by_name.items():
        numbers[name] = several[0]
        if len(several) > 1 and name != "single":
            checked.append(f"{name} in {len(several)} places")
            numbers[name], more = _merged(name, several)
            found += more
    if not found:
        more_checked, found = _together(key["seeds"], numbers, bounds)
        checked += more_checked
    return Group(key, len(rows), numbers, tuple(checked), tuple(found))


def _number(row: Mapping[str, Any]) -> Printed:
    value, digits = float(row["value"]), int(row["digits"])
    where = f"{row['file']}, line {row['line']}"
    if row["table"]:
        name = str(row["table"])
        where = f"table {name}" if name.isdigit() else name
        where += "" if pd.isna(row["row"]) else f", row {row['row']}"
    return Printed(value, digits, rounds_to(value, digits), (where,))


def _range(name: str, number: Printed, bounds: Interval) -> list[Finding]:
    if name in _READINGS:
        bounds = Interval(0.0, inf)
    if number.allows.meets(bounds):
        return []
    limit = f"0 ≤ {name}" + (f" ≤ {bounds.high:g}" if bounds.high < inf else "")
    return [Finding(name, f"{limit}: printed {number}")]


def _merged(name: str, several: Sequence[Printed]) -> tuple[Printed, list[Finding]]:
    allows = ANY
    for number in several:
        allows = allows.within(number.allows)
    sharpest = max(several, key=lambda number: number.digits)
    one = replace(sharpest, allows=allows, where=tuple(w for s in several for w in s.where))
    if allows.low <= allows.high:
        return one, []
    each = ", ".join(f"{number} ({number.where[0]})" for number in several)
    return one, [Finding(name, f"one number of the same runs is printed as {each}")]


def _together(
    n: int | None, numbers: Mapping[str, Printed], bounds: Interval
) -> tuple[list[str], list[Finding]]:
    """What was checked among statistics of the same runs, and what cannot be."""
    checked = []
    for small, large in (
        ("minimum", "median"),
        ("median", "maximum"),
        ("minimum", "mean"),
        ("mean", "maximum"),
        ("minimum", "maximum"),
    ):
        if small in numbers and large in numbers:
            checked.append(f"{small} ≤ {large}")
            a, b = numbers[small], numbers[large]
            if a.allows.low > b.allows.high:
                return checked, [Finding(large, f"{small} ≤ {large} asks {a} ≤ {b}")]
    known = {name: numbers[name].allows for name in _OF_VALUES if name in numbers}
    if n is not None:
        more, found = _of_values(n, numbers, known, bounds)
        checked += more
        if found:
            return checked, found
    spreads = [name for name in _READINGS if name in numbers and known]
    checked += [f"{name} against {', '.join(known)}" for name in spreads]
    examine = _spread_of_unknown if n is None else partial(_spread_of, n, bounds=bounds)
    return checked, [finding for name in spreads for finding in examine(name, numbers, known)]


def _of_values(
    n: int, numbers: Mapping[str, Printed], known: Mapping[str, Interval], bounds: Interval
) -> tuple[list[str], list[Finding]]:
    """Whether n runs can have this median, maximum, minimum and mean."""
    rest = {name: interval for name, interval in known.items() if name != "mean"}
    if not rest:
        return [], []
    said = f"{_list(numbers, rest)} of {_runs(n)}"
    if spread(n, values=bounds, **rest) is None:
        return [f"{', '.join(rest)} together"], [Finding(next(iter(rest)), f"{said} cannot be")]
    if "mean" not in known:
        return [], []
    reach = mean_range(n, values=bounds, **rest)
    found = []
    if not reach.meets(known["mean"]):
        text = f"{said} put the mean {_from_to(reach)}, printed {numbers['mean']}"
        found.append(Finding("mean", text))
    return [f"mean against {', '.join(rest)}"], found


def _spread_of_unknown(
    name: str, numbers: Mapping[str, Printed], known: Mapping[str, Interval]
) -> list[Finding]:
    """What holds of a standard deviation for any number of runs."""
    if "error" in _READINGS[name] or not {"median", "mean"} <= set(known):
        return []
    if _gap(known["median"], known["mean"]).low <= numbers[name].allows.high:
        return []
    gap = _difference(numbers, "median", "mean")
    return [Finding(name, f"|median − mean| ≤ SD asks {gap} ≤ {numbers[name]}")]


def _spread_of(
    n: int,
    name: str,
    numbers: Mapping[str, Printed],
    known: Mapping[str, Interval],
    bounds: Interval,
) -> list[Finding]:
    """Whether a printed spread can be that of n runs with the other numbers, which can be."""
    printed = numbers[name]
    possible = spread(n, values=bounds, **known)
    assert possible is not None
    by_reading = {reading: possible.times(_factor(reading, n)) for reading in _WORDS}
    readings = _READINGS[name]
    fits = {r for r, interval in by_reading.items() if interval.meets(printed.allows)}
    if fits & set(readings):
        return []
    needs = " or ".join(f"{_WORDS[r]} {_limit(by_reading[r], printed)}" for r in readings)
    text = f"{_list(numbers, known)} of {_runs(n)} need {needs}, printed {printed}"
    for other in [r for r in _WORDS if r not in readings]:
        verdict = "is possible" if other in fits else "is impossible too"
        text += f"; as {_WORDS[other]} {printed} {verdict}"
    broken = _broken(n, printed, numbers, known, _factor(readings[-1], n))
    return [Finding(name, "; ".join([*broken, text]))]


def _factor(reading: str, n: int) -> float:
    """What σ is multiplied with; of one run every reading is 0, or not defined."""
    if reading == "population" or n == 1:
        return 1.0
    return sqrt(n / (n - 1)) if reading == "sample" else 1 / sqrt(n - 1)


def _broken(
    n: int,
    printed: Printed,
    numbers: Mapping[str, Printed],
    known: Mapping[str, Interval],
    factor: float,
) -> list[str]:
    """The simple inequalities that a spread breaks, read as σ times the factor."""
    below = (n - 1) // 2
    bounds = (
        ("median", "mean", sqrt(below / (n - below))),
        ("maximum", "mean", sqrt(n - 1)),
        ("mean", "minimum", sqrt(n - 1)),
        ("maximum", "minimum", sqrt(2 * n)),
    )
    said = []
    for a, b, times in bounds:
        if a not in known or b not in known:
            continue
        times /= factor
        if _gap(known[a], known[b]).low > printed.allows.high * times:
            left = f"|{a} − {b}|" if a == "median" else f"{a} − {b}"
            right = f"{printed.value * times:.{printed.digits + 1}f}"
            gap = _difference(numbers, a, b)
            said.append(f"{left} ≤ {times:.2f} · {printed} asks {gap} ≤ {right}")
    return said


def _gap(a: Interval, b: Interval) -> Interval:
    """Of |x − y| for x in a and y in b."""
    return Interval(max(0.0, a.low - b.high, b.low - a.high), max(a.high - b.low, b.high - a.low))


def _difference(numbers: Mapping[str, Printed], a: str, b: str) -> str:
    digits = max(numbers[a].digits, numbers[b].digits)
    return f"{abs(numbers[a].value - numbers[b].value):.{digits}f}"


def _limit(possible: Interval, printed: Printed) -> str:
    """On the side where the printed number is not."""
    digits = max(2, printed.digits)
    if printed.value < possible.low:
        return f"≥ {possible.low:.{digits}f}"
    return f"≤ {possible.high:.{digits}f}"


def _from_to(interval: Interval) -> str:
    if interval.low == -inf:
        return f"≤ {interval.high:.3f}"
    if interval.high == inf:
        return f"≥ {interval.low:.3f}"
    return f"between {interval.low:.3f} and {interval.high:.3f}"


def _list(numbers: Mapping[str, Printed], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {numbers[name]}" for name in names)


def _runs(n: int) -> str:
    return f"{n} run" + "s" * (n > 1)


def _against_last(groups: list[Group], on_reported: set[tuple[Any, ...]]) -> list[Group]:
    """Add best ≥ last to the groups of best."""
    by_key = {tuple(g.key.values()): g for g in groups}
    done = []
    for group in groups:
        key = tuple(group.key.values())
        other = by_key.get(tuple({**group.key, "protocol_printed": "last"}.values()))
        best = group.key["protocol_printed"] == "best" and key in on_reported
        if other is None or not best or group.key["metric"] != "dsc":
            done.append(group)
            continue
        shared = [s for s in _OF_VALUES if s in group.numbers and s in other.numbers]
        found = [
            Finding(s, f"best ≥ last of the {s} asks {group.numbers[s]} ≥ {other.numbers[s]}")
            for s in shared
            if group.numbers[s].allows.high < other.numbers[s].allows.low
        ]
        checked = [f"{s}: best ≥ last" for s in shared]
        more = replace(group, checked=(*group.checked, *checked))
        done.append(replace(more, findings=(*more.findings, *found)))
    return done
