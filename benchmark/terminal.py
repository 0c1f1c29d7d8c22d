"""What the files of the command line share: options, the two streams, and tables on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from results.text import one_line

out = Console()
err = Console(stderr=True)

StoreOption = Annotated[
    Path, typer.Option("--store", envvar="BENCH_STORE", help="Folder that results are kept in.")
]
DataOption = Annotated[
    Path, typer.Option("--data", envvar="BENCH_DATA", help="Folder that prepared data lie in.")
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="A Python file with methods of your own. Its code is run."),
]

_SHORT = 12


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a head; long cells are folded, but for the first of a row.

    Where the terminal is wide enough for that, short words stay whole.
    """
    first, *others = zip(head, *rows, strict=True)
    widths = [max(len(cell) for cell in first), *(_shortest(cells) for cells in others)]
    fits = sum(widths) + len(widths) - 1 <= out.width
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for place, (name, width) in enumerate(zip(head, widths, strict=True)):
        table.add_column(
            name, overflow="fold", no_wrap=place == 0, min_width=width if fits else None
        )
    for row in rows:
        table.add_row(*(escape(one_line(cell)) for cell in row))
    out.print(table)


def _shortest(cells: Sequence[str]) -> int:
    """Width of a column that breaks no short word."""
    words = (len(word) for cell in cells for word in cell.split())
    return max((n for n in words if n <= _SHORT), default=1)
