"""CoraNet against its formulas, written out voxel by voxel."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import initialise
from methods.base import Batch, NetOutput, Step
from methods.common import masked_dice_loss
from methods.coranet import (
    CoraNet,
    four_losses,
    masked_distances,
    pseudo_label,
)
from tests.reference.released import halves, objective, slopes, waves

COSTS = ((1.0, 5.0), (5.0, 1.0))
FIRST = 12
"""Of 40 steps, the first of stage 2: 2 / 7 * 40 = 11.4."""


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def draw(rng):
    logits = [torch.randn(2, 2, 2, 3, 4, generator=rng, dtype=torch.float64) for _ in range(3)]
    target = torch.randint(2, (2, 2, 3, 4), generator=rng)
    return logits, target


def voxels(x):
    """Classes (B, 2, X, Y, Z) of every voxel, as lists."""
    return x.movedim(1, -1).reshape(-1, 2).tolist()


def entropies(logits, target):
    pairs = zip(voxels(logits.softmax(1)), target.flatten().tolist(), strict=True)
    return [-math.log(p[k]) for p, k in pairs]


def dice_by_hand(logits, target, mask):
    total = 0.0
    for b in range(len(logits)):
        for k in range(2):
            overlap = size = 0.0
            for p, t, m in zip(
                logits[b].softmax(0)[k].flatten().tolist(),
                target[b].flatten().tolist(),
                mask[b].flatten().tolist(),
                strict=True,
            ):
                overlap += m * p * (t == k)
                size += m * (p + (t == k))
            total += 1 - (2 * overlap + 1e-5) / (size + 1e-5)
    return total / (2 * len(logits))


def test_without_a_mask_the_weighted_losses_are_weighted_means(rng):
    logits, target = draw(rng)
    everywhere = torch.ones_like(target)
    plain = entropies(logits[0], target)
    parts = [sum(plain) / len(plain), dice_by_hand(logits[0], target, everywhere)]
    for scores, costs in zip(logits[1:], COSTS, strict=True):
        weights = [costs[k] for k in target.flatten().tolist()]
        losses = entropies(scores, target)
        total = sum(w * x for w, x in zip(weights, losses, strict=True))
        parts.append(total / sum(weights))
    found = four_losses(logits, target, COSTS)
    assert found.item() == pytest.approx(sum(parts) / 4, rel=1e-9)


def test_with_a_mask_everything_is_divided_by_its_voxels(rng):
    logits, target = draw(rng)
    mask = torch.rand(target.shape, generator=rng) < 0.5
    inside = mask.flatten().tolist()
    plain = [x for x, m in zip(entropies(logits[0], target), inside, strict=True) if m]
    parts = [sum(plain) / len(plain), dice_by_hand(logits[0], target, mask)]
    for scores, costs in zip(logits[1:], COSTS, strict=True):
        losses = zip(entropies(scores, target), target.flatten().tolist(), inside, strict=True)
        parts.append(sum(costs[k] * x for x, k, m in losses if m) / len(plain))
    found = four_losses(logits, target, COSTS, mask)
    assert found.item() == pytest.approx(sum(parts) / 4, rel=1e-9)


def test_nothing_certain_is_a_finite_loss_without_gradient(rng):
    logits, target = draw(rng)
    for scores in logits:
        scores.requires_grad_()
    loss = four_losses(logits, target, COSTS, torch.zeros_like(target) > 0)
    loss.backward()
    assert loss.item() == 0.0
    assert all(scores.grad.count_nonzero() == 0 for scores in logits)


def test_a_perfect_segmentation_has_no_dice_loss(rng):
    _, target = draw(rng)
    p = torch.stack([target == 0, target == 1], 1).double()
    assert masked_dice_loss(p, target, torch.ones_like(target)).item() == pytest.approx(0)


def test_the_distance_is_summed_over_classes_and_a_mean_over_voxels_and_heads(rng):
    (ours, _), (theirs, _) = draw(rng), draw(rng)
    mask = torch.rand((2, 2, 3, 4), generator=rng) < 0.5
    total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        for p, q, m in zip(
            voxels(a.softmax(1)), voxels(b.softmax(1)), mask.flatten().tolist(), strict=True
        ):
            total += m * sum((x - y) ** 2 for x, y in zip(p, q, strict=True))
    expected = total / int(mask.sum()) / 3
    assert masked_distances(ours, theirs, mask).item() == pytest.approx(expected, rel=1e-9)
    assert masked_distances(ours, theirs, mask & ~mask).item() == 0.0


def heads_by_the_batch(net, images):
    """Classes of the heads of a copy that normalises by these images and drops nothing."""
    twin = deepcopy(net)
    for module in twin.modules():
        module.training = isinstance(module, nn.BatchNorm3d)
    return [output.logits.argmax(1) for output in twin(images)]


def test_pseudo_labels_are_of_head_1_and_certain_where_2_and_3_agree_by_the_batch():
    learner = small_learner(CoraNet())
    train(learner, make_batch(learner.method, 1), RUN[:8])
    net, images = learner.nets["student"], make_batch(learner.method, 0).unlabelled
    label, certain = pseudo_label(net, images)
    assert net.training
    assert all(module.training for module in net.modules())
    heads = heads_by_the_batch(net, images)
    assert label.equal(heads[0])
    assert certain.equal(heads[1] == heads[2])
    assert 0 < certain.sum() < certain.numel()


def test_stage_1_is_supervised_and_stage_2_has_three_terms():
    learner = small_learner(CoraNet())
    batch = make_batch(learner.method, 0)
    assert set(terms_at(learner, batch, RUN[FIRST - 1])) == {"supervised"}
    terms = terms_at(learner, batch, RUN[FIRST])
    assert set(terms) == {"supervised", "certain", "uncertain"}


@pytest.mark.parametrize("variant", ["fixed", "released"])
def test_the_terms_of_stage_2(variant):
    learner = small_learner(CoraNet(variant=variant))
    train(learner, make_batch(learner.method, 1), RUN[:20])
    learner.nets.eval()
    batch = make_batch(learner.method, 0)
    nets = learner.nets
    labelled, free = (
        [o.logits for o in nets["student"](x)] for x in (batch.image, batch.unlabelled)
    )
    goal = [o.logits for o in nets["teacher"](batch.unlabelled)]
    heads = heads_by_the_batch(nets["labeller"], batch.unlabelled)
    certain = heads[1] == heads[2]
    terms = terms_at(learner, batch, RUN[20])
    costs = COSTS if variant == "fixed" else COSTS[::-1]
    expected = {
        "supervised": four_losses(labelled, batch.label, COSTS),
        "certain": four_losses(free, heads[0], costs, certain),
        "uncertain": masked_distances(free, goal, ~certain),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].value, value)
    assert not torch.allclose(
        expected["certain"], four_losses(free, heads[0], costs[::-1], certain)
    )


class ThreeHeads(nn.Module):
    """A network whose heads give the scores of each call in turn, whatever it is shown."""

    def __init__(self, *calls):
        super().__init__()
        self.calls = iter(calls)

    def forward(self, image):
        return tuple(NetOutput(scores, scores[:, :0]) for scores in next(self.calls))


def test_the_released_variant_has_the_figures_of_the_released_code():
    """koncle/CoraNet@b9d454c, train_ST_3D_VNet.py, lines 144-173, run as epoch 20 of 200.

    Pseudo-labels are from utils1/utils.py, pred_unlabel.
    """
    scores = [waves(2, 2, 6, 5, 4, phase=k) for k in range(12)]
    learnt = [x.requires_grad_() for x in scores[:6]]
    nets = {
        "student": ThreeHeads(learnt[:3], learnt[3:]),
        "teacher": ThreeHeads(scores[6:9]),
        "labeller": ThreeHeads(scores[9:], scores[9:]),
    }
    image = torch.zeros(2, 1, 6, 5, 4)
    for x, figure in zip(
        pseudo_label(nets["labeller"], image), (88.51909945, 56.73309377), strict=True
    ):
        assert (x * waves(2, 6, 5, 4)).sum().item() == pytest.approx(figure, rel=1e-9)
    terms = CoraNet(variant="released", pretraining=0.5).losses(
        nn.ModuleDict(nets),
        Batch(image, halves(2, 6, 5, 4), image, {}),
        Step(550, 1000),
        torch.Generator(),
    )
    values = {name: term.value.item() for name, term in terms.items()}
    figures = {"supervised": 1.077742805, "certain": 2.026973428, "uncertain": 0.7685594142}
    assert values == pytest.approx(figures, rel=1e-9)
    assert terms["uncertain"].weight == pytest.approx(0.028650479686 / 2, rel=1e-9)
    assert objective(terms).item() == pytest.approx(2.102239317, rel=1e-9)
    of_labelled = [0.01843740502, 0.01852894779, 0.01441687342]
    of_unlabelled = [0.007034188368, 0.03019893047, 0.03301957526]
    found = slopes(objective(terms), learnt)
    assert found == pytest.approx(of_labelled + of_unlabelled, rel=1e-9)


def test_the_weights_of_stage_2_are_halved_and_rise_over_a_fifth_of_it():
    learner = small_learner(CoraNet(pretraining=0.5))
    batch = make_batch(learner.method, 0)
    for index, part in ((500, math.exp(-5)), (550, math.exp(-1.25)), (600, 1.0), (999, 1.0)):
        terms = terms_at(learner, batch, Step(index, 1000))
        assert terms["supervised"].weight == 1.0
        assert terms["certain"].weight == 0.5
        assert terms["uncertain"].weight == pytest.approx(0.05 * part)


def same(a, b):
    return all(
        x.equal(y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_in_stage_1_teacher_and_labeller_are_the_student():
    learner = small_learner(CoraNet())
    train(learner, make_batch(learner.method, 0), RUN[:3])
    nets = learner.nets
    assert same(nets["teacher"], nets["student"])
    assert same(nets["labeller"], nets["student"])


def test_in_stage_2_the_teacher_averages_and_the_labeller_is_renewed_now_and_then():
    learner = small_learner(CoraNet(refresh=0.25))
    batch, nets = make_batch(learner.method, 0), learner.nets
    train(learner, batch, RUN[:FIRST])
    renewed = []
    for step in RUN[FIRST:]:
        before = deepcopy(nets["labeller"]), deepcopy(nets["teacher"])
        train(learner, batch, [step])
        if same(nets["labeller"], nets["student"]):
            renewed.append(step.index)
        else:
            assert same(nets["labeller"], before[0])
        for old, new, source in zip(
            *(net.parameters() for net in (before[1], nets["teacher"], nets["student"])),
            strict=True,
        ):
            torch.testing.assert_close(new, 0.99 * old + 0.01 * source)
    quarter = 0.25 * 0.715 * 40
    assert renewed == [math.ceil(11.4 + k * quarter) - 1 for k in (1, 2, 3, 4)]


def test_a_run_stopped_at_the_change_of_stage_goes_on_as_if_it_had_not():
    method, batch = CoraNet(), make_batch(CoraNet(), 0)
    straight = small_learner(method)
    train(straight, batch, RUN[: FIRST + 2])
    for stop in (FIRST - 1, FIRST, FIRST + 1):
        first, second = small_learner(method), small_learner(method, seed=1)
        train(first, batch, RUN[:stop])
        second.load(deepcopy(first.state()))
        second.seed = first.seed
        train(second, batch, RUN[stop : FIRST + 2])
        assert same(second.nets, straight.nets)


def test_there_may_be_no_stage_1():
    learner = small_learner(CoraNet(pretraining=0.0))
    assert "certain" in terms_at(learner, make_batch(learner.method, 0), RUN[0])


def test_the_student_has_the_size_of_a_v_net_and_two_more_heads():
    nets = initialise(CoraNet(), 0, channels=1, width=16, levels=5, dropout=0.5)
    assert sum(p.numel() for p in nets["student"].parameters()) == 9_462_854


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("pretraining", 1.0, r"lie in \[0, 0.999\]"),
        ("refresh", 0.0, r"lie in \[1e-06, 1\]"),
        ("cost", 0.5, "be at least 1"),
        ("weight", -0.1, "be at least 0"),
        ("rampup", 1.5, r"lie in \[0, 1\]"),
        ("decay", 2.0, r"lie in \[0, 1\]"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        CoraNet(**{name: value})


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="known: fixed, released"):
        CoraNet(variant="paper")
