import csv
import io

import numpy as np
import pytest
from matplotlib.projections.polar import PolarAxes

from reports import sensitivity
from reports.drawing import write_figure
from reports.facts import load_facts
from results.store import Store
from tests.reports import grid_toy
from tests.reports.grid_toy import Run, cells, naive_median, of

SHORT = {"la-8": "la 8 / 72", "la-16": "la 16 / 64", "pancreas-6": "pancreas 6 / 56"}
TAU = {
    "tau=0.05 (default)": {},
    "tau=0.01": {"tau": 0.01},
    "tau=0.1": {"tau": 0.1},
}
BAND = {
    "tau_max=0.85, tau_min=0.1 (default)": {},
    "tau_max=0.85, tau_min=0.05": {"tau_min": 0.05},
    "tau_max=0.95, tau_min=0.05": {"tau_min": 0.05, "tau_max": 0.95},
}
PANELS = {"tcseg v1: tau": TAU, "tcseg v1: tau_max, tau_min": BAND}


def grid(settings=tuple(SHORT)):
    """Three seeds of every choice; tau = 0.1 was not run on la-16, and one run of it has failed."""
    runs = []
    for place, changed in enumerate([{}, *[c for p in PANELS.values() for c in p.values() if c]]):
        for s, setting in enumerate(settings):
            if (changed, setting) == ({"tau": 0.1}, "la-16"):
                continue
            for seed in range(3):
                level = 0.7 + 0.02 * ((place * 3) % 5) - 0.1 * s + 0.013 * ((2 * seed) % 3)
                failed = (changed, setting, seed) == ({"tau": 0.1}, "pancreas-6", 2)
                runs.append(Run("tcseg", setting, seed, level, changed, failed))
    return runs


RUNS = grid()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return grid_toy.fill(tmp_path_factory.mktemp("sensitivity") / "store", RUNS)


@pytest.fixture
def empty_store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


def facts_of(store, protocol="last"):
    return load_facts(store, protocol, "tcseg")


def medians(changed, protocol="last"):
    found = {s: of(RUNS, "tcseg", s, **changed) for s in SHORT}
    return {s: naive_median(runs, protocol) for s, runs in found.items() if runs}


@pytest.mark.parametrize("protocol", ["last", "best"])
def test_every_number_is_what_plain_python_says(store, protocol):
    (sheet,) = sensitivity.sheets(facts_of(store, protocol))
    found = cells(sheet)
    assert [s.heading for s in sheet.sections] == list(PANELS)
    for heading, curves in PANELS.items():
        for name, changed in curves.items():
            row, own = found[heading, name], medians(changed, protocol)
            for setting, short in SHORT.items():
                expected = f"{own[setting]:.2f}" if setting in own else "–"
                assert row[short, "DSC % ↑"] == expected
                runs = of(RUNS, "tcseg", setting, **changed)
                count = f"{sum(not r.failed for r in runs)}/{len(runs)}" if runs else "–"
                assert row[short, "runs"] == count
        for setting, short in SHORT.items():
            all_of_it = [medians(c, protocol) for c in curves.values()]
            values = [own[setting] for own in all_of_it if setting in own]
            spread = found[heading, "largest − smallest"][short, "DSC % ↑"]
            assert spread == f"{max(values) - min(values):.2f}"


def test_the_radar_has_a_ray_a_setting_and_closes(store):
    figure = sensitivity.draw(sensitivity.panels(facts_of(store)))
    assert all(isinstance(axes, PolarAxes) for axes in figure.axes)
    for axes, curves in zip(figure.axes, PANELS.values(), strict=True):
        lines = {line.get_gid(): line for line in axes.lines}
        assert list(lines) == list(curves)
        texts = {t.get_text().replace("\n", " ") for t in axes.texts}
        assert set(SHORT.values()) <= texts
        low, high = axes.get_ylim()
        for name, changed in curves.items():
            own = medians(changed)
            values = [own.get(setting, np.nan) for setting in SHORT]
            assert lines[name].get_ydata() == pytest.approx([*values, values[0]], nan_ok=True)
            assert all(low <= v <= high for v in values if v == v)
        title = axes.get_legend().get_title().get_text()
        assert f"The centre is at {low:g}, not at 0." in title
        assert ("Not drawn, as not run or failed: 1." in title) == (curves is TAU)


def test_below_three_settings_ranges_stand_side_by_side(tmp_path):
    runs = [r for r in grid(("la-8", "pancreas-6")) if "tau_min" not in r.changed]
    store = grid_toy.fill(tmp_path / "store", runs)
    figure = sensitivity.draw(sensitivity.panels(facts_of(store)))
    (axes,) = figure.axes
    assert not isinstance(axes, PolarAxes)
    dots = [(line.get_gid(), line.get_ydata()[0]) for line in axes.lines]
    expected = [
        (name, naive_median(of(runs, "tcseg", setting, **changed), "last"))
        for setting in ("la-8", "pancreas-6")
        for name, changed in TAU.items()
    ]
    assert [name for name, _ in dots] == [name for name, _ in expected]
    assert [y for _, y in dots] == pytest.approx([y for _, y in expected])
    segments = [s for c in axes.collections for s in c.get_segments() if len(s)]
    ranges = [
        [grid_toy.score(r, "last") for r in of(runs, "tcseg", setting, **changed)]
        for setting in ("la-8", "pancreas-6")
        for changed in TAU.values()
    ]
    whole = [values for values in ranges if np.isfinite(values).all()]
    assert len(whole) == len(ranges) - 1
    for segment, values in zip(segments, whole, strict=True):
        assert list(segment[:, 1]) == pytest.approx([min(values), max(values)])


def test_switches_and_words_are_not_varied_but_set_panels_apart(empty_store):
    for words in ({}, {"variant": "released"}, {"use_image": False}):
        for numbers in ({}, {"tau": 0.1}):
            level = 0.5 + 0.1 * len(words)
            grid_toy.add(empty_store, Run("tcseg", "la-8", 0, level, {**words, **numbers}))
    headings = [panel.heading for panel in sensitivity.panels(facts_of(empty_store))]
    assert sorted(headings) == [
        "tcseg (use_image=False) v1: tau",
        "tcseg (variant=released) v1: tau",
        "tcseg v1: tau",
    ]


def test_any_method_with_numbers_that_vary_is_shown(empty_store):
    for changed in ({}, {"decay": 0.9}):
        grid_toy.add(empty_store, Run("mt", "la-8", 0, 0.7, changed))
    (panel,) = sensitivity.panels(facts_of(empty_store))
    assert panel.heading == "mt v1: decay"
    assert list(panel.curves) == ["decay=0.99 (default)", "decay=0.9"]


def test_profiles_are_panels_and_tables_of_their_own(empty_store):
    for changed in ({}, {"tau": 0.1}):
        run = Run("tcseg", "la-8", 0, 0.7, changed)
        grid_toy.add(empty_store, run)
        other = grid_toy.spec_of(run, profile={"name": "paper"})
        grid_toy.add(empty_store, run, tag="b", content=other, profile="paper")
    facts = facts_of(empty_store)
    assert len(sensitivity.panels(facts)) == len(sensitivity.sheets(facts)) == 2


@pytest.mark.parametrize(
    "changes", [[{}], [{}, {"use_image": False}], [{"variant": "released"}, {"tau": 0.1}]]
)
def test_where_nothing_was_varied_a_sentence_says_so_and_there_is_no_figure(
    empty_store, tmp_path, changes
):
    for changed in changes:
        grid_toy.add(empty_store, Run("tcseg", "la-8", 0, 0.7, changed))
    paths = sensitivity.write_sensitivity(facts_of(empty_store), tmp_path)
    assert [p.suffix for p in paths] == [".md", ".csv", ".tex"]
    page = paths[0].read_text()
    assert "No sensitivity to show" in page
    assert "bench run --method tcseg --set tcseg.tau=0.1" in page


def test_failed_medians_are_no_points(empty_store, tmp_path):
    for changed, failed in (({}, True), ({"tau": 0.1}, False)):
        grid_toy.add(empty_store, Run("tcseg", "la-8", 0, 0.7, changed, failed))
    facts = facts_of(empty_store)
    (sheet,) = sensitivity.sheets(facts)
    assert [row[1] for row in sheet.sections[0].rows] == ["failed", "71.50", "–"]
    figure = sensitivity.draw(sensitivity.panels(facts))
    title = figure.axes[0].get_legend().get_title().get_text()
    assert "Not drawn, as not run or failed: 1." in title
    assert write_figure(figure, tmp_path, "x")


def test_the_order_of_runs_and_rows_changes_no_byte(tmp_path):
    runs = [r for r in RUNS if "tau_min" not in r.changed and r.seed < 2]
    one = facts_of(grid_toy.fill(tmp_path / "one", runs))
    other = facts_of(grid_toy.fill(tmp_path / "other", runs[::-1], shuffled=True))
    first, second = (
        {p.name: p.read_bytes() for p in sensitivity.write_sensitivity(facts, tmp_path / "out")}
        for facts in (one, other)
    )
    assert first == second
    assert {name.split(".")[-1] for name in first} == {"md", "csv", "tex", "png", "pdf", "svg"}


def test_the_files_hold_the_numbers(store, tmp_path):
    paths = sensitivity.write_sensitivity(facts_of(store), tmp_path)
    assert {p.stem for p in paths} == {"sensitivity-last"}
    grid_toy.check_latex(paths[2].read_text())
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert len(rows) == 3 * 3 - 1 + 3 * 3
    (row,) = [r for r in rows if r["values"] == "tau=0.01" and r["setting"].startswith("pancreas")]
    expected = medians({"tau": 0.01})["pancreas-6"]
    assert float(row["dsc_percent_median"]) == pytest.approx(expected, abs=1e-4)


def test_hostile_names_are_drawn_and_written_as_text(empty_store, tmp_path):
    name = "_$\\frac{x}</svg><script>\x1b"
    for changed in ({}, {"tau": 0.1}):
        run = Run("tcseg", "la-8", 0, 0.7, changed)
        content = grid_toy.spec_of(run)
        content["method"]["name"] = content["dataset"]["name"] = name
        grid_toy.add(empty_store, run, content=content, method=name, dataset=name)
    paths = sensitivity.write_sensitivity(facts_of(empty_store), tmp_path)
    texts = [p.read_text() for p in paths if p.suffix in (".md", ".svg")]
    assert all("<script>" not in text and "\x1b" not in text for text in texts)


def test_values_that_differ_late_are_rows_of_their_own(empty_store):
    levels = {0.9999998: 0.8, 0.9999999: 0.5}
    for place, (tau, level) in enumerate(levels.items()):
        for setting in ("la-8", "la-16"):
            run = Run("tcseg", setting, 0, level, {"tau": tau})
            grid_toy.add(empty_store, run, tag=str(place))
    grid_toy.add(empty_store, Run("tcseg", "la-8", 0, 0.7), tag="d")
    (page,) = sensitivity.sheets(facts_of(empty_store))
    names = [row[0] for section in page.sections for row in section.rows]
    assert {"tau=0.9999998", "tau=0.9999999"} <= set(names)
