"""The page: one HTML file with every protocol, plots, cases, and where each number is from.

It needs nothing but a browser: style, script and data are inside, and its content security policy
forbids any request. Everything derived is derived here, by the functions that the tables use; the
script sorts, filters and draws.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from importlib import resources
from math import isfinite, isnan
from pathlib import Path
from string import Template
from typing import Any, Final

import numpy as np
import pandas as pd

from protocols.metrics import METRICS
from protocols.rules import REPORTED, Best, Last, Val
from protocols.statistics import EXACT, STATISTICS
from protocols.table import with_identity
from reports.drawing import colours
from reports.facts import MAIN, Facts
from reports.render import write_file
from reports.table import NO_VALUE, interval, notes, number
from results.errors import UserError

STEM: Final = "html-report"

COLUMNS: Final = {
    "median": "Median",
    "median_low": "Interval",
    "best_run": "Of best run",
    "mean": "Mean ± std",
    "minimum": "Lowest",
    "maximum": "Highest",
    "gap": "Best − last",
}
"""Columns of numbers, by statistic of the summary."""

_OFFERED: Final = (Last(), Best(), Val())
"""Beside the protocol that was asked for."""

_LARGEST: Final = float(np.finfo(np.float64).max)
_SCRIPTS: Final = ("page.js", "table.js", "plots.js", "main.js")
_OF_RUN: Final = ("run", "seed", "state", "error", "device", "commit", "dirty", "resumed_elsewhere")
_OF_ROW: Final = ("label", "predictor", "version", "recipe", "fidelity", "fingerprint", "steps")
_OF_SETTING: Final = ("dataset", "labelled", "unlabelled", "profile", "unit")

Row = Mapping[Hashable, Any]


def write_html(facts: Facts, out: Path) -> list[Path]:
    """Write `html-report.html`; return the path."""
    return [write_file(out / f"{STEM}.html", page(facts))]


def page(facts: Facts) -> str:
    """The whole file; equal facts give equal text."""
    style = _part("page.css")
    script = "".join(_part(name) for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    return Template(_part("page.html")).substitute(
        policy=policy, style=style, script=script, data=embedded(content(facts))
    )


def embedded(value: object) -> str:
    r"""JSON that may stand inside a script element: nothing in it ends or opens an element.

    >>> embedded({"name": "</script><!--"})
    '{"name":"\\u003c/script\\u003e\\u003c!--"}'

    Raises:
        ValueError: a number that JSON does not have.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def content(facts: Facts) -> dict[str, Any]:
    """What the page shows, as plain JSON values.

    Returns:
        `asked`, the protocol to begin with; `protocols`, `metrics`, `columns`, `settings`, `rows`
        and `runs`, which name each other by place; `refused`, a sentence for each protocol that
        these runs do not allow. DSC in percent; what is no number is null. A row has a result for
        each protocol, null where the protocol has no such row: one that chooses among predictors
        has rows of `main` alone.

    Raises:
        UserError: the protocol that was asked for cannot be applied.
    """
    offered, refused = under_protocols(facts)
    summary = offered[0].summary
    runs = with_identity(facts.runs).sort_values(["identity", "seed", "run"], ignore_index=True)
    by_setting = summary.drop_duplicates("setting")
    settings = {name: place for place, name in enumerate(by_setting["setting"])}
    palette = colours(sorted(set(summary["label"])))
    evaluations = _evaluations(facts)
    middle = _middle(evaluations)
    results = [_results(under) for under in offered]
    means = [_case_means(facts, under) for under in offered]
    names = {
        name: _case_names(means, set(summary.loc[summary["setting"] == name, "identity"]))
        for name in settings
    }
    return {
        "asked": facts.rule.expression,
        "metrics": {
            name: {"label": m.label, "higher": m.higher_is_better} for name, m in METRICS.items()
        },
        "columns": [{"name": n, "title": t, "meaning": _meaning(n)} for n, t in COLUMNS.items()],
        "protocols": [_protocol(under) for under in offered],
        "refused": refused,
        "settings": [
            _plain(row, _OF_SETTING)
            | {
                "name": row["setting"],
                "cases": names[row["setting"]],
                "means": [_over_methods(m, row["setting"], summary, names) for m in means],
            }
            for row in by_setting.to_dict("records")
        ],
        "rows": [
            _plain(row, _OF_ROW)
            | {
                "key": f"{row['identity'][:12]}-{row['predictor']}",
                "setting": settings[row["setting"]],
                "colour": palette[row["label"]],
                "hyperparameters": _pairs(row["hyperparameters"]),
                "changed": sorted(json.loads(row["changed"])),
                "runs": [int(i) for i in runs.index[runs["identity"] == row["identity"]]],
                "results": [result.get((row["identity"], row["predictor"])) for result in results],
                "middle": middle.get(row["identity"]) if row["predictor"] == MAIN else None,
                "cases": [
                    _along(m, row["identity"], names[row["setting"]])
                    if row["predictor"] == MAIN
                    else None
                    for m in means
                ],
            }
            for row in summary.to_dict("records")
        ],
        "runs": _runs(runs, evaluations),
    }


def under_protocols(facts: Facts) -> tuple[list[Facts], list[str]]:
    """The facts under each protocol that the page offers, `last` first, and why it lacks others.

    Raises:
        UserError: the protocol that was asked for cannot be applied.
    """
    offered = []
    refused = []
    for rule in dict.fromkeys((*_OFFERED, facts.rule)):
        under = facts if rule == facts.rule else replace(facts, rule=rule)
        try:
            _ = under.summary
        except UserError as error:
            if rule in (Last(), Best(), facts.rule):
                raise
            refused.append(f"{rule.expression} is not offered: {error}")
        else:
            offered.append(under)
    return offered, refused


def _protocol(under: Facts) -> dict[str, Any]:
    meaning, *more = notes(under)
    return {
        "expression": under.rule.expression,
        "oracle": under.rule.optimistic,
        "gap": under.rule.optimistic,
        "selects": bool(under.rule.sees),
        "meaning": meaning,
        "notes": more,
    }


def _results(under: Facts) -> dict[tuple[str, str], dict[str, Any]]:
    """By identity and predictor: the counts, the cells and what each run was picked with."""
    chosen = under.outcomes(under.rule)
    picked = {
        key: {
            row["run"]: {
                "step": int(row["step"]) if _one_checkpoint(under, row) else None,
                "how": _how(under, row),
                "values": [_rounded(m, row[m]) for m in METRICS],
            }
            for row in group.to_dict("records")
        }
        for key, group in chosen.groupby(["identity", "predictor"])
    }
    found = {}
    for row in under.summary.to_dict("records"):
        few, many = row["fewest_evaluations"], row["evaluations"]
        begun = f" (+{row['unfinished']})" if row["unfinished"] else ""
        key = (row["identity"], row["predictor"])
        found[key] = {
            "started": int(row["started"]),
            "finished": int(row["finished"]),
            "failed": int(row["failed"]),
            "median_seed": row["median_seed"],
            "best_seed": row["best_seed"],
            "runs": f"{row['finished']}/{row['started']}{begun}",
            "out_of": NO_VALUE if not many else str(many) if few == many else f"{few} to {many}",
            "cells": {m: [_cell(row, m, name) for name in COLUMNS] for m in METRICS},
            "picked": picked.get(key, {}),
        }
    return found


def _one_checkpoint(under: Facts, row: Row) -> bool:
    """Whether the numbers of a run are those of one of its evaluations."""
    return row["averaged"] == 1 and not under.rule.by_case


def _how(under: Facts, row: Row) -> str:
    """Where the numbers of a run are from, in words."""
    other = f", predictor {row['picked']}" if row["picked"] != row["predictor"] else ""
    if _one_checkpoint(under, row):
        return f"step {row['step']}{other}"
    if row["averaged"] > 1:
        return f"mean of {row['averaged']} evaluations, the last at step {row['step']}{other}"
    return f"{under.rule.name}; chosen step {row['step']}{other}"


def _cell(row: Row, metric: str, name: str) -> list[Any]:
    """[what to sort by, what to show]; what is infinite sorts as the largest float."""
    value = _shown(metric, row[f"{metric}_{name}"])
    text = number(value, "+.2f" if name == "gap" else ".2f")
    if name == "mean" and text != NO_VALUE:
        text = f"{text} ± {number(_shown(metric, row[f'{metric}_std']))}"
    if name == "median_low":
        text = interval(value, _shown(metric, row[f"{metric}_median_high"]))
    return [None if isnan(value) else float(np.clip(value, -_LARGEST, _LARGEST)), text]


def _shown(metric: str, value: float) -> float:
    return 100 * value if metric == "dsc" else value


def _rounded(metric: str, value: float) -> float | None:
    """As it is printed, so that the script's two decimals are the same."""
    shown = _shown(metric, value)
    return float(format(shown, ".2f")) if isfinite(shown) else None


def _meaning(name: str) -> str:
    if name == "gap":
        return "median over runs of the reported value minus that of the last checkpoint"
    return EXACT if name == "median_low" else STATISTICS[name].meaning


def _runs(runs: pd.DataFrame, evaluations: pd.DataFrame) -> list[dict[str, Any]]:
    curves = {run: _curve(group) for run, group in evaluations.groupby("run")}
    return [
        _plain(row, _OF_RUN)
        | {
            "versions": _pairs(row["versions"]),
            "environment": [_pairs(e) for e in _listed(row["environment"])],
            "parameters": int(row["parameters"]) if row["parameters"] >= 0 else None,
            "curve": curves.get(row["run"]),
        }
        for row in runs.to_dict("records")
    ]


def _evaluations(facts: Facts) -> pd.DataFrame:
    """What the runs that count scored at every step: identity, run, step and metrics."""
    rows = facts.trajectory
    rows = rows[(rows["split"] == REPORTED) & (rows["predictor"] == MAIN)]
    rows = rows[["run", "step", *METRICS]].astype({"run": object})
    counted = facts.outcomes(Last())[["run", "identity"]].drop_duplicates()
    return rows.merge(counted, on="run", validate="m:1")


def _middle(evaluations: pd.DataFrame) -> dict[str, dict[str, list[Any]]]:
    """By identity, the median over runs at every step, of each metric by itself."""
    medians = evaluations.groupby(["identity", "step"])[list(METRICS)].median().reset_index()
    return {str(identity): _curve(rows) for identity, rows in medians.groupby("identity")}


def _curve(rows: pd.DataFrame) -> dict[str, list[Any]]:
    ordered = rows.sort_values("step")
    values = {m: [_rounded(m, v) for v in ordered[m]] for m in METRICS}
    return {"step": [int(step) for step in ordered["step"]]} | values


def _case_means(facts: Facts, under: Facts) -> pd.DataFrame | None:
    """Mean over runs of every case at the reported checkpoint: by identity and case.

    None where the protocol reports no single checkpoint.
    """
    chosen = under.outcomes(under.rule)
    chosen = chosen[chosen["predictor"] == MAIN]
    if not all(_one_checkpoint(under, row) for row in chosen.to_dict("records")):
        return None
    rows = facts.scored
    rows = rows[(rows["split"] == REPORTED) & rows["step"].isin(chosen["step"])]
    rows = rows.astype({"run": object, "case": object, "predictor": object})
    chosen = chosen[["run", "identity", "step", "picked"]].rename(columns={"picked": "predictor"})
    rows = rows.merge(chosen, on=["run", "step", "predictor"], validate="m:1")
    rows = rows.sort_values(["identity", "case", "run"])
    return rows.groupby(["identity", "case"])[list(METRICS)].mean()


def _case_names(means: Iterable[pd.DataFrame | None], identities: set[str]) -> list[str]:
    found = {key for m in means if m is not None for key in m.index if key[0] in identities}
    return sorted({case for _, case in found})


def _along(
    means: pd.DataFrame | None, identity: str, names: list[str]
) -> dict[str, list[Any]] | None:
    """The means of one row of the table, in the order of `names`."""
    if means is None:
        return None
    own = means.reindex([(identity, name) for name in names])
    return {m: [_rounded(m, v) for v in own[m]] for m in METRICS}


def _over_methods(
    means: pd.DataFrame | None, setting: str, summary: pd.DataFrame, names: Mapping[str, list[str]]
) -> dict[str, list[Any]] | None:
    """Mean over the methods of a setting: how hard each case is for all of them."""
    if means is None:
        return None
    rows = summary[(summary["setting"] == setting) & (summary["predictor"] == MAIN)]
    own = means[means.index.get_level_values("identity").isin(rows["identity"])]
    over = own.groupby("case").mean().reindex(names[setting])
    return {m: [_rounded(m, v) for v in over[m]] for m in METRICS}


def _plain(row: Row, names: Iterable[str]) -> dict[str, Any]:
    """Some columns, as values that JSON has."""
    found = {name: row[name] for name in names}
    return {n: v.item() if hasattr(v, "item") else v for n, v in found.items()}


def _pairs(text: str | Mapping[str, Any]) -> list[list[str]]:
    """The entries of a JSON object as text."""
    value = json.loads(text) if isinstance(text, str) else text
    return [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in sorted(value.items())]


def _listed(text: str) -> list[Mapping[str, Any]]:
    """One object per environment that a run was in."""
    value = json.loads(text)
    return value if isinstance(value, list) else [value]


def _part(name: str) -> str:
    return resources.files("reports").joinpath("html_page", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
