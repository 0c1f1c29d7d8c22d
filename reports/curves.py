"""Trajectories: DSC on the test cases at every evaluation of every run."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Final

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from protocols.rules import REPORTED, Last
from reports.drawing import GREY, blank, colours, literal, plain, write_figure
from reports.facts import MAIN, Facts

STEM: Final = "curves"
_COLUMNS: Final = 2


def write_curves(facts: Facts, out: Path) -> list[Path]:
    """Write `curves.png` and `.pdf`; return the paths."""
    return write_figure(draw(curves(facts)), out, STEM)


def curves(facts: Facts) -> pd.DataFrame:
    """One row per evaluation of a run that counts: setting, label, run, step, dsc (percent)."""
    names = facts.summary[["identity", "predictor", "setting", "label"]]
    runs = facts.outcomes(Last())[["run", "identity", "predictor"]].merge(
        names, on=["identity", "predictor"], validate="m:1"
    )
    steps = facts.trajectory
    steps = steps[(steps["split"] == REPORTED) & (steps["predictor"] == MAIN)]
    steps = steps[["run", "predictor", "step", "dsc"]].astype({"run": object, "predictor": object})
    values = runs.merge(steps, on=["run", "predictor"], validate="1:m")
    values = values.assign(dsc=100 * values["dsc"])
    values = values.sort_values(["setting", "label", "run", "step"], ignore_index=True)
    return values[["setting", "label", "run", "step", "dsc"]]


def draw(values: pd.DataFrame) -> Figure:
    """A panel per setting: each run thin, the median over runs of a method thick."""
    if values.empty:
        return blank("Trajectories: no run has finished yet.")
    settings = list(dict.fromkeys(values["setting"]))
    palette = colours(sorted(set(values["label"])))
    columns = min(_COLUMNS, len(settings))
    rows = ceil(len(settings) / columns)
    figure = Figure(figsize=(6.4 * columns, 3.8 * rows + 0.5), layout="constrained")
    for place, setting in enumerate(settings):
        axes = figure.add_subplot(rows, columns, place + 1)
        plain(axes)
        axes.set_title(literal(setting, 70), fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylabel("DSC [%]", fontsize=9)
        for label, group in values[values["setting"] == setting].groupby("label"):
            colour = palette[str(label)]
            for _, run in group.groupby("run"):
                axes.plot(run["step"], run["dsc"], color=colour, linewidth=0.8, alpha=0.4)
            middle = group.groupby("step")["dsc"].median()
            axes.plot(middle.index, middle, color=colour, linewidth=2.2, gid=f"median {label}")
    handles = [Line2D([], [], color=palette[name], linewidth=2.2, label=name) for name in palette]
    handles.append(Line2D([], [], color=GREY, linewidth=0.8, alpha=0.6, label="one run"))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(6, len(handles)), frameon=False,
        fontsize=9,
    )  # fmt: skip
    return figure
