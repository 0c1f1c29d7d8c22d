r"""UA-MT, uncertainty-aware Mean Teacher (Yu et al., MICCAI 2019, arXiv:1907.07034).

A Mean Teacher whose consistency counts only where the teacher is sure. Of :math:`T` stochastic
teacher passes (noise and dropout) with mean probability :math:`\mu_c`, the entropy of voxel
:math:`v` is :math:`u_v = -\sum_c \mu_c \log \mu_c`. With the student's probabilities :math:`f`,
those of one further teacher pass :math:`f'`, and a threshold :math:`H(t)` rising to :math:`\ln 2`:

.. math:: L = L_{sup} + \lambda(t)
          \frac{\sum_v 1[u_v < H(t)]\, \|f'_v - f_v\|^2}{2 \sum_v 1[u_v < H(t)]}

====================  ==========================================  ===================
term                  here                                        paper
====================  ==========================================  ===================
``supervised``        half cross-entropy, half Dice               L_s of Eq. 1
``consistency``       masked mean squared difference              Eq. 3, L_c of Eq. 1
u                     `predictive_entropy`                        Eq. 2
H(t)                  (0.75 + 0.25 ramp over the run) ln 2        Sec. 3
lambda(t)             ``weight`` times sigmoid ramp-up            Sec. 3
====================  ==========================================  ===================

Followed is the released script for consistency on unlabelled volumes. Its ramp-up lasts the whole
run of 6,000 steps: the `authors` recipe sets ``rampup=1``. Its test script loads the last step.
Deviations: see `UAMT.deviations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Recipe, Step, Term
from methods.common import (
    check_range,
    ema_,
    entropy_threshold,
    frozen,
    masked_distance,
    mean_of_passes,
    noisy,
    predictive_entropy,
    predictor,
    sigmoid_rampup,
    supervised_loss,
    warm_decay,
)


@final
@dataclass(frozen=True)
class UAMT(Method):
    """See the module docstring.

    weight:      of the consistency term after ramp-up.
    rampup:      fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    decay:       of the teacher's moving average.
    noise_std, noise_limit: of the teacher's input noise and where it is clipped, in units of the
                 normalised intensity.
    passes:      stochastic teacher passes for the entropy; even, since two are made at a time.
    """

    name: ClassVar[str] = "uamt"
    title: ClassVar[str] = "UA-MT"
    paper: ClassVar[str] = "arXiv:1907.07034"
    bibtex: ClassVar[str] = """@inproceedings{yu2019uamt,
  author    = {Yu, Lequan and Wang, Shujun and Li, Xiaomeng and Fu, Chi-Wing and Heng, Pheng-Ann},
  title     = {Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium
               Segmentation},
  booktitle = {Medical Image Computing and Computer Assisted Intervention (MICCAI)},
  pages     = {605--613},
  year      = {2019},
  doi       = {10.1007/978-3-030-32245-8_67}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED
    deviations: ClassVar[tuple[str, ...]] = (
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
        "The teacher starts as a copy of the student, not from weights of its own; either way it "
        "is the student after the first step.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe(
        "authors", schedule="step", milestones=(2500 / 6000, 5000 / 6000), steps=6_000
    )
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 1.0}
    sizes: ClassVar[Mapping[str, int]] = {"student": 9_448_866, "teacher": 9_448_866}

    weight: float = 0.1
    rampup: float = 0.3
    decay: float = 0.99
    noise_std: float = 0.1
    noise_limit: float = 0.2
    passes: int = 8

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("decay", self.decay, 0, 1)
        check_range("noise_std", self.noise_std, 0)
        check_range("noise_limit", self.noise_limit, 0)
        check_range("passes", self.passes, 2)
        if self.passes % 2:
            raise ValueError(f"passes={self.passes}; it must be even")

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """A student, and a teacher that starts as its copy."""
        student = build()
        return nn.ModuleDict({"student": student, "teacher": frozen(deepcopy(student))})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The two terms; the student sees labelled and unlabelled volumes in one pass."""
        unlabelled = batch.unlabelled
        images = torch.cat([batch.image, unlabelled])
        logits, free = nets["student"](images).logits.split([len(batch.image), len(unlabelled)])
        with torch.no_grad():
            noise = (self.noise_std, self.noise_limit, rng)
            goal = nets["teacher"](noisy(unlabelled, *noise)).logits.softmax(1)
            mean = mean_of_passes(nets["teacher"], unlabelled, self.passes, *noise)
            sure = predictive_entropy(mean) < entropy_threshold(step)
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        return {
            "supervised": Term(supervised_loss(logits, batch.label)),
            "consistency": Term(masked_distance(free.softmax(1), goal, sure), weight),
        }

    def after_step(self, nets: nn.ModuleDict, step: Step) -> None:
        """Move the teacher towards the student."""
        ema_(nets["teacher"], nets["student"], warm_decay(step.index, self.decay))

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The student, and its moving average."""
        return {"main": predictor(nets["student"]), "teacher": predictor(nets["teacher"])}
