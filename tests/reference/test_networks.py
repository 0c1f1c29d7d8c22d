"""The networks: their exact size, their shapes, and an independent forward pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmark.networks import NETWORKS, factory, initialise
from benchmark.networks.two_decoder_vnet import TwoDecoderVNet
from benchmark.networks.vnet import VNet
from benchmark.seeding import seeded_torch
from methods.base import NetOutput
from methods.supervised import Supervised


def conv(inputs, outputs, kernel):
    """Weights and biases of a convolution, and scale and shift of its batch normalisation."""
    return inputs * outputs * kernel**3 + outputs + 2 * outputs


def encoder_size(w):
    return (
        conv(1, w, 3)
        + (conv(w, 2 * w, 2) + 2 * conv(2 * w, 2 * w, 3))
        + (conv(2 * w, 4 * w, 2) + 3 * conv(4 * w, 4 * w, 3))
        + (conv(4 * w, 8 * w, 2) + 3 * conv(8 * w, 8 * w, 3))
        + (conv(8 * w, 16 * w, 2) + 3 * conv(16 * w, 16 * w, 3))
    )


def decoder_size(w, up):
    return (
        (conv(16 * w, 8 * w, up) + 3 * conv(8 * w, 8 * w, 3))
        + (conv(8 * w, 4 * w, up) + 3 * conv(4 * w, 4 * w, 3))
        + (conv(4 * w, 2 * w, up) + 2 * conv(2 * w, 2 * w, 3))
        + (conv(2 * w, w, up) + conv(w, w, 3))
        + (w * 2 + 2)
    )


def size(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("width", [2, 16])
def test_sizes_are_those_counted_by_hand(width):
    vnet = encoder_size(width) + decoder_size(width, up=2)
    assert size(VNet(width=width)) == vnet
    assert size(TwoDecoderVNet(width=width)) == vnet + decoder_size(width, up=3)
    assert size(VNet(width=width, distance_head=True)) == vnet + width + 1


def test_at_sixteen_filters_they_have_the_fields_sizes():
    assert size(VNet()) == 9_448_866
    assert size(VNet(distance_head=True)) == 9_448_883
    assert size(TwoDecoderVNet()) == 12_347_716


def test_shallow_networks_drop_the_deepest_levels():
    net = VNet(width=2, levels=4)
    assert [len(b) for b in net.encoder.blocks] == [1, 2, 3, 3]
    assert [len(b) for b in net.decoder.blocks] == [3, 2, 1]


def activated(x, kernels, prefix, **how):
    """Convolution, batch normalisation with running statistics, ReLU; by state-dict names."""
    convolve = F.conv_transpose3d if how.pop("transposed", False) else F.conv3d
    x = convolve(x, kernels[f"{prefix}.0.weight"], kernels[f"{prefix}.0.bias"], **how)
    mean, variance, scale, shift = (
        kernels[f"{prefix}.1.{name}"].reshape(1, -1, 1, 1, 1)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)


def by_hand(kernels, image, decoder, nearest):
    """A three-level network without dropout, one operation after the other."""
    skips, x = [], image
    for level, depth in enumerate((1, 2, 3)):
        if level:
            skips.append(x)
            x = activated(x, kernels, f"encoder.downs.{level - 1}", stride=2)
        for i in range(depth):
            x = activated(x, kernels, f"encoder.blocks.{level}.{i}", padding=1)
    for place, depth in enumerate((2, 1)):
        if nearest:
            for axis in (2, 3, 4):
                x = x.repeat_interleave(2, dim=axis)
            x = activated(x, kernels, f"{decoder}.ups.{place}.1", padding=1)
        else:
            x = activated(x, kernels, f"{decoder}.ups.{place}", stride=2, transposed=True)
        x = x + skips.pop()
        for i in range(depth):
            x = activated(x, kernels, f"{decoder}.blocks.{place}.{i}", padding=1)
    logits = F.conv3d(x, kernels[f"{decoder}.output.weight"], kernels[f"{decoder}.output.bias"])
    return logits, x


@pytest.fixture
def image():
    return torch.randn(2, 1, 8, 12, 16, generator=torch.Generator().manual_seed(0))


def warmed(net, image):
    """The network with batch-norm statistics that are not the initial 0 and 1."""
    with torch.no_grad(), seeded_torch(0, "init", 9):
        net(image)
    return net.eval()


def test_vnet_equals_the_forward_pass_by_hand(image):
    net = warmed(factory(0, channels=1, width=3, levels=3, dropout=0.5)(), image)
    logits, features = by_hand(net.state_dict(), image, "decoder", nearest=False)
    torch.testing.assert_close(net(image).logits, logits)
    torch.testing.assert_close(net(image).features, features)


def test_two_decoder_vnet_equals_the_forward_pass_by_hand(image):
    build = factory(0, channels=1, width=3, levels=3, dropout=0.5)
    net = warmed(build("vnet-two-decoders"), image)
    for output, decoder in zip(net(image), ("transposed", "nearest"), strict=True):
        logits, features = by_hand(net.state_dict(), image, decoder, decoder == "nearest")
        torch.testing.assert_close(output.logits, logits)
        torch.testing.assert_close(output.features, features)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_have_the_resolution_of_the_image(name, image):
    build = factory(0, channels=1, width=3, levels=3, dropout=0.5)
    outputs = build(name, distance_head=True)(image)
    for level, output in enumerate([outputs] if isinstance(outputs, NetOutput) else outputs):
        assert output.logits.shape == (2, 2, 8, 12, 16)
        coarser = 2**level if name == "vnet-pyramid" else 1
        sides = [side // coarser for side in (8, 12, 16)]
        channels = 6 if name == "vnet-half-features" else 3 * coarser
        assert output.features.shape == (2, channels, *sides)
        assert output.distance.shape == (2, 1, 8, 12, 16)
        assert output.distance.abs().max() <= 1


def test_distance_is_absent_unless_asked_for(image):
    assert VNet(width=2, levels=3)(image).distance is None


def test_distance_is_the_tanh_of_a_second_convolution_of_the_features(image):
    net = VNet(width=2, levels=3, distance_head=True)
    output = net(image)
    kernels = net.state_dict()
    weight, bias = kernels["decoder.distance.0.weight"], kernels["decoder.distance.0.bias"]
    torch.testing.assert_close(output.distance, F.conv3d(output.features, weight, bias).tanh())


def test_features_are_what_the_output_convolution_sees_dropout_included(image):
    net = VNet(width=16, levels=3)
    output = net(image)
    torch.testing.assert_close(net.decoder.output(output.features), output.logits)
    dropped = (output.features == 0).flatten(2).all(2)
    assert 0 < dropped.sum() < dropped.numel()


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_acts_in_training_mode_only(name, image):
    net = factory(0, channels=1, width=3, levels=3, dropout=0.5)(name)

    def first(y):
        return (y if isinstance(y, NetOutput) else y[0]).logits

    assert not first(net(image)).equal(first(net(image)))
    net.eval()
    assert first(net(image)).equal(first(net(image)))


def test_multi_channel_images_and_more_classes_are_possible():
    net = VNet(channels=4, classes=3, width=2, levels=2)
    assert net(torch.zeros(2, 4, 8, 8, 8)).logits.shape == (2, 3, 8, 8, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_sides_that_cannot_be_halved_are_refused(name):
    net = NETWORKS[name](width=2, levels=4)
    message = r"image sides \(16, 12, 16\) must be multiples of 8 for a network of 4 levels"
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(1, 1, 16, 12, 16))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("channels", 0, "channels is 0; it must be at least 1"),
        ("classes", 1, "classes is 1; it must be at least 2"),
        ("width", 0, "width is 0; it must be at least 1"),
        ("levels", 1, "levels is 1; it must be at least 2"),
        ("dropout", 1.5, "dropout probability"),
    ],
)
def test_arguments_out_of_range_are_refused(name, argument, value, message):
    with pytest.raises(ValueError, match=message):
        NETWORKS[name](**{"width": 2, "levels": 2, argument: value})


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def small(seed):
    return factory(seed, channels=1, width=2, levels=2, dropout=0.5)


def test_a_factory_draws_fresh_weights_at_each_call_and_repeats_itself():
    build, again = small(3), small(3)
    first, second = weights(build()), weights(build())
    assert not first.equal(second)
    assert first.equal(weights(again()))
    assert second.equal(weights(again()))
    assert not first.equal(weights(small(4)()))


def test_a_factory_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    small(0)()
    assert torch.get_rng_state().equal(before)


def test_an_unknown_network_is_refused_with_those_known():
    with pytest.raises(ValueError, match="unknown network 'unet'; known: vnet, vnet-two-decoders"):
        small(0)("unet")


def test_initialise_seeds_layers_that_a_method_builds_itself():
    class WithHead(Supervised):
        def init(self, build):
            nets = super().init(build)
            nets["head"] = torch.nn.Linear(4, 4)
            return nets

    shape = {"channels": 1, "width": 2, "levels": 2, "dropout": 0.5}
    one, same, other = (initialise(WithHead(), seed, **shape) for seed in (0, 0, 1))
    assert one["head"].weight.equal(same["head"].weight)
    assert not one["head"].weight.equal(other["head"].weight)
