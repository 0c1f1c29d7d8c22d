"""CauSSL against its formulas, kernel by kernel."""

from __future__ import annotations

import math

import pytest
import torch

from benchmark.miniature import RUN, make_batch, small_learner, terms_at, train
from benchmark.networks import factory, initialise
from benchmark.seeding import seeded_torch
from methods.base import Batch, Step
from methods.caussl import (
    CauSSLCPS,
    CauSSLMC,
    coefficients,
    convolutions,
    decoder_convolutions,
    dependence,
)
from methods.common import mutual_consistency
from tests.reference.released import (
    fill,
    given,
    halves,
    in_their_order,
    objective,
    slopes,
    sum_and_norm,
    waves,
)

FORMS = pytest.mark.parametrize("form", [CauSSLCPS, CauSSLMC])


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def naive_dependence(own, others, combine):
    """Mean over layers of the mean over kernels of the squared cosine."""
    layers = []
    for layer, kernel in enumerate(own):
        mine = kernel.flatten(1).tolist()
        theirs = [row for branch in others for row in branch[layer].flatten(1).tolist()]
        squares = []
        for r, row in enumerate(mine):
            a = combine[layer][r].tolist()
            mixed = [sum(a[i] * theirs[i][c] for i in range(len(theirs))) for c in range(len(row))]
            squares.append(cosine(mixed, row) ** 2)
        layers.append(sum(squares) / len(squares))
    return sum(layers) / len(layers)


def kernels(rng):
    """Two layers of one branch: three kernels of 2 x 2 x 1 x 1, two of 5 x 1 x 1 x 1."""
    shapes = (3, 2, 2, 1, 1), (2, 5, 1, 1, 1)
    return [torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes]


def test_dependence_is_the_mean_squared_cosine_to_combinations_of_the_others(rng):
    own, *others = (kernels(rng) for _ in range(3))
    combine = [torch.randn(n, 2 * n, generator=rng, dtype=torch.float64) for n in (3, 2)]
    value = dependence(own, others, combine)
    assert value.item() == pytest.approx(naive_dependence(own, others, combine), rel=1e-10)


def test_a_branch_that_combines_the_others_is_wholly_dependent(rng):
    others = [kernels(rng)]
    combine = [torch.randn(n, n, generator=rng, dtype=torch.float64) for n in (3, 2)]
    own = [-2 * (a @ w.flatten(1)).view_as(w) for a, w in zip(combine, others[0], strict=True)]
    assert dependence(own, others, combine).item() == pytest.approx(1.0)


def test_orthogonal_kernels_are_independent():
    own, other = torch.eye(4).view(2, 2, 4, 1, 1, 1)
    assert dependence([own], [[other]], [torch.randn(2, 2)]).item() == pytest.approx(0.0, abs=1e-12)


def test_the_others_kernels_get_no_gradient(rng):
    own, other = kernels(rng), kernels(rng)
    combine = [torch.randn(n, n, generator=rng, dtype=torch.float64) for n in (3, 2)]
    for tensor in (*own, *other, *combine):
        tensor.requires_grad_()
    dependence(own, [other], combine).backward()
    assert all(w.grad is None for w in other)
    assert all(w.grad.count_nonzero() == w.numel() for w in (*own, *combine))


def test_coefficients_are_small_and_combine_all_other_branches():
    branches = [[torch.zeros(40, 3, 1, 1, 1), torch.zeros(2, 9, 1, 1, 1)] for _ in range(3)]
    with seeded_torch(0, "init", 0):
        found = coefficients(branches)
    assert [[tuple(a.shape) for a in branch] for branch in found] == [[(40, 80), (2, 4)]] * 3
    assert found[0][0].std().item() == pytest.approx(1e-3, rel=0.05)


def test_mutual_consistency_is_the_distance_to_sharpened_peers_over_both_classes(rng):
    logits = [torch.randn(1, 2, 2, 3, 1, generator=rng, dtype=torch.float64) for _ in range(3)]
    p = [[[s / sum(e) for s in e] for e in
          ([math.exp(s) for s in v] for v in x.movedim(1, -1).reshape(-1, 2).tolist())]
         for x in logits]  # fmt: skip
    total = 0.0
    for i in range(3):
        for j in range(3):
            if i == j:
                continue
            squares = []
            for mine, theirs in zip(p[i], p[j], strict=True):
                sharp = [q**2 / sum(r**2 for r in theirs) for q in theirs]
                squares += [(a - b) ** 2 for a, b in zip(mine, sharp, strict=True)]
            total += sum(squares) / len(squares)
    value = mutual_consistency([x[:, 1] - x[:, 0] for x in logits], 0.5, detached=True)
    assert value.item() == pytest.approx(total, rel=1e-10)


def test_sharpened_targets_get_no_gradient():
    z = [torch.zeros(1, requires_grad=True), torch.ones(1, requires_grad=True)]
    mutual_consistency(z, 0.5, detached=True).backward()
    p, target = 0.5, 1 / (1 + math.exp(-2))
    assert z[0].grad.item() == pytest.approx(2 * (p - target) * p * (1 - p))


def size(net):
    return sum(p.numel() for p in net.parameters())


def test_at_sixteen_filters_the_cps_form_has_two_v_nets_and_all_their_convolutions():
    nets = initialise(CauSSLCPS(), 0, channels=1, width=16, levels=5, dropout=0.5)
    assert size(nets["first"]) == size(nets["second"]) == 9_448_866
    assert len(convolutions(nets["first"])) == 30  # 12 + 4 down, 4 up, 9, 1
    assert [len(branch) for branch in nets["coefficients"]] == [30, 30]


def test_at_sixteen_filters_the_mc_form_has_the_size_of_mc_net_plus():
    """And the published one once unused blocks are added and 3x3x3 become 1x1x1."""
    nets = initialise(CauSSLMC(), 0, channels=1, width=16, levels=5, dropout=0.5)
    assert size(nets["student"]) == 15_246_566
    ups = (256, 128), (128, 64), (64, 32), (32, 16)
    unused = 2 * 3 * (256 * 256 * 27 + 3 * 256)
    assert unused == 10_621_440
    narrower = 2 * sum(a * b * (27 - 1) for a, b in ups)
    assert (15_246_566 + unused - narrower) / 1e6 == pytest.approx(23.60, abs=0.005)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_mc_form_compares_blocks_and_output_of_each_decoder(precision):
    nets = initialise(
        CauSSLMC(), 0, channels=1, width=2, levels=5, dropout=0.5, precision=precision
    )
    net = nets["student"].net if precision == "bf16" else nets["student"]
    branches = decoder_convolutions(nets["student"])
    assert len(branches) == 3
    for branch, decoder in zip(branches, (net.transposed, net.trilinear, net.nearest), strict=True):
        blocks = [c.weight for c in decoder.blocks.modules() if isinstance(c, torch.nn.Conv3d)]
        expected = [*blocks, decoder.output.weight]
        assert len(branch) == 10
        assert all(a is b for a, b in zip(branch, expected, strict=True))


def trained(method, steps=12):
    """A learner that has learnt something, with dropout off."""
    learner = small_learner(method)
    train(learner, make_batch(method, 1), RUN[:steps])
    learner.nets.eval()
    return learner


def test_the_cps_terms_are_those_of_two_networks():
    learner = trained(CauSSLCPS())
    batch = make_batch(learner.method, 0)
    images = torch.cat([batch.image, batch.unlabelled])
    outputs = [learner.nets[name](images).logits for name in ("first", "second")]
    supervised = cross = 0.0
    for own, other in (outputs, outputs[::-1]):
        log_p, t = own.log_softmax(1), batch.label
        p = log_p[:2, 1].exp()
        dice = 1 - (2 * (p * t).sum() + 1e-5) / ((p * p).sum() + (t * t).sum() + 1e-5)
        entropy = -torch.where(t == 1, log_p[:2, 1], log_p[:2, 0]).mean()
        supervised += 0.5 * (entropy + dice)
        taught = other[2:].argmax(1) == 1
        cross += -torch.where(taught, log_p[2:, 1], log_p[2:, 0]).mean()
    terms = terms_at(learner, batch, RUN[20])
    torch.testing.assert_close(terms["supervised"].value, supervised)
    torch.testing.assert_close(terms["cross"].value, cross)


def test_the_mc_terms_are_those_of_three_decoders():
    learner = trained(CauSSLMC())
    batch = make_batch(learner.method, 0)
    outputs = learner.nets["student"](torch.cat([batch.image, batch.unlabelled]))
    supervised = consistency = 0.0
    for own in outputs:
        log_p, t = own.logits.log_softmax(1), batch.label
        p = log_p[:2, 1].exp()
        dice = 1 - (2 * (p * t).sum() + 1e-5) / ((p * p).sum() + (t * t).sum() + 1e-5)
        entropy = -torch.where(t == 1, log_p[:2, 1], log_p[:2, 0]).mean()
        supervised += 0.5 * (entropy + dice)
        for other in outputs:
            if other is not own:
                sharp = other.logits[2:].softmax(1).square()
                sharp = sharp / sharp.sum(1, keepdim=True)
                consistency += (log_p[2:].exp() - sharp).square().mean()
    terms = terms_at(learner, batch, RUN[20])
    torch.testing.assert_close(terms["supervised"].value, supervised)
    torch.testing.assert_close(terms["consistency"].value, consistency)


@FORMS
def test_both_players_have_the_sum_of_all_branches_dependences(form):
    learner = trained(form())
    nets = learner.nets
    if form is CauSSLCPS:
        branches = [convolutions(nets["first"]), convolutions(nets["second"])]
    else:
        branches = decoder_convolutions(nets["student"])
    expected = sum(
        naive_dependence(own, branches[:b] + branches[b + 1 :], list(nets["coefficients"][b]))
        for b, own in enumerate(branches)
    )
    terms = terms_at(learner, make_batch(learner.method, 0), RUN[20])
    low, high = terms["independence"], terms["dependence"]
    assert low.value.item() == high.value.item() == pytest.approx(expected, rel=1e-4)
    assert (low.weight, low.player) == (3.0, "main")
    assert (high.weight, high.player) == (-1.0, "coefficients")


def test_the_coefficients_find_dependence_and_the_networks_lower_it():
    batch = make_batch(CauSSLCPS(), 0)
    alone = small_learner(CauSSLCPS(starts=0.0, coefficient=0.0))
    against = small_learner(CauSSLCPS(starts=0.0, coefficient=30.0))
    found, resisted = (
        [row["dependence"] for row in train(learner, batch, RUN[:12])]
        for learner in (alone, against)
    )
    assert found[-1] > 2 * found[0]
    assert resisted[-1] < 0.9 * found[-1]


def decoders_that_learn(method):
    learner = small_learner(method)
    terms = terms_at(learner, make_batch(method, 0), RUN[20])
    branches = decoder_convolutions(learner.nets["student"])
    return [
        all(
            g is not None and g.count_nonzero() > 0
            for g in torch.autograd.grad(
                terms["independence"].value, branch, retain_graph=True, allow_unused=True
            )
        )
        for branch in branches
    ]


def test_every_decoder_is_made_independent_but_in_the_release_only_the_first():
    assert decoders_that_learn(CauSSLMC()) == [True, True, True]
    assert decoders_that_learn(CauSSLMC(variant="released")) == [True, False, False]


def test_the_released_variant_has_the_same_values():
    values = []
    for variant in ("fixed", "released"):
        learner = small_learner(CauSSLMC(variant=variant))
        terms = terms_at(learner, make_batch(learner.method, 0), RUN[20])
        values.append({name: term.value.item() for name, term in terms.items()})
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("form", "base", "base_starts", "starts"),
    [(CauSSLCPS, "cross", 400, 500), (CauSSLMC, "consistency", 0, 40)],
)
def test_terms_begin_where_they_do_in_5000_steps(form, base, base_starts, starts):
    learner = small_learner(form())
    batch = make_batch(learner.method, 0)

    def names(index):
        return set(terms_at(learner, batch, Step(index, 5000)))

    assert base in names(base_starts)
    assert base_starts == 0 or base not in names(base_starts - 1)
    assert {"independence", "dependence"} <= names(starts)
    assert not {"independence", "dependence"} & names(starts - 1)


@pytest.mark.parametrize(
    ("form", "base", "full"), [(CauSSLCPS, "cross", 0.03), (CauSSLMC, "consistency", 0.1)]
)
def test_the_base_methods_weight_rises_over_6000_of_20000_steps(form, base, full):
    learner = small_learner(form())
    terms = terms_at(learner, make_batch(learner.method, 0), Step(3000, 20_000))
    assert terms[base].weight == pytest.approx(full * math.exp(-1.25))


def test_the_coefficients_learn_by_adam():
    [group] = small_learner(CauSSLMC()).optimisers["coefficients"].param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (2e-2, (0.9, 0.999), 0)


def test_the_authors_recipe_drops_the_rate_after_2500_of_5000_steps():
    recipe = CauSSLMC.authors
    rates = [recipe.learning_rate_at(Step(i, recipe.steps)) for i in (0, 2499, 2500, 4999)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("form", "index", "values", "total", "slope"),
    [
        (CauSSLCPS, 450, [1.8643617, 1.291502865], 1.864899041, [1.778571165e-05, 1.797841762e-05]),
        (CauSSLMC, 0, [2.527970498, 1.300234526], 2.528846589,
         [1.666774222e-05, 5.356855236e-06, 1.677388575e-05]),
    ],
)  # fmt: skip
def test_the_base_method_has_the_figure_of_the_released_code(form, index, values, total, slope):
    """JuzhengMiao/CauSSL@23b1904, train_CT_CPSCauSSL.py 221-260, train_CT_MCCauSSL.py 192-242.

    Before independence begins; the gradients are those to the scores of unlabelled volumes.
    """
    scores = [waves(4, 2, 6, 5, 4, phase=k) for k in range(len(slope))]
    unlabelled = [x[2:].clone().requires_grad_() for x in scores]
    outputs = [torch.cat([x[:2], u]) for x, u in zip(scores, unlabelled, strict=True)]
    nets = {"student": given(*outputs)}
    if form is CauSSLCPS:
        nets = {"first": given(outputs[0]), "second": given(outputs[1])}
    image = torch.zeros(2, 1, 6, 5, 4)
    batch = Batch(image, halves(2, 6, 5, 4), image, {})
    method = form(**form.with_authors)
    terms = method.losses(torch.nn.ModuleDict(nets), batch, Step(index, 5000), torch.Generator())
    assert [term.value.item() for term in terms.values()] == pytest.approx(values, rel=1e-9)
    assert objective(terms).item() == pytest.approx(total, rel=1e-9)
    assert slopes(objective(terms), unlabelled) == pytest.approx(slope, rel=1e-9)


def widths_of_two(method):
    """The method's networks with two filters, in float64 and without dropout."""
    build = factory(0, channels=1, width=2, levels=5, dropout=0.0)
    return method.init(build).double()


def released_terms(method, nets):
    """The terms of four waves at step 3,000, the objective, and the slopes to the coefficients."""
    x, y = waves(4, 1, 16, 16, 16), halves(2, 16, 16, 16)
    batch = Batch(x[:2], y, x[2:], {})
    terms = method.losses(nets, batch, Step(3000, 5000), torch.Generator())
    to_coefficients = [
        math.hypot(*slopes(terms["dependence"].value, list(branch.parameters())))
        for branch in nets["coefficients"]
    ]
    return terms, objective(terms), to_coefficients


def test_the_cps_form_has_the_figure_of_the_released_code():
    """The same lines, and l_correlation_cos_mean of utils/losses.py, on two networks."""
    method = CauSSLCPS(**CauSSLCPS.with_authors)
    nets = widths_of_two(method)
    for k, name in enumerate(("first", "second")):
        theirs = in_their_order(nets[name].encoder, nets[name].decoder)
        fill(theirs, phase=k / 2)
        place = [id(kernel) for kernel in convolutions(nets[name])]
        own = list(nets["coefficients"][k].parameters())
        fill((own[place.index(id(p))] for p in theirs if p.dim() == 5), phase=(k + 1) / 2)
    terms, total, to_coefficients = released_terms(method, nets)
    assert terms["independence"].value.item() == pytest.approx(0.2646693778, rel=1e-9)
    assert total.item() == pytest.approx(3.634958045, rel=1e-9)
    assert to_coefficients == pytest.approx([0.01909869142, 0.03799216291], rel=1e-8)
    found = [math.hypot(*slopes(total, list(nets[name].parameters()))) for name in nets][:2]
    assert found == pytest.approx([0.966382292, 0.7994332321], rel=1e-8)


@torch.no_grad()
def fill_as_released(net):
    """Fill a three-decoder V-Net so that it is the release's VNet_mct, without unused blocks.

    Its 1x1x1 convolution before interpolation is a 3x3x3 one after it that is zero but for its
    centre, for interpolation is linear and its weights have the sum 1.
    """
    decoders = net.transposed, net.trilinear, net.nearest
    fill(in_their_order(net.encoder, *decoders))
    wide = [up[1][0].weight for decoder in decoders[1:] for up in decoder.ups]
    for n, parameter in enumerate(in_their_order(net.encoder, *decoders)):
        if any(parameter is kernel for kernel in wide):
            parameter.zero_()
            parameter[..., 1:2, 1:2, 1:2] = waves(*parameter.shape[:2], 1, 1, 1, phase=n)


def test_the_mc_form_has_the_figure_of_the_released_code():
    """The same lines, l_correlation_cos_mean_mct* of utils/losses.py, networks/vnet.py VNet_mct.

    For decoder 3 the release has the kernels of decoder 2 before those of decoder 1.
    """
    method = CauSSLMC(**CauSSLMC.with_authors, variant="released")
    nets = widths_of_two(method)
    net = nets["student"]
    fill_as_released(net)
    for k, branch in enumerate(nets["coefficients"]):
        fill(branch, phase=(k + 1) / 2)
    for a in nets["coefficients"][2]:
        a.data = torch.cat(a.data.chunk(2, 1)[::-1], 1)
    with torch.no_grad():
        found = [sum_and_norm(x.logits) for x in net(waves(4, 1, 16, 16, 16))]
    assert found[0] == pytest.approx((-102297.6978, 871.3922448), rel=1e-9)
    assert found[1] == pytest.approx((96306.92809, 608.591197), rel=1e-9)
    assert found[2] == pytest.approx((-131771.5783, 903.1280053), rel=1e-9)

    terms, total, to_coefficients = released_terms(method, nets)
    assert terms["independence"].value.item() == pytest.approx(0.384768624, rel=1e-9)
    assert total.item() == pytest.approx(4.078499501, rel=1e-9)
    expected = [0.05440019606, 0.08020799168, 0.01718594557]
    assert to_coefficients == pytest.approx(expected, rel=1e-8)
    parts = [list(net.encoder.parameters())]
    parts += [
        [*decoder.blocks.parameters(), *decoder.output.parameters()]
        for decoder in (net.transposed, net.trilinear, net.nearest)
    ]
    expected = [0.08693046735, 0.9887575619, 0.2689037176, 0.1284005373]
    assert [math.hypot(*slopes(total, part)) for part in parts] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("form", "name", "value", "message"),
    [
        (CauSSLCPS, "weight", -0.1, "weight=-0.1; it must be at least 0"),
        (CauSSLCPS, "rampup", -1.0, "rampup=-1.0; it must be at least 0"),
        (CauSSLCPS, "coefficient", -1.0, "coefficient=-1.0; it must be at least 0"),
        (CauSSLCPS, "starts", 2.0, r"starts=2.0; it must lie in \[0, 1\]"),
        (CauSSLCPS, "cross_starts", -0.5, r"cross_starts=-0.5; it must lie in \[0, 1\]"),
        (CauSSLMC, "temperature", 0.0, r"temperature=0.0; it must lie in \[0.01, 1\]"),
        (CauSSLMC, "variant", "paper", "variant='paper'; known: fixed, released"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(form, name, value, message):
    with pytest.raises(ValueError, match=message):
        form(**{name: value})
