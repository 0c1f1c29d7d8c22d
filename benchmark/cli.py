"""The command line: parse, resolve names, call, print. No logic."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from results.errors import UserError

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Benchmark semi-supervised 3D medical image segmentation: several seeds, every
    checkpoint evaluated on whole volumes, every per-case number kept, protocols derived afterwards.

    Start with [bold]bench run --method supervised --method mt --seeds 2[/] (an embedded dataset,
    minutes on a CPU), then [bold]bench report --protocol last[/].""",
)
list_app = typer.Typer(no_args_is_help=True, help="What there is: methods, datasets, rules ...")
data_app = typer.Typer(no_args_is_help=True, help="Prepare and check datasets.")
app.add_typer(list_app, name="list")
app.add_typer(data_app, name="data")

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


class Display(StrEnum):
    """How progress is shown."""

    AUTO = "auto"
    BARS = "bars"
    LINES = "lines"
    NONE = "none"


@app.command()
def run(
    method: Annotated[
        list[str], typer.Option("--method", "-m", help="Method name; give several times.")
    ],
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", "-d", help="Dataset name, or a Decathlon folder. [phantom]"),
    ] = None,
    ratio: Annotated[
        list[float] | None, typer.Option(help="Share of training volumes labelled. [0.1]")
    ] = None,
    labelled: Annotated[
        list[int] | None, typer.Option(help="Number of labelled volumes, instead of --ratio.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="How many (5), or which (0,1,7).")] = "5",
    profile: Annotated[
        str | None,
        typer.Option(help="paper, mini, demo or smoke; see `bench list profiles`. [paper; demo]"),
    ] = None,
    recipe: Annotated[str, typer.Option(help="common, or a method's own: authors.")] = "common",
    predictors: Annotated[
        str, typer.Option(help="Which segmentations to evaluate: main, all, or names with commas.")
    ] = "main",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="tcseg.tau=0.05, profile.steps=500, recipe.learning_rate=0.02"),
    ] = None,
    store: StoreOption = Path("runs"),
    data: DataOption = Path("data"),
    plugin: PluginOption = None,
    executor: Annotated[str, typer.Option(help="Where runs are worked on.")] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once. [one a GPU, or one a core]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads a run. [cores / jobs]")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Forget failed runs of this grid, try again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would run, how long, how much disk.")
    ] = False,
    progress: Annotated[Display, typer.Option(help="Bars on a terminal, else JSON lines.")] = (
        Display.AUTO
    ),
) -> None:
    """Train methods on settings over seeds, evaluate, and keep every number.

    Interrupt it as you like: the same command continues where it was and does nothing twice.

    [bold]bench run -m tcseg -m mt -d la --ratio 0.1 --seeds 5 --profile mini[/]
    """
    from benchmark import commands
    from benchmark.commands import Plan

    plan = Plan.make(
        methods=method,
        sources=dataset or ["phantom"],
        ratios=ratio or ([] if labelled else [0.1]),
        labelled=labelled or [],
        seeds=seeds,
        profile=profile,
        recipe=recipe,
        predictors=predictors,
        settings=settings or [],
        store=store,
        data=data,
        plugins=plugin or [],
        executor=executor,
        jobs=jobs,
        threads=threads,
    )
    if progress is Display.AUTO:
        progress = Display.BARS if out.is_terminal else Display.LINES
    commands.prepare_folders(plan, out if out.is_terminal else err)
    if dry_run:
        commands.show_plan(plan, out)
        return
    commands.refuse_endless(plan)
    raise typer.Exit(commands.run(plan, progress.value, out, retry_failed=retry_failed))


@app.command()
def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Which reports; see `bench list reports`. [the standard ones]"),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="How one checkpoint a run is chosen: last, best ...")
    ] = "last",
    store: StoreOption = Path("runs"),
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files. [STORE/reports]")
    ] = None,
    empty: Annotated[
        str, typer.Option(help="What an empty mask counts: tcseg, worst, exclude or zero.")
    ] = "tcseg",
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Count unfinished runs too, with their evaluations so far."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of resampling, for intervals.")] = 0,
    case: Annotated[
        list[str] | None, typer.Option(help="A case to show; give several times.")
    ] = None,
) -> None:
    """Derive a protocol from the stored numbers: tables (Markdown, CSV, LaTeX) and figures.

    [bold]bench report --protocol "best(split=val)"[/] makes the standard ones.
    """
    from reports.facts import Options
    from reports.report import write_report

    written = write_report(
        store,
        protocol,
        to or store / "reports",
        empty=empty,
        partial=partial,
        names=names or [],
        options=Options(seed, tuple(case or ())),
    )
    for table in written.tables:
        out.print(table)
    for path in written.paths:
        err.print(f"[dim]wrote {path}")


@app.command()
def status(
    store: StoreOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """How far every run of a store is."""
    from benchmark.status import rows

    found = rows(store)
    if as_json:
        for row in found:
            sys.stdout.write(json.dumps(row) + "\n")
        return
    columns = ("run", "state", "step", "evaluations", "time", "note")
    _print_table(columns, [[str(row[c]) for c in columns] for row in found])


@app.command()
def doctor(store: StoreOption = Path("runs"), data: DataOption = Path("data")) -> None:
    """Look at this machine, its libraries, the data and the store; say what is wrong with them."""
    from benchmark.doctor import examine

    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}
    findings = examine(store, data)
    for finding in findings:
        said = escape(f"{finding.subject}: {finding.text}")
        out.print(f"{marks[finding.state]:>4}  {said}", highlight=False)
    raise typer.Exit(int(any(f.state == "bad" for f in findings)))


@app.command("test-method")
def test_method(
    plugin: Annotated[Path, typer.Argument(help="Python file with a method of your own.")],
) -> None:
    """Put a method of your own through the contract that every built-in method passes."""
    from benchmark import commands

    raise typer.Exit(commands.test_method(plugin, out))


@list_app.command("methods")
def list_methods(plugin: PluginOption = None) -> None:
    """Methods that can be trained."""
    from benchmark.plugins import available, installed

    known = available(plugin or [])
    _print_table(
        ["name", "title", "paper", "follows", "recipes"],
        [
            [m.name, m.title, m.paper, str(m.fidelity), "common" + ", authors" * bool(m.authors)]
            for m in known.values()
        ],
    )
    for name, where in installed().items():
        out.print(f"{name}: installed entry point {where}", highlight=False)


@list_app.command("datasets")
def list_datasets() -> None:
    """Datasets known by name."""
    from benchmark.data import SOURCES

    _print_table(
        ["name", "title", "modality", "structure", "distances in", "licence"],
        [
            [c.name, c.title, c.modality, c.structure, c.unit, c.licence]
            for c in (s.card for s in SOURCES.values())
        ],
    )
    out.print("Or give a folder in the Medical Segmentation Decathlon layout as --dataset.")


@list_app.command("rules")
def list_rules() -> None:
    """Rules that choose a checkpoint, for --protocol."""
    from protocols.rules import RULES

    _print_table(
        ["name", "what it chooses"],
        [[name, (rule.__doc__ or "").strip().splitlines()[0]] for name, rule in RULES.items()],
    )


@list_app.command("reports")
def list_reports() -> None:
    """Reports that can be made of a store."""
    from reports import REPORTS

    _print_table(
        ["name", "what it shows", ""],
        [[n, r.meaning, "standard" if r.standard else ""] for n, r in REPORTS.items()],
    )


@list_app.command("profiles")
def list_profiles() -> None:
    """Profiles: how large the world of a run is."""
    from benchmark.profiles import PROFILES

    _print_table(
        ["name", "filters", "steps", "evaluations", "purpose"],
        [
            [p.name, str(p.width), f"{p.steps:,}", str(len(p.evaluated(p.steps))), p.purpose]
            for p in PROFILES.values()
        ],
    )


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="Dataset name, or a Decathlon folder.")],
    source: Annotated[
        Path | None, typer.Option(help="Folder with the downloaded files, for a named dataset.")
    ] = None,
    data: DataOption = Path("data"),
) -> None:
    """Check a download and convert it into the fast local form; a second time does nothing."""
    from benchmark.commands import prepare

    prepare(name, source, data, out)


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="Dataset name, or a Decathlon folder.")],
    data: DataOption = Path("data"),
) -> None:
    """Read every voxel of a prepared dataset, and say what is wrong or worth knowing."""
    from benchmark.commands import summary_of
    from benchmark.data import open_dataset
    from benchmark.data.prepared import check_prepared

    dataset = open_dataset(name, data)
    findings = check_prepared(dataset)
    for finding in findings:
        colour = "red" if finding.severity == "error" else "yellow"
        out.print(
            f"[{colour}]{finding.severity}[/] {escape(f'{finding.subject}: {finding.text}')}",
            highlight=False,
        )
    out.print(escape(summary_of(dataset)), highlight=False)
    raise typer.Exit(int(any(f.severity == "error" for f in findings)))


@data_app.command("list")
def data_list(data: DataOption = Path("data")) -> None:
    """Where each dataset stands, and how to get what is missing."""
    from benchmark.commands import data_states

    states = data_states(data)
    _print_table(
        ["dataset", "state", "train", "val", "test", "fingerprint"], [s.cells for s in states]
    )
    for state in states:
        if state.advice:
            out.print(f"\n[bold]{state.name}[/]: {escape(state.advice)}", highlight=False)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def main() -> None:
    """Run the command line; what a user can mend is one line of text and exit code 2."""
    try:
        app()
    except UserError as error:
        err.print(f"[bold red]error[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
