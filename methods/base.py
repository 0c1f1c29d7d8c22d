"""What a method is: a frozen dataclass of hyperparameters plus functions over a `ModuleDict`.

Everything that learns or remembers lives in the `ModuleDict` that `init` returns (memory banks and
prototypes as buffers), so moving, saving and resuming are written once, elsewhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Predictor = Callable[[Tensor], Tensor]
"""Maps images (B, C, X, Y, Z) to class probabilities (B, 2, X, Y, Z)."""


class Fidelity(StrEnum):
    """Whom a method's file follows where paper and released code part."""

    PAPER = "paper"
    RELEASED = "released"
    RELEASED_FIXED = "released-fixed"
    PORT = "port"


class NetOutput(NamedTuple):
    """What one decoder of a network gives.

    logits:   (B, 2, X, Y, Z) class scores.
    features: (B, F, X, Y, Z) embedding of each voxel, the input of the last convolution; of the
              coarser outputs of a pyramid at their level's resolution.
    distance: (B, 1, X, Y, Z) signed distance in [-1, 1], negative inside; None without that head.
    deepest:  (B, D, X', Y', Z') what the encoder gives at its coarsest level; of "vnet" only.
    maps:     what the encoder gives at each level, full resolution first, then the gated skips in
              the same order; of "vnet-attention" only.
    """

    logits: Tensor
    features: Tensor
    distance: Tensor | None = None
    deepest: Tensor | None = None
    maps: tuple[Tensor, ...] = ()


class NetworkFactory(Protocol):
    """Builds a network by its name in the run's width, depth and channels.

    "vnet" returns a module giving a `NetOutput`; "vnet-two-decoders" gives a tuple of two.
    "vnet-two-decoders-trilinear" gives two, "vnet-three-decoders" three, for MC-Net and MC-Net+.
    "vnet-three-decoders-complementary" gives three that differ in their skips, for CC-Net.
    "vnet-pyramid" gives one for each level of its decoder, finest first, all as large as the image.
    "vnet-half-features" gives one, its features from half the resolution, for CPCL and AC-MT.
    "vnet-three-heads" gives three, for CoraNet.
    "vnet-attention" gives one; its skips pass through attention gates, for TAC.
    "vnet-resnet" gives one; its encoder is a 3D ResNet-34, for MCF.
    Each call draws fresh weights from the run's `init` axis.

    The run's size, for layers that a method adds itself, such as a critic:

    channels: of the image.
    width:    channels at full resolution, doubled at each level.
    levels:   resolutions.
    dropout:  probability of dropping a channel.
    """

    channels: int
    width: int
    levels: int
    dropout: float

    def __call__(self, name: str = "vnet", *, distance_head: bool = False) -> nn.Module:
        """Build the network."""


@dataclass(frozen=True)
class Batch:
    """What one step trains on. Augmented crops, on the run's device.

    image:      (L, C, X, Y, Z) float32, labelled.
    label:      (L, X, Y, Z) int64 in {0, 1}.
    unlabelled: (U, C, X, Y, Z) float32; U = 0 unless the method's `inputs` name it.
    extras:     further inputs the method declared, by name:
                "sdf": (L, 1, X, Y, Z), signed distance of the label normalised to [-1, 1],
                negative inside;
                "overlap": (L + U, C, X, Y, Z), of each volume, labelled first, a second crop that
                overlaps the first;
                "shift": (L + U, 3) int64 on the CPU, where the second crop begins minus where the
                first does, in voxels: voxel v of the second is voxel v + shift of the first.
    """

    image: Tensor
    label: Tensor
    unlabelled: Tensor
    extras: Mapping[str, Tensor]


@dataclass(frozen=True)
class Step:
    """Where in the run we are: step `index` (from 0) of `total`.

    Methods measure schedules in fractions of a run, so they mean the same in every profile.
    """

    index: int
    total: int

    @property
    def fraction(self) -> float:
        """Part of the run that lies behind, in [0, 1)."""
        return self.index / self.total


@dataclass(frozen=True)
class Term:
    """One named term of the objective: an unweighted scalar, its weight, and who learns from it."""

    value: Tensor
    weight: float = 1.0
    player: str = "main"


@dataclass(frozen=True)
class Recipe:
    """How a method is optimised. `common` (the defaults) is the TCSeg paper's, Appendix B.

    learning_rate, momentum, weight_decay: of SGD.
    schedule:   "constant"; "step" multiplies by 0.1 at each fraction in `milestones`;
                "poly" is (1 - t/T)^0.9.
    milestones: fractions of the run, for "step".
    labelled, unlabelled: volumes a batch.
    steps:      length in steps at the paper's scale (of 20,000); other profiles scale it.
    """

    name: str = "common"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["constant", "step", "poly"] = "constant"
    milestones: tuple[float, ...] = ()
    labelled: int = 2
    unlabelled: int = 2
    steps: int = 20_000

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.schedule not in ("constant", "step", "poly"):
            raise ValueError(f"schedule={self.schedule!r}; known: constant, step, poly")
        for name in ("learning_rate", "labelled", "unlabelled", "steps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}; it must be above 0 and finite")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must lie in [0, 1)")
        for before, m in pairwise((0.0, *self.milestones)):
            if not before < m < 1:
                raise ValueError(
                    f"milestones={self.milestones}; they must rise, above 0 and below 1"
                )

    def learning_rate_at(self, step: Step) -> float:
        """Learning rate of one step."""
        if self.schedule == "step":
            return float(
                self.learning_rate * 0.1 ** sum(step.fraction >= m for m in self.milestones)
            )
        if self.schedule == "poly":
            return float(self.learning_rate * (1 - step.fraction) ** 0.9)
        return self.learning_rate


@dataclass(frozen=True)
class Adam:
    """Optimiser of a player that does not learn by the recipe's SGD; constant rate, no decay."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Method(ABC):
    """A semi-supervised method; its dataclass fields are its hyperparameters.

    Class variables describe it: `name` (what users type), `title`, `paper` (DOI or arXiv id),
    `bibtex`, `version` (bump when its numbers change; part of every run's identity), `fidelity`
    with `deviations` (each a sentence), `inputs` (what a batch must carry: "image", "label",
    "unlabelled", or an extra such as "sdf"), `authors` (their own recipe, where it is known),
    `with_authors` (hyperparameters that it sets, such as a ramp-up in fractions of its length),
    `adam` (by player, for those that do not learn by the recipe's SGD: critics, as a rule) and
    `sizes` (parameters of each network at the paper's scale, so that listings need not build them;
    what is left out is counted).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    bibtex: ClassVar[str]
    version: ClassVar[int] = 1
    fidelity: ClassVar[Fidelity]
    deviations: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[tuple[str, ...]]
    authors: ClassVar[Recipe | None] = None
    with_authors: ClassVar[Mapping[str, float]] = MappingProxyType({})
    adam: ClassVar[Mapping[str, Adam]] = MappingProxyType({})
    sizes: ClassVar[Mapping[str, int]] = MappingProxyType({})

    @abstractmethod
    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        """Build all networks. Networks that are only averaged or copied have no gradient."""

    @abstractmethod
    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        """The terms of this step. All randomness but dropout comes from `rng` (on the device)."""

    @abstractmethod
    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        """Ways to turn the networks into a segmentation; "main" is what the paper reports."""

    # Optional for a method, hence empty and not abstract.
    def after_step(self, nets: nn.ModuleDict, step: Step) -> None:  # noqa: B027
        """Update what does not learn by gradient: EMA teachers, memory banks, changes of stage."""

    def players(self, nets: nn.ModuleDict) -> dict[str, list[nn.Parameter]]:
        """Parameters per optimiser. By default everything with a gradient is "main"."""
        return {"main": [p for p in nets.parameters() if p.requires_grad]}
