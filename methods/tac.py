r"""TAC, task-affinity consistency (Chen et al., TMI 2023, 10.1109/TMI.2022.3213372).

What a class looks like must be the same in labelled and in unlabelled volumes. At each level
:math:`j` of the network the representation of class :math:`c` in volume :math:`b` is the mean of
the level's map :math:`F` under a guide :math:`g`, which is the label, or for unlabelled volumes the
network's own prediction, at the level's resolution:

.. math:: r_{bc} = \frac{\sum_v g_{bc}(v)\, F_b(v)}{\sum_{b, v} g_{bc}(v)}, \qquad
          L = \sum_c L_{Dice, c} + \sum_{j\ \text{gated}} E\,(r^u - r^l)^2
          + \tfrac12 \sum_{j\ \text{encoder}} E\,(r^u - r^l)^2

====================  ==========================================  ==========================
term                  here                                        paper
====================  ==========================================  ==========================
``supervised``        Dice of background and foreground, summed   supervised loss
``structure``         `affinity` over the gated skips             structural information
``context``           `affinity` over the encoder's levels        low-level context
r                     `representations`                           class-specific
                                                                  representation
====================  ==========================================  ==========================

The network is a V-Net with attention gates and an independent sigmoid for each class; with 16
filters it has 9,472,414 parameters. Followed is the released code, a script for the left atrium
with 16 labels. The denominator of r is that of all volumes of its half of the batch, as there: of
two volumes of equal size, r is half a mean. Representations learn on both sides, and so does the
guide of the unlabelled volumes. No weight is ramped up.

The release evaluates once, after the last step. The TCSeg paper prints 84.73 (8 labels) and 87.75
(16) Dice on the left atrium for it, at the last step too. Deviations: see `TAC.deviations`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Recipe, Step, Term
from methods.common import check_range, dice_loss


@final
@dataclass(frozen=True)
class TAC(Method):
    """See the module docstring.

    structure: weight of the consistency over the gated skips.
    context:   weight of the consistency over the encoder's levels.
    """

    name: ClassVar[str] = "tac"
    title: ClassVar[str] = "TAC"
    paper: ClassVar[str] = "10.1109/TMI.2022.3213372"
    bibtex: ClassVar[str] = """@article{chen2023tac,
  author  = {Chen, Jingkun and Zhang, Jianguo and Debattista, Kurt and Han, Jungong},
  title   = {Semi-Supervised Unpaired Medical Image Segmentation Through Task-Affinity
             Consistency},
  journal = {IEEE Transactions on Medical Imaging},
  volume  = {42},
  number  = {3},
  pages   = {594--605},
  year    = {2023},
  doi     = {10.1109/TMI.2022.3213372}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED_FIXED
    deviations: ClassVar[tuple[str, ...]] = (
        "The released script stops in its first step, at a learning rate that it logs before it "
        "sets it; here it does not.",
        "The paper is followed no further than that script, which has one modality.",
        "The learning rate of the recipe 'authors' falls every step, not every epoch.",
        "Where a batch has more unlabelled than labelled volumes, the labelled ones are paired "
        "again; the release always has as many.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe("authors", schedule="poly", steps=6_000)
    sizes: ClassVar[Mapping[str, int]] = {"student": 9_472_414}

    structure: float = 1.0
    context: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("structure", self.structure, 0)
        check_range("context", self.context, 0)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """One network with gated skips."""
        return nn.ModuleDict({"student": build("vnet-attention")})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The three terms, from one pass over all volumes."""
        output = nets["student"](torch.cat([batch.image, batch.unlabelled]))
        probability = output.logits.sigmoid()
        label = torch.stack([batch.label == 0, batch.label == 1], 1).to(probability.dtype)
        n = len(label)
        supervised = torch.stack([dice_loss(probability[:n, c], label[:, c]) for c in range(2)])
        guides = label, probability[n:]
        levels = len(output.maps) // 2 + 1
        return {
            "supervised": Term(supervised.sum()),
            "structure": Term(affinity(output.maps[levels:], guides), self.structure),
            "context": Term(affinity(output.maps[:levels], guides), self.context),
        }

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The network; its larger sigmoid decides, also of the mean over windows, as released."""

        def predict(image: Tensor) -> Tensor:
            p = nets["student"](image).logits.sigmoid()
            return (1 + p - p.flip(1)) / 2

        return {"main": predict}


def affinity(maps: Sequence[Tensor], guides: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared difference of labelled and unlabelled `representations`, summed over maps.

    Args:
        maps: of the labelled, then the unlabelled volumes, (L + U, F, X', Y', Z').
        guides: of the labelled (L, 2, X, Y, Z) and of the unlabelled volumes (U, 2, X, Y, Z).
    """
    labelled, unlabelled = (len(guide) for guide in guides)
    pair = torch.arange(unlabelled, device=guides[0].device) % labelled
    losses = []
    for features in maps:
        known, found = (
            representations(part, guide)
            for part, guide in zip(features.split([labelled, unlabelled]), guides, strict=True)
        )
        losses.append((found - known[pair]).square().mean())
    return torch.stack(losses).sum()


def representations(features: Tensor, guide: Tensor) -> Tensor:
    """Mean embedding of each class in each volume, over the class's size in all volumes.

    Args:
        features: (B, F, X', Y', Z').
        guide: (B, 2, X, Y, Z) in [0, 1], of sides that are multiples of X', Y', Z'; its voxels at
            these multiples count (nearest neighbour).

    Returns:
        (B, 2, F).
    """
    x, y, z = (a // b for a, b in zip(guide.shape[2:], features.shape[2:], strict=True))
    weight = guide[:, :, ::x, ::y, ::z].flatten(2)
    return weight @ features.flatten(2).mT / (weight.sum((0, 2)).view(1, -1, 1) + 1e-6)
