r"""URPC, uncertainty rectified pyramid consistency (Luo et al., MICCAI 2021, arXiv:2012.07042).

The decoder predicts at each of its levels :math:`s = 1 \dots S`. All predictions learn from the
labels; on unlabelled volumes each follows the mean of all, the less the further it is from it. With
probabilities :math:`p_s`, their mean :math:`\bar p` over the levels and
:math:`D_s = KL(\bar p \| p_s)` of each voxel:

.. math:: L = \frac1S \sum_s L_{sup}(p_s) + \lambda(t) \frac1S \sum_s \left[
          \frac{E\,(\bar p - p_s)^2 e^{-D_s}}{E\, e^{-D_s}} + E\, D_s \right]

====================  ==========================================  ============================
term                  here                                        paper
====================  ==========================================  ============================
``supervised``        half cross-entropy, half Dice, all levels   supervised pyramid loss
``consistency``       `rectified_consistency`                     uncertainty rectified pyramid
                                                                  consistency
D_s                   divergence from the mean, in nats           uncertainty of a level
lambda(t)             ``weight`` times sigmoid ramp-up            lambda
====================  ==========================================  ============================

Followed are the terms of the released 3D trainer (SSL4MIS), on a V-Net. There the mean carries
gradient, and the ramp-up lasts the whole run (of 60,000 steps: ``rampup=1``). The mean of the
squared differences runs over both classes. A network of L levels has S = L - 1 outputs, the
release's four at the paper's scale, where it has 9,449,320 parameters; the release's 3D U-Net has
5.88 M.

The published numbers are of tumours of the nasopharynx: the full-resolution output at the
checkpoint that is best on a validation set. Those that the literature prints for the left atrium
and the pancreas are others' on V-Nets, whose heads are not released.
Deviations: see `URPC.deviations`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Recipe, Step, Term
from methods.common import check_range, decoder_predictor, sigmoid_rampup, supervised_loss


@final
@dataclass(frozen=True)
class URPC(Method):
    """See the module docstring.

    weight: of the consistency term after ramp-up.
    rampup: fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    """

    name: ClassVar[str] = "urpc"
    title: ClassVar[str] = "URPC"
    paper: ClassVar[str] = "arXiv:2012.07042"
    bibtex: ClassVar[str] = """@inproceedings{luo2021urpc,
  author    = {Luo, Xiangde and Liao, Wenjun and Chen, Jieneng and Song, Tao and Chen, Yinan and
               Zhang, Shichuan and Chen, Nianyong and Wang, Guotai and Zhang, Shaoting},
  title     = {Efficient Semi-supervised Gross Target Volume of Nasopharyngeal Carcinoma
               Segmentation via Uncertainty Rectified Pyramid Consistency},
  booktitle = {Medical Image Computing and Computer Assisted Intervention (MICCAI)},
  pages     = {318--329},
  year      = {2021}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.PORT
    deviations: ClassVar[tuple[str, ...]] = (
        "The network is the V-Net of the other methods with the pyramid's outputs, not a 3D U-Net.",
        "Each output has dropout of the profile's rate before it; the release drops 0.5, 0.3, 0.2 "
        "and 0.1 of the channels inside the decoder, from its coarsest level up.",
        "Dice counts the foreground, as in the other methods here; the release's averages "
        "foreground and background.",
        "The ramp-up rises every step; the release's every 150 steps.",
        "With the `authors` recipe each step has the rate of its own place in the run; in the "
        "release it has that of the step before.",
        "Logarithms are taken before the softmax rounds to zero, where the release can give "
        "infinity.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe(
        "authors", learning_rate=0.1, schedule="poly", steps=60_000
    )
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 1.0}
    sizes: ClassVar[Mapping[str, int]] = {"student": 9_449_320}

    weight: float = 0.1
    rampup: float = 0.3

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """One network with an output at each level."""
        return nn.ModuleDict({"student": build("vnet-pyramid")})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The two terms, from one pass over all volumes."""
        outputs = nets["student"](torch.cat([batch.image, batch.unlabelled]))
        n = len(batch.image)
        supervised = [supervised_loss(output.logits[:n], batch.label) for output in outputs]
        consistency = rectified_consistency([output.logits[n:] for output in outputs])
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        return {
            "supervised": Term(torch.stack(supervised).mean()),
            "consistency": Term(consistency, weight),
        }

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The output at full resolution, which the paper reports, and the mean of all."""
        student = nets["student"]
        return {"main": decoder_predictor(student, 0), "mean": decoder_predictor(student)}


def rectified_consistency(logits: Sequence[Tensor]) -> Tensor:
    """Distance of each level's probabilities to their mean, where they agree, plus divergence.

    Args:
        logits: of each level, (B, K, X, Y, Z).
    """
    log_p = torch.stack([x.log_softmax(1) for x in logits])
    log_mean = log_p.logsumexp(0) - math.log(len(logits))
    mean = log_mean.exp()
    divergence = (mean * (log_mean - log_p)).sum(2, keepdim=True)
    agreement = (-divergence).exp()
    distance = (agreement * (mean - log_p.exp()).square()).flatten(1).mean(1)
    rectified = distance / (agreement.flatten(1).mean(1) + 1e-8)
    return (rectified + divergence.flatten(1).mean(1)).mean()
