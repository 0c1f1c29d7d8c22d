"""TCSeg against the equations of its paper, written out voxel by voxel."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

import methods.tcseg
from benchmark.seeding import seeded_torch
from methods.base import Batch, NetOutput, Step
from methods.common import SHORTEST, similarity
from methods.tcseg import (
    TCSeg,
    Variant,
    band,
    calibration_loss,
    confidence,
    cutmix_boxes,
    disagreement,
    mix,
    mixed_loss,
    perturbation_mask,
    prototypes,
    pseudo_label_loss,
    random_elements,
    reliable,
    supervised,
)
from tests.reference.released import objective, slopes, waves

SHAPE = (8, 8, 4)
LATE = Step(500, 1000)
VARIANTS: tuple[Variant, ...] = ("paper", "released")
OPEN = TCSeg(use_confidence=False, use_uncertainty=False, mixing_starts=0.0)


class TinyNet(nn.Module):
    """Two decoders of pointwise convolutions; no dropout, no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv3d(1, 6, 1)
        self.features = nn.ModuleList(nn.Conv3d(6, 5, 1) for _ in range(2))
        self.outputs = nn.ModuleList(nn.Conv3d(5, 2, 1) for _ in range(2))
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> tuple[NetOutput, NetOutput]:
        self.seen.append(image)
        hidden = self.encoder(image).relu()
        z = [convolve(hidden).relu() for convolve in self.features]
        one, two = (NetOutput(out(x), x) for out, x in zip(self.outputs, z, strict=True))
        return one, two


class FixedNet(nn.Module):
    """Gives its parameters, whatever it sees: logits (2, 2, X, Y, Z) and features of an image."""

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.z = nn.Parameter(features)

    def forward(self, image: Tensor) -> tuple[NetOutput, NetOutput]:
        one, two = (
            NetOutput(x.expand(len(image), *x.shape), z.expand(len(image), *z.shape))
            for x, z in zip(self.logits, self.z, strict=True)
        )
        return one, two


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def batch(labelled: int = 2, unlabelled: int = 2, seed: int = 1) -> Batch:
    image = normal(labelled, 1, *SHAPE, seed=seed)
    label = (image[:, 0] + 0.3 * normal(labelled, *SHAPE, seed=seed + 1) > 0.5).long()
    return Batch(image, label, normal(unlabelled, 1, *SHAPE, seed=seed + 2), {})


def nets_of(method: TCSeg, scale: float = 1.0) -> nn.ModuleDict:
    """Tiny networks; `scale` > 1 makes their predictions sharper, thus more confident."""
    with seeded_torch(0, "init", 0):
        nets = method.init(lambda name="vnet", *, distance_head=False: TinyNet())
    for net in nets.values():
        for output in net.outputs:
            output.weight.data.mul_(scale)
    return nets


def agreeing(method: TCSeg) -> nn.ModuleDict:
    """Four nearly equal views, foreground where the intensity is positive, sure where it is far."""
    nets = nets_of(method)
    for seed, net in enumerate(nets.values()):
        net.encoder.weight.data.copy_(torch.tensor([1.0, -1, 0.5, -0.5, 0, 0]).view(6, 1, 1, 1, 1))
        net.encoder.bias.data.copy_(torch.tensor([0.0, 0, 0.3, 0.3, 0.2, 0.1]))
        for z, output in zip(net.features, net.outputs, strict=True):
            z.weight.data.copy_(torch.eye(5, 6).view(5, 6, 1, 1, 1))
            z.bias.data.zero_()
            output.weight.data.zero_()
            output.weight.data[1, :2] = torch.tensor([4.0, -4.0]).view(2, 1, 1, 1)
            output.bias.data.zero_()
        for index, parameter in enumerate(net.parameters()):
            parameter.data += 0.01 * normal(*parameter.shape, seed=100 * seed + index)
    return nets


def slabs() -> Batch:
    """Volumes that are dark on the left, bright on the right and ambiguous between."""
    x = torch.linspace(-3, 3, 32).view(1, 1, 32, 1, 1).expand(2, 1, 32, 16, 8)
    image = x + 0.1 * normal(2, 1, 32, 16, 8)
    unlabelled = x.roll(4, 2) + 0.1 * normal(2, 1, 32, 16, 8, seed=1)
    return Batch(image, (image[:, 0] > 0).long(), unlabelled, {})


def values(method: TCSeg, nets: nn.ModuleDict, data: Batch, step: Step = LATE) -> dict[str, float]:
    return {k: t.value.item() for k, t in method.losses(nets, data, step, generator()).items()}


def voxels(*shape: int) -> Iterator[tuple[int, ...]]:
    return product(*map(range, shape))


# --- equations ---------------------------------------------------------------------------------


def test_confidence_keeps_what_eq_6_maximises() -> None:
    views = [normal(2, 2, 3, 2, 2, seed=s).softmax(1) for s in range(4)]
    w = confidence(views)
    for b, x, y, z in voxels(2, 3, 2, 2):
        mean = [sum(float(v[b, k, x, y, z]) for v in views) / 4 for k in (0, 1)]
        c = float(w[b, x, y, z])
        assert c == pytest.approx(mean[1])
        assert max(c, 1 - c) == pytest.approx(max(mean))


def test_disagreement_is_the_l1_norm_over_classes_of_eqs_7_and_8() -> None:
    a, b = normal(2, 2, 3, 2, 2), normal(2, 2, 3, 2, 2, seed=1)
    d = disagreement(a, b)
    for n, x, y, z in voxels(2, 3, 2, 2):
        one = sum(abs(float(a[n, k, x, y, z]) - float(b[n, k, x, y, z])) for k in (0, 1))
        assert float(d[n, x, y, z]) == pytest.approx(one, abs=1e-6)


def test_prototypes_average_the_confident_voxels_of_each_predicted_class_as_eq_10() -> None:
    z, p = normal(2, 3, 4, 3, 2), normal(2, 2, 4, 3, 2, seed=1).softmax(1)
    confident = p[:, 1].sub(0.5).abs() > 0.2
    mu = prototypes(z, p, confident)
    for b, k in voxels(2, 2):
        members = [
            z[(b, slice(None), *v)]
            for v in voxels(4, 3, 2)
            if confident[(b, *v)] and int(p[(b, slice(None), *v)].argmax()) == k
        ]
        torch.testing.assert_close(mu[b, k], torch.stack(members).mean(0))


def test_a_class_without_confident_voxels_has_a_zero_prototype_and_zero_similarity() -> None:
    z = normal(1, 3, 2, 2, 2)
    p = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1, 1).expand(1, 2, 2, 2, 2)
    mu = prototypes(z, p, torch.ones(1, 2, 2, 2, dtype=torch.bool))
    assert mu[0, 0].abs().sum() > 0
    assert mu[0, 1].abs().sum() == 0
    assert similarity(z, mu)[:, 1].abs().sum() == 0


def test_similarity_is_the_cosine_of_eq_9() -> None:
    z, mu = normal(2, 3, 2, 2, 2), normal(2, 2, 3, seed=1)
    q = similarity(z, mu)
    assert q.shape == (2, 2, 2, 2, 2)
    for b, k, *v in voxels(2, 2, 2, 2, 2):
        a, c = z[(b, slice(None), *v)].double(), mu[b, k].double()
        expected = float(a @ c) / math.sqrt(float(a @ a) * float(c @ c))
        assert float(q[(b, k, *v)]) == pytest.approx(expected, abs=1e-6)


def test_similarity_does_not_depend_on_the_length_of_embeddings_or_prototypes() -> None:
    z, mu = normal(2, 3, 2, 2, 2), normal(2, 2, 3, seed=1)
    torch.testing.assert_close(similarity(50 * z, 30 * mu), similarity(10 * z, 10 * mu))


def test_similarity_fades_with_vectors_too_short_to_have_a_direction() -> None:
    z, mu = torch.zeros(1, 3, 1, 1, 1), torch.zeros(1, 2, 3)
    z[0, 0], mu[0, 0, 0], mu[0, 1, 0] = 2.0, SHORTEST / 4, 4.0
    torch.testing.assert_close(similarity(z, mu).flatten(), torch.tensor([0.25, 1.0]))


def test_a_prototype_of_almost_nothing_does_not_blow_up_the_gradient() -> None:
    """As met in training: the channels that dropout kept are silent in the foreground."""

    def gradient(length: float) -> float:
        z = normal(1, 8, 6, 6, 6).abs()
        z[:, :, :3] = 0
        z[:, 0, 0, 0, 0] = length
        z.requires_grad_()
        p = torch.zeros(1, 2, 6, 6, 6)
        p[:, 1, :3], p[:, 0, 3:] = 1, 1
        q = similarity(z, prototypes(z, p, torch.ones(1, 6, 6, 6, dtype=torch.bool)))
        calibration_loss((p, p), (q, q)).backward()
        assert z.grad is not None
        return float(z.grad.norm())

    assert max(gradient(1e-2), gradient(1e-4)) < 2 * gradient(4.0)


def test_similarity_of_a_zero_embedding_is_zero_with_a_finite_gradient() -> None:
    z = torch.zeros(1, 3, 2, 2, 2, requires_grad=True)
    q = similarity(z, torch.zeros(1, 2, 3) + z.sum())
    (q - 1).square().sum().backward()
    assert q.abs().sum() == 0
    assert z.grad is not None
    assert z.grad.abs().max() < 100


def test_reliable_needs_every_disagreement_within_the_tolerance_as_eq_11() -> None:
    u = [normal(1, 4, 3, 2, seed=s).abs() for s in range(4)]
    mask = reliable(u, 1.0)
    assert 0 < mask.sum() < mask.numel()
    for v in voxels(1, 4, 3, 2):
        assert bool(mask[v]) == all(float(d[v]) <= 1.0 for d in u)


def test_the_band_is_foreground_above_and_background_below_as_eqs_12_and_13() -> None:
    positive, negative = band(torch.tensor([0.0, 0.1, 0.11, 0.84, 0.85, 1.0]), 0.1, 0.85)
    assert positive.tolist() == [False, False, False, False, True, True]
    assert negative.tolist() == [True, True, False, False, False, False]


def naive_pseudo(
    logits: Tensor, label: Tensor, masks: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]
) -> float:
    """Eq. 14, its negative term through 1 - p and 1 - y."""
    p = logits.detach().double().softmax(1)
    total = 0.0
    for sign, mask, weight in zip((1, -1), masks, weights, strict=True):
        terms = []
        for b, *v in voxels(*label.shape):
            if mask[(b, *v)]:
                y = int(label[(b, *v)])
                of_class = p[(b, y, *v)] if sign > 0 else 1 - p[(b, 1 - y, *v)]
                terms.append(-math.log(float(of_class)) * float(weight[(b, *v)]))
        total += sum(terms) / len(terms) if terms else 0.0
    return total


@pytest.mark.parametrize("weighted", [False, True])
def test_the_pseudo_label_loss_is_eq_14_voxel_by_voxel(weighted: bool) -> None:
    logits, label = 2 * normal(2, 2, 4, 3, 2), (normal(2, 4, 3, 2, seed=1) > 0).long()
    masks = (normal(2, 4, 3, 2, seed=2) > 0.5, normal(2, 4, 3, 2, seed=3) > 0.8)
    ones = torch.ones(2, 4, 3, 2)
    w = normal(2, 4, 3, 2, seed=4).sigmoid() if weighted else ones
    weights = (w, 1 - w) if weighted else (ones, ones)
    arguments = (logits, label, masks, weights) if weighted else (logits, label, masks)
    expected = naive_pseudo(logits, label, masks, weights)
    assert float(pseudo_label_loss(*arguments)) == pytest.approx(expected, rel=1e-5)


def test_empty_masks_give_a_zero_loss_with_a_zero_gradient() -> None:
    logits = normal(1, 2, 2, 2, 2).requires_grad_()
    none = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    loss = pseudo_label_loss(logits, none.long(), (none, none))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_the_calibration_loss_is_eq_15_voxel_by_voxel() -> None:
    p = [normal(2, 2, 3, 2, 2, seed=s).softmax(1) for s in (0, 1)]
    q = [normal(2, 2, 3, 2, 2, seed=s).tanh() for s in (2, 3)]
    total = 0.0
    for b, *v in voxels(2, 3, 2, 2):
        at = (b, slice(None), *v)
        for a, c in ((p[0], p[1]), (q[0], q[1]), (p[0], q[0]), (p[1], q[1])):
            total += float((a[at] - c[at]).double().square().sum())
    assert float(calibration_loss(p, q)) == pytest.approx(total / (2 * 3 * 2 * 2), rel=1e-5)


def test_the_released_weights_are_those_of_its_two_accumulating_passes() -> None:
    p = [normal(2, 2, 3, 2, 2, seed=s).softmax(1) for s in (0, 1)]
    q = [normal(2, 2, 3, 2, 2, seed=s).tanh() for s in (2, 3)]
    mse = nn.functional.mse_loss
    first = mse(p[0], p[1]) + mse(q[0], q[1]) / 4 + mse(q[0], p[0]) / 4
    second = first + mse(q[1], p[1]) / 4
    torch.testing.assert_close(calibration_loss(p, q, (1, 1 / 4, 1 / 4, 1 / 8)), first + second)


def test_the_perturbation_mask_is_the_largest_component_of_the_dilation_as_eq_16() -> None:
    unreliable = normal(3, 12, 10, 9) > 1.8
    elements = torch.from_numpy(random_elements(3, np.random.default_rng(5)))
    mask = perturbation_mask(unreliable, elements)
    for one, element, found in zip(unreliable, elements, mask, strict=True):
        dilated = ndimage.binary_dilation(one.numpy(), element.numpy())
        labels, number = ndimage.label(dilated)
        sizes = [int((labels == i + 1).sum()) for i in range(number)]
        expected = labels == int(np.argmax(sizes)) + 1 if sizes else np.zeros_like(dilated)
        assert number > 1
        np.testing.assert_array_equal(found.numpy(), expected)


def test_the_released_mask_is_closed_and_dropped_below_100_voxels() -> None:
    point = torch.zeros(1, 7, 7, 7, dtype=torch.bool)
    point[0, 3, 3, 3] = True
    hollow = torch.zeros(1, 12, 12, 12, dtype=torch.bool)
    hollow[0, 3:9, 3:9, 3:9] = True
    filled = hollow.clone()
    hollow[0, 5, 5, 5] = False
    torch.testing.assert_close(perturbation_mask(hollow, point), hollow)
    torch.testing.assert_close(perturbation_mask(hollow, point, released=True), filled)
    small = torch.zeros_like(hollow)
    small[0, 3:6, 3:6, 3:6] = True
    assert perturbation_mask(small, point).sum() == 27
    assert perturbation_mask(small, point, released=True).sum() == 0


def test_nothing_unreliable_gives_an_empty_mask() -> None:
    elements = torch.ones(2, 7, 7, 7, dtype=torch.bool)
    assert perturbation_mask(torch.zeros(2, 8, 8, 8, dtype=torch.bool), elements).sum() == 0


def test_dilation_elements_are_half_full_cubes_of_every_width_up_to_7() -> None:
    elements = random_elements(2000, np.random.default_rng(0))
    widths = [int(e.any((1, 2)).sum()) for e in elements]
    assert set(widths) == set(range(8))  # a single voxel may be off
    full = np.mean([e.sum() for e in elements if e.any((1, 2)).all()])
    assert full == pytest.approx(7**3 / 2, rel=0.05)
    assert float(elements.sum()) / 2000 == pytest.approx(sum(w**3 for w in range(8)) / 14, rel=0.05)


def test_targeted_boxes_are_centred_on_the_mask_at_full_depth() -> None:
    mask = torch.zeros(2, 40, 30, 6, dtype=torch.bool)
    mask[0, 18:23, 12:17, 1] = True
    mask[1, 10:13, 20:21, :] = True
    boxes = cutmix_boxes(mask, np.random.default_rng(0), targeted=True)
    lam = np.random.default_rng(0).beta(4, 4, (2, 1))[:, 0]
    for box, centre, ratio in zip(boxes, ((20, 14), (11, 20)), lam, strict=True):
        expected = torch.zeros(40, 30, 6, dtype=torch.bool)
        x, y = int(ratio * 40) // 2, int(ratio * 30) // 2
        (cx, cy) = centre
        expected[max(cx - x, 0) : cx + x, max(cy - y, 0) : cy + y] = True
        torch.testing.assert_close(box, expected)


def test_random_boxes_take_their_size_from_beta_and_their_centre_anywhere() -> None:
    mask = torch.zeros(2, 40, 30, 6, dtype=torch.bool)
    boxes = cutmix_boxes(mask, np.random.default_rng(3), targeted=False)
    draw = np.random.default_rng(3)
    centres = draw.integers([5, 3], [40, 30], (2, 2))
    ratio = math.sqrt(1 - draw.beta(4, 4))
    for box, (cx, cy) in zip(boxes, centres, strict=True):
        expected = torch.zeros(40, 30, 6, dtype=torch.bool)
        x, y = int(40 * ratio) // 2, int(30 * ratio) // 2
        expected[max(cx - x, 0) : cx + x, max(cy - y, 0) : cy + y] = True
        torch.testing.assert_close(box, expected)


def test_one_empty_mask_makes_all_boxes_random() -> None:
    mask = torch.zeros(2, 40, 30, 6, dtype=torch.bool)
    mask[0, 18:23, 12:17, 1] = True
    boxes = [cutmix_boxes(mask, np.random.default_rng(3), targeted=t) for t in (True, False)]
    torch.testing.assert_close(*boxes)


def test_mixing_shows_the_unlabelled_inside_and_the_labelled_outside_as_eqs_17_and_18() -> None:
    mask, a, b = normal(4, 3, 2) > 0, normal(4, 3, 2, seed=1), normal(4, 3, 2, seed=2)
    mixed = mix(mask, a, b)
    for v in voxels(4, 3, 2):
        m = float(mask[v])
        assert float(mixed[v]) == (1 - m) * float(a[v]) + m * float(b[v])


def test_each_decoder_learns_the_mixed_label_of_the_other_as_eq_22() -> None:
    logits = [normal(1, 2, 3, 2, 2, seed=s) for s in (0, 1)]
    labels = [(normal(1, 3, 2, 2, seed=s) > 0).long() for s in (2, 3)]
    ce = nn.functional.cross_entropy
    expected = ce(logits[0], labels[1]) + ce(logits[1], labels[0])
    torch.testing.assert_close(mixed_loss(logits, labels), expected)


def test_the_supervised_loss_is_dice_plus_cross_entropy_of_both_decoders_as_eq_20() -> None:
    logits = [normal(2, 2, 3, 2, 2, seed=s) for s in (0, 1)]
    label = (normal(2, 3, 2, 2, seed=2) > 0).long()
    expected = 0.0
    for x in logits:
        p = x.detach().double().softmax(1)
        overlap = size = entropy = 0.0
        for b, *v in voxels(*label.shape):
            y, f = int(label[(b, *v)]), float(p[(b, 1, *v)])
            overlap += f * y
            size += f + y
            entropy -= math.log(float(p[(b, y, *v)])) / label.numel()
        expected += 1 - 2 * overlap / size + entropy
    assert float(supervised(logits, label)) == pytest.approx(expected, rel=1e-5)


# --- the method --------------------------------------------------------------------------------


def test_the_paper_variant_is_eqs_6_to_15_and_21_put_together() -> None:
    method, data = TCSeg(tau=0.2, use_image=False), batch()
    nets = agreeing(method)
    student = nets["student"](torch.cat([data.image, data.unlabelled]))
    teacher = nets["teacher"](data.unlabelled)
    p, p_t = [o.logits.softmax(1) for o in student], [o.logits.softmax(1) for o in teacher]
    mean = (p[0] + p[1]) / 2
    mean = torch.cat([mean[:2], (mean[2:] + (p_t[0] + p_t[1]) / 2) / 2])[:, 1]
    high, low = mean >= 0.85, mean <= 0.1
    q, q_t = (
        [
            similarity(o.features, prototypes(o.features, o.logits.softmax(1), (high | low)[-n:]))
            for o in role
        ]
        for role, n in ((student, 4), (teacher, 2))
    )
    certain = torch.ones_like(mean[2:], dtype=torch.bool)
    for a, b in ((p[0][2:], p[1][2:]), p_t, (q[0][2:], q[1][2:]), q_t):
        certain &= (a - b).abs().sum(1) <= 0.2
    masks = (high[2:] & certain, low[2:] & certain)
    assert all(0 < mask.sum() < mask.numel() / 2 for mask in masks)
    ones = torch.ones_like(mean[2:])
    pseudo = sum(
        naive_pseudo(student[b].logits[2:], p[1 - b][2:].argmax(1), masks, (ones, ones))
        for b in (0, 1)
    )
    found = values(method, nets, data)
    assert found["pseudo"] == pytest.approx(pseudo, rel=1e-5)
    assert found["calibration"] == pytest.approx(calibration_loss(p, q).item(), rel=1e-5)
    expected = supervised([o.logits[:2] for o in student], data.label).item()
    assert found["supervised"] == pytest.approx(expected, rel=1e-5)


def test_the_released_variant_gates_by_the_peer_and_weights_by_its_confidence() -> None:
    method, data = TCSeg(variant="released", tau=0.1, use_image=False), batch()
    nets = agreeing(method)
    student = nets["student"](torch.cat([data.image, data.unlabelled]))
    teacher = nets["teacher"](data.unlabelled)

    def q_of(output: NetOutput) -> Tensor:
        p = output.logits.softmax(1)
        sure = (p[:, 1] >= 0.85) | (p[:, 1] <= 0.1)
        return similarity(output.features, prototypes(output.features, p, sure))

    p, q, q_t = [o.logits.softmax(1) for o in student], [*map(q_of, student)], [*map(q_of, teacher)]
    total = 0.0
    for b, peer in ((0, 1), (1, 0)):
        certain = (
            ((p[0] - p[1])[2:, 1].abs() <= 0.1)
            & ((q[0] - q[1])[2:, 1].abs() <= 0.2)
            & ((q_t[0] - q_t[1])[:, 1].abs() <= 0.2)
            & ((q[peer] - p[peer])[2:, 1].abs() <= 0.2)
        )
        largest, smallest = (f(p[peer][2:].detach(), 1) for f in (torch.amax, torch.amin))
        masks = (certain & (largest >= 0.85), certain & (smallest <= 0.1))
        assert masks[0].any()
        label = p[peer][2:].argmax(1)
        total += naive_pseudo(student[b].logits[2:], label, masks, (largest, smallest))
    found = method.losses(nets, data, LATE, generator())
    assert found["pseudo"].value.item() == pytest.approx(total, rel=1e-4)
    expected = calibration_loss(p, q, (1, 1 / 4, 1 / 4, 1 / 8))
    torch.testing.assert_close(found["calibration"].value, expected)


@pytest.mark.parametrize(
    ("variant", "supervised_weight", "mixed_weight"), [("paper", 1.0, 1.0), ("released", 0.25, 0.5)]
)
def test_weights_follow_eq_23_or_the_released_code_with_a_ramp_over_three_tenths_of_the_run(
    variant: Variant, supervised_weight: float, mixed_weight: float
) -> None:
    method = TCSeg(variant=variant, mixing_starts=0.0)
    nets, data = nets_of(method), batch()
    for index, ramp in ((0, math.exp(-5)), (3000, math.exp(-1.25)), (6000, 1.0), (19_999, 1.0)):
        terms = method.losses(nets, data, Step(index, 20_000), generator())
        assert terms["supervised"].weight == supervised_weight
        assert terms["mixed"].weight == mixed_weight
        assert terms["pseudo"].weight == pytest.approx(ramp)
        assert terms["calibration"].weight == pytest.approx(ramp)


def test_without_ramp_the_weights_are_one_from_the_start() -> None:
    method = TCSeg(rampup=0.0)
    terms = method.losses(nets_of(method), batch(), Step(0, 1000), generator())
    assert {t.weight for t in terms.values()} == {1.0}


def test_mixing_starts_after_a_two_hundredth_of_the_run() -> None:
    method = TCSeg()
    nets, data = nets_of(method), batch()
    assert "mixed" not in method.losses(nets, data, Step(99, 20_000), generator())
    assert "mixed" in method.losses(nets, data, Step(100, 20_000), generator())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("switches", "terms"),
    [
        ({}, {"supervised", "pseudo", "calibration", "mixed"}),
        ({"use_probability": False}, {"supervised", "calibration", "mixed"}),
        ({"use_image": False}, {"supervised", "pseudo", "calibration"}),
        ({"use_feature": False}, {"supervised", "pseudo", "mixed"}),
        ({"use_uncertainty": False}, {"supervised", "pseudo", "calibration", "mixed"}),
        ({"use_confidence": False}, {"supervised", "pseudo", "calibration", "mixed"}),
        ({"use_probability": False, "use_image": False, "use_feature": False}, {"supervised"}),
    ],
)
def test_a_space_that_is_off_has_no_term(
    variant: Variant, switches: dict[str, bool], terms: set[str]
) -> None:
    method = TCSeg(variant=variant, **switches)
    found = method.losses(nets_of(method), batch(), LATE, generator())
    assert set(found) == terms
    assert all(t.value.shape == () and t.value.isfinite() for t in found.values())


def test_only_sup_is_the_supervised_loss_alone_without_teacher_or_unlabelled_volumes() -> None:
    method = TCSeg(use_probability=False, use_image=False, use_feature=False)
    nets, data = nets_of(method), batch()
    found = method.losses(nets, data, LATE, generator())
    assert set(nets) == {"student"}
    assert [len(x) for x in nets["student"].seen] == [2]
    outputs = nets["student"](data.image)
    torch.testing.assert_close(
        found["supervised"].value, supervised([o.logits for o in outputs], data.label)
    )
    method.after_step(nets, LATE)
    assert set(method.predictors(nets)) == {"main", "decoder2", "mean"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_either_axis_every_voxel_is_pseudo_labelled_and_none_is_perturbed(
    variant: Variant,
) -> None:
    method = replace(OPEN, variant=variant, rampup=0.0)
    nets, data = nets_of(method), batch()
    nets["student"].seen.clear()
    found = values(method, nets, data, Step(0, 1000))
    mixed = nets["student"].seen[-1]
    if variant == "paper":
        torch.testing.assert_close(mixed, data.image)
        outputs = nets["student"](torch.cat([data.image, data.unlabelled]))
        p = [o.logits[2:].softmax(1) for o in outputs]
        t = [o.logits.softmax(1) for o in nets["teacher"](data.unlabelled)]
        w = confidence([*p, *t])
        masks, ones = (w >= 0.5, w <= 0.5), torch.ones_like(w)
        expected = sum(
            naive_pseudo(outputs[b].logits[2:], p[1 - b].argmax(1), masks, (ones, ones))
            for b in (0, 1)
        )
        assert found["pseudo"] == pytest.approx(expected, rel=1e-5)
    assert found["pseudo"] > 0


def test_without_uncertainty_disagreeing_but_confident_voxels_teach_too() -> None:
    data = batch()
    nets = agreeing(TCSeg())
    nets["student"].features[1].bias.data += 1.0
    strict = TCSeg(tau=0.0, use_feature=False)
    assert values(strict, nets, data)["pseudo"] == 0
    assert values(replace(strict, use_uncertainty=False), nets, data)["pseudo"] > 0


def test_without_confidence_unconfident_but_certain_voxels_teach_too() -> None:
    data = batch()
    nets = agreeing(TCSeg())
    strict = TCSeg(tau=2.0, tau_min=0.0, tau_max=1.0, use_feature=False)
    assert values(strict, nets, data)["pseudo"] == 0
    assert values(replace(strict, use_confidence=False), nets, data)["pseudo"] > 0


def test_without_the_feature_space_embeddings_do_not_matter() -> None:
    method = TCSeg(use_feature=False)
    data = batch()
    nets = nn.ModuleDict(
        {role: FixedNet(normal(2, 2, *SHAPE), normal(2, 3, *SHAPE)) for role in TWO_ROLES}
    )
    first = values(method, nets, data)
    for net in nets.values():
        net.z.data.mul_(normal(*net.z.shape, seed=9))
    assert values(method, nets, data) == first
    assert values(TCSeg(), nets, data).keys() - first.keys() == {"calibration"}


TWO_ROLES = ("student", "teacher")


def opposed() -> nn.ModuleDict:
    """Decoder 1 says foreground everywhere, decoder 2 background; the teacher's the reverse."""
    says = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).view(2, 2, 1, 1, 1).expand(2, 2, *SHAPE)
    z = normal(2, 3, *SHAPE)
    return nn.ModuleDict(
        {
            "student": FixedNet(says.clone(), z.clone()),
            "teacher": FixedNet(-says, z).requires_grad_(False),
        }
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_decoder_learns_its_peers_pseudo_label_and_the_peer_gets_no_gradient_from_it(
    variant: Variant,
) -> None:
    method, nets = replace(OPEN, variant=variant), opposed()
    method.losses(nets, batch(), LATE, generator())["pseudo"].value.backward()
    gradient = nets["student"].logits.grad
    # Cross-entropy of logits (-1, 1) with label 0 pushes foreground down, and conversely.
    assert (gradient[0, 1] > 0).all()
    assert (gradient[1, 1] < 0).all()
    assert nets["student"].z.grad is None


class FirstVolumes(nn.Module):
    """Gives as many volumes of these outputs as it is shown, one output a decoder."""

    def __init__(self, *outputs: NetOutput) -> None:
        super().__init__()
        self.outputs = outputs
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> tuple[NetOutput, ...]:
        self.seen.append(image)
        return tuple(NetOutput(o.logits[: len(image)], o.features) for o in self.outputs)


def two_balls() -> Tensor:
    """Log-odds (12, 12, 12) of a large ball and a small one; far from both they are sure."""
    grid = torch.cartesian_prod(*[torch.arange(12, dtype=torch.float64)] * 3)
    a, b = ((grid - torch.tensor(c)).norm(dim=1) for c in ((4.5, 4.5, 5.0), (7.5, 7.5, 7.0)))
    return 4 * torch.maximum(2.0 - a, 1.3 - b).view(12, 12, 12)


def seen_by(phase: float, volumes: int) -> NetOutput:
    """The balls as a decoder sees them, and features that nearly are its probabilities."""
    odds = two_balls() + 0.3 * waves(volumes, 12, 12, 12, phase=phase)
    z = torch.stack([-odds / 2, odds / 2], 1)
    features = torch.cat([z.softmax(1), 0.2 * waves(volumes, 2, 12, 12, 12, phase=phase)], 1)
    return NetOutput(z.requires_grad_(), features.detach().requires_grad_())


@pytest.mark.parametrize(
    ("index", "voxels", "pasted", "mixed", "loss", "of_logits"),
    [
        (6000, [386, 592], 723.0827, 0.04513101575, 0.2159473569, [0.005206942397, 0.005589524299]),
        (6001, [92, 93], 799.5320, 0.04450357085, 0.2156336345, [0.005119714873, 0.005547334356]),
    ],
)
def test_the_released_variant_has_the_figures_of_the_released_code(
    monkeypatch: pytest.MonkeyPatch,
    index: int,
    voxels: list[int],
    pasted: float,
    mixed: float,
    loss: float,
    of_logits: list[float],
) -> None:
    """BubbleDirk/temporary_anonymous_tcseg@9f38be1, core_code_of_training.py, lines 356-485.

    Its iterations 6,001, with boxes around the perturbation masks, and 6,002, with random ones,
    where `voxels` are the unreliable ones; the draws are given. Its Dice, which it lacks, is
    MC-Net's of that name. Cubes hide that it takes one axis for another; its closing, which differs
    at a border, does not here. Images are pasted in float32.
    """
    elements = torch.zeros(2, 7, 7, 7, dtype=torch.bool)
    elements[0, 2:5, 2:5, 2:5] = waves(3, 3, 3) > 0
    elements[1, 1:5, 1:5, 1:5] = waves(4, 4, 4) > 0
    ratios, centres = (0.4, [[0.6], [0.45]])[index == 6000], np.array([[3, 7], [10, 5]])
    draw = Mock(beta=Mock(return_value=np.array(ratios)), integers=Mock(return_value=centres))
    monkeypatch.setattr(methods.tcseg, "random_elements", lambda *_: elements.numpy())
    masks = []

    def boxes_of(mask: Tensor, _: np.random.Generator, *, targeted: bool) -> Tensor:
        masks.append(mask)
        return cutmix_boxes(mask, draw, targeted=targeted)

    monkeypatch.setattr(methods.tcseg, "cutmix_boxes", boxes_of)
    student = FirstVolumes(seen_by(1, 4), seen_by(2, 4))
    teacher = FirstVolumes(seen_by(3, 2), seen_by(4, 2))
    volumes = waves(4, 1, 12, 12, 12)
    label = (two_balls() + waves(2, 12, 12, 12) > 0).long()
    terms = TCSeg(variant="released").losses(
        nn.ModuleDict({"student": student, "teacher": teacher}),
        Batch(volumes[:2], label, volumes[2:], {}),
        Step(index, 20_000),
        generator(),
    )
    figures = {"supervised": 0.7219159211, "pseudo": 0.007438487215, "calibration": 0.005464381551}
    found = {name: term.value.item() for name, term in terms.items()}
    assert found == pytest.approx(figures | {"mixed": mixed}, rel=1e-8)
    assert masks[0].sum((1, 2, 3)).tolist() == voxels
    image = (student.seen[1] * waves(2, 1, 12, 12, 12, phase=5)).sum().item()
    assert image == pytest.approx(pasted, rel=1e-6)
    assert objective(terms).item() == pytest.approx(loss, rel=1e-8)
    logits = [o.logits for o in student.outputs]
    assert slopes(objective(terms), logits) == pytest.approx(of_logits, rel=1e-8)
    features = [o.features for o in student.outputs]
    of_features = [0.003202143833, 0.001632191664]
    assert slopes(objective(terms), features) == pytest.approx(of_features, rel=1e-8)


def test_a_pseudo_label_loss_of_one_decoder_does_not_move_the_other() -> None:
    nets = nets_of(OPEN)
    student, data = nets["student"], batch()
    terms = OPEN.losses(nets, data, LATE, generator())
    outputs = student(torch.cat([data.image, data.unlabelled]))
    label = outputs[1].logits[2:].argmax(1)
    everything = torch.ones_like(label, dtype=torch.bool)
    pseudo_label_loss(outputs[0].logits[2:], label, (everything, everything)).backward()
    assert student.outputs[1].weight.grad is None
    terms["pseudo"].value.backward()
    assert student.outputs[1].weight.grad is not None


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_calibration_reaches_probabilities_and_embeddings_but_not_the_teacher(
    variant: Variant,
) -> None:
    method = TCSeg(variant=variant)
    nets = agreeing(method)
    terms = method.losses(nets, batch(), LATE, generator())
    terms["calibration"].value.backward(retain_graph=True)
    student = nets["student"]
    for part in (*student.features, *student.outputs, student.encoder):
        assert part.weight.grad.abs().sum() > 0
    sum(term.value for term in terms.values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in nets["teacher"].parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_open_gates_every_term_has_a_gradient_at_step_0(variant: Variant) -> None:
    method = replace(OPEN, variant=variant)
    nets = nets_of(method)
    terms = method.losses(nets, batch(), Step(0, 1000), generator())
    assert set(terms) == {"supervised", "pseudo", "calibration", "mixed"}
    for name, term in terms.items():
        gradients = torch.autograd.grad(
            term.value, list(nets["student"].parameters()), retain_graph=True
        )
        assert sum(float(g.abs().sum()) for g in gradients) > 0, name


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_mixed_sample_pastes_image_and_teachers_peer_label_in_the_same_place(
    variant: Variant, index: int
) -> None:
    method, data = TCSeg(variant=variant, mixing_starts=0.0), slabs()
    nets = agreeing(method)
    nets["teacher"].outputs[1].bias.data[1] += 0.3
    terms = method.losses(nets, data, Step(500 + index, 1000), generator(4))
    image = nets["student"].seen[-1]
    inside = (image == data.unlabelled)[:, 0]
    torch.testing.assert_close(mix(inside.unsqueeze(1), data.image, data.unlabelled), image)
    assert 0 < inside.sum() < inside.numel()
    t = [o.logits.argmax(1) for o in nets["teacher"](data.unlabelled)]
    logits = [o.logits for o in nets["student"](image)]
    ce = nn.functional.cross_entropy
    expected = sum(ce(logits[b], torch.where(inside, t[1 - b], data.label)) for b in (0, 1))
    torch.testing.assert_close(terms["mixed"].value, expected)


def test_the_paper_variant_mixes_with_the_mask_of_unconfident_or_uncertain_voxels() -> None:
    method, data = TCSeg(mixing_starts=0.0, use_feature=False, tau=0.1), slabs()
    nets = agreeing(method)
    method.losses(nets, data, LATE, generator(7))
    inside = (nets["student"].seen[-1] == data.unlabelled)[:, 0]
    p = [o.logits.softmax(1)[:, 1] for o in nets["student"](data.unlabelled)]
    t = [o.logits.softmax(1)[:, 1] for o in nets["teacher"](data.unlabelled)]
    w = (p[0] + p[1] + t[0] + t[1]) / 4
    unconfident = (w > 0.1) & (w < 0.85)
    uncertain = (2 * (p[0] - p[1]).abs() > 0.1) | (2 * (t[0] - t[1]).abs() > 0.1)
    key = int(torch.randint(2**63 - 1, (), generator=generator(7)))
    draw = np.random.Generator(np.random.Philox(key))
    elements = torch.from_numpy(random_elements(2, draw))
    torch.testing.assert_close(inside, perturbation_mask(unconfident | uncertain, elements))


def test_the_released_variant_swaps_the_roles_in_every_second_pair() -> None:
    method, data = TCSeg(variant="released"), batch()
    nets = nets_of(method)
    method.losses(nets, data, Step(501, 1000), generator(7))
    inside = (nets["student"].seen[-1] == data.unlabelled)[:, 0]
    key = int(torch.randint(2**63 - 1, (), generator=generator(7)))
    draw = np.random.Generator(np.random.Philox(key))
    boxes = cutmix_boxes(inside, draw, targeted=False)
    torch.testing.assert_close(inside, torch.stack([boxes[0], ~boxes[1]]))


def test_fewer_labelled_than_unlabelled_volumes_are_reused_in_pairs() -> None:
    method = replace(OPEN, use_feature=False)
    nets, data = nets_of(method), batch(labelled=1, unlabelled=3)
    method.losses(nets, data, LATE, generator())
    torch.testing.assert_close(nets["student"].seen[-1], data.image.expand(3, -1, -1, -1, -1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_terms_depend_on_the_generator_given_and_on_no_other(variant: Variant) -> None:
    method = TCSeg(variant=variant, tau=0.01)
    nets, data = agreeing(method), batch()
    step = Step(501, 1000)
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    first = method.losses(nets, data, step, generator(1))
    again = method.losses(nets, data, step, generator(1))
    other = method.losses(nets, data, step, generator(2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())  # noqa: NPY002
    assert all(torch.equal(first[k].value, again[k].value) for k in first)
    assert first["mixed"].value != other["mixed"].value


def test_every_semi_supervised_term_sees_the_unlabelled_volumes() -> None:
    nets = agreeing(OPEN)
    data = batch()
    method = TCSeg(tau=0.2)
    first = values(method, nets, data)
    second = values(method, nets, replace(data, unlabelled=data.unlabelled.roll(1, 2) * 0.9))
    assert first["supervised"] == pytest.approx(second["supervised"])
    for term in ("pseudo", "calibration", "mixed"):
        assert first[term] != second[term]


def test_exchanging_the_decoders_changes_no_term_of_the_paper() -> None:
    method, data = TCSeg(tau=0.2), batch()
    nets = agreeing(method)
    first = values(method, nets, data)
    for net in nets.values():
        for part in (net.features, net.outputs):
            one, two = ({k: v.clone() for k, v in m.state_dict().items()} for m in part)
            part[0].load_state_dict(two)
            part[1].load_state_dict(one)
    assert values(method, nets, data) == pytest.approx(first, rel=1e-5)


def test_mirroring_the_volumes_changes_neither_pseudo_labels_nor_calibration() -> None:
    method, data = TCSeg(tau=0.2, use_image=False), batch()
    nets = agreeing(method)
    mirrored = Batch(data.image.flip(2), data.label.flip(1), data.unlabelled.flip(2), {})
    assert values(method, nets, mirrored) == pytest.approx(values(method, nets, data), rel=1e-5)


def test_the_teacher_copies_the_student_after_the_first_step_and_averages_later() -> None:
    method = TCSeg()
    nets = nets_of(method)
    student, teacher = (next(nets[role].parameters()) for role in TWO_ROLES)
    assert not torch.equal(student, teacher)
    method.after_step(nets, Step(0, 1000))
    torch.testing.assert_close(teacher, student)
    student.data += 1.0
    old = teacher.clone()
    method.after_step(nets, Step(999, 1000))
    torch.testing.assert_close(teacher, 0.99 * old + 0.01 * student)


def test_predictors_are_decoder_1_decoder_2_their_mean_and_the_teacher() -> None:
    method = TCSeg()
    nets, image = nets_of(method), batch().image
    found = {name: predict(image) for name, predict in method.predictors(nets).items()}
    p = [o.logits.softmax(1) for o in nets["student"](image)]
    torch.testing.assert_close(found["main"], p[0])
    torch.testing.assert_close(found["decoder2"], p[1])
    torch.testing.assert_close(found["mean"], (p[0] + p[1]) / 2)
    torch.testing.assert_close(found["teacher"], nets["teacher"](image)[0].logits.softmax(1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tau", -0.01),
        ("tau_min", 0.6),
        ("tau_max", 0.4),
        ("tau_max", math.nan),
        ("ema_decay", 1.5),
        ("rampup", -0.1),
        ("mixing_starts", 2.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{value}.*must"):
        TCSeg(**{name: value})


def test_a_variant_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="variant='code'; known: paper, released"):
        TCSeg(variant="code")


@pytest.mark.parametrize(
    "values", [{"tau": 0.01}, {"tau": 0.1}, {"tau_min": 0.05, "tau_max": 0.95}, {"tau_min": 0.2}]
)
def test_the_range_of_fig_6_is_allowed(values: dict[str, float]) -> None:
    assert replace(TCSeg(), **values)


@pytest.mark.parametrize("variant", VARIANTS)
def test_thirty_steps_on_one_batch_lower_the_supervised_term(variant: Variant) -> None:
    method = TCSeg(variant=variant)
    nets, data = nets_of(method), batch()
    optimiser = torch.optim.SGD(nets["student"].parameters(), 0.05, momentum=0.9)
    history = []
    for index in range(30):
        step = Step(index, 30)
        terms = method.losses(nets, data, step, generator(index))
        optimiser.zero_grad()
        sum(t.weight * t.value for t in terms.values()).backward()
        optimiser.step()
        method.after_step(nets, step)
        history.append(terms["supervised"].value.item())
    assert history[-1] < 0.9 * history[0]
    assert all(b < a + 0.5 for a, b in pairwise(history))
