from itertools import combinations, product
from math import nan, pi, sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.stats import norm

from protocols.optimism import (
    Noise,
    Split,
    best,
    evaluated,
    fit_noise,
    gap,
    gap_interval,
    late,
    mean_split,
    null_gain,
    split,
)
from tests.protocols import toy

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 5))
SCORES = SHAPES.flatmap(lambda shape: arrays(float, shape, elements=st.integers(0, 100).map(float)))


def expected_maximum(count):
    """Of so many independent standard normal numbers, by quadrature."""
    return quad(lambda x: x * count * norm.pdf(x) * norm.cdf(x) ** (count - 1), -10, 10)[0]


def flat(rng, *, runs, evaluations, cases, shared, single, common=0.0):
    """Runs that do not change: noise on a level a case."""
    levels = 80 + 5 * rng.standard_normal(cases)
    levels = levels + common * rng.standard_normal((evaluations, cases))
    return [
        levels
        + shared * rng.standard_normal((evaluations, 1))
        + single * rng.standard_normal((evaluations, cases))
        for _ in range(runs)
    ]


# From rows to matrices


def test_case_rows_become_a_matrix_per_run_over_the_same_cases():
    rows = [toy.cases("b", {20: (0.5, 0.6), 10: (0.1, 0.2)}), toy.cases("a", {10: (0.9,)})]
    first, second = evaluated(pd.concat(rows).sample(frac=1, random_state=0), "dsc")
    assert (first.run, second.run) == ("a", "b")
    assert second.steps.tolist() == [10, 20]
    assert second.values.tolist() == [[0.1, 0.2], [0.5, 0.6]]
    np.testing.assert_equal(first.values, [[0.9, nan]])


def test_distances_are_negated_so_that_higher_is_better():
    (run,) = evaluated(toy.cases("a", {10: (0.9, 0.5), 20: (0.8, 0.4)}), "asd")
    assert run.values.tolist() == pytest.approx(np.array([[-1, -5], [-2, -6]]))
    assert gap(run.values) == pytest.approx(1)


def test_the_late_phase_is_the_second_half_of_the_steps():
    (run,) = evaluated(toy.cases("a", {s: (s / 100,) for s in (10, 49, 50, 51, 100)}), "dsc")
    assert late(run)[:, 0].tolist() == [0.5, 0.51, 1.0]


# The gap


@given(SCORES)
def test_the_gap_is_the_highest_mean_minus_the_last(values):
    means = [sum(row) / len(row) for row in values]
    assert gap(values) == pytest.approx(max(means) - means[-1], abs=1e-9)
    assert gap(values) >= 0
    assert gap(values[:, ::-1]) == pytest.approx(gap(values), abs=1e-9)
    levels = np.arange(values.shape[1])
    assert gap(values + levels) == pytest.approx(gap(values), abs=1e-9)


def test_of_equal_evaluations_the_later_is_the_best():
    assert best(np.array([[1.0, 3.0], [2.0, 2.0], [0.0, 0.0]])) == 1


def test_cases_that_do_not_count_are_left_out_of_the_means():
    values = np.array([[nan, 4.0], [1.0, 3.0], [nan, nan], [2.0, nan]])
    assert best(values) == 0
    assert gap(values) == pytest.approx(2)
    assert np.isnan(gap(values[:3]))


# Its interval


def test_the_interval_holds_the_expected_gap_and_choosing_again_would_inflate_it():
    rng = np.random.default_rng(0)
    cases, evaluations = 20, 76
    truth = expected_maximum(evaluations) * sqrt(0.5**2 + (2**2 + 1**2) / cases)
    held, chosen_again, repetitions = 0, [], 200
    for _ in range(repetitions):
        runs = flat(
            rng, runs=5, evaluations=evaluations, cases=cases, shared=0.5, single=2, common=1
        )
        interval = gap_interval(runs, rng, draws=200)
        held += interval.low <= truth <= interval.high
        drawn = rng.integers(cases, size=(5, cases))
        chosen_again += [gap(values[:, places]) for values in runs for places in drawn]
    assert 0.92 <= held / repetitions <= 0.99
    assert np.mean(chosen_again) > 1.15 * truth


def test_runs_that_agree_on_every_case_leave_no_doubt():
    runs = [np.array([[3.0, 4.0, 5.0], [1.0, 2.0, 3.0]]) + seed for seed in range(3)]
    interval = gap_interval(runs, np.random.default_rng(0))
    assert (interval.low, interval.high) == pytest.approx((2, 2))


def test_the_interval_lies_about_the_mean_gap_whatever_the_lengths_of_runs():
    rng = np.random.default_rng(3)
    runs = [rng.normal(size=(count, 7)) for count in (4, 6, 9)]
    interval = gap_interval(runs, rng)
    middle = np.mean([values.mean(1).max() - values.mean(1)[-1] for values in runs])
    assert (interval.low + interval.high) / 2 == pytest.approx(middle)


def test_with_little_between_cases_it_is_students_interval_over_runs():
    gaps = np.array([0.3, 1.0, 2.0, 1.4])
    runs = [np.array([np.full(6, 50 + g), np.full(6, 50.0)]) for g in gaps]
    interval = gap_interval(runs, np.random.default_rng(0), draws=20_000)
    half = 3.182446 * gaps.std(ddof=1) / 2
    assert interval.high == pytest.approx(gaps.mean() + half, rel=0.02)


def test_the_same_generator_gives_the_same_interval_and_another_another():
    runs = flat(np.random.default_rng(1), runs=3, evaluations=5, cases=9, shared=1, single=2)
    one, same, other = (gap_interval(runs, np.random.default_rng(s)) for s in (7, 7, 8))
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [np.ones((3, 4))],
        [np.ones((3, 1)), np.ones((3, 1))],
        [np.ones((2, 2)), np.array([[1.0, 1.0], [nan, nan]])],
    ],
)
def test_no_interval_of_fewer_than_two_runs_or_cases_or_of_an_undefined_gap(runs):
    interval = gap_interval(runs, np.random.default_rng(0))
    assert np.isnan(interval.low)
    assert np.isnan(interval.high)


# Its parts


def left_out(values, weightings):
    """Mean over cases of the mean score of the choice, over the draws that leave the case out."""
    by_case = [[] for _ in values[0]]
    for weights in weightings:
        means = [np.dot(row, weights) / sum(weights) for row in values]
        place = max(range(len(means)), key=lambda k: (means[k], k))
        for case, weight in enumerate(weights):
            if weight == 0:
                by_case[case].append(values[place][case])
    return np.mean([np.mean(scores) for scores in by_case])


def test_the_parts_are_those_of_all_possible_draws():
    values = np.random.default_rng(2).normal(size=(5, 4))
    found = split(values, np.random.default_rng(0), draws=40_000)
    draws = [np.bincount(places, minlength=4) for places in product(range(4), repeat=4)]
    halves = [[case in half for case in range(4)] for half in combinations(range(4), 2)]
    last = values[-1].mean()
    assert found.last == pytest.approx(last)
    assert found.drift == pytest.approx(left_out(values, draws) - last, abs=0.01)
    assert found.drift_halves == pytest.approx(left_out(values, halves) - last, abs=0.01)


@settings(max_examples=30)
@given(SCORES.filter(lambda v: v.shape[1] > 1))
def test_the_parts_add_up_to_the_gap(values):
    found = split(values, np.random.default_rng(0), draws=100)
    assert found.gap == gap(values)
    assert found.optimism + found.drift == pytest.approx(gap(values), abs=1e-9)
    assert found.optimism_halves + found.drift_halves == pytest.approx(gap(values), abs=1e-9)


def test_an_evaluation_that_is_best_on_every_case_is_no_optimism():
    values = np.array([[0.5, 0.6, 0.2], [0.8, 0.9, 0.5], [0.7, 0.8, 0.1]])
    found = split(values, np.random.default_rng(0))
    assert found.gap == pytest.approx(0.2)
    assert found.drift == pytest.approx(0.2)
    assert found.optimism == pytest.approx(0)
    assert found.optimism_halves == pytest.approx(0)


def test_noise_that_cases_do_not_share_is_all_optimism():
    rng = np.random.default_rng(4)
    runs = flat(rng, runs=300, evaluations=16, cases=20, shared=0, single=2)
    parts = np.array([split(values, rng, draws=60) for values in runs])
    means, errors = parts.mean(axis=0), parts.std(axis=0) / sqrt(len(parts))
    found, error = Split(*means), Split(*errors)
    truth = expected_maximum(16) * 2 / sqrt(20)
    assert found.optimism == pytest.approx(truth, abs=4 * error.optimism)
    assert abs(found.drift) < 4 * error.drift
    assert abs(found.drift_halves) < 4 * error.drift_halves


def test_optimism_is_bounded_from_above_where_choices_are_partly_right():
    rng = np.random.default_rng(5)
    shared, single, cases = 0.55, 2.0, 20
    runs = flat(rng, runs=300, evaluations=16, cases=cases, shared=shared, single=single)
    found = mean_split([split(values, rng, draws=60) for values in runs])
    own = single**2 / cases
    truth = expected_maximum(16) * own / sqrt(shared**2 + own)
    assert truth < found.optimism < 1.6 * truth


def test_one_case_cannot_be_left_out():
    found = split(np.array([[2.0], [1.0]]), np.random.default_rng(0))
    assert (found.last, found.gap) == (1, 1)
    assert np.isnan([found.optimism, found.drift, found.optimism_halves, found.drift_halves]).all()


def test_the_mean_over_runs_leaves_none_out():
    one, other = Split(1, 2, 0.5, 1.5, 0.6, 1.4), Split(3, nan, nan, nan, nan, nan)
    assert mean_split([one, one]) == pytest.approx(one)
    assert mean_split([one, other])[0] == 2
    assert np.isnan(mean_split([one, other])[1:]).all()
    assert np.isnan(mean_split([])).all()


# Noise


def test_the_variances_are_those_of_residuals_about_a_line():
    rng = np.random.default_rng(6)
    values = rng.normal(size=(4, 9)) + 3 * rng.normal(size=(4, 1))
    found = fit_noise([values])
    own = values - values.mean(axis=1, keepdims=True)
    steps = np.arange(4)
    squares = sum(np.polyfit(steps, column, 1, full=True)[1][0] for column in own.T)
    case = squares / ((9 - 1) * (4 - 2))
    about = np.polyfit(steps, values.mean(axis=1), 1, full=True)[1][0] / (4 - 2)
    assert found.case == pytest.approx(sqrt(case))
    assert found.shared == pytest.approx(sqrt(about - case / 9))
    assert (found.correlated, found.shared_correlation, found.case_correlation) == (False, 0, 0)


def ar1(rng, correlation, shape):
    values = rng.standard_normal(shape)
    for place in range(1, shape[0]):
        fresh = sqrt(1 - correlation**2) * values[place]
        values[place] = correlation * values[place - 1] + fresh
    return values


@pytest.mark.parametrize(("shared", "single"), [((0.6, 0.5), (2.0, 0.3)), ((1.0, 0.0), (3.0, 0.0))])
def test_what_made_the_trajectories_is_found_again(shared, single):
    rng = np.random.default_rng(7)
    runs = [
        70
        + 5 * rng.standard_normal(30)
        + 0.2 * np.arange(11)[:, None]
        + shared[0] * ar1(rng, shared[1], (11, 1))
        + single[0] * ar1(rng, single[1], (11, 30))
        for _ in range(300)
    ]
    found = fit_noise(runs)
    assert found.correlated
    assert (found.case, found.case_correlation) == pytest.approx(single, abs=0.03)
    assert (found.shared, found.shared_correlation) == pytest.approx(shared, abs=0.1)


def test_levels_of_cases_and_a_steady_rise_are_no_noise():
    rng = np.random.default_rng(8)
    values = rng.normal(size=(11, 6))
    moved = values + 0.7 * np.arange(11)[:, None] + 10 * rng.normal(size=6)
    one, other = fit_noise([values]), fit_noise([moved])
    assert (one.shared, one.case) == pytest.approx((other.shared, other.case))
    still = fit_noise([np.outer(np.arange(11.0), np.ones(6))])
    assert (still.shared, still.case) == pytest.approx((0, 0), abs=1e-9)


def test_noise_is_not_made_up():
    two = np.random.default_rng(0).normal(size=(2, 5))
    assert fit_noise([]) is None
    assert fit_noise([two]) is None
    assert fit_noise([np.ones((5, 1))]) is None
    values = np.random.default_rng(9).normal(size=(6, 5))
    with_gap = np.c_[values, [1, nan, 2, 3, 4, 5]]
    assert fit_noise([with_gap, two]) == fit_noise([values])


# Chance


def normal(shared, single, shared_correlation=0.0, case_correlation=0.0):
    return Noise(shared, single, shared_correlation, case_correlation, True)


def test_the_gain_of_independent_noise_is_the_expected_maximum():
    counts = (1, 5, 16, 76, 290)
    found = null_gain(normal(0, 2), counts, (20, 80), np.random.default_rng(0))
    twenty = found[found["cases"] == 20]
    maxima = [2 / sqrt(20) * expected_maximum(k) for k in counts]
    assert maxima[1:3] == pytest.approx([1.16296 * 2 / sqrt(20), 1.76599 * 2 / sqrt(20)], abs=1e-5)
    assert twenty["gain"].tolist() == pytest.approx(maxima, rel=0.02)
    assert twenty["optimism"].tolist() == pytest.approx(maxima, rel=0.02)
    eighty = found.loc[found["cases"] == 80, "gain"].to_numpy()
    assert eighty == pytest.approx(twenty["gain"].to_numpy() / 2)
    assert found.loc[found["evaluations"] == 1, ["gain", "optimism"]].eq(0).all(axis=None)


def test_only_the_part_that_cases_do_not_share_is_optimism():
    found = null_gain(normal(0.55, 2), (16, 76, 290), (20, 60, 200), np.random.default_rng(1))
    for row in found.itertuples():
        own = 2**2 / row.cases
        total = sqrt(0.55**2 + own)
        assert row.gain == pytest.approx(total * expected_maximum(row.evaluations), rel=0.03)
        assert row.optimism == pytest.approx(row.gain * own / total**2, rel=0.1)
    by_cases = found[found["evaluations"] == 76].set_index("cases")["optimism"]
    assert by_cases.tolist() == pytest.approx([0.68, 0.26, 0.085], abs=0.02)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_of_two_evaluations_the_gain_is_known_for_any_correlation(correlation):
    for noise in (normal(3, 0, shared_correlation=correlation), normal(0, 3, 0, correlation)):
        found = null_gain(noise, (2,), (1,), np.random.default_rng(2), simulations=40_000)
        assert found["gain"][0] == pytest.approx(3 * sqrt((1 - correlation) / pi), rel=0.03)


def test_successive_evaluations_that_are_alike_give_less_to_choose_from():
    free, alike = (
        null_gain(normal(1, 2, c, c), (11,), (20,), np.random.default_rng(3)) for c in (0.0, 0.8)
    )
    assert alike["gain"][0] < 0.9 * free["gain"][0]


def test_chance_does_not_depend_on_what_else_is_asked():
    rows = [
        null_gain(normal(1, 2, 0.3, 0.1), counts, cases, np.random.default_rng(4))
        for counts, cases in (((5, 11), (20,)), ((1, 11), (20, 60)))
    ]
    wanted = [r[(r["evaluations"] == 11) & (r["cases"] == 20)].to_numpy().tolist() for r in rows]
    assert wanted[0] == wanted[1]
