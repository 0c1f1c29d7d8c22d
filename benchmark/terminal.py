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


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a head; long cells are folded, but for the first of a row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(escape(one_line(cell)) for cell in row))
    out.print(table)
