"""This machine: a process a run, as many at once as there are slots."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmark.executors.base import Ending, Event, Executor, Resources, event_of
from benchmark.runner import LOG_FILE
from results.store import Store

_POLL_S = 0.2
_GRACE_S = 5.0


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time: its device, GPU (None for none) and threads."""

    device: str
    gpu: str | None
    threads: int


def slots(resources: Resources) -> tuple[Slot, ...]:
    """Slots spread over the GPUs if there are any, with the cores divided fairly among them.

    Without a number of jobs: one a GPU; on a CPU one a core, so that a run has one thread and its
    bytes do not depend on how many cores the machine has.

    >>> slots(Resources(jobs=2, threads=None, gpus=(), cores=8))[1]
    Slot(device='cpu', gpu=None, threads=4)
    >>> [s.gpu for s in slots(Resources(jobs=3, threads=None, gpus=("0", "1"), cores=8))]
    ['0', '1', '0']
    """
    jobs = resources.jobs or len(resources.gpus) or resources.cores
    threads = resources.threads or max(1, resources.cores // jobs)
    if not resources.gpus:
        return (Slot("cpu", None, threads),) * jobs
    gpus = resources.gpus
    return tuple(Slot("cuda:0", gpus[i % len(gpus)], threads) for i in range(jobs))


@dataclass(frozen=True)
class Local(Executor):
    """A process a run. A run that dies takes nothing along; children end with their parent."""

    places: tuple[Slot, ...]

    @classmethod
    def make(cls, resources: Resources) -> Local:
        """With the slots that the resources give."""
        return cls(slots(resources))

    @property
    def parallel(self) -> int:
        """The number of slots."""
        return len(self.places)

    def execute(
        self,
        runs: Sequence[str],
        store: Store,
        notify: Callable[[Event], None],
        idle: Callable[[], None],
    ) -> None:
        """See `Executor`."""
        waiting = deque(runs)
        free = list(self.places)[::-1]
        active: dict[str, tuple[subprocess.Popen[bytes], Slot]] = {}
        try:
            while waiting or active:
                while waiting and free:
                    run, slot = waiting.popleft(), free.pop()
                    notify(Event(run, None))
                    try:
                        active[run] = (_start(run, slot, store), slot)
                    except OSError as error:
                        free.append(slot)
                        notify(Event(run, Ending.ERROR, f"its process cannot be started: {error}"))
                time.sleep(_POLL_S)
                for run, (process, slot) in list(active.items()):
                    code = process.poll()
                    if code is not None:
                        del active[run]
                        free.append(slot)
                        notify(event_of(run, code, store))
                idle()
        finally:
            _stop([process for process, _ in active.values()])


def _start(run: str, slot: Slot, store: Store) -> subprocess.Popen[bytes]:
    command = [
        *(sys.executable, "-m", "benchmark.worker", "--store", str(store.path), "--run", run),
        *("--device", slot.device, "--threads", str(slot.threads), "--parent", str(os.getpid())),
    ]
    variables = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        variables[name] = str(slot.threads)
    if slot.gpu is not None:
        variables["CUDA_VISIBLE_DEVICES"] = slot.gpu
        variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    folder = store.work(run)
    folder.mkdir(parents=True, exist_ok=True)  # another driver may have finished the run meanwhile
    with (folder / LOG_FILE).open("ab") as log:
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, which then ends us.
        return subprocess.Popen(
            command, env=variables, stdout=log, stderr=log, start_new_session=True
        )


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
