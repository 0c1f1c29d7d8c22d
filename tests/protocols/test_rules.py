from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base import Choice
from protocols.policies import POLICIES, score
from protocols.rules import (
    RULES,
    Best,
    Corrected,
    Last,
    LastK,
    Rule,
    Val,
    parse_rule,
    signature,
)
from protocols.selection import select
from protocols.trajectory import trajectory
from results.errors import UserError
from tests.protocols import toy

TCSEG = POLICIES["tcseg"]


def evaluated(test, val=None, run="mt-0", policy=TCSEG, **changes):
    rows = [toy.cases(run, test, **changes)]
    rows += [toy.cases(run, val, split="val")] if val else []
    return trajectory(pd.concat(rows), policy)


def choose(rows, rule, policy=TCSEG):
    return select(trajectory(rows, policy), rule, score(rows, policy))


def test_last_reports_the_last_evaluation_picked_out_of_one():
    chosen = select(evaluated({1: [0.9], 10: [0.4], 2: [0.8]}), Last())
    assert chosen[["run", "predictor", "step", "averaged", "evaluations"]].values.tolist() == [
        ["mt-0", "main", 10, 1, 1]
    ]
    assert chosen["dsc"].item() == 0.4


def test_best_reports_the_evaluation_with_the_highest_mean_over_cases():
    chosen = select(evaluated({1: [0.9, 0.1], 2: [0.6, 0.6], 3: [0.0, 1.0]}), Best())
    assert chosen["step"].item() == 2
    assert chosen["evaluations"].item() == 3
    assert chosen["dsc"].item() == 0.6


def test_of_equally_good_evaluations_best_takes_the_later():
    assert select(evaluated({1: [0.5], 2: [0.7], 3: [0.7], 4: [0.6]}), Best())["step"].item() == 3


def test_best_of_a_distance_is_the_lowest():
    rows = toy.cases("mt-0", {1: [0.5], 2: [0.5], 3: [0.5]}).assign(hd95=[3.0, 1.0, 2.0])
    chosen = select(trajectory(rows, TCSEG), Best(metric="hd95"))
    assert (chosen["step"].item(), chosen["hd95"].item()) == (2, 1.0)


@pytest.mark.parametrize("rule", [Best(split="val"), Val()], ids=str)
def test_best_on_val_is_reported_on_test(rule):
    steps = evaluated({1: [0.9], 2: [0.3]}, val={1: [0.1], 2: [0.2]})
    chosen = select(steps, rule)
    assert (chosen["step"].item(), chosen["dsc"].item()) == (2, 0.3)


def test_every_run_and_predictor_is_chosen_for_by_itself():
    rows = [
        toy.cases("mt-0", {1: [0.9], 2: [0.1]}),
        toy.cases("mt-0", {1: [0.2], 2: [0.8]}, predictor="teacher"),
        toy.cases("mt-1", {1: [0.3], 2: [0.4], 3: [0.2]}),
    ]
    chosen = select(trajectory(pd.concat(rows), TCSEG), Best())
    assert chosen[["run", "predictor", "step", "evaluations"]].values.tolist() == [
        ["mt-0", "main", 1, 2],
        ["mt-0", "teacher", 2, 2],
        ["mt-1", "main", 2, 3],
    ]


def test_steps_without_any_case_that_counts_are_never_best():
    steps = evaluated({1: [0.5], 2: [0.9]}, policy=POLICIES["exclude"], empty=[(2, 0)])
    assert select(steps, Best())["step"].item() == 1
    nothing = evaluated({1: [0.5], 2: [0.9]}, policy=POLICIES["exclude"], empty=[(1, 0), (2, 0)])
    chosen = select(nothing, Best())
    assert chosen["step"].item() == 2
    assert np.isnan(chosen["dsc"].item())


@pytest.mark.parametrize(
    "rule", [*(r() for r in RULES.values()), Best(split="val"), Best(predictors="all")], ids=str
)
def test_a_rule_is_blind_to_the_splits_it_does_not_declare(rule):
    rng = np.random.default_rng(1)
    runs = [f"mt-{n}" for n in range(5)]
    rows = pd.concat(
        [
            toy.cases(run, {s: rng.random(3) for s in range(8)}, split=split)
            for run in runs
            for split in ("train", "val", "test")
        ]
    )
    hidden = ~rows["split"].isin(rule.sees)
    spoilt = rows.copy()
    for metric in ("dsc", "asd", "hd95"):
        spoilt.loc[hidden, metric] = rng.random(int(hidden.sum()))
    steps = [choose(r, rule)["step"].tolist() for r in (rows, spoilt)]
    assert steps[0] == steps[1]


@dataclass(frozen=True)
class Spy(Rule):
    """Notes what it is offered and takes the first."""

    name: ClassVar[str] = "spy"
    by_case: ClassVar[bool] = True
    offers: ClassVar[list] = []
    meaning = ""
    splits: str = ""

    @property
    def sees(self):
        return tuple(filter(None, self.splits.split("+")))

    def choose(self, offer):
        self.offers.append(offer)
        return Choice((0,), 1)


@pytest.mark.parametrize("splits", ["", "val", "train", "train+val"])
def test_a_rule_gets_only_scores_of_the_splits_it_declares_by_case_too(splits):
    value = {"train": 0.125, "val": 0.25, "test": 0.5}
    rows = [toy.cases("mt-0", {1: [v] * 2, 2: [v] * 2}, split=s) for s, v in value.items()]
    Spy.offers.clear()
    choose(pd.concat(rows), Spy(splits=splits))
    (offer,) = Spy.offers
    assert offer.steps.tolist() == [1, 2]
    wanted = set(filter(None, splits.split("+")))
    assert set(offer.seen) == wanted
    for split, seen in offer.seen.items():
        assert seen.evaluated.tolist() == [True, True]
        assert set(seen.means["dsc"]) == {value[split]}
        assert seen.cases["dsc"].tolist() == [[value[split]] * 2] * 2
        assert seen.cases["hd95"].tolist() == [[30 * (1 - value[split])] * 2] * 2


def test_a_split_that_was_evaluated_less_often_is_missing_there():
    rows = [
        toy.cases("mt-0", {1: [0.5], 2: [0.6], 3: [0.1]}),
        toy.cases("mt-0", {1: [0.5], 3: [0.2]}, split="val"),
    ]
    Spy.offers.clear()
    choose(pd.concat(rows), Spy(splits="val"))
    seen = Spy.offers[0].seen["val"]
    assert seen.evaluated.tolist() == [True, False, True]
    np.testing.assert_equal(seen.means["dsc"], [0.5, np.nan, 0.2])
    np.testing.assert_equal(seen.cases["dsc"], [[0.5, np.nan, 0.2]])


def test_the_cases_of_each_run_and_predictor_come_by_name_whatever_the_order_of_rows():
    rng = np.random.default_rng(3)
    scores = {
        (run, predictor): {s: rng.random(4) for s in (10, 2, 30)}
        for run in ("mt-1", "mt-0")
        for predictor in ("teacher", "main")
    }
    frames = [toy.cases(run, s, predictor=p) for (run, p), s in scores.items()]
    rows = pd.concat([*frames, toy.cases("elsewhere", {2: [0.5]})]).sample(frac=1, random_state=0)
    kept = rows[rows["run"] != "elsewhere"]
    Spy.offers.clear()
    select(trajectory(kept, TCSEG), Spy(splits="test"), score(rows, TCSEG))
    for offer, key in zip(Spy.offers, sorted(scores), strict=True):
        expected = np.stack([scores[key][s] for s in (2, 10, 30)], axis=1)
        assert offer.run == key[0]
        np.testing.assert_array_equal(offer.seen["test"].cases["dsc"], expected)


def test_a_rule_by_case_needs_the_cases():
    with pytest.raises(ValueError, match="rule corrected needs the rows of single cases"):
        select(evaluated({1: [0.5, 0.6]}), Corrected())


# Averages


def test_last_k_reports_the_mean_over_the_last_k_evaluations():
    steps = evaluated({1: [0.0], 2: [0.4], 3: [0.6], 10: [0.8]}, empty=[(3, 0), (1, 0)])
    chosen = select(steps, LastK(k=3))
    assert chosen["dsc"].item() == pytest.approx((0.4 + 0.0 + 0.8) / 3)
    assert chosen["asd"].item() == pytest.approx((6 + 100 + 2) / 3)
    assert chosen[["step", "averaged", "evaluations"]].values.tolist() == [[10, 3, 1]]
    assert chosen[["cases", "empty"]].values.tolist() == [[1, 1]]


def test_a_run_with_fewer_evaluations_than_are_averaged_is_an_error():
    message = (
        r"last-k\(k=3\) averages 3 evaluations, but run mt-0 has only 2, at steps 1, 4; choose"
    )
    with pytest.raises(UserError, match=message):
        select(evaluated({1: [0.0], 4: [0.4]}), LastK(k=3))


# Which evaluations are considered


RISING = {100: [0.1], 200: [0.2], 300: [0.9], 400: [0.4], 500: [0.5]}


@pytest.mark.parametrize(
    ("text", "step", "evaluations"),
    [
        ("last(every=200)", 400, 1),
        ("best(every=200)", 400, 2),
        ("best(from=400)", 500, 2),
        ("best(from=200,every=150)", 300, 1),
        ("best(every=100)", 300, 5),
        ("last-k(k=2,every=200)", 400, 1),
        ("corrected(from=301)", 500, 2),
    ],
)
def test_only_multiples_of_every_from_a_step_on_are_considered(text, step, evaluations):
    scores = {s: v * 2 for s, v in RISING.items()}
    chosen = choose(toy.cases("mt-0", scores), parse_rule(text))
    assert chosen[["step", "evaluations"]].values.tolist() == [[step, evaluations]]


@pytest.mark.parametrize("text", ["best(every=7)", "last(from=501)", "val(every=1000)"])
def test_leaving_no_evaluation_is_an_error_that_says_which_there_are(text):
    with pytest.raises(UserError) as error:
        select(evaluated(RISING), parse_rule(text))
    assert f"rule {text} leaves no evaluation of run mt-0" in str(error.value)
    assert "evaluated at steps 100, 200, 300, 400, 500; choose" in str(error.value)


def test_steps_matter_only_of_what_is_chosen_among():
    early = toy.cases("cds-0", {1: [0.5]}, predictor="early")
    steps = trajectory(pd.concat([STUDENTS, early]), TCSEG)
    for predictors in ("main+ema", "all"):
        assert select(steps, Best(predictors=predictors, start=2))["step"].tolist() == [2]
    message = r"leaves no evaluation of run cds-0: it was evaluated at step 1; choose"
    for predictors in ("each", "early"):
        with pytest.raises(UserError, match=message):
            select(steps, Best(predictors=predictors, start=2))


def test_of_equally_good_evaluations_the_earlier_is_taken_where_that_is_asked():
    steps = evaluated({1: [0.5], 2: [0.7], 3: [0.7], 4: [0.6]})
    assert select(steps, Best(tie="earlier"))["step"].item() == 2
    assert select(steps, Best(tie="earlier", metric="asd"))["step"].item() == 2
    assert select(steps, Best(tie="later", metric="asd"))["step"].item() == 3


# Choosing among predictors

STUDENTS = pd.concat(
    [
        toy.cases("cds-0", {1: [0.5], 2: [0.7], 3: [0.6]}, empty=[(3, 0)]),
        toy.cases("cds-0", {1: [0.9], 2: [0.8], 3: [0.65]}, predictor="student2"),
        toy.cases("cds-0", {1: [0.95], 2: [0.1], 3: [0.1]}, predictor="ema"),
    ]
)


@pytest.mark.parametrize(
    ("predictors", "step", "picked", "evaluations", "dsc"),
    [
        ("all", 1, "ema", 9, 0.95),
        ("main+student2", 1, "student2", 6, 0.9),
        ("student2", 1, "student2", 3, 0.9),
        ("main", 2, "main", 3, 0.7),
    ],
)
def test_a_choice_among_predictors_is_one_row_out_of_steps_times_predictors(
    predictors, step, picked, evaluations, dsc
):
    rule = Best(predictors=predictors)
    row = select(trajectory(STUDENTS, TCSEG), rule).to_dict("records")
    assert len(row) == 1
    assert (row[0]["run"], row[0]["predictor"]) == ("cds-0", "main")
    assert (row[0]["step"], row[0]["picked"]) == (step, picked)
    assert (row[0]["evaluations"], row[0]["dsc"]) == (evaluations, dsc)
    assert predictors.split("+")[-1] in rule.meaning


def test_equally_good_predictors_of_one_step_come_main_first_then_by_name():
    rows = [toy.cases("cds-0", {1: [0.5], 2: [0.5]}, predictor=p) for p in ("b", "main", "a")]
    steps = trajectory(pd.concat(rows), TCSEG)
    for tie, expected in (("later", (2, "b")), ("earlier", (1, "main"))):
        chosen = select(steps, Best(predictors="all", tie=tie))
        assert (chosen["step"].item(), chosen["picked"].item()) == expected


def test_by_itself_each_predictor_is_what_is_picked():
    chosen = select(trajectory(STUDENTS, TCSEG), Best())
    assert chosen["picked"].tolist() == chosen["predictor"].tolist() == ["main", "ema", "student2"]


def test_a_predictor_that_a_run_lacks_is_named_with_those_it_has():
    rows = pd.concat([STUDENTS, toy.cases("mt-0", {1: [0.5]})])
    message = "unknown predictor of run mt-0 'student2'. Known: main"
    with pytest.raises(UserError, match=message):
        select(trajectory(rows, TCSEG), Best(predictors="main+student2"))
    with pytest.raises(UserError, match=r"'studnt2'. Did you mean 'student2'\?"):
        select(trajectory(STUDENTS, TCSEG), Best(predictors="main+studnt2"))


# Errors


def test_a_rule_that_needs_a_split_which_a_run_lacks_says_which():
    for rule in (Best(split="val"), Val()):
        with pytest.raises(UserError) as error:
            select(evaluated({1: [0.5]}), rule)
        message = "needs evaluations of split val, but run mt-0 has only test; choose another rule"
        assert f"rule {rule.expression} {message}" in str(error.value)


def test_a_choice_where_the_test_cases_were_not_evaluated_is_an_error():
    steps = evaluated({1: [0.5]}, val={1: [0.1], 2: [0.9]})
    with pytest.raises(UserError, match="chose step 2 of run mt-0, where the test cases were not"):
        select(steps, Best(split="val"))


def test_no_runs_give_no_choices():
    chosen = select(evaluated({1: [0.5]}).iloc[:0], Best())
    assert chosen.empty
    assert choose(toy.cases("mt-0", {1: [0.5]}).iloc[:0], Corrected()).empty
    assert {"run", "predictor", "step", "evaluations", "dsc"} <= set(chosen)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_registered_by_its_name_and_explains_itself(name):
    rule = RULES[name]()
    assert rule.name == name
    assert rule.meaning
    assert set(rule.sees) <= {"train", "val", "test"}
    assert parse_rule(rule.expression) == rule
    assert all(type(f.default) in (str, int, float) for f in fields(rule))


def test_the_oracle_says_that_it_is_one():
    assert "so it is an upper bound" in Best().meaning
    assert Best().optimistic
    for rule in (Last(), LastK(), Best(split="val"), Val(), Corrected()):
        assert "so it is an upper bound" not in rule.meaning
        assert not rule.optimistic


def test_what_is_left_out_of_consideration_is_said():
    for name in RULES:
        said = parse_rule(f"{name}(every=200,from=800)").meaning
        assert "at multiples of 200 steps from step 800 on" in said
        assert "multiples" not in parse_rule(name).meaning
    assert "of equal ones the earlier" in Val(tie="earlier").meaning
    assert "predictor (of main and ema) of each run" in Best(predictors="main+ema").meaning
    assert "predictor (of all) of each run" in Corrected(predictors="all").meaning


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("last", Last()),
        ("best", Best()),
        ("best()", Best()),
        (" best( split = val , metric=asd ) ", Best("val", metric="asd")),
        ("last-k(k=3)", LastK(3)),
        ("val", Val()),
        ("val(tie=earlier)", Val(tie="earlier")),
        ("best(every=200,from=800)", Best(every=200, start=800)),
        ("last(from=800)", Last(start=800)),
        ("best(predictors=main+teacher)", Best(predictors="main+teacher")),
        ("corrected(method=split,draws=50,seed=3)", Corrected("split", 50, 3)),
    ],
)
def test_an_expression_gives_a_rule(text, rule):
    assert parse_rule(text) == rule


def test_the_expression_names_only_what_differs_from_the_defaults():
    assert Best().expression == "best"
    assert Best(split="val").expression == "best(split=val)"
    assert LastK(7, every=200, start=800).expression == "last-k(k=7,every=200,from=800)"


RULE = st.one_of(
    st.builds(Last, every=st.integers(1), start=st.integers(0)),
    st.builds(LastK, k=st.integers(1)),
    st.builds(Best, split=st.sampled_from(("train", "val", "test")), start=st.integers(0)),
    st.builds(Val, tie=st.sampled_from(("later", "earlier")), every=st.integers(1)),
    st.builds(
        Corrected,
        method=st.sampled_from(("bootstrap", "split")),
        draws=st.integers(50),
        seed=st.integers(0),
        metric=st.sampled_from(("dsc", "asd", "hd95")),
        predictors=st.sampled_from(("each", "all", "main", "main+ema-2")),
    ),
)


@given(RULE)
def test_an_expression_gives_back_its_rule(rule):
    assert parse_rule(rule.expression) == rule


@pytest.mark.parametrize("name", RULES)
def test_a_signature_shows_every_parameter_as_it_is_written(name):
    assert parse_rule(f"{name}({signature(RULES[name])})") == RULES[name]()
    assert "start" not in signature(RULES[name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bset", r"unknown rule 'bset'. Did you mean 'best'\? Known: best, corrected, last, "),
        ("oracle", r"unknown rule 'oracle'.* Known: best, corrected, last, last-k, val"),
        ("best(spilt=val)", r"parameter of rule best 'spilt'. Did you mean 'split'\?"),
        ("last(k=3)", r"unknown parameter of rule last 'k'"),
        ("best(split=vla)", r"unknown split 'vla'. Did you mean 'val'\?"),
        ("best(metric=dice)", r"unknown metric 'dice'"),
        ("best(val)", r"expected key=value, not 'val'"),
        ("best(split=)", r"expected key=value, not 'split='"),
        ("best(split=val,split=test)", r"split is given twice"),
        ("best(start=3)", r"parameter of rule best 'start'"),
        ("best(every=0)", r"rule best: every is 0; expected 1 or more"),
        ("best(every=x)", r"every takes a value of type int, not 'x'"),
        ("best(from=-1)", r"rule best: from is -1; expected 0 or more"),
        ("best(tie=both)", r"unknown tie 'both'. Known: earlier, later"),
        ("best(predictors=main+)", r"predictors is 'main\+'; expected each, all, or names"),
        ("best(predictors=a+a)", r"predictors is 'a\+a'; expected each, all, or names"),
        ("last-k(k=0)", r"rule last-k: k is 0; expected 1 or more"),
        ("val(split=test)", r"unknown parameter of rule val 'split'"),
        ("corrected(draws=10)", r"rule corrected: draws is 10; expected 50 or more"),
        ("corrected(seed=-1)", r"rule corrected: seed is -1; expected 0 or more"),
        ("corrected(method=boot)", r"unknown method 'boot'. Did you mean 'bootstrap'\?"),
        ("best(split=val", r"expected name or name\(key=value,...\)"),
        ("", r"expected name or name"),
    ],
)
def test_an_expression_that_is_wrong_says_how(text, message):
    with pytest.raises(UserError, match=message):
        parse_rule(text)
