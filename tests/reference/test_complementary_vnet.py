"""The network of CC-Net: which skips each decoder sees, and its size."""

from __future__ import annotations

import pytest
import torch

from benchmark.networks import factory
from benchmark.networks.complementary_vnet import ComplementaryVNet
from benchmark.networks.vnet import VNet


@pytest.fixture(scope="module")
def net():
    build = factory(0, channels=1, width=4, levels=5, dropout=0.5)
    return build("vnet-three-decoders-complementary").eval()


@pytest.fixture(scope="module")
def maps(net):
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    return [x.detach() for x in net.encoder(image)]


def test_at_sixteen_filters_it_has_three_transposed_decoders():
    decoder = sum(p.numel() for p in VNet().decoder.parameters())
    size = sum(p.numel() for p in ComplementaryVNet().parameters())
    assert size == 9_448_866 + 2 * decoder == 13_592_806


@pytest.mark.parametrize(
    ("decoder", "seen"), [("full", {0, 1, 2, 3}), ("even", {0, 2}), ("odd", {1, 3})]
)
def test_each_decoder_sees_its_skips_and_the_deepest_map(net, maps, decoder, seen):
    decode = getattr(net, decoder)
    before = decode(maps).logits
    for level in range(5):
        other = [x + 3 if i == level else x for i, x in enumerate(maps)]
        assert decode(other).logits.equal(before) == (level not in seen | {4})


@pytest.mark.parametrize("decoder", ["even", "odd"])
def test_without_a_skip_the_decoder_goes_on_with_what_came_from_below(net, maps, decoder):
    vnet = VNet(width=4).eval()
    vnet.decoder.load_state_dict(getattr(net, decoder).state_dict())
    first = {"even": 0, "odd": 1}[decoder]
    kept = [x if i % 2 == first else torch.zeros_like(x) for i, x in enumerate(maps[:4])]
    torch.testing.assert_close(
        getattr(net, decoder)(maps).logits, vnet.decoder([*kept, maps[4]]).logits
    )


def test_the_outputs_are_those_of_the_three_decoders(net):
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    maps = net.encoder(image)
    for output, decoder in zip(net(image), (net.full, net.even, net.odd), strict=True):
        torch.testing.assert_close(output.logits, decoder(maps).logits)
