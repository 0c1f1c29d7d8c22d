"""The V-Net with three heads: its size, and each head against a V-Net with that head's weights."""

from __future__ import annotations

from itertools import zip_longest

import pytest
import torch

from benchmark.networks import factory
from benchmark.networks.three_head_vnet import ThreeHeadVNet
from benchmark.networks.vnet import VNet
from benchmark.seeding import seeded_torch
from tests.reference.released import fill, in_their_order, sum_and_norm, waves

BUILD = {"channels": 1, "width": 3, "levels": 3, "dropout": 0.5}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_head_is_the_end_of_a_v_net_on_the_shared_trunk(number):
    net = factory(0, **BUILD)("vnet-three-heads")
    image = torch.randn(2, 1, 8, 12, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), seeded_torch(0, "init", 9):
        net(image)
    vnet = VNet(**BUILD)
    weights = {}
    for name, value in net.state_dict().items():
        part, *rest = name.split(".")
        if part == "heads":
            head, *rest = rest
            if int(head) != number:
                continue
            rest = ["blocks", "1", *rest[1:]] if rest[0] == "block" else rest
            weights[".".join(["decoder", *rest])] = value
        else:
            weights[name if part == "encoder" else f"decoder.{name}"] = value
    vnet.load_state_dict(weights)
    found, expected = net.eval()(image)[number], vnet.eval()(image)
    assert found.logits.equal(expected.logits)
    assert found.features.equal(expected.features)
    assert found.distance is None


def test_it_has_the_figures_of_the_released_code():
    """koncle/CoraNet@b9d454c, vnet.py, VNet with two filters and batch normalisation."""
    net = factory(0, channels=1, width=2, levels=5, dropout=0.0)("vnet-three-heads").double()
    trunk = [m for pair in zip_longest(net.ups, net.blocks) for m in pair if m is not None]
    upwards = [p for module in [*trunk, *net.heads] for p in module.parameters()]
    fill([*in_their_order(net.encoder), *upwards])
    with torch.no_grad():
        found = [sum_and_norm(output.logits) for output in net(waves(2, 1, 16, 32, 16))]
    released = (-102449.0057, 871.7926307), (-25568.38558, 691.3093685), (53572.27884, 692.2475476)
    for figures, expected in zip(found, released, strict=True):
        assert figures == pytest.approx(expected, rel=1e-9)


def test_at_sixteen_filters_two_more_heads_cost_two_blocks_and_outputs():
    head = (16 * 16 * 27 + 16 + 2 * 16) + (16 * 2 + 2)
    size = sum(p.numel() for p in ThreeHeadVNet().parameters())
    assert size == 9_448_866 + 2 * head == 9_462_854


def test_each_head_may_have_a_distance():
    net = factory(0, **BUILD)("vnet-three-heads", distance_head=True).eval()
    outputs = net(torch.zeros(1, 1, 4, 4, 4))
    assert [output.distance.shape for output in outputs] == [(1, 1, 4, 4, 4)] * 3


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="classes is 1; it must be at least 2"):
        ThreeHeadVNet(classes=1)
