"""Shared losses and schedules against formulas written out with loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from methods.base import NetOutput
from methods.common import (
    both_classes_loss,
    check_choice,
    check_range,
    class_means,
    cross_entropy,
    decoder_predictor,
    dice_loss,
    ema_,
    frozen,
    linear_dice_loss,
    masked_dice_loss,
    mean_of_passes,
    mean_predictor,
    noisy,
    predictive_entropy,
    predictor,
    sigmoid_rampup,
    supervised_loss,
    warm_decay,
)
from tests.reference.released import fill, halves, slopes, sum_and_norm, waves


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def logits(rng):
    return 2 * torch.randn(2, 2, 3, 4, 5, generator=rng, dtype=torch.float64)


@pytest.fixture
def label(rng):
    return torch.randint(0, 2, (2, 3, 4, 5), generator=rng)


def dice_by_hand(p, t):
    overlap = size = 0.0
    for a, b in zip(p.flatten().tolist(), t.flatten().tolist(), strict=True):
        overlap += a * b
        size += a * a + b * b
    return 1 - (2 * overlap + 1e-5) / (size + 1e-5)


def cross_entropy_by_hand(logits, label):
    """A list of -log softmax of the true class, voxel after voxel."""
    losses = []
    for volume, truth in zip(logits, label, strict=True):
        scores = volume.flatten(1).T.tolist()
        for (background, foreground), t in zip(scores, truth.flatten().tolist(), strict=True):
            total = math.exp(background) + math.exp(foreground)
            losses.append(-math.log(math.exp(foreground if t else background) / total))
    return losses


def test_dice_is_one_minus_twice_the_overlap_over_the_squares(logits, label):
    p = logits.sigmoid()[:, 0]
    assert dice_loss(p, label).item() == pytest.approx(dice_by_hand(p, label), rel=1e-12)


def test_dice_is_zero_for_a_perfect_and_almost_one_for_a_disjoint_mask():
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert dice_loss(mask, mask).item() == 0.0
    assert dice_loss(1 - mask, mask).item() == pytest.approx(1.0, abs=1e-5)


def test_dice_of_two_empty_masks_is_zero():
    assert dice_loss(torch.zeros(8), torch.zeros(8)).item() == 0.0


def test_dice_is_taken_over_the_batch_not_per_volume():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.0]])
    t = torch.tensor([[1, 0], [0, 0]])
    assert dice_loss(p, t).item() == pytest.approx(1 - 2 / 2.25, abs=1e-4)


def test_cross_entropy_is_minus_log_softmax_of_the_true_class(logits, label):
    voxels = cross_entropy(logits, label)
    assert voxels.shape == label.shape
    expected = cross_entropy_by_hand(logits, label)
    assert voxels.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_has_the_gradient_of_torchs(logits, label):
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    cross_entropy(a, label).mean().backward()
    nn.functional.cross_entropy(b, label).backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_cross_entropy_is_finite_for_extreme_logits():
    logits = torch.tensor([[1e4, -1e4]]).reshape(1, 2, 1, 1, 1).requires_grad_()
    loss = cross_entropy(logits, torch.ones(1, 1, 1, 1, dtype=torch.int64)).mean()
    loss.backward()
    assert loss.item() == 2e4
    assert logits.grad.isfinite().all()


def test_supervised_loss_is_half_cross_entropy_half_foreground_dice(logits, label):
    voxels = cross_entropy_by_hand(logits, label)
    foreground = (logits[:, 1] - logits[:, 0]).sigmoid()
    expected = 0.5 * sum(voxels) / len(voxels) + 0.5 * dice_by_hand(foreground, label)
    assert supervised_loss(logits, label).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0, 0.0067), (1500, 0.06), (3000, 0.2865), (4500, 0.7316), (6000, 1.0), (20_000, 1.0)],
)
def test_rampup_has_the_fields_values(steps, expected):
    assert sigmoid_rampup(steps / 20_000, 0.3) == pytest.approx(expected, abs=1e-4)


def test_rampup_of_no_length_is_over():
    assert sigmoid_rampup(0.0, 0.0) == 1.0


def test_decay_warms_up_from_a_copy_to_its_value():
    assert [warm_decay(t, 0.99) for t in (0, 1, 3)] == [0.0, 0.5, 0.75]
    assert warm_decay(98, 0.99) == pytest.approx(0.98989898)
    assert warm_decay(99, 0.99) == warm_decay(10_000, 0.99) == 0.99


def test_ema_averages_parameters_and_leaves_buffers():
    average, source = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        average.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        source.weight.copy_(torch.tensor([5.0, 2.0, -1.0]))
        source.running_mean.fill_(7.0)
    ema_(average, source, 0.75)
    expected = [0.75 * 1 + 0.25 * 5, 2.0, 0.75 * 3 - 0.25]
    assert average.weight.tolist() == pytest.approx(expected)
    assert source.weight.tolist() == [5.0, 2.0, -1.0]
    assert average.running_mean.tolist() == [0.0, 0.0, 0.0]


def test_ema_of_decay_zero_is_a_copy():
    average, source = nn.Linear(3, 3), nn.Linear(3, 3)
    ema_(average, source, 0.0)
    assert average.weight.equal(source.weight)


def test_ema_of_networks_that_differ_is_refused():
    with pytest.raises(ValueError, match="zip"):
        ema_(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.9)


def test_frozen_networks_have_no_gradients():
    net = nn.Linear(2, 2)
    assert frozen(net) is net
    assert not any(p.requires_grad for p in net.parameters())


def test_noise_is_gaussian_clipped_and_repeatable():
    image = torch.full((1, 1, 32, 32, 32), 3.0)
    noise = noisy(image, 0.1, 0.2, torch.Generator().manual_seed(0)) - image
    assert noise.abs().max().item() == pytest.approx(0.2, abs=1e-6)
    clipped = (noise.abs() > 0.2 - 1e-6).float().mean().item()
    assert clipped == pytest.approx(math.erfc(2 / math.sqrt(2)), abs=0.005)
    inner = noise[noise.abs() < 0.1]
    assert inner.std().item() == pytest.approx(0.1 * 0.5397, rel=0.02)
    again = noisy(image, 0.1, 0.2, torch.Generator().manual_seed(0)) - image
    other = noisy(image, 0.1, 0.2, torch.Generator().manual_seed(1)) - image
    assert noise.equal(again)
    assert not noise.equal(other)


def test_a_predictor_is_the_softmax_of_the_logits():
    class Net(nn.Module):
        def forward(self, image):
            logits = torch.cat([torch.zeros_like(image), image], dim=1)
            return NetOutput(logits, image)

    image = torch.tensor([-1.0, 0.0, 3.0]).reshape(1, 1, 3, 1, 1)
    foreground = predictor(Net())(image)[0, 1].flatten().tolist()
    assert foreground == pytest.approx([1 / (1 + math.exp(-x)) for x in (-1.0, 0.0, 3.0)])


@pytest.mark.parametrize(
    ("value", "low", "high", "message"),
    [
        (-0.1, 0, 1, r"x=-0.1; it must lie in \[0, 1\]"),
        (1.1, 0, 1, r"x=1.1; it must lie in \[0, 1\]"),
        (math.nan, 0, 1, r"x=nan; it must lie in \[0, 1\]"),
        (-1, 0, math.inf, "x=-1; it must be at least 0"),
        (math.inf, 0, math.inf, "x=inf; it must be at least 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(value, low, high, message):
    with pytest.raises(ValueError, match=message):
        check_range("x", value, low, high)


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_hyperparameters_in_range_are_accepted(value):
    check_range("x", value, 0, 1)


def test_class_means_are_weighted_means_of_each_class_in_each_volume():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 2, 1, 2, generator=rng, dtype=torch.float64)
    weight = torch.rand(2, 2, 2, 1, 2, generator=rng, dtype=torch.float64)
    weight[1, 0] = 0
    found = class_means(features, weight, 1e-3)
    for b in range(2):
        for k in range(2):
            w = weight[b, k].flatten().tolist()
            for f in range(3):
                z = features[b, f].flatten().tolist()
                mean = sum(x * y for x, y in zip(w, z, strict=True)) / (sum(w) + 1e-3)
                assert found[b, k, f].item() == pytest.approx(mean, rel=1e-12)
    assert not found[1, 0].any()


@pytest.mark.parametrize("shape", [(2, 2, 3, 4), (2, 3, 4)], ids=["of each volume", "of all"])
def test_masked_dice_is_that_of_the_masked_voxels_by_volume_and_class(shape):
    rng = torch.Generator().manual_seed(0)
    p = torch.randn(2, 2, 2, 3, 4, generator=rng, dtype=torch.float64).softmax(1)
    target = torch.randint(2, (2, 2, 3, 4), generator=rng)
    mask = torch.rand(shape, generator=rng) < 0.6
    scores = []
    for b in range(2):
        where = mask[b] if mask.dim() == 4 else mask
        for c in range(2):
            overlap = size = 0.0
            for q, t in zip(p[b, c][where].tolist(), target[b][where].tolist(), strict=True):
                overlap += q * (t == c)
                size += q + (t == c)
            scores.append((2 * overlap + 1e-5) / (size + 1e-5))
    expected = 1 - sum(scores) / 4
    assert masked_dice_loss(p, target, mask).item() == pytest.approx(expected, rel=1e-12)


class Decoders(torch.nn.Module):
    """Three decoders whose scores are the image, twice and three times it."""

    def forward(self, image):
        both = torch.cat([torch.zeros_like(image), image], 1)
        return tuple(NetOutput(k * both, both) for k in (1, 2, 3))


def test_predictors_of_decoders_average_probabilities_of_those_that_are_asked_for():
    image = torch.linspace(-2, 2, 8).view(1, 1, 2, 2, 2)
    one, two, three = (
        torch.cat([(-k * image).sigmoid(), (k * image).sigmoid()], 1) for k in (1, 2, 3)
    )
    net = Decoders()
    torch.testing.assert_close(decoder_predictor(net, 1)(image), two)
    torch.testing.assert_close(decoder_predictor(net, 0, 2)(image), (one + three) / 2)
    torch.testing.assert_close(decoder_predictor(net)(image), (one + two + three) / 3)
    mean = mean_predictor(decoder_predictor(net, 0), decoder_predictor(net, 1))
    torch.testing.assert_close(mean(image), (one + two) / 2)


def test_the_mean_of_passes_has_noise_of_its_own_in_each():
    seen = []

    class Recording(torch.nn.Module):
        def forward(self, image):
            seen.append(image)
            both = torch.cat([torch.zeros_like(image), image], 1)
            return NetOutput(both, both)

    image = torch.randn(2, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    mean = mean_of_passes(Recording(), image, 4, 0.1, 0.15, rng)
    passes = [x for pair in seen for x in pair.split(2)]
    assert len(passes) == 4
    assert len({x.sum().item() for x in passes}) == 4
    assert all((x - image).abs().max() <= 0.15 + 1e-6 for x in passes)
    torch.testing.assert_close(mean[:, 1:], sum(x.sigmoid() for x in passes) / 4)


def test_a_choice_that_is_none_is_refused_with_those_there_are():
    check_choice("variant", "fixed", ("fixed", "released"))
    with pytest.raises(ValueError, match="variant='x'; known: fixed, released"):
        check_choice("variant", "x", ("fixed", "released"))


@pytest.mark.parametrize(
    ("loss", "figure", "slope"),
    [
        (lambda z, t: dice_loss(z.softmax(1)[:, 1], t), 0.4097421136, 0.02125453031),
        (lambda z, t: linear_dice_loss(z.softmax(1)[:, 1], t, 1e-5), 0.5173161394, 0.01761197268),
        (lambda z, t: cross_entropy(z, t).mean(), 0.820411266, 0.0475248642),
        (supervised_loss, 0.6150766898, 0.03279980997),
        (both_classes_loss, 0.5775633396, 0.03177472783),
    ],
    ids=["dice_loss", "dice_loss1", "CrossEntropyLoss", "with dice_loss", "with DiceLoss(2)"],
)
def test_losses_have_the_figure_of_the_released_code(loss, figure, slope):
    """HiLab-git/SSL4MIS@06df604, code/utils/losses.py; the last two are means of the two losses."""
    logits = waves(2, 2, 6, 5, 4).requires_grad_()
    value = loss(logits, halves(2, 6, 5, 4, phase=9))
    assert value.item() == pytest.approx(figure, rel=1e-9)
    assert slopes(value, [logits]) == pytest.approx([slope], rel=1e-9)


def test_entropy_has_the_figure_of_the_released_code():
    """HiLab-git/SSL4MIS@06df604, code/utils/losses.py, entropy_map."""
    entropy = predictive_entropy(waves(2, 2, 6, 5, 4).softmax(1))
    assert sum_and_norm(entropy) == pytest.approx((108.3127646, 7.675308185), rel=1e-9)


def test_the_rampup_has_the_figure_of_the_released_code():
    """HiLab-git/SSL4MIS@06df604, code/utils/ramps.py, sigmoid_rampup of length 40."""
    found = [sigmoid_rampup(t, 40) for t in (0, 7, 20, 39, 40, 50)]
    figures = [0.006737946999, 0.03326914128, 0.2865047969, 0.9968798777, 1, 1]
    assert found == pytest.approx(figures, rel=1e-9)


@pytest.mark.parametrize(
    ("step", "figures"),
    [
        (0, [4.904199092, 0.8799395221]),
        (1, [2.64513361, 1.459855084]),
        (7, [4.066998839, 2.741606843]),
        (98, [4.826602354, 3.148916045]),
        (99, [4.827299448, 3.149275492]),
        (5000, [4.827299448, 3.149275492]),
    ],
)
def test_the_moving_average_has_the_figure_of_the_released_code(step, figures):
    """HiLab-git/SSL4MIS@06df604, code/train_mean_teacher_3D.py, update_ema_variables.

    That of yulequan/UA-MT@88ed29a and YichiZhang98/UG-MCL@7071810 is the same.
    """
    average, source = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    fill([*average.parameters(), *source.parameters()])
    ema_(average, source, warm_decay(step, 0.99))
    assert [p.norm().item() for p in average.parameters()] == pytest.approx(figures, rel=1e-9)


def test_noise_has_the_figure_of_the_released_code(monkeypatch):
    """HiLab-git/SSL4MIS@06df604, code/train_mean_teacher_3D.py, lines 140-142, waves drawn."""
    monkeypatch.setattr(torch, "randn", lambda shape, **_: waves(*shape))
    image = waves(2, 1, 6, 5, 4, phase=3)
    disturbed = noisy(image, 0.1, 0.2, torch.Generator())
    figures = (6.117033595, 2.19647549)
    assert sum_and_norm(disturbed - image) == pytest.approx(figures, rel=1e-9)
    assert disturbed.norm().item() == pytest.approx(19.81073206, rel=1e-9)
