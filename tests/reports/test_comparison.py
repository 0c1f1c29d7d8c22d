import csv
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports.comparison import (
    comparison,
    comparison_sheet,
    show_comparison,
    tables,
    variance_sheet,
    variances,
    write_comparison,
)
from reports.facts import Options, load_facts
from results.errors import UserError
from results.store import Store
from tests.protocols import toy

STEPS = (1000, 2000, 3000)
LEVELS = {"tcseg": 0.8, "mt": 0.7}
SEEDS = 6
CASES = 5


def scores(method, dataset="la"):
    """Seeds x steps x cases, made up apart from the store."""
    rng = np.random.default_rng([len(method), len(dataset)])
    hard = np.linspace(-0.1, 0.1, CASES)
    return LEVELS[method] + hard + rng.normal(0, 0.02, (SEEDS, len(STEPS), CASES))


def fill(store, frames=lambda rows: rows):
    for method in LEVELS:
        for seed, values in enumerate(scores(method)):
            rows = toy.cases(toy.run_id(method, seed), dict(zip(STEPS, values, strict=True)))
            toy.add(store, frames(rows), toy.spec(method, seed=seed))
    rows = toy.cases(toy.run_id("mt", 6), {2000: [0.9] * CASES})
    toy.add(store, frames(rows), toy.spec("mt", seed=6), state="failed")
    # A setting of one method, with a failed seed that the other method lacks.
    for seed in range(2):
        rows = toy.cases(toy.run_id("mt", seed, "pancreas"), {2000: [0.5, 0.6 + seed / 10]})
        toy.add(store, frames(rows), toy.spec("mt", dataset="pancreas", seed=seed))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill(Store.open(tmp_path_factory.mktemp("comparison") / "s", create=True))


def facts(store, protocol="last", policy="tcseg", **options):
    return load_facts(store, protocol, policy, options=Options(**options))


def test_tables_are_seeds_by_cases_of_what_the_protocol_chose(store):
    for protocol, step in (("last", 2), ("last(every=2000)", 1)):
        found = tables(facts(store, protocol))["la, 8 labelled / 72 unlabelled, profile mini"]
        np.testing.assert_allclose(found["dsc"]["tcseg"], scores("tcseg")[:, step])
        np.testing.assert_allclose(found["asd"]["tcseg"], 10 * (1 - scores("tcseg")[:, step]))
        assert list(found["dsc"]) == ["tcseg", "mt"], "in the summary's order"
    assert found["dsc"]["mt"].index.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert (found["dsc"]["mt"].loc[6] == -np.inf).all()
    assert (found["hd95"]["mt"].loc[6] == np.inf).all()


def test_a_pair_of_methods_is_what_plain_numpy_says(store):
    found = comparison(facts(store)).set_index("metric")
    x, y = (100 * scores(m)[:, -1] for m in ("tcseg", "mt"))
    by_seed = (x - y).mean(1)
    row = found.loc["dsc"]
    assert (row["first"], row["second"], row["seeds"]) == ("tcseg", "mt", "6 of 6 and 7")
    assert row["difference"] == pytest.approx(by_seed.mean())
    assert row["sd"] == pytest.approx(by_seed.std(ddof=1))
    assert row["seeds_p"] == pytest.approx(2 / 2**6)
    assert row["ranks_p"] == pytest.approx(stats.wilcoxon(by_seed, method="exact").pvalue)
    assert row["low"] < row["difference"] < row["high"]
    assert row["seeds_verdict"] == "first better"
    assert row["cases_verdict"] == "cannot decide", "five cases give 0.0625 at least"
    assert found.loc["asd", "difference"] == pytest.approx(-by_seed.mean() / 10)
    assert found.loc["asd", "seeds_verdict"] == "first better"


def test_the_sheet_says_what_was_compared_and_what_cannot_be_decided(store):
    made = facts(store)
    page = comparison_sheet(made, comparison(made))
    (section,) = page.sections
    assert section.heading.startswith("la, ")
    names = [" ".join(filter(None, c)) for c in page.columns]
    row = dict(zip(names, section.rows[0], strict=True))
    assert row["n seeds"] == "6 of 6 and 7"
    assert (row["over seeds p"], row["over seeds attainable"]) == ("0.0312", "0.0312")
    assert row["over seeds verdict"] == "first better"
    assert (row["over cases attainable"], row["over cases verdict"]) == ("0.0625", "cannot decide")
    said = " ".join(page.notes)
    assert "Protocol last: the last checkpoint of each run; nothing is selected." in said
    assert "2000 resamples of seeds × cases, both drawn anew (seed 0)" in said
    assert "Holm's correction over all pairs of a setting" in said
    assert "policy tcseg" in said
    assert "n.s." not in said


def test_best_says_that_it_was_selected(store):
    made = facts(store, "best")
    said = " ".join(comparison_sheet(made, comparison(made)).notes)
    assert "Selected on test, out of" in said


def test_a_shared_seed_that_failed_leaves_ranks_alone_and_is_marked(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    rng = np.random.default_rng(0)
    for method in LEVELS:
        for seed in range(3):
            lost = {"state": "failed"} if (method, seed) == ("mt", 1) else {}
            rows = toy.cases(toy.run_id(method, seed), {1000: rng.random(4)})
            toy.add(store, rows, toy.spec(method, seed=seed), **lost)
    made = facts(store)
    page = comparison_sheet(made, comparison(made))
    row = page.sections[0].rows[0]
    assert row[2] == "3 (1 failed)"
    assert row[4:7] == ("–", "–", "–")
    assert row[-1] == "undefined"
    assert any(note.startswith("(… failed)") for note in page.notes)


def test_variance_components_are_those_of_last_checkpoints_whatever_the_protocol(store):
    found = variances(facts(store, "best")).set_index(["setting", "metric", "method"])
    row = found.loc["la, 8 labelled / 72 unlabelled, profile mini", "dsc", "mt"]
    table = 100 * scores("mt")[:, -1]
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    residual = (rest**2).sum() / ((SEEDS - 1) * (CASES - 1))
    of_cases = table.mean(0).var(ddof=1) - residual / SEEDS
    assert (row["seeds"], row["cases"]) == (SEEDS, CASES)
    assert row["residual"] == pytest.approx(np.sqrt(residual))
    assert row["case"] == pytest.approx(np.sqrt(of_cases))
    assert row["floor"] == pytest.approx(np.sqrt(of_cases / CASES))
    within = 100 * scores("mt").mean(2)
    assert row["stopping"] == pytest.approx(np.sqrt(within.var(1, ddof=1).mean()))
    pd.testing.assert_frame_equal(variances(facts(store, "best")), variances(facts(store)))


def test_negative_components_are_marked(store):
    made = facts(store)
    values = variances(made)
    marked = values.assign(negative=["seed"] * len(values), seed=0.0)
    row = variance_sheet(made, marked).sections[0].rows[0]
    assert row[3] == "0.00*"
    said = " ".join(variance_sheet(made, marked).notes)
    assert "* estimated below 0, given as 0" in said
    assert "Floor: what of it is left however many seeds are run" in said


def test_files_say_p_with_digits_that_count(store, tmp_path):
    paths = write_comparison(facts(store), tmp_path)
    assert [p.name for p in paths] == [
        *(f"comparison-last.{suffix}" for suffix in ("md", "csv", "tex")),
        "comparison-variance.csv",
    ]
    rows = list(csv.DictReader(paths[1].read_text().splitlines()))
    assert [r["metric"] for r in rows] == ["dsc", "asd", "hd95"]
    assert float(rows[0]["seeds_p"]) == 0.03125
    assert rows[0]["seeds_verdict"] == "first better"
    assert "Where the variance comes from" in paths[0].read_text()


def test_the_order_of_rows_changes_no_byte_and_the_seed_the_interval(store, tmp_path):
    mixed = fill(
        Store.open(tmp_path / "s", create=True), lambda rows: rows.sample(frac=1, random_state=3)
    )
    first, second, other = (
        [path.read_bytes() for path in write_comparison(made, tmp_path / name)]
        for name, made in (
            ("a", facts(store)),
            ("b", facts(mixed)),
            ("c", facts(store, seed=1)),
        )
    )
    assert first == second
    assert first[1] != other[1]


def test_the_interval_of_a_setting_does_not_depend_on_other_settings(store):
    kept = [r for r in store.records()["run"] if "pancreas" not in r]
    alone = comparison(load_facts(store, "last", "tcseg", runs=kept))
    pd.testing.assert_frame_equal(alone, comparison(facts(store)))


def test_a_store_without_a_pair_says_so(store):
    kept = [r for r in store.records()["run"] if "pancreas" in r]
    made = load_facts(store, "last", "tcseg", runs=kept)
    pairs, variance = show_comparison(made)
    assert pairs.sections == ()
    assert "No setting has two methods to compare." in pairs.notes
    assert len(variance.sections) == 1


def test_a_protocol_without_numbers_of_cases_is_refused(store):
    with pytest.raises(UserError, match="cases cannot be compared under it"):
        comparison(facts(store, "corrected"))


def test_cases_left_out_by_a_policy_are_left_out_of_the_pair(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    rng = np.random.default_rng(0)
    for method in LEVELS:
        for seed in range(3):
            empty = [(1000, 2)] if method == "mt" else []
            rows = toy.cases(toy.run_id(method, seed), {1000: rng.random(4)}, empty=empty)
            toy.add(store, rows, toy.spec(method, seed=seed))
    made = facts(store, policy="exclude")
    assert comparison(made)["cases"].unique().tolist() == [3]
    assert comparison(facts(store))["cases"].unique().tolist() == [4]
    assert np.isnan(variances(made).set_index("method").loc["mt", "case"]).all()
    assert replace(made, policy="tcseg").scored["dsc"].notna().all()


def test_the_floor_is_in_no_pair_unless_it_is_named(tmp_path):
    store = fill(Store.open(tmp_path / "s", create=True))
    run = toy.run_id("atlas")
    toy.add(store, toy.cases(run, {step: [0.5] * CASES for step in STEPS}), toy.spec("atlas"))
    left_out = facts(store)
    pairs = comparison(left_out)
    assert set(pairs["first"]) | set(pairs["second"]) == {"tcseg", "mt"}
    assert "atlas, the floor, is in no pair" in " ".join(comparison_sheet(left_out, pairs).notes)
    named = facts(store, methods=("atlas", "mt", "tcseg"))
    pairs = comparison(named)
    assert len(pairs[(pairs["metric"] == "dsc")]) == 3
    assert "is in no pair" not in " ".join(comparison_sheet(named, pairs).notes)


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_interval_of_one_seed_is_said_to_know_of_no_other(tmp_path, seeds):
    store = fill(Store.open(tmp_path / "s", create=True))
    for seed in range(7, 7 + seeds):
        run = toy.run_id("dtc", seed)
        toy.add(store, toy.cases(run, {2000: [0.6] * CASES}), toy.spec("dtc", seed=seed))
    said = "\n".join(comparison_sheet(facts(store), comparison(facts(store))).notes)
    assert ("knows nothing of what another seed would give" in said) == (seeds == 1)
