"""Processes that are killed, and processes that race."""

import multiprocessing
import time
from collections import Counter

import duckdb
import numpy as np
import polars
import pyarrow.dataset
import pytest

from results.store import Store
from tests.protocols import toy
from tests.stores import writers


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["results.store"])
    return context


def test_no_acknowledged_run_is_lost_and_no_reader_fails_while_writers_are_killed(
    processes, tmp_path
):
    store = Store.open(tmp_path / "store", create=True)
    acknowledged = tmp_path / "acknowledged"
    rng = np.random.default_rng(0)

    def start(number: int):
        arguments = (str(store.path), f"w{number}", str(acknowledged))
        process = processes.Process(target=writers.commit_for_ever, args=arguments, daemon=True)
        process.start()
        return process

    def done() -> int:
        return len(acknowledged.read_text().splitlines()) if acknowledged.exists() else 0

    at_work = [start(number) for number in range(4)]
    try:
        for kill in range(25):
            before, patience = done(), time.monotonic() + 60
            while done() == before and time.monotonic() < patience:
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0, 0.02)))
            at_work[kill % 4].kill()
            at_work[kill % 4].join()
            at_work[kill % 4] = start(4 + kill)
            if kill % 8 == 0:
                read_with_everything(store)
    finally:
        for process in at_work:
            process.kill()
            process.join()
    read_with_everything(store)
    runs = acknowledged.read_text().splitlines()
    assert len(runs) >= 25
    assert set(runs) <= set(store.records()["run"])
    counts = store.read("cases").groupby("run", observed=True).size()
    assert set(counts) == {18}
    left = list(store.path.glob("*/.tmp-*"))
    assert store.sweep_temporary(hours=0) == len(left)
    assert not list(store.path.glob("*/.tmp-*"))


def read_with_everything(store: Store) -> None:
    runs = list(store.records()["run"])
    assert len(store.read("cases", runs)) == 18 * len(runs)
    pyarrow.dataset.dataset(store.path / "cases", format="parquet").to_table()
    if list(store.path.glob("cases/*.parquet")):
        files = str(store.path / "cases" / "*.parquet")
        polars.read_parquet(files)
        duckdb.sql(f"select count(*) from '{files}'").fetchall()


def test_of_eight_processes_that_race_for_a_run_exactly_one_wins(processes, tmp_path):
    """Four have the same bytes, four others: three learn that it is done, four of the conflict."""
    outcomes, store = race(processes, tmp_path, before=lambda store, run: None)
    assert outcomes == {"committed": 20, "already": 60, "conflict": 80}
    assert len(store.read("cases")) == 20 * 18


def test_the_same_holds_where_a_failed_run_was_half_discarded(processes, tmp_path):
    """Whoever clears away the old attempt never takes a new one for it."""

    def half_discarded(store: Store, run: str) -> None:
        rows = writers.rows(run, 9)
        store.commit(run, toy.tables(rows), toy.record(run, state="failed"), {})
        record = store.path / "runs" / f"{run}.parquet"
        record.rename(record.parent / f".discarded-{run}")

    outcomes, store = race(processes, tmp_path, before=half_discarded)
    assert outcomes == {"committed": 20, "already": 60, "conflict": 80}
    assert len(store.read("cases")) == 20 * 18
    assert not list(store.path.glob("*/.*"))


def race(processes, tmp_path, before):
    """Outcomes of eight processes that commit twenty runs each, four with other bytes."""
    store = Store.open(tmp_path / "store", create=True)
    runs = [f"mt-{n}" for n in range(20)]
    for run in runs:
        before(store, run)
    racers = [
        processes.Process(
            target=writers.race,
            args=(str(store.path), runs, n % 2, str(tmp_path / f"{n}.txt")),
            daemon=True,
        )
        for n in range(8)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    outcomes = Counter(w for n in range(8) for w in (tmp_path / f"{n}.txt").read_text().split())
    assert sorted(store.records()["run"]) == sorted(runs)
    return outcomes, store
