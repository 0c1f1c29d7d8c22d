from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from protocols.policies import POLICIES
from protocols.rules import RULES, Best, Choice, Last, Rule, parse_rule, select
from protocols.trajectory import trajectory
from results.errors import UserError
from tests.protocols import toy

TCSEG = POLICIES["tcseg"]


def evaluated(test, val=None, run="mt-0", policy=TCSEG, **changes):
    rows = [toy.cases(run, test, **changes)]
    rows += [toy.cases(run, val, split="val")] if val else []
    return trajectory(pd.concat(rows), policy)


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


def test_best_on_val_is_reported_on_test():
    steps = evaluated({1: [0.9], 2: [0.3]}, val={1: [0.1], 2: [0.2]})
    chosen = select(steps, Best(split="val"))
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


@pytest.mark.parametrize("rule", [*(r() for r in RULES.values()), Best(split="val")], ids=str)
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
    steps = [select(trajectory(r, TCSEG), rule)["step"].tolist() for r in (rows, spoilt)]
    assert steps[0] == steps[1]


def test_a_rule_gets_only_rows_of_the_splits_it_declares():
    @dataclass(frozen=True)
    class Spy(Rule):
        name: ClassVar[str] = "spy"
        seen: ClassVar[list] = []
        sees = ("val",)
        meaning = ""

        def choose(self, steps, seen):
            self.seen.append((list(steps), seen["split"].tolist(), seen["step"].tolist()))
            return Choice((1,), 1)

    select(evaluated({1: [0.5], 2: [0.6], 3: [0.1]}, val={1: [0.5], 3: [0.2]}), Spy())
    assert Spy.seen == [([1, 2, 3], ["val", "val"], [1, 3])]


def test_a_rule_may_average_several_steps():
    @dataclass(frozen=True)
    class LastTwo(Rule):
        name: ClassVar[str] = "last-two"
        sees = ()
        meaning = ""

        def choose(self, steps, seen):
            return Choice(tuple(int(s) for s in steps[-2:]), 1)

    chosen = select(evaluated({1: [0.0], 2: [0.4], 3: [0.6]}), LastTwo())
    assert chosen["dsc"].item() == pytest.approx(0.5)
    assert (chosen["step"].item(), chosen["averaged"].item()) == (3, 2)


def test_a_rule_that_needs_a_split_which_a_run_lacks_says_which():
    with pytest.raises(UserError, match=r"best\(split=val\) needs evaluations of split val, but "):
        select(evaluated({1: [0.5]}), Best(split="val"))


def test_a_choice_where_the_test_cases_were_not_evaluated_is_an_error():
    steps = evaluated({1: [0.5]}, val={1: [0.1], 2: [0.9]})
    with pytest.raises(UserError, match="chose step 2 of run mt-0, where the test cases were not"):
        select(steps, Best(split="val"))


def test_no_runs_give_no_choices():
    chosen = select(evaluated({1: [0.5]}).iloc[:0], Best())
    assert chosen.empty
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
    assert "upper bound" in Best().meaning
    assert "upper bound" not in Best(split="val").meaning


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("last", Last()),
        ("best", Best()),
        ("best()", Best()),
        (" best( split = val , metric=asd ) ", Best("val", "asd")),
    ],
)
def test_an_expression_gives_a_rule(text, rule):
    assert parse_rule(text) == rule


def test_the_expression_names_only_what_differs_from_the_defaults():
    assert Best().expression == "best"
    assert Best(split="val").expression == "best(split=val)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bset", r"unknown rule 'bset'. Did you mean 'best'\? Known: best, last"),
        ("oracle", r"unknown rule 'oracle'. Known: best, last"),
        ("best(spilt=val)", r"parameter of rule best 'spilt'. Did you mean 'split'\?"),
        ("last(k=3)", r"unknown parameter of rule last 'k'"),
        ("best(split=vla)", r"unknown split 'vla'. Did you mean 'val'\?"),
        ("best(metric=dice)", r"unknown metric 'dice'"),
        ("best(val)", r"expected key=value, not 'val'"),
        ("best(split=)", r"expected key=value, not 'split='"),
        ("best(split=val,split=test)", r"split is given twice"),
        ("best(split=val", r"expected name or name\(key=value,...\)"),
        ("", r"expected name or name"),
    ],
)
def test_an_expression_that_is_wrong_says_how(text, message):
    with pytest.raises(UserError, match=message):
        parse_rule(text)
