"""TAC against its formulas, written out voxel by voxel."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from methods.base import Batch, NetOutput, Step
from methods.tac import TAC, affinity, representations
from tests.reference.released import Given, halves, objective, slopes, waves


def random(*shape):
    return torch.rand(
        shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64
    )


def naive(features, guide):
    """Class representations [volume][class][feature], voxel by voxel."""
    guide = F.interpolate(guide, size=features.shape[2:], mode="nearest")
    volumes = []
    for b in range(len(features)):
        classes = []
        for c in range(2):
            size = sum(guide[:, c].flatten().tolist()) + 1e-6
            g = guide[b, c].flatten().tolist()
            classes.append(
                [
                    sum(w * f for w, f in zip(g, feature.flatten().tolist(), strict=True)) / size
                    for feature in features[b]
                ]
            )
        volumes.append(classes)
    return volumes


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_representation_is_the_mean_under_the_guide_over_the_classs_size_in_all_volumes(factor):
    features, guide = random(3, 5, 2, 3, 2), random(3, 2, 2 * factor, 3 * factor, 2 * factor)
    torch.testing.assert_close(
        representations(features, guide), torch.tensor(naive(features, guide), dtype=torch.float64)
    )


def test_a_class_without_voxels_is_represented_by_zero():
    guide = torch.zeros(1, 2, 2, 2, 2)
    guide[:, 0] = 1
    found = representations(torch.ones(1, 3, 2, 2, 2), guide)
    assert found[0, 0].tolist() == pytest.approx([1.0] * 3)
    assert found[0, 1].tolist() == [0.0] * 3


def test_affinity_is_the_sum_over_maps_of_the_mean_squared_difference_of_pairs():
    guides = random(2, 2, 4, 4, 4), random(3, 2, 4, 4, 4)
    maps = [random(5, 3, 4, 4, 4), random(5, 6, 2, 2, 2)]
    expected = 0.0
    for features in maps:
        known, found = naive(features[:2], guides[0]), naive(features[2:], guides[1])
        squares = [
            (found[b][c][f] - known[b % 2][c][f]) ** 2
            for b in range(3)
            for c in range(2)
            for f in range(features.shape[1])
        ]
        expected += sum(squares) / len(squares)
    assert affinity(maps, guides).item() == pytest.approx(expected)


def test_labelled_and_unlabelled_maps_and_the_guide_of_predictions_learn():
    guides = random(2, 2, 4, 4, 4), random(2, 2, 4, 4, 4).requires_grad_()
    features = random(4, 3, 4, 4, 4).requires_grad_()
    maps_gradient, guide_gradient = torch.autograd.grad(
        affinity([features], guides), (features, guides[1])
    )
    assert maps_gradient[:2].count_nonzero() > 0
    assert maps_gradient[2:].count_nonzero() > 0
    assert guide_gradient.count_nonzero() > 0


def test_the_objective_has_the_figures_of_the_released_code():
    """jingkunchen/TAC@6830a90, train_class_attention.py, lines 111-161, at these sizes.

    Its conversions to float32 were to float64.
    """
    sizes = [(16, 32, 16), (8, 16, 8), (4, 8, 4), (2, 4, 2), (1, 2, 1)]
    encoder = [waves(4, 2 + k, *size, phase=k) for k, size in enumerate(sizes)]
    gated = [waves(4, 2 + k, *size, phase=5 + k) for k, size in enumerate(sizes[:4])]
    logits, *maps = (
        x.requires_grad_() for x in (waves(4, 2, *sizes[0], phase=9), *encoder, *gated)
    )
    image = torch.zeros(2, 1, *sizes[0])
    terms = TAC().losses(
        nn.ModuleDict({"student": Given(NetOutput(logits, logits, maps=tuple(maps)))}),
        Batch(image, halves(2, *sizes[0]), image, {}),
        RUN[0],
        torch.Generator(),
    )
    values = {name: term.value.item() for name, term in terms.items()}
    figures = {"supervised": 0.6829032521, "structure": 0.1510649353, "context": 0.8440625678}
    assert values == pytest.approx(figures, rel=1e-9)
    assert objective(terms).item() == pytest.approx(1.255999471, rel=1e-9)
    of_encoder = [0.001219758092, 0.000240654417, 0.002237095971, 0.01987649446, 0.1110875122]
    of_gated = [0.001378079949, 0.0008205075933, 0.004679875315, 0.0352017837]
    found = slopes(objective(terms), [logits, *maps])
    assert found == pytest.approx([0.0288195656, *of_encoder, *of_gated], rel=1e-9)


@pytest.fixture(scope="module")
def learner():
    """A network that has learnt something, with dropout off."""
    learner = small_learner(TAC())
    train(learner, make_batch(learner.method, 1), RUN[:10])
    learner.nets.eval()
    return learner


def test_the_terms_are_dice_of_both_classes_and_affinities_of_the_two_kinds_of_maps(learner):
    batch = make_batch(learner.method, 0)
    terms = terms_at(learner, batch, RUN[20])
    output = learner.nets["student"](torch.cat([batch.image, batch.unlabelled]))
    p = 1 / (1 + (-output.logits).exp())
    label = F.one_hot(batch.label, 2).movedim(-1, 1).float()
    dice = sum(
        1
        - (2 * (p[:2, c] * label[:, c]).sum() + 1e-5)
        / ((p[:2, c] ** 2).sum() + label[:, c].sum() + 1e-5)
        for c in (0, 1)
    )
    encoder, gated = output.maps[:3], output.maps[3:]
    assert len(gated) == 2
    expected = {
        "supervised": (dice, 1.0),
        "structure": (affinity(gated, (label, p[2:])), 1.0),
        "context": (affinity(encoder, (label, p[2:])), 0.5),
    }
    assert set(terms) == set(expected)
    for name, (value, weight) in expected.items():
        torch.testing.assert_close(terms[name].value, value)
        assert terms[name].weight == weight


def test_the_weights_are_the_same_throughout_the_run(learner):
    batch = make_batch(learner.method, 0)
    for step in (RUN[0], RUN[-1]):
        assert [t.weight for t in terms_at(learner, batch, step).values()] == [1.0, 1.0, 0.5]


def test_the_class_of_the_larger_mean_sigmoid_is_predicted(learner):
    image = make_batch(learner.method, 0).image
    predict = learner.method.predictors(learner.nets)["main"]
    windows = torch.stack([predict(image), predict(image.flip(2))]).mean(0)
    sigmoid = [learner.nets["student"](x).logits.sigmoid() for x in (image, image.flip(2))]
    assert windows.argmax(1).equal(torch.stack(sigmoid).mean(0).argmax(1))


def test_the_authors_rate_falls_as_a_polynomial():
    assert TAC.authors.learning_rate_at(Step(3000, 6000)) == pytest.approx(0.01 * 0.5**0.9)


@pytest.mark.parametrize("name", ["structure", "context"])
def test_hyperparameters_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-1.0; it must be at least 0"):
        TAC(**{name: -1.0})
