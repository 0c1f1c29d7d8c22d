r"""CPS, cross pseudo supervision (Chen et al., CVPR 2021, arXiv:2106.01226).

Two networks of one architecture start from different weights, and each learns from what the other
predicts. With class scores :math:`o_i`, probabilities :math:`p_i` and hard labels
:math:`\hat y_i = \arg\max p_i`, which carry no gradient:

.. math:: L = \sum_i L_{sup}(o_i) + \lambda(t)\,
          E\,[\mathrm{CE}(o_1, \hat y_2) + \mathrm{CE}(o_2, \hat y_1)]

====================  ==========================================  ===================
term                  here                                        paper
====================  ==========================================  ===================
``supervised``        half cross-entropy, half Dice, summed       L_s (CE only)
``cross``             cross-entropy, each to the other's label    L_cps
lambda(t)             ``weight`` times sigmoid ramp-up            lambda, constant
====================  ==========================================  ===================

The paper segments natural images. Followed is the field's adaptation to volumes, that of SSL4MIS:
unlabelled volumes only, lambda = 0.1 ramped up over the whole run (of 30,000 steps: ``rampup=1``).
The paper's own form is ``on_labelled=True weight=1.5 rampup=0`` (1.5 for PASCAL VOC), but for the
Dice in L_s.

The paper has no number on volumes. SSL4MIS keeps the checkpoints that are best on validation, one
for each network, and leaves open which is reported; "main" here is network 1.
Deviations: see `CPS.deviations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Step, Term
from methods.common import (
    check_range,
    cross_pseudo_supervision,
    mean_predictor,
    predictor,
    sigmoid_rampup,
    supervised_loss,
)


@final
@dataclass(frozen=True)
class CPS(Method):
    """See the module docstring.

    weight:      of the cross term after ramp-up.
    rampup:      fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    on_labelled: whether the networks teach each other on labelled volumes too.
    """

    name: ClassVar[str] = "cps"
    title: ClassVar[str] = "CPS"
    paper: ClassVar[str] = "arXiv:2106.01226"
    bibtex: ClassVar[str] = """@inproceedings{chen2021cps,
  author    = {Chen, Xiaokang and Yuan, Yuhui and Zeng, Gang and Wang, Jingdong},
  title     = {Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {2613--2622},
  year      = {2021}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.PORT
    deviations: ClassVar[tuple[str, ...]] = (
        "The paper segments natural images with DeepLab; this is the field's adaptation to "
        "volumes: V-Nets, Dice beside cross-entropy, no strong augmentation.",
        "The networks supervise each other on unlabelled volumes only, with a weight that is "
        "ramped up to 0.1, as in SSL4MIS; in the paper on all images, with 1.5 throughout.",
        "Both networks have PyTorch's default initialisation, from different draws; SSL4MIS "
        "initialises one after Kaiming and one after Xavier.",
        "Dice counts the foreground, as in the other methods here; that of SSL4MIS averages "
        "foreground and background.",
        "The ramp-up is a fraction of the run and rises every step; that of SSL4MIS rises every "
        "150 steps.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    sizes: ClassVar[Mapping[str, int]] = {"first": 9_448_866, "second": 9_448_866}

    weight: float = 0.1
    rampup: float = 0.3
    on_labelled: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """Two networks, each with weights of its own."""
        return nn.ModuleDict({"first": build(), "second": build()})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The two terms; each network sees labelled and unlabelled volumes in one pass."""
        images = torch.cat([batch.image, batch.unlabelled])
        first, second = nets["first"](images).logits, nets["second"](images).logits
        n = len(batch.image)
        supervised = supervised_loss(first[:n], batch.label)
        supervised = supervised + supervised_loss(second[:n], batch.label)
        taught = 0 if self.on_labelled else n
        cross = cross_pseudo_supervision(first[taught:], second[taught:])
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        return {"supervised": Term(supervised), "cross": Term(cross, weight)}

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """Either network, and the mean of their probabilities."""
        first, second = predictor(nets["first"]), predictor(nets["second"])
        return {"main": first, "second": second, "mean": mean_predictor(first, second)}
