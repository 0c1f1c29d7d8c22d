"""Names become objects here and nowhere else."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from results.errors import UserError

T = TypeVar("T")


def find(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """The entry called `name`.

    Raises:
        UserError: there is none; the text suggests the nearest.
    """
    if name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not known, with the nearest known one, whatever its case.

    >>> str(unknown("method", "TCSGE", ["tcseg", "mt"]))
    "unknown method 'TCSGE'. Did you mean 'tcseg'? Known: mt, tcseg"
    """
    names = sorted(known)
    lowered = {text.lower(): text for text in names}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f" Did you mean '{lowered[near[0]]}'?" if near else ""
    return UserError(f"unknown {kind} '{name}'.{hint} Known: {', '.join(names)}")
