import csv
import json

import numpy as np
import pytest

from reports import trajectories
from reports.facts import load_facts
from reports.report import write_report
from results.store import Store
from tests.protocols import toy

SCORES = {1000: (0.40, 0.50), 2000: (0.80, 0.90), 3000: (0.60, 0.70)}
"""Of seed 0 of the first method: best is not last."""


@pytest.fixture
def store(tmp_path):
    """Two methods with three seeds each, and a failed run."""
    store = Store.open(tmp_path / "store", create=True)
    for method, level in (("mt", 0.0), ("tcseg", 0.05)):
        for seed in range(3):
            scores = {s: [v + level - 0.02 * seed for v in row] for s, row in SCORES.items()}
            rows = toy.cases(toy.run_id(method, seed), scores)
            toy.add(store, rows, toy.spec(method, seed=seed))
    rows = toy.cases(toy.run_id("mt", 3), {1000: (0.99, 0.99)})
    toy.add(store, rows, toy.spec("mt", seed=3), state="failed")
    return store


def facts(store, **changes):
    return load_facts(store, "last", "tcseg", **changes)


def dsc(step, seed, level=0.0):
    return 100 * (sum(SCORES[step]) / 2 + level - 0.02 * seed)


def test_every_evaluation_of_every_finished_run_is_a_row(store):
    values = trajectories.trajectories(facts(store))
    assert len(values) == 2 * 3 * 3
    first = values[values["run"] == toy.run_id("mt", 1)]
    assert first["dsc"].tolist() == pytest.approx([dsc(step, 1) for step in SCORES])
    assert first["asd"].tolist() == pytest.approx([10 - dsc(step, 1) / 10 for step in SCORES])
    assert set(first["seed"]) == {1}


def test_last_and_best_are_marked_once_a_run(store):
    values = trajectories.trajectories(facts(store))
    for _, run in values.groupby("run"):
        assert run.loc[run["last"], "step"].tolist() == [3000]
        assert run.loc[run["best"], "step"].tolist() == [2000]


def test_of_equal_evaluations_the_later_is_the_best(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    toy.add(store, toy.cases(toy.run_id(), {1000: (0.8,), 2000: (0.8,), 3000: (0.1,)}))
    values = trajectories.trajectories(facts(store))
    assert values.loc[values["best"], "step"].tolist() == [2000]


def test_the_figure_draws_medians_and_marks(store):
    axes = trajectories.draw(trajectories.trajectories(facts(store))).axes[0]
    lines = {line.get_gid(): line for line in axes.lines}
    for method, level in (("mt", 0.0), ("tcseg", 0.05)):
        medians = [np.median([dsc(step, seed, level) for seed in range(3)]) for step in SCORES]
        assert lines[f"median {method}"].get_ydata() == pytest.approx(medians)
    for mark, step in (("last", 3000), ("best", 2000)):
        drawn = [xy for a in axes.collections if a.get_gid() == mark for xy in a.get_offsets()]
        wanted = [(step, dsc(step, seed, level)) for level in (0.0, 0.05) for seed in range(3)]
        assert np.sort(drawn, axis=0) == pytest.approx(np.sort(wanted, axis=0))


def test_many_methods_get_a_panel_each_of_one_scale_before_the_medians_of_the_others(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    methods = [f"m{i}" for i in range(trajectories.TOGETHER + 1)]
    for i, method in enumerate(methods):
        toy.add(store, toy.cases(toy.run_id(method), {1000: (0.1 * i,)}), toy.spec(method))
    panels = trajectories.draw(trajectories.trajectories(facts(store))).axes
    assert [panel.get_title(loc="left").split(":")[0] for panel in panels] == methods
    assert len({panel.get_ylim() for panel in panels}) == 1
    for i, panel in enumerate(panels):
        (own,) = (line for line in panel.lines if line.get_gid() == f"median m{i}")
        assert own.get_ydata() == pytest.approx([10 * i])
        grey = [line for line in panel.lines if line.get_color() == trajectories.GREY]
        assert sorted(float(line.get_ydata()[0]) for line in grey) == pytest.approx(
            [10 * j for j in range(len(methods)) if j != i]
        )


def test_the_data_behind_the_figure_are_a_file(store, tmp_path):
    made = write_report(store.path, "last", tmp_path / "out", names=["trajectories"])
    assert [p.name for p in made.paths] == [
        f"trajectories.{suffix}" for suffix in ("csv", "png", "pdf", "svg")
    ]
    rows = list(csv.DictReader(made.paths[0].read_text().splitlines()))
    assert len(rows) == 18
    (row,) = (r for r in rows if r["run"] == toy.run_id("tcseg", 2) and r["step"] == "2000")
    assert float(row["dsc_percent"]) == pytest.approx(dsc(2000, 2, 0.05))
    assert (row["last"], row["best"], row["unit"], row["cases"]) == ("False", "True", "mm", "2")


def test_unfinished_runs_are_drawn_on_request_as_far_as_they_are(store):
    run, spec = toy.run_id("mt", 4), toy.spec("mt", seed=4)
    content = {"spec": spec, "dataset": "la", "plugins": [], "row": toy.planned(run, spec)}
    store.write_work(run, "spec.json", json.dumps(content))
    store.write_part(run, "cases", 1000, toy.cases(run, {1000: (0.9, 1.0)}))
    assert run not in set(trajectories.trajectories(facts(store))["run"])
    values = trajectories.trajectories(facts(store, partial=True))
    row = values[values["run"] == run].iloc[0]
    assert (row["state"], row["step"], row["last"], row["best"]) == ("unfinished", 1000, True, True)
    assert row["dsc"] == pytest.approx(95)


def test_a_score_without_a_number_is_no_reason_to_draw_nothing(store):
    values = trajectories.trajectories(facts(store)).assign(dsc=np.nan)
    assert trajectories.draw(values).axes[0].get_ylim() == (0, 100)


def test_nothing_finished_says_so(tmp_path):
    store = Store.open(tmp_path / "s", create=True)
    toy.add(store, toy.cases(toy.run_id(), {1000: (0.5,)}), state="failed")
    figure = trajectories.draw(trajectories.trajectories(facts(store)))
    assert "no run has finished yet" in figure.texts[0].get_text().replace("\n", " ")
