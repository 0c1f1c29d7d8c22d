"""Cases to look at: which are shown, what is drawn where, and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from reports.facts import Options, load_facts
from reports.scan import Scan
from reports.slices import choose_cases, draw, shown_runs, views, write_slices
from reports.surface import coloured, frame, shaded
from results.errors import UserError
from results.predictions import columns_of
from results.store import Store
from tests.protocols import toy

SHAPE, SPACING = (16, 14, 9), (1.0, 0.5, 3.0)
CASES = [f"case{n}" for n in range(4)]
LEVELS = {"mt": 0.6, "tcseg": 0.8}


def ball(shape=SHAPE, spacing=SPACING, radius=3.0, centre=(8.0, 3.5, 13.5)):
    """Voxels whose centre is within `radius` of `centre`, both as spacing is."""
    grid = np.indices(shape) + 0.5
    distances = [(g * s - c) ** 2 for g, s, c in zip(grid, spacing, centre, strict=True)]
    return np.sum(distances, axis=0) < radius**2


def scan(dataset, case):
    noise = np.random.default_rng(CASES.index(case) if case in CASES else 9).normal(size=SHAPE)
    return Scan((noise + 3 * ball()).astype(np.float32), ball(), SPACING)


def add(store, method, seed, *, keeps=True, cases=CASES, mask=None, tag="0", **spec):
    """A run whose DSC of case n at step s is level + 0.01 (seed + 2 n) + s / 100000."""
    run = toy.run_id(method, seed, tag=tag)
    level = LEVELS.get(method, 0.5) + 0.01 * seed
    scores = {s: [level + 0.02 * n + s / 1e5 for n in range(len(cases))] for s in (1000, 3000)}
    rows = toy.cases(run, scores)
    rows["case"] = rows["case"].map(dict(zip(CASES, cases, strict=False)))
    tables = toy.tables(rows)
    if keeps:
        keys = {"run": run, "step": 3000, "predictor": "main", "split": "test"}
        shrunk = ball(radius=2.5) if mask is None else mask
        kept = [keys | {"case": case} | columns_of(shrunk) for case in cases]
        tables["predictions"] = pd.DataFrame(kept)
    store.commit(run, tables, toy.record(run, toy.spec(method, seed=seed, **spec)), {"seconds": 1})
    return run


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture
def full(store):
    for method in LEVELS:
        for seed in range(4):
            add(store, method, seed)
    return store


def facts_of(store, protocol="last", **options):
    return load_facts(store, protocol, "tcseg", options=Options(**{"scan": scan, **options}))


# What is shown


def test_a_store_of_failed_runs_alone_is_one_clear_message(store):
    run = toy.run_id("mt")
    rows = toy.cases(run, {1000: [0.1]})
    toy.add(store, rows, toy.spec("mt"), state="failed")
    with pytest.raises(UserError, match="keep"):
        list(views(facts_of(store)))


def test_of_each_method_the_median_run_is_shown(full):
    shown = shown_runs(facts_of(full)).set_index("label")
    for method in LEVELS:
        assert shown.loc[method, "run"] == toy.run_id(method, 1)
        assert (shown.loc[method, "kept"], shown.loc[method, "started"]) == (4, 4)
        assert shown.loc[method, "step"] == 3000


def test_the_median_is_of_the_runs_that_keep_predictions_and_the_figure_says_so(store):
    for seed in range(4):
        add(store, "mt", seed, keeps=seed > 1)
        add(store, "tcseg", seed)
        add(store, "uamt", seed, keeps=False)
    facts = facts_of(store)
    shown = shown_runs(facts).set_index("label")
    assert shown.loc["mt", "run"] == toy.run_id("mt", 2)
    assert shown.loc["uamt", "run"] == ""
    first, *_ = views(facts)
    said = " ".join(first.notes)
    assert "(tcseg 4 of 4, mt 2 of 4 runs)" in said
    assert "Not shown, as no finished run of theirs keeps predictions: uamt." in said
    assert [m.label for m in first.methods] == ["tcseg", "mt"]


def test_best_median_and_worst_case_are_shown_with_their_numbers(full):
    found = list(views(facts_of(full)))
    assert [v.case for v in found] == ["case3", "case1", "case0"]
    for view, word in zip(found, ("best", "median", "worst"), strict=True):
        assert f"{view.case}: {word} of 4 test cases by mean DSC over methods" in view.title
        n = CASES.index(view.case)
        for method in view.methods:
            dsc = LEVELS[method.label] + 0.01 + 0.02 * n + 0.03
            assert method.caption == f"seed 1, DSC {100 * dsc:.1f} %"


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_cases_are_chosen_by_their_mean_over_methods(n):
    rng = np.random.default_rng(n)
    rows = pd.DataFrame(
        [{"case": f"c{c}", "dsc": rng.random()} for c in range(n) for _ in range(3)]
    )
    chosen = choose_cases(rows.sample(frac=1, random_state=1))
    means = sorted((rows[rows["case"] == f"c{c}"]["dsc"].mean(), f"c{c}") for c in range(n))
    wanted = [means[-1][1], means[(n - 1) // 2][1], means[0][1]]
    assert list(chosen) == list(dict.fromkeys(wanted))
    assert choose_cases(rows.assign(dsc=np.nan)) == {}


def test_cases_that_are_asked_for_are_shown(full):
    found = list(views(facts_of(full, cases=("case2", "case0"))))
    assert [v.case for v in found] == ["case2", "case0"]
    assert found[0].title[0] == "case2"


def test_a_setting_without_a_case_that_is_asked_for_is_named(full):
    add(full, "mt", 0, tag="x", labelled=16, cases=("other1", "other2", "other3"))
    (view,) = views(facts_of(full, cases=("case0",)))
    (said,) = [note for note in view.notes if "No test case of" in note]
    assert "16 labelled" in said
    assert said.endswith("not shown for it: case0.")


def test_every_setting_has_its_own_figures(full):
    add(full, "mt", 0, tag="x", labelled=16)
    titles = [v.title[1] for v in views(facts_of(full, cases=("case0",)))]
    assert len(titles) == len(set(titles)) == 2


def test_of_several_predictors_the_one_that_the_protocol_picked_is_shown(store):
    run = toy.run_id()
    rows = [toy.cases(run, {3000: (d, d)}, predictor=p) for p, d in (("main", 0.5), ("mean", 0.7))]
    kept = [
        {"run": run, "step": 3000, "predictor": p, "split": "test", "case": c} | columns_of(m)
        for p, m in (("main", ball(radius=2.0)), ("mean", ball(radius=2.5)))
        for c in ("case0", "case1")
    ]
    tables = toy.tables(pd.concat(rows)) | {"predictions": pd.DataFrame(kept)}
    content = toy.spec(predictors=["main", "mean"])
    store.commit(run, tables, toy.record(run, content), {"seconds": 1})
    for protocol, caption, radius in (
        ("last", "seed 0, DSC 50.0 %", 2.0),
        ("best(predictors=all)", "seed 0, mean, DSC 70.0 %", 2.5),
    ):
        (method,) = next(iter(views(facts_of(store, protocol)))).methods
        assert method.caption == caption
        np.testing.assert_array_equal(method.mask, ball(radius=radius))


def test_where_checkpoints_are_averaged_the_last_is_shown_and_the_figure_says_so(full):
    view = next(iter(views(facts_of(full, "last-k(k=2)"))))
    assert "(the last of the checkpoints that it averages)" in view.notes[0]


# What is drawn


def test_panels_have_the_proportions_of_the_body_and_outlines_lie_on_its_border(store):
    box = np.zeros(SHAPE, dtype=bool)
    box[4:10, 3:11, 2:6] = True
    add(store, "mt", 0, mask=box)
    (view,) = views(facts_of(store, cases=("case0",)))
    figure = draw(replace(view, scan=replace(view.scan, label=box)))
    figure.draw_without_rendering()
    low, high = np.array([4, 3, 2]) * SPACING, np.array([10, 11, 6]) * SPACING
    panels = figure.axes
    assert len(panels) == 2 * 4
    for row in (0, 1):
        for column, (right, up) in enumerate(((0, 1), (0, 2), (1, 2))):
            axes = panels[4 * row + column]
            size = [SHAPE[a] * SPACING[a] for a in (right, up)]
            assert axes.images[0].get_extent() == [0, size[0], 0, size[1]]
            drawn = axes.get_window_extent()
            across, along = np.diff(axes.get_xlim())[0], np.diff(axes.get_ylim())[0]
            assert drawn.width / drawn.height == pytest.approx(across / along, rel=1e-3)
            assert len(axes.collections) == 1 + row
            for contour in axes.collections:
                corners = contour.get_paths()[0].vertices
                np.testing.assert_allclose(corners.min(axis=0), low[[right, up]])
                np.testing.assert_allclose(corners.max(axis=0), high[[right, up]])


def test_nothing_that_a_method_segments_lies_outside_the_panels(store):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[0, 0, 0] = mask[-1, -1, -1] = True
    add(store, "mt", 0, mask=mask)
    (view,) = views(facts_of(store, cases=("case0",)))
    first = draw(view).axes[0]
    assert (first.get_xlim(), first.get_ylim()) == ((0, 16), (0, 7))


def test_an_empty_prediction_says_so(store):
    add(store, "mt", 0, mask=np.zeros(SHAPE, dtype=bool))
    (view,) = views(facts_of(store, cases=("case0",)))
    panels = draw(view).axes
    assert [t.get_text() for t in panels[-1].texts] == ["empty"]
    assert len(panels[4].collections) == 1


def test_the_same_store_gives_the_same_bytes_in_whatever_order_it_was_filled(full, tmp_path):
    other = Store.open(tmp_path / "other", create=True)
    for seed in (3, 1, 0, 2):
        for method in reversed(LEVELS):
            add(other, method, seed, cases=CASES)
    one, two = (
        write_slices(facts_of(s, cases=("case1",)), tmp_path / name)
        for s, name in ((full, "a"), (other, "b"))
    )
    assert {p.name for p in one} >= {"slices-last-1-case1.png", "slices-last-1-case1.pdf"}
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_names_are_text_and_never_paths_or_mathematics(store, tmp_path):
    strange = "../$x_1$ <b>&é"
    add(store, "mt", 0, cases=[strange])
    paths = write_slices(facts_of(store, cases=(strange,)), tmp_path / "out")
    assert {p.parent for p in paths} == {tmp_path / "out"}
    assert all(re.fullmatch(r"slices-last-1-[a-z0-9-]+\.[a-z]+", p.name) for p in paths)


# The surface


def test_a_ball_is_a_lit_disc_whatever_the_spacing():
    shadows = []
    for shape, spacing in (((48, 48, 48), (1, 1, 1)), ((96, 48, 24), (0.5, 1, 2))):
        mask = ball(shape, spacing, 16.0, (24, 24, 24))
        camera = frame(mask, spacing)
        picture = shaded(mask, spacing, camera, 96)
        seen = np.isfinite(picture)
        assert camera.centre == pytest.approx((24, 24, 24), abs=0.5)
        area = seen.sum() * (2 * camera.half_side / 96) ** 2
        assert area == pytest.approx(np.pi * 16**2, rel=0.06)
        assert not seen[[0, -1]].any()
        assert not seen[:, [0, -1]].any()
        assert np.nanmin(picture) >= 0
        assert np.nanmax(picture) <= 1
        assert np.nanmean(picture[:48, :48]) > 1.3 * np.nanmean(picture[48:, 48:])
        shadows.append(seen)
    assert (shadows[0] != shadows[1]).mean() < 0.03


def test_what_is_nearer_hides_what_is_behind():
    near, far = np.zeros((2, 30, 30, 30), dtype=bool)
    near[22:26, 10:20, 12:22] = True
    far[0:2, 0:4, 0:2] = True  # on the line from the camera through the middle of `near`
    camera = frame(np.ones_like(near), (1, 1, 1))
    alone, hidden, both = (shaded(m, (1, 1, 1), camera, 64) for m in (near, far, near | far))
    assert np.isfinite(alone[np.isfinite(hidden)]).all()
    np.testing.assert_allclose(both, alone, atol=1e-6)


def test_up_is_up_and_a_single_voxel_is_seen():
    mask = np.zeros((20, 20, 20), dtype=bool)
    camera = frame(~mask, (1, 1, 1))
    rows = []
    for z in (1, 18):
        one = mask.copy()
        one[10, 10, z] = True
        rows.append(np.argwhere(np.isfinite(shaded(one, (1, 1, 1), camera, 64)))[:, 0].mean())
    assert rows[1] < rows[0]


def test_an_empty_mask_shows_nothing_and_what_shows_nothing_is_clear():
    mask = np.zeros((4, 4, 4), dtype=bool)
    picture = coloured(shaded(mask, (1, 1, 1), frame(mask, (1, 1, 1)), 16), "#0072B2")
    assert picture.shape == (16, 16, 4)
    assert not picture[..., 3].any()


# What is refused


def test_a_store_without_predictions_says_how_to_keep_them(store):
    add(store, "mt", 0, keeps=False)
    with pytest.raises(UserError, match=r"keeps predictions.*--keep-predictions last"):
        list(views(facts_of(store)))


def test_checkpoints_without_predictions_say_how_to_keep_them(store):
    run = toy.run_id("mt", 0)
    add(store, "mt", 0)
    rows = toy.cases(run, {1000: (0.9,), 3000: (0.5,)}).replace({"case": {"case0": "case1"}})
    other = toy.run_id("uamt", 0)
    kept = store.read("predictions").astype({"run": object}).assign(run=other)
    tables = {**toy.tables(rows.assign(run=other)), "predictions": kept}
    store.commit(other, tables, toy.record(other, toy.spec("uamt")), {})
    with pytest.raises(UserError, match=r"of step 3000, not 1000; .*--keep-predictions all"):
        list(views(facts_of(store, "best")))


def test_an_unknown_case_is_named_with_the_nearest(full):
    with pytest.raises(UserError, match=r"unknown test case 'case9'\. Did you mean 'case"):
        list(views(facts_of(full, cases=("case0", "case9"))))


def test_predictions_of_another_shape_are_refused(store):
    run = add(store, "mt", 0, mask=np.ones((16, 14, 8), dtype=bool))
    message = f"run {run} for case case0 has 16 x 14 x 8 voxels, its volume 16 x 14 x 9"
    with pytest.raises(UserError, match=message):
        list(views(facts_of(store, cases=("case0",))))


def test_without_images_it_says_where_they_would_be_named(full):
    with pytest.raises(UserError, match=r"needs the images.*--data"):
        list(views(facts_of(full, scan=None)))


def test_a_case_whose_prediction_is_missing_is_named(store):
    add(store, "mt", 0)
    run = toy.run_id("mt", 1)
    rows = toy.cases(run, {3000: (0.1, 0.2)})
    kept = store.read("predictions").astype({"run": object}).assign(run=run).iloc[:1]
    tables = {**toy.tables(rows), "predictions": kept}
    store.commit(run, tables, toy.record(run, toy.spec(seed=1)), {})
    with pytest.raises(UserError, match=f"predictions of run {run} hold no case case1"):
        list(views(facts_of(store, cases=("case1",))))
