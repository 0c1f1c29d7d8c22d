"""What is tried again, what is given up, and what is left alone."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import torch

from benchmark import checkpoint, scheduler, worker
from benchmark.attempts import CLAIM, DONE, ERROR, ERROR_FILE, IO, OUT_OF_MEMORY, STOPPED
from benchmark.executors.base import Ending, Event, Resources, Starts, let_go, settle
from benchmark.executors.local import memory_kills, slots
from benchmark.scheduler import execute
from benchmark.view import Silent
from benchmark.worker import fatal_attempts, work
from results.claims import Claim, newest
from results.errors import UserError
from tests.engine.conftest import Toy
from tests.engine.toy import announced, plan

PLUGIN = str(Path(__file__).with_name("plugin_methods.py"))


def die(store, run: str, times: int) -> list:
    """Attempts that are killed; what the executor makes of each."""
    events, starts = [], Starts()
    for _ in range(times):
        starts.begin(run, store)
        claim = Claim.take(store.work(run), CLAIM, facts={"step": 0})
        claim._over.set()
        claim._thread.join()
        events.append(settle(run, -9, store, starts=starts, attempts=3, pid=os.getpid()))
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
        assert settle(run, STOPPED, store, starts=Starts(1), attempts=3) is None
    assert fatal_attempts(store, run) == []
    assert work(store, run, "cpu", 1) == DONE


def test_a_run_that_gets_further_is_started_again_however_often_it_is_cut(
    toy: Toy, tmp_path: Path
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    starts, events = Starts(), []
    for step in range(1, 6):
        starts.begin(run, store)
        checkpoint.save(store.work(run), step, {"x": torch.ones(1)})
        events.append(settle(run, STOPPED, store, starts=starts, attempts=3))
    assert events == [None] * 5
    for _ in range(3):
        starts.begin(run, store)
        events.append(settle(run, STOPPED, store, starts=starts, attempts=3, how="lost its node"))
    assert events[5:7] == [None, None]
    assert events[7].ending is Ending.ERROR
    assert events[7].message == "lost its node"


def test_what_an_earlier_attempt_said_is_not_told_of_a_later_one(toy: Toy, tmp_path: Path) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    store.write_work(run, ERROR_FILE, "no space left on device")
    starts = Starts()
    starts.begin(run, store)
    event = settle(run, 1, store, starts=starts, attempts=3)
    assert event is not None
    assert event.message.startswith("its process ended with exit code 1")


def test_a_message_that_cannot_be_removed_does_not_end_the_command(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    store = announced(plan(toy.folder, toy.root, tmp_path).jobs[0], tmp_path)[0]
    monkeypatch.setattr(Path, "unlink", failing)
    starts = Starts()
    starts.begin("run", store)
    assert starts.number == 1


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left"), UserError("the store is full"), ValueError("damaged")],
)
def test_a_death_that_cannot_be_recorded_does_not_end_the_command(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    store, run = announced(plan(toy.folder, toy.root, tmp_path).jobs[0], tmp_path)
    monkeypatch.setattr("benchmark.executors.base.give_up", failing)
    event = settle(run, -9, store, starts=Starts(3), attempts=3)
    assert event is not None
    assert event.ending is Ending.ERROR
    assert str(error) in event.message
    assert run in store.unfinished()


def test_a_record_that_only_a_listing_shows_is_seen(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    assert work(store, run, "cpu", 1) == DONE
    monkeypatch.setattr(type(store), "is_done", lambda store, run: False)
    event = settle(run, DONE, store, starts=Starts(1), attempts=3)
    assert event is not None
    assert event.ending is Ending.DONE


@pytest.mark.parametrize(
    ("code", "ending"), [(STOPPED, "lost"), (OUT_OF_MEMORY, "out-of-memory"), (DONE, "")]
)
def test_the_claim_of_a_worker_that_was_cut_is_ended_for_it(
    code: int, ending: str, toy: Toy, tmp_path: Path
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    assert let_go(run, code, store, lambda holder: True, "why") == 0
    with Claim.take(store.work(run), CLAIM, facts={"job": "a"}) as claim:
        assert let_go(run, code, store, lambda holder: False, "why") == 0
        assert newest(store.work(run), CLAIM).ending == ""
        own = claim.holder.facts["job"].__eq__
        assert let_go(run, code, store, lambda h: own(h.facts["job"]), "why") == os.getpid()
        assert newest(store.work(run), CLAIM).ending == ending


def test_a_share_of_a_device_that_is_not_there_is_an_error_that_is_told(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)

    def missing(share: float, device: str) -> None:
        raise RuntimeError(f"invalid device {device}")

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", missing)
    assert work(store, run, "cuda:7", 1, share=0.5) == ERROR
    assert "invalid device cuda:7" in (store.work(run) / ERROR_FILE).read_text()
    assert newest(store.work(run), CLAIM).ending == "error"


def test_runs_of_a_machine_that_died_are_taken_over_together(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = announced(plan(toy.folder, toy.root, tmp_path).jobs[0], tmp_path)[0]
    began = time.monotonic()
    leases = {"first": 0.2, "second": 0.7, "stays": 60.0}

    def busy(run: str, store: object, now: float) -> Event | None:
        held = time.monotonic() < began + leases[run]
        return Event(run, Ending.BUSY) if held else None

    monkeypatch.setattr(scheduler, "busy", busy)
    monkeypatch.setattr(scheduler, "BEAT_S", 2.0)
    elsewhere = list(leases)
    free = scheduler._let_go(elsewhere, store, lambda event: None, lambda: None)
    assert free == ["first", "second"]
    assert elsewhere == ["stays"]


def test_runs_that_share_a_gpu_share_its_memory() -> None:
    made = slots(Resources(jobs=3, threads=None, gpus=("4", "7"), cores=8))
    assert [(s.gpu, s.share) for s in made] == [("4", 0.5), ("7", 1.0), ("4", 0.5)]


def test_the_system_tells_how_often_memory_ran_out(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 7\noom_kill 3\n")
    assert memory_kills(tmp_path / "vmstat") == 3
    assert memory_kills(tmp_path / "missing") == 0
