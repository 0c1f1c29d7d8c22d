"""What a number of runs can show: detectable differences, seeds needed, attainable p-values.

Differences and standard deviations are in any one unit, as DSC points. Tests are two-sided t-tests;
their power is exact for normal values (noncentral t), not the normal approximation, which promises
too much for the five runs that people have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from scipy.optimize import brentq
from scipy.stats import chi2, nct
from scipy.stats import t as student

from results.lookup import find

POWER: Final = 0.8
ALPHA: Final = 0.05
FEWEST: Final = 2
"""Runs without which there is no standard deviation, so no t-test."""

MOST: Final = 1_000_000
"""Seeds beyond which nobody plans."""


def power_of(
    difference: float, sd: float, n: int, paired: bool = False, alpha: float = ALPHA
) -> float:
    """Probability that a two-sided t-test finds a true difference.

    With SE = sd √(2/n) on 2n - 2 degrees of freedom, or sd/√n on n - 1 where paired:
    P(|T| > t(1 - alpha/2)) for T noncentral t with noncentrality difference/SE.

    Args:
        difference: of the two true means, >= 0.
        sd: over runs of one method; where paired, of the differences between runs of one pair.
        n: runs of each method, or pairs.
        paired: whether runs come in pairs, as those of equal seeds.
        alpha: level of the test.

    Raises:
        ValueError: a value out of its range.
    """
    _check(sd=sd, n=n, alpha=alpha)
    if difference < 0:
        raise ValueError(f"difference {difference}: expected at least 0")
    if sd == 0:
        return 1.0 if difference > 0 else alpha
    return _power(difference / (sd * _se_factor(n, paired)), _df(n, paired), alpha)


def detectable(
    sd: float, n: int, paired: bool = False, power: float = POWER, alpha: float = ALPHA
) -> float:
    """The smallest true difference that n runs find with the given power.

    >>> round(detectable(1.0, 5), 2), round(detectable(1.0, 5, paired=True), 2)
    (2.02, 1.68)

    Args:
        sd: as for `power_of`.
        n: runs of each method, or pairs.
        paired: whether runs come in pairs.
        power: probability to find it, above alpha.
        alpha: level of the two-sided t-test.

    Raises:
        ValueError: a value out of its range.
    """
    _check(sd=sd, n=n, alpha=alpha, power=power)
    df = _df(n, paired)
    highest = 1.0
    while _power(highest, df, alpha) < power:
        highest *= 2
    noncentrality = brentq(lambda x: _power(x, df, alpha) - power, 0.0, highest, xtol=1e-10)
    return float(noncentrality) * sd * _se_factor(n, paired)


def seeds_needed(
    difference: float,
    sd: float,
    paired: bool = False,
    power: float = POWER,
    alpha: float = ALPHA,
) -> int | None:
    """The fewest runs of each method (or pairs) that find a true difference with the given power.

    >>> [seeds_needed(0.5, sd) for sd in (0.3, 0.6, 1.0)]
    [7, 24, 64]

    Args:
        difference: to be found, above 0.
        sd: as for `power_of`.
        paired: whether runs come in pairs.
        power: probability to find it, above alpha.
        alpha: level of the two-sided t-test.

    Returns:
        At least 2; None where a million would not do.

    Raises:
        ValueError: a value out of its range.
    """
    _check(sd=sd, n=FEWEST, alpha=alpha, power=power)
    if not difference > 0:
        raise ValueError(f"difference {difference}: expected above 0")

    def enough(n: int) -> bool:
        return power_of(difference, sd, n, paired, alpha) >= power

    if enough(FEWEST):
        return FEWEST
    too_few, sufficient = FEWEST, 2 * FEWEST
    while not enough(sufficient):
        if sufficient >= MOST:
            return None
        too_few, sufficient = sufficient, min(2 * sufficient, MOST)
    while sufficient - too_few > 1:
        middle = (too_few + sufficient) // 2
        if enough(middle):
            sufficient = middle
        else:
            too_few = middle
    return sufficient


def case_floor(sd_case: float, cases: int, power: float = POWER, alpha: float = ALPHA) -> float:
    """The smallest difference that so many test cases show, however many seeds there are.

    Seeds average out the noise of training, not that of which patients were tested. For a claim
    about new cases the standard error of a mean difference stays above sd_case/√cases, so what can
    be found is what a paired t-test over the cases finds.

    Args:
        sd_case: standard deviation over cases of the two methods' difference, free of seed noise.
        cases: in the test set.
        power: probability to find it.
        alpha: level of the two-sided t-test.

    Raises:
        ValueError: a value out of its range.
    """
    return detectable(sd_case, cases, paired=True, power=power, alpha=alpha)


def sd_interval(sd: float, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Interval of the true standard deviation at level 1 - alpha, from the sample's (n - 1).

    sd √((n - 1)/χ²) at both quantiles of χ² on n - 1 degrees of freedom; for normal values.

    Raises:
        ValueError: a value out of its range.
    """
    _check(sd=sd, n=n, alpha=alpha)
    low, high = (sd * math.sqrt((n - 1) / chi2.ppf(q, n - 1)) for q in (1 - alpha / 2, alpha / 2))
    return float(low), float(high)


def _flips(n: int) -> float:
    """All signs equal, either way: 2 of the 2^n arrangements."""
    return min(1.0, 2.0 * 2.0**-n)


def _orders(n: int) -> float:
    """Two groups of n that do not overlap, either way: 2 of the ways to choose n of 2n."""
    return min(1.0, 2.0 / math.comb(2 * n, n))


TESTS: Final[dict[str, Callable[[int], float]]] = {
    "sign": _flips,
    "wilcoxon": _flips,
    "sign-flip": _flips,
    "mann-whitney": _orders,
    "permutation": _orders,
    "t": lambda n: 0.0 if n >= FEWEST else 1.0,
}
"""By name, the smallest two-sided p without ties: of n pairs, or of n runs against n others."""


def attainable_p(n: int, test: str) -> float:
    """The smallest two-sided p that a test can ever give; above alpha it decides nothing.

    >>> attainable_p(5, "wilcoxon"), round(attainable_p(5, "mann-whitney"), 4)
    (0.0625, 0.0079)

    Args:
        n: pairs (sign, wilcoxon, sign-flip), or runs of each method.
        test: a name in `TESTS`.

    Raises:
        UserError: an unknown test.
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n {n}: expected at least 1")
    return find("test", test, TESTS)(n)


def _power(noncentrality: float, df: int, alpha: float) -> float:
    critical = student.ppf(1 - alpha / 2, df)
    far = nct.sf(critical, df, noncentrality)
    # By symmetry, and where scipy gives up (far out in the tail) it is nothing.
    near = nct.sf(critical, df, -noncentrality)
    return float(min(1.0, far + (near if near == near else 0.0)))


def _df(n: int, paired: bool) -> int:
    return n - 1 if paired else 2 * n - 2


def _se_factor(n: int, paired: bool) -> float:
    return math.sqrt((1 if paired else 2) / n)


def _check(*, sd: float, n: int, alpha: float, power: float | None = None) -> None:
    if not 0 <= sd < math.inf:
        raise ValueError(f"sd {sd}: expected at least 0")
    if n < FEWEST:
        raise ValueError(f"n {n}: expected at least {FEWEST}, there is no spread of one")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha}: expected between 0 and 1")
    if power is not None and not alpha < power < 1:
        raise ValueError(f"power {power}: expected between alpha ({alpha}) and 1")
