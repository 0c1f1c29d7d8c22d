"""Power of t-tests against the published numbers, an independent formula and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from protocols.power import (
    MOST,
    TESTS,
    attainable_p,
    case_floor,
    detectable,
    power_of,
    sd_interval,
    seeds_needed,
)
from results.errors import UserError


@pytest.mark.parametrize(
    ("n", "paired", "in_sds"), [(5, False, 2.02), (10, False, 1.32), (5, True, 1.68), (10, True, 1)]
)
def test_detectable_differences_are_the_known_ones(n, paired, in_sds):
    assert detectable(1.0, n, paired) == pytest.approx(in_sds, abs=0.0051)
    assert detectable(0.3, n, paired) == pytest.approx(0.3 * detectable(1.0, n, paired))


@pytest.mark.parametrize(("sd", "seeds"), [(0.3, 7), (0.6, 24), (1.0, 64)])
def test_seeds_for_half_a_point_are_the_known_ones(sd, seeds):
    assert seeds_needed(0.5, sd) == seeds


@pytest.mark.parametrize(("n", "paired"), [(2, False), (5, False), (5, True), (20, True)])
def test_power_is_the_integral_over_the_distribution_of_the_sample_sd(n, paired):
    """P(|Z + d| > t S), S² being χ²/df: no noncentral t involved."""
    df, se = (n - 1, math.sqrt(1 / n)) if paired else (2 * n - 2, math.sqrt(2 / n))
    critical, shift = stats.t.ppf(0.975, df), 1.3 / se

    def beyond(x):
        edge = critical * x / math.sqrt(df)
        return (stats.norm.sf(edge - shift) + stats.norm.cdf(-edge - shift)) * stats.chi.pdf(x, df)

    expected, _ = integrate.quad(beyond, 0, np.inf)
    assert power_of(1.3, 1.0, n, paired) == pytest.approx(expected, abs=1e-7)


def test_power_is_how_often_scipys_test_finds_the_difference():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20_000, 5))
    found = (stats.ttest_ind(a + 2.02, b, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.01)


def test_without_a_difference_power_is_the_level_of_the_test():
    assert power_of(0.0, 1.0, 5, alpha=0.03) == pytest.approx(0.03)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.01, 10),
    st.floats(0.01, 10),
    st.booleans(),
    st.floats(0.5, 0.95),
    st.floats(0.01, 0.1),
)
def test_the_seeds_needed_suffice_and_one_less_does_not(difference, sd, paired, power, alpha):
    n = seeds_needed(difference, sd, paired, power, alpha)
    if n is None:
        assert power_of(difference, sd, MOST, paired, alpha) < power
        return
    assert power_of(difference, sd, n, paired, alpha) >= power
    if n > 2:
        assert power_of(difference, sd, n - 1, paired, alpha) < power
    if n < 10_000:
        assert detectable(sd, n, paired, power, alpha) <= difference * (1 + 1e-6)


def test_a_difference_that_nobody_can_see_needs_no_number_of_seeds():
    assert seeds_needed(1e-6, 1.0) is None


def test_runs_that_never_differ_need_two_seeds():
    assert seeds_needed(0.5, 0.0) == 2
    assert detectable(0.0, 5) == 0.0


def test_cases_set_a_floor_that_no_seeds_lower():
    """Simulated with the seeds averaged out entirely: only the cases are drawn."""
    floor = case_floor(3.0, 20)
    rng = np.random.default_rng(1)
    drawn = rng.normal(floor, 3.0, size=(20_000, 20))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(
        0.8, abs=0.01
    )
    assert floor > 3.0 / math.sqrt(20)


def test_the_interval_of_an_sd_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(2)
    sds = rng.normal(size=(1500, 5)).std(axis=1, ddof=1)
    covered = [low <= 1 <= high for low, high in (sd_interval(sd, 5) for sd in sds)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("n", [2, 5, 6])
def test_the_smallest_p_is_what_scipy_gives_for_perfect_separation(n):
    low, high = np.arange(n, dtype=float), np.arange(n) + 100.0
    wilcoxon = stats.wilcoxon(high - low + np.arange(n), method="exact").pvalue
    mann_whitney = stats.mannwhitneyu(low, high, method="exact").pvalue
    assert attainable_p(n, "wilcoxon") == attainable_p(n, "sign") == pytest.approx(wilcoxon)
    assert attainable_p(n, "mann-whitney") == pytest.approx(mann_whitney)


def test_five_pairs_can_never_be_significant_and_six_can():
    assert attainable_p(5, "wilcoxon") == 0.0625
    assert attainable_p(6, "wilcoxon") == 0.03125
    assert attainable_p(5, "mann-whitney") == pytest.approx(2 / 252)
    assert attainable_p(1, "t") == 1.0
    assert all(attainable_p(1, test) == 1.0 for test in TESTS)


def test_an_unknown_test_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'wilcoxon'"):
        attainable_p(5, "wilcoxn")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: detectable(1.0, 1), "n 1: expected at least 2"),
        (lambda: detectable(-1.0, 5), "sd -1.0"),
        (lambda: detectable(math.nan, 5), "sd nan"),
        (lambda: detectable(1.0, 5, power=0.01), "power 0.01"),
        (lambda: detectable(1.0, 5, alpha=0.0), "alpha 0.0"),
        (lambda: seeds_needed(0.0, 1.0), "difference 0.0"),
        (lambda: power_of(-1.0, 1.0, 5), "difference -1.0"),
        (lambda: attainable_p(0, "t"), "n 0"),
    ],
)
def test_values_out_of_range_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
