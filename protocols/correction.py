"""The best of several evaluations, and what it would score on cases it was not chosen on.

Cases are resampled: a draw gives every case a weight; the evaluation with the best weighted mean
is chosen, and scored on the cases of weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_DRAWS: Final = 50
"""So that every case is left out at least once: of many, a draw leaves out 37 %."""


class Resampling(NamedTuple):
    """A way to draw cases.

    draw:    generator, draws, cases -> weights (rows, cases), 0 for a case that is left out.
    meaning: draws -> what is done, for the foot of a table.
    """

    draw: Callable[[np.random.Generator, int, int], NDArray[np.int64]]
    meaning: Callable[[int], str]


def bootstrap(rng: np.random.Generator, draws: int, cases: int) -> NDArray[np.int64]:
    """How often each case is drawn, with replacement, as many as there are: (draws, cases)."""
    return rng.multinomial(cases, np.full(cases, 1 / cases), size=draws)


def halves(rng: np.random.Generator, draws: int, cases: int) -> NDArray[np.int64]:
    """Random halves, and the other half of each: (2 draws, cases). The first has the odd case."""
    ranks = rng.permuted(np.tile(np.arange(cases), (draws, 1)), axis=1)
    first = (2 * ranks < cases).astype(np.int64)
    return np.concatenate([first, 1 - first])


METHODS: Final = {
    "bootstrap": Resampling(
        bootstrap,
        lambda n: (
            f"In {n} bootstrap draws of the cases, a checkpoint is chosen on those drawn and "
            "scored on those left out"
        ),
    ),
    "split": Resampling(
        halves,
        lambda n: (
            f"In {n} random splits of the cases into halves, a checkpoint is chosen on either "
            "half and scored on the other"
        ),
    ),
}


def best_of(means: NDArray[np.float64], higher_is_better: bool, later: bool) -> NDArray[np.int64]:
    """Places of the best in each row; NaN is never the best.

    Args:
        means: (rows, evaluations).
        higher_is_better: the largest, else the smallest.
        later: the last of equal ones, else the first. Of a row of NaN too.
    """
    worst = -np.inf if higher_is_better else np.inf
    comparable = np.where(np.isnan(means), worst, means)
    if later:
        comparable = comparable[:, ::-1]
    best: NDArray[np.int64] = (
        comparable.argmax(axis=1) if higher_is_better else comparable.argmin(axis=1)
    )
    return means.shape[1] - 1 - best if later else best


def corrected(
    cases: Mapping[str, NDArray[np.float64]],
    metric: str,
    weights: NDArray[np.int64],
    higher_is_better: bool,
    later: bool,
) -> dict[str, float]:
    """Out-of-sample value of every metric at the evaluation that is best by one of them.

    With e(d) the evaluation chosen in draw d, the value is the mean over cases c of the mean of
    x[c, e(d)] over the draws that leave c out. A draw that leaves none out adds nothing. Without
    differences between evaluations its expectation is that of the plain mean over cases.

    Args:
        cases: by metric, (cases, evaluations); NaN where a case does not count.
        metric: which one decides.
        weights: (draws, cases), 0 for a case that is left out.
        higher_is_better: of the metric that decides.
        later: which of equal evaluations.

    Returns:
        By metric; NaN where a case is never left out, or no case counts.
    """
    decides = cases[metric]
    counts = ~np.isnan(decides)
    sums = weights @ np.where(counts, decides, 0.0)
    with np.errstate(invalid="ignore"):
        means = sums / (weights @ counts.astype(np.int64))
    chosen = best_of(means, higher_is_better, later)
    left_out = weights.T == 0
    if not left_out.any(axis=1).all():
        return dict.fromkeys(cases, float("nan"))
    return {name: _mean_left_out(scores[:, chosen], left_out) for name, scores in cases.items()}


def _mean_left_out(scores: NDArray[np.float64], left_out: NDArray[np.bool_]) -> float:
    """Mean over cases of each one's mean over the draws that leave it out: (cases, draws)."""
    counted = left_out & ~np.isnan(scores)
    times = counted.sum(axis=1)
    sums = np.where(counted, scores, 0.0).sum(axis=1)
    counting = times > 0
    return float((sums[counting] / times[counting]).mean()) if counting.any() else float("nan")
