"""A V-Net with three heads on one decoder, the network of CoraNet.

All but the last block of the decoder is shared; each head has a block at full resolution, dropout
and an output convolution of its own (Shi et al., TMI 2022, and their released code).
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmark.networks.vnet import Encoder, block, check, convolutions, doubled
from methods.base import NetOutput


class ThreeHeadVNet(nn.Module):
    """One encoder, one decoder and three heads of one form, each with weights of its own.

    Arguments and errors are those of `VNet`; `distance_head` gives each head one.
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
        check("classes", classes, 2)
        self.encoder = Encoder(channels, width, levels, dropout)
        above = list(range(levels - 2, -1, -1))
        widths = [width * 2**i for i in above]
        self.ups = nn.ModuleList(doubled(2 * w, w, "transposed") for w in widths)
        self.blocks = nn.ModuleList(
            block(w, w, convolutions(i)) for i, w in zip(above[:-1], widths[:-1], strict=True)
        )
        self.heads = nn.ModuleList(Head(classes, width, dropout, distance_head) for _ in range(3))

    def forward(self, image: Tensor) -> tuple[NetOutput, NetOutput, NetOutput]:
        """Images (B, C, X, Y, Z) to the outputs of heads 1, 2 and 3."""
        *skips, x = self.encoder(image)
        blocks = [*self.blocks, nn.Identity()]
        for up, convolve, skip in zip(self.ups, blocks, reversed(skips), strict=True):
            x = convolve(up(x) + skip)
        first, second, third = (head(x) for head in self.heads)
        return first, second, third


class Head(nn.Module):
    """A map (B, width, X, Y, Z) to a `NetOutput`."""

    def __init__(self, classes: int, width: int, dropout: float, distance_head: bool) -> None:
        super().__init__()
        self.block = block(width, width, convolutions(0))
        self.dropout = nn.Dropout3d(dropout)
        self.output = nn.Conv3d(width, classes, 1)
        self.distance = nn.Sequential(nn.Conv3d(width, 1, 1), nn.Tanh()) if distance_head else None

    def forward(self, x: Tensor) -> NetOutput:
        """Predict."""
        features = self.dropout(self.block(x))
        distance = None if self.distance is None else self.distance(features)
        return NetOutput(self.output(features), features, distance)
