"""Signed distances against the definition, SciPy, and between the ways to compute them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from benchmark.data import distance
from benchmark.data.distance import signed_distance, squared_distance
from tests.data.made_data import ball

masks = st.tuples(
    st.tuples(*[st.integers(1, 14)] * 3), st.sampled_from([0.02, 0.3, 0.9]), st.integers(0, 99)
)


def drawn(shape: tuple[int, int, int], share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((2, *shape)) < share).astype(np.uint8)


def signed_by_scipy(label: np.ndarray) -> np.ndarray:
    """The same formula over SciPy's distances."""
    inside = label.astype(bool)
    if not inside.any():
        return np.zeros(label.shape, np.float32)
    if inside.all():
        return np.full(label.shape, -1, np.float32)
    outer, inner = map(ndimage.distance_transform_edt, (~inside, inside))
    signed = outer / outer.max() - inner / inner.max()
    signed[inner == 1] = 0
    return signed.astype(np.float32)


def naive_signed_distance(label: np.ndarray) -> np.ndarray:
    """Distances by looking at every pair of voxels."""
    inside, outside = np.argwhere(label == 1), np.argwhere(label == 0)
    outer, inner = np.zeros(label.shape), np.zeros(label.shape)
    for point in outside:
        outer[tuple(point)] = np.sqrt(np.square(inside - point).sum(1).min())
    for point in inside:
        inner[tuple(point)] = np.sqrt(np.square(outside - point).sum(1).min())
    signed = outer / outer.max() - inner / inner.max()
    signed[inner == 1] = 0
    return signed


@pytest.mark.parametrize("seed", range(3))
def test_signed_distance_equals_the_naive_one(seed):
    label = drawn((6, 7, 5), 0.6, seed)
    expected = np.stack([naive_signed_distance(one) for one in label])[:, None]
    assert np.array_equal(signed_distance(torch.from_numpy(label)), expected.astype(np.float32))


@given(masks)
def test_signed_distance_has_the_bits_that_scipy_gives(mask):
    label = drawn(*mask)
    expected = np.stack([signed_by_scipy(one) for one in label])[:, None]
    made = signed_distance(torch.from_numpy(label).long())
    assert made.dtype == torch.float32
    assert np.array_equal(made, expected)


@given(masks)
def test_both_ways_to_find_the_nearest_agree(mask):
    feature = torch.from_numpy(drawn(*mask)).bool()
    by_shifts = squared_distance(feature)
    with pytest.MonkeyPatch.context() as way:
        way.setattr(distance, "_by_shifts", distance._by_pairs)
        assert torch.equal(squared_distance(feature), by_shifts)


def test_distances_beyond_sixteen_bits_are_exact():
    feature = torch.zeros((1, 230, 150, 3), dtype=torch.bool)
    feature[0, 0, 0, 0] = True
    x, y, z = np.ogrid[:230, :150, :3]
    assert np.array_equal(squared_distance(feature)[0], x**2 + y**2 + z**2)


def test_where_there_is_no_feature_all_are_equally_far():
    empty = torch.zeros((1, 5, 4, 3), dtype=torch.bool)
    assert (squared_distance(empty) == 4**2 + 3**2 + 2**2 + 1).all()


def test_signed_distance_is_negative_inside_and_zero_on_the_inner_boundary():
    signed = signed_distance(torch.from_numpy(ball())[None])[0, 0]
    assert signed[10, 9, 8] == -1
    assert signed[0, 0, 0] == 1
    assert signed[5, 9, 8] == 0
    assert signed[4, 9, 8] > 0


def test_signed_distance_of_one_sided_patches_is_defined():
    assert not signed_distance(torch.zeros(1, 4, 4, 4)).any()
    assert (signed_distance(torch.ones(1, 4, 4, 4)) == -1).all()
