"""DSC, ASD and HD95 against medpy, the field's reference, and against hand-computed cases."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import h5py
import hypothesis
import hypothesis.extra.numpy
import nibabel
import numpy as np
import pytest
from hypothesis import strategies
from medpy.metric import binary
from numpy.typing import NDArray
from scipy import ndimage

from benchmark import metrics
from benchmark.metrics import CaseMetrics, Mask, Spacing, case_metrics, prepare_reference
from results import schema
from results.errors import UserError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
LA = sorted(DATA.glob("la/*/mri_norm2.h5"))[:3]
HIPPOCAMPUS = sorted(DATA.glob("hippocampus/labelsTr/*.nii.gz"))[:60]

VOXELS: Spacing = (1.0, 1.0, 1.0)
EXACT: tuple[Spacing, ...] = (
    VOXELS,
    (0.625, 0.625, 0.625),
    (2.5, 2.5, 2.5),
    (0.625, 0.625, 1.25),
    (3.0, 1.0, 0.5),
)
ROUNDED: tuple[Spacing, ...] = ((0.7, 0.7, 0.7), (0.82, 0.82, 3.1), (1 / 3, 2.1, 0.9))
SHAPES = ((1, 1, 2), (1, 9, 7), (2, 2, 2), (3, 17, 5), (12, 13, 14), (27, 8, 21), (20, 24, 16))
SEARCHES = {
    "tree": {"_TREE_LIMIT": math.inf, "WORTH_COMPILING": math.inf},
    "distance map": {"_TREE_LIMIT": 0, "WORTH_COMPILING": math.inf},
    "whichever is faster": {"WORTH_COMPILING": math.inf},
    "compiled": {"WORTH_COMPILING": 0},
}


@pytest.fixture(params=SEARCHES)
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ways to find the nearest voxel, whatever the size of the surfaces."""
    for name, value in SEARCHES[request.param].items():
        monkeypatch.setattr(metrics, name, value)


def compare(prediction: Mask, reference: Mask, spacing: Spacing) -> CaseMetrics:
    return case_metrics(prediction, prepare_reference(reference, spacing))


def medpy_metrics(prediction: Mask, reference: Mask, spacing: Spacing) -> tuple[float, ...]:
    return (
        binary.dc(prediction, reference),
        binary.asd(prediction, reference, voxelspacing=spacing),
        binary.hd95(prediction, reference, voxelspacing=spacing),
    )


def assert_equals_medpy(prediction: Mask, reference: Mask, spacing: Spacing) -> CaseMetrics:
    """Equal to the last bit where squared distances are exact, otherwise HD95 within 1e-12."""
    result = compare(prediction, reference, spacing)
    dsc, asd, hd95 = medpy_metrics(prediction, reference, spacing)
    assert result.status == "ok"
    assert (result.dsc, result.asd) == (dsc, asd)
    assert abs(result.hd95 - hd95) <= (0 if spacing in EXACT else 1e-12)
    return result


def box(shape: tuple[int, int, int], *corners: tuple[int, int]) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*corner) for corner in corners)] = True
    return mask


def one_voxel(shape: tuple[int, int, int], index: tuple[int, int, int]) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    mask[index] = True
    return mask


def random_mask(rng: np.random.Generator, shape: tuple[int, int, int]) -> Mask:
    """Noise, a smooth blob, a box, one voxel or everything; never empty."""
    kind = rng.integers(5)
    mask: Mask
    if kind == 0:
        mask = rng.random(shape) < rng.choice([0.02, 0.3, 0.9])
    elif kind == 1:
        mask = ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0.02
    elif kind == 2:
        ends = [sorted(map(int, rng.integers(0, n + 1, 2))) for n in shape]
        mask = box(shape, *((low, high) for low, high in ends))
    elif kind == 3:
        mask = np.zeros(shape, dtype=bool)
    else:
        mask = np.ones(shape, dtype=bool)
    mask[tuple(rng.integers(n) for n in shape)] = True
    return mask


def hippocampus(path: Path) -> NDArray[np.uint8]:
    image = nibabel.load(path)
    assert isinstance(image, nibabel.Nifti1Image)
    return np.asarray(image.dataobj).astype(np.uint8)


def shifted(mask: Mask) -> Mask:
    moved: Mask = np.roll(mask, (3, -2, 1), (0, 1, 2))
    return moved


def eroded(mask: Mask) -> Mask:
    smaller: Mask = ndimage.binary_erosion(mask, iterations=3)
    return smaller


def noisy(mask: Mask) -> Mask:
    return mask ^ (np.random.default_rng(0).random(mask.shape) < 0.02)


def truncated(mask: Mask) -> Mask:
    cut = mask.copy()
    cut[mask.shape[0] // 2 :] = False
    return cut


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("spacing", EXACT + ROUNDED)
@pytest.mark.parametrize("shape", SHAPES)
def test_random_masks_score_as_with_medpy(shape: tuple[int, int, int], spacing: Spacing) -> None:
    rng = np.random.default_rng(sum(shape))
    for _ in range(5):
        assert_equals_medpy(random_mask(rng, shape), random_mask(rng, shape), spacing)


@pytest.mark.usefixtures("search")
@hypothesis.settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(strategies.data())
def test_any_two_masks_score_as_with_medpy(data: strategies.DataObject) -> None:
    shape = data.draw(strategies.tuples(*[strategies.integers(1, 6)] * 3))
    masks = hypothesis.extra.numpy.arrays(bool, shape)
    prediction, reference = data.draw(masks), data.draw(masks)
    spacing = data.draw(strategies.sampled_from(EXACT + ROUNDED))
    hypothesis.assume(prediction.any() and reference.any())
    assert_equals_medpy(prediction, reference, spacing)


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("spacing", [VOXELS, (0.625, 0.625, 1.25)])
@pytest.mark.parametrize(
    "prediction",
    [
        pytest.param(np.ones((40, 30, 20), dtype=bool), id="the whole volume"),
        pytest.param(one_voxel((40, 30, 20), (39, 29, 19)), id="one voxel in a far corner"),
        pytest.param(box((40, 30, 20), (0, 9), (0, 30), (7, 20)), id="touching the border"),
        pytest.param(box((40, 30, 20), (30, 40), (20, 30), (0, 4)), id="far away"),
        pytest.param(box((40, 30, 20), (4, 12), (5, 12), (6, 13)), id="overlapping"),
    ],
)
def test_masks_of_awkward_shape_score_as_with_medpy(prediction: Mask, spacing: Spacing) -> None:
    reference = box((40, 30, 20), (2, 10), (3, 11), (8, 15))
    assert_equals_medpy(prediction, reference, spacing)
    assert_equals_medpy(reference, prediction, spacing)


@pytest.mark.parametrize(
    ("spacing", "lattice"),
    [
        ((1.0, 1.0, 1.0), (1.0, (1, 1, 1))),
        ((0.625, 0.625, 0.625), (0.125, (25, 25, 25))),
        ((3.0, 1.0, 0.5), (0.5, (36, 4, 1))),
        ((0.7, 0.7, 0.7), None),
        ((1.0, 1.0, float(np.float32(0.82))), None),
        ((4096.0, 1.0, 1.0), None),
    ],
)
def test_a_spacing_is_a_lattice_where_squared_distances_are_small_whole_numbers(
    spacing: Spacing, lattice: tuple[float, tuple[int, int, int]] | None
) -> None:
    found = prepare_reference(np.ones((9, 2, 2), dtype=bool), spacing).lattice
    assert found == (lattice and metrics.Lattice(*lattice))


def test_a_volume_worth_compiling_scores_the_same_bits_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also as an array that cannot be written or does not lie in C order."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (101, 90, 60)), indexing="ij"))
    ball = (grid**2).sum(0) < 0.3
    noise = ball ^ (np.random.default_rng(2).random(ball.shape) < 0.01)
    ball.setflags(write=False)
    assert ball.size >= metrics.WORTH_COMPILING
    asked: list[bool] = []

    def scores(*, fast: bool) -> list[CaseMetrics]:
        def compiled(*loops: Callable[..., object]) -> object:
            asked.append(fast)
            return metrics_compiled(*loops) if fast else None

        monkeypatch.setattr(metrics, "compiled", compiled)
        pairs = [(ball, noise), (noise, ball), (np.asfortranarray(noise), ball), (~ball, ball)]
        return [compare(p, r, (0.625, 0.625, 1.25)) for p, r in pairs]

    metrics_compiled = metrics.compiled
    assert scores(fast=True) == scores(fast=False)
    assert asked == [True] * 4 + [False] * 4


@pytest.mark.skipif(not LA, reason="needs the left atrium volumes in ../shared/data/la")
@pytest.mark.parametrize("path", LA, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("perturb", [shifted, eroded, noisy, truncated])
def test_left_atria_score_as_with_medpy(
    path: Path, perturb: Callable[[Mask], Mask], monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(path) as file:
        label = file["label"][:] == 1
    low, high = np.argwhere(label).min(axis=0) - 4, np.argwhere(label).max(axis=0) + 5
    label = label[tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))]
    monkeypatch.setattr(metrics, "WORTH_COMPILING", math.inf)
    result = assert_equals_medpy(perturb(label), label, (0.625, 0.625, 0.625))
    monkeypatch.setattr(metrics, "WORTH_COMPILING", 0)
    assert compare(perturb(label), label, (0.625, 0.625, 0.625)) == result


@pytest.mark.skipif(not HIPPOCAMPUS, reason="needs labels in ../shared/data/hippocampus")
@pytest.mark.parametrize("spacing", [VOXELS, ROUNDED[1]])
def test_hippocampi_score_as_with_medpy(spacing: Spacing) -> None:
    labels = [hippocampus(path) for path in HIPPOCAMPUS]
    for label, other in itertools.pairwise(labels):
        common = tuple(slice(min(sides)) for sides in zip(label.shape, other.shape, strict=True))
        assert_equals_medpy(other[common] > 0, label[common] > 0, spacing)
        assert_equals_medpy(shifted(label == 1), label == 2, spacing)


@pytest.mark.parametrize(
    ("prediction", "reference", "status", "dsc"),
    [
        (False, True, "empty-prediction", 0.0),
        (True, False, "empty-reference", 0.0),
        (False, False, "empty-both", math.nan),
    ],
)
def test_an_empty_mask_gives_a_status_and_no_distance(
    prediction: bool, reference: bool, status: str, dsc: float
) -> None:
    mask = one_voxel((5, 6, 7), (1, 2, 3))
    result = compare(mask & prediction, mask & reference, VOXELS)
    assert result.status == status
    assert status in schema.STATUSES
    assert result.dsc == pytest.approx(dsc, nan_ok=True)
    assert math.isnan(result.asd)
    assert math.isnan(result.hd95)
    assert (result.tp, result.fp, result.fn, result.voxels) == (0, prediction, reference, 210)


def test_medpy_has_no_distance_for_an_empty_mask_either() -> None:
    mask = one_voxel((5, 6, 7), (1, 2, 3))
    for pair in ((mask & False, mask), (mask, mask & False)):
        assert binary.dc(*pair) == 0
        for distance in (binary.asd, binary.hd95):
            with pytest.raises(RuntimeError):
                distance(*pair)


@pytest.mark.parametrize(("unit", "distance"), [(1.0, 5.0), (0.625, 3.125), (2.5, 12.5)])
def test_two_voxels_3_4_0_apart_are_5_voxels_apart(unit: float, distance: float) -> None:
    first, second = one_voxel((9, 9, 9), (1, 2, 3)), one_voxel((9, 9, 9), (4, 6, 3))
    result = compare(first, second, (unit, unit, unit))
    assert result == CaseMetrics(
        status="ok",
        dsc=0.0,
        asd=distance,
        hd95=distance,
        tp=0,
        fp=1,
        fn=1,
        voxels=729,
        diagonal=math.hypot(9 * unit, 9 * unit, 9 * unit),
    )


def test_each_axis_is_measured_in_its_own_spacing() -> None:
    first, second = one_voxel((4, 4, 4), (0, 0, 0)), one_voxel((4, 4, 4), (1, 1, 1))
    assert compare(first, second, (2.0, 3.0, 6.0)).hd95 == 7.0


def test_distances_run_from_the_prediction_for_asd_and_both_ways_for_hd95() -> None:
    near = one_voxel((12, 1, 1), (0, 0, 0))
    both = near | one_voxel((12, 1, 1), (10, 0, 0))
    assert compare(near, both, VOXELS).asd == 0
    assert compare(both, near, VOXELS).asd == 5
    # Pooled {0, 0, 10}: the 95th percentile lies at 0.9 of the way from 0 to 10.
    assert compare(near, both, VOXELS).hd95 == compare(both, near, VOXELS).hd95 == 9


def test_counts_and_dice_of_two_overlapping_boxes() -> None:
    prediction = box((8, 8, 8), (0, 4), (0, 4), (0, 4))
    reference = box((8, 8, 8), (1, 4), (0, 4), (0, 8))
    result = compare(prediction, reference, VOXELS)
    assert (result.tp, result.fp, result.fn) == (48, 16, 48)
    assert result.dsc == 2 * 48 / (64 + 96)


@pytest.mark.parametrize("spacing", EXACT + ROUNDED)
@pytest.mark.parametrize("seed", range(5))
def test_identical_masks_are_at_distance_zero(seed: int, spacing: Spacing) -> None:
    mask = random_mask(np.random.default_rng(seed), (11, 12, 13))
    result = compare(mask, mask.copy(), spacing)
    assert (result.dsc, result.asd, result.hd95, result.fp, result.fn) == (1, 0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(10))
def test_swapping_the_masks_swaps_the_errors_and_keeps_dice_and_hd95(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = random_mask(rng, (11, 12, 13)), random_mask(rng, (11, 12, 13))
    there, back = compare(one, two, VOXELS), compare(two, one, VOXELS)
    assert (there.dsc, there.hd95) == (back.dsc, back.hd95)
    assert (there.tp, there.fp, there.fn) == (back.tp, back.fn, back.fp)


def test_a_prepared_reference_serves_many_predictions() -> None:
    rng = np.random.default_rng(7)
    mask = random_mask(rng, (11, 12, 13))
    reference = prepare_reference(mask, VOXELS)
    predictions = [random_mask(rng, mask.shape) for _ in range(5)]
    once = [case_metrics(p, reference) for p in predictions]
    assert once == [case_metrics(p, reference) for p in predictions]
    assert once == [compare(p, mask, VOXELS) for p in predictions]


def test_masks_need_not_be_contiguous() -> None:
    rng = np.random.default_rng(3)
    one, two = rng.random((2, 9, 10, 11)) < 0.4
    assert compare(one.T, two.T, VOXELS) == compare(one.T.copy(), two.T.copy(), VOXELS)


def test_the_diagonal_of_a_brats_volume_is_its_well_known_worst_distance() -> None:
    mask = np.zeros((240, 240, 155), dtype=bool)
    assert prepare_reference(mask, VOXELS).diagonal == pytest.approx(373.128664)


def test_no_distance_exceeds_the_diagonal() -> None:
    shape = (7, 30, 4)
    result = compare(one_voxel(shape, (0, 0, 0)), one_voxel(shape, (6, 29, 3)), (2.0, 0.3, 5.0))
    assert result.hd95 < result.diagonal


def test_the_result_is_a_row_of_the_case_table() -> None:
    columns = [column.name for column in schema.CASES]
    fields = [field.name for field in dataclasses.fields(CaseMetrics)]
    assert fields == columns[columns.index("status") :]


def test_surface_voxels_are_those_that_an_erosion_removes() -> None:
    rng = np.random.default_rng(11)
    for shape in SHAPES:
        mask = random_mask(rng, shape)
        surface = mask ^ ndimage.binary_erosion(mask)
        np.testing.assert_array_equal(metrics.surface_voxels(mask).T, np.argwhere(surface))


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((3, 3, 3), dtype=np.uint8),
        np.zeros((3, 3, 3)),
        np.zeros((3, 3), dtype=bool),
        np.zeros((1, 3, 3, 3), dtype=bool),
        np.zeros((3, 0, 3), dtype=bool),
    ],
    ids=lambda mask: f"{mask.dtype} {mask.shape}",
)
def test_only_masks_of_three_axes_and_bool_are_compared(mask: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"The reference is an array of .* 3-D array of bool"):
        prepare_reference(mask, VOXELS)
    with pytest.raises(UserError, match=r"The prediction is an array of .* 3-D array of bool"):
        case_metrics(mask, prepare_reference(np.ones((3, 3, 3), dtype=bool), VOXELS))


def test_masks_of_different_shapes_are_not_compared() -> None:
    reference = prepare_reference(np.ones((4, 5, 6), dtype=bool), VOXELS)
    with pytest.raises(UserError, match=r"shape \(6, 5, 4\), its reference \(4, 5, 6\)"):
        case_metrics(np.ones((6, 5, 4), dtype=bool), reference)


@pytest.mark.parametrize(
    "spacing",
    [(1.0, 0.0, 1.0), (-1.0, 1.0, 1.0), (1.0, math.nan, 1.0), (1.0, 1.0, math.inf), (1.0, 1.0)],
)
def test_a_spacing_is_three_finite_positive_lengths(spacing: Spacing) -> None:
    with pytest.raises(UserError, match="three finite lengths > 0"):
        prepare_reference(np.ones((3, 3, 3), dtype=bool), spacing)
