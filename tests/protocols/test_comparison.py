from itertools import combinations, product
from math import inf, isnan, nan, sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from protocols.comparison import TESTS, by_case, chosen_cases, compare, seeds_by_cases
from protocols.policies import POLICIES, score
from protocols.rules import Best, LastK, parse_rule
from protocols.significance import (
    ARRANGEMENTS,
    CANNOT_DECIDE,
    EXACT,
    FIRST,
    NOT_SHOWN,
    SECOND,
    UNDEFINED,
    holm,
    rank_sum,
    sign_flip,
    signed_rank,
    verdict,
)
from protocols.statistics import FAILED
from protocols.table import outcomes
from protocols.trajectory import trajectory
from results.errors import UserError
from tests.protocols import toy

VALUES = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=7)


def rng(seed=0):
    return np.random.default_rng(seed)


# Tests of paired and of unpaired values


@given(VALUES)
def test_the_sign_flip_test_counts_all_signs(values):
    total = abs(sum(values))
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in product((1, -1), repeat=len(values))
    ]
    expected = sum(s >= total - 1e-9 for s in sums) / len(sums)
    assert sign_flip(np.array(values), rng()).p == pytest.approx(expected)


def naive_signed_rank(values):
    kept = [v for v in values if v != 0]
    ranks = stats.rankdata(np.abs(kept))
    seen = sum(r for r, v in zip(ranks, kept, strict=True) if v > 0)
    sums = [
        sum(r for r, up in zip(ranks, signs, strict=True) if up)
        for signs in product((True, False), repeat=len(kept))
    ]
    below = sum(s <= seen for s in sums) / len(sums)
    above = sum(s >= seen for s in sums) / len(sums)
    return min(1.0, 2 * min(below, above))


@given(VALUES)
def test_the_signed_rank_test_counts_all_signs_with_ties_too(values):
    assert signed_rank(np.array(values)).p == pytest.approx(naive_signed_rank(values))


@pytest.mark.parametrize("n", [2, 5, 9, 30])
def test_without_ties_the_signed_rank_test_is_scipys(n):
    values = rng(n).normal(0.3, 1, n)
    expected = stats.wilcoxon(values, method="exact").pvalue
    assert signed_rank(values).p == pytest.approx(expected)


@given(VALUES, VALUES)
def test_the_rank_sum_test_counts_all_ways_to_split(first, second):
    ranks = stats.rankdata([*first, *second])
    seen = sum(ranks[: len(first)])
    sums = [sum(part) for part in combinations(ranks, len(first))]
    below = sum(s <= seen for s in sums) / len(sums)
    above = sum(s >= seen for s in sums) / len(sums)
    found = rank_sum(np.array(first), np.array(second))
    assert found.p == pytest.approx(min(1.0, 2 * min(below, above)))


@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 8), (20, 15)])
def test_without_ties_the_rank_sum_test_is_mann_whitneys(n, m):
    first, second = rng(1).normal(size=n), rng(2).normal(0.5, 1, m)
    expected = stats.mannwhitneyu(first, second, method="exact").pvalue
    assert rank_sum(first, second).p == pytest.approx(expected)


@pytest.mark.parametrize("n", range(2, 9))
def test_a_paired_test_attains_its_smallest_p_where_all_agree(n):
    values = np.arange(1.0, n + 1)
    for found in (sign_flip(values, rng()), signed_rank(values)):
        assert found.p == found.attainable == pytest.approx(2 / 2**n)
        assert found.sign == 1
    assert signed_rank(-values).sign == sign_flip(-values, rng()).sign == -1


def test_five_paired_seeds_cannot_go_below_0_0625_and_five_against_five_not_below_0_0079():
    values = np.arange(1.0, 6.0)
    assert signed_rank(values).attainable == 0.0625
    found = rank_sum(values + 10, values)
    assert found.p == found.attainable == pytest.approx(2 / 252)
    assert found.sign == 1


def test_differences_that_are_all_zero_show_nothing():
    for found in (sign_flip(np.zeros(5), rng()), signed_rank(np.zeros(5))):
        assert (found.p, found.sign) == (1.0, 0)


def test_many_differences_are_tested_by_draws_near_the_exact_p():
    values = rng(3).normal(0.6, 1, EXACT)
    exact = sign_flip(values, rng()).p
    more = sign_flip(np.r_[values, 0.0], rng())
    assert more.p == pytest.approx(exact, rel=0.2)
    assert more.p != sign_flip(np.r_[values, 0.0], rng(1)).p
    assert more.attainable == pytest.approx(1 / (ARRANGEMENTS + 1))


def test_a_failed_run_ranks_worst_and_has_no_mean():
    values = np.array([1.0, 2.0, -inf])
    assert isnan(sign_flip(values, rng()).p)
    assert signed_rank(values).p == signed_rank(np.array([1.0, 2.0, -9.0])).p
    assert rank_sum(np.array([-inf, 1.0]), np.array([2.0, 3.0])).sign == -1


@pytest.mark.parametrize("values", [[], [0.1, nan]])
def test_what_cannot_be_tested_has_no_p(values):
    values = np.array(values)
    assert isnan(sign_flip(values, rng()).p)
    assert isnan(signed_rank(values).p)
    assert isnan(rank_sum(values, np.array([1.0])).p)


# Holm, verdicts


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p):
    """A hypothesis falls when every intersection that holds it does: the definition of closing."""
    places = range(len(p))
    expected = [
        max(
            min(1.0, len(part) * min(p[j] for j in part))
            for size in range(1, len(p) + 1)
            for part in combinations(places, size)
            if i in part
        )
        for i in places
    ]
    assert holm(p) == pytest.approx(expected)


def test_an_undefined_test_stays_in_the_family():
    assert holm([0.01, nan])[0] == pytest.approx(0.02)
    assert isnan(holm([0.01, nan])[1])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("p", "attainable", "sign", "word"),
    [
        (0.0625, 0.0625, 1, CANNOT_DECIDE),
        (1.0, 0.0625, 1, CANNOT_DECIDE),
        (0.06, 0.01, 1, NOT_SHOWN),
        (0.05, 0.01, 1, FIRST),
        (0.01, 0.01, -1, SECOND),
        (nan, 0.01, 0, UNDEFINED),
    ],
)
def test_a_verdict_never_claims_more_than_the_test_can(p, attainable, sign, word):
    assert verdict(p, attainable, sign) == word


# Tables of seeds x cases


def table(values, seeds=None):
    values = np.asarray(values, dtype=float)
    seeds = range(len(values)) if seeds is None else seeds
    return pd.DataFrame(
        values,
        index=pd.Index(list(seeds), name="seed"),
        columns=[f"c{place:02}" for place in range(values.shape[1])],
    )


def made(seed, n=6, m=12, level=0.0):
    generator = rng(seed)
    return generator.normal(level, 1, (n, m)) + generator.normal(0, 1, (n, 1))


def row(first, second, metric="dsc", seed=0):
    return compare({"a": first, "b": second}, metric, rng(seed)).iloc[0]


def test_a_pair_is_what_plain_numpy_says():
    x, y = made(1, level=1.0), made(2)
    found = row(table(x), table(y))
    difference = x - y
    by_seed, cases = difference.mean(1), difference.mean(0)
    assert (found["first"], found["second"], found["paired"]) == ("a", "b", True)
    assert (found["seeds"], found["failed"], found["cases"]) == ("6", 0, 12)
    assert found["difference"] == pytest.approx(difference.mean())
    assert found["sd"] == pytest.approx(by_seed.std(ddof=1))
    for name, values in (("seeds", by_seed), ("cases", cases)):
        expected = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf
        ).pvalue
        assert found[f"{name}_p"] == pytest.approx(expected)
    assert found["ranks_p"] == pytest.approx(stats.wilcoxon(by_seed, method="exact").pvalue)
    assert found["low"] < found["difference"] < found["high"]
    assert found["seeds_attainable"] == pytest.approx(2 / 2**6)
    assert found["cases_attainable"] == pytest.approx(2 / 2**12)


def test_the_detectable_difference_is_found_four_times_in_five():
    x, y = made(1), made(2)
    found = row(table(x), table(y))
    n, sd = 6, found["sd"]
    beyond = stats.t.ppf(0.975, n - 1)
    spread = stats.nct(n - 1, found["detectable"] / (sd / sqrt(n)))
    assert spread.sf(beyond) + spread.cdf(-beyond) == pytest.approx(0.8)


def test_five_seeds_in_which_one_method_always_wins_cannot_decide():
    found = row(table(made(1, n=5) + 100), table(made(1, n=5)))
    assert found["seeds_p"] == 0.0625
    assert found["seeds_verdict"] == CANNOT_DECIDE
    assert found["cases_verdict"] == FIRST


def test_more_pairs_make_the_attainable_p_larger():
    tables = {name: table(made(place, n=6) + 9 * place) for place, name in enumerate("abc")}
    three = compare(tables, "dsc", rng())
    two = compare({k: tables[k] for k in "ab"}, "dsc", rng())
    assert two["seeds_attainable_holm"].tolist() == pytest.approx([2 / 2**6])
    assert two["seeds_verdict"].tolist() == [SECOND]
    assert three["seeds_attainable_holm"].tolist() == pytest.approx([3 * 2 / 2**6] * 3)
    assert three["seeds_verdict"].tolist() == [CANNOT_DECIDE] * 3


def test_of_distances_the_smaller_is_the_better():
    x, y = made(1, n=8), made(1, n=8) + 100
    assert row(table(x), table(y), "asd")["seeds_verdict"] == FIRST
    assert row(table(x), table(y), "dsc")["seeds_verdict"] == SECOND


def test_methods_are_paired_over_the_seeds_that_both_have():
    x, y = made(1, n=5), made(2, n=4)
    found = row(table(x, [0, 1, 2, 3, 4]), table(y, [7, 3, 2, 0]))
    expected = row(table(x[[0, 2, 3]], [0, 2, 3]), table(y[[3, 2, 1]], [0, 2, 3]))
    assert found["seeds"] == "3 of 5 and 4"
    assert expected["seeds"] == "3"
    pd.testing.assert_series_equal(found.drop("seeds"), expected.drop("seeds"))


def test_methods_that_share_fewer_than_two_seeds_are_compared_unpaired():
    x, y = made(1, n=5, level=9), made(2, n=4)
    found = row(table(x), table(y, [4, 5, 6, 7]))
    assert (found["paired"], found["seeds"]) == (False, "5 and 4")
    assert found["seeds_test"] == "Mann-Whitney"
    expected = stats.mannwhitneyu(x.mean(1), y.mean(1), method="exact").pvalue
    assert found["seeds_p"] == pytest.approx(expected)
    assert found["seeds_attainable"] == pytest.approx(2 / 126)
    assert found["difference"] == pytest.approx(x.mean() - y.mean())
    pooled = (4 * x.mean(1).var(ddof=1) + 3 * y.mean(1).var(ddof=1)) / 7
    assert found["sd"] == pytest.approx(sqrt(pooled))
    assert found["seeds_verdict"] == FIRST
    assert found["ranks_verdict"] == UNDEFINED


def test_a_failed_run_is_worse_than_any_and_leaves_no_mean():
    x, y = made(1, n=7) + 100, made(2, n=7)
    x[2] = FAILED["dsc"]
    found = row(table(x), table(y))
    assert (found["seeds"], found["failed"]) == ("7", 1)
    assert np.isnan(found[["difference", "low", "high", "sd", "detectable"]].astype(float)).all()
    assert found["cases_verdict"] == UNDEFINED
    assert found["seeds_test"] == "signed-rank"
    lost = (x - y).mean(1)
    lost[2] = -1e9
    assert found["seeds_p"] == pytest.approx(stats.wilcoxon(lost, method="exact").pvalue)


def test_a_seed_that_failed_with_both_is_a_tie():
    x, y = made(1, n=7) + 100, made(2, n=7)
    x[2] = y[2] = FAILED["dsc"]
    found = row(table(x), table(y))
    rest = (np.delete(x, 2, axis=0) - np.delete(y, 2, axis=0)).mean(1)
    assert found["failed"] == 1
    assert found["seeds_p"] == pytest.approx(stats.wilcoxon(rest, method="exact").pvalue)
    assert isnan(found["difference"])


def test_failed_runs_count_unpaired_too():
    x, y = made(1, n=4), made(2, n=4)
    x[0] = FAILED["dsc"]
    found = row(table(x), table(y, [10, 11, 12, 13]))
    means = np.r_[-1e9, x[1:].mean(1)]
    assert found["failed"] == 1
    assert found["seeds_p"] == pytest.approx(
        stats.mannwhitneyu(means, y.mean(1), method="exact").pvalue
    )
    assert isnan(found["difference"])
    assert found["cases_verdict"] == UNDEFINED


def test_cases_that_do_not_count_in_one_method_are_left_out_of_the_difference():
    x, y = made(1), made(2)
    x[0, 3] = nan
    x[:, 5] = nan
    found = row(table(x), table(y))
    by_seed = np.nanmean(x - y, axis=1)
    assert found["cases"] == 11
    assert found["difference"] == pytest.approx(by_seed.mean())
    assert found["cases_attainable"] == pytest.approx(2 / 2**11)


def test_methods_without_any_run_or_number_are_undefined_and_stay():
    nothing = table(np.empty((0, 12)))
    found = row(nothing, table(made(1)))
    assert (found["seeds"], found["seeds_verdict"]) == ("0 and 6", UNDEFINED)
    silent = row(table(np.full((6, 12), nan)), table(made(1)))
    assert {silent[f"{kind}_verdict"] for kind in TESTS} == {UNDEFINED}
    assert compare({"a": nothing}, "dsc", rng()).empty
    single = row(table(made(1, n=1)), table(made(2, n=1)))
    assert single["seeds_verdict"] == CANNOT_DECIDE
    assert isnan(single["detectable"])


def test_the_same_seed_gives_the_same_interval_and_another_another():
    x, y = table(made(1)), table(made(2))
    assert row(x, y)[["low", "high"]].tolist() == row(x, y)[["low", "high"]].tolist()
    assert row(x, y)[["low", "high"]].tolist() != row(x, y, seed=1)[["low", "high"]].tolist()


# Cases


def test_shares_of_cases_add_up_to_the_difference():
    x, y = made(1, level=1.0), made(2)
    found = by_case(table(x), table(y))
    expected = pd.Series((x - y).mean(0), index=table(x).columns).sort_values(ascending=False)
    assert found["case"].tolist() == expected.index.tolist()
    np.testing.assert_allclose(found["difference"], expected)
    np.testing.assert_allclose(found["share"], expected / expected.sum())
    np.testing.assert_allclose(found["cumulative"], expected.cumsum() / expected.sum())
    assert found["cumulative"].iloc[-1] == pytest.approx(1)


def test_cases_are_averaged_over_the_seeds_that_finished_with_both():
    x, y = made(1, n=4), made(2, n=3)
    x[0], y[1] = FAILED["dsc"], FAILED["dsc"]
    found = by_case(table(x), table(y, [2, 1, 3])).set_index("case")
    assert (found["first_seeds"] == 2).all()
    np.testing.assert_allclose(found["first"].sort_index(), x[[2, 3]].mean(0))
    np.testing.assert_allclose(found["second"].sort_index(), y[[0, 2]].mean(0))


def test_methods_that_share_no_two_seeds_are_averaged_over_their_own():
    x, y = made(1, n=4), made(2, n=3)
    found = by_case(table(x), table(y, [7, 8, 9])).set_index("case")
    assert found[["first_seeds", "second_seeds"]].iloc[0].tolist() == [4, 3]
    np.testing.assert_allclose(found["difference"].sort_index(), x.mean(0) - y.mean(0))


def test_differences_that_cancel_have_no_shares():
    found = by_case(table([[1.0, 0.0]]), table([[0.0, 1.0]]))
    assert found["difference"].tolist() == [1.0, -1.0]
    assert found["share"].isna().all()
    assert by_case(table(np.full((2, 2), FAILED["dsc"])), table([[0.0, 1.0]])).empty


# From the store's rows


def scored_and_outcomes(rule, seeds=2, **options):
    generator = rng(5)
    records, rows = [], []
    for seed in range(seeds):
        run = toy.run_id(seed=seed)
        records.append(toy.record(run, toy.spec(seed=seed)))
        scores = {step: generator.random(3) for step in (100, 200, 300, 400)}
        rows.append(toy.cases(run, scores, **options))
        rows.append(toy.cases(run, scores, split="val"))
    cases = pd.concat(rows, ignore_index=True)
    steps = trajectory(cases, POLICIES["tcseg"])
    return score(cases, POLICIES["tcseg"]), outcomes(pd.DataFrame(records), steps, rule)


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("last", [400]),
        ("last-k(k=3)", [200, 300, 400]),
        ("last(every=300)", [300]),
        ("last-k(k=2,every=200)", [200, 400]),
    ],
)
def test_cases_are_read_at_the_evaluations_that_the_rule_chose(expression, steps):
    rule = parse_rule(expression)
    scored, chosen = scored_and_outcomes(rule)
    found = chosen_cases(scored, chosen, rule)
    kept = scored[(scored["split"] == "test") & scored["step"].isin(steps)]
    expected = kept.groupby(["run", "case"], as_index=False)[["dsc", "asd", "hd95"]].mean()
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    means = found.groupby("run")["dsc"].mean()
    np.testing.assert_allclose(means, chosen.set_index("run")["dsc"].sort_index())


def test_the_best_evaluation_of_each_run_is_its_own():
    scored, chosen = scored_and_outcomes(Best(), seeds=5)
    means = chosen_cases(scored, chosen, Best()).groupby("run")["dsc"].mean()
    np.testing.assert_allclose(means, chosen.set_index("run")["dsc"].sort_index())
    assert chosen["step"].nunique() > 1


def test_the_order_of_rows_changes_nothing():
    scored, chosen = scored_and_outcomes(LastK(k=3))
    expected = chosen_cases(scored, chosen, LastK(k=3))
    mixed = scored.sample(frac=1, random_state=1), chosen.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(chosen_cases(*mixed, LastK(k=3)), expected, check_exact=True)


def test_a_rule_that_reports_no_mean_over_cases_is_refused():
    scored, chosen = scored_and_outcomes(Best())
    with pytest.raises(UserError, match="protocol corrected estimates what a run reaches"):
        chosen_cases(scored, chosen, parse_rule("corrected"))


def test_a_table_holds_every_case_and_the_failed_runs():
    values = pd.DataFrame(
        {"seed": [3, 1, 1], "case": ["b", "b", "a"], "dsc": [0.3, 0.2, 0.1], "asd": [3.0, 2, 1]}
    )
    found = seeds_by_cases(values, ["c", "a", "b"], [2], "dsc")
    assert found.index.tolist() == [1, 2, 3]
    assert found.columns.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(found, [[0.1, 0.2, nan], [-inf, -inf, -inf], [nan, 0.3, nan]])
    assert (seeds_by_cases(values, ["a"], [2], "asd").loc[2] == inf).all()
    alone = seeds_by_cases(values.iloc[:0], ["a", "b"], [4, 0], "dsc")
    np.testing.assert_array_equal(alone, np.full((2, 2), -inf))
