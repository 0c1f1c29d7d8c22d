"""Cases to look at: image, reference and each method's segmentation, in three planes and in 3D.

One run of each method is shown, at the checkpoint that the protocol chooses. It needs stored
predictions (`bench run --keep-predictions`) and the images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from protocols.rules import REPORTED
from reports.drawing import GREY, colours, literal, write_figure
from reports.facts import MAIN, Facts
from reports.scan import Scan
from reports.surface import Camera, coloured, frame, shaded
from reports.table import file_name
from results.errors import UserError
from results.lookup import unknown
from results.predictions import Mask, load_masks

STEM: Final = "slices"
REFERENCE: Final = "#F2C531"
_PLANES: Final = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
"""Axes that run right, up and through each plane."""

_MARGIN: Final = 0.12
_LEAST_MARGIN_VOXELS: Final = 3
_WIDTH_INCHES: Final = 9.0
_MOST_HEIGHT_INCHES: Final = 2.6
_WINDOW: Final = (1.0, 99.0)
"""Percentiles of the image that are black and white."""


@dataclass(frozen=True)
class Segmented:
    """What one method made of a case."""

    label: str
    caption: str
    mask: Mask


@dataclass(frozen=True)
class View:
    """One figure: a case of a setting and what each method made of it."""

    case: str
    title: tuple[str, ...]
    notes: tuple[str, ...]
    scan: Scan
    methods: tuple[Segmented, ...]


def write_slices(facts: Facts, out: Path) -> list[Path]:
    """Write a figure `slices-<rule>-<n>-<case>` for each case of each setting; return the paths.

    Raises:
        UserError: no predictions are kept, not of the chosen checkpoints, or they are damaged; an
            unknown case; images that are missing or do not fit.
    """
    paths = []
    stem = f"{STEM}-{file_name(facts.rule.expression)}"
    for number, view in enumerate(views(facts), start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", view.case.lower()).strip("-")[:60]
        paths += write_figure(draw(view), out, f"{stem}-{number}-{slug}".rstrip("-"))
    return paths


def shown_runs(facts: Facts) -> pd.DataFrame:
    """The run of each method to look at: of those that keep predictions the median one.

    Returns:
        One row per method and setting: setting, label, started, kept (runs that keep
        predictions), and of the median run by DSC (of two the lower): run, seed, spec, step,
        averaged, predictor (of several the one that the protocol picked); `run` is empty where
        none keeps predictions.
    """
    keys = ["setting", "label", "started"]
    chosen = ["run", "seed", "spec", "step", "averaged", "picked"]
    names = facts.summary[facts.summary["predictor"] == MAIN]
    runs = facts.outcomes(facts.rule)
    runs = runs[(runs["predictor"] == MAIN) & (runs["state"] == "finished")]
    runs = runs[runs["run"].map(lambda run: facts.store.has("predictions", run)).astype(bool)]
    rows = []
    for identity, *name in names[["identity", *keys]].itertuples(index=False):
        own = runs[runs["identity"] == identity].sort_values(["dsc", "seed"])
        if own.empty:
            rows.append([*name, 0, "", -1, "", -1, 0, ""])
        else:
            median = own.iloc[(len(own) - 1) // 2]
            rows.append([*name, len(own), *(median[c] for c in chosen)])
    found = pd.DataFrame(rows, columns=[*keys, "kept", *chosen])
    return found.rename(columns={"picked": "predictor"})


def choose_cases(scores: pd.DataFrame) -> dict[str, str]:
    """The cases with the best, the median and the worst DSC, each a mean over methods.

    Args:
        scores: case, dsc; a row per case and method.

    Returns:
        Why it was chosen, by case; fewer than three where there are fewer cases.
    """
    means = scores.groupby("case", observed=True)["dsc"].mean().dropna()
    order = sorted(means.index, key=lambda case: (means[case], case))
    places = {"best": -1, "median": (len(order) - 1) // 2, "worst": 0}
    chosen: dict[str, str] = {}
    for word, place in places.items() if order else ():
        chosen.setdefault(
            order[place], f"{word} of {len(order)} test cases by mean DSC over methods"
        )
    return chosen


def views(facts: Facts) -> Iterable[View]:
    """The figures to draw, one after another: a setting's cases need not be in memory at once.

    Raises:
        UserError: as `write_slices`.
    """
    runs = shown_runs(facts)
    with_masks = runs[runs["run"] != ""]
    if with_masks.empty:
        raise UserError(
            f"no finished run in {facts.store.path} keeps predictions, which report slices draws: "
            "train into another store with `bench run --keep-predictions last` (`all` for other "
            "protocols than last; the numbers will be the same)"
        )
    scored = facts.scored[facts.scored["split"] == REPORTED]
    scored = scored.astype({"run": object, "case": object, "predictor": object})
    keys = ["run", "step", "predictor"]
    scores = scored.merge(with_masks[["setting", "label", *keys]], on=keys)
    strange = sorted(set(facts.options.cases) - set(scores["case"]))
    if strange:
        raise unknown("test case", strange[0], set(scores["case"]))
    elsewhere = _elsewhere(facts.options.cases, scores)
    for setting, group in with_masks.groupby("setting", sort=False):
        own = scores[scores["setting"] == setting]
        cases = choose_cases(own)
        if facts.options.cases:
            cases = {case: "" for case in facts.options.cases if case in set(own["case"])}
        notes = (*_notes(facts, runs[runs["setting"] == setting]), *elsewhere)
        shown = group.to_dict("records")
        masks = {
            row["run"]: load_masks(
                facts.store, row["run"], row["step"], row["predictor"], list(cases)
            )
            for row in shown
        }
        for case, why in cases.items():
            dsc = own[own["case"] == case].set_index("run")["dsc"]
            scan = _scan(facts, json.loads(group["spec"].iloc[0])["dataset"], case)
            found = tuple(
                Segmented(
                    label=row["label"],
                    caption=_caption(row, dsc[row["run"]]),
                    mask=_fitting(masks[row["run"]][case], scan, row["run"], case),
                )
                for row in shown
            )
            title = (f"{case}: {why}" if why else case, str(setting))
            yield View(case, title, notes, scan, found)


def draw(view: View) -> Figure:
    """A row per method under one of the reference; three planes and a surface in each."""
    spacing = view.scan.spacing
    masks = [view.scan.label, *(m.mask for m in view.methods)]
    union = np.logical_or.reduce(masks)
    box = _box(union)
    mm = [(part.stop - part.start) * size for part, size in zip(box, spacing, strict=True)]
    # Panels of equal height; the surface is a square.
    widths = [*(mm[right] / mm[up] for right, up, _ in _PLANES), 1.0]
    height = min(_WIDTH_INCHES / sum(widths), _MOST_HEIGHT_INCHES)
    rows = len(masks)
    size = (height * sum(widths) + 0.8, rows * (height + 0.08) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False, width_ratios=widths)
    palette = colours(sorted(m.label for m in view.methods))
    places = [_largest_section(view.scan.label, axis) for axis in range(3)]
    black, white = np.percentile(view.scan.image[box], _WINDOW)
    camera = frame(union, spacing)
    for row, mask in enumerate(masks):
        method = view.methods[row - 1] if row else None
        colour = palette[method.label] if method else REFERENCE
        text = f"{method.label}\n{method.caption}" if method else "reference"
        for axes, (right, up, through) in zip(grid[row], _PLANES, strict=False):
            place = places[through]
            _draw_plane(
                axes, np.take(view.scan.image, place, through), (black, white), box, spacing,
                (right, up),
            )  # fmt: skip
            sections = [(view.scan.label, REFERENCE)] + ([(mask, colour)] if method else [])
            for volume, line in sections:
                _outline(axes, np.take(volume, place, through), spacing, (right, up), line)
            if row == 0:
                names = "xyz"[right], "xyz"[up], "xyz"[through]
                axes.set_title("{}-{} plane, {} = {}".format(*names, place), fontsize=8)
        grid[row, 0].set_ylabel(_lines(text), fontsize=8.5, color=colour if method else "#8A6D00")
        _draw_surface(grid[row, 3], mask, spacing, colour, camera)
    grid[0, 3].set_title("surface", fontsize=8)
    _explain(figure, view)
    return figure


def _draw_plane(
    axes: Axes,
    image: NDArray[np.float32],
    window: tuple[float, float],
    box: Sequence[slice],
    spacing: Sequence[float],
    plane: tuple[int, int],
) -> None:
    right, up = plane
    size = (image.shape[0] * spacing[right], image.shape[1] * spacing[up])
    axes.imshow(
        image.T, cmap="gray", origin="lower", extent=(0, size[0], 0, size[1]),
        vmin=window[0], vmax=window[1], interpolation="nearest",
    )  # fmt: skip
    axes.set_xlim(box[right].start * spacing[right], box[right].stop * spacing[right])
    axes.set_ylim(box[up].start * spacing[up], box[up].stop * spacing[up])
    axes.set_aspect("equal")
    _bare(axes)


def _outline(
    axes: Axes, section: Mask, spacing: Sequence[float], plane: tuple[int, int], colour: str
) -> None:
    """The border of a section, half-way between the centres of voxels within and without."""
    if not section.any():
        return
    x, y = (
        (np.arange(-1, n + 1) + 0.5) * spacing[axis]
        for n, axis in zip(section.shape, plane, strict=True)
    )
    closed = np.pad(section, 1).astype(np.float64)
    axes.contour(x, y, closed.T, levels=[0.5], colors=[colour], linewidths=1.3)


def _draw_surface(
    axes: Axes, mask: Mask, spacing: Sequence[float], colour: str, camera: Camera
) -> None:
    _bare(axes)
    if mask.any():
        axes.imshow(coloured(shaded(mask, spacing, camera), colour), interpolation="bilinear")
    else:
        axes.text(0.5, 0.5, "empty", ha="center", va="center", color=GREY, fontsize=9,
                  transform=axes.transAxes)  # fmt: skip
        axes.set_aspect("equal")


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _explain(figure: Figure, view: View) -> None:
    letters = int(13 * figure.get_figwidth())
    title = "\n".join(literal(line, letters) for line in view.title)
    figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
    notes = "\n".join(literal(note, int(1.3 * letters)) for note in view.notes)
    figure.supxlabel(notes, fontsize=7.5, color=GREY, x=0.01, ha="left")


def _notes(facts: Facts, runs: pd.DataFrame) -> tuple[str, ...]:
    shown = runs[runs["run"] != ""]
    counts = ", ".join(f"{r.label} {r.kept} of {r.started}" for r in shown.itertuples())
    where = f"Protocol {facts.rule.expression}"
    if shown["averaged"].max() > 1:
        where += " (the last of the checkpoints that it averages)"
    notes = [
        f"{where}. Of each method the run with the median DSC (of two the lower) of those that "
        f"keep predictions ({counts} runs). Yellow: the reference. Planes: where it is largest."
    ]
    without = ", ".join(runs.loc[runs["run"] == "", "label"])
    if without:
        notes.append(f"Not shown, as no finished run of theirs keeps predictions: {without}.")
    return tuple(notes)


def _elsewhere(cases: Sequence[str], scores: pd.DataFrame) -> list[str]:
    """Says which of the cases that are asked for some settings do not have."""
    said = []
    for setting, rows in scores.groupby("setting", sort=False):
        missing = [case for case in cases if case not in set(rows["case"])]
        if missing:
            said.append(f"No test case of {setting}, so not shown for it: {', '.join(missing)}.")
    return said


def _scan(facts: Facts, dataset: dict[str, Any], case: str) -> Scan:
    if facts.options.scan is None:
        raise UserError("report slices needs the images: name the folder of prepared data (--data)")
    return facts.options.scan(dataset, case)


def _fitting(mask: Mask, scan: Scan, run: str, case: str) -> Mask:
    if mask.shape != scan.label.shape:
        raise UserError(
            f"the prediction of run {run} for case {case} has {_size(mask.shape)} voxels, its "
            f"volume {_size(scan.label.shape)}: the store or the data were changed by hand"
        )
    return mask


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _caption(row: Mapping[Hashable, Any], dsc: float) -> str:
    which = "" if row["predictor"] == MAIN else f"{row['predictor']}, "
    score = "undefined" if np.isnan(dsc) else f"{100 * dsc:.1f} %"
    return f"seed {row['seed']}, {which}DSC {score}"


def _lines(text: str) -> str:
    return "\n".join(literal(line, 30) for line in text.split("\n"))


def _box(mask: Mask) -> tuple[slice, slice, slice]:
    """What to show: all foreground with a margin; of an empty mask the whole volume."""
    if not mask.any():
        mask = np.ones_like(mask)
    found = []
    for axis, size in enumerate(mask.shape):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        low, high = int(inside[0]), int(inside[-1]) + 1
        margin = max(_LEAST_MARGIN_VOXELS, round(_MARGIN * (high - low)))
        found.append(slice(max(0, low - margin), min(size, high + margin)))
    x, y, z = found
    return x, y, z


def _largest_section(label: NDArray[np.bool_], axis: int) -> int:
    """Place along an axis where most is foreground; of equal ones the middle."""
    others = tuple(other for other in range(3) if other != axis)
    areas = label.sum(axis=others)
    largest = np.flatnonzero(areas == areas.max())
    return int(largest[len(largest) // 2])
