"""What an executor is: something that gets announced runs worked on."""

from __future__ import annotations

import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Self

from benchmark.attempts import (
    AGAIN,
    ATTEMPTS,
    BUSY,
    CLAIM,
    DONE,
    ERROR_FILE,
    OUT_OF_MEMORY,
    STOPPED,
    left_message,
)
from benchmark.checkpoint import newest_step
from benchmark.jobs import clean
from benchmark.worker import busy_message, give_up, note_death
from results.claims import Holder, close, newest
from results.errors import UserError
from results.store import Store
from results.text import told

_CUT = {STOPPED: "lost", OUT_OF_MEMORY: "out-of-memory"}
"""How the claim ends of a worker that was cut before it could say so, by exit code."""
_FIRST_SIGNAL_CODE = 128
"""Shells and schedulers report a death by signal n as exit code 128 + n."""


THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""By which libraries are told before they start how many threads they may have."""


class Ending(StrEnum):
    """How work on a run ended, as far as the executor sees; the store knows the rest."""

    DONE = "done"
    ERROR = "error"
    BUSY = "busy"


@dataclass(frozen=True)
class Event:
    """A run was started (`ending` is None) or ended, with a message where there is one."""

    run: str
    ending: Ending | None
    message: str = ""


@dataclass
class Starts:
    """How often a command has started a run since it last got further.

    number:  of starts; reached: steps done at the newest checkpoint of the last one.
    """

    number: int = 0
    reached: int = 0

    def begin(self, run: str, store: Store) -> None:
        """It is started now; what an earlier attempt said of itself is no longer true."""
        self.number += 1
        self.reached = newest_step(store.work(run))
        with suppress(OSError):  # a disk that fails is for the worker to tell
            (store.work(run) / ERROR_FILE).unlink(missing_ok=True)

    def since(self, run: str, store: Store) -> int:
        """The number, after the start has ended."""
        if newest_step(store.work(run)) > self.reached:
            self.number = 0
        return self.number


@dataclass(frozen=True)
class Resources:
    """What the command line grants.

    jobs:     runs at once; None lets the executor choose.
    threads:  CPU threads a run; None divides the cores among the jobs.
    gpus:     ids of usable GPUs, as CUDA_VISIBLE_DEVICES takes them; none on a CPU machine.
    cores:    processor cores.
    plugins:  files with methods whose code may be run.
    attempts: starts of a run that dies, before it is failed.
    settings: of the executor, by name, as `--set` gives them.
    """

    jobs: int | None
    threads: int | None
    gpus: tuple[str, ...]
    cores: int
    plugins: tuple[str, ...] = ()
    attempts: int = ATTEMPTS
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Executor(ABC):
    """Works on runs by calling `benchmark.worker` for each, wherever that is.

    plugins:   files with methods whose code may be run.
    attempts:  starts of a run that dies, before it is failed.
    settings:  a dataclass with the defaults of what `--set` changes; None where there is nothing.
    elsewhere: whether runs are worked on by other machines than this one.
    """

    plugins: tuple[str, ...] = ()
    attempts: int = ATTEMPTS
    settings: ClassVar[Any] = None
    elsewhere: ClassVar[bool] = False

    @classmethod
    def make(cls, resources: Resources) -> Self:
        """An executor within these resources.

        Raises:
            UserError: what it needs is missing, or a setting is wrong.
        """
        own = cls.within(resources)
        return cls(plugins=resources.plugins, attempts=resources.attempts, **own)

    @classmethod
    @abstractmethod
    def within(cls, resources: Resources) -> dict[str, Any]:
        """The fields that only this kind of executor has, by name, for `make`."""

    @property
    @abstractmethod
    def parallel(self) -> int:
        """How many runs it works on at once."""

    @abstractmethod
    def execute(
        self,
        runs: Sequence[str],
        store: Store,
        notify: Callable[[Event], None],
        idle: Callable[[], None],
    ) -> None:
        """Work on all runs; return when each has ended, BUSY ones left to whoever has them.

        Args:
            runs: ids of announced runs.
            store: where they were announced.
            notify: called at every start and end.
            idle: called a few times a second in between, for the display.

        Raises:
            KeyboardInterrupt: after everything has been stopped that needs this process.
        """

    def unreachable(self) -> str:
        """Why what it works with cannot be reached, before anything begins; "" where it can."""
        return ""

    def farewell(self, store: Store) -> str:
        """What to say to a user who interrupted work on a store."""
        return "interrupted; the same command continues every run from its last checkpoint"


def command(
    run: str,
    store: Store,
    *,
    device: str,
    threads: int,
    plugins: Sequence[str],
    attempts: int,
    share: float = 1.0,
    tied_to: int | None = None,
) -> list[str]:
    """The command that works on a run; the same again continues it.

    Args:
        run: id of an announced run.
        store: where it was announced.
        device: to train on.
        threads: CPU threads.
        plugins: files whose code may be run.
        attempts: how many that die make the run failed.
        share: of the GPU's memory that it may take.
        tied_to: process id of the parent that the command must not outlive.
    """
    tether = [] if tied_to is None else ["benchmark.tether", str(tied_to)]
    named = [word for plugin in plugins for word in ("--plugin", plugin)]
    return [
        *(sys.executable, "-m", *tether, "benchmark.worker"),
        *("--store", str(store.path), "--run", run, "--device", device),
        *("--threads", str(threads), "--attempts", str(attempts), *named),
        *(() if share == 1 else ("--share", str(share))),
    ]


def busy(run: str, store: Store, now: float | None = None) -> Event | None:
    """The event for a run that another process holds or has finished; None where it is free.

    Cheap: what is seen here need not be started to be told. `now` as `Holder.is_live` takes it.
    """
    if store.is_done(run):
        clean(store, run)
        return Event(run, Ending.DONE)
    holder = newest(store.work(run), CLAIM)
    if holder is not None and holder.is_live(now):
        return Event(run, Ending.BUSY, busy_message(store, run))
    return None


def let_go(run: str, code: int, store: Store, own: Callable[[Holder], bool], reason: str) -> int:
    """End the claim that a worker left when it was cut; the process id of its holder, 0 for none.

    If the process lives on, on a node that is only silent, it finds its claim ended and stops.

    Args:
        run: the run it worked on.
        code: its exit code, or the one that says the same.
        store: where the run was announced.
        own: whether a claim is that worker's.
        reason: how it was cut, in a sentence.
    """
    holder = newest(store.work(run), CLAIM)
    if holder is None or not own(holder):
        return 0
    if not holder.ending and code in _CUT:
        close(holder, _CUT[code], reason)
    return holder.pid


def settle(
    run: str,
    code: int,
    store: Store,
    *,
    starts: Starts,
    attempts: int,
    how: str = "",
    pid: int | None = None,
) -> Event | None:
    """What follows from the end of a worker: an event, or None to start it again.

    Args:
        run: the run it worked on.
        code: its exit code; negative for a signal, as `subprocess` has it.
        store: where the run was announced.
        starts: of the run by this command.
        attempts: how often a run is started that gets no further; after as many deaths it is
            recorded as failed.
        how: how a worker ended, where more is known than its code.
        pid: its process id, where it is known.
    """
    # On a network file system a listing shows what others wrote; asking for one file may not yet.
    if store.is_done(run) or (code == DONE and run in store.done()):
        return Event(run, Ending.DONE)
    if code == BUSY:
        return Event(run, Ending.BUSY, busy_message(store, run))
    died = code < 0 or code > _FIRST_SIGNAL_CODE
    if died:
        note_death(store, run, how or f"its process was ended by {_signal(code)}", pid)
    if code == DONE:  # without a record: somebody discarded it meanwhile
        return Event(run, Ending.ERROR, "its record is gone again; the same command makes it anew")
    if died or code in AGAIN:
        if starts.since(run, store) < attempts:
            return None
        try:
            if give_up(store, run, attempts):
                return Event(run, Ending.DONE)
        except (OSError, ValueError, UserError) as error:
            # A disk that fails or is full must not end the command and all of its other runs.
            what = f"it died too often, and that could not be recorded: {told(error)}"
            return Event(run, Ending.ERROR, what)
    return Event(run, Ending.ERROR, left_message(store, run) or how or _ended(code))


def _ended(code: int) -> str:
    how = f"by {_signal(code)}" if code < 0 else f"with exit code {code}"
    return f"its process ended {how}; the same command continues it"


def _signal(code: int) -> str:
    number = -code if code < 0 else code - _FIRST_SIGNAL_CODE
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
