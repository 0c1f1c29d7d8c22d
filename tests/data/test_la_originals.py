"""The left atrium from the challenge's own files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmark.data import SOURCES, open_dataset
from benchmark.data.base import Dataset
from benchmark.data.la import crop_bounds
from benchmark.data.splits import choose_split, read_list, split_names
from benchmark.data.steps import label_extent
from results.errors import UserError
from tests.data.made_data import LA_TEST, LA_TRAIN, ball, quiet, write_la
from tests.data.made_originals import write_nrrd

CASES = LA_TRAIN + LA_TEST
CASE = LA_TRAIN[1]
SHAPE = (180, 170, 12)
FLIPPED = (-1.0, 0, 0, 0, 1, 0, 0, 0, 1)


def atrium() -> np.ndarray:
    """255 in a box of 50 x 40 x 6 voxels; (X, Y, Z)."""
    label = np.zeros(SHAPE, np.uint8)
    label[60:110, 50:90, 3:9] = 255
    return label


def mri(case: str) -> np.ndarray:
    noise = np.random.default_rng(sum(map(ord, case))).integers(0, 60, SHAPE)
    return (noise + atrium() // 3).astype(np.uint8)


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    """Four cases as the challenge distributes them."""
    source = tmp_path / "Training Set"
    for case in CASES:
        write_nrrd(source / case / "lgemri.nrrd", mri(case))
        write_nrrd(source / case / "laendo.nrrd", atrium())
    return source


def prepare(source: Path, tmp_path: Path) -> Dataset:
    SOURCES["la"].prepare(source, tmp_path / "root", quiet)
    return open_dataset("la", tmp_path / "root")


def refuse(source: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path)
    assert not list((tmp_path / "root").glob("[!.]*"))


def test_scans_are_z_scored_as_a_whole_and_then_cropped_in_x_and_y(challenge, tmp_path):
    volume = prepare(challenge, tmp_path).load(CASE)
    (low_x, high_x), (low_y, high_y), z = crop_bounds(atrium() // 255, CASE)
    raw = mri(CASE).astype(np.float64)
    expected = ((raw - raw.mean()) / raw.std())[low_x:high_x, low_y:high_y]
    assert z == (0, 12)
    assert np.allclose(volume.image[0], expected, atol=1e-5)
    assert np.array_equal(volume.label, atrium()[low_x:high_x, low_y:high_y] == 255)
    assert volume.spacing == (1.0, 1.0, 1.0)


def test_both_forms_show_the_same_voxels_where_their_crops_overlap(challenge, tmp_path):
    """The published crops have other margins; what is inside both must be equal."""
    raw, mask = mri(CASE).astype(np.float64), (atrium() == 255).astype(np.uint8)
    published = ((raw - raw.mean()) / raw.std()).astype(np.float32)[33:140, 25:121]
    write_la(tmp_path / "h5", CASE, published, mask[33:140, 25:121])
    write_la(tmp_path / "h5", LA_TEST[0])
    one = prepare(challenge, tmp_path / "one").load(CASE)
    two = prepare(tmp_path / "h5", tmp_path / "two").load(CASE)
    inside = [
        v.image[0][tuple(slice(low - 9, high + 9) for low, high in label_extent(v.label)[:2])]
        for v in (one, two)
    ]
    assert inside[0].shape == (68, 58, 12)
    assert np.allclose(*inside, atol=1e-5)


def test_the_label_says_that_these_are_not_the_published_crops(challenge, tmp_path):
    dataset = prepare(challenge, tmp_path)
    assert dataset.splits == {"train": LA_TRAIN, "val": (), "test": LA_TEST}
    assert dataset.label == (
        "la (partial: 4 cases; from the challenge's files, cropped with other margins)"
    )


def test_margins_are_those_of_the_published_script_and_the_same_every_time():
    label = np.zeros((330, 330, 1), np.uint8)
    label[150:280, 180:240] = 1
    below, above = [], []
    for case in (*read_list("la_train"), *read_list("la_test")):
        (low_x, high_x), (low_y, high_y), _ = crop_bounds(label, case)
        assert crop_bounds(label, case)[0] == (low_x, high_x)
        below += [150 - low_x, 180 - low_y - (112 - 59) // 2]
        above += [high_x - 280, high_y - 240 - (112 - 59) // 2]
    assert (min(below), max(below)) == (10, 19)
    assert (min(above), max(above)) == (9, 18)
    assert len(set(below)) == len(set(above)) == 10


def test_margins_do_not_depend_on_which_other_cases_are_there(challenge, tmp_path):
    first = prepare(challenge, tmp_path / "one").load(CASE)
    shutil.rmtree(challenge / LA_TRAIN[0])
    second = prepare(challenge, tmp_path / "two").load(CASE)
    assert np.array_equal(first.image, second.image)


def test_a_folder_with_both_forms_is_refused(challenge, tmp_path):
    write_la(challenge, CASE)
    refuse(
        challenge,
        tmp_path,
        r"holds la in 2 forms: <case>/lgemri.nrrd \(4 cases.*<case>/mri_norm2.h5 \(1 cases",
    )


@pytest.mark.parametrize("file", ["lgemri.nrrd", "laendo.nrrd"])
def test_a_missing_file_is_named(challenge, tmp_path, file):
    (challenge / CASE / file).unlink()
    refuse(challenge, tmp_path, f"The LA case {CASE} has no {file}")


@pytest.mark.parametrize("file", ["lgemri.nrrd", "laendo.nrrd"])
def test_a_truncated_file_is_named(challenge, tmp_path, file):
    path = challenge / CASE / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuse(challenge, tmp_path, rf"{CASE}/{file} is truncated or damaged")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (atrium()[:, :, 1:], "it is of another case"),
        (atrium() // 255, "values other than 0 and 255: 1"),
        (atrium() * 0, "The label is empty"),
    ],
)
def test_a_label_that_cannot_be_used_is_named_with_the_reason(challenge, tmp_path, label, message):
    write_nrrd(challenge / CASE / "laendo.nrrd", label)
    refuse(challenge, tmp_path, rf"{CASE}.*{message}")


@pytest.mark.parametrize("spacing", [(0.625, 0.625, 0.625), (1.0, 1.0, 1.0)])
def test_a_label_with_flipped_axes_is_refused(challenge, tmp_path, spacing):
    write_nrrd(challenge / CASE / "laendo.nrrd", atrium(), FLIPPED, spacing)
    refuse(challenge, tmp_path, rf"{CASE}/laendo.nrrd.*other axes: one of them is flipped")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"spacing": (0.625, 0.625, 1.25)}, "0.625×0.625×1.25 and 0.625×0.625×0.625 mm: it is of"),
        ({"origin": (-90.0, -80.0, 10.0)}, "begin 21.2 mm apart: it is of another case"),
    ],
)
def test_a_label_that_lies_elsewhere_is_refused(challenge, tmp_path, where, message):
    write_nrrd(challenge / CASE / "lgemri.nrrd", mri(CASE), origin=(-105.0, -95.0, 10.0))
    write_nrrd(challenge / CASE / "laendo.nrrd", atrium(), **where)
    refuse(challenge, tmp_path, rf"{CASE}/laendo.nrrd.*{message}")


@pytest.mark.parametrize("where", [{"spacing": (1, 1, 1), "origin": (9, 9, 9)}, {}])
def test_a_label_whose_header_says_nothing_is_taken(challenge, tmp_path, where):
    write_nrrd(challenge / CASE / "lgemri.nrrd", mri(CASE), origin=(-105.0, -95.0, 10.0))
    write_nrrd(challenge / CASE / "laendo.nrrd", atrium(), **where)
    assert prepare(challenge, tmp_path).load(CASE).label.any()


def test_intensities_below_zero_are_refused(challenge, tmp_path):
    image = mri(CASE).astype(np.int16)
    image[3, 4, 5] = -30_000
    write_nrrd(challenge / CASE / "lgemri.nrrd", image)
    refuse(challenge, tmp_path, rf"{CASE}.*negative intensities, down to -30000: 16 bits have")


def test_an_image_of_one_intensity_is_refused(challenge, tmp_path):
    write_nrrd(challenge / CASE / "lgemri.nrrd", mri(CASE) * 0 + 7)
    refuse(challenge, tmp_path, rf"{CASE}.*the image has the same intensity everywhere")


def test_a_case_twice_and_a_case_of_no_list_are_named(challenge, tmp_path):
    shutil.copytree(challenge / CASE, challenge / "copy" / CASE)
    refuse(challenge, tmp_path, f"The case {CASE} is there twice")
    shutil.move(challenge / "copy" / CASE, challenge / "MYOWNCASE")
    refuse(challenge, tmp_path, r"1 folders with a lgemri.nrrd.*in neither of the two LA lists")


def test_the_folds_are_of_the_same_hundred_cases_and_each_is_tested_once():
    folds = [choose_split("la", name).lists for name in split_names("la")]
    assert split_names("la") == ("mcf-1", "mcf-2", "mcf-3", "mcf-4")
    tested = [case for fold in folds for case in fold["test"]]
    assert sorted(tested) == sorted(read_list("la_train"))
    assert all(len(fold["train"]) == 80 for fold in folds)


def test_a_small_atrium_is_widened_to_the_patch():
    label = ball((200, 200, 5), radius=2)
    (low, high), _, _ = crop_bounds(label, CASE)
    assert 112 + 18 <= high - low <= 112 + 38
