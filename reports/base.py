"""What a report is: a function from facts to files, and what it shows on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reports.facts import Facts
from reports.render import Sheet


@dataclass(frozen=True)
class Report:
    """One report.

    meaning:  what it shows, a line for `bench list reports`.
    write:    writes its files into a folder and returns their paths; the same facts give the same
              bytes.
    show:     its sheets for a terminal; None for figures.
    standard: whether `bench report` makes it when no report is named.
    """

    meaning: str
    write: Callable[[Facts, Path], list[Path]]
    show: Callable[[Facts], list[Sheet]] | None = None
    standard: bool = False
