r"""TraCoCo, translation consistent co-training (Liu et al., TMI 2025, arXiv:2203.14523).

Two networks of one architecture start from different weights. Each must give the same classes
:math:`p_a, p_b` to the voxels that two overlapping crops share, whatever surrounds them, and each
learns from what the other is sure of. The second learns it on CutMix of the batch:

.. math:: L = \sum_m L_{sup} + \lambda(t) \sum_m \left[L_{crc} + s \sum_x E\,\mathrm{KL}(p_b \| p_a)
          + h\, E \textstyle\sum_c p \log p\right]

With the peer's label :math:`\hat y` and its probability :math:`w`, the confident regional
cross-entropy is :math:`L_{crc} = E_{w \ge 0.65}\,[w\,\mathrm{CE}(p, \hat y)] +
E_{1 - w < 0.1}\,[(1 - w)\,(-\log(1 - p_{1 - \hat y}))]`.

====================  ==========================================  ==========================
term                  here                                        paper
====================  ==========================================  ==========================
``supervised``        half cross-entropy, half Dice, summed       supervised loss
``pseudo``            `confident_cross_entropy`, unlabelled       confident regional
                      volumes, of both networks                   cross-entropy (CRC)
``translation``       `translation`, of all volumes, summed       translation consistency
``entropy``           `negative_entropy` of the shared voxels     entropy regulariser
CutMix                `boxes`, of the second network's input      Sec. on 3D CutMix
lambda(t)             ``weight`` times sigmoid ramp-up            weight of unsupervised
                                                                  losses
====================  ==========================================  ==========================

Followed is the released code for the left atrium. It clamps scores to [0, 1] before the two losses
on overlaps, and its KL divergence takes the softmax along the X axis, not over the classes;
``variant="released"`` does both, the default neither. The ramp-up lasted 40 epochs of the labelled
set, 160 of 9,000 steps with 8 labelled volumes, hence ``rampup=0.02``. lambda is 0.3 with 8 labels
(6 on the pancreas) and 1.0 with 16 (12); s is 1 on the pancreas, h is 0.05 on BraTS. With 16
filters both networks together have 18,897,732 parameters.

The paper gives both protocols on the left atrium: at the last step 89.29 (8 labels) and 90.94 (16)
Dice, at the checkpoint that is best on the *test* set 89.86 and 91.51. Which network they are of is
not said; "main" here is network 1. Its numbers on BraTS are of a 3D U-Net.
Deviations: see `TraCoCo.deviations`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Recipe, Step, Term
from methods.common import (
    check_choice,
    check_range,
    cross_entropy,
    hard_label,
    mean_predictor,
    predictor,
    sigmoid_rampup,
    supervised_loss,
)

Variant = Literal["fixed", "released"]


@final
@dataclass(frozen=True)
class TraCoCo(Method):
    """See the module docstring.

    variant:     "fixed" or "released".
    weight:      lambda after ramp-up.
    rampup:      fraction of the run until then.
    translation: s, weight of the translation consistency.
    entropy:     h, weight of the negative entropy.
    confident:   probability from which the peer's label counts.
    unlikely:    probability below which the peer excludes a class.
    noise:       of the input, uniform in [-noise, noise], in units of the normalised intensity.
    """

    name: ClassVar[str] = "tracoco"
    title: ClassVar[str] = "TraCoCo"
    paper: ClassVar[str] = "arXiv:2203.14523"
    bibtex: ClassVar[str] = """@article{liu2025tracoco,
  author  = {Liu, Yuyuan and Tian, Yu and Wang, Chong and Chen, Yuanhong and Liu, Fengbei and
             Belagiannis, Vasileios and Carneiro, Gustavo},
  title   = {Translation Consistent Semi-supervised Segmentation for {3D} Medical Images},
  journal = {IEEE Transactions on Medical Imaging},
  volume  = {44},
  number  = {2},
  year    = {2025},
  note    = {arXiv:2203.14523}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED_FIXED
    deviations: ClassVar[tuple[str, ...]] = (
        "The translation consistency compares classes; the release's softmax runs along the X axis "
        "of clamped scores.",
        "Intensities are the dataset card's; the release maps each volume to [0, 1] and scales its "
        "brightness, so that its noise is stronger than the same number here.",
        "A second crop is drawn from those that overlap the first; the release draws it from all "
        "before the first and moves it half-way if it is too far along X or Y.",
        "The cross-entropy against the excluded class is not clamped at 13.8 nats, where the "
        "release's is.",
        "The ramp-up is a fraction of the run, whatever the number of labelled volumes.",
        "Defaults and the `authors` recipe are those of the left atrium with 8 labels: with 16 "
        "(12 on the pancreas) the authors' weight is 1.0; on the pancreas their rate is 0.025 over "
        "10,000 or 7,000 steps, on BraTS it takes 30,000 or 15,000, and the noise of both is 0.05.",
        "Each step has the rate and the ramp-up of its own place in the run; in the release it has "
        "those of the step after.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled", "overlap", "shift")
    authors: ClassVar[Recipe | None] = Recipe(
        "authors", learning_rate=0.05, schedule="poly", steps=9_000
    )
    sizes: ClassVar[Mapping[str, int]] = {"first": 9_448_866, "second": 9_448_866}

    variant: Variant = "fixed"
    weight: float = 0.3
    rampup: float = 0.02
    translation: float = 0.3
    entropy: float = 0.1
    confident: float = 0.65
    unlikely: float = 0.1
    noise: float = 0.2

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_choice("variant", self.variant, get_args(Variant))
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("translation", self.translation, 0)
        check_range("entropy", self.entropy, 0)
        check_range("confident", self.confident, 0.5, 1)
        check_range("unlikely", self.unlikely, 0, 0.5)
        check_range("noise", self.noise, 0)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """Two networks, each with weights of its own."""
        return nn.ModuleDict({"first": build(), "second": build()})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The four terms; per network three noisy passes, and one without noise for the peer.

        Labels for the peer come from networks in training mode, as in the release.
        """
        images, n = torch.cat([batch.image, batch.unlabelled]), len(batch.image)
        supervised, translated, entropy = [], [], []
        for net in (nets["first"], nets["second"]):
            here = net(self._disturbed(images, rng)).logits
            there = net(self._disturbed(batch.extras["overlap"], rng)).logits
            shared = self._shared(here, there, batch.extras["shift"])
            axis = 1 if self.variant == "released" else 0
            supervised.append(supervised_loss(here[:n], batch.label))
            translated += [translation(a, b, axis) for a, b in shared]
            entropy.append(negative_entropy([x for pair in shared for x in pair]))
        with torch.no_grad():
            taught, teaching = nets["second"](images).logits, nets["first"](images).logits
        order = torch.randperm(len(images), generator=rng, device=rng.device)
        inside = boxes(images.shape, rng)
        mixed, goal = (torch.where(inside, x[order], x) for x in (images, teaching))
        first = nets["first"](self._disturbed(images, rng)).logits[n:]
        second = nets["second"](self._disturbed(mixed, rng)).logits[n:]
        pseudo = [self._pseudo(first, taught[n:]), self._pseudo(second, goal[n:])]
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        return {
            "supervised": Term(torch.stack(supervised).sum()),
            "pseudo": Term(torch.stack(pseudo).sum(), weight),
            "translation": Term(torch.stack(translated).sum(), weight * self.translation),
            "entropy": Term(torch.stack(entropy).sum(), weight * self.entropy),
        }

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """Either network, and the mean of their probabilities."""
        first, second = predictor(nets["first"]), predictor(nets["second"])
        return {"main": first, "second": second, "mean": mean_predictor(first, second)}

    def _disturbed(self, image: Tensor, rng: torch.Generator) -> Tensor:
        uniform = torch.rand(image.shape, generator=rng, device=image.device, dtype=image.dtype)
        return image + self.noise * (2 * uniform - 1)

    def _shared(self, here: Tensor, there: Tensor, shift: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Scores (2, X', Y', Z') of the voxels that both crops show, volume by volume."""
        pairs = []
        for a, b, s in zip(here, there, shift.tolist(), strict=True):
            pair = a[overlap(s, a.shape[1:])], b[overlap([-d for d in s], b.shape[1:])]
            if self.variant == "released":
                pair = pair[0].clamp(1e-6, 1), pair[1].clamp(1e-6, 1)
            pairs.append(pair)
        return pairs

    def _pseudo(self, logits: Tensor, peer: Tensor) -> Tensor:
        return confident_cross_entropy(logits, peer, self.confident, self.unlikely)


def overlap(shift: Sequence[int], sides: Sequence[int]) -> tuple[slice, ...]:
    """Where a crop (C, X, Y, Z) shows what another shows that begins `shift` voxels further.

    >>> overlap((2, 0, -3), (8, 8, 8))
    (slice(None, None, None), slice(2, 8, None), slice(0, 8, None), slice(0, 5, None))
    """
    space = (slice(max(s, 0), n + min(s, 0)) for s, n in zip(shift, sides, strict=True))
    return slice(None), *space


def translation(here: Tensor, there: Tensor, axis: int = 0) -> Tensor:
    """KL divergence of the softmax of `here` from that of `there`, mean over all elements.

    Both learn. Elements are voxels and classes, so of two classes this is half the mean of voxels.

    Args:
        here: scores (C, X, Y, Z) of the shared voxels in the first crop.
        there: the same voxels' in the second.
        axis: of the softmax; 0 is over classes.
    """
    # A probability that is 0 in floating point would have the gradient 0 * log(0), no number.
    goal = there.softmax(axis).clamp_min(torch.finfo(there.dtype).tiny)
    return F.kl_div(here.log_softmax(axis), goal, reduction="none").mean()


def negative_entropy(scores: Sequence[Tensor]) -> Tensor:
    """Mean over scores (C, X, Y, Z) of the mean over voxels of sum_c p_c log p_c."""
    found = [(x.softmax(0) * x.log_softmax(0)).sum(0).mean() for x in scores]
    return torch.stack(found).mean()


def confident_cross_entropy(
    logits: Tensor, peer: Tensor, confident: float = 0.65, unlikely: float = 0.1
) -> Tensor:
    """Cross-entropy to the peer's labels, weighted by their probability, where it is confident.

    Added is that against the class which the peer excludes, weighted by its probability. Of two
    classes this is the cross-entropy to the label again. Either part is 0 where no voxel counts.

    Args:
        logits: (B, 2, X, Y, Z).
        peer: scores (B, 2, X, Y, Z) of the other network, without gradient.
        confident: smallest probability of a label that counts.
        unlikely: probability below which a class is excluded.
    """
    probability = peer.softmax(1)
    loss = cross_entropy(logits, hard_label(peer))
    total = logits.new_zeros(())
    for weight, counts in (
        (probability.amax(1), probability.amax(1) >= confident),
        (probability.amin(1), probability.amin(1) < unlikely),
    ):
        total = total + (counts * weight * loss).sum() / counts.sum().clamp_min(1)
    return total


def boxes(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """CutMix boxes of full depth Z, one for each volume: (B, 1, X, Y, Z) bool, Z of length 1.

    Sides are (X, Y) times sqrt(1 - l), l ~ Beta(4, 4), the same for all volumes; centres are
    uniform in [side / 8, side), and boxes end where the volume does.

    Args:
        shape: (B, C, X, Y, Z).
        rng: on the device where the boxes will be.
    """
    number, _, *sides, _ = shape
    ratio = torch.rand(7, generator=rng, device=rng.device).sort().values[3]  # ~ Beta(4, 4)
    along = []
    for n in sides:
        half = ((1 - ratio).sqrt() * n).long() // 2
        centre = torch.randint(n // 8, n, (number, 1), generator=rng, device=rng.device)
        index = torch.arange(n, device=rng.device)
        along.append((index >= centre - half) & (index < centre + half))
    return (along[0][:, :, None] & along[1][:, None, :])[:, None, :, :, None]
