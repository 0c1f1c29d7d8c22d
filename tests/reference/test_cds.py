"""CDS against its formulas, written out cell by cell."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import factory, initialise
from methods.base import Batch, Step
from methods.cds import (
    CDS,
    Headed,
    Memory,
    Seen,
    at_cells,
    competition,
    contrast,
    nearest,
    prototypes,
    reliable,
    some,
)
from tests.reference.released import (
    OneByOne,
    fill,
    halves,
    in_their_order,
    objective,
    slopes,
    sum_and_norm,
    waves,
)

EARLY = Step(14, 40)
"""Just after contrast began: 13 % of the voxels can be reliable."""


def trained(method):
    """A learner with filled memories, with dropout off and fixed batch statistics."""
    learner = small_learner(method)
    train(learner, make_batch(method, 1), RUN)
    learner.nets.eval()
    return learner


@pytest.fixture(scope="module")
def learner():
    return trained(CDS(noise_std=0.0))


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def naive_contrast(anchors, positives, negatives, *, released=False):
    """Over lists of vectors."""
    total = 0.0
    distances = sum(1 - cosine(a, n) for a in anchors for n in negatives) if released else 0.0
    for a in anchors:
        similar = 0.0 if released else sum(math.exp(cosine(a, n) / 0.5) for n in negatives)
        for p in positives:
            s = cosine(a, p)
            up = math.exp((1 - s if released else s) / 0.5)
            total -= math.log(up / (up + distances + similar))
    return total / max(1, len(anchors) * len(positives))


def rows(vectors, which):
    return [v for v, counts in zip(vectors.tolist(), which.tolist(), strict=True) if counts]


def random_set(rng, number):
    vectors = torch.randn(number, 5, generator=rng)
    return vectors, torch.rand(number, generator=rng) < 0.6


@pytest.mark.parametrize("released", [False, True])
def test_contrast_equals_the_sum_over_anchors_and_positives(rng, released):
    sets = [random_set(rng, number) for number in (7, 9, 8)]
    expected = naive_contrast(*(rows(*x) for x in sets), released=released)
    assert contrast(*sets, released=released).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_contrast_without_anchors_positives_or_negatives_is_zero(rng, empty):
    sets = [random_set(rng, number) for number in (7, 9, 8)]
    sets[empty] = (sets[empty][0].zero_(), torch.zeros_like(sets[empty][1]))
    anchors = sets[0][0].requires_grad_()
    value = contrast(*sets)
    value.backward()
    assert value.item() == 0.0
    assert anchors.grad.count_nonzero() == 0


def test_contrast_falls_as_the_positive_comes_near_and_in_the_release_as_it_leaves():
    def at(angle, released):
        one = torch.tensor([[1.0, 0.0]])
        positive = torch.tensor([[math.cos(angle), math.sin(angle)]])
        negative = torch.tensor([[0.0, -1.0]])
        yes = torch.ones(1, dtype=torch.bool)
        return contrast((one, yes), (positive, yes), (negative, yes), released=released).item()

    assert at(0.1, False) < at(1.0, False) < at(2.0, False)
    assert at(0.1, True) > at(1.0, True) > at(2.0, True)


def test_only_the_surer_student_learns_the_teachers_class(rng):
    one, two = (torch.randn(2, 2, 3, 2, 2, generator=rng).requires_grad_() for _ in range(2))
    said = torch.randint(2, (2, 3, 2, 2), generator=rng)
    total, learners = 0.0, []
    for b, x, y, z in torch.cartesian_prod(*map(torch.arange, said.shape)).tolist():
        p, q = one[b, :, x, y, z].softmax(0).tolist(), two[b, :, x, y, z].softmax(0).tolist()
        learners.append(max(p) > max(q))
        total -= math.log((p if max(p) > max(q) else q)[said[b, x, y, z]])
    value = competition(one, two, said)
    assert value.item() == pytest.approx(total / said.numel(), rel=1e-5)
    value.backward()
    assert (one.grad[:, 0] != 0).flatten().tolist() == learners
    assert (two.grad[:, 0] == 0).flatten().tolist() == learners


def test_a_tie_teaches_nobody():
    logits = torch.zeros(1, 2, 1, 1, 1)
    assert competition(logits, logits, torch.zeros(1, 1, 1, 1).long()).item() == 0.0


def test_reliable_voxels_agree_are_sure_and_are_among_the_hardest(rng):
    logits = 20 * torch.randn(2, 2, 5, 6, 7, generator=rng)
    said = torch.randint(2, (2, 5, 6, 7), generator=rng)
    step = Step(10, 40)
    entropies = []
    for a, b in logits.softmax(1).movedim(1, -1).reshape(-1, 2).tolist():
        entropies.append(-a * math.log(a + 1e-10) - b * math.log(b + 1e-10))
    place = 0.85 * (len(entropies) - 1)  # the hardest 15 %, as NumPy's percentile
    low, high = (sorted(entropies)[int(place) + i] for i in (0, 1))
    limit = low + (place - int(place)) * (high - low)
    found = reliable(logits, said, step).flatten().tolist()
    p = logits.softmax(1).movedim(1, -1).reshape(-1, 2).tolist()
    expected = [
        (b > a) == (s == 1) and max(a, b) > 0.7 and e >= limit
        for (a, b), s, e in zip(p, said.flatten().tolist(), entropies, strict=True)
    ]
    assert found == expected
    assert sum(found) > 0


def test_prototypes_are_means_of_normalised_sure_vectors(rng):
    vectors = torch.randn(9, 4, generator=rng)
    said = torch.tensor([0, 1, 0, 1, 0, 1, 0, 0, 0])
    sure = torch.tensor([1, 1, 0, 0, 1, 1, 1, 0, 1]).bool()
    means = prototypes(vectors, said, sure)
    for c in (0, 1):
        mine = [
            [x / math.sqrt(sum(y * y for y in v)) for x in v]
            for v in rows(vectors, sure & (said == c))
        ]
        expected = [sum(column) / len(mine) for column in zip(*mine, strict=True)]
        assert means[c].tolist() == pytest.approx(expected, rel=1e-5)
    assert prototypes(vectors, said, torch.zeros(9).bool()).tolist() == [[0.0] * 4] * 2


def test_the_class_of_a_cell_is_that_of_the_prototype_at_the_smaller_angle(rng):
    vectors, means = torch.randn(20, 4, generator=rng), torch.randn(2, 4, generator=rng)
    expected = [int(cosine(v, means[1]) > cosine(v, means[0])) for v in vectors]
    assert nearest(vectors, means).tolist() == expected
    assert nearest(vectors, torch.stack([means[0] * 0, means[1]])).tolist() == [
        int(cosine(v, means[1]) > 0) for v in vectors
    ]


def test_cells_take_their_first_voxel_as_nearest_interpolation_does(rng):
    x = torch.randn(2, 3, 8, 4, 6, generator=rng)
    expected = F.interpolate(x, size=(2, 2, 2), mode="nearest")
    assert at_cells(x, torch.Size((2, 2, 2))).equal(expected)


def test_a_memory_keeps_the_newest_of_each_class():
    memory = Memory(1)
    for first in range(0, 300, 20):
        vectors = torch.arange(first, first + 20.0).unsqueeze(1)
        memory.take(1, vectors, vectors[:, 0] % 2 == 0)
    assert memory.filled[1].sum() == 150
    assert memory.vectors[1, :10, 0].tolist() == [280 + 2 * i for i in range(10)]
    for _ in range(10):
        memory.take(1, torch.full((20, 1), -1.0), torch.ones(20).bool())
    assert memory.filled[1].all()
    assert (memory.vectors[1, :200, 0] == -1).all()
    assert memory.vectors[1, 200:203, 0].tolist() == [280.0, 282.0, 284.0]
    assert not memory.filled[0].any()


def test_some_are_at_most_as_many_as_allowed_and_all_wanted(rng):
    wanted = torch.rand(100, generator=rng) < 0.5
    few = some(wanted, 7, rng)
    assert few.sum() == 7
    assert (few & ~wanted).sum() == 0
    assert not few.equal(some(wanted, 7, rng))
    assert some(wanted, 100, rng).equal(wanted)


def test_memories_hold_what_the_teacher_got_right_and_wrong_on_labelled_cells_only():
    method = CDS()
    learner, batch = small_learner(method), make_batch(method, 0)
    teacher = learner.nets["teacher"].eval()
    bias = teacher.net.decoder.output.bias
    with torch.no_grad():
        bias[:] = torch.tensor([0.0, 9.0])  # surely foreground, everywhere
    method.losses(learner.nets, batch, Step(7, 40), torch.Generator())
    cells = teacher(batch.image).projection.movedim(1, -1).flatten(0, -2)
    truth = batch.label[..., ::4, ::4, ::4].flatten()
    right, wrong = learner.nets["right"], learner.nets["wrong"]
    assert (truth == 1).sum() <= 32
    assert right.vectors[1][right.filled[1]].equal(cells[truth == 1])
    assert not right.filled[0].any()
    assert not wrong.filled.any()
    with torch.no_grad():
        bias[:] = torch.tensor([0.0, 0.05])  # hardly foreground
        teacher.net.decoder.output.weight.zero_()
    method.losses(learner.nets, batch, Step(7, 40), torch.Generator())
    assert wrong.filled.sum(1).tolist() == [32, 0]
    kept = wrong.vectors[0][wrong.filled[0]].tolist()
    assert all(v in cells[truth == 0].tolist() for v in kept)


def heads(learner, name, images):
    """Logits and prediction vectors as rows, of the cells of each volume."""
    net = learner.nets[name]
    output = net.net(images)
    cells = net.predict(net.project(output.deepest)).movedim(1, -1).flatten(0, -2)
    return output.logits, cells


def naive_terms(learner, batch):
    """`low_level` and `high_level` from the memories as they are now."""
    nets, u = learner.nets, batch.unlabelled
    outputs = [heads(learner, name, u) for name in ("student1", "student2")]
    logits_t, vectors_t = heads(learner, "teacher", u)
    corner = (..., slice(None, None, 4), slice(None, None, 4), slice(None, None, 4))
    p_t = logits_t.softmax(1)[corner].movedim(1, -1).reshape(-1, 2)
    means = prototypes(vectors_t, p_t.argmax(1), p_t.amax(1) > 0.85)
    banks = {
        name: [rows(nets[name].vectors[c], nets[name].filled[c]) for c in (0, 1)]
        for name in ("right", "wrong")
    }
    low = 0.0
    for _, vectors in outputs:
        kind = nearest(vectors, means)
        for c in (0, 1):
            args = rows(vectors, kind == c), banks["right"][c], banks["wrong"][c]
            low += naive_contrast(*args) / 2
    said = logits_t.argmax(1)
    good = [reliable(x, said, EARLY)[corner].flatten() for x, _ in outputs]
    classes = [x.argmax(1)[corner].flatten() for x, _ in outputs]
    sure = [x.softmax(1).amax(1)[corner].flatten() for x, _ in outputs]
    (_, a), (_, b) = outputs
    high = 0.0
    for c in (0, 1):
        for own, other, vectors, kind in ((0, 1, a, classes[0]), (1, 0, b, classes[1])):
            anchors = rows(vectors, good[own] & ~good[other] & (kind == c))
            high += naive_contrast(anchors, banks["right"][c], banks["wrong"][c]) / 2
        for surer in (sure[0] > sure[1], sure[0] < sure[1]):
            both = good[0] & good[1] & surer
            anchors, positives = (
                rows(a, both & (classes[0] == c)),
                rows(b, both & (classes[1] == c)),
            )
            high += naive_contrast(anchors, positives, banks["wrong"][c]) / 2
    return low, high


def test_both_levels_of_contrast_equal_the_sums_over_cells(learner):
    batch = make_batch(learner.method, 0)
    with torch.no_grad():  # students that agree with the teacher, not quite surely
        for p, q in zip(
            learner.nets["student2"].parameters(),
            learner.nets["student1"].parameters(),
            strict=True,
        ):
            p.copy_(q * 1.02)
    terms = terms_at(learner, batch, EARLY)
    low, high = naive_terms(learner, batch)
    assert low > 0
    assert high > 0
    assert terms["low_level"].value.item() == pytest.approx(low, rel=1e-3)
    assert terms["high_level"].value.item() == pytest.approx(high, rel=1e-3)
    assert (terms["low_level"].weight, terms["high_level"].weight) == (0.01, 0.1)


def test_the_supervised_term_is_the_cross_entropy_of_both_students(learner):
    batch = make_batch(learner.method, 0)
    expected = sum(
        F.cross_entropy(learner.nets[name].net(batch.image).logits, batch.label).item()
        for name in ("student1", "student2")
    )
    assert terms_at(learner, batch, RUN[0])["supervised"].value.item() == pytest.approx(expected)


def test_contrast_begins_after_a_third_of_the_run_and_memories_after_a_sixth():
    method = CDS()
    batch = make_batch(method, 0)
    for index, filled, contrasted in ((999, False, False), (1000, True, False), (2000, True, True)):
        learner = small_learner(method)
        with torch.no_grad():
            learner.nets["teacher"].net.decoder.output.bias[:] = torch.tensor([0.0, 9.0])
        terms = method.losses(learner.nets, batch, Step(index, 6000), torch.Generator())
        assert bool(learner.nets["right"].filled.any()) == filled
        assert ("low_level" in terms) == ("high_level" in terms) == contrasted


def test_the_teacher_follows_the_mean_of_the_students():
    method = CDS()
    learner = small_learner(method)
    nets = learner.nets
    with torch.no_grad():
        for p in nets["student2"].parameters():
            p.add_(0.5)
    old, one, two = (
        nets[name].predict[0].weight.clone() for name in ("teacher", "student1", "student2")
    )
    method.after_step(nets, Step(3, 40))
    decay = 1 - 1 / 31
    expected = decay * old + (1 - decay) * (one + two) / 2
    torch.testing.assert_close(nets["teacher"].predict[0].weight, expected)
    method.after_step(nets, Step(0, 40))
    torch.testing.assert_close(nets["teacher"].predict[0].weight, (one + two) / 2)


def test_in_the_release_both_students_are_one_and_contrast_has_the_other_sign(learner):
    released = small_learner(CDS(variant="released"))
    assert set(released.nets) == {"student1", "teacher", "right", "wrong"}
    terms = train(released, make_batch(released.method, 0), RUN)[-1]
    assert set(terms) == {"supervised", "competition", "low_level", "high_level"}
    assert set(released.method.predictors(released.nets)) == {"main", "teacher"}


def test_students_and_teacher_are_equal_at_the_start_and_part_by_their_noise():
    learner = small_learner(CDS(), dropout=0.0)
    names = ("student1", "student2", "teacher")
    first, second, third = (learner.nets[name].state_dict() for name in names)
    assert all(first[k].equal(second[k]) and first[k].equal(third[k]) for k in first)
    train(learner, make_batch(learner.method, 0), RUN[:1])
    assert any(not first[k].equal(second[k]) for k in first)


def filled(number, phase):
    """A memory with so many vectors of each class."""
    memory = Memory(5).double()
    for c in (0, 1):
        memory.take(c, waves(number, 5, phase=phase + c), torch.ones(number, dtype=torch.bool))
    return memory


@pytest.mark.parametrize("variant", ["fixed", "released"])
def test_terms_memories_and_gradients_have_the_figure_of_the_released_code(variant):
    """FengZhao2001/CDS@60573e1, code/train_CDS_LA.py, lines 150-481, halfway, as iteration 3,000.

    With heads that change nothing and the unlabelled volumes' labels made a third class, which its
    memories do not take. A student that is not the surer one costs log 2 there, here 0. Contrast
    is compared where its sign is the release's.
    """
    goal = torch.cat([waves(2, 2, 12, 8, 8, phase=1) / 2, 16 * waves(2, 2, 12, 8, 8, phase=2)])
    logits = [(goal + 2 * waves(4, 2, 12, 8, 8, phase=k)).requires_grad_() for k in (3.5, 4.5)]
    cells = [waves(4, 5, 6, 4, 4, phase=k).requires_grad_() for k in (5, 6)]
    one, two = (Seen(z, f, f) for z, f in zip(logits, cells, strict=True))
    taught = waves(4, 5, 6, 4, 4, phase=7)
    students = (
        {"student1": OneByOne(one), "student2": OneByOne(two)}
        if variant == "fixed"
        else {"student1": OneByOne(one, two)}
    )
    nets = nn.ModuleDict(students | {"teacher": OneByOne(Seen(goal, taught, taught))})
    nets.update({"right": filled(6, 10), "wrong": filled(5, 20)})
    image = torch.zeros(2, 1, 12, 8, 8)
    terms = CDS(variant=variant).losses(
        nets,
        Batch(image, halves(2, 12, 8, 8, phase=8), image, {}),
        Step(3000, 6000),
        torch.Generator(),
    )
    figure = {"supervised": 2.395954633, "competition": 0.09985004096}
    if variant == "released":
        figure |= {"low_level": 9.414696935, "high_level": 6.067765992}
    for name, value in figure.items():
        assert terms[name].value.item() == pytest.approx(value, rel=1e-8)
    kept = [nets[n].vectors[c][nets[n].filled[c]] for n in ("right", "wrong") for c in (0, 1)]
    assert [len(vectors) for vectors in kept] == [12, 6, 11, 9]
    assert [sum_and_norm(vectors) for vectors in kept] == [
        pytest.approx(expected, rel=1e-9)
        for expected in (
            (-11.70283183, 10.55158475),
            (-11.82805327, 7.919725349),
            (22.26566815, 9.996911838),
            (4.821438614, 9.428895681),
        )
    ]
    if variant == "released":
        assert objective(terms).item() == pytest.approx(3.196728243, rel=1e-9)
        expected = [0.02237498557, 0.0187110289, 0.02029546047, 0.02175478791]
        assert slopes(objective(terms), [*logits, *cells]) == pytest.approx(expected, rel=1e-8)


def test_the_moved_teacher_has_the_figure_of_the_released_code():
    """FengZhao2001/CDS@60573e1, code/train_CDS_LA.py, `update_ema_variables`."""
    for index, figure in ((0, 2.189921119), (3, 3.74719677), (500, 3.883512168)):
        names = ("student1", "student2", "teacher")
        nets = nn.ModuleDict({name: nn.Linear(3, 2).double() for name in names})
        fill(nets.parameters())
        CDS().after_step(nets, Step(index, 6000))
        assert nets["teacher"].weight.norm().item() == pytest.approx(figure, rel=1e-9)


def test_network_and_heads_have_the_figure_of_the_released_code():
    """FengZhao2001/CDS@60573e1, code/networks/vnet.py, VNet; its heads at 256 channels."""
    net = factory(0, channels=1, width=2, levels=5, dropout=0.0)("vnet").double()
    fill(in_their_order(net.encoder, net.decoder))
    heads = Headed(nn.Identity(), 256).double()
    fill(heads.parameters())
    with torch.no_grad():
        output = net(waves(2, 1, 16, 32, 16))
        for parameter in heads.parameters():
            parameter /= 16
        projection = heads.project(waves(40, 256).T.reshape(1, 256, 40, 1, 1))
        prediction = heads.predict(projection)
    assert sum_and_norm(output.logits) == pytest.approx((-102449.0057, 871.7926307), rel=1e-9)
    assert sum_and_norm(output.deepest) == pytest.approx((127.4993382, 16.61670378), rel=1e-9)
    assert sum_and_norm(projection) == pytest.approx((9.460147085, 15.1461307), rel=1e-8)
    assert sum_and_norm(prediction) == pytest.approx((-29.93457336, 14.75088552), rel=1e-8)


def test_the_heads_fit_the_deepest_level_whatever_the_size():
    nets = initialise(CDS(), 0, channels=1, width=3, levels=4, dropout=0.5)
    seen = nets["teacher"](torch.zeros(2, 1, 8, 8, 16))
    assert seen.prediction.shape == (2, 24, 1, 1, 2)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("decay", 1.5, r"lie in \[0, 1\]"),
        ("noise_std", -1.0, "be at least 0"),
        ("noise_limit", -1.0, "be at least 0"),
        ("memory_starts", 2.0, r"lie in \[0, 1\]"),
        ("contrast_starts", 2.0, r"lie in \[0, 1\]"),
        ("low", -0.1, "be at least 0"),
        ("high", -0.1, "be at least 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        CDS(**{name: value})


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant='paper'; known: fixed, released"):
        CDS(variant="paper")
