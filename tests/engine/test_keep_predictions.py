"""`--keep-predictions`: masks beside the numbers, the same after any interruption."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark import checkpoint, cli
from benchmark.attempts import DONE, ERROR, ERROR_FILE
from benchmark.data import open_dataset
from benchmark.data.volumes import load_volumes
from benchmark.scans import load_scan
from benchmark.worker import read_job, work
from results.errors import UserError
from results.predictions import unpack
from results.schema import Keep
from results.store import Store
from tests.engine.conftest import Toy
from tests.engine.toy import announced, plan

LONG = ["profile.steps=12", "profile.evaluate_from=6", "profile.evaluate_every=3"]
STEPS = [6, 9, 12]


def begun(toy: Toy, path: Path, keep: Keep, **changes: object) -> tuple[Store, str]:
    arguments = {"settings": LONG, "predictors": "all", "keep_predictions": keep} | changes
    (job,) = plan(toy.folder, toy.root, path, **arguments).jobs  # type: ignore[arg-type]
    return announced(job, path)


def numbers(store: Store, run: str) -> dict[str, bytes]:
    tables = ("cases", "history", "pseudo", "runs")
    return {t: (store.path / t / f"{run}.parquet").read_bytes() for t in tables}


def kept(store: Store, run: str) -> bytes:
    return (store.path / "predictions" / f"{run}.parquet").read_bytes()


def cut_after(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Raise once a checkpoint at one of these steps is on the disk."""
    real = checkpoint.save

    def save_and_stop(folder: Path, step: int, state: dict[str, object]) -> Path:
        path = real(folder, step, state)
        if step in steps:
            raise RuntimeError("cut here")
        return path

    monkeypatch.setattr(checkpoint, "save", save_and_stop)


@pytest.fixture(scope="module")
def whole(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> dict[Keep, Store]:
    """The same run in three stores: with all, the last and none of its predictions."""
    stores = {}
    for keep in Keep:
        store, run = begun(toy, tmp_path_factory.mktemp(keep), keep)
        assert work(store, run, "cpu", 1) == DONE
        stores[keep] = store
    return stores


def only_run(store: Store) -> str:
    return str(store.records()["run"].item())


def test_keeping_them_changes_neither_a_run_s_identity_nor_a_number(
    whole: dict[Keep, Store],
) -> None:
    run = only_run(whole[Keep.NONE])
    for store in whole.values():
        assert only_run(store) == run
        assert numbers(store, run) == numbers(whole[Keep.NONE], run)
    assert not whole[Keep.NONE].has("predictions", run)


def test_the_masks_are_those_that_were_measured(whole: dict[Keep, Store], toy: Toy) -> None:
    store = whole[Keep.ALL]
    cases = store.read("cases")
    rows = store.read("predictions")
    keys = ["step", "predictor", "split", "case"]
    assert set(cases["step"]) == set(STEPS)
    pd.testing.assert_frame_equal(rows[keys], cases[keys])
    spec = json.loads(store.record(only_run(store))["spec"])["dataset"]
    dataset = open_dataset(spec["name"], toy.root)
    assert dataset.fingerprint == spec["fingerprint"]
    volumes = load_volumes(dataset, set(cases["case"]), spec["geometry"]["scale"])
    assert cases["tp"].sum() + cases["fp"].sum() > 0
    for row, numbers in zip(rows.itertuples(), cases.itertuples(), strict=True):
        mask = unpack(row.mask, (row.x, row.y, row.z))
        truth = volumes[row.case].label.astype(bool)
        assert np.sum(mask & truth) == numbers.tp
        assert np.sum(mask & ~truth) == numbers.fp
        assert np.sum(~mask & truth) == numbers.fn


def test_last_keeps_the_last_evaluation_of_all(whole: dict[Keep, Store]) -> None:
    every = whole[Keep.ALL].read("predictions")
    last = whole[Keep.LAST].read("predictions")
    expected = every[every["step"] == STEPS[-1]].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, expected)


@pytest.mark.parametrize("keep", [Keep.LAST, Keep.ALL])
def test_being_cut_changes_no_byte(
    keep: Keep,
    whole: dict[Keep, Store],
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, run = begun(toy, tmp_path, keep)
    attempts = 0
    cut_after(monkeypatch, {2, 6, 8, 9, 12})
    while not store.is_done(run):
        attempts += 1
        work(store, run, "cpu", 1)
    assert attempts == 6
    assert kept(store, run) == kept(whole[keep], run)
    assert numbers(store, run) == numbers(whole[keep], run)


def test_a_cut_between_masks_and_checkpoint_changes_no_byte(
    whole: dict[Keep, Store], toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run = begun(toy, tmp_path, Keep.ALL)

    def fails(folder: Path, step: int, state: dict[str, object]) -> Path:
        raise RuntimeError("cut here")

    cut_after(monkeypatch, {8})
    work(store, run, "cpu", 1)
    monkeypatch.setattr(checkpoint, "save", fails)
    work(store, run, "cpu", 1)
    assert set(store.read_parts(run, "predictions")["step"]) == {6, 9}
    monkeypatch.undo()
    assert work(store, run, "cpu", 1) == DONE
    assert kept(store, run) == kept(whole[Keep.ALL], run)


def test_asking_too_late_says_so_and_touches_nothing(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run = begun(toy, tmp_path, Keep.NONE)
    cut_after(monkeypatch, {8})
    assert work(store, run, "cpu", 1) == ERROR
    monkeypatch.undo()
    begun(toy, tmp_path, Keep.ALL)
    assert work(store, run, "cpu", 1) == ERROR
    said = (store.work(run) / ERROR_FILE).read_text()
    assert "was evaluated at step 6 without keeping its predictions" in said
    assert "Go on without --keep-predictions, or delete" in said
    begun(toy, tmp_path, Keep.LAST)
    assert work(store, run, "cpu", 1) == DONE
    assert set(store.read("predictions")["step"]) == {12}


def test_no_longer_asking_leaves_them_out(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run = begun(toy, tmp_path, Keep.ALL)
    cut_after(monkeypatch, {8})
    work(store, run, "cpu", 1)
    monkeypatch.undo()
    begun(toy, tmp_path, Keep.NONE)
    assert work(store, run, "cpu", 1) == DONE
    assert not store.has("predictions", run)


def test_a_run_begun_by_an_older_bench_keeps_none(toy: Toy, tmp_path: Path) -> None:
    store, run = begun(toy, tmp_path, Keep.LAST)
    content = json.loads(store.read_work(run, "spec.json"))
    assert content.pop("keep_predictions") == "last"
    store.write_work(run, "spec.json", json.dumps(content))
    assert read_job(store, run, ()).keep is Keep.NONE


def bench(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_keeps_them_and_refuses_where_a_run_has_finished_without(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        *("run", "-m", "supervised", "-d", toy.folder, "--labelled", "2", "--profile", "smoke"),
        *("--data", toy.root, "--store", tmp_path, "--executor", "inline", "--threads", "1"),
    )
    one = (*command, "--seeds", "1")
    assert bench(monkeypatch, *one, "--keep-predictions", "last") == 0
    assert set(Store(tmp_path).read("predictions")["step"]) == {8}
    for again in ((), ("--keep-predictions", "last")):
        assert bench(monkeypatch, *one, *again) == 0
    capsys.readouterr()
    assert bench(monkeypatch, *command, "--keep-predictions", "all", "--seeds", "2") == 2
    said = capsys.readouterr().err
    assert "finished without the predictions that --keep-predictions all asks for" in said
    assert "another --store to train them again (their numbers will be the same)" in said
    assert not (tmp_path / "work").exists() or not any((tmp_path / "work").iterdir())


# What is made of them


def test_slices_are_drawn_from_a_store_and_its_data(
    whole: dict[Keep, Store],
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = whole[Keep.LAST]
    case = str(store.read("predictions").query("split == 'test'")["case"].iloc[0])
    command = ("report", "slices", "--case", case, "--store", store.path, "--out", tmp_path)
    assert bench(monkeypatch, *command, "--data", toy.root) == 0
    assert {p.suffix for p in tmp_path.glob("slices-last-1-*")} >= {".png", ".pdf"}
    capsys.readouterr()
    assert bench(monkeypatch, *command, "--data", tmp_path) == 2
    assert "name the folder of prepared data that the runs were made with (--data)" in (
        capsys.readouterr().err
    )


def test_the_images_are_those_of_the_run_or_none(whole: dict[Keep, Store], toy: Toy) -> None:
    store = whole[Keep.LAST]
    dataset = json.loads(store.record(only_run(store))["spec"])["dataset"]
    row = store.read("predictions").iloc[0]
    scan = load_scan(toy.root, dataset, row["case"])
    assert scan.image.shape == scan.label.shape == (row["x"], row["y"], row["z"])
    with pytest.raises(UserError, match=r"fingerprint .*, theirs 000000000000; name the folder"):
        load_scan(toy.root, dataset | {"fingerprint": "0" * 64}, row["case"])
    with pytest.raises(UserError, match="has no case ball_999"):
        load_scan(toy.root, dataset, "ball_999")
