"""A split of one's own: a JSON file with lists of cases.

    {"train": ["case3", "case1"], "val": [], "test": ["case2"]}

The order of "train" counts: its first k cases are the labelled ones. "val" may be missing. Cases
that are in no list are left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from benchmark.data.base import SPLITS, Split
from benchmark.data.splits import CaseLists
from results.errors import UserError

EXAMPLE: Final = '{"train": ["case1", "case2"], "val": [], "test": ["case3"]}'


def read_split(path: Path) -> CaseLists:
    """The split in a file; its name is that of the file without ending, as a slug.

    Raises:
        UserError: the file is missing or no such object, a list is missing, empty or of something
            else than names, or a case is there twice.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except FileNotFoundError:
        raise UserError(f"There is no split file {path}.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}). Expected: {EXAMPLE}") from None
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in path.stem.lower()).strip("-")
    if not name:
        raise UserError(f"The file name {path.name} has no letter or digit. Rename the file.")
    lists = _lists(path, content)
    seen: dict[str, Split] = {}
    for split in SPLITS:
        for case in lists[split]:
            if case in seen:
                where = f"{seen[case]} and {split}" if seen[case] != split else f"{split} twice"
                raise UserError(f"{path} lists {case} in {where}. A case may be listed once.")
            seen[case] = split
    return CaseLists(name, lists)


def require_cases(path: str, lists: CaseLists, known: Collection[str]) -> None:
    """Raise unless every case of a split is there.

    Args:
        path: of the split's file, for the message.
        lists: the split.
        known: cases of the dataset.

    Raises:
        UserError: names cases that are not known.
    """
    strange = [case for case in lists.cases if case not in known]
    if strange:
        some = ", ".join(strange[:5]) + (" …" if len(strange) > 5 else "")
        raise UserError(
            f"{path} lists {len(strange)} of {len(lists.cases)} cases that the dataset does not "
            f"have: {some}. It has {len(known)}, such as {min(known, default='none')}."
        )


def _lists(path: Path, content: Any) -> dict[Split, tuple[str, ...]]:
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object. Expected: {EXAMPLE}")
    strange = sorted(content.keys() - set(SPLITS))
    if strange:
        raise UserError(f"{path} has a list '{strange[0]}'. Known: {', '.join(SPLITS)}.")
    lists: dict[Split, tuple[str, ...]] = {}
    for split in SPLITS:
        cases = content.get(split, [] if split == "val" else None)
        if not isinstance(cases, list) or not all(isinstance(c, str) and c for c in cases):
            raise UserError(f"{path} has no list of names '{split}'. Expected: {EXAMPLE}")
        if not cases and split != "val":
            raise UserError(f"{path} lists no case in {split}. Expected: {EXAMPLE}")
        lists[split] = tuple(cases)
    return lists


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which no name may be there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice}' is there twice")
    return found
