"""Trajectories: DSC on the test cases at every evaluation of every run, its last and its best."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from protocols.metrics import METRICS
from protocols.rules import REPORTED, Best, Last
from reports.drawing import GREY, blank, colours, legend, literal, plain, write_figure
from reports.facts import MAIN, Facts
from reports.render import csv_text, write_file

STEM: Final = "trajectories"
_COLUMNS: Final = 2


def write_trajectories(facts: Facts, out: Path) -> list[Path]:
    """Write `trajectories.csv`, `.png`, `.pdf` and `.svg`; return the paths."""
    values = trajectories(facts)
    table = values.rename(columns={"dsc": "dsc_percent"})
    return [
        write_file(out / f"{STEM}.csv", csv_text(table)),
        *write_figure(draw(values), out, STEM),
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


def draw(values: pd.DataFrame) -> Figure:
    """A panel per setting: each run thin with its last and best, the median of a method thick."""
    if values.empty:
        return blank("Trajectories: no run has finished yet.")
    settings = list(dict.fromkeys(values["setting"]))
    palette = colours(sorted(set(values["label"])))
    columns = min(_COLUMNS, len(settings))
    rows = ceil(len(settings) / columns)
    figure = Figure(figsize=(max(8.0, 6.4 * columns), 3.8 * rows + 0.5), layout="constrained")
    for place, setting in enumerate(settings):
        axes = figure.add_subplot(rows, columns, place + 1)
        plain(axes)
        axes.set_title(literal(setting, 70), fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylabel("DSC [%]", fontsize=9)
        for label, group in values[values["setting"] == setting].groupby("label"):
            _draw_method(axes, group, palette[str(label)])
    handles = [Line2D([], [], color=palette[name], linewidth=2.2, label=name) for name in palette]
    handles.append(Line2D([], [], color=GREY, linewidth=2.2, label="median over runs"))
    handles += [
        Line2D([], [], color=GREY, linewidth=0.8, alpha=0.6, label="one run"),
        Line2D([], [], color=GREY, marker="o", markersize=5, linestyle="", label="its last"),
        Line2D(
            [], [], color=GREY, marker="o", markersize=7.5, markerfacecolor="white",
            markeredgewidth=1.4, linestyle="", label="its best on the test set",
        ),
    ]  # fmt: skip
    legend(figure, handles)
    return figure


def _draw_method(axes: Axes, values: pd.DataFrame, colour: str) -> None:
    for _, run in values.groupby("run"):
        axes.plot(run["step"], run["dsc"], color=colour, linewidth=0.8, alpha=0.4)
    middle = values.groupby("step")["dsc"].median()
    label = values["label"].iloc[0]
    axes.plot(middle.index, middle, color=colour, linewidth=2.2, gid=f"median {label}")
    best, last = values[values["best"]], values[values["last"]]
    axes.scatter(
        best["step"], best["dsc"], s=56, facecolor="white", edgecolor=colour, linewidth=1.4,
        zorder=3, gid="best",
    )  # fmt: skip
    axes.scatter(last["step"], last["dsc"], s=18, color=colour, zorder=4, gid="last")
