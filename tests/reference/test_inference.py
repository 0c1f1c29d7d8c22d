"""The sliding window against the field's loop, written here once more, slowly and in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.inference import count_windows, segment, sliding_window, window_starts
from results.errors import UserError
from tests.reference.released import fill, waves

LA = sorted((Path(__file__).parents[2].parent / "shared" / "data" / "la").glob("*/mri_norm2.h5"))
Triple = tuple[int, int, int]

PATCH: Triple = (8, 8, 8)
GEOMETRIES = [
    pytest.param((20, 17, 13), (8, 8, 8), (3, 5, 2), id="overlapping"),
    pytest.param((16, 8, 24), (8, 8, 8), (8, 8, 8), id="tiling exactly"),
    pytest.param((8, 8, 8), (8, 8, 8), (4, 4, 4), id="one window"),
    pytest.param((5, 19, 8), (8, 12, 8), (4, 4, 4), id="padded by an odd number"),
    pytest.param((5, 6, 3), (8, 8, 4), (4, 4, 4), id="padded on all axes"),
    pytest.param((9, 10, 11), (8, 8, 8), (8, 8, 8), id="one voxel too large"),
]


def network(channels: int = 1) -> nn.Module:
    """A small random network whose output varies over the volume."""
    rng = np.random.default_rng(5)
    convolutions = [nn.Conv3d(channels, 4, 3, padding=1), nn.Conv3d(4, 2, 3, padding=1)]
    for parameter in nn.ModuleList(convolutions).parameters():
        values = rng.normal(0, 0.4, parameter.shape).astype(np.float32)
        parameter.data = torch.from_numpy(values)
    layers = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.Softmax(1))
    return layers.eval()


def volume(shape: Triple, channels: int = 1) -> Tensor:
    rng = np.random.default_rng(math.prod(shape))
    return torch.from_numpy(rng.normal(size=(channels, *shape)).astype(np.float32))


def fields_loop(
    predict: Callable[[Tensor], Tensor],
    image: np.ndarray,
    patch: Triple,
    stride: Triple,
) -> tuple[np.ndarray, np.ndarray]:
    """One window at a time; average probabilities (2, X, Y, Z) and their argmax."""
    shape = image.shape[1:]
    missing = [max(p - n, 0) for n, p in zip(shape, patch, strict=True)]
    before = [m // 2 for m in missing]
    image = np.pad(image, [(0, 0)] + [(b, m - b) for b, m in zip(before, missing, strict=True)])
    nx, ny, nz = image.shape[1:]
    px, py, pz = patch
    sx, sy, sz = stride
    score = np.zeros((2, nx, ny, nz), dtype=np.float32)
    count = np.zeros((nx, ny, nz), dtype=np.float32)
    for i in range(math.ceil((nx - px) / sx) + 1):
        x = min(sx * i, nx - px)
        for j in range(math.ceil((ny - py) / sy) + 1):
            y = min(sy * j, ny - py)
            for k in range(math.ceil((nz - pz) / sz) + 1):
                z = min(sz * k, nz - pz)
                window = image[None, :, x : x + px, y : y + py, z : z + pz]
                with torch.no_grad():
                    output = predict(torch.from_numpy(window.copy())).numpy()[0]
                score[:, x : x + px, y : y + py, z : z + pz] += output
                count[x : x + px, y : y + py, z : z + pz] += 1
    score /= count
    kept = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
    return score[(slice(None), *kept)], np.argmax(score, axis=0)[kept]


@pytest.mark.parametrize(("shape", "patch", "stride"), GEOMETRIES)
def test_windows_one_at_a_time_equal_the_fields_loop_to_the_last_bit(
    shape: Triple, patch: Triple, stride: Triple
) -> None:
    image = volume(shape)
    expected, labels = fields_loop(network(), image.numpy(), patch, stride)
    result = sliding_window(network(), image, patch, stride)
    assert result.shape == (2, *shape)
    assert result.dtype == torch.float32
    np.testing.assert_array_equal(result.numpy(), expected)
    np.testing.assert_array_equal(segment(result).numpy(), labels == 1)
    assert 0 < labels.sum() < labels.size


@pytest.mark.parametrize(
    ("shape", "norm", "voxels", "touched"),
    [
        ((11, 9, 13), 23.88770291, 638, 324.8262495),
        ((5, 9, 8), 12.56263271, 171, 106.5237124),
    ],
    ids=["overlapping", "padded"],
)
def test_a_volume_has_the_figure_of_the_released_code(
    shape: Triple, norm: float, voxels: int, touched: float
) -> None:
    """yulequan/UA-MT@88ed29a, code/test_util.py, test_single_case, with a convolution as network.

    HiLab-git/SSL4MIS@06df604 and YichiZhang98/UG-MCL@7071810, code/val_3D.py, give the same mask.
    """
    convolution = nn.Conv3d(1, 2, 3, padding=1)
    fill(convolution.parameters())
    image = waves(*shape)
    found = sliding_window(
        lambda crops: convolution(crops).softmax(1), image[None].float(), (8, 8, 8), (3, 3, 2)
    )
    mask = segment(found)
    assert found[1].double().norm().item() == pytest.approx(norm, rel=1e-6)
    assert mask.sum() == voxels
    assert image[mask].sum().item() == pytest.approx(touched, rel=1e-9)


@pytest.mark.parametrize("batch", [2, 5, 1000])
@pytest.mark.parametrize(("shape", "patch", "stride"), GEOMETRIES)
def test_batches_of_windows_give_the_fields_segmentation(
    shape: Triple, patch: Triple, stride: Triple, batch: int
) -> None:
    image = volume(shape)
    expected, labels = fields_loop(network(), image.numpy(), patch, stride)
    result = sliding_window(network(), image, patch, stride, batch=batch)
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(segment(result).numpy(), labels == 1)


def test_images_may_have_several_channels() -> None:
    image = volume((10, 9, 8), channels=3)
    expected, _ = fields_loop(network(3), image.numpy(), PATCH, (4, 4, 4))
    result = sliding_window(network(3), image, PATCH, (4, 4, 4))
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_windows_reach_the_network_in_order_and_in_batches(batch: int) -> None:
    corners: list[float] = []
    sizes: list[int] = []

    def record(crops: Tensor) -> Tensor:
        corners.extend(crops[:, 0, 0, 0, 0].tolist())
        sizes.append(len(crops))
        return crops.new_full((len(crops), 2, 2, 2, 2), 0.5)

    numbered = torch.arange(64.0).reshape(1, 4, 4, 4)
    sliding_window(record, numbered, (2, 2, 2), (2, 2, 2), batch=batch)
    assert corners == [0, 2, 8, 10, 32, 34, 40, 42]
    assert sizes == {1: [1] * 8, 3: [2, 3, 3]}[batch]


def test_a_small_volume_lies_in_the_middle_of_zeros_and_comes_back_in_its_own_shape() -> None:
    seen: list[Tensor] = []

    def keep(crops: Tensor) -> Tensor:
        seen.append(crops.clone())
        return torch.cat([1 - crops, crops], dim=1)

    image = torch.full((1, 3, 4, 1), 0.25)
    result = sliding_window(keep, image, (6, 4, 4), (1, 1, 1))
    expected = torch.zeros(6, 4, 4)
    expected[1:4, :, 1:2] = 0.25
    assert torch.equal(seen[0][0, 0], expected)
    assert torch.equal(result, torch.cat([1 - image, image]))


def test_probabilities_of_overlapping_windows_are_averaged() -> None:
    values = iter([0.0, 0.5])

    def constant(crops: Tensor) -> Tensor:
        p = next(values)
        return torch.tensor([1 - p, p]).reshape(1, 2, 1, 1, 1).expand(1, 2, 4, 1, 1)

    result = sliding_window(constant, torch.zeros(1, 6, 1, 1), (4, 1, 1), (2, 1, 1))
    assert result[1].flatten().tolist() == [0, 0, 0.25, 0.25, 0.5, 0.5]


def test_no_graph_is_recorded_and_the_image_is_left_alone() -> None:
    image = volume((9, 9, 9))
    before = image.clone()
    result = sliding_window(network(), image.requires_grad_(), PATCH, (4, 4, 4))
    assert not result.requires_grad
    assert torch.equal(image, before)


def test_half_precision_output_is_summed_in_single_precision() -> None:
    def half(crops: Tensor) -> Tensor:
        return crops.new_full((len(crops), 2, 1, 1, 2), 0.3).bfloat16()

    result = sliding_window(half, torch.zeros(1, 1, 1, 9), (1, 1, 2), (1, 1, 1))
    assert result.dtype == torch.float32
    assert torch.equal(result, torch.full_like(result, float(torch.tensor(0.3).bfloat16())))


@pytest.mark.parametrize(
    ("size", "patch", "stride", "starts"),
    [
        (88, 80, 4, (0, 4, 8)),
        (160, 112, 18, (0, 18, 36, 48)),
        (148, 112, 18, (0, 18, 36)),
        (113, 112, 18, (0, 1)),
        (112, 112, 18, (0,)),
        (5, 112, 18, (0,)),
        (9, 3, 3, (0, 3, 6)),
    ],
)
def test_windows_start_at_multiples_of_the_stride_and_the_last_at_the_border(
    size: int, patch: int, stride: int, starts: tuple[int, ...]
) -> None:
    assert window_starts(size, patch, stride) == starts


def test_every_voxel_lies_in_a_window_and_no_window_is_repeated() -> None:
    for size in range(1, 25):
        for patch in range(1, 9):
            for stride in range(1, patch + 1):
                starts = window_starts(size, patch, stride)
                covered = {start + i for start in starts for i in range(patch)}
                assert covered == set(range(max(size, patch)))
                assert len(set(starts)) == len(starts)


@pytest.mark.parametrize(
    ("shape", "windows"), [((148, 132, 88), 27), ((244, 160, 88), 108), ((112, 112, 80), 1)]
)
def test_windows_of_the_left_atrium_geometry(shape: Triple, windows: int) -> None:
    # 148: 3 starts, 132: 3, 88: 3; 244: 9, 160: 4.
    assert count_windows(shape, (112, 112, 80), (18, 18, 4)) == windows


def test_a_volume_takes_as_many_forward_passes_as_counted() -> None:
    calls: list[int] = []

    def count(crops: Tensor) -> Tensor:
        calls.append(len(crops))
        return crops.new_full((len(crops), 2, *PATCH), 0.5)

    sliding_window(count, volume((20, 17, 6)), PATCH, (3, 5, 2), batch=2)
    assert sum(calls) == count_windows((20, 17, 6), PATCH, (3, 5, 2)) == 15


@pytest.mark.skipif(not LA, reason="needs the left atrium volumes in ../shared/data/la")
def test_the_left_atria_take_27_to_96_windows() -> None:
    for path in LA:
        with h5py.File(path) as file:
            windows = count_windows(file["image"].shape, (112, 112, 80), (18, 18, 4))
        assert 27 <= windows <= 96


def test_a_voxel_is_foreground_only_where_its_probability_is_the_larger() -> None:
    foreground = torch.tensor([0.0, 0.4, 0.5, 0.6, 1.0]).reshape(1, 5, 1, 1)
    mask = segment(torch.cat([1 - foreground, foreground]))
    assert mask.dtype == torch.bool
    assert mask.flatten().tolist() == [False, False, False, True, True]


def test_segmenting_equals_argmax_also_where_probabilities_do_not_sum_to_one() -> None:
    rng = np.random.default_rng(2)
    probabilities = torch.from_numpy(rng.integers(0, 4, (2, 6, 6, 6)).astype(np.float32))
    assert torch.equal(segment(probabilities), probabilities.argmax(0) == 1)


@pytest.mark.parametrize("shape", [(1, 2, 4, 4, 4), (3, 4, 4, 4), (4, 4, 4)])
def test_segmenting_needs_two_classes_and_three_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"segmenting needs \(2, X, Y, Z\)"):
        segment(torch.zeros(shape))


@pytest.mark.parametrize(
    "output", [(1, 1, 8, 8, 8), (1, 3, 8, 8, 8), (1, 2, 8, 8, 4), (2, 8, 8, 8), (2, 2, 8, 8, 8)]
)
def test_a_predictor_with_output_of_another_shape_is_named(output: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"windows that need \(1, 2, 8, 8, 8\)") as error:
        sliding_window(lambda _: torch.zeros(output), volume((8, 8, 8)), PATCH, (4, 4, 4))
    assert str(output) in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_network_is_an_error_and_not_an_empty_mask(value: float) -> None:
    def diverged(crops: Tensor) -> Tensor:
        return torch.full((len(crops), 2, *PATCH), value)

    with pytest.raises(FloatingPointError, match="not finite"):
        sliding_window(diverged, volume((8, 8, 8)), PATCH, (4, 4, 4))


@pytest.mark.parametrize(
    ("stride", "message"),
    [((4, 4, 0), "must be >= 1"), ((4, 9, 4), "unseen"), ((-1, 4, 4), "must be >= 1")],
)
def test_a_stride_that_skips_voxels_or_stands_still_is_refused(
    stride: Triple, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sliding_window(network(), volume((20, 20, 20)), PATCH, stride)


def test_an_image_without_channels_is_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(8, 8, 8\).* needs \(C, X, Y, Z\)"):
        sliding_window(network(), volume((8, 8, 8))[0], PATCH, (4, 4, 4))


def test_a_batch_of_no_windows_is_refused() -> None:
    with pytest.raises(UserError, match="batches of 0"):
        sliding_window(network(), volume((8, 8, 8)), PATCH, (4, 4, 4), batch=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("shape", "patch", "stride"), GEOMETRIES)
def test_a_gpu_gives_what_the_cpu_gives(shape: Triple, patch: Triple, stride: Triple) -> None:
    # In float64, so that TF32 convolutions and their order of summation do not matter.
    image, predict = volume(shape).double(), network()
    expected = sliding_window(predict.double(), image, patch, stride, batch=3)
    result = sliding_window(predict.cuda(), image.cuda(), patch, stride, batch=3)
    assert result.device.type == "cuda"
    np.testing.assert_allclose(result.cpu().numpy(), expected.numpy(), rtol=0, atol=1e-6)
