"""MRPL against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import factory
from methods.base import Batch, NetOutput, Step
from methods.mrpl import MRPL, mutual_learning, reliability
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


def output(seed, shape=(2, 3, 2), features=4):
    """Random scores and embeddings of two volumes."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 2, *shape, generator=rng, dtype=torch.float64)
    return NetOutput(logits, torch.randn(2, features, *shape, generator=rng, dtype=torch.float64))


def voxels(x):
    """(B, C, X, Y, Z) as lists: volume, voxel, channel."""
    return x.movedim(1, -1).flatten(1, 3).tolist()


def probabilities(scores):
    return [math.exp(s) / sum(map(math.exp, scores)) for s in scores]


def cosine(a, b):
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def reliabilities(features, p):
    """Of the voxels of one volume."""
    prototypes = []
    for c in range(2):
        members = [f for f, q in zip(features, p, strict=True) if q.index(max(q)) == c]
        prototypes.append([sum(x) / len(members) for x in zip(*members, strict=True)])
    return [
        1 - sum((cosine(f, prototypes[c]) - q[c]) ** 2 for c in range(2)) / 2
        for f, q in zip(features, p, strict=True)
    ]


def entropy(p):
    return -sum(q * math.log(q + 1e-6) for q in p)


def test_the_less_certain_decoder_learns_the_labels_of_the_other_as_far_as_they_are_reliable():
    student, teacher = output(0), output(1)
    total = gates = 0.0
    for z, t, f in zip(*map(voxels, (student.logits, *teacher[:2])), strict=True):
        p, q = [probabilities(s) for s in z], [probabilities(s) for s in t]
        for p_v, q_v, r in zip(p, q, reliabilities(f, q), strict=True):
            if entropy(p_v) > entropy(q_v):
                total -= r * math.log(p_v[q_v.index(max(q_v))])
                gates += 1
    assert 0 < gates < 24
    assert mutual_learning(student, teacher).item() == pytest.approx(total / (gates + 1e-6))


def test_reliability_compares_probabilities_with_similarities():
    teacher = output(2)
    p = teacher.logits.softmax(1)
    expected = [
        reliabilities(f, q) for f, q in zip(voxels(teacher.features), voxels(p), strict=True)
    ]
    found = reliability(teacher.features, p)
    assert found.shape == (2, 2, 3, 2)
    assert found.flatten(1).tolist() == [pytest.approx(x) for x in expected]


def test_a_certain_prediction_on_its_prototype_is_fully_reliable():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 2, 1, 1)
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 2, 1, 1)
    assert reliability(features, p).flatten().tolist() == pytest.approx([1.0, 1.0])
    swapped = p.flip(2) * 0.4 + p * 0.6
    assert reliability(features, swapped).flatten().tolist() == pytest.approx([1 - 0.4**2] * 2)


def test_a_class_without_voxels_and_embeddings_of_no_length_are_finite():
    p = torch.tensor([0.9, 0.1]).reshape(1, 2, 1, 1, 1).expand(1, 2, 2, 2, 2)
    assert reliability(torch.zeros(1, 3, 2, 2, 2), p).isfinite().all()


def test_only_the_student_learns_and_the_same_output_teaches_nothing():
    student, teacher = output(0), output(1)
    inputs = [x.requires_grad_() for x in (*student[:2], *teacher[:2])]
    loss = mutual_learning(student, teacher)
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    assert gradients[0].count_nonzero() > 0
    assert gradients[1:] == (None, None, None)
    assert mutual_learning(student, student).item() == 0.0


@pytest.fixture(scope="module")
def learner():
    """A network that has learnt something, with dropout off."""
    learner = small_learner(MRPL())
    train(learner, make_batch(learner.method, 1), RUN[:10])
    learner.nets.eval()
    return learner


def test_the_terms_are_the_dice_of_labelled_and_the_mutual_learning_of_all_volumes(learner):
    batch = make_batch(learner.method, 0)
    first, second = learner.nets["student"](torch.cat([batch.image, batch.unlabelled]))
    terms = terms_at(learner, batch, RUN[20])
    dice, t = 0.0, batch.label.double()
    for one in (first, second):
        p = one.logits[:2].double().softmax(1)[:, 1]
        dice += 1 - (2 * (p * t).sum() + 1e-8) / (p.sum() + t.sum() + 1e-8)
    assert terms["supervised"].value.item() == pytest.approx(dice.item(), rel=1e-5)
    assert terms["supervised"].weight == 0.5
    both = mutual_learning(first, second) + mutual_learning(second, first)
    torch.testing.assert_close(terms["mutual"].value, both)


def test_the_weight_of_mutual_learning_rises_over_6000_of_20000_steps(learner):
    batch = make_batch(learner.method, 0)
    steps = [Step(i, 20_000) for i in (0, 3000, 6000, 19_999)]
    weights = [terms_at(learner, batch, step)["mutual"].weight for step in steps]
    assert weights == pytest.approx([math.exp(-5), math.exp(-1.25), 1.0, 1.0])


def test_the_predictors_are_the_decoders_and_the_mean_of_their_probabilities(learner):
    image = make_batch(learner.method, 0).image
    first, second = (x.logits.softmax(1) for x in learner.nets["student"](image))
    found = {n: f(image) for n, f in learner.method.predictors(learner.nets).items()}
    torch.testing.assert_close(found["main"], first)
    torch.testing.assert_close(found["decoder2"], second)
    torch.testing.assert_close(found["mean"], (first + second) / 2)


def test_the_authors_rate_never_falls():
    assert MRPL.authors.steps == 15_000
    assert MRPL.authors.learning_rate_at(Step(14_999, 15_000)) == 0.01


def test_terms_weights_and_gradients_have_the_figure_of_the_released_code():
    """Jiawei0o0/mutual-learning-with-reliable-pseudo-labels@5ca2d87,
    code/train_Mutual_Reliable.py, lines 144-205, as iteration 3,001 of 15,000.

    It counts the voxels of the gate in float32, where 1e-6 more is nothing.
    """
    scores = [waves(4, 2, 6, 5, 4, phase=k).requires_grad_() for k in range(2)]
    features = [waves(4, 3, 6, 5, 4, phase=2 + k) for k in range(2)]
    student = Given(*map(NetOutput, scores, features))
    image = torch.zeros(2, 1, 6, 5, 4)
    terms = MRPL(**MRPL.with_authors).losses(
        torch.nn.ModuleDict({"student": student}),
        Batch(image, halves(2, 6, 5, 4), image, {}),
        Step(3000, 15_000),
        torch.Generator(),
    )
    assert terms["supervised"].value.item() == pytest.approx(1.207352694, rel=1e-9)
    assert terms["mutual"].value.item() == pytest.approx(0.475037359, rel=1e-8)
    assert objective(terms).item() == pytest.approx(0.7397768292, rel=1e-8)
    expected = [0.01149058625, 0.01102493154]
    assert slopes(objective(terms), scores) == pytest.approx(expected, rel=1e-8)


def test_the_decoders_have_the_figure_of_the_released_code():
    """The same, code/networks/VNet.py, Mine3d_v1 in training: scores, and what they are made of."""
    net = factory(0, channels=1, width=2, levels=5, dropout=0.0)("vnet-two-decoders").double()
    fill(in_their_order(net.encoder, net.transposed, net.nearest))
    with torch.no_grad():
        first, second = net(waves(2, 1, 16, 32, 16))
    assert sum_and_norm(first.logits) == pytest.approx((-102449.0057, 871.7926307), rel=1e-9)
    assert sum_and_norm(second.logits) == pytest.approx((97028.77297, 648.3462996), rel=1e-9)
    assert sum_and_norm(first.features) == pytest.approx((63876.17355, 440.6025466), rel=1e-9)
    assert sum_and_norm(second.features) == pytest.approx((12211.51406, 177.3361903), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("weight", -1.0, "be at least 0"), ("rampup", 2.0, r"lie in \[0, 1\]")],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        MRPL(**{name: value})
