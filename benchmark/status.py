"""How far every run of a store is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmark import progress
from benchmark.attempts import CLAIM, left_message
from benchmark.remaining import in_words
from benchmark.slurm_queue import Entry, UnreachableError, queue_of, submissions
from results.claims import newest
from results.store import TOLD, Store

MANY: Final = 200
"""Finished runs above which they are counted instead of listed."""


def few(found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The rows that a person reads, and how many finished runs were left out of them."""
    others = [row for row in found if row["state"] != "finished"]
    left_out = len(found) - len(others)
    return (found, 0) if left_out <= MANY else (others, left_out)


def rows(path: Path) -> list[dict[str, Any]]:
    """One row a run: finished and failed ones, then those unfinished.

    Raises:
        UserError: there is no store.
    """
    store = Store.open(path)
    found = [_done(store, run) for run in store.done()]
    waiting = store.unfinished()
    queue = _queue(store) if waiting else {}
    return found + [_unfinished(store, run, queue) for run in waiting]


def _done(store: Store, run: str) -> dict[str, Any]:
    # Sidecars alone, where they say enough: ten thousand records take seconds to read.
    sidecar = store.sidecar(run)
    record = sidecar.get("record")
    if not isinstance(record, dict) or not record.keys() >= set(TOLD):
        record = store.record(run)
    return {
        "run": run,
        "state": record["state"],
        "step": record["steps"] if record["state"] == "finished" else "",
        "evaluations": record["evaluations"] if record["state"] == "finished" else "",
        "time": in_words(sidecar["seconds"]),
        "queue": "",
        "note": record["error"] or ("resumed" if sidecar.get("resumed") else ""),
    }


def _queue(store: Store) -> Mapping[str, Entry | str]:
    """What the queue of a cluster says of the runs that were submitted to it, if any were."""
    if not submissions(store):
        return {}
    try:
        return queue_of(store)
    except UnreachableError as error:
        return {run: str(error) for runs in submissions(store).values() for run in runs}


def _at_work(folder: Path) -> bool:
    """Whether a process that lives has the run."""
    holder = newest(folder, CLAIM)
    return holder is not None and holder.is_live(time.time())


def _unfinished(store: Store, run: str, queue: Mapping[str, Entry | str]) -> dict[str, Any]:
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
    holder = newest(folder, CLAIM)
    if row["state"] == "cut" and holder is not None and holder.ending == "error":
        row["state"] = "error"
    job = queue.get(run)
    if isinstance(job, Entry) and job.state == "PENDING":
        row["state"] = "queued"
    running = isinstance(job, Entry) and job.state == "RUNNING"
    if running and holder is not None and not holder.ending and not holder.is_live():
        error = f"no sign of life for {holder.silent_s(time.time()):.0f} s"
    return row | {"queue": str(job or ""), "note": error}
