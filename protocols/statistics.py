"""What several runs say together. Each statistic is a pure function of a frame of runs.

A statistic that cannot be computed from all given runs is NaN: no run is left out silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pandas as pd

from protocols.metrics import METRICS


@dataclass(frozen=True)
class Statistic:
    """A summary of runs.

    compute: one row per run with columns dsc, asd, hd95 -> one value per metric. The order of
             rows does not matter, unless they tie.
    meaning: how it comes about, in words, for the foot of a table.
    """

    compute: Callable[[pd.DataFrame], pd.Series]
    meaning: str


def median(runs: pd.DataFrame) -> pd.Series:
    """Of each metric by itself; for an even number of runs the middle of the two middle ones."""
    return runs[list(METRICS)].median(skipna=False)


def best_run(runs: pd.DataFrame) -> pd.Series:
    """All metrics of the run with the highest DSC (of equal ones the first): a real run."""
    if runs.empty or runs["dsc"].isna().any():
        return _undefined()
    return runs[list(METRICS)].iloc[int(runs["dsc"].argmax())]


def maximum(runs: pd.DataFrame) -> pd.Series:
    """Largest value of each metric by itself: the best DSC, but the worst distances."""
    return runs[list(METRICS)].max(skipna=False)


def minimum(runs: pd.DataFrame) -> pd.Series:
    """Smallest value of each metric by itself: the worst DSC, but the best distances."""
    return runs[list(METRICS)].min(skipna=False)


def mean(runs: pd.DataFrame) -> pd.Series:
    """Arithmetic mean of each metric."""
    return runs[list(METRICS)].mean(skipna=False)


def std(runs: pd.DataFrame) -> pd.Series:
    """Sample standard deviation (n - 1) over runs of each metric; NaN below two runs."""
    return runs[list(METRICS)].std(ddof=1, skipna=False)


STATISTICS: Final = {
    "median": Statistic(median, "over runs, of each metric by itself"),
    "best_run": Statistic(best_run, "the run with the highest DSC, all metrics from that run"),
    "maximum": Statistic(maximum, "the largest over runs, of each metric by itself"),
    "minimum": Statistic(minimum, "the smallest over runs, of each metric by itself"),
    "mean": Statistic(mean, "over runs"),
    "std": Statistic(std, "sample standard deviation over runs (n − 1), undefined for one run"),
}


def _undefined() -> pd.Series:
    return pd.Series(float("nan"), index=list(METRICS))
