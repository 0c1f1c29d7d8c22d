"""The pyramid: one output a level, each by hand from the level's map."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmark.networks import factory
from benchmark.networks.pyramid_vnet import Head, PyramidVNet
from benchmark.networks.vnet import VNet
from tests.reference.released import fill, sum_and_norm, waves

IMAGE = torch.randn(2, 1, 8, 16, 24, generator=torch.Generator().manual_seed(0))


def size(net):
    return sum(p.numel() for p in net.parameters())


def test_at_sixteen_filters_it_is_a_v_net_and_three_small_convolutions():
    heads = sum(2 * width + 2 for width in (32, 64, 128))
    assert size(PyramidVNet()) == size(VNet()) + heads == 9_449_320
    assert size(PyramidVNet(distance_head=True)) == 9_449_320 + 17 + 33 + 65 + 129


def test_there_is_one_output_a_level_of_the_decoder():
    for levels in (2, 3, 4):
        assert len(PyramidVNet(width=2, levels=levels)(IMAGE)) == levels - 1


def test_the_finest_output_is_that_of_a_v_net():
    net, vnet = PyramidVNet(width=2, levels=3).eval(), VNet(width=2, levels=3).eval()
    vnet.encoder.load_state_dict(net.encoder.state_dict())
    vnet.decoder.load_state_dict(net.decoder.state_dict())
    torch.testing.assert_close(net(IMAGE)[0].logits, vnet(IMAGE).logits)


def test_a_coarser_output_is_a_convolution_of_its_level_enlarged_trilinearly():
    build = factory(0, channels=1, width=2, levels=4, dropout=0.5)
    net = build("vnet-pyramid", distance_head=True).eval()
    x = net.encoder(IMAGE)
    *skips, level = x
    maps = []
    for up, convolve, skip in zip(net.decoder.ups, net.decoder.blocks, skips[::-1], strict=True):
        level = convolve(up(level) + skip)
        maps.insert(0, level)
    outputs = net(IMAGE)
    for factor, head, features, output in zip(
        (2, 4), net.heads, maps[1:], outputs[1:], strict=True
    ):
        torch.testing.assert_close(output.features, features)
        for layer, activate, enlarged in (
            (head.output, lambda y: y, output.logits),
            (head.distance[0], torch.tanh, output.distance),
        ):
            small = activate(F.conv3d(features, layer.weight, layer.bias))
            expected = F.interpolate(small, scale_factor=factor, mode="trilinear")
            torch.testing.assert_close(enlarged, expected)


@pytest.mark.parametrize(
    ("factor", "figures"),
    [
        (2, (1900.208649, 84.52570545)),
        (4, (15201.66919, 242.7067966)),
        (8, (121613.3535, 689.1017253)),
    ],
)
def test_a_head_has_the_figure_of_the_released_code(factor, figures):
    """HiLab-git/SSL4MIS@06df604, code/networks/utils.py, UnetDsv3 from 3 channels to 2."""
    head = Head(2, width=3, factor=factor, dropout=0.0, distance_head=False).double()
    fill(head.parameters())
    with torch.no_grad():
        logits = head(waves(2, 3, 3, 4, 2)).logits
    assert sum_and_norm(logits) == pytest.approx(figures, rel=1e-9)


def test_every_output_has_dropout_in_training_only():
    net = PyramidVNet(width=4, levels=3, dropout=1.0)
    assert not any(output.features.any() for output in net.train()(IMAGE))
    assert all(output.features.any() for output in net.eval()(IMAGE))
