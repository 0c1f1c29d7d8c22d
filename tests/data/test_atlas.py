"""The floor: a predictor that never looks at an image."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmark import floor
from benchmark.cli import app
from benchmark.data import open_dataset
from benchmark.data.atlas import GRID, build
from benchmark.data.base import Dataset, Volume
from reports.facts import load_facts
from results.errors import UserError
from results.store import Store
from tests.data.made_data import ball
from tests.protocols import toy

STEPS = (100, 200)


@pytest.fixture(scope="module")
def phantom() -> Dataset:
    return open_dataset("phantom", None)


def ran(dataset: Dataset, method: str, scale: float = 0.5, **changes) -> tuple[dict, dict]:
    """A spec on a dataset, and what of the record follows."""
    described = {
        "name": dataset.card.name,
        "fingerprint": dataset.fingerprint,
        "geometry": {"patch": [16] * 3, "stride": [8] * 3, "scale": scale},
    }
    content = toy.spec(method, **{"labelled": 3, **changes}) | {"dataset": described}
    return content, {"unit": "voxel", "unlabelled": 27}


def fill(store: Store, dataset: Dataset, method: str, **changes) -> None:
    content, record = ran(dataset, method, **changes)
    run = toy.run_id(method, content["seed"], dataset.card.name, str(content["labelled"]))
    parts = [
        toy.cases(run, dict.fromkeys(STEPS, [0.5] * len(dataset.splits[split])), split=split)
        for split in ("val", "test")
    ]
    rows = pd.concat(parts, ignore_index=True)
    for split in ("val", "test"):
        own = rows["split"] == split
        rows.loc[own, "case"] = list(dataset.splits[split]) * len(STEPS)
    toy.add(store, rows, content, **record)


def test_the_atlas_of_one_label_is_that_label():
    label = ball((32, 32, 32), 9)
    mask = build([label]).segment((32, 32, 32))
    assert 2 * (mask & (label > 0)).sum() / (mask.sum() + label.sum()) > 0.97


def test_the_atlas_follows_the_volume_and_not_the_voxel():
    small, large = ball((24, 24, 24), 6), ball((48, 48, 48), 12)
    mask = build([small]).segment((48, 48, 48))
    assert 2 * (mask & (large > 0)).sum() / (mask.sum() + large.sum()) > 0.9


def test_the_atlas_holds_as_many_voxels_as_the_mean_label():
    labels = [ball((40, 40, 40), radius) for radius in (6, 9, 12)]
    share = np.mean([label.mean() for label in labels])
    assert build(labels).segment(GRID).mean() == pytest.approx(share, rel=0.05)


def test_the_shares_are_the_mean_of_the_labels():
    a, b = np.zeros(GRID, "u1"), np.zeros(GRID, "u1")
    a[:32], b[:, :32] = 1, 1
    atlas = build([a, b])
    assert np.array_equal(atlas.share, (a.astype("f4") + b) / 2)


def test_nothing_is_foreground_where_no_label_ever_was():
    label = np.zeros((16, 16, 16), "u1")
    label[3, 3, 3] = 1
    mask = build([label]).segment((16, 16, 16))
    assert mask.any()
    assert not mask[8:].any()
    assert not build([np.zeros((8, 8, 8), "u1")]).segment((8, 8, 8)).any()


def test_an_atlas_of_no_label_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        build([])


def test_the_images_change_nothing(phantom):
    def blank(case: str) -> Volume:
        volume = phantom.load(case)
        return Volume(np.zeros_like(volume.image), volume.label, volume.spacing)

    assert floor.measure(phantom, 3, 0.5) == floor.measure(replace(phantom, load=blank), 3, 0.5)


def test_only_the_labelled_cases_count_and_every_evaluated_case_is_measured(phantom):
    kept = {*phantom.splits["train"][:3], *phantom.splits["val"], *phantom.splits["test"]}
    asked = set()

    def load(case: str) -> Volume:
        asked.add(case)
        return phantom.load(case)

    rows = floor.measure(replace(phantom, load=load), 3, 0.5, jobs=2)
    assert asked == kept
    assert [(r["split"], r["case"]) for r in rows] == [
        (split, case) for split in ("val", "test") for case in phantom.splits[split]
    ]
    assert all(0 < r["dsc"] < 1 for r in rows)


def test_more_labelled_cases_than_there_are_is_an_error(phantom):
    with pytest.raises(UserError, match="31 labelled cases of phantom: it has 30"):
        floor.measure(phantom, 31)


def test_the_floor_stands_beside_the_methods_of_every_setting(phantom, tmp_path):
    store = Store.open(tmp_path / "runs", create=True)
    fill(store, phantom, "mt")
    fill(store, phantom, "tcseg", seed=1)
    fill(store, phantom, "mt", labelled=6)
    runs = floor.add_runs(store, phantom)
    assert len(set(runs)) == 2
    for rule in ("last", "best", "best(split=val)"):
        summary = load_facts(store, rule, "tcseg").summary
        assert summary["setting"].nunique() == 2
        by_setting = summary.groupby("setting")["method"].apply(set).tolist()
        assert by_setting == [{"mt", "tcseg", "atlas"}, {"mt", "atlas"}]
        row = summary[(summary["method"] == "atlas") & (summary["labelled"] == 3)].iloc[0]
        rows = floor.measure(phantom, 3, 0.5)
        expected = np.mean([r["dsc"] for r in rows if r["split"] == "test"])
        assert row["dsc_median"] == pytest.approx(expected)
        assert row["finished"] == row["started"] == 1


def test_the_floor_is_added_once(phantom, tmp_path):
    store = Store.open(tmp_path / "runs", create=True)
    fill(store, phantom, "mt")
    first = floor.add_runs(store, phantom)
    files = {p: p.read_bytes() for p in sorted(store.path.rglob("*")) if p.is_file()}
    assert floor.add_runs(store, phantom) == first
    assert {p: p.read_bytes() for p in sorted(store.path.rglob("*")) if p.is_file()} == files


def test_runs_on_other_data_rescored_and_failed_ones_give_no_setting(phantom, tmp_path):
    store = Store.open(tmp_path / "runs", create=True)
    toy.add(store, toy.cases(toy.run_id(), {100: [0.5]}), toy.spec())
    content, record = ran(phantom, "mt")
    content["rescored"] = {"component": "largest"}
    toy.add(store, toy.cases("mt-r", {100: [0.5]}), content, **record)
    content, record = ran(phantom, "mt", seed=4)
    toy.add(store, toy.cases("mt-f", {100: [0.5]}), content, state="failed", **record)
    with pytest.raises(UserError, match=r"holds no finished run on phantom with fingerprint"):
        floor.add_runs(store, phantom)


def test_the_command_prints_the_floor_and_writes_its_cases(tmp_path):
    out = tmp_path / "floor.csv"
    command = ["data", "floor", "phantom", "--labelled", "3", "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert "3 of 30" in result.output
    table = pd.read_csv(out)
    assert table["case"].nunique() == len(table) == 16


def test_empty_predictions_count_in_the_means_that_are_printed(monkeypatch):
    rows = toy.cases("atlas", {100: [0.8, 0.6]}, empty=[(100, 1)])
    monkeypatch.setattr(floor, "measure", lambda *_, **__: rows.to_dict("records"))
    result = CliRunner().invoke(app, ["data", "floor", "phantom", "--labelled", "3"])
    assert result.exit_code == 0
    assert "40.00" in result.output
    assert "51.00" in result.output  # ASD: (2 + 100) / 2
    assert "an empty mask counts" in " ".join(result.output.split())


def test_the_command_adds_it_to_a_store(phantom, tmp_path):
    store = Store.open(tmp_path / "runs", create=True)
    fill(store, phantom, "mt")
    result = CliRunner().invoke(app, ["data", "floor", "phantom", "--store", str(store.path)])
    assert "1 run(s) of atlas" in result.output
    record = store.records().set_index("method").loc["atlas"]
    assert json.loads(record["spec"])["method"]["name"] == "atlas"
    both = ["data", "floor", "phantom", "--store", str(store.path), "--labelled", "3"]
    assert isinstance(CliRunner().invoke(app, both).exception, UserError)
