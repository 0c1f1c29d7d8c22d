"""What a fault is here: something done to a store or a run, counted, and what it cost."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmark.commands import Plan
from benchmark.data import source_for
from benchmark.jobs import announce
from results.store import RUN_TABLES, Store
from tests.engine.toy import make_folder, plan


@dataclass(frozen=True)
class Row:
    """A line of the table.

    fault: what was done.
    tried: how often.
    bad:   runs lost, doubled or differing, reads that failed, processes left behind.
    said:  what the line says beside the number.
    skipped: why it could not be tried here; empty where it was.
    """

    fault: str
    tried: str
    bad: int
    said: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class Scale:
    """How much is tried: the full form, or the short one of the tests.

    each: kills of each method in each phase, in the full form.
    """

    full: bool
    folder: Path
    each: int = 5

    def pick(self, full: int, short: int) -> int:
        """One of two numbers."""
        return full if self.full else short

    def rng(self, name: str) -> np.random.Generator:
        """A generator of its own for every fault."""
        return np.random.default_rng([2026, *name.encode()])


Fault = Callable[[Scale], Row]


@cache
def processes() -> mp.context.ForkServerContext:
    """Processes that need not import everything anew."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(
        ["benchmark.worker", "scipy.ndimage", "nibabel", "torch._dynamo"]
    )
    return context


def toy(scale: Scale) -> tuple[Path, Path]:
    """Folder and prepared root of the toy dataset."""
    folder, root = scale.folder / "balls", scale.folder / "data"
    if not root.exists():
        source_for(str(make_folder(folder))).prepare(folder, root, lambda done, total, what: None)
    return folder, root


def planned(scale: Scale, store: Path, methods: str, **changes: object) -> Plan:
    """A plan on the toy data at the smallest profile."""
    return plan(*toy(scale), store, methods, **changes)


def fresh(made: Plan, path: Path) -> tuple[Store, list[str]]:
    """A store that knows every run of a plan, and their ids."""
    store = Store.open(path, create=True)
    for job in made.jobs:
        announce(job, store)
    return store, [job.spec.run_id for job in made.jobs]


def contents(store: Store, run: str) -> dict[str, bytes]:
    """The bytes of a run's tables."""
    return {t: (store.path / t / f"{run}.parquet").read_bytes() for t in (*RUN_TABLES, "runs")}
