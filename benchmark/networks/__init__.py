"""The networks that methods may ask for, by name."""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor, nn

from benchmark.networks.two_decoder_vnet import TwoDecoderVNet
from benchmark.networks.vnet import VNet
from benchmark.seeding import seeded_torch
from methods.base import Method, NetOutput, NetworkFactory

NETWORKS: dict[str, type[nn.Module]] = {
    "vnet": VNet,
    "vnet-two-decoders": TwoDecoderVNet,
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
    distance = None if output.distance is None else output.distance.float()
    return NetOutput(output.logits.float(), output.features.float(), distance)


def factory(
    seed: int, *, channels: int, width: int, levels: int, dropout: float, precision: str = "fp32"
) -> NetworkFactory:
    """The factory that a method's `init` builds its networks with, on the CPU.

    Its n-th call draws weights from (seed, "init", n): two networks of a method differ, and the
    same method and seed give the same networks. It raises ValueError for an unknown name.
    """
    calls = count()

    def build(name: str = "vnet", *, distance_head: bool = False) -> nn.Module:
        if name not in NETWORKS:
            raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
        with seeded_torch(seed, "init", next(calls)):
            net = NETWORKS[name](
                channels=channels,
                width=width,
                levels=levels,
                dropout=dropout,
                distance_head=distance_head,
            )
        return Bf16(net) if precision == "bf16" else net

    return build


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
