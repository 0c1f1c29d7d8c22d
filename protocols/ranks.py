"""Who comes first, under how many ways to count: ranks, their agreement, and their stability."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import nan, sqrt

import numpy as np
import pandas as pd

from protocols.intervals import DRAWS, Floats, case_means, resampled
from protocols.metrics import METRICS


def ranks(values: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Ranks of methods under every scheme, 1 the best, ties their average.

    Args:
        values: schemes x methods; an infinite value is of a failed run and ranks last. NaN has
            no rank.
        metric: which one they are of.
    """
    return values.rank(axis=1, ascending=not METRICS[metric].higher_is_better, method="average")


def kendall(first: Floats, second: Floats) -> float:
    """Kendall's τ-b of two rankings of the same methods, corrected for ties.

    τ-b = Σ sign(Δx) sign(Δy) / √(pairs untied in x · pairs untied in y), over the methods that
    have both ranks. NaN where one ranking ties all of them.
    """
    both = ~(np.isnan(first) | np.isnan(second))
    x, y = first[both], second[both]
    places = np.triu_indices(len(x), 1)
    dx, dy = (np.sign(v[:, None] - v[None, :])[places] for v in (x, y))
    untied = float(np.count_nonzero(dx)) * float(np.count_nonzero(dy))
    return float((dx * dy).sum()) / sqrt(untied) if untied else nan


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Kendall's τ-b of every two schemes, schemes x schemes.

    table: schemes x methods, as `ranks` gives it.
    """
    rows = table.to_numpy(dtype=np.float64)
    found = [[kendall(a, b) for b in rows] for a in rows]
    return pd.DataFrame(found, index=table.index, columns=table.index)


def flips(table: pd.DataFrame) -> pd.DataFrame:
    """Pairs of methods whose order depends on the scheme; a tie is no order.

    Args:
        table: schemes x methods, as `ranks` gives it.

    Returns:
        first, second, and the schemes under which each is ahead: `first_ahead`, `second_ahead`
        (tuples of index entries). Pairs in the order of columns.
    """
    found = []
    for a, b in combinations(table.columns, 2):
        ahead = tuple(table.index[table[a] < table[b]])
        behind = tuple(table.index[table[a] > table[b]])
        if ahead and behind:
            found.append((a, b, ahead, behind))
    return pd.DataFrame(found, columns=["first", "second", "first_ahead", "second_ahead"])


def robust_winner(table: pd.DataFrame) -> str | None:
    """The method that is first, and alone there, under every scheme; None if there is none.

    table: schemes x methods, as `ranks` gives it. One method alone wins nothing.
    """
    if table.shape[1] < 2 or table.empty:
        return None
    first = [str(name) for name in table.columns if (table[name] == 1).all()]
    return first[0] if first else None


def rank_distribution(
    tables: Mapping[str, pd.DataFrame],
    metric: str,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """How often each method takes each rank when seeds and cases are drawn anew.

    Cases are resampled together for all methods. So are seeds, where all methods have the same
    ones; elsewhere each method's by themselves. A draw ranks the medians over its runs of the
    means over its cases; failed runs are drawn as others are, and are the worst.

    Args:
        tables: by method, seeds x cases; see `comparison.seeds_by_cases`.
        metric: which one they are of.
        rng: decides the draws.
        draws: how many.

    Returns:
        Methods x ranks 1, 2, ...: shares of the draws; tied methods share the ranks they tie
        for. `mean`, the average rank. Methods without a run, or with one in which no case counts,
        are NaN throughout.
    """
    names = list(tables)
    columns = [*range(1, len(names) + 1), "mean"]
    shares = pd.DataFrame(nan, index=pd.Index(names, name="method"), columns=columns)
    usable = [name for name in names if len(tables[name]) and _counts(tables[name])]
    if not usable:
        return shares
    counts = resampled(tables[usable[0]].shape[1], draws, rng)
    together = len({tuple(tables[name].index) for name in usable}) == 1
    common = rng.integers(len(tables[usable[0]]), size=(draws, len(tables[usable[0]])))
    medians = {}
    for name in usable:
        n = len(tables[name])
        seeds = common if together else rng.integers(n, size=(draws, n))
        medians[name] = _medians(tables[name].to_numpy(), counts, seeds)
    drawn = ranks(pd.DataFrame(medians), metric)
    ways = drawn.to_numpy()
    lowest = (
        pd.DataFrame(medians)
        .rank(axis=1, ascending=not METRICS[metric].higher_is_better, method="min")
        .to_numpy()
    )
    # Tied at ranks r to s: each of them has an equal share of each.
    width = 2 * (ways - lowest) + 1
    for rank in range(1, len(names) + 1):
        inside = (rank >= lowest) & (rank < lowest + width)
        shares.loc[usable, rank] = np.where(inside, 1 / width, 0.0).mean(axis=0)
    shares.loc[usable, "mean"] = ways.mean(axis=0)
    # In some draw nothing of it counted, so it had no rank there.
    shares.loc[shares["mean"].isna()] = nan
    return shares


def _counts(table: pd.DataFrame) -> bool:
    return not table.isna().all(axis=1).any()


def _medians(table: Floats, counts: np.ndarray, seeds: np.ndarray) -> Floats:
    """Median over drawn runs of the mean over drawn cases, a value a draw."""
    failed = np.asarray(np.isinf(table).any(axis=1))
    means = case_means(np.where(failed[:, None], 0.0, table), counts)
    means[failed] = table[failed, :1]
    drawn = np.sort(means[seeds, np.arange(len(seeds))[:, None]], axis=1)
    n = drawn.shape[1]
    return np.asarray((drawn[:, (n - 1) // 2] + drawn[:, n // 2]) / 2)
