from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from protocols.metrics import METRICS
from protocols.statistics import FAILED, STATISTICS, best_place, median_place, with_failed

NAMES = list(METRICS)
OF_MEANS = ("mean", "std", "se", "mean_low", "mean_high", "iqm")
"""What needs a number of every run."""


def runs(count, seed=0):
    return np.random.default_rng(seed).random((count, len(NAMES)))


def student(values, sign):
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std(0, ddof=1) / n**0.5
    return values.mean(0) + sign * half


PLAIN = {
    "median": lambda x: np.median(x, axis=0),
    # Below 6 runs no interval inside the extremes reaches 95 %; of 8 runs neither.
    "median_low": lambda x: np.min(x, axis=0),
    "median_high": lambda x: np.max(x, axis=0),
    "median_run": lambda x: x[np.argsort(x[:, 0])[(len(x) - 1) // 2]],
    "maximum": lambda x: np.max(x, axis=0),
    "minimum": lambda x: np.min(x, axis=0),
    "mean": lambda x: np.mean(x, axis=0),
    "std": lambda x: np.sqrt(((x - x.mean(0)) ** 2).sum(0) / (len(x) - 1)),
    "se": lambda x: stats.sem(x),
    "mean_low": lambda x: student(x, -1),
    "mean_high": lambda x: student(x, 1),
    "iqm": lambda x: stats.trim_mean(x, 0.25),
    "best_run": lambda x: x[np.argmax(x[:, 0])],
}


def value(name, values):
    return STATISTICS[name].compute(np.array(values, dtype=float))


def named(name, values):
    return dict(zip(NAMES, value(name, values), strict=True))


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_a_statistic_is_what_plain_numpy_says(name, count):
    values = runs(count)
    found = value(name, values)
    assert found.shape == (len(NAMES),)
    np.testing.assert_allclose(found, PLAIN[name](values), rtol=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_the_order_of_runs_does_not_matter(name):
    values = runs(7)
    other = np.random.default_rng(3).permutation(values)
    np.testing.assert_allclose(value(name, other), value(name, values), rtol=1e-13)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_changes_nothing_that_it_is_given(name):
    values = runs(5)
    STATISTICS[name].compute(values)
    assert (values == runs(5)).all()


@pytest.mark.parametrize("name", STATISTICS)
def test_a_run_without_a_number_is_never_left_out_silently(name):
    values = runs(5)
    values[2] = nan
    assert np.isnan(value(name, values)).all()
    assert np.isnan(value(name, with_failed(values, 1))).all()


@pytest.mark.parametrize("name", STATISTICS)
def test_no_runs_give_no_number(name):
    assert np.isnan(value(name, runs(0))).all()


def test_one_run_has_no_spread_and_the_statistics_say_so():
    spread = ("std", "se", "mean_low", "mean_high", "median_low", "median_high")
    assert all(np.isnan(value(name, runs(1))).all() for name in spread)
    assert all("undefined for one run" in STATISTICS[name].meaning for name in ("std", "se"))
    others = [value(name, runs(1)) for name in STATISTICS if name not in spread]
    assert all((o == runs(1)[0]).all() for o in others)


def test_the_interquartile_mean_of_five_runs_is_of_the_middle_three():
    values = [[v] * 3 for v in (5.0, 100.0, 2.0, 3.0, -50.0)]
    assert value("iqm", values).tolist() == pytest.approx([10 / 3] * 3)
    assert "of five runs the middle three" in STATISTICS["iqm"].meaning


def test_the_best_run_is_a_real_run_and_the_maximum_is_not():
    values = [[0.9, 3.0, 9.0], [0.8, 1.0, 4.0]]
    assert value("best_run", values).tolist() == [0.9, 3.0, 9.0]
    assert value("minimum", values).tolist() == [0.8, 1.0, 4.0]


def test_the_median_run_is_a_real_run_and_of_an_even_number_the_lower_middle_one():
    values = np.array([[0.9, 9.0, 1.0], [0.6, 1.0, 2.0], [0.8, 2.0, 3.0], [0.7, 4.0, 4.0]])
    assert median_place(values) == 3
    assert value("median_run", values).tolist() == [0.7, 4.0, 4.0]
    assert value("median", values).tolist() == pytest.approx([0.75, 3.0, 2.5])
    assert "of an even number the lower of the two middle ones" in STATISTICS["median_run"].meaning
    assert median_place(values[[0, 1, 3]]) == 2
    assert best_place(values) == 0


# Failed runs


def test_a_failed_run_is_worse_than_any_number():
    assert {"dsc": -inf, "asd": inf, "hd95": inf} == FAILED
    values = with_failed(runs(2), 3)
    assert (values[:2] == runs(2)).all()
    assert values[2:].tolist() == [[FAILED[m] for m in NAMES]] * 3


def test_failed_runs_lower_the_median_to_runs_that_finished_worse():
    values = np.array([[0.9, 1.0, 1.0], [0.8, 2.0, 2.0], [0.7, 3.0, 3.0]])
    assert value("median", values).tolist() == [0.8, 2.0, 2.0]
    assert value("median", with_failed(values, 2)).tolist() == [0.7, 3.0, 3.0]
    assert value("median_run", with_failed(values, 1)).tolist() == [0.7, 3.0, 3.0]
    assert median_place(with_failed(values, 1)) == 2


@pytest.mark.parametrize(("finished", "failed"), [(0, 1), (1, 1), (2, 2), (2, 3)])
def test_a_median_that_is_a_failed_run_has_failed(finished, failed):
    values = with_failed(runs(finished), failed)
    assert named("median", values) == FAILED
    assert named("median_run", values) == FAILED


def test_the_extremes_with_a_failed_run():
    dsc, asd, _ = runs(3).T
    found = {name: named(name, with_failed(runs(3), 1)) for name in STATISTICS}
    assert found["minimum"]["dsc"] == -inf
    assert found["maximum"]["dsc"] == dsc.max()
    assert [found["maximum"][m] for m in ("asd", "hd95")] == [inf, inf]
    assert found["minimum"]["asd"] == asd.min()
    assert found["best_run"] == named("best_run", runs(3))
    assert found["median_low"]["dsc"] == -inf
    assert found["median_high"]["asd"] == inf
    assert named("best_run", with_failed(runs(0), 2)) == FAILED


@pytest.mark.parametrize("name", OF_MEANS)
def test_what_needs_a_number_of_every_run_is_undefined_where_one_failed(name):
    assert np.isnan(value(name, with_failed(runs(5), 1))).all()


def test_a_metric_that_one_run_lacks_is_undefined_and_others_are_not():
    values = runs(5)
    values[2, NAMES.index("asd")] = nan
    for name in ("median", "mean", "maximum"):
        assert [np.isnan(v) for v in value(name, values)] == [False, True, False]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=9), st.integers(0, 4))
def test_more_failed_runs_never_make_the_median_better(dsc, failed):
    values = np.array([[float(v)] * 3 for v in dsc])
    before, after = (named("median", with_failed(values, n)) for n in (failed, failed + 1))
    assert after["dsc"] <= before["dsc"]
    assert after["asd"] >= before["asd"]
    assert after["hd95"] >= before["hd95"]
