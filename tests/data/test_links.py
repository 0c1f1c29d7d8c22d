"""Which cases are known to show the same patient."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark.data import SOURCES, open_dataset
from benchmark.data.base import Dataset
from benchmark.data.links import known_links, linked_cases, split_notes
from benchmark.data.splits import choose_split, read_list
from tests.data.made_data import LA_TEST, LA_TRAIN, quiet, write_la


def listed(train: tuple[str, ...], test: tuple[str, ...]) -> Dataset:
    """The left atrium without volumes."""
    found = SOURCES["la"].card
    return Dataset(found, {"train": train, "val": (), "test": test}, "f" * 64, lambda case: None)


FULL = listed(read_list("la_train"), read_list("la_test"))


def test_the_list_of_the_left_atrium_is_what_registration_found():
    links = known_links(FULL)
    assert Counter(link.kind for link in links) == {"patient": 29, "copy": 1}
    (copy,) = [link for link in links if link.kind == "copy"]
    assert (copy.first, copy.second) == ("0RZDK210BSMWAA6467LU", "CMPXO4J23G58J53Q98SZ")
    assert all(link.agreement > 0.7 and link.first != link.second for link in links)


def test_seven_of_twenty_test_cases_are_linked_to_training_cases():
    linked = linked_cases(FULL)
    assert sorted(case[:4] for case in linked) == [
        *("ULHW", "VDOF", "VIXB", "WBG9", "WW8F", "Z9GM", "ZIJL")
    ]
    (case,) = (c for c in linked if c.startswith("ULHW"))
    assert linked[case] == ("23X6SY44VT9KFHR7S7OC", "4498CA6DZWELOXCBRYRF")


def test_links_count_only_between_cases_that_are_there():
    linked = linked_cases(FULL)
    case, others = next((c, o) for c, o in linked.items() if len(o) == 2)
    train = tuple(c for c in FULL.splits["train"] if c != others[0])
    fewer = replace(FULL, splits={**FULL.splits, "train": train})
    assert linked_cases(fewer)[case] == others[1:]
    assert linked_cases(listed(LA_TRAIN, LA_TEST)) == {}


def test_which_test_cases_are_linked_follows_the_split():
    train, test = FULL.splits["train"], FULL.splits["test"]
    turned = linked_cases(listed(test, train))
    pairs = {(a, b) for a, others in linked_cases(FULL).items() for b in others}
    assert {(b, a) for a, others in turned.items() for b in others} == pairs


def test_notes_are_of_the_split_that_is_used():
    copy, linked, validation = split_notes(FULL)
    assert copy.startswith("0RZDK210BSMWAA6467LU (training case 2) and CMPXO4J23G58J53Q98SZ (tr")
    assert linked.startswith("Patients are repeated: 7 of the 20 test cases are linked to training")
    assert validation == "There is no validation set."
    for name in ("mcf-1", "mcf-3"):
        lists = choose_split("la", name).lists
        copy, *_ = split_notes(listed(lists["train"], lists["test"]))
        assert "(a test case)" in copy
        assert "(training case " in copy
    assert split_notes(listed(FULL.splits["train"][2:9], ())) == (validation,)


def test_of_other_datasets_nothing_is_known():
    assert linked_cases(open_dataset("phantom", Path())) is None
    assert known_links(open_dataset("phantom", Path())) is None


def test_a_prepared_dataset_is_known_by_what_it_was_prepared_from(tmp_path):
    pair = ("4498CA6DZWELOXCBRYRF", "ULHWPWKKLTE921LQLH1P")
    for case in pair:
        write_la(tmp_path / "source", case)
    SOURCES["la"].prepare(tmp_path / "source", tmp_path / "root", quiet)
    assert linked_cases(open_dataset("la", tmp_path / "root")) == {pair[1]: (pair[0],)}


@pytest.mark.parametrize("name", ["la", "pancreas"])
def test_every_listed_case_is_one_of_the_dataset(name):
    cases = {*read_list(f"{name}_train"), *read_list(f"{name}_test")}
    for line in read_list(name, "links", ".tsv"):
        first, second, _, _ = line.split("\t")
        assert {first, second} <= cases
