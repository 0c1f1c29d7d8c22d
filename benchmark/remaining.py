"""How long work still takes, from what work like it has taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmark.progress import Progress


@dataclass(frozen=True)
class Rate:
    """Measured cost of one kind of run, in seconds.

    overhead: of a run apart from steps and evaluations: loading, pseudo-labels, committing.
    """

    per_step: float
    per_evaluation: float
    overhead: float = 0.0

    def seconds(self, steps: int, evaluations: int) -> float:
        """Time for so many steps and evaluations."""
        return steps * self.per_step + evaluations * self.per_evaluation


def rate_of(progress: Progress) -> Rate | None:
    """The rate a run shows so far; None before it has done enough to tell.

    Until the first evaluation its cost is unknown and counted as nothing.
    """
    if progress.trained < 1 or not progress.spent("training"):
        return None
    made = progress.evaluations_made
    return Rate(
        per_step=progress.spent("training") / progress.trained,
        per_evaluation=progress.spent("evaluating") / made if made else 0.0,
    )


def rate_of_sidecar(sidecar: Mapping[str, object]) -> Rate:
    """The rate of a finished run."""
    overhead = sidecar["pseudo_label_seconds"]
    values = (sidecar["seconds_per_step"], sidecar["seconds_per_evaluation"], overhead)
    per_step, per_evaluation, extra = (float(str(v)) for v in values)
    return Rate(per_step, per_evaluation, extra)


def mean_rate(rates: Iterable[Rate]) -> Rate | None:
    """Average of rates; None of none."""
    known = list(rates)
    if not known:
        return None
    n = len(known)
    return Rate(
        sum(r.per_step for r in known) / n,
        sum(r.per_evaluation for r in known) / n,
        sum(r.overhead for r in known) / n,
    )


def remaining(progress: Progress | None, rate: Rate, steps: int, evaluations: int) -> float:
    """Seconds a run still needs at a rate, given how far it is."""
    if progress is None:
        return rate.seconds(steps, evaluations) + rate.overhead
    left = rate.seconds(steps - progress.step, evaluations - progress.evaluated)
    return max(0.0, left) + rate.overhead


def in_words(seconds: float) -> str:
    """A duration as people say it, never finer than it deserves.

    >>> [in_words(s) for s in (42, 200, 9000, 400_000, 4e7)]
    ['42 s', '3 min', '2.5 h', '4.6 days', '1.3 years']
    """
    for limit, unit, size in (
        (90, "s", 1),
        (5_400, "min", 60),
        (172_800, "h", 3_600),
        (3e7, "days", 86_400),
    ):
        if seconds < limit:
            digits = 0 if size <= 60 else 1
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 31_557_600:.1f} years"
