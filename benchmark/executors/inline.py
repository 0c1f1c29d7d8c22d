"""One run after another in this process: for debugging, and for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.executors.base import Event, Executor, Resources, Starts, settle
from benchmark.worker import work
from results.store import Store


@dataclass(frozen=True)
class Inline(Executor):
    """Runs in this process on `device` with `threads`."""

    device: str = "cpu"
    threads: int = 1

    @classmethod
    def within(cls, resources: Resources) -> dict[str, Any]:
        """On the first GPU, or on the CPU with all cores unless told otherwise."""
        device = "cuda:0" if resources.gpus else "cpu"
        return {"device": device, "threads": resources.threads or resources.cores}

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
            ended, starts = None, Starts()
            while ended is None:
                starts.begin(run, store)
                code = work(
                    *(store, run, self.device, self.threads),
                    plugins=self.plugins,
                    attempts=self.attempts,
                )
                idle()
                ended = settle(run, code, store, starts=starts, attempts=self.attempts)
            notify(ended)
