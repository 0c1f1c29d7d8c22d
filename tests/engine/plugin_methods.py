"""Methods that misbehave, as a plugin file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from methods.base import Batch, Fidelity, Method, NetworkFactory, Predictor, Step, Term
from methods.common import supervised_loss


@dataclass(frozen=True)
class _Plain(Method):
    title: ClassVar[str] = "for tests"
    paper: ClassVar[str] = "arXiv:0000.00000"
    bibtex: ClassVar[str] = "@misc{test}"
    fidelity: ClassVar[Fidelity] = Fidelity.PAPER
    inputs: ClassVar[tuple[str, ...]] = ("image", "label")

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        return nn.ModuleDict({"net": build()})

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        return {"main": lambda x: nets["net"](x).logits.softmax(1)}

    def _supervised(self, nets: nn.ModuleDict, batch: Batch) -> torch.Tensor:
        return supervised_loss(nets["net"](batch.image).logits, batch.label)


@final
@dataclass(frozen=True)
class Explodes(_Plain):
    """Its loss is NaN from a step on, in some seeds only."""

    name: ClassVar[str] = "explodes"
    at: int = 5

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        value = self._supervised(nets, batch)
        return {"supervised": Term(value * float("nan") if step.index >= self.at else value)}


@final
@dataclass(frozen=True)
class Crashes(_Plain):
    """Raises, as a method with a bug does."""

    name: ClassVar[str] = "crashes"

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        raise KeyError("a bug")


@final
@dataclass(frozen=True)
class Slows(_Plain):
    """Its second stage takes longer."""

    name: ClassVar[str] = "slows"

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        if step.fraction >= 0.5:
            time.sleep(1.0)
        return {"supervised": Term(self._supervised(nets, batch))}


@final
@dataclass(frozen=True)
class Devours(_Plain):
    """Runs out of memory."""

    name: ClassVar[str] = "devours"

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        raise torch.OutOfMemoryError("tried to allocate 1 TiB")


@final
@dataclass(frozen=True)
class Blind(_Plain):
    """Predicts NaN: training went well, the result is none."""

    name: ClassVar[str] = "blind"

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        return {"supervised": Term(self._supervised(nets, batch))}

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        return {"main": lambda x: nets["net"](x).logits.softmax(1) * float("nan")}


@final
@dataclass(frozen=True)
class Unbuildable(_Plain):
    """Its networks cannot be made."""

    name: ClassVar[str] = "unbuildable"

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        return nn.ModuleDict({"net": build(), "norm": nn.GroupNorm(3, 4)})

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        return {"supervised": Term(self._supervised(nets, batch))}
