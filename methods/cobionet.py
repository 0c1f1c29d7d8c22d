r"""Co-BioNet (Peiris et al., Nature Machine Intelligence 2023, 10.1038/s42256-023-00682-w).

Two V-Nets :math:`f_i` see the same volumes, and each learns from the other on the unlabelled ones.
A critic :math:`\psi_i` for each, voxel by voxel, learns to tell labels (1) from predictions of its
network (0): where it takes a prediction for a label, the prediction is certain and counts once
more for the other network; and networks try to deceive their critics. With :math:`p_i` foreground
probabilities, :math:`\bar p` one without gradient, and j the other network:

.. math:: L_i = \lambda (BCE + Dice)(p_i, y) + w(t) \Big[ BCE(p_i, \bar p_j)
          + E\, 1[\psi_j(p_j) > \tau]\, BCE(p_i, \bar p_j) + \mu BCE(\psi_i(p_i), 1) \Big]
.. math:: L_{\psi_i} = \tfrac12 [ BCE(\psi_i(\bar p_i), 0) + BCE(\psi_i(y), 1) ]

====================  ==========================================  ====================
term                  here                                        paper (Fig. 1)
====================  ==========================================  ====================
``supervised``        BCE and linear Dice, both networks          L_s
``cross``             BCE against the other's probabilities       L_u
``masked``            the same where the other's critic trusts    L_m
``adversarial``       its critic's verdict, both networks         min-max of networks
``critic1``           `critic_loss` of critic 1, by Adam          L_c of critic 1
``critic2``           `critic_loss` of critic 2, by Adam          L_c of critic 2
psi                   `Critic`, 1x1x1 convolutions                critic networks
w(t)                  ``weight`` times sigmoid ramp-up
====================  ==========================================  ====================

In the released code three of these do nothing. ``variant="released"`` is its method:

====================  ==========================================  ==============================
what                  ``fixed``                                   ``released``
====================  ==========================================  ==============================
``cross``             as above                                    a plain number, so without
                                                                  gradient: left out
``critic1``, 2        critics learn                               their loss is detached, so they
                                                                  stay as drawn: left out
``masked``            critic's mask for each voxel                mean over voxels before masking:
                                                                  BCE times the mask's mean, which
                                                                  is nearly 1
====================  ==========================================  ==============================

Defaults are those for the left atrium; for the pancreas the authors set ``supervised_weight=1``
and ``threshold=0.2``. The ramp-up lasts 6,000 of their 15,000 steps (``rampup=0.4``). The
published numbers are those of the two networks' checkpoints that were best, each for itself, on the
test cases (every 100 steps from 500), averaged, and of the largest component. Deviations: see
`CoBioNet.deviations`.

The critic's last layers, batch normalisation and a leaky ReLU, bound what a mask can leave out: a
score is below 0.4 where the normalised one is below -2.03, for at most a fifth of the voxels as
drawn. So ``masked`` is nearly ``cross`` (98 to 99 % of it on the left atrium), and both together
are about twice the one such term that the release trains.

In runs cut to 1,000 steps (profile ``mini``, left atrium, 8 labels, three seeds) it stays below the
supervised network, Dice 53.5 in the mean of all checkpoints to 65.6, and seed 0 falls from 60.7 to
31.9. What the networks teach each other does it: with ``weight=0`` that seed reaches 80.8, 76.9 in
the mean. From step 300 on, as the ramp-up is a part of the run, two terms ask for the other's
probabilities, as unsure as they are, at full weight each beside 0.7 of what 8 labels have taught by
then; their cross-entropies stay at a third of a nat, and ever less of the foreground is above one
half. With one such term (``variant=released``) seed 0 ends at 69.5, 60.4 in the mean (49.7 by
default). On the hippocampus (18 labels) nothing of this is seen: 81.6 at the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, Literal, final, get_args

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
from methods.common import (
    check_choice,
    check_range,
    cross_entropy,
    frozen,
    linear_dice_loss,
    mean_predictor,
    predictor,
    sigmoid_rampup,
)

Variant = Literal["fixed", "released"]

NETWORKS = ("net1", "net2")
CRITICS = ("critic1", "critic2")


@final
@dataclass(frozen=True)
class CoBioNet(Method):
    """See the module docstring.

    variant:           "fixed" or "released".
    weight:            of the terms on unlabelled volumes after ramp-up.
    rampup:            fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    supervised_weight: lambda.
    adversarial:       mu, weight of the adversarial term beside the other two.
    threshold:         tau, what a critic must say at least for its network to be trusted.
    """

    name: ClassVar[str] = "cobionet"
    title: ClassVar[str] = "Co-BioNet"
    paper: ClassVar[str] = "10.1038/s42256-023-00682-w"
    bibtex: ClassVar[str] = """@article{peiris2023cobionet,
  author  = {Peiris, Himashi and Hayat, Munawar and Chen, Zhaolin and Egan, Gary and
             Harandi, Mehrtash},
  title   = {Uncertainty-guided dual-views for semi-supervised volumetric medical image
             segmentation},
  journal = {Nature Machine Intelligence},
  volume  = {5},
  number  = {7},
  pages   = {724--738},
  year    = {2023},
  doi     = {10.1038/s42256-023-00682-w}
}"""
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED_FIXED
    deviations: ClassVar[tuple[str, ...]] = (
        "Critics learn, the cross term has a gradient, and the mask acts on voxels: in the release "
        "none of this happens (`variant=released`).",
        "Networks have two channels and softmax, not one and a sigmoid: the same function of the "
        "logit difference, with twice the parameters in that layer.",
        "A network sees all volumes in one pass; in the release the labelled, the unlabelled and "
        "all of them in three, each with batch statistics of its own.",
        "A critic judges predictions and labels in one pass. In the release they are two, and its "
        "last layer but one is a batch normalisation: both then have the same mean score, whatever "
        "it learns. A third pass there, over the unlabelled volumes alone, makes the mask.",
        "Critics learn by Adam at the constant rate of 1e-4; the release names AdamW with decay "
        "0.01 and a cosine, which never act.",
        "Learning rates of the networks follow the recipe; the release's cosine has its period in "
        "epochs but moves every step, so that the rate swings up and down.",
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
        "Volumes are augmented as the dataset's card says; the release only crops.",
        "No largest component is taken; in the release it is, always.",
    )
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe("authors", steps=15_000)
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 0.4}
    adam: ClassVar[Mapping[str, Adam]] = MappingProxyType({name: Adam(1e-4) for name in CRITICS})
    sizes: ClassVar[Mapping[str, int]] = {
        "net1": 9_448_866,
        "net2": 9_448_866,
        "critic1": 2_866,
        "critic2": 2_866,
    }

    variant: Variant = "fixed"
    weight: float = 1.0
    rampup: float = 0.3
    supervised_weight: float = 0.7
    adversarial: float = 0.01
    threshold: float = 0.4

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_choice("variant", self.variant, get_args(Variant))
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0, 1)
        check_range("supervised_weight", self.supervised_weight, 0)
        check_range("adversarial", self.adversarial, 0)
        check_range("threshold", self.threshold, 0, 1)

    @property
    def released(self) -> bool:
        """Whether the released code is followed where it does not do what it says."""
        return self.variant == "released"

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """Two networks and two critics, all with weights of their own."""
        critics: dict[str, nn.Module] = {name: Critic() for name in CRITICS}
        if self.released:
            critics = {name: frozen(critic) for name, critic in critics.items()}
        return nn.ModuleDict({name: build() for name in NETWORKS} | critics)

    def players(self, nets: nn.ModuleDict) -> dict[str, list[nn.Parameter]]:
        """Both networks together; each critic, unless they do not learn."""
        main = [p for name in NETWORKS for p in nets[name].parameters()]
        critics = {} if self.released else {n: list(nets[n].parameters()) for n in CRITICS}
        return {"main": main} | critics

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The terms, from one pass of each network and of each critic."""
        n = len(batch.image)
        images = torch.cat([batch.image, batch.unlabelled])
        logits = [nets[name](images).logits for name in NETWORKS]
        p = [x.softmax(1)[:, 1:] for x in logits]
        truth = batch.label[: 0 if self.released else n].unsqueeze(1).to(images.dtype)
        judged = [nets[name](torch.cat([x, truth])) for name, x in zip(CRITICS, p, strict=True)]
        verdicts = [x[: len(images)] for x in judged]
        entropies = cross_entropies([x[n:] for x in logits], [x[n:].detach() for x in p])
        trusted = [x[n:].sigmoid() > self.threshold for x in verdicts]

        weight = self.weight * sigmoid_rampup(step.fraction, self.rampup)
        terms = {
            "supervised": Term(
                supervised([x[:n] for x in logits], batch.label), self.supervised_weight
            ),
            "masked": Term(masked_mean(entropies, trusted, by_voxel=not self.released), weight),
            "adversarial": Term(
                torch.stack([bce(x, torch.ones_like(x)).mean() for x in verdicts]).sum(),
                weight * self.adversarial,
            ),
        }
        if not self.released:
            terms["cross"] = Term(torch.stack([x.mean() for x in entropies]).sum(), weight)
            for name, x in zip(CRITICS, judged, strict=True):
                terms[name] = Term(critic_loss(x[: len(images)], x[len(images) :]), player=name)
        return terms

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """The mean of both networks, and each of them."""
        first, second = (predictor(nets[name]) for name in NETWORKS)
        return {"main": mean_predictor(first, second), "net1": first, "net2": second}


class Critic(nn.Module):
    """Foreground probabilities (B, 1, X, Y, Z) to a score of each voxel of the same shape.

    Four times: 1x1x1 convolution, batch normalisation, leaky ReLU; so it sees one voxel at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv3d(inputs, width, 1, bias=False),
                    nn.BatchNorm3d(width),
                    nn.LeakyReLU(0.2, inplace=True),
                )
                for inputs, width in pairwise((1, 16, 32, 64, 1))
            )
        )

    def forward(self, p: Tensor) -> Tensor:
        """Judge; the sigmoid of a score is the probability that this is a label."""
        score: Tensor = self.layers(p)
        return score


def supervised(logits: Sequence[Tensor], label: Tensor) -> Tensor:
    """Cross-entropy and foreground Dice with linear denominators, summed over the networks."""
    return torch.stack(
        [
            cross_entropy(x, label).mean()
            + linear_dice_loss(x.softmax(1)[:, 1], label == 1, smooth=1e-5)
            for x in logits
        ]
    ).sum()


def cross_entropies(logits: Sequence[Tensor], p: Sequence[Tensor]) -> list[Tensor]:
    """Binary cross-entropy of each network against the other's probability, for each voxel.

    Args:
        logits: (U, 2, X, Y, Z) of two networks.
        p: their foreground probabilities without gradient, (U, 1, X, Y, Z).

    Returns:
        (U, 1, X, Y, Z) of both networks.
    """
    return [bce(x[:, 1:] - x[:, :1], other) for x, other in zip(logits, reversed(p), strict=True)]


def masked_mean(
    entropies: Sequence[Tensor], trusted: Sequence[Tensor], *, by_voxel: bool
) -> Tensor:
    """Mean over all voxels of what each network learns where the other's critic trusts, summed.

    Not `by_voxel`: product of the two means, as in the release.
    """
    values = []
    for trust, entropy in zip(reversed(trusted), entropies, strict=True):
        mask = trust.to(entropy.dtype)
        values.append((mask * entropy).mean() if by_voxel else mask.mean() * entropy.mean())
    return torch.stack(values).sum()


def critic_loss(on_predictions: Tensor, on_labels: Tensor) -> Tensor:
    """Half the cross-entropy of taking predictions for 0, half that of taking labels for 1."""
    fake = bce(on_predictions, torch.zeros_like(on_predictions)).mean()
    real = bce(on_labels, torch.ones_like(on_labels)).mean()
    return 0.5 * (fake + real)


def bce(score: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of the sigmoid of scores, unreduced."""
    return F.binary_cross_entropy_with_logits(score, target, reduction="none")
