"""The networks that methods may ask for, by name."""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor, nn

from benchmark.networks.attention_vnet import AttentionVNet
from benchmark.networks.complementary_vnet import ComplementaryVNet
from benchmark.networks.half_features_vnet import HalfFeaturesVNet
from benchmark.networks.pyramid_vnet import PyramidVNet
from benchmark.networks.resnet_vnet import ResNetVNet
from benchmark.networks.three_decoder_vnet import ThreeDecoderVNet
from benchmark.networks.three_head_vnet import ThreeHeadVNet
from benchmark.networks.two_decoder_vnet import TrilinearTwoDecoderVNet, TwoDecoderVNet
from benchmark.networks.vnet import VNet
from benchmark.seeding import seeded_torch
from methods.base import Method, NetOutput, NetworkFactory

NETWORKS: dict[str, type[nn.Module]] = {
    "vnet": VNet,
    "vnet-two-decoders": TwoDecoderVNet,
    "vnet-two-decoders-trilinear": TrilinearTwoDecoderVNet,
    "vnet-three-decoders": ThreeDecoderVNet,
    "vnet-three-decoders-complementary": ComplementaryVNet,
    "vnet-pyramid": PyramidVNet,
    "vnet-half-features": HalfFeaturesVNet,
    "vnet-three-heads": ThreeHeadVNet,
    "vnet-attention": AttentionVNet,
    "vnet-resnet": ResNetVNet,
}


class Bf16(nn.Module):
    """A network whose forward pass runs under bfloat16 autocast; what it gives is float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> NetOutput | tuple[NetOutput, ...]:
        """As the network's."""
        with torch.autocast(images.device.type, torch.bfloat16):
            output = self.net(images)
        return _float(output) if isinstance(output, NetOutput) else tuple(map(_float, output))


def _float(output: NetOutput) -> NetOutput:
    distance, deepest = (x if x is None else x.float() for x in (output.distance, output.deepest))
    maps = tuple(x.float() for x in output.maps)
    return NetOutput(output.logits.float(), output.features.float(), distance, deepest, maps)


class Factory:
    """A `NetworkFactory` for one run; see `factory`."""

    def __init__(
        self, seed: int, *, channels: int, width: int, levels: int, dropout: float, precision: str
    ) -> None:
        self.channels, self.width, self.levels, self.dropout = channels, width, levels, dropout
        self._seed, self._precision, self._calls = seed, precision, count()

    def __call__(self, name: str = "vnet", *, distance_head: bool = False) -> nn.Module:
        """Build the network."""
        if name not in NETWORKS:
            raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
        with seeded_torch(self._seed, "init", next(self._calls)):
            net = NETWORKS[name](
                channels=self.channels,
                width=self.width,
                levels=self.levels,
                dropout=self.dropout,
                distance_head=distance_head,
            )
        return Bf16(net) if self._precision == "bf16" else net


def factory(
    seed: int, *, channels: int, width: int, levels: int, dropout: float, precision: str = "fp32"
) -> NetworkFactory:
    """The factory that a method's `init` builds its networks with, on the CPU.

    Its n-th call draws weights from (seed, "init", n): two networks of a method differ, and the
    same method and seed give the same networks. It raises ValueError for an unknown name.
    """
    return Factory(
        seed, channels=channels, width=width, levels=levels, dropout=dropout, precision=precision
    )


def initialise(
    method: Method,
    seed: int,
    *,
    channels: int,
    width: int,
    levels: int,
    dropout: float,
    precision: str = "fp32",
) -> nn.ModuleDict:
    """A method's networks at step 0, on the CPU.

    Layers that the method builds beside the factory's networks draw from the run's `init` axis too.
    """
    build = factory(
        seed,
        channels=channels,
        width=width,
        levels=levels,
        dropout=dropout,
        precision=precision,
    )
    with seeded_torch(seed, "init", 0, slot=1):
        return method.init(build)
