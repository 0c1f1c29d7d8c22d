"""From a baseline and a store to verdicts: which runs each target is of, and what they say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich.console import RenderableType

from benchmark.baseline import KEYS, Baseline, Target, baseline_of, read_baseline, toml_text
from protocols.equivalence import Answer, Verdict, check, nothing, wrong
from protocols.policies import POLICIES
from protocols.rules import parse_rule
from protocols.table import UNFINISHED, outcomes, with_identity
from reports import check as check_report
from reports.check import Checked
from reports.facts import Facts, load_facts
from reports.render import console, write_file
from results.errors import UserError
from results.store import Store

_LONGEST: Final = 40


@dataclass(frozen=True)
class Found:
    """For a terminal, and for the shell."""

    table: RenderableType
    exit_code: int


def check_files(
    baseline: Path,
    store: Path,
    *,
    control: bool = False,
    junit: Path | None = None,
    summary: Path | None = None,
) -> Found:
    """Check a baseline file, and write what a CI service reads.

    Args:
        baseline: file, as `benchmark.baseline` describes it.
        store: folder of the store.
        control: test the negative controls instead of the targets.
        junit: file to write.
        summary: file that Markdown is appended to, as CI services want it.

    Raises:
        UserError: as `read_baseline` and `check_store`, or a file that cannot be written.
    """
    read = read_baseline(baseline)
    checked = check_store(read, store, control=control)
    heading = _in_words(read, store) + ("; deliberately WRONG targets" if control else "")
    if junit is not None:
        write_file(junit, check_report.junit(checked, heading))
    if summary is not None:
        try:
            with summary.open("a", encoding="utf-8") as file:
                file.write(check_report.summary(checked, heading))
        except OSError as error:
            raise UserError(f"{summary} cannot be written: {error.strerror or error}") from None
    code = check_report.EXIT_CODES[check_report.overall(checked, control=control)]
    return Found(console(check_report.sheet(checked, heading)), code)


def write_baseline(
    store: Path,
    path: Path,
    *,
    protocol: str = "last",
    empty: str = "tcseg",
    metric: Sequence[str] = ("dsc",),
    statistic: str = "mean",
    margin: float | None = None,
    direction: str = "equal",
) -> tuple[Baseline, list[str]]:
    """Make a baseline file of everything in a store; see `benchmark.baseline.baseline_of`.

    Raises:
        UserError: the file exists (a baseline is changed on purpose only), or there is nothing to
            write.
    """
    if path.exists():
        raise UserError(f"{path} exists: delete it if its numbers are to be replaced")
    made, left_out = baseline_of(
        load_facts(Store.open(store), protocol, empty),
        metrics=metric,
        statistic=statistic,
        direction=direction,
        margin=margin,
    )
    write_file(path, toml_text(made))
    return made, left_out


def check_store(baseline: Baseline, path: Path, *, control: bool = False) -> list[Checked]:
    """Hold the runs of a store against a baseline.

    A store that is missing or has no run at all is an answer, nothing measured, not an error: so
    ends a job whose training crashed.

    Args:
        baseline: what was reported.
        path: of the store.
        control: test the negative controls instead of the targets; all must come out regressed.

    Returns:
        One for each target, in their order.

    Raises:
        UserError: a damaged store, or a rule that its runs do not suit.
    """
    statistic = baseline.protocol.statistic
    facts = _facts(baseline, path)
    if isinstance(facts, str):
        silent = nothing(facts)
        return [Checked(t.name, t.unit, t.claim(statistic), silent) for t in baseline.targets]
    runs = with_identity(facts.runs)
    checked = []
    for target in baseline.targets:
        try:
            checked.append(_checked(target, statistic, facts, runs, control))
        except UserError as error:
            raise UserError(f"target {target.name}: {error}") from None
    return checked


def _in_words(baseline: Baseline, path: Path) -> str:
    """What is checked, under which protocol, for a heading."""
    p = baseline.protocol
    rule = parse_rule(p.rule)
    return (
        f"{path}, protocol {rule.expression} (selected on {rule.selected_on}), "
        f"{p.statistic} over runs, empty masks by policy {p.empty}"
        + (", WHICH FLATTERS FAILURES" if POLICIES[p.empty].flatters else "")
    )


def _facts(baseline: Baseline, path: Path) -> Facts | str:
    """Of the store; or why there is none."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return f"there is no store at {path}"
    store = Store.open(path)
    if store.records().empty and not store.unfinished():
        return f"the store {path} holds no run"
    return load_facts(store, baseline.protocol.rule, baseline.protocol.empty)


def _checked(
    target: Target, statistic: str, facts: Facts, runs: pd.DataFrame, control: bool
) -> Checked:
    claim = target.claim(statistic)
    wanted = _wanted(target)
    own = runs[[not _differing(wanted, _readable(row)) for row in runs.to_dict("records")]]
    if own.empty:
        text = f"no run of this target; {_nearest(wanted, runs)}"
        return Checked(target.name, target.unit, claim, nothing(text))
    problem = _problem(target, own)
    if problem:
        return Checked(target.name, target.unit, claim, nothing(problem), (), len(own))
    found = outcomes(own, facts.trajectory, facts.rule, cases=facts.rows_for(facts.rule))
    scored = found[found["predictor"] == target.predictor]
    if len(found) and scored.empty:
        known = ", ".join(sorted(set(found["predictor"])))
        text = f"predictor {target.predictor} was not evaluated; there is {known}"
        return Checked(target.name, target.unit, claim, nothing(text), (), len(own))
    values = [target.scale * float(v) for v in scored[target.metric]]
    counts = {
        "failed": int((own["state"] == "failed").sum()),
        "unfinished": int((own["state"] == UNFINISHED).sum()),
    }
    verdict = check(values, claim, **counts)
    if control:
        claim = wrong(claim, verdict.estimate if len(values) else claim.value)
        verdict = check(values, claim, **counts)
    ids = tuple(sorted(scored["run"]))
    return Checked(target.name, target.unit, claim, _remarked(verdict, target, ids), ids, len(own))


def _remarked(verdict: Verdict, target: Target, ids: Sequence[str]) -> Verdict:
    """Say so where runs repeat seeds of the baseline."""
    again = len(set(ids) & set(target.runs))
    if verdict.answer is not Answer.REPRODUCED or not again:
        return verdict
    said = (
        f"{again} of {len(ids)} runs have seeds of the baseline's own: these show that the number "
        "can be made again, not that other seeds would give it"
    )
    return replace(verdict, reasons=(*verdict.reasons, said))


def _problem(target: Target, own: pd.DataFrame) -> str:
    """Why these runs cannot be held against the target, if so."""
    if own["identity"].nunique() > 1:
        which = [
            f"{runs['identity'].iloc[0][:8]} (version {runs['version'].iloc[0]}, {len(runs)} runs)"
            for _, runs in own.groupby("identity")
        ]
        return (
            f"runs of {len(which)} kinds match (of several versions of the method, or with other "
            f"predictors evaluated) and are never mixed: {', '.join(which)}; choose "
            'one by identity = "..." in the target, or check a store of its own'
        )
    units = set(own["unit"])
    if target.metric != "dsc" and units != {target.unit}:
        return f"the target is in {target.unit}, the runs are in {', '.join(sorted(units))}"
    return ""


def _wanted(target: Target) -> dict[str, Any]:
    """What the runs of a target must be, by column."""
    wanted = _readable({key: getattr(target, key) for key in KEYS})
    return wanted | ({"identity": target.identity} if target.identity else {})


def _readable(row: Mapping[Any, Any]) -> dict[Any, Any]:
    return {**row, "hyperparameters": json.loads(row["hyperparameters"])}


def _differing(wanted: Mapping[str, Any], row: Mapping[Any, Any]) -> list[str]:
    """Columns of a run that are not as wanted; an identity may be given by its beginning."""
    return [
        key
        for key, value in wanted.items()
        if not (row[key].startswith(value) if key == "identity" else row[key] == value)
    ]


def _nearest(wanted: Mapping[str, Any], runs: pd.DataFrame) -> str:
    """The run that differs in the fewest columns, of equal ones in the latest, and in what."""
    order = list(wanted)
    ranked = []
    for row in map(_readable, runs.to_dict("records")):
        differing = _differing(wanted, row)
        ranked.append((len(differing), [-order.index(k) for k in differing], row["run"], row))
    *_, run, row = min(ranked, key=lambda item: item[:3])
    parts = []
    for key in _differing(wanted, row):
        here, there = wanted[key], row[key]
        if key == "hyperparameters":
            if wanted["method"] != row["method"]:
                continue  # Those of another method say nothing.
            names = [n for n in sorted({*here, *there}) if here.get(n) != there.get(n)]
            parts += [_differs(n, here.get(n), there.get(n)) for n in names]
        else:
            parts.append(_differs(key, here, there))
    return f"nearest is {run}, where {', '.join(parts)}"


def _differs(name: str, here: object, there: object) -> str:
    return f"{name} is {_short(there)} instead of {_short(here)}"


def _short(value: object) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:12]}..."
