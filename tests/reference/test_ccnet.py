"""CC-Net against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import factory
from benchmark.seeding import torch_generator
from methods.base import Batch, Step
from methods.ccnet import CCNet, mix_halves, mixed_loss
from tests.reference.released import (
    VoxelByVoxel,
    fill,
    given,
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
    learner = small_learner(CCNet(mixing=1.9))
    train(learner, make_batch(learner.method, 1), RUN[:10])
    learner.nets.eval()
    return learner


def foreground(logits):
    """Of every voxel, as a list."""
    scores = logits.movedim(1, -1).reshape(-1, 2).tolist()
    return [1 / (1 + math.exp(a - b)) for a, b in scores]


def dice(p, t):
    overlap = sum(a * b for a, b in zip(p, t, strict=True))
    return 1 - (2 * overlap + 1e-8) / (sum(p) + sum(t) + 1e-8)


def sharpened(p):
    return p**10 / (p**10 + (1 - p) ** 10)


def test_the_supervised_term_is_the_dice_of_three_decoders(learner):
    batch = make_batch(learner.method, 0)
    outputs = learner.nets["student"](batch.image)
    assert len(outputs) == 3
    expected = sum(dice(foreground(o.logits), batch.label.flatten().tolist()) for o in outputs)
    term = terms_at(learner, batch, RUN[20])["supervised"]
    assert term.value.item() == pytest.approx(expected, rel=1e-5)
    assert term.weight == 0.3


def test_consistency_is_that_of_six_ordered_pairs_on_all_volumes(learner):
    batch = make_batch(learner.method, 0)
    outputs = learner.nets["student"](torch.cat([batch.image, batch.unlabelled]))
    p = [foreground(o.logits) for o in outputs]
    expected = 0.0
    for i, j in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
        squares = [(a - sharpened(b)) ** 2 for a, b in zip(p[i], p[j], strict=True)]
        assert len(squares) == 4 * 16**3
        expected += sum(squares) / len(squares)
    term = terms_at(learner, batch, RUN[20])["consistency"]
    assert term.value.item() == pytest.approx(expected, rel=1e-4)


def test_the_mixed_term_is_that_of_three_decoders_on_one_mixed_volume(learner):
    batch, step = make_batch(learner.method, 0), RUN[20]
    rng = torch_generator(learner.seed, "noise", step.index)
    image, label = mix_halves(batch.image, batch.label, 2 / 3, rng)
    assert image.shape == (1, 1, 16, 16, 16)
    expected = sum(mixed_loss(o.logits, label).item() for o in learner.nets["student"](image))
    term = terms_at(learner, batch, step)["mixed"]
    assert term.value.item() == pytest.approx(expected, rel=1e-5)
    assert term.weight == pytest.approx(0.3 * 1.9)


def test_without_mixing_there_is_no_such_term():
    learner = small_learner(CCNet())
    assert set(terms_at(learner, make_batch(CCNet(), 0), RUN[20])) == {"supervised", "consistency"}


@pytest.mark.parametrize("released", [False, True])
def test_the_mixed_loss_is_half_cross_entropy_half_dice(released):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 2, 3, 4, generator=rng, dtype=torch.float64)
    label = torch.randint(2, (1, 2, 3, 4), generator=rng)
    p, t = foreground(logits), label.flatten().tolist()
    score = [1 / (1 + math.exp(1 - 2 * q)) for q in p] if released else p
    entropy = [-math.log(q if y else 1 - q) for q, y in zip(score, t, strict=True)]
    expected = 0.5 * (sum(entropy) / len(entropy) + dice(p, t))
    assert mixed_loss(logits, label, released=released).item() == pytest.approx(expected)


def test_the_released_variant_takes_the_softmax_of_probabilities():
    batch = make_batch(CCNet(), 0)
    fixed, released = (
        small_learner(CCNet(mixing=1.9, variant=variant)) for variant in ("fixed", "released")
    )
    a, b = (terms_at(learner, batch, RUN[0]) for learner in (fixed, released))
    assert a["supervised"].value.equal(b["supervised"].value)
    assert not a["mixed"].value.equal(b["mixed"].value)


def test_mixing_pastes_a_box_of_the_second_volume_into_the_first_with_its_label():
    rng = torch.Generator().manual_seed(0)
    sides = (9, 12, 16)
    image = torch.stack([torch.zeros(1, *sides), torch.ones(1, *sides)])
    starts = set()
    for _ in range(40):
        mixed, label = mix_halves(image, image[:, 0].long(), 2 / 3, rng)
        assert mixed.shape == (1, 1, *sides)
        assert label.equal(mixed[:, 0].long())
        where = label[0].nonzero()
        assert (where.amax(0) - where.amin(0) + 1).tolist() == [6, 8, 10]
        assert len(where) == 6 * 8 * 10
        starts.add(tuple(where.amin(0).tolist()))
    assert len(starts) > 20
    assert {s[0] for s in starts} == {0, 1, 2}
    assert all(y < 4 and z < 6 for _, y, z in starts)


def test_mixing_pairs_halves_of_the_batch():
    rng = torch.Generator().manual_seed(0)
    image = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 1, 6, 6, 6)
    mixed, _ = mix_halves(image, image[:, 0].long(), 0.5, rng)
    assert [set(x.flatten().tolist()) for x in mixed] == [{0.0, 2.0}, {1.0, 3.0}]
    alone, _ = mix_halves(image[3:], image[3:, 0].long(), 0.5, rng)
    assert alone.equal(image[3:])


def test_the_consistency_weight_rises_over_6000_of_20000_steps(learner):
    batch = make_batch(learner.method, 0)
    steps = [Step(i, 20_000) for i in (0, 3000, 6000)]
    weights = [terms_at(learner, batch, step)["consistency"].weight for step in steps]
    assert weights == pytest.approx([math.exp(-5), math.exp(-1.25), 1.0])


def test_the_main_predictor_is_the_decoder_with_all_skips(learner):
    image = make_batch(learner.method, 0).image
    net, found = learner.nets["student"], learner.method.predictors(learner.nets)
    assert set(found) == {"main", "decoder2", "decoder3", "mean"}
    expected = net.full(net.encoder(image)).logits.softmax(1)
    torch.testing.assert_close(found["main"](image), expected)


def at_step_3000(method, student, image, label, rng=None):
    """The terms of two labelled and two unlabelled volumes at step 3,000 of 10,000."""
    batch = Batch(image[:2], label, image[2:], {})
    nets = torch.nn.ModuleDict({"student": student})
    return method.losses(nets, batch, Step(3000, 10_000), rng or torch.Generator())


def test_terms_weights_and_gradients_have_the_figure_of_the_released_code():
    """Cuthbert-Huang/CC-Net@412a5e0, code/train_ccnet_3d_v1.py, lines 141-172."""
    scores = [waves(4, 2, 6, 5, 4, phase=k).requires_grad_() for k in range(3)]
    method = CCNet(**CCNet.with_authors)
    image, label = torch.zeros(4, 1, 6, 5, 4), halves(2, 6, 5, 4)
    terms = at_step_3000(method, given(*scores), image, label)
    assert terms["supervised"].value.item() == pytest.approx(1.676730088, rel=1e-9)
    assert terms["consistency"].value.item() == pytest.approx(1.668588824, rel=1e-9)
    assert objective(terms).item() == pytest.approx(0.9810777285, rel=1e-9)
    expected = [0.02107533949, 0.01161211404, 0.01835349573]
    assert slopes(objective(terms), scores) == pytest.approx(expected, rel=1e-9)


def test_mixing_has_the_figure_of_the_released_code():
    """Oubit1/DACNet@3b50758, code/train_DACNet_3d.py, lines 159-206, with three decoders.

    The box starts at (1, 2, 1), as the released code was made to draw it too.
    """
    image, label = waves(4, 1, 9, 7, 6).requires_grad_(), halves(2, 9, 7, 6, phase=1)
    drawn = torch.Generator().manual_seed(3)
    which = torch.arange(2).view(2, 1, 1, 1).expand_as(label)
    assert mix_halves(image[:2], which, 2 / 3, drawn)[1][0].nonzero()[0].tolist() == [1, 2, 1]
    three = [(lambda x, k=k: (k * x).sin(), lambda x, k=k: (k * x).cos()) for k in (1, 2, 3)]
    method = CCNet(**CCNet.with_authors, mixing=1.9, variant="released")
    terms = at_step_3000(method, VoxelByVoxel(*three), image, label, drawn.manual_seed(3))
    assert objective(terms).item() == pytest.approx(2.002040038, rel=1e-9)
    assert slopes(objective(terms), [image]) == pytest.approx([0.04806055785], rel=1e-9)


def test_the_decoders_have_the_figure_of_the_released_code():
    """Cuthbert-Huang/CC-Net@412a5e0, code/networks/VNet.py, CCNet3d_V1."""
    build = factory(0, channels=1, width=2, levels=5, dropout=0.0)
    net = build("vnet-three-decoders-complementary").double()
    fill(in_their_order(net.encoder, net.full, net.even, net.odd))
    with torch.no_grad():
        full, even, odd = (sum_and_norm(x.logits) for x in net(waves(2, 1, 16, 32, 16)))
    assert full == pytest.approx((-102449.0057, 871.7926307), rel=1e-9)
    assert even == pytest.approx((96754.01764, 631.3955568), rel=1e-9)
    assert odd == pytest.approx((-123884.0408, 941.3065738), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mixing", -1.0, "mixing=-1.0; it must be at least 0"),
        ("box", 1.5, r"box=1.5; it must lie in \[0, 1\]"),
        ("temperature", 0.0, "temperature=0.0; it must lie in"),
        ("variant", "paper", "variant='paper'; known: fixed, released"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        CCNet(**{name: value})
