"""The command line: parse, resolve names, call, print. No logic."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from benchmark import cli_data, cli_list
from benchmark.terminal import DataOption, PluginOption, StoreOption, err, out, print_table
from results.errors import UserError
from results.schema import Component, Keep, Stratum, Unit

if TYPE_CHECKING:
    from reports.scan import Scan

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
app.add_typer(cli_list.app, name="list")
app.add_typer(cli_data.app, name="data")


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
        typer.Option(
            "--dataset", "-d", help="Dataset name, or a Decathlon folder. (default: phantom)"
        ),
    ] = None,
    ratio: Annotated[
        list[float] | None, typer.Option(help="Share of training volumes labelled. (default: 0.1)")
    ] = None,
    labelled: Annotated[
        list[int] | None, typer.Option(help="Number of labelled volumes, instead of --ratio.")
    ] = None,
    seeds: Annotated[
        list[str] | None, typer.Option(help="How many (5), or which (0,1,7). (default: 5)")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="paper, mini, demo or smoke; see `bench list profiles`. (default: paper; demo)"
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="common, or a method's own: authors.")] = "common",
    predictors: Annotated[
        str, typer.Option(help="Which segmentations to evaluate: main, all, or names with commas.")
    ] = "main",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="tcseg.tau=0.05, profile.steps=500, recipe.learning_rate=0.02, slurm.time=120",
        ),
    ] = None,
    store: StoreOption = Path("runs"),
    data: DataOption = Path("data"),
    plugin: PluginOption = None,
    keep_predictions: Annotated[
        Keep, typer.Option(help="Store the masks too: of the last evaluation, or of all of them.")
    ] = Keep.NONE,
    executor: Annotated[
        str,
        typer.Option(
            help="Where runs are worked on: local, inline, slurm, ray; see `bench list executors`."
        ),
    ] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once. (default: one a GPU, or one a core)")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads a run. (default: 1, or cores / --jobs)"),
    ] = None,
    attempts: Annotated[
        int, typer.Option(min=1, help="Deaths of a run in a row before it counts as failed.")
    ] = 3,
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

    if seeds and len(seeds) > 1:
        raise UserError(
            f"--seeds given {len(seeds)} times ({' and '.join(seeds)}): give it once, as a count "
            "(5) or a list (0,1,7)"
        )
    plan = Plan.make(
        methods=method,
        sources=dataset or ["phantom"],
        ratios=ratio or ([] if labelled else [0.1]),
        labelled=labelled or [],
        seeds=(seeds or ["5"])[0],
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
        keep_predictions=keep_predictions,
        attempts=attempts,
    )
    if progress is Display.AUTO:
        progress = Display.BARS if out.is_terminal else Display.LINES
    commands.prepare_folders(plan, out if out.is_terminal else err)
    commands.refuse_unkept(plan)
    if dry_run:
        commands.show_plan(plan, out)
    commands.refuse_endless(plan)
    if dry_run:
        return
    raise typer.Exit(commands.run(plan, progress.value, out, retry_failed=retry_failed))


@app.command()
def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which, as table4 or costs; see `bench list reports`. (default: standard ones)"
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="How one checkpoint a run is chosen: last, best ...")
    ] = "last",
    store: StoreOption = Path("runs"),
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files. (default: STORE/reports)")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="Only these; several times. (all in the store)"),
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
    cases: Annotated[
        Stratum, typer.Option(help="Which test cases count: all, or those not linked to training.")
    ] = Stratum.ALL,
    data: DataOption = Path("data"),
) -> None:
    """Derive a protocol from the stored numbers: tables (Markdown, CSV, LaTeX) and figures.

    [bold]bench report --protocol "best(split=val)"[/] makes the standard ones.
    """
    from reports.facts import Options
    from reports.report import write_report

    def scan(dataset: Mapping[str, Any], name: str) -> Scan:
        from benchmark.scans import load_scan  # imports torch, which most reports do without

        return load_scan(data, dataset, name)

    def linked(dataset: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]] | None:
        from benchmark.scans import load_linked

        return load_linked(data, dataset)

    written = write_report(
        store,
        protocol,
        to or store / "reports",
        empty=empty,
        partial=partial,
        names=names or [],
        options=Options(seed, tuple(case or ()), scan, cases, linked, tuple(method or ())),
    )
    for table in written.tables:
        out.print(table)
    if not written.summary["finished"].any():
        err.print(f"[yellow]no run of {escape(str(store))} has finished yet: see bench status")
    for path in written.paths:
        err.print(f"[dim]wrote {path}")


@app.command()
def check(
    baseline: Annotated[
        Path | None, typer.Argument(help="A baseline: TOML, as --write makes it.")
    ] = None,
    store: StoreOption = Path("runs"),
    junit: Annotated[
        Path | None, typer.Option(help="Write a JUnit file, for a CI service.")
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(help="Append a Markdown summary, as to $GITHUB_STEP_SUMMARY."),
    ] = None,
    control: Annotated[
        bool,
        typer.Option(
            "--control", help="Check deliberately wrong targets instead; must exit with 3."
        ),
    ] = False,
    write: Annotated[
        Path | None, typer.Option(help="Make a baseline from the store instead of checking one.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="With --write: last, best ... (last)")
    ] = None,
    empty: Annotated[
        str | None, typer.Option(help="With --write: what an empty mask counts. (tcseg)")
    ] = None,
    statistic: Annotated[
        str | None,
        typer.Option(help="With --write, over runs: mean, or median (needs 5 runs). (mean)"),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="With --write: dsc, asd, hd95; several times. (dsc)")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="With --write: DSC points, or units of distance. (from the runs)"),
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option(help="With --write: equal, or at-least (better is no regression). (equal)"),
    ] = None,
) -> None:
    """Do the runs of a store still give the numbers that were reported? For CI.

    [bold]bench check --write baseline.toml --store runs[/] makes a baseline;
    [bold]bench check baseline.toml --store new --junit check.xml[/] holds other runs against it.

    An equivalence test over runs (two one-sided tests at 5 %), so that too few runs never pass.
    Exit codes, the worst of all targets deciding:

      [bold]0[/] reproduced: the interval of the runs lies within the margin of every target

      [bold]4[/] inconclusive: neither shown; more runs, or a wider margin, would tell

      [bold]3[/] regressed: an interval lies beyond the margin, or significantly more runs failed

      [bold]5[/] nothing measured: no finished run of a target, as after a crash

      [bold]2[/] bad input

    Every check also tests a wrong target, which must come out regressed; else nothing passes.
    """
    from benchmark import checking

    choices: dict[str, Any] = {
        "protocol": protocol,
        "empty": empty,
        "statistic": statistic,
        "metric": metric,
        "margin": margin,
        "direction": direction,
    }
    given = {name: value for name, value in choices.items() if value is not None}
    if write is not None and baseline is None:
        if control or junit or summary:
            raise UserError("--write only makes a baseline; check it with another command")
        made, left_out = checking.write_baseline(store, write, **given)
        for text in left_out:
            err.print(f"[yellow]left out[/] {escape(text)}", highlight=False, soft_wrap=True)
        out.print(f"wrote {len(made.targets)} target(s) to {write}", markup=False, highlight=False)
    elif baseline is not None and write is None:
        if given:
            raise UserError(f"--{min(given)} goes with --write: a baseline has its own")
        found = checking.check_files(baseline, store, control=control, junit=junit, summary=summary)
        out.print(found.table)
        raise typer.Exit(found.exit_code)
    else:
        raise UserError("give either a baseline to check, or --write PATH to make one")


@app.command()
def plan(
    detect: Annotated[
        float, typer.Option(help="Difference to find: DSC points, or units of a distance.")
    ],
    store: StoreOption = Path("runs"),
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Only these. (all in the store)")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", "-d", help="Only these. (all in the store)")
    ] = None,
    labelled: Annotated[
        list[int] | None, typer.Option(help="Only these numbers of volumes. (all in the store)")
    ] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Only these. (all in the store)")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the grid whose cost is told.")] = 5,
    metric: Annotated[str, typer.Option(help="dsc, asd or hd95.")] = "dsc",
    protocol: Annotated[str, typer.Option(help="How one checkpoint a run is chosen.")] = "last",
    empty: Annotated[str, typer.Option(help="What an empty mask counts.")] = "tcseg",
    sd: Annotated[
        float | None, typer.Option(help="SD over the runs of a method, instead of the store's.")
    ] = None,
    power: Annotated[float, typer.Option(help="Probability to find the difference.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Level of the two-sided t-test.")] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """How many seeds show a difference, what no number of seeds shows, and what a grid costs.

    [bold]bench plan --detect 0.5 --store runs -m mt -m tcseg --seeds 20[/]

    Standard deviations, times and bytes are those measured in the store, never guessed; what it
    lacks is said to be not measured. Without a store: [bold]bench plan --detect 0.5 --sd 0.6[/]
    """
    from benchmark import planning

    made = planning.make(
        store,
        planning.Question(
            detect=detect,
            metric=metric,
            methods=tuple(method or ()),
            datasets=tuple(dataset or ()),
            labelled=tuple(labelled or ()),
            profiles=tuple(profile or ()),
            seeds=seeds,
            protocol=protocol,
            empty=empty,
            sd=sd,
            power=power,
            alpha=alpha,
        ),
    )
    if as_json:
        sys.stdout.write(json.dumps(made.as_json(), indent=1) + "\n")
        return
    for table in made.tables():
        out.print(table)


@app.command()
def audit(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="CSV files, or folders of them. (the packaged published tables)"),
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Write a Markdown summary too.")] = None,
) -> None:
    """Can printed medians, maxima, means and standard deviations be of the same runs?

    [bold]bench audit table.csv[/] needs these columns, in any order:

      method, dataset, labelled

      metric: dsc, asd, hd95 ...

      statistic: median, maximum, minimum, mean, std ...

      value: as printed, with all its decimals

    Columns n (number of runs) and protocol (last, best ...) let it see more.

    Exit codes: 0 nothing is impossible, 1 something is, 2 bad input.
    """
    from protocols.audit import audit as examined
    from reports.audit import impossible, sheets, write_audit
    from reports.render import console
    from results.published import FOLDER, read_tables

    groups = examined(read_tables(paths or [FOLDER]))
    for sheet in sheets(groups):
        out.print(console(sheet))
    if to:
        err.print(f"[dim]wrote {write_audit(groups, to)}")
    raise typer.Exit(int(impossible(groups) > 0))


@app.command()
def rescore(
    to: Annotated[Path, typer.Option("--to", help="Folder of the store that is made.")],
    store: StoreOption = Path("runs"),
    component: Annotated[
        Component, typer.Option(help="Of each prediction: all of it, or the largest component.")
    ] = Component.ALL,
    unit: Annotated[
        Unit, typer.Option(help="Of distances: that of the data, or voxels of the original grid.")
    ] = Unit.DATA,
    data: DataOption = Path("data"),
) -> None:
    """Measure stored predictions again under another policy, into a store of their own.

    [bold]bench rescore --store runs --to largest --component largest[/] needs runs that were made
    with --keep-predictions. Reports of the new store say what was changed, and no table mixes both.
    """
    from benchmark.rescoring import Policy
    from benchmark.rescoring import rescore as measure_again
    from results.store import Store

    if to.resolve() == store.resolve():
        raise UserError("--to is the store itself; name another folder")
    measured = Store.open(store)
    derived = Store.open(to, create=True)
    runs = measure_again(measured, derived, Policy(component, unit), data)
    out.print(f"{len(runs)} runs measured again, in {to}", highlight=False, markup=False)


@app.command()
def status(
    store: StoreOption = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, of every run.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="List finished runs too, however many they are.")
    ] = False,
) -> None:
    """How far every run of a store is."""
    from benchmark.status import few, rows

    found = rows(store)
    if as_json:
        for row in found:
            sys.stdout.write(json.dumps(row) + "\n")
        return
    if not every:
        found, counted = few(found)
    said = [c for c in ("queue", "note") if any(row[c] for row in found)]
    columns = ("run", "state", "step", "evaluations", "time", *said)
    if found:
        head = [c.replace("evaluations", "evals") for c in columns]
        print_table(head, [[str(row[c]) for c in columns] for row in found])
    if not every and counted:
        out.print(f"{counted:,} more runs finished; --all lists them.", highlight=False)


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


def main() -> None:
    """Run the command line; what a user can mend is one line of text and exit code 2."""
    try:
        app()
    except UserError as error:
        err.print(f"[bold red]error[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
