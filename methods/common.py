"""Pure functions that several methods share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from methods.base import Predictor


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


def predictor(net: nn.Module) -> Predictor:
    """Softmax of the logits of a network with one decoder, under the mode the network is in."""

    def predict(image: Tensor) -> Tensor:
        probability: Tensor = net(image).logits.softmax(1)
        return probability

    return predict


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
