import csv

import numpy as np
import pandas as pd
import pytest

from reports.cases import differences, draw, hardest, show_cases, write_cases
from reports.facts import Options, load_facts
from results.errors import UserError
from results.store import Store
from tests.protocols import toy

LEVELS = {"supervised": 0.5, "mt": 0.7, "tcseg": 0.8}
SEEDS = 3
CASES = 4


def scores(method):
    """Seeds x cases, made up apart from the store."""
    rng = np.random.default_rng(len(method))
    return LEVELS[method] + rng.normal(0, 0.08, (SEEDS, CASES))


def fill(store, methods=tuple(LEVELS), frames=lambda rows: rows):
    for method in methods:
        for seed, values in enumerate(scores(method)):
            rows = toy.cases(toy.run_id(method, seed), {1000: values[::-1], 2000: values})
            lost = {"state": "failed"} if (method, seed) == ("mt", 1) else {}
            toy.add(store, frames(rows), toy.spec(method, seed=seed), **lost)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill(Store.open(tmp_path_factory.mktemp("cases") / "s", create=True))


def facts(store, protocol="last", **options):
    return load_facts(store, protocol, "tcseg", options=Options(**options))


def test_each_method_is_measured_against_the_supervised_one_case_by_case(store):
    found = differences(facts(store))
    assert list(dict.fromkeys(found["method"])) == ["tcseg", "mt"]
    assert set(found["reference"]) == {"supervised"}
    row = found[found["method"] == "tcseg"].set_index("case")
    expected = 100 * (scores("tcseg") - scores("supervised")).mean(0)
    np.testing.assert_allclose(row["difference"].sort_index(), expected)
    assert row["difference"].is_monotonic_decreasing
    np.testing.assert_allclose(row["share"].sort_index(), expected / expected.sum())
    np.testing.assert_allclose(row["cumulative"], row["share"].cumsum())


def test_only_seeds_that_finished_with_both_count_and_their_number_is_said(store):
    found = differences(facts(store))
    row = found[found["method"] == "mt"].set_index("case").sort_index()
    np.testing.assert_allclose(row["method_dsc"], 100 * scores("mt")[[0, 2]].mean(0))
    np.testing.assert_allclose(row["reference_dsc"], 100 * scores("supervised")[[0, 2]].mean(0))
    assert (row["method_seeds"] == 2).all()
    headings = [s.heading for s in show_cases(facts(store))[0].sections]
    assert headings[0].startswith("tcseg − supervised, 3 seeds, 4 cases; la")
    assert headings[1].startswith("mt − supervised, 2 seeds, 4 cases; la")


def test_without_a_supervised_method_the_best_is_the_reference(tmp_path):
    store = fill(Store.open(tmp_path / "s", create=True), ("mt", "tcseg"))
    found = differences(facts(store))
    assert set(zip(found["method"], found["reference"], strict=True)) == {("mt", "tcseg")}
    assert (found["difference"] < 0).any()


def test_the_hardest_cases_are_those_with_the_lowest_mean_over_methods(store):
    found = hardest(facts(store)).set_index("case")
    means = pd.DataFrame(
        {
            "tcseg": 100 * scores("tcseg").mean(0),
            "mt": 100 * scores("mt")[[0, 2]].mean(0),
            "supervised": 100 * scores("supervised").mean(0),
        },
        index=[f"case{n}" for n in range(CASES)],
    )
    expected = means.mean(axis=1).sort_values()
    assert found.index.tolist() == expected.index.tolist()
    np.testing.assert_allclose(found["mean"], expected)
    assert found["highest_method"].to_dict() == means.idxmax(axis=1).to_dict()
    assert found["lowest_method"].to_dict() == means.idxmin(axis=1).to_dict()
    np.testing.assert_allclose(found["lowest"].sort_index(), means.min(axis=1))


def test_cases_asked_for_are_shown_and_no_others(store):
    pages = show_cases(facts(store, cases=("case2", "case0")))
    for section in (*pages[0].sections, *pages[1].sections):
        assert sorted(row[0] for row in section.rows) == ["case0", "case2"]
    assert "(2 cases not shown)" in pages[0].sections[0].heading
    with pytest.raises(
        UserError, match=r"unknown case 'case99'.* Known: case0, case1, case2, case3"
    ):
        show_cases(facts(store, cases=("case99",)))


def test_of_many_cases_both_ends_are_shown_and_all_are_in_the_file(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    rng = np.random.default_rng(0)
    for method in ("mt", "supervised"):
        toy.add(store, toy.cases(toy.run_id(method), {1000: rng.random(35)}), toy.spec(method))
    made = facts(store)
    section = show_cases(made)[0].sections[0]
    assert len(section.rows) == 20
    assert "35 cases" in section.heading
    assert "(15 cases not shown)" in section.heading
    assert len(differences(made)) == 35
    assert len(hardest(made)) == 10
    assert draw(differences(made)).axes[0].get_xlabel() == "35 cases"


def test_the_figure_has_a_bar_for_every_case_of_every_pair(store):
    found = differences(facts(store))
    figure = draw(found)
    assert len(figure.axes) == 2
    for axes, method in zip(figure.axes, ("tcseg", "mt"), strict=True):
        heights = [patch.get_height() for patch in axes.patches]
        assert heights == found.loc[found["method"] == method, "difference"].tolist()
        assert axes.get_title(loc="left").startswith(f"{method} − supervised, mean +")
        names = [text.get_text() for text in axes.get_xticklabels()]
        assert names == found.loc[found["method"] == method, "case"].tolist()


def test_panels_beside_each_other_have_one_scale(store):
    first, second = draw(differences(facts(store))).axes
    assert first.get_ylim() == second.get_ylim()


def test_files_are_the_same_bytes_whatever_the_order_of_rows(store, tmp_path):
    mixed = fill(
        Store.open(tmp_path / "s", create=True),
        frames=lambda rows: rows.sample(frac=1, random_state=3),
    )
    first, second = (write_cases(facts(s), tmp_path / n) for s, n in ((store, "a"), (mixed, "b")))
    assert [p.name for p in first] == [
        *(f"cases-last.{suffix}" for suffix in ("md", "csv", "tex")),
        "cases-last-hardest.csv",
        *(f"cases-last.{suffix}" for suffix in ("png", "pdf", "svg")),
    ]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    rows = list(csv.DictReader(first[1].read_text().splitlines()))
    assert len(rows) == 2 * CASES
    assert write_cases(facts(store, "best"), tmp_path / "c")[0].name == "cases-best.md"


def test_a_store_of_failed_runs_has_no_cases_and_says_so(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    for method in ("mt", "supervised"):
        rows = toy.cases(toy.run_id(method), {1000: (0.8, 0.7)})
        toy.add(store, rows, toy.spec(method), state="failed")
    made = facts(store)
    page, hard = show_cases(made)
    assert (page.sections, hard.sections) == ((), ())
    assert page.notes[0] == "No setting has two methods with finished runs yet."
    assert "no setting has two methods" in draw(differences(made)).texts[0].get_text()


def test_one_method_alone_has_hard_cases_and_no_differences(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    toy.add(store, toy.cases(toy.run_id(), {1000: (0.8, 0.7)}))
    page, hard = show_cases(facts(store))
    assert page.sections == ()
    assert [row[0] for row in hard.sections[0].rows] == ["case1", "case0"]
