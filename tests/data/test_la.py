"""The left atrium, from the community's files."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmark.data import SOURCES, open_dataset
from benchmark.data.inspection import check_prepared
from benchmark.data.links import known_links
from benchmark.data.manifest import read_manifest
from benchmark.data.sampling import Sampler
from benchmark.data.volumes import load_volumes
from results.errors import UserError
from tests.data.made_data import LA_TEST, LA_TRAIN, SHARED, Log, ball, quiet, volume, write_la

LA = SOURCES["la"]
CASE = LA_TRAIN[1]


def prepare(source: Path, tmp_path: Path):
    LA.prepare(source, tmp_path / "root", quiet)
    return open_dataset("la", tmp_path / "root")


def test_a_partial_copy_keeps_the_canonical_order_and_says_that_it_is_partial(la_source, tmp_path):
    dataset = prepare(la_source, tmp_path)
    assert dataset.splits == {"train": LA_TRAIN, "val": (), "test": LA_TEST}
    assert not dataset.complete
    assert dataset.label.startswith("la (partial: 4 cases")
    assert dataset.card.unit == "voxel"
    assert dataset.load(CASE).spacing == (1.0, 1.0, 1.0)


def test_another_partial_copy_has_another_fingerprint(la_source, tmp_path):
    first = prepare(la_source, tmp_path / "first")
    shutil.rmtree(la_source / CASE)
    assert prepare(la_source, tmp_path / "second").fingerprint != first.fingerprint


def test_all_hundred_cases_are_complete(tmp_path):
    from benchmark.data.splits import read_list

    label = np.ones((2, 2, 2), np.uint8)
    for number, case in enumerate((*read_list("la_train"), *read_list("la_test"))):
        write_la(tmp_path / "source", case, np.full((2, 2, 2), number, np.float32), label)
    dataset = prepare(tmp_path / "source", tmp_path)
    assert dataset.complete
    assert dataset.label == "la (100 files differ from the published ones)"
    assert dataset.splits["train"] == read_list("la_train")
    assert dataset.splits["test"] == read_list("la_test")


def test_volumes_are_found_anywhere_below_the_source(la_source, tmp_path):
    deeper = tmp_path / "download" / "data" / "2018LA_Seg_Training Set"
    deeper.parent.mkdir(parents=True)
    la_source.rename(deeper)
    assert len(prepare(tmp_path / "download", tmp_path).splits["train"]) == 3


def test_files_that_are_not_the_published_ones_are_noted(la_source, tmp_path):
    dataset = prepare(la_source, tmp_path)
    records = read_manifest(dataset.folder).cases
    assert {record.verified for record in records.values()} == {False}
    texts = {f.text for f in check_prepared(dataset) if f.severity == "warning"}
    assert "The original differs from the published file (sha256)." in texts
    assert dataset.label == "la (partial: 4 cases; 4 files differ from the published ones)"


def test_preparation_says_each_time_that_files_are_not_the_published_ones(la_source, tmp_path):
    log: Log = []
    for begin in ("la is prepared in", "la is already prepared in"):
        LA.prepare(la_source, tmp_path / "root", lambda *event: log.append(event))
        assert log[-1][2].startswith(begin)
        assert log[-1][2].endswith("(4 files differ from the published ones)")


def refuse(source: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path)
    assert not (tmp_path / "root" / "la").exists()


def test_not_prepared_says_what_to_get_and_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"UA-MT.*bench data prepare la --source DIR"):
        open_dataset("la", tmp_path)


def test_a_source_that_is_missing_or_empty_says_what_to_get(tmp_path):
    refuse(tmp_path / "nowhere", tmp_path, r"nowhere is not a folder.*UA-MT")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", tmp_path, r"no <case>/mri_norm2.h5 below.*UA-MT")


def test_a_case_without_its_volume_is_named(la_source, tmp_path):
    (la_source / CASE / "mri_norm2.h5").unlink()
    refuse(la_source, tmp_path, f"{CASE} has no mri_norm2.h5.*Get that file again")


def test_a_folder_that_cannot_be_read_is_not_skipped(la_source, tmp_path, monkeypatch):
    def scan(folder: str) -> object:
        if Path(folder).name == CASE:
            raise PermissionError(13, "Permission denied", folder)
        return listing(folder)

    listing = os.scandir
    monkeypatch.setattr(os, "scandir", scan)
    refuse(la_source, tmp_path, rf"Cannot read the folder .*{CASE}: Permission denied\. Its")


def test_a_truncated_volume_is_named(la_source, tmp_path):
    path = la_source / CASE / "mri_norm2.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuse(la_source, tmp_path, rf"{CASE}.*is truncated or damaged.*Get the file again")


def test_a_file_that_is_no_hdf5_is_named(la_source, tmp_path):
    (la_source / CASE / "mri_norm2.h5").write_text("404 not found")
    refuse(la_source, tmp_path, rf"{CASE}.*is truncated or damaged")


def test_a_file_without_label_is_named(la_source, tmp_path):
    with h5py.File(la_source / CASE / "mri_norm2.h5", "a") as file:
        del file["label"]
    refuse(la_source, tmp_path, rf"{CASE}.*has no data set 'image' or no 'label'")


def test_data_sets_that_hold_no_numbers_are_refused(la_source, tmp_path):
    path = la_source / CASE / "mri_norm2.h5"
    for image in (None, b"abc"):
        with h5py.File(path, "w") as file:
            file["label"] = ball()
            if image is None:
                file.create_group("image")
            else:
                file["image"] = image
        refuse(la_source, tmp_path, rf"{CASE}.*(cannot be used|not numbers).*Get the file again")


def with_voxel(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(np.float32)
    changed[1, 2, 3] = value
    return changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"label": ball((20, 18, 15))}, "Image 20×18×16 and label 20×18×15 differ in shape"),
        ({"image": with_voxel(volume().image[0], np.nan)}, "1 voxels that are NaN"),
        ({"image": with_voxel(volume().image[0], -np.inf)}, "1 voxels that are NaN or infinite"),
        ({"label": ball() * 255}, "values other than 0 and 1: 255"),
        ({"label": with_voxel(ball(), 0.5)}, r"values other than 0 and 1: 0\.5"),
        ({"label": with_voxel(ball(), np.nan)}, "values other than 0 and 1: nan"),
        ({"label": ball() * 0}, "label is empty"),
        ({"label": ball()[0], "image": ball()[0]}, "label has 2 axes"),
    ],
)
def test_a_volume_that_cannot_be_used_is_named_with_the_reason(
    la_source, tmp_path, content, message
):
    write_la(la_source, CASE, **content)
    refuse(la_source, tmp_path, rf"{CASE}.*cannot be used.*{message}.*Get the file again")


def test_a_volume_smaller_than_the_patch_works(tmp_path):
    small = volume(shape=(9, 8, 7), radius=3)
    for number, case in enumerate(LA_TRAIN + LA_TEST):
        write_la(tmp_path / "source", case, small.image[0] + number, small.label)
    dataset = prepare(tmp_path / "source", tmp_path)
    volumes = load_volumes(dataset, dataset.splits["train"])
    batch = Sampler(volumes, LA_TRAIN[:1], LA_TRAIN[1:], (16, 16, 16), "rotflip", ("label",), 0)(0)
    assert batch.label.sum() == 2 * small.label.sum()


@pytest.mark.parametrize(("gone", "split"), [(LA_TEST, "test"), (LA_TRAIN, "train")])
def test_a_split_without_any_case_is_refused(la_source, tmp_path, gone, split):
    for case in gone:
        shutil.rmtree(la_source / case)
    refuse(la_source, tmp_path, f"none of them of the {split} split. Add at least one")


def test_a_case_that_is_in_neither_list_is_named(la_source, tmp_path):
    write_la(la_source, "MYOWNCASE")
    refuse(la_source, tmp_path, r"1 folders.*in neither of the two LA lists.*MYOWNCASE")


def test_a_case_that_is_there_twice_is_named(la_source, tmp_path):
    write_la(la_source / "copy", CASE)
    refuse(la_source, tmp_path, f"{CASE} is there twice")


real = pytest.mark.skipif(
    not (SHARED / "la").is_dir(), reason="the real LA volumes (../shared/data/la) are not here"
)


@pytest.fixture(scope="module")
def real_la(tmp_path_factory):
    return prepare(SHARED / "la", tmp_path_factory.mktemp("la"))


@real
def test_real_volumes_are_the_published_ones(real_la):
    records = read_manifest(real_la.folder).cases
    assert all(record.verified for record in records.values())
    assert {record.shape[3] for record in records.values()} == {88}
    assert real_la.label == f"la (partial: {len(records)} cases)"


@real
def test_one_modified_file_among_real_ones_is_said_in_the_label(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for case in (LA_TRAIN[0], *LA_TEST):
        (source / case).symlink_to(SHARED.resolve() / "la" / case)
    (source / CASE).mkdir()
    shutil.copyfile(SHARED / "la" / CASE / "mri_norm2.h5", source / CASE / "mri_norm2.h5")
    with h5py.File(source / CASE / "mri_norm2.h5", "a") as file:
        file["image"][0, 0, 0] += 1
    dataset = prepare(source, tmp_path)
    assert dataset.label == "la (partial: 3 cases; 1 file differs from the published ones)"
    warned = [f.subject for f in check_prepared(dataset) if "published" in f.text]
    assert warned == [CASE]


@real
def test_the_check_of_real_volumes_finds_the_known_duplicate_and_listed_pairs_only(real_la):
    found = {f.subject: f.text for f in check_prepared(real_la)}
    assert re.match(
        r"Nearly the same image \(r = 0\.9[89]\d\) and the same label, up to the crop, as "
        "CMPXO4J23G58J53Q98SZ: train 2 and train ",
        found["0RZDK210BSMWAA6467LU"],
    )
    listed = {case for link in known_links(real_la) for case in (link.first, link.second)}
    assert set(found) <= listed


@real
def test_real_volumes_give_training_batches_at_reduced_and_full_size(real_la):
    train = real_la.splits["train"]
    for name in ("reduced", "full"):
        geometry = real_la.card.geometry[name]
        volumes = load_volumes(real_la, train[:3], geometry.scale)
        draw = Sampler(
            volumes,
            train[:1],
            train[1:3],
            geometry.patch,
            real_la.card.augmentation,
            ("image", "label", "unlabelled"),
            seed=0,
        )
        batch = draw(0)
        assert batch.image.shape == batch.unlabelled.shape == (2, 1, *geometry.patch)
        assert 0 < batch.label.float().mean() < 0.5
        assert batch.image.isfinite().all()
