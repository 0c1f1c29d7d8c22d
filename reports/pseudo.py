"""How reliable the pseudo-labels are: the TCSeg paper's Fig. 4 (Sec. 4.6), and its numbers.

Of the voxels of all unlabelled training volumes of a run, with counts summed before dividing:

    PPV = TP / (TP + FP)      NPV = TN / (TN + FN)      recall = TP / (TP + FN)

The paper does not say whether it pools volumes so or averages over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from reports.drawing import GREY, blank, colours, in_rows, legend, literal, plain, write_figure
from reports.facts import MAIN, Facts
from reports.render import Section, Sheet, write_sheets
from reports.table import NO_VALUE, number

STEM: Final = "pseudo"
QUALITIES: Final = {"ppv": ("tp", "fp"), "npv": ("tn", "fn"), "recall": ("tp", "fn")}
"""Each is the first count over the sum of both."""

BASELINE: Final = "supervised"
"""The method that arrows start from."""

_COLUMNS: Final = 2
_LARGEST: Final = 22.0
"""Diameter of a marker at recall 1, in points; others in proportion."""


def write_pseudo(facts: Facts, out: Path) -> list[Path]:
    """Write `pseudo.md`, `.csv`, `.tex` and the figure; return the paths."""
    values = medians(qualities(facts))
    return [
        *write_sheets([sheet(values, facts.omitted)], values, out, STEM),
        *write_figure(draw(values), out, STEM),
    ]


def qualities(facts: Facts) -> pd.DataFrame:
    """One row per finished run: setting, label, run, and ppv, npv, recall of its pseudo-labels.

    Fractions; NaN where there is nothing to divide by, or no pseudo-label at all.
    """
    rows = facts.pseudo[facts.pseudo["predictor"] == MAIN].astype({"run": object})
    rows = rows[rows["step"] == rows.groupby("run")["step"].transform("max")]
    counts = rows.groupby("run")[["tp", "fp", "fn", "tn"]].sum()
    found = facts.finished[["setting", "label", "run"]].join(counts, on="run")
    ratios = {}
    for name, (hit, miss) in QUALITIES.items():
        total = found[hit] + found[miss]
        ratios[name] = (found[hit] / total.where(total > 0)).astype(float)
    return found[["setting", "label", "run"]].assign(**ratios)


def medians(values: pd.DataFrame) -> pd.DataFrame:
    """Of `qualities`, per setting and method: `runs`, and the median of each quality by itself.

    NaN where it is undefined for any of the runs.
    """
    groups = values.groupby(["setting", "label"], sort=False)
    found = groups[list(QUALITIES)].median(skipna=False).assign(runs=groups.size())
    return found.reset_index()[["setting", "label", "runs", *QUALITIES]]


def sheet(values: pd.DataFrame, omitted: Sequence[str] = ()) -> Sheet:
    """`medians` as text, a section per setting; `omitted` as in `Facts`."""
    columns = (("", "method"), ("", "runs"), ("", "PPV ↑"), ("", "NPV ↑"), ("", "recall ↑"))
    sections = [
        Section(str(setting), tuple(_row(row) for row in group.to_dict("records")))
        for setting, group in values.groupby("setting", sort=False)
    ]
    notes = [
        "PPV = TP / (TP + FP), NPV = TN / (TN + FN), recall = TP / (TP + FN), of the voxels of the "
        f"unlabelled training volumes as predictor {MAIN} labels them at the end of training.",
        "Pooled: the counts of all volumes of a run are summed before dividing. The TCSeg paper "
        "(Fig. 4) does not say whether it pools or averages over volumes.",
        f"Median over finished runs, of each by itself; {NO_VALUE} where it is 0/0 for any run, or "
        "where there is no unlabelled volume.",
        "NPV depends on how much background the volumes show: compare it within a setting only.",
        *omitted,
    ]
    if values.empty:
        notes.insert(0, "No run has finished yet.")
    return Sheet("Pseudo-labels", columns, tuple(sections), tuple(notes))


def draw(values: pd.DataFrame) -> Figure:
    """PPV across, NPV up, recall as size: arrows from the baseline.

    A panel per setting, or several of one scale that share the baseline, where methods are many.
    """
    if values.empty:
        return blank("Pseudo-labels: no run has finished yet.")
    shown = values.dropna(subset=list(QUALITIES))
    if shown.empty:
        return blank("Pseudo-labels: PPV, NPV or recall is undefined for every method.")
    panels = list(_panels(shown))
    palette = colours(sorted(set(shown["label"])))
    columns = min(_COLUMNS, len(panels))
    rows = ceil(len(panels) / columns)
    figure = Figure(figsize=(6.4 * columns, 4.6 * rows + 0.9), layout="constrained")
    of_setting: dict[str, Axes] = {}
    for place, (setting, title, own) in enumerate(panels):
        first = of_setting.get(setting)
        axes = figure.add_subplot(rows, columns, place + 1, sharex=first, sharey=first)
        of_setting.setdefault(setting, axes)
        plain(axes)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
        axes.set_title(literal(title, 70), fontsize=10, loc="left")
        axes.set_xlabel("PPV", fontsize=9)
        axes.set_ylabel("NPV", fontsize=9)
        axes.margins(0.18)
        _draw_panel(axes, own, palette)
    _explain(figure, palette, undefined=len(values) - len(shown))
    return figure


def _panels(values: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Setting, title and values of each panel; the baseline is in all of its setting."""
    for setting, group in values.groupby("setting", sort=False):
        is_baseline = group["label"] == BASELINE
        if is_baseline.all():
            yield str(setting), str(setting), group
            continue
        for _, title, own in in_rows(group[~is_baseline]):
            yield str(setting), title, pd.concat([group[is_baseline], own])


def _draw_panel(axes: Axes, values: pd.DataFrame, palette: Mapping[str, str]) -> None:
    start = values[values["label"] == BASELINE]
    for row in values.sort_values("recall", ascending=False).to_dict("records"):
        label, at, radius = row["label"], (row["ppv"], row["npv"]), _radius(row["recall"])
        axes.scatter(*at, s=(2 * radius) ** 2, linewidth=1.6, gid=label, **_look(label, palette))
        axes.annotate(
            f"{row['recall']:.2f}", at, ha="center", va="center", fontsize=6.5, zorder=4,
            path_effects=[withStroke(linewidth=1.6, foreground="white")],
        )  # fmt: skip
        if label == BASELINE or start.empty:
            continue
        begin = start.iloc[0]
        axes.annotate(
            "", xy=at, xytext=(begin["ppv"], begin["npv"]),
            arrowprops={
                "arrowstyle": "-|>", "color": palette[label], "linewidth": 1.3,
                "shrinkA": _radius(begin["recall"]), "shrinkB": radius,
            },
        )  # fmt: skip


def _radius(recall: float) -> float:
    return _LARGEST / 2 * recall


def _look(label: str, palette: Mapping[str, str]) -> dict[str, Any]:
    """Colours of a marker: the baseline's is hollow."""
    colour = palette[label]
    return {"facecolor": "white" if label == BASELINE else (colour, 0.55), "edgecolor": colour}


def _explain(figure: Figure, palette: Mapping[str, str], undefined: int) -> None:
    handles = [
        Line2D(
            [], [], marker="o", linestyle="", markersize=8, label=label,
            **{f"marker{key}": value for key, value in _look(label, palette).items()},
        )
        for label in palette
    ]  # fmt: skip
    legend(figure, handles)
    text = "Medians over runs, of the unlabelled training volumes. Size and number: recall."
    if undefined:
        text += f" Not drawn, being undefined: {undefined}."
    figure.supxlabel(text, fontsize=8, color=GREY, x=0.01, ha="left")


def _row(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return (row["label"], str(row["runs"]), *(number(row[name], ".4f") for name in QUALITIES))
