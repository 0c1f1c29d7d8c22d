"""What may befall runs on SLURM: `python -m tests.cluster.slurm_scenarios NAME FOLDER`.

Inside `tests.cluster.namespace`. The last line written is a JSON object of what was seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmark.slurm_queue import Entry, queue_of, submissions
from results.store import RUN_TABLES, Store
from tests.cluster.loopback import Loopback

LONG = ("--set", "profile.steps=240", "--set", "profile.evaluate_from=200")
LONG += ("--set", "profile.evaluate_every=40", "--set", "profile.checkpoint_every=4")
CHECKPOINT_EVERY = 4
Seen = dict[str, Any]


class Driver:
    """`bench run` on a store, as a process."""

    def __init__(self, store: Path, executor: str, *more: str) -> None:
        words = [sys.executable, "-m", "benchmark.cli", "run", "--dataset", "phantom"]
        words += ["--profile", "smoke", "--threads", "1", "--progress", "lines"]
        words += ["--executor", executor, "--store", str(store), *more]
        if executor == "slurm":
            words += ["--set", "slurm.poll_s=1"]
        self.store = Store(store)
        self.log = store.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)

    def wait(self, timeout_s: float) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            said = subprocess.run(["squeue", "-l"], capture_output=True, text=True).stdout
            raise AssertionError(f"{self.log.read_text()[-3000:]}\n{said}") from None

    def entry(self, state: str, timeout_s: float = 90.0) -> tuple[str, Entry]:
        """A run with a job in this state."""
        return until(
            lambda: next(
                ((r, e) for r, e in queue_of(self.store).items() if e.state == state), None
            ),
            timeout_s,
        )

    def past(self, run: str, step: int, timeout_s: float = 90.0) -> None:
        """Wait until a run has done so many steps."""
        path = self.store.work(run) / "progress.json"
        until(
            lambda: path.exists() and json.loads(path.read_text())["attempts"][-1]["step"] >= step,
            timeout_s,
        )


def until(said: Callable[[], Any], timeout_s: float) -> Any:
    """What it says once it says something."""
    deadline = time.monotonic() + timeout_s
    while not (found := said()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing after {timeout_s} s")
        time.sleep(0.2)
    return found


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of every table of every run, but for what a record says of the machine."""
    files = [p for table in (*RUN_TABLES, "runs") for p in sorted((path / table).glob("*.parquet"))]
    return {f"{p.parent.name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def seen(store: Store, fault_at: float = 0.0) -> Seen:
    """What came of the runs of a store."""
    runs = list(store.records()["run"])
    attempts = {run: store.sidecar(run)["attempts"] for run in runs}
    lost = [
        earlier["step"] - later["first_step"]
        for tries in attempts.values()
        for earlier, later in pairwise(tries)
    ]
    began = [
        a["began_at"] for tries in attempts.values() for a in tries if a["began_at"] > fault_at
    ]
    return {
        "digests": digests(store.path),
        "states": sorted(store.state(run) for run in runs),
        "attempts": sorted(len(tries) for tries in attempts.values()),
        "lost_steps": max(lost, default=0),
        "resumed_after_s": round(min(began) - fault_at, 1) if fault_at and began else None,
        "left": sorted(
            p.name for p in (store.path / "work").glob("*") if not p.name.startswith(".")
        ),
    }


def grid(cluster: Loopback, folder: Path) -> Seen:
    """The same grid by every executor."""
    found = {}
    for executor in ("inline", "local", "slurm"):
        more = ["--method", "supervised", "--method", "mt", "--seeds", "2"]
        driver = Driver(folder / executor, executor, *more)
        code = driver.wait(120)
        found[executor] = {"code": code, **seen(driver.store)}
    return found


def kill(cluster: Loopback, folder: Path) -> Seen:
    """SIGKILL of a run's process; with or without accounting."""
    driver = Driver(folder / "store", "slurm", "--method", "supervised", "--seeds", "1", *LONG)
    run, _ = driver.entry("RUNNING")
    driver.past(run, 20)
    at = kill_worker(run)
    code = driver.wait(150)
    return {"code": code, **seen(driver.store, at)}


def attach(cluster: Loopback, folder: Path) -> Seen:
    """The driver is killed, another one comes; nothing is submitted twice."""
    more = ["--method", "supervised", "--seeds", "2", *LONG, "--jobs", "1"]
    first = Driver(folder / "store", "slurm", *more)
    first.entry("RUNNING")
    first.process.kill()
    first.process.wait()
    second = Driver(folder / "store", "slurm", *more)
    until(lambda: '"start"' in second.log.read_text(), 120)
    second.process.send_signal(signal.SIGINT)
    interrupted = second.wait(30)
    said = second.log.read_text()
    status = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmark.cli",
            "status",
            "--json",
            "--store",
            str(folder / "store"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    third = Driver(folder / "store", "slurm", *more)
    made = len(submissions(third.store))
    code = third.wait(150)
    rows = [json.loads(line) for line in status.splitlines()]
    return {
        "code": code,
        "interrupted": interrupted,
        "said": said,
        "submissions": made,
        "queue": [row["queue"] for row in rows],
        **seen(third.store),
    }


def kill_worker(run: str) -> float:
    """SIGKILL the process that works on a run; when."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"benchmark.worker" in words and run.encode() in words:
            os.kill(int(path.name), signal.SIGKILL)
            return time.time()
    raise AssertionError(f"no process works on {run}")


SCENARIOS: dict[str, Callable[[Loopback, Path], Seen]] = {
    "grid": grid,
    "kill": kill,
    "attach": attach,
}


def main() -> None:
    """Start a cluster, let it happen, say what was seen."""
    name, folder, *options = sys.argv[1:]
    home = Path(folder)
    (home / "cluster").mkdir(parents=True)
    cluster = Loopback(
        home / "cluster", signal_first="signal" in options, accounting="accounting" in options
    )
    cluster.start()
    found = SCENARIOS[name](cluster, home)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
