import csv
import io
import json

import pandas as pd
import pytest
from rich.console import Console

from reports import leaderboard
from reports.facts import load_facts
from reports.render import Bold, Underlined, console
from results.store import Store
from tests.protocols import toy
from tests.reports import grid_toy
from tests.reports.grid_toy import Run, cells, naive_maximum, naive_median, of

RUNS = grid_toy.grid()
SHORT = {"la-8": "la 8 / 72", "la-16": "la 16 / 64", "pancreas-6": "pancreas 6 / 56"}
FULL = {
    "la-8": "la, 8 labelled / 72 unlabelled, profile mini; distances in mm",
    "la-16": "la, 16 labelled / 64 unlabelled, profile mini; distances in mm",
    "pancreas-6": "pancreas, 6 labelled / 56 unlabelled, profile mini; distances in mm",
}
HEADINGS = {
    "last": "Protocol last, selected on nothing",
    "best": "Protocol best, selected on test",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return grid_toy.fill(tmp_path_factory.mktemp("grid") / "store", RUNS)


@pytest.fixture
def empty_store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


def facts_of(store, protocol="last"):
    return load_facts(store, protocol, "tcseg")


def board(store, protocol="last"):
    (sheet,) = leaderboard.leaderboard(facts_of(store, protocol))
    return sheet


def shown(number):
    return "failed" if number == float("-inf") else f"{number:.2f}"


# Table 1


@pytest.mark.parametrize("protocol", ["last", "best"])
def test_every_number_is_what_plain_python_says(store, protocol):
    found = cells(board(store))
    for method in ("supervised", "mt", "tcseg"):
        for setting, short in SHORT.items():
            runs = of(RUNS, method, setting)
            for kind, naive in (("median", naive_median), ("maximum", naive_maximum)):
                row = found[HEADINGS[protocol], method, protocol, kind]
                expected = shown(naive(runs, protocol)) if runs else "–"
                assert row[short, "DSC % ↑"] == expected
                finished = sum(not run.failed for run in runs)
                assert row[short, "runs"] == (f"{finished}/{len(runs)}" if runs else "–")


def test_best_is_not_last_and_a_failed_run_pulls_the_median_down(store):
    found = cells(board(store))
    last = found[HEADINGS["last"], "mt", "last", "median"]
    best = found[HEADINGS["best"], "mt", "best", "median"]
    assert float(best["la 8 / 72", "DSC % ↑"]) > float(last["la 8 / 72", "DSC % ↑"]) + 3
    finished = sorted(grid_toy.score(r, "last") for r in of(RUNS, "mt", "la-8") if not r.failed)
    assert last["la 8 / 72", "DSC % ↑"] == f"{finished[0]:.2f}"


def test_the_best_median_of_a_column_is_bold_and_the_next_underlined(store):
    found = cells(board(store))
    for protocol, heading in HEADINGS.items():
        for setting, short in SHORT.items():
            medians = {
                m: naive_median(of(RUNS, m, setting), protocol)
                for m in ("supervised", "mt", "tcseg")
                if of(RUNS, m, setting)
            }
            order = sorted(medians, key=medians.get, reverse=True)
            for method in ("supervised", "mt", "tcseg"):
                cell = found[heading, method, protocol, "median"][short, "DSC % ↑"]
                assert isinstance(cell, Bold) == (method == order[0])
                assert isinstance(cell, Underlined) == (len(order) > 2 and method == order[1])
                top = found[heading, method, protocol, "maximum"][short, "DSC % ↑"]
                assert type(top) is str


def test_methods_come_by_their_distance_to_the_best_of_each_setting(store):
    def behind(method):
        gaps = []
        for setting in SHORT:
            runs = of(RUNS, method, setting)
            if runs:
                top = max(
                    naive_median(of(RUNS, other, setting), "last")
                    for other in ("supervised", "mt", "tcseg")
                    if of(RUNS, other, setting)
                )
                gaps.append(top - naive_median(runs, "last"))
        return sum(gaps) / len(gaps)

    rows = board(store).sections[0].rows
    assert [row[0] for row in rows[::2]] == sorted(("supervised", "mt", "tcseg"), key=behind)


def test_a_median_that_is_a_failed_run_says_so_is_last_and_has_no_mark(empty_store, tmp_path):
    for seed in range(3):
        grid_toy.add(empty_store, Run("mt", "la-8", seed, 0.9, failed=seed > 0))
        grid_toy.add(empty_store, Run("dtc", "la-8", seed, 0.3))
    rows = board(empty_store).sections[0].rows
    assert [row[0] for row in rows] == ["dtc", "dtc", "mt", "mt"]
    assert rows[2][3:] == ("failed", "1/3")
    assert rows[3][3] == f"{grid_toy.score(Run('mt', 'la-8', 0, 0.9), 'last'):.2f}"
    assert type(rows[0][3]) is type(rows[2][3]) is str
    _, path, _ = leaderboard.write_leaderboard(facts_of(empty_store), tmp_path)
    table = pd.read_csv(path).set_index(["name", "rule", "over_runs"])
    medians = table.loc[("mt", "last", "median"), ["dsc_percent", "asd", "hd95"]]
    assert medians.tolist() == ["failed"] * 3


def test_a_third_protocol_is_a_third_section_and_has_a_file_of_its_own(empty_store, tmp_path):
    for seed in range(3):
        run = Run("mt", "la-8", seed, 0.5 + 0.1 * seed)
        grid_toy.add(empty_store, run)
    facts = facts_of(empty_store, "best(metric=asd)")
    (sheet,) = leaderboard.leaderboard(facts)
    assert [s.rows[0][1] for s in sheet.sections] == ["last", "best", "best(metric=asd)"]
    paths = leaderboard.write_leaderboard(facts, tmp_path / "out")
    stem = "leaderboard-best-metric-asd"
    assert [p.name for p in paths] == [f"{stem}.md", f"{stem}.csv", f"{stem}.tex"]


# Tables 5 to 7


@pytest.mark.parametrize("protocol", ["last", "best"])
def test_every_metric_is_what_plain_python_says(store, protocol):
    sheets = leaderboard.all_metrics(facts_of(store))
    assert [s.title.split(":")[0] for s in sheets] == ["la", "pancreas"]
    found = {key: row for sheet in sheets for key, row in by_method(sheet).items()}
    for method in ("supervised", "mt", "tcseg"):
        for setting, heading in FULL.items():
            runs = of(RUNS, method, setting)
            if not runs:
                assert (heading, method, protocol, "median") not in found
                continue
            for kind, naive in (("median", naive_median), ("maximum", naive_maximum)):
                row = found[heading, method, protocol, kind]
                dsc = naive(runs, protocol)
                assert row["", "DSC % ↑"] == f"{dsc:.2f}"
                # The toy's distances are those of every case; the order of runs is that of DSC.
                assert row["", "ASD ↓"] == f"{10 - dsc / 10:.2f}"
                assert row["", "HD95 ↓"] == f"{30 - 0.3 * dsc:.2f}"
                assert row["", "runs"] == f"{sum(not r.failed for r in runs)}/{len(runs)}"


def by_method(sheet):
    return {key[:4]: row for key, row in cells(sheet).items()}


def test_the_lowest_median_distance_is_bold(store):
    (_, pancreas) = leaderboard.all_metrics(facts_of(store))
    rows = [r for r in pancreas.sections[0].rows if r[1:3] == ("last", "median")]
    for column in (5, 6):
        lowest = min(rows, key=lambda row: float(row[column]))
        assert lowest[0] == "mt"
        assert [type(row[column]) for row in rows] == [Bold, Underlined, str]


# Both


def test_profiles_recipes_and_engines_never_share_a_table(empty_store):
    run = Run("mt", "la-8", 0, 0.7)
    grid_toy.add(empty_store, run)
    grid_toy.add(empty_store, run, tag="a", content=grid_toy.spec_of(run, engine=2))
    content = grid_toy.spec_of(run, profile={"name": "paper"})
    grid_toy.add(empty_store, run, tag="b", content=content, profile="paper")
    content = grid_toy.spec_of(run, recipe={"name": "authors"})
    grid_toy.add(empty_store, run, tag="c", content=content, recipe="authors")
    titles = [s.title for s in leaderboard.leaderboard(facts_of(empty_store))]
    assert len(titles) == len(set(titles)) == 4
    assert sum("engine differs" in title for title in titles) == 2
    assert any(title.endswith("profile mini, recipe authors") for title in titles)
    assert any(title.endswith("profile paper, recipe common") for title in titles)


def test_fingerprints_are_columns_of_their_own_and_the_notes_say_what_they_are(empty_store):
    run = Run("mt", "la-8", 0, 0.7)
    other = Run("mt", "la-8", 0, 0.5)
    grid_toy.add(empty_store, run)
    changed = grid_toy.spec_of(other, fingerprint="e" * 64)
    grid_toy.add(empty_store, other, tag="b", content=changed, fingerprint="e" * 64)
    sheet = board(empty_store)
    shorts = list(dict.fromkeys(group for group, _ in sheet.columns if group))
    assert len(shorts) == 2
    assert all(short.startswith("la 8 / 72 #") for short in shorts)
    said = [note for note in sheet.notes if "dataset.fingerprint differs" in note]
    assert [note.split(":")[0] for note in said] == shorts
    values = {sheet.sections[0].rows[0][place] for place in (3, 5)}
    assert values == {f"{grid_toy.score(r, 'last'):.2f}" for r in (run, other)}


def test_one_run_is_a_table_without_marks(empty_store):
    run = Run("mt", "la-8", 4, 0.7)
    grid_toy.add(empty_store, run)
    rows = board(empty_store).sections[0].rows
    number = f"{grid_toy.score(run, 'last'):.2f}"
    assert rows == (
        ("mt", "last", "median", number, "1/1"),
        ("mt", "last", "maximum", number, "1/1"),
    )
    assert type(rows[0][3]) is str


def test_only_failed_runs_say_that_nothing_has_finished(empty_store, tmp_path):
    grid_toy.add(empty_store, Run("mt", "la-8", 0, 0.7, failed=True))
    for write in (leaderboard.write_leaderboard, leaderboard.write_all_metrics):
        text = write(facts_of(empty_store), tmp_path / "out")[0].read_text()
        assert "No run has finished yet." in text
        assert "0/1" in text


def test_unfinished_runs_are_started_ones_and_with_partial_they_are_marked(empty_store):
    grid_toy.add(empty_store, Run("mt", "la-8", 0, 0.7))
    begun, name = Run("mt", "la-8", 1, 0.5), "mt-la-8-s1"
    spec = grid_toy.spec_of(begun)
    row = toy.planned(name, spec, unlabelled=72)
    empty_store.write_work(name, "spec.json", json.dumps({"spec": spec, "row": row}))
    rows = toy.cases(name, {1000: begun.dsc(1000)})
    empty_store.write_part(name, "cases", 1000, rows)
    assert board(empty_store).sections[0].rows[0][3:] == ("71.50", "1/2")
    facts = load_facts(empty_store, "last", "tcseg", partial=True)
    (sheet,) = leaderboard.leaderboard(facts)
    middle = (71.5 + grid_toy.percent(begun, 1000)) / 2
    assert sheet.sections[0].rows[0][3:] == (f"{middle:.2f}", "1/2 (+1)")
    assert any(note.startswith("PARTIAL") for note in sheet.notes)


def test_versions_of_a_method_are_rows_of_their_own(empty_store):
    for version, level in ((1, 0.5), (2, 0.8)):
        run = Run("mt", "la-8", 0, level)
        content = grid_toy.spec_of(run, version=version)
        grid_toy.add(empty_store, run, tag=str(version), content=content)
    assert [row[0] for row in board(empty_store).sections[0].rows[::2]] == ["mt v2", "mt v1"]


def test_other_predictors_are_named_not_mixed_in(empty_store):
    rows = [
        toy.cases(toy.run_id(), {1000: (v,)}, predictor=p) for p, v in (("main", 0.5), ("ema", 0.9))
    ]
    toy.add(empty_store, pd.concat(rows), predictors="main,ema")
    sheet = board(empty_store)
    assert sheet.sections[0].rows[0][3] == "50.00"
    assert any("the report `table` has the others too" in note for note in sheet.notes)


def test_the_notes_say_what_the_numbers_are(store):
    said = " ".join(board(store).notes)
    assert "Protocol last: the last checkpoint of each run; nothing is selected." in said
    assert "Selected on test, out of 3 evaluations of each run." in said
    assert "upper bound" in said
    assert "Neither says that a difference is significant" in said
    assert "policy tcseg" in said
    assert "not the published scale" in said


def test_the_order_of_runs_and_rows_changes_no_byte(store, tmp_path):
    other = grid_toy.fill(tmp_path / "other", RUNS[::-1], shuffled=True)
    both = [("a", facts_of(store)), ("b", facts_of(other))]
    for write in (leaderboard.write_leaderboard, leaderboard.write_all_metrics):
        first, second = (
            [p.read_bytes() for p in write(facts, tmp_path / name)] for name, facts in both
        )
        assert first == second


def test_the_csv_holds_both_protocols_unrounded(store, tmp_path):
    path = leaderboard.write_leaderboard(facts_of(store), tmp_path)[1]
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert len(rows) == 8 * 2 * 2
    (row,) = [
        r
        for r in rows
        if (r["name"], r["dataset"], r["rule"], r["over_runs"])
        == ("mt", "pancreas", "best", "median")
    ]
    runs = of(RUNS, "mt", "pancreas-6")
    assert float(row["dsc_percent"]) == pytest.approx(naive_median(runs, "best"), abs=1e-4)
    assert (row["labelled"], row["unlabelled"], row["unit"]) == ("6", "56", "mm")


def test_latex_and_markdown_carry_the_marks(store, tmp_path):
    for write in (leaderboard.write_leaderboard, leaderboard.write_all_metrics):
        page, _, latex = (p.read_text() for p in write(facts_of(store), tmp_path))
        grid_toy.check_latex(latex)
        number = f"{naive_median(of(RUNS, 'mt', 'pancreas-6'), 'last'):.2f}"
        assert rf"\textbf{{{number}}}" in latex
        assert f"**{number}**" in page
        assert r"\underline{" in latex
        assert "<u>" in page


def test_hostile_names_stay_text(empty_store, tmp_path):
    name = '[=cmd|"x"<script>\\input{a}_$&*'
    for seed in range(2):
        run = Run("mt", "la-8", seed, 0.5 + 0.1 * seed)
        content = grid_toy.spec_of(run)
        content["dataset"]["name"] = content["method"]["name"] = name
        grid_toy.add(empty_store, run, content=content, dataset=name, method=name)
    for write in (leaderboard.write_leaderboard, leaderboard.write_all_metrics):
        page, table, latex = (p.read_text() for p in write(facts_of(empty_store), tmp_path))
        assert "<script>" not in page
        assert "\\input{" not in latex
        grid_toy.check_latex(latex)
        assert all(r["name"] == name for r in csv.DictReader(io.StringIO(table)))
    screen = Console(width=200, file=io.StringIO(), color_system=None)
    screen.print(console(board(empty_store)))
    assert name in screen.file.getvalue()
