"""Inputs of the comparisons with the authors' released code.

A test that is named "..._of_the_released_code" holds a figure that public code gave for these
tensors, with the repository, commit, file and function beside it. They are drawn from no generator,
so that anyone can make them again in any language.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from benchmark.networks.vnet import Decoder, Encoder
from methods.base import NetOutput, Term

Score = Callable[[Tensor], Tensor]


def waves(*shape: int, phase: float = 0.0) -> Tensor:
    """2 sin(i² / 7 + phase) for the i-th element in C order, in float64."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return 2 * torch.sin(i * i / 7 + phase).reshape(shape)


def halves(*shape: int, phase: float = 0.0) -> Tensor:
    """Labels in {0, 1}: where `waves` are above 0.5, int64."""
    return (waves(*shape, phase=phase) > 0.5).long()


def scored(logits: Tensor) -> NetOutput:
    """The output of a decoder with these scores, and no features."""
    return NetOutput(logits, logits[:, :0])


class Given(nn.Module):
    """A network that gives these outputs, one a decoder, whatever it is shown."""

    def __init__(self, *outputs: NetOutput) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, image: Tensor) -> NetOutput | tuple[NetOutput, ...]:
        return self.outputs if len(self.outputs) > 1 else self.outputs[0]


def given(*logits: Tensor) -> Given:
    """The network whose decoders have these scores, and no features."""
    return Given(*map(scored, logits))


class VoxelByVoxel(nn.Module):
    """A network whose scores are functions of the voxel, a pair of them for each decoder."""

    def __init__(self, *decoders: tuple[Score, Score]) -> None:
        super().__init__()
        self.decoders = decoders

    def forward(self, image: Tensor) -> NetOutput | tuple[NetOutput, ...]:
        scores = [torch.cat([score(image) for score in pair], 1) for pair in self.decoders]
        return given(*scores)(image)


def objective(terms: Mapping[str, Term]) -> Tensor:
    """What the networks minimise: the weighted sum of the terms of the player "main"."""
    return torch.stack([t.weight * t.value for t in terms.values() if t.player == "main"]).sum()


def slopes(value: Tensor, tensors: Sequence[Tensor]) -> list[float]:
    """Norm of the gradient of a value to each of the tensors."""
    return [g.norm().item() for g in torch.autograd.grad(value, tensors, retain_graph=True)]


class OneByOne(nn.Module):
    """A network that gives these outputs one after another, whatever it is shown."""

    def __init__(self, *outputs: object) -> None:
        super().__init__()
        self.left = iter(outputs)

    def forward(self, image: Tensor) -> object:
        return next(self.left)


def in_their_order(*parts: Encoder | Decoder) -> list[nn.Parameter]:
    """Parameters of parts of a V-Net as the field's V-Nets list them: from input to output.

    Theirs has the convolution between two levels after the level that it leaves, ours has a list
    of each kind.
    """
    modules: list[nn.Module | None] = []
    for part in parts:
        pairs = (part.blocks, part.downs) if isinstance(part, Encoder) else (part.ups, part.blocks)
        modules += [module for pair in zip_longest(*pairs) for module in pair]
        modules += [part.output] if isinstance(part, Decoder) else []
    return [p for module in modules if module is not None for p in module.parameters()]


@torch.no_grad()
def fill(parameters: Iterable[nn.Parameter], phase: float = 0.0) -> None:
    """Give the n-th parameter the `waves` of phase n + `phase`."""
    for n, parameter in enumerate(parameters):
        parameter.copy_(waves(*parameter.shape, phase=n + phase))


def sum_and_norm(x: Tensor) -> tuple[float, float]:
    """Two figures that tell a tensor."""
    return x.sum().item(), x.norm().item()
