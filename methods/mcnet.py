r"""MC-Net and MC-Net+, mutual consistency of decoders (Wu et al.).

MC-Net is of MICCAI 2021 (arXiv:2103.02911), MC-Net+ of Medical Image Analysis 2022
(arXiv:2109.09960). A network has one encoder and :math:`n` decoders that differ only in how they go
up: 2 in MC-Net, 3 in MC-Net+. Each decoder's probabilities :math:`p_i` must agree with the
sharpened ones of every other, on labelled and unlabelled volumes:

.. math:: L = \frac12 \sum_i L_{Dice}(p_i)
          + \lambda(t) \sum_{i \ne j} E\,(p_i - s(p_j))^2, \qquad
          s(p) = \frac{p^{1/T}}{p^{1/T} + (1 - p)^{1/T}}

====================  ==========================================  =========================
term                  here                                        papers
====================  ==========================================  =========================
``supervised``        Dice, linear denominators, summed           Dice loss of each decoder
``consistency``       `mutual_consistency`, labels' volumes too   cycled pseudo labels
                                                                  (MC-Net), mutual
                                                                  consistency (MC-Net+)
s                     the sigmoid of the log odds over T          sharpening function
lambda(t)             ``weight`` times sigmoid ramp-up            weight of consistency
====================  ==========================================  =========================

Followed is the released code, which has one trainer for both. The sharpened target carries
gradient, as it does there. The ramp-up lasted 6,000 of 15,000 steps (``rampup=0.4``); the
learning rate never falls. With 16 filters MC-Net has 12,347,716 parameters and MC-Net+ 15,246,566,
as published (12.3 M and 15.2 M).

The published numbers are those of decoder 1 at the checkpoint that is best on the *test* set, which
the trainer evaluates every 200 steps from step 800. The number printed for the pancreas with 6
labels is that of a deeply supervised variant which is not released.
Deviations: see the ``deviations`` of `MCNet` and `MCNetPlus`.

In runs cut to 1,000 steps (profile ``mini``, left atrium, 8 labels, three seeds) MC-Net+ stays
below the supervised network in the mean of all checkpoints, Dice 57.9 to 65.6, and swings: in seed
0 it is at 29.0 fifty steps before it ends at 71.3. Consistency does it: with ``weight=0`` that seed
ends at 81.1, 76.4 in the mean. Its six pairs have full weight from step 300 on, as the ramp-up is a
part of the run, when 8 labels are hardly learnt; MC-Net's two pairs are nearer (63.3). With 18
labels of the hippocampus nothing of this is seen (79.5 and 79.3, supervised 77.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Recipe, Step, Term
from methods.common import (
    check_range,
    decoder_predictor,
    linear_dice_loss,
    mutual_consistency,
    sigmoid_rampup,
)


@dataclass(frozen=True)
class MutualConsistency(Method):
    """What MC-Net and MC-Net+ share; see the module docstring.

    weight:      of the consistency term after ramp-up.
    rampup:      fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    temperature: T of the sharpening; below 1 it sharpens.
    """

    network: ClassVar[str]
    decoders: ClassVar[int]
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED
    deviations: ClassVar[tuple[str, ...]] = (
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
        "Trilinear enlargement is made of operations whose gradients repeat themselves; its values "
        "are those of the release up to rounding.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe("authors", steps=15_000)
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 0.4}

    weight: float = 1.0
    rampup: float = 0.3
    temperature: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("temperature", self.temperature, 0.01, 1)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """One network with several decoders."""
        return nn.ModuleDict({"student": build(self.network)})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The two terms, from one pass over all volumes."""
        outputs = nets["student"](torch.cat([batch.image, batch.unlabelled]))
        odds = [output.logits[:, 1] - output.logits[:, 0] for output in outputs]
        foreground = [o[: len(batch.image)].sigmoid() for o in odds]
        supervised = torch.stack([linear_dice_loss(p, batch.label == 1) for p in foreground]).sum()
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        return {
            "supervised": Term(supervised, 0.5),
            "consistency": Term(mutual_consistency(odds, self.temperature), weight),
        }

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """Decoder 1, which the papers report, the others, and the mean of all."""
        student = nets["student"]
        others = {f"decoder{i + 1}": decoder_predictor(student, i) for i in range(1, self.decoders)}
        return {
            "main": decoder_predictor(student, 0),
            **others,
            "mean": decoder_predictor(student),
        }


@final
@dataclass(frozen=True)
class MCNet(MutualConsistency):
    """Two decoders: transposed convolutions, trilinear interpolation."""

    name: ClassVar[str] = "mcnet"
    title: ClassVar[str] = "MC-Net"
    paper: ClassVar[str] = "arXiv:2103.02911"
    bibtex: ClassVar[str] = """@inproceedings{wu2021mcnet,
  author    = {Wu, Yicheng and Xu, Minfeng and Ge, Zongyuan and Cai, Jianfei and Zhang, Lei},
  title     = {Semi-supervised Left Atrium Segmentation with Mutual Consistency Training},
  booktitle = {Medical Image Computing and Computer Assisted Intervention (MICCAI)},
  pages     = {297--306},
  year      = {2021},
  doi       = {10.1007/978-3-030-87196-3_28}
}"""
    network: ClassVar[str] = "vnet-two-decoders-trilinear"
    decoders: ClassVar[int] = 2
    sizes: ClassVar[Mapping[str, int]] = {"student": 12_347_716}


@final
@dataclass(frozen=True)
class MCNetPlus(MutualConsistency):
    """Three decoders: transposed convolutions, trilinear and nearest-neighbour enlargement."""

    name: ClassVar[str] = "mcnetp"
    title: ClassVar[str] = "MC-Net+"
    paper: ClassVar[str] = "arXiv:2109.09960"
    bibtex: ClassVar[str] = """@article{wu2022mcnetplus,
  author  = {Wu, Yicheng and Ge, Zongyuan and Zhang, Donghao and Xu, Minfeng and Zhang, Lei and
             Xia, Yong and Cai, Jianfei},
  title   = {Mutual consistency learning for semi-supervised medical image segmentation},
  journal = {Medical Image Analysis},
  volume  = {81},
  pages   = {102530},
  year    = {2022},
  doi     = {10.1016/j.media.2022.102530}
}"""
    network: ClassVar[str] = "vnet-three-decoders"
    decoders: ClassVar[int] = 3
    sizes: ClassVar[Mapping[str, int]] = {"student": 15_246_566}
