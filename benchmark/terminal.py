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
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    widths = _widths(list(zip(head, *rows, strict=True)), out.width)
    for place, (name, width) in enumerate(zip(head, widths, strict=True)):
        table.add_column(name, overflow="fold", no_wrap=place == 0, width=width)
    for row in rows:
        table.add_row(*(escape(one_line(cell)) for cell in row))
    out.print(table)


def _widths(columns: Sequence[Sequence[str]], width: int) -> list[int] | list[None]:
    """Of columns, with a space between two: short words whole, the rest to the longest cells.

    None of each, which leaves it to the table, where they do not fit.
    """
    longest = [max(map(len, cells)) for cells in columns]
    words = [[len(w) for cell in cells for w in cell.split()] for cells in columns]
    least = [max((n for n in lengths if n <= _SHORT), default=1) for lengths in words]
    found = [longest[0], *least[1:]]
    free = width - sum(found) - len(found)
    if free < 0:
        return [None] * len(columns)
    for _ in range(min(free, sum(longest) - sum(found))):
        place = max(range(len(found)), key=lambda i: longest[i] - found[i])
        found[place] += 1
    return found
