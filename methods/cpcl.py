r"""CPCL, cyclic prototype consistency learning (Xu et al., JBHI 2022, arXiv:2109.13930).

A student sees the labelled volumes, its moving average, the teacher, the unlabelled ones, and class
prototypes of one side must segment the other. Prototypes :math:`c_k` are means of features
:math:`z` over the voxels of class k, weighted by the probability of k; they segment by
:math:`q = softmax_k(20 \cos(z, c_k))`. With prototypes :math:`c^l` of labelled volumes (classes:
their labels y) and :math:`c^u` of unlabelled ones (classes: the teacher's f'):

.. math:: L = L_{sup} + \lambda(t) [ E \|q(z^u, c^l) - f'\|^2 + 10\, CE(q(z^l, c^u), y)
          + E (o - o')^2 ]

====================  ==========================================  ============================
term                  here                                        paper
====================  ==========================================  ============================
``supervised``        half cross-entropy, half Dice of both       L_s
                      classes
``forward``           labelled prototypes on unlabelled volumes   L_fpc, labelled to unlabelled
``backward``          unlabelled prototypes on labelled volumes   L_bpc, unlabelled to labelled
``stability``         mean squared difference of class scores,    none
                      teacher with noise, all volumes
c_k                   `prototypes`                                masked average pooling
q                     `similarity`, then softmax                  Sec. III
lambda(t)             ``weight`` times sigmoid ramp-up            lambda
====================  ==========================================  ============================

Volume i of the labelled ones is paired with volume i of the unlabelled ones.

In the released code neither ``forward`` nor ``backward`` has a gradient: the student's features and
all prototypes are detached, and the teacher never has one. What it trains is a Mean Teacher on
class scores. By default (``variant=fixed``) the student's side has its gradient: ``forward`` moves
the labelled prototypes, ``backward`` the labelled features. The release also takes the softmax
twice in ``backward``. ``variant=released`` is what it trains: the supervised and the stability
term. ``stability=0`` leaves the latter out, as in the paper.

Followed is the released code for the left atrium, where the ramp-up lasted 6,000 of 10,000 steps
(``rampup=0.6``). 9,448,866 parameters at the paper's scale. The paper has tumours and kidneys; the
release for the left atrium keeps the checkpoint that is best on the test set, looked at every 100
steps, and whose numbers circulate is not known. Deviations: see `CPCL.deviations`.

In runs cut to 1,000 steps (profile ``mini``, left atrium, 8 labels, three seeds) it is late and
swings: Dice 48.6 in the mean of all checkpoints, the supervised network 65.6, but 67.3 and 65.0 at
the last. With the release's rate (``recipe.schedule=poly``, seed 0, on another processor) it rises
to 77.5, its best, and loses 3.1 at most on the way. The prototypes are not the cause there:
``variant=released``, whose prototypes have no gradient, ended at 28.8 after 72.1, on that processor
too, while its teacher rose to 74.1.

On the hippocampus (18 labels) one of three seeds loses the foreground altogether (72.7 at best, 0.0
at last) and the mean of all is 43.8, the supervised network's 77.4. In that seed stability of
scores and prototypes do it together, and either alone does not: ``stability=0``, which is the
paper's form, ends at 77.9 (mean 69.6), ``variant=released`` at 73.1 (69.9). ``backward=0`` finds
the foreground at step 800 only and ends at 79.1; the poly rate finds none. A scale is new here: the
release's double softmax bounds ``backward`` at 1.3 nats a voxel, a softmax of 20 cosines reaches
20, and a class that the teacher finds nowhere has no prototype.
"""

from __future__ import annotations

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
    cross_entropy,
    ema_,
    frozen,
    hard_label,
    noisy,
    predictor,
    sigmoid_rampup,
    similarity,
    warm_decay,
)

Variant = Literal["fixed", "released"]


@final
@dataclass(frozen=True)
class CPCL(Method):
    """See the module docstring.

    variant:     "fixed" or "released", whose prototypes train nothing.
    weight:      of the forward and the stability term after ramp-up.
    backward:    weight of the backward term beside those.
    stability:   weight of the stability term beside the forward one; the paper has 0.
    rampup:      fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    sharpness:   that multiplies cosines before the softmax.
    decay:       of the teacher's moving average.
    noise_std, noise_limit: of the teacher's input noise and where it is clipped, in units of the
                 normalised intensity.
    """

    name: ClassVar[str] = "cpcl"
    title: ClassVar[str] = "CPCL"
    paper: ClassVar[str] = "arXiv:2109.13930"
    bibtex: ClassVar[str] = """@article{xu2022cpcl,
  author  = {Xu, Zhe and Wang, Yixin and Lu, Donghuan and Yu, Lequan and Yan, Jiangpeng and
             Luo, Jie and Ma, Kai and Zheng, Yefeng and Tong, Raymond Kai-yu},
  title   = {All-around real label supervision: Cyclic prototype consistency learning for
             semi-supervised medical image segmentation},
  journal = {IEEE Journal of Biomedical and Health Informatics},
  volume  = {26},
  number  = {7},
  pages   = {3174--3184},
  year    = {2022},
  doi     = {10.1109/JBHI.2022.3162043}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED_FIXED
    deviations: ClassVar[tuple[str, ...]] = (
        "The gradient that the release lacks goes where its student's tensors are detached; "
        "whether the authors meant the unlabelled volumes to pass through the student as well, "
        "neither code nor paper says.",
        "The backward term is the cross-entropy of one softmax; the release's has two.",
        "Vectors shorter than 0.1 count as this long in cosines, which the release divides by "
        "lengths however small: without a gradient that was harmless.",
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
        "With the `authors` recipe each step has the rate of its own place in the run; in the "
        "release it has that of the step before.",
        "The teacher starts as a copy of the student, not from weights of its own; either way it "
        "is the student after the first step.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe("authors", schedule="poly", steps=10_000)
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 0.6}
    sizes: ClassVar[Mapping[str, int]] = {"student": 9_448_866, "teacher": 9_448_866}

    variant: Variant = "fixed"
    weight: float = 0.1
    backward: float = 10.0
    stability: float = 1.0
    rampup: float = 0.3
    sharpness: float = 20.0
    decay: float = 0.99
    noise_std: float = 0.1
    noise_limit: float = 0.2

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_choice("variant", self.variant, get_args(Variant))
        check_range("weight", self.weight, 0)
        check_range("backward", self.backward, 0)
        check_range("stability", self.stability, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("sharpness", self.sharpness, 0)
        check_range("decay", self.decay, 0, 1)
        check_range("noise_std", self.noise_std, 0)
        check_range("noise_limit", self.noise_limit, 0)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """A student, and a teacher that starts as its copy."""
        student = build("vnet-half-features")
        return nn.ModuleDict({"student": student, "teacher": frozen(deepcopy(student))})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The terms; the student sees labelled and unlabelled volumes in one pass."""
        images = torch.cat([batch.image, batch.unlabelled])
        student = nets["student"](images)
        logits = student.logits[: len(batch.image)]
        features = student.features[: len(batch.image)]
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        terms = {"supervised": Term(both_classes_loss(logits, batch.label))}
        if self.stability:
            with torch.no_grad():
                disturbed = noisy(images, self.noise_std, self.noise_limit, rng)
                goal = nets["teacher"](disturbed).logits
            difference = (student.logits - goal).square().mean()
            terms["stability"] = Term(difference, self.stability * weight)
        if self.variant == "fixed":
            with torch.no_grad():
                teacher = nets["teacher"](batch.unlabelled)
                taught = teacher.logits.softmax(1)
                theirs = prototypes(teacher.features, hard_label(taught), taught)
            ours = prototypes(features, batch.label, logits.softmax(1))
            forward = self.sharpness * similarity(teacher.features, paired(ours, len(theirs)))
            backward = self.sharpness * similarity(features, paired(theirs, len(ours)))
            terms["forward"] = Term((forward.softmax(1) - taught).square().mean(), weight)
            terms["backward"] = Term(
                cross_entropy(backward, batch.label).mean(), self.backward * weight
            )
        return terms

    def after_step(self, nets: nn.ModuleDict, step: Step) -> None:
        """Move the teacher towards the student."""
        ema_(nets["teacher"], nets["student"], warm_decay(step.index, self.decay))

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The student, and its moving average."""
        return {"main": predictor(nets["student"]), "teacher": predictor(nets["teacher"])}


def prototypes(features: Tensor, label: Tensor, probability: Tensor) -> Tensor:
    """Mean feature of each class over its voxels, weighted by the probability of the class.

    Args:
        features: (B, F, X, Y, Z).
        label: (B, X, Y, Z) int64 in {0, 1}.
        probability: (B, 2, X, Y, Z).

    Returns:
        (B, 2, F), zero for a class without voxels.
    """
    chosen = torch.stack([label == 0, label == 1], 1)
    return class_means(features, chosen * probability, 1e-5)


def paired(volumes: Tensor, number: int) -> Tensor:
    """One entry for each of `number` partners, in order, from the first again when they run out.

    >>> paired(torch.tensor([7, 8]), 3).tolist()
    [7, 8, 7]
    """
    return volumes[torch.arange(number, device=volumes.device) % len(volumes)]
