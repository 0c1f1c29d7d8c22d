"""Each method's terms along a short run on one batch: numbers that change only with `version`.

The run is in double precision and without dropout, so that other processors agree. To record a new
method, or one whose `version` was raised: `python tests/golden/test_golden.py NAME ...`
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmark.miniature import STEPS, DeclaredExtras, make_batch, small_learner, terms_at, train
from methods import METHODS
from methods.base import Batch, Method

HERE = Path(__file__).parent


def record(method: Method) -> dict:
    """Value, weight and player of every term at the start, middle and end of a run of three steps.

    An optimiser step and `after_step` lie between two of them.
    """
    learner = small_learner(method, seed=0, dropout=0.0)
    learner.nets.double()
    batch = doubled(make_batch(method, 0))
    steps = []
    for step in STEPS:
        terms = terms_at(learner, batch, step)
        steps.append({n: [t.value.item(), float(t.weight), t.player] for n, t in terms.items()})
        train(learner, batch, [step])
    return {"version": method.version, "steps": steps}


def doubled(batch: Batch) -> Batch:
    """The batch in double precision."""
    return dataclasses.replace(
        batch,
        image=batch.image.double(),
        unlabelled=batch.unlabelled.double(),
        extras=DeclaredExtras(
            {n: x.double() if x.is_floating_point() else x for n, x in batch.extras.items()}
        ),
    )


def compare(recorded: dict, now: dict, name: str) -> None:
    """Fail, saying what to do, unless both are the same run of the same version."""
    what_to_do = f"then record it: python tests/golden/test_golden.py {name}"
    assert now["version"] == recorded["version"], (
        f"{name} is at version {now['version']}, its record at {recorded['version']}; if that is "
        f"meant, {what_to_do}"
    )
    for place, (old, new) in enumerate(zip(recorded["steps"], now["steps"], strict=True)):
        assert set(new) == set(old), f"{name} has other terms: raise its `version`, {what_to_do}"
        for term, (value, weight, player) in old.items():
            assert (new[term][:2], new[term][2]) == (
                pytest.approx([value, weight], rel=1e-5, abs=1e-12),
                player,
            ), (
                f"term {term!r} of {name} has changed (step {place}). If that is meant, raise its "
                f"`version`, {what_to_do}"
            )


@pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.name)
def test_terms_are_those_recorded_for_this_version(cls):
    path = HERE / f"{cls.name}.json"
    assert path.exists(), f"record it first: python tests/golden/test_golden.py {cls.name}"
    compare(json.loads(path.read_text()), record(cls()), cls.name)


def test_every_record_belongs_to_a_method():
    assert {path.stem for path in HERE.glob("*.json")} == {cls.name for cls in METHODS}


@pytest.mark.parametrize(
    ("version", "term", "message"),
    [
        (1, [1.00002, 0.1, "main"], "raise its `version`"),
        (1, [1.0, 0.2, "main"], "raise its `version`"),
        (1, [1.0, 0.1, "critic"], "raise its `version`"),
        (2, [1.0, 0.1, "main"], "mt is at version 2, its record at 1"),
    ],
)
def test_a_change_is_noticed(version, term, message):
    recorded = {"version": 1, "steps": [{"consistency": [1.0, 0.1, "main"]}]}
    with pytest.raises(AssertionError, match=message):
        compare(recorded, {"version": version, "steps": [{"consistency": term}]}, "mt")


def test_a_missing_term_is_noticed():
    recorded = {"version": 1, "steps": [{"consistency": [1.0, 0.1, "main"]}]}
    with pytest.raises(AssertionError, match="mt has other terms"):
        compare(recorded, {"version": 1, "steps": [{}]}, "mt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for cls in METHODS:
        if cls.name in sys.argv[1:]:
            (HERE / f"{cls.name}.json").write_text(json.dumps(record(cls()), indent=1) + "\n")
