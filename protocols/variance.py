"""Where the variance of a score comes from: seeds, cases, and the moment a run stops."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, sqrt
from typing import Final

import numpy as np
import pandas as pd

from protocols.intervals import Floats
from protocols.rules import REPORTED

LAST: Final = 5
"""Checkpoints at the end of a run whose variance is that of the moment it stops."""


@dataclass(frozen=True)
class Components:
    """Variance components of y(s, c) = μ + a(s) + b(c) + e(s, c), two crossed random effects.

    seed:      var a: runs that are better or worse on all cases. It holds what the moment of
               stopping adds.
    case:      var b: cases that are easy or hard for all runs.
    residual:  var e: cases that some runs find harder than others, and whatever else.
    negative:  names of components whose estimate came out below 0; they are given as 0.
    seeds, cases: how many of each.
    """

    seed: float
    case: float
    residual: float
    negative: tuple[str, ...]
    seeds: int
    cases: int

    @property
    def floor(self) -> float:
        """SE of the mean over new cases that no number of seeds lowers: √(case / cases)."""
        return sqrt(self.case / self.cases) if self.cases else nan

    @property
    def standard_error(self) -> float:
        """SE of the mean over new seeds and new cases.

        √(seed / n + case / m + residual / (n m)) for n seeds and m cases.
        """
        if not self.seeds or not self.cases:
            return nan
        n, m = self.seeds, self.cases
        return sqrt(self.seed / n + self.case / m + self.residual / (n * m))


def components(table: Floats) -> Components:
    """Variance components by the method of moments, from the mean squares of a two-way ANOVA.

    For n seeds and m cases, one value each, with row means ȳ(s), column means ȳ(c), mean ȳ:

        MS seed     = m Σ (ȳ(s) − ȳ)² / (n − 1)                     expects residual + m seed
        MS case     = n Σ (ȳ(c) − ȳ)² / (m − 1)                     expects residual + n case
        MS residual = Σ (y − ȳ(s) − ȳ(c) + ȳ)² / ((n − 1) (m − 1))  expects residual

        seed = (MS seed − MS residual) / m,  case = (MS case − MS residual) / n

    The estimates are unbiased before negative ones become 0 (Searle, Casella, McCulloch, Variance
    Components, 1992, ch. 4). Of a seed component from five seeds expect no more than its order of
    magnitude.

    Args:
        table: seeds x cases, without failed runs and without NaN.

    Returns:
        NaN components where there are fewer than two seeds or cases, or a value is not finite.
    """
    n, m = table.shape
    if n < 2 or m < 2 or not np.isfinite(table).all():
        return Components(nan, nan, nan, (), n, m)
    rows, columns, middle = table.mean(axis=1), table.mean(axis=0), table.mean()
    rest = table - rows[:, None] - columns[None, :] + middle
    residual = float((rest**2).sum() / ((n - 1) * (m - 1)))
    found = {
        "seed": float(rows.var(ddof=1)) - residual / m,
        "case": float(columns.var(ddof=1)) - residual / n,
    }
    kept = {name: max(0.0, value) for name, value in found.items()}
    negative = tuple(name for name, value in found.items() if value < 0)
    return Components(kept["seed"], kept["case"], residual, negative, n, m)


def stopping(trajectory: pd.DataFrame, metric: str, last: int = LAST) -> float:
    """Variance between the last checkpoints of a run: what the moment of stopping adds.

    The sample variance over the last checkpoints of the mean over test cases, averaged over runs.
    What a run still learns or forgets over these checkpoints is in it.

    Args:
        trajectory: rows of runs of one method and predictor; see `trajectory.trajectory`.
        metric: which one.
        last: how many checkpoints of each run; all where it has fewer.

    Returns:
        NaN where no run has two of them, or a value is missing.
    """
    rows = trajectory[trajectory["split"] == REPORTED].sort_values(["run", "step"])
    ends = rows.groupby("run", observed=True).tail(last)
    spread = ends.groupby("run", observed=True)[metric].agg(
        lambda values: values.var(ddof=1, skipna=False)
    )
    counts = ends.groupby("run", observed=True).size()
    return float(spread[counts > 1].mean(skipna=False)) if (counts > 1).any() else nan
