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
    # Long enough that the first run is at work, and the second waits, until all have looked.
    longer = [word.replace("=240", "=1200") for word in LONG]
    more = ["--method", "supervised", "--seeds", "2", *longer, "--jobs", "1"]
    first = Driver(folder / "store", "slurm", *more)
    first.entry("RUNNING")
    first.process.kill()
    first.process.wait()
    second = Driver(folder / "store", "slurm", *more)
    until(lambda: '"start"' in second.log.read_text(), 120)
    made = [len(submissions(second.store))]
    second.process.send_signal(signal.SIGINT)
    interrupted = second.wait(120)
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
    until(lambda: third.log.read_text().count('"start"') > said.count('"start"'), 120)
    made.append(len(submissions(third.store)))
    code = third.wait(200)
    rows = [json.loads(line) for line in status.splitlines()]
    return {
        "code": code,
        "interrupted": interrupted,
        "said": said,
        "submissions": made,
        "queue": [row["queue"] for row in rows],
        **seen(third.store),
    }


def limit(cluster: Loopback, folder: Path) -> Seen:
    """The time limit: with the signal before it, then without."""
    found = {}
    for name, before in (("signal", "30"), ("plain", "0")):
        longer = [word.replace("=240", "=4000") for word in LONG]
        more = ["--method", "supervised", "--seeds", "1", *longer, "--set", "slurm.time=1"]
        more += ["--set", f"slurm.signal_s={before}"]
        driver = Driver(folder / name, "slurm", *more)
        run, _ = driver.entry("RUNNING")
        driver.past(run, 8)
        path = driver.store.work(run) / "progress.json"
        until(lambda path=path: len(json.loads(path.read_text())["attempts"]) > 1, 200)
        made = len(submissions(driver.store))
        tries = json.loads(path.read_text())["attempts"]
        driver.process.send_signal(signal.SIGINT)
        driver.wait(30)
        cancel_jobs(driver.store)
        lost = tries[0]["step"] - tries[1]["first_step"]
        found[name] = {"submissions": made, "lost_steps": lost, "reached": tries[0]["step"]}
    return found


def preempt(cluster: Loopback, folder: Path) -> Seen:
    """A job of higher priority takes the node; with or without a signal, as the cluster has it."""
    driver = Driver(folder / "store", "slurm", "--method", "supervised", "--seeds", "1", *LONG)
    run, _ = driver.entry("RUNNING")
    driver.past(run, 20)
    at = time.time()
    subprocess.run(
        ["sbatch", "-p", "high", "-N", "3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"],
        check=True,
    )
    code = driver.wait(200)
    return {"code": code, **seen(driver.store, at)}


def lose_node(cluster: Loopback, folder: Path) -> Seen:
    """The node of a run crashes."""
    driver = Driver(folder / "store", "slurm", "--method", "supervised", "--seeds", "1", *LONG)
    run, entry = driver.entry("RUNNING")
    driver.past(run, 20)
    cluster.crash_node(entry.node)
    kill_worker(run, there=False)
    at = time.time()
    code = driver.wait(250)
    return {"code": code, **seen(driver.store, at)}


def restart_controller(cluster: Loopback, folder: Path) -> Seen:
    """The controller is gone for a while."""
    driver = Driver(folder / "store", "slurm", "--method", "supervised", "--seeds", "1", *LONG)
    run, _ = driver.entry("RUNNING")
    driver.past(run, 8)
    cluster.kill_controller()
    time.sleep(8)
    cluster.start_controller()
    code = driver.wait(250)
    return {"code": code, **seen(driver.store)}


def cancel(cluster: Loopback, folder: Path) -> Seen:
    """Somebody cancels the jobs; the driver says so, and the same command goes on."""
    more = ["--method", "supervised", "--seeds", "1", *LONG]
    driver = Driver(folder / "store", "slurm", *more)
    run, _ = driver.entry("RUNNING")
    driver.past(run, 20)
    at = time.time()
    cancel_jobs(driver.store)
    first = driver.wait(90)
    noticed = round(time.time() - at, 1)
    code = Driver(folder / "store", "slurm", *more).wait(200)
    said = "before it ended; the same command submits it again" in driver.log.read_text()
    return {"first": first, "noticed_s": noticed, "said": said, "code": code, **seen(driver.store)}


def cancel_jobs(store: Store) -> None:
    """Cancel what a store has in the queue."""
    subprocess.run(["scancel", f"--name={','.join(submissions(store))}"], check=True)


def kill_worker(run: str, *, there: bool = True) -> float:
    """SIGKILL the process that works on a run, which must be there unless told otherwise; when."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"benchmark.worker" in words and run.encode() in words:
            os.kill(int(path.name), signal.SIGKILL)
            return time.time()
    if there:
        raise AssertionError(f"no process works on {run}")
    return time.time()


SCENARIOS: dict[str, Callable[[Loopback, Path], Seen]] = {
    "grid": grid,
    "kill": kill,
    "attach": attach,
    "limit": limit,
    "preempt": preempt,
    "lose-node": lose_node,
    "restart-controller": restart_controller,
    "cancel": cancel,
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
