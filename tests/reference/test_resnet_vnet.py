"""The ResNet-34 with a V-Net decoder: its exact size, and an independent forward pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmark.networks import factory
from benchmark.networks.resnet_vnet import ResNetVNet
from tests.reference.released import fill, in_their_order, sum_and_norm, waves


def size(net):
    return sum(p.numel() for p in net.parameters())


def by_hand(levels, w):
    """Weights of the encoder's convolutions, two numbers a normalisation, then the decoder's."""
    total = 7**3 * w + 2 * w
    for level, blocks in zip(range(1, levels), (3, 4, 6, 3), strict=False):
        above, here = w * 2 ** (level - 1), w * 2**level
        total += 27 * above * here + (2 * blocks - 1) * 27 * here**2 + above * here
        total += (2 * blocks + 1) * 2 * here
    for level in reversed(range(levels - 1)):
        here = w * 2**level
        total += 8 * 2 * here * here + 3 * here
        total += min(level + 1, 3) * (27 * here**2 + 3 * here)
    return total + 2 * w + 2


@pytest.mark.parametrize(("levels", "width"), [(3, 4), (4, 8), (5, 16)])
def test_its_size_is_that_counted_by_hand(levels, width):
    assert size(ResNetVNet(levels=levels, width=width)) == by_hand(levels, width)


def test_at_sixteen_filters_it_has_the_size_of_mcfs_second_network():
    assert size(ResNetVNet()) == 17_930_354


def test_its_stages_have_the_blocks_of_a_resnet_34():
    assert [len(stage) for stage in ResNetVNet(width=2).encoder.stages] == [3, 4, 6, 3]


def normalised(x, kernels, name):
    mean, variance, scale, shift = (
        kernels[f"{name}.{part}"].reshape(1, -1, 1, 1, 1)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def encoded(kernels, image, stages):
    """The maps of the encoder in evaluation mode, one operation after the other."""
    x = F.conv3d(image, kernels["encoder.stem.0.weight"], padding=3)
    maps = [normalised(x, kernels, "encoder.stem.1").clamp(min=0)]
    for stage, blocks in enumerate(stages):
        x = maps[-1]
        for i in range(blocks):
            name, stride = f"encoder.stages.{stage}.{i}", 1 if i else 2
            y = F.conv3d(x, kernels[f"{name}.residual.0.weight"], stride=stride, padding=1)
            y = normalised(y, kernels, f"{name}.residual.1").clamp(min=0)
            y = F.conv3d(y, kernels[f"{name}.residual.3.weight"], padding=1)
            y = normalised(y, kernels, f"{name}.residual.4")
            if i == 0:
                x = F.conv3d(x, kernels[f"{name}.shortcut.0.weight"], stride=2)
                x = normalised(x, kernels, f"{name}.shortcut.1")
            x = (x + y).clamp(min=0)
        maps.append(x)
    return maps


def test_it_equals_the_forward_pass_by_hand():
    image = torch.randn(2, 1, 8, 12, 16, generator=torch.Generator().manual_seed(0))
    net = factory(0, channels=1, width=3, levels=3, dropout=0.5)("vnet-resnet")
    with torch.no_grad():
        net(image)  # batch-norm statistics that are not the initial 0 and 1
        net.eval()
        maps = encoded(net.state_dict(), image, (3, 4))
        output, expected = net(image), net.decoder(maps)
    assert [tuple(x.shape[1:]) for x in maps] == [(3, 8, 12, 16), (6, 4, 6, 8), (12, 2, 3, 4)]
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.features, expected.features)


def test_it_has_the_figures_of_the_released_code():
    """WYC-321/MCF@ad20659, code/networks/ResNet34.py, Resnet34 with two filters."""
    net = factory(0, channels=1, width=2, levels=5, dropout=0.0)("vnet-resnet").double()
    fill([*net.encoder.parameters(), *in_their_order(net.decoder)])
    with torch.no_grad():
        logits = net(waves(2, 1, 16, 32, 16)).logits
    assert sum_and_norm(logits) == pytest.approx((43951.51272, 257.0421411), rel=1e-9)


def test_only_the_decoder_drops_channels():
    image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    net = factory(0, channels=1, width=16, levels=2, dropout=0.5)("vnet-resnet")
    first, second = net.encoder(image), net.encoder(image)
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    dropped = (net(image).features == 0).flatten(2).all(2)
    assert 0 < dropped.sum() < dropped.numel()


def test_more_levels_than_a_resnet_34_has_are_refused():
    with pytest.raises(ValueError, match="levels is 6; it must be at most 5"):
        ResNetVNet(width=2, levels=6)
