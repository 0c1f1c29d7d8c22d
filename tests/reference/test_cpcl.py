"""CPCL against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import initialise
from benchmark.seeding import torch_generator
from methods.base import Step
from methods.common import noisy, similarity
from methods.cpcl import CPCL, paired, prototypes


@pytest.fixture(scope="module")
def learner():
    """A network that has learnt a little, with dropout off."""
    learner = small_learner(CPCL())
    train(learner, make_batch(learner.method, 1), RUN[:8])
    learner.nets.eval()
    return learner


def means(z, label, p):
    """Prototypes of one volume's features (F, X, Y, Z), class after class."""
    found = []
    for k in range(2):
        total, size = torch.zeros(len(z), dtype=z.dtype), 1e-5
        for f, y, q in zip(z.flatten(1).T, label.flatten(), p.flatten(1).T, strict=True):
            if y == k:
                total, size = total + q[k] * f, size + q[k]
        found.append(total / size)
    return found


def test_prototypes_are_weighted_means_of_a_volume_and_class():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 2, 3, 4, generator=rng, dtype=torch.float64)
    label = torch.randint(2, (2, 2, 3, 4), generator=rng)
    p = torch.randn(2, 2, 2, 3, 4, generator=rng, dtype=torch.float64).softmax(1)
    found = prototypes(z, label, p)
    for b in range(2):
        torch.testing.assert_close(found[b], torch.stack(means(z[b], label[b], p[b])))


def test_a_class_without_voxels_has_its_prototype_at_zero_and_similarity_zero():
    z = torch.rand(1, 3, 2, 2, 2)
    found = prototypes(
        z, torch.zeros(1, 2, 2, 2, dtype=torch.int64), torch.full((1, 2, 2, 2, 2), 0.5)
    )
    assert found[0, 1].tolist() == [0, 0, 0]
    assert found[0, 0].count_nonzero() == 3
    assert similarity(z, found)[0, 1].count_nonzero() == 0


def test_similarity_is_the_cosine():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 2, 3, 4, generator=rng, dtype=torch.float64)
    c = torch.randn(2, 2, 5, generator=rng, dtype=torch.float64)
    found = similarity(z, c)
    for b in range(2):
        for k in range(2):
            for i, f in enumerate(z[b].flatten(1).T):
                expected = (f @ c[b, k]) / (f.norm() * c[b, k].norm())
                assert found[b, k].flatten()[i].item() == pytest.approx(expected.item())


def test_features_of_no_length_have_no_gradient_without_bounds():
    z = torch.full((1, 2, 1, 1, 1), 1e-9, requires_grad=True)
    similarity(z, torch.eye(2).unsqueeze(0)).sum().backward()
    assert z.grad.abs().max().item() == pytest.approx(10)


def by_hand(z, prototypes):
    """Probabilities of one volume's features by its partner's prototypes, (X * Y * Z, 2)."""
    rows = []
    for f in z.flatten(1).T:
        a, b = (
            20 * ((f @ c) / (f.norm().clamp_min(0.1) * c.norm().clamp_min(0.1))).item()
            for c in prototypes
        )
        rows.append([1 / (1 + math.exp(b - a)), 1 / (1 + math.exp(a - b))])
    return torch.tensor(rows)


def test_both_directions_pair_volumes_by_their_place_in_the_batch(learner):
    batch = make_batch(learner.method, 0)
    cut = (..., slice(4, 12), slice(4, 12), slice(4, 12))
    batch = type(batch)(batch.image[cut], batch.label[cut], batch.unlabelled[cut], {})
    ours = learner.nets["student"](batch.image)
    theirs = learner.nets["teacher"](batch.unlabelled)
    taught = theirs.logits.softmax(1)
    forward = backward = 0.0
    for b in range(2):
        labelled = means(ours.features[b], batch.label[b], ours.logits.softmax(1)[b])
        unlabelled = means(theirs.features[b], taught[b].argmax(0), taught[b])
        q = by_hand(theirs.features[b], labelled)
        forward += (q - taught[b].flatten(1).T).square().mean().item() / 2
        q = by_hand(ours.features[b], unlabelled)
        chosen = q[range(len(q)), batch.label[b].flatten()]
        backward -= chosen.log().mean().item() / 2
    terms = terms_at(learner, batch, RUN[20])
    assert terms["forward"].value.item() == pytest.approx(forward, rel=1e-3)
    assert terms["backward"].value.item() == pytest.approx(backward, rel=1e-3)


def test_stability_compares_scores_of_all_volumes_with_the_noisy_teachers(learner):
    batch, step = make_batch(learner.method, 0), RUN[20]
    images = torch.cat([batch.image, batch.unlabelled])
    rng = torch_generator(learner.seed, "noise", step.index)
    goal = learner.nets["teacher"](noisy(images, 0.1, 0.2, rng)).logits
    expected = (learner.nets["student"](images).logits - goal).square().mean()
    torch.testing.assert_close(terms_at(learner, batch, step)["stability"].value, expected)


def test_weights_rise_over_6000_of_20000_steps_and_the_backward_ones_are_ten_times_the_others(
    learner,
):
    batch = make_batch(learner.method, 0)
    for index, part in ((0, math.exp(-5)), (3000, math.exp(-1.25)), (6000, 1.0), (9000, 1.0)):
        terms = terms_at(learner, batch, Step(index, 20_000))
        weights = [terms[n].weight for n in ("supervised", "forward", "backward", "stability")]
        assert weights == pytest.approx([1.0, 0.1 * part, 1.0 * part, 0.1 * part])


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_both_directions_learn_through_the_labelled_volumes_alone(learner, name):
    batch = make_batch(learner.method, 0)
    batch.image.requires_grad_()
    batch.unlabelled.requires_grad_()
    terms_at(learner, batch, RUN[20])[name].value.backward()
    assert batch.image.grad.count_nonzero() > 0
    assert batch.unlabelled.grad.count_nonzero() == 0


def test_the_released_prototypes_train_nothing():
    learner = small_learner(CPCL(variant="released"))
    terms = terms_at(learner, make_batch(learner.method, 0), RUN[20])
    assert set(terms) == {"supervised", "stability"}
    fixed = terms_at(small_learner(CPCL()), make_batch(learner.method, 0), RUN[20])
    assert set(fixed) == {"supervised", "stability", "forward", "backward"}
    for name, term in terms.items():
        assert fixed[name].value.equal(term.value)


def test_the_paper_has_no_stability_term():
    learner = small_learner(CPCL(stability=0.0))
    terms = terms_at(learner, make_batch(learner.method, 0), RUN[20])
    assert set(terms) == {"supervised", "forward", "backward"}


def test_partners_repeat_when_they_run_out():
    assert paired(torch.tensor([[1], [2], [3]]), 2).tolist() == [[1], [2]]
    assert paired(torch.tensor([[1], [2]]), 5).tolist() == [[1], [2], [1], [2], [1]]


def test_unequal_numbers_of_volumes_are_paired(learner):
    batch = make_batch(learner.method, 0)
    fewer = type(batch)(batch.image[:1], batch.label[:1], batch.unlabelled, {})
    assert all(t.value.isfinite() for t in terms_at(learner, fewer, RUN[20]).values())


def test_the_student_has_the_size_of_a_v_net():
    nets = initialise(CPCL(), 0, channels=1, width=16, levels=5, dropout=0.5)
    assert sum(p.numel() for p in nets["student"].parameters()) == 9_448_866


def test_the_authors_recipe_is_poly_over_10000_steps():
    recipe = CPCL.authors
    assert recipe.steps == 10_000
    assert recipe.learning_rate_at(Step(5000, 10_000)) == pytest.approx(0.01 * 0.5**0.9)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("weight", -0.1, "be at least 0"),
        ("backward", -1.0, "be at least 0"),
        ("stability", -1.0, "be at least 0"),
        ("rampup", 1.5, r"lie in \[0, 1\]"),
        ("sharpness", -20.0, "be at least 0"),
        ("decay", 2.0, r"lie in \[0, 1\]"),
        ("noise_std", -1.0, "be at least 0"),
        ("noise_limit", -1.0, "be at least 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        CPCL(**{name: value})


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="known: fixed, released"):
        CPCL(variant="paper")
