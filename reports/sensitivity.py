"""How much a method's hyperparameters matter: the TCSeg paper's Fig. 6, for whatever was varied.

A panel is a method and the hyperparameters that were changed together; each of its curves is one
choice of their values, each ray a setting, the radius the median DSC. Only numbers are varied:
switches are ablations, and words (as variant=released) make another panel. With fewer than three
settings there is no radar to draw; ranges over runs stand side by side instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, nan, pi
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MaxNLocator

from protocols.statistics import STATISTICS
from reports.drawing import GREY, colours, literal, plain, write_figure
from reports.facts import Facts
from reports.grid import (
    Block,
    blocks,
    common_notes,
    options_text,
    protocol_note,
    records,
    runs_text,
    setting_notes,
    text,
    value,
)
from reports.render import Section, Sheet, write_sheets
from reports.table import NO_VALUE, file_name, number

STEM: Final = "sensitivity"
NOTHING: Final = (
    "No sensitivity to show: no method of this store was run with two values of a numeric "
    "hyperparameter in otherwise equal runs."
)
_EXAMPLE: Final = "bench run --method tcseg --set tcseg.tau=0.1"
_RANGES: Final = "Dots: medians; lines: lowest to highest run, if none failed."
_RAYS: Final = 3
"""Settings that a radar needs at least."""

_COLUMNS: Final = 2


@dataclass(frozen=True)
class Panel:
    """One method, and what was changed of it together.

    title:  method, version and what is otherwise changed.
    varied: names of the hyperparameters.
    curves: by the values' text, the summary's rows by setting; the defaults first.
    """

    block: Block
    title: str
    varied: tuple[str, ...]
    curves: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def settings(self) -> list[str]:
        """Those of the block in which any of the curves was run."""
        return [s for s in self.block.settings if any(s in c for c in self.curves.values())]

    @property
    def heading(self) -> str:
        """Title and what is varied."""
        return f"{self.title}: {', '.join(self.varied)}"


def write_sensitivity(facts: Facts, out: Path) -> list[Path]:
    """Write `sensitivity-<protocol>.md`, `.csv`, `.tex` and, if it has anything, the figure."""
    found = panels(facts)
    stem = f"{STEM}-{file_name(facts.rule.expression)}"
    paths = write_sheets(sheets(facts), flat(facts), out, stem)
    return [*paths, *write_figure(draw(found), out, stem)] if found else paths


def panels(facts: Facts) -> list[Panel]:
    """Every set of numeric hyperparameters that has at least two choices of values."""
    return [
        panel
        for block in blocks(facts, [facts.rule])
        for group in _otherwise_equal(block.rows)
        for panel in _panels(block, group)
    ]


def sheets(facts: Facts) -> list[Sheet]:
    """Per block: a section per panel, a row per choice of values, median DSC by setting."""
    found = panels(facts)
    if not found:
        column = (("", "hyperparameters"),)
        return [Sheet("Sensitivity", column, (), (NOTHING,), commands=(_EXAMPLE,))]
    headings = dict.fromkeys(panel.block.heading for panel in found)
    return [_sheet([p for p in found if p.block.heading == name], facts) for name in headings]


def flat(facts: Facts) -> pd.DataFrame:
    """For other programs: one row per panel, choice of values and setting that was run."""
    columns = ["profile_and_recipe", "method", "varied", "values", "setting", "protocol", "policy"]
    columns += ["finished", "started", "dsc_percent_median"]
    rows = []
    for panel in panels(facts):
        for values, cells in panel.curves.items():
            for setting in filter(cells.__contains__, panel.settings):
                row = cells[setting]
                lead = [panel.block.heading, panel.title, ", ".join(panel.varied), values, setting]
                lead += [facts.rule.expression, facts.policy, row["finished"], row["started"]]
                rows.append([*lead, value(row, "dsc_median")])
    return pd.DataFrame(rows, columns=columns)


def draw(found: Sequence[Panel]) -> Figure:
    """A radar per panel, or ranges side by side where there are fewer than three settings."""
    columns = min(_COLUMNS, len(found))
    rows = ceil(len(found) / columns)
    figure = Figure(figsize=(6.2 * columns, 5.6 * rows + 0.3), layout="constrained")
    for place, panel in enumerate(found):
        radar = len(panel.settings) >= _RAYS
        projection = "polar" if radar else None
        axes = figure.add_subplot(rows, columns, place + 1, projection=projection)
        head = f"{literal(panel.heading, 60)}\n{literal(panel.block.heading, 60)}"
        axes.set_title(head, fontsize=10, loc="left", pad=26 if radar else 8)
        if isinstance(axes, PolarAxes):
            _draw_radar(axes, panel)
        else:
            _draw_ranges(axes, panel)
    return figure


def _otherwise_equal(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows that differ in numeric hyperparameters only."""
    keys = [
        json.dumps([method, version, kind, _words(changed), _words(options)], sort_keys=True)
        for method, version, kind, changed, options in zip(
            *(rows[c] for c in ("method", "version", "kind", "changed", "hyperparameters")),
            strict=True,
        )
    ]
    return [group for _, group in rows.groupby(pd.Series(keys, index=rows.index, dtype=object))]


def _panels(block: Block, group: pd.DataFrame) -> list[Panel]:
    own = records(group)
    sets = {frozenset(_numbers(row["changed"])) for row in own} - {frozenset()}
    found = []
    for varied in sorted((s for s in sets if not any(s < other for other in sets)), key=sorted):
        rows = [row for row in own if varied.issuperset(_numbers(row["changed"]))]
        rows.sort(key=lambda row: (bool(_numbers(row["changed"])), _values(row, varied)))
        curves: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in rows:
            curves.setdefault(_curve_name(row, varied), {})[row["setting"]] = row
        if len(curves) > 1:
            first = rows[0]
            words = options_text(_words(first["changed"]))
            title = f"{first['method']}{f' ({words})' if words else ''} v{first['version']}"
            found.append(Panel(block, title, tuple(sorted(varied)), curves))
    return found


def _numbers(options: Mapping[str, Any]) -> dict[str, float]:
    return {
        k: v for k, v in options.items() if isinstance(v, int | float) and not isinstance(v, bool)
    }


def _words(options: Mapping[str, Any]) -> dict[str, Any]:
    numbers = _numbers(options)
    return {k: v for k, v in options.items() if k not in numbers}


def _values(row: Mapping[str, Any], varied: frozenset[str]) -> list[float]:
    options = _numbers({**row["hyperparameters"], **row["changed"]})
    return [options.get(name, nan) for name in sorted(varied)]


def _curve_name(row: Mapping[str, Any], varied: frozenset[str]) -> str:
    values = zip(sorted(varied), _values(row, varied), strict=True)
    name = ", ".join(f"{k}={_shortest(v)}" for k, v in values if v == v)
    return name if _numbers(row["changed"]) else f"{name} (default)".strip()


def _shortest(value: float) -> str:
    """A number in six digits, or in as many as tell it from every other.

    >>> _shortest(0.05), _shortest(5.0), _shortest(0.9999999)
    ('0.05', '5', '0.9999999')
    """
    text = f"{value:g}"
    return text if float(text) == value else repr(value)


def _sheet(own: Sequence[Panel], facts: Facts) -> Sheet:
    block = own[0].block
    settings = [s for s in block.settings if any(s in panel.settings for panel in own)]
    columns = [("", "hyperparameters")]
    for setting in settings:
        columns += [(block.settings[setting], "DSC % ↑"), (block.settings[setting], "runs")]
    sections = [Section(panel.heading, tuple(_section_rows(panel, settings))) for panel in own]
    rows = pd.DataFrame(
        [row for panel in own for cells in panel.curves.values() for row in cells.values()]
    )
    notes = [
        protocol_note(facts.rule, rows),
        f"DSC: the median {STATISTICS['median'].meaning}. Largest − smallest: of these medians; "
        "it includes what other seeds alone would change.",
        *common_notes(facts, rows),
        *setting_notes(block),
    ]
    return Sheet(f"Sensitivity: {block.heading}", tuple(columns), tuple(sections), tuple(notes))


def _section_rows(panel: Panel, settings: Sequence[str]) -> list[tuple[str, ...]]:
    rows = []
    for name, cells in panel.curves.items():
        line = [name]
        for setting in settings:
            line += [text(cells.get(setting), "dsc_median"), runs_text(cells.get(setting))]
        rows.append(tuple(line))
    spread = ["largest − smallest"]
    for setting in settings:
        medians = [value(cells[setting], "dsc_median") for cells in _run_in(panel, setting)]
        defined = len(medians) > 1 and all(map(isfinite, medians))
        spread += [number(max(medians) - min(medians)) if defined else NO_VALUE, ""]
    return [*rows, tuple(spread)]


def _run_in(panel: Panel, setting: str) -> list[Mapping[str, Mapping[str, Any]]]:
    return [cells for cells in panel.curves.values() if setting in cells]


def _drawn(row: Mapping[str, Any] | None, column: str) -> float:
    """A number to draw; NaN where there is none, or where it stands for a failed run."""
    found = value(row, column)
    return found if isfinite(found) else nan


def _look(panel: Panel) -> dict[str, str]:
    """A colour per curve; black is the default."""
    changed = [name for name in panel.curves if not name.endswith("(default)")]
    return dict.fromkeys(panel.curves, "#000000") | colours(changed)


def _draw_radar(axes: PolarAxes, panel: Panel) -> None:
    settings, look = panel.settings, _look(panel)
    angles = np.arange(len(settings)) * 2 * pi / len(settings)
    curves = {
        name: np.array([_drawn(cells.get(s), "dsc_median") for s in settings])
        for name, cells in panel.curves.items()
    }
    drawn = [v for curve in curves.values() for v in curve if v == v]
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    low, high = _scale(drawn)
    axes.set_ylim(low, high)
    axes.set_xticks(angles, [""] * len(settings))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_rlabel_position(180 / len(settings))
    axes.tick_params(labelsize=7.5, labelcolor=GREY)
    axes.grid(color="#dcdcdc", linewidth=0.8)
    axes.spines["polar"].set_color("#dcdcdc")
    for angle, setting in zip(angles, settings, strict=True):
        across = float(np.sin(angle))
        side = "center" if abs(across) < 0.2 else "left" if across > 0 else "right"
        level = float(np.cos(angle))
        height = "center" if abs(level) < 0.8 else "bottom" if level > 0 else "top"
        axes.text(
            angle, high + 0.05 * (high - low), literal(panel.block.settings[setting], 18),
            ha=side, va=height, fontsize=8.5,
        )  # fmt: skip
    for name, curve in curves.items():
        axes.plot(
            np.append(angles, angles[0]), np.append(curve, curve[0]), color=look[name],
            linewidth=1.6, marker="o", markersize=3.5, alpha=0.85, gid=name,
        )  # fmt: skip
    lacking = sum(int(np.isnan(curve).sum()) for curve in curves.values())
    said = f"Radius: median DSC [%]. The centre is at {low:g}, not at 0."
    _explain(axes, look, said, lacking)


def _scale(drawn: Sequence[float]) -> tuple[float, float]:
    """Whole numbers around the values, with room towards the centre."""
    if not drawn:
        return 0, 100
    room = max(1.0, 0.35 * (max(drawn) - min(drawn)))
    return max(0, floor(min(drawn) - room)), min(100, ceil(max(drawn) + 0.1 * room))


def _draw_ranges(axes: Axes, panel: Panel) -> None:
    plain(axes)
    look, lacking = _look(panel), 0
    count = len(panel.curves)
    for place, setting in enumerate(panel.settings):
        for at, (name, cells) in enumerate(panel.curves.items()):
            row = cells.get(setting)
            middle = _drawn(row, "dsc_median")
            lacking += middle != middle
            x = place + (at - (count - 1) / 2) * 0.7 / count
            low, high = _drawn(row, "dsc_minimum"), _drawn(row, "dsc_maximum")
            axes.vlines(x, low, high, color=look[name], linewidth=2.2, alpha=0.45)
            axes.plot(x, middle, "o", color=look[name], markersize=6, gid=name)
    names = [literal(panel.block.settings[s], 24) for s in panel.settings]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylabel("DSC [%]", fontsize=9)
    _explain(axes, look, _RANGES, lacking)


def _explain(axes: Axes, look: Mapping[str, str], said: str, lacking: int) -> None:
    if lacking:
        said += f"\nNot drawn, as not run or failed: {lacking}."
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4, label=literal(name, 46))
        for name, colour in look.items()
    ]
    longest = max(map(len, look))
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.09), frameon=False,
        fontsize=8.5, ncols=2 if longest < 34 else 1, title=said, title_fontsize=8,
    )  # fmt: skip
