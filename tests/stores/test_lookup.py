import pytest

from results.errors import UserError
from results.lookup import find, unknown


def test_a_known_name_gives_its_entry():
    assert find("rule", "last", {"last": 1, "best": 2}) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [("bset", "Did you mean 'best'? "), ("BEST", "Did you mean 'best'? "), ("xyzzy", "")],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all_known_ones_in_order(name, hint):
    with pytest.raises(UserError) as error:
        find("rule", name, {"last": 1, "best": 2})
    assert str(error.value) == f"unknown rule '{name}'. {hint}Known: best, last"


def test_known_names_in_capitals_are_suggested_as_they_are_written():
    assert "Did you mean 'LA'?" in str(unknown("dataset", "la", ["LA", "pancreas"]))
