"""How long work still takes, from what work like it has taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmark.progress import Progress


@dataclass(frozen=True)
class Rate:
    """Measured cost of one kind of run, in seconds.

    per_evaluation: None until one was made.
    overhead:       of a run apart from steps and evaluations: pseudo-labels, committing.
    """

    per_step: float
    per_evaluation: float | None
    overhead: float = 0.0


@dataclass(frozen=True)
class Left:
    """Seconds still needed; not `sure` when something not yet measured is left out."""

    seconds: float
    sure: bool

    def in_words(self) -> str:
        """As people say it.

        >>> Left(200, True).in_words(), Left(200, False).in_words()
        ('3 min left', 'over 3 min left')
        """
        return f"{'' if self.sure else 'over '}{in_words(self.seconds)} left"


def rate_of(progress: Progress) -> Rate | None:
    """The rate a run shows so far; None before it has trained at all."""
    if progress.trained < 1 or not progress.spent("training"):
        return None
    made = progress.evaluations_made
    per_evaluation = progress.spent("evaluating") / made if made else None
    overhead = (per_evaluation or 0.0) * progress.pseudo
    return Rate(progress.spent("training") / progress.trained, per_evaluation, overhead)


def rate_of_sidecar(sidecar: Mapping[str, object]) -> Rate:
    """The rate of a finished run."""
    names = ("seconds_per_step", "seconds_per_evaluation", "pseudo_label_seconds")
    per_step, per_evaluation, overhead = (float(str(sidecar[name])) for name in names)
    return Rate(per_step, per_evaluation, overhead)


def mean_rate(rates: Iterable[Rate]) -> Rate | None:
    """Average of rates, of each part over those that know it; None of none."""
    known = list(rates)
    if not known:
        return None
    evaluations = [r.per_evaluation for r in known if r.per_evaluation is not None]
    return Rate(
        fmean(r.per_step for r in known),
        fmean(evaluations) if evaluations else None,
        max(r.overhead for r in known),
    )


def remaining(progress: Progress | None, rate: Rate, steps: int, evaluations: int) -> Left:
    """What a run still needs at a rate, given how far it is."""
    overhead = rate.overhead
    if progress is not None:
        steps, evaluations = steps - progress.step, evaluations - progress.evaluated
        overhead -= min(overhead, progress.spent("pseudo-labels"))
    spent = steps * rate.per_step + evaluations * (rate.per_evaluation or 0.0)
    sure = rate.per_evaluation is not None or evaluations == 0
    return Left(max(0.0, spent) + overhead, sure)


def together(left: Sequence[Left], parallel: int) -> Left:
    """What several runs need, so many at once: never less than the longest.

    >>> together([Left(60, True), Left(20, True)], parallel=4).seconds
    60
    """
    seconds = [item.seconds for item in left]
    total = max(sum(seconds) / parallel, max(seconds, default=0.0))
    return Left(total, all(item.sure for item in left))


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
