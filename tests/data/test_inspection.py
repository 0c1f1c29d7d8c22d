"""What a check of prepared data finds, and what it must not take for a finding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from benchmark.data import open_dataset
from benchmark.data.base import Dataset, Volume
from benchmark.data.inspection import (
    SAME_IMAGE,
    alike_limit,
    check_prepared,
    inspect,
    similarities,
    thumbnail,
)
from benchmark.data.prepared import Original, prepare_folder
from tests.data.made_data import LA_TRAIN, ball, change_voxel, quiet, volume, write_la


def dataset(tmp_path: Path, cases: dict[str, Volume]) -> Dataset:
    """Prepared under the name `la`; the last case is the test split."""
    originals = []
    for number, (case, content) in enumerate(cases.items()):
        path = tmp_path / f"{case}.raw"
        path.write_text(case)
        split = "test" if number == len(cases) - 1 else "train"
        originals.append(Original(case, split, {case: path}, lambda content=content: content))
    prepare_folder(tmp_path / "root", "la", originals, "as it is", quiet)
    return open_dataset("la", tmp_path / "root")


def scan(seed: int, shape=(48, 40, 36), radius: float = 9) -> Volume:
    """Smooth structure, of which a thumbnail keeps most."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    image = ndimage.gaussian_filter(noise, 3)
    return Volume((image / image.std())[None].astype("f4"), ball(shape, radius), (1.0, 1.0, 1.0))


def cropped(content: Volume, begin: int, end: int) -> Volume:
    inside = (slice(begin, -end), slice(end, -begin), slice(begin, None))
    label = content.label[inside]
    return Volume(content.image[:, *inside], label, content.spacing)


def test_good_data_give_facts_and_no_finding(tmp_path):
    shapes = ((20, 18, 16), (21, 18, 16), (22, 18, 16))
    cases = {n: volume(i, s, 5 + i) for i, (n, s) in enumerate(zip("abc", shapes, strict=True))}
    cases["a"].label[1, 1, 1] = 1
    seen = inspect(dataset(tmp_path, cases), jobs=2)
    assert seen.findings == ()
    assert list(seen.cases) == ["a", "b", "c"]
    assert (seen.cases["a"].components, seen.cases["a"].stray) == (2, 1)
    assert seen.cases["b"].foreground == pytest.approx(cases["b"].label.mean())
    assert dict(seen.summary())["voxels"] == "20–22 × 18 × 16"
    assert dict(seen.summary())["components"] == (
        "1 labels have more than one, with up to 1 voxels beside the largest"
    )


def test_a_label_at_the_border_is_counted(tmp_path):
    cases = {n: volume(i, radius=4 + i) for i, n in enumerate("abc")}
    cases["b"].label[:3, 9, 8] = 1
    seen = inspect(dataset(tmp_path, cases))
    assert [case for case, found in seen.cases.items() if found.cut] == ["b"]


def test_changed_voxels_are_found(la_source, tmp_path):
    from benchmark.data import SOURCES

    SOURCES["la"].prepare(la_source, tmp_path / "root", quiet)
    la = open_dataset("la", tmp_path / "root")
    change_voxel(la, "images", LA_TRAIN[0])
    (la.folder / "labels" / f"{LA_TRAIN[1]}.zst").unlink()
    errors = {f.subject: f.text for f in check_prepared(la) if f.severity == "error"}
    assert list(errors) == list(LA_TRAIN[:2])
    assert f"{LA_TRAIN[0]}.zst is not what was prepared" in errors[LA_TRAIN[0]]
    assert "cannot be read" in errors[LA_TRAIN[1]]


def test_voxels_and_labels_that_cannot_be_used_are_found(tmp_path):
    cases = {name: volume(seed, radius=4 + seed) for seed, name in enumerate("abcd")}
    cases["a"].image[0, 0, 0, :2] = (np.nan, np.inf)
    cases["b"].label[0, 0, 0] = 3
    cases["c"].label[:] = 0
    found = {f.subject: f.text for f in check_prepared(dataset(tmp_path, cases))}
    assert found["a"] == "The image has 2 voxels that are NaN or infinite."
    assert found["b"] == "The label has values other than 0 and 1: 3."
    assert "empty" in found["c"]
    assert "d" not in found


def test_a_case_in_two_splits_is_found(tmp_path):
    opened = dataset(tmp_path, {name: volume(i, radius=4 + i) for i, name in enumerate("abc")})
    leaking = replace(opened, splits={"train": ("a", "b"), "val": (), "test": ("c", "a")})
    found = check_prepared(leaking)
    assert [(f.severity, f.subject) for f in found] == [("error", "a")]
    assert found[0].text == "The case is in train and in test."


def test_copies_are_found_and_what_they_leak_is_said(tmp_path):
    twin = scan(3, radius=8)
    cases = {"a": scan(0), "b": twin, "c": scan(1, radius=10), "d": twin}
    relabelled = Volume(scan(4).image, cases["c"].label, twin.spacing)
    found = check_prepared(dataset(tmp_path, cases | {"e": relabelled}))
    assert [(f.severity, f.subject, f.text) for f in found] == [
        (
            "warning",
            "c",
            "The same label, up to the crop, as e: train 3 and test 1. "
            "This leaks from train to test.",
        ),
        (
            "warning",
            "b",
            "The same image and the same label, up to the crop, as d: train 2 and train 4. "
            "With 2 to 3 labelled cases the one is labelled and the other is not.",
        ),
    ]


def test_a_scan_that_was_exported_again_and_cropped_otherwise_is_found(tmp_path):
    first = scan(0)
    again = cropped(first, 3, 5)
    noisy = again.image + 0.02 * np.random.default_rng(9).standard_normal(again.image.shape)
    other = ball(again.label.shape, 6)
    second = Volume(noisy.astype("f4"), other, first.spacing)
    found = check_prepared(dataset(tmp_path, {"a": first, "b": scan(1, radius=7), "c": second}))
    assert [f.subject for f in found] == ["a"]
    assert found[0].text.startswith("Nearly the same image (r = 0.9")
    assert found[0].text.endswith("as c: train 1 and test 1. This leaks from train to test.")


def test_two_test_cases_that_are_copies_count_twice(tmp_path):
    twin = scan(3)
    opened = dataset(tmp_path, {"a": scan(0, radius=7), "b": twin, "c": twin, "d": scan(1)})
    moved = replace(opened, splits={"train": ("a", "d"), "val": (), "test": ("b", "c")})
    (first,) = [f for f in check_prepared(moved) if "same image" in f.text]
    assert first.text.endswith("as c: test 1 and test 2. It counts twice in test.")


def test_listed_patients_are_named_although_the_images_differ(la_source, tmp_path):
    from benchmark.data import SOURCES

    pair = ("4498CA6DZWELOXCBRYRF", "ULHWPWKKLTE921LQLH1P")
    for case in pair:
        write_la(la_source, case)
    SOURCES["la"].prepare(la_source, tmp_path / "root", quiet)
    texts = {f.subject: f.text for f in check_prepared(open_dataset("la", tmp_path / "root"))}
    assert "Listed as probably the same patient" in texts[pair[0]]
    assert texts[pair[0]].endswith("This leaks from train to test.")


def test_the_correlation_of_shifted_thumbnails_is_that_of_their_overlap():
    whole = np.random.default_rng(0).standard_normal((30, 24, 20)).astype("f4")
    a, b = whole[:26, :, 2:], whole[3:, 2:, :18]
    found = similarities({"a": a, "b": b})
    overlap = np.corrcoef(whole[3:26, 2:, 2:18].ravel(), whole[3:26, 2:, 2:18].ravel())[0, 1]
    assert found == {("a", "b"): pytest.approx(overlap)}
    noise = np.random.default_rng(1).standard_normal(b.shape).astype("f4")
    assert abs(similarities({"a": a, "b": noise})["a", "b"]) < 0.2


def test_a_constant_image_resembles_nothing():
    flat = np.zeros((8, 8, 8), "f4")
    assert similarities({"a": flat, "b": flat}) == {("a", "b"): 0.0}
    assert similarities({"a": flat}) == {}


def test_similarities_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(0)
    made = {str(i): rng.standard_normal((12, 10 + i, 8)).astype("f4") for i in range(5)}
    assert similarities(made, 1) == similarities(made, 2)


def test_unlike_scans_raise_no_alarm():
    thumbnails = {str(seed): thumbnail(scan(seed), 2.0) for seed in range(24)}
    found = list(similarities(thumbnails).values())
    assert max(found) < alike_limit(found) < SAME_IMAGE


def test_images_that_are_all_alike_raise_the_limit():
    usual = np.tanh(np.random.default_rng(0).normal(0.9, 0.06, 500))
    assert alike_limit(usual) > max(0.8, usual.max())
    assert alike_limit([]) == alike_limit([0.1, 0.1, 0.12]) == 0.8
    assert alike_limit([0.99, 0.992, 0.988]) > 0.995


def test_scans_that_all_look_alike_are_not_taken_for_one_another(tmp_path):
    """As heads in one pose and without skull do; but a copy is still found."""
    shape = (48, 40, 36)
    head = 40.0 * ball(shape, 14)
    cases = {}
    for number in range(8):
        content = scan(number, shape, radius=5 + number / 2)
        cases[str(number)] = Volume(content.image + head, content.label, content.spacing)
    noise = 0.01 * np.random.default_rng(9).standard_normal((1, *shape)).astype("f4")
    cases["copy"] = Volume(cases["3"].image + noise, ball(shape, 4), (1.0, 1.0, 1.0))
    similar = similarities({name: thumbnail(case, 1.5) for name, case in cases.items()})
    assert np.median(list(similar.values())) > SAME_IMAGE
    found = check_prepared(dataset(tmp_path, cases))
    assert [(f.subject, f.text.split(" as ")[1][:4]) for f in found] == [("3", "copy")]


def test_a_thumbnail_is_on_a_physical_grid():
    content = volume(0, (20, 18, 16))
    fine = Volume(content.image, content.label, (0.5, 1.0, 2.0))
    assert thumbnail(fine, 2.0).shape == (5, 9, 16)
    assert thumbnail(fine, 2.0)[0, 0, 0] == pytest.approx(content.image[0, :4, :2, :1].mean())
