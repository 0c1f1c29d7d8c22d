"""TraCoCo against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import initialise
from benchmark.seeding import torch_generator
from methods.base import Batch, NetOutput, Step
from methods.common import supervised_loss
from methods.tracoco import (
    TraCoCo,
    boxes,
    confident_cross_entropy,
    negative_entropy,
    overlap,
    translation,
)
from tests.reference.released import halves, objective, slopes, waves


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def softmax(scores):
    return [math.exp(s) / sum(map(math.exp, scores)) for s in scores]


def voxels(logits):
    """Class probabilities of every voxel of (B, 2, X, Y, Z)."""
    return [softmax(s) for s in logits.movedim(1, -1).reshape(-1, 2).tolist()]


@pytest.mark.parametrize(("confident", "unlikely"), [(0.65, 0.1), (0.8, 0.3), (0.5, 0.5)])
def test_the_confident_regional_cross_entropy_has_a_positive_and_a_negative_part(
    rng, confident, unlikely
):
    logits, peer = 2 * torch.randn(2, 2, 2, 3, 4, 5, generator=rng, dtype=torch.float64)
    positive, negative = [], []
    for p, q in zip(voxels(logits), voxels(peer), strict=True):
        label = q.index(max(q))
        if max(q) >= confident:
            positive.append(-max(q) * math.log(p[label]))
        if min(q) < unlikely:
            negative.append(-min(q) * math.log(1 - p[1 - label]))
    assert positive
    assert negative
    expected = sum(positive) / len(positive) + sum(negative) / len(negative)
    found = confident_cross_entropy(logits, peer, confident, unlikely)
    assert found.item() == pytest.approx(expected)


def test_a_peer_that_is_sure_of_nothing_teaches_nothing():
    logits = torch.ones(1, 2, 2, 2, 2, requires_grad=True)
    loss = confident_cross_entropy(logits, torch.zeros(1, 2, 2, 2, 2))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.count_nonzero() == 0


@pytest.mark.parametrize("axis", [0, 1])
def test_translation_is_the_divergence_of_the_first_from_the_second(rng, axis):
    a, b = torch.randn(2, 2, 3, 4, 5, generator=rng, dtype=torch.float64)
    lines = [x.movedim(axis, -1).reshape(-1, (2, 3)[axis]).tolist() for x in (a, b)]
    total = 0.0
    for first, second in zip(*lines, strict=True):
        for p, q in zip(softmax(first), softmax(second), strict=True):
            total += q * math.log(q / p)
    assert translation(a, b, axis).item() == pytest.approx(total / (2 * 3 * 4 * 5))
    assert translation(a, a, axis).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("gap", [10.0, 95.0, 110.0, 1e4])
def test_a_probability_that_is_zero_in_floating_point_has_a_gradient_that_is_a_number(gap):
    here = torch.zeros(2, 1, 1, 1, requires_grad=True)
    there = torch.tensor([gap, 0.0]).view(2, 1, 1, 1).requires_grad_()
    for slope in torch.autograd.grad(translation(here, there), (here, there)):
        assert slope.isfinite().all()


def test_both_crops_learn_from_the_translation(rng):
    a, b = torch.randn(2, 2, 3, 4, 5, generator=rng).requires_grad_()
    gradients = torch.autograd.grad(translation(a, b), (a, b))
    assert all(g.count_nonzero() > 0 for g in gradients)


def test_negative_entropy_is_the_mean_over_crops_of_the_mean_over_voxels(rng):
    crops = [torch.randn(2, *s, generator=rng, dtype=torch.float64) for s in ((2, 2, 2), (3, 1, 4))]
    means = []
    for crop in crops:
        entropy = [sum(p * math.log(p) for p in v) for v in voxels(crop.unsqueeze(0))]
        means.append(sum(entropy) / len(entropy))
    assert negative_entropy(crops).item() == pytest.approx(sum(means) / 2)


@pytest.mark.parametrize("shift", [(0, 0, 0), (-3, 2, 1), (5, -4, -1)])
def test_the_shared_voxels_are_the_same_in_both_crops(shift):
    volume = torch.arange(20**3).view(1, 20, 20, 20)
    begins = [[7, 7, 7], [7 + s for s in shift]]
    crops = [volume[:, x : x + 6, y : y + 6, z : z + 6] for x, y, z in begins]
    shared = (
        crops[0][overlap(shift, (6, 6, 6))],
        crops[1][overlap([-s for s in shift], (6, 6, 6))],
    )
    assert shared[0].equal(shared[1])
    assert shared[0].shape[1:] == tuple(6 - abs(s) for s in shift)


def test_a_box_is_a_beta_of_the_sides_wherever_its_centre_lies(rng):
    areas = []
    for _ in range(200):
        found = boxes((3, 1, 40, 80, 8), rng)
        assert found.shape == (3, 1, 40, 80, 1)
        for box in found[:, 0, :, :, 0]:
            rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
            assert box.sum() == len(rows) * len(columns) > 0
            assert rows.max() - rows.min() + 1 == len(rows)
            assert columns.max() - columns.min() + 1 == len(columns)
        areas += [box.sum() / box.numel() for box in found]
    assert 0.2 < sum(areas) / len(areas) < 0.45
    assert len({float(a) for a in areas}) > 100


def test_the_sides_of_a_box_follow_a_median_of_seven_which_is_beta_4_4(rng):
    for _ in range(50):
        twin = torch.Generator()
        twin.set_state(rng.get_state())
        ratio = sorted(torch.rand(7, generator=twin).tolist())[3]
        box = boxes((2, 1, 1000, 600, 1), rng)[:, 0, :, :, 0]
        for axis, n in enumerate((1000, 600)):
            half = int(math.sqrt(1 - ratio) * n) // 2
            for centre, one in zip(
                torch.randint(n // 8, n, (2, 1), generator=twin).flatten().tolist(),
                box,
                strict=True,
            ):
                inside = one.any(1 - axis).nonzero().flatten().tolist()
                assert inside == list(range(max(centre - half, 0), min(centre + half, n)))
    medians = torch.rand(7, 100_000, generator=rng).sort(0).values[3]
    assert medians.mean().item() == pytest.approx(0.5, abs=0.005)
    assert medians.var().item() == pytest.approx(4 * 4 / (8**2 * 9), abs=0.001)


class Answers(nn.Module):
    """A network that gives these scores one after another, and keeps what it was shown."""

    def __init__(self, *logits):
        super().__init__()
        self.left, self.seen = list(logits), []

    def forward(self, image):
        self.seen.append(image)
        return NetOutput(self.left.pop(0), image)


def test_the_released_variant_has_the_figures_of_the_released_code(monkeypatch):
    """yyliu01/TraCoCo@ac6d8ac, Code/VnetLA/train.py, lines 124-231, run as iteration 80 of 160.

    Of networks with fixed scores; ratio, centres and order of its CutMix are given.
    """
    draws = iter([torch.tensor([1, 5, 7, 3]), torch.tensor([6, 2, 4, 1])])
    monkeypatch.setattr(torch, "rand", lambda size, **_: 0.4 * torch.ones(size))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(draws).unsqueeze(1))
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: torch.tensor([2, 0, 3, 1]))
    scores = [(1.5 * waves(4, 2, 8, 8, 6, phase=k)).requires_grad_() for k in range(8)]
    here, there, clean, peer, here2, there2, mixed, peer2 = scores
    nets = {
        "first": Answers(here, there, peer.detach(), clean),
        "second": Answers(here2, there2, peer2.detach(), mixed),
    }
    image, label = waves(4, 1, 8, 8, 6), halves(4, 8, 8, 6, phase=9)
    shift = torch.tensor([[0, 0, 0], [-3, -1, -2], [-1, -6, 0], [-5, -2, -3]])
    terms = TraCoCo(variant="released", rampup=160 / 9000, noise=0.0).losses(
        nn.ModuleDict(nets),
        Batch(image[:2], label[:2], image[2:], {"overlap": image, "shift": shift}),
        Step(80, 9000),
        torch.Generator(),
    )
    assert {name: term.value.item() for name, term in terms.items()} == pytest.approx(
        {
            "supervised": 1.671529866,
            "pseudo": 3.312498230,
            "translation": 0.2568055449,
            "entropy": -1.284676612,
        },
        rel=1e-9,
    )
    assert terms["pseudo"].weight == pytest.approx(0.08595143906, rel=1e-9)
    assert objective(terms).item() == pytest.approx(1.951823717, rel=1e-9)
    pasted = (nets["second"].seen[-1] * waves(4, 1, 8, 8, 6, phase=5)).sum()
    assert pasted.item() == pytest.approx(431.8100714, rel=1e-9)
    found = slopes(objective(terms), [here, there, clean, here2, there2, mixed])
    of_first = [0.01732816354, 0.0001627414426, 0.00247641657]
    of_second = [0.02032507, 0.0001800987003, 0.003826133233]
    assert found == pytest.approx(of_first + of_second, rel=1e-9)


def test_the_shared_voxels_have_the_figures_of_the_released_code():
    """yyliu01/TraCoCo@ac6d8ac, Code/VnetLA/Dataloader/augmentation.py, RandomCrop.

    Of crops that begin at (40, 9, 5) and (7, 8, 0).
    """
    sides = (112, 112, 80)
    assert overlap((-33, -1, -5), sides)[1:] == (slice(0, 79), slice(0, 111), slice(0, 75))
    assert overlap((33, 1, 5), sides)[1:] == (slice(33, 112), slice(1, 112), slice(5, 80))


@pytest.fixture(scope="module", params=["fixed", "released"])
def learner(request):
    """Two networks that have learnt something, with dropout off."""
    learner = small_learner(TraCoCo(variant=request.param))
    train(learner, make_batch(learner.method, 1), RUN[:5])
    learner.nets.eval()
    return learner


def test_the_terms_are_those_of_three_noisy_passes_and_a_clean_one_for_the_peer(learner):
    batch, step, method = make_batch(learner.method, 0), RUN[20], learner.method
    terms = terms_at(learner, batch, step)
    images = torch.cat([batch.image, batch.unlabelled])
    rng = torch_generator(learner.seed, "noise", step.index)

    def noisy(x):
        return x + 0.2 * (2 * torch.rand(x.shape, generator=rng) - 1)

    released = method.variant == "released"
    supervised = translated = entropy = 0.0
    for name in ("first", "second"):
        here = learner.nets[name](noisy(images)).logits
        there = learner.nets[name](noisy(batch.extras["overlap"])).logits
        supervised += supervised_loss(here[:2], batch.label)
        crops = []
        for i, s in enumerate(batch.extras["shift"].tolist()):
            a = here[i][overlap(s, (16, 16, 16))]
            b = there[i][overlap([-d for d in s], (16, 16, 16))]
            crops += [x.clamp(1e-6, 1) if released else x for x in (a, b)]
            translated += translation(*crops[-2:], axis=int(released))
        entropy += negative_entropy(crops)
    first, second = learner.nets["first"], learner.nets["second"]
    order = torch.randperm(4, generator=rng)
    box = boxes(images.shape, rng)
    mixed = torch.where(box, images[order], images)
    with torch.no_grad():
        taught, goal = second(images).logits, first(images).logits
    goal = torch.where(box, goal[order], goal)
    pseudo = confident_cross_entropy(
        first(noisy(images)).logits[2:], taught[2:]
    ) + confident_cross_entropy(second(noisy(mixed)).logits[2:], goal[2:])
    expected = (supervised, pseudo, translated, entropy)
    names = ("supervised", "pseudo", "translation", "entropy")
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(terms[name].value, value)
    weights = list(learner.nets.parameters())
    gradients = (torch.autograd.grad(x, weights) for x in (terms["pseudo"].value, pseudo))
    for found, gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(found, gradient)
    assert [terms[n].weight for n in names] == pytest.approx([1, 0.3, 0.3 * 0.3, 0.3 * 0.1])


def test_weights_rise_over_the_first_fiftieth_of_the_run():
    learner = small_learner(TraCoCo())
    batch = make_batch(learner.method, 0)
    steps = [Step(i, 10_000) for i in (0, 100, 200, 9_999)]
    weights = [terms_at(learner, batch, step)["pseudo"].weight for step in steps]
    assert weights == pytest.approx([0.3 * math.exp(-5), 0.3 * math.exp(-1.25), 0.3, 0.3])


def test_at_sixteen_filters_it_has_two_v_nets():
    shape = {"channels": 1, "width": 16, "levels": 5, "dropout": 0.5}
    nets = initialise(TraCoCo(), 0, **shape)
    assert sum(p.numel() for p in nets.parameters()) == 2 * 9_448_866 == 18_897_732


def test_the_authors_rate_falls_from_0_05_as_a_polynomial():
    rates = [TraCoCo.authors.learning_rate_at(Step(i, 9000)) for i in (0, 4500)]
    assert rates == pytest.approx([0.05, 0.05 * 0.5**0.9])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("variant", "paper", "variant='paper'; known: fixed, released"),
        ("weight", -1.0, "weight=-1.0; it must be at least 0"),
        ("rampup", 2.0, "rampup=2.0; it must lie in"),
        ("confident", 0.4, "confident=0.4; it must lie in"),
        ("unlikely", 0.6, "unlikely=0.6; it must lie in"),
        ("noise", -0.2, "noise=-0.2; it must be at least 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        TraCoCo(**{name: value})
