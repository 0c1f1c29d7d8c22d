import hashlib
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.correction import METHODS, best_of, bootstrap, corrected, halves
from protocols.metrics import METRICS
from protocols.policies import POLICIES, score
from protocols.rules import Best, Corrected
from protocols.selection import select
from protocols.trajectory import trajectory
from results.errors import UserError
from tests.protocols import toy

TCSEG = POLICIES["tcseg"]


def choose(rows, rule, policy=TCSEG):
    return select(trajectory(rows, policy), rule, score(rows, policy))


def drawn(rule, run, cases):
    """The weights that the rule draws for a run, one list per draw."""
    digest = hashlib.sha256(run.encode()).digest()
    rng = np.random.default_rng([rule.seed, int.from_bytes(digest[:8], "big")])
    return METHODS[rule.method].draw(rng, rule.draws, cases).tolist()


def naive(rows, rule, weights):
    """The estimate in loops: {metric: value} of one run, over dictionaries of its scores."""
    candidates = sorted({(r["step"], r["predictor"] != "main", r["predictor"]) for r in rows})
    cases = sorted({r["case"] for r in rows})
    value = {(r["case"], r["step"], r["predictor"]): r for r in rows}
    sign = 1 if METRICS[rule.metric].higher_is_better else -1
    left_out = {m: {case: [] for case in cases} for m in METRICS}
    for weight in weights:
        best, place = -np.inf, None
        for step, _, predictor in candidates:
            bag = [
                value[case, step, predictor][rule.metric]
                for case, times in zip(cases, weight, strict=True)
                for _ in range(times)
            ]
            bag = [v for v in bag if not np.isnan(v)]
            mean = sign * fmean(bag) if bag else -np.inf
            if mean > best or (mean == best and rule.tie == "later") or place is None:
                best, place = mean, (step, predictor)
        for case, times in zip(cases, weight, strict=True):
            for m in METRICS:
                v = value[case, *place][m]
                if times == 0 and not np.isnan(v):
                    left_out[m][case].append(v)
    return {m: fmean(fmean(v) for v in left_out[m].values() if v) for m in METRICS}


def scores(seed, *, steps=(100, 200, 300, 400), cases=6, run="mt-0", empty=(), **changes):
    """Scores on a coarse grid, so that sums are exact and ties happen."""
    rng = np.random.default_rng(seed)
    values = {s: (rng.integers(8, 15, cases) / 16).tolist() for s in steps}
    return toy.cases(run, values, empty=empty, **changes)


@pytest.mark.parametrize("policy", ["tcseg", "exclude"])
@pytest.mark.parametrize(
    "rule",
    [
        Corrected(),
        Corrected(method="split"),
        Corrected(metric="hd95", draws=60, seed=4),
        Corrected(tie="earlier"),
        Corrected(predictors="all", method="split", draws=50),
    ],
    ids=str,
)
def test_it_is_what_loops_over_draws_cases_and_evaluations_say(rule, policy):
    rows = pd.concat(
        [scores(1, empty=[(200, 1), (300, 4)]), scores(2, predictor="teacher", empty=[(100, 0)])],
        ignore_index=True,
    )
    chosen = choose(rows, rule, POLICIES[policy]).set_index("predictor")
    scored = score(rows, POLICIES[policy])
    for predictor in ("main",) if rule.predictors == "all" else ("main", "teacher"):
        own = scored if rule.predictors == "all" else scored[scored["predictor"] == predictor]
        expected = naive(own.to_dict("records"), rule, drawn(rule, "mt-0", 6))
        for m in METRICS:
            assert chosen.loc[predictor, m] == pytest.approx(expected[m], rel=1e-13)


def test_it_stands_at_the_evaluation_that_best_reports():
    rows = pd.concat([scores(seed, run=f"mt-{seed}", empty=[(200, 1)]) for seed in range(5)])
    same = ["run", "predictor", "picked", "step", "averaged", "evaluations", "cases", "empty"]
    ours, best = choose(rows, Corrected()), choose(rows, Best())
    pd.testing.assert_frame_equal(ours[same], best[same])
    assert (ours["dsc"] < best["dsc"]).all()


# The size of the bias


def nothing_to_choose(rng, run, *, evaluations=40, cases=12, noise=0.02):
    """Evaluations without any true difference: case effects and noise by case and evaluation."""
    level = 0.8 + 0.05 * rng.standard_normal(cases)
    values = level + noise * rng.standard_normal((evaluations, cases))
    return toy.cases(run, {k + 1: v.tolist() for k, v in enumerate(values)}), level.mean()


@pytest.fixture(scope="module")
def chance():
    """What best and both corrections report beyond the truth, in 300 runs with nothing to gain."""
    rng = np.random.default_rng(0)
    made = [nothing_to_choose(rng, f"mt-{n:03}") for n in range(300)]
    rows = pd.concat([rows for rows, _ in made])
    truth = np.array([level for _, level in made])
    rules = {"best": Best(), "bootstrap": Corrected(), "split": Corrected(method="split")}
    return {k: choose(rows, r)["dsc"].to_numpy() - truth for k, r in rules.items()}


def test_best_gains_the_expected_maximum_of_as_many_normal_deviates_by_chance(chance):
    maxima = np.random.default_rng(1).standard_normal((20_000, 40)).max(axis=1)
    expected = maxima.mean() * 0.02 / np.sqrt(12)
    error = chance["best"].std() / np.sqrt(300)
    assert expected > 0.012
    assert abs(chance["best"].mean() - expected) < 4 * error


@pytest.mark.parametrize("method", METHODS)
def test_the_correction_gains_nothing_by_chance(chance, method):
    error = chance[method].std() / np.sqrt(300)
    assert error < 0.001
    assert abs(chance[method].mean()) < 4 * error


@pytest.mark.parametrize("method", METHODS)
def test_a_gain_that_is_real_is_kept(method):
    rng = np.random.default_rng(2)
    rows, level = nothing_to_choose(rng, "mt-0")
    rows.loc[rows["step"] == 7, "dsc"] += 0.2
    found = choose(rows, Corrected(method=method))["dsc"].item()
    assert found == pytest.approx(level + 0.2, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_equal_evaluations_give_the_plain_mean_over_cases(method):
    values = [0.9, 0.2, 0.55, 0.7]
    chosen = choose(toy.cases("mt-0", {1: values, 2: values}), Corrected(method=method))
    assert chosen["dsc"].item() == pytest.approx(np.mean(values), rel=1e-13)


# Randomness


def test_a_runs_number_depends_on_its_id_and_the_seed_alone():
    frames = [scores(seed, run=f"mt-{seed}") for seed in range(4)]
    together = choose(pd.concat(frames[::-1]).sample(frac=1, random_state=0), Corrected())
    alone = pd.concat([choose(rows, Corrected()) for rows in frames], ignore_index=True)
    pd.testing.assert_frame_equal(together, alone, check_exact=True)
    other = choose(pd.concat(frames), Corrected(seed=1))
    assert (other["dsc"] != alone["dsc"]).all()
    assert (other["dsc"] - alone["dsc"]).abs().max() < 0.02
    renamed = choose(frames[0].assign(run="mt-9"), Corrected())
    assert renamed["dsc"].item() != alone["dsc"].iloc[0]


@given(st.integers(0, 100), st.integers(2, 9))
def test_draws_are_as_large_as_they_should_be(seed, cases):
    drawn = bootstrap(np.random.default_rng(seed), 50, cases)
    assert drawn.shape == (50, cases)
    assert (drawn.sum(axis=1) == cases).all()
    split = halves(np.random.default_rng(seed), 50, cases)
    assert set(split.ravel()) == {0, 1}
    assert (split[:50] + split[50:] == 1).all()
    assert (split[:50].sum(axis=1) == (cases + 1) // 2).all()


def test_every_case_is_drawn_as_often_as_any_other():
    for method in METHODS.values():
        weights = method.draw(np.random.default_rng(0), 4000, 5)
        assert weights.mean(axis=0) == pytest.approx(np.full(5, weights.mean()), abs=0.05)


# Edges


def test_a_draw_that_leaves_none_out_adds_nothing():
    cases = {"dsc": np.array([[0.5, 0.25], [0.75, 1.0]])}
    weights = np.array([[2, 0], [0, 2], [1, 1]])
    # On case 0 the first is best, and scores 0.75 on case 1; on case 1 the second, 0.25 on case 0.
    expected = (0.75 + 0.25) / 2
    assert corrected(cases, "dsc", weights, True, True)["dsc"] == expected
    assert corrected(cases, "dsc", weights[:2], True, True)["dsc"] == expected


def test_a_case_that_is_never_left_out_leaves_the_value_undefined():
    cases = {"dsc": np.array([[0.5, 0.25], [0.75, 1.0]])}
    assert np.isnan(corrected(cases, "dsc", np.array([[2, 0]]), True, True)["dsc"])


def test_a_case_that_never_counts_is_left_out_of_the_mean():
    rows = toy.cases("mt-0", {1: [0.5, 0.9, 0.75], 2: [0.5, 0.9, 0.75]}, empty=[(1, 1), (2, 1)])
    chosen = choose(rows, Corrected(), POLICIES["exclude"])
    assert chosen["dsc"].item() == pytest.approx((0.5 + 0.75) / 2)
    rows = toy.cases("mt-0", {1: [0.5, 0.9]}, empty=[(1, 0), (1, 1)])
    assert np.isnan(choose(rows, Corrected(), POLICIES["exclude"])["dsc"].item())


def test_one_case_cannot_be_left_out():
    with pytest.raises(UserError, match="leaves cases out, but run mt-0 has only 1 test case"):
        choose(toy.cases("mt-0", {1: [0.5]}), Corrected())


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, np.nan]), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_the_best_is_what_a_scan_finds(values, higher, later):
    place, best = (len(values) - 1 if later else 0), None
    for k, value in enumerate(values):
        if np.isnan(value):
            continue
        better = best is None or (value > best if higher else value < best)
        if better or (later and value == best):
            place, best = k, value
    assert best_of(np.array([values]), higher, later).tolist() == [place]
