from itertools import product
from math import comb, inf, isnan, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from protocols.intervals import (
    case_means,
    crossed_bootstrap,
    median_rank,
    of_mean,
    of_median,
    resampled,
)


def rng(seed=0):
    return np.random.default_rng(seed)


# The median


def coverage(n, rank):
    """Of [X(rank), X(n + 1 - rank)], by counting all ways to fall below or above the median."""
    inside = sum(rank <= sum(signs) <= n - rank for signs in product((0, 1), repeat=n))
    return inside / 2**n


@pytest.mark.parametrize("n", range(1, 13))
def test_the_coverage_of_a_median_is_what_counting_says(n):
    rank, attained = median_rank(n)
    assert attained == pytest.approx(coverage(n, rank), abs=1e-15)


@pytest.mark.parametrize("n", range(1, 13))
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_the_shortest_interval_that_reaches_the_level_is_taken(n, level):
    rank, attained = median_rank(n, level)
    enough = [r for r in range(1, n // 2 + 1) if coverage(n, r) >= level]
    assert rank == (max(enough) if enough else 1)
    assert attained >= level or rank == 1


def test_five_runs_hold_the_median_in_min_and_max_for_93_75_percent():
    values = np.array([3.0, 1.0, 5.0, 2.0, 4.0])
    assert of_median(values) == (1.0, 5.0, 0.9375, "[min, max]")


def test_ten_runs_need_no_extremes():
    found = of_median(np.arange(10.0))
    assert found[:2] == (1.0, 8.0)
    assert found.coverage == pytest.approx(1 - 2 * (1 + 10) / 2**10)
    assert found.kind == "[2nd lowest, 2nd highest]"


def test_the_median_of_a_skewed_distribution_is_held_as_often_as_said():
    draws = rng(1).exponential(size=(20_000, 5))
    held = (draws.min(1) <= np.log(2)) & (np.log(2) <= draws.max(1))
    assert held.mean() == pytest.approx(of_median(draws[0]).coverage, abs=0.006)


def test_a_failed_run_is_a_bound():
    assert of_median(np.array([0.7, -inf, 0.8, 0.6, 0.9]))[:2] == (-inf, 0.9)
    assert of_median(np.array([7.0, inf, 8.0]))[:2] == (7.0, inf)


@pytest.mark.parametrize("values", [[], [0.5, nan, 0.6]])
def test_no_run_or_one_without_a_number_leaves_the_bounds_open(values):
    found = of_median(np.array(values))
    assert isnan(found.low)
    assert isnan(found.high)


@pytest.mark.parametrize("value", [0.5, -inf])
def test_one_run_has_no_interval(value):
    found = of_median(np.array([value]))
    assert isnan(found.low)
    assert isnan(found.high)
    assert found.coverage == 0


# The mean


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("n", [2, 5, 12])
def test_the_interval_of_a_mean_is_scipys(n, level):
    values = rng(n).normal(size=n)
    expected = stats.t.interval(level, n - 1, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(of_mean(values, level)[:2], expected, rtol=1e-10)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, nan], [1.0, -inf, 2.0]])
def test_a_mean_that_is_undefined_has_no_interval(values):
    assert np.isnan(of_mean(np.array(values))[:2]).all()


# Seeds x cases


def naive_bootstrap(table, draws, seed):
    """Indices drawn one by one, another way than by counts."""
    generator = np.random.default_rng(seed)
    n, m = table.shape
    found = []
    for _ in range(draws):
        rows, columns = generator.integers(n, size=n), generator.integers(m, size=m)
        found.append(np.nanmean(table[rows][:, columns], axis=1).mean())
    return np.quantile(found, [0.025, 0.975])


@pytest.mark.parametrize("holes", [False, True])
def test_the_crossed_bootstrap_agrees_with_drawing_rows_and_columns(holes):
    generator = rng(2)
    table = generator.normal(size=(6, 1)) + generator.normal(size=(6, 15))
    if holes:
        table[generator.random(table.shape) < 0.1] = nan
    found = crossed_bootstrap(table, rng(0), draws=4000)
    assert found[:2] == pytest.approx(naive_bootstrap(table, 4000, 1), abs=0.08)
    assert found.kind == "crossed bootstrap over 6 seeds × 15 cases, percentile"


def test_the_variance_of_the_crossed_bootstrap_is_that_of_two_crossed_effects():
    generator = rng(3)
    n, m = 40, 50
    table = generator.normal(0, 2, (n, 1)) + generator.normal(0, 1, (1, m))
    rows, columns = table.mean(1).var(), table.mean(0).var()
    low, high, *_ = crossed_bootstrap(table, rng(0), draws=20_000)
    assert (high - low) / 3.92 == pytest.approx(np.sqrt(rows / n + columns / m), rel=0.03)


def test_a_difference_of_methods_with_other_seeds_draws_cases_together():
    generator = rng(4)
    cases = 50 * generator.normal(size=30)
    first, second = (cases + generator.normal(size=(n, 30)) for n in (5, 7))
    low, high, *_ = crossed_bootstrap(first, rng(0), other=second)
    assert high - low < 2, "cases are hard for both alike, so they cancel"
    low, high, *_ = crossed_bootstrap(first, rng(0))
    assert high - low > 20


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10**6))
def test_the_same_seed_gives_the_same_interval_and_the_interval_lies_in_the_data(n, m, seed):
    table = rng(seed).normal(size=(n, m))
    found = crossed_bootstrap(table, rng(seed), draws=50)
    assert found == crossed_bootstrap(table, rng(seed), draws=50)
    assert table.min() - 1e-9 <= found.low <= found.high <= table.max() + 1e-9


def test_another_seed_gives_another_interval():
    table = rng().normal(size=(5, 10))
    assert crossed_bootstrap(table, rng(0))[:2] != crossed_bootstrap(table, rng(1))[:2]


@pytest.mark.parametrize(
    "table",
    [np.empty((0, 3)), np.empty((3, 0)), np.full((3, 4), nan), np.array([[1.0, 2.0], [inf, inf]])],
)
def test_nothing_to_draw_or_a_failed_run_leaves_the_bounds_open(table):
    assert np.isnan(crossed_bootstrap(table, rng())[:2]).all()


def test_resampled_counts_are_draws_of_as_many_as_there_are():
    counts = resampled(5, 3000, rng())
    assert (counts.sum(axis=1) == 5).all()
    assert (counts == 5).any(axis=1).mean() < 0.01
    absent = comb(5, 0) * 0.8**5
    assert (counts[:, 0] == 0).mean() == pytest.approx(absent, abs=0.03)


def test_means_over_drawn_cases_leave_out_those_that_do_not_count():
    table = np.array([[1.0, nan, 3.0], [nan, nan, 5.0]])
    found = case_means(table, np.array([[1, 1, 1], [2, 1, 0]]))
    np.testing.assert_array_equal(found, [[2.0, 1.0], [5.0, nan]])
