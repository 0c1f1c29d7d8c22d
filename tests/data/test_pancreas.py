"""Pancreas-CT, from TCIA's DICOM series and from the community's files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from benchmark.data import SOURCES, itk, open_dataset, prepared_folders
from benchmark.data.alignment import misplaced, placements
from benchmark.data.base import Dataset
from benchmark.data.inspection import check_prepared
from benchmark.data.links import linked_cases
from benchmark.data.manifest import read_manifest
from benchmark.data.pancreas import crop_bounds, preprocess
from benchmark.data.splits import choose_split, read_list, split_names
from benchmark.data.steps import cut, histogram_quantile, label_extent, widened, window
from results.errors import UserError
from tests.data.made_data import Log, quiet
from tests.data.made_originals import (
    BODIES,
    Body,
    label_of,
    write_h5,
    write_label,
    write_series,
    write_slice,
    write_tcia,
)

CASES = (57, 18, 50)


def by_the_book(body: Body) -> tuple[np.ndarray, np.ndarray]:
    """The published steps, over the whole scan and one after the other."""
    spacing = [float(np.float32(mm)) for mm in body.spacing]  # as a NIfTI header has it
    grids = []
    for array, method in (
        (body.image().astype(np.float32), sitk.sitkBSpline),
        (body.label(), sitk.sitkNearestNeighbor),
    ):
        scan = sitk.GetImageFromArray(np.transpose(array, (2, 1, 0)))
        scan.SetSpacing(spacing)
        size = [int(n * mm) for n, mm in zip(body.shape, spacing, strict=True)]
        fine = sitk.Resample(scan, size, sitk.Transform(), method, (0, 0, 0), (1, 1, 1))
        grids.append(np.transpose(sitk.GetArrayFromImage(fine), (2, 1, 0)))
    image, label = grids
    image[image < -125] = -125
    image[image > 275] = 275
    image = (image + 125) / 400
    x, y, _ = np.nonzero(label)
    low_x, high_x = x.min() - max(96 - (x.max() - x.min()), 0) // 2 - 25, x.max()
    high_x = high_x + max(96 - (x.max() - x.min()), 0) // 2 + 25
    low_y = y.min() - max(96 - (y.max() - y.min()), 0) // 2 - 25
    high_y = y.max() + max(96 - (y.max() - y.min()), 0) // 2 + 25
    box = slice(max(low_x, 0), high_x), slice(max(low_y, 0), high_y)
    image, label = image[box], label[box]
    return (image - image.mean()) / image.std(), label.astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three cases in both forms; tests copy what they change."""
    source = tmp_path_factory.mktemp("pancreas")
    for number in CASES:
        write_tcia(source / "tcia", number)
        image, label = by_the_book(BODIES[number])
        write_h5(source / "h5" / "Pancreas_h5" / f"image{number:04d}_norm.h5", image, label)
    return source


@pytest.fixture
def tcia(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "tcia", tmp_path / "tcia")


@pytest.fixture
def h5(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "h5", tmp_path / "h5")


def prepare(source: Path, tmp_path: Path, split: str | None = None) -> Dataset:
    folder = SOURCES["pancreas"].prepare(source, tmp_path / "root", quiet, split)
    return open_dataset(folder.name, tmp_path / "root")


def refuse(source: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path)
    assert not list((tmp_path / "root").glob("[!.]*"))


def series_of(source: Path, number: int) -> Path:
    return next((source / "Pancreas-CT" / f"PANCREAS_{number:04d}").rglob("*.dcm")).parent


def test_the_communitys_files_keep_their_voxels_and_the_order_of_the_split(h5, tmp_path):
    dataset = prepare(h5, tmp_path)
    assert dataset.splits == {
        "train": ("image0057", "image0018"),
        "val": (),
        "test": ("image0050",),
    }
    image, label = by_the_book(BODIES[18])
    volume = dataset.load("image0018")
    assert np.array_equal(volume.image[0], image.astype(np.float32))
    assert volume.label.dtype == np.uint8
    assert np.array_equal(volume.label, label)
    assert volume.spacing == (1.0, 1.0, 1.0)
    assert dataset.card.unit == "mm"
    assert dataset.label == "pancreas (partial: 3 cases)"


def test_dicom_comes_out_as_the_published_steps_over_the_whole_scan_say(tcia, tmp_path):
    dataset = prepare(tcia, tmp_path)
    for number in CASES:
        image, label = by_the_book(BODIES[number])
        volume = dataset.load(f"image{number:04d}")
        assert volume.image.shape[1:] == image.shape
        assert np.allclose(volume.image[0], image, atol=2e-4)
        assert np.array_equal(volume.label, label)
    assert dataset.label == "pancreas (partial: 3 cases; from DICOM)"


def test_both_forms_agree_and_are_two_datasets(tcia, h5, tmp_path):
    one, two = prepare(tcia, tmp_path / "one"), prepare(h5, tmp_path / "two")
    assert one.splits == two.splits
    assert one.fingerprint != two.fingerprint
    for case in one.splits["train"]:
        assert np.allclose(one.load(case).image, two.load(case).image, atol=2e-4)
        assert np.array_equal(one.load(case).label, two.load(case).label)


def test_the_organ_is_where_it_was_in_mm(tcia, tmp_path):
    body = Body(centre=(110.0, 100.0, 20.0), bone=(112.0, 125.0, 18.0))
    shutil.rmtree(series_of(tcia, 57))
    write_tcia(tcia, 57, body)
    volume = prepare(tcia, tmp_path).load("image0057")
    extent = label_extent(volume.label)
    size = 2 * body.radius
    assert [b - a for a, b in extent] == pytest.approx([size + 1] * 3, abs=2)
    centre = [(a + b - 1) / 2 for a, b in extent]
    assert centre == pytest.approx([48 + 25, 48 + 25, body.centre[2]], abs=1.5)
    bone = np.argwhere(volume.image[0] == volume.image.max()).mean(axis=0)
    assert np.allclose(bone - centre, np.subtract(body.bone, body.centre), atol=1.5)


@pytest.mark.parametrize(
    "how",
    [
        {"descending": True},
        {"rows": -1, "intercept": 0.0},  # as PANCREAS_0080 has it
        {"slope": 0.5, "intercept": -2000.0},
    ],
)
def test_neither_direction_nor_scale_of_the_stored_values_changes_anything(tcia, tmp_path, how):
    expected = prepare(tcia, tmp_path / "plain").load("image0018")
    shutil.rmtree(series_of(tcia, 18))
    write_tcia(tcia, 18, **how)
    actual = prepare(tcia, tmp_path / "other").load("image0018")
    assert np.allclose(actual.image, expected.image, atol=1e-5)
    assert np.array_equal(actual.label, expected.label)


def test_only_part_of_a_scan_is_resampled_and_nothing_changes_by_that():
    body = replace(Body(), centre=(110.0, 100.0, 20.0))
    image, label = preprocess(body.image(), body.label(), tuple(np.float32(body.spacing)))
    expected, mask = by_the_book(body)
    assert image.shape == expected.shape
    assert set(image.shape[:2]) <= {145, 146}
    assert image.shape[2] == 36
    assert np.allclose(image, expected, atol=2e-4)
    assert np.array_equal(label, mask)


def test_resampling_keeps_a_straight_line_straight():
    ramp = np.broadcast_to(np.arange(40.0, dtype=np.float32)[:, None, None] * 0.7, (40, 20, 20))
    fine = itk.resample(ramp, (0.7, 0.8, 1.3))
    assert fine.shape == (28, 16, 26)
    inner = fine[6:22, 8, 8]
    assert np.allclose(inner, np.arange(6, 22), atol=2e-3)


def test_the_crop_is_the_published_one():
    label = np.zeros((400, 400, 5), np.uint8)
    label[100:300, 180:221, 2] = 1
    (low_x, high_x), (low_y, high_y), z = crop_bounds(label)
    assert (low_x, high_x) == (75, 299 + 25)
    assert (low_y, high_y) == (180 - 28 - 25, 220 + 28 + 25)
    assert z == (0, 5)
    assert widened(5, 50, 60, 96, (25, 25)) == (0, 60)


def test_the_window_is_the_published_one():
    hu = np.array([-2000, -125, 75, 275, 3000], np.int16)
    assert window(hu, 75, 400).tolist() == [0, 0, 0.5, 1, 1]


def test_progress_is_told_by_case_and_a_second_time_nothing_is_done(h5, tmp_path):
    log: Log = []
    for _ in range(2):
        SOURCES["pancreas"].prepare(h5, tmp_path / "root", lambda *event: log.append(event))
    first = next(i for i, event in enumerate(log) if event[0] == 3)
    assert [what for _, _, what in log[3:first]] == ["image0057", "image0018", "image0050"]
    assert "already prepared" in log[-1][2]


def test_an_interrupted_preparation_leaves_nothing_and_starts_clean(tcia, tmp_path):
    def interrupt(done: int, total: int, what: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SOURCES["pancreas"].prepare(tcia, tmp_path / "root", interrupt)
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".pancreas.claim-000001"]
    assert len(prepare(tcia, tmp_path).splits["train"]) == 2


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """All 82 cases in the community's form, but small; 25 and 70 are the same scan."""
    rng = np.random.default_rng(0)
    label = np.zeros((6, 6, 6), np.float32)
    label[2:4, 2:4, 2:4] = 1
    twin = rng.standard_normal((6, 6, 6))
    for number in range(1, 83):
        image = twin if number in (25, 70) else rng.standard_normal((6, 6, 6))
        write_h5(tmp_path / "tiny" / f"image{number:04d}_norm.h5", image, label)
    return tmp_path / "tiny"


def test_all_82_cases_are_complete_and_the_withdrawn_pair_may_be_one_scan(tiny, tmp_path):
    dataset = prepare(tiny, tmp_path)
    assert dataset.complete
    assert dataset.label == "pancreas"
    assert dataset.splits["train"] == read_list("pancreas_train")
    same = [f for f in check_prepared(dataset) if f.text.startswith("The same image")]
    assert [(f.subject, f.severity) for f in same] == [("image0070", "warning")]


def test_other_cases_may_not_be_one_scan(tiny, tmp_path):
    shutil.copyfile(tiny / "image0057_norm.h5", tiny / "image0050_norm.h5")
    refuse(tiny, tmp_path, r"image0057 \(train\) and image0050 \(test\) are the same scan")


def test_the_80_cases_that_are_left_say_what_they_lack_and_fill_other_splits(tiny, tmp_path):
    for number in (25, 70):
        (tiny / f"image{number:04d}_norm.h5").unlink()
    usual = prepare(tiny, tmp_path)
    assert usual.label == (
        "pancreas (partial: 80 cases; without image0025 and image0070, withdrawn by the owners)"
    )
    assert prepare(tiny, tmp_path, "coranet").label == "pancreas-coranet"


@pytest.mark.parametrize("name", ["", *split_names("pancreas")])
def test_every_split_is_of_the_82_cases_and_has_no_case_twice(name):
    cases = choose_split("pancreas", name or None).cases
    assert len(set(cases)) == len(cases)
    assert set(cases) <= set(choose_split("pancreas").cases)


@pytest.mark.parametrize(
    ("name", "sizes", "first", "without"),
    [
        ("coranet", (62, 18), ("image0001", "image0002"), {25, 70}),
        ("ccnet", (60, 20), ("image0057", "image0018"), {25, 70}),
        ("aua", (60, 20), ("image0031", "image0069"), {25, 70}),
        ("mcf-0", (62, 20), ("image0001", "image0002"), set()),
        ("mcf-1", (62, 20), ("image0021", "image0022"), set()),
        ("mcf-2", (61, 21), ("image0001", "image0002"), set()),
        ("mcf-3", (61, 21), ("image0001", "image0002"), set()),
    ],
)
def test_the_other_published_splits_have_their_sizes_and_order(name, sizes, first, without):
    lists = choose_split("pancreas", name).lists
    assert (len(lists["train"]), len(lists["test"])) == sizes
    assert lists["train"][:2] == first
    everyone = {f"image{n:04d}" for n in range(1, 83)}
    assert everyone - {c for cases in lists.values() for c in cases} == {
        f"image{n:04d}" for n in without
    }


def test_another_split_is_another_dataset_beside_the_usual_one(h5, tmp_path):
    write_h5(h5 / "image0064_norm.h5", *by_the_book(BODIES[64]))
    write_h5(h5 / "image0001_norm.h5", *by_the_book(BODIES[1]))
    usual = prepare(h5, tmp_path)
    other = prepare(h5, tmp_path, "coranet")
    assert usual.splits["test"] == ("image0050", "image0001")
    assert other.splits["test"] == ("image0064",)
    assert other.splits["train"] == ("image0001", "image0018", "image0050", "image0057")
    assert other.label == "pancreas-coranet (partial: 5 cases)"
    assert usual.fingerprint != other.fingerprint
    assert prepared_folders(tmp_path / "root") == ["pancreas-coranet"]
    assert other.card.notes[0] == (
        "The split is 'coranet', not the usual one; it leaves out 2 of 82 cases."
    )
    assert other.card.split_notes == ("There is no validation set.",)
    assert not any("Cases 25 and 70" in note for note in other.card.all_notes)
    assert "`bench data prepare pancreas --split coranet --source DIR`" in other.card.how_to_get
    assert other.card.counts == (4, 0, 1)


def test_a_split_of_ones_own_is_a_dataset_too_and_must_be_of_known_cases(h5, tmp_path):
    file = tmp_path / "Mine.json"
    file.write_text('{"train": ["image0050", "image0018"], "test": ["image0057"]}')
    mine = prepare(h5, tmp_path, str(file))
    assert mine.label == "pancreas-mine"
    assert "prepare pancreas --split FILE.json --source DIR" in mine.card.how_to_get
    assert mine.splits["train"] == ("image0050", "image0018")
    file.write_text('{"train": ["image0018", "image0050"], "test": ["image0057"]}')
    with pytest.raises(UserError, match="something else: the cases are split in another way"):
        prepare(h5, tmp_path, str(file))
    file.write_text('{"train": ["image0018"], "test": ["image0099"]}')
    with pytest.raises(UserError, match=r"Mine\.json lists 1 of 2 cases .* have: image0099"):
        prepare(h5, tmp_path, str(file))


def test_a_split_of_ones_own_may_not_take_the_name_of_a_published_one(h5, tmp_path):
    file = tmp_path / "CoraNet.json"
    file.write_text('{"train": ["image0050", "image0018"], "test": ["image0057"]}')
    with pytest.raises(UserError, match=r"has the name of the published split 'coranet'.*Rename"):
        prepare(h5, tmp_path, str(file))


def test_the_copy_in_training_takes_case_25_out_of_the_unlinked_test_cases(tiny, tmp_path):
    assert linked_cases(prepare(tiny, tmp_path)) == {"image0025": ("image0070",)}
    assert linked_cases(prepare(tiny, tmp_path, "coranet")) == {}


def test_a_split_that_is_not_prepared_says_what_to_run(tmp_path):
    message = "pancreas-coranet is not prepared in .*bench data prepare pancreas --split coranet"
    with pytest.raises(UserError, match=message):
        open_dataset("pancreas-coranet", tmp_path)


def test_an_unknown_split_gets_a_suggestion(h5, tmp_path):
    message = "unknown split of pancreas 'corane'. Did you mean 'coranet'.*or a file that ends with"
    with pytest.raises(UserError, match=message):
        prepare(h5, tmp_path, "corane")


def test_a_folder_with_both_forms_is_refused(tcia, h5, tmp_path):
    shutil.move(h5, tcia / "h5")
    refuse(tcia, tmp_path, r"holds pancreas in 2 forms: .*\.dcm.*\(3 cases.*imageNNNN_norm\.h5")


def test_a_folder_with_neither_form_says_what_to_get_and_what_it_seems_to_hold(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    refuse(source, tmp_path, r"no PANCREAS_NNNN.* and no imageNNNN_norm.h5 below.*Get the CT")
    (source / "mri_norm2.h5").write_text("")
    refuse(source, tmp_path, r"it seems to hold la \(mri_norm2.h5\)")


def test_a_label_mirrored_along_an_axis_is_refused_with_the_slice_to_look_at(tcia, tmp_path):
    body = BODIES[18]
    write_label(label_of(tcia, 18), body.label()[:, ::-1], body.spacing)
    refuse(
        tcia,
        tmp_path,
        r"label0018.nii.gz does not lie on the pancreas.*mirrored along y.*InstanceNumber [89], "
        "where the label is largest",
    )


def test_a_label_in_air_or_bone_is_refused(tcia, tmp_path):
    body = BODIES[18]
    inside_bone = replace(body, centre=body.bone).label()
    write_label(label_of(tcia, 18), inside_bone, body.spacing)
    refuse(tcia, tmp_path, r"the median inside it is (69|70)\d HU, which is no soft")


def test_only_a_label_that_fits_nowhere_better_is_taken():
    body = Body()
    image, label = body.image(), body.label()
    assert misplaced(placements(image, label)) == ""
    for axes in ((0,), (1,), (0, 1), (0, 1, 2)):
        names = " and ".join("xyz"[axis] for axis in axes)
        assert f"mirrored along {names}" in misplaced(placements(image, np.flip(label, axes)))


def test_a_label_of_another_case_is_refused_by_its_size(tcia, tmp_path):
    body = replace(BODIES[18], shape=(60, 58, 12))
    write_label(label_of(tcia, 18), body.label(), body.spacing)
    refuse(tcia, tmp_path, r"label0018.* has 60×58×12 voxels and the series .* 60×58×16")


def test_a_label_of_another_case_is_refused_by_its_spacing(tcia, tmp_path):
    body = BODIES[18]
    write_label(label_of(tcia, 18), body.label(), (1.5, 1.5, 1.5))
    refuse(tcia, tmp_path, r"has voxels of 1.5×1.5×1.5 mm and the series .* of 1.8×1.7×1.5 mm")


def test_a_case_without_slices_is_named(tcia, tmp_path):
    shutil.rmtree(series_of(tcia, 18))
    refuse(tcia, tmp_path, "1 cases have a folder without DICOM slices: image0018")


def test_the_withdrawn_cases_may_have_empty_folders(tcia, tmp_path):
    (tcia / "Pancreas-CT" / "PANCREAS_0025").mkdir()
    write_label(label_of(tcia, 25), Body().label(), Body().spacing)
    assert prepare(tcia, tmp_path).label == "pancreas (partial: 3 cases; from DICOM)"


def test_a_case_without_label_is_named(tcia, tmp_path):
    label_of(tcia, 18).unlink()
    refuse(tcia, tmp_path, "1 cases have a DICOM series and no label: image0018")


def test_a_missing_slice_is_named(tcia, tmp_path):
    (series_of(tcia, 18) / "000003.dcm").unlink()  # 7 * 5 modulo 16: the sixth
    refuse(tcia, tmp_path, "between InstanceNumber 5 and 7 lie 3 mm, elsewhere 1.5 mm")


def test_a_slice_that_is_there_twice_is_named(tcia, tmp_path):
    folder = series_of(tcia, 18)
    write_slice(folder / "copy.dcm", BODIES[18].image()[:, :, 3], 4, 4.5, BODIES[18].spacing)
    refuse(tcia, tmp_path, "two slices with InstanceNumber 4")


@pytest.mark.parametrize("keep", [0.7, 0.01])
def test_a_truncated_slice_is_named(tcia, tmp_path, keep):
    path = series_of(tcia, 18) / "000003.dcm"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    refuse(tcia, tmp_path, r"000003\.dcm of the series .*PANCREAS_0018.* is truncated, damaged")


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("InstanceNumber", ""),
        ("ImagePositionPatient", ["", "", ""]),
        ("RescaleIntercept", None),
        ("RescaleSlope", ""),
    ],
)
def test_a_slice_that_does_not_say_where_it_is_or_what_its_values_are_is_named(
    tcia, tmp_path, tag, value
):
    path = series_of(tcia, 18) / "000003.dcm"
    made = pydicom.dcmread(path)
    delattr(made, tag)
    if value is not None:
        setattr(made, tag, value)
    made.save_as(path)
    refuse(tcia, tmp_path, r"000003\.dcm of the series .* no CT slice with number, position and")


def test_a_truncated_label_is_named(tcia, tmp_path):
    path = label_of(tcia, 18)
    path.write_bytes(path.read_bytes()[:-200])
    refuse(tcia, tmp_path, r"label0018\.nii\.gz is truncated or damaged")


def test_an_empty_label_is_named(tcia, tmp_path):
    body = BODIES[18]
    write_label(label_of(tcia, 18), body.label() * 0, body.spacing)
    refuse(tcia, tmp_path, r"label0018.*The label is empty")


def test_values_that_have_overflowed_16_bits_are_refused(tcia, tmp_path):
    shutil.rmtree(series_of(tcia, 18))
    write_tcia(tcia, 18, unsigned=True, intercept=0.0)
    refuse(tcia, tmp_path, "are no Hounsfield units: 16 bits have overflowed")


@pytest.mark.parametrize(
    ("how", "message"),
    [({"series": "9.9"}, "belong to two series"), ({"modality": "MR"}, "of modality MR, not CT")],
)
def test_slices_of_something_else_are_refused(tcia, tmp_path, how, message):
    folder = series_of(tcia, 18)
    write_slice(
        folder / "z.dcm", BODIES[18].image()[:, :, 0], 17, 16 * 1.5, BODIES[18].spacing, **how
    )
    refuse(tcia, tmp_path, message)


def test_a_case_that_is_there_twice_is_named(tcia, tmp_path):
    write_series(tcia / "copy" / "PANCREAS_0018", BODIES[18])
    refuse(tcia, tmp_path, "The case image0018 is there twice: .*PANCREAS_0018.* and .*copy")


def test_slices_of_no_case_and_cases_that_do_not_exist_are_named(tcia, tmp_path):
    write_series(tcia / "mine", Body(shape=(4, 4, 2)))
    refuse(tcia, tmp_path, r"mine has DICOM slices, and no folder above it is called PANCREAS_NNNN")
    shutil.move(tcia / "mine", tcia / "PANCREAS_0083")
    refuse(tcia, tmp_path, "is of case 83, but Pancreas-CT has cases 1 to 82")


@pytest.mark.parametrize("image", ["hounsfield", "share"])
def test_volumes_that_are_not_z_scored_are_refused(h5, tmp_path, image):
    hu = BODIES[18].image()
    values = {"hounsfield": hu, "share": np.clip((hu + 125) / 400, 0, 1)}[image]
    write_h5(h5 / "Pancreas_h5" / "image0018_norm.h5", values, BODIES[18].label())
    refuse(h5, tmp_path, r"image0018_norm.h5 is not z-scored: the image has mean")


def test_a_truncated_volume_is_named(h5, tmp_path):
    path = h5 / "Pancreas_h5" / "image0018_norm.h5"
    path.write_bytes(path.read_bytes()[:5000])
    refuse(h5, tmp_path, r"image0018_norm.h5 is truncated or damaged")


def test_without_simpleitk_the_message_says_what_to_install(tcia, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    refuse(tcia, tmp_path, r"needs SimpleITK. Install it with `pip install 'ssl3d-bench\[originals")


def test_a_smoke_run_goes_from_dicom_to_a_report(tcia, tmp_path, succeeds):
    where = ("--data", str(tmp_path / "data"))
    store = ("--store", str(tmp_path / "store"))
    run = ("run", "-m", "supervised", "-m", "mt", "-d", "pancreas", "--labelled", "1")
    quick = ("--profile", "smoke", "--seeds", "1", "--executor", "inline", "--threads", "1")
    for words in (
        ("data", "prepare", "pancreas", "--source", str(tcia), *where),
        (*run, *quick, *where, *store),
        ("report", "table", *store, "--out", str(tmp_path / "report")),
    ):
        succeeds(*words)
    text = (tmp_path / "report" / "table-last.md").read_text()
    assert "pancreas (partial: 3 cases; from DICOM" in text


@pytest.mark.slow
def test_a_large_scan_needs_less_than_2_gib(tcia, tmp_path):
    """The peak is read from /proc: what getrusage says begins at the size of the parent."""
    flat = Body((512, 512, 1), (0.8, 0.8, 1.0), (210.0, 180.0, 0.0), 30, (200.0, 280.0, 0.0))
    plane, mask = flat.image()[:, :, 0], flat.label()
    for number in (57, 18):
        folder = series_of(tcia, number)
        shutil.rmtree(folder)
        for z in range(300):
            write_slice(folder / f"{z}.dcm", plane, z + 1, z, flat.spacing)
        label = mask.repeat(300, axis=2)
        label[:, :, :100] = 0
        write_label(label_of(tcia, number), label, flat.spacing)
    script = (
        "import sys; from pathlib import Path; from benchmark.data import SOURCES\n"
        "SOURCES['pancreas'].prepare(Path(sys.argv[1]), Path(sys.argv[2]), lambda *_: None)\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    arguments = [sys.executable, "-c", script, tcia, tmp_path / "root"]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * 2**20  # in kB


def test_the_manifest_says_what_was_done(tcia, tmp_path):
    manifest = read_manifest(prepare(tcia, tmp_path).folder)
    assert manifest.facts["dataset"] == "pancreas"
    assert "[-125, 275] HU" in manifest.preprocessing
    assert set(manifest.cases["image0018"].sources) == {"series", "label"}


def test_histogram_quantiles_are_those_of_the_cumulative_distribution():
    values = np.array([0] * 998 + [50, 60], np.int16)
    assert histogram_quantile(values, 0.999) == 50
    assert histogram_quantile(np.linspace(0, 256, 100_000), 0.5) == pytest.approx(128, abs=1)
    assert cut(np.arange(27).reshape(3, 3, 3), ((0, 1), (1, 3), (2, 3))).tolist() == [[[5], [8]]]
