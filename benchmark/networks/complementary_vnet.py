"""A V-Net with three decoders that differ in which skips they see, the network of CC-Net.

As in the released code of Huang et al. (Computers in Biology and Medicine, 2023), decoder 1 is a
V-Net's, decoder 2 sees the skips of levels 0, 2, ... only and decoder 3 those of levels 1, 3, ...,
counted from full resolution down. All three use transposed convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from benchmark.networks.vnet import Decoder, Encoder
from methods.base import NetOutput


class ComplementaryVNet(nn.Module):
    """One encoder shared by a decoder with all skips and two with complementary halves of them.

    Arguments and errors are those of `VNet`; `distance_head` gives each decoder one.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        width: int = 16,
        levels: int = 5,
        dropout: float = 0.5,
        distance_head: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, width, levels, dropout)
        self.full = Decoder(classes, width, levels, dropout, distance_head=distance_head)
        self.even = EvenDecoder(classes, width, levels, dropout, distance_head=distance_head)
        self.odd = OddDecoder(classes, width, levels, dropout, distance_head=distance_head)

    def forward(self, image: Tensor) -> tuple[NetOutput, NetOutput, NetOutput]:
        """Images (B, C, X, Y, Z) to the outputs of decoders 1, 2 and 3."""
        maps = self.encoder(image)
        return self.full(maps), self.even(maps), self.odd(maps)


class HalfDecoder(Decoder):
    """A `Decoder` that adds the skips of every second level only, from level `first` on."""

    first: ClassVar[int]

    def stages(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The map of each level on the way up, coarsest first; the last has full resolution."""
        *skips, x = maps
        found = []
        for level, up, convolve in zip(
            reversed(range(len(skips))), self.ups, self.blocks, strict=True
        ):
            x = up(x)
            if level % 2 == self.first:
                x = x + skips[level]
            x = convolve(x)
            found.append(x)
        return found


class EvenDecoder(HalfDecoder):
    """With the skip of full resolution."""

    first: ClassVar[int] = 0


class OddDecoder(HalfDecoder):
    """Without the skip of full resolution."""

    first: ClassVar[int] = 1
