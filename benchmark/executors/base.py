"""What an executor is: something that gets announced runs worked on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmark.runner import ERROR_FILE, busy_message
from benchmark.worker import BUSY, DONE
from results.store import Store


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


@dataclass(frozen=True)
class Resources:
    """What the command line grants.

    jobs:    runs at once; None lets the executor choose.
    threads: CPU threads a run; None divides the cores among the jobs.
    gpus:    ids of usable GPUs, as CUDA_VISIBLE_DEVICES takes them; none on a CPU machine.
    cores:   processor cores.
    """

    jobs: int | None
    threads: int | None
    gpus: tuple[str, ...]
    cores: int


class Executor(ABC):
    """Works on runs by calling `benchmark.worker` for each, wherever that is."""

    @classmethod
    @abstractmethod
    def make(cls, resources: Resources) -> Executor:
        """An executor within these resources."""

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
        """Work on all runs; return when each has ended.

        Args:
            runs: ids of announced runs.
            store: where they were announced.
            notify: called at every start and end.
            idle: called a few times a second in between, for the display.

        Raises:
            KeyboardInterrupt: after everything it started has been stopped.
        """


def event_of(run: str, code: int, store: Store) -> Event:
    """The event for a worker's exit code, with what the worker left to say."""
    if code == DONE:
        return Event(run, Ending.DONE)
    if code == BUSY:
        return Event(run, Ending.BUSY, busy_message(store.work(run), run))
    left = store.work(run) / ERROR_FILE
    said = left.read_text() if code > 0 and left.exists() else ""
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    fallback = f"its process ended {how}; the same command continues it"
    return Event(run, Ending.ERROR, said or fallback)
