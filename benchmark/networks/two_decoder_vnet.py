"""A V-Net with two decoders that differ in how they go up.

The first uses transposed convolutions; the second enlarges and convolves 3x3x3. How it enlarges
depends on whom it follows: by repeating each voxel (nearest neighbour) in the released code of MRPL
(Su et al., MedIA 2024), whose network has the size that the TCSeg paper reports; trilinearly in
that of MC-Net (Wu et al., MICCAI 2021), of the same size.
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmark.networks.vnet import Decoder, Encoder
from methods.base import NetOutput


class TwoDecoderVNet(nn.Module):
    """One encoder shared by a transposed-convolution and a nearest-neighbour decoder.

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
        self.nearest = Decoder(classes, width, levels, dropout, "nearest", distance_head)

    def forward(self, image: Tensor) -> tuple[NetOutput, NetOutput]:
        """Images (B, C, X, Y, Z) to the outputs of decoder 1 and decoder 2."""
        maps = self.encoder(image)
        return self.transposed(maps), self.nearest(maps)


class TrilinearTwoDecoderVNet(nn.Module):
    """One encoder shared by a transposed-convolution and a trilinear decoder.

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

    def forward(self, image: Tensor) -> tuple[NetOutput, NetOutput]:
        """Images (B, C, X, Y, Z) to the outputs of decoder 1 and decoder 2."""
        maps = self.encoder(image)
        return self.transposed(maps), self.trilinear(maps)
