r"""AC-MT, ambiguity-consensus Mean Teacher (Xu et al., MedIA 2023, 10.1016/j.media.2023.102880).

UA-MT turned round: a Mean Teacher whose consistency counts only where the student is *not* sure,
since there is most to learn. With the student's probabilities :math:`f` on unlabelled volumes, the
teacher's :math:`f'` on the same volumes with noise, and the set :math:`A` of ambiguous voxels:

.. math:: L = L_{sup} + \lambda(t)\, \frac{\sum_{v \in A} \|f_v - f'_v\|^2}{2 |A|}

====================  ==========================================  ============================
term                  here                                        paper
====================  ==========================================  ============================
``supervised``        half cross-entropy, half Dice of both       supervised loss
                      classes
``consistency``       mean squared difference over A              ambiguity-selective consistency
``entropy``           `prototype` only: entropy outside A, mean   regularisation of P-Err.
                      over all voxels
A                     ``ambiguity``, one of the three below       Ent., M.U. and P-Err.
lambda(t)             ``weight`` times sigmoid ramp-up            lambda
====================  ==========================================  ============================

``entropy`` (Ent.): the entropy of f, divided by ln 2, is at least `threshold`. ``uncertainty``
(M.U.): that of the mean of eight passes of the student with noise and dropout is. ``prototype``
(P-Err.): f's class is not that of the nearer of two class prototypes, which come from the teacher's
features where ten passes with dropout agree. The paper's fourth, S-Err., needs confident learning
over all voxels of a batch on the CPU, and is not here.

Comparisons print one row and do not say which of the four it is. The default is Ent.: it is
the first, and adds nothing to a Mean Teacher but the choice of voxels. P-Err. is another candidate.

Followed is the released code for the left atrium. The paper's threshold falls over the run, from
0.75 to 0.60: ``threshold_end=0.6``. In the release it rises, to 0.95 for Ent. and to 0.90 for M.U.,
whose sum over the classes also doubles the weight: ``ambiguity=uncertainty threshold_end=0.9
weight=0.2``. The ramp-up lasted 6,000 of 8,000 steps (``rampup=0.75``). 9,448,866 parameters at the
paper's scale.

The release keeps the student's checkpoint that is best on the test set, looked at every 50 steps;
whether the published numbers are of it is not known. Deviations: see `ACMT.deviations`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Recipe, Step, Term
from methods.common import (
    both_classes_loss,
    check_choice,
    check_range,
    class_means,
    ema_,
    frozen,
    hard_label,
    masked_distance,
    mean_of_passes,
    noisy,
    predictive_entropy,
    predictor,
    sigmoid_rampup,
    warm_decay,
)

Ambiguity = Literal["entropy", "uncertainty", "prototype"]

STUDENT_PASSES = 8
"""Of `uncertainty`, two at a time."""
TEACHER_PASSES = 10
"""Of `prototype`."""
TEMPERATURE = 2.0
"""That softens the teacher's scores before their spread is measured."""


@final
@dataclass(frozen=True)
class ACMT(Method):
    """See the module docstring.

    ambiguity:   which voxels count: "entropy", "uncertainty" or "prototype".
    weight:      of the consistency term after ramp-up.
    rampup:      fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    decay:       of the teacher's moving average.
    noise_std, noise_limit: of the teacher's input noise and where it is clipped, in units of the
                 normalised intensity.
    threshold_start, threshold_end: normalised entropy from which a voxel is ambiguous, at the two
                 ends of the run.
    spread:      standard deviation of the teacher's passes below which `prototype` trusts a class.
    """

    name: ClassVar[str] = "acmt"
    title: ClassVar[str] = "AC-MT"
    paper: ClassVar[str] = "10.1016/j.media.2023.102880"
    bibtex: ClassVar[str] = """@article{xu2023acmt,
  author  = {Xu, Zhe and Wang, Yixin and Lu, Donghuan and Luo, Xiangde and Yan, Jiangpeng and
             Zheng, Yefeng and Tong, Raymond Kai-yu},
  title   = {Ambiguity-selective consistency regularization for mean-teacher semi-supervised
             medical image segmentation},
  journal = {Medical Image Analysis},
  pages   = {102880},
  year    = {2023},
  doi     = {10.1016/j.media.2023.102880}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED
    deviations: ClassVar[tuple[str, ...]] = (
        "S-Err., the selection by confident learning, is left out.",
        "P-Err.: each volume's entropy is masked by its own ambiguous voxels; the release's shapes "
        "let the mask's classes meet the volumes of the batch.",
        "The teacher makes no pass whose result is not used.",
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
        "With the `authors` recipe each step has the rate of its own place in the run; in the "
        "release it has that of the step before.",
        "The teacher starts as a copy of the student, not from weights of its own; either way it "
        "is the student after the first step.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe("authors", schedule="poly", steps=8_000)
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 0.75}
    sizes: ClassVar[Mapping[str, int]] = {"student": 9_448_866, "teacher": 9_448_866}

    ambiguity: Ambiguity = "entropy"
    weight: float = 0.1
    rampup: float = 0.3
    decay: float = 0.99
    noise_std: float = 0.1
    noise_limit: float = 0.2
    threshold_start: float = 0.75
    threshold_end: float = 0.95
    spread: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_choice("ambiguity", self.ambiguity, get_args(Ambiguity))
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("decay", self.decay, 0, 1)
        check_range("noise_std", self.noise_std, 0)
        check_range("noise_limit", self.noise_limit, 0)
        check_range("threshold_start", self.threshold_start, 0, 1)
        check_range("threshold_end", self.threshold_end, 0, 1)
        check_range("spread", self.spread, 0)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """A student, and a teacher that starts as its copy."""
        student = build("vnet-half-features" if self.ambiguity == "prototype" else "vnet")
        return nn.ModuleDict({"student": student, "teacher": frozen(deepcopy(student))})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The terms; the student sees labelled and unlabelled volumes in one pass."""
        unlabelled = batch.unlabelled
        images = torch.cat([batch.image, unlabelled])
        logits, free = nets["student"](images).logits.split([len(batch.image), len(unlabelled)])
        probability = free.softmax(1)
        with torch.no_grad():
            disturbed = noisy(unlabelled, self.noise_std, self.noise_limit, rng)
            goal = nets["teacher"](disturbed).logits.softmax(1)
            ambiguous = self._ambiguous(nets, probability, unlabelled, step, rng)
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        terms = {
            "supervised": Term(both_classes_loss(logits, batch.label)),
            "consistency": Term(masked_distance(probability, goal, ambiguous), weight),
        }
        if self.ambiguity == "prototype":
            clear = ~ambiguous * predictive_entropy(probability) / math.log(2)
            terms["entropy"] = Term(clear.mean(), weight)
        return terms

    def after_step(self, nets: nn.ModuleDict, step: Step) -> None:
        """Move the teacher towards the student."""
        ema_(nets["teacher"], nets["student"], warm_decay(step.index, self.decay))

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The student, and its moving average."""
        return {"main": predictor(nets["student"]), "teacher": predictor(nets["teacher"])}

    def _ambiguous(
        self,
        nets: nn.ModuleDict,
        probability: Tensor,
        unlabelled: Tensor,
        step: Step,
        rng: torch.Generator,
    ) -> Tensor:
        """Where the student's probabilities (U, 2, X, Y, Z) are ambiguous: (U, 1, X, Y, Z) bool."""
        if self.ambiguity == "prototype":
            label, certain, features = self._taught(nets["teacher"], unlabelled)
            nearer = nearer_class(features, label, certain)
            return nearer != (probability[:, 1:] > probability[:, :1])
        if self.ambiguity == "uncertainty":
            noise = (self.noise_std, self.noise_limit, rng)
            probability = mean_of_passes(nets["student"], unlabelled, STUDENT_PASSES, *noise)
        threshold = threshold_at(step, self.threshold_start, self.threshold_end)
        return predictive_entropy(probability) / math.log(2) >= threshold

    def _taught(self, teacher: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's probabilities, where its passes agree on a class, and its mean features."""
        first = teacher(image)
        features, scores = torch.zeros_like(first.features), []
        for _ in range(TEACHER_PASSES):
            output = teacher(image)
            features += output.features / TEACHER_PASSES
            scores.append((output.logits / TEMPERATURE).sigmoid())
        return first.logits.softmax(1), torch.stack(scores).std(0) < self.spread, features


def threshold_at(step: Step, start: float, end: float) -> float:
    """Normalised entropy from which a voxel is ambiguous, moving over the whole run."""
    return start + (end - start) * sigmoid_rampup(step.fraction, 1.0)


def nearer_class(features: Tensor, probability: Tensor, certain: Tensor) -> Tensor:
    r"""Whether a voxel's features are nearer to the foreground's prototype than the background's.

    .. math:: c_k = \frac{\sum_v 1[\hat y_v = k]\, p_{k,v} z_v}{\sum_v 1[\hat y_v = k]\, p_{k,v}},
              \quad \hat y = \arg\max_k 1[\text{certain}_k]\, p_k

    of each volume; :math:`\|z - c_1\| < \|z - c_0\|`. The prototype of a class without voxels is 0.

    Args:
        features: z (U, F, X, Y, Z).
        probability: p (U, 2, X, Y, Z).
        certain: (U, 2, X, Y, Z) bool.

    Returns:
        (U, 1, X, Y, Z) bool.
    """
    foreground = hard_label(probability * certain)
    weight = torch.stack([1 - foreground, foreground], 1) * probability
    background, inside = class_means(features, weight, 1e-5).unbind(1)
    z = features.flatten(2)
    middle = (inside.square() - background.square()).sum(1, keepdim=True) / 2
    nearer = ((inside - background).unsqueeze(1) @ z).squeeze(1) > middle
    return nearer.view(len(z), 1, *features.shape[2:])
