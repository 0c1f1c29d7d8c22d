"""What an attempt at a run leaves behind: files in its work folder, and its process's exit code."""

from __future__ import annotations

from typing import Final

from results.store import Store

JOB_FILE: Final = "spec.json"
ERROR_FILE: Final = "error.txt"
LOG_FILE: Final = "log.txt"
CLAIM: Final = "claim"
"""Name of the claim that whoever works on a run holds in its work folder."""

DONE, ERROR, BUSY, OUT_OF_MEMORY, IO, STOPPED = 0, 3, 4, 5, 6, 7
"""Exit codes; `benchmark.worker` says what each means."""
AGAIN: Final = frozenset({OUT_OF_MEMORY, IO, STOPPED})
"""Exit codes after which starting again may help; so may it after any death by a signal."""
ATTEMPTS: Final = 3
"""Attempts that end by death or for want of memory before a run that gets no further is failed."""

_LONGEST_MESSAGE: Final = 1 << 14


def left_message(store: Store, run_id: str) -> str:
    """What the last attempt at a run said went wrong; "" where it said nothing."""
    try:
        with (store.work(run_id) / ERROR_FILE).open("rb") as file:
            return file.read(_LONGEST_MESSAGE).decode(errors="replace")
    except OSError:
        return ""
