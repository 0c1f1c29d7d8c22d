"""The networks that methods may ask for, by name."""

from __future__ import annotations

from itertools import count

from torch import nn

from benchmark.networks.two_decoder_vnet import TwoDecoderVNet
from benchmark.networks.vnet import VNet
from benchmark.seeding import seeded_torch
from methods.base import Method, NetworkFactory

NETWORKS: dict[str, type[nn.Module]] = {
    "vnet": VNet,
    "vnet-two-decoders": TwoDecoderVNet,
}


def factory(seed: int, *, channels: int, width: int, levels: int, dropout: float) -> NetworkFactory:
    """The factory that a method's `init` builds its networks with, on the CPU.

    Its n-th call draws weights from (seed, "init", n): two networks of a method differ, and the
    same method and seed give the same networks. It raises ValueError for an unknown name.
    """
    calls = count()

    def build(name: str = "vnet", *, distance_head: bool = False) -> nn.Module:
        if name not in NETWORKS:
            raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
        with seeded_torch(seed, "init", next(calls)):
            return NETWORKS[name](
                channels=channels,
                width=width,
                levels=levels,
                dropout=dropout,
                distance_head=distance_head,
            )

    return build


def initialise(
    method: Method, seed: int, *, channels: int, width: int, levels: int, dropout: float
) -> nn.ModuleDict:
    """A method's networks at step 0, on the CPU.

    Layers that the method builds beside the factory's networks draw from the run's `init` axis too.
    """
    build = factory(seed, channels=channels, width=width, levels=levels, dropout=dropout)
    with seeded_torch(seed, "init", 0, slot=1):
        return method.init(build)
