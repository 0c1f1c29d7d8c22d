"""A split of one's own, from a JSON file."""

import json

import pytest

from benchmark.data.split_file import read_split, require_cases
from benchmark.data.splits import choose_split
from results.errors import UserError

GOOD = {"train": ["c", "a"], "val": ["d"], "test": ["b"]}


@pytest.fixture
def write(tmp_path):
    def made(content: object, name: str = "split.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return made


def test_a_split_is_read_in_its_order(write):
    chosen = read_split(write(GOOD, "My_fold 2.json"))
    assert chosen.name == "my-fold-2"
    assert chosen.lists == {"train": ("c", "a"), "val": ("d",), "test": ("b",)}


def test_validation_cases_may_be_missing(write):
    assert read_split(write({"train": ["a"], "test": ["b"]})).lists["val"] == ()


def test_a_name_with_the_ending_of_a_file_is_one(write):
    path = write(GOOD)
    assert choose_split("la", str(path)) == read_split(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is no JSON .*Expected: \{"),
        ('{"train": ["a"], "train": ["b"], "test": ["c"]}', "'train' is there twice"),
        ([1], "no JSON object"),
        ({"train": ["a"]}, "no list of names 'test'"),
        ({"test": ["a"]}, "no list of names 'train'"),
        ({"train": ["a"], "test": "b"}, "no list of names 'test'"),
        ({"train": ["a", 1], "test": ["b"]}, "no list of names 'train'"),
        ({"train": ["a", ""], "test": ["b"]}, "no list of names 'train'"),
        ({"train": ["a"], "val": None, "test": ["b"]}, "no list of names 'val'"),
        ({"train": [], "test": ["b"]}, "no case in train"),
        ({"train": ["a"], "test": []}, "no case in test"),
        ({"train": ["a"], "test": ["b"], "tset": []}, "'tset'. Known: train, val, test"),
        ({"train": ["a", "b"], "test": ["b"]}, "lists b in train and test"),
        ({"train": ["a"], "val": ["b"], "test": ["b"]}, "lists b in val and test"),
        ({"train": ["a", "a"], "test": ["b"]}, "lists a in train twice"),
    ],
)
def test_what_is_no_split_is_refused_with_one_message(write, content, message):
    path = write(content)
    with pytest.raises(UserError, match=message) as caught:
        read_split(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path, write):
    with pytest.raises(UserError, match=r"There is no split file .*none\.json"):
        read_split(tmp_path / "none.json")
    with pytest.raises(UserError, match="Cannot read"):
        read_split(tmp_path)
    with pytest.raises(UserError, match="no letter or digit"):
        read_split(write(GOOD, "__.json"))
    path = tmp_path / "latin.json"
    path.write_bytes(b'{"train": ["\xe9"], "test": ["b"]}')
    with pytest.raises(UserError, match="is no JSON"):
        read_split(path)


def test_unknown_cases_are_named(write):
    chosen = read_split(write(GOOD))
    require_cases("x.json", chosen, {"a", "b", "c", "d", "e"})
    message = (
        r"x\.json lists 2 of 4 cases that the dataset does not have: c, d\. It has 2, such as a"
    )
    with pytest.raises(UserError, match=message):
        require_cases("x.json", chosen, {"a", "b"})
