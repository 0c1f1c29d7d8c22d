import csv
import json

import numpy as np
import pandas as pd
import pytest

from protocols.optimism import fit_noise, gap_interval, null_gain
from reports import optimism
from reports.facts import Options, load_facts
from reports.report import write_report
from results.store import Store
from tests.protocols import toy

STEPS = tuple(range(500, 1050, 50))
"""Eleven evaluations, as the profile mini makes them; all in the second half of the run."""

CASES = 8


def made_up(seed):
    """DSC by step of one run: noise that cases share, noise that they do not, case levels."""
    rng = np.random.default_rng(seed)
    level = 0.75 + 0.08 * np.random.default_rng(99).standard_normal(CASES)
    scores = level + 0.02 * rng.standard_normal((len(STEPS), 1))
    scores = np.clip(scores + 0.03 * rng.standard_normal((len(STEPS), CASES)), 0, 1)
    return dict(zip(STEPS, scores, strict=True))


def fill(store, shuffled=False):
    """Method mt with three runs and a failed one, dtc with one run."""
    for method, seeds in (("mt", (0, 1, 2)), ("dtc", (7,))):
        for seed in seeds:
            rows = toy.cases(toy.run_id(method, seed), made_up(seed))
            rows = rows.sample(frac=1, random_state=seed) if shuffled else rows
            toy.add(store, rows, toy.spec(method, seed=seed))
    rows = toy.cases(toy.run_id("mt", 3), {500: [0.99] * CASES, 550: [0.01] * CASES})
    toy.add(store, rows, toy.spec("mt", seed=3), state="failed")
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = fill(Store.open(tmp_path_factory.mktemp("optimism") / "store", create=True))
    for seed in (0, 1, 2, 7):
        means = [row.mean() for row in made_up(seed).values()]
        assert np.argmax(means) != len(STEPS) - 1
    return store


@pytest.fixture(scope="module")
def found(store):
    return optimism.optimism(load_facts(store, "last", "tcseg"))


def row_of(values, label="mt", metric="dsc"):
    return values[(values["label"] == label) & (values["metric"] == metric)].iloc[0]


def oriented(metric):
    """(evaluations, cases) of each run of mt, the higher the better, in the unit of the report."""
    dsc = [np.array(list(made_up(seed).values())) for seed in range(3)]
    factor = {"dsc": 100, "asd": 10, "hd95": 30}[metric]
    return [factor * (run if metric == "dsc" else run - 1) for run in dsc]


# The numbers


@pytest.mark.parametrize("metric", ["dsc", "asd", "hd95"])
def test_last_best_and_gap_are_what_plain_python_says(found, metric):
    row = row_of(found[0], metric=metric)
    means = [[sum(case) / CASES for case in run] for run in oriented(metric)]
    last = sum(run[-1] for run in means) / 3
    best = sum(max(run) for run in means) / 3
    sign = 1 if metric == "dsc" else -1
    assert row["last"] == pytest.approx(sign * last)
    assert row["best"] == pytest.approx(sign * best)
    assert row["gap"] == pytest.approx(best - last)
    assert row["gap"] > 0
    assert (row["finished"], row["started"], row["failed"]) == (3, 4, 1)
    assert (row["fewest_evaluations"], row["evaluations"], row["cases"]) == (11, 11, CASES)


@pytest.mark.parametrize("metric", ["dsc", "hd95"])
def test_the_parts_add_up_and_both_ways_of_leaving_cases_out_agree(found, metric):
    row = row_of(found[0], metric=metric)
    assert row["optimism"] + row["drift"] == pytest.approx(row["gap"])
    assert row["optimism_halves"] + row["drift_halves"] == pytest.approx(row["gap"])
    assert 0 < row["optimism"] < row["gap"]
    assert row["optimism_halves"] == pytest.approx(row["optimism"], rel=0.35)


def test_interval_and_chance_are_of_the_matrices_of_the_runs(found):
    values, chance = found
    row = row_of(values)
    interval = gap_interval(oriented("dsc"), np.random.default_rng([0, 0]))
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    noise = fit_noise(oriented("dsc"))
    assert (row["shared_sd"], row["case_sd"]) == pytest.approx((noise.shared, noise.case))
    expected = null_gain(noise, (11,), (CASES,), np.random.default_rng(5), simulations=20_000)
    assert row["null_gain"] == pytest.approx(expected["gain"][0], rel=0.03)
    assert row["null_optimism"] == pytest.approx(expected["optimism"][0], rel=0.1)
    grid = chance[(chance["label"] == "mt") & (chance["metric"] == "dsc")]
    assert sorted(set(grid["evaluations"])) == [1, 5, 11, 16, 76, 290]
    assert sorted(set(grid["cases"])) == [CASES, 20, 60, 200]
    gains = grid.pivot(index="cases", columns="evaluations", values="gain")
    assert gains[1].eq(0).all()
    assert (gains.diff(axis=1).iloc[:, 1:] > 0).all(axis=None)
    assert (gains.diff(axis=0).iloc[1:, 1:] < 0).all(axis=None)


def test_distances_are_as_flattering_as_the_dsc_that_they_are_made_of(found):
    dsc, asd, hd95 = (row_of(found[0], metric=m) for m in ("dsc", "asd", "hd95"))
    for name in ("gap", "optimism", "drift", "null_gain"):
        assert asd[name] == pytest.approx(dsc[name] / 10)
        assert hd95[name] == pytest.approx(3 * asd[name])


def test_one_run_has_no_interval_and_the_report_says_so(store, found):
    row = row_of(found[0], "dtc")
    assert np.isnan(row["low"])
    assert np.isnan(row["high"])
    assert row["optimism"] + row["drift"] == pytest.approx(row["gap"])
    page = optimism.sheet(load_facts(store, "last", "tcseg"), found[0])
    said = " ".join(page.notes)
    assert "One run only, so its interval is undefined: dtc." in said
    assert "Failed: mt 1." in said


def test_runs_that_are_all_best_at_last_have_no_interval_and_the_report_says_so(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    for seed, level in enumerate((0.5, 0.6)):
        scores = {10: (0.1, 0.3), 20: (level, level + 0.1)}
        toy.add(store, toy.cases(toy.run_id(seed=seed), scores), toy.spec(seed=seed))
    facts = load_facts(store, "last", "tcseg")
    values, chance = optimism.optimism(facts)
    row = row_of(values)
    assert row["gap"] == 0
    assert np.isnan([row["low"], row["high"]]).all()
    said = " ".join(optimism.notes(facts, values))
    assert "its interval is undefined: mt (DSC), mt (ASD), mt (HD95)." in said
    optimism.draw(values, chance)


def test_a_row_does_not_depend_on_what_else_is_in_the_store(store, found):
    runs = [toy.run_id("mt", seed) for seed in range(4)]
    alone = optimism.optimism(load_facts(store, "last", "tcseg", runs=runs))[0]
    assert row_of(alone).equals(row_of(found[0]))


def test_too_few_evaluations_for_chance_are_told(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    rng = np.random.default_rng(0)
    for method, steps in (("mt", (1000, 2000, 3000)), ("dtc", (1000, 1500, 2000))):
        for seed in range(2):
            scores = {step: rng.random(4) for step in steps}
            toy.add(store, toy.cases(toy.run_id(method, seed), scores), toy.spec(method, seed=seed))
    facts = load_facts(store, "last", "tcseg")
    values, chance = optimism.optimism(facts)
    said = " ".join(optimism.notes(facts, values))
    assert np.isnan(row_of(values, "mt")["null_gain"])
    assert set(chance["label"]) == {"dtc"}
    assert "No chance is given" in said
    assert "that count at each: mt." in said
    assert "chance is an upper bound: dtc." in said
    by_chance = optimism.draw(values, chance).axes[1]
    assert [line.get_gid() for line in by_chance.lines[::2]] == ["dtc"]


def test_a_single_case_has_a_gap_and_no_parts(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    toy.add(store, toy.cases(toy.run_id(), {10: (0.8,), 20: (0.7,)}))
    values, chance = optimism.optimism(load_facts(store, "last", "tcseg"))
    row = row_of(values)
    assert row["gap"] == pytest.approx(10)
    assert np.isnan(row[["low", "optimism", "drift"]].to_numpy(dtype=float)).all()
    marks = {a.get_gid() for a in optimism.draw(values, chance).axes[0].collections}
    assert "gap" in marks


def test_predictors_are_rows_and_runs_in_progress_count_on_request(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    run, spec = toy.run_id(), toy.spec(predictors=["main", "ema"])
    content = {"spec": spec, "dataset": "la", "plugins": [], "row": toy.planned(run, spec)}
    store.write_work(run, "spec.json", json.dumps(content))
    for step, dsc in ((10, 0.8), (20, 0.7)):
        for predictor, gain in (("main", 0.0), ("ema", 0.1)):
            rows = toy.cases(run, {step: (dsc + gain, dsc)}, predictor=predictor)
            store.write_part(run, "cases", step + (predictor == "ema"), rows)
    facts = load_facts(store, "last", "tcseg", partial=True)
    values, _ = optimism.optimism(facts)
    dsc = values[values["metric"] == "dsc"].set_index("predictor")
    assert dsc["last"].to_dict() == pytest.approx({"main": 70, "ema": 75})
    page = optimism.sheet(facts, values)
    assert page.columns[1] == ("", "predictor")
    assert {row[2] for section in page.sections for row in section.rows} == {"0/1 (+1)"}
    assert "PARTIAL: 1 unfinished run(s)" in " ".join(page.notes)


def test_nothing_finished_is_a_row_without_numbers_and_a_figure_that_says_so(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    toy.add(store, toy.cases(toy.run_id(), {10: (0.5,)}), state="failed")
    facts = load_facts(store, "last", "tcseg")
    values, chance = optimism.optimism(facts)
    cells = optimism.sheet(facts, values).sections[0].rows[0]
    assert cells[:2] == ("mt", "0/1")
    assert set(cells[2:]) == {"–"}
    figure = optimism.draw(values, chance)
    assert "no run that counts" in figure.texts[0].get_text().replace("\n", " ")


# What is shown


def test_the_sheet_prints_the_numbers(store, found):
    page = optimism.sheet(load_facts(store, "last", "tcseg"), found[0])
    assert [s.heading.split(": ")[1] for s in page.sections] == ["DSC % ↑", "ASD mm ↓", "HD95 mm ↓"]
    names = [" ".join(filter(None, column)) for column in page.columns]
    printed = dict(zip(names, next(r for r in page.sections[1].rows if r[0] == "mt"), strict=True))
    row = row_of(found[0], metric="asd")
    assert printed["runs"] == "3/4"
    assert (printed["selected out of"], printed["cases"]) == ("11", "8")
    assert printed["mean last"] == f"{row['last']:.2f}"
    assert printed["best − last gap"] == f"{row['gap']:+.2f}"
    assert printed["best − last 95 % interval"] == f"[{row['low']:+.2f}, {row['high']:+.2f}]"
    assert printed["of the gap selection optimism"] == f"{row['optimism']:+.2f}"
    assert printed["of the gap training drift"] == f"{row['drift']:+.2f}"
    assert printed["by chance gap"] == f"{row['null_gain']:+.2f}"


def test_zero_has_no_sign(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    toy.add(store, toy.cases(toy.run_id(), {10: (0.1, 0.3), 20: (0.1, 0.3)}))
    facts = load_facts(store, "last", "tcseg")
    cells = optimism.sheet(facts, optimism.optimism(facts)[0]).sections[0].rows[0]
    assert "-0.00" not in cells


def test_the_figure_stacks_the_parts_to_the_gap(found):
    axes, by_chance = optimism.draw(*found).axes
    row = row_of(found[0])
    place = [t.get_text().split("\n")[0] for t in axes.get_xticklabels()].index("mt")
    bars = {p.get_gid(): p for p in axes.patches if round(p.get_x() + 0.25) == place}
    assert bars["optimism"].get_height() == pytest.approx(row["optimism"])
    assert bars["drift"].get_y() + bars["drift"].get_height() == pytest.approx(row["gap"])
    marks = {
        (a.get_gid(), round(x)): y
        for a in axes.collections
        if a.get_gid()
        for x, y in a.get_offsets()
    }
    assert marks["gap", place] == pytest.approx(row["gap"])
    assert marks["chance", place] == pytest.approx(row["null_gain"])
    (line,) = (line for line in by_chance.lines if line.get_gid() == "mt")
    assert line.get_xdata().tolist() == [1, 5, 11, 16, 76, 290]
    assert line.get_ydata()[2] == pytest.approx(row["null_gain"])


@pytest.mark.parametrize("count", [3, 24])
def test_names_of_many_methods_do_not_lie_over_the_lines(found, count):
    parts = [frame[frame["label"] == "mt"] for frame in found]
    names = [f"method-{n}" for n in range(count)]
    values, chance = (pd.concat([p.assign(label=name) for name in names]) for p in parts)
    figure = optimism.draw(values, chance)
    figure.draw_without_rendering()
    shown = []
    for by_chance in figure.axes[1::2]:
        box, panel = by_chance.get_legend().get_window_extent(), by_chance.get_window_extent()
        shown += [t.get_text() for t in by_chance.get_legend().get_texts()]
        assert box.y0 >= 0
        assert box.y1 <= figure.bbox.height
        assert panel.x1 <= box.x0
        assert box.x1 <= figure.bbox.width
        assert by_chance.get_ylim() == figure.axes[1].get_ylim()
        drawn = [y for line in by_chance.lines for y in line.get_ydata()]
        assert max(drawn) <= by_chance.get_ylim()[1]
    assert shown == names


def test_the_report_is_files_of_the_same_bytes_for_the_same_rows_in_any_order(store, tmp_path):
    other = fill(Store.open(tmp_path / "other", create=True), shuffled=True)
    made = [
        write_report(s.path, "last", tmp_path / name, names=["optimism"]).paths
        for s, name in ((store, "a"), (other, "b"))
    ]
    assert [p.name for p in made[0]] == [
        *("optimism.md", "optimism.csv", "optimism.tex", "optimism-null.csv"),
        *("optimism.png", "optimism.pdf", "optimism.svg"),
    ]
    assert [p.read_bytes() for p in made[0]] == [p.read_bytes() for p in made[1]]
    rows = list(csv.DictReader(made[0][1].read_text().splitlines()))
    assert {(r["label"], r["metric"], r["unit"]) for r in rows} >= {("mt", "dsc", "%")}


def test_the_seed_decides_the_interval_and_not_the_gap(store, found):
    other = optimism.optimism(load_facts(store, "last", "tcseg", options=Options(seed=1)))[0]
    one, two = row_of(found[0]), row_of(other)
    assert one["gap"] == two["gap"]
    for name in ("low", "optimism", "null_gain"):
        assert one[name] != two[name]
        assert one[name] == pytest.approx(two[name], abs=0.5)


def test_names_that_are_code_elsewhere_are_text(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    name = '=HYPERLINK("x")|<script>\\input{a}_$^'
    rows = toy.cases(toy.run_id(), made_up(0))
    toy.add(store, rows, toy.spec(dataset=name))
    made = write_report(store.path, "last", tmp_path / "out", names=["optimism"])
    markdown, table, latex, chance = (path.read_text() for path in made.paths[:4])
    assert "<script>" not in markdown
    assert "\\input{a}" not in latex
    for text in (table, chance):
        assert next(csv.DictReader(text.splitlines()))["setting"].startswith("'=")
