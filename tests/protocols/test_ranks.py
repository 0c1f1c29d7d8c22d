from itertools import combinations
from math import inf, isnan, nan

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from protocols.ranks import (
    agreement,
    flips,
    kendall,
    rank_distribution,
    ranks,
    robust_winner,
)

SCORES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=7)


def rng(seed=0):
    return np.random.default_rng(seed)


def frame(rows, names="abc"):
    return pd.DataFrame(rows, columns=list(names), index=["last", "best", "val"][: len(rows)])


def test_ranks_are_scipys_best_first_and_failed_runs_last():
    values = frame([[0.7, 0.9, 0.7], [-inf, 0.1, 0.2], [nan, 0.3, 0.4]])
    assert ranks(values, "dsc").iloc[0].tolist() == [2.5, 1.0, 2.5]
    assert ranks(values, "dsc").iloc[0].tolist() == stats.rankdata([-0.7, -0.9, -0.7]).tolist()
    assert ranks(values, "dsc").iloc[1].tolist() == [3.0, 2.0, 1.0]
    assert ranks(values, "asd").iloc[0].tolist() == [1.5, 3.0, 1.5]
    assert isnan(ranks(values, "dsc").iloc[2, 0])


@given(SCORES)
def test_tau_is_scipys_with_ties_too(pairs):
    x, y = (np.array(values, dtype=float) for values in zip(*pairs, strict=True))
    expected = stats.kendalltau(x, y, variant="b").statistic
    assert kendall(x, y) == pytest.approx(expected, nan_ok=True)


def test_agreement_is_one_with_itself_and_minus_one_with_the_reverse():
    table = frame([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, nan, 2.0]])
    taus = agreement(table)
    assert np.diag(taus).tolist() == [1.0, 1.0, 1.0]
    assert taus.loc["last", "best"] == taus.loc["best", "last"] == -1.0
    assert taus.loc["last", "val"] == 1.0, "over the methods that have both ranks"
    assert isnan(agreement(frame([[1.5, 1.5, 3.0]] * 1).iloc[:, :2]).iloc[0, 0])


@given(st.lists(st.permutations([1.0, 2.0, 3.0, 4.0]), min_size=1, max_size=3))
def test_flips_are_the_pairs_that_some_scheme_turns_round(rows):
    table = frame(rows, "abcd")
    expected = {
        (a, b)
        for a, b in combinations("abcd", 2)
        if len({bool(table.loc[s, a] < table.loc[s, b]) for s in table.index}) == 2
    }
    assert set(zip(*(flips(table)[c] for c in ("first", "second")), strict=True)) == expected


def test_a_flip_names_the_schemes_on_either_side_and_a_tie_is_on_none():
    found = flips(frame([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [1.5, 1.5, 3.0]]))
    assert found.to_dict("records") == [
        {"first": "a", "second": "b", "first_ahead": ("last",), "second_ahead": ("best",)}
    ]


@pytest.mark.parametrize(
    ("rows", "winner"),
    [
        ([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]], "a"),
        ([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0]], None),
        ([[1.0, 2.0, 3.0], [1.5, 1.5, 3.0]], None),
        ([[1.0, 2.0, 3.0], [nan, 1.0, 2.0]], None),
        ([[1.5, 1.5, 3.0], [1.5, 1.5, 3.0]], None),
    ],
)
def test_a_robust_winner_is_first_alone_under_every_scheme(rows, winner):
    assert robust_winner(frame(rows)) == winner


def test_one_method_alone_wins_nothing():
    assert robust_winner(frame([[1.0]], "a")) is None


# Stability


def table(values, seeds=None):
    return pd.DataFrame(values, index=range(len(values)) if seeds is None else seeds)


def test_the_distribution_of_ranks_agrees_with_drawing_one_by_one():
    generator = rng(1)
    cases = generator.normal(size=(1, 8))
    tables = {
        name: table(level + cases + generator.normal(size=(5, 8)))
        for name, level in (("a", 0.5), ("b", 0.3), ("c", 0.0))
    }
    found = rank_distribution(tables, "dsc", rng(0), draws=4000)
    naive = np.zeros((3, 3))
    draw = rng(7)
    for _ in range(4000):
        rows, columns = draw.integers(5, size=5), draw.integers(8, size=8)
        levels = [np.median(t.to_numpy()[rows][:, columns].mean(1)) for t in tables.values()]
        for place, rank in enumerate(stats.rankdata(-np.array(levels)).astype(int)):
            naive[place, rank - 1] += 1 / 4000
    np.testing.assert_allclose(found[[1, 2, 3]], naive, atol=0.035)
    np.testing.assert_allclose(found[[1, 2, 3]].sum(axis=1), 1)
    np.testing.assert_allclose(found[[1, 2, 3]].sum(axis=0), 1)
    np.testing.assert_allclose(found["mean"], found[[1, 2, 3]] @ [1, 2, 3])


def test_methods_that_tie_share_the_ranks():
    same = rng(1).normal(size=(4, 6))
    found = rank_distribution({"a": table(same), "b": table(same)}, "dsc", rng())
    np.testing.assert_allclose(found[[1, 2]], 0.5)
    assert found["mean"].tolist() == [1.5, 1.5]


def test_a_method_that_is_far_ahead_is_always_first():
    values = rng(1).normal(size=(4, 6))
    tables = {"a": table(values), "b": table(values + 100)}
    assert rank_distribution(tables, "dsc", rng())[1].tolist() == [0.0, 1.0]
    assert rank_distribution(tables, "hd95", rng())[1].tolist() == [1.0, 0.0]


def test_a_method_whose_runs_mostly_fail_is_mostly_last():
    values = rng(1).normal(size=(5, 6))
    broken = values + 100
    broken[:3] = -inf
    found = rank_distribution({"a": table(values), "b": table(broken)}, "dsc", rng(), draws=4000)
    # Of five draws with replacement, at least three must be of a run that finished.
    alive = sum(stats.binom.pmf(k, 5, 2 / 5) for k in (3, 4, 5))
    assert found.loc["b", 1] == pytest.approx(alive, abs=0.03)


def test_methods_with_other_seeds_are_drawn_apart():
    same = rng(1).normal(size=(4, 6))
    tables = {"a": table(same), "b": table(same, [4, 5, 6, 7])}
    found = rank_distribution(tables, "dsc", rng())
    assert 0.3 < found.loc["a", 1] < 0.7
    assert not np.allclose(found["mean"], 1.5)


def test_methods_without_a_run_or_a_number_have_no_share():
    tables = {
        "a": table(rng(1).normal(size=(4, 6))),
        "none": table(np.empty((0, 6))),
        "silent": table(np.full((2, 6), nan)),
    }
    found = rank_distribution(tables, "dsc", rng())
    assert found.loc["a", 1] == 1.0
    assert found.loc[["none", "silent"]].isna().all(axis=None)
    assert rank_distribution({"none": tables["none"]}, "dsc", rng()).isna().all(axis=None)


def test_the_same_seed_gives_the_same_shares_and_another_others():
    generator = rng(1)
    tables = {name: table(generator.normal(size=(5, 8))) for name in "ab"}
    first, again, other = (rank_distribution(tables, "dsc", rng(s)) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert not first.equals(other)
