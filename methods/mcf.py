r"""MCF, mutual correction framework (Wang et al., CVPR 2023, 10.1109/CVPR52729.2023.01502).

Two unlike networks, a V-Net :math:`f_v` and one with a ResNet-34 encoder :math:`f_r`, correct each
other. Contrastive difference review: labelled voxels on whose class they disagree count again.
Dynamic competitive pseudo-labels: whichever has the lower Dice loss :math:`D` on the labelled
volumes of the batch teaches the other on the unlabelled ones. With foreground probabilities
:math:`p`, labels :math:`y`, and :math:`M` the labelled voxels whose two predicted classes differ:

.. math:: L = \sum_{i \in \{v, r\}} \Big[ CE_i + D_i
          + \beta \frac{\sum_M (p_i - y)^2}{|M|} \Big]
          + \lambda(t)\, E\, \big( f_{worse} - \mathrm{sharpen}(f_{better}) \big)^2

====================  ==========================================  =======================
term                  here                                        paper
====================  ==========================================  =======================
``supervised``        `supervised`: CE and Dice, both networks    supervised loss, Sec. 3
``rectification``     `disagreement_error`, both networks         CDR module, Sec. 3
``consistency``       mean squared difference, worse network      DCPLG module, Sec. 3
sharpen               `sharpen`, temperature T                    DCPLG module, Sec. 3
lambda(t)             ``weight`` times sigmoid ramp-up            Sec. 4
====================  ==========================================  =======================

Followed is the released trainer for the left atrium. Its ramp-up lasts the whole run of 6,000
steps: the `authors` recipe sets ``rampup=1``. Its networks have 9.4 and 17.9 million
parameters. Its published numbers are those of the last step, without selection, but means over 5
folds of the left atrium and 4 of the pancreas, not over the field's usual test cases.
Deviations: see `MCF.deviations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Recipe, Step, Term
from methods.common import (
    check_range,
    cross_entropy,
    dice_loss,
    hard_label,
    mean_predictor,
    predictor,
    sigmoid_rampup,
)


@final
@dataclass(frozen=True)
class MCF(Method):
    """See the module docstring.

    weight:      of the consistency term after ramp-up.
    rampup:      fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    beta:        weight of the rectification term.
    temperature: T of the sharpening; 1 leaves probabilities as they are.
    """

    name: ClassVar[str] = "mcf"
    title: ClassVar[str] = "MCF"
    paper: ClassVar[str] = "10.1109/CVPR52729.2023.01502"
    bibtex: ClassVar[str] = """@inproceedings{wang2023mcf,
  author    = {Wang, Yongchao and Xiao, Bin and Bi, Xiuli and Li, Weisheng and Gao, Xinbo},
  title     = {{MCF}: Mutual Correction Framework for Semi-Supervised Medical Image Segmentation},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {15651--15660},
  year      = {2023}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED
    deviations: ClassVar[tuple[str, ...]] = (
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
        "Volumes are augmented as the dataset's card says; the release only crops.",
        "With the `authors` recipe the rate falls one step earlier than in the release.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe(
        "authors", schedule="step", milestones=(2500 / 6000, 5000 / 6000), steps=6_000
    )
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 1.0}
    sizes: ClassVar[Mapping[str, int]] = {"vnet": 9_448_866, "resnet": 17_930_354}

    weight: float = 0.1
    rampup: float = 0.3
    beta: float = 0.5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("beta", self.beta, 0)
        check_range("temperature", self.temperature, 0.01, 1)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """The two networks, with He initialisation of every convolution as in the release."""
        return nn.ModuleDict(
            {
                "vnet": _he_initialised(build("vnet")),
                "resnet": _he_initialised(build("vnet-resnet")),
            }
        )

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The three terms; each network sees labelled and unlabelled volumes in one pass."""
        images = torch.cat([batch.image, batch.unlabelled])
        logits = [nets[name](images).logits for name in ("vnet", "resnet")]
        labelled = [x[: len(batch.image)] for x in logits]
        p_v, p_r = (x[len(batch.image) :].softmax(1) for x in logits)

        (entropy_v, dice_v), (entropy_r, dice_r) = (supervised(x, batch.label) for x in labelled)
        vnet_is_better = dice_v < dice_r
        better = torch.where(vnet_is_better, p_v, p_r).detach()
        worse = torch.where(vnet_is_better, p_r, p_v)
        consistency = (worse - sharpen(better, self.temperature)).square().mean()
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        return {
            "supervised": Term(entropy_v + dice_v + entropy_r + dice_r),
            "rectification": Term(disagreement_error(labelled, batch.label), self.beta),
            "consistency": Term(consistency, weight),
        }

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The mean of both networks, and each of them."""
        vnet, resnet = predictor(nets["vnet"]), predictor(nets["resnet"])
        return {"main": mean_predictor(vnet, resnet), "vnet": vnet, "resnet": resnet}


def supervised(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and foreground Dice loss of (L, 2, X, Y, Z) scores."""
    return cross_entropy(logits, label).mean(), dice_loss(logits.softmax(1)[:, 1], label == 1)


def disagreement_error(logits: list[Tensor], label: Tensor) -> Tensor:
    """Mean of (p - y)^2 over the voxels on which two networks disagree, summed over both; else 0.

    Args:
        logits: of each network, (L, 2, X, Y, Z).
        label: (L, X, Y, Z).
    """
    p = [x.softmax(1)[:, 1] for x in logits]
    first, second = (hard_label(x) for x in logits)
    disputed = (first != second).to(p[0].dtype)
    errors = (p[0] - label).square() + (p[1] - label).square()
    return (disputed * errors).sum() / (disputed.sum() + 1e-16)


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """Probabilities to the power 1/T, normalised over the classes (axis 1).

    >>> sharpen(torch.tensor([[0.25, 0.75]]), 0.5)
    tensor([[0.1000, 0.9000]])
    """
    return (p.log() / temperature).softmax(1)


def _he_initialised(net: nn.Module) -> nn.Module:
    """The same network with normal weights of variance 2 / fan-in in every convolution."""
    for module in net.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight)
    return net
