"""How far a run is: one small file in its work folder, written by the run, read by everyone."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

FILE = "progress.json"
_WRITE_EVERY_S = 0.5
_LARGEST = 1 << 24

Phase = Literal["loading", "training", "evaluating", "pseudo-labels", "committing"]


@dataclass
class Attempt:
    """One process working on a run: where it began, how far it got, and what it took.

    segmented: volumes segmented, once for each predictor.
    spent:     seconds by phase.
    """

    host: str
    pid: int
    began_at: float
    first_step: int
    step: int
    seconds: float = 0.0
    evaluations: int = 0
    segmented: int = 0
    segmenting_seconds: float = 0.0
    peak_memory_bytes: int = 0
    spent: dict[str, float] = field(default_factory=dict)


@dataclass
class Progress:
    """State of a run, for people and for the remaining-time estimate.

    pseudo:     volumes that get pseudo-labels at the end, as a multiple of the evaluated ones.
    written_at: seconds since 1970; a running run writes at least every evaluated volume.
    """

    total: int
    evaluations: int
    phase: Phase = "loading"
    evaluated: int = 0
    pseudo: float = 0.0
    written_at: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.attempts[-1].step if self.attempts else 0

    @property
    def seconds(self) -> float:
        """Wall time of all attempts."""
        return sum(a.seconds for a in self.attempts)

    def spent(self, phase: Phase) -> float:
        """Seconds of all attempts in one phase."""
        return sum(a.spent.get(phase, 0.0) for a in self.attempts)

    @property
    def trained(self) -> int:
        """Steps of all attempts, those done twice after a cut included."""
        return sum(a.step - a.first_step for a in self.attempts)

    @property
    def evaluations_made(self) -> int:
        """Evaluations of all attempts, those done twice after a cut included."""
        return sum(a.evaluations for a in self.attempts)


class Reporter:
    """Writes a run's progress, at most twice a second unless the phase changes."""

    def __init__(self, folder: Path, total: int, evaluations: int) -> None:
        self._path = folder / FILE
        before = read(folder)
        self.progress = Progress(total, evaluations, attempts=before.attempts if before else [])
        self._clock = time.monotonic()
        self._last_write = 0.0
        self._counted: float | None = None

    def begin(self, step: int, evaluated: int) -> None:
        """A new attempt starts from `step` steps done and `evaluated` evaluations kept."""
        attempt = Attempt(platform.node(), os.getpid(), time.time(), step, step)
        self.progress.attempts.append(attempt)
        self.progress.evaluated = evaluated
        self.enter("training")

    @property
    def attempt(self) -> Attempt:
        """The present attempt."""
        return self.progress.attempts[-1]

    def enter(self, phase: Phase) -> None:
        """Change the phase, and write."""
        self.progress.phase = phase
        self.write(force=True)

    @contextmanager
    def timing(self, phase: Phase) -> Iterator[None]:
        """Enter a phase and count its seconds; steps and their seconds are written together."""
        self.enter(phase)
        self._counted = time.monotonic()
        try:
            yield
        except BaseException:  # the next attempt reads what this one took
            with suppress(OSError):
                self.write(force=True)
            raise
        finally:
            self._count()
            self._counted = None

    def write(self, *, force: bool = False) -> None:
        """Write the file, atomically, unless it was just written."""
        now = time.monotonic()
        if not force and now - self._last_write < _WRITE_EVERY_S:
            return
        self._last_write = now
        if self.progress.phase == "training":  # steps count as they are done, evaluations whole
            self._count()
        if self.progress.attempts:
            self.attempt.seconds = now - self._clock
        self.progress.written_at = time.time()
        temporary = self._path.with_name(f".tmp-{FILE}-{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self.progress)))
        temporary.replace(self._path)

    def _count(self) -> None:
        """Add to the present phase what it took since this was last done, if it is timed."""
        if self._counted is not None:
            spent, phase, now = self.attempt.spent, self.progress.phase, time.monotonic()
            spent[phase] = spent.get(phase, 0.0) + now - self._counted
            self._counted = now


def read(folder: Path) -> Progress | None:
    """The progress of the run that works in `folder`; None when it has not begun.

    So it is where the file is no such thing: a run that begins writes its own.
    """
    try:
        with (folder / FILE).open("rb") as file:
            data = json.loads(file.read(_LARGEST))
        attempts = [Attempt(**_numbers(Attempt, a)) for a in data.pop("attempts")]
        return Progress(**_numbers(Progress, data), attempts=attempts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _numbers(cls: type, data: Any) -> dict[str, Any]:
    """The fields, once those that are numbers are known to be.

    Raises:
        TypeError: one is not.
    """
    for name, kind in cls.__annotations__.items():
        if name in data and kind in ("int", "float") and type(data[name]) not in (int, float):
            raise TypeError(name)
    return dict(data)
