"""What one run is: everything that decides its numbers is in its id, and nothing else."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from benchmark.data.base import Geometry
from benchmark.profiles import PROFILES
from benchmark.spec import (
    RunSpec,
    canonical_json,
    method_for,
    override,
    parse_overrides,
    parse_seeds,
    recipe_of,
    spec_from_canonical,
)
from methods import METHODS
from methods.base import Recipe
from methods.dtc import DTC
from methods.mean_teacher import MeanTeacher
from methods.tcseg import TCSeg
from results.errors import UserError

KNOWN = {m.name: m for m in METHODS}


def make_spec(**changes: object) -> RunSpec:
    spec = RunSpec(
        method=TCSeg(),
        recipe=Recipe(),
        dataset="la",
        fingerprint="f" * 64,
        geometry=Geometry(patch=(40, 40, 24), stride=(24, 24, 16), scale=0.5),
        augmentation="rotflip",
        labelled=8,
        seed=0,
        profile=PROFILES["mini"],
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": TCSeg(tau=0.06)},
        {"method": MeanTeacher()},
        {"recipe": Recipe(learning_rate=0.02)},
        {"dataset": "pancreas"},
        {"fingerprint": "e" * 64},
        {"geometry": Geometry(patch=(40, 40, 24), stride=(24, 24, 16), scale=0.4)},
        {"augmentation": "crop"},
        {"labelled": 16},
        {"seed": 1},
        {"profile": PROFILES["paper"]},
        {"profile": replace(PROFILES["mini"], steps=900)},
        {"predictors": ("main", "teacher")},
    ],
    ids=str,
)
def test_whatever_changes_the_numbers_changes_the_id(changes: dict[str, object]) -> None:
    assert make_spec(**changes).run_id != make_spec().run_id


def test_how_often_a_run_is_saved_does_not_change_its_id() -> None:
    rarely = replace(PROFILES["mini"], checkpoint_every=500)
    assert make_spec(profile=rarely).run_id == make_spec().run_id


def test_ids_are_readable_and_safe_as_file_names() -> None:
    for dataset in ("la", "../../etc/passwd", "A Very Long Name " * 9):
        assert re.fullmatch(r"[a-z0-9-]{1,64}", make_spec(dataset=dataset).run_id)
    assert make_spec().run_id.startswith("tcseg-la-8-s0-mini-")


@pytest.mark.parametrize("method", METHODS)
def test_a_spec_comes_back_from_its_canonical_form(method: type) -> None:
    spec = make_spec(method=method())
    described = json.loads(canonical_json(spec.canonical()))
    assert spec_from_canonical(described, KNOWN).run_id == spec.run_id


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(engine=99), "engine version 99"),
        (lambda d: d["method"].update(version=99), "tcseg version 99"),
        (lambda d: d["method"]["hyperparameters"].pop("tau"), r"hyperparameters .* changed"),
        (lambda d: d["method"].update(name="tcsge"), "Did you mean 'tcseg'"),
    ],
)
def test_a_run_of_another_version_is_not_continued(change: object, said: str) -> None:
    described = json.loads(canonical_json(make_spec().canonical()))
    change(described)  # type: ignore[operator]
    with pytest.raises(UserError, match=said):
        spec_from_canonical(described, KNOWN)


def test_labels_show_what_differs_from_the_defaults() -> None:
    spec = make_spec(profile=replace(PROFILES["mini"], steps=500), method=TCSeg(tau=0.1))
    assert spec.profile_label == "mini+steps=500"
    assert spec.recipe_label == "common"
    assert spec.changed() == {"tau": 0.1}


def test_the_paper_profile_is_the_papers() -> None:
    paper = PROFILES["paper"]
    steps = paper.evaluated(paper.steps)
    assert (paper.steps, len(steps), steps[0], steps[1], steps[-1]) == (
        20_000,
        76,
        5_000,
        5_200,
        20_000,
    )


def test_the_last_step_is_always_evaluated() -> None:
    assert replace(PROFILES["mini"], evaluate_every=300).evaluated(1000) == (500, 800, 1000)
    assert replace(PROFILES["mini"], steps=40).evaluated(40) == (40,)


def test_a_shorter_recipe_is_evaluated_as_often_as_the_profile() -> None:
    spec = make_spec(method=DTC(), recipe=recipe_of(DTC, "authors"))
    assert len(spec.evaluated) == len(make_spec().evaluated) == 11
    assert spec.evaluated[0] == 150
    assert spec.evaluated[-1] == 300


def test_opt_in_numerics_are_part_of_a_runs_identity_and_older_runs_keep_theirs() -> None:
    spec = make_spec()
    assert not {"channels_last", "compile"} & set(spec.canonical()["profile"])
    changes = ({"channels_last": True}, {"compile": True}, {"precision": "exact"})
    others = [replace(spec, profile=replace(spec.profile, **c)) for c in changes]
    assert len({s.run_id for s in (spec, *others)}) == 4
    assert others[1].profile_label == f"{spec.profile.name}+compile=True"
    for other in others:
        assert spec_from_canonical(other.canonical(), KNOWN) == other


def test_an_authors_recipe_is_scaled_to_the_profile() -> None:
    spec = make_spec(method=DTC(), recipe=recipe_of(DTC, "authors"))
    assert spec.steps == 300
    assert replace(spec, profile=PROFILES["paper"]).steps == 6_000


def test_with_the_authors_recipe_come_the_hyperparameters_that_they_set() -> None:
    assert method_for(DTC, "common") == DTC()
    assert method_for(DTC, "authors") == DTC(rampup=1.0)
    assert method_for(MeanTeacher, "authors") == MeanTeacher()
    spec = make_spec(method=method_for(DTC, "authors"), recipe=recipe_of(DTC, "authors"))
    assert spec.changed() == {"rampup": 1.0}


@pytest.mark.parametrize("cls", [m for m in METHODS if "rampup" in m.with_authors])
def test_the_authors_ramp_up_ends_after_6000_of_their_steps_or_with_the_run(cls) -> None:
    """The field ramps over 40 units of 150 steps; SSL4MIS and its kin over the whole run."""
    steps = cls.with_authors["rampup"] * cls.authors.steps
    assert steps == pytest.approx(6_000) or cls.with_authors["rampup"] == 1.0


@pytest.mark.parametrize(
    ("text", "seeds"), [("5", (0, 1, 2, 3, 4)), ("0,1,7", (0, 1, 7)), ("3,", (3,))]
)
def test_seeds_are_a_count_or_a_list(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "-1", "a", "1,1", "", ",", "1,-2", "2.5"])
def test_seeds_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected a count such as 5"):
        parse_seeds(text)


def test_settings_are_read_as_the_type_of_what_they_set() -> None:
    texts = ["tcseg.tau=0.1", "tcseg.use_feature=false", "profile.steps=500"]
    parsed = parse_overrides(texts, KNOWN)
    method = override(TCSeg(), "tcseg", parsed["tcseg"])
    assert (method.tau, method.use_feature) == (0.1, False)
    assert override(PROFILES["mini"], "profile", parsed["profile"]).steps == 500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tau=0.1", "expected OWNER.NAME=VALUE"),
        ("tcsge.tau=0.1", "Did you mean 'tcseg'"),
        ("tcseg.tua=0.1", "Did you mean 'tau'"),
        ("tcseg.tau=big", "expected a value of type float"),
        ("tcseg.use_feature=maybe", "expected a value of type bool"),
        ("tcseg.tau=-1", "tau"),
        ("profile.steps=0", "steps=0"),
        ("profile.precision=fp8", "known: fp32"),
        ("recipe.schedule=cosine", "known: constant"),
        ("recipe.learning_rate=0", "above 0"),
        ("profile.name=x", "unknown setting"),
    ],
)
def test_settings_that_make_no_sense_are_refused(text: str, said: str) -> None:
    def read() -> None:
        for owner, values in parse_overrides([text], KNOWN).items():
            base = {"profile": PROFILES["mini"], "recipe": Recipe()}.get(owner) or KNOWN[owner]()
            override(base, owner, values)

    with pytest.raises(UserError, match=said):
        read()


def test_the_same_setting_twice_is_refused() -> None:
    with pytest.raises(UserError, match="given twice"):
        parse_overrides(["tcseg.tau=0.1", "tcseg.tau=0.2"], KNOWN)


def test_a_method_without_a_recipe_of_its_own_says_what_there_is() -> None:
    with pytest.raises(UserError, match="Known: common"):
        recipe_of(MeanTeacher, "authors")


@pytest.mark.parametrize(
    "milestones", [(math.nan,), (math.inf,), (-1.0,), (0.0,), (1.0,), (0.5, 0.5), (0.7, 0.3)]
)
def test_milestones_are_fractions_that_rise(milestones: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="milestones="):
        Recipe(schedule="step", milestones=milestones)


def test_schedules_are_what_they_say() -> None:
    from methods.base import Step

    step = Recipe(schedule="step", milestones=(0.5, 0.75))
    rates = [step.learning_rate_at(Step(i, 4)) for i in range(4)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.0001])
    assert Recipe().learning_rate_at(Step(3, 4)) == 0.01
    poly = Recipe(schedule="poly").learning_rate_at(Step(1, 2))
    assert poly == pytest.approx(0.01 * 0.5**0.9)
