"""CPS against its formulas, written out voxel by voxel."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from methods.base import Batch, Step
from methods.common import cross_pseudo_supervision, hard_label, supervised_loss
from methods.cps import CPS
from tests.reference.released import given, halves, objective, slopes, waves


@pytest.fixture(scope="module")
def learner():
    """Two networks that have learnt something, with dropout off."""
    learner = small_learner(CPS())
    train(learner, make_batch(learner.method, 1), RUN[:10])
    learner.nets.eval()
    return learner


def probabilities(logits):
    """Class probabilities of every voxel, as lists of two."""
    scores = logits.movedim(1, -1).reshape(-1, 2).tolist()
    return [[math.exp(s) / sum(map(math.exp, voxel)) for s in voxel] for voxel in scores]


def crossed(first, second):
    """Mean of -log of what each network gives to the class that the other finds likelier."""
    p, q = probabilities(first), probabilities(second)
    one = [-math.log(a[b.index(max(b))]) for a, b in zip(p, q, strict=True)]
    other = [-math.log(b[a.index(max(a))]) for a, b in zip(p, q, strict=True)]
    return sum(one) / len(one) + sum(other) / len(other)


def test_each_network_learns_the_hard_label_of_the_other():
    rng = torch.Generator().manual_seed(0)
    first, second = (3 * torch.randn(2, 2, 3, 4, 5, generator=rng).double() for _ in range(2))
    value = cross_pseudo_supervision(first, second).item()
    assert value == pytest.approx(crossed(first, second), rel=1e-12)


def test_hard_labels_are_the_larger_score_and_background_when_in_doubt():
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]).T.view(1, 2, 3, 1, 1)
    assert hard_label(logits).flatten().tolist() == [1, 0, 0]


def test_hard_labels_carry_no_gradient():
    logits = torch.randn(
        2, 1, 2, 2, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    first, second = logits
    cross_pseudo_supervision(first, second.detach()).backward()
    assert logits.grad[0].count_nonzero() > 0
    assert logits.grad[1].count_nonzero() == 0


@pytest.mark.parametrize("on_labelled", [False, True])
def test_the_terms_are_those_of_both_networks(learner, on_labelled):
    learner = dataclasses.replace(learner, method=CPS(on_labelled=on_labelled))
    batch = make_batch(learner.method, 0)
    images = torch.cat([batch.image, batch.unlabelled])
    first, second = (learner.nets[name](images).logits for name in ("first", "second"))
    terms = terms_at(learner, batch, RUN[20])
    supervised = supervised_loss(first[:2], batch.label) + supervised_loss(second[:2], batch.label)
    torch.testing.assert_close(terms["supervised"].value, supervised)
    assert terms["supervised"].weight == 1.0
    start = 0 if on_labelled else 2
    expected = crossed(first[start:], second[start:])
    assert terms["cross"].value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        (CPS(), [0.1 * math.exp(-5), 0.1 * math.exp(-1.25), 0.1]),
        (CPS(weight=1.5, rampup=0.0), [1.5, 1.5, 1.5]),
    ],
)
def test_the_weight_rises_over_6000_of_20000_steps_or_is_constant_as_in_the_paper(method, weights):
    learner, batch = small_learner(method), make_batch(method, 0)
    found = [terms_at(learner, batch, Step(i, 20_000))["cross"].weight for i in (0, 3_000, 6_000)]
    assert found == pytest.approx(weights, rel=1e-6)


def test_the_networks_start_apart_and_neither_is_frozen():
    nets = small_learner(CPS()).nets
    pairs = zip(nets["first"].parameters(), nets["second"].parameters(), strict=True)
    assert any(not a.equal(b) for a, b in pairs)
    assert all(p.requires_grad for p in nets.parameters())


def test_predictors_are_either_network_and_their_mean(learner):
    image = make_batch(learner.method, 0).image
    found = learner.method.predictors(learner.nets)
    assert list(found) == ["main", "second", "mean"]
    for name, net in (("main", "first"), ("second", "second")):
        torch.testing.assert_close(found[name](image), learner.nets[net](image).logits.softmax(1))
    mean = (found["main"](image) + found["second"](image)) / 2
    torch.testing.assert_close(found["mean"](image), mean)


@pytest.mark.parametrize(
    ("step", "weight", "loss", "norms"),
    [
        (0, 0.0006737946999, 1.409754371, [0.03279982262, 0.03692350858]),
        (15_000, 0.02865047969, 1.44588634, [0.03282266824, 0.03694424631]),
    ],
)
def test_the_objective_has_the_figure_of_the_released_code(step, weight, loss, norms):
    """HiLab-git/SSL4MIS@06df604, code/train_cross_pseudo_supervision_3D.py, lines 151-177.

    Its DiceLoss has the weights (0, 2) here, which makes it that of the foreground.
    """
    first, second = (waves(4, 2, 6, 5, 4, phase=k).requires_grad_() for k in range(2))
    image = torch.zeros(2, 1, 6, 5, 4)
    terms = CPS(rampup=1.0).losses(
        torch.nn.ModuleDict({"first": given(first), "second": given(second)}),
        Batch(image, halves(4, 6, 5, 4, phase=9)[:2], image, {}),
        Step(step, 30_000),
        torch.Generator(),
    )
    assert terms["supervised"].value.item() == pytest.approx(1.408884164, rel=1e-9)
    assert terms["cross"].value.item() == pytest.approx(1.291502865, rel=1e-9)
    assert terms["cross"].weight == pytest.approx(weight, rel=1e-9)
    assert objective(terms).item() == pytest.approx(loss, rel=1e-9)
    assert slopes(objective(terms), [first, second]) == pytest.approx(norms, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("weight", -0.1, "be at least 0"), ("rampup", 1.5, r"lie in \[0, 1\]")],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        CPS(**{name: value})
