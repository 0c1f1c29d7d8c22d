r"""CauSSL: independence of networks made explicit (Miao et al., ICCV 2023, pp. 21426-21437).

Methods with several predictors assume that these are independent. CauSSL asks it of their weights:
no kernel of a branch should be a linear combination of the same layer's kernels in the other
branches. With :math:`W_b` the kernels of one layer of branch :math:`b` as rows, :math:`\bar W_b`
those of all other branches one below the other, without gradient, and learnt coefficients
:math:`A_b`,

.. math:: \min_W \max_A \sum_b D(W_b, A_b \bar W_b), \qquad
          D(W, V) = \mathrm{mean}_{layers}\,\mathrm{mean}_r \cos^2(W_r, V_r)

is added to CPS (two networks) or to MC-Net+ (one encoder, three decoders).

================  ==============================================  ==============================
term              here                                            paper
================  ==============================================  ==============================
``supervised``    half cross-entropy, half Dice, summed over      supervised loss
                  the branches
``cross``         hard labels of the other network (CPS form)     base method CPS
``consistency``   `mutual_consistency`, on unlabelled (MC form)   base method MC-Net+
``independence``  `dependence`; the networks minimise it          independence loss, min step
``dependence``    the same number; the coefficients A maximise    independence loss, max step
                  it (weight -1) as a player of their own
lambda(t)         ``weight`` times sigmoid ramp-up
================  ==============================================  ==============================

The layers are all convolutions of the two networks in the CPS form; in the MC form the decoders'
output convolution and all others that keep the resolution. Kernels of transposed convolutions are
rows by input channel, as in the release.

Followed are the released trainers for the pancreas: 5,000 steps, of which CPS begins after 400 and
independence after 500 (CPS form) or 40 (MC form); the ramp-up of 6,000 steps is longer than the
run (``rampup=1.2``); CPS has 0.3 of its usual weight of 0.1. In the MC form the release stops
the gradient of the independence of decoders 2 and 3, so that decoder 1 alone is made independent;
``variant="released"`` keeps that.

With 16 filters the CPS form has twice 9,448,866 parameters. The MC form has the 15,246,566 of
MC-Net+: of the 23.60 M that are published for it, 10.6 M are second and third deepest blocks that
no voxel ever passes, and its convolutions after interpolation are 1x1x1, not 3x3x3.

The published numbers are those of the last step. For CPS the release tests either network, and
"main" here is network 1; for MC it tests decoder 1.
Deviations: see the ``deviations`` of `CauSSLCPS` and `CauSSLMC`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    cross_pseudo_supervision,
    decoder_predictor,
    mutual_consistency,
    predictor,
    sigmoid_rampup,
    supervised_loss,
)

Variant = Literal["fixed", "released"]
Kernels = Sequence[Tensor]
"""The kernels of one branch's layers, each (rows, ...)."""

_OF_DECODER = re.compile(r"(?:^|\.)(\w+)\.(?:blocks\..+|output)\.weight")


@dataclass(frozen=True)
class CauSSL(Method):
    """What both forms share; see the module docstring.

    weight:      of the base method's term on unlabelled volumes after ramp-up.
    rampup:      fraction of the run until then; 0.3 is 6,000 of 20,000 steps.
    coefficient: weight of the independence for the networks.
    starts:      fraction of the run before the independence.
    """

    paper: ClassVar[str] = "ICCV 2023, pp. 21426-21437"
    bibtex: ClassVar[str] = """@inproceedings{miao2023caussl,
  author    = {Miao, Juzheng and Chen, Cheng and Liu, Furui and Wei, Hao and Heng, Pheng-Ann},
  title     = {{CauSSL}: Causality-inspired Semi-supervised Learning for Medical Image
               Segmentation},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  pages     = {21426--21437},
  year      = {2023}
}"""
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")
    authors: ClassVar[Recipe | None] = Recipe(
        "authors", schedule="step", milestones=(0.5,), steps=5_000
    )
    with_authors: ClassVar[Mapping[str, float]] = {"rampup": 1.2}
    adam: ClassVar[Mapping[str, Adam]] = MappingProxyType({"coefficients": Adam(2e-2)})
    deviations: ClassVar[tuple[str, ...]] = (
        "The coefficients take one step of Adam at every step of the networks; in the release they "
        "take 60 after every 60, which is as many.",
        "Independence begins at step 500 (CPS form) or 40 (MC form) of 5,000; in the release it "
        "waits for the coefficients' first 60, which come at step 540 or 60.",
        "The ramp-up is a fraction of the run and rises every step; the release's rises every 150 "
        "steps.",
    )

    weight: float = 0.1
    rampup: float = 0.3
    coefficient: float = 3.0
    starts: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        check_range("weight", self.weight, 0)
        check_range("rampup", self.rampup, 0)
        check_range("coefficient", self.coefficient, 0)
        check_range("starts", self.starts, 0, 1)

    def players(self, nets: nn.ModuleDict) -> dict[str, list[nn.Parameter]]:
        """The networks by the recipe's SGD, the coefficients A by Adam."""
        coefficients = list(nets["coefficients"].parameters())
        theirs = {id(p) for p in coefficients}
        return {
            "main": [p for p in nets.parameters() if id(p) not in theirs],
            "coefficients": coefficients,
        }

    def _independence(
        self, branches: Sequence[Kernels], nets: nn.ModuleDict, step: Step, learning: int
    ) -> dict[str, Term]:
        """Both players' terms; only the first `learning` branches are made independent."""
        if step.fraction < self.starts:
            return {}
        combine = [list(branch.parameters()) for branch in nets["coefficients"].children()]
        values = []
        for b, own in enumerate(branches):
            kernels = own if b < learning else [w.detach() for w in own]
            others = [*branches[:b], *branches[b + 1 :]]
            values.append(dependence(kernels, others, combine[b]))
        total = torch.stack(values).sum()
        return {
            "independence": Term(total, self.coefficient),
            "dependence": Term(total, -1.0, "coefficients"),
        }

    def _ramped(self, step: Step) -> float:
        return self.weight * sigmoid_rampup(step.fraction, self.rampup)


@final
@dataclass(frozen=True)
class CauSSLCPS(CauSSL):
    """Two networks that teach each other by hard labels.

    cross_starts: fraction of the run before the cross term.
    """

    name: ClassVar[str] = "caussl-cps"
    title: ClassVar[str] = "CauSSL (CPS)"
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED
    sizes: ClassVar[Mapping[str, int]] = {
        "first": 9_448_866,
        "second": 9_448_866,
        "coefficients": 996_360,
    }

    weight: float = 0.03
    cross_starts: float = 0.08

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        super().__post_init__()
        check_range("cross_starts", self.cross_starts, 0, 1)

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """Two networks, each with weights of its own, and the coefficients."""
        nets = nn.ModuleDict({"first": build(), "second": build()})
        nets["coefficients"] = coefficients([convolutions(net) for net in nets.values()])
        return nets

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The terms; each network sees labelled and unlabelled volumes in one pass."""
        images = torch.cat([batch.image, batch.unlabelled])
        first, second = nets["first"](images).logits, nets["second"](images).logits
        n = len(batch.image)
        supervised = supervised_loss(first[:n], batch.label)
        supervised = supervised + supervised_loss(second[:n], batch.label)
        terms = {"supervised": Term(supervised)}
        if step.fraction >= self.cross_starts:
            cross = cross_pseudo_supervision(first[n:], second[n:])
            terms["cross"] = Term(cross, self._ramped(step))
        branches = [convolutions(nets[name]) for name in ("first", "second")]
        return terms | self._independence(branches, nets, step, learning=2)

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """Either network."""
        return {"main": predictor(nets["first"]), "second": predictor(nets["second"])}


@final
@dataclass(frozen=True)
class CauSSLMC(CauSSL):
    """Three decoders that agree with each other's sharpened probabilities.

    temperature: of the sharpening; below 1 it sharpens.
    variant:     "fixed", or "released": only decoder 1 is made independent.
    """

    name: ClassVar[str] = "caussl-mc"
    title: ClassVar[str] = "CauSSL (MC)"
    fidelity: ClassVar[Fidelity] = Fidelity.RELEASED_FIXED
    deviations: ClassVar[tuple[str, ...]] = (
        *CauSSL.deviations,
        "All three decoders are made independent; in the release only decoder 1, which "
        "`variant=released` keeps.",
        "The network is that of MC-Net+: interpolation before a 3x3x3 convolution, where the "
        "release has a 1x1x1 convolution before interpolation, and no unused blocks.",
    )
    sizes: ClassVar[Mapping[str, int]] = {"student": 15_246_566, "coefficients": 382_488}

    starts: float = 0.008
    temperature: float = 0.5
    variant: Variant = "fixed"

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        super().__post_init__()
        check_range("temperature", self.temperature, 0.01, 1)
        check_choice("variant", self.variant, get_args(Variant))

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """One network with three decoders, and the coefficients."""
        student = build("vnet-three-decoders")
        own = coefficients(decoder_convolutions(student))
        return nn.ModuleDict({"student": student, "coefficients": own})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The terms, from one pass over all volumes."""
        outputs = nets["student"](torch.cat([batch.image, batch.unlabelled]))
        logits = [output.logits for output in outputs]
        n = len(batch.image)
        supervised = torch.stack([supervised_loss(x[:n], batch.label) for x in logits]).sum()
        odds = [x[n:, 1] - x[n:, 0] for x in logits]
        consistency = mutual_consistency(odds, self.temperature, detached=True)
        learning = 1 if self.variant == "released" else len(logits)
        branches = decoder_convolutions(nets["student"])
        return {
            "supervised": Term(supervised),
            "consistency": Term(consistency, self._ramped(step)),
        } | self._independence(branches, nets, step, learning)

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """Decoder 1, which the release tests."""
        return {"main": decoder_predictor(nets["student"], 0)}


def convolutions(net: nn.Module) -> list[Tensor]:
    """The kernels of all convolutions of a network, transposed ones among them."""
    return [p for p in net.parameters() if p.dim() == 5]


def decoder_convolutions(net: nn.Module) -> list[list[Tensor]]:
    """By decoder, the kernels of its blocks and its output convolution, in the same order."""
    found: dict[str, list[Tensor]] = {}
    for name, kernel in net.named_parameters():
        owner = _OF_DECODER.search(name)
        if owner and owner[1] != "encoder" and kernel.dim() == 5:
            found.setdefault(owner[1], []).append(kernel)
    return list(found.values())


def coefficients(branches: Sequence[Kernels]) -> nn.ModuleList:
    """A: for each branch and layer a row for each of its kernels, a column for each other's.

    Drawn from N(0, 0.001^2), from torch's global generator.
    """
    others = len(branches) - 1
    return nn.ModuleList(
        nn.ParameterList(
            nn.Parameter(1e-3 * torch.randn(len(kernel), others * len(kernel)))
            for kernel in kernels
        )
        for kernels in branches
    )


def dependence(own: Kernels, others: Sequence[Kernels], combine: Sequence[Tensor]) -> Tensor:
    """How well combinations of the others' kernels give one's own: D of the module docstring.

    Args:
        own: kernels (rows, ...) of each layer.
        others: those of every other branch, which get no gradient.
        combine: coefficients (rows, all others' rows) of each layer.

    Returns:
        In [0, 1]; 1 if each of one's own kernels is a multiple of its combination.
    """
    layers = []
    for kernel, theirs, a in zip(own, zip(*others, strict=True), combine, strict=True):
        combined = a @ torch.cat(theirs).flatten(1).detach()
        layers.append(F.cosine_similarity(combined, kernel.flatten(1)).square().mean())
    return torch.stack(layers).mean()
