import numpy as np
import pandas as pd
import pytest

from protocols.variance import components, stopping


def naive(table):
    """The same mean squares, by loops and straight from their definition."""
    n, m = len(table), len(table[0])
    middle = sum(map(sum, table)) / (n * m)
    rows = [sum(row) / m for row in table]
    columns = [sum(table[s][c] for s in range(n)) / n for c in range(m)]
    of_seeds = m * sum((r - middle) ** 2 for r in rows) / (n - 1)
    of_cases = n * sum((c - middle) ** 2 for c in columns) / (m - 1)
    rest = sum(
        (table[s][c] - rows[s] - columns[c] + middle) ** 2 for s in range(n) for c in range(m)
    ) / ((n - 1) * (m - 1))
    return (of_seeds - rest) / m, (of_cases - rest) / n, rest


@pytest.mark.parametrize("seed", range(5))
def test_components_are_what_plain_loops_say(seed):
    rng = np.random.default_rng(seed)
    table = rng.normal(0, 3, (4, 1)) + rng.normal(0, 5, (1, 6)) + rng.normal(size=(4, 6))
    found = components(table)
    expected = naive(table.tolist())
    assert (found.seed, found.case, found.residual) == pytest.approx(
        [max(0.0, value) for value in expected]
    )
    assert (found.seeds, found.cases) == (4, 6)


def test_known_components_come_out_on_average():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        table = rng.normal(0, 2, (8, 1)) + rng.normal(0, 3, (1, 20)) + rng.normal(0, 1, (8, 20))
        parts = components(table)
        found.append((parts.seed, parts.case, parts.residual))
    assert np.mean(found, axis=0) == pytest.approx([4, 9, 1], rel=0.06)


def test_a_negative_estimate_is_zero_and_named():
    # Rows with equal means differ less than the residual lets expect.
    found = components(np.array([[1.0, 3.0, 8.0], [3.0, 1.0, 8.0]]))
    assert found.seed == 0.0
    assert found.negative == ("seed",)
    assert naive([[1.0, 3.0, 8.0], [3.0, 1.0, 8.0]])[0] < 0


def test_the_floor_is_the_spread_of_cases_and_no_number_of_seeds_lowers_it():
    rng = np.random.default_rng(1)
    cases = rng.normal(0, 3, (1, 25))
    few, many = (components(cases + rng.normal(0, 1, (n, 1))) for n in (3, 3000))
    assert few.floor == pytest.approx(cases.std(ddof=1) / 5)
    assert many.floor == pytest.approx(few.floor)
    assert many.standard_error == pytest.approx(many.floor, rel=1e-3)
    assert few.standard_error > few.floor


def test_the_standard_error_is_that_of_means_over_new_seeds_and_cases():
    rng = np.random.default_rng(2)
    shape = (5, 10)
    tables = [
        rng.normal(0, 1, (5, 1)) + rng.normal(0, 2, (1, 10)) + rng.normal(0, 3, shape)
        for _ in range(3000)
    ]
    errors = [components(table).standard_error ** 2 for table in tables]
    assert np.var([t.mean() for t in tables]) == pytest.approx(1 / 5 + 4 / 10 + 9 / 50, rel=0.1)
    assert np.mean(errors) == pytest.approx(1 / 5 + 4 / 10 + 9 / 50, rel=0.1)


@pytest.mark.parametrize(
    "table",
    [np.ones((1, 5)), np.ones((5, 1)), np.empty((0, 0)), np.full((3, 3), np.nan)],
)
def test_too_little_has_no_components(table):
    found = components(table)
    assert np.isnan([found.seed, found.case, found.residual]).all()
    assert np.isnan(found.standard_error)
    assert np.isnan(found.floor)


def steps(runs, split="test"):
    rows = [
        {"run": run, "split": split, "step": 100 * place, "dsc": value}
        for run, values in runs.items()
        for place, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_stopping_is_the_variance_within_the_last_checkpoints_averaged_over_runs():
    runs = {"a": [9.0, 1.0, 2.0, 3.0], "b": [0.0, 5.0, 5.0, 8.0]}
    expected = (np.var([1, 2, 3], ddof=1) + np.var([5, 5, 8], ddof=1)) / 2
    assert stopping(steps(runs), "dsc", last=3) == pytest.approx(expected)
    shuffled = steps(runs).sample(frac=1, random_state=0)
    assert stopping(shuffled, "dsc", last=3) == stopping(steps(runs), "dsc", last=3)


def test_stopping_looks_at_the_test_split_alone():
    both = pd.concat([steps({"a": [1.0, 2.0]}), steps({"a": [50.0, 90.0]}, split="val")])
    assert stopping(both, "dsc") == pytest.approx(0.5)


def test_a_run_with_one_checkpoint_says_nothing_of_the_moment():
    assert np.isnan(stopping(steps({"a": [1.0]}), "dsc"))
    assert stopping(steps({"a": [1.0], "b": [1.0, 3.0]}), "dsc") == pytest.approx(2.0)
    assert np.isnan(stopping(steps({"a": [1.0, np.nan]}), "dsc"))
