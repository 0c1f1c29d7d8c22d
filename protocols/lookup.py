"""Names become objects, with a suggestion when they are not known."""

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
    """The error for a name that is not known.

    >>> str(unknown("rule", "bset", ["last", "best"]))
    "unknown rule 'bset'. Did you mean 'best'? Known: last, best"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown {kind} '{name}'.{hint} Known: {', '.join(names)}")
