"""What figures share: colours, plain axes, and files that are the same for the same data."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from reports.render import one_line, write_file

GREY: Final = "#5a5a5a"
_DISTINCT: Final = (
    *("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B", "#332288"),
    *("#56B4E9", "#882255", "#117733", "#808080", "#E2588D", "#6B4C2A"),
)
"""Told apart by colour-blind eyes too (after Okabe and Ito; Tol)."""


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
    return "\n".join(textwrap.wrap(one_line(text), width)).replace("$", r"\$")


def blank(message: str) -> Figure:
    """A figure that says why it is empty."""
    figure = Figure(figsize=(6, 2), layout="constrained")
    figure.text(0.5, 0.5, literal(message, 60), ha="center", va="center", color=GREY)
    return figure


def write_figure(figure: Figure, out: Path, stem: str) -> list[Path]:
    """Write `<stem>.png` (200 dpi) and `<stem>.pdf`; equal figures give equal bytes."""
    paths = []
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        content = io.BytesIO()
        figure.savefig(content, format=suffix, dpi=200, metadata=metadata)
        paths.append(write_file(out / f"{stem}.{suffix}", content.getvalue()))
    return paths
