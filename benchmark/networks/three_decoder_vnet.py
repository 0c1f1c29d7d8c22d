"""A V-Net with three decoders that differ in how they go up, the network of MC-Net+.

Transposed convolutions; trilinear interpolation and a 3x3x3 convolution; nearest-neighbour
enlargement and a 3x3x3 convolution (Wu et al., MedIA 2022, and their released code).
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmark.networks.vnet import Decoder, Encoder
from methods.base import NetOutput


class ThreeDecoderVNet(nn.Module):
    """One encoder shared by a transposed-convolution, a trilinear and a nearest-neighbour decoder.

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
        self.transposed = Decoder(classes, width, levels, dropout, "transposed", distance_head)
        self.trilinear = Decoder(classes, width, levels, dropout, "trilinear", distance_head)
        self.nearest = Decoder(classes, width, levels, dropout, "nearest", distance_head)

    def forward(self, image: Tensor) -> tuple[NetOutput, NetOutput, NetOutput]:
        """Images (B, C, X, Y, Z) to the outputs of decoders 1, 2 and 3."""
        maps = self.encoder(image)
        return self.transposed(maps), self.trilinear(maps), self.nearest(maps)
