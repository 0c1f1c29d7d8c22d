"""CPCL against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import factory, initialise
from benchmark.networks.half_features_vnet import ENLARGE
from benchmark.seeding import torch_generator
from methods.base import Batch, NetOutput, Step
from methods.common import cross_entropy, hard_label, noisy, similarity
from methods.cpcl import CPCL, paired, prototypes
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


class Shown(Given):
    """`Given` that gives the outputs of the last volumes, as many as it is shown."""

    def forward(self, image):
        (output,) = self.outputs
        return NetOutput(output.logits[-len(image) :], output.features[-len(image) :])


@pytest.fixture
def both():
    """What student and teacher say of two labelled and two unlabelled volumes, and the labels."""
    student, teacher = (
        NetOutput(waves(4, 2, 6, 4, 8, phase=k), ENLARGE(waves(4, 5, 3, 2, 4, phase=2 + k)))
        for k in (0, 1)
    )
    return student, teacher, halves(2, 6, 4, 8, phase=4)


@pytest.mark.parametrize("variant", ["fixed", "released"])
def test_terms_weights_and_gradient_have_the_figure_of_the_released_code(both, variant):
    """lemoshu/CPCL@25b6332, code/train_CPCL_general_3D.py, lines 188-255 in iteration 3,000.

    The figure of the backward term is of one softmax, -log of `unlabeltolabel_pred`; that of the
    release is in the next test. Prototypes have no gradient there: its objective is compared
    without them.
    """
    student, teacher, label = both
    student.logits.requires_grad_()
    image = torch.zeros(2, 1, 6, 4, 8)
    terms = CPCL(variant=variant, **CPCL.with_authors).losses(
        nn.ModuleDict({"student": Shown(student), "teacher": Shown(teacher)}),
        Batch(image, label, image, {}),
        Step(3000, 10_000),
        torch.Generator(),
    )
    figure = {"supervised": 0.6089488183, "stability": 1.865920773}
    if variant == "fixed":
        figure |= {"forward": 0.2971870601, "backward": 1.52650229}
    weights = {"supervised": 1.0, "backward": 0.28650479686019015}
    assert {n: t.value.item() for n, t in terms.items()} == pytest.approx(figure, rel=1e-9)
    for name, term in terms.items():
        assert term.weight == pytest.approx(weights.get(name, 0.028650479686019012), rel=1e-9)
    trained = objective({name: terms[name] for name in ("supervised", "stability")})
    assert trained.item() == pytest.approx(0.6624083434, rel=1e-9)
    assert slopes(trained, [student.logits]) == pytest.approx([0.02686055942], rel=1e-9)


def test_prototypes_and_what_they_predict_have_the_figure_of_the_released_code(both):
    """lemoshu/CPCL@25b6332, code/train_CPCL_general_3D.py, `getPrototype` and `prototype_pred`."""
    student, teacher, label = both
    taught = teacher.logits[2:].softmax(1)
    ours = prototypes(student.features[:2], label, student.logits[:2].softmax(1))
    theirs = prototypes(teacher.features[2:], hard_label(taught), taught)
    found = [sum_and_norm(c) for c in (*ours.unbind(1), *theirs.unbind(1))]
    assert found == [
        pytest.approx(figure, rel=1e-9)
        for figure in (
            (-1.250751041, 0.802793567),
            (-1.377941797, 0.9649267644),
            (0.5712458621, 1.086466435),
            (1.026174469, 0.9380497863),
        )
    ]
    forward = (20 * similarity(teacher.features[2:], ours)).softmax(1)
    backward = (20 * similarity(student.features[:2], theirs)).softmax(1)
    assert sum_and_norm(forward[:, 1]) == pytest.approx((113.5497715, 9.525263435), rel=1e-9)
    assert sum_and_norm(backward[:, 1]) == pytest.approx((177.5478905, 11.67162879), rel=1e-9)
    twice = cross_entropy(backward, label).mean().item()
    assert twice == pytest.approx(0.7783774366, rel=1e-9)


def test_the_moved_teacher_has_the_figure_of_the_released_code():
    """lemoshu/CPCL@25b6332, code/train_CPCL_general_3D.py, `update_ema_variables`."""
    for index, figure in ((0, 2.8125302), (3, 2.694372954), (500, 3.485263725)):
        nets = nn.ModuleDict({n: nn.Linear(3, 2).double() for n in ("student", "teacher")})
        fill(nets.parameters())
        CPCL().after_step(nets, Step(index, 10_000))
        assert nets["teacher"].weight.norm().item() == pytest.approx(figure, rel=1e-9)


def test_the_network_has_the_figure_of_the_released_code():
    """lemoshu/CPCL@25b6332, code/networks/vnet.py, VNet_MTPD; its features enlarged."""
    net = factory(0, channels=1, width=2, levels=5, dropout=0.0)("vnet-half-features").double()
    fill(in_their_order(net.encoder, net.decoder))
    with torch.no_grad():
        output = net(waves(2, 1, 16, 32, 16))
    assert sum_and_norm(output.logits) == pytest.approx((-102449.0057, 871.7926307), rel=1e-9)
    assert sum_and_norm(output.features) == pytest.approx((81968.96136, 385.60745), rel=1e-9)


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
