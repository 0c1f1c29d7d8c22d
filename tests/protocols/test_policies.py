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
def test_an_empty_prediction_never_counts_as_a_better_distance(policy):
    """Against any distance up to 100, and for `worst` up to the volume's diagonal."""
    worst = 150.0 if policy == "worst" else 100.0
    for distance in np.linspace(0, worst, 21):
        rows = with_status("empty-prediction").assign(asd=distance, hd95=distance)
        scored = score(rows, POLICIES[policy])
        assert not (scored.loc[0, ["asd", "hd95"]].astype(float) < distance).any()
        assert not scored.loc[0, "dsc"] > 0


def test_zero_rewards_failure_and_says_so():
    scored = score(with_status("empty-prediction"), POLICIES["zero"])
    assert (scored.loc[0, ["asd", "hd95"]].astype(float) == 0).all()
    assert POLICIES["zero"].flatters
    assert "rewards failure" in POLICIES["zero"].meaning


def test_leaving_failures_out_is_marked_as_flattering_too():
    assert {name for name, policy in POLICIES.items() if policy.flatters} == {"exclude", "zero"}
