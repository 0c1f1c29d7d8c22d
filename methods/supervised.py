r"""V-Net trained on the labelled volumes only (Milletari et al., 3DV 2016, arXiv:1606.04797).

The reference that every semi-supervised method has to beat. With foreground probability :math:`p`
and label :math:`y` of voxel :math:`v`:

.. math:: L = \tfrac12 CE(p, y)
          + \tfrac12 \left(1 - \frac{2\sum_v p_v y_v}{\sum_v p_v^2 + \sum_v y_v^2}\right)

====================  ==========================================  ===================
term                  here                                        paper
====================  ==========================================  ===================
``supervised``        half cross-entropy, half Dice               Sec. 3 (Dice only)
====================  ==========================================  ===================

Deviations, those of the "V-Net" rows in the field's tables: cross-entropy beside Dice; batch
normalisation and dropout, no residual connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Step, Term
from methods.common import predictor, supervised_loss


@final
@dataclass(frozen=True)
class Supervised(Method):
    """See the module docstring. It has no hyperparameters."""

    name: ClassVar[str] = "supervised"
    title: ClassVar[str] = "Supervised V-Net"
    paper: ClassVar[str] = "arXiv:1606.04797"
    bibtex: ClassVar[str] = """@inproceedings{milletari2016vnet,
  author    = {Milletari, Fausto and Navab, Nassir and Ahmadi, Seyed-Ahmad},
  title     = {{V-Net}: Fully Convolutional Neural Networks for Volumetric Medical Image
               Segmentation},
  booktitle = {International Conference on 3D Vision (3DV)},
  pages     = {565--571},
  year      = {2016}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.PORT
    deviations: ClassVar[tuple[str, ...]] = (
        "The loss is half cross-entropy, half Dice, as in the field's supervised rows; the paper "
        "uses Dice alone.",
        "The network has batch normalisation and dropout and no residual connections.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label")
    sizes: ClassVar[Mapping[str, int]] = {"student": 9_448_866}

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """One network."""
        return nn.ModuleDict({"student": build()})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The supervised term."""
        logits = nets["student"](batch.image).logits
        return {"supervised": Term(supervised_loss(logits, batch.label))}

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The network."""
        return {"main": predictor(nets["student"])}
