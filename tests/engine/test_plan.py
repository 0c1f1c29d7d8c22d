"""`bench plan`: what it says is what the store measured, and nothing more."""

import json
import math
import sys

import numpy as np
import pandas as pd
import pytest

from benchmark import cli, planning
from benchmark.planning import Question, case_spread, make
from protocols.power import case_floor, detectable, sd_interval, seeds_needed
from reports.facts import load_facts
from results.store import Store
from tests.protocols import toy

SEEDS, CASES = 4, 5
SECONDS = {"mt": (100.0, 200.0, 300.0, 250.0), "tcseg": (360.0,) * SEEDS}


@pytest.fixture
def bench(capsys, monkeypatch):
    """Calls the command line; gives exit code, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def scores():
    """DSC by method: (seeds, cases)."""
    rng = np.random.default_rng(0)
    easy = rng.normal(scale=0.02, size=CASES)
    noise = rng.normal(scale=0.01, size=(2, SEEDS, CASES))
    return {"mt": 0.70 + easy + noise[0], "tcseg": 0.75 - easy + noise[1]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    found = Store.open(tmp_path_factory.mktemp("plan"), create=True)
    for method, values in scores().items():
        for seed in range(SEEDS):
            rows = toy.cases(toy.run_id(method, seed), {2000: [0.5] * CASES, 3000: values[seed]})
            sidecar = {"seconds": SECONDS[method][seed]}
            toy.add(found, rows, toy.spec(method, seed=seed), sidecar=sidecar)
    return found


def plan(bench, store, *arguments):
    code, out, _ = bench("plan", "--store", store.path, "--json", *arguments)
    assert code == 0
    return json.loads(out)


# Seeds


def test_spreads_and_seeds_are_what_plain_numpy_and_the_t_test_say(bench, store):
    found = plan(bench, store, "--detect", "0.5")["spreads"]
    assert {s["label"] for s in found} == {"mt", "tcseg"}
    for spread in found:
        sd = 100 * scores()[spread["label"]].mean(1).std(ddof=1)
        low, high = sd_interval(sd, SEEDS)
        assert spread["runs"] == SEEDS
        assert spread["sd"] == pytest.approx(sd)
        assert spread["detectable"] == pytest.approx(detectable(sd, SEEDS))
        expected = [seeds_needed(0.5, s) for s in (low, sd, high)]
        assert [spread[k] for k in ("seeds_low", "seeds", "seeds_high")] == expected


def test_pairs_are_differences_over_common_seeds(bench, store):
    (pair,) = plan(bench, store, "--detect", "0.5")["pairs"]
    difference = 100 * (scores()["tcseg"] - scores()["mt"])
    sd = difference.mean(1).std(ddof=1)
    assert (pair["runs"], pair["cases"]) == (SEEDS, CASES)
    assert pair["sd"] == pytest.approx(sd)
    assert pair["seeds"] == seeds_needed(0.5, sd, paired=True)
    assert pair["sd_case"] == pytest.approx(case_spread(difference))
    assert pair["floor"] == pytest.approx(case_floor(pair["sd_case"], CASES))
    assert pair["cases_needed"] == seeds_needed(0.5, pair["sd_case"], paired=True)


def test_other_protocols_metrics_and_levels_are_followed(bench, store):
    more = ("--metric", "hd95", "--power", "0.9", "--alpha", "0.01", "--protocol", "best")
    found = plan(bench, store, "--detect", "0.5", *more, "-m", "mt")
    (spread,) = found["spreads"]
    sd = 30 * scores()["mt"].mean(1).std(ddof=1)
    assert spread["sd"] == pytest.approx(sd)
    assert spread["seeds"] == seeds_needed(0.5, sd, power=0.9, alpha=0.01)
    assert found["pairs"] == []


def test_the_floor_is_said_where_no_number_of_seeds_will_do(bench, store):
    code, out, _ = bench("plan", "--detect", "0.5", "--store", store.path)
    assert code == 0
    assert "no number of seeds shows 0.5 on 5 cases; it takes" in out
    _, out, _ = bench("plan", "--detect", "50", "--store", store.path)
    assert "no number of seeds" not in out


def test_a_given_sd_needs_no_store(bench, tmp_path):
    found = plan(bench, Store(tmp_path / "none"), "--detect", "0.5", "--sd", "0.6", "--seeds", "10")
    (spread,) = found["spreads"]
    assert spread["seeds"] == 24
    assert spread["detectable"] == pytest.approx(0.6 * 1.325, abs=1e-3)
    assert (found["pairs"], found["grid"]) == ([], [])


def test_a_given_sd_replaces_that_of_the_store_but_not_its_costs(bench, store):
    found = plan(bench, store, "--detect", "0.5", "--sd", "0.6", "-m", "mt")
    assert [s["seeds"] for s in found["spreads"]] == [24]
    (cell,) = found["grid"]
    assert cell["needed"] == 24
    assert cell["hours_needed"] == pytest.approx(24 * 225 / 3600)


def test_one_run_has_no_spread_and_that_is_said(bench, tmp_path):
    single = Store.open(tmp_path / "s", create=True)
    toy.add(single, toy.cases(toy.run_id(), {3000: (0.7, 0.8)}), toy.spec())
    (spread,) = plan(bench, single, "--detect", "0.5")["spreads"]
    assert (spread["runs"], spread["sd"], spread["seeds"]) == (1, None, None)
    _, out, _ = bench("plan", "--detect", "0.5", "--store", single.path)
    assert "not measured" in out


def test_methods_without_common_seeds_make_no_paired_claim(bench, tmp_path):
    apart = Store.open(tmp_path / "s", create=True)
    for method, seeds in (("mt", (0, 1)), ("tcseg", (2, 3))):
        for seed in seeds:
            rows = toy.cases(toy.run_id(method, seed), {3000: (0.7, 0.8 + 0.01 * seed)})
            toy.add(apart, rows, toy.spec(method, seed=seed))
    (pair,) = plan(bench, apart, "--detect", "0.5")["pairs"]
    assert (pair["runs"], pair["sd"], pair["floor"]) == (0, None, None)


# Cases


def test_the_spread_over_cases_is_found_again_without_the_noise_of_seeds():
    """Searle's estimator is unbiased for the variance; without it noise would be added."""
    rng = np.random.default_rng(3)
    draws = []
    for _ in range(600):
        differences = 2 * rng.normal(size=20) + rng.normal(scale=1.5, size=(5, 20))
        draws.append(case_spread(differences + rng.normal(size=(5, 1))) ** 2)
    assert np.mean(draws) == pytest.approx(4, rel=0.06)


def test_a_shift_of_every_case_is_no_spread_over_cases():
    assert case_spread(np.array([[1.0, 1.0, 1.0], [4.0, 4.0, 4.0]])) is None
    assert case_spread(np.array([[1.0, 3.0], [1.0, 3.0]])) == pytest.approx(math.sqrt(2))


def test_a_floor_that_the_noise_of_seeds_hides_is_not_called_zero(bench, tmp_path):
    hidden = Store.open(tmp_path / "s", create=True)
    for method, values in {
        "mt": [(0.7, 0.8), (0.8, 0.7)],
        "tcseg": [(0.9, 0.8), (0.8, 0.9)],
    }.items():
        for seed, dsc in enumerate(values):
            rows = toy.cases(toy.run_id(method, seed), {3000: dsc})
            toy.add(hidden, rows, toy.spec(method, seed=seed))
    (pair,) = plan(bench, hidden, "--detect", "0.5")["pairs"]
    assert (pair["cases"], pair["floor"], pair["cases_needed"]) == (2, None, None)
    _, out, _ = bench("plan", "--detect", "0.5", "--store", hidden.path)
    assert "the noise of 2 seeds hides how the cases differ" in out


# Costs


def test_costs_are_the_medians_of_what_the_runs_recorded(bench, store):
    found = plan(bench, store, "--detect", "0.5", "--seeds", "8")
    by_method = {cell["method"]: cell for cell in found["grid"]}
    assert by_method["mt"]["seconds"] == 225.0
    assert by_method["tcseg"]["hours"] == pytest.approx(8 * 360 / 3600)
    for method, cell in by_method.items():
        sizes = [
            sum(f.stat().st_size for f in store.path.glob(f"*/{toy.run_id(method, seed)}.*"))
            for seed in range(SEEDS)
        ]
        assert cell["stored_bytes"] == np.median(sizes)
        assert cell["total_bytes"] == 8 * np.median(sizes)
    assert found["total"]["hours"] == pytest.approx(8 * (225 + 360) / 3600)
    assert found["total"]["cells_not_measured"] == 0


def test_what_the_store_lacks_is_not_measured_and_never_made_up(bench, store):
    asked = ("-m", "mt", "-m", "dtc", "--labelled", "8", "--labelled", "16")
    found = plan(bench, store, "--detect", "0.5", *asked)
    cells = {(c["method"], c["setting"].split(",")[1]): c for c in found["grid"]}
    assert len(cells) == 4
    known = cells["mt", " 8 labelled"]
    assert known["note"] == ""
    for key, said in (
        (("dtc", " 8 labelled"), "no finished run of dtc in the store, which has mt, tcseg"),
        (("mt", " 16 labelled"), "mt was measured at la, 8 labelled, profile mini"),
    ):
        assert said in cells[key]["note"]
        numbers = ("seconds", "stored_bytes", "hours", "total_bytes", "needed", "hours_needed")
        assert all(cells[key][name] is None for name in numbers)
    assert found["total"]["cells_not_measured"] == 3
    assert found["total"]["hours"] == known["hours"]
    _, out, _ = bench("plan", "--detect", "0.5", "--store", store.path, *asked)
    assert "dtc, la, 8 labelled, profile mini: not measured" in out
    assert "and 3 that are not measured" in out


def test_a_method_that_ran_on_two_devices_is_counted_once_at_the_slower(bench, tmp_path):
    mixed = Store.open(tmp_path / "s", create=True)
    for seed, (device, hours) in enumerate([("cpu A", 1.0), ("cpu B", 2.0)] * 2):
        rows = toy.cases(toy.run_id(seed=seed), {3000: (0.7, 0.8)})
        changes = {"device": device}
        sidecar = {"seconds": 3600 * hours}
        toy.add(mixed, rows, toy.spec(seed=seed), sidecar=sidecar, **changes)
    found = plan(bench, mixed, "--detect", "0.5", "--seeds", "10")
    assert sorted(c["hours"] for c in found["grid"]) == [10, 20]
    assert found["total"]["hours"] == 20
    assert found["total"]["bytes"] == max(c["total_bytes"] for c in found["grid"])


def test_the_floor_of_a_dataset_is_planned_for_only_where_it_is_named(bench, tmp_path):
    made = Store.open(tmp_path / "s", create=True)
    for method, seed in (("mt", 0), ("mt", 1), ("atlas", 0)):
        rows = toy.cases(toy.run_id(method, seed), {3000: (0.7, 0.8)})
        toy.add(made, rows, toy.spec(method, seed=seed), sidecar={"seconds": 60})
    found = plan(bench, made, "--detect", "0.5")
    assert [c["method"] for c in found["grid"]] == ["mt"]
    assert [s["label"] for s in found["spreads"]] == ["mt"]
    assert found["pairs"] == []
    found = plan(bench, made, "--detect", "0.5", "-m", "atlas")
    assert [c["method"] for c in found["grid"]] == ["atlas"]


@pytest.mark.parametrize("rule", ["last", "last-k(k=2)", "best", "best(predictors=all)"])
def test_cases_are_those_of_the_predictor_that_is_reported(tmp_path, rule):
    rng = np.random.default_rng(1)
    made = Store.open(tmp_path / "s", create=True)
    for method in ("mt", "tcseg"):
        for seed in range(SEEDS):
            run = toy.run_id(method, seed)
            parts = [
                toy.cases(run, {s: rng.uniform(0.5, 0.9, CASES) for s in (2000, 3000)}, predictor=p)
                for p in ("main", "teacher")
            ]
            spec = toy.spec(method, seed=seed, predictors=["main", "teacher"])
            toy.add(made, pd.concat(parts, ignore_index=True), spec)
    facts = load_facts(made, rule, "tcseg")
    rows = facts.outcomes(facts.rule)
    first, second = (
        rows[(rows["method"] == m) & (rows["predictor"] == "main")] for m in ("tcseg", "mt")
    )
    both = first.merge(second, on="seed", suffixes=("_a", "_b")).sort_values("seed")
    layout = planning._layout(first, second, facts, "dsc")
    assert layout.mean(1) == pytest.approx((both["dsc_a"] - both["dsc_b"]).to_numpy())


def test_a_profile_that_was_never_run_is_not_measured(bench, store):
    (cell,) = plan(bench, store, "--detect", "0.5", "--profile", "paper")["grid"]
    assert cell["hours"] is None
    assert "no finished run of this setting" in cell["note"]


def test_runs_that_did_not_record_their_time_cost_an_unknown_time(bench, tmp_path):
    silent = Store.open(tmp_path / "s", create=True)
    rows = toy.cases(toy.run_id(), {3000: (0.7, 0.8)})
    toy.add(silent, rows, toy.spec(), sidecar={"attempts": []})
    (cell,) = plan(bench, silent, "--detect", "0.5")["grid"]
    assert (cell["hours"], cell["note"]) == (None, "its runs did not record their time")
    assert cell["stored_bytes"] > 0


def test_the_order_of_runs_changes_nothing(store, monkeypatch):
    question = Question(detect=0.5)
    before = make(store.path, question)
    monkeypatch.setattr(Store, "done", lambda self, old=Store.done: old(self)[::-1])
    assert make(store.path, question).as_json() == before.as_json()


# Bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--detect", "0"), "--detect 0.0: expected a difference above 0"),
        (("--detect", "nan"), "--detect nan"),
        (("--detect", "1", "--sd", "-1"), "--sd -1.0: expected at least 0"),
        (("--detect", "1", "--power", "0.01"), "expected 0 < alpha < power < 1"),
        (("--detect", "1", "--metric", "dcs"), "unknown metric 'dcs'. Did you mean 'dsc'?"),
        (("--detect", "1", "--sd", "1", "--protocol", "lst"), "Did you mean 'last'?"),
        (("--detect", "1", "--empty", "zreo"), "Did you mean 'zero'?"),
        (("--detect", "1"), "no store at"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_line(bench, tmp_path, arguments, said):
    code, _, err = bench("plan", "--store", tmp_path / "none", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert said in err


def test_an_empty_store_is_said_unless_an_sd_is_given(bench, tmp_path):
    Store.open(tmp_path / "s", create=True)
    code, _, err = bench("plan", "--detect", "1", "--store", tmp_path / "s")
    assert code == 2
    assert "holds no run yet" in err
    assert bench("plan", "--detect", "1", "--sd", "1", "--store", tmp_path / "s")[0] == 0


def test_the_help_teaches(bench):
    code, out, _ = bench("plan", "--help")
    assert code == 0
    assert "bench plan --detect 0.5 --sd 0.6" in " ".join(out.split())
