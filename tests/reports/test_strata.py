"""Reports over the test cases that are not linked to training cases."""

import json

import numpy as np
import pandas as pd
import pytest

from reports import strata
from reports.facts import Options, load_facts
from reports.report import write_report
from reports.table import sheet
from results.errors import UserError
from results.schema import Stratum
from results.store import Store
from tests.protocols import toy

UNLINKED = Options(stratum=Stratum.UNLINKED)
LINKED = {"case1": ["t4", "t9"], "case3": ["t7"]}
SCORES = {1000: [0.5, 0.9, 0.6, 0.9, 0.7], 2000: [0.6, 0.2, 0.7, 0.1, 0.8]}


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store.open(tmp_path / "runs", create=True)
    for seed in range(3):
        run = toy.run_id(seed=seed)
        rows = toy.cases(run, {k: np.add(v, 0.01 * seed) for k, v in SCORES.items()})
        toy.add(made, rows, toy.spec(seed=seed), sidecar={"seconds": 1.0, "linked": LINKED})
    return made


def other(store: Store, linked: object, dataset: str = "brats") -> None:
    """Add a run of another dataset; `linked` Ellipsis: its sidecar says nothing."""
    run = toy.run_id(dataset=dataset)
    content = toy.spec(dataset=dataset, fingerprint=dataset[0] * 64)
    sidecar = {"seconds": 1.0} | ({} if linked is ... else {"linked": linked})
    toy.add(store, toy.cases(run, SCORES), content, sidecar=sidecar)


def median_dsc(facts, dataset: str = "la") -> float:
    rows = facts.summary[facts.summary["dataset"].str.startswith(dataset)]
    return rows["dsc_median"].iloc[0]


def test_only_unlinked_test_cases_count(store):
    facts = load_facts(store, "last", "tcseg", options=UNLINKED)
    assert median_dsc(facts) == pytest.approx(np.mean([0.6, 0.7, 0.8]) + 0.01)
    assert set(facts.cases["case"]) == {"case0", "case2", "case4"}
    assert set(facts.summary["cases"]) == {3}
    everything = load_facts(store, "last", "tcseg")
    assert median_dsc(everything) == pytest.approx(np.mean(SCORES[2000]) + 0.01)
    assert everything.omitted == ()


def test_a_rule_that_looks_at_the_test_split_looks_at_these_cases_alone(store):
    everything = load_facts(store, "best", "tcseg")
    assert set(everything.outcomes(everything.rule)["step"]) == {1000}
    facts = load_facts(store, "best", "tcseg", options=UNLINKED)
    assert set(facts.outcomes(facts.rule)["step"]) == {2000}


def test_other_splits_keep_their_cases(store):
    run = toy.run_id(seed=9)
    rows = toy.cases(run, SCORES)
    val = toy.cases(run, SCORES, split="val")
    both = pd.concat([rows, val], ignore_index=True)
    toy.add(store, both, toy.spec(seed=9), sidecar={"seconds": 1.0, "linked": LINKED})
    facts = load_facts(store, "last", "tcseg", options=UNLINKED)
    left = facts.cases.groupby("split", observed=True)["case"].nunique()
    assert left.to_dict() == {"test": 3, "val": 5}


def test_every_table_says_which_cases_it_counts(store, tmp_path):
    options = UNLINKED
    facts = load_facts(store, "last", "tcseg", options=options)
    (section,) = sheet(facts).sections
    assert section.heading.startswith("la (unlinked test cases)")
    note = next(n for n in sheet(facts).notes if "linked to training cases" in n)
    assert note.startswith("la: 2 test cases")
    assert "case1 (t4, t9), case3 (t7)" in note
    names = ["table", "leaderboard", "trajectories"]
    written = write_report(store.path, "last", tmp_path / "out", names=names, options=options)
    for path in written.paths:
        if path.suffix in (".md", ".csv", ".html"):
            assert "unlinked test cases" in path.read_text(), path


def test_what_one_run_says_holds_for_older_runs_on_the_same_data(store):
    run = toy.run_id(seed=8)
    toy.add(store, toy.cases(run, SCORES), toy.spec(seed=8))
    facts = load_facts(store, "last", "tcseg", options=UNLINKED)
    assert len(facts.summary) == 1
    assert facts.summary["started"].iloc[0] == 4
    assert set(facts.cases["case"]) == {"case0", "case2", "case4"}


def test_where_no_run_says_anything_the_data_are_asked(tmp_path):
    store = Store.open(tmp_path / "runs", create=True)
    other(store, ..., "la")
    asked = []

    def read(dataset):
        asked.append(dataset["name"])
        return {"case0": ("t1",)}

    options = Options(stratum=Stratum.UNLINKED, linked=read)
    facts = load_facts(store, "last", "tcseg", options=options)
    assert asked == ["la"]
    assert "case0" not in set(facts.cases["case"])
    load_facts(store, "last", "tcseg", options=Options(linked=read))
    assert asked == ["la"]


@pytest.mark.parametrize("said", [None, ...])
def test_nothing_known_of_any_dataset_is_an_error(tmp_path, said):
    store = Store.open(tmp_path / "runs", create=True)
    other(store, said)
    with pytest.raises(UserError, match=r"nobody has looked for links.*of brats.*Leave the option"):
        load_facts(store, "last", "tcseg", options=UNLINKED)


def test_a_dataset_of_which_nothing_is_known_keeps_all_cases_and_says_so(store):
    other(store, None)
    facts = load_facts(store, "last", "tcseg", options=UNLINKED)
    assert median_dsc(facts, "brats") == pytest.approx(np.mean(SCORES[2000]))
    assert set(facts.summary["dataset"]) == {"la (unlinked test cases)", "brats"}
    assert any(n.startswith("brats: nobody has looked for links") for n in facts.omitted)


def test_a_dataset_without_links_counts_all_cases_as_unlinked(tmp_path):
    store = Store.open(tmp_path / "runs", create=True)
    other(store, {})
    facts = load_facts(store, "last", "tcseg", options=UNLINKED)
    assert facts.summary["cases"].tolist() == [5]
    assert facts.omitted == (
        "brats: no test case is known to be linked to a training case; all of them count.",
    )


def test_a_run_all_of_whose_test_cases_are_linked_is_an_error(tmp_path):
    store = Store.open(tmp_path / "runs", create=True)
    other(store, {f"case{n}": ["t1"] for n in range(5)})
    with pytest.raises(UserError, match=r"all test cases of run .* none is left"):
        load_facts(store, "last", "tcseg", options=UNLINKED)


def test_unfinished_runs_count_the_same_cases(store):
    run = toy.run_id(seed=7)
    content = toy.spec(seed=7)
    store.write_work(run, "spec.json", json.dumps({"row": toy.planned(run, content)}))
    store.write_part(run, "cases", 1000, toy.cases(run, {1000: SCORES[1000]}))
    facts = load_facts(store, "last", "tcseg", options=UNLINKED, partial=True)
    assert set(facts.summary["dataset"]) == {"la (unlinked test cases)"}
    assert facts.summary["started"].tolist() == [4]


def test_a_selection_of_all_changes_nothing():
    rows = toy.cases("a-run", SCORES)
    assert strata.Selection().of_cases(rows) is rows
