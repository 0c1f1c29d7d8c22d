"""A V-Net whose features are those of half the resolution, as CPCL and AC-MT take prototypes from.

In their released code (Xu et al., JBHI 2022 and MedIA 2023) a voxel's embedding is the decoder's
last map but one, before any dropout of the decoder, enlarged trilinearly: twice as many channels as
at full resolution. The weights are those of `VNet`.
"""

from __future__ import annotations

from torch import Tensor

from benchmark.networks.vnet import Trilinear, VNet
from methods.base import NetOutput

ENLARGE = Trilinear(2, align_corners=False)


class HalfFeaturesVNet(VNet):
    """`VNet` with `features` (B, 2 * width, X, Y, Z) from half the resolution, enlarged."""

    def forward(self, image: Tensor) -> NetOutput:
        """Images (B, C, X, Y, Z) to a `NetOutput`."""
        maps = self.encoder(image)
        stages = [maps[-1], *self.decoder.stages(maps)]
        output: NetOutput = self.decoder.finish(stages[-1])
        return output._replace(features=ENLARGE(stages[-2]))
