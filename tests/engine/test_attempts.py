"""What is tried again, what is given up, and what is left alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from benchmark import checkpoint, worker
from benchmark.attempts import CLAIM, DONE, ERROR, IO, OUT_OF_MEMORY, STOPPED
from benchmark.executors.base import Ending, Resources, settle
from benchmark.executors.local import memory_kills, slots
from benchmark.scheduler import execute
from benchmark.view import Silent
from benchmark.worker import fatal_attempts, work
from results.claims import Claim
from tests.engine.conftest import Toy
from tests.engine.toy import announced, plan

PLUGIN = str(Path(__file__).with_name("plugin_methods.py"))


def die(store, run: str, times: int) -> list:
    """Attempts that are killed; what the executor makes of each."""
    events = []
    for started in range(1, times + 1):
        claim = Claim.take(store.work(run), CLAIM, facts={"step": 0})
        claim._over.set()
        claim._thread.join()
        events.append(settle(run, -9, store, started=started, attempts=3, pid=os.getpid()))
    return events


def test_a_run_that_only_dies_is_recorded_as_failed(toy: Toy, tmp_path: Path) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    events = die(store, run, 3)
    assert events[:2] == [None, None]
    assert events[2].ending is Ending.DONE
    record = store.record(run)
    assert record["state"] == "failed"
    assert record["error"] == (
        "given up after 3 attempts; the last: its process was ended by signal 9 (SIGKILL)"
    )
    assert record["parameters"] == -1
    assert store.read("cases").empty
    assert not store.work(run).exists()
    store.discard_failed(run)
    assert not store.is_done(run)


def test_a_death_after_a_further_checkpoint_does_not_count(toy: Toy, tmp_path: Path) -> None:
    import torch

    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    die(store, run, 2)
    assert len(fatal_attempts(store, run)) == 2
    checkpoint.save(store.work(run), 2, {"x": torch.ones(1)})
    assert fatal_attempts(store, run) == []


def test_out_of_memory_is_tried_again_and_then_told_as_such(toy: Toy, tmp_path: Path) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "devours,supervised", plugins=[PLUGIN])
    store = announced(made.jobs[0], tmp_path)[0]
    summary = execute(made.jobs, store, made.executor, Silent())
    (text,) = summary.failed.values()
    assert text.startswith("given up after 3 attempts; the last: out of memory on ")
    assert len(summary.finished) == 1


def test_a_bug_is_tried_once_and_never_recorded(toy: Toy, tmp_path: Path) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "crashes", plugins=[PLUGIN])
    store, run = announced(made.jobs[0], tmp_path)
    for _ in range(4):
        summary = execute(made.jobs, store, made.executor, Silent())
        assert summary.errors[run].startswith("KeyError")
    assert not store.is_done(run)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.EIO, "Input/output error", "x"), IO, "failed: Input/output error"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), IO, "no space for x"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), ERROR, "PermissionError"),
        (MemoryError(), OUT_OF_MEMORY, "out of memory on this machine"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OUT_OF_MEMORY, "machine"),
        (RuntimeError("shapes differ"), ERROR, "RuntimeError: shapes differ"),
    ],
)
def test_errors_are_told_apart(
    error: Exception, code: int, said: str, toy: Toy, tmp_path: Path, monkeypatch
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path, "supervised").jobs
    store, run = announced(job, tmp_path)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "run", fail)
    assert work(store, run, "cpu", 1) == code
    assert said in (store.work(run) / "error.txt").read_text()
    assert len(fatal_attempts(store, run)) == (code == OUT_OF_MEMORY)


def test_a_zombie_cannot_go_on_and_the_heir_finishes(toy: Toy, tmp_path: Path, monkeypatch) -> None:
    """Frozen at a checkpoint until its lease is over and another has finished the run."""
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    real, heirs = checkpoint.save, []

    def frozen(folder: Path, step: int, state: dict) -> Path:
        if step == 4 and not heirs:
            heirs.append(run)
            (holder,) = (p for p in folder.glob(f"{CLAIM}-000001"))
            text = holder.read_text().replace('"system": "', '"system": "elsewhere ')
            holder.write_text(text)
            os.utime(holder, (0, 0))
            assert work(store, run, "cpu", 1) == DONE
        return real(folder, step, state)

    monkeypatch.setattr(checkpoint, "save", frozen)
    assert work(store, run, "cpu", 1) == worker.BUSY
    assert store.state(run) == "finished"


def test_being_stopped_is_never_held_against_a_run(toy: Toy, tmp_path: Path) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    for _ in range(5):
        Claim.take(store.work(run), CLAIM, facts={"step": 0}).release("stopped")
        assert settle(run, STOPPED, store, started=1, attempts=3) is None
    assert fatal_attempts(store, run) == []
    assert work(store, run, "cpu", 1) == DONE


def test_runs_that_share_a_gpu_share_its_memory() -> None:
    made = slots(Resources(jobs=3, threads=None, gpus=("4", "7"), cores=8))
    assert [(s.gpu, s.share) for s in made] == [("4", 0.5), ("7", 1.0), ("4", 0.5)]


def test_the_system_tells_how_often_memory_ran_out(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 7\noom_kill 3\n")
    assert memory_kills(tmp_path / "vmstat") == 3
    assert memory_kills(tmp_path / "missing") == 0
