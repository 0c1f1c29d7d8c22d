r"""CoraNet, the conservative-radical network (Shi et al., TMI 2022, arXiv:2110.08762).

A network with three heads on one trunk. Head 1 segments; to head 2 a missed foreground voxel costs
more, to head 3 a missed background voxel. Where these two agree, a voxel of an unlabelled volume is
certain and learns from head 1's pseudo-label; elsewhere the student follows its moving average.

Stage 1 is supervised. In stage 2, with probabilities :math:`p_h` of head h, the teacher's
:math:`p'_h`, pseudo-labels :math:`\hat y` and the set C of certain voxels:

.. math:: L = L_{sup} + \tfrac12 \left[ L_{cert}(\hat y, C) + \lambda(t)\,
          \tfrac13 \sum_h \frac{\sum_{v \notin C} \|p_{h,v} - p'_{h,v}\|^2}{|\bar C|} \right]

====================  ==========================================  ============================
term                  here                                        paper
====================  ==========================================  ============================
``supervised``        `four_losses`: cross-entropy and Dice of    labelled volumes
                      head 1, weighted cross-entropy of 2 and 3
``certain``           `four_losses` with \hat y, inside C         certain regions, self-training
``uncertain``         `masked_distances`, outside C               uncertain regions, mean teacher
C                     heads 2 and 3 predict the same class        conservative = radical
lambda(t)             ``weight`` times sigmoid ramp-up over       lambda
                      ``rampup`` of stage 2
====================  ==========================================  ============================

The release makes pseudo-labels of the centre crops of all unlabelled volumes every 5 of 200 epochs.
Crops are random here, so a copy of the student, renewed as often (``refresh``), labels each crop as
it comes, without dropout and normalised by its batch. Stage 1 is 480 of 1,680 steps, hence
``pretraining=2/7``, of which the release loses the last 8: stage 2 starts from a checkpoint written
before the last epoch. The ramp-up lasts 40 of the 200 epochs of stage 2.

In the released code the costs of heads 2 and 3 are swapped in ``certain``, against what the heads
learn from labels. ``variant=released`` does that; the default does not.

Followed is the released code for the pancreas. Its V-Net has instance normalisation and no dropout;
here they are those of the benchmark, with 9,462,854 parameters at the paper's scale. It learns by
Adam (0.001, betas 0.5 and 0.999) from 8 + 8 volumes: there is no `authors` recipe, since recipes
are of SGD. The release evaluates on the test set but writes its checkpoint whatever comes out, so
its number is the last student's; an earlier commit of it (1af5db1) keeps the best. Deviations: see
`CoraNet.deviations`.

In version 1 pseudo-labels were of running statistics, and runs cut to 1,000 steps (profile
``mini``, left atrium, 8 labels, three seeds) stood at Dice 57.7 in the mean of all checkpoints, the
supervised network at 65.6. Neither rate, schedule nor a joint pass of all volumes changed that, but
a run of stage 1 alone did (``pretraining=0.999``, seed 0: 61.6, as the supervised network), and so
do pseudo-labels by batch statistics: 66.8 now. On the hippocampus (18 labels) they change little;
there it is below the supervised network (77.4) with 72.6 in the mean, and was with 71.7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import torch
from torch import Tensor, nn

from methods.base import Batch, Fidelity, Method, NetOutput, NetworkFactory, Predictor, Step, Term
from methods.common import (
    check_choice,
    check_range,
    cross_entropy,
    decoder_predictor,
    ema_,
    frozen,
    masked_dice_loss,
    sigmoid_rampup,
)

Variant = Literal["fixed", "released"]
Costs = tuple[float, float]
"""Of a missed background and of a missed foreground voxel."""


@final
@dataclass(frozen=True)
class CoraNet(Method):
    """See the module docstring.

    variant:     "fixed" or "released", with the costs swapped in the certain term.
    pretraining: fraction of the run that is stage 1.
    refresh:     fraction of stage 2 after which the network that makes pseudo-labels is renewed.
    cost:        of a miss of the class that a head is careful about; one of the other class is 1.
    weight:      of the uncertain term after ramp-up, before it is halved.
    rampup:      fraction of stage 2 until then.
    decay:       of the teacher's moving average.
    """

    name: ClassVar[str] = "coranet"
    title: ClassVar[str] = "CoraNet"
    paper: ClassVar[str] = "arXiv:2110.08762"
    bibtex: ClassVar[str] = """@article{shi2022coranet,
  author  = {Shi, Yinghuan and Zhang, Jian and Ling, Tong and Lu, Jiwen and Zheng, Yefeng and
             Yu, Qian and Qi, Lei and Gao, Yang},
  title   = {Inconsistency-Aware Uncertainty Estimation for Semi-Supervised Medical Image
             Segmentation},
  journal = {IEEE Transactions on Medical Imaging},
  volume  = {41},
  number  = {3},
  pages   = {608--620},
  year    = {2022},
  doi     = {10.1109/TMI.2021.3117888}
}"""
    version: ClassVar[int] = 2
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED_FIXED
    deviations: ClassVar[tuple[str, ...]] = (
        "The costs of heads 2 and 3 are the same in all terms; the release swaps them in the "
        "certain one.",
        "The network has the batch normalisation and dropout of the other methods, the latter also "
        "in each head; the release has instance normalisation and no dropout.",
        "Pseudo-labels are made crop by crop, by a copy of the student that is renewed as often as "
        "the release relabels all centre crops, without dropout and with batch statistics, where "
        "the release has those of the volume.",
        "It learns by the recipe's SGD from 2 + 2 volumes; the release by Adam from 8 + 8.",
        "The ramp-up rises every step of stage 2; the release's rises every epoch of six.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    sizes: ClassVar[Mapping[str, int]] = {
        "student": 9_462_854,
        "teacher": 9_462_854,
        "labeller": 9_462_854,
    }

    variant: Variant = "fixed"
    pretraining: float = 2 / 7
    refresh: float = 0.025
    cost: float = 5.0
    weight: float = 0.1
    rampup: float = 0.2
    decay: float = 0.99

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_choice("variant", self.variant, get_args(Variant))
        check_range("pretraining", self.pretraining, 0, 0.999)
        check_range("refresh", self.refresh, 1e-6, 1)
        check_range("cost", self.cost, 1)
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("decay", self.decay, 0, 1)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """A student; its moving average; the copy of it that makes pseudo-labels."""
        student = build("vnet-three-heads")
        copies = {name: frozen(deepcopy(student)) for name in ("teacher", "labeller")}
        return nn.ModuleDict({"student": student, **copies})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The supervised term, in stage 2 all three; the student passes over each kind once."""
        labelled = logits_of(nets["student"](batch.image))
        costs = ((1.0, self.cost), (self.cost, 1.0))
        terms = {"supervised": Term(four_losses(labelled, batch.label, costs))}
        if self._period(step) is None:
            return terms
        free = logits_of(nets["student"](batch.unlabelled))
        with torch.no_grad():
            label, certain = pseudo_label(nets["labeller"], batch.unlabelled)
            goal = logits_of(nets["teacher"](batch.unlabelled))
        if self.variant == "released":
            costs = costs[::-1]
        position = (step.fraction - self.pretraining) / (1 - self.pretraining)
        weight = 0.5 * self.weight * sigmoid_rampup(position, self.rampup)
        terms["certain"] = Term(four_losses(free, label, costs, certain), 0.5)
        terms["uncertain"] = Term(masked_distances(free, goal, ~certain), weight)
        return terms

    def after_step(self, nets: nn.ModuleDict, step: Step) -> None:
        """Stage 1: the teacher is the student. Stage 2: it follows. Renew the labeller when due."""
        period = self._period(step)
        if period is None:
            copy_(nets["teacher"], nets["student"])
        else:
            ema_(nets["teacher"], nets["student"], self.decay)
        if period is None or self._period(Step(step.index + 1, step.total)) != period:
            copy_(nets["labeller"], nets["student"])

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """Head 1 of the student, and of its moving average."""
        roles = {"main": "student", "teacher": "teacher"}
        return {name: decoder_predictor(nets[role], 0) for name, role in roles.items()}

    def _period(self, step: Step) -> int | None:
        """Which of the intervals between renewals of the labeller; None in stage 1."""
        if step.fraction < self.pretraining:
            return None
        return math.floor(
            (step.fraction - self.pretraining) / ((1 - self.pretraining) * self.refresh)
        )


def logits_of(outputs: Sequence[NetOutput]) -> list[Tensor]:
    """The class scores of all heads."""
    return [output.logits for output in outputs]


@torch.no_grad()
def copy_(target: nn.Module, source: nn.Module) -> None:
    """In place: target <- source, parameters and buffers."""
    target.load_state_dict(source.state_dict())


def pseudo_label(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Head 1's classes (B, X, Y, Z) int64 and where heads 2 and 3 agree, bool.

    Without dropout, and normalised by these volumes themselves, as the release's instance
    normalisation is in every mode; running statistics of a student that passes over labelled and
    unlabelled volumes in turn are of neither, and stay as they are.
    """
    training = net.training
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm3d)]
    net.eval()
    for norm in norms:
        norm.train()
        norm.track_running_stats = False
    classes = [scores[:, 1] >= scores[:, 0] for scores in logits_of(net(images))]
    for norm in norms:
        norm.track_running_stats = True
    net.train(training)
    return classes[0].long(), classes[1] == classes[2]


def four_losses(
    logits: Sequence[Tensor],
    target: Tensor,
    costs: tuple[Costs, Costs],
    mask: Tensor | None = None,
) -> Tensor:
    """A quarter of: cross-entropy and Dice of head 1, weighted cross-entropies of heads 2 and 3.

    Without a mask the weighted ones are divided by the sum of the weights, with it by its voxels.

    Args:
        logits: three times (B, 2, X, Y, Z).
        target: (B, X, Y, Z) int64.
        costs: of heads 2 and 3.
        mask: voxels that count, (B, X, Y, Z) bool; None is all.
    """
    first = cross_entropy(logits[0], target)
    counted = torch.ones_like(first) if mask is None else mask.to(first.dtype)
    losses = [
        (first * counted).sum() / (counted.sum() + 1e-16),
        masked_dice_loss(logits[0].softmax(1), target, counted),
    ]
    for scores, (background, foreground) in zip(logits[1:], costs, strict=True):
        weight = torch.where(target == 1, foreground, background)
        size = weight.sum() if mask is None else counted.sum() + 1e-16
        losses.append((cross_entropy(scores, target) * weight * counted).sum() / size)
    return torch.stack(losses).mean()


def masked_distances(logits: Sequence[Tensor], goals: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Squared distance of probabilities, summed over classes, mean over the mask and the heads.

    Args:
        logits: class scores of the student's heads, each (B, 2, X, Y, Z).
        goals: of the teacher's.
        mask: (B, X, Y, Z) bool; 0 where it is empty.
    """
    counted = mask.unsqueeze(1)
    distances = [
        ((a.softmax(1) - b.softmax(1)).square() * counted).sum() / (counted.sum() + 1e-16)
        for a, b in zip(logits, goals, strict=True)
    ]
    return torch.stack(distances).mean()
