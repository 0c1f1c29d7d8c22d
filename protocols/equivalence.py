"""Do runs still give the number that was reported? An equivalence test with four answers.

A *claim* is a value with a margin. From the finished runs follows an interval [low, high] of the
true mean (or median) over runs, each end at one-sided level alpha = 0.05, so that together they are
two one-sided tests (TOST; Schuirmann 1987, doi:10.1007/BF01068419). With v the value and m the
margin, and "better" higher for DSC and lower for distances:

================  =================================  =========================================
answer            direction `equal`                  direction `at-least`
================  =================================  =========================================
reproduced        v - m <= low and high <= v + m     the interval's worse end is within m of v
regressed         the interval lies beyond m,        the interval lies beyond m on the worse
                  on either side                     side
inconclusive      anything between                   anything between
nothing measured  no finished run has a value        no finished run has a value
================  =================================  =========================================

A number that turned out better than `equal` allows is not what was reported either: something has
changed that somebody should look at, such as a leak. `at-least` takes it, and says so.

An absence of evidence is never `reproduced`: too few runs have an unbounded interval. Neither is
any of these, which make it `inconclusive` at best: a finished run without a value, an unfinished
run, a greater share of failed runs than the claim had, and a *negative control* (a claim known to
be wrong, see `wrong`) that these runs do not tell from the truth; with direction `equal` no
interval that is narrow enough to reproduce can fail at that. Where the share of failed runs is
greater by Fisher's exact test (one-sided, at alpha), the answer is `regressed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, chi2, fisher_exact, norm
from scipy.stats import t as student

from protocols.power import FEWEST
from results.lookup import unknown

ALPHA: Final = 0.05
"""Level of each of the two one-sided tests."""

CONTROL_MARGINS: Final = 3.0
"""How far off the negative control is, in margins."""

POWER: Final = 0.8
"""With which the derived margin can be confirmed by as many runs, were their SD the true one."""

_NODES: Final = 2001


class Answer(StrEnum):
    """What a check says, from best to worst."""

    REPRODUCED = "reproduced"
    INCONCLUSIVE = "inconclusive"
    REGRESSED = "regressed"
    NOTHING = "nothing measured"


STATISTICS: Final = {
    "mean": "mean over runs; t interval (exact for normal values)",
    "median": "median over runs; interval between two of the runs (exact for any distribution)",
}
DIRECTIONS: Final = {
    "equal": "off by more than the margin on either side is a regression",
    "at-least": "off on the worse side only is a regression; better is taken, and said",
}


@dataclass(frozen=True)
class Claim:
    """A reported number.

    value, margin:    in one unit; the margin is above 0.
    higher_is_better: which side is worse.
    statistic:        over runs; a name in `STATISTICS`.
    direction:        a name in `DIRECTIONS`.
    finished, failed: of the runs that the number stands for.
    """

    value: float
    margin: float
    higher_is_better: bool
    statistic: str = "mean"
    direction: str = "equal"
    finished: int = 1
    failed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.margin < math.inf:
            raise ValueError(f"margin {self.margin}: expected above 0")
        if self.statistic not in STATISTICS:
            raise unknown("statistic", self.statistic, STATISTICS)
        if self.direction not in DIRECTIONS:
            raise unknown("direction", self.direction, DIRECTIONS)


@dataclass(frozen=True)
class Verdict:
    """What came of a check.

    estimate:    the statistic of the runs; NaN where nothing was measured.
    low, high:   the interval; infinite where there are too few runs for one.
    sd:          over runs; NaN below two.
    confirmable: probability that as many runs with this SD confirm a claim that is exactly true;
                 NaN where nothing was measured.
    control:     the answer to the claim that is known to be wrong; must be `regressed`.
    reasons:     sentences.
    """

    answer: Answer
    estimate: float
    low: float
    high: float
    sd: float
    confirmable: float
    control: Answer
    reasons: tuple[str, ...]


def check(
    values: Sequence[float], claim: Claim, *, failed: int = 0, unfinished: int = 0
) -> Verdict:
    """Test a claim by runs; see the module's docstring.

    Args:
        values: of the finished runs, in the unit of the claim; NaN where a run has none.
        claim: what was reported.
        failed: runs that failed.
        unfinished: runs that were begun and have not ended.
    """
    known = np.sort(np.array([v for v in values if not math.isnan(v)], dtype=np.float64))
    if not len(known):
        return nothing(
            f"no run has a value: {len(values)} finished without one, {failed} failed, "
            f"{unfinished} unfinished"
        )
    n = len(known)
    low, high = interval(known, claim.statistic)
    sd = float(known.std(ddof=1)) if n > 1 else math.nan
    estimate = float(known.mean() if claim.statistic == "mean" else np.median(known))
    answer, reason = _decide(low, high, claim)
    control, _ = _decide(low, high, wrong(claim, estimate))
    reasons = [reason]
    if n < fewest(claim.statistic):
        reasons = [
            f"{n} finished run(s) can decide nothing about a {claim.statistic}; it takes at least "
            f"{fewest(claim.statistic)}"
        ]
    doubts = _doubts(len(values) - n, unfinished, control)
    worse, significant = _failures(len(values), failed, claim)
    if significant:
        answer = Answer.REGRESSED
    elif worse:
        doubts.append(worse)
    if answer is Answer.REPRODUCED and doubts:
        answer = Answer.INCONCLUSIVE
    if n > 1 and sd == 0:
        doubts.append("all runs are equal to the last digit, so the seeds seem to do nothing")
    reasons += [worse] * significant + doubts
    confirmed = confirmable(n, sd, claim)
    return Verdict(answer, estimate, low, high, sd, confirmed, control, tuple(reasons))


def nothing(reason: str) -> Verdict:
    """The verdict where nothing was measured."""
    none, far = math.nan, math.inf
    return Verdict(Answer.NOTHING, none, -far, far, none, none, Answer.NOTHING, (reason,))


def interval(values: Sequence[float] | NDArray[np.float64], statistic: str) -> tuple[float, float]:
    """Where the true mean or median over runs is, each end at one-sided level `ALPHA`.

    mean:   mean ± t(1 - alpha, n - 1) · sd/√n; needs 2 runs.
    median: from the (k + 1)-th smallest to the (k + 1)-th largest value, with k the greatest count
            for which P(Binomial(n, 1/2) <= k) <= alpha; needs 5 runs.

    Returns:
        Both ends; infinite with too few runs.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    if n < fewest(statistic):
        return -math.inf, math.inf
    if statistic == "median":
        k = _outside(n)
        return float(ordered[k]), float(ordered[n - 1 - k])
    half = student.ppf(1 - ALPHA, n - 1) * ordered.std(ddof=1) / math.sqrt(n)
    middle = ordered.mean()
    return float(middle - half), float(middle + half)


def fewest(statistic: str) -> int:
    """Runs below which a statistic has no interval, so that nothing is ever decided.

    >>> fewest("mean"), fewest("median")
    (2, 5)
    """
    return FEWEST if statistic == "mean" else math.ceil(-math.log2(ALPHA))


def wrong(claim: Claim, estimate: float) -> Claim:
    """The negative control: `CONTROL_MARGINS` better than both the claim and what was measured.

    Against it the runs are certainly too bad. Runs that do not show that could not have shown a
    regression of the size of a margin or two either.
    """
    sign = 1.0 if claim.higher_is_better else -1.0
    start = max(sign * claim.value, sign * estimate)
    return replace(claim, value=sign * (start + CONTROL_MARGINS * claim.margin))


def confirmable(n: int, sd: float, claim: Claim, offset_sd: float = 0.0) -> float:
    """Probability that n runs confirm the claim, its value being true but for an offset.

    Runs are independent and normal with standard deviation sd about value + offset, the offset
    normal with standard deviation `offset_sd`. Integrated over quantiles, to about 1e-4.
    """
    if n < fewest(claim.statistic):
        return 0.0
    if sd == 0:
        return 1.0
    margin, offset_sd = claim.margin / sd, offset_sd / sd
    if claim.statistic == "median":
        return _median_confirmable(n, margin, offset_sd, claim.direction)
    s = np.sqrt(chi2.ppf(_quantiles(), n - 1) / (n - 1))
    room = margin - student.ppf(1 - ALPHA, n - 1) * s / math.sqrt(n)
    z = room / math.sqrt(1 / n + offset_sd**2)
    if claim.direction == "at-least":
        return float(norm.cdf(z).mean())
    return float(np.maximum(0.0, 2 * norm.cdf(z) - 1).mean())


def derived_margin(n: int, sd: float, rounding: float, statistic: str = "mean") -> float:
    """The margin that a number deserves which n runs gave.

    margin = factor(n) · sd + rounding/2. The number is itself only known to its standard error
    (sd/√n for a mean, √(π/2) times that for a median of normal values), and as many new runs
    scatter as much: the factor is the one with which n runs like these confirm the number with
    probability 0.8, the truth being off by a normal offset with that standard error
    (`confirmable`). For the mean of 5 runs it is 1.81, of 10 it is 1.16.

    That is for the true standard deviation. With that of the same few runs, too small as often as
    too large, the probability is 0.64 for 5 runs, 0.71 for 10 and 0.75 for 20 (by simulation).

    Args:
        n: runs that gave the number, at least `fewest(statistic)`.
        sd: over these runs.
        rounding: unit of the last digit that is printed.
        statistic: a name in `STATISTICS`.
    """
    if n < fewest(statistic):
        raise ValueError(f"no margin follows from {n} run(s) for a {statistic}")
    if sd == 0:
        return rounding / 2

    error = math.sqrt((math.pi / 2 if statistic == "median" else 1) / n)

    def lacking(margin: float) -> float:
        return confirmable(n, 1.0, Claim(0.0, margin, True, statistic), error) - POWER

    highest = 1.0
    while lacking(highest) < 0:
        highest *= 2
    return float(brentq(lacking, 1e-6, highest, xtol=1e-6)) * sd + rounding / 2


def _decide(low: float, high: float, claim: Claim) -> tuple[Answer, str]:
    """The interval against the margin, and in words where it lies."""
    sign = 1.0 if claim.higher_is_better else -1.0
    lowest, highest = sorted((sign * (low - claim.value), sign * (high - claim.value)))
    m = claim.margin
    if highest < -m:
        return Answer.REGRESSED, "worse than the target by more than the margin"
    if lowest > m:
        if claim.direction == "equal":
            return Answer.REGRESSED, (
                "BETTER than the target by more than the margin, so it is not the reported number "
                "any more: find out why; if it is meant, write a new baseline, or set the "
                'target\'s direction to "at-least"'
            )
        return Answer.REPRODUCED, "better than the target by more than the margin"
    if lowest >= -m and (highest <= m or claim.direction == "at-least"):
        return Answer.REPRODUCED, "within the margin"
    return Answer.INCONCLUSIVE, "the interval reaches across the margin: more runs would decide"


def _doubts(undefined: int, unfinished: int, control: Answer) -> list[str]:
    """What forbids to call a number reproduced."""
    doubts = []
    if undefined:
        doubts.append(f"{undefined} finished run(s) have no value under this policy")
    if unfinished:
        doubts.append(f"{unfinished} run(s) were begun and are unfinished")
    if control is not Answer.REGRESSED:
        doubts.append("the negative control, a wrong target, could not be told from the truth")
    return doubts


def _failures(finished: int, failed: int, claim: Claim) -> tuple[str, bool]:
    """What is wrong with the share of failed runs, if anything, and whether it is significant."""
    if failed * (claim.finished + claim.failed) <= claim.failed * (finished + failed):
        return "", False
    table = np.array([[failed, finished], [claim.failed, claim.finished]])
    p = float(fisher_exact(table, alternative="greater").pvalue)
    before = f"{claim.failed} of {claim.finished + claim.failed} for the target"
    text = f"{failed} of {finished + failed} runs failed, {before} (Fisher p = {p:.3f})"
    return text, p < ALPHA


def _outside(n: int) -> int:
    """How many runs lie beyond either end of the median's interval."""
    return int(np.count_nonzero(binom.cdf(np.arange(n), n, 0.5) <= ALPHA)) - 1


def _quantiles() -> NDArray[np.float64]:
    return (np.arange(_NODES) + 0.5) / _NODES


def _median_confirmable(n: int, margin: float, offset_sd: float, direction: str) -> float:
    """At most k runs below the margin and at most k above it, in units of the runs' SD."""
    k = _outside(n)
    offset = norm.ppf(_quantiles()) * offset_sd if offset_sd else np.zeros(1)
    below, above = norm.cdf(-margin - offset), norm.cdf(offset - margin)
    if direction == "at-least":
        return float(np.mean(binom.cdf(k, n, below)))
    above = np.clip(above / np.maximum(1 - below, np.finfo(np.float64).tiny), 0, 1)
    terms = [np.mean(binom.pmf(a, n, below) * binom.cdf(k, n - a, above)) for a in range(k + 1)]
    return float(sum(terms))
