"""Volumes at reduced resolution."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.data import SOURCES, open_dataset, volumes
from benchmark.data.base import Coded, Dataset, Volume
from benchmark.data.volumes import load_volumes, reduce_volume, reduced_shape
from results.errors import UserError
from tests.data.made_data import quiet, volume


def naive_average(array: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    out = np.zeros(size)
    for index in np.ndindex(*size):
        window = tuple(
            slice(i * n // m, -(-(i + 1) * n // m))
            for i, n, m in zip(index, array.shape, size, strict=True)
        )
        out[index] = array[window].mean()
    return out


@given(shape=st.tuples(*[st.integers(1, 12)] * 3), scale=st.floats(0.1, 1))
def test_reduction_averages_over_areas(shape, scale):
    rng = np.random.default_rng(0)
    label = (rng.random(shape) < 0.7).astype(np.uint8)
    share = naive_average(label, reduced_shape(shape, scale))
    image = rng.standard_normal((2, *shape)).astype(np.float32)
    if not (share >= 0.5).any():
        return
    reduced = reduce_volume(Volume(image, label, (1.0, 1.0, 1.0)), scale)
    for channel, expected in zip(reduced.image, image, strict=True):
        assert np.allclose(channel, naive_average(expected, share.shape), atol=1e-6)
    assert np.array_equal(reduced.label, share >= 0.5)


def test_a_voxel_that_is_half_foreground_is_foreground():
    label = np.zeros((4, 4, 4), np.uint8)
    label[:2, :1] = 1
    image = np.zeros((1, 4, 4, 4), np.float32)
    assert reduce_volume(Volume(image, label, (1.0, 1.0, 1.0)), 0.5).label[0, 0].tolist() == [1, 1]


def test_spacing_grows_so_that_lengths_stay():
    whole = Volume(*_arrays((35, 51, 36)), (1.0, 0.5, 2.0))
    reduced = reduce_volume(whole, 0.4)
    assert reduced.label.shape == (14, 20, 14)
    lengths = np.multiply(reduced.spacing, reduced.label.shape)
    assert lengths == pytest.approx([35, 25.5, 72])


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match=r"not in \(0, 1\]"):
        reduce_volume(volume(), scale)


def test_a_label_that_vanishes_is_an_error_with_a_remedy():
    tiny = volume()
    tiny.label[:] = 0
    tiny.label[3, 3, 3] = 1
    dataset = Dataset(SOURCES["la"].card, {"train": ("a",)}, "f", load=lambda case: tiny)
    dataset.splits.update(val=(), test=())
    with pytest.raises(UserError, match=r"label of a vanishes.*finer resolution"):
        load_volumes(dataset, ["a"], 0.4)


def test_full_resolution_is_kept_as_codes(la: Dataset):
    loaded = load_volumes(la, la.splits["train"])
    assert list(loaded) == list(la.splits["train"])
    assert all(isinstance(v.stored, Coded) for v in loaded.values())


def test_a_case_whose_reduced_volume_is_there_is_not_read(la: Dataset):
    case = la.splits["train"][0]
    computed = load_volumes(la, [case], 0.5)[case]
    cached = load_volumes(replace(la, load=None), [case], 0.5)[case]
    assert np.array_equal(cached.image, computed.image)
    assert cached.spacing == computed.spacing


def test_reduced_volumes_are_kept_in_the_datasets_folder(la: Dataset):
    case = la.splits["train"][0]
    computed = load_volumes(la, [case], 0.5)[case]
    kept = la.folder / "reduced-0.5-v1"
    assert sorted(path.name for path in kept.iterdir()) == [
        f"{case}.image.npy",
        f"{case}.json",
        f"{case}.label.npy",
    ]
    cached = load_volumes(la, [case], 0.5)[case]
    assert np.array_equal(cached.image, computed.image)
    assert np.array_equal(cached.label, computed.label)
    assert cached.spacing == computed.spacing


def test_the_cache_is_used(la: Dataset, monkeypatch):
    case = la.splits["train"][0]
    computed = load_volumes(la, [case], 0.5)[case]
    monkeypatch.setattr(volumes, "reduce_volume", None)
    assert np.array_equal(load_volumes(la, [case], 0.5)[case].image, computed.image)


@pytest.mark.parametrize("ending", ["image.npy", "label.npy", "json"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"rubbish" * 100, b"{}", None])
def test_a_damaged_cache_is_made_again(la: Dataset, ending, content):
    case = la.splits["train"][0]
    good = load_volumes(la, [case], 0.5)[case]
    path = la.folder / "reduced-0.5-v1" / f"{case}.{ending}"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    again = load_volumes(la, [case], 0.5)[case]
    assert np.array_equal(again.image, good.image)
    assert np.array_equal(again.label, good.label)
    assert path.read_bytes() == whole


def test_cached_voxels_that_were_changed_are_not_used(la: Dataset):
    case = la.splits["train"][0]
    good = load_volumes(la, [case], 0.5)[case]
    path = la.folder / "reduced-0.5-v1" / f"{case}.image.npy"
    np.save(path, np.full_like(np.load(path), 3))
    assert np.array_equal(load_volumes(la, [case], 0.5)[case].image, good.image)


def test_a_cache_made_of_another_volume_is_not_used(la: Dataset):
    first, second = la.splits["train"][:2]
    good = {case: load_volumes(la, [case], 0.5)[case].image for case in (first, second)}
    folder = la.folder / "reduced-0.5-v1"
    for ending in ("image.npy", "label.npy", "json"):
        (folder / f"{first}.{ending}").replace(folder / f"{second}.{ending}")
    assert np.array_equal(load_volumes(la, [second], 0.5)[second].image, good[second])


def test_a_cache_made_at_another_scale_is_not_used(la: Dataset):
    case = la.splits["train"][0]
    coarse = load_volumes(la, [case], 0.4)[case]
    load_volumes(la, [case], 0.5)
    (la.folder / "reduced-0.4-v1").rename(la.folder / "moved")
    (la.folder / "reduced-0.5-v1").rename(la.folder / "reduced-0.4-v1")
    assert load_volumes(la, [case], 0.4)[case].image.shape == coarse.image.shape


def test_writers_that_fill_the_cache_at_once_agree(la: Dataset):
    case = la.splits["train"][0]
    expected = load_volumes(replace(la, folder=None), [case], 0.5)[case]
    folder = la.folder / "reduced-0.5-v1"

    def fill(_: int) -> Volume:
        (folder / f"{case}.json").unlink(missing_ok=True)
        return load_volumes(la, [case], 0.5)[case]

    with ThreadPoolExecutor(4) as pool:
        for kept in pool.map(fill, range(40)):
            assert np.array_equal(kept.image, expected.image)
            assert np.array_equal(kept.label, expected.label)
    assert len(list(folder.iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_done_without(la: Dataset):
    case = la.splits["train"][0]
    (la.folder / "reduced-0.5-v1").write_text("in the way")
    assert load_volumes(la, [case], 0.5)[case].label.any()


def _arrays(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    made = volume(shape=shape, radius=9)
    return made.image, made.label


@pytest.fixture
def la(la_source: Path, tmp_path: Path) -> Dataset:
    SOURCES["la"].prepare(la_source, tmp_path / "root", quiet)
    return open_dataset("la", tmp_path / "root")
