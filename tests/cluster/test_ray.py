"""On a real Ray, started for each test on loopback in a namespace of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmark.attempts import DONE
from benchmark.executors.base import Resources
from benchmark.executors.ray import Ray
from results.errors import UserError
from results.store import Store
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


class EndedAtOnce:
    """A Ray whose tasks end at once, or never; it knows what was cancelled."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, *, ending: bool) -> None:
        self.ending, self.started, self.cancelled = ending, 0, list[object]()

    def remote(self, **_: object) -> Callable[[object], object]:
        return lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self.start))

    def start(self, *_: object) -> int:
        self.started += 1
        return self.started

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return (references, []) if self.ending else ([], references)

    def get(self, reference: int) -> int:
        return DONE

    def cancel(self, reference: int, *, force: bool) -> None:
        self.cancelled.append(reference)

    def init(self, **_: object) -> None: ...

    def shutdown(self) -> None: ...

    def nodes(self) -> list[dict[str, object]]:
        return [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": True}]


def run_two(ray: EndedAtOnce, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.executors.ray._ray", lambda: ray)
    made = Ray.make(Resources(None, None, (), 1, settings={"address": "x:1"}))
    made.execute(["one", "two"], Store(store), lambda _: None, lambda: None)


def test_a_task_that_has_ended_is_not_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's core may abort the driver over it: "Tried to complete task that was not pending".
    ray = EndedAtOnce(ending=True)
    run_two(ray, tmp_path, monkeypatch)
    assert ray.started == 2
    assert ray.cancelled == []


def test_the_task_of_a_silent_node_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = EndedAtOnce(ending=False)
    monkeypatch.setattr("benchmark.executors.ray._silent", lambda task, store: "a")
    monkeypatch.setattr("benchmark.executors.ray._LOOK_EVERY_S", 0.0)
    run_two(ray, tmp_path, monkeypatch)
    assert ray.cancelled == list(range(1, ray.started + 1))
