"""What cannot be is found, and what can be is never accused."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from protocols.audit import GROUP, audit
from protocols.feasible import ANY, Interval, mean_range, rounds_to, spread
from results.published import COLUMNS


def table(*rows, **common):
    """Rows of (statistic, text of the value), in the shape that tables are read in."""
    shared = {"source": "a paper", "method": "mt", "dataset": "la", "labelled": 8, "metric": "dsc"}
    shared |= {"protocol_printed": "last", "seeds": 5} | common
    made = []
    for line, (statistic, text, *own) in enumerate(rows, 2):
        row = {c.name: None if c.name in ("row", "unlabelled", "seeds") else "" for c in COLUMNS}
        row |= shared | {"statistic": statistic, "value": float(text)} | (own[0] if own else {})
        row |= {"digits": len(text.partition(".")[2]), "file": "x.csv", "line": line}
        made.append(row)
    return pd.DataFrame(made)


def findings(*rows, **common):
    return [f for group in audit(table(*rows, **common)) for f in group.findings]


# The smallest and the largest standard deviation

order = st.lists(st.floats(0, 100).map(lambda x: round(x, 6)), min_size=1, max_size=12)


def summaries(runs, known, half):
    """The named summaries of the runs, each within ± half."""
    exact = {"median": np.median, "maximum": np.max, "minimum": np.min, "mean": np.mean}
    values = {name: float(exact[name](runs)) for name in known}
    return {name: Interval(v - half, v + half) for name, v in values.items()}


def by_optimiser(runs, known):
    """Smallest population SD of ordered runs, by a solver that knows nothing of the structure."""
    n = len(runs)
    middle = [(n - 1) // 2, n // 2]
    rows = {
        "median": np.isin(np.arange(n), middle) / len(set(middle)),
        "maximum": np.arange(n) == n - 1,
        "minimum": np.arange(n) == 0,
        "mean": np.full(n, 1 / n),
    }
    constraints = [{"type": "ineq", "fun": np.diff, "jac": lambda x: np.diff(np.eye(n), axis=0)}]
    for name, interval in known.items():
        row = np.asarray(rows[name], dtype=float)
        constraints += [
            {
                "type": "ineq",
                "fun": lambda x, r=row, b=b, s=s: s * (r @ x - b),
                "jac": lambda x, r=row, s=s: s * r,
            }
            for b, s in ((interval.low, 1), (interval.high, -1))
        ]
    centre = np.eye(n) - 1 / n
    found = minimize(
        lambda x: x @ centre @ x / n,
        np.sort(runs),
        jac=lambda x: 2 * centre @ x / n,
        constraints=constraints,
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert found.success, found.message
    return math.sqrt(max(found.fun, 0))


@pytest.mark.parametrize("half", [0.0, 0.5])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 10])
@pytest.mark.parametrize(
    "known",
    [
        ("median", "mean"),
        ("maximum", "mean"),
        ("median", "maximum", "mean"),
        ("median", "maximum", "minimum"),
        ("median", "maximum", "minimum", "mean"),
    ],
)
def test_the_smallest_spread_is_what_an_optimiser_finds(known, n, half):
    rng = np.random.default_rng([n, len(known)])
    for runs in (rng.uniform(60, 95, n), 90 - rng.exponential(3, n)):
        given_ = summaries(runs, known, half)
        found = spread(n, **given_)
        assert found is not None
        assert found.low == pytest.approx(by_optimiser(runs, given_), abs=2e-4)


def by_corners(n, known):
    """Largest population SD for exact summaries: runs at bounds, but for one; n is odd."""
    middle, top, mean = n // 2, known["maximum"], known["mean"]
    lows = [known["minimum"], *[known["minimum"]] * (middle - 1), known["median"]]
    lows += [known["median"]] * (middle - 1) + [top]
    highs = [known["minimum"], *[known["median"]] * middle, *[top] * middle]
    best = -1.0
    for free in range(n):
        others = [i for i in range(n) if i != free]
        for pick in itertools.product((0, 1), repeat=n - 1):
            runs = np.empty(n)
            runs[others] = [(lows, highs)[p][i] for i, p in zip(others, pick, strict=True)]
            runs[free] = n * mean - runs[others].sum()
            if lows[free] - 1e-7 <= runs[free] <= highs[free] + 1e-7:
                best = max(best, runs.std())
    return best


@pytest.mark.parametrize("n", [3, 5, 7, 9])
def test_the_largest_spread_is_at_a_corner(n):
    rng = np.random.default_rng(n)
    for _ in range(5):
        runs = rng.uniform(60, 95, n)
        names = ("median", "maximum", "minimum", "mean")
        known = {k: v.low for k, v in summaries(runs, names, 0.0).items()}
        found = spread(n, **{k: Interval(v, v) for k, v in known.items()})
        assert found is not None
        assert found.high == pytest.approx(by_corners(n, known), abs=1e-6)


@settings(max_examples=300, deadline=None)
@given(order, st.sets(st.sampled_from(["median", "maximum", "minimum", "mean"])), st.data())
def test_real_runs_lie_within_the_spread_of_their_summaries(runs, known, data):
    half = data.draw(st.sampled_from([1e-6, 0.05, 2.0]))
    found = spread(len(runs), **summaries(runs, known, half), values=Interval(0, 100))
    assert found is not None
    assert found.low - 1e-6 <= np.std(runs) <= found.high + 1e-6


def test_nothing_known_allows_any_spread():
    assert spread(5) == Interval(0.0, math.inf)
    assert spread(5, mean=Interval(3, 3)) == Interval(0.0, math.inf)
    assert spread(1, mean=Interval(3, 3)) == Interval(0.0, 0.0)
    bounded = spread(4, values=Interval(0, 100))
    assert bounded == pytest.approx((0, 50))


def test_no_runs_have_contradicting_summaries():
    assert spread(5, median=Interval(2, 2), maximum=Interval(1, 1)) is None
    assert spread(2, median=Interval(2, 2), mean=Interval(3, 3)) is None
    assert spread(1, median=Interval(2, 2), maximum=Interval(3, 3)) is None
    assert spread(5, maximum=Interval(2, 2), mean=Interval(3, 3)) is None


@settings(max_examples=100, deadline=None)
@given(order)
def test_the_mean_is_within_its_range(runs):
    known = summaries(runs, ("median", "maximum", "minimum"), 0.0)
    low, high = mean_range(len(runs), **known)
    assert low - 1e-9 <= np.mean(runs) <= high + 1e-9


def test_the_range_of_the_mean_is_reached():
    known = {"median": Interval(5, 5), "maximum": Interval(9, 9), "minimum": Interval(1, 1)}
    assert mean_range(5, **known) == pytest.approx(
        (np.mean([1, 1, 5, 5, 9]), np.mean([1, 5, 5, 9, 9]))
    )


# What is possible is never accused

SPREADS = {
    "std": lambda x, ddof: np.std(x, ddof=ddof),
    "std_sample": lambda x, ddof: np.std(x, ddof=1),
    "std_population": lambda x, ddof: np.std(x),
    "standard_error": lambda x, ddof: np.std(x, ddof=1) / np.sqrt(len(x)),
    "plus_minus": lambda x, ddof: np.std(x, ddof=ddof),
}


def printed(values, digits, ddof, tell):
    """Everything that could be printed of these runs, each number rounded by itself."""
    found = {"median": np.median(values), "maximum": np.max(values), "minimum": np.min(values)}
    found["mean"] = np.mean(values)
    if len(values) > 1:
        found |= {name: compute(values, ddof) for name, compute in SPREADS.items()}
    return [(name, f"{found[name]:.{digits}f}") for name in sorted(tell & set(found))]


@settings(max_examples=250, deadline=None)
@given(
    values=st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100)).map(lambda pair: sorted(pair)),
        min_size=1,
        max_size=12,
    ),
    digits=st.integers(0, 3),
    ddof=st.integers(0, 1),
    tell=st.sets(st.sampled_from(["median", "maximum", "minimum", "mean", *SPREADS])),
    say_n=st.booleans(),
    metric=st.sampled_from(["dsc", "hd95"]),
)
def test_summaries_of_real_runs_are_never_accused(values, digits, ddof, tell, say_n, metric):
    last, best = np.array(values).T
    common = {"seeds": len(values) if say_n else None, "metric": metric}
    rows = [
        table(*said, **common, protocol_printed=protocol)
        for protocol, runs in (("last", last), ("best", best))
        if (said := printed(runs, digits, ddof, tell))
    ]
    if rows:
        accused = [f for g in audit(pd.concat(rows)) for f in g.findings]
        assert not accused


@settings(max_examples=100, deadline=None)
@given(
    level=st.floats(50, 99),
    width=st.floats(0, 1),
    shape=st.lists(st.floats(0, 1), min_size=2, max_size=12),
    digits=st.integers(0, 3),
    ddof=st.integers(0, 1),
)
def test_runs_close_together_are_never_accused(level, width, shape, digits, ddof):
    runs = level + width * np.array(shape)
    tell = {"median", "maximum", "minimum", "mean", *SPREADS}
    assert not findings(*printed(runs, digits, ddof, tell), seeds=len(runs))


# Each inequality, broken


@pytest.mark.parametrize(
    ("rows", "statistic", "said"),
    [
        ([("median", "100.6")], "median", "0 ≤ median ≤ 100: printed 100.6"),
        ([("single", "-1")], "single", "0 ≤ single ≤ 100: printed -1"),
        ([("std", "-0.2")], "std", "0 ≤ std: printed -0.2"),
        (
            [("median", "90.5"), ("maximum", "90.3")],
            "maximum",
            "median ≤ maximum asks 90.5 ≤ 90.3",
        ),
        (
            [("minimum", "90.5"), ("median", "90.3")],
            "median",
            "minimum ≤ median asks 90.5 ≤ 90.3",
        ),
        ([("minimum", "90.5"), ("mean", "90.3")], "mean", "minimum ≤ mean asks 90.5 ≤ 90.3"),
        ([("mean", "90.5"), ("maximum", "90.3")], "maximum", "mean ≤ maximum asks 90.5 ≤ 90.3"),
        (
            [("minimum", "90.5"), ("maximum", "90.3")],
            "maximum",
            "minimum ≤ maximum asks 90.5 ≤ 90.3",
        ),
        (
            [("median", "80.0"), ("maximum", "90.0"), ("mean", "84.5")],
            "mean",
            "median 80.0, maximum 90.0 of 5 runs put the mean between 49.970 and 84.050, "
            "printed 84.5",
        ),
        (
            [("median", "90.0"), ("mean", "88.0"), ("std", "1.0")],
            "std",
            "|median − mean| ≤ 0.82 · 1.0 asks 2.0 ≤ 0.82",
        ),
        (
            [("maximum", "95.0"), ("mean", "90.0"), ("std_sample", "2.0")],
            "std_sample",
            "maximum − mean ≤ 1.79 · 2.0 asks 5.0 ≤ 3.58",
        ),
        (
            [("minimum", "85.0"), ("mean", "90.0"), ("std_population", "2.0")],
            "std_population",
            "mean − minimum ≤ 2.00 · 2.0 asks 5.0 ≤ 4.00",
        ),
        (
            [("maximum", "90.0"), ("minimum", "80.0"), ("standard_error", "1.0")],
            "standard_error",
            "maximum − minimum ≤ 6.32 · 1.0 asks 10.0 ≤ 6.32",
        ),
        (
            [("maximum", "90.0"), ("minimum", "88.0"), ("std", "1.5")],
            "std",
            "need SD (n − 1) ≤ 1.15 or SD (n) ≤ 1.03, printed 1.5; as standard error 1.5 is "
            "impossible too",
        ),
        (
            [("mean", "99.0"), ("std", "5.0")],
            "std",
            "need SD (n − 1) ≤ 2.35 or SD (n) ≤ 2.10, printed 5.0",
        ),
        (
            [("median", "90.3"), ("median", "90.5")],
            "median",
            "one number of the same runs is printed as 90.3 (x.csv, line 2), 90.5 (x.csv, line 3)",
        ),
    ],
)
def test_what_cannot_be_is_found_and_said_with_numbers(rows, statistic, said):
    (finding,) = findings(*rows)
    assert finding.statistic == statistic
    assert said in finding.text


def test_one_run_is_its_own_median_and_maximum():
    (finding,) = findings(("median", "90.1"), ("maximum", "90.3"), seeds=1)
    assert finding.text == "median 90.1, maximum 90.3 of 1 run cannot be"


def test_two_runs_have_one_mean_and_median():
    (finding,) = findings(("median", "90.1"), ("mean", "90.3"), seeds=2)
    assert "put the mean between 90.050 and 90.150, printed 90.3" in finding.text


def test_without_a_number_of_runs_only_what_holds_for_all_is_said():
    rows = [("median", "90.0"), ("mean", "88.0")]
    (finding,) = findings(*rows, ("std", "1.0"), seeds=None)
    assert finding.text == "|median − mean| ≤ SD asks 2.0 ≤ 1.0"
    assert not findings(*rows, ("standard_error", "1.0"), seeds=None)
    assert not findings(*rows, ("std", "2.0"), seeds=None)
    assert not findings(("maximum", "99.0"), ("mean", "88.0"), ("std", "0.1"), seeds=None)


def test_a_plus_minus_may_be_any_of_the_three():
    rows = [("median", "81.08"), ("maximum", "81.20"), ("mean", "80.86")]
    assert findings(*rows, ("std", "0.28"))
    assert not findings(*rows, ("plus_minus", "0.28"))
    assert findings(*rows, ("plus_minus", "0.10"))


@pytest.mark.parametrize(
    ("median", "maximum", "mean", "std", "needed"),
    [
        ("90.28", "90.39", "89.86", "0.12", 0.61),
        ("90.83", "91.36", "90.90", "0.09", 0.25),
        ("81.08", "81.20", "80.86", "0.28", 0.35),
        ("83.44", "84.14", "83.31", "0.37", 0.56),
    ],
)
def test_four_printed_spreads_are_too_small(median, maximum, mean, std, needed):
    rows = [("median", median), ("maximum", maximum), ("mean", mean), ("std", std)]
    (finding,) = findings(*rows)
    assert f"need SD (n − 1) ≥ {needed} or" in finding.text
    assert f"printed {std}" in finding.text
    possible = spread(5, **{name: rounds_to(float(v), 2) for name, v in rows[:3]})
    enough = f"{math.sqrt(5 / 4) * possible.low + 0.005:.2f}"
    assert not findings(*rows[:3], ("std", enough))


# Best and last


def both(statistic, best, last, **common):
    rows = [(statistic, best, {"protocol_printed": "best"}), (statistic, last)]
    return findings(*rows, **common)


@pytest.mark.parametrize("statistic", ["median", "mean", "minimum", "maximum"])
def test_best_is_not_below_last(statistic):
    (finding,) = both(statistic, "90.1", "90.3")
    assert finding.text == f"best ≥ last of the {statistic} asks 90.1 ≥ 90.3"
    assert not both(statistic, "90.3", "90.3")
    assert not both(statistic, "90.2", "90.25")


def test_best_may_be_below_last_where_nothing_forbids_it():
    assert not both("single", "90.1", "90.3")
    assert not both("median", "5.0", "6.0", metric="asd")
    assert not both("median", "6.0", "5.0", metric="asd")
    assert not both("median", "90.1", "90.3", protocol_released="best(split=val)")
    rows = [("median", "90.1", {"protocol_printed": "best", "seeds": 3}), ("median", "90.3")]
    assert not findings(*rows)


# What belongs together


@pytest.mark.parametrize("name", GROUP)
def test_numbers_of_other_runs_are_not_compared(name):
    other = {"labelled": 16, "unlabelled": 1, "seeds": 4, "metric": "asd"}.get(name, "another")
    rows = [("median", "90.5"), ("maximum", "90.3", {name: other})]
    assert not findings(*rows)


@pytest.mark.parametrize("name", ["split", "unit"])
def test_numbers_of_several_named_splits_or_units_are_not_compared(name):
    one, other = {name: "one"}, {name: "other"}
    assert not findings(("mean", "90.1", one), ("mean", "88.2", other))
    assert not findings(("median", "90.5", one), ("maximum", "90.3", other))
    assert findings(("mean", "90.1", one), ("mean", "88.2", one))
    (found,) = findings(
        ("median", "90.5", one), ("maximum", "90.3", one), ("maximum", "91.0", other)
    )
    assert found.text == "median ≤ maximum asks 90.5 ≤ 90.3"


@pytest.mark.parametrize("name", ["split", "unit"])
def test_numbers_that_name_none_are_compared_while_only_one_is_named(name):
    assert findings(("median", "90.5", {name: "one"}), ("maximum", "90.3"))


def test_the_best_run_is_the_maximum_of_dsc_only():
    rows = [("median", "90.5"), ("best_run", "90.3")]
    assert findings(*rows)
    assert not findings(*rows, metric="asd")


def test_a_number_repeated_with_other_digits_narrows_it():
    rows = [("median", "90.3"), ("median", "90.28"), ("maximum", "90.26")]
    (finding,) = findings(*rows)
    assert finding.text == "median ≤ maximum asks 90.28 ≤ 90.26"


def test_the_order_of_rows_changes_nothing():
    frame = table(
        ("median", "90.5"),
        ("maximum", "90.3"),
        ("mean", "90.0", {"seeds": None}),
        ("std", "0.1", {"method": "tcseg"}),
    )
    assert audit(frame) == audit(frame.sample(frac=1, random_state=3))


def test_a_finding_says_where_its_number_stands():
    places = [{}, {"table": "5"}, {"table": "5", "row": 7}, {"table": "fig5", "row": 1}]
    for place, said in zip(
        places, ["x.csv, line 2", "table 5", "table 5, row 7", "fig5, row 1"], strict=True
    ):
        (group,) = audit(table(("median", "101.0", place)))
        assert group.numbers["median"].where == (said,)


def test_rounding_is_half_of_the_last_digit():
    assert rounds_to(90.0, 0) == pytest.approx((89.5, 90.5))
    assert rounds_to(90.25, 2) == pytest.approx((90.245, 90.255), abs=1e-6)
    assert ANY.within(Interval(1, 2)) == Interval(1, 2)
