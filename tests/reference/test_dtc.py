"""DTC against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.data.distance import signed_distance
from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import factory
from methods.base import Batch, NetOutput, Step
from methods.common import segmentation
from methods.dtc import DTC
from tests.reference.released import (
    Given,
    fill,
    halves,
    in_their_order,
    objective,
    slopes,
    sum_and_norm,
    waves,
)


@pytest.fixture(scope="module")
def learner():
    """A network that has learnt something, with dropout off."""
    learner = small_learner(DTC(sharpness=20.0))
    train(learner, make_batch(learner.method, 1), RUN[:20])
    learner.nets.eval()
    return learner


def forward(learner, images):
    """Foreground probability and distance of every voxel, as lists."""
    output = learner.nets["student"](images)
    scores = output.logits.movedim(1, -1).reshape(-1, 2).tolist()
    return [1 / (1 + math.exp(a - b)) for a, b in scores], output.distance.flatten().tolist()


def test_the_supervised_term_is_the_dice_of_the_labelled_volumes_alone(learner):
    batch = make_batch(learner.method, 0)
    p, _ = forward(learner, batch.image)
    t = batch.label.flatten().tolist()
    overlap = sum(a * b for a, b in zip(p, t, strict=True))
    size = sum(a * a + b * b for a, b in zip(p, t, strict=True))
    expected = 1 - (2 * overlap + 1e-5) / (size + 1e-5)
    term = terms_at(learner, batch, RUN[0])["supervised"]
    assert term.value.item() == pytest.approx(expected, rel=1e-5)
    assert term.weight == 1.0


def test_the_sdf_term_is_the_mean_squared_error_of_the_labelled_distances(learner):
    batch = make_batch(learner.method, 0)
    _, z = forward(learner, batch.image)
    errors = [(a - b) ** 2 for a, b in zip(z, batch.extras["sdf"].flatten().tolist(), strict=True)]
    term = terms_at(learner, batch, RUN[0])["sdf"]
    assert term.value.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert term.weight == 0.3


def test_consistency_compares_both_heads_on_labelled_and_unlabelled_volumes(learner):
    batch = make_batch(learner.method, 0)
    p, z = forward(learner, torch.cat([batch.image, batch.unlabelled]))
    squares = [(1 / (1 + math.exp(20 * d)) - q) ** 2 for q, d in zip(p, z, strict=True)]
    term = terms_at(learner, batch, RUN[0])["consistency"]
    assert len(squares) == 4 * 16**3
    assert term.value.item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def test_consistency_teaches_both_heads(learner):
    batch = make_batch(learner.method, 0)
    terms_at(learner, batch, RUN[0])["consistency"].value.backward()
    decoder = learner.nets["student"].decoder
    assert decoder.output.weight.grad.count_nonzero() > 0
    assert decoder.distance[0].weight.grad.count_nonzero() > 0


def test_the_consistency_weight_rises_to_one(learner):
    batch = make_batch(learner.method, 0)
    weights = [
        terms_at(learner, batch, Step(i, 20_000))["consistency"].weight for i in (0, 3000, 6000)
    ]
    assert weights == pytest.approx([math.exp(-5), math.exp(-1.25), 1.0])


def test_a_distance_is_foreground_inside_and_background_outside():
    z = torch.tensor([-1.0, -0.001, 0.0, 0.001, 1.0], dtype=torch.float64)
    expected = [1.0, 1 / (1 + math.exp(-1.5)), 0.5, 1 / (1 + math.exp(1.5)), 0.0]
    assert segmentation(z, 1500.0).tolist() == pytest.approx(expected)


def test_the_distance_predictor_segments_by_the_distance_head(learner):
    image = make_batch(learner.method, 0).image
    predicted = learner.method.predictors(learner.nets)["distance"](image)
    inside = learner.nets["student"](image).distance[:, 0] < 0
    assert (predicted.argmax(1) == 1).equal(inside)
    assert 0 < inside.sum() < inside.numel()


def test_the_authors_recipe_drops_the_rate_after_2500_and_5000_of_6000_steps():
    recipe = DTC.authors
    rates = [recipe.learning_rate_at(Step(i, recipe.steps)) for i in (2499, 2500, 4999, 5000, 5999)]
    assert rates == pytest.approx([1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(
    ("step", "weight", "loss", "norms"),
    [
        (0, 0.006737946999, 0.9019410207, [0.01660447224, 0.05505358765]),
        (3000, 0.2865047969, 0.9913382271, [0.01696257663, 2.446780552]),
    ],
)
def test_the_objective_has_the_figure_of_the_released_code(step, weight, loss, norms):
    """HiLab-git/DTC@2525b9c, code/train_la_dtc.py, lines 167-191; its distances are float32."""
    score = waves(4, 1, 6, 5, 4).requires_grad_()
    distance = (1e-3 * waves(4, 1, 6, 5, 4, phase=1)).requires_grad_()
    logits = torch.cat([torch.zeros_like(score), score], 1)
    image, label = torch.zeros(2, 1, 6, 5, 4), halves(4, 6, 5, 4, phase=9)[:2]
    terms = DTC(rampup=1.0).losses(
        torch.nn.ModuleDict({"student": Given(NetOutput(logits, logits, distance))}),
        Batch(image, label, image, {"sdf": signed_distance(label)}),
        Step(step, 6000),
        torch.Generator(),
    )
    values = {name: term.value.item() for name, term in terms.items()}
    figures = {"supervised": 0.7867388867, "sdf": 0.3768302608, "consistency": 0.3195418129}
    assert values == pytest.approx(figures, rel=1e-6)
    assert terms["consistency"].weight == pytest.approx(weight, rel=1e-9)
    assert objective(terms).item() == pytest.approx(loss, rel=1e-6)
    assert slopes(objective(terms), [score, distance]) == pytest.approx(norms, rel=1e-6)


def test_the_network_has_the_figure_of_the_released_code():
    """HiLab-git/DTC@2525b9c, code/networks/vnet_sdf.py, VNet; SASSNet's is the same.

    Its segmentation head has one channel, and so it has here.
    """
    net = factory(0, channels=1, width=2, levels=5, dropout=0.0)(distance_head=True).double()
    net.decoder.output = torch.nn.Conv3d(2, 1, 1, dtype=torch.float64)
    *trunk, weight, bias = in_their_order(net.encoder, net.decoder)
    fill([*trunk, *net.decoder.distance.parameters(), weight, bias])
    with torch.no_grad():
        output = net(waves(2, 1, 16, 32, 16))
    assert sum_and_norm(output.distance) == pytest.approx((-1041.401649, 69.55338276), rel=1e-9)
    assert sum_and_norm(output.logits) == pytest.approx((-135301.9006, 1172.271532), rel=1e-9)


def test_distances_of_a_box_at_the_border_and_of_a_voxel_have_the_figure_of_the_released_code():
    """HiLab-git/DTC@2525b9c, code/utils/util.py, compute_sdf; SASSNet's is the same."""
    label = torch.zeros(2, 7, 8, 9, dtype=torch.int64)
    label[0, :5, 2:7, 3:] = 1
    label[1, 3, 4, 5] = 1
    box, voxel = signed_distance(label).double()
    assert sum_and_norm(box) == pytest.approx((120.0113629, 11.08434689), rel=1e-6)
    assert sum_and_norm(voxel) == pytest.approx((281.4823389, 13.15446702), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("weight", -1.0, "be at least 0"),
        ("rampup", 3.0, r"lie in \[0, 1\]"),
        ("beta", -0.3, "be at least 0"),
        ("sharpness", -1500.0, "be at least 1"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        DTC(**{name: value})
