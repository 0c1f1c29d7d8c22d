"""Reports of some of the methods that a store holds."""

import json

import pytest

from reports import REPORTS
from reports.facts import Options, load_facts
from reports.report import write_report
from results.errors import UserError
from results.store import Store
from tests.protocols import toy

METHODS = ("supervised", "mt", "tcseg")
TWO = Options(methods=("tcseg", "mt"))
SAID = "Only mt, tcseg, as asked: the store holds runs of 1 other method (supervised)."


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store.open(tmp_path / "runs", create=True)
    for place, method in enumerate(METHODS):
        for seed in range(3):
            run = toy.run_id(method=method, seed=seed)
            scores = [0.5 + 0.1 * place + 0.01 * seed + 0.02 * case for case in range(4)]
            rows = toy.cases(run, {1000: scores[::-1], 2000: scores})
            toy.add(made, rows, toy.spec(method=method, seed=seed))
    return made


def test_only_the_methods_asked_for_are_read(store):
    facts = load_facts(store, "last", "tcseg", options=TWO)
    assert set(facts.summary["method"]) == {"mt", "tcseg"}
    assert set(facts.cases["run"]) == set(facts.runs["run"])
    assert facts.omitted == (SAID,)


def test_a_number_does_not_depend_on_what_is_shown_beside_it(store):
    everything = load_facts(store, "last", "tcseg").summary.set_index("method")
    two = load_facts(store, "last", "tcseg", options=TWO).summary.set_index("method")
    assert two["dsc_median"].to_dict() == everything.loc[["mt", "tcseg"], "dsc_median"].to_dict()


def test_tests_are_corrected_for_the_pairs_that_are_shown_and_the_reader_is_told(store, tmp_path):
    write_report(store.path, "last", tmp_path / "all", names=["comparison"])
    write_report(store.path, "last", tmp_path / "two", names=["comparison"], options=TWO)
    text = (tmp_path / "two" / "only-mt+tcseg" / "comparison-last.md").read_text()
    assert text.count(SAID) == 2
    assert SAID not in (tmp_path / "all" / "comparison-last.md").read_text()


@pytest.mark.parametrize(
    "name", ["table", "leaderboard", "ranks", "optimism", "cases", "pseudo", "costs", "published"]
)
def test_a_table_says_that_methods_are_left_out(store, tmp_path, name):
    written = write_report(store.path, "last", tmp_path / "out", names=[name], options=TWO)
    texts = [path.read_text() for path in written.paths if path.suffix == ".md"]
    assert texts
    assert all(SAID in text for text in texts)


@pytest.mark.parametrize("name", [n for n in REPORTS if n not in ("slices", "html")])
def test_every_report_writes_to_a_folder_that_names_the_methods(store, tmp_path, name):
    written = write_report(store.path, "last", tmp_path / "out", names=[name], options=TWO)
    assert {path.parent for path in written.paths} <= {tmp_path / "out" / "only-mt+tcseg"}


def test_a_long_list_has_a_short_folder_of_its_own(tmp_path):
    store = Store.open(tmp_path / "runs", create=True)
    names = [f"method-with-a-name-of-its-own-{n}" for n in range(4)]
    for name in names:
        run = toy.run_id(method=name)
        toy.add(store, toy.cases(run, {1000: [0.5]}), toy.spec(method=name))
    folders = set()
    for chosen in (names[:3], names[1:]):
        options = Options(methods=tuple(chosen))
        made = write_report(store.path, "last", tmp_path, names=["table"], options=options)
        folders |= {path.parent.name for path in made.paths}
    assert len(folders) == 2
    assert all(f.startswith("only-3-methods-") and len(f) < 60 for f in folders)


def test_all_methods_by_name_leave_nothing_out(store):
    facts = load_facts(store, "last", "tcseg", options=Options(methods=METHODS))
    assert facts.omitted == ()
    assert set(facts.summary["method"]) == set(METHODS)


def test_unfinished_runs_of_other_methods_are_left_out_too(store):
    run = toy.run_id(method="mt", seed=7)
    content = toy.spec(method="mt", seed=7)
    store.write_work(run, "spec.json", json.dumps({"row": toy.planned(run, content)}))
    store.write_part(run, "cases", 1000, toy.cases(run, {1000: [0.1] * 4}))
    facts = load_facts(
        store, "last", "tcseg", partial=True, options=Options(methods=("supervised",))
    )
    assert facts.summary["unfinished"].tolist() == [0]
    facts = load_facts(store, "last", "tcseg", partial=True, options=Options(methods=("mt",)))
    assert facts.summary["unfinished"].tolist() == [1]


def test_a_method_without_a_run_is_an_error(store):
    with pytest.raises(UserError, match=r"store .*: 'tcsge'\. Did you mean 'tcseg'\?"):
        load_facts(store, "last", "tcseg", options=Options(methods=("mt", "tcsge")))
