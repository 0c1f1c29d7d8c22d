"""The committed lists, and who is labelled."""

from __future__ import annotations

import pytest

from benchmark.data import SOURCES
from benchmark.data.base import Dataset
from benchmark.data.splits import labelled_count, read_list, split_labelled
from results.errors import UserError
from tests.data.made_data import volume

SIZES = {
    "la": {"train": 80, "test": 20},
    "pancreas": {"train": 62, "test": 20},
    "brats2019": {"train": 250, "val": 25, "test": 60},
}


def dataset(n_train: int) -> Dataset:
    cases = tuple(f"case-{i}" for i in range(n_train))
    splits = {"train": cases, "val": (), "test": ("t",)}
    return Dataset(SOURCES["la"].card, splits, "f" * 64, load=lambda case: volume())


@pytest.mark.parametrize("name", SIZES)
def test_committed_lists_have_the_published_sizes_and_no_case_twice(name):
    lists = {split: read_list(f"{name}_{split}") for split in SIZES[name]}
    assert {split: len(cases) for split, cases in lists.items()} == SIZES[name]
    everyone = [case for cases in lists.values() for case in cases]
    assert len(set(everyone)) == len(everyone)
    assert all(case == case.strip() and case for case in everyone)


def test_la_labelled_cases_are_the_first_of_the_published_list():
    assert read_list("la_train")[0] == "06SR5RBREL16DQ6M8LWS"
    assert read_list("pancreas_train")[:3] == ("image0057", "image0018", "image0062")


def test_every_la_case_has_a_known_checksum():
    known = [line.split("\t") for line in read_list("la", folder="checksums", end=".tsv")]
    assert {case for case, _ in known} == {*read_list("la_train"), *read_list("la_test")}
    assert all(len(digest) == 64 for _, digest in known)


@pytest.mark.parametrize(
    ("ratio", "n_train", "count"),
    [
        (0.1, 80, 8),
        (0.2, 80, 16),
        (0.1, 62, 6),
        (0.2, 62, 12),
        (0.1, 250, 25),
        (0.2, 250, 50),
        (0.1, 25, 3),  # 2.5: halves upward
        (0.3, 5, 2),  # 1.5, which binary floats put below
        (1.0, 7, 7),
    ],
)
def test_a_ratio_means_the_nearest_number_of_cases(ratio, n_train, count):
    assert labelled_count(ratio, n_train) == count


@pytest.mark.parametrize(
    ("ratio", "n_train", "message"),
    [
        (0.001, 80, "no labelled case.*--labelled 1"),
        (0.999, 80, "no unlabelled case.*1 to 79"),
        (0.0, 80, r"not in \(0, 1\]"),
        (-0.1, 80, r"not in \(0, 1\]"),
        (8, 80, r"not in \(0, 1\]"),
    ],
)
def test_a_ratio_that_leaves_a_side_empty_says_what_to_choose(ratio, n_train, message):
    with pytest.raises(UserError, match=message):
        labelled_count(ratio, n_train)


def test_the_ratio_that_the_message_recommends_works():
    with pytest.raises(UserError, match=r"at least 0\.007") as error:
        labelled_count(0.001, 80)
    recommended = float(str(error.value).split()[-1].rstrip("."))
    assert labelled_count(recommended, 80) == 1


def test_the_first_training_cases_are_labelled():
    assert split_labelled(dataset(4), 1) == (("case-0",), ("case-1", "case-2", "case-3"))


@pytest.mark.parametrize("labelled", [0, -1, 5])
def test_a_number_of_labelled_cases_that_does_not_exist_is_refused(labelled):
    with pytest.raises(UserError, match=r"4 training cases. Choose 1 to 4"):
        split_labelled(dataset(4), labelled)


def test_all_labelled_is_for_methods_that_need_no_unlabelled_case():
    assert split_labelled(dataset(4), 4, need_unlabelled=False)[1] == ()
    with pytest.raises(UserError, match=r"no unlabelled case.*at most 3"):
        split_labelled(dataset(4), 4)
