"""Masks become bytes and come back; a store keeps them beside a run, or not."""

import errno
import os
from contextlib import suppress

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from results.errors import UserError
from results.parquet import encode
from results.predictions import columns_of, load_masks, pack, unpack
from results.store import ConflictError, Store
from tests.protocols import toy

RUN = toy.run_id()
MASKS = {
    "case0": np.indices((6, 5, 4)).sum(0) % 5 < 2,
    "case1": np.zeros((3, 4, 5), dtype=bool),
}


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


def predictions(masks=MASKS, *, step=3000, predictor="main", run=RUN):
    keys = {"run": run, "step": step, "predictor": predictor, "split": "test"}
    return pd.DataFrame([keys | {"case": case} | columns_of(m) for case, m in masks.items()])


def commit(store, frame=None, **changes):
    tables = toy.tables(toy.cases(RUN, {3000: (0.5, 0.6)}))
    kept = {} if frame is None else {"predictions": frame}
    return store.commit(RUN, tables | kept, toy.record(RUN, **changes), {})


def naive(mask):
    """Runs of a mask, counted voxel by voxel, as LEB128 by its definition."""
    lengths, current = [0], False
    for voxel in mask.ravel():
        if voxel != current:
            lengths.append(0)
            current = not current
        lengths[-1] += 1
    out = bytearray()
    for length in lengths:
        while length >= 128:
            out.append(length % 128 + 128)
            length //= 128
        out.append(length)
    return bytes(out)


# Masks and bytes


@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=9)))
def test_any_mask_comes_back_and_its_bytes_are_what_the_page_says(mask):
    assert pack(mask) == naive(mask)
    np.testing.assert_array_equal(unpack(pack(mask), mask.shape), mask)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 2**14 - 1, 2**14, 2**21, 2**21 + 1])
@pytest.mark.parametrize("value", [False, True])
def test_runs_of_any_length_come_back(length, value):
    mask = np.full((1, 1, length + 1), value)
    mask[..., -1] = not value
    np.testing.assert_array_equal(unpack(pack(mask), mask.shape), mask)


def test_the_order_of_the_array_in_memory_changes_nothing():
    mask = MASKS["case0"]
    assert pack(np.asfortranarray(mask)) == pack(mask)


@given(st.binary(max_size=12))
def test_bytes_are_a_mask_of_that_size_or_refused(content):
    """A `ValueError`, and no other."""
    with suppress(ValueError):
        assert unpack(content, (2, 3, 4)).shape == (2, 3, 4)


def test_a_mask_is_not_taken_for_one_of_another_size():
    with pytest.raises(ValueError, match="its runs hold 120 voxels, not 60"):
        unpack(pack(MASKS["case0"]), (3, 4, 5))


def test_a_smooth_organ_takes_a_few_kilobytes():
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (175, 132, 88)), indexing="ij"))
    mask = (grid**2).sum(0) < 0.3
    encoded = encode("predictions", predictions({"ball": mask}))
    assert len(encoded) < 15_000 < np.packbits(mask).nbytes


# In a store


def test_what_was_kept_is_read_back(store):
    commit(store, predictions())
    assert store.has("predictions", RUN)
    back = load_masks(store, RUN, 3000, "main", ["case1", "case0"])
    assert list(back) == ["case1", "case0"]
    for case, mask in back.items():
        np.testing.assert_array_equal(mask, MASKS[case])
    assert len(store.read("predictions")) == 2


def test_equal_predictions_are_equal_bytes_whatever_holds_the_text():
    frame = predictions()
    text = dict.fromkeys(("run", "predictor", "split", "case"), "category")
    assert encode("predictions", frame.astype(text)) == encode("predictions", frame)


def test_a_store_without_any_is_as_before(store):
    commit(store)
    assert not store.has("predictions", RUN)
    assert store.read("predictions").empty
    assert not (store.path / "predictions").exists()
    with pytest.raises(UserError, match="keeps no predictions: train it into another store with"):
        load_masks(store, RUN, 3000, "main", ["case0"])


def test_only_runs_that_have_some_are_read(store):
    commit(store, predictions())
    other = toy.run_id(seed=1)
    toy.add(store, toy.cases(other, {3000: (0.5, 0.6)}), toy.spec(seed=1))
    assert set(store.read("predictions")["run"]) == {RUN}


def test_the_first_attempt_wins(store):
    assert commit(store, predictions()) == "committed"
    assert commit(store, predictions()) == "already"
    with pytest.raises(ConflictError, match="predictions"):
        commit(store, predictions({"case0": ~MASKS["case0"], "case1": MASKS["case1"]}))


def test_they_are_there_before_the_record_says_so(store, monkeypatch):
    real = Store._publish

    def until_the_record(self, final, run, content):
        if final.parent.name == "runs":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, final, run, content)

    monkeypatch.setattr(Store, "_publish", until_the_record)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        commit(store, predictions())
    assert (store.path / "predictions" / f"{RUN}.parquet").exists()
    assert not store.has("predictions", RUN)
    monkeypatch.undo()
    assert commit(store, predictions()) == "committed"


def test_a_discarded_run_takes_them_along(store):
    commit(store, predictions(), state="failed")
    store.discard_failed(RUN)
    assert not list((store.path / "predictions").iterdir())


def test_parts_beyond_a_lost_checkpoint_go_with_the_others(store):
    for step in (1000, 2000):
        store.write_part(RUN, "predictions", step, predictions(step=step))
    store.drop_parts_after(RUN, 1000)
    assert set(store.read_parts(RUN, "predictions")["step"]) == {1000}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((2000, "main", ["case0"]), "are of step 3000, not 2000; .*--keep-predictions all"),
        ((3000, "mean", ["case0"]), "are of predictor main, not mean"),
        ((3000, "main", ["case0", "case7"]), "hold no case case7 at step 3000"),
    ],
)
def test_what_was_not_kept_is_named(store, asked, message):
    commit(store, predictions())
    with pytest.raises(UserError, match=message):
        load_masks(store, RUN, *asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(z=f["z"] + 1), "damaged at case case0: its runs hold 120 voxels"),
        (lambda f: f.assign(mask=b"\x80"), "damaged at case case0: the runs of voxels are cut off"),
        (lambda f: f.assign(mask=b"\xff" * 9 + b"\x01"), "damaged at case case0: a run of voxels"),
    ],
)
def test_damaged_masks_are_named(store, change, message):
    commit(store, change(predictions()))
    with pytest.raises(UserError, match=message):
        load_masks(store, RUN, 3000, "main", ["case0"])


def test_a_damaged_file_is_named(store):
    commit(store, predictions())
    path = store.path / "predictions" / f"{RUN}.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"predictions.* cannot be read"):
        load_masks(store, RUN, 3000, "main", ["case0"])


@pytest.mark.parametrize("mask", ["text", None, 3])
def test_masks_are_bytes(store, mask):
    with pytest.raises(ValueError, match=r"predictions\.mask: expected bytes"):
        commit(store, predictions().assign(mask=mask))


def test_other_programs_find_plain_columns(store):
    commit(store, predictions())
    table = pq.read_table(store.path / "predictions" / f"{RUN}.parquet")
    assert table.column_names == ["run", "step", "predictor", "split", "case", *"xyz", "mask"]
    assert table["mask"][0].as_py() == naive(MASKS["case0"])
