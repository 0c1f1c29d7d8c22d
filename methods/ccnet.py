r"""CC-Net, complementary consistency (Huang et al., 10.1016/j.compbiomed.2023.107368).

A decoder with all skips and two auxiliary ones with complementary halves of them share an encoder.
Each must agree with the sharpened probabilities of every other, as in MC-Net, of which this is the
loss on another network:

.. math:: L = 0.3 \sum_i \left[L_{Dice}(p_i) + m\,\tfrac12 (L_{CE} + L_{Dice})(p_i^{mix})\right]
          + \lambda(t) \sum_{i \ne j} E\,(p_i - s(p_j))^2, \qquad
          s(p) = \frac{p^{1/T}}{p^{1/T} + (1 - p)^{1/T}}

====================  ==========================================  ==============================
term                  here                                        paper
====================  ==========================================  ==============================
``supervised``        Dice, linear denominators, summed           supervised loss
``consistency``       `mutual_consistency`, labels' volumes too   complementary consistency loss
``mixed``             `mixed_loss`, only if m = ``mixing`` > 0    Wang et al., labelled data
                                                                  augmentation
lambda(t)             ``weight`` times sigmoid ramp-up            weight of consistency
====================  ==========================================  ==============================

What "CC-Net" means. The network and m = 0 are Huang et al.'s, whose release lists 89.82 (8 labels)
and 91.27 (16) Dice on the left atrium. The TCSeg paper's row "CC-Net" prints 90.82 and 91.60, has
numbers for the pancreas too, and cites Wang et al., Data augmentation strategies for
semi-supervised medical image segmentation (Pattern Recognition 159, 2025,
10.1016/j.patcog.2024.111116). They mix labelled volumes by cutting and pasting, which raises other
methods "by 0.3% to 16.49%", and propose a network of their own, DACNet (90.89 and 91.72 in its
release). The row therefore most likely means CC-Net with that mixing, ``mixing=1.9`` here; the
14.79 M parameters that it prints are neither network's.

Followed is the released code of either. ``variant`` matters with mixing only: the release of Wang
et al. takes the cross-entropy of probabilities as if they were scores, which "released" repeats and
"fixed" does not. The ramp-up lasted 6,000 of 10,000 steps (``rampup=0.6``; of 16,000 in Wang
et al.); the learning rate never falls. With 16 filters the network has 13,592,806 parameters.

The published numbers are those of decoder 1 at the checkpoint that is best on the *test* set, which
both trainers evaluate every 200 steps from step 800. Deviations: see `CCNet.deviations`.

In runs cut to 1,000 steps (profile ``mini``, left atrium, 8 labels, three seeds) it stays below the
supervised network: Dice 31.6 in the mean of all checkpoints, 65.6. Consistency and its ramp-up do
it: seed 0 ends at 74.9 with ``weight=0``, and has 55.3 in the mean with ``rampup=1``, 33.7 by
default. The three Dice losses stop above 0.6 by step 150, near those of masks that are all
foreground: six pairs keep the networks there, at a third of their weight then and all of it from
step 300 on, where the release's has 0.03 at step 1,000. At four levels (``mini``) decoder 3 is left
with one of three skips as well. On the hippocampus (18 labels) one of three seeds does the same,
between 12.9 and 72.3, 78.5 in the mean with ``weight=0``; the others reach 72.8 and 75.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Recipe, Step, Term
from methods.common import (
    check_choice,
    check_range,
    cross_entropy,
    decoder_predictor,
    linear_dice_loss,
    mutual_consistency,
    sigmoid_rampup,
)

Variant = Literal["fixed", "released"]


@final
@dataclass(frozen=True)
class CCNet(Method):
    """See the module docstring.

    weight:      of the consistency term after ramp-up.
    rampup:      fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    temperature: T of the sharpening; below 1 it sharpens.
    mixing:      m, weight of the labelled volumes that are mixed; 1.9 in Wang et al.
    box:         side of the pasted box as a fraction of the volume's.
    variant:     "fixed" or "released".
    """

    name: ClassVar[str] = "ccnet"
    title: ClassVar[str] = "CC-Net"
    paper: ClassVar[str] = "10.1016/j.compbiomed.2023.107368"
    bibtex: ClassVar[str] = """@article{huang2023ccnet,
  author  = {Huang, Hejun and Chen, Zuguo and Chen, Chaoyang and Lu, Ming and Zou, Ying},
  title   = {Complementary consistency semi-supervised learning for {3D} left atrial image
             segmentation},
  journal = {Computers in Biology and Medicine},
  volume  = {165},
  pages   = {107368},
  year    = {2023},
  doi     = {10.1016/j.compbiomed.2023.107368}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED
    deviations: ClassVar[tuple[str, ...]] = (
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
        "Mixing is that of labelled volumes alone; Wang et al. also generate unlabelled volumes by "
        "a diffusion model, offline, which their trainer does not use.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe("authors", steps=10_000)
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 0.6}
    sizes: ClassVar[Mapping[str, int]] = {"student": 13_592_806}

    weight: float = 1.0
    rampup: float = 0.3
    temperature: float = 0.1
    mixing: float = 0.0
    box: float = 2 / 3
    variant: Variant = "fixed"

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("temperature", self.temperature, 0.01, 1)
        check_range("mixing", self.mixing, 0)
        check_range("box", self.box, 0, 1)
        check_choice("variant", self.variant, get_args(Variant))

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """One network with a full and two complementary decoders."""
        return nn.ModuleDict({"student": build("vnet-three-decoders-complementary")})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """Two terms from one pass over all volumes; one more from a pass over the mixed ones."""
        outputs = nets["student"](torch.cat([batch.image, batch.unlabelled]))
        odds = [output.logits[:, 1] - output.logits[:, 0] for output in outputs]
        foreground = [o[: len(batch.image)].sigmoid() for o in odds]
        supervised = torch.stack([linear_dice_loss(p, batch.label == 1) for p in foreground]).sum()
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        terms = {
            "supervised": Term(supervised, 0.3),
            "consistency": Term(mutual_consistency(odds, self.temperature), weight),
        }
        if self.mixing:
            image, label = mix_halves(batch.image, batch.label, self.box, rng)
            mixed = [self._mixed_loss(x.logits, label) for x in nets["student"](image)]
            terms["mixed"] = Term(torch.stack(mixed).sum(), 0.3 * self.mixing)
        return terms

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """Decoder 1, which the paper reports, the others, and the mean of all."""
        student = nets["student"]
        return {
            "main": decoder_predictor(student, 0),
            "decoder2": decoder_predictor(student, 1),
            "decoder3": decoder_predictor(student, 2),
            "mean": decoder_predictor(student),
        }

    def _mixed_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        return mixed_loss(logits, label, released=self.variant == "released")


def mixed_loss(logits: Tensor, label: Tensor, *, released: bool = False) -> Tensor:
    """Half cross-entropy, half Dice with linear denominators.

    Args:
        logits: (B, 2, X, Y, Z).
        label: (B, X, Y, Z) int64.
        released: take the softmax of probabilities for the cross-entropy.
    """
    probability = logits.softmax(1)
    entropy = cross_entropy(probability if released else logits, label).mean()
    return 0.5 * (entropy + linear_dice_loss(probability[:, 1], label == 1))


def mix_halves(
    image: Tensor, label: Tensor, side: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The first half of the volumes with a box, at one random place, from those of the second.

    Of an odd number the middle one is left out; one alone stays as it is.

    Args:
        image: (L, C, X, Y, Z).
        label: (L, X, Y, Z).
        side: of the box, as a fraction of the volume's, rounded down to voxels.
        rng: draws where the box begins, uniformly, the last possible place excluded.
    """
    half = max(len(image) // 2, 1)
    inside = torch.ones(label.shape[1:], dtype=torch.bool, device=label.device)
    for axis, n in enumerate(inside.shape):
        length = int(n * side)
        start = torch.randint(max(n - length, 1), (), generator=rng, device=rng.device)
        index = torch.arange(n, device=label.device)
        along = (index >= start) & (index < start + length)
        inside &= along.view([n if a == axis else 1 for a in range(3)])
    return (
        torch.where(inside, image[-half:], image[:half]),
        torch.where(inside, label[-half:], label[:half]),
    )
