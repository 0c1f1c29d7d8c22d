"""This machine: a process a run, as many at once as there are slots."""

from __future__ import annotations

import os
import subprocess
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

from benchmark.attempts import IO, LOG_FILE
from benchmark.executors.base import (
    THREAD_VARIABLES,
    Ending,
    Event,
    Executor,
    Resources,
    Starts,
    busy,
    command,
    settle,
)
from results.store import Store

_POLL_S = 0.2
_GRACE_S = 5.0
_PAUSE_S = 2.0
"""Before a run is started again whose disk failed; others are started at once."""
_KILLS = Path("/proc/vmstat")


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time: its device, GPU (None for none), threads, and share of memory.

    share: of the GPU's memory that a run may take, so that one too large fails by itself instead of
           taking its neighbours along.
    """

    device: str
    gpu: str | None
    threads: int
    share: float = 1.0


def slots(resources: Resources) -> tuple[Slot, ...]:
    """Slots spread over the GPUs if there are any, with the cores divided fairly among them.

    Without a number of jobs: one a GPU; on a CPU one a core, so that a run has one thread and its
    bytes do not depend on how many cores the machine has.

    >>> slots(Resources(jobs=2, threads=None, gpus=(), cores=8))[1]
    Slot(device='cpu', gpu=None, threads=4, share=1.0)
    >>> three = slots(Resources(jobs=3, threads=None, gpus=("0", "1"), cores=8))
    >>> [(s.gpu, s.share) for s in three]
    [('0', 0.5), ('1', 1.0), ('0', 0.5)]
    """
    jobs = resources.jobs or len(resources.gpus) or resources.cores
    threads = resources.threads or max(1, resources.cores // jobs)
    if not resources.gpus:
        return (Slot("cpu", None, threads),) * jobs
    gpus = [resources.gpus[i % len(resources.gpus)] for i in range(jobs)]
    return tuple(Slot("cuda:0", gpu, threads, 1 / gpus.count(gpu)) for gpu in gpus)


@dataclass
class _Child:
    """A run's process, where it is, and how often memory had run out here when it began."""

    process: subprocess.Popen[bytes]
    slot: Slot
    kills: int


@dataclass(frozen=True)
class Local(Executor):
    """A process a run. A run that dies takes nothing along; children end with their parent."""

    places: tuple[Slot, ...]

    @classmethod
    def within(cls, resources: Resources) -> dict[str, Any]:
        """With the slots that the resources give."""
        return {"places": slots(resources)}

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
        waiting = deque((run, 0.0) for run in runs)
        free = list(self.places)[::-1]
        active: dict[str, _Child] = {}
        starts: defaultdict[str, Starts] = defaultdict(Starts)
        try:
            while waiting or active:
                for _ in range(len(waiting)):
                    run, not_before = waiting.popleft()
                    if not free or time.monotonic() < not_before:
                        waiting.append((run, not_before))
                        continue
                    notify(Event(run, None))
                    held = busy(run, store)
                    if held is not None:
                        notify(held)
                        continue
                    starts[run].begin(run, store)
                    slot = free.pop()
                    try:
                        active[run] = self._start(run, slot, store)
                    except OSError as error:
                        free.append(slot)
                        notify(Event(run, Ending.ERROR, f"its process cannot be started: {error}"))
                time.sleep(_POLL_S)
                for run, child in list(active.items()):
                    code = child.process.poll()
                    if code is None:
                        continue
                    del active[run]
                    free.append(child.slot)
                    event = settle(
                        *(run, code, store),
                        starts=starts[run],
                        attempts=self.attempts,
                        how=_cause(code, child.kills),
                        pid=child.process.pid,
                    )
                    if event is not None:
                        notify(event)
                    else:
                        pause = _PAUSE_S if code == IO else 0.0
                        waiting.appendleft((run, time.monotonic() + pause))
                idle()
        finally:
            _stop([child.process for child in active.values()])

    def _start(self, run: str, slot: Slot, store: Store) -> _Child:
        words = command(
            *(run, store),
            device=slot.device,
            threads=slot.threads,
            plugins=self.plugins,
            attempts=self.attempts,
            share=slot.share,
            tied_to=os.getpid(),
        )
        variables = dict(os.environ)
        for name in THREAD_VARIABLES:
            variables[name] = str(slot.threads)
        if slot.gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = slot.gpu
            variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        folder = store.work(run)
        folder.mkdir(parents=True, exist_ok=True)  # another driver may have finished it meanwhile
        kills = memory_kills()
        log_file = os.open(
            folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666
        )
        with open(log_file, "ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches the parent alone, which ends us.
            process = subprocess.Popen(
                words, env=variables, stdout=log, stderr=log, start_new_session=True
            )
        return _Child(process, slot, kills)


def memory_kills(counters: Path = _KILLS) -> int:
    """How many processes the system has ended for want of memory since it started; 0 if unknown."""
    with suppress(OSError):
        for line in counters.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _cause(code: int, kills_before: int) -> str:
    """Why a process was killed, where the system tells."""
    if code == -SIGKILL and memory_kills() > kills_before:
        return (
            "out of memory on this machine: the system ended its process (SIGKILL) when memory ran "
            "out; run fewer at once (--jobs), or choose a smaller profile"
        )
    return ""


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
