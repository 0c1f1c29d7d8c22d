"""Co-BioNet against its formulas, written out voxel by voxel."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train, values_at
from benchmark.networks import factory
from methods.base import Batch, Step
from methods.cobionet import CRITICS, NETWORKS, CoBioNet, Critic, masked_mean
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


def trained(method):
    """A learner that has learnt something, with dropout off and fixed batch statistics."""
    learner = small_learner(method)
    train(learner, make_batch(method, 1), RUN[:10])
    learner.nets.eval()
    return learner


@pytest.fixture(scope="module")
def learner():
    return trained(CoBioNet())


@pytest.fixture(scope="module")
def released():
    return trained(CoBioNet(variant="released"))


def foreground(net, images):
    """Foreground probabilities (B, 1, X, Y, Z)."""
    logits = net(images).logits
    return 1 / (1 + (logits[:, :1] - logits[:, 1:]).exp())


def entropy(p, t):
    return -(t * math.log(p) + (1 - t) * math.log(1 - p))


def predictions(learner, batch):
    """Lists of both networks' probabilities on the unlabelled volumes, and of the verdicts."""
    ps = [foreground(learner.nets[name], batch.unlabelled) for name in ("net1", "net2")]
    verdicts = [
        learner.nets[name](p).sigmoid().flatten().tolist()
        for name, p in zip(("critic1", "critic2"), ps, strict=True)
    ]
    return [p.flatten().tolist() for p in ps], verdicts


def test_the_supervised_term_sums_cross_entropy_and_linear_dice(learner):
    batch = make_batch(learner.method, 0)
    y = batch.label.flatten().tolist()
    expected = 0.0
    for name in ("net1", "net2"):
        p = foreground(learner.nets[name], batch.image).flatten().tolist()
        expected += sum(entropy(a, b) for a, b in zip(p, y, strict=True)) / len(y)
        overlap = sum(a * b for a, b in zip(p, y, strict=True))
        expected += 1 - (2 * overlap + 1e-5) / (sum(p) + sum(y) + 1e-5)
    term = terms_at(learner, batch, RUN[0])["supervised"]
    assert term.value.item() == pytest.approx(expected, rel=1e-4)
    assert term.weight == 0.7


def test_cross_is_the_entropy_of_each_network_against_the_other(learner):
    batch = make_batch(learner.method, 0)
    (p, q), _ = predictions(learner, batch)
    pairs = list(zip(p, q, strict=True))
    expected = sum(entropy(a, b) + entropy(b, a) for a, b in pairs) / len(pairs)
    term = terms_at(learner, batch, RUN[0])["cross"]
    assert term.value.item() == pytest.approx(expected, rel=1e-4)


def test_a_network_learns_again_where_the_others_critic_trusts_the_other(learner):
    batch = make_batch(learner.method, 0)
    (p, q), (v, u) = predictions(learner, batch)
    threshold = statistics.median(v)
    method = dataclasses.replace(learner.method, threshold=threshold)
    learnt = [
        (entropy(a, b) if on_b > threshold else 0) + (entropy(b, a) if on_a > threshold else 0)
        for a, b, on_a, on_b in zip(p, q, v, u, strict=True)
    ]
    assert 0 < sum(x > threshold for x in v) < len(v)
    twin = dataclasses.replace(learner, method=method)
    term = terms_at(twin, batch, RUN[0])["masked"]
    assert term.value.item() == pytest.approx(sum(learnt) / len(learnt), rel=1e-4)


def test_masks_act_on_the_other_network_voxel_by_voxel_or_as_their_mean():
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    trusted = [torch.tensor([True, False]), torch.tensor([True, True])]
    assert masked_mean([first, second], trusted, by_voxel=True).item() == 1.5 + 1.5
    assert masked_mean([first, second], trusted, by_voxel=False).item() == 1.5 + 0.5 * 4


def test_networks_are_pushed_to_be_taken_for_labels_and_critics_not_to_be_fooled(learner):
    batch = make_batch(learner.method, 0)
    terms = terms_at(learner, batch, RUN[0])
    fooled = 0.0
    images = torch.cat([batch.image, batch.unlabelled])
    for name, critic in (("net1", "critic1"), ("net2", "critic2")):
        judge = learner.nets[critic]
        on_p = judge(foreground(learner.nets[name], images)).sigmoid().double()
        on_y = judge(batch.label.unsqueeze(1).float()).sigmoid().double()
        fooled -= on_p.log().mean().item()
        expected = -0.5 * ((1 - on_p).log().mean() + on_y.log().mean()).item()
        assert terms[critic].value.item() == pytest.approx(expected, rel=1e-4)
        assert (terms[critic].player, terms[critic].weight) == (critic, 1.0)
    assert terms["adversarial"].value.item() == pytest.approx(fooled, rel=1e-4)


def test_targets_and_masks_have_no_gradient(learner):
    batch = make_batch(learner.method, 0)
    terms = terms_at(learner, batch, RUN[0])
    for name in ("cross", "masked"):
        logits = learner.nets["net1"].decoder.output.bias
        critic = learner.nets["critic2"].layers[0][0].weight
        gradients = torch.autograd.grad(
            terms[name].value, [logits, critic], retain_graph=True, allow_unused=True
        )
        assert gradients[0].count_nonzero() > 0
        assert gradients[1] is None


def test_critics_learn_to_tell_labels_from_uncertain_predictions():
    method = CoBioNet()
    learner, batch = small_learner(method), make_batch(method, 0)
    learner.optimisers["critic1"].param_groups[0]["lr"] = 1e-2
    for name in ("net1", "net2"):  # their predictions stay as uncertain as they are
        learner.nets[name].requires_grad_(False)
    first = values_at(learner, batch, RUN[0])
    for step in RUN[:30]:
        terms_at(learner, batch, step)["critic1"].value.backward()
        learner.optimisers["critic1"].step()
        learner.optimisers["critic1"].zero_grad()
    last = values_at(learner, batch, RUN[0])
    assert last["critic1"] < 0.7 * first["critic1"]
    assert last["critic2"] == first["critic2"]


def test_the_weights_on_unlabelled_volumes_rise_over_6000_of_20000_steps(learner):
    batch = make_batch(learner.method, 0)
    for index, ramp in ((0, math.exp(-5)), (3000, math.exp(-1.25)), (6000, 1.0), (18_000, 1.0)):
        terms = terms_at(learner, batch, Step(index, 20_000))
        assert terms["cross"].weight == pytest.approx(ramp)
        assert terms["masked"].weight == pytest.approx(ramp)
        assert terms["adversarial"].weight == pytest.approx(0.01 * ramp)


def test_a_critic_judges_each_voxel_alone():
    critic = Critic().eval()
    p = torch.rand(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    x = p.flatten().reshape(-1, 1)
    for layer in critic.layers:
        x = F.leaky_relu(x @ layer[0].weight.flatten(1).T / (1 + 1e-5) ** 0.5, 0.2)
    torch.testing.assert_close(critic(p).flatten(), x.flatten())
    assert sum(q.numel() for q in critic.parameters()) == 16 + 512 + 2048 + 64 + 2 * 113


@pytest.mark.parametrize("variant", ["fixed", "released"])
def test_terms_and_gradients_have_the_figure_of_the_released_code(variant):
    """himashi92/Co-BioNet@9dbe5a4, code/train_cobionet_semi.py, lines 141-221 as iteration 3,000.

    With batch statistics of critics fixed: there a critic makes three passes. Cross terms are plain
    numbers in the release; its objective is compared without them.
    """
    figure = {"supervised": 2.573560041, "adversarial": 1.667638738}
    if variant == "fixed":
        figure |= {"cross": 1.531778689, "critic1": 0.7148605207, "critic2": 0.6945651403}
    else:
        figure |= {"masked": 0.9589891269}
    logits = [waves(4, 2, 6, 4, 8, phase=k).requires_grad_() for k in (0, 1)]
    critics = nn.ModuleDict({name: Critic().double().eval() for name in CRITICS})
    fill(critics.parameters())
    with torch.no_grad():
        for parameter in critics.parameters():
            parameter.mul_(0.3)
    image = torch.zeros(2, 1, 6, 4, 8, dtype=torch.float64)
    method = CoBioNet(variant=variant, **CoBioNet.with_authors)
    terms = method.losses(
        nn.ModuleDict(dict(zip(NETWORKS, map(given, logits), strict=True)) | dict(critics.items())),
        Batch(image, halves(2, 6, 4, 8, phase=4), image, {}),
        Step(3000, method.authors.steps),
        torch.Generator(),
    )
    for name, value in figure.items():
        assert terms[name].value.item() == pytest.approx(value, rel=1e-9)
    if variant == "released":
        assert objective(terms).item() == pytest.approx(2.081024879, rel=1e-9)
        expected = [0.03600817189, 0.03279837626]
        assert slopes(objective(terms), logits) == pytest.approx(expected, rel=1e-9)


def test_critic_and_network_have_the_figure_of_the_released_code():
    """himashi92/Co-BioNet@9dbe5a4, code/networks/critic.py, Discriminator, and VNet.py, VNet.

    The network has one channel there, of the difference that is left with scores of 0 for the
    background here.
    """
    critic = Critic().double()
    fill(critic.parameters())
    p = foreground(given(waves(4, 2, 6, 4, 8)), torch.zeros(4, 1, 6, 4, 8))
    assert sum_and_norm(critic(p)) == pytest.approx((-294.7879794, 12.81083986), rel=1e-9)
    net = factory(0, channels=1, width=2, levels=5, dropout=0.0)("vnet").double()
    *inner, weight, bias = in_their_order(net.encoder, net.decoder)
    fill(inner)
    with torch.no_grad():
        for phase, parameter in enumerate((weight, bias), len(inner)):
            parameter[0] = 0
            parameter[1] = waves(*parameter[1:].shape, phase=phase)[0]
        scores = net(waves(2, 1, 16, 32, 16)).logits
    assert scores[:, 0].count_nonzero() == 0
    assert sum_and_norm(scores) == pytest.approx((-1188.265405, 93.03673724), rel=1e-9)


def test_released_critics_never_learn_and_what_has_no_gradient_is_left_out(released):
    fresh = small_learner(released.method).nets
    assert set(released.method.players(released.nets)) == {"main"}
    for name in ("critic1", "critic2"):
        pairs = zip(released.nets[name].parameters(), fresh[name].parameters(), strict=True)
        assert all(a.equal(b) for a, b in pairs)
    terms = terms_at(released, make_batch(released.method, 0), RUN[0])
    assert set(terms) == {"supervised", "masked", "adversarial"}


def test_the_released_mask_is_one_number(released):
    batch = make_batch(released.method, 0)
    (p, q), (v, u) = predictions(released, batch)
    pairs = list(zip(p, q, strict=True))
    shares = [sum(x > 0.4 for x in verdicts) / len(verdicts) for verdicts in (v, u)]
    expected = shares[1] * sum(entropy(a, b) for a, b in pairs) / len(pairs)
    expected += shares[0] * sum(entropy(b, a) for a, b in pairs) / len(pairs)
    term = terms_at(released, batch, RUN[0])["masked"]
    assert term.value.item() == pytest.approx(expected, rel=1e-4)


def test_critics_learn_by_adam_and_networks_by_the_recipe():
    learner = small_learner(CoBioNet())
    kinds = {name: type(o).__name__ for name, o in learner.optimisers.items()}
    assert kinds == {"main": "SGD", "critic1": "Adam", "critic2": "Adam"}
    before = learner.nets["critic1"].layers[0][0].weight.clone()
    train(learner, make_batch(learner.method, 0), RUN[:1])
    moved = (learner.nets["critic1"].layers[0][0].weight - before).abs()
    assert moved.max().item() == pytest.approx(1e-4, rel=1e-2)


def test_the_main_prediction_is_the_mean_of_both_networks(learner):
    image = make_batch(learner.method, 0).image
    predict = learner.method.predictors(learner.nets)
    mean = (predict["net1"](image) + predict["net2"](image)) / 2
    torch.testing.assert_close(predict["main"](image), mean)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("weight", -1.0, "be at least 0"),
        ("rampup", 3.0, r"lie in \[0, 1\]"),
        ("supervised_weight", -0.3, "be at least 0"),
        ("adversarial", -0.3, "be at least 0"),
        ("threshold", 1.5, r"lie in \[0, 1\]"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        CoBioNet(**{name: value})


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant='paper'; known: fixed, released"):
        CoBioNet(variant="paper")
