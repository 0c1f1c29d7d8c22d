import csv
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports.facts import Options, load_facts
from reports.ranks import placings, show_ranks, stability, write_ranks
from results.store import Store
from tests.protocols import toy

STEPS = (1000, 2000, 3000)
MEANS = {
    # Median DSC over seeds: a is best at its best, b at the end, c is always last.
    "a": (0.60, 0.90, 0.70),
    "b": (0.60, 0.70, 0.80),
    "c": (0.30, 0.40, 0.50),
}
SETTING = "la, 8 labelled / 72 unlabelled, profile mini"


def fill(store, frames=lambda rows: rows, empty=(), val=("pancreas",)):
    for dataset, (method, means), seed in product(("la", "pancreas"), MEANS.items(), range(3)):
        run = toy.run_id(method, seed, dataset)
        shift = 0.01 * (seed - 1)
        scores = {
            s: (m + shift - 0.05, m + shift + 0.05) for s, m in zip(STEPS, means, strict=True)
        }
        marks = [(3000, 0)] if method in empty else []
        rows = [toy.cases(run, scores, empty=marks)]
        if dataset in val:
            rows.append(toy.cases(run, scores, split="val"))
        toy.add(store, frames(pd.concat(rows)), toy.spec(method, dataset=dataset, seed=seed))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fill(Store.open(tmp_path_factory.mktemp("ranks") / "s", create=True))


@pytest.fixture(scope="module")
def placed(store):
    return placings(facts(store))


@pytest.fixture(scope="module")
def pages(store):
    return {page.title: page for page in show_ranks(facts(store))}


@pytest.fixture(scope="module")
def holed(tmp_path_factory):
    """As `store`, where the end of method b has empty masks."""
    return fill(Store.open(tmp_path_factory.mktemp("ranks") / "s", create=True), empty=("b",))


def facts(store, protocol="last", policy="tcseg", **options):
    return load_facts(store, protocol, policy, options=Options(**options))


def by_scheme(placed, metric="dsc", setting=SETTING, column="rank"):
    own = placed[(placed["setting"] == setting) & (placed["metric"] == metric)]
    found = {}
    for (protocol, policy), group in own.groupby(["protocol", "policy"], sort=False):
        found[protocol, policy] = group.set_index("method")[column].to_dict()
    return found


def test_methods_are_ranked_by_their_median_under_every_protocol(placed):
    ranks, medians = by_scheme(placed), by_scheme(placed, column="median")
    assert ranks["last", "tcseg"] == {"a": 2, "b": 1, "c": 3}
    assert ranks["best", "tcseg"] == {"a": 1, "b": 2, "c": 3}
    assert medians["last", "tcseg"] == pytest.approx({"a": 70, "b": 80, "c": 50})
    assert medians["best", "tcseg"] == pytest.approx({"a": 90, "b": 80, "c": 50})
    assert by_scheme(placed, "asd")["last", "tcseg"] == {"a": 2, "b": 1, "c": 3}


def test_a_protocol_stands_only_where_the_runs_have_what_it_needs(placed, pages):
    assert ("val", "tcseg") not in by_scheme(placed)
    other = SETTING.replace("la", "pancreas", 1)
    assert by_scheme(placed, setting=other)["val", "tcseg"] == {"a": 1, "b": 2, "c": 3}
    assert "last-k" not in set(placed["protocol"]), "three evaluations are no five"
    page = pages["Ranks of methods by DSC"]
    place = page.columns.index(("", "val"))
    assert {row[place] for row in page.sections[0].rows} == {"–"}
    assert any("Left out, as no setting has what they need: last-k." in n for n in page.notes)


def test_the_protocol_that_was_asked_for_is_among_them(store):
    placed = placings(facts(store, "last-k(k=2)"))
    assert by_scheme(placed, column="median")["last-k(k=2)", "tcseg"] == pytest.approx(
        {"a": 80, "b": 75, "c": 45}
    )


def test_policies_that_cannot_differ_are_not_repeated(placed, pages, holed):
    assert set(placed["policy"]) == {"tcseg"}
    said = " ".join(pages["Ranks of methods by DSC"].notes)
    assert "All others give these ranks too." in said
    worst = placings(facts(holed, policy="worst"))
    policies = {m: list(dict.fromkeys(g["policy"])) for m, g in worst.groupby("metric")}
    assert policies["dsc"] == ["worst", "exclude"]
    assert policies["asd"] == ["worst", "tcseg", "exclude", "zero"]


def test_a_policy_can_turn_ranks_round(holed):
    placed = placings(facts(holed))
    ranks = by_scheme(placed)
    assert ranks["last", "tcseg"] == {"a": 1, "b": 3, "c": 2}
    assert ranks["last", "exclude"] == {"a": 2, "b": 1, "c": 3}
    distances = by_scheme(placed, "hd95")
    assert distances["last", "zero"]["b"] == 1, "0 is the best distance there is"
    assert distances["last", "tcseg"]["b"] == 3


def test_agreement_and_flips_are_those_of_the_ranks(pages):
    taus = pages["Agreement of ranks by DSC"]
    rows = {row[0]: row[1:] for row in taus.sections[0].rows}
    names = [name for _, name in taus.columns[1:]]
    expected = stats.kendalltau([2, 1, 3], [1, 2, 3]).statistic
    assert rows["last"][names.index("best")] == f"{expected:.2f}"
    assert rows["last"][names.index("last")] == "1.00"
    flips = pages["Flips"].sections[0].rows
    assert [row[:3] for row in flips] == [("DSC", "b", "a"), ("ASD", "b", "a"), ("HD95", "b", "a")]
    assert "last" in flips[0][3].split(", ")
    assert "best" in flips[0][4].split(", ")


def test_policies_are_named_where_there_are_several(holed):
    shown = {page.title: page for page in show_ranks(facts(holed))}
    assert ("last", "exclude") in shown["Ranks of methods by DSC"].columns
    taus = shown["Agreement of ranks by DSC"]
    assert taus.columns[0] == ("", "protocol / policy")
    assert ("last", "exclude") in taus.columns
    assert "last / exclude" in [row[0] for row in taus.sections[0].rows]
    assert any("last / exclude" in row[4] for row in shown["Flips"].sections[0].rows)


def test_a_robust_winner_is_named_only_where_there_is_one(store, pages):
    notes = " ".join(pages["Ranks of methods by DSC"].notes)
    assert f"{SETTING}: by DSC no method is first" in notes
    kept = [r for r in store.records()["run"] if not r.startswith("a-")]
    shown = show_ranks(load_facts(store, "last", "tcseg", runs=kept))
    assert f"{SETTING}: robust winner by DSC: b" in " ".join(shown[0].notes)
    assert "There is none" in " ".join(shown[-2].notes)


def test_failed_runs_rank_last_and_tie(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    for method, states in (("a", ("failed", "failed")), ("b", ("finished", "failed", "failed"))):
        for seed, state in enumerate(states):
            rows = toy.cases(toy.run_id(method, seed), {1000: (0.9,)})
            toy.add(store, rows, toy.spec(method, seed=seed), state=state)
    toy.add(store, toy.cases(toy.run_id("c"), {1000: (0.1,)}), toy.spec("c"))
    placed = placings(facts(store))
    assert by_scheme(placed)["last", "tcseg"] == {"a": 2.5, "b": 2.5, "c": 1}


def test_stability_follows_the_protocol_and_falls_back_where_it_has_no_cases(store):
    last, best, corrected = (stability(facts(store, p)) for p in ("last", "best", "corrected"))
    first = {name: f.set_index(["setting", "method"])["rank_1"] for name, f in
             (("last", last), ("best", best))}  # fmt: skip
    assert first["last"][SETTING, "b"] == 1.0
    assert first["best"][SETTING, "a"] == 1.0
    pd.testing.assert_series_equal(
        corrected.set_index(["setting", "method"])["mean"].sort_index(),
        last.set_index(["setting", "method"])["mean"].sort_index(),
    )
    assert "Protocol last, policy tcseg" in show_ranks(facts(store, "corrected"))[-1].notes[0]


def test_files_are_the_same_bytes_whatever_the_order_of_rows(store, tmp_path):
    mixed = fill(
        Store.open(tmp_path / "s", create=True), lambda rows: rows.sample(frac=1, random_state=3)
    )
    first, second = (write_ranks(facts(s), tmp_path / n) for s, n in ((store, "a"), (mixed, "b")))
    assert [p.name for p in first] == [
        *(f"ranks-last.{suffix}" for suffix in ("md", "csv", "tex")),
        "ranks-last-agreement.csv",
        "ranks-last-stability.csv",
    ]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    rows = list(csv.DictReader(first[1].read_text().splitlines()))
    assert {r["metric"] for r in rows} == {"dsc", "asd", "hd95"}


def test_another_seed_draws_other_ranks(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    rng = np.random.default_rng(0)
    for method, seed in product("abc", range(4)):
        rows = toy.cases(toy.run_id(method, seed), {1000: rng.random(5)})
        toy.add(store, rows, toy.spec(method, seed=seed))
    first, again, other = (stability(facts(store, seed=s)) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
