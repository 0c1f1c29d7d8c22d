"""Datasets that are known by name: several forms in which users have them, committed splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, final

from benchmark.data.base import SPLITS, Card, Dataset, Source, Volume
from benchmark.data.links import split_notes
from benchmark.data.manifest import is_prepared, read_manifest
from benchmark.data.prepared import Files, Original, Progress, open_prepared, prepare_folder
from benchmark.data.split_file import require_cases
from benchmark.data.splits import CaseLists, choose_split, split_names
from results.errors import UserError

KIND: Final = "published"
DESCRIPTION: Final = "dataset.json"
HINTS: Final[Mapping[str, tuple[str, ...]]] = {
    "la": ("mri_norm2.h5", "lgemri.nrrd"),
    "pancreas": ("_norm.h5", ".dcm"),
    "brats2019": ("_flair.nii.gz", "_flair.nii"),
}
"""How files of each dataset end, to say what a folder of another one seems to be."""


@dataclass(frozen=True)
class Form:
    """One form in which users have a dataset.

    files:         how it looks like, for messages.
    preprocessing: what is done to the voxels, in words, with a version.
    find:          folder -> files by case; {} if the folder holds nothing of this form.
    read:          case and its files -> the case; may raise `UserError`, as `find` may.
    remark:        what tables say of a dataset prepared from it; empty for the published form.
    known_sha256:  of the one file of each case, where they are published.
    """

    files: str
    preprocessing: str
    find: Callable[[Path], dict[str, Files]]
    read: Callable[[str, Files], Volume]
    remark: str = ""
    known_sha256: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Published(Source):
    """A dataset with a known name.

    twins:     pairs of cases that the canonical split has on both sides although they may be the
               same scan.
    withdrawn: cases that the owners no longer distribute.
    """

    card: Card
    forms: tuple[Form, ...]
    twins: tuple[tuple[str, str], ...] = ()
    withdrawn: tuple[str, ...] = ()

    def prepare(
        self, source: Path, root: Path, progress: Progress, split: str | None = None
    ) -> Path:
        """See `Source.prepare`. Finds out which form the folder holds."""
        chosen = choose_split(self.card.name, split)
        require_cases(str(split), chosen, choose_split(self.card.name).cases)
        if (
            split is not None
            and split != chosen.name
            and chosen.name in split_names(self.card.name)
        ):
            raise UserError(
                f"{split} has the name of the published split '{chosen.name}' of {self.card.name}. "
                "Rename the file."
            )
        form, found = self._detect(source)
        self._require_splits(source, found, chosen)
        originals = [
            Original(
                case=case,
                split=part,
                files=found[case],
                read=partial(form.read, case, found[case]),
                known_sha256=form.known_sha256.get(case),
            )
            for part, cases in chosen.lists.items()
            for case in cases
            if case in found
        ]
        return prepare_folder(
            root,
            chosen.dataset_name(self.card.name),
            originals,
            form.preprocessing,
            progress,
            complete=len(originals) == len(chosen.cases),
            facts={
                "kind": KIND,
                "dataset": self.card.name,
                "split": chosen.name,
                "left_out": sum(self.card.counts) - len(chosen.cases),
                "remark": self._remark(form, found, chosen),
                "twins": [list(pair) for pair in self.twins],
            },
        )

    def open(self, root: Path) -> Dataset:
        """See `Source.open`."""
        folder = root / self.card.name
        if not is_prepared(folder):
            raise UserError(f"{self.card.name} is not prepared in {root}. {self.card.how_to_get}")
        return open_prepared(folder, self.card)

    def open_split(self, folder: Path) -> Dataset:
        """This dataset prepared with another split, under the name of its folder.

        Raises:
            UserError: it is damaged.
        """
        dataset = open_prepared(folder, self.card)
        counts = tuple(len(dataset.splits[part]) for part in SPLITS)
        facts = read_manifest(folder).facts
        left = facts.get("left_out", 0)
        committed = facts["split"] in split_names(self.card.name)
        asked = facts["split"] if committed else "FILE.json"
        note = f"The split is '{facts['split']}', not the usual one"
        note += f"; it leaves out {left} of {sum(self.card.counts)} cases." if left else "."
        card = replace(
            self.card,
            name=folder.name,
            how_to_get=self.card.how_to_get.replace("--source", f"--split {asked} --source"),
            counts=(counts[0], counts[1], counts[2]),
            notes=(note, *self.card.notes),
            split_notes=split_notes(dataset),
        )
        return replace(dataset, card=card)

    def _detect(self, source: Path) -> tuple[Form, dict[str, Files]]:
        """The one form that a folder holds, and its files."""
        name, how = self.card.name, self.card.how_to_get
        if not source.is_dir():
            raise UserError(f"{source} is not a folder. {how}")
        held = [(form, found) for form in self.forms if (found := form.find(source))]
        if not held:
            looked = " and no ".join(form.files for form in self.forms)
            raise UserError(f"There is no {looked} below {source}{seems(source, name)}. {how}")
        if len(held) > 1:
            forms = " and ".join(
                f"{form.files} ({len(found)} cases, such as {min(found)})" for form, found in held
            )
            raise UserError(
                f"{source} holds {name} in {len(held)} forms: {forms}. They give different "
                "voxels; give the folder of the one to use."
            )
        return held[0]

    def _require_splits(self, source: Path, found: Mapping[str, Files], chosen: CaseLists) -> None:
        """Raise where nothing of train or test is there."""
        for part in ("train", "test"):
            cases = chosen.lists[part]
            if not found.keys() & set(cases):
                of = f" of '{chosen.name}'" if chosen.name else ""
                raise UserError(
                    f"{source} holds {len(found)} {self.card.name} cases, none of them of the "
                    f"{part} split{of}. Add at least one of its {len(cases)} cases, such as "
                    f"{cases[0]}."
                )

    def _remark(self, form: Form, found: Mapping[str, Files], chosen: CaseLists) -> str:
        lacking = sorted(set(chosen.cases) - found.keys())
        said = [form.remark] * bool(form.remark)
        if lacking and set(lacking) <= set(self.withdrawn):
            said.append(f"without {' and '.join(lacking)}, withdrawn by the owners")
        return "; ".join(said)


def walk(source: Path) -> Iterator[tuple[Path, Sequence[str]]]:
    """Folders below a folder with the names of their visible files, in a fixed order.

    Raises:
        UserError: one cannot be read, so its cases would be missing.
    """
    for folder, folders, files in os.walk(source, onerror=_refuse_unread, followlinks=True):
        folders.sort()
        yield Path(folder), sorted(file for file in files if not file.startswith("."))


def _refuse_unread(error: OSError) -> None:
    raise UserError(
        f"Cannot read the folder {error.filename}: {error.strerror}. Its cases would be missing; "
        "make it readable, or give a source without it."
    ) from error


def put(found: dict[str, Files], case: str, files: Files) -> None:
    """Add a case that must not be there yet.

    Raises:
        UserError: it is; both places are named.
    """
    if case in found:
        raise UserError(
            f"The case {case} is there twice: {_place(found[case])} and {_place(files)}. Give a "
            "folder that holds one of them."
        )
    found[case] = files


def only(files: Files, name: str) -> Path:
    """The one file of that name."""
    path = files[name]
    assert isinstance(path, Path)
    return path


def _place(files: Files) -> Path:
    first = next(iter(files.values()))
    return first if isinstance(first, Path) else first[0].parent


def seems(source: Path, name: str = "") -> str:
    """What a folder seems to hold instead of dataset `name`, as part of a sentence."""
    if not source.is_dir():
        return ""
    for folder, files in walk(source):
        if DESCRIPTION in files and name:
            return f"; it seems to hold a Decathlon folder (`bench data prepare {folder}`)"
        for other, endings in HINTS.items():
            hit = next((file for file in files if file.endswith(endings)), None)
            if other != name and hit:
                return f"; it seems to hold {other} ({hit})"
    return ""
