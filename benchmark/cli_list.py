"""The sub-commands of `bench list`: what there is, from the registries."""

from __future__ import annotations

import typer
from rich.markup import escape

from benchmark.terminal import PluginOption, out, print_table

app = typer.Typer(no_args_is_help=True, help="What there is: methods, datasets, rules ...")


@app.command("methods")
def list_methods(plugin: PluginOption = None) -> None:
    """Methods that can be trained."""
    from benchmark import catalogue
    from benchmark.plugins import available, installed

    print_table(catalogue.HEAD, catalogue.rows(available(plugin or []).values()))
    for name, where in installed().items():
        out.print(f"{name}: installed entry point {where}", highlight=False)


@app.command("datasets")
def list_datasets() -> None:
    """Datasets known by name."""
    from benchmark.data import SOURCES

    print_table(
        ["name", "title", "modality", "structure", "distances in", "licence"],
        [
            [c.name, c.title, c.modality, c.structure, c.unit, c.licence]
            for c in (s.card for s in SOURCES.values())
        ],
    )
    out.print("Or give a folder in the Medical Segmentation Decathlon layout as --dataset.")


@app.command("rules")
def list_rules() -> None:
    """Rules that choose a checkpoint, for --protocol."""
    from protocols.rules import RULES, signature

    print_table(
        ["name", "what it chooses", "parameters and their defaults"],
        [
            [name, (rule.__doc__ or "").strip().splitlines()[0], signature(rule)]
            for name, rule in RULES.items()
        ],
    )


@app.command("reports")
def list_reports() -> None:
    """Reports that can be made of a store."""
    from reports import PAPER, REPORTS

    also = {n: ", ".join(k for k, v in PAPER.items() if v == n) for n in REPORTS}
    print_table(
        ["name", "or", "what it shows", ""],
        [[n, also[n], r.meaning, "standard" if r.standard else ""] for n, r in REPORTS.items()],
    )


@app.command("profiles")
def list_profiles() -> None:
    """Profiles: how large the world of a run is."""
    from benchmark.profiles import PROFILES

    print_table(
        ["name", "filters", "steps", "evaluations", "purpose"],
        [
            [p.name, str(p.width), f"{p.steps:,}", str(len(p.evaluated(p.steps))), p.purpose]
            for p in PROFILES.values()
        ],
    )


@app.command("executors")
def list_executors() -> None:
    """Where runs can be worked on, and what `--set` changes there."""
    from benchmark.executors import EXECUTORS

    for name, executor in EXECUTORS.items():
        out.print(f"[bold]{name}[/]: {escape((executor.__doc__ or '').strip())}", highlight=False)
        if executor.settings is not None:
            described = (type(executor.settings).__doc__ or "").strip().splitlines()
            for line in described:
                out.print(f"    {escape(line.strip())}", highlight=False)
            example = next(iter(vars(executor.settings)))
            out.print(f"    as in --set {name}.{example}=...", highlight=False)
