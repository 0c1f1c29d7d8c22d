"""Trajectories: DSC on the test cases at every evaluation of every run, its last and its best."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Final, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from protocols.metrics import METRICS
from protocols.rules import REPORTED, Best, Last
from reports.drawing import (
    GREY,
    TOGETHER,
    blank,
    colours,
    footnote,
    legend,
    literal,
    plain,
    write_figure,
)
from reports.facts import MAIN, Facts
from reports.render import csv_text, write_file

STEM: Final = "trajectories"


class _Size(NamedTuple):
    """Of panels: how many side by side, inches, letters of a title in a line, their size."""

    columns: int
    width: float
    height: float
    letters: int
    font: float


_LARGE: Final = _Size(2, 6.4, 3.8, 70, 10)
_SMALL: Final = _Size(4, 3.8, 2.7, 50, 8)


def write_trajectories(facts: Facts, out: Path) -> list[Path]:
    """Write `trajectories.csv`, `.png`, `.pdf` and `.svg`; return the paths."""
    values = trajectories(facts)
    table = values.rename(columns={"dsc": "dsc_percent"})
    return [
        write_file(out / f"{STEM}.csv", csv_text(table)),
        *write_figure(draw(values, facts.not_drawn(values)), out, STEM),
    ]


def trajectories(facts: Facts) -> pd.DataFrame:
    """One row per evaluation of a run that counts, of the main predictor on the test cases.

    Returns:
        setting, label, seed, run, state, step; cases, empty, dsc (percent), asd, hd95 (means over
        cases, the distances in `unit`); and whether it is the `last` evaluation of the run, and
        the `best` by DSC, of equal ones the later.
    """
    names = facts.summary[["identity", "predictor", "setting", "label"]]
    runs = facts.outcomes(Last()).rename(columns={"step": "last"})
    best = facts.outcomes(Best())[["run", "predictor", "step"]].rename(columns={"step": "best"})
    keys = ["run", "identity", "predictor", "seed", "state", "unit", "last"]
    runs = runs[keys].merge(names, on=["identity", "predictor"], validate="m:1")
    runs = runs.merge(best, on=["run", "predictor"], validate="1:1")
    steps = facts.trajectory
    steps = steps[(steps["split"] == REPORTED) & (steps["predictor"] == MAIN)]
    steps = steps[["run", "predictor", "step", "cases", "empty", *METRICS]]
    steps = steps.astype({"run": object, "predictor": object})
    values = runs.merge(steps, on=["run", "predictor"], validate="1:m")
    values = values.assign(
        dsc=100 * values["dsc"],
        last=values["step"] == values["last"],
        best=values["step"] == values["best"],
    ).sort_values(["setting", "label", "seed", "run", "step"], ignore_index=True)
    first = ["setting", "label", "seed", "run", "state", "step", "cases", "empty"]
    return values[[*first, *METRICS, "unit", "last", "best"]]


def draw(values: pd.DataFrame, note: str = "") -> Figure:
    """Each run thin with its last and best, the median of a method thick; a note below.

    A panel per setting; where one has more than `TOGETHER` methods, a panel per method, with the
    medians of the others in grey.
    """
    if values.empty:
        return blank("Trajectories: no run has finished yet.")
    panels = list(_panels(values))
    palette = colours(sorted(set(values["label"])))
    together = {name for _, own, _ in panels if own["label"].nunique() > 1 for name in own["label"]}
    size = _SMALL if len(panels) > values["setting"].nunique() else _LARGE
    columns = min(size.columns, len(panels))
    rows = ceil(len(panels) / columns)
    width, height = max(8.0, size.width * columns), size.height * rows + 0.5
    figure = Figure(figsize=(width, height), layout="constrained")
    for place, (title, own, setting) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        plain(axes)
        axes.set_title(literal(title, size.letters), fontsize=size.font, loc="left")
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylabel("DSC [%]", fontsize=9)
        axes.set_ylim(*_limits(setting["dsc"]))
        for label in setting["label"].unique():
            if label not in set(own["label"]):
                middle = _median(setting[setting["label"] == label])
                axes.plot(middle.index, middle, color=GREY, linewidth=0.7, alpha=0.35, zorder=1)
        for label, group in own.groupby("label"):
            _draw_method(axes, group, palette[str(label)])
    handles = [
        Line2D([], [], color=palette[name], linewidth=2.2, label=name)
        for name in palette
        if name in together
    ]
    handles.append(Line2D([], [], color=GREY, linewidth=2.2, label="median over runs"))
    if size is _SMALL:
        line = Line2D([], [], color=GREY, linewidth=0.7, alpha=0.5, label="those of other methods")
        handles.append(line)
    handles += [
        Line2D([], [], color=GREY, linewidth=0.8, alpha=0.6, label="one run"),
        Line2D([], [], color=GREY, marker="o", markersize=5, linestyle="", label="its last"),
        Line2D(
            [], [], color=GREY, marker="o", markersize=7.5, markerfacecolor="white",
            markeredgewidth=1.4, linestyle="", label="its best on the test set",
        ),
    ]  # fmt: skip
    legend(figure, handles)
    if note:
        footnote(figure, note)
    return figure


def _panels(values: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Title, what a panel is about, and the whole setting that it belongs to."""
    for setting, group in values.groupby("setting", sort=False):
        if group["label"].nunique() <= TOGETHER:
            yield str(setting), group, group
        else:
            for label, own in group.groupby("label"):
                yield f"{label}: {setting}", own, group


def _limits(dsc: pd.Series) -> tuple[float, float]:
    """The same for all panels of a setting, so that they can be compared."""
    if dsc.isna().all():
        return 0.0, 100.0
    lowest, highest = float(dsc.min()), float(dsc.max())
    margin = 0.05 * (highest - lowest) or 1.0
    return lowest - margin, highest + margin


def _median(values: pd.DataFrame) -> pd.Series:
    return values.groupby("step")["dsc"].median()


def _draw_method(axes: Axes, values: pd.DataFrame, colour: str) -> None:
    for _, run in values.groupby("run"):
        axes.plot(run["step"], run["dsc"], color=colour, linewidth=0.8, alpha=0.4)
    middle = _median(values)
    label = values["label"].iloc[0]
    axes.plot(middle.index, middle, color=colour, linewidth=2.2, gid=f"median {label}")
    best, last = values[values["best"]], values[values["last"]]
    axes.scatter(
        best["step"], best["dsc"], s=56, facecolor="white", edgecolor=colour, linewidth=1.4,
        zorder=3, gid="best",
    )  # fmt: skip
    axes.scatter(last["step"], last["dsc"], s=18, color=colour, zorder=4, gid="last")
