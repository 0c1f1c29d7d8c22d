"""What the commands of `bench data` do, apart from parsing and layout."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmark import environment, floor
from benchmark.data import SOURCES, open_dataset, prepared_folders, source_for, split_label
from benchmark.data.base import Card, Dataset
from benchmark.data.inspection import inspect
from benchmark.data.links import linked_cases
from benchmark.data.manifest import is_prepared
from benchmark.data.splits import labelled_count, split_names
from protocols.policies import POLICIES, score
from reports.render import csv_text, write_file
from results.errors import UserError
from results.schema import FLOOR
from results.store import Store

EMBEDDED = "phantom"
"""The dataset that needs no download, so no --source."""

_EMPTY: Final = "tcseg"
"""Policy for empty masks of the floor that is printed; a store keeps statuses."""


def prepare(
    name: str, source: Path | None, data: Path, console: Console, split: str | None = None
) -> None:
    """Prepare a dataset with a progress bar, and print what came of it.

    Raises:
        UserError: bad input; nothing is left half-prepared.
    """
    found = source_for(name)
    if source is None:
        if name in SOURCES and name != EMBEDDED:
            raise UserError(f"--source is missing. {found.card.how_to_get}")
        source = Path(split_label(name)[0])
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bars:
        task = bars.add_task(f"preparing {found.card.name}", total=None)

        said = ""

        def show(done: int, total: int, what: str) -> None:
            nonlocal said
            said = what
            bars.update(task, completed=done, total=total, description=escape(what))

        folder = found.prepare(source, data, show, split)
    console.print(escape(said), highlight=False)
    console.print(escape(summary_of(open_dataset(folder.name, data))), highlight=False)


def check_data(name: str, data: Path, console: Console) -> int:
    """Check a prepared dataset, print what it holds and what is wrong; return the exit code."""
    dataset = open_dataset(name, data)
    seen = inspect(dataset, environment.cores())
    for finding in seen.findings:
        colour = "red" if finding.severity == "error" else "yellow"
        said = escape(f"{finding.subject}: {finding.text}")
        console.print(f"[{colour}]{finding.severity}[/] {said}", highlight=False)
    facts = Table(box=None, show_header=False, pad_edge=False)
    for what, value in seen.summary():
        facts.add_row(what, escape(value))
    console.print(facts)
    linked = linked_cases(dataset)
    if linked:
        console.print(
            f"{len(linked)} of {len(dataset.splits['test'])} test cases are linked to training "
            "cases; `bench report --cases unlinked` leaves them out.",
            highlight=False,
        )
    console.print(escape(summary_of(dataset)), highlight=False)
    return int(any(finding.severity == "error" for finding in seen.findings))


def show_floor(
    name: str,
    labelled: Sequence[int],
    store: Path | None,
    to: Path | None,
    data: Path,
    console: Console,
) -> None:
    """Measure the atlas of a dataset and print it; write its cases, or add it to a store, if asked.

    Raises:
        UserError: more labelled cases than there are, a store without runs on the dataset, or a
            file that cannot be written.
    """
    dataset = open_dataset(name, data)
    if store is not None:
        if labelled or to is not None:
            raise UserError("--store measures the settings of its runs: leave --labelled and --out")
        runs = floor.add_runs(Store.open(store), dataset, environment.cores())
        console.print(f"{len(runs)} run(s) of {FLOOR} are in {store}", highlight=False)
        return
    n_train = len(dataset.splits["train"])
    usual = {n_train}
    for share in (0.1, 0.2):
        with suppress(UserError):  # of few training cases such a share has none
            usual.add(labelled_count(share, n_train))
    counts = list(dict.fromkeys(labelled)) or sorted(usual)
    unit = dataset.card.unit
    table = Table("labelled", "split", "cases", "DSC %", f"ASD {unit}", f"HD95 {unit}", box=None)
    rows = []
    for count in counts:
        frame = pd.DataFrame(floor.measure(dataset, count, jobs=environment.cores()))
        for split, part in frame.groupby("split", sort=False):
            counted = score(part, POLICIES[_EMPTY])[["dsc", "asd", "hd95"]].mean()
            means = (100 * counted["dsc"], counted["asd"], counted["hd95"])
            table.add_row(
                f"{count} of {n_train}", str(split), str(len(part)), *(f"{m:.2f}" for m in means)
            )
        rows.append(frame.assign(labelled=count))
    console.print(table)
    console.print(
        f"Means over cases, volumes at full resolution; {POLICIES[_EMPTY].meaning}. {floor.NOTE}",
        highlight=False,
        style="dim",
    )
    if to is not None:
        write_file(to, csv_text(pd.concat(rows)))
        console.print(f"wrote {to}", markup=False, highlight=False)


def summary_of(dataset: Dataset) -> str:
    """A prepared dataset in a line: its label (which says if it is partial), cases, fingerprint."""
    counts = ", ".join(f"{len(cases)} {split}" for split, cases in dataset.splits.items())
    return f"{dataset.label}: {counts}; fingerprint {dataset.fingerprint[:12]}"


@dataclass(frozen=True)
class DataState:
    """Where one dataset stands.

    cells:  a row of the table: name, state, cases by split, fingerprint.
    advice: what is wrong with it or special, or how to get it.
    card:   its facts, by what they are of.
    """

    name: str
    cells: tuple[str, ...]
    advice: str
    card: tuple[tuple[str, str], ...]


def data_states(data: Path) -> list[DataState]:
    """Every known dataset and every prepared folder."""
    states = []
    for name in [*SOURCES, *prepared_folders(data)]:
        try:
            dataset = open_dataset(name, data)
        except UserError as error:
            card = card_rows(SOURCES[name].card) if name in SOURCES else ()
            there = is_prepared(data / name)
            row = (name, "damaged" if there else "missing", "", "", "", "")
            states.append(DataState(name, row, str(error), card))
            continue
        counts = tuple(str(len(dataset.splits[s])) for s in ("train", "val", "test"))
        kind = "embedded" if dataset.folder is None else "ready"
        state = kind if dataset.complete else "partial"
        cells = (name, state, *counts, dataset.fingerprint[:12])
        states.append(DataState(name, cells, dataset.remark, card_rows(dataset.card)))
    return states


def card_rows(card: Card) -> tuple[tuple[str, str], ...]:
    """The facts of a card by what they are of; what a dataset does not say is left out."""
    counts = "/".join(map(str, card.counts)) if any(card.counts) else ""
    others = ", ".join(split_names(card.name))
    rows = [
        ("title", f"{card.title}: {card.structure}, {card.modality}"),
        ("from", card.source),
        ("licence", card.licence),
        ("get it", card.how_to_get),
        ("size", card.size),
        ("split", f"{counts} train/val/test" * bool(counts) + f"; --split {others}" * bool(others)),
        ("distances", f"in {card.unit}"),
        *(("note", note) for note in card.all_notes),
        ("cite", card.reference),
    ]
    return tuple((what, text) for what, text in rows if text)
