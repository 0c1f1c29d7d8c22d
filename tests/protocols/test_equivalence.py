"""The equivalence test: definitions, levels by simulation, and what may never pass."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from protocols.equivalence import (
    ALPHA,
    CONTROL_MARGINS,
    DIRECTIONS,
    STATISTICS,
    Answer,
    Claim,
    check,
    confirmable,
    derived_margin,
    fewest,
    interval,
    wrong,
)
from results.errors import UserError

RUNS = (79.2, 80.1, 80.0, 80.9, 79.8)


def claim(value=80.0, margin=1.0, *, higher=True, **changes):
    return Claim(value, margin, higher, **{"finished": 5, **changes})


# The interval


def test_the_interval_of_the_mean_is_that_of_two_one_sided_t_tests():
    low, high = interval(RUNS, "mean")
    assert stats.ttest_1samp(RUNS, low, alternative="greater").pvalue == pytest.approx(ALPHA)
    assert stats.ttest_1samp(RUNS, high, alternative="less").pvalue == pytest.approx(ALPHA)


def test_the_interval_of_the_median_of_five_runs_is_all_of_them():
    assert interval(RUNS, "median") == (79.2, 80.9)


@pytest.mark.parametrize("n", [5, 7, 8, 13, 30])
def test_each_end_of_the_medians_interval_misses_as_rarely_as_binomials_say(n):
    low, high = interval(range(n), "median")
    k = int(low)
    assert high == n - 1 - k
    tail = [sum(math.comb(n, i) for i in range(m + 1)) / 2**n for m in (k, k + 1)]
    assert tail[0] <= ALPHA < tail[1]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_below_the_fewest_runs_there_is_no_interval(statistic):
    n = fewest(statistic)
    assert interval([1.0] * (n - 1), statistic) == (-math.inf, math.inf)
    assert all(map(math.isfinite, interval(np.arange(n), statistic)))


# The answers


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(
    ("shift", "equal", "at_least"),
    [
        (0.0, Answer.REPRODUCED, Answer.REPRODUCED),
        (-1.0, Answer.INCONCLUSIVE, Answer.INCONCLUSIVE),
        (-3.0, Answer.REGRESSED, Answer.REGRESSED),
        (+1.0, Answer.INCONCLUSIVE, Answer.REPRODUCED),
        (+3.0, Answer.REGRESSED, Answer.REPRODUCED),
    ],
)
def test_where_the_interval_lies_decides(higher, shift, equal, at_least):
    """`shift` is towards the better side."""
    values = np.array(RUNS) + (shift if higher else -shift)
    for direction, expected in (("equal", equal), ("at-least", at_least)):
        verdict = check(values, claim(higher=higher, direction=direction))
        assert verdict.answer is expected, direction


def test_a_number_that_is_better_than_it_should_be_is_said_to_be_so():
    values = np.array(RUNS) + 3
    assert "BETTER than the target" in check(values, claim()).reasons[0]
    assert "better than the target" in check(values, claim(direction="at-least")).reasons[0]
    assert "worse than the target" in check(values - 6, claim()).reasons[0]


def test_estimate_and_spread_are_those_of_the_runs_in_any_order():
    verdict = check(RUNS, claim())
    assert verdict == check(RUNS[::-1], claim())
    assert verdict.estimate == pytest.approx(np.mean(RUNS))
    assert verdict.sd == pytest.approx(np.std(RUNS, ddof=1))
    assert check(RUNS, claim(statistic="median")).estimate == 80.0


@pytest.mark.parametrize(("statistic", "n"), [("mean", 1), ("median", 4)])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("off", [0.0, -50.0])
def test_too_few_runs_are_inconclusive_however_close_or_far(statistic, n, direction, off):
    verdict = check([80.0 + off] * n, claim(statistic=statistic, direction=direction))
    assert verdict.answer is Answer.INCONCLUSIVE
    assert "can decide nothing" in verdict.reasons[0]
    assert verdict.confirmable == 0.0


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_without_a_value_nothing_is_measured(values):
    verdict = check(values, claim(), failed=2, unfinished=1)
    assert verdict.answer is Answer.NOTHING
    assert "2 failed, 1 unfinished" in verdict.reasons[0]


def test_an_unfinished_run_or_one_without_a_value_forbids_reproduced_but_not_regressed():
    bad = np.array(RUNS) - 10
    for values, more, said in (
        (RUNS, {"unfinished": 1}, "1 run(s) were begun and are unfinished"),
        ([*RUNS, math.nan], {}, "1 finished run(s) have no value"),
    ):
        verdict = check(values, claim(), **more)
        assert verdict.answer is Answer.INCONCLUSIVE
        assert any(said in reason for reason in verdict.reasons)
    assert check(bad, claim(), unfinished=1).answer is Answer.REGRESSED


# Failures


def test_one_failure_where_there_was_none_is_inconclusive():
    verdict = check(RUNS, claim(), failed=1)
    assert verdict.answer is Answer.INCONCLUSIVE
    assert any("1 of 6 runs failed, 0 of 5" in reason for reason in verdict.reasons)


def test_as_many_failures_as_before_are_no_objection():
    assert check(RUNS, claim(finished=4, failed=1), failed=1).answer is Answer.REPRODUCED


def test_significantly_more_failures_are_a_regression_by_fishers_test():
    """Hypergeometric, written out: of all failures among old and new runs, so many are new."""

    def p_value(failed, finished=5, before=5):
        total, runs = failed + finished + before, failed + finished
        return math.comb(runs, failed) / math.comb(total, failed)

    for failed in range(1, 12):
        answer = check(RUNS, claim(), failed=failed).answer
        expected = Answer.REGRESSED if p_value(failed) < ALPHA else Answer.INCONCLUSIVE
        assert answer is expected, failed


# The negative control


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=12),
    st.floats(0, 100),
    st.floats(0.01, 20),
    st.booleans(),
    st.sampled_from(sorted(STATISTICS)),
    st.sampled_from(sorted(DIRECTIONS)),
)
def test_nothing_is_reproduced_unless_its_control_fails(
    values, value, margin, higher, statistic, direction
):
    verdict = check(
        values, claim(value, margin, higher=higher, statistic=statistic, direction=direction)
    )
    if verdict.answer is Answer.REPRODUCED:
        assert verdict.control is Answer.REGRESSED
        assert len(values) >= fewest(statistic)


def test_runs_too_noisy_for_the_control_do_not_confirm_that_they_are_better():
    """Their worse end is above the target, yet they could not tell a wrong one from a right one."""
    noisy = np.array([95.0, 70.0, 98.0, 88.0, 99.0])
    verdict = check(noisy, claim(60.0, 1.0, direction="at-least"))
    assert verdict.control is not Answer.REGRESSED
    assert verdict.answer is Answer.INCONCLUSIVE
    assert any("negative control" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("higher", [True, False])
def test_the_control_is_some_margins_better_than_both_target_and_runs(higher):
    sign = 1 if higher else -1
    for estimate in (79.0, 81.0):
        control = wrong(claim(80.0, 0.5, higher=higher), estimate)
        best = max(sign * 80.0, sign * estimate)
        assert sign * control.value == pytest.approx(best + 0.5 * CONTROL_MARGINS)


def test_equal_runs_are_remarked_upon():
    verdict = check([80.0] * 5, claim())
    assert verdict.answer is Answer.REPRODUCED
    assert any("equal to the last digit" in reason for reason in verdict.reasons)


# Levels and power, by simulation


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_value_just_off_the_margin_is_hardly_ever_called_reproduced(statistic):
    rng = np.random.default_rng(0)
    values = rng.normal(81.0, 0.3, size=(800, 7))
    answers = [check(v, claim(statistic=statistic)).answer for v in values]
    assert answers.count(Answer.REPRODUCED) / 800 <= ALPHA + 0.02
    assert answers.count(Answer.REGRESSED) / 800 <= ALPHA + 0.02


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_confirmable_is_how_often_runs_around_the_target_confirm_it(statistic, direction):
    target = claim(80.0, 1.4, statistic=statistic, direction=direction)
    rng = np.random.default_rng(1)
    offsets = rng.normal(scale=0.3, size=(4000, 1))
    values = 80 + offsets + rng.normal(size=(4000, 6))
    hits = 0
    for row in values:
        low, high = interval(row, statistic)
        hits += low >= 78.6 and (high <= 81.4 or direction == "at-least")
    assert confirmable(6, 1.0, target, 0.3) == pytest.approx(hits / 4000, abs=0.02)


def test_confirmable_at_least_is_the_power_of_a_one_sided_t_test():
    target = claim(0.0, 1.0, direction="at-least")
    expected = stats.nct.sf(stats.t.ppf(0.95, 4), 4, math.sqrt(5))
    assert confirmable(5, 1.0, target) == pytest.approx(expected, abs=1e-5)


# The derived margin


@pytest.mark.parametrize(("n", "factor"), [(5, 1.81), (10, 1.16)])
def test_the_derived_margin_is_a_multiple_of_the_sd_and_half_the_last_digit(n, factor):
    assert derived_margin(n, 0.7, 0.01) == pytest.approx(0.7 * factor + 0.005, abs=0.005)
    assert derived_margin(n, 0.0, 0.01) == 0.005


@pytest.mark.parametrize(("n", "probability"), [(5, 0.64), (10, 0.71), (20, 0.75)])
def test_a_margin_from_the_sd_of_few_runs_is_confirmed_less_often(n, probability):
    rng = np.random.default_rng(n)
    old, new = rng.normal(size=(2, 40_000, n))
    margins = derived_margin(n, 1.0, 0.0) * old.std(1, ddof=1)
    half = stats.t.ppf(1 - ALPHA, n - 1) * new.std(1, ddof=1) / math.sqrt(n)
    confirmed = np.abs(new.mean(1) - old.mean(1)) + half <= margins
    assert confirmed.mean() == pytest.approx(probability, abs=0.01)


def test_a_repetition_meets_the_derived_margin_four_times_in_five():
    rng = np.random.default_rng(2)
    margin = derived_margin(5, 1.0, 0.0)
    hits = 0
    for before, after in rng.normal(size=(1000, 2, 5)):
        hits += check(after, claim(before.mean(), margin)).answer is Answer.REPRODUCED
    assert hits / 1000 == pytest.approx(0.8, abs=0.03)


def test_no_margin_follows_from_one_run():
    with pytest.raises(ValueError, match="no margin follows"):
        derived_margin(1, 0.5, 0.01)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"margin": 0.0}, ValueError),
        ({"margin": math.nan}, ValueError),
        ({"statistic": "mode"}, UserError),
        ({"direction": "up"}, UserError),
    ],
)
def test_claims_that_make_no_sense_are_refused(changes, error):
    with pytest.raises(error):
        claim(**changes)
