"""V-Net as semi-supervised segmentation uses it, in parts that its relatives share.

Levels of one, two, then three 3x3x3 convolutions with batch normalisation and ReLU; strided
convolutions down, transposed convolutions up, additive skips, `Dropout3d` on the deepest features
and before the output convolution, PyTorch's default initialisation. Unlike Milletari et al., V-Net
(3DV 2016, arXiv:1606.04797), the levels have no residual connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from methods.base import NetOutput

Upsampling = Literal["transposed", "trilinear", "nearest"]


def convolutions(level: int) -> int:
    """How many convolutions a level has: 1, 2, 3, 3, 3, ... from full resolution down."""
    return min(level + 1, 3)


def normalised(convolution: nn.Module, width: int) -> nn.Sequential:
    """The convolution, batch normalisation of its `width` channels, ReLU."""
    return nn.Sequential(convolution, nn.BatchNorm3d(width), nn.ReLU(inplace=True))


def block(inputs: int, width: int, depth: int) -> nn.Sequential:
    """`depth` 3x3x3 convolutions, the first from `inputs` channels."""
    return nn.Sequential(
        *(
            normalised(nn.Conv3d(width if i else inputs, width, 3, padding=1), width)
            for i in range(depth)
        )
    )


def doubled(inputs: int, width: int, upsampling: Upsampling) -> nn.Sequential:
    """Double the resolution: (B, inputs, X, Y, Z) to (B, width, 2X, 2Y, 2Z)."""
    if upsampling == "transposed":
        return normalised(nn.ConvTranspose3d(inputs, width, 2, stride=2), width)
    enlarge = (
        Trilinear(2, align_corners=True)
        if upsampling == "trilinear"
        else nn.Upsample(scale_factor=2, mode="nearest")
    )
    return nn.Sequential(enlarge, normalised(nn.Conv3d(inputs, width, 3, padding=1), width))


class Trilinear(nn.Module):
    """Trilinear enlargement: (B, C, X, Y, Z) to (B, C, fX, fY, fZ), one axis after the other.

    The values of `nn.Upsample` with mode "trilinear", whose gradient has no deterministic CUDA
    kernel; this one is made of additions and copies, which have.

    Args:
        factor: f.
        align_corners: whether corner voxels keep their centres; else the volume keeps its borders.
    """

    def __init__(self, factor: int, *, align_corners: bool) -> None:
        super().__init__()
        self.factor = factor
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge."""
        for axis in (2, 3, 4):
            x = self._along(x, axis)
        return x

    def _along(self, x: Tensor, axis: int) -> Tensor:
        n = x.shape[axis]
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, n - 1)], axis)
        after = torch.cat([x.narrow(axis, 1, n - 1), x.narrow(axis, n - 1, 1)], axis)
        index = torch.arange(n, dtype=torch.float64, device=x.device)
        parts = []
        for r in range(self.factor):
            if self.align_corners:
                shift = (r * (n - 1) - index * (self.factor - 1)) / (self.factor * n - 1)
            else:
                shift = torch.full_like(index, (r + 0.5) / self.factor - 0.5)
            shift = shift.to(x.dtype).view([-1 if d == axis else 1 for d in range(x.dim())])
            back, forth = (-shift).clamp_min(0), shift.clamp_min(0)
            parts.append(x + back * (before - x) + forth * (after - x))
        return torch.stack(parts, axis + 1).flatten(axis, axis + 1)


class Encoder(nn.Module):
    """Images (B, C, X, Y, Z) to one feature map a level, full resolution first.

    Level i has `width` * 2**i channels and 1 / 2**i of the resolution.
    """

    def __init__(self, channels: int, width: int, levels: int, dropout: float) -> None:
        super().__init__()
        check("channels", channels, 1)
        check("width", width, 1)
        check("levels", levels, 2)
        widths = [width * 2**i for i in range(levels)]
        self.blocks = nn.ModuleList(
            block(w if i else channels, w, convolutions(i)) for i, w in enumerate(widths)
        )
        self.downs = nn.ModuleList(
            normalised(nn.Conv3d(w, 2 * w, 2, stride=2), 2 * w) for w in widths[:-1]
        )
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode.

        Raises:
            ValueError: a side of the image cannot be halved `levels` - 1 times.
        """
        check_sides(image, len(self.blocks))
        maps = [self.blocks[0](image)]
        for down, convolve in zip(self.downs, self.blocks[1:], strict=True):
            maps.append(convolve(down(maps[-1])))
        maps[-1] = self.dropout(maps[-1])
        return maps


class Decoder(nn.Module):
    """Feature maps of an `Encoder` to a `NetOutput`.

    `features` is what the output convolution sees, so after dropout: the released code of MC-Net's
    descendants takes its prototypes there, and DTC's distance head starts there.
    """

    def __init__(
        self,
        classes: int,
        width: int,
        levels: int,
        dropout: float,
        upsampling: Upsampling = "transposed",
        distance_head: bool = False,
    ) -> None:
        super().__init__()
        check("classes", classes, 2)
        above = list(range(levels - 2, -1, -1))
        widths = [width * 2**i for i in above]
        self.ups = nn.ModuleList(doubled(2 * w, w, upsampling) for w in widths)
        self.blocks = nn.ModuleList(
            block(w, w, convolutions(i)) for i, w in zip(above, widths, strict=True)
        )
        self.dropout = nn.Dropout3d(dropout)
        self.output = nn.Conv3d(width, classes, 1)
        self.distance = nn.Sequential(nn.Conv3d(width, 1, 1), nn.Tanh()) if distance_head else None

    def forward(self, maps: Sequence[Tensor]) -> NetOutput:
        """Decode."""
        return self.finish(self.stages(maps)[-1])

    def stages(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The map of each level on the way up, coarsest first; the last has full resolution."""
        *skips, x = maps
        found = []
        for up, convolve, skip in zip(self.ups, self.blocks, reversed(skips), strict=True):
            x = convolve(up(x) + skip)
            found.append(x)
        return found

    def finish(self, x: Tensor) -> NetOutput:
        """The output, from the last of the `stages`."""
        features = self.dropout(x)
        distance = None if self.distance is None else self.distance(features)
        return NetOutput(self.output(features), features, distance)


class VNet(nn.Module):
    """One encoder, one decoder with transposed convolutions.

    Args:
        channels: of the image.
        classes: of the output; 2 is background and foreground.
        width: channels at full resolution, doubled at each level.
        levels: resolutions; image sides must be multiples of 2**(levels - 1).
        dropout: probability of dropping a channel, in training mode only.
        distance_head: add a second output convolution with tanh, for signed distances.

    Raises:
        ValueError: an argument out of its range.
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

    def forward(self, image: Tensor) -> NetOutput:
        """Images (B, C, X, Y, Z) to a `NetOutput`."""
        maps = self.encoder(image)
        output: NetOutput = self.decoder(maps)
        return output._replace(deepest=maps[-1])


def check_sides(image: Tensor, levels: int) -> None:
    """Raise ValueError if a side of the image cannot be halved `levels` - 1 times."""
    factor = 2 ** (levels - 1)
    sides = tuple(image.shape[2:])
    if any(side % factor for side in sides):
        raise ValueError(
            f"image sides {sides} must be multiples of {factor} for a network of {levels} levels"
        )


def check(name: str, value: int, smallest: int) -> None:
    """Raise ValueError if `value` is below `smallest`."""
    if value < smallest:
        raise ValueError(f"{name} is {value}; it must be at least {smallest}")
