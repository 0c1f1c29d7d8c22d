"""What is read from a queue and what follows, without any cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark.attempts import OUT_OF_MEMORY, STOPPED
from benchmark.cli import app
from benchmark.executors.base import Ending, Resources
from benchmark.executors.slurm import RefusedError, Slurm
from benchmark.slurm_queue import (
    _COLUMNS,
    End,
    Entry,
    UnreachableError,
    ask,
    end_of,
    folder_of,
    forget_finished,
    new_submission,
    newest,
    parse,
    submissions,
)
from results.errors import UserError
from results.store import Store


def line(*cells: str) -> str:
    return "".join(c.ljust(w) for c, w in zip(cells, _COLUMNS.values(), strict=True))


def entry(
    state: str, code: int = 0, reason: str = "None", name: str = "a", index: int = 0
) -> Entry:
    return Entry(name, index, "7", "7_0", state, code, "n1", reason)


def test_an_answer_of_squeue_is_read_by_columns() -> None:
    text = "\n".join(
        [
            line("bench-0a-1", "0", "7", "7_0", "FAILED", "1024", "n1", "NonZeroExitCode"),
            line("bench-0a-1", "1", "8", "7_1", "RUNNING", "0", "n2", "None"),
            line("bench-0a-1", "2", "7", "7_2", "FAILED", "9", "", "launch_failed_requeued_held"),
        ]
    )
    failed, running, killed = parse(text)
    assert (failed.label, failed.code, failed.index, failed.job) == ("7_0", 4, 0, "7")
    assert (running.state, running.node) == ("RUNNING", "n2")
    assert str(running) == "job 7_1 running on n2"
    assert (killed.code, killed.reason) == (-9, "launch failed requeued held")
    with pytest.raises(ValueError, match="invalid literal"):
        parse("slurm_load_jobs error")


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("FAILED", 4),
        ("COMPLETED", 4),
        ("TIMEOUT", STOPPED),
        ("NODE_FAIL", STOPPED),
        ("PREEMPTED", STOPPED),
        ("OUT_OF_MEMORY", OUT_OF_MEMORY),
        ("CANCELLED", None),
        ("DEADLINE", None),
    ],
)
def test_how_a_job_ended_says_what_follows(state: str, code: int | None) -> None:
    found = end_of(entry(state, 4))
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"])
def test_a_job_that_is_in_the_queue_has_not_ended(state: str) -> None:
    assert end_of(entry(state)) is None


def test_a_job_that_could_not_be_launched_is_lost_and_one_that_somebody_holds_is_not() -> None:
    assert end_of(entry("PENDING", reason="launch failed requeued held")) is not None
    assert end_of(entry("PENDING", reason="JobHeldUser")) is None
    assert end_of(None) == End(STOPPED, "its job is gone from the queue")


def test_the_newest_submission_of_a_run_counts() -> None:
    known = {"a": ("r0", "r1"), "b": ("r1",)}
    found = newest(known, [entry("FAILED", index=1), entry("RUNNING", name="b"), entry("PENDING")])
    assert (found["r1"].state, found["r0"].state) == ("RUNNING", "PENDING")
    assert "r1" not in newest(known, [entry("FAILED", index=1)])


def test_submissions_are_known_by_their_folders_in_order(tmp_path: Path) -> None:
    store = Store.open(tmp_path, create=True)
    names = [new_submission(store, [f"r{i}"]).name for i in range(11)]
    assert list(submissions(store)) == names
    assert submissions(store)[names[10]] == ("r10",)
    (folder_of(store) / "bench-00000000-99").mkdir()  # killed before it said which runs
    assert list(submissions(store)) == names
    forget_finished(store)
    assert list(submissions(store)) == names
    assert store.unfinished() == []


def fake(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_queue_that_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask([]) == []
    with pytest.raises(UnreachableError, match="cannot be asked"):
        ask(["a"])
    fake(tmp_path, "squeue", "echo down >&2; exit 1")
    with pytest.raises(UnreachableError, match="cannot be asked: down"):
        ask(["a"])
    fake(tmp_path, "squeue", "echo nonsense")
    with pytest.raises(UnreachableError, match="unknown form"):
        ask(["a"])


def made(**settings: str) -> Slurm:
    pytest.importorskip("submitit")
    return Slurm.make(Resources(None, 2, (), 1, ("/p.py",), 3, settings))


def test_without_a_queue_that_answers_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    words = "run -m mt --profile smoke --seeds 2 --executor slurm --store"
    found = CliRunner().invoke(app, [*words.split(), str(tmp_path / "store")])
    assert isinstance(found.exception, UserError)
    assert "cannot be asked" in str(found.exception)
    assert "login node" in str(found.exception)
    assert not (tmp_path / "store").exists()
    fake(tmp_path, "squeue", "exit 0")
    assert made().unreachable() == ""


def test_what_sbatch_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "srun", "exit 0")
    fake(tmp_path, "squeue", "exit 0")
    fake(tmp_path, "sbatch", f'cp "$1" {tmp_path}/seen; echo "Submitted batch job 12"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    store = Store.open(tmp_path / "my store", create=True)
    slurm = made(
        partition="gpu", time="1-00:00:00", gres="gpu:1", setup="module load x", extra="--nice=5"
    )
    assert slurm._send(["r0", "r1"], "", store) == "12"
    said = (tmp_path / "seen").read_text()
    for wanted in (
        *("--partition=gpu", "--time=1-00:00:00", "--gres=gpu:1", "--nice=5", "--requeue"),
        *("--array=0-1%2", "--cpus-per-task=2", "--signal=B:USR2@60", "--job-name=bench-"),
    ):
        assert f"#SBATCH {wanted}" in said, wanted
    assert "RUNS=(r0 r1)" in said
    assert "module load x" in said
    assert "--device cuda:0 --threads 2" in said
    assert "--plugin /p.py" in said
    assert "my store'" in said
    assert "srun" not in said
    assert "--wckey" not in said


def test_what_slurm_refuses_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, "srun", "exit 0")
    fake(tmp_path, "squeue", "exit 0")
    fake(tmp_path, "sbatch", "echo 'invalid partition specified: gpx' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    store = Store.open(tmp_path / "store", create=True)
    with pytest.raises(RefusedError, match="invalid partition specified: gpx"):
        made(partition="gpx")._send(["r0"], "", store)
    assert submissions(store) == {}


def test_a_submission_that_another_driver_removes_meanwhile_is_no_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path, create=True)
    new_submission(store, ["r0"])

    def gone(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", gone)
    assert submissions(store) == {}


def test_a_job_that_requeues_itself_takes_no_other_of_its_array_along(tmp_path: Path) -> None:
    # The last task of an array to begin has the array's own id, which names all of them.
    script = made().script(Store.open(tmp_path, create=True))
    assert 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in script


def told(slurm: Slurm, runs: list[str], store: Store) -> list[tuple[str, Ending | None]]:
    """The events of working on runs."""
    found: list[tuple[str, Ending | None]] = []
    slurm.execute(runs, store, lambda e: found.append((e.run, e.ending)), lambda: None)
    return found


def test_what_a_full_queue_refuses_is_submitted_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path, create=True)
    queue = {"r0": entry(state="RUNNING")}
    asked: list[list[str]] = []
    done: set[str] = set()

    def send(slurm: Slurm, runs: list[str], before: str, store: Store) -> str:
        asked.append(runs)
        if "r0" in queue:
            if len(asked) == 2:
                queue.clear()
                done.add("r0")
            raise RefusedError("SLURM refuses the jobs: QOSMaxSubmitJobPerUserLimit")
        done.update(runs)
        return "12"

    monkeypatch.setattr(Slurm, "_send", send)
    monkeypatch.setattr("benchmark.executors.slurm.queue_of", lambda store: dict(queue))
    monkeypatch.setattr(Store, "is_done", lambda store, run: run in done)
    events = told(made(poll_s="0.3"), ["r0", "r1"], store)
    assert asked == [["r1"]] * 3
    assert {run for run, ending in events if ending is Ending.DONE} == {"r0", "r1"}


def test_what_is_refused_while_nothing_is_queued_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(*_: object) -> str:
        raise RefusedError("SLURM refuses the jobs: invalid account")

    monkeypatch.setattr(Slurm, "_send", send)
    monkeypatch.setattr("benchmark.executors.slurm.queue_of", lambda store: {})
    with pytest.raises(RefusedError, match="invalid account"):
        told(made(), ["r0"], Store.open(tmp_path, create=True))


def test_a_queue_that_never_answers_ends_the_command_and_not_before_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path, create=True)
    answers = iter([{"r0": entry(state="RUNNING"), "r1": entry(state="RUNNING")}])

    def queue(store: Store) -> dict[str, Entry]:
        for answer in answers:
            return answer
        raise UnreachableError("the SLURM queue cannot be asked: munge is down")

    monkeypatch.setattr("benchmark.executors.slurm.queue_of", queue)
    monkeypatch.setattr("benchmark.executors.slurm._SILENCE_S", 1)
    monkeypatch.setattr(Store, "is_done", lambda store, run: run == "r0")
    events: list[tuple[str, Ending | None]] = []
    with pytest.raises(UserError, match=r"munge is down, .* The jobs go on without this command"):
        made(poll_s="0.3").execute(
            ["r0", "r1"], store, lambda e: events.append((e.run, e.ending)), lambda: None
        )
    assert events == [("r0", None), ("r0", Ending.DONE)]


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'partition'"):
        made(partiton="x")
    with pytest.raises(UserError, match="expected a value of type int"):
        made(signal_s="soon")
    with pytest.raises(UserError, match="is not an option"):
        made(extra="-n 3")
