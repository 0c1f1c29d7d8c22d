"""The manifest of prepared data: what a folder holds, and how to know that it is the same.

The fingerprint is of the ordered cases of each split, their voxels and spacing, and the
preprocessing; how the files are written does not matter to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmark.data.base import SPLITS, Split
from results.errors import UserError

FORMAT: Final = 2
"""Version of the manifest and of the files. The fingerprint does not depend on it."""


@dataclass(frozen=True)
class Record:
    """What the manifest says about one case.

    shape:    of the image, (C, X, Y, Z).
    levels:   distinct values of the image; 0 where they are too many for codes.
    spacing:  along X, Y, Z in the card's unit.
    image_sha256, label_sha256: as `array_sha256` gives them.
    image_bytes, label_bytes:   sizes of the two files.
    sources:  sha256 of the original files, by name.
    verified: whether the original is the published file; None where nothing is published.
    """

    shape: tuple[int, ...]
    levels: int
    spacing: tuple[float, float, float]
    image_sha256: str
    label_sha256: str
    image_bytes: int
    label_bytes: int
    sources: Mapping[str, str]
    verified: bool | None


@dataclass(frozen=True)
class Manifest:
    """Everything about a prepared folder but the voxels.

    facts: what the dataset's own module wants to remember (for a folder known by its path only:
           the whole card). Known here are "remark", what tables say of it, and "twins", pairs of
           cases that may be the same scan in two splits.
    """

    name: str
    preprocessing: str
    splits: Mapping[Split, tuple[str, ...]]
    cases: Mapping[str, Record]
    complete: bool
    facts: Mapping[str, Any]
    fingerprint: str
    format: int = FORMAT


def array_sha256(array: NDArray[Any]) -> str:
    """Sha256 of type, shape and voxels of an array."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Sha256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def files_sha256(files: Path | tuple[Path, ...]) -> str:
    """Sha256 of a file; of several, that of their sorted digests, so their names do not matter.

    Raises:
        UserError: one cannot be read.
    """
    if isinstance(files, Path):
        return file_sha256(files)
    return hashlib.sha256("\n".join(sorted(map(file_sha256, files))).encode()).hexdigest()


def dataset_fingerprint(
    preprocessing: str, splits: Mapping[Split, Sequence[str]], cases: Mapping[str, Record]
) -> str:
    """Sha256 over the ordered cases of each split, their voxels and spacing, and preprocessing."""
    content = {
        "preprocessing": preprocessing,
        "splits": {
            split: [
                (case, cases[case].image_sha256, cases[case].label_sha256, cases[case].spacing)
                for case in splits[split]
            ]
            for split in SPLITS
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def unpublished(records: Mapping[str, Record]) -> str:
    """How many originals are not the published files, in words; empty if none is known to be."""
    count = sum(record.verified is False for record in records.values())
    if not count:
        return ""
    return f"{count} file{'s differ' if count > 1 else ' differs'} from the published ones"


def is_prepared(folder: Path) -> bool:
    """Whether there is a prepared dataset in this folder."""
    return (folder / "manifest.json").is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest and check that it is whole.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    path = folder / "manifest.json"
    again = f"Remove the folder {folder} and run `bench data prepare` again."
    try:
        raw = json.loads(path.read_text())
        if raw["format"] > FORMAT:
            raise UserError(
                f"{folder} was prepared by a newer version (format {raw['format']}, this version "
                f"reads {FORMAT}). Update ssl3d-bench."
            )
        if raw["format"] < FORMAT:
            raise UserError(
                f"{folder} was prepared by an older version (format {raw['format']}, this version "
                f"reads {FORMAT}). {again} Its fingerprint will be the same, so runs that were "
                "made with it stay valid and can go on."
            )
        raw["splits"] = {split: tuple(raw["splits"][split]) for split in SPLITS}
        raw["cases"] = {case: _record(fields) for case, fields in raw["cases"].items()}
        manifest = Manifest(**raw)
        listed = [case for split in SPLITS for case in manifest.splits[split]]
        whole = all(map(_is_file_name, listed)) and sorted(listed) == sorted(manifest.cases)
        whole = whole and manifest.fingerprint == (
            dataset_fingerprint(manifest.preprocessing, manifest.splits, manifest.cases)
        )
    except FileNotFoundError:
        raise UserError(f"{folder} holds no prepared dataset: {path} is missing. {again}") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged. {again}")
    return manifest


def _is_file_name(case: str) -> bool:
    """Whether a case's files stay in their folder."""
    return bool(case) and not case.startswith(".") and not set(case) & {"/", "\\", "\0"}


def shared_scan(
    splits: Mapping[Split, Sequence[str]],
    records: Mapping[str, Record],
    facts: Mapping[str, Any],
) -> str | None:
    """Says which scan with which label lies in two splits under two names, if any does."""
    twins = {frozenset(pair) for pair in facts.get("twins", ())}
    seen: dict[tuple[str, str], tuple[str, Split]] = {}
    for split in SPLITS:
        for case in splits[split]:
            content = (records[case].image_sha256, records[case].label_sha256)
            other, where = seen.setdefault(content, (case, split))
            if where != split and {other, case} not in twins:
                return f"{other} ({where}) and {case} ({split}) are the same scan and label."
    return None


def remark(manifest: Manifest) -> str:
    """In what a folder differs from the published data, in a few words."""
    said = [str(manifest.facts.get("remark", "")), unpublished(manifest.cases)]
    return "; ".join(text for text in said if text)


def _record(fields: dict[str, Any]) -> Record:
    sizes = {"shape": tuple(fields["shape"]), "spacing": tuple(fields["spacing"])}
    return Record(**{**fields, **sizes})
