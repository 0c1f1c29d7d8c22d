"""Folders in the Medical Segmentation Decathlon and nnU-Net layouts."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmark.data import SOURCES, decathlon, open_dataset, source_for, steps
from benchmark.data.base import SPLITS, Dataset, Geometry
from benchmark.data.decathlon import Decathlon
from benchmark.data.derived import derive_geometry, draw_split
from benchmark.data.inspection import check_prepared
from benchmark.data.prepared import WORKERS
from results.errors import UserError
from tests.data.made_data import CASES, SHARED, ball, quiet, volume, write_facts, write_nifti

CASE = CASES[3]


def prepare(folder: Path, tmp_path: Path, label: int | None = None) -> Dataset:
    source = Decathlon(folder, label)
    source.prepare(folder, tmp_path / "root", quiet)
    return source.open(tmp_path / "root")


def refuse(folder: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(folder, tmp_path)
    assert not list((tmp_path / "root").glob("[!.]*"))


def test_a_folder_becomes_a_dataset_with_its_own_name_and_split(blobs, tmp_path):
    dataset = prepare(blobs, tmp_path)
    assert dataset.card.name == "task99-blobs"
    assert dataset.card.title == "Blobs"
    assert dataset.card.structure == "core, rim"
    assert dataset.card.unit == "mm"
    assert [len(dataset.splits[split]) for split in SPLITS] == [7, 1, 2]
    assert sorted(c for split in SPLITS for c in dataset.splits[split]) == CASES


def test_labels_are_merged_or_one_is_chosen(blobs, tmp_path):
    merged = prepare(blobs, tmp_path).load(CASE).label
    chosen = prepare(blobs, tmp_path, label=2)
    assert chosen.card.name == "task99-blobs-label2"
    assert chosen.card.structure == "rim"
    assert np.array_equal(merged, ball(radius=5.6))
    assert np.array_equal(chosen.load(CASE).label, ball(radius=3))


def test_one_label_can_be_chosen_in_the_name(blobs, tmp_path):
    prepare(blobs, tmp_path, label=2)
    assert open_dataset(f"{blobs}:2", tmp_path / "root").card.name == "task99-blobs-label2"


def test_a_label_that_is_not_there_is_refused(blobs):
    with pytest.raises(UserError, match=r"no label 7. Known: 1 \(core\), 2 \(rim\)"):
        Decathlon(blobs, 7)


def test_images_are_z_scored_over_the_whole_volume(blobs, tmp_path):
    image = prepare(blobs, tmp_path).load(CASE).image
    raw = volume(seed=sum(map(ord, CASE))).image.astype(np.float64)
    assert image.dtype == np.float32
    assert np.allclose(image, (raw - raw.mean()) / raw.std(), atol=1e-5)


def test_ct_is_clipped_to_soft_tissue_first(blobs, tmp_path):
    facts = json.loads((blobs / "dataset.json").read_text()) | {"modality": {"0": "CT"}}
    (blobs / "dataset.json").write_text(json.dumps(facts))
    hounsfield = volume().image[0] * 100
    hounsfield[0, 0, :2] = (-1024, 3000)
    write_nifti(blobs, CASE, image=hounsfield, label=ball())
    image = prepare(blobs, tmp_path).load(CASE).image
    clipped = np.clip(hounsfield, -200, 300)
    assert np.allclose(image[0], (clipped - clipped.mean()) / clipped.std(), atol=1e-5)


def test_spacing_comes_from_the_header(blobs, tmp_path):
    assert prepare(blobs, tmp_path).load(CASE).spacing == (1.0, 1.5, 2.0)


def test_axes_are_brought_to_one_orientation(blobs, tmp_path):
    expected = prepare(blobs, tmp_path / "as-is").load(CASE)
    made = nib.load(blobs / "imagesTr" / f"{CASE}.nii.gz")
    mask = nib.load(blobs / "labelsTr" / f"{CASE}.nii.gz")
    turned = nib.orientations.axcodes2ornt("PLI")
    for image, kind in ((made, "imagesTr"), (mask, "labelsTr")):
        original = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
        nib.save(original.as_reoriented(turned), blobs / kind / f"{CASE}.nii.gz")
    actual = prepare(blobs, tmp_path / "turned").load(CASE)
    assert np.array_equal(actual.label, expected.label)
    assert np.allclose(actual.image, expected.image, atol=1e-5)
    assert actual.spacing == pytest.approx(expected.spacing)


def test_the_nnunet_layout_works(tmp_path):
    folder = tmp_path / "Dataset500_Blobs"
    for case in CASES:
        write_nifti(folder, case, suffix="_0000")
    words = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "blob": 1}}
    write_facts(folder, CASES, training=None, modality=None, **words)
    dataset = prepare(folder, tmp_path)
    assert dataset.card.name == "dataset500-blobs"
    assert dataset.card.modality == "T1"
    assert sum(len(cases) for cases in dataset.splits.values()) == 10


def test_hidden_files_are_not_data(blobs, tmp_path):
    (blobs / "imagesTr" / f"._{CASE}.nii.gz").write_text("resource fork")
    assert sum(map(len, prepare(blobs, tmp_path).splits.values())) == 10


def test_the_split_is_drawn_once_and_depends_on_names_only(blobs, tmp_path):
    first, second = (prepare(blobs, tmp_path / name) for name in ("one", "two"))
    assert first.splits == second.splits == draw_split(CASES)
    assert first.fingerprint == second.fingerprint
    assert list(first.splits["train"]) != sorted(first.splits["train"])


def test_the_split_has_the_announced_shares():
    split = draw_split([f"{i:03d}" for i in range(260)])
    assert {name: len(cases) for name, cases in split.items()} == {
        "train": 182,
        "val": 26,
        "test": 52,
    }
    with pytest.raises(UserError, match="3 cases cannot be split"):
        draw_split(["a", "b", "c"])


@pytest.mark.parametrize(
    ("median", "full", "reduced", "scale"),
    [
        ((35, 50, 36), (32, 48, 32), (32, 40, 24), 1.0),
        ((200, 180, 160), (112, 112, 96), (40, 40, 24), 0.25),
        ((320, 320, 20), (112, 112, 16), (40, 40, 16), 0.36),
        ((10, 12, 9), (16, 16, 16), (16, 16, 16), 1.0),
    ],
)
def test_sizes_follow_from_the_median_volume(median, full, reduced, scale):
    geometry = derive_geometry(median)
    assert geometry["full"].patch == full
    assert geometry["reduced"].patch == reduced
    assert geometry["reduced"].scale == scale
    assert geometry["tiny"].patch == (16, 16, 16)
    assert geometry["full"].stride == tuple(side // 2 for side in full)


def test_the_sizes_follow_from_the_shapes_whenever_a_folder_is_opened(blobs, tmp_path, monkeypatch):
    dataset = prepare(blobs, tmp_path)
    assert dataset.card.geometry["full"] == Geometry((16, 16, 16), (8, 8, 8))
    another = {"full": Geometry((32, 32, 32), (8, 8, 8))}
    medians = []
    monkeypatch.setattr(decathlon, "derive_geometry", lambda m: medians.append(m) or another)
    by_path, by_name = (
        open_dataset(name, tmp_path / "root") for name in (str(blobs), "task99-blobs")
    )
    assert by_path.card.geometry == by_name.card.geometry == another
    assert medians == [(20, 18, 16)] * 2


def test_sizes_that_an_older_version_has_stored_are_not_used(blobs, tmp_path):
    dataset = prepare(blobs, tmp_path)
    stored = {"full": {"patch": [48, 48, 48], "stride": [8, 8, 8], "scale": 1.0}}
    rewrite_facts(dataset, lambda facts: facts["card"].update(geometry=stored))
    again = open_dataset(str(blobs), tmp_path / "root")
    assert again.card.geometry == dataset.card.geometry


def test_a_folder_that_is_not_prepared_says_what_to_run(blobs, tmp_path):
    with pytest.raises(UserError, match=rf"is not prepared.*bench data prepare {blobs}"):
        open_dataset(str(blobs), tmp_path)


def test_a_prepared_folder_opens_by_its_short_name(blobs, tmp_path):
    by_path = prepare(blobs, tmp_path)
    by_name = open_dataset("task99-blobs", tmp_path / "root")
    assert by_name == by_path


def test_another_folder_of_the_same_name_is_refused(blobs, tmp_path):
    prepare(blobs, tmp_path)
    other = tmp_path / "elsewhere" / blobs.name
    for case in CASES:
        write_nifti(other, case, image=volume(seed=99).image[0])
    write_facts(other, CASES)
    with pytest.raises(UserError, match="prepared from something else: 10 of 10 cases have other"):
        Decathlon(other).prepare(other, tmp_path / "root", quiet)
    renamed = [f"x{case}" for case in CASES]
    third = tmp_path / "third" / blobs.name
    for case in renamed:
        write_nifti(third, case)
    write_facts(third, renamed)
    with pytest.raises(UserError, match="20 files were prepared and 20 are there, such as images"):
        open_dataset(str(third), tmp_path / "root")


def rewrite_facts(dataset: Dataset, change: Callable[[dict], object]) -> None:
    """Make the manifest say something else, as one that another version wrote."""
    path = dataset.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["facts"])
    path.write_text(json.dumps(manifest))


def test_replaced_labels_are_not_taken_for_the_prepared_ones(blobs, tmp_path):
    dataset = prepare(blobs, tmp_path)
    for i, case in enumerate(CASES):
        write_nifti(blobs, case, label=ball(radius=3 + 0.2 * i))
    with pytest.raises(UserError) as error:
        open_dataset(str(blobs), tmp_path / "root")
    assert str(error.value) == (
        f"{dataset.folder} is not prepared from what {blobs} holds now: 10 of 20 files have other "
        f"content, such as labelsTr/{CASES[0]}.nii.gz. To use what it holds now, remove "
        f"{dataset.folder} and run `bench data prepare {blobs}`; to keep both, rename {blobs} "
        "first, as its name is the dataset's."
    )
    shutil.rmtree(dataset.folder)
    assert prepare(blobs, tmp_path).fingerprint != dataset.fingerprint


def test_a_second_folder_with_the_same_names_does_not_get_the_first_ones_data(blobs, tmp_path):
    prepare(blobs, tmp_path)
    other = tmp_path / "elsewhere" / blobs.name
    shutil.copytree(blobs, other)
    image = other / "imagesTr" / f"{CASE}.nii.gz"
    content, changed_at = bytearray(image.read_bytes()), image.stat().st_mtime_ns
    content[-1] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(changed_at, changed_at))
    message = f"1 of 20 files have other content, such as imagesTr/{CASE}"
    with pytest.raises(UserError, match=message):
        open_dataset(str(other), tmp_path / "root")


@pytest.mark.parametrize("how", ["copied", "touched", "prepared by a version without file states"])
def test_files_with_other_times_and_the_same_content_still_open(blobs, tmp_path, how):
    dataset = prepare(blobs, tmp_path)
    folder = blobs
    if how == "copied":
        folder = shutil.copytree(blobs, tmp_path / "copy" / blobs.name)
    elif how == "touched":
        for path in blobs.rglob("*.nii.gz"):
            os.utime(path, ns=(1, 1))
    else:
        rewrite_facts(dataset, lambda facts: facts.pop("source"))
    assert open_dataset(str(folder), tmp_path / "root") == dataset


def test_unchanged_files_are_not_read_again(blobs, tmp_path, monkeypatch):
    dataset = prepare(blobs, tmp_path)
    monkeypatch.setattr(decathlon, "file_sha256", None)
    assert open_dataset(str(blobs), tmp_path / "root") == dataset


def test_a_modality_that_is_normalised_otherwise_is_not_taken_for_the_prepared_one(blobs, tmp_path):
    prepare(blobs, tmp_path)
    write_facts(blobs, CASES, modality={"0": "CT"})
    with pytest.raises(
        UserError, match=r"the preprocessing was '.*' and is now '.*clipped to -200"
    ):
        open_dataset(str(blobs), tmp_path / "root")


def test_a_folder_without_dataset_json_says_what_is_expected(tmp_path):
    with pytest.raises(UserError, match=r"has no dataset.json. Expected are"):
        source_for(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[1]", '{"labels": 3}', '{"labels": {"0": "background"}}'])
def test_a_dataset_json_that_says_nothing_is_refused(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json"):
        Decathlon(tmp_path)


def test_channels_that_are_not_announced_are_refused(blobs, tmp_path):
    write_nifti(blobs, CASE, image=np.stack([volume().image[0]] * 2, axis=-1))
    refuse(blobs, tmp_path, rf"{CASE}.nii.gz has 2 channels, not 1: dataset.json names 1 \(MRI\)")
    write_nifti(blobs, CASE, image=volume().image[0][..., None, None])
    refuse(blobs, tmp_path, f"{CASE}.nii.gz has 5 axes, not 1")
    write_nifti(blobs, CASE)
    write_nifti(blobs, CASE, suffix="_0001")
    refuse(blobs, tmp_path, rf"{CASE}_0001.nii.gz is one channel too many: .* 1 \(MRI\)")


def test_channels_that_are_announced_and_missing_are_named(tmp_path):
    folder = two_channels(tmp_path / "two", "files")
    (folder / "imagesTr" / f"{CASE}_0001.nii.gz").unlink()
    refuse(folder, tmp_path, rf"no image of 1 of 10 cases: {CASE}_0001\.")
    write_nifti(folder, CASE, image=volume().image[0])
    (folder / "imagesTr" / f"{CASE}_0000.nii.gz").unlink()
    refuse(folder, tmp_path, rf"{CASE}.nii.gz has 1 channels, not 2: .* 2 \(T1, CT\)")


def two_channels(folder: Path, form: str) -> Path:
    """Ten cases of an MRI and a CT channel: in one file, or in files."""
    for number, case in enumerate(CASES):
        first, second = (volume(seed).image[0] for seed in (number, 100 + number))
        if form == "axis":
            write_nifti(folder, case, image=np.stack([first, 300 * second], axis=-1))
        else:
            write_nifti(folder, case, image=first, suffix="_0000")
            write_nifti(folder, case, image=300 * second, suffix="_0001")
    write_facts(folder, CASES, modality={"0": "T1", "1": "CT"})
    return folder


def test_several_channels_are_read_from_one_file_or_from_several(tmp_path):
    found = {
        form: prepare(two_channels(tmp_path / form / "blobs", form), tmp_path / form)
        for form in ("axis", "files")
    }
    for dataset in found.values():
        assert dataset.card.channels == 2
        assert dataset.card.modality == "T1, CT"
    one, several = (dataset.load(CASE) for dataset in found.values())
    assert np.array_equal(one.image, several.image)
    assert found["axis"].fingerprint == found["files"].fingerprint


def test_a_corrected_order_of_channels_is_not_taken_for_the_prepared_one(tmp_path):
    folder = two_channels(tmp_path / "blobs", "axis")
    prepare(folder, tmp_path)
    write_facts(folder, CASES, modality={"0": "CT", "1": "T1"})
    with pytest.raises(UserError, match="the preprocessing is another one"):
        prepare(folder, tmp_path)
    with pytest.raises(UserError, match=r"channel 1 \(CT\) clipped .* is now .*channel 0 \(CT\)"):
        open_dataset(str(folder), tmp_path / "root")


def test_a_folder_of_four_channels_trains_with_a_split_of_ones_own(tmp_path, succeeds):
    folder = tmp_path / "Task01_Tumours"
    for number, case in enumerate(CASES[:5]):
        image = np.stack([volume(4 * number + c).image[0] for c in range(4)], axis=-1)
        write_nifti(folder, case, image=image)
    channels = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    write_facts(folder, CASES[:5], modality=channels)
    split = tmp_path / "mine.json"
    split.write_text(json.dumps({"train": CASES[:3], "val": CASES[3:4], "test": CASES[4:5]}))
    where = ("--data", str(tmp_path / "data"))
    store = ("--store", str(tmp_path / "store"))
    run = ("run", "-m", "supervised", "-d", "task01-tumours-mine", "--labelled", "1")
    quick = ("--profile", "smoke", "--seeds", "1", "--executor", "inline", "--threads", "1")
    for words in (
        ("data", "prepare", str(folder), "--split", str(split), *where),
        (*run, *quick, *where, *store),
        ("data", "floor", "task01-tumours-mine", *where, *store),
        ("report", "table", *store, "--protocol", "val", "--out", str(tmp_path / "report")),
    ):
        succeeds(*words)
    (table,) = (tmp_path / "report").glob("table-val*.md")
    text = table.read_text()
    assert all(f"| {method} |" in text for method in ("supervised", "atlas"))


def test_each_channel_is_normalised_by_itself_and_only_ct_is_clipped(tmp_path):
    case = prepare(two_channels(tmp_path / "blobs", "files"), tmp_path).load(CASE)
    number = CASES.index(CASE)
    first, second = (volume(seed).image[0] for seed in (number, 100 + number))
    clipped = np.clip(300 * second, -200, 300)
    for channel, expected in zip(case.image, (first, clipped), strict=True):
        assert channel == pytest.approx((expected - expected.mean()) / expected.std(), abs=1e-5)


def test_channels_on_different_grids_are_refused(tmp_path):
    folder = two_channels(tmp_path / "two", "files")
    write_nifti(folder, CASE, image=volume(shape=(21, 18, 16)).image[0], suffix="_0001")
    refuse(folder, tmp_path, f"{CASE}_0001.nii.gz has .* voxels, .*{CASE}_0000.nii.gz")


def test_a_split_from_a_file_makes_another_dataset(blobs, tmp_path):
    path = tmp_path / "fold1.json"
    path.write_text(json.dumps({"train": CASES[5:1:-1], "test": CASES[:2]}))
    folder = Decathlon(blobs).prepare(blobs, tmp_path / "root", quiet, str(path))
    assert folder.name == f"{Decathlon(blobs).card.name}-fold1"
    dataset = open_dataset(folder.name, tmp_path / "root")
    assert dataset.splits == {
        "train": tuple(CASES[5:1:-1]), "val": (), "test": tuple(CASES[:2])
    }  # fmt: skip
    assert dataset.card.name == folder.name
    assert dataset.card.notes == (
        "The split is that of fold1.json, which leaves out 4 of 10 cases.",
    )
    usual = prepare(blobs, tmp_path)
    assert usual.card.name != folder.name
    path.write_text(json.dumps({"train": CASES[2:6], "test": CASES[:2]}))
    with pytest.raises(UserError, match="split in another way"):
        Decathlon(blobs).prepare(blobs, tmp_path / "root", quiet, str(path))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("coranet", "--split coranet: a folder has no splits with names"),
        ("none.json", "no split file none.json"),
    ],
)
def test_a_split_that_is_not_there_is_refused(blobs, tmp_path, split, message):
    with pytest.raises(UserError, match=message):
        Decathlon(blobs).prepare(blobs, tmp_path / "root", quiet, split)


def test_a_split_of_other_cases_is_refused(blobs, tmp_path):
    path = tmp_path / "fold1.json"
    path.write_text(json.dumps({"train": CASES[:3], "test": ["x1", "x2"]}))
    with pytest.raises(UserError, match="lists 2 of 5 cases that the dataset does not have: x1"):
        Decathlon(blobs).prepare(blobs, tmp_path / "root", quiet, str(path))


@pytest.mark.parametrize(("kind", "what"), [("imagesTr", "image"), ("labelsTr", "label")])
def test_a_missing_volume_is_named(blobs, tmp_path, kind, what):
    (blobs / kind / f"{CASE}.nii.gz").unlink()
    refuse(blobs, tmp_path, rf"has no {what} of 1 of 10 cases: {CASE}\.")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"training": CASES}, 'no valid "training"'),
        ({"training": [{"image": "a.nii.gz"}]}, 'no valid "training"'),
        ({"training": 5}, 'no valid "training"'),
        (
            {"training": [{"label": f"{c}.nii.gz"} for c in (*CASES, CASES[3])]},
            rf"lists 1 cases twice: {CASES[3]}\.",
        ),
        ({"modality": "CT"}, 'no valid "modality", such as'),
        ({"modality": {}}, 'no valid "modality"'),
        ({"modality": {"1": "CT"}}, "the channels by number, from 0 on"),
        ({"modality": None, "channel_names": ["CT"]}, 'no valid "channel_names"'),
        ({"file_ending": ".nrrd"}, r"files end with \.nrrd\. Convert them to NIfTI"),
    ],
)
def test_a_dataset_json_that_cannot_be_used_says_why(blobs, tmp_path, facts, message):
    write_facts(blobs, CASES, **facts)
    refuse(blobs, tmp_path, message)


def test_more_than_ten_channels_keep_their_order(tmp_path):
    folder = tmp_path / "many"
    numbers = [str(n) for n in range(12)]
    for number, case in enumerate(CASES):
        image = np.stack([volume(12 * number + c).image[0] for c in range(12)], axis=-1)
        write_nifti(folder, case, image=image)
    write_facts(folder, CASES, modality={n: "CT" if n == "2" else "MRI" for n in reversed(numbers)})
    assert Decathlon(folder).modalities == ["MRI", "MRI", "CT", *["MRI"] * 9]


def test_a_folder_of_another_kind_says_what_it_seems_to_hold(blobs, la_source, tmp_path):
    with pytest.raises(UserError, match=r"no dataset\.json.*; it seems to hold la \(mri_norm2\.h5"):
        Decathlon(la_source)
    with pytest.raises(UserError, match=rf"seems to hold a Decathlon folder \(.*prepare {blobs}"):
        SOURCES["la"].prepare(blobs, tmp_path / "root", quiet)


def test_ct_that_has_overflowed_is_refused(blobs, tmp_path):
    write_facts(blobs, CASES, modality={"0": "CT"})
    image = (volume().image[0] * 100).astype(np.int16).astype(np.uint16)
    write_nifti(blobs, CASE, image=image)
    refuse(blobs, tmp_path, rf"{CASE}.*values up to 65\d\d\d, which are no Hounsfield units")


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("modality", ["MRI", "CT"])
def test_normalised_voxels_are_to_the_bit_those_of_double_precision(
    blobs, tmp_path, monkeypatch, kind, signs, modality
):
    monkeypatch.setattr(steps, "BLOCK", 1000)
    raw = (100 + 300 * volume(7, (31, 23, 17)).image[0]).clip(0, 250).astype(kind)
    affine = np.diag([*np.multiply(signs, (0.7, 1.5, 2.0)), 1.0])
    path, _ = write_nifti(blobs, CASE, image=raw, label=ball((31, 23, 17)), affine=affine)
    image = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, dtype=np.float64)
    image = np.clip(image, -200, 300) if modality == "CT" else image
    expected = ((image - image.mean()) / image.std()).astype(np.float32)
    write_facts(blobs, CASES, modality={"0": modality})
    assert np.array_equal(prepare(blobs, tmp_path).load(CASE).image[0], expected)


def test_files_that_scale_their_values_are_read_in_double_precision(blobs, tmp_path):
    path, _ = write_nifti(blobs, CASE)
    stored = nib.Nifti1Image(np.arange(20 * 18 * 16, dtype=np.int16).reshape(20, 18, 16), np.eye(4))
    stored.header.set_slope_inter(0.1, 3.0)
    nib.save(stored, path)
    nib.save(nib.Nifti1Image(ball(), np.eye(4)), blobs / "labelsTr" / path.name)
    scaled = np.asarray(nib.load(path).dataobj, dtype=np.float64)
    assert scaled.max() > 500
    expected = ((scaled - scaled.mean()) / scaled.std()).astype(np.float32)
    assert np.array_equal(prepare(blobs, tmp_path).load(CASE).image[0], expected)


def test_preparing_a_scan_needs_a_few_bytes_a_voxel(tmp_path):
    """So that two CT of 512×512×300 at once stay below 2 GiB."""
    folder, shape = tmp_path / "big", (160, 160, 128)
    label = np.zeros(shape, np.uint8)
    label[40:80, 40:80, 40:80] = 1
    for case in CASES[:4]:
        image = np.random.default_rng(int(case[-1])).integers(-900, 900, shape, np.int16)
        write_nifti(folder, case, image=image, label=label)
    write_facts(folder, CASES[:4], modality={"0": "CT"})
    tracemalloc.start()
    prepare(folder, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert WORKERS * 12 * np.prod(shape) > peak


def test_a_volume_in_two_packings_is_named(blobs, tmp_path):
    path = blobs / "labelsTr" / f"{CASE}.nii.gz"
    nib.save(nib.load(path), path.with_suffix(""))
    refuse(blobs, tmp_path, rf"{CASE}\.nii and .*{CASE}\.nii\.gz are the same case\. Remove one")


def test_a_missing_folder_is_named(blobs, tmp_path):
    (blobs / "labelsTr").rename(blobs / "labels")
    refuse(blobs, tmp_path, "labelsTr is missing")


def test_a_case_that_is_not_listed_is_not_dropped(blobs, tmp_path):
    write_facts(blobs, CASES[:-1])
    refuse(blobs, tmp_path, f"1 cases that dataset.json does not list: {CASES[-1]}")


@pytest.mark.parametrize("kind", ["imagesTr", "labelsTr"])
def test_a_truncated_volume_is_named(blobs, tmp_path, kind):
    path = blobs / kind / f"{CASE}.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuse(blobs, tmp_path, rf"{kind}/{CASE}.nii.gz is truncated or damaged")


def test_a_file_that_is_no_image_is_named(blobs, tmp_path):
    (blobs / "imagesTr" / f"{CASE}.nii.gz").write_text("404 not found")
    refuse(blobs, tmp_path, rf"{CASE}.nii.gz is truncated or damaged")


def spoiled(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(np.float32)
    changed[1, 2, 3] = value
    return changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"label": ball((20, 18, 15))}, "Image 20×18×16 and label 20×18×15 differ in shape"),
        ({"image": spoiled(volume().image[0], np.nan)}, "1 voxels that are NaN"),
        ({"image": np.ones((20, 18, 16), np.float32)}, "same intensity everywhere"),
        ({"label": ball() * 9}, "does not list: 9. Known: 0, 1, 2"),
        ({"label": spoiled(ball(), 1.5)}, r"does not list: 1\.5. Known: 0, 1, 2"),
        ({"label": ball() * 0}, "label is empty"),
        ({"label_affine": np.diag([1.0, 1.5, 1.0, 1.0])}, "lie in different places"),
        ({"label_affine": np.diag([-1.0, 1.5, 2.0, 1.0])}, "lie in different places"),
    ],
)
def test_a_volume_that_cannot_be_used_is_named_with_the_reason(blobs, tmp_path, content, message):
    write_nifti(blobs, CASE, **content)
    refuse(blobs, tmp_path, rf"{CASE}.*{message}")


def test_a_case_without_the_chosen_label_is_named(blobs, tmp_path):
    write_nifti(blobs, CASE, label=ball())
    with pytest.raises(UserError, match=rf"{CASE}.*label is empty"):
        prepare(blobs, tmp_path, label=2)


@pytest.mark.skipif(
    not (SHARED / "hippocampus").is_dir(),
    reason="the real hippocampus volumes (../shared/data/hippocampus) are not here",
)
def test_the_real_hippocampus_works(tmp_path):
    dataset = prepare(SHARED / "hippocampus", tmp_path)
    assert [len(dataset.splits[split]) for split in SPLITS] == [182, 26, 52]
    some = {split: cases[:20] for split, cases in dataset.splits.items()}
    assert check_prepared(replace(dataset, splits=some)) == []
    assert dataset.card.geometry["full"].patch == (32, 48, 32)
    case = dataset.load(dataset.splits["test"][0])
    assert case.spacing == (1.0, 1.0, 1.0)
    assert 0.01 < case.label.mean() < 0.2
