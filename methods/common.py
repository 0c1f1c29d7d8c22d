"""Pure functions that several methods share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor, nn

from methods.base import Predictor, Step

SHORTEST = 0.1
"""Length below which a vector counts as this long in cosines."""


def dice_loss(probability: Tensor, target: Tensor, smooth: float = 1e-5) -> Tensor:
    r"""Soft Dice loss of the foreground with squared denominators, over the whole batch.

    :math:`1 - (2 \sum p t + \epsilon) / (\sum p^2 + \sum t^2 + \epsilon)`

    Args:
        probability: foreground probabilities, any shape.
        target: foreground indicator of the same shape.
        smooth: epsilon.

    Source: Milletari et al., V-Net, 3DV 2016, Sec. 3; the smoothing is the field's.

    >>> float(dice_loss(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])))
    0.0
    """
    target = target.to(probability.dtype)
    overlap = (probability * target).sum()
    size = probability.square().sum() + target.square().sum()
    return 1 - (2 * overlap + smooth) / (size + smooth)


def linear_dice_loss(probability: Tensor, target: Tensor, smooth: float = 1e-8) -> Tensor:
    r"""Soft Dice loss over the whole batch, :math:`1 - (2 \sum p t + e) / (\sum p + \sum t + e)`.

    Args:
        probability: of the foreground, any shape.
        target: foreground indicator of the same shape.
        smooth: e.

    Source: the released code of MC-Net and of its descendants.

    >>> float(linear_dice_loss(torch.tensor([0.5, 0.5]), torch.tensor([True, False])))
    0.5
    """
    target = target.to(probability.dtype)
    overlap = (probability * target).sum()
    return 1 - (2 * overlap + smooth) / (probability.sum() + target.sum() + smooth)


def masked_dice_loss(
    probability: Tensor, target: Tensor, mask: Tensor, smooth: float = 1e-5
) -> Tensor:
    r"""Soft Dice loss inside a mask, linear denominators, mean over volumes and both classes.

    Args:
        probability: (B, 2, X, Y, Z).
        target: (B, X, Y, Z) int64.
        mask: weight of each voxel, (B, X, Y, Z), or (X, Y, Z) of all volumes.
        smooth: e of :math:`1 - (2 \sum p t + e) / (\sum p + \sum t + e)`.

    Source: the released code of CoraNet and of BCP.
    """
    truth = torch.stack([target == 0, target == 1], 1).to(probability.dtype)
    weight = mask.unsqueeze(-4).to(probability.dtype)
    overlap = (probability * truth * weight).flatten(2).sum(2)
    size = ((probability + truth) * weight).flatten(2).sum(2)
    return 1 - ((2 * overlap + smooth) / (size + smooth)).mean()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Voxel-wise cross-entropy, unreduced: (B, K, ...) scores and (B, ...) classes give (B, ...).

    Selects from log-softmax: `nll_loss` has no deterministic kernel on GPUs, and that of the
    gradient of `gather` sorts all voxels.
    """
    first, *others = logits.log_softmax(1).unbind(1)
    for k, log_p in enumerate(others, 1):
        first = torch.where(target == k, log_p, first)
    return -first


def supervised_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The field's supervised loss, half cross-entropy and half foreground Dice.

    Args:
        logits: (B, 2, X, Y, Z).
        target: (B, X, Y, Z) int64.
    """
    dice = dice_loss(logits.softmax(1)[:, 1], target == 1)
    return 0.5 * (cross_entropy(logits, target).mean() + dice)


def both_classes_loss(logits: Tensor, target: Tensor) -> Tensor:
    """`supervised_loss` with Dice averaged over background and foreground, as in SSL4MIS.

    Args:
        logits: (B, 2, X, Y, Z).
        target: (B, X, Y, Z) int64.
    """
    p = logits.softmax(1)
    dice = (dice_loss(p[:, 0], target == 0) + dice_loss(p[:, 1], target == 1)) / 2
    return 0.5 * (cross_entropy(logits, target).mean() + dice)


def hard_label(scores: Tensor) -> Tensor:
    """Class (B, ...) of scores or probabilities (B, 2, ...), background where they are equal.

    Their argmax, which is slow on CPUs.
    """
    return (scores[:, 1] > scores[:, 0]).long()


def cross_pseudo_supervision(first: Tensor, second: Tensor) -> Tensor:
    """Cross-entropy of each network's scores (B, 2, X, Y, Z) to the other's hard labels, summed.

    Source: Chen et al., CPS, CVPR 2021, arXiv:2106.01226.

    >>> sure = torch.tensor([-50.0, 50.0]).view(1, 2, 1, 1, 1)
    >>> float(cross_pseudo_supervision(sure, sure))
    0.0
    """
    towards_second = cross_entropy(first, hard_label(second)).mean()
    return towards_second + cross_entropy(second, hard_label(first)).mean()


def mutual_consistency(
    log_odds: Sequence[Tensor], temperature: float, *, detached: bool = False
) -> Tensor:
    r"""Sum over ordered pairs of decoders of the mean squared difference of p_i and s(p_j).

    s sharpens, :math:`s(p) = p^{1/T} / (p^{1/T} + (1 - p)^{1/T})`. Of two classes each contributes
    the same, so the foreground alone has the mean of both; and :math:`s(\sigma(z)) =
    \sigma(z / T)`, which neither under- nor overflows.

    Args:
        log_odds: of the foreground, of each decoder; at least two of one shape.
        temperature: T.
        detached: whether the sharpened side is a constant.

    Source: Wu et al., MC-Net, arXiv:2103.02911, and MC-Net+, arXiv:2109.09960.
    """
    goals = [(z.detach() if detached else z) / temperature for z in log_odds]
    pairs = permutations(range(len(goals)), 2)
    return torch.stack(
        [(log_odds[i].sigmoid() - goals[j].sigmoid()).square().mean() for i, j in pairs]
    ).sum()


def predictive_entropy(probability: Tensor) -> Tensor:
    """Entropy in nats over the classes: (B, K, X, Y, Z) to (B, 1, X, Y, Z)."""
    return -(probability * (probability + 1e-6).log()).sum(1, keepdim=True)


def entropy_threshold(step: Step) -> float:
    """Entropy below which a voxel counts, rising over the whole run to that of a fair coin.

    Source: Yu et al., UA-MT, MICCAI 2019, arXiv:1907.07034, Sec. 3.
    """
    return (0.75 + 0.25 * sigmoid_rampup(step.fraction, 1.0)) * math.log(2)


def masked_distance(probability: Tensor, goal: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of (B, K, X, Y, Z) where the (B, 1, X, Y, Z) mask holds; else 0."""
    distance = (mask * (probability - goal).square()).sum()
    return distance / (probability.shape[1] * mask.sum() + 1e-16)


def segmentation(distance: Tensor, sharpness: float) -> Tensor:
    """Foreground probability of a signed distance that is negative inside.

    Source: Luo et al., DTC, AAAI 2021, arXiv:2009.04448.

    >>> segmentation(torch.tensor([-0.1, 0.0, 0.1]), 1500.0).tolist()
    [1.0, 0.5, 0.0]
    """
    return torch.sigmoid(-sharpness * distance)


def class_means(features: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Prototypes: weighted mean embedding of each class in each volume.

    Args:
        features: (B, F, X, Y, Z).
        weight: (B, K, X, Y, Z), of each voxel in each class.
        epsilon: added to the sum of the weights.

    Returns:
        (B, K, F), zero for a class without weight.
    """
    w = weight.flatten(2).to(features.dtype)
    return w @ features.flatten(2).mT / (w.sum(2, keepdim=True) + epsilon)


def similarity(features: Tensor, prototype: Tensor) -> Tensor:
    """Cosines (B, K, X, Y, Z) of embeddings (B, F, X, Y, Z) and prototypes (B, K, F).

    Vectors shorter than `SHORTEST` are divided by `SHORTEST`: they have little direction, and the
    gradient of a cosine grows with 1 / length, a prototype's with that of a whole volume.
    """
    z = features.flatten(2)
    cosine = (prototype / _length(prototype, 2)) @ z / _length(z, 1)
    return cosine.view(*cosine.shape[:2], *features.shape[2:])


def _length(vectors: Tensor, dim: int) -> Tensor:
    """Norms to divide by, at least `SHORTEST`."""
    return vectors.square().sum(dim, keepdim=True).clamp_min(SHORTEST**2).sqrt()


def sigmoid_rampup(position: float, length: float) -> float:
    """exp(-5 (1 - t)^2) with t = position / length clipped to [0, 1]; 1 when length is 0.

    Source: Laine & Aila, Temporal Ensembling, ICLR 2017, Sec. 3 and App. A.

    >>> round(sigmoid_rampup(0.0, 0.3), 4), sigmoid_rampup(0.3, 0.3), sigmoid_rampup(1.0, 0.0)
    (0.0067, 1.0, 1.0)
    """
    if length == 0:
        return 1.0
    t = min(max(position / length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - t) ** 2)


def frozen(module: nn.Module) -> nn.Module:
    """The same module without gradients, for teachers."""
    return module.requires_grad_(False)


@torch.no_grad()
def ema_(average: nn.Module, source: nn.Module, decay: float) -> None:
    """In place: average <- decay * average + (1 - decay) * source, parameters only.

    Buffers stay the average's own: in the field a teacher in training mode fills its batch-norm
    statistics by its own forward passes.
    """
    for a, s in zip(average.parameters(), source.parameters(), strict=True):
        a.lerp_(s, 1.0 - decay)


def warm_decay(index: int, decay: float) -> float:
    """EMA decay with the usual warm-up, min(1 - 1/(t+1), decay) after step t (from 0).

    Source: Tarvainen & Valpola, NeurIPS 2017, released code; at t = 0 the average is the source.
    """
    return min(1.0 - 1.0 / (index + 1), decay)


def noisy(image: Tensor, std: float, limit: float, rng: torch.Generator) -> Tensor:
    """Image plus Gaussian noise clipped to [-limit, limit], in units of the image."""
    noise = torch.randn(image.shape, generator=rng, device=image.device, dtype=image.dtype)
    return image + (noise * std).clamp(-limit, limit)


def mean_of_passes(
    net: nn.Module, image: Tensor, passes: int, std: float, limit: float, rng: torch.Generator
) -> Tensor:
    """Mean probability (B, 2, X, Y, Z) of passes with `noisy` input, two at a time.

    Args:
        net: in training mode for dropout.
        image: (B, C, X, Y, Z).
        passes: even.
        std: of the noise.
        limit: where it is clipped.
        rng: draws it.
    """
    twice = torch.cat([image, image])
    total = image.new_zeros(())
    for _ in range(passes // 2):
        first, second = net(noisy(twice, std, limit, rng)).logits.softmax(1).chunk(2)
        total = total + (first + second)
    return total / passes


def predictor(net: nn.Module) -> Predictor:
    """Softmax of the logits of a network with one decoder, under the mode the network is in."""

    def predict(image: Tensor) -> Tensor:
        probability: Tensor = net(image).logits.softmax(1)
        return probability

    return predict


def decoder_predictor(net: nn.Module, *which: int) -> Predictor:
    """Mean probability of these of a network's decoders, from 0; of all without any."""

    def predict(image: Tensor) -> Tensor:
        outputs = net(image)
        chosen = [outputs[i] for i in which] if which else outputs
        return torch.stack([output.logits.softmax(1) for output in chosen]).mean(0)

    return predict


def mean_predictor(*predictors: Predictor) -> Predictor:
    """Mean probability of several predictors."""

    def predict(image: Tensor) -> Tensor:
        return torch.stack([one(image) for one in predictors]).mean(0)

    return predict


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a hyperparameter that is none of its choices.

    Raises:
        ValueError: with name, value and choices.

    >>> check_choice("variant", "paper", ("fixed", "released"))
    Traceback (most recent call last):
    ...
    ValueError: variant='paper'; known: fixed, released
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}; known: {', '.join(choices)}")


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse a hyperparameter outside [low, high]; NaN and infinity are outside.

    Raises:
        ValueError: with name, value and range.

    >>> check_range("decay", 1.5, 0, 1)
    Traceback (most recent call last):
    ...
    ValueError: decay=1.5; it must lie in [0, 1]
    """
    if not (math.isfinite(value) and low <= value <= high):
        allowed = f"lie in [{low:g}, {high:g}]" if math.isfinite(high) else f"be at least {low:g}"
        raise ValueError(f"{name}={value}; it must {allowed}")
