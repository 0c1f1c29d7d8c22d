"""Runs on Ray: `python -m tests.cluster.ray_scenarios NAME FOLDER`, in a namespace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.slurm_scenarios import LONG, Driver, Seen, seen, until

PORT = 6399


def start_node(*words: str) -> int:
    """Start a node of two processors; the process id of its `ray start`, which stays."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=2"),
            *("--disable-usage-stats", *words),
        ],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return process.pid


def start(folder: Path) -> str:
    """Start a head; its address."""
    start_node(
        *("--head", "--include-dashboard=false", f"--port={PORT}"),
        *("--node-ip-address=127.0.0.2", "--object-store-memory=80000000"),
    )
    return f"127.0.0.2:{PORT}"


def driver(folder: Path, address: str, *more: str) -> Driver:
    """`bench run` on it, as soon as it answers."""
    for _ in range(20):
        made = Driver(folder, "ray", "--set", f"ray.address={address}", *more)
        time.sleep(6)
        if made.process.poll() != 2:
            return made
    raise AssertionError(made.log.read_text()[-3000:])


def grid(folder: Path) -> Seen:
    """The same grid inline and on Ray."""
    address = start(folder)
    more = ("--method", "supervised", "--method", "mt", "--seeds", "2")
    inline = Driver(folder / "inline", "inline", *more)
    code = inline.wait(120)
    there = driver(folder / "ray", address, *more)
    return {
        "inline": {"code": code, **seen(inline.store)},
        "ray": {"code": there.wait(150), **seen(there.store)},
    }


def zombie(folder: Path) -> Seen:
    """A node is frozen; its run is tried again elsewhere; then it thaws."""
    address = start(folder)
    made = driver(
        folder / "store", address, "--method", "supervised", "--seeds", "1", "--jobs", "1", *LONG
    )
    (run,) = [p.name for p in (folder / "store" / "work").iterdir()]
    made.past(run, 20)
    (frozen,) = working_on(run)
    os.kill(frozen, signal.SIGSTOP)
    at = time.time()
    until(lambda: len(working_on(run)) == 2, 120)
    os.kill(frozen, signal.SIGCONT)
    code = made.wait(150)
    until(lambda: not working_on(run), 60)
    return {"code": code, **seen(made.store, at)}


def working_on(run: str) -> list[int]:
    """Processes that work on a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"benchmark.worker" in words and run.encode() in words:
            found.append(int(path.name))
    return found


SCENARIOS: dict[str, Callable[[Path], Seen]] = {"grid": grid, "zombie": zombie}


def main() -> None:
    """Let it happen, say what was seen."""
    name, folder = sys.argv[1:]
    sys.stdout.write("\n" + json.dumps(SCENARIOS[name](Path(folder))) + "\n")


if __name__ == "__main__":
    main()
