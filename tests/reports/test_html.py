import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from protocols.policies import POLICIES
from protocols.rules import parse_rule
from protocols.trajectory import trajectory
from reports import REPORTS, html
from reports.drawing import colours
from reports.facts import load_facts
from reports.table import sheet
from results.errors import UserError
from results.schema import RUNS
from results.store import Store
from tests.protocols import toy

STEPS = (1000, 2000, 3000)
LEVELS = {"mt": 0.70, "tcseg": 0.75}
HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \"'&\u2028"


def scores(method, seed, split="test"):
    """DSC of three cases by step; best is the second step, and the last case is the worst."""
    level = LEVELS[method] - 0.02 * seed + (0.01 if split == "val" else 0)
    return {
        step: tuple(level + gain + case for case in (0.04, 0.0, -0.1))
        for step, gain in zip(STEPS, (-0.2, 0.1, 0.0), strict=True)
    }


def rows(method, seed, splits=("test",)):
    run = toy.run_id(method, seed)
    return pd.concat([toy.cases(run, scores(method, seed, s), split=s) for s in splits])


def filled(path, splits=("test",)):
    """Two methods with three seeds each, one run more of mt failed."""
    store = Store.open(path, create=True)
    for method in LEVELS:
        for seed in range(3):
            toy.add(store, rows(method, seed, splits), toy.spec(method, seed=seed), commit="c0ffee")
    toy.add(store, rows("mt", 3, splits), toy.spec("mt", seed=3), state="failed", dirty=True)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("html") / "store")


@pytest.fixture(scope="module")
def page(store):
    return html.page(load_facts(store, "last", "tcseg"))


@pytest.fixture(scope="module")
def facts(store):
    return load_facts(store, "last", "tcseg")


@pytest.fixture(scope="module")
def content(facts):
    return html.content(facts)


class Parts(HTMLParser):
    """Every element that begins, and the text of script and style elements."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag in ("script", "style")
        if self._inside:
            self.texts.append("")

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.texts[-1] += data


def embedded(page):
    return json.loads(Parts(page).texts[1])


def by_label(content, label):
    return next(row for row in content["rows"] if row["label"] == label)


def place(content, protocol):
    return [p["expression"] for p in content["protocols"]].index(protocol)


def dsc(method, step):
    """Of the finished runs in percent, by seed."""
    return np.array([100 * np.mean(scores(method, seed)[step]) for seed in range(3)])


# The file


def test_it_is_one_file_and_equal_facts_give_equal_bytes(store, tmp_path):
    write = REPORTS["html"].write
    first = write(load_facts(store, "last", "tcseg"), tmp_path / "a")
    second = write(load_facts(store, "last", "tcseg"), tmp_path / "b")
    assert [path.name for path in first] == ["html-report.html"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["html-report.html"]
    assert first[0].read_bytes() == second[0].read_bytes()


def test_the_order_of_rows_changes_nothing(facts, page):
    cases = facts.cases.sample(frac=1, random_state=1)
    shuffled = replace(
        facts,
        runs=facts.runs.sample(frac=1, random_state=1),
        stored=lambda: cases,
        trajectory=trajectory(cases, POLICIES["tcseg"]),
    )
    assert html.page(shuffled) == page


def test_nothing_in_it_comes_from_anywhere(page):
    parts = Parts(page)
    shell = page.replace(parts.texts[1], "")
    assert not re.search(r"(?i)https?:|//[a-z]|url\(|@import|\bfetch\(|XMLHttp|\bimport\b", shell)
    for tag, attributes in parts.tags:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes), tag
        assert "style" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:"))


def test_its_policy_allows_its_own_style_and_script_and_nothing_else(page):
    parts = Parts(page)
    policy = next(a["content"] for _, a in parts.tags if "http-equiv" in a)
    style, _, script = parts.texts
    hashes = [
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    assert policy.split("; ") == [
        "default-src 'none'", "img-src data:", f"style-src '{hashes[0]}'",
        f"script-src '{hashes[1]}'", "base-uri 'none'", "form-action 'none'",
    ]  # fmt: skip


def test_no_name_becomes_markup(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    spec = toy.spec(HOSTILE, dataset=HOSTILE, recipe={"name": HOSTILE})
    cases = toy.cases("run-0", {1000: (0.5, 0.6)}).replace({"case": {"case1": HOSTILE}})
    hostile = {"changed": json.dumps({HOSTILE: 1}), "versions": json.dumps({HOSTILE: HOSTILE})}
    toy.add(store, cases, spec, device=HOSTILE, commit=HOSTILE, unit=HOSTILE, **hostile)
    spec = toy.spec(HOSTILE, dataset=HOSTILE, recipe={"name": HOSTILE}, seed=1)
    cases = toy.cases("run-1", {1000: (0.5, 0.6)})
    toy.add(store, cases, spec, state="failed", error=HOSTILE, **hostile)
    page = html.page(load_facts(store, "last", "tcseg"))
    tags = [tag for tag, _ in Parts(page).tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert "\u2028" not in page
    content = embedded(page)
    assert HOSTILE in content["rows"][0]["label"]
    assert HOSTILE in content["settings"][0]["cases"]
    assert content["runs"][1]["error"] == HOSTILE
    assert content["runs"][0]["versions"] == [[HOSTILE, HOSTILE]]


def test_two_hundred_runs_of_the_papers_length_stay_under_3_mb(facts):
    rng = np.random.default_rng(0)
    runs = [
        toy.record(
            f"m{i // 5}-{i % 5}", toy.spec(f"m{i // 5}", seed=i % 5, dataset=f"d{i // 50}"),
            versions=json.dumps({f"library-{k}": "1.2.3" for k in range(12)}),
            environment=json.dumps([{f"fact-{k}": "a value" for k in range(10)}]),
        )
        for i in range(200)
    ]  # fmt: skip
    names, steps, cases = [r["run"] for r in runs], 5000 + 200 * np.arange(76), range(20)
    index = pd.MultiIndex.from_product([names, steps, [f"case{c:02}" for c in cases]])
    rows = index.to_frame(index=False, name=["run", "step", "case"])
    values = rng.random((3, len(rows)))
    rows = rows.assign(
        predictor="main", split="test", status="ok", diagonal=200.0,
        dsc=values[0], asd=50 * values[1], hd95=90 * values[2],
    ).astype({"run": "category", "case": "category"})  # fmt: skip
    many = replace(
        facts,
        runs=pd.DataFrame(runs, columns=[c.name for c in RUNS]),
        stored=lambda: rows,
        trajectory=trajectory(rows, POLICIES["tcseg"]),
    )
    size = len(html.page(many).encode())
    assert 300_000 < size < 3_000_000


# The numbers


@pytest.mark.parametrize(("protocol", "step"), [("last", 3000), ("best", 2000)])
def test_every_number_is_what_plain_numpy_says(content, protocol, step):
    row = by_label(content, "tcseg")
    cells = row["results"][place(content, protocol)]["cells"]
    names = [column["name"] for column in content["columns"]]
    runs = dsc("tcseg", step)
    distances = 10 - runs / 10
    told = {
        "dsc": {
            "median": np.median(runs), "median_low": runs.min(), "best_run": runs.max(),
            "mean": runs.mean(), "minimum": runs.min(), "maximum": runs.max(),
        },
        "asd": {
            "median": np.median(distances), "median_low": distances.min(),
            "best_run": distances[runs.argmax()], "mean": distances.mean(),
            "minimum": distances.min(), "maximum": distances.max(),
        },
    }  # fmt: skip
    for metric, values in told.items():
        found = dict(zip(names, cells[metric], strict=True))
        assert {n: found[n][0] for n in values} == pytest.approx(values)
        assert found["median"][1] == f"{values['median']:.2f}"
    mean = dict(zip(names, cells["dsc"], strict=True))["mean"]
    assert mean[1] == f"{runs.mean():.2f} ± {runs.std(ddof=1):.2f}"
    gap = dict(zip(names, cells["dsc"], strict=True))["gap"]
    assert gap[1] == ("+10.00" if protocol == "best" else "–")


@pytest.mark.parametrize("protocol", ["last", "best"])
def test_the_page_shows_what_the_table_shows(facts, content, protocol):
    table = sheet(replace(facts, rule=parse_rule(protocol)))
    names = [column for _, column in table.columns]
    columns = {"median": "median", "max": "best_run", "mean ± std": "mean", "min": "minimum"}
    columns |= {"interval": "median_low"} | ({"best − last": "gap"} if protocol == "best" else {})
    own = [column["name"] for column in content["columns"]]
    for line in table.sections[0].rows:
        cells = by_label(content, line[0])["results"][place(content, protocol)]["cells"]["dsc"]
        for theirs, ours in columns.items():
            assert cells[own.index(ours)][1] == line[names.index(theirs)]
    assert content["protocols"][place(content, protocol)]["meaning"] == table.notes[0]
    assert content["protocols"][place(content, protocol)]["notes"] == list(table.notes[1:])


def test_failed_runs_are_counted_and_sort_as_the_worst(content):
    result = by_label(content, "mt")["results"][0]
    assert (result["started"], result["finished"], result["failed"]) == (4, 3, 1)
    cells = dict(zip([c["name"] for c in content["columns"]], result["cells"]["dsc"], strict=True))
    assert cells["minimum"] == [-np.finfo(float).max, "failed"]
    assert cells["mean"] == [None, "–"]
    distances = dict(zip(cells, result["cells"]["asd"], strict=True))
    assert distances["maximum"] == [np.finfo(float).max, "failed"]
    failed = [run for run in content["runs"] if run["state"] == "failed"]
    assert [(run["run"], run["error"], run["dirty"], run["curve"]) for run in failed] == [
        (toy.run_id("mt", 3), "loss is NaN at step 7", True, None)
    ]


def test_a_single_run_has_no_std(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    toy.add(store, toy.cases(toy.run_id(), {1000: (0.8,)}))
    row = html.content(load_facts(store, "last", "tcseg"))["rows"][0]
    assert row["results"][0]["cells"]["dsc"][3] == [pytest.approx(80), "80.00 ± –"]


def test_a_row_names_its_runs_and_what_each_was_picked_with(content):
    row = by_label(content, "mt")
    runs = [content["runs"][i] for i in row["runs"]]
    assert [(r["run"], r["seed"]) for r in runs] == [(toy.run_id("mt", s), s) for s in range(4)]
    assert {r["commit"] for r in runs if r["state"] == "finished"} == {"c0ffee"}
    picked = row["results"][place(content, "best")]["picked"]
    assert picked[toy.run_id("mt", 1)] == {
        "step": 2000,
        "how": "step 2000",
        "values": [round(dsc("mt", 2000)[1], 2), *(pytest.approx(v) for v in (2.4, 7.2))],
    }
    assert toy.run_id("mt", 3) not in picked
    assert row["hyperparameters"] == [["decay", "0.99"]]
    assert row["fingerprint"] == "f" * 64


def test_trajectories_are_the_runs_and_their_median(content):
    row = by_label(content, "mt")
    for seed in range(3):
        curve = content["runs"][row["runs"][seed]]["curve"]
        assert curve["step"] == list(STEPS)
        assert curve["dsc"] == [round(dsc("mt", step)[seed], 2) for step in STEPS]
    assert row["middle"]["dsc"] == [round(np.median(dsc("mt", step)), 2) for step in STEPS]


@pytest.mark.parametrize(("protocol", "step"), [("last", 3000), ("best", 2000)])
def test_cases_are_means_over_the_finished_runs_at_the_reported_checkpoint(content, protocol, step):
    setting = content["settings"][0]
    at = place(content, protocol)
    assert setting["cases"] == ["case0", "case1", "case2"]
    means = {
        method: 100 * np.mean([scores(method, seed)[step] for seed in range(3)], axis=0)
        for method in LEVELS
    }
    for method, expected in means.items():
        assert by_label(content, method)["cases"][at]["dsc"] == pytest.approx(expected, abs=0.006)
    over = np.mean(list(means.values()), axis=0)
    assert setting["means"][at]["dsc"] == pytest.approx(over, abs=0.006)


def test_what_the_policy_leaves_out_is_no_number(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    toy.add(store, toy.cases(toy.run_id(), {1000: (0.8, 0.7)}, empty=[(1000, 1)]))
    content = html.content(load_facts(store, "last", "exclude"))
    assert content["rows"][0]["cases"][0]["dsc"] == [80.0, None]
    content = html.content(load_facts(store, "last", "worst"))
    assert content["rows"][0]["cases"][0]["hd95"] == [pytest.approx(6), 150.0]


def test_colours_are_those_of_the_figures(content):
    assert {row["label"]: row["colour"] for row in content["rows"]} == colours(["mt", "tcseg"])


# The protocols


def test_it_offers_last_and_best_and_says_why_not_val(content):
    assert [(p["expression"], p["oracle"]) for p in content["protocols"]] == [
        ("last", False),
        ("best", True),
    ]
    (refused,) = content["refused"]
    assert refused.startswith("val is not offered: ")
    assert "needs evaluations of split val" in refused


def test_val_is_offered_where_all_runs_have_it_and_what_was_asked_for_comes_first(tmp_path):
    store = filled(tmp_path / "store", ("test", "val"))
    content = html.content(load_facts(store, "best(metric=asd)", "tcseg"))
    assert [p["expression"] for p in content["protocols"]] == [
        "last", "best", "val", "best(metric=asd)",
    ]  # fmt: skip
    assert content["asked"] == "best(metric=asd)"
    assert content["refused"] == []


def test_a_protocol_that_was_asked_for_and_cannot_be_applied_is_an_error(store):
    with pytest.raises(UserError, match="needs evaluations of split val"):
        html.page(load_facts(store, "best(split=val)", "tcseg"))


@pytest.mark.parametrize(
    ("protocol", "how"),
    [
        ("last-k(k=2)", "mean of 2 evaluations, the last at step 3000"),
        ("corrected", "corrected; chosen step 2000"),
    ],
)
def test_a_protocol_that_reports_no_single_checkpoint_has_no_cases(store, protocol, how):
    content = html.content(load_facts(store, protocol, "tcseg"))
    at = place(content, protocol)
    row = by_label(content, "mt")
    picked = row["results"][at]["picked"][toy.run_id("mt", 0)]
    assert (picked["step"], picked["how"]) == (None, how)
    assert row["cases"][at] is None
    assert content["settings"][0]["means"][at] is None
    assert not content["protocols"][at]["oracle"]


def test_a_protocol_that_chooses_among_predictors_says_which(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    run = toy.run_id()
    other = toy.cases(run, {1000: (0.9, 0.5)}, predictor="teacher")
    own = toy.cases(run, {1000: (0.5, 0.6)})
    toy.add(store, pd.concat([own, other]), toy.spec(predictors=["main", "teacher"]))
    content = html.content(load_facts(store, "best(predictors=all)", "tcseg"))
    at = place(content, "best(predictors=all)")
    main, teacher = sorted(content["rows"], key=lambda row: row["predictor"])
    assert main["results"][at]["picked"][run]["how"] == "step 1000, predictor teacher"
    assert main["cases"][at]["dsc"] == [90.0, 50.0]
    assert main["cases"][0]["dsc"] == [50.0, 60.0]
    assert teacher["results"][at] is None
    assert teacher["results"][0]["cells"]["dsc"][0] == [pytest.approx(70), "70.00"]


def test_a_store_without_a_finished_run_has_a_page(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    toy.add(store, toy.cases(toy.run_id(), {1000: (0.8,)}), state="failed")
    content = html.content(load_facts(store, "last", "tcseg"))
    assert content["rows"][0]["results"][0]["runs"].startswith("0/1")
    assert content["rows"][0]["middle"] is None
    assert content["settings"][0]["cases"] == []
