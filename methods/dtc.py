r"""DTC, dual-task consistency (Luo et al., AAAI 2021, arXiv:2009.04448).

One network predicts a segmentation :math:`f_1` (foreground probability) and a signed distance
:math:`f_2` in [-1, 1], negative inside. A steep sigmoid turns distance into segmentation,
:math:`T^{-1}(z) = 1 / (1 + e^{k z})`, and the two tasks must agree on all volumes. With the
signed distance :math:`s` of the label:

.. math:: L = L_{Dice}(f_1) + \beta\, E (f_2 - s)^2 + \lambda(t)\, E (T^{-1}(f_2) - f_1)^2

====================  ==========================================  ===================
term                  here                                        paper
====================  ==========================================  ===================
``supervised``        Dice on the labelled volumes                L_Dice (Fig. 1)
``sdf``               mean squared error of the distance          L_LSF (Fig. 1)
``consistency``       mean squared difference, all volumes        L_DTC (Fig. 1)
T^-1                  `segmentation`, k = ``sharpness``           T^-1 (Fig. 1)
lambda(t)             ``weight`` times sigmoid ramp-up            lambda_d
====================  ==========================================  ===================

Followed is the released trainer for the left atrium. Its ramp-up lasts the whole run of 6,000
steps: the `authors` recipe sets ``rampup=1``. Its published numbers are those of the last step,
its released weights the better of several seeds. Deviations: see `DTC.deviations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Recipe, Step, Term
from methods.common import check_range, dice_loss, predictor, segmentation, sigmoid_rampup


@final
@dataclass(frozen=True)
class DTC(Method):
    """See the module docstring.

    weight:    of the consistency term after ramp-up.
    rampup:    fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    beta:      weight of the distance regression.
    sharpness: k, slope of the sigmoid that turns distance into segmentation.
    """

    name: ClassVar[str] = "dtc"
    title: ClassVar[str] = "DTC"
    paper: ClassVar[str] = "arXiv:2009.04448"
    bibtex: ClassVar[str] = """@inproceedings{luo2021dtc,
  author    = {Luo, Xiangde and Chen, Jieneng and Song, Tao and Wang, Guotai},
  title     = {Semi-supervised Medical Image Segmentation through Dual-task Consistency},
  booktitle = {AAAI Conference on Artificial Intelligence},
  volume    = {35},
  pages     = {8801--8809},
  year      = {2021}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED
    deviations: ClassVar[tuple[str, ...]] = (
        "The segmentation head has two channels and softmax, not one and a sigmoid: the same "
        "function of the logit difference, with twice the parameters in that layer.",
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
        "No largest component is taken; in the release it is, by default.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled", "sdf")
    authors: ClassVar[Recipe | None] = Recipe(
        "authors", schedule="step", milestones=(2500 / 6000, 5000 / 6000), steps=6_000
    )
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 1.0}
    sizes: ClassVar[Mapping[str, int]] = {"student": 9_448_883}

    weight: float = 1.0
    rampup: float = 0.3
    beta: float = 0.3
    sharpness: float = 1500.0

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("beta", self.beta, 0)
        check_range("sharpness", self.sharpness, 1)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """One network with a distance head."""
        return nn.ModuleDict({"student": build(distance_head=True)})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The three terms, from one pass over all volumes."""
        output = nets["student"](torch.cat([batch.image, batch.unlabelled]))
        foreground = output.logits.softmax(1)[:, 1:]
        labelled = len(batch.image)
        dice = dice_loss(foreground[:labelled], batch.label.unsqueeze(1) == 1)
        regression = (output.distance[:labelled] - batch.extras["sdf"]).square().mean()
        agreement = segmentation(output.distance, self.sharpness) - foreground
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        return {
            "supervised": Term(dice),
            "sdf": Term(regression, self.beta),
            "consistency": Term(agreement.square().mean(), weight),
        }

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The segmentation head, and what the distance head segments."""

        def by_distance(image: Tensor) -> Tensor:
            foreground = segmentation(nets["student"](image).distance, self.sharpness)
            return torch.cat([1 - foreground, foreground], dim=1)

        return {"main": predictor(nets["student"]), "distance": by_distance}
