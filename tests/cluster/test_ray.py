"""On a real Ray, started for each test on loopback in a namespace of its own."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from benchmark.attempts import CLAIM, DONE, ERROR, OUT_OF_MEMORY, STOPPED
from benchmark.cli import app
from benchmark.executors.base import Ending, Event, Resources
from benchmark.executors.ray import Ray, _end, _to_avoid
from results.claims import Claim
from results.errors import UserError
from results.store import Store
from tests.cluster.namespace import inside, missing_ray
from tests.engine.conftest import Toy
from tests.engine.toy import announced, plan

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


def test_without_a_cluster_that_answers_nothing_begins(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        settings = {"address": f"127.0.0.1:{port}"}
        assert Ray.make(Resources(None, None, (), 1, settings=settings)).unreachable() == ""
    words = "run -m mt --profile smoke --seeds 2 --executor ray --set"
    store = tmp_path / "store"
    given = [*words.split(), f"ray.address=127.0.0.1:{port}", "--store", str(store)]
    found = CliRunner().invoke(app, given)
    assert isinstance(found.exception, UserError)
    assert f"no Ray cluster answers at 127.0.0.1:{port}: " in str(found.exception)
    assert not store.exists()


@pytest.mark.parametrize("address", ["nowhere", "host:port", "ray://"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    pytest.importorskip("ray")
    told = Ray.make(Resources(None, None, (), 1, settings={"address": address})).unreachable()
    assert told.startswith(f"no Ray cluster answers at {address}: ")


def test_a_setting_that_ray_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'address'"):
        Ray.make(Resources(None, None, (), 1, settings={"adress": "x:1"}))


class _Lost(Exception):
    pass


class _Memory(_Lost):
    pass


class _Task(_Lost):
    pass


ray_errors = SimpleNamespace(RayError=_Lost, OutOfMemoryError=_Memory, RayTaskError=_Task)


class EndedAtOnce:
    """A Ray whose tasks end at once, or never; it knows what was cancelled."""

    exceptions = ray_errors

    def __init__(self, *, ending: bool, code: int = DONE) -> None:
        self.ending, self.code, self.started = ending, code, 0
        self.cancelled: list[object] = []

    def remote(self, **_: object) -> Callable[[object], object]:
        return lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self.start))

    def start(self, *_: object) -> int:
        self.started += 1
        return self.started

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return (references, []) if self.ending else ([], references)

    def get(self, reference: int) -> int:
        return self.code

    def cancel(self, reference: int, *, force: bool) -> None:
        self.cancelled.append(reference)

    def init(self, **_: object) -> None: ...

    def shutdown(self) -> None: ...

    def nodes(self) -> list[dict[str, object]]:
        return [node("a", CPU=1), node("b", CPU=1)]


def node(name: str, *, alive: bool = True, **resources: float) -> dict[str, object]:
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def run_two(ray: EndedAtOnce, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.executors.ray._ray", lambda: ray)
    made = Ray.make(Resources(None, None, (), 1, settings={"address": "x:1"}))
    made.execute(["one", "two"], Store.open(store, create=True), lambda _: None, lambda: None)


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
    monkeypatch.setattr("benchmark.executors.ray._silent", lambda task, store, now: "a")
    monkeypatch.setattr("benchmark.executors.ray._LOOK_EVERY_S", 0.0)
    run_two(ray, tmp_path, monkeypatch)
    assert ray.cancelled == list(range(1, ray.started + 1))


class Elsewhere(EndedAtOnce):
    """Its workers take the claim on another node and are killed there at once."""

    def __init__(self, store: Store) -> None:
        super().__init__(ending=True, code=-9)
        self.store = store

    def start(self, words: list[str], log: str, job: str) -> int:
        run = words[words.index("--run") + 1]
        claim = Claim.take(self.store.work(run), CLAIM, facts={"job": f"a/{job}", "step": 0})
        claim._over.set()
        claim._thread.join()
        return super().start()


def test_a_run_that_only_dies_on_other_nodes_is_started_again_at_once_and_then_failed(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    ray = Elsewhere(store)
    monkeypatch.setattr("benchmark.executors.ray._ray", lambda: ray)
    events: list[Event] = []
    made = Ray.make(Resources(None, None, (), 1, settings={"address": "x:1"}))
    made.execute([run], store, events.append, lambda: None)
    assert ray.started == 3
    assert [event.ending for event in events] == [None, Ending.DONE]
    assert store.record(run)["error"].startswith("given up after 3 attempts; the last: its process")


def test_how_a_task_ended_says_what_follows() -> None:
    def ended(error: Exception) -> tuple[int, str]:
        def get(reference: object) -> int:
            raise error

        return _end(SimpleNamespace(get=get, exceptions=ray_errors), SimpleNamespace(reference=1))

    assert ended(_Lost())[0] == STOPPED
    assert ended(_Memory())[0] == OUT_OF_MEMORY
    assert ended(_Task("no such folder")) == (
        *(ERROR, "the run could not be started on its node: no such folder"),
    )


def test_a_silent_node_is_avoided_while_another_could_take_the_run() -> None:
    head, one, two = node("head"), node("one", CPU=8, GPU=1), node("two", CPU=8, GPU=0.5)
    silent = {"one": time.monotonic()}

    def avoided(*nodes: dict[str, object], gpus: float = 0.5) -> set[str]:
        return _to_avoid(SimpleNamespace(nodes=lambda: nodes), silent, 4, gpus)

    assert avoided(head, one, two) == {"one"}
    assert avoided(head, one) == set()
    assert avoided(head, one, two, gpus=1) == set()
    assert avoided(head, one, node("two", alive=False, CPU=8, GPU=1)) == set()
    silent["one"] -= 3600
    assert avoided(head, one, two) == set()
