"""What a step trains on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.data.sampling import (
    LABELLED,
    UNLABELLED,
    Sampler,
    crop_into,
    draw_overlapping,
    draw_start,
    padding,
    rotflip,
    signed_distance,
)
from results.errors import UserError
from tests.data.made_data import ball, volume

VOLUMES = {name: volume(seed) for seed, name in enumerate("abcdefgh")}


def sampler(**changes) -> Sampler:
    arguments = {
        "volumes": VOLUMES,
        "labelled": ("a", "b", "c"),
        "unlabelled": ("d", "e", "f", "g", "h"),
        "patch": (12, 12, 12),
        "augmentation": "rotflip",
        "inputs": ("image", "label", "unlabelled"),
        "seed": 0,
    }
    return Sampler(**{**arguments, **changes})


def equal(a, b) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("image", "label", "unlabelled")
    )


def test_a_batch_has_the_declared_shapes_and_types():
    batch = sampler(inputs=("image", "label", "unlabelled", "sdf"))(0)
    assert batch.image.shape == (2, 1, 12, 12, 12)
    assert batch.image.dtype == torch.float32
    assert batch.label.shape == (2, 12, 12, 12)
    assert batch.label.dtype == torch.int64
    assert batch.unlabelled.shape == (2, 1, 12, 12, 12)
    assert batch.extras["sdf"].shape == (2, 1, 12, 12, 12)


def test_a_step_gives_the_same_bytes_whatever_was_drawn_before():
    straight, jumping = sampler(), sampler()
    batches = [straight(step) for step in range(6)]
    assert equal(jumping(5), batches[5])
    assert equal(jumping(2), batches[2])
    assert not equal(batches[2], batches[5])


def test_global_random_state_is_neither_read_nor_changed():
    before = torch.random.get_rng_state()
    first = sampler()(3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(1)
    assert equal(first, sampler()(3))


def test_another_seed_gives_other_batches():
    assert not equal(sampler(seed=0)(0), sampler(seed=1)(0))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_epoch_visits_each_case_once(size):
    draw = sampler(labelled_batch=size)
    visits = [case for step in range(30) for case in draw.cases(step, LABELLED)]
    epochs = [visits[i : i + 3] for i in range(0, len(visits) - 2, 3)]
    assert all(sorted(epoch) == ["a", "b", "c"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_all_unlabelled_cases_are_seen_equally_often():
    draw = sampler()
    visits = Counter(case for step in range(50) for case in draw.cases(step, UNLABELLED))
    assert visits == dict.fromkeys("defgh", 20)


def test_labelled_patches_do_not_depend_on_the_unlabelled_stream():
    alone = sampler(inputs=("image", "label"), unlabelled=())
    larger = sampler(unlabelled_batch=4)
    for step in range(5):
        for other in (alone(step), larger(step)):
            assert torch.equal(sampler()(step).image, other.image)
            assert torch.equal(sampler()(step).label, other.label)


def test_unlabelled_patches_do_not_depend_on_the_labelled_batch_size():
    assert torch.equal(sampler()(3).unlabelled, sampler(labelled_batch=4)(3).unlabelled)


def test_a_method_without_unlabelled_input_gets_none():
    assert sampler(inputs=("image", "label"))(0).unlabelled.shape == (0, 1, 12, 12, 12)


def test_image_and_label_are_cropped_and_turned_alike():
    marked = {"a": volume()}
    marked["a"].image[0] = marked["a"].label
    batch = sampler(volumes=marked, labelled=("a",), unlabelled=(), inputs=("image", "label"))(0)
    assert batch.label.any()
    assert torch.equal(batch.image[:, 0].long(), batch.label)


def test_without_rotflip_patches_keep_their_orientation():
    ramp = volume()
    ramp.image[0] = np.arange(20)[:, None, None]
    draw = sampler(volumes={"a": ramp}, labelled=("a",), unlabelled=(), inputs=("image",))
    cropped = sampler(**{**vars(draw), "augmentation": "crop"})
    assert all((cropped(s).image.diff(dim=2) == 1).all() for s in range(8))
    assert not all((draw(s).image.diff(dim=2) == 1).all() for s in range(8))


def test_a_volume_smaller_than_the_patch_is_padded_with_zeros():
    batch = sampler(patch=(32, 32, 32))(0)
    assert batch.image.shape == (2, 1, 32, 32, 32)
    assert (batch.image[0] == 0).any()
    assert batch.label.sum(dim=(1, 2, 3)).tolist() == [int(ball().sum())] * 2


def test_a_volume_of_the_patch_size_works_although_the_field_pads_it():
    assert sampler(patch=(20, 18, 16))(0).image.shape == (2, 1, 20, 18, 16)


def test_sources_are_left_as_they_are():
    before = {name: v.image.copy() for name, v in VOLUMES.items()}
    sampler()(0).image.fill_(7)
    assert all(np.array_equal(before[name], v.image) for name, v in VOLUMES.items())


def test_an_unknown_input_is_named():
    with pytest.raises(UserError, match=r"unknown input 'sfd'\. Did you mean 'sdf'"):
        sampler(inputs=("image", "sfd"))


def test_a_stream_without_cases_is_refused():
    with pytest.raises(ValueError, match="no labelled case"):
        sampler(labelled=())
    with pytest.raises(ValueError, match="no unlabelled case"):
        sampler(unlabelled=())


def test_rotflip_has_four_outcomes_and_all_are_mirror_images():
    square = np.arange(9).reshape(3, 3, 1)
    outcomes = {rotflip(square, k, axis).tobytes() for k in range(4) for axis in (0, 1)}
    rotations = {np.rot90(square, k).tobytes() for k in range(4)}
    mirrored = {np.rot90(square[::-1], k).tobytes() for k in range(4)}
    assert outcomes == mirrored
    assert len(outcomes) == 4
    assert not outcomes & rotations


def test_rotflip_turns_first_and_mirrors_then():
    array = np.arange(24).reshape(1, 2, 3, 4)
    expected = np.rot90(array[0], 1, axes=(0, 1))[::-1]
    assert np.array_equal(rotflip(array, 1, 0)[0], expected)


@pytest.mark.parametrize(
    ("shape", "patch", "expected"),
    [
        ((20, 20, 20), (16, 16, 16), (0, 0, 0)),
        ((16, 20, 21), (16, 16, 16), (3, 1, 0)),  # one short axis pads all up to four longer
        ((10, 11, 40), (16, 16, 16), (6, 5, 0)),
    ],
)
def test_padding_follows_the_field(shape, patch, expected):
    assert padding(shape, patch) == expected


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    patch=st.tuples(*[st.integers(1, 40)] * 3),
    seed=st.integers(0, 100),
)
def test_a_crop_equals_that_of_the_padded_copy(shape, patch, seed):
    array = np.random.default_rng(seed).random((2, *shape))
    start = draw_start(np.random.default_rng(seed), shape, patch)
    pads = padding(shape, patch)
    padded = np.pad(array, [(0, 0), *((p, p) for p in pads)])
    begin = [s + p for s, p in zip(start, pads, strict=True)]
    window = tuple(slice(b, b + n) for b, n in zip(begin, patch, strict=True))
    assert all(b >= 0 for b in begin)
    out = np.zeros((2, *patch))
    crop_into(out, array, start)
    assert np.array_equal(out, padded[(slice(None), *window)])


def test_a_crop_never_begins_at_the_last_offset():
    rng = np.random.default_rng(0)
    starts = {draw_start(rng, (20, 18, 15), (16, 16, 12)) for _ in range(400)}
    assert {x for x, _, _ in starts} == {0, 1, 2, 3}
    assert {y for _, y, _ in starts} == {0, 1}
    assert {z for _, _, z in starts} == {0, 1, 2}


def naive_signed_distance(label: np.ndarray) -> np.ndarray:
    """Distances by looking at every pair of voxels."""
    inside, outside = np.argwhere(label == 1), np.argwhere(label == 0)
    outer, inner = np.zeros(label.shape), np.zeros(label.shape)
    for point in outside:
        outer[tuple(point)] = np.sqrt(np.square(inside - point).sum(1).min())
    for point in inside:
        inner[tuple(point)] = np.sqrt(np.square(outside - point).sum(1).min())
    distance = outer / outer.max() - inner / inner.max()
    distance[inner == 1] = 0
    return distance


@pytest.mark.parametrize("seed", range(5))
def test_signed_distance_equals_the_naive_one(seed):
    label = (np.random.default_rng(seed).random((6, 7, 5)) < 0.6).astype(np.uint8)
    assert np.allclose(signed_distance(label), naive_signed_distance(label), atol=1e-6)


def test_signed_distance_is_negative_inside_and_zero_on_the_inner_boundary():
    distance = signed_distance(ball())
    assert distance.dtype == np.float32
    assert distance[10, 9, 8] == -1
    assert distance[0, 0, 0] == 1
    assert distance[5, 9, 8] == 0
    assert distance[4, 9, 8] > 0


def test_signed_distance_of_one_sided_patches_is_defined():
    assert not signed_distance(np.zeros((4, 4, 4), np.uint8)).any()
    assert (signed_distance(np.ones((4, 4, 4), np.uint8)) == -1).all()


PAIRED = ("image", "label", "unlabelled", "overlap", "shift")


def test_the_second_crop_shows_the_same_voxels_where_it_overlaps_the_first():
    draw = sampler(inputs=PAIRED)
    moved = 0
    for step in range(10):
        batch = draw(step)
        firsts = torch.cat([batch.image, batch.unlabelled])
        assert batch.extras["overlap"].shape == firsts.shape
        assert batch.extras["shift"].shape == (4, 3)
        pairs = zip(firsts, batch.extras["overlap"], batch.extras["shift"].tolist(), strict=True)
        for first, second, shift in pairs:
            seen = 0
            for voxel in np.ndindex(12, 12, 12):
                x, y, z = (v + s for v, s in zip(voxel, shift, strict=True))
                if all(0 <= v < 12 for v in (x, y, z)):
                    assert second[0][voxel] == first[0, x, y, z]
                    seen += 1
            assert seen > 0
            moved += shift != [0, 0, 0]
    assert moved > 20


def test_a_second_crop_leaves_the_first_as_all_methods_see_it():
    for step in range(3):
        assert equal(sampler()(step), sampler(inputs=PAIRED)(step))


def test_second_crops_are_those_of_the_labelled_volumes_alone_without_unlabelled_ones():
    inputs = ("image", "label", "overlap", "shift")
    alone, both = sampler(inputs=inputs, unlabelled=())(3), sampler(inputs=PAIRED)(3)
    for name in ("overlap", "shift"):
        assert torch.equal(alone.extras[name], both.extras[name][:2])
    assert set(sampler(inputs=("image", "label", "shift"))(3).extras) == {"shift"}


@given(
    st.tuples(*[st.integers(4, 60)] * 3),
    st.tuples(*[st.integers(4, 24)] * 3),
    st.integers(0, 2**32),
)
def test_a_second_crop_begins_in_the_padded_volume_and_shares_voxels(shape, patch, seed):
    rng = np.random.default_rng(seed)
    start = draw_start(rng, shape, patch)
    second = draw_overlapping(rng, start, shape, patch)
    pads = padding(shape, patch)
    for first, begin, p, pad in zip(start, second, patch, pads, strict=True):
        assert -pad <= begin <= first < begin + p
        assert begin < first or first == -pad


def test_a_second_crop_may_begin_anywhere_before_the_first_that_shares_a_voxel():
    rng = np.random.default_rng(0)
    drawn = [draw_overlapping(rng, (9, 2, 0), (30, 30, 30), (6, 6, 6)) for _ in range(300)]
    assert {x for x, _, _ in drawn} == {4, 5, 6, 7, 8}
    assert {y for _, y, _ in drawn} == {0, 1}
    assert {z for _, _, z in drawn} == {0}
