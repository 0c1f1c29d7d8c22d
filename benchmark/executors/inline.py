"""One run after another in this process: for debugging, and for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmark.executors.base import Event, Executor, Resources, event_of
from benchmark.worker import work
from results.store import Store


@dataclass(frozen=True)
class Inline(Executor):
    """Runs in this process on `device` with `threads`."""

    device: str = "cpu"
    threads: int = 1

    @classmethod
    def make(cls, resources: Resources) -> Inline:
        """On the first GPU, or on the CPU with all cores unless told otherwise."""
        device = "cuda:0" if resources.gpus else "cpu"
        return cls(device, resources.threads or resources.cores)

    @property
    def parallel(self) -> int:
        """Always one."""
        return 1

    def execute(
        self,
        runs: Sequence[str],
        store: Store,
        notify: Callable[[Event], None],
        idle: Callable[[], None],
    ) -> None:
        """See `Executor`."""
        for run in runs:
            notify(Event(run, None))
            code = work(store, run, self.device, self.threads)
            idle()
            notify(event_of(run, code, store))
