"""Methods under the last and the best checkpoint: the TCSeg paper's Tables 1 and 5 to 7.

Table 1 has the DSC of every setting side by side; Tables 5, 6 and 7 have all metrics of one
dataset each. As there, a method has two rows: the median over runs, of each metric by itself, and
the maximum, which is the run with the highest DSC with all its metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from protocols.metrics import METRICS
from protocols.rules import Best, Last, Rule
from protocols.statistics import STATISTICS
from reports.facts import Facts
from reports.grid import (
    Block,
    blocks,
    common_notes,
    marked,
    metric_names,
    protocol_note,
    records,
    runs_text,
    setting_notes,
    text,
    value,
)
from reports.render import Section, Sheet, write_sheets
from reports.table import file_name

BOARD: Final = "leaderboard"
METRIC_TABLES: Final = "all-metrics"
SHOWN: Final = {"median": "median", "best_run": "maximum"}
"""The rows of a method, by statistic."""


def write_leaderboard(facts: Facts, out: Path) -> list[Path]:
    """Write `leaderboard.md`, `.csv` and `.tex`; return the paths."""
    return write_sheets(leaderboard(facts), flat(facts), out, _stem(BOARD, facts))


def write_all_metrics(facts: Facts, out: Path) -> list[Path]:
    """Write `all-metrics.md`, `.csv` and `.tex`; return the paths."""
    return write_sheets(all_metrics(facts), flat(facts), out, _stem(METRIC_TABLES, facts))


def rules(facts: Facts) -> list[Rule]:
    """Those that are compared: last, best on the test set, and a third where one was asked for."""
    return list(dict.fromkeys([Last(), Best(), facts.rule]))


def leaderboard(facts: Facts) -> list[Sheet]:
    """Per profile and recipe: a section per protocol, methods by settings, DSC in percent."""
    return [_board(facts, block) for block in facts.once(_blocks)]


def all_metrics(facts: Facts) -> list[Sheet]:
    """Per dataset, profile and recipe: a section per setting, all metrics under each protocol."""
    sheets = []
    lead = [("", "method"), ("", "protocol"), ("", "over runs"), ("", "runs")]
    columns = (*lead, *(("", name) for name in metric_names().values()))
    for block in facts.once(_blocks):
        for dataset, rows in block.rows.groupby("dataset"):
            own = [s for s in block.settings if s in set(rows["setting"])]
            sections = tuple(_setting_section(facts, block, setting) for setting in own)
            title = f"{dataset}: {block.heading}"
            sheets.append(Sheet(title, columns, sections, tuple(_notes(facts, rows)), left=3))
    return sheets


def _blocks(facts: Facts) -> list[Block]:
    return blocks(facts, rules(facts))


def flat(facts: Facts) -> pd.DataFrame:
    """For other programs: one row per block, protocol, setting, method and statistic."""
    keys = ["profile", "recipe", "rule", "selected_on", "evaluations", "setting", "dataset"]
    keys += ["labelled", "unlabelled", "name", "version", "finished", "started"]
    tables = []
    for block in facts.once(_blocks):
        for statistic, shown in SHOWN.items():
            numbers = {
                ("dsc_percent" if metric == "dsc" else metric): [
                    value(row, f"{metric}_{statistic}") for row in records(block.rows)
                ]
                for metric in METRICS
            }
            part = block.rows[[*keys, "unit"]].assign(block=block.heading, over_runs=shown)
            tables.append(part.assign(policy=facts.policy, **numbers))
    table = pd.concat(tables, ignore_index=True)
    table["protocol"] = table["rule"]
    order = ["block", "setting", "protocol", "name", "over_runs", "version"]
    columns = [*keys, "policy", "over_runs", *numbers, "unit"]
    return table.sort_values(order, ignore_index=True)[columns]


def _board(facts: Facts, block: Block) -> Sheet:
    columns = [("", "method"), ("", "protocol"), ("", "over runs")]
    for short in block.settings.values():
        columns += [(short, metric_names()["dsc"]), (short, "runs")]
    sections = [_rule_section(block, rule) for rule in rules(facts)]
    notes = [
        *_notes(facts, block.rows),
        "Settings: dataset, labelled / unlabelled volumes. Methods by the mean distance of their "
        "medians to the best median of each setting.",
        *setting_notes(block),
    ]
    title = f"Methods under each protocol: {block.heading}"
    return Sheet(title, tuple(columns), tuple(sections), tuple(notes), left=3)


def _rule_section(block: Block, rule: Rule) -> Section:
    order = _ranked(block, rule)
    columns: list[list[list[str]]] = []
    for setting in block.settings:
        cells = [block.cell(rule, competitor, setting) for competitor, _ in order]
        medians = marked([value(c, "dsc_median") for c in cells], higher_is_better=True)
        runs = [runs_text(cell) for cell in cells]
        maxima = [text(cell, "dsc_best_run") for cell in cells]
        columns += [[medians, maxima], [runs, runs]]
    rows = [
        (name, rule.expression, shown, *(column[kind][place] for column in columns))
        for place, (_, name) in enumerate(order)
        for kind, shown in enumerate(SHOWN.values())
    ]
    selected = f"selected on {rule.selected_on}"
    return Section(f"Protocol {rule.expression}, {selected}", tuple(rows))


def _ranked(block: Block, rule: Rule) -> list[tuple[str, str]]:
    """Competitors and their names, by mean distance to the best median of each setting."""
    rows = block.rows[block.rows["rule"] == rule.expression]
    medians = rows["dsc_median"]
    short = medians.groupby(rows["setting"]).transform("max") - medians
    behind = short.groupby(rows["competitor"]).mean()
    names = rows.drop_duplicates("competitor").set_index("competitor")["name"]
    order = pd.DataFrame({"name": names, "behind": behind}).sort_values(["behind", "name"])
    return [(str(competitor), str(name)) for competitor, name in order["name"].items()]


def _setting_section(facts: Facts, block: Block, setting: str) -> Section:
    own = block.rows[block.rows["setting"] == setting]
    unit = own["unit"].loc[own["unit"] != ""]
    rows = []
    for rule in rules(facts):
        group = records(own[own["rule"] == rule.expression])
        medians = [
            marked([value(row, f"{name}_median") for row in group], metric.higher_is_better)
            for name, metric in METRICS.items()
        ]
        for place, row in enumerate(group):
            numbers: dict[str, Sequence[str]] = {
                "median": [column[place] for column in medians],
                "best_run": [text(row, f"{name}_best_run") for name in METRICS],
            }
            for statistic, shown in SHOWN.items():
                lead = (row["name"], rule.expression, shown, runs_text(row))
                rows.append((*lead, *numbers[statistic]))
    heading = f"{setting}; distances in {unit.iloc[0]}" if len(unit) else setting
    return Section(heading, tuple(rows))


def _notes(facts: Facts, rows: pd.DataFrame) -> list[str]:
    meanings: dict[str, Any] = {name: STATISTICS[name].meaning for name in SHOWN}
    said = [protocol_note(rule, rows) for rule in rules(facts)]
    said.append(f"Median: {meanings['median']}. Maximum: {meanings['best_run']}.")
    said.append(
        "Bold: the best median of its column and protocol as printed; underlined: the next. "
        "Neither says that a difference is significant, and they mark no maximum: more runs give "
        "a higher one."
    )
    return [*said, *common_notes(facts, rows)]


def _stem(name: str, facts: Facts) -> str:
    asked = facts.rule
    return name if asked in (Last(), Best()) else f"{name}-{file_name(asked.expression)}"
