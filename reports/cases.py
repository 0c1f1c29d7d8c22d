"""Which cases carry the difference between methods, and which are hard for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from protocols.comparison import by_case
from protocols.policies import POLICIES
from reports.comparison import tables
from reports.drawing import GREY, blank, legend, literal, plain, write_figure
from reports.facts import MAIN, Facts
from reports.render import Section, Sheet, csv_text, write_file, write_sheets
from reports.table import NO_VALUE, file_name, number, selection
from results.lookup import unknown

STEM: Final = "cases"
BASELINE: Final = "supervised"
"""The method that others are measured against, where it was run."""

_HARDEST: Final = 10
_ENDS: Final = 10
"""Cases at either end of a list that are shown where there are more than twice as many."""

_COLUMNS: Final = 3
_NAMED: Final = 30
"""Cases up to which a panel has room for their names."""

_RENAMED: Final = {
    "first": "method_dsc",
    "second": "reference_dsc",
    "first_seeds": "method_seeds",
    "second_seeds": "reference_seeds",
}
_NUMBERS: Final = (
    *("method_dsc", "reference_dsc", "difference", "share", "cumulative"),
    *("method_seeds", "reference_seeds"),
)

_GAIN: Final = "#0072B2"
_LOSS: Final = "#D55E00"


def write_cases(facts: Facts, out: Path) -> list[Path]:
    """Write `cases-<protocol>.md`, `.csv`, `.tex`, `-hardest.csv`, `.png`, `.pdf` and `.svg`."""
    stem = f"{STEM}-{file_name(facts.rule.expression)}"
    found, hard = facts.once(differences), facts.once(hardest)
    return [
        *write_sheets(_sheets(facts, found, hard), found, out, stem),
        write_file(out / f"{stem}-hardest.csv", csv_text(hard)),
        *write_figure(draw(found), out, stem),
    ]


def show_cases(facts: Facts) -> list[Sheet]:
    """Both sheets."""
    return _sheets(facts, facts.once(differences), facts.once(hardest))


def differences(facts: Facts) -> pd.DataFrame:
    """One row per setting, method and case: what the case adds to the method's lead.

    Each method is measured against `supervised` (its first row in the summary) where that was
    run, else against the best one.

    Returns:
        setting, method, reference, case, method_dsc, reference_dsc, difference (percent; means
        over seeds), share, cumulative (fractions of the sum of differences), method_seeds,
        reference_seeds. Cases by difference, the largest first.
    """
    frames = []
    for setting, by_metric in facts.once(tables).items():
        methods = by_metric["dsc"]
        reference = _reference(facts, setting)
        for method in methods:
            if method != reference:
                frame = by_case(100 * methods[method], 100 * methods[reference])
                frames.append(frame.assign(setting=setting, method=method, reference=reference))
    columns = ["setting", "method", "reference", "case", *_NUMBERS]
    filled = [frame.rename(columns=_RENAMED) for frame in frames if len(frame)]
    if not filled:
        return pd.DataFrame(columns=columns)
    return pd.concat(filled, ignore_index=True)[columns]


def hardest(facts: Facts) -> pd.DataFrame:
    """Cases by their mean DSC over methods, the hardest first; those asked for, where any are.

    Returns:
        setting, case, mean (of the methods' means over finished runs, DSC in percent), highest
        and lowest of these, highest_method and lowest_method.

    Raises:
        UserError: no such case.
    """
    wanted = set(facts.options.cases)
    rows: list[dict[str, Any]] = []
    known: set[str] = set()
    for setting, by_metric in facts.once(tables).items():
        finished = {
            method: 100 * table[~np.isinf(table).any(axis=1)].mean()
            for method, table in by_metric["dsc"].items()
        }
        means = pd.DataFrame(finished).dropna(axis=1, how="all").dropna(axis=0, how="all")
        known |= set(means.index)
        order = means.sort_index().mean(axis=1).sort_values(kind="stable").index
        chosen = order[order.isin(wanted)] if wanted else order[:_HARDEST]
        for case in chosen:
            own = means.loc[case]
            rows.append(
                {
                    "setting": setting,
                    "case": case,
                    "mean": float(own.mean()),
                    "highest": float(own.max()),
                    "highest_method": str(own.idxmax()),
                    "lowest": float(own.min()),
                    "lowest_method": str(own.idxmin()),
                }
            )
    for name in sorted(wanted - known):
        raise unknown("case", name, known)
    columns = ["setting", "case", "mean", "highest", "highest_method", "lowest", "lowest_method"]
    return pd.DataFrame(rows, columns=columns)


def draw(values: pd.DataFrame) -> Figure:
    """A panel per setting and method: a bar per case, the largest difference first.

    Panels beside each other have one scale.
    """
    if values.empty:
        return blank("Cases: no setting has two methods with finished runs yet.")
    panels = list(values.groupby(["setting", "method"], sort=False))
    columns = min(_COLUMNS, len(panels))
    rows = ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 0.5), layout="constrained")
    first: Axes | None = None
    for place, ((setting, method), group) in enumerate(panels):
        if place % columns == 0:
            first = None
        axes = figure.add_subplot(rows, columns, place + 1, sharey=first)
        first = first or axes
        mean = f"mean {group['difference'].mean():+.2f}"
        title = f"{method} − {group['reference'].iloc[0]}, {mean}; {setting}"
        axes.set_title(literal(title, 48), fontsize=8.5, loc="left")
        _draw_bars(axes, group)
        if place % columns == 0:
            axes.set_ylabel("difference in DSC [points]", fontsize=8.5)
    legend(
        figure,
        [
            Patch(color=_GAIN, label="better than the reference"),
            Patch(color=_LOSS, label="worse"),
            Line2D([], [], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="mean over cases"),
        ],
    )
    return figure


def _draw_bars(axes: Axes, group: pd.DataFrame) -> None:
    plain(axes)
    heights = group["difference"].to_numpy()
    places = np.arange(len(heights))
    axes.bar(places, heights, width=0.75, color=np.where(heights < 0, _LOSS, _GAIN), gid="case")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axhline(float(heights.mean()), color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    if len(places) <= _NAMED:
        names = [literal(str(name), 24) for name in group["case"]]
        axes.set_xticks(places, names, rotation=90, fontsize=6.5)
        axes.tick_params(axis="x", length=0, labelsize=6.5)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(places)} cases", fontsize=8.5)


def _sheets(facts: Facts, found: pd.DataFrame, hard: pd.DataFrame) -> list[Sheet]:
    return [_differences_sheet(facts, found), _hardest_sheet(facts, hard)]


def _differences_sheet(facts: Facts, found: pd.DataFrame) -> Sheet:
    sections = []
    wanted = set(facts.options.cases)
    for (setting, method), group in found.groupby(["setting", "method"], sort=False):
        first = group.iloc[0]
        seeds = f"{first['method_seeds']}"
        if first["method_seeds"] != first["reference_seeds"]:
            seeds += f" and {first['reference_seeds']}"
        shown = group[group["case"].isin(wanted)] if wanted else _ends(group)
        left_out = len(group) - len(shown)
        heading = f"{method} − {first['reference']}, {seeds} seeds, {len(group)} cases; {setting}"
        if left_out:
            heading += f" ({left_out} cases not shown)"
        sections.append(Section(heading, tuple(_row(r) for r in shown.to_dict("records"))))
    notes = [
        f"Protocol {facts.rule.expression}: {facts.rule.meaning}."
        f"{selection(facts.rule, facts.summary)}",
        "DSC in percent, per case the mean over the seeds that finished with both methods (of "
        "each its own, where they share fewer than two). Failed runs have no cases: what they "
        "lost is not in here.",
        "Share: of the sum of all differences; the running sum passes 100 % where later cases "
        f"take back what earlier ones gave. {NO_VALUE} where the differences cancel out.",
        f"Reference: {BASELINE} where it was run, else the best method.",
        f"Empty masks, policy {facts.policy}: {POLICIES[facts.policy].meaning}.",
        *facts.omitted,
    ]
    if not sections:
        notes.insert(0, "No setting has two methods with finished runs yet.")
    columns = [("", "case"), ("DSC %", "method"), ("DSC %", "reference"), ("DSC %", "difference")]
    columns += [("of the sum, %", "share"), ("of the sum, %", "running")]
    title = f"Cases that carry the difference, protocol {facts.rule.expression}"
    return Sheet(title, tuple(columns), tuple(sections), tuple(notes))


def _hardest_sheet(facts: Facts, hard: pd.DataFrame) -> Sheet:
    sections = [
        Section(
            str(setting),
            tuple(
                (
                    row["case"],
                    row["highest_method"],
                    row["lowest_method"],
                    *(number(row[name]) for name in ("mean", "highest", "lowest")),
                )
                for row in group.to_dict("records")
            ),
        )
        for setting, group in hard.groupby("setting", sort=False)
    ]
    which = "The cases asked for" if facts.options.cases else f"At most {_HARDEST} cases a setting"
    notes = (
        f"{which}, by the mean of the methods' DSC, lowest first; a method's DSC of a case is the "
        f"mean over its finished runs, protocol {facts.rule.expression}.",
    )
    columns = [("", "case"), ("", "best with"), ("", "worst with")]
    columns += [("DSC %", name) for name in ("mean", "best", "worst")]
    return Sheet("Hardest cases", tuple(columns), tuple(sections), notes, left=3)


def _ends(group: pd.DataFrame) -> pd.DataFrame:
    if len(group) <= 2 * _ENDS:
        return group
    return pd.concat([group.iloc[:_ENDS], group.iloc[-_ENDS:]])


def _row(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return (
        row["case"],
        number(row["method_dsc"]),
        number(row["reference_dsc"]),
        number(row["difference"], "+.2f"),
        number(100 * row["share"], "+.1f"),
        number(100 * row["cumulative"], "+.1f"),
    )


def _reference(facts: Facts, setting: str) -> str:
    own = facts.summary[facts.summary["setting"] == setting]
    own = own[own["predictor"] == MAIN]
    labels = own.loc[own["method"] == BASELINE, "label"]
    return str((labels if len(labels) else own["label"]).iloc[0])
