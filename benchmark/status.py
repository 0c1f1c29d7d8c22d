"""How far every run of a store is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmark import progress
from benchmark.remaining import in_words
from benchmark.runner import CLAIM, left_message
from results.claims import newest
from results.store import Store


def rows(path: Path) -> list[dict[str, Any]]:
    """One row a run: finished and failed ones, then those unfinished.

    Raises:
        UserError: there is no store.
    """
    store = Store.open(path)
    found = [_done(store, record) for record in store.records().to_dict("records")]
    return found + [_unfinished(store, run) for run in store.unfinished()]


def _done(store: Store, record: dict[Any, Any]) -> dict[str, Any]:
    sidecar = store.sidecar(record["run"])
    return {
        "run": record["run"],
        "state": record["state"],
        "step": record["steps"] if record["state"] == "finished" else "",
        "evaluations": record["evaluations"] if record["state"] == "finished" else "",
        "time": in_words(sidecar["seconds"]),
        "note": record["error"] or ("resumed" if sidecar["resumed"] else ""),
    }


def _at_work(folder: Path) -> bool:
    """Whether a process that lives has the run."""
    holder = newest(folder, CLAIM)
    return holder is not None and holder.is_live(time.time())


def _unfinished(store: Store, run: str) -> dict[str, Any]:
    folder = store.work(run)
    now = progress.read(folder)
    error = left_message(store, run)
    row: dict[str, Any] = {"run": run, "state": "waiting"}
    row |= {"step": "", "evaluations": "", "time": ""}
    if now is not None:
        row["state"] = "cut" if error or not _at_work(folder) else now.phase
        row["step"] = f"{now.step}/{now.total}"
        row["evaluations"] = f"{now.evaluated}/{now.evaluations}"
        row["time"] = in_words(now.seconds)
    elif error:
        row["state"] = "cut"
    return row | {"note": error}
