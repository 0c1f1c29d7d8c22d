"""Mean Teacher against its formula, written out voxel by voxel."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.seeding import torch_generator
from methods.base import Batch, Step
from methods.common import supervised_loss
from methods.mean_teacher import MeanTeacher
from tests.reference.released import given, halves, objective, slopes, waves


@pytest.fixture
def learner():
    """Student and teacher that differ, without dropout and with fixed batch-norm statistics."""
    learner = small_learner(MeanTeacher())
    train(learner, make_batch(learner.method, 1), RUN[:3])
    learner.nets.eval()
    return learner


def test_consistency_is_the_mean_squared_difference_of_probabilities_to_the_noisy_teacher(learner):
    batch = make_batch(learner.method, 0)
    terms = terms_at(learner, batch, RUN[0])

    rng = torch_generator(learner.seed, "noise", 0)
    noise = torch.randn(batch.unlabelled.shape, generator=rng)
    noise = torch.tensor([max(-0.2, min(0.2, 0.1 * n)) for n in noise.flatten().tolist()])
    disturbed = batch.unlabelled + noise.reshape(batch.unlabelled.shape)
    student = learner.nets["student"](batch.unlabelled).logits.movedim(1, -1).reshape(-1, 2)
    teacher = learner.nets["teacher"](disturbed).logits.movedim(1, -1).reshape(-1, 2)
    squares = []
    for (a, b), (c, d) in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = 1 / (1 + math.exp(a - b)), 1 / (1 + math.exp(c - d))
        squares += [(p - q) ** 2, ((1 - p) - (1 - q)) ** 2]
    expected = sum(squares) / len(squares)
    assert terms["consistency"].value.item() == pytest.approx(expected, rel=1e-4)


def test_the_supervised_term_sees_the_labelled_volumes_only(learner):
    batch = make_batch(learner.method, 0)
    terms = terms_at(learner, batch, RUN[0])
    expected = supervised_loss(learner.nets["student"](batch.image).logits, batch.label)
    torch.testing.assert_close(terms["supervised"].value, expected)


def test_gradients_reach_the_student_through_its_unlabelled_probabilities(learner):
    batch = make_batch(learner.method, 0)
    terms_at(learner, batch, RUN[0])["consistency"].value.backward()
    assert all(p.grad is not None for p in learner.nets["student"].parameters())
    assert all(p.grad is None for p in learner.nets["teacher"].parameters())


def test_the_weight_rises_to_a_tenth_within_three_tenths_of_the_run(learner):
    batch = make_batch(learner.method, 0)
    steps = [Step(i, 20_000) for i in (0, 1_500, 3_000, 4_500, 6_000, 19_999)]
    weights = [terms_at(learner, batch, step)["consistency"].weight for step in steps]
    assert weights[0] == pytest.approx(0.1 * math.exp(-5))
    assert weights[2] == pytest.approx(0.1 * math.exp(-5 * 0.25))
    assert weights[4:] == [0.1, 0.1]
    assert all(a < b for a, b in pairwise(weights[:5]))
    assert all(terms_at(learner, batch, s)["supervised"].weight == 1.0 for s in steps)


def test_the_teacher_starts_as_the_student_and_is_it_again_after_the_first_step():
    learner = small_learner(MeanTeacher())
    student, teacher = learner.nets["student"], learner.nets["teacher"]
    for a, b in zip(student.parameters(), teacher.parameters(), strict=True):
        assert a.equal(b)
    train(learner, make_batch(learner.method, 0), RUN[:1])
    for a, b in zip(student.parameters(), teacher.parameters(), strict=True):
        assert a.equal(b)


def test_later_the_teacher_is_the_moving_average(learner):
    student, teacher = learner.nets["student"], learner.nets["teacher"]
    before = [p.clone() for p in teacher.parameters()]
    learner.method.after_step(learner.nets, Step(500, 1000))
    for old, new, source in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.99 * old + 0.01 * source)


def test_the_teachers_batch_norm_statistics_are_its_own():
    learner = small_learner(MeanTeacher())
    train(learner, make_batch(learner.method, 0), RUN[:2])
    student, teacher = (dict(learner.nets[n].named_buffers()) for n in ("student", "teacher"))
    moved = [n for n in teacher if n.endswith("running_mean")]
    assert moved
    assert all(teacher[n].abs().sum() > 0 and not teacher[n].equal(student[n]) for n in moved)


def test_the_teacher_predictor_is_the_teacher(learner):
    image = make_batch(learner.method, 0).image
    predictors = learner.method.predictors(learner.nets)
    for name, net in (("main", "student"), ("teacher", "teacher")):
        torch.testing.assert_close(
            predictors[name](image), learner.nets[net](image).logits.softmax(1)
        )


@pytest.mark.parametrize(
    ("step", "weight", "loss", "slope"),
    [
        (0, 0.0006737946999, 0.6152162112, 0.03279981093),
        (15_000, 0.02865047969, 0.6210092929, 0.03280153468),
    ],
)
def test_the_objective_has_the_figure_of_the_released_code(step, weight, loss, slope):
    """HiLab-git/SSL4MIS@06df604, code/train_mean_teacher_3D.py, lines 136-158.

    Its DiceLoss has the weights (0, 2) here, which makes it that of the foreground.
    """
    logits = waves(4, 2, 6, 5, 4).requires_grad_()
    image = torch.zeros(2, 1, 6, 5, 4)
    terms = MeanTeacher(rampup=1.0).losses(
        torch.nn.ModuleDict(
            {"student": given(logits), "teacher": given(waves(2, 2, 6, 5, 4, phase=1))}
        ),
        Batch(image, halves(4, 6, 5, 4, phase=9)[:2], image, {}),
        Step(step, 30_000),
        torch.Generator(),
    )
    assert terms["supervised"].value.item() == pytest.approx(0.6150766898, rel=1e-9)
    assert terms["consistency"].value.item() == pytest.approx(0.2070681947, rel=1e-9)
    assert terms["consistency"].weight == pytest.approx(weight, rel=1e-9)
    assert objective(terms).item() == pytest.approx(loss, rel=1e-9)
    assert slopes(objective(terms), [logits]) == pytest.approx([slope], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", -0.1),
        ("rampup", 1.5),
        ("decay", 1.01),
        ("noise_std", -1.0),
        ("noise_limit", -1.0),
        ("noise_limit", torch.inf),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}; it must"):
        MeanTeacher(**{name: value})
