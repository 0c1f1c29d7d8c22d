"""The main table: every method under one protocol, with what a reader must know under it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

from protocols.metrics import METRICS
from protocols.policies import POLICIES
from protocols.rules import REPORTED, Rule
from protocols.statistics import STATISTICS
from reports.facts import MAIN, Facts
from reports.render import Section, Sheet, csv_text, latex, markdown, write_file

NO_VALUE: Final = "–"


def write_table(facts: Facts, out: Path) -> list[Path]:
    """Write `table-<protocol>.md`, `.csv` and `.tex`; return the paths."""
    page = sheet(facts)
    stem = "table-" + file_name(facts.rule.expression)
    return [
        write_file(out / f"{stem}.md", markdown(page)),
        write_file(out / f"{stem}.csv", csv_text(flat(facts))),
        write_file(out / f"{stem}.tex", latex(page)),
    ]


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
    gaps = REPORTED in facts.rule.sees
    steps, out_of = unlike_lengths(summary)
    columns = [("", "method"), *([("", "predictor")] if several else []), ("", "runs")]
    columns += [("trained", "steps")] if steps else []
    columns += [("selected", "out of")] if out_of else []
    columns += [("DSC % ↑", name) for name in ("median", "max", "mean ± std", "min")]
    columns += [("optimism", "best − last")] if gaps else []
    columns += [
        (f"{METRICS[m].label} ↓", name) for m in ("asd", "hd95") for name in ("median", "of max")
    ]
    sections = []
    for setting, group in summary.groupby("setting", sort=False):
        unit = group["unit"].loc[group["unit"] != ""]
        heading = f"{setting}; distances in {unit.iloc[0]}" if len(unit) else str(setting)
        rows = []
        for row in group.to_dict("records"):
            leading = [row["label"], *([row["predictor"]] if several else []), _runs(row)]
            leading += [str(row["steps"])] if steps else []
            leading += [_out_of(row)] if out_of else []
            rows.append((*leading, *_numbers(row, gaps)))
        sections.append(Section(heading, tuple(rows)))
    title = f"Protocol {facts.rule.expression}"
    return Sheet(title, tuple(columns), tuple(sections), tuple(notes(facts)), 1 + several)


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
    table = summary.assign(
        policy=facts.policy,
        **{k: 100 * summary[k] for k in numbers if k.startswith("dsc_")},
    )
    first = ["setting", "label", "predictor", "finished", "started", "rule", "selected_on"]
    first += ["evaluations", "policy", "unit"]
    rest = [c for c in table.columns if c not in first and c not in numbers]
    return table[[*first, *numbers, *rest]].rename(columns=numbers)


def notes(facts: Facts) -> list[str]:
    """What a reader must know to use the numbers, a sentence each."""
    rule, summary = facts.rule, facts.summary
    said = [
        f"Protocol {rule.expression}: {rule.meaning}.{_selection(rule, summary)}",
        f"Median: {_meaning('median')}. Max: {_meaning('best_run')} (“of max”). "
        f"Mean: {_meaning('mean')}. Std: {_meaning('std')} ({NO_VALUE}). "
        f"Min: {_meaning('minimum')}.",
        "Runs: finished of started. All statistics are over the finished ones; failed and "
        "unfinished runs have no number but stay in the count.",
        f"Empty masks, policy {facts.policy}: {POLICIES[facts.policy].meaning}. {_empty(summary)}"
        f"{_beyond(summary)}",
        f"DSC in percent of the mean over {_range(summary['cases'])} {REPORTED} cases; "
        f"{_units(summary)}.",
    ]
    if POLICIES[facts.policy].flatters:
        said.append(f"WARNING: policy {facts.policy} flatters methods that predict nothing.")
    if REPORTED in rule.sees:
        said.append(
            "Best − last: median over runs of the reported DSC minus that of the last checkpoint, "
            "the optimism of choosing on the test set."
        )
    if unlike_lengths(summary)[0]:
        said.append(
            "Trained steps: methods of one setting were trained for different lengths, as their "
            "recipes say."
        )
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


def _runs(row: Mapping[Hashable, Any]) -> str:
    begun = f" (+{row['unfinished']})" if row["unfinished"] else ""
    return f"{row['finished']}/{row['started']}{begun}"


def _out_of(row: Mapping[Hashable, Any]) -> str:
    few, many = row["fewest_evaluations"], row["evaluations"]
    if not many:
        return NO_VALUE
    return str(many) if few == many else f"{few} to {many}"


def _numbers(row: Mapping[Hashable, Any], gaps: bool) -> list[str]:
    percent = {s: 100 * row[f"dsc_{s}"] for s in (*STATISTICS, "gap")}
    spread = f"{percent['mean']:.2f} ± {number(percent['std'])}"
    cells = [number(percent["median"]), number(percent["best_run"])]
    cells += [
        spread if percent["mean"] == percent["mean"] else NO_VALUE,
        number(percent["minimum"]),
    ]
    cells += [number(percent["gap"], "+.2f")] if gaps else []
    cells += [number(row[f"{m}_{s}"]) for m in ("asd", "hd95") for s in ("median", "best_run")]
    return cells


def number(value: float, form: str = ".2f") -> str:
    """A number as text, or the sign for none."""
    return NO_VALUE if value != value else format(value, form)


def _selection(rule: Rule, summary: pd.DataFrame) -> str:
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
