"""Exact tests of a difference, and the smallest p that each could have given.

A failed run is an infinite value: tests by ranks put it where it belongs, those of means are
undefined.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, nan
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from protocols.intervals import Floats

ALPHA: Final = 0.05
"""A test decides below it, after Holm's correction."""

EXACT: Final = 20
"""Differences up to which all arrangements of signs are looked at."""

ARRANGEMENTS: Final = 20_000
"""Arrangements of signs that are drawn where there are more."""

FIRST: Final = "first better"
SECOND: Final = "second better"
CANNOT_DECIDE: Final = "cannot decide"
NOT_SHOWN: Final = "no difference shown"
UNDEFINED: Final = "undefined"


class Answer(NamedTuple):
    """What a two-sided test says.

    attainable: the smallest p that it can give at this number of values.
    sign:       1 where the values lie above 0 (the first ones higher), -1 below, 0 neither.
    """

    p: float
    attainable: float
    sign: int


def sign_flip(differences: Floats, rng: np.random.Generator) -> Answer:
    """Permutation test of a mean difference: every sign could as well have been the other.

    p = share of the 2^n arrangements of signs with |sum| at least that of the data: exact up to
    `EXACT` differences; beyond, (1 + hits) / (1 + draws) of drawn arrangements. Assumes that
    differences are symmetric about 0 under the null hypothesis, and nothing else. p is NaN where
    a difference is no finite number; the smallest p is 2 / 2^n.
    """
    n = len(differences)
    drawn = n > EXACT
    attainable = min(1.0, 2.0 * 2.0**-n)
    attainable = max(attainable, 1 / (ARRANGEMENTS + 1)) if drawn else attainable
    if n == 0 or not np.isfinite(differences).all():
        return Answer(nan, attainable, 0)
    size = np.abs(differences)
    total = float(differences.sum())
    # Sums in another order differ in the last bits; equal arrangements must count as equal.
    reached = abs(total) - 1e-12 * float(size.sum())
    if drawn:
        signs = rng.integers(0, 2, size=(ARRANGEMENTS, n), dtype=np.int8) * np.int8(2) - np.int8(1)
        hits = int((np.abs(signs @ size) >= reached).sum())
        p = (1 + hits) / (1 + ARRANGEMENTS)
    else:
        # Flipping all signs changes no |sum|, so the first one can stay.
        sums = size[:1]
        for value in size[1:]:
            sums = np.concatenate([sums + value, sums - value])
        p = float((np.abs(sums) >= reached).mean())
    return Answer(p, attainable, int(np.sign(total)))


def signed_rank(differences: Floats) -> Answer:
    """Wilcoxon's signed-rank test, exact with ties too; zeros are dropped, as Wilcoxon did.

    p = 2 min(P(W ≤ w), P(W ≥ w)), at most 1, where W sums the average ranks of |differences|
    over random signs. An infinite difference (a failed run) has the highest rank. p is NaN where
    a difference is; the smallest p of n differences is 2 / 2^n.
    """
    n = len(differences)
    attainable = min(1.0, 2.0 * 2.0**-n)
    if n == 0 or np.isnan(differences).any():
        return Answer(nan, attainable, 0)
    kept = differences[differences != 0]
    # Average ranks are halves of whole numbers.
    ranks = (2 * pd.Series(np.abs(kept)).rank().to_numpy()).astype(np.int64)
    ways = np.array([1.0])
    for rank in ranks:
        longer = np.zeros(len(ways) + rank)
        longer[: len(ways)] += ways / 2
        longer[rank:] += ways / 2
        ways = longer
    positive = int(ranks[kept > 0].sum())
    return Answer(_two_sided(ways, positive), attainable, int(np.sign(2 * positive - ranks.sum())))


def rank_sum(first: Floats, second: Floats) -> Answer:
    """Mann-Whitney's test, exact with ties too.

    p = 2 min(P(R ≤ r), P(R ≥ r)), at most 1, where R sums the average ranks of as many values as
    `first` has, drawn from all. Infinite values (failed runs) rank where they belong. p is NaN
    where a value is; the smallest p is 2 / C(n + m, n).
    """
    n, m = len(first), len(second)
    attainable = min(1.0, 2.0 / comb(n + m, n))
    values = np.concatenate([first, second])
    if not n or not m or np.isnan(values).any():
        return Answer(nan, attainable, 0)
    ranks = (2 * pd.Series(values).rank().to_numpy()).astype(np.int64)
    ways = np.zeros((n + 1, int(ranks.sum()) + 1))
    ways[0, 0] = 1.0
    for rank in ranks:
        # The right side is whole before the left is written: every value is taken once at most.
        ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
    own = int(ranks[:n].sum())
    expected = n * ranks.sum() / (n + m)
    return Answer(
        _two_sided(ways[n] / ways[n].sum(), own), attainable, int(np.sign(own - expected))
    )


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that hold for the whole family.

    The k-th smallest of m becomes the largest of (m − j + 1) p(j) over j ≤ k, at most 1. A NaN
    stays NaN and counts as a test of the family that shows nothing.

    >>> [round(x, 3) for x in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    values = np.array([1.0 if x != x else x for x in p], dtype=np.float64)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * values[order]))
    return [nan if x != x else float(a) for x, a in zip(p, adjusted, strict=True)]


def verdict(p: float, attainable: float, sign: int) -> str:
    """What a test decides, in words.

    Args:
        p: after Holm.
        attainable: the smallest that p could have been, after Holm as well. Above `ALPHA` the
            test can decide nothing, whatever the data.
        sign: 1 where the first method is better, -1 where the second is.
    """
    if p != p:
        return UNDEFINED
    if attainable > ALPHA:
        return CANNOT_DECIDE
    if p > ALPHA:
        return NOT_SHOWN
    return FIRST if sign > 0 else SECOND


def _two_sided(probabilities: Floats, at: int) -> float:
    below, above = probabilities[: at + 1].sum(), probabilities[at:].sum()
    return float(min(1.0, 2 * min(below, above)))
