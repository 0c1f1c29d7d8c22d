"""The sub-commands of `bench data`: prepare and check datasets, and say where they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from benchmark.terminal import DataOption, out, print_table

app = typer.Typer(no_args_is_help=True, help="Prepare and check datasets.")


@app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="Dataset name, or a Decathlon folder.")],
    source: Annotated[
        Path | None, typer.Option(help="Folder with the downloaded files, for a named dataset.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Another split: a name such as coranet, or FILE.json. (the canonical)"),
    ] = None,
    data: DataOption = Path("data"),
) -> None:
    """Check a download and convert it into the fast local form; a second time does nothing."""
    from benchmark.commands_data import prepare

    prepare(name, source, data, out, split)


@app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="Dataset name, or a Decathlon folder.")],
    data: DataOption = Path("data"),
) -> None:
    """Read every voxel of a prepared dataset, and say what is wrong or worth knowing.

    Scans and labels that occur twice, nearly identical images and repeated patients are named,
    and what each leaks: from training to test, or from labelled to unlabelled cases.
    """
    from benchmark.commands_data import check_data

    raise typer.Exit(check_data(name, data, out))


@app.command("floor")
def data_floor(
    name: Annotated[str, typer.Argument(help="Dataset name, or a Decathlon folder.")],
    labelled: Annotated[
        list[int] | None,
        typer.Option(help="Number of labelled volumes; several times. (10 %, 20 % and all)"),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Add it to this store, in every setting that has runs of the dataset."),
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Write the cases as CSV.")] = None,
    data: DataOption = Path("data"),
) -> None:
    """What a predictor scores that never looks at an image: the mean label of the labelled cases.

    Where volumes are cropped around the truth it scores much; whatever a method adds is above this.
    With --store it becomes a run `atlas`, and every report prints it beside the methods.
    """
    from benchmark.commands_data import show_floor

    show_floor(name, labelled or [], store, to, data, out)


@app.command("list")
def data_list(data: DataOption = Path("data")) -> None:
    """Where each dataset stands, how to get it, and what a reader of its numbers must know."""
    from benchmark.commands_data import data_states

    states = data_states(data)
    print_table(
        ["dataset", "state", "train", "val", "test", "fingerprint"], [s.cells for s in states]
    )
    for state in states:
        said = "" if state.cells[1] == "missing" else escape(state.advice)  # the card says it
        out.print(f"\n[bold]{escape(state.name)}[/] {said}", highlight=False)
        card = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 2))
        for what, text in state.card:
            card.add_row(what, escape(text))
        out.print(card)
