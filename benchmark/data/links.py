"""Cases of one dataset that are known to show the same patient, from committed lists.

A list links/<dataset>.tsv has a line a pair: first case, second case, kind ("copy": one scan twice;
"patient": probably one patient scanned twice), and how well the images agree after rigid
registration (normalised cross-correlation over the overlap; empty where it is not known).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Final

from benchmark.data.base import SPLITS, Dataset
from benchmark.data.manifest import read_manifest
from benchmark.data.splits import read_list

FOLDER: Final = "links"


class Kind(StrEnum):
    """What links two cases: one scan under two names, or probably one patient scanned twice."""

    COPY = "copy"
    PATIENT = "patient"


@dataclass(frozen=True)
class Link:
    """Two cases that show the same patient.

    agreement: of the registered images, up to 1; None where it is not known.
    """

    first: str
    second: str
    kind: Kind
    agreement: float | None


def known_links(dataset: Dataset) -> tuple[Link, ...] | None:
    """The pairs that both are in a dataset; None where nobody has looked for any."""
    name = dataset.card.name
    if dataset.folder is not None:
        name = read_manifest(dataset.folder).facts.get("dataset", name)
    if not (resources.files("benchmark.data") / FOLDER / f"{name}.tsv").is_file():
        return None
    there = {case for cases in dataset.splits.values() for case in cases}
    links = map(_parsed, read_list(name, FOLDER, ".tsv"))
    return tuple(link for link in links if {link.first, link.second} <= there)


def linked_cases(dataset: Dataset) -> dict[str, tuple[str, ...]] | None:
    """The test cases that are linked to training cases, with those; None where nothing is known.

    All training cases count, labelled or not. Links are not followed further: a test case whose
    partner has a partner of its own is linked to the first alone.
    """
    links = known_links(dataset)
    if links is None:
        return None
    partners = [*_partners(links)]
    train = dataset.splits["train"]
    found = {
        case: tuple(other for other in train if (case, other) in partners)
        for case in dataset.splits["test"]
    }
    return {case: others for case, others in found.items() if others}


def split_notes(dataset: Dataset) -> tuple[str, ...]:
    """What a reader of a table must know of a dataset's split, a sentence each."""
    place = {case: f"a {part} case" for part in SPLITS for case in dataset.splits[part]}
    place |= {c: f"training case {n}" for n, c in enumerate(dataset.splits["train"], start=1)}
    said = [
        f"{link.first} ({place[link.first]}) and {link.second} ({place[link.second]}) are the same "
        "scan with the same label."
        for link in known_links(dataset) or ()
        if link.kind is Kind.COPY
    ]
    linked = linked_cases(dataset)
    if linked:
        said.append(
            f"Patients are repeated: {len(linked)} of the {len(dataset.splits['test'])} test cases "
            f"are linked to training cases ({', '.join(linked)})."
        )
    if not dataset.splits["val"]:
        said.append("There is no validation set.")
    return tuple(said)


def _partners(links: Iterable[Link]) -> Iterable[tuple[str, str]]:
    for link in links:
        yield link.first, link.second
        yield link.second, link.first


def _parsed(line: str) -> Link:
    first, second, kind, agreement = line.split("\t")
    return Link(first, second, Kind(kind), float(agreement) if agreement else None)
