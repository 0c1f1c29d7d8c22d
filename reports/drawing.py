"""What figures share: colours, plain axes, and files that are the same for the same data."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Final

import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from reports.render import write_file
from results.text import one_line

TOGETHER: Final = 8
"""As many methods are told apart in one panel."""
GREY: Final = "#5a5a5a"
_DISTINCT: Final = (
    *("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B", "#332288"),
    *("#56B4E9", "#882255", "#117733", "#808080", "#E2588D", "#6B4C2A"),
    *("#999933", "#B2182B", "#44AA99", "#6A3D9A", "#DDCC77", "#1F3A5F"),
    *("#7FBC41", "#CC6677", "#F0A30A", "#000000", "#88CCEE", "#C49C94"),
)
"""The first dozen is told apart by colour-blind eyes too (after Okabe and Ito; Tol)."""

_FORMATS: Final[dict[str, dict[str, None]]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
"""What each would otherwise say of the moment or of the machine."""

_LEGEND_COLUMNS: Final = 5
_LEGEND_WIDTH: Final = 44
_LEGEND_SIGN: Final = 8
"""Letters that the sign of an entry and its margins take."""

_LETTER_INCHES: Final = 0.078

_LEGEND_LINES: Final = 2
"""That a figure has room for as it is."""

_LINE_INCHES: Final = 0.26


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label."""
    if len(labels) <= len(_DISTINCT):
        return dict(zip(labels, _DISTINCT, strict=False))
    wheel = colormaps["turbo"]
    return {label: to_hex(wheel(i / (len(labels) - 1))) for i, label in enumerate(labels)}


def plain(axes: Axes) -> None:
    """Only the lines that carry something."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor="black", labelsize=9)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def literal(text: str, width: int) -> str:
    """Text that is drawn as it is: no mathematics, wrapped at `width` characters."""
    return "\n".join(_Wrapper(width).wrap(one_line(text))).replace("$", r"\$")


class _Wrapper(textwrap.TextWrapper):
    """Breaks names of hyperparameters where they have parts."""

    wordsep_re = re.compile(r"(\s+|[^\s_=,-]+[_=,-]+)")


def blank(message: str) -> Figure:
    """A figure that says why it is empty."""
    figure = Figure(figsize=(6, 2), layout="constrained")
    figure.text(0.5, 0.5, literal(message, 60), ha="center", va="center", color=GREY)
    return figure


def footnote(figure: Figure, *lines: str) -> None:
    """Small lines below a figure, as wide as it; empty ones are left out."""
    letters = int(15 * figure.get_figwidth())
    text = "\n".join(literal(line, letters) for line in lines if line)
    figure.supxlabel(text, fontsize=8, color=GREY, x=0.01, ha="left")


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend above the panels, in as many columns as the width of the figure has room for.

    A long one makes the figure taller: panels lose nothing to it.
    """
    labels = [literal(str(handle.get_label()), _LEGEND_WIDTH) for handle in handles]
    longest = max((len(line) for label in labels for line in label.splitlines()), default=0)
    room = int(figure.get_figwidth() / ((longest + _LEGEND_SIGN) * _LETTER_INCHES))
    columns = min(max(1, room), _LEGEND_COLUMNS, len(handles))
    rows = ceil(len(handles) / columns)
    lines = ceil(sum(label.count("\n") + 1 for label in labels) / columns)
    taller = max(0, lines - _LEGEND_LINES) * _LINE_INCHES
    figure.set_figheight(figure.get_figheight() + taller)
    figure.legend(
        handles=list(handles),
        # A leading underscore would hide the entry.
        labels=[f" {label}" if label.startswith("_") else label for label in labels],
        loc="outside upper left",
        ncols=ceil(len(handles) / rows),
        frameon=False,
        fontsize=9,
    )


def in_rows(values: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Setting, title and values of each row of a figure, of at most `TOGETHER` methods.

    Args:
        values: with `setting` and `label`, in the order that they are drawn in.
    """
    for setting, group in values.groupby("setting", sort=False):
        labels = list(dict.fromkeys(group["label"]))
        several = ceil(len(labels) / TOGETHER)
        for part in range(several):
            first, end = (len(labels) * n // several for n in (part, part + 1))
            which = f"; {first + 1} to {end} of {len(labels)} methods" if several > 1 else ""
            own = group[group["label"].isin(labels[first:end])]
            yield str(setting), f"{setting}{which}", own


def write_figure(figure: Figure, out: Path, stem: str) -> list[Path]:
    """Write `<stem>.png` (200 dpi), `.pdf` and `.svg`; equal figures give equal bytes."""
    paths = []
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for artist in figure.findobj(lambda artist: artist.get_gid() is not None):
        # They are no unique names, which an SVG file needs.
        artist.set_gid(None)
    for suffix, metadata in _FORMATS.items():
        content = io.BytesIO()
        with rc_context({"svg.hashsalt": stem}):
            figure.savefig(content, format=suffix, dpi=200, metadata=metadata)
        paths.append(write_file(out / f"{stem}.{suffix}", content.getvalue()))
    return paths
