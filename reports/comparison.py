"""Every two methods of a setting over the same cases and seeds, and where the variance is from."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from protocols.comparison import TESTS, chosen_cases, compare, seeds_by_cases
from protocols.intervals import DRAWS, LEVEL
from protocols.metrics import METRICS
from protocols.policies import POLICIES
from protocols.rules import Last
from protocols.significance import ALPHA, CANNOT_DECIDE, NOT_SHOWN
from protocols.table import with_identity
from protocols.variance import LAST, components, stopping
from reports.facts import MAIN, Facts
from reports.render import Section, Sheet, csv_text, write_file, write_sheets
from reports.table import NO_VALUE, file_name, interval, number, percentage, selection
from results.schema import FLOOR

STEM: Final = "comparison"
_PARTS: Final = ("seed", "case", "residual", "stopping")


def write_comparison(facts: Facts, out: Path) -> list[Path]:
    """Write `comparison-<protocol>.md`, `.csv`, `.tex`, and `comparison-variance.csv`."""
    pairs, variance = facts.once(comparison), facts.once(variances)
    stem = f"{STEM}-{file_name(facts.rule.expression)}"
    return [
        *write_sheets(show_comparison(facts), _plain(pairs), out, stem),
        write_file(out / f"{STEM}-variance.csv", csv_text(variance)),
    ]


def show_comparison(facts: Facts) -> list[Sheet]:
    """Both sheets."""
    pairs, variance = facts.once(comparison), facts.once(variances)
    return [comparison_sheet(facts, pairs), variance_sheet(facts, variance)]


def tables(facts: Facts) -> dict[str, dict[str, dict[str, pd.DataFrame]]]:
    """By setting, metric and method, in the summary's order: seeds x cases of the main predictor.

    Distances are in their unit, DSC is a fraction. See `protocols.comparison.seeds_by_cases`.
    """
    rows = facts.summary[facts.summary["predictor"] == MAIN]
    names = rows[["identity", "setting", "label"]]
    reported = facts.outcomes(facts.rule)
    reported = reported[reported["predictor"] == MAIN]
    runs = reported[["run", "identity", "seed"]].merge(names, on="identity", validate="m:1")
    values = chosen_cases(facts.scored, reported, facts.rule).merge(runs, on="run", validate="m:1")
    broken = with_identity(facts.runs[facts.runs["state"] == "failed"])
    failed = broken[["identity", "seed"]].merge(names, on="identity", validate="m:1")
    own = dict(list(values.groupby(["setting", "label"])))
    lost = dict(list(failed.groupby(["setting", "label"])["seed"]))
    cases = {str(key): sorted(set(group)) for key, group in values.groupby("setting")["case"]}
    found: dict[str, dict[str, dict[str, pd.DataFrame]]] = {}
    for setting, group in names.groupby("setting", sort=False):
        found[str(setting)] = {
            metric: {
                label: seeds_by_cases(
                    own.get((setting, label), values.iloc[:0]),
                    cases.get(str(setting), []),
                    list(lost.get((setting, label), [])),
                    metric,
                )
                for label in group["label"]
            }
            for metric in METRICS
        }
    return found


def generator(facts: Facts, *names: str) -> np.random.Generator:
    """Random numbers that depend on the seed asked for and on these names, and on nothing else."""
    return np.random.default_rng([facts.options.seed, *(zlib.crc32(n.encode()) for n in names)])


def comparison(facts: Facts) -> pd.DataFrame:
    """One row per setting, metric and pair of methods; the floor is in none that nobody asked for.

    Returns:
        setting and what `protocols.comparison.compare` gives, DSC in percent.
    """
    frames = []
    for setting, by_metric in facts.once(tables).items():
        for metric, methods in by_metric.items():
            scale = 100 if metric == "dsc" else 1
            scaled = {
                name: scale * table
                for name, table in methods.items()
                if name != FLOOR or FLOOR in facts.options.methods
            }
            pairs = compare(scaled, metric, generator(facts, STEM, setting, metric))
            pairs.insert(0, "setting", pd.Series(setting, index=pairs.index, dtype=object))
            frames.append(pairs)
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


def variances(facts: Facts) -> pd.DataFrame:
    """One row per setting, metric and method, of last checkpoints; standard deviations.

    Returns:
        setting, method, metric, `seeds` (runs that finished), cases, seed, case, residual,
        stopping (the components, as SD), `standard_error` (over new seeds and cases), `floor`
        (what of it no number of seeds lowers), `negative` (components estimated below 0). DSC in
        percent.
    """
    last = facts if facts.rule == Last() else replace(facts, rule=Last())
    runs = last.outcomes(Last())
    runs = runs[runs["predictor"] == MAIN].merge(
        facts.summary.loc[facts.summary["predictor"] == MAIN, ["identity", "setting", "label"]],
        on="identity",
        validate="m:1",
    )
    steps = facts.trajectory[facts.trajectory["predictor"] == MAIN]
    steps = steps.astype({"run": object})
    rows = []
    for setting, by_metric in last.once(tables).items():
        for metric, methods in by_metric.items():
            scale = 100 if metric == "dsc" else 1
            for label, table in methods.items():
                own = runs.loc[(runs["setting"] == setting) & (runs["label"] == label), "run"]
                values = scale * table.to_numpy()
                found = components(values[~np.isinf(values).any(axis=1)])
                moment = stopping(steps[steps["run"].isin(own)], metric)
                rows.append(
                    {
                        "setting": setting,
                        "method": label,
                        "metric": metric,
                        "seeds": found.seeds,
                        "cases": found.cases,
                        "seed": sqrt(found.seed),
                        "case": sqrt(found.case),
                        "residual": sqrt(found.residual),
                        "stopping": scale * sqrt(moment),
                        "standard_error": found.standard_error,
                        "floor": found.floor,
                        "negative": " ".join(found.negative),
                    }
                )
    columns = ["setting", "method", "metric", "seeds", "cases", *_PARTS]
    return pd.DataFrame(rows, columns=[*columns, "standard_error", "floor", "negative"])


def comparison_sheet(facts: Facts, pairs: pd.DataFrame) -> Sheet:
    """`comparison` as text, DSC only, a section per setting."""
    shown = pairs[pairs["metric"] == "dsc"]
    columns = [("", "first"), ("", "second"), ("n", "seeds"), ("n", "cases")]
    columns += [("difference", n) for n in ("mean", "interval", "detectable")]
    for where in ("over seeds", "over cases"):
        columns += [(where, name) for name in ("p", "attainable", "verdict")]
    sections = [
        Section(str(setting), tuple(_row(row) for row in group.to_dict("records")))
        for setting, group in shown.groupby("setting", sort=False)
    ]
    title = f"Pairs of methods, protocol {facts.rule.expression}, DSC in points"
    return Sheet(title, tuple(columns), tuple(sections), tuple(_notes(facts, shown)), left=2)


def variance_sheet(facts: Facts, values: pd.DataFrame) -> Sheet:
    """`variances` as text, DSC only, a section per setting."""
    shown = values[values["metric"] == "dsc"]
    columns = [("", "method"), ("", "seeds"), ("", "cases")]
    columns += [("SD", n) for n in ("seed", "case", "seed × case", "stopping")]
    columns += [("SE", name) for name in ("of the mean", "floor")]
    sections = [
        Section(str(setting), tuple(_components(row) for row in group.to_dict("records")))
        for setting, group in shown.groupby("setting", sort=False)
    ]
    notes = [
        "Last checkpoints of the runs that finished: failed runs have no score, and none of these "
        "numbers knows of them.",
        "Seed: between runs over all cases. Case: between cases over all runs. Seed × case: what "
        "is left, cases that single runs find hard. Two crossed random effects by the method of "
        "moments; of a few seeds expect the order of magnitude. * estimated below 0, given as 0.",
        f"Stopping: between the last {LAST} checkpoints of a run (all, where it has fewer), in its "
        "mean over cases, averaged over runs; what it still learns there is in it. It is part of "
        "the seed component.",
        "SE of the mean: for new seeds and new cases. Floor: what of it is left however "
        "many seeds are run, SD of cases / √cases; it holds for one method's mean on new cases, "
        "and for two methods on different cases. Methods on the same cases share it, so their "
        "difference has a lower one.",
        f"Empty masks, policy {facts.policy}: {POLICIES[facts.policy].meaning}. {NO_VALUE} where "
        "there are fewer than two finished runs or two cases, or a case does not count.",
        *facts.omitted,
    ]
    title = "Where the variance comes from, last checkpoints, DSC in points"
    return Sheet(title, tuple(columns), tuple(sections), tuple(notes), left=1)


def p_value(p: float) -> str:
    """A p-value as text.

    >>> p_value(0.0625), p_value(0.00011), p_value(1.9e-6), p_value(1.0), p_value(float("nan"))
    ('0.0625', '0.0001', '< 0.0001', '1', '–')
    """
    if p != p:
        return NO_VALUE
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}".rstrip("0").rstrip(".")


def _row(row: Mapping[Any, Any]) -> tuple[str, ...]:
    seeds = row["seeds"] if row["paired"] else f"{row['seeds']}, unpaired"
    failed = f" ({row['failed']} failed)" if row["failed"] else ""
    tests = [
        part
        for kind in ("seeds", "cases")
        for part in (
            p_value(row[f"{kind}_holm"]),
            p_value(row[f"{kind}_attainable_holm"]),
            row[f"{kind}_verdict"],
        )
    ]
    return (
        row["first"],
        row["second"],
        f"{seeds}{failed}",
        str(row["cases"]),
        number(row["difference"], "+.2f"),
        interval(row["low"], row["high"], "+.2f"),
        number(row["detectable"]),
        *tests,
    )


def _components(row: Mapping[Any, Any]) -> tuple[str, ...]:
    negative = row["negative"].split()
    parts = [number(row[name]) + ("*" if name in negative else "") for name in _PARTS]
    errors = (number(row["standard_error"]), number(row["floor"]))
    return (row["method"], str(row["seeds"]), str(row["cases"]), *parts, *errors)


def _notes(facts: Facts, shown: pd.DataFrame) -> list[str]:
    rule = facts.rule
    said = [
        f"Protocol {rule.expression}: {rule.meaning}.{selection(rule, facts.summary)}",
        "Difference: first minus second, mean over seeds and cases. Interval: nominal "
        f"{percentage(LEVEL)}, percentile of {DRAWS} resamples of seeds × cases, both drawn anew "
        f"(seed {facts.options.seed}); of five seeds it holds nearer to 85 % of the time.",
        f"Over seeds: {TESTS['seeds']}: would other seeds say the same, on these cases? "
        f"Over cases: {TESTS['cases']}: would other cases, of these runs? All two-sided.",
        f"p: after Holm's correction over all pairs of a setting; a test decides below {ALPHA:g}. "
        "Attainable: the smallest that it could have been with so many seeds or cases and pairs. "
        f"Where that is above {ALPHA:g} the verdict is “{CANNOT_DECIDE}”, whatever the data: no "
        "evidence for equality either, and only more seeds (or cases) help. “"
        f"{NOT_SHOWN}” is no evidence for equality.",
        "Detectable: the true difference that a t-test over so many seeds finds 4 times in 5, by "
        "the SD of the differences that was seen. The file for other programs holds ASD and HD95 "
        "and Wilcoxon's signed-rank test too.",
        "Seeds: those that both methods have (of as many as each has, where these are more). "
        "Where they share fewer than two, all runs of both are compared unpaired.",
        f"Empty masks, policy {facts.policy}: {POLICIES[facts.policy].meaning}.",
        *facts.omitted,
    ]
    if FLOOR in set(facts.summary["label"]) - set(facts.options.methods):
        said.append(
            f"{FLOOR}, the floor, is in no pair, so that Holm's correction is over the methods "
            f"alone; add it with --method {FLOOR} and the methods to compare it with."
        )
    if int(shown["failed"].sum()):
        said.append(
            "(… failed): seeds of which a run failed. A failed run is worse than any other, so "
            f"only ranks can be compared; means, intervals and tests of them are {NO_VALUE}."
        )
    if any(not r["paired"] and "1" in r["seeds"].split(" and ") for r in shown.to_dict("records")):
        said.append(
            "1 and …, unpaired: of a method with one seed cases alone are drawn anew, so its "
            "interval knows nothing of what another seed would give and is too short."
        )
    if shown.empty:
        said.insert(0, "No setting has two methods to compare.")
    return said


def _plain(pairs: pd.DataFrame) -> pd.DataFrame:
    """For a file: p-values with four digits that count, not four decimals."""
    columns = [c for c in pairs if str(c).endswith(("_p", "_holm", "_attainable"))]
    texts = {c: [NO_VALUE if p != p else f"{p:.4g}" for p in pairs[c]] for c in columns}
    return pairs.assign(**{str(k): v for k, v in texts.items()})
