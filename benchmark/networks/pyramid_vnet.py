"""A V-Net with an output at each level of its decoder, the pyramid that URPC needs.

As in Luo et al. (MICCAI 2021), dropout and a 1x1x1 convolution follow each level of the decoder,
and what it gives is enlarged trilinearly to the resolution of the image.
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmark.networks.vnet import Decoder, Encoder, Trilinear
from methods.base import NetOutput


class PyramidVNet(nn.Module):
    """One encoder and one decoder with `levels` - 1 outputs, finest first.

    Arguments and errors are those of `VNet`; `distance_head` gives each output one.
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
        self.decoder = Decoder(classes, width, levels, dropout, distance_head=distance_head)
        self.heads = nn.ModuleList(
            Head(classes, width * 2**i, 2**i, dropout, distance_head) for i in range(1, levels - 1)
        )

    def forward(self, image: Tensor) -> tuple[NetOutput, ...]:
        """Images (B, C, X, Y, Z) to the outputs; `features` keep their level's resolution."""
        *coarser, finest = self.decoder.stages(self.encoder(image))
        outputs = (head(x) for head, x in zip(self.heads, reversed(coarser), strict=True))
        return self.decoder.finish(finest), *outputs


class Head(nn.Module):
    """The output of a coarse level: a map (B, width, X/f, Y/f, Z/f) to a `NetOutput`."""

    def __init__(
        self, classes: int, width: int, factor: int, dropout: float, distance_head: bool
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout3d(dropout)
        self.output = nn.Conv3d(width, classes, 1)
        self.distance = nn.Sequential(nn.Conv3d(width, 1, 1), nn.Tanh()) if distance_head else None
        self.enlarge = Trilinear(factor, align_corners=False)

    def forward(self, x: Tensor) -> NetOutput:
        """Predict, then enlarge."""
        features = self.dropout(x)
        distance = None if self.distance is None else self.enlarge(self.distance(features))
        return NetOutput(self.enlarge(self.output(features)), features, distance)
