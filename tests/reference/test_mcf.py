"""MCF against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from methods.base import Batch, NetOutput, Step
from methods.mcf import MCF, disagreement_error, sharpen
from tests.reference.released import given, halves, objective, slopes, waves


@pytest.fixture(scope="module")
def learner():
    """Networks that have learnt something, with dropout off."""
    learner = small_learner(MCF())
    train(learner, make_batch(learner.method, 1), RUN[:10])
    learner.nets.eval()
    return learner


@pytest.fixture
def batch(learner):
    return make_batch(learner.method, 0)


def foreground(logits):
    """Foreground probability of every voxel, as a list."""
    scores = logits.movedim(1, -1).reshape(-1, 2).tolist()
    return [1 / (1 + math.exp(a - b)) for a, b in scores]


def dice(p, y):
    overlap = sum(a * b for a, b in zip(p, y, strict=True))
    size = sum(a * a + b * b for a, b in zip(p, y, strict=True))
    return 1 - (2 * overlap + 1e-5) / (size + 1e-5)


def test_the_supervised_term_sums_cross_entropy_and_dice_of_both_networks(learner, batch):
    y = batch.label.flatten().tolist()
    expected = 0.0
    for name in ("vnet", "resnet"):
        p = foreground(learner.nets[name](batch.image).logits)
        entropies = [-math.log(a if b else 1 - a) for a, b in zip(p, y, strict=True)]
        expected += sum(entropies) / len(entropies) + dice(p, y)
    term = terms_at(learner, batch, RUN[0])["supervised"]
    assert term.value.item() == pytest.approx(expected, rel=1e-5)
    assert term.weight == 1.0


def test_rectification_is_the_squared_error_where_the_networks_disagree(learner, batch):
    y = batch.label.flatten().tolist()
    first, second = (
        foreground(learner.nets[name](batch.image).logits) for name in ("vnet", "resnet")
    )
    disputed = [
        (a - t) ** 2 + (b - t) ** 2
        for a, b, t in zip(first, second, y, strict=True)
        if (a > 0.5) != (b > 0.5)
    ]
    assert len(disputed) > 100
    term = terms_at(learner, batch, RUN[0])["rectification"]
    assert term.value.item() == pytest.approx(sum(disputed) / len(disputed), rel=1e-5)
    assert term.weight == 0.5


def test_networks_that_agree_everywhere_have_nothing_to_rectify():
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    error = disagreement_error([logits, 3 * logits], torch.ones(1, 2, 2, 2).long())
    error.backward()
    assert error.item() == 0.0
    assert logits.grad.count_nonzero() == 0


def test_one_disputed_voxel_counts_alone():
    logits = torch.zeros(1, 2, 1, 1, 2)
    first, second = logits.clone(), logits.clone()
    first[0, 1] = math.log(3)  # foreground with 3/4 in both voxels
    second[0, :, 0, 0, 0] = torch.tensor([math.log(4), 0.0])  # foreground with 1/5 in the first
    second[0, 1, 0, 0, 1] = 2.0
    label = torch.tensor([[[[1, 0]]]])
    expected = (0.75 - 1) ** 2 + (0.2 - 1) ** 2
    assert disagreement_error([first, second], label).item() == pytest.approx(expected)


class Constant(nn.Module):
    """The same scores whatever the image, different for its voxels."""

    def __init__(self, scale):
        super().__init__()
        pattern = torch.randn(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(scale))
        self.logits = nn.Parameter(pattern)

    def forward(self, image):
        return NetOutput(self.logits.expand(len(image), -1, -1, -1, -1), image)


def constants(better):
    """Two fixed networks, of which `better` knows the labels."""
    nets = nn.ModuleDict({"vnet": Constant(1), "resnet": Constant(2)})
    label = torch.zeros(2, 16, 16, 16).long()
    label[:, 4:12, 4:12, 4:12] = 1
    with torch.no_grad():
        nets[better].logits[0, 1] = 4.0 * label[0] - 2
        nets[better].logits[0, 0] = 0.5
    return nets, label


@pytest.mark.parametrize(("better", "worse"), [("vnet", "resnet"), ("resnet", "vnet")])
def test_the_worse_network_learns_from_the_better_ones_sharpened_probabilities(better, worse):
    method = MCF()
    nets, label = constants(better)
    batch = make_batch(method, 0)
    batch = type(batch)(batch.image, label, batch.unlabelled, {})
    term = method.losses(nets, batch, RUN[0], torch.Generator())["consistency"]
    goal = [
        a**10 / (a**10 + (1 - a) ** 10) for a in foreground(nets[better].logits)
    ]  # the volumes are alike, so the mean over one is that over both, and so over classes
    p = foreground(nets[worse].logits)
    expected = sum((a - b) ** 2 for a, b in zip(p, goal, strict=True)) / len(p)
    assert term.value.item() == pytest.approx(expected, rel=1e-5)
    term.value.backward()
    assert nets[worse].logits.grad.count_nonzero() > 0
    assert nets[better].logits.grad.count_nonzero() == 0


@pytest.mark.parametrize(
    ("first", "second", "of_first", "of_second"),
    [(2, 1, 0.07541117747, 0.08606359531), (1, 2, 0.08606359531, 0.07541117747)],
)
def test_the_objective_has_the_figures_of_the_released_code(first, second, of_first, of_second):
    """WYC-321/MCF@ad20659, code/train_MCF.py, lines 155-228, run as iteration 3,000.

    The network whose scores are of phase 2 has the lower Dice loss and gets no consistency.
    """
    scores = [waves(4, 2, 6, 5, 4, phase=k).requires_grad_() for k in (first, second)]
    image = torch.zeros(2, 1, 6, 5, 4)
    terms = MCF(**MCF.with_authors).losses(
        nn.ModuleDict(zip(("vnet", "resnet"), map(given, scores), strict=True)),
        Batch(image, halves(2, 6, 5, 4), image, {}),
        Step(3000, 6000),
        torch.Generator(),
    )
    values = {name: term.value.item() for name, term in terms.items()}
    figures = {
        "supervised": 3.096090621,
        "rectification": 0.6456582656,
        "consistency": 0.2035377736,
    }
    assert values == pytest.approx(figures, rel=1e-9)
    assert terms["consistency"].weight == pytest.approx(0.02865047969, rel=1e-9)
    assert objective(terms).item() == pytest.approx(3.424751209, rel=1e-9)
    assert slopes(objective(terms), scores) == pytest.approx([of_first, of_second], rel=1e-9)


def test_sharpening_raises_to_the_power_of_one_over_t_per_class():
    p = torch.rand(2, 2, 3, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    p = p / p.sum(1, keepdim=True)
    sharp = sharpen(p, 0.1)
    for b in range(2):
        for v in range(3):
            one, two = p[b, 0, v, 0, 0].item() ** 10, p[b, 1, v, 0, 0].item() ** 10
            assert sharp[b, 0, v, 0, 0].item() == pytest.approx(one / (one + two))
    torch.testing.assert_close(sharpen(p, 1.0), p)


def test_sharpening_a_certainty_leaves_it():
    assert sharpen(torch.tensor([[0.0, 1.0]]), 0.1).tolist() == [[0.0, 1.0]]


def test_the_consistency_weight_rises_to_a_tenth(learner, batch):
    weights = [
        terms_at(learner, batch, Step(i, 20_000))["consistency"].weight for i in (0, 3000, 6000)
    ]
    expected = [0.1 * math.exp(-5), 0.1 * math.exp(-1.25), 0.1]
    assert weights == pytest.approx(expected)


def test_the_main_prediction_is_the_mean_of_both_networks(learner, batch):
    predict = learner.method.predictors(learner.nets)
    mean = (predict["vnet"](batch.image) + predict["resnet"](batch.image)) / 2
    torch.testing.assert_close(predict["main"](batch.image), mean)


def test_convolutions_start_with_he_weights():
    nets = small_learner(MCF()).nets
    weight = nets["resnet"].encoder.stages[1][0].residual[3].weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (27 * 16)), rel=0.05)
    weight = nets["vnet"].encoder.blocks[2][1][0].weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (27 * 16)), rel=0.05)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("weight", -1.0, "be at least 0"),
        ("rampup", 3.0, r"lie in \[0, 1\]"),
        ("beta", -0.3, "be at least 0"),
        ("temperature", 0.0, r"lie in \[0.01, 1\]"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        MCF(**{name: value})
