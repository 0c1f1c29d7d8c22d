r"""SASSNet, shape-aware semi-supervised segmentation (Li et al., MICCAI 2020, arXiv:2007.10732).

One network predicts a segmentation :math:`f_1` (foreground probability) and a signed distance
:math:`f_2` in [-1, 1], negative inside. A critic :math:`D` sees distance and image and tells
labelled from unlabelled volumes; the network makes unlabelled ones pass as labelled. With the
signed distance :math:`s` of the label:

.. math:: L = L_{Dice}(f_1) + \alpha\, E (f_2 - s)^2
          - \lambda(t)\, E_u \log D(f_2(u), u), \qquad
          L_D = -E_x \log D(f_2(x), x) - E_u \log (1 - D(f_2(u), u))

====================  ==========================================  ===================
term                  here                                        paper
====================  ==========================================  ===================
``supervised``        Dice on the labelled volumes                l_dice of L_s
``sdf``               mean squared error of the distance          l_mse of L_s
``adversarial``       cross-entropy of unlabelled as labelled     L_a, of the network
``critic``            cross-entropy of the truth, all volumes     L_a, of the critic
D                     `Critic`                                    discriminator, Sec. 2
lambda(t)             ``weight`` times sigmoid ramp-up            beta
====================  ==========================================  ===================

Followed is the released trainer for the left atrium, whose ramp-up lasts the whole run of 6,000
steps (``rampup=1``). Its README sets ``weight`` to 0.01 with 16 labelled volumes and 0.015 with 8.
With 16 filters the network has 9,448,883 parameters and the critic 11,020,290, which serves in
training only.

The published numbers are those of the last step as far as the release tells: its test script takes
step 6,000 by default, but a "best" checkpoint of unknown choice is shipped.
Deviations: see `SASSNet.deviations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import (
    Adam,
    Batch,
    Fidelity,
    Method,
    NetworkFactory,
    Predictor,
    Recipe,
    Step,
    Term,
)
from methods.common import check_range, cross_entropy, dice_loss, predictor, sigmoid_rampup


class Critic(nn.Module):
    """Scores (B, 2) of a signed distance map and its image: unlabelled, labelled.

    Convolutions 4x4x4 halve the resolution `halvings` times and double the width each time, with
    leaky ReLU, and dropout between them; the last map is averaged over all voxels.

    Args:
        channels: of the image.
        width: channels after the first convolution.
        halvings: convolutions on the way down.
        dropout: probability of dropping a channel, in training mode only.
    """

    def __init__(self, channels: int, width: int, halvings: int, dropout: float) -> None:
        super().__init__()
        self.distance = nn.Conv3d(1, width, 4, stride=2, padding=1)
        self.image = nn.Conv3d(channels, width, 4, stride=2, padding=1)
        widths = [width * 2**i for i in range(halvings)]
        self.deeper = nn.ModuleList(
            nn.Conv3d(w, 2 * w, 4, stride=2, padding=1) for w in widths[:-1]
        )
        self.score = nn.Linear(widths[-1], 2)
        self.dropout = dropout

    def forward(self, distance: Tensor, image: Tensor, *, sure: bool = False) -> Tensor:
        """Score distances (B, 1, X, Y, Z) of images (B, C, X, Y, Z); without dropout if `sure`."""
        x = F.leaky_relu(self.distance(distance) + self.image(image), 0.2)
        for convolve in self.deeper:
            x = F.dropout3d(x, self.dropout, self.training and not sure)
            x = F.leaky_relu(convolve(x), 0.2)
        scores: Tensor = self.score(x.mean((2, 3, 4)))
        return scores


@final
@dataclass(frozen=True)
class SASSNet(Method):
    """See the module docstring.

    weight: of the adversarial term after ramp-up.
    rampup: fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    alpha:  weight of the distance regression.
    """

    name: ClassVar[str] = "sassnet"
    title: ClassVar[str] = "SASSNet"
    paper: ClassVar[str] = "arXiv:2007.10732"
    bibtex: ClassVar[str] = """@inproceedings{li2020sassnet,
  author    = {Li, Shuailin and Zhang, Chuyu and He, Xuming},
  title     = {Shape-aware Semi-supervised 3D Semantic Segmentation for Medical Images},
  booktitle = {Medical Image Computing and Computer Assisted Intervention (MICCAI)},
  pages     = {552--561},
  year      = {2020},
  doi       = {10.1007/978-3-030-59710-8_54}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED
    deviations: ClassVar[tuple[str, ...]] = (
        "The segmentation head has two channels and softmax, not one and a sigmoid: the same "
        "function of the logit difference, with twice the parameters in that layer.",
        "Network and critic learn at once, from one pass; in the release the critic learns after "
        "the network's step, from a second pass in evaluation mode.",
        "The critic follows the run's size: its width is four times the network's and it halves "
        "the resolution as often; with 16 filters and 5 levels it is that of the release.",
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled", "sdf")
    authors: ClassVar[Recipe | None] = Recipe(
        "authors", schedule="step", milestones=(2500 / 6000, 5000 / 6000), steps=6_000
    )
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 1.0}
    adam: ClassVar[Mapping[str, Adam]] = MappingProxyType({"critic": Adam(1e-4, (0.9, 0.99))})
    sizes: ClassVar[Mapping[str, int]] = {"student": 9_448_883, "critic": 11_020_290}

    weight: float = 0.01
    rampup: float = 0.3
    alpha: float = 0.3

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("alpha", self.alpha, 0)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """One network with a distance head, and the critic."""
        critic = Critic(build.channels, 4 * build.width, build.levels - 1, build.dropout)
        return nn.ModuleDict({"student": build(distance_head=True), "critic": critic})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The three terms of the network and that of the critic, from one pass over all volumes."""
        labelled = len(batch.image)
        images = torch.cat([batch.image, batch.unlabelled])
        output = nets["student"](images)
        foreground = output.logits[:labelled].softmax(1)[:, 1]
        known, free = output.distance.split([labelled, len(batch.unlabelled)])
        regression = (known - batch.extras["sdf"]).square().mean()

        critic = nets["critic"]
        is_labelled = (torch.arange(len(images), device=images.device) < labelled).long()
        passed = critic(free, batch.unlabelled, sure=True)
        judged = critic(output.distance.detach(), images)
        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        return {
            "supervised": Term(dice_loss(foreground, batch.label == 1)),
            "sdf": Term(regression, self.alpha),
            "adversarial": Term(-passed.log_softmax(1)[:, 1].mean(), weight),
            "critic": Term(cross_entropy(judged, is_labelled).mean(), player="critic"),
        }

    def players(self, nets: nn.ModuleDict) -> dict[str, list[nn.Parameter]]:
        """The network by the recipe's SGD, the critic by Adam."""
        return {
            "main": list(nets["student"].parameters()),
            "critic": list(nets["critic"].parameters()),
        }

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The segmentation head."""
        return {"main": predictor(nets["student"])}
