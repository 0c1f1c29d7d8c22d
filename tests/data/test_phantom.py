"""The embedded dataset."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from benchmark.data import SOURCES, open_dataset, phantom
from benchmark.data.base import SPLITS, Dataset
from benchmark.data.inspection import check_prepared
from results.errors import UserError

PINNED = {
    "train-00": "dca0f64829e3ec09466be07e8910ed3a2e00b1f31abd37fab4e465d138c6fcb7",
    "test-11": "a36a8fef5c9e3a105b4bb747938bcae2f1142181e3aacd54b95ba13348094baf",
}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return open_dataset("phantom", Path("nowhere"))


def test_it_needs_no_files(dataset):
    assert dataset.folder is None
    assert dataset.complete
    assert dataset.label == "phantom"
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("case", PINNED)
def test_voxels_are_pinned_so_that_a_change_bumps_the_version(dataset, case):
    """When this fails on purpose, bump `phantom.VERSION` and pin the new digests."""
    volume = dataset.load(case)
    digest = hashlib.sha256(volume.image.tobytes() + volume.label.tobytes()).hexdigest()
    assert (phantom.VERSION, digest) == (1, PINNED[case])


def test_a_case_does_not_depend_on_what_was_drawn_before(dataset):
    first = dataset.load("val-02")
    dataset.load("train-00")
    assert np.array_equal(first.image, dataset.load("val-02").image)


def test_every_case_can_be_used_and_no_two_are_alike(dataset):
    assert check_prepared(dataset) == []


def test_volumes_are_normalised_and_about_as_large_as_announced(dataset):
    for case in dataset.splits["test"]:
        volume = dataset.load(case)
        assert volume.image.dtype == np.float32
        assert abs(volume.image.mean()) < 1e-5
        assert volume.image.std() == pytest.approx(1, abs=1e-5)
        assert np.all(np.abs(np.subtract(volume.label.shape, (48, 48, 32))) <= (3, 3, 2))


def test_the_target_is_one_body_with_a_small_share_of_the_volume(dataset):
    for case in dataset.splits["train"]:
        label = dataset.load(case).label
        _, components = ndimage.label(label, np.ones((3, 3, 3)))
        assert components == 1
        assert 0.02 < label.mean() < 0.15


def test_thresholding_cannot_solve_it(dataset):
    """Look-alikes are as bright: the best threshold of each case stays far from the label."""
    best = []
    for case in dataset.splits["test"]:
        volume = dataset.load(case)
        label = volume.label.astype(bool)
        best.append(
            max(_dice(ndimage.gaussian_filter(volume.image[0], 1) > t, label) for t in (0.5, 1, 2))
        )
    assert np.mean(best) < 0.75


def test_the_fingerprint_follows_what_is_drawn(dataset, monkeypatch):
    monkeypatch.setattr(phantom, "VERSION", phantom.VERSION + 1)
    assert SOURCES["phantom"].open(Path()).fingerprint != dataset.fingerprint
    monkeypatch.undo()
    assert SOURCES["phantom"].open(Path()).fingerprint == dataset.fingerprint
    monkeypatch.setattr(phantom, "DIFFICULTY", phantom.Difficulty(gap=3.0))
    assert SOURCES["phantom"].open(Path()).fingerprint != dataset.fingerprint


def test_the_splits_have_the_announced_sizes(dataset):
    assert {split: len(dataset.splits[split]) for split in SPLITS} == phantom.COUNTS


def test_preparing_it_says_that_there_is_nothing_to_do(tmp_path):
    with pytest.raises(UserError, match="needs no preparation"):
        SOURCES["phantom"].prepare(tmp_path, tmp_path, print)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.sum(a & b) / (a.sum() + b.sum())
