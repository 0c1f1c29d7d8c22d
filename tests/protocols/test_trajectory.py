import numpy as np
import pandas as pd
import pytest

from protocols.policies import POLICIES, score
from protocols.trajectory import KEYS, joined, trajectory
from results.errors import UserError
from tests.protocols import toy

METRICS = ["dsc", "asd", "hd95"]


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return pd.concat(
        [
            toy.cases(
                run,
                {s: rng.random(7) for s in (100, 20, 3)},
                split=split,
                predictor=predictor,
                empty=[(20, 1), (20, 4), (3, 0)],
            )
            for run in ("mt-10", "mt-9", "dtc-1")
            for split in ("val", "test")
            for predictor in ("main", "teacher")
        ],
        ignore_index=True,
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_a_trajectory_is_the_plain_mean_over_cases(rows, policy):
    found = trajectory(rows, POLICIES[policy])
    keys = list(KEYS)
    groups = score(rows, POLICIES[policy]).groupby(keys)
    expected = groups[METRICS].mean().reset_index()
    pd.testing.assert_frame_equal(
        found[[*keys, *METRICS]], expected, check_dtype=False, check_categorical=False, rtol=1e-12
    )
    assert found["cases"].tolist() == groups.size().tolist()
    assert found["empty"].tolist() == groups["empty"].sum().tolist()
    assert found["beyond"].tolist() == groups["beyond"].sum().tolist()


def test_the_order_of_rows_and_the_kind_of_text_change_not_a_bit(rows):
    expected = trajectory(rows, POLICIES["tcseg"])
    for seed in range(5):
        shuffled = rows.sample(frac=1, random_state=seed)
        text = dict.fromkeys(("run", "predictor", "split", "case", "status"), "category")
        mixed = shuffled.astype(text)
        mixed["case"] = mixed["case"].cat.set_categories(
            [f"case{n}" for n in (6, 2, 5, 1, 0, 3, 4)]
        )
        for frame in (shuffled, mixed):
            pd.testing.assert_frame_equal(
                trajectory(frame, POLICIES["tcseg"]), expected, check_exact=True
            )


def test_a_case_that_occurs_twice_in_an_evaluation_is_an_error(rows):
    twice = pd.concat([rows, rows.iloc[[5]]])
    with pytest.raises(UserError, match="case case5 occurs twice in run mt-10 at step 100"):
        trajectory(twice, POLICIES["tcseg"])


def test_no_cases_give_an_empty_trajectory(rows):
    empty, full = trajectory(rows.iloc[:0], POLICIES["tcseg"]), trajectory(rows, POLICIES["tcseg"])
    assert empty.empty
    assert list(empty.columns) == list(full.columns)


def test_trajectories_of_parts_of_the_runs_join_to_that_of_all_bit_for_bit(rows):
    expected = trajectory(rows, POLICIES["tcseg"])
    parts = [trajectory(rows[rows["run"] == run], POLICIES["tcseg"]) for run in set(rows["run"])]
    nothing = trajectory(rows.iloc[:0], POLICIES["tcseg"])
    for order in ([*parts, nothing], [nothing, *parts[::-1]]):
        pd.testing.assert_frame_equal(joined(order), expected, check_exact=True)
    assert joined([nothing, nothing]).empty
