"""Best against last checkpoint over runs: the figure of the TCSeg paper's Fig. 5.

Above, each run as a pair: its last checkpoint and its best one on the test set, joined by what
the choice adds. Below, how both spread over runs.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from protocols.rules import Best
from reports.drawing import (
    GREY,
    blank,
    colours,
    footnote,
    in_rows,
    literal,
    plain,
    write_figure,
)
from reports.facts import MAIN, Facts

STEM: Final = "best-vs-last"
_COLUMNS: Final = 2
_SEEDS_SHOWN: Final = 10
_LABEL_WIDTH: Final = 15
_MANY: Final = 7
"""Methods above which settings do not stand side by side."""


def write_best_vs_last(facts: Facts, out: Path) -> list[Path]:
    """Write `best-vs-last.png`, `.pdf` and `.svg`; return the paths."""
    values = pairs(facts)
    return write_figure(draw(values, facts.not_drawn(values)), out, STEM)


def pairs(facts: Facts) -> pd.DataFrame:
    """One row per run that counts, of the main predictor.

    Returns:
        setting, label, seed, `last` and `best` (DSC in percent), `evaluations` that best was
        chosen from, `finished` and `started` runs of the method there. Settings come in the order
        of the summary, methods in that of their median last DSC, over all settings.
    """
    rule = Best()
    names = facts.summary[["identity", "predictor", "setting", "label", "finished", "started"]]
    values = facts.outcomes(rule).merge(names, on=["identity", "predictor"], validate="m:1")
    values = values[values["predictor"] == MAIN]
    values = values.assign(last=100 * values["dsc_last"], best=100 * values["dsc"])
    values = values.assign(level=values.groupby("label")["last"].transform("median"))
    order = {name: place for place, name in enumerate(facts.summary["setting"].unique())}
    values = values.assign(place=values["setting"].map(order))
    values = values.sort_values(["place", "level", "label", "seed"], ignore_index=True)
    columns = ["setting", "label", "seed", "last", "best", "evaluations", "finished", "started"]
    return values[columns]


def draw(values: pd.DataFrame, note: str = "") -> Figure:
    """The figure of `pairs`: a panel per setting, a block per method, a pair per run; a note below.

    A setting of more than `TOGETHER` methods has several panels, on one scale.
    """
    if values.empty:
        return blank("Best against last: no run has finished yet.")
    panels = list(in_rows(values))
    palette = colours(sorted(set(values["label"])))
    blocks = max(own["label"].nunique() for _, _, own in panels)
    columns = min(_COLUMNS if blocks <= _MANY else 1, len(panels))
    rows = ceil(len(panels) / columns)
    width = max(7.6, columns * (0.9 + 1.3 * blocks))
    figure = Figure(figsize=(width, 5.6 * rows + 0.7), layout="constrained")
    grid = figure.add_gridspec(
        2 * rows, columns, height_ratios=[1.25, 1] * rows, hspace=0.04, wspace=0.04
    )
    letters = max(58, int(10 * width / columns))
    scales: dict[str, Axes] = {}
    for place, (setting, title, own) in enumerate(panels):
        row, column = divmod(place, columns)
        runs = figure.add_subplot(grid[2 * row, column], sharey=scales.get(setting))
        scales.setdefault(setting, runs)
        spread = figure.add_subplot(grid[2 * row + 1, column], sharex=runs, sharey=runs)
        _draw_runs(runs, own, palette)
        _draw_spread(spread, own, palette)
        lines = max(literal(name, _LABEL_WIDTH).count("\n") for name in set(own["label"]))
        runs.set_title(literal(title, letters), fontsize=10, pad=22 + 11 * lines, loc="left")
        if column == 0:
            runs.set_ylabel("DSC [%] of each run", fontsize=9)
            spread.set_ylabel("DSC [%] over runs", fontsize=9)
    _explain(figure, values, note)
    return figure


def _draw_runs(axes: Axes, values: pd.DataFrame, palette: dict[str, str]) -> None:
    plain(axes)
    ticks: list[float] = []
    names: list[str] = []
    above = blended_transform_factory(axes.transData, axes.transAxes)
    for place, (label, group) in enumerate(values.groupby("label", sort=False)):
        x = place + _offsets(len(group))
        colour = palette[str(label)]
        axes.vlines(x, group["last"], group["best"], color=colour, linewidth=2.2, alpha=0.45)
        axes.scatter(
            x, group["best"], s=56, facecolor="white", edgecolor=colour, linewidth=1.4, zorder=3,
            gid="best",
        )  # fmt: skip
        axes.scatter(x, group["last"], s=18, color=colour, zorder=4, gid="last")
        ticks += list(x)
        shown = len(group) <= _SEEDS_SHOWN
        names += [str(seed) if shown else "" for seed in group["seed"]]
        axes.text(
            place, 1.02, literal(str(label), _LABEL_WIDTH), transform=above, ha="center",
            va="bottom", color=colour, fontsize=9, fontweight="bold", linespacing=1.0,
        )  # fmt: skip
        if place:
            axes.axvline(place - 0.5, color="#e4e4e4", linewidth=0.8)
    axes.set_xticks([], [])
    axes.set_xticks(ticks, names, minor=True)
    axes.tick_params(axis="x", which="minor", labelsize=7.5, length=2, colors=GREY, pad=1)
    axes.set_xlabel("seed", fontsize=8, color=GREY, labelpad=1)
    axes.set_xlim(-0.5, values["label"].nunique() - 0.5)
    axes.margins(y=0.08)


def _draw_spread(axes: Axes, values: pd.DataFrame, palette: dict[str, str]) -> None:
    plain(axes)
    axes.spines["bottom"].set_visible(False)
    names = []
    for place, (label, group) in enumerate(values.groupby("label", sort=False)):
        colour = palette[str(label)]
        for side, column, fill in ((-0.2, "last", True), (0.2, "best", False)):
            axes.boxplot(
                [group[column].to_numpy()],
                positions=[place + side],
                widths=0.26,
                whis=(0, 100),
                patch_artist=True,
                manage_ticks=False,
                boxprops={
                    "facecolor": (colour, 0.3) if fill else "white",
                    "edgecolor": colour,
                    "linewidth": 1.2,
                },
                medianprops={"color": colour, "linewidth": 2.4},
                whiskerprops={"color": colour, "linewidth": 1.2},
                capprops={"color": colour, "linewidth": 1.2},
            )
            axes.scatter(
                place + side + 0.25 * _offsets(len(group)), group[column], s=13, zorder=3,
                facecolor=colour if fill else "white", edgecolor=colour, linewidth=0.9,
                gid=f"{column}-spread",
            )  # fmt: skip
            names.append((place + side, column))
        finished, started = group["finished"].iloc[0], group["started"].iloc[0]
        if finished < started:
            axes.annotate(
                f"{finished}/{started} runs finished", (place, 0),
                xycoords=("data", "axes fraction"), xytext=(0, -18), textcoords="offset points",
                ha="center", va="top", fontsize=7.5, color=GREY,
            )  # fmt: skip
        if place:
            axes.axvline(place - 0.5, color="#e4e4e4", linewidth=0.8)
    axes.tick_params(axis="x", which="minor", length=0, labelbottom=False)
    for x, name in names:
        axes.annotate(
            name, (x, 0), xycoords=("data", "axes fraction"), xytext=(0, -4),
            textcoords="offset points", ha="center", va="top", fontsize=8,
        )  # fmt: skip


def _offsets(count: int) -> np.ndarray:
    return np.linspace(-0.34, 0.34, count) if count > 1 else np.zeros(1)


def _explain(figure: Figure, values: pd.DataFrame, note: str) -> None:
    few, many = values["evaluations"].min(), values["evaluations"].max()
    out_of = str(many) if few == many else f"{few} to {many}"
    handles = [
        Line2D([], [], marker="o", linestyle="", color=GREY, markersize=5, label="last checkpoint"),
        Line2D(
            [], [], marker="o", linestyle="", markerfacecolor="white", markeredgecolor=GREY,
            markeredgewidth=1.4, markersize=7.5,
            label=f"best on the test set, out of {out_of} (an upper bound)",
        ),
        Line2D([], [], color=GREY, linewidth=2.2, alpha=0.45, label="best − last"),
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=9,
        handletextpad=0.4, columnspacing=1.6,
    )  # fmt: skip
    boxes = "Boxes: quartiles and median over runs; whiskers: lowest and highest run."
    footnote(figure, boxes, note)
