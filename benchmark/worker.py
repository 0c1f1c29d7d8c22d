"""`python -m benchmark.worker`: work on one announced run. What every executor starts.

Exit codes: 0 the run has a record (finished, or failed by diverging), 3 an error that may pass
(its message is in the run's `error.txt`), 4 another process is at work on it.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from benchmark.plugins import resolve
from benchmark.runner import ERROR_FILE, JOB_FILE, LOG_FILE, Busy, Job, clean, run
from benchmark.spec import spec_from_canonical
from results.errors import UserError
from results.schema import Keep
from results.store import Store

DONE, ERROR, BUSY = 0, 3, 4
_PARENT_CHECK_S = 0.5


def read_job(store: Store, run_id: str) -> Job:
    """The job that `announce` wrote into the run's work folder."""
    data = json.loads((store.work(run_id) / JOB_FILE).read_text())
    methods = resolve([data["spec"]["method"]["name"]], data["plugins"])
    spec = spec_from_canonical(data["spec"], methods)
    profile = replace(spec.profile, checkpoint_every=data["checkpoint_every"])
    row = data["row"]
    return Job(
        spec=replace(spec, profile=profile),
        source=data["dataset"],
        data=Path(data["data"]),
        label=row["dataset"],
        unit=row["unit"],
        unlabelled=row["unlabelled"],
        plugins=tuple(data["plugins"]),
        keep=Keep(data.get("keep_predictions", Keep.NONE)),
    )


def work(store: Store, run_id: str, device: str, threads: int) -> int:
    """Work on one run; return the exit code."""
    if store.is_done(run_id):
        clean(store, run_id)
        return DONE
    error_file = store.work(run_id) / ERROR_FILE
    try:
        run(read_job(store, run_id), store, torch.device(device), threads)
    except Busy:
        return BUSY  # the run's folder belongs to whoever is at work on it
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        text = _explained(error, store, run_id)
        sys.stderr.write(f"{text}\n")
        with suppress(OSError):  # a full disk has no room for the message about it either
            error_file.write_text(text)
        return ERROR
    return DONE


def _explained(error: Exception, store: Store, run_id: str) -> str:
    """What went wrong and what to do, in a sentence."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space for {error.filename or store.path}: {error.strerror}; free some space "
            "and run the same command again, nothing is lost"
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno}); "
        f"the traceback is in {store.work(run_id) / LOG_FILE}"
    )


def die_with_parent(parent: int) -> None:
    """End this process, at any point, once its parent is gone: runs survive being cut."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(ERROR)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Parse the command line and work."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.worker", description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parent", type=int, help="process id to live no longer than")
    given = parser.parse_args()
    if given.parent is not None:
        die_with_parent(given.parent)
    return work(Store(given.store), given.run, given.device, given.threads)


if __name__ == "__main__":
    raise SystemExit(main())
