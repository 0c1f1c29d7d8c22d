"""Stored predictions measured again: the same numbers, or those of another policy."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark import cli, rescoring
from benchmark.attempts import DONE
from benchmark.metrics import case_metrics, prepare_reference
from benchmark.rescoring import Policy, rescore
from benchmark.scans import load_scan
from benchmark.worker import work
from reports.facts import load_facts
from results.errors import UserError
from results.predictions import columns_of, load_masks
from results.schema import Component, Keep, Unit
from results.store import Store
from tests.engine.conftest import Toy
from tests.engine.toy import announced, plan

MILLIMETRES = (0.5, 2.0, 1.0)


@pytest.fixture(scope="module")
def trained(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("trained")
    (job,) = plan(toy.folder, toy.root, path, keep_predictions=Keep.ALL).jobs
    store, run = announced(job, path)
    assert work(store, run, "cpu", 1) == DONE
    return store


def new(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "derived", create=True)


def test_without_a_change_every_byte_of_the_numbers_is_the_same(
    trained: Store, toy: Toy, tmp_path: Path
) -> None:
    derived = new(tmp_path)
    (run,) = rescore(trained, derived, Policy(), toy.root)
    for table in ("cases", "history", "pseudo", "predictions", "runs"):
        name = f"{table}/{run}.parquet"
        assert (derived.path / name).read_bytes() == (trained.path / name).read_bytes(), table


def corrupted(trained: Store, path: Path) -> Store:
    """The same run with another prediction of its first case: two boxes apart."""
    store = Store.open(path, create=True)
    run = str(trained.records()["run"].item())
    tables = {t: trained.read(t, [run]) for t in ("cases", "history", "pseudo", "predictions")}
    tables["predictions"] = tables["predictions"].copy()
    first = tables["predictions"].iloc[0]
    mask = np.zeros((first["x"], first["y"], first["z"]), dtype=bool)
    mask[1:4, 1:4, 1:4] = mask[-2:, -2:, -2:] = True
    for name, value in columns_of(mask).items():
        tables["predictions"].at[0, name] = value
    store.commit(run, tables, trained.record(run), {})
    return store


def test_the_largest_component_is_measured_stored_and_said(
    trained: Store, toy: Toy, tmp_path: Path
) -> None:
    store = corrupted(trained, tmp_path / "made")
    derived = new(tmp_path)
    (run,) = rescore(store, derived, Policy(Component.LARGEST), toy.root)
    record, before = derived.record(run), store.records().iloc[0]
    assert run != before["run"]
    assert run[:-12] == before["run"][:-12]
    assert record["profile"] == before["profile"] + "+component=largest"
    spec = json.loads(record["spec"])
    assert spec.pop("rescored") == {"component": "largest"}
    assert spec == json.loads(before["spec"])
    row = derived.read("cases").iloc[0]
    scan = load_scan(toy.root, spec["dataset"], row["case"])
    kept = np.zeros_like(scan.label)
    kept[1:4, 1:4, 1:4] = True
    expected = case_metrics(kept, prepare_reference(scan.label, scan.spacing))
    assert (row["tp"], row["fp"], row["fn"]) == (expected.tp, expected.fp, expected.fn)
    assert row["dsc"] == expected.dsc
    masks = load_masks(derived, run, int(row["step"]), row["predictor"], [row["case"]])
    np.testing.assert_array_equal(masks[row["case"]], kept)
    assert derived.read("pseudo").empty
    facts = load_facts(derived, "last", "tcseg")
    assert "component=largest" in facts.summary["setting"].item()


def test_no_table_mixes_a_derived_run_with_its_origin(
    trained: Store, toy: Toy, tmp_path: Path
) -> None:
    derived = new(tmp_path)
    rescore(trained, derived, Policy(), toy.root)
    rescore(trained, derived, Policy(Component.LARGEST), toy.root)
    rows = load_facts(derived, "last", "tcseg").summary
    assert len(rows) == 2
    assert rows["section"].nunique() == rows["setting"].nunique() == 2


def test_in_voxels_distances_are_those_of_a_grid_of_unit_spacing(
    tmp_path: Path, trained: Store, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's own spacing is 1; as millimetres of another grid it changes mm, not voxels."""
    real = rescoring.open_evaluated

    def stretched(data: Path, dataset: dict[str, object]) -> object:
        found = real(data, dataset)
        load = found.load
        return replace(
            found, load=lambda case: replace(load(case), spacing=MILLIMETRES), folder=None
        )

    monkeypatch.setattr(rescoring, "open_evaluated", stretched)
    voxels, millimetres = new(tmp_path), Store.open(tmp_path / "mm", create=True)
    (run,) = rescore(trained, voxels, Policy(unit=Unit.VOXEL), toy.root)
    rescore(trained, millimetres, Policy(), toy.root)
    assert voxels.record(run)["unit"] == "voxel"
    measured = ["status", "dsc", "asd", "hd95", "diagonal"]
    plain, inside, stretched_mm = (
        s.read("cases", columns=measured) for s in (trained, voxels, millimetres)
    )
    pd.testing.assert_frame_equal(plain, inside)
    assert not np.allclose(stretched_mm["diagonal"], inside["diagonal"])


def test_a_second_time_does_nothing_and_a_third_level_is_refused(
    trained: Store, toy: Toy, tmp_path: Path
) -> None:
    derived = new(tmp_path)
    policy = Policy(Component.LARGEST)
    once = rescore(trained, derived, policy, toy.root)
    assert rescore(trained, derived, policy, tmp_path / "no data are read") == once
    with pytest.raises(UserError, match="is rescored already; rescore the store that it was"):
        rescore(derived, Store.open(tmp_path / "x", create=True), policy, toy.root)


def test_failed_runs_stay_in_the_denominator(trained: Store, toy: Toy, tmp_path: Path) -> None:
    store = corrupted(trained, tmp_path / "made")
    run = str(store.records()["run"].item())
    record = store.record(run)
    spec = json.loads(record["spec"]) | {"seed": 1}
    other = f"{run[:-12]}{'0' * 12}"
    tables = {t: store.read(t, [run]).drop(columns="run") for t in ("cases", "history", "pseudo")}
    failed = {"run": other, "seed": 1, "state": "failed", "error": "x", "spec": json.dumps(spec)}
    store.commit(other, tables, record | failed, {})
    derived = new(tmp_path)
    assert len(rescore(store, derived, Policy(Component.LARGEST), toy.root)) == 2
    row = load_facts(derived, "last", "tcseg").summary.iloc[0]
    assert (row["finished"], row["started"]) == (1, 2)


def test_what_cannot_be_rescored_is_refused(trained: Store, toy: Toy, tmp_path: Path) -> None:
    run = str(trained.records()["run"].item())
    tables = {t: trained.read(t, [run]) for t in ("cases", "history", "pseudo")}
    without = Store.open(tmp_path / "without", create=True)
    with pytest.raises(UserError, match="holds no run yet"):
        rescore(without, new(tmp_path), Policy(), toy.root)
    without.commit(run, tables, trained.record(run), {})
    with pytest.raises(UserError, match=r"1 of 1 finished runs .* keep no predictions"):
        rescore(without, new(tmp_path), Policy(), toy.root)
    predictions = trained.read("predictions", [run])
    for change, message in (
        (predictions.assign(mask=b"\x80"), "are damaged at case"),
        (
            predictions.assign(**columns_of(np.ones((2, 2, 2), dtype=bool))),
            r"has shape \(2, 2, 2\), its volume",
        ),
    ):
        store = Store.open(tmp_path / message[:3], create=True)
        store.commit(run, tables | {"predictions": change}, trained.record(run), {})
        with pytest.raises(UserError, match=message):
            rescore(store, new(tmp_path), Policy(), toy.root)


def test_the_command_makes_a_store(
    trained: Store,
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def bench(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    command = ("rescore", "--store", trained.path, "--data", toy.root, "--component", "largest")
    assert bench(*command, "--to", tmp_path / "new") == 0
    assert len(Store(tmp_path / "new").records()) == 1
    assert bench(*command, "--to", trained.path) == 2
    assert "--to is the store itself" in capsys.readouterr().err


def test_the_floor_of_a_dataset_is_left_out(trained: Store, toy: Toy, tmp_path: Path) -> None:
    both = corrupted(trained, tmp_path / "both")
    (run,) = both.records()["run"]
    record = both.record(str(run)) | {"run": "atlas-x", "method": "atlas"}
    tables = {
        t: both.read(t, [str(run)]).drop(columns="run") for t in ("cases", "history", "pseudo")
    }
    both.commit("atlas-x", tables, record, {})
    assert rescore(both, new(tmp_path), Policy(), toy.root) == [run]
