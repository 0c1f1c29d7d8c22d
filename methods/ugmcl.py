r"""UG-MCL, uncertainty-guided mutual consistency (Zhang et al., 10.1016/j.artmed.2022.102476).

A Mean Teacher with two tasks. The network predicts a segmentation :math:`f` (foreground
probability) and a signed distance :math:`z` in [-1, 1], negative inside, which a steep sigmoid
turns into a second segmentation :math:`s = 1 / (1 + e^{k z})`. Within the task, f follows the
teacher's :math:`f'` where the teacher is sure, as in UA-MT; across tasks, s and f must agree. With
the signed distance d of the label:

.. math:: L = \tfrac12 [CE(f) + L_{Dice}(f) + L_{Dice}(s)] + \beta\, E (z - d)^2
          + \lambda(t) \left[ \tfrac12 E_{v: u_v < H(t)} (f_v - f'_v)^2 + E (s - f)^2 \right]

====================  ==========================================  ============================
term                  here                                        paper
====================  ==========================================  ============================
``supervised``        half cross-entropy, half Dice, of f         supervised loss
``distance``          half Dice, of s                             supervised loss
``sdf``               `fixed` only: mean squared error of z       regression task
``intra``             `masked_distance`, labelled and unlabelled  intra-task consistency
``cross``             mean squared difference, the same volumes   cross-task consistency
u, H(t)               as in UA-MT, eight passes of the teacher    uncertainty
s                     `segmentation`, k = ``sharpness``           transform of the distance
lambda(t)             ``weight`` times sigmoid ramp-up            lambda
====================  ==========================================  ============================

In the released code the distance is not a head: it is tanh of the same two class scores, so that
s wants the foreground's score below zero where f wants it high. By default (``variant=fixed``) a
second head predicts it. That head needs a target beside the Dice of s, whose gradient vanishes
unless z is within a few thousandths of 0: without ``sdf`` it stays where it began, and ``cross``
pulls the segmentation there. ``variant=released`` shares the scores, compares both classes, and has
no ``sdf``. The paper says that uncertainty guides both consistencies; the release has the mask of
``cross`` commented out, in a line that would only halve the term, since it averages before it
masks. ``guided=true`` has the mask, with the mean over the sure voxels.

Followed is the released code for brain tumours, where the ramp-up lasted the whole run of 30,000
steps (``rampup=1``). There the network is a 3D U-Net; here it is the V-Net, of 9,448,883
parameters at the paper's scale. The numbers published for tumours are the student's at the
checkpoint that is best on validation. Deviations: see `UGMCL.deviations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn

from methods.base import (
    Batch,
    Fidelity,
    Method,
    NetOutput,
    NetworkFactory,
    Predictor,
    Recipe,
    Step,
    Term,
)
from methods.common import (
    check_choice,
    check_range,
    dice_loss,
    ema_,
    entropy_threshold,
    frozen,
    masked_distance,
    mean_of_passes,
    noisy,
    predictive_entropy,
    predictor,
    segmentation,
    sigmoid_rampup,
    supervised_loss,
    warm_decay,
)

Variant = Literal["fixed", "released"]


@final
@dataclass(frozen=True)
class UGMCL(Method):
    """See the module docstring.

    variant:     "fixed", with a distance head, or "released", without.
    guided:      whether only sure voxels count across tasks as well.
    beta:        weight of the distance regression of `fixed`; DTC's.
    weight:      of both consistencies after ramp-up; the one within the task has half of it.
    rampup:      fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    sharpness:   k, slope of the sigmoid that turns distance into segmentation.
    decay:       of the teacher's moving average.
    noise_std, noise_limit: of the teacher's input noise and where it is clipped, in units of the
                 normalised intensity.
    passes:      stochastic teacher passes for the entropy; even, since two are made at a time.
    """

    name: ClassVar[str] = "ugmcl"
    title: ClassVar[str] = "UG-MCL"
    paper: ClassVar[str] = "10.1016/j.artmed.2022.102476"
    bibtex: ClassVar[str] = """@article{zhang2022ugmcl,
  author  = {Zhang, Yichi and Jiao, Rushi and Liao, Qingcheng and Li, Dongyang and Zhang, Jicong},
  title   = {Uncertainty-guided mutual consistency learning for semi-supervised medical image
             segmentation},
  journal = {Artificial Intelligence in Medicine},
  volume  = {138},
  pages   = {102476},
  year    = {2023},
  doi     = {10.1016/j.artmed.2022.102476}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED_FIXED
    deviations: ClassVar[tuple[str, ...]] = (
        "The distance has a head of its own, of one channel and tanh; the release's is tanh of the "
        "class scores.",
        "The distance has a regression target, as in DTC; the release computes none.",
        "The network is the V-Net of the field; the release's is a 3D U-Net.",
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
        "The teacher starts as a copy of the student, not from weights of its own; either way it "
        "is the student after the first step.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled", "sdf")
    authors: ClassVar[Recipe | None] = Recipe("authors", steps=30_000)
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 1.0}
    sizes: ClassVar[Mapping[str, int]] = {"student": 9_448_883, "teacher": 9_448_883}

    variant: Variant = "fixed"
    guided: bool = False
    beta: float = 0.3
    weight: float = 0.1
    rampup: float = 0.3
    sharpness: float = 1500.0
    decay: float = 0.99
    noise_std: float = 0.1
    noise_limit: float = 0.2
    passes: int = 8

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_choice("variant", self.variant, get_args(Variant))
        check_range("beta", self.beta, 0)
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("sharpness", self.sharpness, 1)
        check_range("decay", self.decay, 0, 1)
        check_range("noise_std", self.noise_std, 0)
        check_range("noise_limit", self.noise_limit, 0)
        check_range("passes", self.passes, 2)
        if self.passes % 2:
            raise ValueError(f"passes={self.passes}; it must be even")

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """A student, and a teacher that starts as its copy; `fixed` with a distance head."""
        student = build(distance_head=self.variant == "fixed")
        return nn.ModuleDict({"student": student, "teacher": frozen(deepcopy(student))})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The terms, from one pass of the student over all volumes."""
        images = torch.cat([batch.image, batch.unlabelled])
        output = nets["student"](images)
        probability = output.logits.softmax(1)
        with torch.no_grad():
            noise = (self.noise_std, self.noise_limit, rng)
            goal = nets["teacher"](noisy(images, *noise)).logits.softmax(1)
            mean = mean_of_passes(nets["teacher"], images, self.passes, *noise)
            sure = predictive_entropy(mean) < entropy_threshold(step)
        labelled = len(batch.image)
        shape = shape_of(output, self.sharpness)
        counted = sure if self.guided else torch.ones_like(sure)
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        terms = {
            "supervised": Term(supervised_loss(output.logits[:labelled], batch.label)),
            "distance": Term(dice_loss(shape[:labelled, 1], batch.label == 1), 0.5),
            "intra": Term(masked_distance(probability, goal, sure), 0.5 * weight),
            "cross": Term(masked_distance(shape, probability, counted), weight),
        }
        if self.variant == "fixed":
            regression = (output.distance[:labelled] - batch.extras["sdf"]).square().mean()
            terms["sdf"] = Term(regression, self.beta)
        return terms

    def after_step(self, nets: nn.ModuleDict, step: Step) -> None:
        """Move the teacher towards the student."""
        ema_(nets["teacher"], nets["student"], warm_decay(step.index, self.decay))

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The student's segmentation head, and that of its moving average."""
        return {"main": predictor(nets["student"]), "teacher": predictor(nets["teacher"])}


def shape_of(output: NetOutput, sharpness: float) -> Tensor:
    """What the distance segments, (B, 2, X, Y, Z).

    Without a distance head, tanh of each class score is a distance of its own, and the two classes
    do not sum to 1.
    """
    if output.distance is None:
        return segmentation(output.logits.tanh(), sharpness)
    foreground = segmentation(output.distance, sharpness)
    return torch.cat([1 - foreground, foreground], 1)
