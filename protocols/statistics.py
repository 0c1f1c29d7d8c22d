"""What several runs say together. Each statistic is a pure function of runs x metrics.

A failed run is a row of `FAILED`: worse than any number. Order statistics take it in its place,
so they can be infinite themselves, which reads "failed"; what needs a number of every run is NaN.
A run that finished without a number (every case left out) makes every statistic NaN. So no run
is left out silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocols.intervals import LEVEL, of_mean, of_median
from protocols.metrics import METRICS

Floats = NDArray[np.float64]

FAILED: Final = {name: -inf if m.higher_is_better else inf for name, m in METRICS.items()}
"""What a failed run counts, by metric."""

_DSC: Final = list(METRICS).index("dsc")


@dataclass(frozen=True)
class Statistic:
    """A summary of runs.

    compute: runs x metrics in the order of `METRICS`, failed runs as `FAILED` -> one value per
             metric. The order of runs does not matter, unless they tie.
    meaning: how it comes about, in words, for the foot of a table.
    """

    compute: Callable[[Floats], Floats]
    meaning: str


def with_failed(runs: Floats, failed: int) -> Floats:
    """The metrics of runs, and a row for each of so many failed ones."""
    return np.vstack([runs, np.tile(list(FAILED.values()), (failed, 1))])


def median(runs: Floats) -> Floats:
    """Of each metric by itself; for an even number of runs the middle of the two middle ones."""
    values = np.sort(runs, axis=0)
    n = len(values)
    if n == 0:
        return _undefined()
    # NaN sorts last, so the last row has it wherever a run has no number.
    missing = np.isnan(values[-1])
    return np.where(missing, np.nan, (values[(n - 1) // 2] + values[n // 2]) / 2)


def median_run(runs: Floats) -> Floats:
    """All metrics of the run with the median DSC: a real run; see `median_place`."""
    place = median_place(runs)
    return _undefined() if place is None else runs[place]


def median_place(runs: Floats) -> int | None:
    """Which row is the median run: of an even number the lower of the two middle ones.

    Of equal ones the first. None where there is no run, or one without a number.
    """
    dsc = runs[:, _DSC]
    if len(dsc) == 0 or np.isnan(dsc).any():
        return None
    return int(np.argsort(dsc, kind="stable")[(len(dsc) - 1) // 2])


def best_run(runs: Floats) -> Floats:
    """All metrics of the run with the highest DSC (of equal ones the first): a real run."""
    place = best_place(runs)
    return _undefined() if place is None else runs[place]


def best_place(runs: Floats) -> int | None:
    """Which row is the run with the highest DSC; None as for `median_place`."""
    dsc = runs[:, _DSC]
    return None if len(dsc) == 0 or np.isnan(dsc).any() else int(dsc.argmax())


def maximum(runs: Floats) -> Floats:
    """Largest value of each metric by itself: the best DSC, but the worst distances."""
    return runs.max(axis=0) if len(runs) else _undefined()


def minimum(runs: Floats) -> Floats:
    """Smallest value of each metric by itself: the worst DSC, but the best distances."""
    return runs.min(axis=0) if len(runs) else _undefined()


def mean(runs: Floats) -> Floats:
    """Arithmetic mean of each metric; NaN if a run failed."""
    return _finite(runs).mean(axis=0) if len(runs) else _undefined()


def std(runs: Floats) -> Floats:
    """Sample standard deviation (n − 1) over runs of each metric; NaN below two runs."""
    return _finite(runs).std(axis=0, ddof=1) if len(runs) > 1 else _undefined()


def se(runs: Floats) -> Floats:
    """Standard error of the mean: std / √n; NaN below two runs."""
    return std(runs) / sqrt(max(len(runs), 1))


def iqm(runs: Floats) -> Floats:
    """Interquartile mean: of what is left without the ⌊n/4⌋ lowest and as many highest values.

    Of five runs that is the mean of the middle three. As rliable's, a mean trimmed by a quarter.
    """
    values = np.sort(_finite(runs), axis=0)
    cut = len(values) // 4
    return values[cut : len(values) - cut].mean(axis=0) if len(values) else _undefined()


def median_low(runs: Floats) -> Floats:
    """Lower end of the exact interval of the median; see `intervals.of_median`."""
    return np.array([of_median(values).low for values in runs.T])


def median_high(runs: Floats) -> Floats:
    """Upper end of the exact interval of the median; see `intervals.of_median`."""
    return np.array([of_median(values).high for values in runs.T])


def mean_low(runs: Floats) -> Floats:
    """Lower end of Student's interval of the mean; see `intervals.of_mean`."""
    return np.array([of_mean(values).low for values in runs.T])


def mean_high(runs: Floats) -> Floats:
    """Upper end of Student's interval of the mean; see `intervals.of_mean`."""
    return np.array([of_mean(values).high for values in runs.T])


EXACT: Final = (
    "over runs, the shortest symmetric interval of order statistics that holds "
    f"{100 * LEVEL:.0f} % of the time, else from the lowest to the highest run"
)
STUDENT: Final = f"{100 * LEVEL:.0f} % confidence interval of the mean over runs by Student's t"

STATISTICS: Final = {
    "median": Statistic(median, "over runs, of each metric by itself"),
    "median_low": Statistic(median_low, f"lower end of the interval of the median: {EXACT}"),
    "median_high": Statistic(median_high, f"upper end of the interval of the median: {EXACT}"),
    "median_run": Statistic(
        median_run,
        "the run with the median DSC (of an even number the lower of the two middle ones), all "
        "metrics from that run",
    ),
    "best_run": Statistic(best_run, "the run with the highest DSC, all metrics from that run"),
    "maximum": Statistic(maximum, "the largest over runs, of each metric by itself"),
    "minimum": Statistic(minimum, "the smallest over runs, of each metric by itself"),
    "mean": Statistic(mean, "over runs"),
    "std": Statistic(std, "sample standard deviation over runs (n − 1), undefined for one run"),
    "se": Statistic(se, "standard error of the mean over runs: std / √n, undefined for one run"),
    "mean_low": Statistic(mean_low, f"lower end of the {STUDENT}"),
    "mean_high": Statistic(mean_high, f"upper end of the {STUDENT}"),
    "iqm": Statistic(
        iqm,
        "interquartile mean: of the runs left without the ⌊n/4⌋ lowest and as many highest, of "
        "each metric by itself (of five runs the middle three)",
    ),
}


def _finite(runs: Floats) -> Floats:
    """A metric that some run has no number for is NaN for all."""
    return np.where(np.isfinite(runs).all(axis=0), runs, np.nan)


def _undefined() -> Floats:
    return np.full(len(METRICS), np.nan)
