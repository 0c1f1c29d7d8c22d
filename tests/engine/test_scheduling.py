"""How grids are spanned, spread over a machine, and timed."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from benchmark.environment import cores
from benchmark.executors import EXECUTORS
from benchmark.executors.base import Ending, Event, Resources
from benchmark.executors.local import Local, slots
from benchmark.progress import Attempt, Progress, Reporter, read
from benchmark.remaining import Left, Rate, mean_rate, rate_of, remaining, together
from benchmark.scheduler import execute
from benchmark.view import Lines, Silent, Watch
from results.store import Store
from tests.engine.conftest import Toy
from tests.engine.toy import plan

HERE = [name for name, executor in EXECUTORS.items() if not executor.elsewhere]


def test_a_grid_is_every_method_setting_and_seed_once_seeds_outermost(
    toy: Toy, tmp_path: Path
) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "mt,supervised", labelled=[2, 3], seeds="2")
    seen = [(j.spec.seed, j.spec.labelled, j.spec.method.name) for j in made.jobs]
    assert seen == [
        (seed, labelled, method)
        for seed in (0, 1)
        for labelled in (2, 3)
        for method in ("mt", "supervised")
    ]
    assert len({j.spec.run_id for j in made.jobs}) == 8


def test_a_ratio_is_a_share_of_the_training_volumes(toy: Toy, tmp_path: Path) -> None:
    made = plan(toy.folder, toy.root, tmp_path, labelled=[], ratios=[0.25])
    (job,) = made.jobs
    assert job.spec.labelled == 2


def test_the_authors_recipe_brings_their_ramp_up_unless_it_is_set(toy: Toy, tmp_path: Path) -> None:
    def ramp_up(*settings: str) -> float:
        made = plan(
            toy.folder, toy.root, tmp_path, "uamt", recipe="authors", settings=list(settings)
        )
        (job,) = made.jobs
        return job.spec.method.rampup  # type: ignore[attr-defined,no-any-return]

    assert ramp_up() == 1.0
    assert ramp_up("uamt.rampup=0.3") == 0.3


def test_on_a_cpu_every_run_has_one_thread_unless_told_otherwise() -> None:
    free = slots(Resources(jobs=None, threads=None, gpus=(), cores=8))
    assert (len(free), free[0].threads) == (8, 1)
    few = slots(Resources(jobs=3, threads=None, gpus=(), cores=8))
    assert (len(few), few[0].threads) == (3, 2)


def test_on_gpus_there_is_one_run_a_gpu_or_as_many_as_asked() -> None:
    one_each = slots(Resources(jobs=None, threads=None, gpus=("3", "5"), cores=8))
    assert [(s.gpu, s.device, s.threads) for s in one_each] == [
        ("3", "cuda:0", 4),
        ("5", "cuda:0", 4),
    ]
    four = slots(Resources(jobs=4, threads=None, gpus=("3", "5"), cores=8))
    assert [s.gpu for s in four] == ["3", "5", "3", "5"]


@pytest.mark.parametrize("name", HERE)
def test_every_executor_works_on_every_run_once(name: str, toy: Toy, tmp_path: Path) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "supervised", seeds="2")
    store = Store.open(tmp_path, create=True)
    executor = EXECUTORS[name].make(Resources(jobs=None, threads=1, gpus=(), cores=2))
    events: list[Event] = []

    class View(Silent):
        def event(self, event: Event) -> None:
            events.append(event)

    summary = execute(made.jobs, store, executor, View())
    assert summary.ok
    assert len(summary.finished) == 2
    runs = {job.spec.run_id for job in made.jobs}
    assert {e.run for e in events if e.ending is None} == runs
    assert {e.run for e in events if e.ending is Ending.DONE} == runs
    assert len(events) == 4


def test_executors_agree_to_the_last_byte(toy: Toy, tmp_path: Path) -> None:
    found = []
    for name in HERE:
        made = plan(toy.folder, toy.root, tmp_path, "mt")
        store = Store.open(tmp_path / name, create=True)
        executor = EXECUTORS[name].make(Resources(jobs=None, threads=1, gpus=(), cores=1))
        execute(made.jobs, store, executor, Silent())
        run = made.jobs[0].spec.run_id
        found.append((store.path / "cases" / f"{run}.parquet").read_bytes())
    assert found[0] == found[1]


def test_the_number_of_slots_is_the_number_of_runs_at_once() -> None:
    resources = Resources(jobs=3, threads=None, gpus=(), cores=4)
    assert Local.make(resources).parallel == 3
    assert EXECUTORS["inline"].make(resources).parallel == 1


def progress(**changes: object) -> Progress:
    attempt = Attempt("host", 1, 0.0, first_step=0, step=50, seconds=60.0, evaluations=2)
    attempt.spent = {"training": 50.0, "evaluating": 8.0}
    made = Progress(total=100, evaluations=4, evaluated=2, attempts=[attempt])
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_remaining_time_counts_steps_and_evaluations() -> None:
    rate = rate_of(progress())
    assert rate is not None
    assert (rate.per_step, rate.per_evaluation) == (1.0, 4.0)
    assert remaining(progress(), rate, 100, 4) == Left(50 * 1.0 + 2 * 4.0, sure=True)
    assert remaining(None, rate, 100, 4) == Left(100 * 1.0 + 4 * 4.0, sure=True)


def test_nothing_is_guessed_before_anything_is_known() -> None:
    assert rate_of(progress(attempts=[])) is None
    assert mean_rate([]) is None
    assert mean_rate([Rate(1, 2, 3), Rate(3, None, 0)]) == Rate(2, 2, 3)


def test_before_its_first_evaluation_a_run_says_that_it_takes_over_so_long() -> None:
    early = progress(evaluated=0)
    early.attempts[0].evaluations = 0
    rate = rate_of(early)
    assert rate is not None
    assert rate.per_evaluation is None
    assert not remaining(early, rate, 100, 4).sure


def test_pseudo_labels_are_part_of_the_remaining_time_of_a_first_run() -> None:
    rate = rate_of(progress(pseudo=3.6))
    assert rate == Rate(1.0, 4.0, overhead=3.6 * 4.0)
    assert remaining(progress(pseudo=3.6), rate, 100, 4).seconds == 50 + 2 * 4 + 3.6 * 4
    ended = progress(pseudo=3.6, evaluated=4)
    ended.attempts[0].step, ended.attempts[0].spent["pseudo-labels"] = 100, 20.0
    assert remaining(ended, rate, 100, 4).seconds == 0


def test_runs_at_once_never_take_less_than_the_longest() -> None:
    assert together([Left(100, True), Left(10, True)], parallel=8).seconds == 100
    assert together([Left(100, True)] * 8, parallel=4).seconds == 200
    assert not together([Left(1, True), Left(1, False)], parallel=1).sure


def test_a_grid_nobody_has_measured_has_no_remaining_time(toy: Toy, tmp_path: Path) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "supervised", seeds="2")
    store = Store.open(tmp_path, create=True)
    watch = Watch(store)
    watch.begin(made.jobs, [], 2)
    assert watch.together(watch.left()) is None
    execute(made.jobs[:1], store, made.executor, Silent())
    watch.end(made.jobs[0].spec.run_id)
    left = watch.together(watch.left())
    assert left is not None
    assert left.sure
    assert left.seconds > 0


def test_progress_survives_a_new_attempt(tmp_path: Path) -> None:
    first = Reporter(tmp_path, total=10, evaluations=2)
    first.begin(0, 0)
    first.attempt.step = 4
    first.write(force=True)
    second = Reporter(tmp_path, total=10, evaluations=2)
    second.begin(3, 1)
    kept = read(tmp_path)
    assert kept is not None
    assert [(a.first_step, a.step) for a in kept.attempts] == [(0, 4), (3, 3)]
    assert (kept.step, kept.trained, kept.evaluated) == (3, 4, 1)


def test_steps_and_their_seconds_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reporter = Reporter(tmp_path, total=1000, evaluations=2)
    reporter.begin(0, 0)
    rates = []

    def stopped_at_step_30() -> None:
        nonlocal now
        with reporter.timing("training"):
            for _ in range(30):
                now += 2.0
                reporter.attempt.step += 1
                reporter.write()
                rates.append(rate_of(read(tmp_path) or progress(attempts=[])))
            now += 1.0
            raise SystemExit(7)

    with pytest.raises(SystemExit):
        stopped_at_step_30()
    assert [rate and rate.per_step for rate in rates] == [2.0] * 30
    kept = read(tmp_path)
    assert kept is not None
    assert kept.spent("training") == 61.0


def test_a_progress_file_that_cannot_be_read_is_no_progress(tmp_path: Path) -> None:
    (tmp_path / "progress.json").mkdir()
    assert read(tmp_path) is None


def test_lines_are_json(toy: Toy, tmp_path: Path) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "supervised")
    store = Store.open(tmp_path, create=True)
    stream = io.StringIO()
    execute(made.jobs, store, made.executor, Lines(store, stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [e["event"] for e in events] == ["begin", "start", "end"]
    assert events[-1]["remaining_s"] == 0


def test_a_container_with_a_quota_has_as_many_cores_as_that(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert cores(tmp_path / "cpu.max") == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores(tmp_path / "cpu.max") == cores(tmp_path / "missing")
