"""The paper's scale, for real: two steps and one whole volume of LA on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.data import source_for
from benchmark.evaluation import Evaluator, reference_cache
from benchmark.inference import count_windows
from benchmark.runner import build_learner, build_sampler, chosen_predictors, load_world
from benchmark.trainer import evaluating, train
from tests.engine.toy import plan

LA = Path(__file__).resolve().parents[3] / "shared" / "data" / "la"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not LA.is_dir(), reason=f"needs LA volumes in {LA}")
def test_two_steps_and_one_volume_at_the_papers_sizes(tmp_path: Path) -> None:
    source_for("la").prepare(LA, tmp_path, lambda done, total, what: None)
    made = plan(LA, tmp_path, tmp_path / "store", "supervised", sources=["la"], profile="paper")
    (job,) = made.jobs
    spec = job.spec
    assert (spec.geometry.patch, spec.geometry.stride) == ((112, 112, 80), (18, 18, 4))
    assert (spec.profile.width, spec.steps, len(spec.evaluated)) == (16, 20_000, 76)
    assert "partial" in job.label

    device = torch.device("cpu")
    world = load_world(spec, "la", tmp_path)
    learner = build_learner(spec, 1, device)
    assert sum(p.numel() for p in learner.nets.parameters()) == 9_448_866
    batch = build_sampler(spec, world, device)(0)
    assert batch.image.shape == (2, 1, 112, 112, 80)
    rows = train(learner, build_sampler(spec, world, device), 0, 2, lambda done: None)
    assert len(rows) == 1
    assert np.isfinite(rows[0].value)

    def windows(case: str) -> int:
        x, y, z = world.volumes[case].label.shape
        return count_windows((x, y, z), spec.geometry.patch, spec.geometry.stride)

    case = min(world.evaluated["test"], key=windows)
    assert 27 <= windows(case) <= 96
    seconds: list[float] = []
    evaluator = Evaluator(world.volumes, spec.geometry, device, 1, seconds.append)
    with evaluating(learner.nets):
        predictors = chosen_predictors(spec, learner)
        references = reference_cache(world.volumes)
        predictions = evaluator.predictions(predictors, {"test": (case,)}, 2)
        (row,) = evaluator.cases(predictions, references)
    truth = int(world.volumes[case].label.sum())
    assert len(seconds) == 1
    assert row["tp"] + row["fn"] == truth
    assert row["voxels"] == world.volumes[case].label.size
    assert row["dsc"] == 2 * row["tp"] / (2 * row["tp"] + row["fp"] + row["fn"])
