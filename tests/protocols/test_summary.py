import json

import numpy as np
import pandas as pd
import pytest

from protocols.policies import POLICIES
from protocols.rules import Best, Last
from protocols.table import outcomes, planned_runs, summarise
from protocols.trajectory import trajectory
from results.errors import UserError
from tests.protocols import toy

DSC = {0: (0.6, 0.9, 0.8), 1: (0.5, 0.6, 0.7), 2: (0.1, 0.95, 0.75)}
"""By seed: mean DSC at 1000, 2000 and 3000 steps."""


def facts(scores=DSC, *, tag="0", content=None, **changes):
    """Records and trajectory of finished runs of one method."""
    records, rows = [], []
    for seed, means in scores.items():
        spec = toy.spec(seed=seed, **(content or {}))
        run = toy.run_id(spec["method"]["name"], seed, spec["dataset"]["name"], tag)
        records.append(toy.record(run, spec, **changes))
        steps = zip(toy.STEPS, means, strict=True)
        rows.append(toy.cases(run, {step: (mean - 0.05, mean + 0.05) for step, mean in steps}))
    steps = trajectory(pd.concat(rows), POLICIES["tcseg"])
    return pd.DataFrame(records), steps


def begun(*, decay=0.99, seed=0, **changes):
    """A run that has no record yet."""
    run = toy.run_id(seed=seed)
    return planned_runs({run: toy.planned(run, toy.spec(seed=seed, decay=decay), **changes)})


def together(*pairs):
    runs, steps = zip(*pairs, strict=True)
    keys = {"run": object, "predictor": object, "split": object}
    return pd.concat(runs, ignore_index=True), pd.concat([s.astype(keys) for s in steps])


def test_a_row_has_the_statistics_of_what_the_rule_chose():
    row = summarise(*facts(), Last()).iloc[0]
    assert row["dsc_median"] == pytest.approx(0.75)
    assert row["dsc_best_run"] == pytest.approx(0.8)
    assert row["asd_best_run"] == pytest.approx(2.0)
    assert row["asd_maximum"] == pytest.approx(3.0)
    assert row["dsc_mean"] == pytest.approx(0.75)
    assert row["dsc_std"] == pytest.approx(0.05)
    assert row["hd95_median"] == pytest.approx(7.5)
    assert (row["finished"], row["started"], row["counted"]) == (3, 3, 3)
    assert row["dsc_se"] == pytest.approx(0.05 / np.sqrt(3))
    assert row["dsc_iqm"] == pytest.approx(0.75)
    assert (row["dsc_median_low"], row["dsc_median_high"]) == pytest.approx((0.7, 0.8))
    assert (row["median_coverage"], row["median_seed"], row["best_seed"]) == (0.75, "2", "0")
    assert (row["rule"], row["selected_on"], row["evaluations"]) == ("last", "nothing", 1)
    assert (row["cases"], row["empty"], row["unit"]) == (2, 0, "mm")


def test_best_and_last_of_one_store_are_two_labelled_rows_with_other_numbers():
    last, best = (summarise(*facts(), rule).iloc[0] for rule in (Last(), Best()))
    assert best["dsc_median"] == pytest.approx(0.9)
    assert last["dsc_median"] == pytest.approx(0.75)
    assert (best["rule"], best["selected_on"], best["evaluations"]) == ("best", "test", 3)


def test_the_gap_is_the_median_over_runs_of_each_runs_own_gain():
    row = summarise(*facts(), Best()).iloc[0]
    assert row["dsc_gap"] == pytest.approx(np.median([0.1, 0.0, 0.2]))
    assert row["asd_gap"] == pytest.approx(np.median([-1.0, 0.0, -2.0]))
    assert np.isnan(summarise(*facts(), Last()).iloc[0]["dsc_gap"])


def test_metric_names_survive_the_way_from_store_to_table():
    runs, _ = facts()
    rows = pd.concat([toy.cases(run, {1000: (0.5, 0.5)}) for run in runs["run"]])
    rows = rows.assign(dsc=0.25, asd=3.0, hd95=7.0)
    row = summarise(runs, trajectory(rows, POLICIES["tcseg"]), Last()).iloc[0]
    for metric, value in (("dsc", 0.25), ("asd", 3.0), ("hd95", 7.0)):
        for name in ("median", "best_run", "maximum", "minimum", "mean"):
            assert row[f"{metric}_{name}"] == value
        assert row[f"{metric}_std"] == 0


def test_failed_and_unfinished_runs_stay_in_the_count_and_give_no_number():
    runs, steps = facts()
    failed_runs, failed_steps = facts({3: (0.99, 0.99, 0.99)}, state="failed")
    runs, steps = together((runs, steps), (failed_runs, failed_steps))
    row = summarise(pd.concat([runs, begun(seed=9)]), steps, Last()).iloc[0]
    assert (row["finished"], row["failed"], row["started"]) == (3, 1, 5)
    assert row["counted"] == 4
    assert row["dsc_best_run"] == pytest.approx(0.8)


def test_failed_runs_stay_in_the_denominator_and_unfinished_ones_do_not_count():
    runs, steps = together(facts(), facts({3: (0.9, 0.9, 0.9)}, state="failed"))
    row = summarise(pd.concat([runs, begun(seed=9)]), steps, Last()).iloc[0]
    # Of 0.8, 0.75, 0.7 and a failed run.
    assert row["dsc_median"] == pytest.approx(0.725)
    assert row["asd_median"] == pytest.approx(2.75)
    assert (row["dsc_median_run"], row["median_seed"]) == (pytest.approx(0.7), "1")
    assert (row["dsc_minimum"], row["asd_maximum"]) == (-np.inf, np.inf)
    assert (row["dsc_median_low"], row["dsc_median_high"]) == (-np.inf, pytest.approx(0.8))
    assert row["median_coverage"] == 1 - 2 / 2**4
    assert row[["dsc_mean", "dsc_std", "dsc_se", "dsc_mean_low", "dsc_iqm"]].isna().all()
    assert row["best_seed"] == "0"


def test_a_median_of_which_half_failed_has_failed_and_ranks_below_all_numbers():
    lost = facts({0: (0.9, 0.9, 0.9), 1: (0.9, 0.9, 0.9)}, state="failed", tag="1",
                 content={"method": "dtc"})  # fmt: skip
    alive = facts({2: (0.99, 0.99, 0.99)}, tag="2", content={"method": "dtc"})
    table = summarise(*together(facts(), lost, alive), Last())
    assert table["label"].tolist() == ["mt", "dtc"]
    row = table.iloc[1]
    assert (row["dsc_median"], row["hd95_median"]) == (-np.inf, np.inf)
    assert (row["median_seed"], row["best_seed"]) == ("failed", "2")


def test_a_group_without_any_finished_run_has_a_row_without_numbers():
    runs, steps = facts({0: (0.5, 0.5, 0.5)}, state="failed")
    row = summarise(runs, steps, Best()).iloc[0]
    assert (row["finished"], row["started"], row["evaluations"]) == (0, 1, 0)
    assert (row["dsc_median"], row["dsc_best_run"]) == (-np.inf, -np.inf)
    assert np.isnan(row["dsc_mean"])


def test_planned_runs_alone_are_shown_as_begun():
    changed = {"changed": '{"decay":0.5}', "recipe": "authors", "profile": "mini+width=4"}
    _, steps = facts()
    table = summarise(begun(decay=0.5, **changed), steps.iloc[:0], Last())
    assert table[["finished", "started", "counted"]].values.tolist() == [[0, 1, 0]]
    assert table[["dsc_median", "dsc_minimum", "dsc_median_low"]].isna().all(axis=None)
    assert table["label"].item() == "mt (decay=0.5, recipe authors)"
    assert table["setting"].item() == "la, 8 labelled / 72 unlabelled, profile mini+width=4"
    assert (table["unit"].item(), table["fidelity"].item()) == ("mm", "paper")


def test_no_planned_run_is_a_table_without_rows():
    assert list(planned_runs({}).columns) == list(toy.record("x"))
    assert planned_runs({}).empty


def test_unfinished_runs_count_only_when_asked_and_are_marked():
    runs, steps = facts()
    rows = toy.cases(toy.run_id(seed=9), {1000: (0.9, 1.0)})
    more = trajectory(rows, POLICIES["tcseg"])
    runs, steps = together((runs, steps), (begun(seed=9), more))
    without, partial = (summarise(runs, steps, Last(), p).iloc[0] for p in (False, True))
    assert (without["unfinished"], without["dsc_best_run"]) == (0, pytest.approx(0.8))
    assert (partial["unfinished"], partial["dsc_best_run"]) == (1, pytest.approx(0.95))
    assert partial["finished"] == 3


@pytest.mark.parametrize(
    ("content", "changes"),
    [
        ({"fingerprint": "e" * 64}, {}),
        ({"fingerprint": "e" * 64}, {"dataset": "la (partial: 20 cases)"}),
        ({"profile": {"name": "paper"}}, {}),
        ({"labelled": 16}, {}),
        ({"recipe": {"name": "authors"}}, {}),
        ({"engine": 2}, {}),
        ({"version": 2}, {}),
        ({"decay": 0.5}, {}),
        ({"decay": 0.5}, {"changed": '{"decay":0.5}'}),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_never_share_a_row(content, changes):
    runs, steps = together(
        facts(), facts({0: (0.1, 0.1, 0.1)}, tag="1", content=content, **changes)
    )
    table = summarise(runs, steps, Last())
    assert sorted(table["started"]) == [1, 3]
    assert not table.duplicated(["setting", "label", "predictor"]).any()


def test_labels_carry_what_differs_from_the_default():
    runs, steps = facts(content={"decay": 0.5}, changed='{"decay":0.5}', recipe="authors")
    assert summarise(runs, steps, Last())["label"].item() == "mt (decay=0.5, recipe authors)"


def test_each_predictor_has_a_row_main_first():
    runs, _ = facts()
    runs = runs.assign(predictors="main,a-teacher")
    rows = [
        toy.cases(run, {1000: (value,)}, predictor=predictor)
        for run in runs["run"]
        for predictor, value in (("main", 0.5), ("a-teacher", 0.6))
    ]
    table = summarise(runs, trajectory(pd.concat(rows), POLICIES["tcseg"]), Last())
    assert table["predictor"].tolist() == ["main", "a-teacher"]
    assert table["finished"].tolist() == [3, 3]


def test_the_order_of_runs_rows_and_columns_changes_nothing():
    other = {"method": "dtc"}
    runs, steps = together(facts(), facts({0: (0.1, 0.2, 0.3), 1: (0.2, 0.2, 0.2)}, content=other))
    expected = summarise(runs, steps, Best())
    for seed in range(4):
        others = (
            frame.sample(frac=1, random_state=seed).sample(frac=1, axis=1, random_state=seed)
            for frame in (runs, steps)
        )
        found = summarise(*others, Best())
        pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_empty_masks_at_the_reported_checkpoints_are_counted():
    runs, _ = facts({0: DSC[0]})
    rows = toy.cases(runs["run"].item(), {1000: (0.5, 0.5), 2000: (0.5, 0.5)}, empty=[(2000, 0)])
    steps = trajectory(rows, POLICIES["tcseg"])
    assert summarise(runs, steps, Last())["empty"].item() == 1
    assert summarise(runs, steps, Best())["empty"].item() == 0


def test_runs_that_were_continued_elsewhere_are_counted():
    runs, steps = facts(resumed_elsewhere=True)
    assert summarise(runs, steps, Last())["resumed_elsewhere"].item() == 3


def test_outcomes_hold_each_run_with_what_last_would_have_given():
    found = outcomes(*facts(), Best())
    assert found["seed"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found["dsc"], [0.9, 0.7, 0.95])
    np.testing.assert_allclose(found["dsc_last"], [0.8, 0.7, 0.75])


def test_a_finished_run_without_evaluations_is_an_error():
    runs, steps = facts()
    with pytest.raises(
        UserError, match=f"run {toy.run_id(seed=1)} finished without any evaluation"
    ):
        summarise(runs, steps[steps["run"] != toy.run_id(seed=1)], Last())


def test_a_record_without_a_readable_spec_is_named():
    runs, steps = facts()
    for spec in ("{", "[1]", ""):
        with pytest.raises(UserError, match="holds no readable spec"):
            summarise(runs.assign(spec=spec), steps, Last())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "other"}, "it is of run other"),
        ({"spec": "{"}, "Expecting"),
        ({"spec": "[]"}, "not a JSON object"),
        ({"labelled": "8"}, r"runs\.labelled: expected int64"),
        ({"method": None}, r"runs\.method"),
        ({"more": 1}, "not known: more"),
    ],
)
def test_a_planned_run_that_is_no_row_of_runs_is_named(change, message):
    row = toy.planned("x") | change
    with pytest.raises(UserError, match=rf"work/x/spec\.json cannot be understood \(.*{message}"):
        planned_runs({"x": row})
    with pytest.raises(UserError, match="missing: unit"):
        planned_runs({"x": {k: v for k, v in toy.planned("x").items() if k != "unit"}})


def test_a_planned_run_belongs_to_the_row_of_its_records_whatever_the_order_of_keys():
    runs, steps = facts()
    spec = dict(reversed(toy.spec(seed=9).items()))
    more = planned_runs({"x": toy.planned("x", spec)})
    assert summarise(pd.concat([runs, more]), steps, Last())["started"].tolist() == [4]


# Headings


DATASET = {"name": "la", "fingerprint": "f" * 64}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"engine": 2}, "engine"),
        ({"dataset": {**DATASET, "augmentation": "none"}}, "dataset.augmentation"),
        ({"dataset": {**DATASET, "geometry": {"patch": [9, 9, 9]}}}, "dataset.geometry.patch"),
        ({"fingerprint": "e" * 64}, "dataset.fingerprint"),
        ({"profile": {"name": "mini", "steps": 7}}, "profile.steps"),
    ],
)
def test_runs_that_do_not_compare_stand_under_two_headings_that_say_what_differs(content, name):
    if "dataset" in content:
        runs, steps = facts({0: (0.1, 0.1, 0.1)}, tag="1")
        spec = toy.spec() | content
        runs = runs.assign(spec=json.dumps(spec))
    else:
        runs, steps = facts({0: (0.1, 0.1, 0.1)}, tag="1", content=content)
    table = summarise(*together(facts(), (runs, steps)), Last())
    plain = "la, 8 labelled / 72 unlabelled, profile mini"
    expected = [f"{plain} [{name} differs, #{key[:8]}]" for key in table["section"]]
    assert table["setting"].tolist() == expected
    assert table["section"].nunique() == 2
    assert table["label"].tolist() == ["mt", "mt"]


@pytest.mark.parametrize(
    "content",
    [
        {"method": "dtc"},
        {"version": 2},
        {"decay": 0.5},
        {"recipe": {"name": "authors", "steps": 6000}},
        {"predictors": ["main", "teacher"]},
    ],
)
def test_methods_recipes_and_predictors_stand_under_one_heading(content):
    other = facts({0: (0.1, 0.1, 0.1)}, tag="1", content=content)
    table = summarise(*together(facts(), other), Last())
    assert table["setting"].unique().tolist() == ["la, 8 labelled / 72 unlabelled, profile mini"]
    assert len(table) == 2


def test_the_fewest_and_the_most_evaluations_of_a_row_are_kept():
    runs, steps = facts()
    first = (steps["run"] == toy.run_id(seed=0)) & (steps["step"] == 3000)
    row = summarise(runs, steps[~first], Best()).iloc[0]
    assert (row["fewest_evaluations"], row["evaluations"]) == (2, 3)


def test_measured_cases_that_an_empty_mask_would_beat_are_counted_where_they_are_reported():
    runs, _ = facts({0: DSC[0]})
    rows = toy.cases(runs["run"].item(), {1000: (0.9, 0.8), 2000: (0.5, 0.5)})
    rows["hd95"] = [101.0, 102.0, 100.0, 300.0]
    counts = {
        name: [
            summarise(runs, trajectory(rows, policy), rule)["beyond"].item()
            for rule in (Best(), Last())
        ]
        for name, policy in POLICIES.items()
    }
    assert counts == {"tcseg": [2, 1], "worst": [0, 1], "exclude": [0, 0], "zero": [2, 2]}
