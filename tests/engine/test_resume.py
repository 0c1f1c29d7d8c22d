"""A run may be killed at any moment; the same command gives the same bytes."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from benchmark.attempts import DONE
from benchmark.checkpoint import load_newest
from benchmark.worker import work
from results.store import Store
from tests.engine.conftest import Toy
from tests.engine.toy import announced, plan

LONG = ["profile.steps=24", "profile.evaluate_from=6", "profile.evaluate_every=6"]


def fresh(toy: Toy, path: Path, method: str) -> tuple[Store, str]:
    (job,) = plan(toy.folder, toy.root, path, method, settings=LONG, predictors="all").jobs
    return announced(job, path)


def run_in_child(path: str, run: str) -> None:
    os._exit(work(Store(path), run, "cpu", 1))


def contents(store: Store, run: str) -> dict[str, bytes]:
    tables = ("cases", "history", "pseudo", "runs")
    return {t: (store.path / t / f"{run}.parquet").read_bytes() for t in tables}


@pytest.fixture(scope="module")
def forks() -> mp.context.ForkServerContext:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["benchmark.worker", "scipy.ndimage", "nibabel"])
    return context


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_at_random_moments_leave_every_table_equal_to_the_last_byte(
    toy: Toy, tmp_path: Path, forks: mp.context.ForkServerContext
) -> None:
    whole, run = fresh(toy, tmp_path / "whole", "tcseg")
    began = time.monotonic()
    child = forks.Process(target=run_in_child, args=(str(whole.path), run))
    child.start()
    child.join()
    uncut_s = time.monotonic() - began
    rng = np.random.default_rng(2026)
    kills, attempt = 0, 0
    while kills < 20:
        attempt += 1
        cut, _ = fresh(toy, tmp_path / f"cut-{attempt}", "tcseg")
        while not cut.is_done(run):
            child = forks.Process(target=run_in_child, args=(str(cut.path), run))
            child.start()
            child.join(float(rng.uniform(0.0, 0.9 * uncut_s)) if kills < 20 else None)
            if child.is_alive():
                os.kill(child.pid or 0, signal.SIGKILL)
                kills += 1
            child.join()
            for reader in ("cases", "history", "pseudo", "runs"):
                cut.read(reader)
        assert contents(cut, run) == contents(whole, run)
    assert kills >= 20


@pytest.mark.parametrize("method", ["supervised", "mt", "uamt", "dtc", "tcseg"])
def test_stopping_after_any_checkpoint_changes_no_byte(
    method: str, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = fresh(toy, tmp_path / "whole", method)
    assert work(whole, run, "cpu", 1) == DONE
    cut, _ = fresh(toy, tmp_path / "cut", method)
    stop_after_every_checkpoint(monkeypatch)
    attempts = 0
    while not cut.is_done(run):
        attempts += 1
        work(cut, run, "cpu", 1)
    assert attempts > 4
    assert contents(cut, run) == contents(whole, run)


def test_a_cut_while_cases_are_measured_beside_training_changes_no_byte(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two threads measure; torch keeps to one, as several tests share the cores.
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    whole, run = fresh(toy, tmp_path / "whole", "mt")
    assert work(whole, run, "cpu", 2) == DONE
    cut, _ = fresh(toy, tmp_path / "cut", "mt")
    stop_after_every_checkpoint(monkeypatch)
    missing = 0
    while not cut.is_done(run):
        work(cut, run, "cpu", 2)
        if not cut.is_done(run):
            newest = max(cut.work(run).glob("checkpoint-*.pt"))
            steps = set(cut.read_parts(run, "cases")["step"])
            at = int(newest.stem.removeprefix("checkpoint-"))
            assert steps | {at} >= {s for s in (6, 12, 18) if s <= at}
            missing += at in (6, 12, 18) and at not in steps
    assert missing, "no cut came before its cases were kept"
    assert contents(cut, run) == contents(whole, run)


def stop_after_every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark import checkpoint

    real = checkpoint.save

    def save_and_stop(folder: Path, step: int, state: dict[str, object]) -> Path:
        path = real(folder, step, state)
        if step % 2 == 0 and step < 24:
            raise RuntimeError("cut here")
        return path

    monkeypatch.setattr(checkpoint, "save", save_and_stop)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    damage: str, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = fresh(toy, tmp_path / "whole", "mt")
    work(whole, run, "cpu", 1)
    cut, _ = fresh(toy, tmp_path / "cut", "mt")
    stop_after_every_checkpoint(monkeypatch)
    for _ in range(4):
        work(cut, run, "cpu", 1)
    monkeypatch.undo()
    newest = max(cut.work(run).glob("checkpoint-*.pt"))
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert work(cut, run, "cpu", 1) == DONE
    assert contents(cut, run) == contents(whole, run)


def test_the_same_seed_twice_gives_the_same_bytes_and_another_seed_other_ones(
    toy: Toy, tmp_path: Path
) -> None:
    (first,) = plan(toy.folder, toy.root, tmp_path, "tcseg").jobs
    (other,) = plan(toy.folder, toy.root, tmp_path, "tcseg", seeds="1,").jobs
    one, run = announced(first, tmp_path / "one")
    two, _ = announced(first, tmp_path / "two")
    three, other_run = announced(other, tmp_path / "three")
    for store, name in ((one, run), (two, run), (three, other_run)):
        assert work(store, name, "cpu", 1) == DONE
    assert contents(one, run) == contents(two, run)
    values = one.read("history")["value"]
    assert not np.array_equal(values, three.read("history")["value"])


def test_a_checkpoint_of_nothing_is_nothing(tmp_path: Path) -> None:
    import torch

    assert load_newest(tmp_path, torch.device("cpu")) is None
