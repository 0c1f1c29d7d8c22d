"""AC-MT against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import initialise
from benchmark.networks.half_features_vnet import ENLARGE
from benchmark.seeding import torch_generator
from methods.acmt import ACMT, nearer_class, threshold_at
from methods.base import Batch, NetOutput, Step
from methods.common import both_classes_loss, noisy
from tests.reference.released import OneByOne, halves, objective, slopes, waves


def trained(**fields):
    """A method that has learnt a little, with dropout off."""
    learner = small_learner(ACMT(**fields))
    train(learner, make_batch(learner.method, 1), RUN[:8])
    learner.nets.eval()
    return learner


def entropies(p):
    """Normalised entropy of every voxel of (U, 2, X, Y, Z), as a list."""
    return [
        -sum(q * math.log(q + 1e-6) for q in voxel) / math.log(2)
        for voxel in p.movedim(1, -1).reshape(-1, 2).tolist()
    ]


def mean_over(mask, p, goal):
    """Squared difference of the masked voxels, mean over voxels and classes."""
    squares = (p - goal).square().movedim(1, -1).reshape(-1, 2).tolist()
    kept = [square for voxel, keep in zip(squares, mask, strict=True) if keep for square in voxel]
    assert 0 < len(kept) < 2 * len(mask)
    return sum(kept) / len(kept)


def test_the_supervised_term_has_the_dice_of_both_classes():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 2, 3, 4, generator=rng, dtype=torch.float64)
    target = torch.randint(2, (2, 2, 3, 4), generator=rng)
    p = logits.softmax(1).movedim(1, -1).reshape(-1, 2).tolist()
    t = target.flatten().tolist()
    entropy = -sum(math.log(q[k]) for q, k in zip(p, t, strict=True)) / len(t)
    dice = 0.0
    for c in range(2):
        overlap = sum(q[c] for q, k in zip(p, t, strict=True) if k == c)
        size = sum(q[c] ** 2 for q in p) + sum(k == c for k in t)
        dice += (1 - (2 * overlap + 1e-5) / (size + 1e-5)) / 2
    expected = 0.5 * (entropy + dice)
    assert both_classes_loss(logits, target).item() == pytest.approx(expected, rel=1e-9)


def test_entropy_selects_where_the_student_is_not_sure():
    learner = trained(threshold_start=0.9)
    batch, step = make_batch(learner.method, 0), RUN[20]
    rng = torch_generator(learner.seed, "noise", step.index)
    goal = learner.nets["teacher"](noisy(batch.unlabelled, 0.1, 0.2, rng)).logits.softmax(1)
    p = learner.nets["student"](batch.unlabelled).logits.softmax(1)
    threshold = 0.9 + 0.05 * math.exp(-5 * 0.5**2)
    term = terms_at(learner, batch, step)["consistency"]
    expected = mean_over([u >= threshold for u in entropies(p)], p, goal)
    assert term.value.item() == pytest.approx(expected, rel=1e-4)


def test_uncertainty_selects_by_the_mean_of_eight_passes_of_the_student():
    learner = trained(ambiguity="uncertainty", threshold_start=0.9, threshold_end=0.9)
    batch, step = make_batch(learner.method, 0), RUN[20]
    student, teacher = learner.nets["student"], learner.nets["teacher"]
    rng = torch_generator(learner.seed, "noise", step.index)
    goal = teacher(noisy(batch.unlabelled, 0.1, 0.2, rng)).logits.softmax(1)
    mean = 0
    for _ in range(4):
        disturbed = noisy(torch.cat([batch.unlabelled] * 2), 0.1, 0.2, rng)
        first, second = student(disturbed).logits.softmax(1).chunk(2)
        mean = mean + (first + second) / 8
    p = student(batch.unlabelled).logits.softmax(1)
    term = terms_at(learner, batch, step)["consistency"]
    expected = mean_over([u >= 0.9 for u in entropies(mean)], p, goal)
    assert term.value.item() == pytest.approx(expected, rel=1e-4)


def test_prototype_selects_where_student_and_nearer_prototype_differ():
    learner = trained(ambiguity="prototype")
    batch, step = make_batch(learner.method, 0), RUN[20]
    student, teacher = learner.nets["student"], learner.nets["teacher"]
    rng = torch_generator(learner.seed, "noise", step.index)
    goal = teacher(noisy(batch.unlabelled, 0.1, 0.2, rng)).logits.softmax(1)
    clean = teacher(batch.unlabelled)
    everywhere = torch.ones_like(clean.logits, dtype=torch.bool)
    nearer = nearer_class(clean.features, clean.logits.softmax(1), everywhere)
    p = student(batch.unlabelled).logits.softmax(1)
    ambiguous = (nearer[:, 0] != (p.argmax(1) == 1)).flatten().tolist()
    terms = terms_at(learner, batch, step)
    expected = mean_over(ambiguous, p, goal)
    assert terms["consistency"].value.item() == pytest.approx(expected, rel=1e-3)
    clear = [u * (not a) for u, a in zip(entropies(p), ambiguous, strict=True)]
    assert terms["entropy"].value.item() == pytest.approx(sum(clear) / len(clear), rel=1e-3)
    assert terms["entropy"].weight == terms["consistency"].weight


def test_the_nearer_class_is_that_of_the_smaller_distance_to_weighted_means():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 3, 3, 3, generator=rng, dtype=torch.float64)
    p = torch.randn(2, 2, 3, 3, 3, generator=rng, dtype=torch.float64).softmax(1)
    certain = torch.rand(2, 2, 3, 3, 3, generator=rng) < 0.7
    found = nearer_class(z, p, certain)
    assert found.shape == (2, 1, 3, 3, 3)
    for b in range(2):
        voxels = list(
            zip(z[b].flatten(1).T, p[b].flatten(1).T, certain[b].flatten(1).T, strict=True)
        )
        means = []
        for k in range(2):
            total, size = torch.zeros(5, dtype=torch.float64), 1e-5
            for f, q, c in voxels:
                if (q * c).argmax() == k:
                    total, size = total + q[k] * f, size + q[k]
            means.append(total / size)
        expected = [
            bool((f - means[1]).square().sum() < (f - means[0]).square().sum())
            for f, _, _ in voxels
        ]
        assert found[b].flatten().tolist() == expected
        assert 0 < sum(expected) < len(expected)


def test_a_teacher_that_wavers_everywhere_trusts_no_foreground():
    p = torch.full((1, 2, 2, 2, 2), 0.5)
    p[:, 1], p[:, 0] = 0.9, 0.1
    z = torch.ones(1, 3, 2, 2, 2)
    none = torch.zeros(1, 2, 2, 2, 2, dtype=torch.bool)
    assert not nearer_class(z, p, none).any()
    assert nearer_class(z, p, ~none).all()


def test_the_threshold_moves_over_the_whole_run():
    rising = [threshold_at(Step(i, 1000), 0.75, 0.95) for i in (0, 500, 999)]
    assert rising == pytest.approx([0.75 + 0.2 * math.exp(x) for x in (-5, -1.25, 0)], abs=1e-5)
    assert threshold_at(Step(999, 1000), 0.75, 0.6) == pytest.approx(0.6, abs=1e-5)


def test_no_ambiguous_voxel_is_a_term_of_zero():
    learner = trained(threshold_start=1.0, threshold_end=1.0)
    learner.nets["student"].decoder.output.bias.data[0] += 50
    term = terms_at(learner, make_batch(learner.method, 0), RUN[20])["consistency"]
    term.value.backward()
    assert term.value.item() == 0.0


def test_the_weight_rises_over_6000_of_20000_steps():
    learner = trained()
    batch = make_batch(learner.method, 0)
    weights = [
        terms_at(learner, batch, Step(i, 20_000))["consistency"].weight for i in (0, 3000, 6000)
    ]
    assert weights == pytest.approx([0.1 * math.exp(x) for x in (-5, -1.25, 0)])


@pytest.mark.parametrize("ambiguity", ["entropy", "uncertainty", "prototype"])
def test_every_term_of_every_kind_trains_the_student(ambiguity):
    learner = trained(ambiguity=ambiguity)
    learner.nets.train()
    terms = terms_at(learner, make_batch(learner.method, 0), RUN[20])
    assert ("entropy" in terms) == (ambiguity == "prototype")
    for term in terms.values():
        learner.nets.zero_grad()
        term.value.backward(retain_graph=True)
        gradients = [p.grad for p in learner.nets["student"].parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in gradients)
        assert any(g.count_nonzero() for g in gradients)


def says(volumes, phase, features=0.0):
    """What a network says of so many volumes."""
    return NetOutput(
        waves(volumes, 2, 6, 4, 8, phase=phase),
        ENLARGE(waves(volumes, 5, 3, 2, 4, phase=features)),
    )


FOUR = [says(4, 2 + 0.2 * k) for k in range(4)]
"""Passes of the student over two unlabelled volumes, each there twice."""
TEN = [says(1, 1 + 0.2 * k, 3 + 0.2 * k) for k in range(10)]
"""Passes of the teacher over one unlabelled volume."""


@pytest.mark.parametrize(
    ("fields", "unlabelled", "passes", "teacher", "figure"),
    [
        (
            {"ambiguity": "entropy"},
            2,
            [],
            [says(2, 1)],
            {"consistency": 0.157094026, "objective": 0.6134496375, "slope": 0.02642499555},
        ),
        (
            {"ambiguity": "uncertainty", "threshold_end": 0.9, "weight": 0.2},
            2,
            FOUR,
            [says(2, 1)],
            {"consistency": 0.3521828535 / 2, "objective": 0.6190390259, "slope": 0.02642655643},
        ),
        (
            {"ambiguity": "prototype"},
            1,
            [],
            [says(1, 8, 9), says(1, 1, 3), *TEN],
            {"consistency": 0.2100459579, "objective": 0.6244484865, "slope": 0.02642984222},
        ),
    ],
    ids=["entropy", "uncertainty", "prototype"],
)
def test_terms_and_gradient_have_the_figure_of_the_released_code(
    fields, unlabelled, passes, teacher, figure
):
    """lemoshu/AC-MT@62c7702, iteration 3,000 of 8,000 of code/train_ACMT_*_3D.py.

    Ent., lines 157-192; MU, 141-186, whose consistency is twice ours at half the weight; PErr,
    173-246, with one unlabelled volume, where its entropy's shapes meet as they should.
    """
    logits = waves(2 + unlabelled, 2, 6, 4, 8).requires_grad_()
    image = torch.zeros(2, 1, 6, 4, 8)
    nets = {"student": OneByOne(NetOutput(logits, logits), *passes), "teacher": OneByOne(*teacher)}
    terms = ACMT(**ACMT.with_authors, **fields).losses(
        nn.ModuleDict(nets),
        Batch(image, halves(2, 6, 4, 8, phase=4), image[:unlabelled], {}),
        Step(3000, 8000),
        torch.Generator(),
    )
    assert terms["supervised"].value.item() == pytest.approx(0.6089488183, rel=1e-9)
    assert terms["consistency"].value.item() == pytest.approx(figure["consistency"], rel=1e-9)
    if "entropy" in terms:
        assert terms["entropy"].value.item() == pytest.approx(0.3309456217, rel=1e-9)
    assert objective(terms).item() == pytest.approx(figure["objective"], rel=1e-9)
    assert slopes(objective(terms), [logits]) == pytest.approx([figure["slope"]], rel=1e-9)


def test_the_student_has_the_size_of_a_v_net():
    nets = initialise(ACMT(), 0, channels=1, width=16, levels=5, dropout=0.5)
    assert sum(p.numel() for p in nets["student"].parameters()) == 9_448_866


def test_the_authors_recipe_is_poly_over_8000_steps():
    recipe = ACMT.authors
    assert recipe.steps == 8000
    assert recipe.learning_rate_at(Step(4000, 8000)) == pytest.approx(0.01 * 0.5**0.9)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("weight", -0.1, "be at least 0"),
        ("rampup", -0.5, r"lie in \[0, 1\]"),
        ("decay", 2.0, r"lie in \[0, 1\]"),
        ("noise_std", -1.0, "be at least 0"),
        ("noise_limit", -1.0, "be at least 0"),
        ("threshold_start", 1.5, r"lie in \[0, 1\]"),
        ("threshold_end", -0.5, r"lie in \[0, 1\]"),
        ("spread", -0.1, "be at least 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        ACMT(**{name: value})


def test_an_unknown_ambiguity_is_refused():
    with pytest.raises(ValueError, match="known: entropy, uncertainty, prototype"):
        ACMT(ambiguity="label-noise")
