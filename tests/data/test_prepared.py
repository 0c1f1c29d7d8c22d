"""The prepared form on disk: whole or not there, and honest about damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmark.data import SOURCES, open_dataset, prepared
from benchmark.data.base import Coded, Dataset, Volume
from benchmark.data.coding import encode, pack_image, pack_label
from benchmark.data.inspection import check_prepared
from benchmark.data.manifest import array_sha256, read_manifest
from benchmark.data.prepared import Original, prepare_folder
from results.claims import Claim
from results.errors import UserError
from tests.data.made_data import LA_TEST, LA_TRAIN, Log, change_voxel, quiet, volume


def originals(tmp_path: Path, cases: dict[str, Volume]) -> list[Original]:
    """One original file per case; the last case is the test split."""
    made = []
    for number, (case, content) in enumerate(cases.items()):
        path = tmp_path / f"{case}.raw"
        path.write_text(case)
        split = "test" if number == len(cases) - 1 else "train"
        made.append(Original(case, split, {case: path}, lambda content=content: content))
    return made


def dataset(tmp_path: Path, cases: dict[str, Volume]) -> Dataset:
    root = tmp_path / "root"
    prepare_folder(root, "la", originals(tmp_path, cases), "as it is", quiet)
    return open_dataset("la", root)


@pytest.fixture
def la(la_source: Path, tmp_path: Path) -> Dataset:
    SOURCES["la"].prepare(la_source, tmp_path / "root", quiet)
    return open_dataset("la", tmp_path / "root")


def test_what_is_prepared_is_what_was_read(tmp_path):
    cases = {name: volume(seed) for seed, name in enumerate("abc")}
    opened = dataset(tmp_path, cases)
    assert opened.splits == {"train": ("a", "b"), "val": (), "test": ("c",)}
    for case, expected in cases.items():
        loaded = opened.load(case)
        assert np.array_equal(loaded.image, expected.image)
        assert np.array_equal(loaded.label, expected.label)
        assert loaded.spacing == expected.spacing


def test_equal_content_has_an_equal_fingerprint_wherever_it_lies(la_source, tmp_path):
    for root in ("one", "two"):
        SOURCES["la"].prepare(la_source, tmp_path / root, quiet)
    one, two = (open_dataset("la", tmp_path / root) for root in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert one.folder != two.folder


@pytest.mark.parametrize("what", ["voxel", "label", "spacing", "order", "split", "preprocessing"])
def test_every_difference_changes_the_fingerprint(tmp_path, what):
    cases = {name: volume(seed) for seed, name in enumerate("abc")}
    before = dataset(tmp_path / "before", _in(tmp_path / "before", cases)).fingerprint
    changed = {name: volume(seed) for seed, name in enumerate("abc")}
    text = "as it is"
    if what == "voxel":
        changed["b"].image[0, 0, 0, 0] += 1
    elif what == "label":
        changed["b"].label[0, 0, 0] = 1
    elif what == "spacing":
        changed["b"] = replace(changed["b"], spacing=(1.0, 1.0, 2.0))
    elif what == "order":
        changed = {name: changed[name] for name in "bac"}
    elif what == "split":
        changed = {name: changed[name] for name in "acb"}
    else:
        text = "otherwise"
    folder = tmp_path / "after"
    prepare_folder(folder, "la", originals(tmp_path, changed), text, quiet)
    assert open_dataset("la", folder).fingerprint != before


def _in(folder: Path, cases: dict[str, Volume]) -> dict[str, Volume]:
    folder.mkdir()
    return cases


def test_a_second_preparation_does_nothing_and_says_so(tmp_path):
    cases = originals(tmp_path, {name: volume(seed) for seed, name in enumerate("abc")})
    folder = prepare_folder(tmp_path / "root", "la", cases, "as it is", quiet)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    log: Log = []
    prepare_folder(tmp_path / "root", "la", cases, "as it is", lambda *event: log.append(event))
    assert log[-1] == (3, 3, f"la is already prepared in {folder}: nothing to do")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_source_never_replaces_what_is_prepared(la_source, tmp_path):
    SOURCES["la"].prepare(la_source, tmp_path / "root", quiet)
    (la_source / LA_TRAIN[0] / "mri_norm2.h5").unlink()
    (la_source / LA_TRAIN[0]).rmdir()
    with pytest.raises(UserError, match=r"it holds 4 cases, the source 3.*remove that folder"):
        SOURCES["la"].prepare(la_source, tmp_path / "root", quiet)
    assert len(read_manifest(tmp_path / "root" / "la").cases) == 4


def test_a_case_that_cannot_be_read_leaves_nothing_behind(tmp_path):
    def fail() -> Volume:
        raise UserError("a broken scan")

    made = originals(tmp_path, {name: volume() for name in "abc"})
    made[2] = replace(made[2], read=fail)
    with pytest.raises(UserError, match="a broken scan"):
        prepare_folder(tmp_path / "root", "la", made, "as it is", quiet)
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".la.claim-000001"]


def test_ctrl_c_leaves_nothing_behind(la_source, tmp_path):
    def interrupt(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SOURCES["la"].prepare(la_source, tmp_path / "root", interrupt)
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".la.claim-000001"]


def test_a_killed_preparation_is_not_taken_for_complete_and_is_cleared_by_the_next(
    la_source, tmp_path
):
    root = tmp_path / "root"
    script = (
        "import os, signal, sys; from pathlib import Path; from benchmark.data import SOURCES\n"
        "def kill(done, total, what):\n"
        "    if done == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "SOURCES['la'].prepare(Path(sys.argv[1]), Path(sys.argv[2]), kill)"
    )
    killed = subprocess.run([sys.executable, "-c", script, la_source, root], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(root.glob(".tmp-la-*"))
    with pytest.raises(UserError, match="la is not prepared"):
        open_dataset("la", root)
    SOURCES["la"].prepare(la_source, root, quiet)
    assert check_prepared(open_dataset("la", root)) != []
    assert not list(root.glob(".tmp-la-*"))


def test_what_another_dataset_is_being_prepared_in_is_left_alone(tmp_path):
    """Its name may begin with this one's, as that of another split does."""
    cases = {name: volume(seed) for seed, name in enumerate("ab")}
    own, other = (tmp_path / "root" / f".tmp-{name}-k3_0zq8x" for name in ("la", "la-mcf-1"))
    for folder in (own, other):
        folder.mkdir(parents=True)
    dataset(tmp_path, cases)
    assert not own.exists()
    assert other.exists()


def test_two_processes_do_not_prepare_the_same_dataset(la_source, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with (
        Claim.take(root, ".la.claim"),
        pytest.raises(UserError, match=f"process {os.getpid()} on .* is preparing la"),
    ):
        SOURCES["la"].prepare(la_source, root, quiet)


def test_a_data_root_that_cannot_be_written_is_named(la_source, tmp_path):
    (tmp_path / "root").write_text("a file")
    with pytest.raises(UserError, match=r"Cannot write to .*root.*--data"):
        SOURCES["la"].prepare(la_source, tmp_path / "root", quiet)


def test_a_full_disk_is_one_clear_message_and_leaves_nothing(la_source, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared.os, "fsync", full)
    with pytest.raises(UserError, match=r"Cannot write to .*No space left on device"):
        SOURCES["la"].prepare(la_source, tmp_path / "root", quiet)
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".la.claim-000001"]


def test_a_failed_write_is_called_full_only_where_the_system_says_so(
    la_source, tmp_path, monkeypatch
):
    def fail(*_: object, **__: object) -> None:
        raise OSError("the link is down")

    monkeypatch.setattr(prepared, "_write_durably", fail)
    with pytest.raises(UserError, match=r"Cannot write to .*: the link is down\. Make room or"):
        SOURCES["la"].prepare(la_source, tmp_path / "root", quiet)
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".la.claim-000001"]


def test_two_cases_are_worked_on_at_once(tmp_path):
    both = threading.Barrier(2, timeout=60)

    def wait(content: Volume) -> Volume:
        both.wait()
        return content

    cases = originals(tmp_path, {name: volume(seed) for seed, name in enumerate("abcd")})
    made = [replace(o, read=partial(wait, o.read())) for o in cases]
    prepare_folder(tmp_path / "root", "la", made, "as it is", quiet)
    assert len(open_dataset("la", tmp_path / "root").splits["train"]) == 3


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_truncated_volume_is_named_when_the_dataset_is_opened(la, kind):
    path = la.folder / kind / f"{LA_TRAIN[1]}.zst"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=rf"{LA_TRAIN[1]}.zst has \d+ bytes, not \d+. Remove"):
        open_dataset("la", la.folder.parent)


def test_a_missing_volume_is_named_when_the_dataset_is_opened(la):
    (la.folder / "labels" / f"{LA_TEST[0]}.zst").unlink()
    with pytest.raises(UserError, match=rf"{LA_TEST[0]}.zst is missing. Remove"):
        open_dataset("la", la.folder.parent)


def test_a_volume_that_vanishes_after_opening_is_named(la):
    (la.folder / "images" / f"{LA_TRAIN[0]}.zst").unlink()
    with pytest.raises(UserError, match=rf"{LA_TRAIN[0]}.zst cannot be read.*Remove"):
        la.load(LA_TRAIN[0])


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("loaded_before", [False, True])
def test_changed_voxels_are_refused_when_the_case_is_loaded(la, kind, loaded_before):
    if loaded_before:
        la.load(LA_TRAIN[0])
    changed_at = (la.folder / kind / f"{LA_TRAIN[0]}.zst").stat().st_mtime_ns
    path = change_voxel(la, kind, LA_TRAIN[0])
    os.utime(path, ns=(changed_at + 1, changed_at + 1))
    message = rf"{kind}/{LA_TRAIN[0]}.zst is not what was prepared.*Remove the folder {la.folder}"
    for dataset in (la, open_dataset("la", la.folder.parent)):
        with pytest.raises(UserError, match=message):
            dataset.load(LA_TRAIN[0])
        assert dataset.load(LA_TRAIN[1]).label.any()


def test_voxels_are_compared_once_per_process_and_not_at_every_load(la, monkeypatch):
    la.load(LA_TRAIN[0])
    monkeypatch.setattr(prepared, "array_sha256", None)
    assert la.load(LA_TRAIN[0]).label.any()
    assert open_dataset("la", la.folder.parent).load(LA_TRAIN[0]).label.any()


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_file_of_another_volume_is_named(la, kind):
    path = la.folder / kind / f"{LA_TRAIN[0]}.zst"
    other = volume(shape=(21, 18, 16))
    path.write_bytes(
        pack_image(encode(other.image)) if kind == "images" else pack_label(other.label)
    )
    with pytest.raises(UserError, match=rf"{kind}/{LA_TRAIN[0]}.zst cannot be read.*Remove"):
        la.load(LA_TRAIN[0])


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("content", [b"", b"rubbish" * 100])
def test_a_file_that_is_no_volume_is_named(la, kind, content):
    (la.folder / kind / f"{LA_TRAIN[0]}.zst").write_bytes(content)
    with pytest.raises(UserError, match=rf"{kind}/{LA_TRAIN[0]}.zst cannot be read.*Remove"):
        la.load(LA_TRAIN[0])


@pytest.mark.parametrize(("levels", "kept"), [(200, "uint8"), (256, "uint8"), (257, "int16")])
def test_images_of_few_grey_levels_are_kept_as_codes(tmp_path, levels, kept):
    cases = {name: volume(seed) for seed, name in enumerate("ab")}
    grey = np.arange(cases["a"].image.size).reshape(cases["a"].image.shape) % levels
    cases["a"].image[:] = grey / np.float32(7) - 11
    opened = dataset(tmp_path, cases)
    loaded = opened.load("a")
    assert loaded.stored.codes.dtype == kept
    assert len(loaded.stored.values) == levels == read_manifest(opened.folder).cases["a"].levels
    assert np.array_equal(loaded.image, cases["a"].image)
    assert loaded.image.dtype == np.float32


def test_a_fingerprint_does_not_depend_on_how_voxels_are_stored(tmp_path, monkeypatch):
    cases = {name: volume(seed) for seed, name in enumerate("ab")}
    coded = dataset(tmp_path / "coded", _in(tmp_path / "coded", cases))
    with monkeypatch.context() as plain:
        plain.setattr(prepared, "encode", lambda image: image)
        as_is = dataset(tmp_path / "as-is", _in(tmp_path / "as-is", cases))
    assert isinstance(coded.load("a").stored, Coded)
    assert not isinstance(as_is.load("a").stored, Coded)
    assert coded.fingerprint == as_is.fingerprint
    record = read_manifest(coded.folder).cases["a"]
    assert record.image_sha256 == array_sha256(cases["a"].image)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}'])
def test_a_damaged_manifest_is_refused(la, text):
    (la.folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest.json is damaged. Remove the folder"):
        open_dataset("la", la.folder.parent)


def test_an_edited_manifest_is_refused(la):
    path = la.folder / "manifest.json"
    path.write_text(path.read_text().replace(LA_TRAIN[0], "ANOTHER"))
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        open_dataset("la", la.folder.parent)


def test_a_manifest_of_a_newer_version_asks_for_an_update(la):
    path = la.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99, "new": True}))
    with pytest.raises(UserError, match=r"newer version \(format 99.*Update"):
        open_dataset("la", la.folder.parent)


def test_a_folder_of_an_older_format_asks_for_preparing_again(la, la_source):
    path = la.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    message = (
        r"older version \(format 1.* Remove the folder .* run `bench data prepare` again.*same"
    )
    with pytest.raises(UserError, match=message):
        open_dataset("la", la.folder.parent)
    with pytest.raises(UserError, match=message):
        SOURCES["la"].prepare(la_source, la.folder.parent, quiet)


def test_a_folder_without_manifest_is_not_overwritten(la_source, tmp_path):
    (tmp_path / "root" / "la").mkdir(parents=True)
    with pytest.raises(UserError, match=r"manifest.json is missing. Remove the folder"):
        SOURCES["la"].prepare(la_source, tmp_path / "root", quiet)


def test_one_scan_in_two_splits_is_refused_at_preparation(tmp_path):
    cases = {"a": volume(0), "b": volume(1), "c": volume(0)}
    message = r"a \(train\) and c \(test\) are the same scan and label\. Take one of them out"
    with pytest.raises(UserError, match=message):
        dataset(tmp_path, cases)
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".la.claim-000001"]


def test_one_scan_in_two_splits_is_refused_when_the_dataset_is_opened(tmp_path, monkeypatch):
    with monkeypatch.context() as unguarded:
        unguarded.setattr(prepared, "shared_scan", lambda *_: None)
        folder = dataset(tmp_path, {"a": volume(0), "b": volume(1), "c": volume(0)}).folder
    with pytest.raises(UserError, match=rf"a \(train\) and c \(test\).*remove the folder {folder}"):
        open_dataset("la", tmp_path / "root")


@pytest.mark.parametrize("what", ["image", "label"])
def test_two_cases_that_share_only_image_or_label_are_two_scans(tmp_path, what):
    first, other = volume(0, radius=5), volume(1, radius=4)
    mixed = {"image": (first.image, other.label), "label": (other.image, first.label)}[what]
    cases = {"a": first, "b": volume(2), "c": Volume(*mixed, first.spacing)}
    assert dataset(tmp_path, cases).splits["test"] == ("c",)
