r"""MRPL, mutual learning with reliable pseudo labels (Su et al., 10.1016/j.media.2024.103111).

Two decoders :math:`i, j` of one encoder teach each other, on labelled and unlabelled volumes. At a
voxel :math:`v` the one of larger entropy :math:`H` learns the label :math:`\hat y_j` of the other,
and the more so the closer the teacher's probabilities :math:`p_j` are to how similar its embedding
is to its own class prototypes, :math:`s_c = \cos(f_j, \mu_{j, c})`:

.. math:: L = \frac12 \sum_i L_{Dice}(p_i) + \lambda(t) \sum_{i \ne j}
          \frac{\sum_v g_{ij}\, r_j\, \mathrm{CE}(p_i, \hat y_j)}{\sum_v g_{ij}}, \qquad
          g_{ij} = 1[H(p_i) > H(p_j)], \quad r_j = 1 - \frac12 \sum_c (s_c - p_{j, c})^2

====================  ==========================================  ==========================
term                  here                                        paper
====================  ==========================================  ==========================
``supervised``        Dice, linear denominators, summed           supervised loss
``mutual``            `mutual_learning`, labels' volumes too      mutual learning of the two
                                                                  subnetworks
g                     which decoder is less certain               which labels are reliable
r                     `reliability`, without gradient             how reliable they are:
                                                                  intra-class similarity
lambda(t)             ``weight`` times sigmoid ramp-up            weight of consistency
====================  ==========================================  ==========================

Followed is the released code. Its ramp-up lasted 6,000 of 15,000 steps (``rampup=0.4``); the
learning rate never falls. With 16 filters the network has 12,347,716 parameters (12.35 M in the
TCSeg paper's Table 4).

The published numbers are those of decoder 1 at the checkpoint that is best on the *test* set, which
the trainer evaluates every 200 steps from step 800. The release also averages both decoders, on the
pancreas, but it averages logits and then thresholds them at 0.5 as if they were probabilities; the
predictor "mean" here is the mean of the probabilities. Deviations: see `MRPL.deviations`.

In runs cut to 1,000 steps (profile ``mini``, left atrium, 8 labels, three seeds) it swings, and
stands at Dice 44.3 in the mean of all checkpoints, the supervised network at 65.6. Mutual learning
does it: with ``weight=0`` (seed 0, on another processor) the mean is 73.9 and the last checkpoint
78.0. The ramp-up is a part of the run, so the weight is full from step 300 on (the release's is
0.03 after 1,000 steps) and its cross-entropy outweighs what 8 labels have taught by then. On the
hippocampus (18 labels) the mean is 73.2, the supervised network's 77.4, and 79.6 with weight 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    check_range,
    class_means,
    cross_entropy,
    decoder_predictor,
    hard_label,
    linear_dice_loss,
    predictive_entropy,
    sigmoid_rampup,
)


@final
@dataclass(frozen=True)
class MRPL(Method):
    """See the module docstring.

    weight: of the mutual term after ramp-up.
    rampup: fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    """

    name: ClassVar[str] = "mrpl"
    title: ClassVar[str] = "MRPL"
    paper: ClassVar[str] = "10.1016/j.media.2024.103111"
    bibtex: ClassVar[str] = """@article{su2024mrpl,
  author  = {Su, Jiawei and Luo, Zhiming and Lian, Sheng and Lin, Dazhen and Li, Shaozi},
  title   = {Mutual learning with reliable pseudo label for semi-supervised medical image
             segmentation},
  journal = {Medical Image Analysis},
  volume  = {94},
  pages   = {103111},
  year    = {2024},
  doi     = {10.1016/j.media.2024.103111}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED
    deviations: ClassVar[tuple[str, ...]] = (
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe("authors", steps=15_000)
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 0.4}
    sizes: ClassVar[Mapping[str, int]] = {"student": 12_347_716}

    weight: float = 1.0
    rampup: float = 0.3

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """One network: a transposed-convolution and a nearest-neighbour decoder."""
        return nn.ModuleDict({"student": build("vnet-two-decoders")})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The two terms, from one pass over all volumes."""
        first, second = nets["student"](torch.cat([batch.image, batch.unlabelled]))
        foreground = [x.logits[: len(batch.image)].softmax(1)[:, 1] for x in (first, second)]
        supervised = torch.stack([linear_dice_loss(p, batch.label == 1) for p in foreground]).sum()
        mutual = mutual_learning(first, second) + mutual_learning(second, first)
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        return {"supervised": Term(supervised, 0.5), "mutual": Term(mutual, weight)}

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """Decoder 1, which the paper reports, decoder 2, and the mean of both."""
        student = nets["student"]
        return {
            "main": decoder_predictor(student, 0),
            "decoder2": decoder_predictor(student, 1),
            "mean": decoder_predictor(student),
        }


def mutual_learning(student: NetOutput, teacher: NetOutput) -> Tensor:
    """Cross-entropy to the teacher's labels, weighted by `reliability`, where it is more certain.

    The mean over the voxels where the student's entropy is above the teacher's; 0 without any.
    """
    p, q = student.logits.detach().softmax(1), teacher.logits.detach().softmax(1)
    gate = (predictive_entropy(p) > predictive_entropy(q)).squeeze(1)
    weight = gate * reliability(teacher.features.detach(), q)
    loss = cross_entropy(student.logits, hard_label(q))
    return (weight * loss).sum() / (gate.sum() + 1e-6)


def reliability(features: Tensor, probability: Tensor) -> Tensor:
    r"""How far probabilities agree with similarities to prototypes, 1 - E_c (s_c - p_c)^2.

    The prototype of a class is the mean embedding of a volume's voxels that are predicted to be of
    it, zero if there is none; s_c is the cosine of a voxel's embedding and that prototype.

    Args:
        features: (B, F, X, Y, Z).
        probability: (B, 2, X, Y, Z).

    Returns:
        (B, X, Y, Z), in [-1, 1].
    """
    foreground = hard_label(probability)
    prototypes = class_means(features, torch.stack([1 - foreground, foreground], 1), 1e-6)
    embedding = features.flatten(2)
    similarity = F.normalize(prototypes, dim=2) @ F.normalize(embedding, dim=1, eps=1e-8)
    return 1 - (similarity.view_as(probability) - probability).square().mean(1)
