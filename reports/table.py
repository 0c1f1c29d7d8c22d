"""The main table: every method under one protocol, with what a reader must know under it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import isinf
from pathlib import Path
from typing import Any, Final

import pandas as pd

from protocols.intervals import LEVEL, median_rank, order_words
from protocols.metrics import METRICS
from protocols.policies import POLICIES
from protocols.rules import REPORTED, Rule
from protocols.statistics import EXACT, STATISTICS, STUDENT
from reports.facts import MAIN, Facts
from reports.render import FAILURE, Section, Sheet, write_sheets

NO_VALUE: Final = "–"

_FAILED_RUNS: Final = (
    "A failed run counts as worse than any number: in medians, intervals of the median, and the "
    f"worst run, which read “{FAILURE}” where they are that of a failed run. Mean, std, SE, CI and "
    f"IQM are undefined ({NO_VALUE}) where a run failed. Runs without a record yet count in no "
    "statistic but stay in the count of started ones."
)


def write_table(facts: Facts, out: Path) -> list[Path]:
    """Write `table-<protocol>.md`, `.csv` and `.tex`; return the paths."""
    stem = "table-" + file_name(facts.rule.expression)
    return write_sheets(sheets(facts), flat(facts), out, stem)


def sheets(facts: Facts) -> list[Sheet]:
    """Both: the main table, and every statistic."""
    return [facts.once(sheet), facts.once(spread)]


def file_name(protocol: str) -> str:
    """A protocol as part of a file's name.

    >>> file_name("best(split=val,metric=asd)")
    'best-split-val-metric-asd'
    """
    return "".join(c if c.isalnum() else "-" for c in protocol).rstrip("-")


def sheet(facts: Facts) -> Sheet:
    """The summary as text, a section per setting, DSC in percent."""
    summary = facts.summary
    several = set(summary["predictor"]) != {MAIN}
    gaps = facts.rule.optimistic
    steps, out_of = unlike_lengths(summary)
    columns = [("", "method"), *([("", "predictor")] if several else []), ("", "runs")]
    columns += [("trained", "steps")] if steps else []
    columns += [("selected", "out of")] if out_of else []
    columns += [("DSC % ↑", name) for name in ("median", "max", "mean ± std", "min")]
    columns += [("median DSC", "interval")]
    columns += [("optimism", "best − last")] if gaps else []
    columns += [
        (f"{METRICS[m].label} ↓", name) for m in ("asd", "hd95") for name in ("median", "of max")
    ]
    sections = []
    for setting, group in summary.groupby("setting", sort=False):
        rows = []
        for row in group.to_dict("records"):
            leading = [row["label"], *([row["predictor"]] if several else []), _runs(row)]
            leading += [str(row["steps"])] if steps else []
            leading += [_out_of(row)] if out_of else []
            rows.append((*leading, *_numbers(row, gaps)))
        sections.append(Section(_heading(str(setting), group), tuple(rows)))
    title = f"Protocol {facts.rule.expression}"
    return Sheet(title, tuple(columns), tuple(sections), tuple(notes(facts)), 1 + several)


def spread(facts: Facts) -> Sheet:
    """Every statistic of every metric as text, a row per method and metric."""
    summary = facts.summary
    several = set(summary["predictor"]) != {MAIN}
    columns = [("", "method"), *([("", "predictor")] if several else []), ("", "metric")]
    columns += [("", "n")]
    columns += [("median", name) for name in ("of metric", "interval", "coverage")]
    columns += [("median run", name) for name in ("value", "seed")]
    columns += [("over runs", name) for name in ("mean", "std", "SE")]
    columns += [("of the mean", f"{percentage(LEVEL)} CI"), ("trimmed", "IQM")]
    columns += [("extremes", name) for name in ("largest", "smallest")]
    sections = []
    for setting, group in summary.groupby("setting", sort=False):
        rows = []
        for row in group.to_dict("records"):
            leading = [row["label"], *([row["predictor"]] if several else [])]
            rows += [(*leading, *_all_of(row, metric)) for metric in METRICS]
        sections.append(Section(_heading(str(setting), group), tuple(rows)))
    said = [
        f"Protocol {facts.rule.expression}: {facts.rule.meaning}.{selection(facts.rule, summary)}",
        f"n: runs in the statistics, finished and failed. {_FAILED_RUNS}",
        f"Median: {_meaning('median')}. {_coverages(summary)}",
        f"Median run: {_meaning('median_run')}.",
        f"Mean: {_meaning('mean')}. Std: {_meaning('std')} ({NO_VALUE}). SE: {_meaning('se')}. "
        f"{percentage(LEVEL)} CI: {STUDENT} (it leans on normal values; one "
        "collapsed run makes it hold less often).",
        f"IQM: {_meaning('iqm')}.",
        f"Largest: {_meaning('maximum')}. Smallest: {_meaning('minimum')}. Of distances the "
        "largest is the worst.",
        f"DSC in percent; {_units(summary)}. Empty masks, policy {facts.policy}: "
        f"{POLICIES[facts.policy].meaning}.",
    ]
    title = f"Protocol {facts.rule.expression}: every statistic over runs"
    return Sheet(title, tuple(columns), tuple(sections), tuple(said), 2 + several)


def unlike_lengths(summary: pd.DataFrame) -> tuple[bool, bool]:
    """Whether rows of a setting differ in steps, and whether any differ in what they chose from."""
    steps = bool((summary.groupby("setting")["steps"].nunique() > 1).any())
    chosen = summary[summary["evaluations"] > 0]
    return steps, len({*chosen["evaluations"], *chosen["fewest_evaluations"]}) > 1


def flat(facts: Facts) -> pd.DataFrame:
    """The summary for other programs: DSC in percent, the protocol as columns."""
    summary = facts.summary
    numbers = {f"{m}_{s}": f"{m}_{s}" for m in METRICS for s in (*STATISTICS, "gap")}
    numbers = {k: k.replace("dsc_", "dsc_percent_") for k in numbers}
    scaled = {k: summary[k] * (100 if k.startswith("dsc_") else 1) for k in numbers}
    table = summary.assign(policy=facts.policy, **scaled)
    first = ["setting", "label", "predictor", "finished", "failed", "started", "rule"]
    first += ["selected_on", "evaluations", "policy", "unit"]
    rest = [c for c in table.columns if c not in first and c not in numbers]
    return table[[*first, *numbers, *rest]].rename(columns=numbers)


def notes(facts: Facts) -> list[str]:
    """What a reader must know to use the numbers, a sentence each."""
    rule, summary = facts.rule, facts.summary
    said = [
        f"Protocol {rule.expression}: {rule.meaning}.{selection(rule, summary)}",
        f"Median: {_meaning('median')}. Max: {_meaning('best_run')} (“of max”). "
        f"Mean: {_meaning('mean')}. Std: {_meaning('std')} ({NO_VALUE}). "
        f"Min: {_meaning('minimum')}. {_coverages(summary)}",
        f"Runs: finished of started; of these so many failed as stand in brackets. {_FAILED_RUNS}",
        f"Empty masks, policy {facts.policy}: {POLICIES[facts.policy].meaning}. {_empty(summary)}"
        f"{_beyond(summary)}",
        f"DSC in percent of the mean over {_range(summary['cases'])} {REPORTED} cases; "
        f"{_units(summary)}.",
    ]
    said += facts.warnings
    if rule.optimistic:
        said.append(
            "Best − last: median over the runs that did not fail of the reported DSC minus that "
            "of the last checkpoint, what choosing on the test set adds."
        )
    if unlike_lengths(summary)[0]:
        said.append(
            "Trained steps: methods of one setting were trained for different lengths, as their "
            "recipes say."
        )
    said += facts.omitted
    said += _dataset_notes(facts)
    said += [
        f"{dataset} is a partial copy: its numbers do not compare with those of the full set."
        for dataset in sorted({d for d in summary["dataset"] if "(partial" in d})
    ]
    others = sorted(set(summary["profile"]) - {"paper"})
    if others:
        said.append(
            f"Profile {', '.join(others)} is not the published scale: compare inside this table "
            "only."
        )
    unfinished = int(summary["unfinished"].sum())
    if unfinished:
        said.append(
            f"PARTIAL: {unfinished} unfinished run(s), marked (+…), count with the evaluations "
            "they have so far; these numbers will change."
        )
    moved = int(summary["resumed_elsewhere"].sum())
    if moved:
        said.append(f"{moved} run(s) were continued in another environment than they began in.")
    return said


def _heading(setting: str, group: pd.DataFrame) -> str:
    unit = group["unit"].loc[group["unit"] != ""]
    return f"{setting}; distances in {unit.iloc[0]}" if len(unit) else setting


def _runs(row: Mapping[Hashable, Any]) -> str:
    begun = f" (+{row['unfinished']})" if row["unfinished"] else ""
    failed = f" ({row['failed']} failed)" if row["failed"] else ""
    return f"{row['finished']}/{row['started']}{failed}{begun}"


def _out_of(row: Mapping[Hashable, Any]) -> str:
    few, many = row["fewest_evaluations"], row["evaluations"]
    if not many:
        return NO_VALUE
    return str(many) if few == many else f"{few} to {many}"


def _numbers(row: Mapping[Hashable, Any], gaps: bool) -> list[str]:
    percent = {s: 100 * row[f"dsc_{s}"] for s in (*STATISTICS, "gap")}
    cells = [number(percent["median"]), number(percent["best_run"])]
    cells += [
        f"{percent['mean']:.2f} ± {number(percent['std'])}"
        if percent["mean"] == percent["mean"]
        else NO_VALUE,
        number(percent["minimum"]),
        interval(percent["median_low"], percent["median_high"]),
    ]
    cells += [number(percent["gap"], "+.2f")] if gaps else []
    cells += [number(row[f"{m}_{s}"]) for m in ("asd", "hd95") for s in ("median", "best_run")]
    return cells


def _all_of(row: Mapping[Hashable, Any], metric: str) -> list[str]:
    scale = 100 if metric == "dsc" else 1
    values = {s: scale * row[f"{metric}_{s}"] for s in STATISTICS}
    arrow = "↑" if METRICS[metric].higher_is_better else "↓"
    unit = " %" if metric == "dsc" else f" {row['unit']}".rstrip()
    return [
        f"{METRICS[metric].label}{unit} {arrow}",
        str(row["counted"]),
        number(values["median"]),
        interval(values["median_low"], values["median_high"]),
        percentage(row["median_coverage"]),
        number(values["median_run"]),
        row["median_seed"] or NO_VALUE,
        number(values["mean"]),
        number(values["std"]),
        number(values["se"]),
        interval(values["mean_low"], values["mean_high"]),
        number(values["iqm"]),
        number(values["maximum"]),
        number(values["minimum"]),
    ]


def number(value: float, form: str = ".2f") -> str:
    """A number as text, the sign for none, or that it is of a failed run.

    >>> number(1), number(float("nan")), number(float("-inf"))
    ('1.00', '–', 'failed')
    """
    if isinf(value):
        return FAILURE
    return NO_VALUE if value != value else format(value, form)


def interval(low: float, high: float, form: str = ".2f") -> str:
    """An interval as text.

    >>> interval(1, 2), interval(float("-inf"), 2), interval(float("nan"), 2)
    ('[1.00, 2.00]', '[failed, 2.00]', '–')
    """
    return (
        NO_VALUE if low != low or high != high else f"[{number(low, form)}, {number(high, form)}]"
    )


def percentage(fraction: float) -> str:
    """A fraction in percent, to two decimals at most.

    >>> percentage(0.9375), percentage(0.95), percentage(0.0)
    ('93.75 %', '95 %', '0 %')
    """
    return f"{100 * fraction:.2f}".rstrip("0").rstrip(".") + " %"


def _coverages(summary: pd.DataFrame) -> str:
    """What the interval of the median is and how often it holds, for every number of runs."""
    counts = sorted({int(n) for n in summary["counted"] if n > 0})
    if not counts:
        return ""
    said = []
    for n in counts:
        rank, coverage = median_rank(n)
        kind = f"{n} runs {order_words(rank)}: {percentage(coverage)}" if n > 1 else "1 run none"
        said.append(f"of {kind}")
    return (
        f"Interval of the median: {EXACT}. It is exact whatever the distribution of runs "
        f"({'; '.join(said)})."
    )


def selection(rule: Rule, summary: pd.DataFrame) -> str:
    """What a rule selected on, out of how many evaluations; nothing where it selected nothing."""
    counts = summary.loc[summary["evaluations"] > 0, "evaluations"]
    if not rule.sees or counts.empty:
        return ""
    if unlike_lengths(summary)[1]:
        how_many = "as many evaluations of each run as its row says: more give a better best"
    else:
        how_many = f"{counts.iloc[0]} evaluations of each run"
    return f" Selected on {rule.selected_on}, out of {how_many}."


def _meaning(statistic: str) -> str:
    return STATISTICS[statistic].meaning


def _empty(summary: pd.DataFrame) -> str:
    rows = summary[summary["empty"] > 0]
    if rows.empty:
        return "None occurred at the reported checkpoints."
    which = [f"{r['label']} {r['empty']}" for r in rows.to_dict("records")]
    return f"They occurred at the reported checkpoints (cases, over runs): {', '.join(which)}."


def _beyond(summary: pd.DataFrame) -> str:
    rows = summary[summary["beyond"] > 0]
    if rows.empty:
        return ""
    which = [f"{r['label']} {r['beyond']}" for r in rows.to_dict("records")]
    return (
        " Measured cases there that are farther off than an empty mask counts (over runs): "
        f"{', '.join(which)}."
    )


def _dataset_notes(facts: Facts) -> list[str]:
    """What the sidecars say of the datasets, each once."""
    datasets = facts.runs.set_index("run")["dataset"]
    said = {(datasets[r], note) for r, s in facts.sidecars.items() for note in s.get("notes", [])}
    return [f"{dataset}: {note}" for dataset, note in sorted(said)]


def _range(values: pd.Series) -> str:
    present = sorted({int(v) for v in values if v > 0})
    if not present:
        return "0"
    return str(present[0]) if len(present) == 1 else f"{present[0]} to {present[-1]}"


def _units(summary: pd.DataFrame) -> str:
    units = sorted(set(summary["unit"]) - {""})
    names = " and ".join(METRICS[m].label for m in ("asd", "hd95"))
    if len(units) == 1:
        return f"{names} in {units[0]}"
    return f"{names} in the unit given with the setting"
