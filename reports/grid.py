"""Settings side by side: what the tables of the TCSeg paper share.

A block is what may stand in one table: runs of one profile, recipe and engine. Its columns are
settings (dataset, labelled volumes, fingerprint), its rows competitors: methods with their
hyperparameters. Only the main predictor is shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Any, Final

import pandas as pd

from protocols.metrics import METRICS
from protocols.policies import POLICIES
from protocols.rules import REPORTED, Rule
from protocols.table import with_identity
from reports.facts import MAIN, Facts
from reports.render import FAILURE, Bold, Underlined
from reports.table import NO_VALUE, number

NOTHING: Final = "No run has finished yet."

_COMPETITOR: Final = ("method", "recipe", "predictors")
"""What of a spec makes a row."""

_SETTING: Final = ("dataset", "labelled", "seed")
"""What of a spec makes a column, or a run."""


@dataclass(frozen=True)
class Block:
    """Rows of summaries that may stand in one table.

    heading:  profile and recipe, and what else is needed to tell blocks apart.
    settings: in the order of the summary; the short name of each by its full name.
    rows:     of summaries under one or more rules, with `competitor` (a digest) and `name`
              (unique for it in this block) of what competes, `kind` (a digest of that without
              hyperparameters), and `hyperparameters` and `changed` as mappings.
    """

    heading: str
    settings: Mapping[str, str]
    rows: pd.DataFrame

    def cell(self, rule: Rule, competitor: str, setting: str) -> dict[str, Any] | None:
        """The summary's row of a competitor in a setting, if it was run there."""
        return self._cells.get((rule.expression, competitor, setting))

    @cached_property
    def _cells(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        return {(r["rule"], r["competitor"], r["setting"]): r for r in records(self.rows)}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a frame as mappings from column names."""
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def under(facts: Facts, rule: Rule) -> Facts:
    """The same facts under another rule."""
    return facts if rule == facts.rule else replace(facts, rule=rule)


def blocks(facts: Facts, rules: Sequence[Rule]) -> list[Block]:
    """The main predictor's rows of the summaries under some rules, apart where they do not mix."""
    rows = pd.concat([under(facts, rule).summary for rule in rules], ignore_index=True)
    rows = rows[rows["predictor"] == MAIN]
    runs = with_identity(facts.runs).drop_duplicates("identity")
    specs = {
        key: json.loads(spec) for key, spec in zip(runs["identity"], runs["spec"], strict=True)
    }
    rows = rows.assign(
        competitor=[_digest(_only(specs[key], _COMPETITOR)) for key in rows["identity"]],
        world=[_digest(_but(specs[key], (*_COMPETITOR, *_SETTING))) for key in rows["identity"]],
        kind=[_digest(_kind(specs[key])) for key in rows["identity"]],
        hyperparameters=[json.loads(text) for text in rows["hyperparameters"]],
        changed=[json.loads(text) for text in rows["changed"]],
    )
    found = []
    for (profile, recipe), group in rows.groupby(["profile", "recipe"]):
        worlds = {
            str(world): _but(specs[part["identity"].iloc[0]], (*_COMPETITOR, *_SETTING))
            for world, part in group.groupby("world")
        }
        for world, part in group.groupby("world"):
            heading = f"profile {profile}, recipe {recipe}"
            if len(worlds) > 1:
                heading += f" [{', '.join(_differing(worlds))} differs, #{str(world)[:8]}]"
            found.append(Block(heading, _short_names(part), _named(part)))
    return found


def text(row: Mapping[str, Any] | None, column: str) -> str:
    """A number of a summary's row as text, DSC in percent."""
    return NO_VALUE if row is None else number(value(row, column))


def value(row: Mapping[str, Any] | None, column: str) -> float:
    """A number of a summary's row, DSC in percent; NaN without a row."""
    if row is None:
        return float("nan")
    return float(row[column]) * (100 if column.startswith("dsc") else 1)


def runs_text(row: Mapping[str, Any] | None) -> str:
    """Finished of started runs."""
    if row is None:
        return NO_VALUE
    begun = f" (+{row['unfinished']})" if row["unfinished"] else ""
    return f"{row['finished']}/{row['started']}{begun}"


def marked(values: Sequence[float], higher_is_better: bool) -> list[str]:
    """Numbers as text: the best as printed bold, the next underlined where a third follows.

    >>> [type(t).__name__ for t in marked([0.5, 0.7, 0.701, float("nan"), 0.6], True)]
    ['str', 'Bold', 'Bold', 'str', 'Underlined']
    """
    texts = [number(v) for v in values]
    printed = {t: float(t) for v, t in zip(values, texts, strict=True) if isfinite(v)}
    order = sorted(printed, key=lambda t: printed[t], reverse=higher_is_better)
    if len(order) < 2:
        return texts
    signs: dict[str, type[str]] = {order[0]: Bold}
    if len(order) > 2:
        signs[order[1]] = Underlined
    return [signs.get(t, str)(t) for t in texts]


def setting_notes(block: Block) -> list[str]:
    """What short names of settings stand for, where the short name says too little."""
    return [f"{short}: {full}." for full, short in block.settings.items() if " #" in short]


def common_notes(facts: Facts, rows: pd.DataFrame) -> list[str]:
    """What a reader must know of the numbers in these rows, but for the protocol."""
    said = [
        "Runs: finished of started. A failed run counts as worse than any number: a median that "
        f"is one reads “{FAILURE}”. {NO_VALUE}: not run, or not defined.",
        f"DSC in percent, mean over the {REPORTED} cases; empty masks, policy {facts.policy}: "
        f"{POLICIES[facts.policy].meaning}.",
        *facts.omitted,
    ]
    said += facts.warnings
    if set(facts.summary["predictor"]) != {MAIN}:
        said.append(f"Predictor {MAIN} only; the report `table` has the others too.")
    if int(rows["unfinished"].sum()):
        said.append(
            "PARTIAL: unfinished runs, marked (+…), count with the evaluations they have so far; "
            "these numbers will change."
        )
    if set(rows["profile"]) - {"paper"}:
        said.append("This is not the published scale: compare inside this table only.")
    if not int(rows["finished"].sum()):
        said.insert(0, NOTHING)
    return said


def protocol_note(rule: Rule, rows: pd.DataFrame) -> str:
    """How a rule chose the checkpoint of each run."""
    chosen = rows[(rows["rule"] == rule.expression) & (rows["evaluations"] > 0)]
    said = f"Protocol {rule.expression}: {rule.meaning}."
    if not rule.sees or chosen.empty:
        return said
    few, many = chosen["fewest_evaluations"].min(), chosen["evaluations"].max()
    out_of = str(many) if few == many else f"{few} to {many}"
    return f"{said} Selected on {rule.selected_on}, out of {out_of} evaluations of each run."


def metric_names() -> dict[str, str]:
    """Headings of the metrics, with the direction that is better."""
    names = {"dsc": "DSC %"}
    return {
        key: f"{names.get(key, metric.label)} {'↑' if metric.higher_is_better else '↓'}"
        for key, metric in METRICS.items()
    }


def options_text(options: Mapping[str, Any]) -> str:
    """Hyperparameters as a list of settings."""
    return ", ".join(f"{k}={v}" for k, v in sorted(options.items()))


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `name`: method and changed hyperparameters, and more where that is ambiguous."""
    names = [
        f"{method} ({options_text(changed)})" if changed else str(method)
        for method, changed in zip(rows["method"], rows["changed"], strict=True)
    ]
    rows = rows.assign(name=pd.Series(names, index=rows.index, dtype=object))
    for more in (" v" + rows["version"].astype(str), " #" + rows["competitor"].str[:8]):
        several = rows.groupby("name")["competitor"].transform("nunique") > 1
        rows = rows.assign(name=rows["name"].where(~several, rows["name"] + more))
    return rows


def _short_names(rows: pd.DataFrame) -> dict[str, str]:
    settings = rows.drop_duplicates("setting").sort_values(["dataset", "labelled", "setting"])
    short = [f"{r['dataset']} {r['labelled']} / {r['unlabelled']}" for r in records(settings)]
    return {
        str(row["setting"]): name if short.count(name) == 1 else f"{name} #{row['section'][:8]}"
        for row, name in zip(records(settings), short, strict=True)
    }


def _kind(content: Mapping[str, Any]) -> dict[str, Any]:
    method = _but(content["method"], ["hyperparameters"])
    return {**_only(content, _COMPETITOR), "method": method}


def _only(content: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: content.get(key) for key in keys}


def _but(content: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: v for key, v in content.items() if key not in keys}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _differing(contents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = sorted({name for content in contents.values() for name in content})
    return [n for n in names if len({_digest(c.get(n)) for c in contents.values()}) > 1]
