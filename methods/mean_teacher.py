r"""Mean Teacher (Tarvainen & Valpola, NeurIPS 2017, arXiv:1703.01780), as 3D segmentation uses it.

Student weights :math:`\theta` learn by gradient; teacher weights :math:`\theta'` are their moving
average. On unlabelled volumes :math:`x` the student's class probabilities :math:`f` follow the
teacher's, which sees the volume with noise; dropout :math:`\eta, \eta'` differs between the two:

.. math:: L = L_{sup}(\theta)
          + \lambda(t)\, E_x \|f(x, \theta, \eta) - f(x + \xi, \theta', \eta')\|^2

====================  ==========================================  ===================
term                  here                                        paper
====================  ==========================================  ===================
``supervised``        half cross-entropy, half Dice               Sec. 3 (CE only)
``consistency``       mean squared difference of probabilities    Sec. 2, J(theta)
teacher update        `after_step`, decay warmed up               Sec. 2, EMA equation
lambda(t)             ``weight`` times sigmoid ramp-up            App. B.1
====================  ==========================================  ===================

Deviations, those of the field's 3D adaptation: see `MeanTeacher.deviations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Step, Term
from methods.common import (
    check_range,
    ema_,
    frozen,
    noisy,
    predictor,
    sigmoid_rampup,
    supervised_loss,
    warm_decay,
)


@final
@dataclass(frozen=True)
class MeanTeacher(Method):
    """See the module docstring.

    weight:      of the consistency term after ramp-up.
    rampup:      fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    decay:       of the teacher's moving average.
    noise_std, noise_limit: of the teacher's input noise and where it is clipped, in units of the
                 normalised intensity.
    """

    name: ClassVar[str] = "mt"
    title: ClassVar[str] = "Mean Teacher"
    paper: ClassVar[str] = "arXiv:1703.01780"
    bibtex: ClassVar[str] = """@inproceedings{tarvainen2017mean,
  author    = {Tarvainen, Antti and Valpola, Harri},
  title     = {Mean teachers are better role models: Weight-averaged consistency targets improve
               semi-supervised deep learning results},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  volume    = {30},
  year      = {2017}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.PORT
    deviations: ClassVar[tuple[str, ...]] = (
        "The paper classifies images; this is the field's adaptation to voxels, with Dice beside "
        "cross-entropy.",
        "The only input perturbation is clipped Gaussian noise, for the teacher.",
        "Consistency uses the unlabelled volumes only.",
        "The main predictor is the student, as in the field's tables; the paper evaluates the "
        "teacher, which is the predictor 'teacher' here.",
        "The teacher's batch-norm statistics come from its own forward passes in training mode.",
        "The ramp-up is a fraction of the run and rises every step; in SSL4MIS it lasts the whole "
        "run (of 30,000 steps: `rampup=1`).",
        "Dice is of the foreground; that of SSL4MIS is the mean of background and foreground.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    sizes: ClassVar[Mapping[str, int]] = {"student": 9_448_866, "teacher": 9_448_866}

    weight: float = 0.1
    rampup: float = 0.3
    decay: float = 0.99
    noise_std: float = 0.1
    noise_limit: float = 0.2

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("decay", self.decay, 0, 1)
        check_range("noise_std", self.noise_std, 0)
        check_range("noise_limit", self.noise_limit, 0)

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
            disturbed = noisy(unlabelled, self.noise_std, self.noise_limit, rng)
            goal = nets["teacher"](disturbed).logits.softmax(1)
        consistency = (free.softmax(1) - goal).square().mean()
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        return {
            "supervised": Term(supervised_loss(logits, batch.label)),
            "consistency": Term(consistency, weight),
        }

    def after_step(self, nets: nn.ModuleDict, step: Step) -> None:
        """Move the teacher towards the student."""
        ema_(nets["teacher"], nets["student"], warm_decay(step.index, self.decay))

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The student, and its moving average."""
        return {"main": predictor(nets["student"]), "teacher": predictor(nets["teacher"])}
