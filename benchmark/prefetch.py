"""Batches made ahead of time, by threads, while the device trains on earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from methods.base import Batch

_AHEAD = 2
"""Batches under way for each thread."""


@contextmanager
def prefetched(
    sample: Callable[[int], Batch], stop: int, threads: int
) -> Iterator[Callable[[int], Batch]]:
    """Inside the block: the same batches, those of the next steps being made while one is used.

    Args:
        sample: the batch of a step; a pure function, so it does not matter who calls it when.
        stop: the step before which to end; until then steps are asked for in turn, each once.
        threads: how many make batches; 0 gives `sample` itself.
    """
    if threads == 0:
        yield sample
        return
    under_way: dict[int, Future[Batch]] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:

        def ahead(step: int) -> Batch:
            for later in range(step, min(step + _AHEAD * threads, stop)):
                if later not in under_way:
                    under_way[later] = pool.submit(sample, later)
            return under_way.pop(step).result()

        try:
            yield ahead
        finally:
            for future in under_way.values():
                future.cancel()
