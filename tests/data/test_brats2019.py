"""BraTS 2019, from the organisers' files and from the community's."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from benchmark.data import SOURCES, open_dataset
from benchmark.data.base import Dataset
from benchmark.data.brats2019 import crop_bounds, normalise
from benchmark.data.splits import read_list
from results.errors import UserError
from tests.data.made_data import ball, quiet
from tests.data.made_originals import write_h5

TRAIN = read_list("brats2019_train")[:3]
VAL = read_list("brats2019_val")[:1]
TEST = read_list("brats2019_test")[:1]
CASES = (*TRAIN, *VAL, *TEST)
CASE = TRAIN[1]
AFFINE = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], float)
SHAPE = (26, 30, 24)


def flair(seed: int) -> np.ndarray:
    """A brain of positive intensities in zeros, some of them very bright; (X, Y, Z) int16."""
    rng = np.random.default_rng(seed)
    image = rng.integers(100, 300, SHAPE) * ball(SHAPE, 10.5)
    image[8, 12, 10 : 10 + seed % 3] = 3000
    return image.astype(np.int16)


def labels() -> np.ndarray:
    """Three tumour tissues in one place, not in the middle; (X, Y, Z)."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:13, 9:14, 8:12] = 2
    mask[9:12, 10:13, 9:11] = 4
    mask[10, 11, 9] = 1
    return mask


def enlarged(array: np.ndarray) -> np.ndarray:
    """Every voxel three times along each axis."""
    return array.repeat(3, 0).repeat(3, 1).repeat(3, 2)


def by_the_book(case_folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The published steps, on arrays as SimpleITK gives them (z, y, x)."""
    name = case_folder.name
    image, label = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(case_folder / f"{name}_{kind}.nii.gz")))
        for kind in ("flair", "seg")
    )
    where = np.where(image != 0)
    box = tuple(slice(axis.min(), axis.max()) for axis in where)
    image, label = image[box], label[box]
    counts = np.bincount(image.ravel())
    share = np.cumsum(counts) / image.size
    image = np.clip(image, image.min(), np.flatnonzero(share >= 0.999)[0])
    brain = image[image > 0]
    return ((image - brain.mean()) / brain.std()).astype(np.float32), (label > 0).astype(np.uint8)


def write_case(
    source: Path, case: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray = AFFINE
) -> Path:
    grade = "LGG" if case == CASE else "HGG"
    folder = source / grade / case
    folder.mkdir(parents=True, exist_ok=True)
    for kind, voxels in (("flair", image), ("seg", label), ("t1", image)):
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"{case}_{kind}.nii.gz")
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Five cases as the organisers distribute them."""
    source = tmp_path / "MICCAI_BraTS_2019_Data_Training"
    for seed, case in enumerate(CASES):
        write_case(source, case, flair(seed), labels())
    (source / "name_mapping.csv").write_text("")
    return source


@pytest.fixture
def h5(tree: Path, tmp_path: Path) -> Path:
    """The same cases as the community has them."""
    for case in CASES:
        image, label = by_the_book(folder_of(tree, case))
        write_h5(tmp_path / "h5" / "data" / f"{case}.h5", image, label)
    return tmp_path / "h5"


def folder_of(tree: Path, case: str) -> Path:
    return next(tree.glob(f"?GG/{case}"))


def prepare(source: Path, tmp_path: Path) -> Dataset:
    SOURCES["brats2019"].prepare(source, tmp_path / "root", quiet)
    return open_dataset("brats2019", tmp_path / "root")


def refuse(source: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path)
    assert not list((tmp_path / "root").glob("[!.]*"))


def test_both_grades_are_found_and_the_validation_cases_are_kept_apart(tree, tmp_path):
    dataset = prepare(tree, tmp_path)
    assert dataset.splits == {"train": TRAIN, "val": VAL, "test": TEST}
    assert dataset.label == "brats2019 (partial: 5 cases; from the organisers' files)"
    assert dataset.card.unit == "mm"


def test_the_organisers_files_come_out_as_the_published_steps_say(tree, tmp_path):
    dataset = prepare(tree, tmp_path)
    for case in CASES:
        image, label = by_the_book(folder_of(tree, case))
        volume = dataset.load(case)
        assert np.allclose(volume.image[0], image, atol=1e-5)
        assert np.array_equal(volume.label, label)
        assert volume.spacing == (1.0, 1.0, 1.0)


def test_both_forms_agree_and_are_two_datasets(tree, h5, tmp_path):
    one, two = prepare(tree, tmp_path / "one"), prepare(h5, tmp_path / "two")
    assert two.label == "brats2019 (partial: 5 cases)"
    assert one.splits == two.splits
    assert one.fingerprint != two.fingerprint
    for case in CASES:
        assert np.allclose(one.load(case).image, two.load(case).image, atol=1e-5)
        assert np.array_equal(one.load(case).label, two.load(case).label)


def test_axes_are_z_y_x_and_the_tumour_is_where_it_was(tree, tmp_path):
    label = prepare(tree, tmp_path).load(CASE).label
    organ = (8, 13), (9, 14), (8, 12)
    begin = [axis.min() for axis in np.nonzero(flair(1))]
    x, y, z = (slice(a - b, c - b) for (a, c), b in zip(organ, begin, strict=True))
    assert label.sum() == label[z, y, x].sum() == 5 * 5 * 4


def test_files_saved_in_another_orientation_come_out_the_same(tree, tmp_path):
    expected = prepare(tree, tmp_path / "as-is").load(CASE)
    for path in folder_of(tree, CASE).glob("*.nii.gz"):
        image = nib.load(path)
        voxels = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
        nib.save(nib.as_closest_canonical(voxels), path)
    actual = prepare(tree, tmp_path / "turned").load(CASE)
    assert np.array_equal(actual.image, expected.image)
    assert np.array_equal(actual.label, expected.label)


def test_the_crop_follows_the_image_and_loses_the_upper_planes():
    image = np.zeros((9, 9, 9))
    image[2:6, 1:8, 3:5] = 1
    assert crop_bounds(image) == ((2, 5), (1, 7), (3, 4))
    image[:] = 0
    image[4] = 1
    with pytest.raises(ValueError, match="zero but for one plane"):
        crop_bounds(image)


def test_normalisation_clips_the_brightest_and_counts_only_what_is_above_zero():
    values = np.zeros(4000, np.int16)
    values[:3000] = np.tile([100, 200, 300], 1000)
    values[0] = 30_000
    out = normalise(values)
    brain = out[:3000]
    assert out[0] == out[2]
    assert brain.mean() == pytest.approx(0, abs=1e-5)
    assert brain.std() == pytest.approx(1, abs=1e-5)
    mean, deviation = 200.0333, 81.66
    assert np.allclose(out[3000:], -mean / deviation, atol=1e-3)


def test_two_forms_in_one_folder_are_refused(tree, h5, tmp_path):
    shutil.move(h5, tree / "h5")
    refuse(tree, tmp_path, r"holds brats2019 in 2 forms: .*flair.* and <case>.h5 \(5 cases")


def test_a_folder_of_something_else_says_what_to_get(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "image0001_norm.h5").write_text("")
    refuse(source, tmp_path, r"no <case>_flair.* below .*seems to hold pancreas.*Ask the BraTS")


def test_cases_of_another_year_are_refused(tree, tmp_path):
    write_case(tree, "BraTS20_Training_001", flair(0), labels())
    refuse(tree, tmp_path, "1 cases are none of the 335 training cases of BraTS 2019: .*BraTS20")


@pytest.mark.parametrize("kind", ["flair", "seg"])
def test_a_missing_file_is_named(tree, tmp_path, kind):
    (folder_of(tree, CASE) / f"{CASE}_{kind}.nii.gz").unlink()
    refuse(tree, tmp_path, f"The case {CASE} has no file {CASE}_{kind}.nii.gz")


def test_a_file_in_two_packings_is_named(tree, tmp_path):
    folder = folder_of(tree, CASE)
    shutil.copyfile(folder / f"{CASE}_seg.nii.gz", folder / f"{CASE}_seg.nii")
    refuse(tree, tmp_path, f"The case {CASE} has more than one file {CASE}_seg.nii")


def test_a_case_that_is_there_twice_is_named(tree, tmp_path):
    shutil.copytree(folder_of(tree, CASE), tree / "copy" / CASE)
    refuse(tree, tmp_path, f"The case {CASE} is there twice")


@pytest.mark.parametrize("kind", ["flair", "seg"])
def test_a_truncated_file_is_named(tree, tmp_path, kind):
    path = folder_of(tree, CASE) / f"{CASE}_{kind}.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])
    refuse(tree, tmp_path, f"{CASE}_{kind}.nii.gz is truncated or damaged")


def overflowed() -> np.ndarray:
    image = flair(1)
    image[13, 15, 12] = -32_000
    return image


@pytest.mark.parametrize(
    ("image", "label", "affine", "message"),
    [
        (flair(1), labels()[:, :, 1:], AFFINE, "it is of another case"),
        (flair(1), labels(), AFFINE @ np.diag([2, 2, 2, 1]), "voxels of 2×2×2 mm, not of 1 mm"),
        (
            flair(1),
            np.where(labels() == 1, 3, labels()).astype(np.uint8),
            AFFINE,
            "labels other than 0, 1, 2 and 4: 3",
        ),
        (flair(1), labels() * 0, AFFINE, "label is empty"),
        (flair(1), np.roll(labels(), -8, 0), AFFINE, r"not lie in the brain: \d+ of its 100"),
        (flair(1) * 0, labels(), AFFINE, "cannot be used. The mask is empty"),
        (overflowed(), labels(), AFFINE, "negative intensities, down to -32000: 16 bits have"),
    ],
)
def test_a_case_that_cannot_be_used_is_named_with_the_reason(
    tree, tmp_path, image, label, affine, message
):
    write_case(tree, CASE, image, label, affine)
    refuse(tree, tmp_path, rf"{CASE}.*{message}")


def test_a_label_whose_axes_are_flipped_is_refused(tree, tmp_path):
    flipped = AFFINE @ np.array([[-1, 0, 0, 25], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    path = folder_of(tree, CASE) / f"{CASE}_seg.nii.gz"
    nib.save(nib.Nifti1Image(labels()[::-1], flipped), path)
    assert prepare(tree, tmp_path / "same-place").load(CASE).label.any()
    flipped[0, 3] += 7
    nib.save(nib.Nifti1Image(labels()[::-1], flipped), path)
    refuse(tree, tmp_path, f"{CASE}_flair.nii.gz and its label lie in different places.*up to 7 mm")


@pytest.mark.parametrize("scale", [300.0, 0.1])
def test_volumes_that_are_not_z_scored_are_refused(h5, tmp_path, scale):
    image = flair(1) / flair(1).max() * scale
    write_h5(h5 / "data" / f"{CASE}.h5", image, (labels() > 0).astype(np.uint8))
    refuse(h5, tmp_path, rf"{CASE}.h5 is not z-scored: the image above its background")


def test_unmerged_labels_and_truncated_volumes_are_refused(h5, tmp_path):
    image, label = flair(1) / 100.0, labels()
    write_h5(h5 / "data" / f"{CASE}.h5", image, label)
    refuse(h5, tmp_path, rf"{CASE}.h5 cannot be used. The label has values other than 0 and 1")
    path = h5 / "data" / f"{CASE}.h5"
    path.write_bytes(path.read_bytes()[:3000])
    refuse(h5, tmp_path, rf"{CASE}.h5 is truncated or damaged")


def test_volumes_of_other_cases_are_refused(h5, tmp_path):
    shutil.copyfile(h5 / "data" / f"{CASE}.h5", h5 / "data" / "BraTS20_Training_001.h5")
    refuse(h5, tmp_path, "1 cases are none of the 335 training cases.*BraTS20_Training_001.h5")


def test_another_split_is_only_one_in_a_file(h5, tmp_path):
    with pytest.raises(UserError, match=r"unknown split of brats2019 'coranet'\. It has none but"):
        SOURCES["brats2019"].prepare(h5, tmp_path / "root", quiet, "coranet")


def test_a_smoke_run_goes_from_the_organisers_files_to_a_report_by_validation(
    tree, tmp_path, succeeds
):
    for seed, case in enumerate(CASES):
        write_case(tree, case, enlarged(flair(seed)), enlarged(labels()))
    where = ("--data", str(tmp_path / "data"))
    store = ("--store", str(tmp_path / "store"))
    run = ("run", "-m", "supervised", "-m", "mt", "-d", "brats2019", "--labelled", "1")
    quick = ("--profile", "smoke", "--seeds", "1", "--executor", "inline", "--threads", "1")
    for words in (
        ("data", "prepare", "brats2019", "--source", str(tree), *where),
        (*run, *quick, *where, *store),
        ("report", "table", *store, "--protocol", "val", "--out", str(tmp_path / "report")),
    ):
        succeeds(*words)
    (table,) = (tmp_path / "report").glob("table-val*.md")
    assert "brats2019 (partial: 5 cases; from the organisers' files)" in table.read_text()
