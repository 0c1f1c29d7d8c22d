"""The network of TAC: its gates against their formula, and its size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmark.networks import factory
from benchmark.networks.attention_vnet import AttentionVNet, Gate
from benchmark.networks.vnet import VNet
from tests.reference.released import fill, in_their_order, sum_and_norm, waves


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_at_sixteen_filters_it_is_a_v_net_with_four_gates():
    inner = {128: 64, 64: 32, 32: 16, 16: 32}
    gates = sum(2 * (w * i + i + 2 * i) + (i + 1 + 2) for w, i in inner.items())
    assert sum(p.numel() for p in AttentionVNet().parameters()) == 9_448_866 + gates == 9_472_414


def test_a_gate_multiplies_the_skip_by_one_number_for_each_voxel():
    gate = Gate(width=3, inner=5)
    below, skip = normal(2, 2, 3, 2, 3, 4)
    gate(below, skip)
    found = gate.eval()(below, skip)

    def batch_normalised(x, name):
        mean, variance, scale, shift = (
            kernels[f"{name}.{n}"].view(1, -1, 1, 1, 1)
            for n in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    kernels = gate.state_dict()
    total = sum(
        batch_normalised(F.conv3d(x, kernels[f"{n}.0.weight"], kernels[f"{n}.0.bias"]), f"{n}.1")
        for n, x in (("below", below), ("skip", skip))
    )
    score = F.conv3d(total.relu(), kernels["attention.1.weight"], kernels["attention.1.bias"])
    attention = 1 / (1 + (-batch_normalised(score, "attention.2")).exp())
    assert attention.shape == (2, 1, 2, 3, 4)
    torch.testing.assert_close(found, skip * attention)


def test_it_has_the_figures_of_the_released_code():
    """jingkunchen/TAC@6830a90, networks/vnet_class_attention.py, VNet with two filters.

    The gate of full resolution, which has 32 channels there, has twice the filters here and there.
    """
    net = factory(0, channels=1, width=2, levels=5, dropout=0.0)("vnet-attention").double()
    up = zip(net.decoder.ups, net.decoder.gates, net.decoder.blocks, strict=True)
    modules = [*(module for level in up for module in level), net.decoder.output]
    fill([*in_their_order(net.encoder), *(p for module in modules for p in module.parameters())])
    with torch.no_grad():
        output = net(waves(2, 1, 16, 32, 16))
    assert sum_and_norm(output.logits) == pytest.approx((118183.393, 815.2813969), rel=1e-9)
    encoded = (25801.09835, 7934.007806, 1731.48069, 369.5921159, 127.4993382)
    gated = (20699.01531, 4419.294649, 994.5311819, 120.6994584)
    assert [x.sum().item() for x in output.maps] == pytest.approx([*encoded, *gated], rel=1e-9)


def test_with_open_gates_it_is_a_v_net():
    net = factory(0, channels=1, width=3, levels=4, dropout=0.5)("vnet-attention").eval()
    for gate in net.decoder.gates:
        torch.nn.init.constant_(gate.attention[2].weight, 0)
        torch.nn.init.constant_(gate.attention[2].bias, 50)
    vnet = VNet(width=3, levels=4).eval()
    kernels = {n: x for n, x in net.state_dict().items() if ".gates." not in n}
    vnet.load_state_dict(kernels)
    image = normal(2, 1, 8, 16, 8)
    torch.testing.assert_close(net(image).logits, vnet(image).logits)


def test_the_maps_are_those_of_the_encoder_and_the_gated_skips():
    net = factory(0, channels=1, width=3, levels=4, dropout=0.5)("vnet-attention").eval()
    image = normal(2, 1, 8, 16, 8)
    maps = net(image).maps
    assert [m.shape[1] for m in maps] == [3, 6, 12, 24, 3, 6, 12]
    for own, encoded in zip(maps, net.encoder(image), strict=False):
        torch.testing.assert_close(own, encoded)
    for gated, skip in zip(maps[4:], maps, strict=False):
        ratio = (gated / skip)[(skip > 0)]
        assert ratio.min() > 0
        assert ratio.max() < 1


def test_under_bfloat16_all_that_it_gives_is_float32():
    build = factory(0, channels=1, width=3, levels=3, dropout=0.5, precision="bf16")
    output = build("vnet-attention")(normal(2, 1, 8, 8, 8))
    assert {x.dtype for x in (output.logits, output.features, *output.maps)} == {torch.float32}
