"""CC-Net against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.seeding import torch_generator
from methods.base import Step
from methods.ccnet import CCNet, mix_halves, mixed_loss


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


def wave(*shape, step):
    """The sine of step, 2 step, 3 step, ...: the same numbers everywhere."""
    count = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.sin(step * count).view(shape)


def test_the_released_code_gives_the_same_for_the_same_tensors():
    """0.539459931409: train_DACNet_3d.py of Oubit1/DACNet (3b50758), the loss of a mixed volume."""
    logits = 2 * wave(1, 2, 3, 4, 2, step=0.7)
    label = (wave(1, 3, 4, 2, step=0.5) > 0).long()
    found = mixed_loss(logits, label, released=True)
    assert found.item() == pytest.approx(0.539459931409, rel=1e-10)


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
