r"""BCP, bidirectional copy-paste (Bai et al., CVPR 2023, arXiv:2305.00673).

A cuboid of one volume is pasted into another, so that labelled and unlabelled voxels are learnt in
one image. With :math:`M` zero inside a random cuboid, 2/3 of the volume along each axis, and one
outside, labelled volumes :math:`x_i, x_j` and unlabelled ones :math:`u_p, u_q` give

.. math:: x^{in} = x_j \odot M + u_p \odot (1 - M), \qquad
          x^{out} = u_q \odot M + x_i \odot (1 - M)

and :math:`L = L_{labelled} + \alpha L_{pseudo}`, each the half sum of cross-entropy and Dice over
its region of both mixed volumes. Pseudo-labels are the largest component of what an EMA teacher
segments. Before that, for the first part of the run, the student alone learns from labelled volumes
pasted into labelled ones; teacher and student go on from its weights.

====================  ==========================================  ==========================
term                  here                                        paper
====================  ==========================================  ==========================
``supervised``        `masked_loss` where the label is known      L^in and L^out, labelled
                                                                  region; pre-training's loss
``pseudo``            `masked_loss` where it is the teacher's     L^in and L^out, unlabelled
                                                                  region (alpha)
M                     `cuboid`, one for the batch                 zero-centred mask M
pseudo-labels         `largest_component` of the teacher's        Sec. 3, Y tilde
teacher               ``after_step``                              Sec. 3, EMA
====================  ==========================================  ==========================

Followed is the released trainer for the left atrium: 2,000 steps of pre-training and 15,000 of
self-training, hence ``pretraining=2/17``; its consistency weight is computed but never used. With
16 filters the student has 9,448,866 parameters, as the V-Net of the release without its unused
projection heads.

The published numbers are those of the checkpoint that is best on the *test* set, evaluated every
200 steps; and the second stage starts from the pre-trained checkpoint that is best on it. Here it
starts from the last. Of the test cases the largest component was kept on the left atrium.
Deviations: see `BCP.deviations`.

In runs cut to 1,000 steps (profile ``mini``, left atrium, 8 labels, three seeds) it stays below the
supervised network: Dice 52.1 in the mean of all checkpoints, 65.6. A longer pre-training changes
little: with half of the run (``pretraining=0.5``, seed 0) it stands at 45.5 when that ends, and at
58.1 at the end, where the default ends at 60.3. Of the common recipe's 2 labelled volumes a step
pre-training makes one mixed one, so each step has the labelled voxels of one volume and not of two,
and batches are normalised over it; with the authors' 4 + 4 (``recipe.labelled=4
recipe.unlabelled=4``), which make two, seed 0 ends at 68.8, 57.4 in the mean (48.5 by default). On
the hippocampus (18 labels) two of three seeds find the foreground at step 600 only, with the poly
rate at 900, and the mean is 62.3, the supervised network's 77.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from methods import components
from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Recipe, Step, Term
from methods.common import (
    check_range,
    cross_entropy,
    ema_,
    frozen,
    masked_dice_loss,
    predictor,
)


@final
@dataclass(frozen=True)
class BCP(Method):
    """See the module docstring. Volumes that are fewer than their partners are used again.

    pretraining: fraction of the run that uses labelled volumes only.
    alpha:       weight of the pseudo-labelled regions.
    side:        of the cuboid, as a fraction of each side of the volume.
    decay:       of the teacher's moving average, without warm-up.
    """

    name: ClassVar[str] = "bcp"
    title: ClassVar[str] = "BCP"
    paper: ClassVar[str] = "arXiv:2305.00673"
    bibtex: ClassVar[str] = """@inproceedings{bai2023bcp,
  author    = {Bai, Yunhao and Chen, Duowen and Li, Qingli and Shen, Wei and Wang, Yan},
  title     = {Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {11514--11524},
  year      = {2023}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED
    deviations: ClassVar[tuple[str, ...]] = (
        "Self-training starts from the last pre-trained weights; the release starts from those "
        "that are best on the test set.",
        "Momentum is kept between the stages; the release makes a new optimiser.",
        "The two kinds of mixed volumes pass through the student together, and so do the teacher's "
        "volumes: with two of each a batch, a pass of one kind would normalise by one volume.",
        "The cuboid may touch the far sides of the volume; in the release it ends a voxel before.",
        "The common recipe has two labelled and two unlabelled volumes a batch, not four and four.",
        "No largest component of a prediction is taken; on the left atrium the release takes it.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe(
        "authors",
        schedule="step",
        milestones=tuple((2_000 + 2_500 * drop) / 17_000 for drop in range(1, 6)),
        labelled=4,
        unlabelled=4,
        steps=17_000,
    )
    sizes: ClassVar[Mapping[str, int]] = {"student": 9_448_866, "teacher": 9_448_866}

    pretraining: float = 2 / 17
    alpha: float = 0.5
    side: float = 2 / 3
    decay: float = 0.99

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("pretraining", self.pretraining, 0, 1)
        check_range("alpha", self.alpha, 0)
        check_range("side", self.side, 0, 1)
        check_range("decay", self.decay, 0, 1)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """A student, and a teacher that starts as its copy."""
        student = build()
        return nn.ModuleDict({"student": student, "teacher": frozen(deepcopy(student))})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The supervised term, and after pre-training that of the pseudo-labels."""
        image, label, unlabelled = batch.image, batch.label, batch.unlabelled
        x, y, z = image.shape[2:]
        inside = cuboid((x, y, z), self.side, rng)
        if self._pretrains(step):
            (a, b), (label_a, label_b) = (halves(v, len(image)) for v in (image, label))
            logits = nets["student"](torch.where(inside, b, a)).logits
            mixed = torch.where(inside, label_b, label_a)
            return {"supervised": Term(masked_loss(logits, mixed, torch.ones_like(inside)))}

        size = max(len(image), len(unlabelled))
        (a, b), (label_a, label_b) = (halves(v, size) for v in (image, label))
        with torch.no_grad():
            odds = nets["teacher"](unlabelled).logits.diff(dim=1).squeeze(1)
        pseudo = largest_component(odds >= 0).long()
        (u, v), (pseudo_u, pseudo_v) = (halves(x, size) for x in (unlabelled, pseudo))
        mixed = torch.cat([torch.where(inside, u, a), torch.where(inside, b, v)])
        inward, outward = nets["student"](mixed).logits.chunk(2)
        known = masked_loss(inward, label_a, ~inside) + masked_loss(outward, label_b, inside)
        taught = masked_loss(inward, pseudo_u, inside) + masked_loss(outward, pseudo_v, ~inside)
        return {"supervised": Term(known), "pseudo": Term(taught, self.alpha)}

    def after_step(self, nets: nn.ModuleDict, step: Step) -> None:
        """Keep the teacher equal to the student until self-training, then move it towards it."""
        if self._pretrains(step):
            nets["teacher"].load_state_dict(nets["student"].state_dict())
        else:
            ema_(nets["teacher"], nets["student"], self.decay)

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The student, which the paper reports, and its moving average."""
        return {"main": predictor(nets["student"]), "teacher": predictor(nets["teacher"])}

    def _pretrains(self, step: Step) -> bool:
        return step.fraction < self.pretraining


def cuboid(shape: Sequence[int], side: float, rng: torch.Generator) -> Tensor:
    """Where a random cuboid lies in a volume: (X, Y, Z) bool, on the generator's device.

    Args:
        shape: X, Y and Z.
        side: of the cuboid, as a fraction of each; rounded down to whole voxels.
        rng: draws the start along each axis, uniform over those with which it fits.
    """
    inside = torch.ones((), dtype=torch.bool, device=rng.device)
    for n in shape:
        length = int(n * side)
        start = torch.randint(n - length + 1, (), generator=rng, device=rng.device)
        index = torch.arange(n, device=rng.device)
        inside = inside.unsqueeze(-1) & (start <= index) & (index < start + length)
    return inside


def halves(volumes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The volumes in two equal parts of at least `size` together, from the first again if needed.

    >>> halves(torch.arange(3), 3)
    (tensor([0, 1]), tensor([2, 0]))
    """
    index = torch.arange(size + size % 2, device=volumes.device) % len(volumes)
    first, second = volumes[index].chunk(2)
    return first, second


def largest_component(mask: Tensor) -> Tensor:
    """The largest component of each mask (B, X, Y, Z) bool, connected by faces, edges or corners.

    Found on the CPU, given back on the mask's device; an empty mask stays empty.
    """
    found = [components.largest_component(volume) for volume in mask.cpu().numpy()]
    return torch.from_numpy(np.stack(found)).to(mask.device)


def masked_loss(logits: Tensor, label: Tensor, region: Tensor) -> Tensor:
    """Half cross-entropy, half Dice loss, of a region; 0 if it is empty.

    Cross-entropy is averaged over the voxels of the region, Dice over volumes and both classes.

    Args:
        logits: (B, 2, X, Y, Z).
        label: (B, X, Y, Z) int64.
        region: (X, Y, Z) bool.
    """
    inside = region.to(logits.dtype)
    entropy = (cross_entropy(logits, label) * inside).sum() / (
        len(logits) * inside.sum()
    ).clamp_min(1)
    return 0.5 * (entropy + masked_dice_loss(logits.softmax(1), label, region))
