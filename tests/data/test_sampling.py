"""What a step trains on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.data import sampling
from benchmark.data.base import Volume
from benchmark.data.coding import encode
from benchmark.data.sampling import (
    LABELLED,
    UNLABELLED,
    Sampler,
    crop_image,
    crop_into,
    crop_label,
    draw_overlapping,
    draw_rotflip,
    draw_start,
    home_of,
    padding,
    rotflip,
    settle,
)
from methods.base import Batch
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
    cropped = replace(draw, augmentation="crop")
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


def naive_rotflip(array: np.ndarray, k: int, axis: int) -> np.ndarray:
    """As the field's `RandomRotFlip`: a turn, then a mirror."""
    return np.flip(np.rot90(array, k, axes=(-3, -2)), axis - 3)


def naive_crop(array: np.ndarray, start: tuple[int, ...], patch: tuple[int, ...]) -> np.ndarray:
    """A crop of a copy that zeros lie around, as much as any crop needs."""
    wide = [p + 3 for p in patch]
    padded = np.pad(array, [(0, 0)] * (array.ndim - 3) + [(w, w) for w in wide])
    begin = [s + w for s, w in zip(start, wide, strict=True)]
    return padded[(..., *(slice(b, b + p) for b, p in zip(begin, patch, strict=True)))]


TURNS = [(k, axis) for k in range(4) for axis in (0, 1)]


def test_rotflip_has_four_outcomes_and_all_are_mirror_images():
    square = np.arange(9).reshape(3, 3, 1)
    outcomes = {turned(square, k, axis).tobytes() for k, axis in TURNS}
    rotations = {np.rot90(square, k).tobytes() for k in range(4)}
    mirrored = {np.rot90(square[::-1], k).tobytes() for k in range(4)}
    assert outcomes == mirrored
    assert len(outcomes) == 4
    assert not outcomes & rotations


def turned(array: np.ndarray, k: int, axis: int) -> np.ndarray:
    source = torch.from_numpy(np.ascontiguousarray(array))
    turn = rotflip(k, axis)
    out = torch.empty((*source.shape[:-3], *turn.shape(source.shape[-3:])), dtype=source.dtype)
    crop_into(out, source, (0, 0, 0), turn)
    return out.numpy()


@pytest.mark.parametrize(("k", "axis"), TURNS)
def test_rotflip_turns_first_and_mirrors_then(k, axis):
    array = np.arange(24).reshape(1, 2, 3, 4)
    assert np.array_equal(turned(array, k, axis), naive_rotflip(array, k, axis))


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
    shape=st.tuples(*[st.integers(1, 16)] * 3),
    patch=st.tuples(*[st.integers(1, 16)] * 3),
    levels=st.sampled_from([3, 300]),
    seed=st.integers(0, 100),
)
def test_every_way_to_crop_gives_what_the_naive_one_gives(shape, patch, levels, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(levels, size=(2, *shape)).astype(np.float32) / 7 - 1
    label = rng.integers(2, size=shape).astype(np.uint8)
    turn = rotflip(*(drawn := draw_rotflip(rng)))
    start = draw_start(rng, turn.shape(shape), patch)
    second = draw_overlapping(rng, start, turn.shape(shape), patch)
    given = Volume(encode(image), label, (1.0, 1.0, 1.0))
    cpu = torch.device("cpu")
    for resident, write in (
        (settle(given, cpu, coded=False), "_write_by_numpy"),
        (settle(given, cpu, coded=True), "_write_by_numpy"),
        (settle(given, cpu, coded=True), "_write"),
    ):
        with pytest.MonkeyPatch.context() as way:
            way.setattr(sampling, "_write_by_numpy", getattr(sampling, write))
            for begin in (start, second):
                made = torch.full((2, *patch), torch.nan)
                crop_image(made, resident, begin, turn)
                expected = naive_crop(naive_rotflip(image, *drawn), begin, patch)
                assert np.array_equal(made.numpy(), expected)
            mask = torch.full(patch, 7)
            crop_label(mask, resident, start, turn)
            assert np.array_equal(mask, naive_crop(naive_rotflip(label, *drawn), start, patch))


def test_batches_of_codes_are_those_of_floats(monkeypatch):
    coded = {n: Volume(encode(v.image), v.label, v.spacing) for n, v in VOLUMES.items()}
    monkeypatch.setattr(
        sampling, "settle", lambda volume, home, coded: settle(volume, home, coded=True)
    )
    for step in range(4):
        assert equal(sampler(inputs=PAIRED)(step), sampler(volumes=coded, inputs=PAIRED)(step))


def test_a_cpu_keeps_volumes_where_they_are():
    floats = settle(VOLUMES["a"], torch.device("cpu"), coded=False)
    assert floats.voxels.data_ptr() == VOLUMES["a"].image.ctypes.data
    assert floats.label.data_ptr() == VOLUMES["a"].label.ctypes.data


def test_volumes_that_would_crowd_a_gpu_stay_with_the_cpu(monkeypatch):
    volumes = list(VOLUMES.values())
    needed = sum(v.image.nbytes + v.label.nbytes for v in volumes)
    gpu = torch.device("cuda", 0)
    for spare, home in ((0, "cuda"), (-1, "cpu")):
        memory = SimpleNamespace(total_memory=4 * (needed + spare))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=memory: found)
        assert home_of(volumes, gpu).type == home
    assert home_of(volumes, torch.device("cpu")).type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("share", [0.25, 0.0])
@pytest.mark.parametrize("coded", [True, False])
def test_a_gpu_gives_the_same_bits_and_no_step_waits_for_it(share, coded, monkeypatch):
    monkeypatch.setattr(sampling, "MOST_OF_A_GPU", share)
    volumes = {
        n: Volume(encode(v.image) if coded else v.image, v.label, v.spacing)
        for n, v in VOLUMES.items()
    }
    for patch in ((12, 12, 12), (24, 24, 24)):
        changes = {"volumes": volumes, "inputs": (*PAIRED, "sdf"), "patch": patch}
        here, there = sampler(**changes), sampler(**changes, device="cuda")
        there(0)
        if share:
            torch.cuda.set_sync_debug_mode("error")
        try:
            batches = [there(step) for step in range(3)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for step, batch in enumerate(batches):
            expected = here(step)
            assert equal(expected, replace(batch, **moved(batch)))
            for name, tensor in expected.extras.items():
                assert torch.equal(tensor, batch.extras[name].cpu()), name


def moved(batch: Batch) -> dict[str, torch.Tensor]:
    return {n: getattr(batch, n).cpu() for n in ("image", "label", "unlabelled")}


def test_a_crop_never_begins_at_the_last_offset():
    rng = np.random.default_rng(0)
    starts = {draw_start(rng, (20, 18, 15), (16, 16, 12)) for _ in range(400)}
    assert {x for x, _, _ in starts} == {0, 1, 2, 3}
    assert {y for _, y, _ in starts} == {0, 1}
    assert {z for _, _, z in starts} == {0, 1, 2}


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
