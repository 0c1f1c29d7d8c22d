"""What n runs can be when only some of their summaries are known, each within an interval."""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

SLACK: Final = 1e-9
"""Of floating-point numbers, relative to values of about 1 or more."""


class Interval(NamedTuple):
    """All numbers from low to high, both included."""

    low: float = -inf
    high: float = inf

    def times(self, factor: float) -> Interval:
        """The interval of the products with a positive factor."""
        return Interval(self.low * factor, self.high * factor)

    def meets(self, other: Interval) -> bool:
        """Whether they share a number."""
        return max(self.low, other.low) <= min(self.high, other.high)

    def within(self, other: Interval) -> Interval:
        """What they share; low > high where that is nothing."""
        return Interval(max(self.low, other.low), min(self.high, other.high))


ANY: Final = Interval()


def rounds_to(value: float, digits: int) -> Interval:
    """The numbers that are printed as `value` with so many decimals.

    >>> tuple(round(x, 4) for x in rounds_to(90.28, 2))
    (90.275, 90.285)
    """
    half = 0.5 * 10.0**-digits + SLACK * max(1.0, abs(value))
    return Interval(value - half, value + half)


def spread(
    n: int,
    *,
    median: Interval = ANY,
    maximum: Interval = ANY,
    minimum: Interval = ANY,
    mean: Interval = ANY,
    values: Interval = ANY,
) -> Interval | None:
    """The smallest and the largest population standard deviation of n runs with these summaries.

    The summaries bound each ordered run by itself, lᵢ ≤ xᵢ ≤ uᵢ. At a given sum, Σ xᵢ² is smallest
    for xᵢ = clip(λ, lᵢ, uᵢ), and largest when the runs are at l up to some place and at u after it.
    The smallest is exact. The largest is exact for odd n; for even n it leaves out that the two
    middle runs are tied by the median, so it may be too large, never too small.

    Args:
        n: number of runs.
        median: what it may be; `ANY`, here and below, if it is not known.
        maximum: what it may be.
        minimum: what it may be.
        mean: what it may be.
        values: what every run may be.

    Returns:
        None when no such runs exist.
    """
    if n == 2:
        mean = mean.within(median)
    ends = values, minimum, maximum, median
    low, high = _ordered_bounds(n, *ends, tied=True)
    means = mean.within(Interval(float(low.mean()), float(high.mean())))
    if (low > high).any() or means.low > means.high + SLACK:
        return None
    smallest = _smallest(low, high, means)
    low, high = _ordered_bounds(n, *ends, tied=False)
    return Interval(smallest, max(smallest, _largest(low, high, mean)))


def mean_range(
    n: int,
    *,
    median: Interval = ANY,
    maximum: Interval = ANY,
    minimum: Interval = ANY,
    values: Interval = ANY,
) -> Interval:
    """What the mean of n runs with such a median, maximum and minimum may be; see `spread`."""
    low, high = _ordered_bounds(n, values, minimum, maximum, median, tied=True)
    found = Interval(float(low.mean()), float(high.mean()))
    return found.within(median) if n == 2 else found


def _ordered_bounds(
    n: int,
    values: Interval,
    minimum: Interval,
    maximum: Interval,
    median: Interval,
    *,
    tied: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each run, in ascending order; tied: the two middle ones of even n are the median both."""
    low, high = np.full(n, float(values.low)), np.full(n, float(values.high))
    places = [(0, minimum), (n - 1, maximum)]
    below, above = (n - 1) // 2, n // 2
    if n % 2 or (tied and n > 2):
        places += [(below, median), (above, median)]
    elif n > 2:
        places += [(below, Interval(-inf, median.high)), (above, Interval(median.low, inf))]
    for place, interval in places:
        low[place] = max(low[place], interval.low)
        high[place] = min(high[place], interval.high)
    return np.maximum.accumulate(low), np.minimum.accumulate(high[::-1])[::-1]


def _smallest(low: NDArray[np.float64], high: NDArray[np.float64], mean: Interval) -> float:
    """The smallest σ within monotone bounds; `mean` is one that they allow."""
    first, last = float(low.max()), float(high.min())
    if first <= last and mean.meets(Interval(first, last)):
        return 0.0
    if first > last:
        # Not all can be equal. With a free mean the optimum is the c with mean(clip(c)) = c.
        knots = np.unique(np.concatenate([low, high]))
        knots = knots[(knots >= last) & (knots <= first)]
        excess = knots - np.clip(knots[:, None], low, high).mean(axis=1)
        first = last = float(np.interp(0.0, excess, knots))
    aim = min(max(last, mean.low), mean.high) if mean.high >= first else mean.high
    return float(np.clip(_level(low, high, aim), low, high).std())


def _level(low: NDArray[np.float64], high: NDArray[np.float64], mean: float) -> float:
    """The λ for which clip(λ, low, high) has this mean."""
    ends = np.concatenate([low, high])
    knots = np.unique(ends[np.isfinite(ends)])
    means = np.clip(knots[:, None], low, high).mean(axis=1)
    if mean < means[0]:
        return float(knots[0] - (means[0] - mean) / max(np.isneginf(low).mean(), SLACK))
    if mean > means[-1]:
        return float(knots[-1] + (mean - means[-1]) / max(np.isposinf(high).mean(), SLACK))
    return float(np.interp(mean, means, knots))


def _largest(low: NDArray[np.float64], high: NDArray[np.float64], mean: Interval) -> float:
    """The largest σ within monotone bounds, or infinity."""
    n = len(low)
    # What the sum leaves to each run, where that is less than its own bound.
    low = np.maximum(low, [n * mean.low - np.delete(high, i).sum() for i in range(n)])
    high = np.minimum(high, [n * mean.high - np.delete(low, i).sum() for i in range(n)])
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return inf
    room = np.maximum(high - low, 0.0)
    after = np.append(np.cumsum(room[::-1])[::-1], 0.0)
    totals = Interval(n * mean.low, n * mean.high).within(Interval(low.sum(), high.sum()))
    # Between two of these totals σ² is convex in the total.
    corners = low.sum() + after
    corners = corners[(corners > totals.low) & (corners < totals.high)]
    found = 0.0
    for total in (totals.low, totals.high, *corners):
        runs = low + np.clip(total - low.sum() - after[1:], 0.0, room)
        found = max(found, float(runs.std()))
    return found
