import numpy as np
import pytest
from matplotlib.text import Annotation

from reports import pseudo
from reports.facts import load_facts
from results.store import Store
from tests.protocols import toy
from tests.reports.grid_toy import check_latex

COUNTS = {
    ("supervised", 0): ((8, 2, 2, 88), (0, 0, 10, 90)),
    ("mt", 0): ((9, 1, 1, 89), (5, 5, 5, 85)),
    ("mt", 1): ((9, 1, 1, 89), (9, 1, 1, 89)),
    ("mt", 2): ((1, 9, 9, 81), (0, 0, 10, 90)),
}
"""(tp, fp, fn, tn) of two volumes, by method and seed."""


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


def add(store, method, seed, counts, **changes):
    run = toy.run_id(method, seed)
    labels = toy.pseudo(run, counts)
    rows = toy.cases(run, {1000: (0.5,)})
    toy.add(store, rows, toy.spec(method, seed=seed), pseudo_labels=labels, **changes)


@pytest.fixture
def filled(store):
    for (method, seed), counts in COUNTS.items():
        add(store, method, seed, counts)
    return store


def found(store):
    facts = load_facts(store, "last", "tcseg")
    return pseudo.medians(pseudo.qualities(facts))


def test_qualities_are_pooled_over_the_volumes_of_a_run(filled):
    values = pseudo.qualities(load_facts(filled, "last", "tcseg"))
    rows = values.set_index("run")[["ppv", "npv", "recall"]]
    assert rows.loc[toy.run_id("supervised")].tolist() == [8 / 10, 178 / 190, 8 / 20]
    assert rows.loc[toy.run_id("mt", 0)].tolist() == [14 / 20, 174 / 180, 14 / 20]


def test_a_method_has_the_median_of_its_runs_of_each_quality_by_itself(filled):
    row = found(filled).set_index("label").loc["mt"]
    assert row["runs"] == 3
    assert row["ppv"] == pytest.approx(np.median([14 / 20, 18 / 20, 1 / 10]))
    assert row["npv"] == pytest.approx(np.median([174 / 180, 178 / 180, 171 / 190]))
    assert row["recall"] == pytest.approx(np.median([14 / 20, 18 / 20, 1 / 20]))


@pytest.mark.parametrize(
    ("counts", "printed"),
    [
        ([(0, 0, 10, 90)], ["–", "0.9000", "0.0000"]),
        ([(0, 5, 0, 95)], ["0.0000", "1.0000", "–"]),
        ([(10, 90, 0, 0)], ["0.1000", "–", "1.0000"]),
        ([(0, 0, 0, 0)], ["–", "–", "–"]),
        ([], ["–", "–", "–"]),
    ],
)
def test_what_is_undefined_is_no_number_and_never_zero(store, counts, printed):
    labels = toy.pseudo(toy.run_id()).iloc[:0] if not counts else toy.pseudo(toy.run_id(), counts)
    toy.add(store, toy.cases(toy.run_id(), {1000: (0.5,)}), pseudo_labels=labels)
    assert list(pseudo.sheet(found(store)).sections[0].rows[0][2:]) == printed


def test_one_undefined_run_leaves_the_median_undefined(filled):
    add(filled, "mt", 3, ((0, 0, 10, 90),))
    row = found(filled).set_index("label").loc["mt"]
    assert np.isnan(row["ppv"])
    assert not np.isnan(row["npv"])


def test_only_the_last_labels_of_the_main_predictor_of_finished_runs_count(filled):
    add(filled, "mt", 4, ((1, 99, 99, 1),), state="failed")
    run = toy.run_id("dtc")
    labels = toy.pseudo(run, ((9, 1, 1, 89),) * 3)
    labels = labels.assign(step=[3000, 2000, 3000], predictor=["main", "main", "teacher"])
    labels.loc[1:, "fp"] = 1000
    rows = toy.cases(run, {1000: (0.5,)})
    toy.add(filled, rows, toy.spec("dtc"), pseudo_labels=labels)
    values = found(filled).set_index("label")
    assert values["runs"].to_dict() == {"supervised": 1, "mt": 3, "dtc": 1}
    assert values.loc["dtc", "ppv"] == pytest.approx(0.9)


def test_the_page_says_how_the_numbers_come_about(filled, tmp_path):
    paths = pseudo.write_pseudo(load_facts(filled, "last", "tcseg"), tmp_path)
    suffixes = ("md", "csv", "tex", "png", "pdf", "svg")
    assert [p.name for p in paths] == [f"pseudo.{suffix}" for suffix in suffixes]
    text = paths[0].read_text()
    assert "| mt | 3 | 0.7000 | 0.9667 | 0.7000 |" in text
    assert "summed before dividing" in text
    assert "does not say whether it pools or averages" in text
    assert paths[1].read_text().splitlines()[0] == "setting,label,runs,ppv,npv,recall"
    check_latex(paths[2].read_text())
    assert r"mt & 3 & 0.7000 & 0.9667 & 0.7000 \\" in paths[2].read_text()


def test_the_figure_has_a_marker_a_method_and_arrows_from_the_baseline(filled):
    add(filled, "dtc", 0, ((7, 3, 3, 87),))
    values = found(filled)
    axes = pseudo.draw(values).axes[0]
    places = {a.get_gid(): tuple(a.get_offsets()[0]) for a in axes.collections}
    sizes = {a.get_gid(): a.get_sizes()[0] for a in axes.collections}
    for row in values.to_dict("records"):
        assert places[row["label"]] == (row["ppv"], row["npv"])
        assert sizes[row["label"]] / sizes["mt"] == pytest.approx((row["recall"] / 0.7) ** 2)
    arrows = {
        (tuple(t.xyann), tuple(t.xy))
        for t in axes.texts
        if isinstance(t, Annotation) and t.arrow_patch is not None
    }
    assert arrows == {(places["supervised"], places[name]) for name in ("mt", "dtc")}


def test_every_marker_carries_its_recall_and_every_method_is_in_the_legend(filled):
    long = "a-method-with-a-very-long-name (tau=0.1, tau_max=0.95, tau_min=0.05)"
    for name in (long, "_hidden", "$x^{"):
        toy.add(
            filled,
            toy.cases(run := toy.run_id("x", tag=str(len(name))), {1000: (0.5,)}),
            toy.spec(name),
            pseudo_labels=toy.pseudo(run, ((7, 3, 3, 87),)),
        )
    values = found(filled)
    figure = pseudo.draw(values)
    numbers = [t.get_text() for t in figure.axes[0].texts if t.get_text()]
    assert sorted(numbers) == sorted(f"{recall:.2f}" for recall in values["recall"])
    entries = [t.get_text().replace("\n", " ").strip() for t in figure.legends[0].get_texts()]
    expected = sorted(label.replace("$", r"\$") for label in values["label"])
    assert sorted(entries) == expected
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_many_methods_have_panels_of_one_scale_with_the_baseline_in_each(filled):
    for place in range(10):
        add(filled, f"method{place}", 0, ((7 + place, 3, 3, 87),))
    values = found(filled)
    panels = pseudo.draw(values).axes
    shown = [[a.get_gid() for a in axes.collections] for axes in panels]
    assert [len(names) for names in shown] == [6, 7]
    assert all("supervised" in names for names in shown)
    assert {name for names in shown for name in names} == set(values["label"])
    assert panels[1].get_title(loc="left").endswith("6 to 11 of 11 methods")
    assert {axes.get_xlim() for axes in panels} == {panels[0].get_xlim()}
    assert {axes.get_ylim() for axes in panels} == {panels[0].get_ylim()}


def test_without_a_baseline_there_is_no_arrow(store):
    add(store, "mt", 0, COUNTS["mt", 0])
    axes = pseudo.draw(found(store)).axes[0]
    assert all(t.arrow_patch is None for t in axes.texts)


def test_methods_that_cannot_be_drawn_are_counted(filled):
    add(filled, "dtc", 0, ((0, 0, 10, 90),))
    figure = pseudo.draw(found(filled))
    assert "Not drawn, being undefined: 1." in figure.get_supxlabel()
    only = found(filled)
    blank = pseudo.draw(only[only["label"] == "dtc"])
    assert "undefined for every method" in blank.texts[0].get_text().replace("\n", " ")


def test_nothing_finished_says_so(store, tmp_path):
    add(store, "mt", 0, COUNTS["mt", 0], state="failed")
    paths = pseudo.write_pseudo(load_facts(store, "last", "tcseg"), tmp_path)
    assert "No run has finished yet" in paths[0].read_text()
