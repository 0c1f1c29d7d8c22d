"""Baselines: the numbers that `bench check` holds runs against, as a TOML file.

version = 1

[protocol]                  # how a run becomes a number, and runs become one
rule = "last"               # as --protocol
empty = "tcseg"             # what an empty mask counts
statistic = "mean"          # over runs: mean or median

[[target]]
name = "mt on LA"           # for people; each once
method = "mt"               # which runs: all of these must agree
hyperparameters = '{...}'   # all of them, as JSON
recipe = "common"
dataset = "la"
fingerprint = "9f..."       # of the data
labelled = 8
profile = "mini"
predictor = "main"          # optional
identity = "3c..."          # optional: begins the digest of everything but the seed
metric = "dsc"
unit = "%"                  # % for DSC; mm or voxel for distances
value = 78.47               # what was reported
margin = 1.2                # how far off still counts as the same
direction = "equal"         # or "at-least": better is no regression
n = 5                       # finished runs that the value stands for
failed = 0                  # optional: failed ones beside them
sd = 0.8                    # optional: over these runs; for people
runs = ["mt-la-..."]        # optional: their ids; provenance
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from protocols.equivalence import DIRECTIONS, STATISTICS, Claim, derived_margin, fewest
from protocols.metrics import METRICS
from protocols.policies import POLICIES
from protocols.rules import parse_rule
from reports.facts import Facts
from results.errors import UserError
from results.lookup import find, unknown

T = TypeVar("T")

VERSION: Final = 1
DECIMALS: Final = 2
"""With which values are written, as tables print them."""

_HUGE: Final = 1e300
_MANY: Final = 1_000_000
"""As many runs or volumes, or points of a standard deviation, are taken for a mistake."""

KEYS: Final = (
    *("method", "dataset", "fingerprint", "labelled"),
    *("profile", "recipe", "hyperparameters"),
)
"""In which the runs of a target must agree with it."""

_HEADER: Final = """\
# A baseline: numbers that were reported, and how far off a repetition may be.
# bench check THIS_FILE --store STORE    says whether the runs of a store still give them.
"""


@dataclass(frozen=True)
class Protocol:
    """How a run becomes a number, and runs become one; names, as users write them."""

    rule: str
    empty: str
    statistic: str

    def __post_init__(self) -> None:
        parse_rule(self.rule)
        find("policy", self.empty, POLICIES)
        find("statistic", self.statistic, STATISTICS)


@dataclass(frozen=True)
class Target:
    """One reported number and the runs that it is of; see the module's docstring."""

    name: str
    method: str
    hyperparameters: str
    recipe: str
    dataset: str
    fingerprint: str
    labelled: int
    profile: str
    metric: str
    unit: str
    value: float
    margin: float
    direction: str
    n: int
    predictor: str = "main"
    identity: str = ""
    failed: int = 0
    sd: float | None = None
    runs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_json(self.hyperparameters)
        find("metric", self.metric, METRICS)
        find("direction", self.direction, DIRECTIONS)
        units = ["%"] if self.metric == "dsc" else ["mm", "voxel"]
        if self.unit not in units:
            raise unknown(f"unit of {self.metric}", self.unit, units)
        for name, least in (("labelled", 0), ("n", 1), ("failed", 0), ("sd", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value <= _MANY:
                raise UserError(f"{name} = {value}: expected {least} to {_MANY:,}")
        if self.margin <= 0:
            raise UserError(f"margin = {self.margin}: expected above 0; no two runs are equal")
        if self.metric == "dsc" and not 0 <= self.value <= 100:
            raise UserError(f"value = {self.value}: DSC is in percent, from 0 to 100")
        if self.value < 0:
            raise UserError(f"value = {self.value}: a distance is at least 0")

    @property
    def scale(self) -> float:
        """From the store's unit to the target's."""
        return 100.0 if self.metric == "dsc" else 1.0

    def claim(self, statistic: str) -> Claim:
        """What the equivalence test tests."""
        return Claim(
            self.value,
            self.margin,
            METRICS[self.metric].higher_is_better,
            statistic,
            self.direction,
            self.n,
            self.failed,
        )


@dataclass(frozen=True)
class Baseline:
    """Targets under one protocol."""

    protocol: Protocol
    targets: tuple[Target, ...]


def read_baseline(path: Path) -> Baseline:
    """Read a file, strictly.

    Raises:
        UserError: one message with the file, the target and what is wrong: no such file, not TOML,
            another version, keys that are unknown, missing, of a wrong type or out of range.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}; "
            "make one with `bench check --write PATH --store STORE`"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    return _located(str(path), lambda: _baseline(path, content))


def toml_text(baseline: Baseline) -> str:
    """The file's content; `read_baseline` gives back what was written."""
    lines = [_HEADER, f"version = {VERSION}", "", "[protocol]", *_lines(asdict(baseline.protocol))]
    for target in baseline.targets:
        values = {f.name: getattr(target, f.name) for f in fields(target)}
        given = {f.name: values[f.name] for f in fields(target) if values[f.name] != f.default}
        lines += ["", "[[target]]", *_lines(given)]
    return "\n".join(lines) + "\n"


def baseline_of(
    facts: Facts,
    *,
    metrics: Sequence[str],
    statistic: str,
    direction: str,
    margin: float | None,
) -> tuple[Baseline, list[str]]:
    """A baseline from what a store holds: a target for each row of its table and metric.

    Values are rounded as tables print them. The margin, unless given, is
    `protocols.equivalence.derived_margin` of the runs, rounded up.

    Args:
        facts: of the store, under the protocol of the baseline.
        metrics: names in `METRICS`.
        statistic: name in `protocols.equivalence.STATISTICS`.
        direction: name in `protocols.equivalence.DIRECTIONS`.
        margin: for all targets, in percent points for DSC; None to derive one for each.

    Returns:
        The baseline, and what is not in it: rows that can be no target, and unfinished runs.

    Raises:
        UserError: an unknown name, or a store in which no row can become a target.
    """
    protocol = Protocol(facts.rule.expression, facts.policy, statistic)
    find("direction", direction, DIRECTIONS)
    if margin is not None and not 0 < margin < _HUGE:
        raise UserError(f"margin = {margin}: expected above 0; no two runs are equal")
    outcomes = facts.outcomes(facts.rule)
    targets, left_out = [], []
    rows = facts.summary.assign(
        short=facts.summary["label"]
        + (", " + facts.summary["dataset"] + " ")
        + facts.summary["labelled"].astype(str),
        long=facts.summary["label"] + ", " + facts.summary["setting"],
    )
    places = "long" if rows.duplicated(["short", "predictor"]).any() else "short"
    kinds = rows.groupby(list(KEYS))["identity"]
    rows = rows.assign(alike=kinds.transform("nunique") > 1)
    for row in rows.to_dict("records"):
        own = outcomes["identity"].eq(row["identity"]) & outcomes["predictor"].eq(row["predictor"])
        runs = outcomes[own]
        for metric in dict.fromkeys(metrics):
            name = f"{row[places]}, {find('metric', metric, METRICS).label}"
            name += "" if row["predictor"] == "main" else f" of {row['predictor']}"
            pending = row["started"] - row["finished"] - row["failed"]
            if pending:
                left_out.append(f"{pending} unfinished run(s) of {name}")
            values = runs[metric] * (100.0 if metric == "dsc" else 1.0)
            problem = _no_target(len(runs), int(values.isna().sum()), statistic, margin)
            if problem:
                left_out.append(f"{name}: {problem}")
                continue
            value = float(values.mean() if statistic == "mean" else values.median())
            sd = float(values.std(ddof=1)) if len(values) > 1 else None
            targets.append(
                Target(
                    **{k: str(row[k]) for k in (*KEYS, "predictor") if k != "labelled"},
                    identity=str(row["identity"]) if row["alike"] else "",
                    labelled=int(row["labelled"]),
                    name=name,
                    metric=metric,
                    unit="%" if metric == "dsc" else str(row["unit"]),
                    value=round(value, DECIMALS),
                    margin=_margin(len(runs), sd, statistic) if margin is None else margin,
                    direction=direction,
                    n=len(runs),
                    failed=int(row["failed"]),
                    sd=None if sd is None else round(sd, 2 * DECIMALS),
                    runs=tuple(sorted(runs["run"])),
                )
            )
    if not targets:
        raise UserError(f"no baseline from {facts.store.path}: {'; '.join(left_out)}")
    _only_once(t.name for t in targets)
    return Baseline(protocol, tuple(targets)), left_out


def _margin(n: int, sd: float | None, statistic: str) -> float:
    """The derived margin, rounded up as values are printed."""
    margin = derived_margin(n, sd or 0.0, 10.0**-DECIMALS, statistic)
    return math.ceil(margin * 10**DECIMALS - 1e-6) / 10**DECIMALS


def _no_target(finished: int, undefined: int, statistic: str, margin: float | None) -> str:
    if finished == 0:
        return "no finished run"
    if undefined:
        return f"{undefined} of {finished} finished runs have no value under this policy"
    least = fewest(statistic)
    if margin is None and finished < least:
        return f"{finished} finished run(s); a margin for a {statistic} takes {least}, or --margin"
    return ""


def _baseline(path: Path, content: Mapping[str, Any]) -> Baseline:
    if "version" in content and content["version"] != VERSION:
        raise UserError(f"version = {content['version']!r}: this bench reads version {VERSION}")
    whole = {"version": int, "protocol": dict, "target": list}
    for key in content:
        if key not in whole:
            raise unknown("key", key, whole)
    for key, kind in whole.items():
        if key not in content:
            raise UserError(f"{_header(key)} is missing")
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise UserError(f"{key}: expected {_header(key)}, not {content[key]!r}")
    protocol = _located("[protocol]", lambda: Protocol(**_fields(Protocol, content["protocol"])))
    targets = []
    for place, table in enumerate(content["target"], start=1):
        name = table.get("name") if isinstance(table, dict) else None
        where = f"target {place}" + (f" ({name})" if isinstance(name, str) else "")
        if not isinstance(table, dict):
            raise UserError(f"{where}: expected a table, [[target]], not {table!r}")
        targets.append(_located(where, lambda t=table: Target(**_fields(Target, t))))  # type: ignore[misc]
    if not targets:
        raise UserError("there is no [[target]] in it")
    _only_once(t.name for t in targets)
    return Baseline(protocol, tuple(targets))


def _header(key: str) -> str:
    headers = {"version": f"version = {VERSION}", "protocol": "[protocol]", "target": "[[target]]"}
    return headers[key]


def _located(where: str, make: Callable[[], T]) -> T:
    """Say in a message where it is about."""
    try:
        return make()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _fields(kind: type[Protocol] | type[Target], table: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, Field[Any]] = {f.name: f for f in fields(kind)}
    for key in table:
        if key not in known:
            raise unknown("key", key, known)
    missing = [f.name for f in known.values() if f.default is MISSING and f.name not in table]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}")
    return {key: _typed(key, value, str(known[key].type)) for key, value in table.items()}


def _typed(key: str, value: object, kind: str) -> object:
    """A value of a field's type; whole numbers are numbers, true and false are not."""
    if kind == "str" and isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if kind == "int" and isinstance(value, int):
            return value
        if kind.startswith("float") and abs(value) < _HUGE:
            return float(value)
    if kind.startswith("tuple") and isinstance(value, list) and all(map(_is_text, value)):
        return tuple(value)
    words = {"str": "text in quotes", "int": "a whole number"}
    expected = words.get(kind, "a number" if kind.startswith("float") else "a list of texts")
    raise UserError(f"{key} = {value!r}: expected {expected}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _check_json(text: str) -> None:
    try:
        good = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        good = False
    if not good:
        raise UserError(
            f"hyperparameters = {text!r}: expected all of them as a JSON object, such as "
            """'{"decay": 0.99}'"""
        )


def _only_once(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"two targets are called '{name}': give each a name of its own")
        seen.add(name)


def _lines(values: Mapping[str, object]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in values.items()]


def _toml(value: object) -> str:
    r"""A value as TOML.

    >>> print(_toml('{"tau": 0.1}'), _toml("it's\n"), _toml(("x",)), _toml(1e-05))
    '{"tau": 0.1}' "it's\n" ["x"] 1e-05
    """
    if isinstance(value, str):
        if '"' in value and "'" not in value and value.isprintable():
            return f"'{value}'"
        # JSON escapes all that TOML wants escaped, but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
