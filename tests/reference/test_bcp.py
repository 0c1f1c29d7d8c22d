"""BCP against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import product

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import factory, initialise
from benchmark.seeding import torch_generator
from methods.base import Batch, Step
from methods.bcp import BCP, cuboid, halves, largest_component, masked_loss
from tests.reference import released
from tests.reference.released import (
    VoxelByVoxel,
    fill,
    in_their_order,
    objective,
    slopes,
    sum_and_norm,
    waves,
)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def naive_loss(logits, label, region):
    """Half the mean cross-entropy over the region, half one minus the mean Dice in it."""
    entropies, dices = [], []
    voxels = [v for v in product(*map(range, region.shape)) if region[v]]
    for b in range(len(logits)):
        probability = {}
        for v in voxels:
            scores = [math.exp(logits[(b, k, *v)].item()) for k in range(2)]
            probability[v] = [s / sum(scores) for s in scores]
            entropies.append(-math.log(probability[v][label[(b, *v)].item()]))
        for k in range(2):
            p = [probability[v][k] for v in voxels]
            t = [float(label[(b, *v)].item() == k) for v in voxels]
            overlap = sum(x * y for x, y in zip(p, t, strict=True))
            dices.append((2 * overlap + 1e-5) / (sum(p) + sum(t) + 1e-5))
    return (sum(entropies) / len(entropies) + 1 - sum(dices) / len(dices)) / 2


def test_the_loss_of_a_region_is_that_of_its_voxels_alone(rng):
    logits = 2 * torch.randn(3, 2, 3, 4, 2, generator=rng, dtype=torch.float64)
    label = torch.randint(2, (3, 3, 4, 2), generator=rng)
    region = torch.rand(3, 4, 2, generator=rng) < 0.6
    loss = masked_loss(logits, label, region)
    assert loss.item() == pytest.approx(naive_loss(logits, label, region), rel=1e-9)


def test_the_loss_of_an_empty_region_is_zero_with_a_finite_gradient():
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    label, nowhere = torch.ones(1, 2, 2, 2).long(), torch.zeros(2, 2, 2) > 0
    loss = masked_loss(logits, label, nowhere)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.equal(torch.zeros_like(logits))


@pytest.mark.parametrize(
    ("shape", "sides"), [((112, 112, 80), (74, 74, 53)), ((7, 4, 3), (4, 2, 2))]
)
def test_the_cuboid_has_two_thirds_of_each_side(shape, sides, rng):
    inside = cuboid(shape, 2 / 3, rng)
    assert inside.shape == shape
    for axis, side in enumerate(sides):
        others = tuple(a for a in range(3) if a != axis)
        along = inside.any(dim=others[1]).any(dim=others[0]).int()
        assert along.sum() == side
        assert along.diff().abs().sum() <= 2
    assert inside.sum() == math.prod(sides)


def test_the_cuboid_can_be_anywhere_that_it_fits(rng):
    starts = {tuple(cuboid((4, 3, 2), 0.5, rng).nonzero()[0].tolist()) for _ in range(400)}
    assert starts == set(product(range(3), range(3), range(2)))


@pytest.mark.parametrize(("side", "voxels"), [(0.0, 0), (1.0, 24)])
def test_the_cuboid_may_be_nothing_or_everything(side, voxels, rng):
    assert cuboid((4, 3, 2), side, rng).sum() == voxels


@pytest.mark.parametrize(
    ("volumes", "size", "first", "second"),
    [(2, 2, [0], [1]), (4, 4, [0, 1], [2, 3]), (1, 1, [0], [0]), (3, 3, [0, 1], [2, 0]),
     (2, 4, [0, 1], [0, 1])],
)  # fmt: skip
def test_halves_use_volumes_again_where_they_do_not_suffice(volumes, size, first, second):
    a, b = halves(torch.arange(volumes), size)
    assert (a.tolist(), b.tolist()) == (first, second)


def test_the_largest_component_is_kept_and_corners_connect():
    mask = torch.zeros(3, 5, 5, 5, dtype=torch.bool)
    mask[0, 0, 0, 0] = mask[0, 1, 1, 1] = mask[0, 2, 2, 2] = True  # three, by corners
    mask[0, 4, 4, 3:] = True  # two, by a face
    mask[1, 2, 3, 4] = True
    expected = mask.clone()
    expected[0, 4, 4, 3:] = False
    assert largest_component(mask).equal(expected)


@pytest.fixture(scope="module")
def learner():
    """Networks that have learnt something and differ, with dropout off."""
    learner = small_learner(BCP())
    train(learner, make_batch(learner.method, 1), RUN[:12])
    learner.nets.eval()
    return learner


def masked(learner, step):
    """The cuboid of a step."""
    rng = torch_generator(learner.seed, "noise", step.index)
    return cuboid((16, 16, 16), 2 / 3, rng)


def test_pre_training_pastes_labelled_into_labelled(learner):
    batch, step = make_batch(learner.method, 0), RUN[0]
    inside = masked(learner, step)
    image, label = batch.image[:1].clone(), batch.label[:1].clone()
    image[0, 0][inside] = batch.image[1, 0][inside]
    label[0][inside] = batch.label[1][inside]
    logits = learner.nets["student"](image).logits
    terms = terms_at(learner, batch, step)
    assert set(terms) == {"supervised"}
    expected = naive_loss(logits, label, torch.ones(16, 16, 16))
    assert terms["supervised"].value.item() == pytest.approx(expected, rel=1e-4)


def test_self_training_pastes_in_both_directions(learner):
    batch, step = make_batch(learner.method, 0), RUN[20]
    inside = masked(learner, step)
    student, teacher = learner.nets["student"], learner.nets["teacher"]
    pseudo = largest_component(teacher(batch.unlabelled).logits.argmax(1) == 1).long()
    assert 0 < pseudo.sum() < pseudo.numel()
    inward, outward = batch.image[:1].clone(), batch.unlabelled[1:].clone()
    inward[0, 0][inside] = batch.unlabelled[0, 0][inside]
    outward[0, 0][inside] = batch.image[1, 0][inside]
    inward, outward = student(inward).logits, student(outward).logits
    terms = terms_at(learner, batch, step)
    known = naive_loss(inward, batch.label[:1], ~inside)
    known += naive_loss(outward, batch.label[1:], inside)
    taught = naive_loss(inward, pseudo[:1], inside)
    taught += naive_loss(outward, pseudo[1:], ~inside)
    assert terms["supervised"].value.item() == pytest.approx(known, rel=1e-4)
    assert terms["pseudo"].value.item() == pytest.approx(taught, rel=1e-4)
    assert (terms["supervised"].weight, terms["pseudo"].weight) == (1.0, 0.5)


def test_self_training_begins_after_2000_of_17000_steps():
    learner = small_learner(BCP())
    batch = make_batch(learner.method, 0)
    kinds = [set(terms_at(learner, batch, Step(i, 17_000))) for i in (0, 1999, 2000, 16_999)]
    assert kinds == [{"supervised"}] * 2 + [{"supervised", "pseudo"}] * 2


def test_the_teacher_is_the_student_until_self_training_and_then_follows_it():
    learner = small_learner(BCP(pretraining=0.1))
    batch = make_batch(learner.method, 0)
    student, teacher = learner.nets["student"], learner.nets["teacher"]
    for step in RUN[:4]:
        train(learner, batch, [step])
        own, average = student.state_dict(), teacher.state_dict()
        assert all(own[name].equal(average[name]) for name in own), "buffers too"
    before = [p.clone() for p in teacher.parameters()]
    train(learner, batch, RUN[4:5])
    for old, new, source in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.99 * old + 0.01 * source)
    assert any(not p.equal(q) for p, q in zip(before, student.parameters(), strict=True))


def test_a_run_resumed_in_pre_training_goes_on_into_self_training_as_the_straight_one():
    learner = small_learner(BCP(pretraining=0.1))
    batch = make_batch(learner.method, 0)
    train(learner, batch, RUN[:2])
    other = small_learner(BCP(pretraining=0.1), seed=1)
    other.load(deepcopy(learner.state()))
    other.seed = learner.seed
    assert train(learner, batch, RUN[2:7]) == train(other, batch, RUN[2:7])


def test_fewer_labelled_than_unlabelled_volumes_are_used_again():
    learner = small_learner(BCP())
    batch = make_batch(learner.method, 0)
    lone = type(batch)(batch.image[:1], batch.label[:1], batch.unlabelled, {})
    assert set(terms_at(learner, lone, RUN[0])) == {"supervised"}
    assert set(terms_at(learner, lone, RUN[20])) == {"supervised", "pseudo"}


def test_the_authors_recipe_drops_the_rate_every_2500_steps_of_self_training():
    recipe = BCP.authors
    assert (recipe.labelled, recipe.unlabelled, recipe.steps) == (4, 4, 17_000)
    for index in range(0, 17_000, 100):
        expected = 0.01 * 0.1 ** (max(index - 2000, 0) // 2500)
        assert recipe.learning_rate_at(Step(index, 17_000)) == pytest.approx(expected)


def test_the_student_has_the_size_of_the_released_v_net():
    nets = initialise(BCP(), 0, channels=1, width=16, levels=5, dropout=0.5)
    assert sum(p.numel() for p in nets["student"].parameters()) == 9_448_866


def released_objective(step):
    """Terms and objective of four waves with labels and four without, and its gradient to them.

    The cuboid starts at (2, 0, 1), as the released code was made to draw it too.
    """
    shape, seeded = (9, 7, 6), torch.Generator().manual_seed(3)
    assert cuboid(shape, 2 / 3, seeded).nonzero()[0].tolist() == [2, 0, 1]
    images = waves(8, 1, *shape).requires_grad_()
    student = VoxelByVoxel((lambda x: 2 * x.sin(), lambda x: 2 * (3 * x).cos()))
    teacher = VoxelByVoxel((lambda x: x.cos() + 0.6, lambda x: (2 * x).sin()))
    terms = BCP().losses(
        torch.nn.ModuleDict({"student": student, "teacher": teacher}),
        Batch(images[:4], released.halves(4, *shape, phase=1), images[4:], {}),
        step,
        seeded.manual_seed(3),
    )
    values = {name: term.value.item() for name, term in terms.items()}
    return values, objective(terms).item(), *slopes(objective(terms), [images])


def test_pre_training_has_the_figure_of_the_released_code():
    """DeepMed-Lab-ECNU/BCP@7879f98, code/LA_BCP_train.py, lines 147-161, in float64."""
    values, total, slope = released_objective(Step(1999, 17_000))
    assert values["supervised"] == total == pytest.approx(1.04715037, rel=1e-9)
    assert slope == pytest.approx(0.06322569126, rel=1e-9)


def test_self_training_has_the_figure_of_the_released_code():
    """The same, lines 235-257; its two regions alone by weights of 1 and 0 in its mix_loss."""
    values, total, slope = released_objective(Step(2000, 17_000))
    assert values["supervised"] == pytest.approx(2.056201204, rel=1e-9)
    assert values["pseudo"] == pytest.approx(1.585566844, rel=1e-9)
    assert (total, slope) == pytest.approx((2.848984626, 0.1572697507), rel=1e-9)


def test_pseudo_labels_have_the_figure_of_the_released_code():
    """The same, get_cut_mask of the teacher: the largest components have 54 and 88 voxels."""
    u = waves(8, 1, 9, 7, 6)[4:, 0]
    above = (2 * u).sin() >= u.cos() + 0.6
    kept = largest_component(above).flatten(1).sum(1)
    assert (kept[:2].sum().item(), kept[2:].sum().item()) == (54, 88)
    assert all(kept < above.flatten(1).sum(1))


def test_the_teacher_has_the_figure_of_the_released_code():
    """The same, code/utils/BCP_utils.py, update_ema_variables, three times with 0.99."""
    nets = torch.nn.ModuleDict({name: torch.nn.Linear(5, 3) for name in ("teacher", "student")})
    for phase, parameter in enumerate(nets.double().parameters()):
        parameter.data = waves(*parameter.shape, phase=phase)
    for index in (2000, 2001, 2002):
        BCP().after_step(nets, Step(index, 17_000))
    weight, bias = nets["teacher"].parameters()
    assert (weight.sum() + bias.sum()).item() == pytest.approx(8.439000699, rel=1e-9)
    assert weight.norm().item() == pytest.approx(5.316242872, rel=1e-9)


def test_the_network_has_the_figure_of_the_released_code():
    """The same, code/networks/VNet.py, VNet without its projection heads."""
    net = factory(0, channels=1, width=2, levels=5, dropout=0.0)().double()
    fill(in_their_order(net.encoder, net.decoder))
    with torch.no_grad():
        logits = net(waves(2, 1, 16, 32, 16)).logits
    assert sum_and_norm(logits) == pytest.approx((-102449.0057, 871.7926307), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("pretraining", -0.1, r"lie in \[0, 1\]"),
        ("alpha", -1.0, "be at least 0"),
        ("side", 1.5, r"lie in \[0, 1\]"),
        ("decay", 2.0, r"lie in \[0, 1\]"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        BCP(**{name: value})
