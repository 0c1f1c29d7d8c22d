"""From a store to files and to what a terminal shows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import pandas as pd
from rich.console import RenderableType

from reports import REPORTS, named
from reports.facts import DEFAULTS, Options, load_facts
from reports.render import console
from reports.table import sheet
from results.store import Store

_LONGEST: Final = 60
"""Characters of the name of a folder."""


@dataclass(frozen=True)
class Written:
    """What was made.

    tables:  for a terminal.
    summary: the numbers, see `protocols.table.summarise`.
    paths:   of the files.
    """

    tables: tuple[RenderableType, ...]
    summary: pd.DataFrame
    paths: tuple[Path, ...]


def write_report(
    store: Path,
    protocol: str,
    out: Path,
    *,
    empty: str = "tcseg",
    partial: bool = False,
    names: Collection[str] = (),
    options: Options = DEFAULTS,
) -> Written:
    """Make reports of a store under one protocol.

    Args:
        store: folder of the store.
        protocol: a rule: `last`, `best`, `best(split=val)` ...
        out: folder for the files; it is made. What is counted differently from the defaults goes
            to a folder in it, such as `empty-worst`, so that no two reports share a file.
        empty: name of the policy for empty masks.
        partial: whether unfinished runs count, with the evaluations that they have.
        names: which reports, by their own names or the paper's (`table4`); none for the standard
            ones, of which only the table is shown.
        options: what concerns single reports.

    Raises:
        UserError: an unknown name, no store or an empty one, a rule that needs a split which the
            runs lack, or a folder that cannot be written.
    """
    chosen = list(dict.fromkeys(map(named, names)))
    facts = load_facts(Store.open(store), protocol, empty, partial=partial, options=options)
    shown = [s for report in chosen if report.show for s in report.show(facts)]
    if not chosen:
        chosen = [report for report in REPORTS.values() if report.standard]
        shown = [facts.once(sheet)]
    counted = [
        *([f"empty-{facts.policy}"] if facts.policy != "tcseg" else []),
        *([str(options.stratum)] if options.stratum is not DEFAULTS.stratum else []),
        *(["partial"] if partial else []),
        *([only(options.methods)] if options.methods else []),
    ]
    folder = out / "-".join(counted) if counted else out
    paths = [path for report in chosen for path in report.write(facts, folder)]
    return Written(tuple(map(console, shown)), facts.summary, tuple(paths))


def only(methods: Collection[str]) -> str:
    """Name of a folder for reports of these methods alone.

    >>> only(("tcseg", "mt"))
    'only-mt+tcseg'
    """
    name = f"only-{'+'.join(sorted(set(methods)))}"
    if len(name) <= _LONGEST:
        return name
    return f"only-{len(set(methods))}-methods-{sha256(name.encode()).hexdigest()[:8]}"


def tables(
    store: Path, protocol: str, *, runs: Collection[str] | None = None, empty: str = "tcseg"
) -> tuple[RenderableType, ...]:
    """The main table for a terminal, of some runs or of all; nothing is written.

    Raises:
        UserError: as `write_report`.
    """
    facts = load_facts(Store.open(store), protocol, empty, runs=runs)
    return (console(sheet(facts)),)
