"""A Ray cluster that somebody else has started: runs are tasks on it, and end with this command.

A cluster is attached to by its address and never started: Ray listens on every address of a
machine, and whether it may is not this program's to decide. A task starts the worker as a process
of its own, which ends with the task. Ray retries nothing by itself: what follows from an end is
decided here, as everywhere, from the exit code and the store.

A node may fall silent without Ray noticing for minutes, and how soon it does is set where the
cluster is started. The claim of a run tells within a lease, and names the node: the run is started
again on another, and no further run there. If the silent one thaws it finds its claim taken and
stops, and the first to commit wins in any case.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from benchmark.attempts import CLAIM, ERROR, LOG_FILE, OUT_OF_MEMORY, STOPPED
from benchmark.executors.base import (
    THREAD_VARIABLES,
    Event,
    Executor,
    Resources,
    Starts,
    busy,
    command,
    let_go,
    settle,
)
from benchmark.spec import override
from results import claims
from results.errors import UserError
from results.store import Store
from results.text import one_line

_PORT = 6379
_CONNECT_S = 10.0
_POLL_S = 0.2
_LOOK_EVERY_S = 2.0
_AVOIDED_S = 20 * claims.LEASE_S
"""For how long no run is started on a node that was silent."""
_PARENT = "PARENT"
_NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True)
class RaySettings:
    """Which cluster, and what a run takes of it.

    address: of the head, such as 10.0.0.1:6379; "" for $RAY_ADDRESS.
    gpus:    GPUs a run, also parts of one such as 0.5; 0 trains on the CPU.
    """

    address: str = ""
    gpus: float = 0.0


@dataclass
class _Task:
    """A run's task; the job that its worker's claim names, and the number of the claim before."""

    run: str
    reference: Any
    job: str
    before: int

    def owns(self, holder: claims.Holder) -> bool:
        """Whether a claim is its worker's."""
        return str(holder.facts.get("job", "")).endswith(f"/{self.job}")


@dataclass(frozen=True)
class Ray(Executor):
    """A task a run on an existing Ray cluster, `threads` CPUs each; it ends with this command."""

    asked: RaySettings
    jobs: int | None = None
    threads: int = 1
    settings: ClassVar[Any] = RaySettings()
    elsewhere: ClassVar[bool] = True

    @classmethod
    def within(cls, resources: Resources) -> dict[str, Any]:
        """With one CPU a run unless told otherwise.

        Raises:
            UserError: Ray is not installed, a setting is unknown, or no cluster is named.
        """
        asked = override(cls.settings, "ray", resources.settings)
        address = asked.address or os.environ.get("RAY_ADDRESS", "")
        if address in ("", "auto", "local"):
            raise UserError(
                f"--executor ray needs the address of a running cluster, not {address!r}: give "
                "--set ray.address=HOST:6379 or RAY_ADDRESS. None is ever started for you"
            )
        if asked.gpus < 0:
            raise UserError(f"--set ray.gpus={asked.gpus}: it must be at least 0")
        _ray()
        asked = RaySettings(address, asked.gpus)
        return {"asked": asked, "jobs": resources.jobs, "threads": resources.threads or 1}

    @property
    def parallel(self) -> int:
        """The limit on runs at once; without one it is the cluster that limits."""
        return self.jobs or 1000

    def unreachable(self) -> str:
        """See `Executor`; Ray itself would take minutes to say so."""
        address = self.asked.address
        try:
            place = urlsplit(address if "://" in address else f"//{address}")
            if not place.hostname:
                raise ValueError("it names no host")
            with socket.create_connection((place.hostname, place.port or _PORT), _CONNECT_S):
                return ""
        except (OSError, ValueError) as error:
            return _no_cluster(address, error)

    def execute(
        self,
        runs: Sequence[str],
        store: Store,
        notify: Callable[[Event], None],
        idle: Callable[[], None],
    ) -> None:
        """See `Executor`.

        Raises:
            UserError: no cluster answers at the address.
        """
        ray = _ray()
        store = Store(store.path.resolve())
        _attach(ray, self.asked.address)
        try:
            self._work(ray, runs, store, notify, idle)
        finally:
            ray.shutdown()

    def _work(
        self,
        ray: Any,
        runs: Sequence[str],
        store: Store,
        notify: Callable[[Event], None],
        idle: Callable[[], None],
    ) -> None:
        start = _starter(ray, self.threads, self.asked.gpus)
        waiting, active = deque(runs), dict[str, _Task]()
        starts = {run: Starts() for run in runs}
        begun: set[str] = set()
        silent: dict[str, float] = {}
        next_look = 0.0
        while waiting or active:
            while waiting and len(active) < self.parallel:
                run = waiting.popleft()
                if run not in begun:
                    begun.add(run)
                    notify(Event(run, None))
                held = busy(run, store)
                if held is not None:
                    notify(held)
                    continue
                starts[run].begin(run, store)
                log, job = str(store.work(run) / LOG_FILE), uuid.uuid4().hex
                before = claims.newest(store.work(run), CLAIM)
                avoid = _to_avoid(ray, silent, self.threads, self.asked.gpus)
                reference = start(self._words(run, store), log, job, avoid)
                active[run] = _Task(run, reference, job, before.number if before else 0)
            if not active:
                continue
            finished, _ = ray.wait([task.reference for task in active.values()], timeout=_POLL_S)
            ended = {run: _end(ray, t) for run, t in active.items() if t.reference in finished}
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _LOOK_EVERY_S
                now = claims.file_system_time(store.path / "work")
                for run, task in active.items():
                    node = None if run in ended else _silent(task, store, now)
                    if node is not None:
                        silent[node] = time.monotonic()
                        ended[run] = (STOPPED, f"node {node} was silent")
            for run, (code, how) in ended.items():
                task = active.pop(run)
                if task.reference not in finished:
                    ray.cancel(task.reference, force=True)
                event = settle(
                    *(run, code, store),
                    starts=starts[run],
                    attempts=self.attempts,
                    how=how,
                    pid=let_go(run, code, store, task.owns, how),
                )
                if event is not None:
                    notify(event)
                else:
                    waiting.append(run)
            idle()

    def _words(self, run: str, store: Store) -> list[str]:
        device = "cuda:0" if self.asked.gpus else "cpu"
        words = command(
            *(run, store),
            device=device,
            threads=self.threads,
            plugins=self.plugins,
            attempts=self.attempts,
            share=self.asked.gpus if 0 < self.asked.gpus < 1 else 1.0,
            tied_to=0,
        )
        words[words.index("benchmark.tether") + 1] = _PARENT
        return words


def _starter(ray: Any, threads: int, gpus: float) -> Callable[[list[str], str, str, set[str]], Any]:
    """What starts the worker on a node that is not to be avoided; it needs only Python there."""
    variables = dict.fromkeys(THREAD_VARIABLES, str(threads))
    variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if "PYTHONPATH" in os.environ:
        variables["PYTHONPATH"] = os.environ["PYTHONPATH"]

    parent = _PARENT

    def work(words: list[str], log: str, job: str) -> int:
        import os
        import subprocess
        import sys
        from pathlib import Path

        import ray

        place = f"{ray.get_runtime_context().get_node_id()}/{job}"
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        tied = [str(os.getpid()) if word == parent else word for word in words[1:]]
        with Path(log).open("ab") as file:
            return subprocess.run(
                [sys.executable, *tied, "--job", place],
                env=os.environ | variables,
                stdout=file,
                stderr=file,
                check=False,
            ).returncode

    task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(work)

    def start(words: list[str], log: str, job: str, avoid: set[str]) -> Any:
        where = {_NODE_LABEL: f"!in({','.join(sorted(avoid))})"} if avoid else {}
        return task.options(label_selector=where).remote(words, log, job)

    return start


def _to_avoid(ray: Any, silent: dict[str, float], cpus: int, gpus: float) -> set[str]:
    """The nodes lately silent that Ray still counts on, unless no other could take a run."""
    recent = {node for node, at in silent.items() if time.monotonic() < at + _AVOIDED_S}
    able = {
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU", 0) >= cpus
        and node["Resources"].get("GPU", 0) >= gpus
    }
    return recent & able if able - recent else set()


def _end(ray: Any, task: _Task) -> tuple[int, str]:
    """Exit code of the worker of a task that has ended, or the one that says the same, and how."""
    try:
        return int(ray.get(task.reference)), ""
    except ray.exceptions.OutOfMemoryError:
        return OUT_OF_MEMORY, "out of memory on its node: Ray ended it"
    except ray.exceptions.RayTaskError as error:  # it could not start the worker
        return ERROR, f"the run could not be started on its node: {error}"
    except ray.exceptions.RayError as error:
        return STOPPED, f"its node or its task was lost ({type(error).__name__})"


def _silent(task: _Task, store: Store, now: float) -> str | None:
    """The node of a task whose claim has given no sign of life for a lease; None where it lives."""
    holder = claims.newest(store.work(task.run), CLAIM)
    if store.is_done(task.run) or holder is None or holder.number <= task.before:
        return None
    if holder.ending or holder.is_live(now):
        return None
    return str(holder.facts.get("job", "")).partition("/")[0]


def _attach(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(_no_cluster(address, error)) from None


def _no_cluster(address: str, error: Exception) -> str:
    said = one_line(str(error)) or type(error).__name__
    return (
        f"no Ray cluster answers at {address}: {said}. Start one, or "
        "give its address with --set ray.address=HOST:6379; none is ever started for you"
    )


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError(
            "--executor ray needs Ray, which is not installed: pip install 'ssl3d-bench[ray]'"
        ) from None
    return ray
