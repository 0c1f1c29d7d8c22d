"""What goes wrong is said, once, and takes nothing else along."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmark import checkpoint
from benchmark.attempts import BUSY, CLAIM, DONE, ERROR, IO, OUT_OF_MEMORY
from benchmark.executors.base import Ending, Event, Starts, settle
from benchmark.executors.local import Local, Slot
from benchmark.jobs import announce, read_job
from benchmark.plugins import from_file, source_of
from benchmark.scheduler import execute
from benchmark.view import Bars, Silent
from benchmark.worker import work
from results.claims import Claim
from results.errors import UserError
from results.store import Store
from tests.engine.conftest import Toy
from tests.engine.toy import announced, make_folder, plan

PLUGIN = str(Path(__file__).with_name("plugin_methods.py"))


def error_of(store: Store, run: str) -> str:
    return (store.work(run) / "error.txt").read_text()


def test_a_loss_that_becomes_nan_is_a_failed_run_at_that_step_and_the_others_go_on(
    toy: Toy, tmp_path: Path
) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "explodes,supervised", plugins=[PLUGIN])
    store = Store.open(tmp_path, create=True)
    summary = execute(made.jobs, store, made.executor, Silent())
    (failed,) = summary.failed
    assert failed.startswith("explodes")
    assert summary.failed[failed] == "loss term 'supervised' is not finite at step 5"
    assert len(summary.finished) == 1
    assert not summary.ok
    record = store.record(failed)
    assert (record["state"], record["steps"]) == ("failed", 8)
    assert set(store.read("cases", [failed])["step"]) == {4}
    history = store.read("history", [failed])
    assert list(history["step"]) == [0, 1, 2, 3, 4, 5]
    assert np.isnan(history["value"].iloc[-1])
    assert store.unfinished() == []


def test_a_failed_run_is_not_tried_again_unless_it_is_discarded(toy: Toy, tmp_path: Path) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "explodes", plugins=[PLUGIN])
    store = Store.open(tmp_path, create=True)
    first = execute(made.jobs, store, made.executor, Silent())
    path = store.path / "runs" / f"{next(iter(first.failed))}.json"
    before = path.stat().st_mtime_ns
    assert execute(made.jobs, store, made.executor, Silent()).failed == first.failed
    assert path.stat().st_mtime_ns == before
    store.discard_failed(next(iter(first.failed)))
    execute(made.jobs, store, made.executor, Silent())
    assert path.stat().st_mtime_ns != before


def test_a_prediction_that_is_nan_is_a_failed_run_not_an_empty_mask(
    toy: Toy, tmp_path: Path
) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "blind", plugins=[PLUGIN])
    store = Store.open(tmp_path, create=True)
    (text,) = execute(made.jobs, store, made.executor, Silent()).failed.values()
    assert "the prediction 'main' of case ball_" in text
    assert text.endswith("is not finite at step 4")
    assert store.read("cases").empty


def test_a_bug_in_a_method_is_an_error_with_a_place_and_no_record(
    toy: Toy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path, "crashes", plugins=[PLUGIN]).jobs
    store, run = announced(job, tmp_path)
    assert work(store, run, "cpu", 1, plugins=[PLUGIN]) == ERROR
    assert error_of(store, run).startswith("KeyError: 'a bug' (plugin_methods.py:")
    assert "Traceback" in capfd.readouterr().err
    assert store.unfinished() == [run]


def test_a_method_whose_networks_cannot_be_built_is_one_clear_message(
    toy: Toy, tmp_path: Path
) -> None:
    said = r"method unbuildable cannot be built with 4 filters and 3 levels: ValueError: num_chann"
    made = plan(toy.folder, toy.root, tmp_path, "unbuildable", plugins=[PLUGIN])
    with pytest.raises(UserError, match=said):
        _ = made.jobs


def test_out_of_memory_says_what_to_do(toy: Toy, tmp_path: Path) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path, "devours", plugins=[PLUGIN]).jobs
    store, run = announced(job, tmp_path)
    assert work(store, run, "cpu", 1, plugins=[PLUGIN]) == OUT_OF_MEMORY
    assert error_of(store, run).startswith("out of memory on cpu; run fewer at once (--jobs)")


def test_a_second_process_on_the_same_run_is_told_who_has_it(toy: Toy, tmp_path: Path) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    with Claim.take(store.work(run), CLAIM) as claim:
        assert work(store, run, "cpu", 1) == BUSY
        event = settle(run, BUSY, store, starts=Starts(1), attempts=3)
    assert event is not None
    assert event.ending is Ending.BUSY
    assert event.message.startswith(f"run {run} is being trained by {claim.holder}; if that is")
    assert not (store.work(run) / "error.txt").exists()
    assert work(store, run, "cpu", 1) == DONE


def test_data_that_changed_since_the_run_was_planned_stop_it(tmp_path: Path) -> None:
    from benchmark.data import source_for

    def nothing(done: int, total: int, what: str) -> None:
        pass

    folder, root = make_folder(tmp_path / "balls", cases=10), tmp_path / "data"
    source_for(str(folder)).prepare(folder, root, nothing)
    (job,) = plan(folder, root, tmp_path / "store").jobs
    store, run = announced(job, tmp_path / "store")
    shutil.rmtree(root)
    shutil.rmtree(folder)
    make_folder(folder, cases=11)
    source_for(str(folder)).prepare(folder, root, nothing)
    assert work(store, run, "cpu", 1) == ERROR
    assert "has changed since this run was planned" in error_of(store, run)


def test_a_full_disk_while_saving_leaves_the_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, {"x": torch.ones(2)})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 2, {"x": torch.zeros(2)})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-000000001.pt"]
    found = checkpoint.load_newest(tmp_path, torch.device("cpu"))
    assert found is not None
    assert found[0] == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory: you tried"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_for_want_of_memory_stays(
    error: Exception, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    for step in (1, 2):
        checkpoint.save(store.work(run), step, {"x": torch.ones(2)})

    def full(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", full)
    assert work(store, run, "cpu", 1) == OUT_OF_MEMORY
    assert checkpoint.newest_step(store.work(run)) == 2
    assert len(list(store.work(run).glob("checkpoint-*.pt"))) == 2


def test_a_full_disk_during_a_run_is_one_clear_message(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)

    def full(folder: Path, step: int, state: dict[str, object]) -> Path:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(checkpoint, "save", full)
    assert work(store, run, "cpu", 1) == IO
    assert "No space left on device; free some space and run the same" in error_of(store, run)
    monkeypatch.undo()
    assert work(store, run, "cpu", 1) == DONE


def test_a_disk_that_no_longer_tells_who_has_the_run_is_one_clear_message(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path, "crashes", plugins=[PLUGIN]).jobs
    store, run = announced(job, tmp_path)

    def silent(claim: Claim) -> None:
        raise OSError(5, "Input/output error", str(claim.holder.path))

    monkeypatch.setattr(Claim, "require", silent)
    assert work(store, run, "cpu", 1, plugins=[PLUGIN]) == IO
    assert "failed: Input/output error; mend that and run the same" in error_of(store, run)


@pytest.mark.slow
def test_a_killed_process_takes_no_other_along_and_its_run_is_started_again(
    toy: Toy, tmp_path: Path
) -> None:
    long = ["profile.steps=60", "profile.evaluate_from=60"]
    made = plan(toy.folder, toy.root, tmp_path, "supervised", seeds="3", settings=long)
    store = Store.open(tmp_path, create=True)
    executor = Local((Slot("cpu", None, 1),) * 2)
    events: list[Event] = []

    class Killer(Silent):
        killed = ""

        def event(self, event: Event) -> None:
            events.append(event)

        def refresh(self) -> None:
            for run in store.unfinished():
                path = store.work(run) / "progress.json"
                if not self.killed and path.exists():
                    self.killed = run
                    attempt = json.loads(path.read_text())["attempts"]
                    os.kill(attempt[-1]["pid"], signal.SIGKILL)

    view = Killer()
    assert execute(made.jobs, store, executor, view).ok
    assert sum(e.ending is Ending.DONE for e in events) == 3
    assert sum(e.ending is None for e in events) == 4
    assert store.sidecar(view.killed)["resumed"]


def bench(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmark.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def long_run(toy: Toy, store: Path) -> list[str]:
    return [
        *("run", "-m", "supervised", "-d", str(toy.folder), "--labelled", "2", "--seeds", "1"),
        *("--profile", "smoke", "--set", "profile.steps=4000", "--set", "profile.evaluate_from=9"),
        *("--set", "profile.evaluate_every=4000", "--store", str(store), "--data", str(toy.root)),
    ]


def worker_pid(store: Path) -> int:
    """Of the run at work, once it trains."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in store.glob("work/*/progress.json"):
            progress = json.loads(path.read_text())
            if progress["attempts"] and progress["attempts"][-1]["step"] > 0:
                return int(progress["attempts"][-1]["pid"])
        time.sleep(0.1)
    raise AssertionError("no run has begun")


def gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def test_two_drivers_on_one_store_do_nothing_twice_and_both_end_well(
    toy: Toy, tmp_path: Path
) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "supervised", seeds="2")
    store = Store.open(tmp_path, create=True)
    executor = Local((Slot("cpu", None, 1),))
    first, second = (job.spec.run_id for job in made.jobs)

    class Meanwhile(Silent):
        """Another driver finishes the second run while this one works on the first."""

        def event(self, event: Event) -> None:
            if event.run == first and event.ending is None:
                assert work(Store(tmp_path), second, "cpu", 1) == DONE

    assert execute(made.jobs, store, executor, Meanwhile()).ok
    assert len(store.sidecar(second)["attempts"]) == 1
    assert store.unfinished() == []


def test_what_a_kill_left_in_the_work_folder_of_a_finished_run_goes_with_the_next_command(
    toy: Toy, tmp_path: Path
) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "supervised")
    store = Store.open(tmp_path, create=True)
    execute(made.jobs, store, made.executor, Silent())
    run = made.jobs[0].spec.run_id
    announce(made.jobs[0], store)
    assert store.work(run).exists()
    execute(made.jobs, store, made.executor, Silent())
    assert not store.work(run).exists()


def test_an_edited_plugin_is_another_run_and_a_run_of_the_old_one_is_not_continued(
    toy: Toy, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    text = Path(PLUGIN).read_text()
    plugin.write_text(text)
    arguments = {"plugins": [str(plugin)]}
    (before,) = plan(toy.folder, toy.root, tmp_path / "store", "blind", **arguments).jobs
    store, run = announced(before, tmp_path / "store")
    plugin.write_text(text.replace("at: int = 5", "at: int = 6"))
    (after,) = plan(toy.folder, toy.root, tmp_path / "store", "blind", **arguments).jobs
    assert after.spec.run_id != run
    assert work(store, run, "cpu", 1, plugins=[str(plugin)]) == ERROR
    assert "the file of blind has changed since this run was begun" in error_of(store, run)


def test_a_plugin_runs_the_bytes_that_its_identity_is_of_whatever_python_has_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    plugin, text = tmp_path / "mine.py", Path(PLUGIN).read_text()
    found = []
    for at in (5, 6):
        plugin.write_text(text.replace("at: int = 5", f"at: int = {at}"))
        os.utime(plugin, (1e9, 1e9))
        (cls,) = (c for c in from_file(plugin) if c.name == "explodes")
        found.append((cls().at, source_of(cls)))  # type: ignore[attr-defined]
    assert [at for at, _ in found] == [5, 6]
    assert found[1][1] == hashlib.sha256(plugin.read_bytes()).hexdigest() != found[0][1]


def test_the_identity_of_an_installed_method_is_of_all_code_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "entmin_for_tests"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "method.py").write_text("from entmin_for_tests.parts.loss import WEIGHT\n\n\n")
    with (package / "method.py").open("a") as file:
        file.write("class EntMin:\n    weight = WEIGHT\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for weight in (1, 1, 2):
        (package / "parts" / "loss.py").write_text(f"WEIGHT = {weight}\n")
        for name in [name for name in sys.modules if name.startswith(package.name)]:
            del sys.modules[name]
        cls = importlib.import_module(f"{package.name}.method").EntMin
        found.append(source_of(cls))
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]
    assert found[0] == found[1] != found[2]
    assert all(found)


@pytest.mark.parametrize("then", ["edited", "deleted"])
def test_a_plugin_that_changes_while_its_run_trains_does_not_change_the_run(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(Path(PLUGIN).read_text())
    before = hashlib.sha256(plugin.read_bytes()).hexdigest()
    arguments = {"plugins": [str(plugin)], "settings": ["profile.checkpoint_every=2"]}
    (job,) = plan(toy.folder, toy.root, tmp_path / "store", "blind", **arguments).jobs
    store, run = announced(job, tmp_path / "store")
    save = checkpoint.save

    def changing(*given: Any, **named: Any) -> Any:
        if then == "edited":
            plugin.write_text(plugin.read_text() + "\n# later\n")
        else:
            plugin.unlink(missing_ok=True)
        return save(*given, **named)

    monkeypatch.setattr(checkpoint, "save", changing)
    assert work(store, run, "cpu", 1, plugins=[str(plugin)]) == DONE
    assert store.sidecar(run)["plugins"] == {"mine.py": before}
    assert job.spec.run_id == run


def test_a_folder_is_found_by_workers_that_were_started_elsewhere(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.folder.parent)
    (job,) = plan(Path(toy.folder.name), toy.root, tmp_path / "store").jobs
    store, run = announced(job, tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    assert read_job(store, run, ()).source == str(toy.folder.resolve())
    assert work(store, run, "cpu", 1) == DONE


def test_a_job_that_is_not_the_run_of_its_folder_is_refused(toy: Toy, tmp_path: Path) -> None:
    first, second = plan(toy.folder, toy.root, tmp_path, seeds="2").jobs
    store, run = announced(first, tmp_path)
    other = announced(second, tmp_path)[1]
    store.write_work(run, "spec.json", store.read_work(other, "spec.json"))
    assert work(store, run, "cpu", 1) == ERROR
    assert f"is of the run {other}" in error_of(store, run)
    assert checkpoint.newest_step(store.work(other)) == 0


def test_how_often_to_save_reaches_the_worker(toy: Toy, tmp_path: Path) -> None:
    made = plan(toy.folder, toy.root, tmp_path, settings=["profile.checkpoint_every=7"])
    store, run = announced(made.jobs[0], tmp_path)
    assert read_job(store, run, ()).spec.profile.checkpoint_every == 7


def test_a_message_with_brackets_does_not_stop_the_bars(toy: Toy, tmp_path: Path) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "supervised")
    store = Store.open(tmp_path, create=True)
    stream = io.StringIO()
    bars = Bars(store, Console(file=stream, width=200))
    bars.begin(made.jobs, [], 1)
    run = made.jobs[0].spec.run_id
    bars.event(Event(run, None))
    bars.refresh()
    bars.event(Event(run, Ending.ERROR, "cannot read [/tmp/x]"))
    bars.end()
    assert "cannot read [/tmp/x]" in stream.getvalue()


@linux
@pytest.mark.slow
def test_ctrl_c_stops_everything_and_says_that_nothing_is_lost(toy: Toy, tmp_path: Path) -> None:
    command = bench(*long_run(toy, tmp_path))
    pid = worker_pid(tmp_path)
    command.send_signal(signal.SIGINT)
    said, _ = command.communicate(timeout=30)
    assert command.returncode == 130
    assert "the same command continues" in said
    assert gone(pid, within_s=5)
    assert len(Store(tmp_path).unfinished()) == 1


@linux
@pytest.mark.slow
def test_the_death_of_the_parent_ends_its_workers(toy: Toy, tmp_path: Path) -> None:
    command = bench(*long_run(toy, tmp_path))
    pid = worker_pid(tmp_path)
    command.kill()
    command.communicate()
    assert gone(pid, within_s=5)


def test_a_run_that_is_done_is_never_redone(toy: Toy, tmp_path: Path) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    assert work(store, run, "cpu", 1) == DONE
    written = {p: p.stat().st_mtime_ns for p in store.path.rglob("*.parquet")}
    announce(job, store)
    assert work(store, run, "cpu", 1) == DONE
    assert {p: p.stat().st_mtime_ns for p in store.path.rglob("*.parquet")} == written


def test_an_evaluation_that_vanished_from_the_work_folder_is_noticed(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path).jobs
    store, run = announced(job, tmp_path)
    real = checkpoint.save

    def lose(folder: Path, step: int, state: dict[str, object]) -> Path:
        (folder / "cases-4.parquet").unlink(missing_ok=True)
        return real(folder, step, state)

    monkeypatch.setattr(checkpoint, "save", lose)
    assert work(store, run, "cpu", 1) == ERROR
    assert "evaluations of steps [4] are missing" in error_of(store, run)
    assert not store.is_done(run)


def test_bad_requests_stop_before_anything_begins(toy: Toy, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for changes, said in (
        ({"methods": "tcsge"}, "unknown method 'tcsge'. Did you mean 'tcseg'"),
        ({"sources": ["phantm"]}, "unknown dataset 'phantm'. Did you mean 'phantom'"),
        ({"profile": "minni"}, "unknown profile 'minni'. Did you mean 'mini'"),
        ({"executor": "slrum"}, "unknown executor"),
        ({"ratios": [0.5]}, "--ratio and --labelled both given"),
        ({"labelled": [], "ratios": [0.01]}, "leaves no labelled case"),
        ({"labelled": [999]}, "999 labelled cases"),
        ({"settings": ["dtc.weight=1"]}, "not part of this command|unknown"),
        ({"settings": ["profile.levels=6"]}, "does not suit a network of 6 levels"),
        ({"settings": ["recipe.learning_rate=inf"]}, "above 0 and finite"),
        ({"predictors": "main,taecher"}, "unknown predictor of mt 'taecher'. Did you mean"),
        ({"predictors": " , "}, "main is missing"),
        ({"predictors": "teacher"}, "main is missing, which the paper of a method reports"),
        ({"seeds": "9999999999999,"}, "expected a count such as 5"),
    ):
        with pytest.raises(UserError, match=said):
            _ = plan(toy.folder, toy.root, store, **changes).jobs
    assert not store.exists()
