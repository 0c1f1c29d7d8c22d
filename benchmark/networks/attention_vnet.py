"""A V-Net whose skips pass through attention gates, the network of TAC.

As in the released code of Chen et al. (TMI 2023): at each level of the decoder a map in [0, 1],
computed from what comes from below and from the skip, multiplies the skip.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from benchmark.networks.vnet import Decoder, Encoder
from methods.base import NetOutput


class AttentionVNet(nn.Module):
    """One encoder, one decoder with transposed convolutions and gated skips.

    `maps` of its output are those of the encoder's levels, full resolution first, then the gated
    skips in the same order. Arguments and errors are those of `VNet`.
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
        gates = [
            Gate(width * 2**level, width * 2 ** (level - 1 if level else 1))
            for level in reversed(range(levels - 1))
        ]
        self.decoder = GatedDecoder(gates, classes, width, levels, dropout, distance_head)

    def forward(self, image: Tensor) -> NetOutput:
        """Images (B, C, X, Y, Z) to a `NetOutput`."""
        output: NetOutput = self.decoder(self.encoder(image))
        return output


class GatedDecoder(Decoder):
    """A `Decoder` with a gate for each skip, coarsest first."""

    def __init__(
        self,
        gates: Sequence[Gate],
        classes: int,
        width: int,
        levels: int,
        dropout: float,
        distance_head: bool,
    ) -> None:
        super().__init__(classes, width, levels, dropout, distance_head=distance_head)
        self.gates = nn.ModuleList(gates)

    def forward(self, maps: Sequence[Tensor]) -> NetOutput:
        """Decode."""
        *skips, x = maps
        gated = []
        for up, gate, convolve, skip in zip(
            self.ups, self.gates, self.blocks, reversed(skips), strict=True
        ):
            x = up(x)
            gated.append(gate(x, skip))
            x = convolve(gated[-1] + x)
        return self.finish(x)._replace(maps=(*maps, *reversed(gated)))


class Gate(nn.Module):
    """Additive attention: a skip times sigmoid(psi(ReLU(a(below) + b(skip)))).

    a, b and psi are 1x1x1 convolutions with batch normalisation, the last to one channel.

    Args:
        width: channels of both inputs.
        inner: channels of the sum.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.below = nn.Sequential(nn.Conv3d(width, inner, 1), nn.BatchNorm3d(inner))
        self.skip = nn.Sequential(nn.Conv3d(width, inner, 1), nn.BatchNorm3d(inner))
        self.attention = nn.Sequential(
            nn.ReLU(), nn.Conv3d(inner, 1, 1), nn.BatchNorm3d(1), nn.Sigmoid()
        )

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """Gate the skip."""
        gated: Tensor = skip * self.attention(self.below(below) + self.skip(skip))
        return gated
