"""Datasets: all that are known by name, and how a name or a folder becomes one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmark.data.base import Dataset, Source
from benchmark.data.brats2019 import BRATS2019
from benchmark.data.decathlon import Decathlon, open_folder
from benchmark.data.la import LA
from benchmark.data.manifest import is_prepared, read_manifest
from benchmark.data.pancreas import PANCREAS
from benchmark.data.phantom import Phantom
from benchmark.data.published import Published
from benchmark.data.splits import split_names
from results.errors import UserError
from results.lookup import unknown

SOURCES: Final[Mapping[str, Source]] = {
    "phantom": Phantom(),
    "la": LA,
    "pancreas": PANCREAS,
    "brats2019": BRATS2019,
}


def source_for(name_or_path: str) -> Source:
    """The source that a known name or a folder stands for.

    A folder is one in the Medical Segmentation Decathlon layout; FOLDER:2 takes its label 2 alone
    as foreground.

    Raises:
        UserError: neither; or the folder cannot be used.
    """
    if name_or_path in SOURCES:
        return SOURCES[name_or_path]
    folder, label = split_label(name_or_path)
    if not _looks_like_folder(folder):
        raise _unknown(name_or_path, [])
    source = Decathlon(Path(folder), label)
    if source.card.name in SOURCES:
        raise UserError(
            f"The folder {folder} has the name of the dataset '{source.card.name}'. Rename it."
        )
    return source


def is_folder(name_or_path: str) -> bool:
    """Whether this stands for a folder, and not for a known name."""
    return name_or_path not in SOURCES and _looks_like_folder(split_label(name_or_path)[0])


def open_dataset(name_or_path: str, root: Path) -> Dataset:
    """The prepared dataset of a known name, of a folder, or of a name under the data root.

    Args:
        name_or_path: a name in `SOURCES`; a folder, as for `source_for`; or the name that a
            folder, or a known dataset with another split, got when it was prepared.
        root: the data root.

    Raises:
        UserError: it is unknown, not prepared, or damaged.
    """
    if name_or_path in SOURCES or is_folder(name_or_path):
        return source_for(name_or_path).open(root)
    if name_or_path in prepared_folders(root):
        folder = root / name_or_path
        published = SOURCES.get(read_manifest(folder).facts.get("dataset", ""))
        return (
            published.open_split(folder)
            if isinstance(published, Published)
            else open_folder(folder)
        )
    for base in SOURCES:
        split = name_or_path.removeprefix(f"{base}-")
        if split != name_or_path and split in split_names(base):
            raise UserError(
                f"{name_or_path} is not prepared in {root}. Run `bench data prepare {base} "
                f"--split {split} --source DIR`."
            )
    raise _unknown(name_or_path, prepared_folders(root))


def prepared_folders(root: Path) -> list[str]:
    """Names of the folders that were prepared under a data root, but those in `SOURCES`."""
    if not root.is_dir():
        return []
    return sorted(
        folder.name
        for folder in root.iterdir()
        if folder.name not in SOURCES and not folder.name.startswith(".") and is_prepared(folder)
    )


def split_label(text: str) -> tuple[str, int | None]:
    """FOLDER:2 as folder and label; without one, the text and None."""
    folder, colon, label = text.rpartition(":")
    if colon and label.isdigit() and not Path(text).exists():
        return folder, int(label)
    return text, None


def _looks_like_folder(text: str) -> bool:
    return os.sep in text or text.startswith((".", "~")) or (Path(text) / "dataset.json").exists()


def _unknown(name: str, prepared: list[str]) -> UserError:
    if Path(name).is_dir():
        return UserError(
            f"the folder {name} has no dataset.json: a dataset is a folder in the Medical "
            "Segmentation Decathlon layout"
        )
    error = unknown("dataset", name, [*SOURCES, *prepared])
    return UserError(f"{error}; or a folder in the Medical Segmentation Decathlon layout")
