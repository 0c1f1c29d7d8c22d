import numpy as np
import pandas as pd
import pytest

from protocols.metrics import METRICS
from protocols.statistics import STATISTICS

NAMES = list(METRICS)


def runs(count, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {"run": [f"r{n}" for n in range(count)], **{m: rng.random(count) for m in NAMES}}
    )


PLAIN = {
    "median": lambda x: np.median(x, axis=0),
    "maximum": lambda x: np.max(x, axis=0),
    "minimum": lambda x: np.min(x, axis=0),
    "mean": lambda x: np.mean(x, axis=0),
    "std": lambda x: np.sqrt(((x - x.mean(0)) ** 2).sum(0) / (len(x) - 1)),
    "best_run": lambda x: x[np.argmax(x[:, 0])],
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_a_statistic_is_what_plain_numpy_says(name, count):
    frame = runs(count)
    expected = PLAIN[name](frame[NAMES].to_numpy())
    found = STATISTICS[name].compute(frame)
    assert list(found.index) == NAMES
    np.testing.assert_allclose(found.to_numpy(dtype=float), expected, rtol=1e-13)


@pytest.mark.parametrize("name", STATISTICS)
def test_the_order_of_runs_and_columns_does_not_matter(name):
    frame = runs(7)
    other = frame.sample(frac=1, random_state=3)[["hd95", "run", "dsc", "asd"]]
    found, again = (STATISTICS[name].compute(f) for f in (frame, other))
    np.testing.assert_allclose(again[NAMES].astype(float), found.astype(float), rtol=1e-13)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_run_without_a_number_is_never_left_out_silently(name):
    frame = runs(5)
    frame.loc[2, NAMES] = np.nan
    assert STATISTICS[name].compute(frame).isna().all()


@pytest.mark.parametrize("name", STATISTICS)
def test_no_runs_give_no_number(name):
    assert STATISTICS[name].compute(runs(0)).isna().all()


def test_one_run_has_no_spread_and_the_statistic_says_so():
    assert STATISTICS["std"].compute(runs(1)).isna().all()
    assert "undefined for one run" in STATISTICS["std"].meaning
    others = [s.compute(runs(1)) for n, s in STATISTICS.items() if n != "std"]
    assert all((o == runs(1)[NAMES].iloc[0]).all() for o in others)


def test_the_best_run_is_a_real_run_and_the_maximum_is_not():
    frame = pd.DataFrame({"dsc": [0.9, 0.8], "asd": [3.0, 1.0], "hd95": [9.0, 4.0]})
    assert STATISTICS["best_run"].compute(frame).tolist() == [0.9, 3.0, 9.0]
    assert STATISTICS["minimum"].compute(frame).tolist() == [0.8, 1.0, 4.0]
