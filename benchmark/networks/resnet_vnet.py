"""A 3D ResNet-34 with the decoder of a V-Net, the second network of MCF.

As in the released code of MCF (Wang et al., CVPR 2023): a 7x7x7 convolution at full resolution, no
pooling, then stages of 3, 4, 6 and 3 basic blocks (He et al., CVPR 2016, arXiv:1512.03385, Fig. 5
left), each of which halves the resolution and doubles the channels, so that its maps have the sizes
of a V-Net's. The encoder has no dropout.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from benchmark.networks.vnet import Decoder, check, check_sides
from methods.base import NetOutput

BLOCKS = (3, 4, 6, 3)
"""Basic blocks of each stage of a ResNet-34."""


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions around which the input passes; halves the resolution if `down`."""

    def __init__(self, inputs: int, width: int, *, down: bool) -> None:
        super().__init__()
        stride = 2 if down else 1
        self.residual = nn.Sequential(
            nn.Conv3d(inputs, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            nn.Conv3d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm3d(width),
        )
        self.shortcut = (
            nn.Sequential(nn.Conv3d(inputs, width, 1, stride, bias=False), nn.BatchNorm3d(width))
            if down
            else nn.Identity()
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, X, Y, Z) to (B, width, X, Y, Z), or half as large."""
        output: Tensor = self.relu(self.residual(x) + self.shortcut(x))
        return output


class ResNetEncoder(nn.Module):
    """Images (B, C, X, Y, Z) to one feature map a level, sized as those of the V-Net's encoder.

    With fewer than five levels the last stages are missing.
    """

    def __init__(self, channels: int, width: int, levels: int) -> None:
        super().__init__()
        check("channels", channels, 1)
        check("width", width, 1)
        check("levels", levels, 2)
        if levels > len(BLOCKS) + 1:
            raise ValueError(f"levels is {levels}; it must be at most {len(BLOCKS) + 1}")
        widths = [width * 2**i for i in range(levels)]
        self.stem = nn.Sequential(
            nn.Conv3d(channels, width, 7, padding=3, bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                BasicBlock(above, w, down=True),
                *(BasicBlock(w, w, down=False) for _ in range(blocks - 1)),
            )
            for (above, w), blocks in zip(pairwise(widths), BLOCKS, strict=False)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode.

        Raises:
            ValueError: a side of the image cannot be halved `levels` - 1 times.
        """
        check_sides(image, len(self.stages) + 1)
        maps = [self.stem(image)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class ResNetVNet(nn.Module):
    """A ResNet-34 encoder of at most five levels, a V-Net decoder.

    Arguments and errors are those of `VNet`; `dropout` acts before the last convolution only.
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
        self.encoder = ResNetEncoder(channels, width, levels)
        self.decoder = Decoder(classes, width, levels, dropout, distance_head=distance_head)

    def forward(self, image: Tensor) -> NetOutput:
        """Images (B, C, X, Y, Z) to a `NetOutput`."""
        output: NetOutput = self.decoder(self.encoder(image))
        return output
