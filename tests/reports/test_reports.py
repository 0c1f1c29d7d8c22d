import csv
import io
import json
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from protocols.policies import POLICIES
from protocols.statistics import STATISTICS
from reports import REPORTS, best_vs_last, trajectories
from reports.facts import load_facts
from reports.render import csv_text
from reports.report import tables, write_report
from reports.table import flat, notes, sheet, spread
from results.errors import UserError
from results.store import Store
from tests.protocols import toy

STEPS = {1000: 0.50, 2000: 0.90, 3000: 0.70}
"""Mean DSC of seed 0 by step: best is not last."""


@pytest.fixture
def empty_store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture
def store(empty_store):
    """Two methods with three seeds each, in which best is not last; one run more has failed."""
    for method, level in (("mt", 0.0), ("tcseg", 0.05)):
        for seed in range(3):
            run = toy.run_id(method, seed)
            scores = {
                step: (mean + level - 0.02 * seed - 0.1, mean + level - 0.02 * seed + 0.04)
                for step, mean in STEPS.items()
            }
            toy.add(empty_store, toy.cases(run, scores), toy.spec(method, seed=seed))
    run = toy.run_id("mt", 3)
    rows = toy.cases(run, {1000: (0.99, 0.99)})
    toy.add(empty_store, rows, toy.spec("mt", seed=3), state="failed")
    return empty_store


def expected(step, method):
    """Mean DSC in percent by seed, written out."""
    level = {"mt": 0.0, "tcseg": 0.05}[method]
    return [100 * (STEPS[step] + level - 0.03 - 0.02 * seed) for seed in range(3)]


def begin(store, seed, scores=None):
    run = toy.run_id("mt", seed)
    spec = toy.spec("mt", seed=seed)
    content = {"spec": spec, "dataset": "la", "plugins": [], "row": toy.planned(run, spec)}
    store.write_work(run, "spec.json", json.dumps(content))
    for step, values in (scores or {}).items():
        store.write_part(run, "cases", step, toy.cases(run, {step: values}))
    return run


def cells(store, protocol, **changes):
    facts = load_facts(store, protocol, "tcseg", **changes)
    page = sheet(facts)
    names = [" ".join(filter(None, c)) for c in page.columns]
    return {row[0]: dict(zip(names, row, strict=True)) for s in page.sections for row in s.rows}


def text_of(renderables, width=160):
    screen = Console(width=width, file=io.StringIO(), color_system=None)
    for renderable in renderables:
        screen.print(renderable)
    return screen.file.getvalue()


# The table


@pytest.mark.parametrize(("protocol", "step"), [("last", 3000), ("best", 2000)])
def test_every_number_of_the_table_is_what_plain_numpy_says(store, protocol, step):
    dsc = np.array(expected(step, "tcseg"))
    row = cells(store, protocol)["tcseg"]
    assert row["runs"] == "3/3"
    assert row["DSC % ↑ median"] == f"{np.median(dsc):.2f}"
    assert row["DSC % ↑ max"] == f"{dsc.max():.2f}"
    assert row["DSC % ↑ min"] == f"{dsc.min():.2f}"
    assert row["DSC % ↑ mean ± std"] == f"{dsc.mean():.2f} ± {dsc.std(ddof=1):.2f}"
    assert row["median DSC interval"] == f"[{dsc.min():.2f}, {dsc.max():.2f}]"
    assert row["ASD ↓ median"] == f"{np.median(10 - dsc / 10):.2f}"
    assert row["ASD ↓ of max"] == f"{10 - dsc.max() / 10:.2f}"
    assert row["HD95 ↓ of max"] == f"{30 - 0.3 * dsc.max():.2f}"


@pytest.mark.parametrize(("protocol", "step"), [("last", 3000), ("best", 2000)])
def test_a_failed_run_stays_in_the_denominator_of_every_number(store, protocol, step):
    best, middle, worst = expected(step, "mt")
    row = cells(store, protocol)["mt"]
    assert row["runs"] == "3/4 (1 failed)"
    assert row["DSC % ↑ median"] == f"{(middle + worst) / 2:.2f}"
    assert row["DSC % ↑ max"] == f"{best:.2f}"
    assert row["DSC % ↑ min"] == "failed"
    assert row["DSC % ↑ mean ± std"] == "–"
    assert row["median DSC interval"] == f"[failed, {best:.2f}]"
    assert row["ASD ↓ median"] == f"{10 - (middle + worst) / 20:.2f}"
    assert row["ASD ↓ of max"] == f"{10 - best / 10:.2f}"


def test_a_method_of_which_every_run_failed_has_a_row_that_says_so(empty_store):
    for seed in range(2):
        rows = toy.cases(toy.run_id(seed=seed), {1000: (0.9,)})
        toy.add(empty_store, rows, toy.spec(seed=seed), state="failed")
    row = cells(empty_store, "last")["mt"]
    assert row["runs"] == "0/2 (2 failed)"
    assert [row[f"DSC % ↑ {name}"] for name in ("median", "max", "min")] == ["failed"] * 3
    assert row["median DSC interval"] == "[failed, failed]"
    assert row["HD95 ↓ of max"] == "failed"


def spreads(store, protocol="last"):
    """Cells of the table of every statistic, by method and metric."""
    page = spread(load_facts(store, protocol, "tcseg"))
    names = [" ".join(filter(None, c)) for c in page.columns]
    return {row[:2]: dict(zip(names, row, strict=True)) for s in page.sections for row in s.rows}


def test_every_statistic_of_every_metric_is_what_plain_numpy_says(store):
    rows = spreads(store)
    dsc = np.array(expected(3000, "tcseg"))
    for metric, values in {
        "DSC % ↑": dsc,
        "ASD mm ↓": 10 - dsc / 10,
        "HD95 mm ↓": 30 - 0.3 * dsc,
    }.items():
        row = rows["tcseg", metric]
        half = 4.302652729911275 * values.std(ddof=1) / np.sqrt(3)
        numbers = {
            "median of metric": np.median(values),
            "median run value": np.median(values),
            "over runs mean": values.mean(),
            "over runs std": values.std(ddof=1),
            "over runs SE": values.std(ddof=1) / np.sqrt(3),
            "trimmed IQM": values.mean(),
            "extremes largest": values.max(),
            "extremes smallest": values.min(),
        }
        assert {name: row[name] for name in numbers} == {k: f"{v:.2f}" for k, v in numbers.items()}
        low, high = values.mean() - half, values.mean() + half
        assert row["of the mean 95 % CI"] == f"[{low:.2f}, {high:.2f}]"
        assert row["median interval"] == f"[{values.min():.2f}, {values.max():.2f}]"
        assert (row["n"], row["median coverage"], row["median run seed"]) == ("3", "75 %", "1")


def test_every_statistic_knows_of_the_failed_run(store):
    best, middle, worst = expected(3000, "mt")
    row = spreads(store)["mt", "DSC % ↑"]
    assert (row["n"], row["median coverage"]) == ("4", "87.5 %")
    assert row["median of metric"] == f"{(middle + worst) / 2:.2f}"
    assert (row["median run value"], row["median run seed"]) == (f"{worst:.2f}", "2")
    of_means = ("over runs mean", "over runs std", "over runs SE", "of the mean 95 % CI")
    assert {row[name] for name in (*of_means, "trimmed IQM")} == {"–"}
    assert (row["extremes largest"], row["extremes smallest"]) == (f"{best:.2f}", "failed")
    assert spreads(store)["mt", "ASD mm ↓"]["extremes largest"] == "failed"


def test_beside_best_stands_what_the_choice_adds(store):
    assert cells(store, "best")["mt"]["optimism best − last"] == "+20.00"
    assert "optimism best − last" not in cells(store, "last")["mt"]


def test_the_best_method_comes_first(store):
    assert list(cells(store, "last")) == ["tcseg", "mt"]


def test_the_notes_say_what_the_numbers_are(store):
    best, last = (" ".join(notes(load_facts(store, p, "tcseg"))) for p in ("best", "last"))
    assert "Protocol best: the checkpoint of each run with the best mean DSC" in best
    assert "chosen on the very test set that it is reported on, so it is an upper bound" in best
    assert "Selected on test, out of 3 evaluations of each run." in best
    assert "Protocol last: the last checkpoint of each run; nothing is selected." in last
    assert "upper bound" not in last
    for text in (best, last):
        assert "Max: the run with the highest DSC" in text
        assert "Median: over runs, of each metric by itself" in text
        assert "sample standard deviation over runs (n − 1)" in text
        assert "of 3 runs [min, max]: 75 %; of 4 runs [min, max]: 87.5 %" in text
        assert "A failed run counts as worse than any number" in text
        assert "Runs without a record yet count in no statistic" in text
        assert f"policy tcseg: {POLICIES['tcseg'].meaning}" in text
        assert "mean over 2 test cases; ASD and HD95 in mm" in text
        assert "Profile mini is not the published scale" in text


def test_the_notes_of_every_statistic_say_what_it_is(store):
    page = spread(load_facts(store, "best", "tcseg"))
    said = " ".join(page.notes)
    shown = [s for s in STATISTICS if not s.endswith(("_low", "_high")) and s != "best_run"]
    assert all(STATISTICS[s].meaning in said for s in shown)
    assert "95 % CI: 95 % confidence interval of the mean over runs by Student's t" in said
    assert "of 3 runs [min, max]: 75 %" in said
    assert "Selected on test, out of 3 evaluations of each run." in said


def test_five_runs_have_an_interval_of_93_75_percent_and_ten_one_inside_their_extremes(empty_store):
    for method, count in (("mt", 5), ("dtc", 10)):
        for seed in range(count):
            rows = toy.cases(toy.run_id(method, seed), {1000: (0.5 + 0.01 * seed,)})
            toy.add(empty_store, rows, toy.spec(method, seed=seed))
    said = " ".join(notes(load_facts(empty_store, "last", "tcseg")))
    assert "of 5 runs [min, max]: 93.75 %; of 10 runs [2nd lowest, 2nd highest]: 97.85 %" in said
    rows = cells(empty_store, "last")
    assert rows["mt"]["median DSC interval"] == "[50.00, 54.00]"
    assert rows["dtc"]["median DSC interval"] == "[51.00, 58.00]"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_that_flatters_is_warned_of(store, policy):
    said = " ".join(notes(load_facts(store, "last", policy)))
    assert ("WARNING" in said) == POLICIES[policy].flatters


@pytest.mark.parametrize(
    ("profile", "warned"), [("smoke", True), ("smoke+steps=9", True), ("mini", False)]
)
def test_runs_of_a_few_steps_are_warned_of(empty_store, profile, warned):
    spec = toy.spec() | {"profile": {"name": profile}}
    toy.add(empty_store, toy.cases(toy.run_id(), {3000: (0.7,)}), spec)
    said = " ".join(notes(load_facts(empty_store, "last", "tcseg")))
    assert ("its numbers mean nothing" in said) == warned


def test_empty_masks_are_counted_in_the_notes_and_follow_the_policy(empty_store):
    rows = toy.cases(toy.run_id(), {1000: (0.8, 0.8)}, empty=[(1000, 1)])
    toy.add(empty_store, rows)
    said = " ".join(notes(load_facts(empty_store, "last", "tcseg")))
    assert "(cases, over runs): mt 1" in said
    values = {
        p: load_facts(empty_store, "last", p).summary[["dsc_median", "asd_median"]].iloc[0].tolist()
        for p in POLICIES
    }
    assert values["tcseg"] == pytest.approx([0.4, 51.0])
    assert values["worst"] == pytest.approx([0.4, 76.0])
    assert values["exclude"] == pytest.approx([0.8, 2.0])
    assert values["zero"] == pytest.approx([0.4, 1.0])


def test_a_single_run_has_no_std(empty_store):
    toy.add(empty_store, toy.cases(toy.run_id(), {1000: (0.8,)}))
    assert cells(empty_store, "last")["mt"]["DSC % ↑ mean ± std"] == "80.00 ± –"


def test_a_full_and_a_partial_data_set_never_share_a_row(store):
    spec = toy.spec("mt", fingerprint="e" * 64)
    run = toy.run_id("mt", 0, tag="partial")
    toy.add(store, toy.cases(run, {1000: (0.8,)}), spec, dataset="la (partial: 20 cases)")
    page = sheet(load_facts(store, "last", "tcseg"))
    assert [s.heading for s in page.sections] == [
        "la, 8 labelled / 72 unlabelled, profile mini; distances in mm",
        "la (partial: 20 cases), 8 labelled / 72 unlabelled, profile mini; distances in mm",
    ]
    assert [r[1] for s in page.sections for r in s.rows] == ["3/3", "3/4 (1 failed)", "1/1"]
    assert any("is a partial copy" in note for note in page.notes)


def test_settings_of_one_name_and_other_data_are_told_apart(store):
    run = toy.run_id("mt", 0, tag="other")
    toy.add(store, toy.cases(run, {1000: (0.8,)}), toy.spec("mt", fingerprint="e" * 64))
    headings = [s.heading for s in sheet(load_facts(store, "last", "tcseg")).sections]
    assert len(set(headings)) == 2
    assert all("profile mini [dataset.fingerprint differs, #" in h for h in headings)


def test_settings_that_differ_in_the_engine_alone_are_told_apart(store):
    spec = toy.spec("tcseg", engine=2)
    toy.add(store, toy.cases(toy.run_id("tcseg", 0, tag="engine"), {1000: (0.8,)}), spec)
    sections = sheet(load_facts(store, "last", "tcseg")).sections
    assert all("[engine differs, #" in s.heading for s in sections)
    assert sorted([r[0] for r in s.rows] for s in sections) == [["tcseg"], ["tcseg", "mt"]]


def test_methods_trained_for_other_lengths_say_so_in_their_rows(store):
    spec = toy.spec("dtc", recipe={"name": "authors"})
    scores = dict.fromkeys((1000, 2000, 3000, 4000, 5000), (0.5, 0.6))
    toy.add(store, toy.cases(toy.run_id("dtc", 0), scores), spec, steps=5000, evaluations=5)
    rows = cells(store, "best")
    assert {k: (r["trained steps"], r["selected out of"]) for k, r in rows.items()} == {
        "tcseg": ("3000", "3"),
        "mt": ("3000", "3"),
        "dtc (recipe authors)": ("5000", "5"),
    }
    said = " ".join(notes(load_facts(store, "best", "tcseg")))
    assert "out of as many evaluations of each run as its row says" in said
    assert "trained for different lengths" in said
    assert "selected out of" not in cells(store, "last")["mt"]
    assert cells(store, "last")["mt"]["trained steps"] == "3000"


def test_methods_of_one_length_have_no_column_for_it(store):
    assert not {"trained steps", "selected out of"} & set(cells(store, "best")["mt"])
    assert "different lengths" not in " ".join(notes(load_facts(store, "best", "tcseg")))


def test_unfinished_runs_were_selected_from_fewer_evaluations_and_say_so(store):
    begin(store, 4, {1000: (0.9, 1.0)})
    rows = cells(store, "best", partial=True)
    assert (rows["mt"]["selected out of"], rows["tcseg"]["selected out of"]) == ("1 to 3", "3")


def test_distances_beyond_what_an_empty_mask_counts_are_told(empty_store):
    rows = toy.cases(toy.run_id(), {1000: (0.8, 0.8, 0.7)}).assign(hd95=[100.0, 101.0, 350.0])
    toy.add(empty_store, rows)
    told = {p: " ".join(notes(load_facts(empty_store, "last", p))) for p in POLICIES}
    assert "farther off than an empty mask counts (over runs): mt 2." in told["tcseg"]
    assert "(over runs): mt 3." in told["zero"]
    assert "farther off" not in told["exclude"]
    assert "a measured distance exceeds 100" in told["tcseg"]


def test_what_is_to_be_known_of_a_dataset_is_said_once(empty_store, tmp_path):
    for seed, said in enumerate((["odd <b>", "z"], ["z"], [])):
        rows = toy.cases(toy.run_id(seed=seed), {1000: (0.8,)})
        toy.add(empty_store, rows, toy.spec(seed=seed), sidecar={"notes": said})
    rows = toy.cases(toy.run_id(dataset="brats"), {1000: (0.8,)})
    toy.add(empty_store, rows, toy.spec(dataset="brats"), sidecar={"notes": ["z"]})
    made = write_report(empty_store.path, "last", tmp_path, names=["table"])
    for text in (made.paths[0].read_text().replace("&lt;", "<"), text_of(made.tables)):
        assert [text.count(s) for s in ("la: odd <b", "la: z", "brats: z")] == [1, 1, 1]


def test_unfinished_runs_are_counted_and_with_partial_shown_and_marked(store):
    begin(store, 4, {1000: (0.9, 1.0)})
    assert cells(store, "last")["mt"]["runs"] == "3/5 (1 failed)"
    row = cells(store, "last", partial=True)["mt"]
    assert row["runs"] == "3/5 (1 failed) (+1)"
    assert row["DSC % ↑ max"] == "95.00"
    said = " ".join(notes(load_facts(store, "last", "tcseg", partial=True)))
    assert "PARTIAL: 1 unfinished run(s), marked (+…)" in said


def test_partial_works_before_any_run_has_ended(empty_store):
    begin(empty_store, 0, {1000: (0.9, 1.0)})
    begin(empty_store, 1)
    row = cells(empty_store, "best", partial=True)["mt"]
    assert (row["runs"], row["DSC % ↑ median"]) == ("0/2 (+1)", "95.00")


def test_only_the_wanted_runs_are_shown(store):
    wanted = [toy.run_id("mt", s) for s in (1, 3)]
    assert list(cells(store, "last", runs=wanted)) == ["mt"]
    assert cells(store, "last", runs=wanted)["mt"]["runs"] == "1/2 (1 failed)"
    assert (
        "tcseg"
        not in text_of(tables(store.path, "last", runs=wanted)).replace("policy", "").split("·")[0]
    )


def test_several_predictors_are_a_column(empty_store):
    rows = [
        toy.cases(toy.run_id(), {1000: (v,)}, predictor=p) for p, v in (("main", 0.5), ("ema", 0.6))
    ]
    toy.add(empty_store, pd.concat(rows), predictors="main,ema")
    page = sheet(load_facts(empty_store, "last", "tcseg"))
    assert page.columns[1] == ("", "predictor")
    assert [row[:2] for row in page.sections[0].rows] == [("mt", "main"), ("mt", "ema")]


def test_the_csv_carries_the_protocol_in_each_row(store):
    table = flat(load_facts(store, "best", "tcseg"))
    row = table[table["label"] == "mt"].iloc[0]
    assert (row["failed"], row["counted"], row["dsc_percent_minimum"]) == (1, 4, -np.inf)
    lines = {r["label"]: r for r in csv.DictReader(io.StringIO(csv_text(table)))}
    assert lines["mt"]["dsc_percent_minimum"] == "failed"
    assert lines["tcseg"]["dsc_percent_minimum"] == f"{min(expected(2000, 'tcseg')):.4f}"
    assert np.isnan(row["dsc_percent_mean"])
    assert row["dsc_percent_best_run"] == pytest.approx(max(expected(2000, "mt")))
    row = table[table["label"] == "tcseg"].iloc[0]
    assert (row["rule"], row["selected_on"], row["evaluations"]) == ("best", "test", 3)
    assert (row["policy"], row["unit"], row["finished"], row["started"]) == ("tcseg", "mm", 3, 3)
    assert row["dsc_percent_median"] == pytest.approx(np.median(expected(2000, "tcseg")))
    assert row["asd_median"] == pytest.approx(10 - np.median(expected(2000, "tcseg")) / 10)
    assert (row["median_coverage"], row["median_seed"]) == (0.75, "1")


# The figures


def marks(figure, name):
    return {
        (round(float(x), 6), round(float(y), 6))
        for axes in figure.axes
        for artist in axes.collections
        if artist.get_gid() == name
        for x, y in artist.get_offsets()
    }


def test_the_figure_draws_best_as_best_and_last_as_last(store):
    values = best_vs_last.pairs(load_facts(store, "last", "tcseg"))
    figure = best_vs_last.draw(values)
    for name, step in (("last", 3000), ("best", 2000)):
        wanted = [y for m in ("mt", "tcseg") for y in expected(step, m)]
        for gid in (name, f"{name}-spread"):
            assert sorted(y for _, y in marks(figure, gid)) == pytest.approx(sorted(wanted))
    by_place = dict(marks(figure, "last"))
    gains = {round(y - by_place[x], 6) for x, y in marks(figure, "best")}
    assert gains == {20.0}


def test_the_figure_has_a_column_per_setting_and_a_block_per_method(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    methods = {"mt": 0.8, "tcseg": 0.9}
    toy.fill(store, np.random.default_rng(0), methods=methods, datasets=("la", "pancreas", "x"))
    figure = best_vs_last.draw(best_vs_last.pairs(load_facts(store, "last", "tcseg")))
    assert len(figure.axes) == 6
    titles = [a.get_title(loc="left").split(",")[0] for a in figure.axes if a.get_title(loc="left")]
    assert titles == ["la", "pancreas", "x"]
    assert [t.get_text() for t in figure.axes[0].texts] == ["mt", "tcseg"]


def test_the_figure_of_many_methods_has_them_in_rows_on_one_scale(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    methods = {f"m{n:02}": 0.5 + 0.01 * n for n in range(17)}
    toy.fill(store, np.random.default_rng(0), methods=methods, datasets=("la",))
    figure = best_vs_last.draw(best_vs_last.pairs(load_facts(store, "last", "tcseg")))
    rows = [[t.get_text() for t in axes.texts] for axes in figure.axes[::2]]
    assert sorted(name for row in rows for name in row) == list(methods)
    assert [len(row) for row in rows] == [5, 6, 6]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    titles = [axes.get_title(loc="left") for axes in figure.axes[::2]]
    assert [t.rpartition("; ")[2] for t in titles] == [
        *("1 to 5 of 17 methods", "6 to 11 of 17 methods", "12 to 17 of 17 methods"),
    ]


@pytest.mark.parametrize("report", [best_vs_last, trajectories])
def test_a_figure_names_the_methods_whose_runs_all_failed(tmp_path, report):
    store = Store.open(tmp_path / "s", create=True)
    toy.add(store, toy.cases(toy.run_id("mt"), {3000: (0.7, 0.8)}), toy.spec("mt"))
    for seed in range(2):
        rows = toy.cases(toy.run_id("tcseg", seed), {1000: (0.7, 0.8)})
        toy.add(store, rows, toy.spec("tcseg", seed=seed), state="failed")
    facts = load_facts(store, "last", "tcseg")
    values = (report.pairs if report is best_vs_last else report.trajectories)(facts)
    note = facts.not_drawn(values)
    assert note == "Not drawn: tcseg (0 of 2 runs finished, 2 failed)."
    assert note in report.draw(values, note).get_supxlabel()
    assert facts.not_drawn(facts.summary) == ""


def test_a_figure_of_nothing_finished_says_so(empty_store):
    begin(empty_store, 0)
    facts = load_facts(empty_store, "last", "tcseg")
    figure = best_vs_last.draw(best_vs_last.pairs(facts))
    assert "no run has finished yet" in figure.texts[0].get_text().replace("\n", " ")


# Whole reports


def test_reports_that_count_differently_share_no_file(store, tmp_path):
    made = [
        write_report(store.path, "last", tmp_path, names=["table", "optimism"], **options).paths
        for options in ({}, {"empty": "worst"}, {"partial": True})
    ]
    assert len({path for paths in made for path in paths}) == sum(map(len, made))
    assert made[1][0].parent == tmp_path / "empty-worst"


def test_a_report_is_files_and_a_table_for_the_terminal(store, tmp_path):
    made = write_report(store.path, "best", tmp_path / "out")
    assert [p.name for p in made.paths] == [
        *(f"table-best.{suffix}" for suffix in ("md", "csv", "tex")),
        *(f"best-vs-last.{suffix}" for suffix in ("png", "pdf", "svg")),
        *(f"trajectories.{suffix}" for suffix in ("csv", "png", "pdf", "svg")),
        *(f"pseudo.{suffix}" for suffix in ("md", "csv", "tex", "png", "pdf", "svg")),
        *(f"costs.{suffix}" for suffix in ("md", "csv", "tex")),
    ]
    shown = text_of(made.tables)
    markdown = made.paths[0].read_text()
    for text in (shown, markdown):
        assert f"{np.median(expected(2000, 'tcseg')):.2f}" in text
        assert "upper bound" in text
        assert "3/4" in text
    rows = list(csv.DictReader(made.paths[1].read_text().splitlines()))
    assert [r["label"] for r in rows] == ["tcseg", "mt"]
    assert made.paths[3].read_bytes().startswith(b"\x89PNG")
    assert made.paths[4].read_bytes().startswith(b"%PDF")
    assert plt.get_fignums() == []


def test_a_report_is_the_same_bytes_whatever_the_order_of_rows_in_the_store(tmp_path):
    rng = np.random.default_rng(5)
    frames = []
    for seed in range(3):
        scores = {s: rng.random(5) for s in STEPS}
        frames.append((toy.cases(toy.run_id(seed=seed), scores), toy.spec(seed=seed)))
    contents = []
    for name in ("a", "b"):
        store = Store.open(tmp_path / name, create=True)
        for rows, spec in frames:
            toy.add(store, rows if name == "a" else rows.sample(frac=1, random_state=1), spec)
        made = write_report(store.path, "best", tmp_path / name / "out")
        contents.append([path.read_bytes() for path in made.paths])
    assert contents[0] == contents[1]


def test_names_that_are_code_elsewhere_are_text_in_every_file(empty_store, tmp_path):
    name = '=HYPERLINK("x")|<script>\\input{a}_$'
    toy.add(empty_store, toy.cases(toy.run_id(), {1000: (0.8,)}), toy.spec(dataset=name))
    made = write_report(empty_store.path, "last", tmp_path / "out")
    markdown, table, latex = (path.read_text() for path in made.paths[:3])
    assert "<script>" not in markdown
    assert "\\input{a}" not in latex
    row = next(csv.DictReader(table.splitlines()))
    assert row["dataset"] == f"'{name}"
    assert row["setting"].startswith("'=")


def test_reports_are_chosen_by_name(store, tmp_path):
    made = write_report(store.path, "last", tmp_path / "out", names=["costs"])
    assert [p.name for p in made.paths] == ["costs.md", "costs.csv", "costs.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "bset"}, r"unknown rule 'bset'. Did you mean 'best'\?"),
        ({"empty": "zreo"}, r"unknown policy 'zreo'. Did you mean 'zero'\?"),
        ({"names": ["tabel"]}, r"unknown report 'tabel'. Did you mean 'table'\?"),
        ({"protocol": "best(split=val)"}, "needs evaluations of split val"),
    ],
)
def test_what_cannot_be_reported_is_one_message_and_no_file(store, tmp_path, arguments, message):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        write_report(store.path, **{"protocol": "last", "out": out, **arguments})
    assert not out.exists()


def test_no_store_and_an_empty_store_say_what_to_do(empty_store, tmp_path):
    with pytest.raises(UserError, match=r"no store at .*: run `bench run` first"):
        write_report(tmp_path / "nowhere", "last", tmp_path / "out")
    with pytest.raises(UserError, match="holds no run yet: start some with `bench run`"):
        write_report(empty_store.path, "last", tmp_path / "out")


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"row": 3}', '{"row": {"method": "mt"}}', '{"row": null}']
)
def test_a_damaged_spec_of_an_unfinished_run_is_named(store, tmp_path, content):
    store.write_work("mt-x", "spec.json", content)
    with pytest.raises(UserError, match=r"mt-x.spec\.json"):
        write_report(store.path, "last", tmp_path / "out")


def test_a_run_that_an_older_bench_began_is_named_with_what_to_do(store, tmp_path):
    store.write_work("mt-x", "spec.json", json.dumps({"spec": toy.spec(), "dataset": "la"}))
    message = r"mt-x.spec\.json says too little: the run was begun by an older bench; run the same"
    with pytest.raises(UserError, match=message):
        write_report(store.path, "last", tmp_path / "out")


def test_a_run_that_ends_while_it_is_being_read_counts_once(store, monkeypatch):
    run = begin(store, 4)
    real = Store.read_work

    def ends_first(self, name, file):
        toy.add(store, toy.cases(run, {1000: (0.9, 1.0)}), toy.spec("mt", seed=4))
        store.clean_work(run)
        return real(self, name, file)

    monkeypatch.setattr(Store, "read_work", ends_first)
    assert cells(store, "last")["mt"]["runs"] == "4/5 (1 failed)"


def test_reports_are_registered_by_what_they_write(store, tmp_path):
    facts = load_facts(store, "last", "tcseg")
    for name, report in REPORTS.items():
        if name == "slices":  # it needs images: tests/reports/test_slices.py
            continue
        assert all(path.name.startswith(name) for path in report.write(facts, tmp_path))


def test_reports_do_not_import_torch():
    code = "import sys, reports.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
