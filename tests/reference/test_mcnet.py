"""MC-Net and MC-Net+ against their formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import factory
from methods.base import Batch, Step
from methods.common import linear_dice_loss, mutual_consistency
from methods.mcnet import MCNet, MCNetPlus
from tests.reference.released import (
    fill,
    given,
    halves,
    in_their_order,
    objective,
    slopes,
    sum_and_norm,
    waves,
)


@pytest.fixture(scope="module", params=[MCNet, MCNetPlus], ids=lambda c: c.name)
def learner(request):
    """A network that has learnt something, with dropout off."""
    learner = small_learner(request.param())
    train(learner, make_batch(learner.method, 1), RUN[:10])
    learner.nets.eval()
    return learner


def probabilities(logits):
    """Class probabilities of every voxel, as lists of two."""
    scores = logits.movedim(1, -1).reshape(-1, 2).tolist()
    return [[math.exp(s) / sum(map(math.exp, voxel)) for s in voxel] for voxel in scores]


def sharpened(p, temperature):
    a, b = p ** (1 / temperature), (1 - p) ** (1 / temperature)
    return a / (a + b)


def pairwise(decoders, temperature):
    """Sum over ordered pairs of the mean over voxels and both classes."""
    total = 0.0
    for i, learning in enumerate(decoders):
        for j, teaching in enumerate(decoders):
            if i != j:
                squares = [
                    (p - sharpened(q, temperature)) ** 2
                    for a, b in zip(learning, teaching, strict=True)
                    for p, q in zip(a, b, strict=True)
                ]
                total += sum(squares) / len(squares)
    return total


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("decoders", [2, 3])
def test_each_decoder_follows_the_sharpened_others(decoders, temperature):
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(decoders, 2, 2, 3, 4, 5, generator=rng, dtype=torch.float64)
    value = mutual_consistency([x[:, 1] - x[:, 0] for x in logits], temperature).item()
    expected = pairwise([probabilities(x) for x in logits], temperature)
    assert value == pytest.approx(expected, rel=1e-12)


def test_certain_and_equal_decoders_have_no_loss_and_doubtful_ones_have():
    sure, unsure = torch.full((2, 3), 60.0), torch.full((2, 3), 1.0)
    assert mutual_consistency([sure, sure], 0.1).item() == 0.0
    assert mutual_consistency([unsure, unsure], 0.1).item() > 0.1


def test_the_gradient_is_finite_where_powers_of_probabilities_would_not_be():
    odds = torch.tensor([[-300.0, 0.0, 300.0], [300.0, -300.0, 0.0]], requires_grad=True)
    mutual_consistency([odds[0], odds[1]], 0.1).backward()
    assert odds.grad.isfinite().all()


def test_the_sharpened_target_carries_gradient():
    follower, target = torch.zeros(1), torch.full((1,), 0.1, requires_grad=True)
    value = mutual_consistency([follower, target], 0.1)
    [gradient] = torch.autograd.grad(value, target)

    def at(z):
        p = 1 / (1 + math.exp(-z))
        return (0.5 - sharpened(p, 0.1)) ** 2 + (p - 0.5) ** 2

    slope = (at(0.1 + 1e-6) - at(0.1 - 1e-6)) / 2e-6
    assert gradient.item() == pytest.approx(slope, rel=1e-4)


def test_dice_has_linear_denominators():
    rng = torch.Generator().manual_seed(0)
    p = torch.rand(2, 3, 4, 5, generator=rng, dtype=torch.float64)
    t = torch.rand(2, 3, 4, 5, generator=rng) < 0.3
    overlap = size = 0.0
    for a, b in zip(p.flatten().tolist(), t.flatten().tolist(), strict=True):
        overlap += a * b
        size += a + b
    expected = 1 - (2 * overlap + 1e-8) / (size + 1e-8)
    assert linear_dice_loss(p, t).item() == pytest.approx(expected, rel=1e-12)


def test_dice_of_nothing_against_nothing_is_zero():
    assert linear_dice_loss(torch.zeros(4), torch.zeros(4, dtype=torch.bool)).item() == 0.0


def test_the_terms_are_the_dice_of_labelled_and_the_consistency_of_all_volumes(learner):
    batch = make_batch(learner.method, 0)
    outputs = learner.nets["student"](torch.cat([batch.image, batch.unlabelled]))
    assert len(outputs) == {"mcnet": 2, "mcnetp": 3}[learner.method.name]
    terms = terms_at(learner, batch, RUN[20])
    dice = sum(
        linear_dice_loss(o.logits[:2].softmax(1)[:, 1], batch.label == 1).item() for o in outputs
    )
    assert terms["supervised"].value.item() == pytest.approx(dice, rel=1e-5)
    assert terms["supervised"].weight == 0.5
    expected = pairwise([probabilities(o.logits.double()) for o in outputs], 0.1)
    assert terms["consistency"].value.item() == pytest.approx(expected, rel=1e-4)


def test_the_weight_rises_to_one_over_6000_of_20000_steps(learner):
    batch = make_batch(learner.method, 0)
    weights = [
        terms_at(learner, batch, Step(i, 20_000))["consistency"].weight for i in (0, 3000, 6000)
    ]
    assert weights == pytest.approx([math.exp(-5), math.exp(-1.25), 1.0])


def test_the_authors_train_15000_steps_at_a_constant_rate(learner):
    recipe = learner.method.authors
    rates = [recipe.learning_rate_at(Step(i, recipe.steps)) for i in (0, 7_500, 14_999)]
    assert (recipe.steps, rates) == (15_000, [0.01, 0.01, 0.01])


RELEASED = {
    "mcnet": {
        "supervised": 1.207352694,
        "consistency": 0.3945754044,
        "objective": 0.7167240932,
        "slopes": [0.01392438074, 0.0127448364],
    },
    "mcnetp": {
        "supervised": 1.676730088,
        "consistency": 1.668588824,
        "objective": 1.316423746,
        "slopes": [0.02266765268, 0.01394141229, 0.01895572414],
    },
}
"""ycwu1997/MC-Net@fee453c, code/train_mcnet_3d.py, lines 134-165, run as iteration 3,001."""


@pytest.mark.parametrize("form", [MCNet, MCNetPlus])
def test_terms_weights_and_gradients_have_the_figure_of_the_released_code(form):
    method, figure = form(**form.with_authors), RELEASED[form.name]
    logits = [waves(4, 2, 6, 5, 4, phase=k).requires_grad_() for k in range(form.decoders)]
    image = torch.zeros(2, 1, 6, 5, 4)
    terms = method.losses(
        torch.nn.ModuleDict({"student": given(*logits)}),
        Batch(image, halves(2, 6, 5, 4), image, {}),
        Step(3000, form.authors.steps),
        torch.Generator(),
    )
    for name in ("supervised", "consistency"):
        assert terms[name].value.item() == pytest.approx(figure[name], rel=1e-9)
    assert objective(terms).item() == pytest.approx(figure["objective"], rel=1e-9)
    assert slopes(objective(terms), logits) == pytest.approx(figure["slopes"], rel=1e-9)


def test_the_decoders_have_the_figure_of_the_released_code():
    """ycwu1997/MC-Net@fee453c, code/networks/VNet.py, MCNet3d_v2; v1 is its first two decoders."""
    released = (-102449.0057, 871.7926307), (96720.76538, 653.5032356), (-125620.0996, 970.7746492)
    build = factory(0, channels=1, width=2, levels=5, dropout=0.0)
    for form, parts in ((MCNet, ("transposed", "trilinear")),
                        (MCNetPlus, ("transposed", "trilinear", "nearest"))):  # fmt: skip
        net = build(form.network).double()
        fill(in_their_order(net.encoder, *(getattr(net, part) for part in parts)))
        with torch.no_grad():
            outputs = net(waves(2, 1, 16, 32, 16))
        for output, figures in zip(outputs, released[: form.decoders], strict=True):
            assert sum_and_norm(output.logits) == pytest.approx(figures, rel=1e-9)


def test_main_is_decoder_1_and_the_others_are_there_too(learner):
    image = make_batch(learner.method, 0).image
    found = learner.method.predictors(learner.nets)
    each = [o.logits.softmax(1) for o in learner.nets["student"](image)]
    names = ["main", "decoder2", "decoder3"][: len(each)]
    assert list(found) == [*names, "mean"]
    for name, expected in zip(names, each, strict=True):
        torch.testing.assert_close(found[name](image), expected)
    torch.testing.assert_close(found["mean"](image), sum(each) / len(each))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("weight", -1.0, "be at least 0"),
        ("rampup", 1.5, r"lie in \[0, 1\]"),
        ("temperature", 0.0, r"lie in \[0.01, 1\]"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        MCNetPlus(**{name: value})
