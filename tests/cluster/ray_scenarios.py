"""Runs on Ray: `python -m tests.cluster.ray_scenarios NAME FOLDER`, in a namespace."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.slurm_scenarios import LONG, Driver, Seen, seen, until

HEAD, PORT = "127.0.0.2", 6399


def start_node(address: str, cpus: int, *words: str) -> None:
    """Start a node, which ends with the namespace."""
    subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *(f"--num-cpus={cpus}", f"--node-ip-address={address}", "--disable-usage-stats"),
            *("--object-store-memory=80000000", *words),
        ],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def start_head(cpus: int) -> str:
    """Start a head; its address."""
    start_node(HEAD, cpus, "--head", "--include-dashboard=false", f"--port={PORT}")
    until(answers, 60)
    return f"{HEAD}:{PORT}"


def answers() -> bool:
    """Whether a head listens."""
    with socket.socket() as tried:
        return tried.connect_ex((HEAD, PORT)) == 0


def registered() -> int:
    """How many nodes there are."""
    code = "import ray; ray.init(address='auto', log_to_driver=False); print(len(ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = done.stdout.split()
    return int(said[-1]) if said else 0


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
    address = start_head(2)
    more = ("--method", "supervised", "--method", "mt", "--seeds", "2")
    inline = Driver(folder / "inline", "inline", *more)
    code = inline.wait(120)
    there = driver(folder / "ray", address, *more)
    return {
        "inline": {"code": code, **seen(inline.store)},
        "ray": {"code": there.wait(150), **seen(there.store)},
    }


def zombie(folder: Path) -> Seen:
    """A node is frozen; its run is tried again on another; then it thaws."""
    address = start_head(0)
    for number, other in enumerate(("127.0.0.3", "127.0.0.4"), 2):
        start_node(other, 1, f"--address={address}")
        # Nodes of one machine that start at the same time take each other's ports.
        until(lambda number=number: registered() == number, 60)
    more = ("--method", "supervised", "--seeds", "1", "--jobs", "1", *LONG)
    made = driver(folder / "store", address, *more)
    (run,) = until(lambda: [p.name for p in (folder / "store" / "work").glob("*")], 60)
    made.past(run, 20)
    (worker,) = working_on(run)
    task = parent(worker)
    node = [worker, task, parent(task)]
    for process in node:
        os.kill(process, signal.SIGSTOP)
    at = time.time()
    until(lambda: set(working_on(run)) - {worker}, 120)
    survived = worker in working_on(run)
    for process in node:
        os.kill(process, signal.SIGCONT)
    code = made.wait(150)
    until(lambda: not working_on(run), 60)
    return {"code": code, "survived": survived, **seen(made.store, at)}


def parent(process: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


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
