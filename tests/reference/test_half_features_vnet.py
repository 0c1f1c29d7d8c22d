"""The V-Net with half-resolution features: a V-Net but for what it calls features."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmark.networks import factory
from benchmark.networks.half_features_vnet import HalfFeaturesVNet
from benchmark.networks.vnet import VNet


def build(name, levels=3):
    return factory(0, channels=1, width=3, levels=levels, dropout=0.5)(name).eval()


@pytest.fixture
def image():
    return torch.randn(2, 1, 8, 12, 16, generator=torch.Generator().manual_seed(0))


def test_it_segments_as_the_v_net_of_the_same_weights(image):
    net, vnet = build("vnet-half-features"), build("vnet")
    assert net(image).logits.equal(vnet(image).logits)


@pytest.mark.parametrize("levels", [2, 3])
def test_its_features_are_the_map_below_full_resolution_enlarged(image, levels):
    net = build("vnet-half-features", levels)
    seen = []
    below = net.decoder.blocks[-2] if levels > 2 else net.encoder.dropout
    below.register_forward_hook(lambda _, __, output: seen.append(output))
    features = net(image).features
    assert seen[0].shape == (2, 6, 4, 6, 8)
    expected = F.interpolate(seen[0], scale_factor=2, mode="trilinear", align_corners=False)
    torch.testing.assert_close(features, expected)


def test_it_has_the_size_of_a_v_net():
    assert sum(p.numel() for p in HalfFeaturesVNet().parameters()) == 9_448_866
    names = HalfFeaturesVNet(width=2).state_dict().keys()
    assert names == VNet(width=2).state_dict().keys()
