"""What the processes of the crash and race tests do."""

import os
from itertools import count
from pathlib import Path

import numpy as np

from results.store import ConflictError, Store
from tests.protocols import toy


def rows(run: str, content_seed: int):
    dsc = np.random.default_rng(content_seed).random(6)
    return toy.cases(run, dict.fromkeys(toy.STEPS, dsc))


def commit_for_ever(path: str, writer: str, acknowledged: str) -> None:
    """Commit runs until killed; name each in `acknowledged` once it is committed."""
    store = Store(path)
    out = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in count():
        run = f"mt-{writer}-{number}"
        store.commit(run, toy.tables(rows(run, number)), toy.record(run), {"seconds": 0.5})
        os.write(out, f"{run}\n".encode())


def commit_without_synchronising(path: str, writer: str, acknowledged: str) -> None:
    """The same by a store that trusts the page cache: what a check of power cuts must find."""
    os.fsync = lambda descriptor: None
    commit_for_ever(path, writer, acknowledged)


def race(path: str, runs: list[str], content_seed: int, results: str) -> None:
    """Commit the given runs; write an outcome per run."""
    store = Store(path)
    outcomes = []
    for run in runs:
        try:
            tables = toy.tables(rows(run, content_seed))
            outcomes.append(store.commit(run, tables, toy.record(run), {"writer": content_seed}))
        except ConflictError:
            outcomes.append("conflict")
    Path(results).write_text("\n".join(outcomes))
