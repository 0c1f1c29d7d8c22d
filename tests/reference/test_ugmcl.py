"""UG-MCL against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import initialise
from benchmark.seeding import torch_generator
from methods.base import Batch, NetOutput, Step
from methods.common import noisy, supervised_loss
from methods.ugmcl import UGMCL, shape_of
from tests.reference.released import Given, OneByOne, halves, objective, scored, slopes, waves


def trained(**fields):
    """A method that has learnt a little, with dropout off and a gentle sigmoid."""
    learner = small_learner(UGMCL(sharpness=5.0, **fields))
    train(learner, make_batch(learner.method, 1), RUN[:8])
    learner.nets.eval()
    return learner


@pytest.fixture(scope="module")
def learner():
    return trained()


def foreground(output):
    """Foreground probability of every voxel, as a list."""
    scores = output.logits.movedim(1, -1).reshape(-1, 2).tolist()
    return [1 / (1 + math.exp(a - b)) for a, b in scores]


def sigmoids(distance):
    return [1 / (1 + math.exp(5 * z)) for z in distance.flatten().tolist()]


def dice(p, t):
    overlap = sum(a * b for a, b in zip(p, t, strict=True))
    size = sum(a * a + b * b for a, b in zip(p, t, strict=True))
    return 1 - (2 * overlap + 1e-5) / (size + 1e-5)


def teacher_says(learner, batch, step):
    """The teacher's probabilities and the mean of its eight passes, on all volumes."""
    images = torch.cat([batch.image, batch.unlabelled])
    rng = torch_generator(learner.seed, "noise", step.index)
    teacher = learner.nets["teacher"]
    goal = teacher(noisy(images, 0.1, 0.2, rng)).logits.softmax(1)
    mean = 0
    for _ in range(4):
        disturbed = noisy(torch.cat([images, images]), 0.1, 0.2, rng)
        first, second = teacher(disturbed).logits.softmax(1).chunk(2)
        mean = mean + (first + second) / 8
    return goal, mean


def is_sure(mean, step):
    limit = (0.75 + 0.25 * math.exp(-5 * (1 - step.fraction) ** 2)) * math.log(2)
    voxels = mean.movedim(1, -1).reshape(-1, 2).tolist()
    return [-sum(q * math.log(q + 1e-6) for q in voxel) < limit for voxel in voxels]


def test_the_labelled_terms_are_those_of_the_labelled_volumes(learner):
    batch = make_batch(learner.method, 0)
    output = learner.nets["student"](batch.image)
    terms = terms_at(learner, batch, RUN[20])
    torch.testing.assert_close(
        terms["supervised"].value, supervised_loss(output.logits, batch.label)
    )
    expected = dice(sigmoids(output.distance), batch.label.flatten().tolist())
    assert terms["distance"].value.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(
        terms["sdf"].value, (output.distance - batch.extras["sdf"]).square().mean()
    )
    assert [terms[n].weight for n in ("supervised", "distance", "sdf")] == [1.0, 0.5, 0.3]


def test_within_the_task_all_volumes_follow_the_teacher_where_it_is_sure(learner):
    batch, step = make_batch(learner.method, 0), RUN[20]
    goal, mean = teacher_says(learner, batch, step)
    f = foreground(learner.nets["student"](torch.cat([batch.image, batch.unlabelled])))
    g = goal[:, 1].flatten().tolist()
    sure = is_sure(mean, step)
    squares = [(a - b) ** 2 for a, b, s in zip(f, g, sure, strict=True) if s]
    assert 0 < len(squares) < len(f) == 4 * 16**3
    term = terms_at(learner, batch, step)["intra"]
    assert term.value.item() == pytest.approx(sum(squares) / len(squares), rel=1e-4)


@pytest.mark.parametrize("guided", [False, True])
def test_across_tasks_all_volumes_agree_and_only_sure_voxels_if_guided(guided):
    learner = trained(guided=guided)
    batch, step = make_batch(learner.method, 0), RUN[20]
    output = learner.nets["student"](torch.cat([batch.image, batch.unlabelled]))
    sure = is_sure(teacher_says(learner, batch, step)[1], step)
    squares = [
        (a - b) ** 2
        for a, b, s in zip(sigmoids(output.distance), foreground(output), sure, strict=True)
        if s or not guided
    ]
    assert (len(squares) < len(sure)) == guided
    term = terms_at(learner, batch, step)["cross"]
    assert term.value.item() == pytest.approx(sum(squares) / len(squares), rel=1e-4)


def test_across_tasks_both_heads_learn(learner):
    terms_at(learner, make_batch(learner.method, 0), RUN[20])["cross"].value.backward()
    decoder = learner.nets["student"].decoder
    assert decoder.output.weight.grad.count_nonzero() > 0
    assert decoder.distance[0].weight.grad.count_nonzero() > 0


def test_the_weights_rise_over_6000_of_20000_steps_and_within_the_task_is_half(learner):
    batch = make_batch(learner.method, 0)
    terms = terms_at(learner, batch, Step(3_000, 20_000))
    expected = 0.1 * math.exp(-1.25)
    assert terms["cross"].weight == pytest.approx(expected)
    assert terms["intra"].weight == pytest.approx(expected / 2)


def test_the_distance_head_learns_to_segment_at_full_sharpness():
    learner = small_learner(UGMCL(passes=2))
    history = train(learner, make_batch(learner.method, 0), [Step(i, 60) for i in range(60)])
    assert history[0]["distance"] > 0.8
    assert min(values["distance"] for values in history[-20:]) < 0.5


def test_the_released_distance_is_tanh_of_the_class_scores():
    learner = trained(variant="released")
    assert learner.nets["student"].decoder.distance is None
    batch = make_batch(learner.method, 0)
    logits = learner.nets["student"](torch.cat([batch.image, batch.unlabelled])).logits
    terms = terms_at(learner, batch, RUN[20])
    assert set(terms) == {"supervised", "distance", "intra", "cross"}
    shape = 1 / (1 + (5 * logits.tanh()).exp())
    expected = dice(shape[:2, 1].flatten().tolist(), batch.label.flatten().tolist())
    assert terms["distance"].value.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(terms["cross"].value, (shape - logits.softmax(1)).square().mean())


def test_shared_scores_contradict_the_segmentation_where_both_are_of_one_sign():
    logits = torch.tensor([[1.0, 2.0], [-2.0, -1.0]]).view(2, 2, 1, 1, 1)
    shared = shape_of(NetOutput(logits, logits), 1500.0)[:, 1].flatten().tolist()
    assert shared == [0.0, 1.0]
    distance = torch.tensor([-0.5, 0.5]).view(2, 1, 1, 1, 1)
    head = shape_of(NetOutput(logits, logits, distance), 1500.0)
    assert head.flatten(1).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_the_student_has_the_size_of_a_v_net_with_a_distance_head():
    nets = initialise(UGMCL(), 0, channels=1, width=16, levels=5, dropout=0.5)
    assert sum(p.numel() for p in nets["student"].parameters()) == 9_448_883


def test_the_authors_recipe_is_constant_over_30000_steps():
    recipe = UGMCL.authors
    assert recipe.steps == 30_000
    assert recipe.learning_rate_at(Step(29_999, 30_000)) == 0.01


def released_terms(method, output, step):
    """Terms at a step of 30,000 of a student that gives this, and of a teacher of waves."""
    goal = waves(4, 2, 6, 5, 4, phase=1)
    passes = [waves(8, 2, 6, 5, 4, phase=2 + 0.3 * k) for k in range(4)]
    image, label = torch.zeros(2, 1, 6, 5, 4), halves(4, 6, 5, 4, phase=9)[:2]
    return method.losses(
        torch.nn.ModuleDict(
            {"student": Given(output), "teacher": OneByOne(*map(scored, (goal, *passes)))}
        ),
        Batch(image, label, image, {"sdf": torch.zeros(2, 1, 6, 5, 4)}),
        Step(step, 30_000),
        torch.Generator(),
    )


@pytest.mark.parametrize(
    ("step", "within", "weight", "loss", "slope"),
    [
        (0, 2 * 0.13579095, 0.0006737946999, 1.491089716, 3.070345754),
        (15_000, 2 * 0.1188013565, 0.02865047969, 1.512482194, 3.076810182),
    ],
)
def test_released_has_the_figure_of_the_released_code(step, within, weight, loss, slope):
    """YichiZhang98/UG-MCL@7071810, code/train_UGMCL_3D.py, lines 139-184.

    Its consistency within the task is halved before it is weighted. What its network gives as
    distances are the tanh of the scores (code/networks/unet_3D.py, unet_3D_dt).
    """
    logits = (waves(4, 2, 6, 5, 4) ** 3).requires_grad_()
    method = UGMCL(variant="released", rampup=1.0)
    terms = released_terms(method, NetOutput(logits, logits), step)
    values = {name: term.value.item() for name, term in terms.items()}
    figures = {
        "supervised": 1.178310614,
        "distance": 0.6245043188,
        "intra": within,
        "cross": 0.646261605,
    }
    assert values == pytest.approx(figures, rel=1e-9)
    assert terms["cross"].weight == pytest.approx(weight, rel=1e-9)
    assert objective(terms).item() == pytest.approx(loss, rel=1e-9)
    assert slopes(objective(terms), [logits]) == pytest.approx([slope], rel=1e-9)


@pytest.mark.parametrize(
    ("step", "loss", "of_scores", "of_distance"),
    [
        (0, 0.9887261227, 0.03279841092, 9.827498495),
        (15_000, 0.9974632333, 0.03274621141, 9.879183926),
    ],
)
def test_fixed_has_the_figure_of_the_released_code(step, loss, of_scores, of_distance):
    """The same lines, given (-z, z) for the two distances; they have no regression of it."""
    logits = waves(4, 2, 6, 5, 4).requires_grad_()
    distance = (1e-3 * waves(4, 1, 6, 5, 4, phase=8)).requires_grad_()
    output = NetOutput(logits, logits, distance)
    terms = released_terms(UGMCL(rampup=1.0, beta=0.0), output, step)
    assert terms["distance"].value.item() == pytest.approx(0.7468685231, rel=1e-9)
    assert terms["cross"].value.item() == pytest.approx(0.2411827471, rel=1e-9)
    assert objective(terms).item() == pytest.approx(loss, rel=1e-9)
    expected = [of_scores, of_distance]
    assert slopes(objective(terms), [logits, distance]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("beta", -0.3, "be at least 0"),
        ("weight", -0.1, "be at least 0"),
        ("rampup", 1.5, r"lie in \[0, 1\]"),
        ("sharpness", -1500.0, "be at least 1"),
        ("decay", 2.0, r"lie in \[0, 1\]"),
        ("noise_std", -1.0, "be at least 0"),
        ("noise_limit", -1.0, "be at least 0"),
        ("passes", 0, "be at least 2"),
        ("passes", 7, "be even"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        UGMCL(**{name: value})


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="known: fixed, released"):
        UGMCL(variant="paper")
