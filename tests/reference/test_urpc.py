"""URPC against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from methods.base import Batch, Step
from methods.common import supervised_loss
from methods.urpc import URPC, rectified_consistency
from tests.reference.released import given, halves, objective, slopes, waves


@pytest.fixture(scope="module")
def learner():
    """A network that has learnt something, with dropout off."""
    learner = small_learner(URPC())
    train(learner, make_batch(learner.method, 1), RUN[:10])
    learner.nets.eval()
    return learner


def voxels(logits):
    """Class probabilities of every voxel, as lists."""
    scores = logits.movedim(1, -1).reshape(-1, logits.shape[1]).tolist()
    return [[math.exp(s) / sum(map(math.exp, voxel)) for s in voxel] for voxel in scores]


def by_hand(levels):
    """The consistency term of lists of voxels, one for each level."""
    mean = [
        [sum(classes) / len(levels) for classes in zip(*same, strict=True)]
        for same in zip(*levels, strict=True)
    ]
    total = 0.0
    for level in levels:
        divergences = [
            sum(m * math.log(m / p) for m, p in zip(a, b, strict=True))
            for a, b in zip(mean, level, strict=True)
        ]
        weights = [math.exp(-d) for d in divergences]
        squares = [
            w * (m - p) ** 2
            for w, a, b in zip(weights, mean, level, strict=True)
            for m, p in zip(a, b, strict=True)
        ]
        mean_weight = sum(weights) / len(weights)
        total += sum(squares) / len(squares) / (mean_weight + 1e-8)
        total += sum(divergences) / len(divergences)
    return total / len(levels)


@pytest.mark.parametrize("levels", [2, 4])
def test_each_level_follows_the_mean_as_far_as_it_agrees_with_it(levels):
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(levels, 2, 2, 3, 4, 5, generator=rng, dtype=torch.float64)
    value = rectified_consistency(list(logits)).item()
    assert value == pytest.approx(by_hand([voxels(x) for x in logits]), rel=1e-12)


def test_equal_levels_have_no_loss():
    logits = torch.randn(1, 2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    assert rectified_consistency([logits] * 4).item() == pytest.approx(0, abs=1e-6)


def test_two_levels_of_one_voxel_by_hand():
    certain, unsure = math.log(3), 0.0
    logits = [torch.tensor([0.0, x]).view(1, 2, 1, 1, 1) for x in (certain, unsure)]
    m, p, q = 0.625, 0.75, 0.5
    divergences = [m * math.log(m / r) + (1 - m) * math.log((1 - m) / (1 - r)) for r in (p, q)]
    expected = ((m - p) ** 2 + (m - q) ** 2 + sum(divergences)) / 2
    assert rectified_consistency(logits).item() == pytest.approx(expected, rel=1e-6)


def test_opposite_certainty_is_finite_and_so_is_its_gradient():
    scores = torch.tensor([[200.0, -200.0], [-200.0, 200.0]]).view(2, 1, 2, 1, 1, 1)
    scores.requires_grad_()
    value = rectified_consistency(list(scores))
    value.backward()
    assert value.isfinite()
    assert scores.grad.isfinite().all()


def test_the_mean_carries_gradient():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 2, 2, 2, 2, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: rectified_consistency(list(x)), logits.requires_grad_()
    )


def test_the_terms_are_those_of_all_levels(learner):
    batch = make_batch(learner.method, 0)
    outputs = learner.nets["student"](torch.cat([batch.image, batch.unlabelled]))
    assert len(outputs) == 2
    terms = terms_at(learner, batch, RUN[20])
    supervised = sum(supervised_loss(o.logits[:2], batch.label).item() for o in outputs) / 2
    assert terms["supervised"].value.item() == pytest.approx(supervised, rel=1e-5)
    assert terms["supervised"].weight == 1.0
    expected = by_hand([voxels(o.logits[2:].double()) for o in outputs])
    assert terms["consistency"].value.item() == pytest.approx(expected, rel=1e-4)


def test_the_weight_rises_over_6000_of_20000_steps(learner):
    batch = make_batch(learner.method, 0)
    weights = [
        terms_at(learner, batch, Step(i, 20_000))["consistency"].weight for i in (0, 3_000, 6_000)
    ]
    assert weights == pytest.approx([0.1 * math.exp(-5), 0.1 * math.exp(-1.25), 0.1], rel=1e-6)


def test_the_authors_rate_falls_polynomially_from_a_tenth():
    recipe = URPC.authors
    rates = [recipe.learning_rate_at(Step(i, recipe.steps)) for i in (0, 30_000)]
    assert (recipe.steps, rates) == (60_000, pytest.approx([0.1, 0.1 * 0.5**0.9]))


def test_main_is_the_finest_level_and_mean_that_of_all(learner):
    image = make_batch(learner.method, 0).image
    found = learner.method.predictors(learner.nets)
    finest, coarse = (o.logits.softmax(1) for o in learner.nets["student"](image))
    torch.testing.assert_close(found["main"](image), finest)
    torch.testing.assert_close(found["mean"](image), (finest + coarse) / 2)


@pytest.mark.parametrize(
    ("step", "weight", "loss", "slope"),
    [
        (0, 0.0006737946999, 0.8419715778, 0.01828984998),
        (30_000, 0.02865047969, 0.8519988259, 0.01829505288),
        (59_850, 0.09999687505, 0.8775704046, 0.01835316201),
    ],
)
def test_the_objective_has_the_figure_of_the_released_code(step, weight, loss, slope):
    """HiLab-git/SSL4MIS@06df604, the 3D trainer of this method, lines 128-203, of two classes.

    Its DiceLoss has the weights (0, 2) here, which makes it that of the foreground.
    """
    logits = [waves(4, 2, 6, 5, 4, phase=k).requires_grad_() for k in range(4)]
    image = torch.zeros(2, 1, 6, 5, 4)
    terms = URPC(rampup=1.0).losses(
        torch.nn.ModuleDict({"student": given(*logits)}),
        Batch(image, halves(4, 6, 5, 4, phase=9)[:2], image, {}),
        Step(step, 60_000),
        torch.Generator(),
    )
    assert terms["supervised"].value.item() == pytest.approx(0.84173008, rel=1e-9)
    assert terms["consistency"].value.item() == pytest.approx(0.3584144462, rel=1e-9)
    of_consistency = slopes(terms["consistency"].value, logits)
    assert math.hypot(*of_consistency) == pytest.approx(0.01523218249, rel=1e-9)
    assert terms["consistency"].weight == pytest.approx(weight, rel=1e-9)
    assert objective(terms).item() == pytest.approx(loss, rel=1e-9)
    assert math.hypot(*slopes(objective(terms), logits)) == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("weight", -0.1, "be at least 0"), ("rampup", 1.5, r"lie in \[0, 1\]")],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        URPC(**{name: value})
