import numpy as np
import pandas as pd
import pytest

from protocols.policies import POLICIES, score
from tests.protocols import toy

EMPTY = ("empty-prediction", "empty-reference", "empty-both")


def with_status(status):
    rows = toy.cases("mt-0", {1: [0.5, 0.9]})
    nothing = {"status": status, "dsc": np.nan, "asd": np.nan, "hd95": np.nan}
    return rows.assign(**{k: [v, rows[k].iloc[1]] for k, v in nothing.items()}, diagonal=150.0)


@pytest.mark.parametrize("status", EMPTY)
@pytest.mark.parametrize(
    ("policy", "numbers"),
    [
        ("tcseg", (0, 100, 100)),
        ("worst", (0, 150, 150)),
        ("exclude", (np.nan, np.nan, np.nan)),
        ("zero", (0, 0, 0)),
    ],
)
def test_a_policy_says_what_an_empty_mask_counts(policy, numbers, status):
    scored = score(with_status(status), POLICIES[policy])
    np.testing.assert_array_equal(scored.loc[0, ["dsc", "asd", "hd95"]].astype(float), numbers)
    assert scored["empty"].tolist() == [True, False]


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_touches_cases_that_were_measured(policy):
    rows = toy.cases("mt-0", {1: [0.5, 0.9], 2: [0.1, 0.2]}, empty=[(2, 1)])
    scored = score(rows, POLICIES[policy])
    pd.testing.assert_frame_equal(scored.iloc[:3][rows.columns], rows.iloc[:3])


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "zero"])
@pytest.mark.parametrize("metric", ["asd", "hd95"])
def test_a_measured_distance_that_an_empty_mask_would_beat_is_marked(policy, metric):
    """For `tcseg` beyond 100, whatever the unit; for `worst` never within the volume."""
    for distance in (0.0, 99.0, 100.0, 100.5, 150.0):
        rows = toy.cases("mt-0", {1: [0.5]}).assign(**{metric: distance})
        scored = score(rows, POLICIES[policy])
        assert scored["beyond"].tolist() == [policy == "tcseg" and distance > 100]
        empty = score(with_status("empty-prediction").iloc[:1], POLICIES[policy])
        assert (empty[metric].item() < distance) == scored["beyond"].item()
        assert not empty["dsc"].item() > 0


def test_no_empty_mask_is_marked_as_measured():
    for policy in POLICIES.values():
        assert not score(with_status("empty-both"), policy)["beyond"].iloc[0]


def test_a_constant_distance_says_that_it_can_be_exceeded():
    assert "where a measured distance exceeds 100" in POLICIES["tcseg"].meaning


def test_zero_rewards_failure_and_says_so():
    scored = score(with_status("empty-prediction"), POLICIES["zero"])
    assert (scored.loc[0, ["asd", "hd95"]].astype(float) == 0).all()
    assert POLICIES["zero"].flatters
    assert "rewards failure" in POLICIES["zero"].meaning


def test_leaving_failures_out_is_marked_as_flattering_too():
    assert {name for name, policy in POLICIES.items() if policy.flatters} == {"exclude", "zero"}
