"""On a real Ray, started for each test on loopback in a namespace of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.executors.base import Resources
from benchmark.executors.ray import Ray
from results.errors import UserError
from tests.cluster.namespace import inside, missing_ray

REASON = missing_ray()
real = pytest.mark.skipif(bool(REASON), reason=REASON or "-")


@real
@pytest.mark.slow
def test_the_same_grid_has_the_same_bytes_on_ray(tmp_path: Path) -> None:
    found = inside("tests.cluster.ray_scenarios", "grid", tmp_path, timeout_s=280)
    for executor, got in found.items():
        assert got["code"] == 0, executor
        assert got["attempts"] == [1] * 4, executor
    assert found["ray"]["digests"] == found["inline"]["digests"]


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_no_cluster_is_ever_started(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = {"address": address}
    with pytest.raises(UserError, match="None is ever started for you"):
        Ray.make(Resources(None, None, (), 1, settings=settings))


def test_a_setting_that_ray_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'address'"):
        Ray.make(Resources(None, None, (), 1, settings={"adress": "x:1"}))
