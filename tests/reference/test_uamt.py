"""UA-MT against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import factory
from benchmark.seeding import torch_generator
from methods.base import Batch, Step
from methods.common import entropy_threshold, masked_distance, noisy, predictive_entropy
from methods.uamt import UAMT
from tests.reference.released import (
    OneByOne,
    fill,
    given,
    halves,
    in_their_order,
    objective,
    scored,
    slopes,
    sum_and_norm,
    waves,
)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_predictive_entropy_is_minus_the_sum_of_p_log_p(rng):
    p = (3 * torch.randn(2, 3, 2, 3, 4, generator=rng, dtype=torch.float64)).softmax(1)
    entropy = predictive_entropy(p)
    assert entropy.shape == (2, 1, 2, 3, 4)
    expected = [
        -sum(q * math.log(q + 1e-6) for q in voxel)
        for voxel in p.movedim(1, -1).reshape(-1, 3).tolist()
    ]
    assert entropy.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_predictive_entropy_lies_between_certainty_and_a_fair_coin():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).reshape(2, 2, 1, 1, 1)
    assert predictive_entropy(p).flatten().tolist() == pytest.approx([0.0, math.log(2)], abs=1e-5)


def test_the_threshold_rises_over_the_whole_run_to_ln_2():
    start, middle, end = (entropy_threshold(Step(i, 1000)) / math.log(2) for i in (0, 500, 999))
    assert start == pytest.approx(0.75 + 0.25 * math.exp(-5))
    assert middle == pytest.approx(0.75 + 0.25 * math.exp(-1.25))
    assert 0.9999 < end < 1


def test_masked_distance_is_the_mean_over_classes_and_masked_voxels(rng):
    p, q = (torch.rand(2, 2, 3, 3, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(2, 1, 3, 3, 3, generator=rng) < 0.4
    total = count = 0.0
    for b in range(2):
        for i, counts in enumerate(mask[b, 0].flatten().tolist()):
            for k in range(2):
                difference = p[b, k].flatten()[i].item() - q[b, k].flatten()[i].item()
                total += counts * difference**2
                count += counts
    assert masked_distance(p, q, mask).item() == pytest.approx(total / count, rel=1e-12)


def test_masked_distance_of_no_voxels_is_zero_with_a_finite_gradient():
    p = torch.rand(1, 2, 2, 2, 2, requires_grad=True)
    loss = masked_distance(p, torch.rand(1, 2, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2) > 0)
    loss.backward()
    assert loss.item() == 0.0
    assert p.grad.equal(torch.zeros_like(p))


def test_the_terms_are_those_of_eight_passes_and_one_more_for_the_goal():
    learner = small_learner(UAMT())
    train(learner, make_batch(learner.method, 1), RUN[:8])
    learner.nets.eval()
    student, teacher = learner.nets["student"], learner.nets["teacher"]
    batch, step = make_batch(learner.method, 0), RUN[20]
    terms = terms_at(learner, batch, step)

    rng = torch_generator(learner.seed, "noise", step.index)
    goal = teacher(noisy(batch.unlabelled, 0.1, 0.2, rng)).logits.softmax(1)
    passes = []
    for _ in range(4):
        disturbed = noisy(torch.cat([batch.unlabelled] * 2), 0.1, 0.2, rng)
        passes += teacher(disturbed).logits.softmax(1).split(len(batch.unlabelled))
    mean = sum(passes) / len(passes)
    assert len(passes) == 8
    fraction = 0.75 + 0.25 * math.exp(-5 * 0.5**2)
    sure = -(mean * (mean + 1e-6).log()).sum(1) < fraction * math.log(2)
    assert 0 < sure.sum() < sure.numel()
    distance = (student(batch.unlabelled).logits.softmax(1) - goal).square().sum(1)
    expected = distance[sure].mean() / 2
    torch.testing.assert_close(terms["consistency"].value, expected)
    assert terms["consistency"].weight == 0.1


def test_the_teacher_moves_as_a_mean_teacher():
    learner = small_learner(UAMT())
    train(learner, make_batch(learner.method, 0), RUN[:1])
    for a, b in zip(*(n.parameters() for n in learner.nets.values()), strict=True):
        assert a.equal(b)
    before = [p.clone() for p in learner.nets["teacher"].parameters()]
    train(learner, make_batch(learner.method, 0), RUN[1:2])
    for old, new, source in zip(
        before, *(learner.nets[n].parameters() for n in ("teacher", "student")), strict=True
    ):
        torch.testing.assert_close(new, 0.5 * old + 0.5 * source)


def test_the_network_has_the_figure_of_the_released_code():
    """yulequan/UA-MT@88ed29a, code/networks/vnet.py, VNet with batch normalisation, 2 filters."""
    net = factory(0, channels=1, width=2, levels=5, dropout=0.0)().double()
    fill(in_their_order(net.encoder, net.decoder))
    with torch.no_grad():
        logits = net(waves(2, 1, 16, 32, 16)).logits
    assert sum_and_norm(logits) == pytest.approx((-102449.0057, 871.7926307), rel=1e-9)


def test_the_authors_recipe_drops_the_rate_after_2500_and_5000_of_6000_steps():
    recipe = UAMT.authors
    rates = [recipe.learning_rate_at(Step(i, recipe.steps)) for i in (2499, 2500, 4999, 5000, 5999)]
    assert rates == pytest.approx([1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(
    ("step", "distance", "weight", "loss", "slope"),
    [
        (0, 0.2640079541, 0.0006737946999, 0.6152545769, 0.03279981345),
        (3000, 0.2270141949, 0.02865047969, 0.6215807554, 0.03280387856),
        (5850, 0.2097753333, 0.09968798777, 0.6359887706, 0.0328223902),
    ],
    ids=["40 of 240 voxels are sure", "61 are", "228 are"],
)
def test_the_objective_has_the_figure_of_the_released_code(step, distance, weight, loss, slope):
    """yulequan/UA-MT@88ed29a, code/train_LA_meanteacher_certainty_unlabel.py, lines 140-177."""
    logits = waves(4, 2, 6, 5, 4).requires_grad_()
    goal = waves(2, 2, 6, 5, 4, phase=1)
    passes = [waves(4, 2, 6, 5, 4, phase=2 + 0.3 * k) for k in range(4)]
    image = torch.zeros(2, 1, 6, 5, 4)
    terms = UAMT(rampup=1.0).losses(
        torch.nn.ModuleDict(
            {"student": given(logits), "teacher": OneByOne(*map(scored, (goal, *passes)))}
        ),
        Batch(image, halves(4, 6, 5, 4, phase=9)[:2], image, {}),
        Step(step, 6000),
        torch.Generator(),
    )
    assert terms["supervised"].value.item() == pytest.approx(0.6150766898, rel=1e-9)
    assert terms["consistency"].value.item() == pytest.approx(distance, rel=1e-9)
    assert terms["consistency"].weight == pytest.approx(weight, rel=1e-9)
    assert objective(terms).item() == pytest.approx(loss, rel=1e-9)
    assert slopes(objective(terms), [logits]) == pytest.approx([slope], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("weight", -0.1, "be at least 0"),
        ("rampup", -0.5, r"lie in \[0, 1\]"),
        ("decay", 2.0, r"lie in \[0, 1\]"),
        ("noise_std", -1.0, "be at least 0"),
        ("noise_limit", -1.0, "be at least 0"),
        ("passes", 0, "be at least 2"),
        ("passes", 7, "be even"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        UAMT(**{name: value})
