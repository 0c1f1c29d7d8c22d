"""SASSNet against its formulas, and its critic against a forward pass by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from benchmark.data.distance import signed_distance
from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import initialise
from methods.base import Batch, NetOutput, Step
from methods.sassnet import Critic, SASSNet
from tests.reference.released import Given, fill, halves, objective, slopes, waves


@pytest.fixture(scope="module")
def learner():
    """Networks that have learnt something, with dropout off."""
    learner = small_learner(SASSNet())
    train(learner, make_batch(learner.method, 1), RUN[:20])
    learner.nets.eval()
    return learner


def size(net):
    return sum(p.numel() for p in net.parameters())


def test_at_sixteen_filters_network_and_critic_have_the_sizes_counted_by_hand():
    nets = initialise(SASSNet(), 0, channels=1, width=16, levels=5, dropout=0.5)
    widths = (64, 128, 256, 512)
    deeper = sum(4**3 * a * b + b for a, b in pairwise(widths))
    assert size(nets["student"]) == 9_448_883
    assert size(nets["critic"]) == 2 * (4**3 * 64 + 64) + deeper + 2 * 512 + 2 == 11_020_290


def test_the_critic_sees_all_channels_of_the_image():
    nets = initialise(SASSNet(), 0, channels=3, width=2, levels=3, dropout=0.5)
    assert nets["critic"](torch.zeros(2, 1, 8, 8, 8), torch.zeros(2, 3, 8, 8, 8)).shape == (2, 2)


def test_the_critic_equals_the_forward_pass_by_hand():
    rng = torch.Generator().manual_seed(0)
    critic = Critic(channels=2, width=3, halvings=3, dropout=0.5).eval()
    kernels = critic.state_dict()
    distance = torch.randn(2, 1, 8, 16, 8, generator=rng)
    image = torch.randn(2, 2, 8, 16, 8, generator=rng)

    def convolved(x, name):
        return F.conv3d(x, kernels[f"{name}.weight"], kernels[f"{name}.bias"], stride=2, padding=1)

    def leaky(x):
        return x.clamp(min=0) + 0.2 * x.clamp(max=0)

    x = leaky(convolved(distance, "distance") + convolved(image, "image"))
    for name in ("deeper.0", "deeper.1"):
        x = leaky(convolved(x, name))
    assert x.shape == (2, 12, 1, 2, 1)
    expected = x.mean((2, 3, 4)) @ kernels["score.weight"].T + kernels["score.bias"]
    torch.testing.assert_close(critic(distance, image), expected)


def test_the_critic_drops_channels_in_training_unless_it_must_be_sure():
    critic = Critic(channels=1, width=4, halvings=2, dropout=0.5).train()
    x = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert len({critic(x, x).sum().item() for _ in range(8)}) > 1
    assert len({critic(x, x, sure=True).sum().item() for _ in range(8)}) == 1


def test_the_supervised_terms_are_dice_and_squared_distance_error_of_the_labelled(learner):
    batch = make_batch(learner.method, 0)
    output = learner.nets["student"](torch.cat([batch.image, batch.unlabelled]))
    p = output.logits[:2].softmax(1)[:, 1].flatten().tolist()
    t = batch.label.flatten().tolist()
    overlap = sum(a * b for a, b in zip(p, t, strict=True))
    squares = sum(a * a + b * b for a, b in zip(p, t, strict=True))
    z, s = output.distance[:2].flatten().tolist(), batch.extras["sdf"].flatten().tolist()
    errors = [(a - b) ** 2 for a, b in zip(z, s, strict=True)]
    terms = terms_at(learner, batch, RUN[0])
    dice = 1 - (2 * overlap + 1e-5) / (squares + 1e-5)
    assert terms["supervised"].value.item() == pytest.approx(dice, rel=1e-5)
    assert terms["sdf"].value.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert (terms["supervised"].weight, terms["sdf"].weight) == (1.0, 0.3)


def labelled_probability(learner, images):
    """What the critic thinks of each volume."""
    distance = learner.nets["student"](images).distance
    scores = learner.nets["critic"](distance, images).tolist()
    return [math.exp(b) / (math.exp(a) + math.exp(b)) for a, b in scores]


def test_the_network_wants_unlabelled_volumes_to_pass_as_labelled(learner):
    batch = make_batch(learner.method, 0)
    p = labelled_probability(learner, batch.unlabelled)
    term = terms_at(learner, batch, RUN[0])["adversarial"]
    assert term.value.item() == pytest.approx(-sum(map(math.log, p)) / 2, rel=1e-5)
    assert term.player == "main"


def test_the_critic_wants_to_tell_labelled_from_unlabelled(learner):
    batch = make_batch(learner.method, 0)
    known = labelled_probability(learner, batch.image)
    free = labelled_probability(learner, batch.unlabelled)
    right = [*known, *(1 - p for p in free)]
    term = terms_at(learner, batch, RUN[0])["critic"]
    assert term.value.item() == pytest.approx(-sum(map(math.log, right)) / 4, rel=1e-5)
    assert (term.weight, term.player) == (1.0, "critic")


def test_the_critics_term_does_not_reach_the_network(learner):
    term = terms_at(learner, make_batch(learner.method, 0), RUN[0])["critic"]
    student = list(learner.nets["student"].parameters())
    gradients = torch.autograd.grad(term.value, student, allow_unused=True)
    assert all(g is None for g in gradients)


def test_the_adversarial_term_teaches_the_distance_head_and_not_the_segmentation_head(learner):
    term = terms_at(learner, make_batch(learner.method, 0), RUN[0])["adversarial"]
    decoder = learner.nets["student"].decoder
    heads = [decoder.distance[0].weight, decoder.output.weight]
    distance, segmentation = torch.autograd.grad(term.value, heads, allow_unused=True)
    assert distance.count_nonzero() > 0
    assert segmentation is None


def test_the_critic_learns_by_adam_and_never_decays():
    learner = small_learner(SASSNet())
    critic = learner.optimisers["critic"]
    assert isinstance(critic, torch.optim.Adam)
    [group] = critic.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.99), 0)
    assert isinstance(learner.optimisers["main"], torch.optim.SGD)
    train(learner, make_batch(learner.method, 0), RUN[30:31])
    assert critic.param_groups[0]["lr"] == 1e-4


def test_the_adversarial_weight_rises_over_6000_of_20000_steps():
    learner = small_learner(SASSNet(weight=0.015))
    batch = make_batch(learner.method, 0)
    weights = [terms_at(learner, batch, Step(i, 20_000))["adversarial"].weight for i in (0, 3000)]
    assert weights == pytest.approx([0.015 * math.exp(-5), 0.015 * math.exp(-1.25)])


def test_the_authors_recipe_drops_the_rate_after_2500_and_5000_of_6000_steps():
    recipe = SASSNet.authors
    rates = [recipe.learning_rate_at(Step(i, recipe.steps)) for i in (2499, 2500, 4999, 5000, 5999)]
    assert rates == pytest.approx([1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(
    ("step", "weight", "loss", "slope"),
    [
        (0, 0.000101069205, 0.9165797411, 0.004581114965),
        (3000, 0.004297571953, 0.9193660873, 0.004636369689),
        (5850, 0.01495319817, 0.926441089, 0.005211117665),
    ],
)
def test_both_players_have_the_figure_of_the_released_code(step, weight, loss, slope):
    """kleinzcy/SASSnet@1761aa8, code/train_gan_sdfloss.py, lines 147-197, with 8 labelled volumes.

    Its critic (code/networks/discriminator.py, FC3DDiscriminator) has 4 filters here, no dropout,
    and a pool as large as its last map. Its distances are those of code/utils/util.py, in float32.
    """
    score = waves(4, 1, 16, 16, 16).requires_grad_()
    distance = (0.4 * waves(4, 1, 16, 16, 16, phase=1)).requires_grad_()
    logits = torch.cat([torch.zeros_like(score), score], 1)
    critic = Critic(channels=1, width=4, halvings=4, dropout=0.0).double()
    fill(critic.parameters())
    for p in critic.parameters():
        p.data.mul_(0.08)
    known, free = waves(4, 1, 16, 16, 16, phase=2).split(2)
    label = halves(4, 16, 16, 16, phase=3)[:2]
    student = Given(NetOutput(logits, logits, distance))
    terms = SASSNet(weight=0.015, rampup=1.0).losses(
        torch.nn.ModuleDict({"student": student, "critic": critic}),
        Batch(known, label, free, {"sdf": signed_distance(label)}),
        Step(step, 6000),
        torch.Generator(),
    )
    values = {name: term.value.item() for name, term in terms.items()}
    assert values == pytest.approx(
        {
            "supervised": 0.7732459379,
            "sdf": 0.4775556545,
            "adversarial": 0.6639686467,
            "critic": 0.6834526474,
        },
        rel=1e-6,
    )
    assert terms["adversarial"].weight == pytest.approx(weight, rel=1e-9)
    assert objective(terms).item() == pytest.approx(loss, rel=1e-6)
    assert slopes(objective(terms), [score, distance]) == pytest.approx(
        [0.00294983709, slope], rel=1e-6
    )
    of_critic = slopes(terms["critic"].value, list(critic.parameters()))
    assert math.hypot(*of_critic) == pytest.approx(3.824936382, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("weight", -0.01, "be at least 0"),
        ("rampup", 2.0, r"lie in \[0, 1\]"),
        ("alpha", -0.3, "be at least 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name}={value}; it must {allowed}"):
        SASSNet(**{name: value})
