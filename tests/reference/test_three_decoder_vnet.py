"""The networks of MC-Net and MC-Net+, and trilinear enlargement against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmark.networks import factory
from benchmark.networks.three_decoder_vnet import ThreeDecoderVNet
from benchmark.networks.two_decoder_vnet import TrilinearTwoDecoderVNet, TwoDecoderVNet
from benchmark.networks.vnet import Trilinear, VNet


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def size(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_trilinear_has_the_values_and_gradients_of_pytorch(factor, align_corners):
    image = normal(2, 3, 4, 5, 2).requires_grad_()
    own = Trilinear(factor, align_corners=align_corners)(image)
    theirs = F.interpolate(
        image, scale_factor=factor, mode="trilinear", align_corners=align_corners
    )
    torch.testing.assert_close(own, theirs)
    upstream = normal(*own.shape)
    gradients = [torch.autograd.grad(x, image, upstream)[0] for x in (own, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("align_corners", [False, True])
def test_trilinear_repeats_an_axis_of_one_voxel(align_corners):
    image = normal(1, 2, 1, 1, 1)
    enlarged = Trilinear(2, align_corners=align_corners)(image)
    torch.testing.assert_close(enlarged, image.expand(1, 2, 2, 2, 2))


def test_at_sixteen_filters_they_have_the_published_sizes():
    assert size(TrilinearTwoDecoderVNet()) == size(TwoDecoderVNet()) == 12_347_716
    assert size(ThreeDecoderVNet()) == 15_246_566


@pytest.mark.parametrize("name", ["vnet-two-decoders-trilinear", "vnet-three-decoders"])
def test_decoders_share_the_encoder_and_differ_in_how_they_enlarge(name):
    image = normal(2, 1, 8, 12, 16).float()
    net = factory(0, channels=1, width=3, levels=3, dropout=0.5)(name).eval()
    outputs = net(image)
    assert len(outputs) == (3 if name == "vnet-three-decoders" else 2)
    maps = net.encoder(image)
    decoders = [net.transposed, net.trilinear, *([net.nearest] if len(outputs) == 3 else [])]
    for up in net.trilinear.ups:
        up[0] = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True)
    kinds = [{type(up[0]) for up in decoder.ups} for decoder in decoders]
    assert kinds == [{nn.ConvTranspose3d}, {nn.Upsample}, {nn.Upsample}][: len(outputs)]
    for decoder, output in zip(decoders, outputs, strict=True):
        torch.testing.assert_close(decoder(maps).logits, output.logits)


def test_decoder_1_alone_is_a_v_net():
    image = normal(2, 1, 8, 8, 8).float()
    net, vnet = ThreeDecoderVNet(width=2, levels=3).eval(), VNet(width=2, levels=3).eval()
    vnet.encoder.load_state_dict(net.encoder.state_dict())
    vnet.decoder.load_state_dict(net.transposed.state_dict())
    torch.testing.assert_close(vnet(image).logits, net(image)[0].logits)
