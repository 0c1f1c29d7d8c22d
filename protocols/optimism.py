"""How much the best checkpoint on the test set flatters: gap, its two parts, and what chance gives.

For one run let `Y[k, i]` be the score of case i at evaluation k, the higher the better (distances
are negated), and `k*` the evaluation with the best mean over cases, of equal ones the later:

    gap   = mean_i Y[k*, i] - mean_i Y[last, i]            never below 0
    drift = what k* is worth beyond `last` on cases that did not choose it
    selection optimism = gap - drift

The drift is real: the run was better at k*. The selection optimism is not: it is there only for
the cases that chose. Sources: Tsamardinos et al., Machine Learning 107 (2018), bootstrap bias
correction; Owen, Annals of Applied Statistics 1 (2007), the crossed bootstrap and its variance;
Cameron, Gelbach and Miller, Journal of Business & Economic Statistics 29 (2011), two-way variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from protocols.correction import best_of, bootstrap, corrected, halves
from protocols.intervals import DRAWS, LEVEL, Floats, Interval, case_means, resampled
from protocols.metrics import METRICS

SIMULATIONS: Final = 2000
"""Trajectories without any change."""

_LEAST_FOR_NOISE: Final = 3
"""Evaluations of which one is left when level and slope are taken off."""

_LEAST_FOR_CORRELATION: Final = 5
"""Evaluations below which a lag-1 correlation cannot be told from the line that is taken off."""

_CORRELATIONS: Final = np.linspace(0, 0.8, 81)
"""Those looked for. In a dozen evaluations, slower movement cannot be told from change."""


@dataclass(frozen=True)
class Evaluated:
    """What one run scored.

    steps:  (K,) at which it was evaluated, ascending.
    values: (K, cases) scores, the higher the better; NaN where a case does not count.
    """

    run: str
    steps: NDArray[np.int64]
    values: Floats


class Split(NamedTuple):
    """A gap and its parts, of one run or on average over runs; all the higher the more flattering.

    last:         mean score of the last evaluation, the higher the better.
    gap:          of the best evaluation beyond it; `optimism` + `drift`.
    optimism:     selection optimism, by bootstrap bias correction.
    drift:        what the choice is worth beyond `last` on cases that did not choose.
    optimism_halves, drift_halves: the same, chosen on one half of the cases and scored on the
                  other.
    """

    last: float
    gap: float
    optimism: float
    drift: float
    optimism_halves: float
    drift_halves: float


@dataclass(frozen=True)
class Noise:
    """How scores move between evaluations while nothing changes.

    shared:             standard deviation of what all cases have in common at an evaluation.
    case:               standard deviation of what one case has on top of that.
    shared_correlation: lag-1 correlation of the shared part; `case_correlation` of the other.
    correlated:         whether these were estimated; else they are 0 by assumption.
    """

    shared: float
    case: float
    shared_correlation: float
    case_correlation: float
    correlated: bool


def evaluated(cases: pd.DataFrame, metric: str) -> list[Evaluated]:
    """Case rows as a matrix per run, over the same cases.

    Args:
        cases: columns run, step, case and the metric, with numbers for every status; one split
            and one predictor. The order of rows changes nothing.
        metric: name of a metric; where lower is better, values are negated.

    Returns:
        By run id. A case that an evaluation lacks is NaN there.
    """
    runs, run_names = pd.factorize(cases["run"].to_numpy(dtype=object), sort=True)
    places, names = pd.factorize(cases["case"].to_numpy(dtype=object), sort=True)
    steps = cases["step"].to_numpy(dtype=np.int64)
    scores = cases[metric].to_numpy(dtype=np.float64)
    scores = scores if METRICS[metric].higher_is_better else -scores
    found = []
    for place, run in enumerate(run_names):
        own = runs == place
        at, rows = np.unique(steps[own], return_inverse=True)
        values = np.full((len(at), len(names)), nan)
        values[rows, places[own]] = scores[own]
        found.append(Evaluated(str(run), at, values))
    return found


def best(values: Floats) -> int:
    """Place of the evaluation with the best mean over cases, of equal ones the later.

    >>> best(np.array([[0.7, 0.9], [0.8, 0.8], [0.5, 0.6]]))
    1
    """
    return int(best_of(_means(values)[None], higher_is_better=True, later=True)[0])


def gap(values: Floats) -> float:
    """Mean of the best evaluation minus mean of the last one.

    Args:
        values: (K, cases), the higher the better.

    Returns:
        Never below 0; NaN when no case counts at the last evaluation.
    """
    means = _means(values)
    return float(means[best(values)] - means[-1])


def gap_interval(
    runs: Sequence[Floats],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """Interval of the expected gap, over runs and cases.

    Of what: the gap that this protocol shows on average, with as many evaluations and as many
    test cases, over all runs and test sets that could have been drawn. The mean gap of the runs
    estimates just that, without bias, so the interval lies about it. It is no interval of what
    the choice is worth on other cases: that is the drift.

    How: runs and cases are drawn with replacement, crossed, and **the choice of each run stays**.
    A bootstrap that chooses again on drawn cases takes the maximum of means with twice the
    variance (that of the test set and that of the draw); all its gaps are too large, and its
    percentiles miss the truth. Holding the choice is right to first order, as the derivative of
    a maximum is that of the element that attains it.

    The variance of the draws is that of runs plus that of cases, but the crossed bootstrap counts
    what single runs have on single cases three times. Its own remainder,
    `both - runs - cases`, measures that part, and it is counted once:

        variance = R / (R - 1) var(runs) + max(0, var'(cases) - var'(both - runs - cases))

    (primes: corrected for n and R as the first term is). The interval is the mean gap
    ± t(R - 1) sqrt(variance): honest for few runs, where percentiles are too narrow. It is
    symmetric and may therefore reach below 0, where no gap is.

    Args:
        runs: (K, cases) of each run; K may differ, cases are the same.
        rng: draws runs and cases.
        draws: how many.
        level: nominal coverage.

    Returns:
        NaN below two runs or two cases, where the gap of a run or of a draw is undefined, and
        where all gaps are 0: draws of these runs know of no other, and [0, 0] would be certainty.
    """
    count = len(runs)
    cases = runs[0].shape[1] if runs else 0
    kind = f"crossed bootstrap over {count} runs × {cases} cases, choices held, t"
    if count < 2 or cases < 2:
        return Interval(nan, nan, level, kind)
    chosen = np.stack([values[best(values)] for values in runs])
    last = np.stack([values[-1] for values in runs])
    gaps = np.array([gap(values) for values in runs])
    if (gaps == 0).all():
        return Interval(nan, nan, level, kind)
    weights = resampled(count, draws, rng) / count
    counts = resampled(cases, draws, rng)
    redrawn = (case_means(chosen, counts) - case_means(last, counts)).T
    by_run = weights @ gaps
    by_case = redrawn.mean(axis=1)
    rest = (weights * redrawn).sum(axis=1) - by_run - by_case
    few_runs, few_cases = count / (count - 1), cases / (cases - 1)
    case_part = few_cases * (by_case.var() - few_runs * rest.var())
    error = np.sqrt(few_runs * by_run.var() + np.maximum(0, case_part))
    half = float(stdtrit(count - 1, (1 + level) / 2) * error)
    return Interval(float(gaps.mean()) - half, float(gaps.mean()) + half, level, kind)


def split(values: Floats, rng: np.random.Generator, *, draws: int = DRAWS) -> Split:
    """The gap of a run, split into selection optimism and training drift.

    The drift is the corrected score of the choice (`protocols.correction.corrected`: chosen on
    drawn cases, scored on those left out) minus the score of `last`; the optimism is the rest of
    the gap. n cases drawn with replacement choose as badly as n / 2 would, and so do halves: both
    drifts are low rather than high, and both optimisms rather upper bounds.

    Args:
        values: (K, cases), the higher the better.
        rng: draws the cases.
        draws: how many.

    Returns:
        Parts that are NaN with one case, which cannot be left out.
    """
    cases = values.shape[1]
    found, last = gap(values), float(_means(values)[-1])
    if cases < 2:
        return Split(last, found, nan, nan, nan, nan)
    drift, drift_halves = (
        corrected({"score": values.T}, "score", weights, True, True)["score"] - last
        for weights in (bootstrap(rng, draws, cases), halves(rng, draws // 2, cases))
    )
    return Split(last, found, found - drift, drift, found - drift_halves, drift_halves)


def mean_split(splits: Sequence[Split]) -> Split:
    """Mean over runs of each part; NaN where a run has none, as no run is left out."""
    rows = np.array(list(splits)).reshape(-1, len(Split._fields))
    means = rows.sum(axis=0) / len(rows) if len(rows) else np.full(len(Split._fields), nan)
    return Split(*map(float, means))


def late(run: Evaluated) -> Floats:
    """Scores at the evaluations in the second half of the steps, where little is learnt."""
    return np.asarray(run.values[2 * run.steps >= run.steps[-1]])


def fit_noise(runs: Sequence[Floats]) -> Noise | None:
    """Variances and correlations of the scores of runs about a straight line each.

    A score is modelled as

        Y[k, i] = case_i + level + slope k + S_k + E_ki

    with S shared by the cases, E not, both AR(1) over evaluations. Level and slope (real change)
    are projected off, which also takes off some of the noise and turns correlations negative;
    variances and lag-1 correlations are those whose *expected* sums of squares and of
    neighbours' products after this projection are the observed ones (method of moments, pooled
    over runs). Correlations are looked for in [0, 0.8]. A shared variance that is estimated
    below 0 is 0: none can be seen.

    Args:
        runs: (K, cases) of each run, of a phase without much change; cases with a NaN are not
            used. Runs with fewer than 3 evaluations or 2 cases say nothing here.

    Returns:
        None when no run says anything. With fewer than 5 evaluations in every run, correlations
        are 0 and `correlated` is False.
    """
    whole = [values[:, ~np.isnan(values).any(axis=0)] for values in runs]
    used = [v for v in whole if len(v) >= _LEAST_FOR_NOISE and v.shape[1] > 1]
    if not used:
        return None
    correlated = max(map(len, used)) >= _LEAST_FOR_CORRELATION
    grid = _CORRELATIONS if correlated else _CORRELATIONS[:1]
    own, common = np.zeros(2), np.zeros(2)
    own_expected, common_expected, leaked = (np.zeros((2, len(grid))) for _ in range(3))
    for values in used:
        count, cases = values.shape
        free = _without_line(count)
        expected = _expected(free, grid)
        means = values.mean(axis=1, keepdims=True)
        own += _moments(free @ (values - means))
        common += _moments(free @ means)
        own_expected += (cases - 1) * expected
        common_expected += expected
        leaked += expected / cases
    place, variance = _match(own, own_expected)
    shared_place, shared_variance = _match(common - variance * leaked[:, place], common_expected)
    return Noise(
        sqrt(shared_variance), sqrt(variance), float(grid[shared_place]), float(grid[place]),
        correlated,
    )  # fmt: skip


def null_gain(
    noise: Noise,
    evaluations: Sequence[int],
    cases: Sequence[int],
    rng: np.random.Generator,
    *,
    simulations: int = SIMULATIONS,
) -> pd.DataFrame:
    """What `best - last` gives to a run that does not change at all.

    Trajectories of normal noise are simulated as `Noise` says, at the spacing of evaluations at
    which it was estimated. A trajectory of K evaluations is the beginning of the longest, and
    every number of cases sees the same draws, so rows differ by what they say only. Each counts
    with its mirror image, as likely as itself: the last evaluation cancels, and what is averaged
    is half of highest minus lowest.

    Returns:
        One row for each number of evaluations and of cases: evaluations, cases, `gain` (expected
        gap) and `optimism` (the part of it that other cases would not show; the rest is the luck
        of having stopped at a good moment).
    """
    longest = max(evaluations)
    shared = noise.shared * _paths(noise.shared_correlation, longest, simulations, rng)
    single = noise.case * _paths(noise.case_correlation, longest, simulations, rng)
    rows = []
    for n in cases:
        own = single / sqrt(n)
        total = shared + own
        for count in evaluations:
            high = total[:count].argmax(axis=0)[None]
            low = total[:count].argmin(axis=0)[None]
            gain, optimism = (
                float((np.take_along_axis(v, high, 0) - np.take_along_axis(v, low, 0)).mean() / 2)
                for v in (total, own)
            )
            rows.append((count, n, gain, optimism))
    return pd.DataFrame(rows, columns=["evaluations", "cases", "gain", "optimism"])


def _means(values: Floats) -> Floats:
    return case_means(values, np.ones((1, values.shape[1]), dtype=np.int64))[:, 0]


def _without_line(count: int) -> Floats:
    """(count, count) projection that takes level and slope off."""
    basis, _ = np.linalg.qr(np.vander(np.arange(count, dtype=np.float64), 2))
    return np.asarray(np.eye(count) - basis @ basis.T)


def _moments(residuals: Floats) -> Floats:
    """Sum of squares, and of products of neighbours, of (K, series) residuals."""
    neighbours = (residuals[1:] * residuals[:-1]).sum()
    return np.array([(residuals**2).sum(), neighbours])


def _expected(free: Floats, correlations: Floats) -> Floats:
    """Expectation of `_moments` of one projected AR(1) of variance 1, (2, correlations)."""
    count = len(free)
    lags = np.abs(np.subtract.outer(np.arange(count), np.arange(count))).ravel()
    forms = (free, free @ np.eye(count, k=1) @ free)
    by_lag = np.stack([np.bincount(lags, form.ravel()) for form in forms])
    return np.asarray(by_lag @ correlations[None, :] ** np.arange(count)[:, None])


def _match(observed: Floats, expected: Floats) -> tuple[int, float]:
    """Place of the correlation whose expected moments fit, and the variance there."""
    if observed[0] <= 0:
        return 0, 0.0
    ratios = expected[1] / expected[0]
    place = int(np.abs(ratios - observed[1] / observed[0]).argmin())
    return place, float(observed[0] / expected[0, place])


def _paths(correlation: float, length: int, count: int, rng: np.random.Generator) -> Floats:
    """(length, count) stationary AR(1) trajectories of variance 1."""
    paths = rng.standard_normal((length, count))
    fresh = sqrt(1 - correlation**2)
    for place in range(1, length):
        paths[place] = correlation * paths[place - 1] + fresh * paths[place]
    return paths
