"""Large stores: the same numbers as plain pandas over the same files."""

from dataclasses import replace

import pandas as pd
import pytest

from protocols.policies import POLICIES
from protocols.rules import RULES, parse_rule
from protocols.trajectory import trajectory
from reports.facts import load_facts
from results.store import Store
from tests import made_store

SIZE = {"methods": 2, "datasets": 2, "seeds": 3, "steps": 6, "cases": 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return made_store.write_store(tmp_path_factory.mktemp("made") / "store", **SIZE)


def test_the_summary_has_the_numbers_of_plain_pandas(store):
    expected, found = made_store.plain(store.path), made_store.ours(store.path)
    assert len(expected) == 2 * 2 * 2
    pd.testing.assert_frame_equal(
        found, expected, rtol=1e-12, check_index_type=False, check_column_type=False
    )


def test_a_summary_needs_few_runs_in_memory_at_once_and_cases_are_read_when_asked_for(
    store, monkeypatch
):
    monkeypatch.setattr("reports.facts._BATCH", 5)
    whole = load_facts(store, "best", "tcseg")
    reads = []
    real = Store.read

    def counted(self, table, runs=None, columns=None):
        reads.append((table, runs if runs is None else len(runs)))
        return real(self, table, runs, columns)

    monkeypatch.setattr(Store, "read", counted)
    facts = load_facts(store, "best", "tcseg")
    pd.testing.assert_frame_equal(facts.summary, whole.summary, check_exact=True)
    assert reads == [("runs", None), *[("cases", n) for n in (0, 5, 5, 2)]]
    other = replace(facts, rule=parse_rule("corrected"))
    assert len(other.summary) == len(facts.cases.drop_duplicates(["run", "predictor"])) / 3
    assert reads[5:] == [("cases", 12)]
    steps = trajectory(facts.cases, POLICIES["tcseg"])
    pd.testing.assert_frame_equal(facts.trajectory, steps, check_exact=True)


def test_text_is_kept_as_codes_and_only_needed_columns_are_read(store):
    facts = load_facts(store, "last", "tcseg")
    assert len(facts.cases) == 12 * 6 * 4 * 2
    assert facts.cases.memory_usage(index=False, deep=False).sum() / len(facts.cases) < 64
    assert facts.cases["run"].dtype == "category"
    assert "tp" not in facts.cases


def test_a_process_of_its_own_tells_what_a_report_costs(store):
    cost = made_store.measured(store.path)
    assert cost["rows"] == 576
    assert 0 < cost["cpu_s"] < 60
    assert 50 < cost["peak_mib"] < 1024


@pytest.mark.parametrize("name", sorted(set(RULES) - {"val"}))
def test_every_rule_that_needs_no_validation_cases_can_be_reported(store, name):
    summary = load_facts(store, name, "tcseg").summary
    assert len(summary) == 8
    assert set(summary["finished"]) == {3}
    assert summary["evaluations"].iloc[0] == (1 if name.startswith("last") else 6)


@pytest.mark.parametrize("name", ["best", "corrected"])
def test_a_choice_among_predictors_is_one_row_out_of_twice_as_many(store, name):
    facts = load_facts(store, f"{name}(predictors=all)", "tcseg")
    assert facts.summary["predictor"].tolist() == ["main"] * 4
    assert set(facts.summary["evaluations"]) == {12}
    values = facts.outcomes(facts.rule)
    apart = load_facts(store, "best", "tcseg")
    each = apart.outcomes(apart.rule).groupby("run")["dsc"].max()
    if name == "best":
        assert values.set_index("run")["dsc"].to_dict() == each.to_dict()
    last = load_facts(store, "last", "tcseg")
    main = last.outcomes(last.rule).query("predictor == 'main'").set_index("run")["dsc"]
    assert values.set_index("run")["dsc_last"].to_dict() == main.to_dict()


def test_where_all_is_chance_corrected_lies_below_best_at_the_level_of_last(store):
    medians = {
        rule: load_facts(store, rule, "tcseg").summary["dsc_median"].mean()
        for rule in ("best", "corrected", "last")
    }
    assert medians["corrected"] < medians["best"]
    assert medians["corrected"] == pytest.approx(medians["last"], abs=0.05)
