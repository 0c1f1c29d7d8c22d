"""The method contract: every registered method keeps it, and it catches who does not.

The broken methods below are variations of one that keeps it, a Mean Teacher (arXiv:1703.01780)
with the terms ``supervised`` and ``consistency``.
"""

from __future__ import annotations

import random  # noqa: TID251 - what a broken method draws from
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from benchmark import contract, miniature
from benchmark.contract import CHECKS
from methods import METHODS
from methods.base import Adam, Fidelity, Method, Recipe, Term
from methods.common import check_range, ema_, frozen, noisy, predictor, supervised_loss


@pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.name)
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_method_keeps_the_contract(cls, check):
    check(cls())


def test_method_names_are_unique():
    names = [cls.name for cls in METHODS]
    assert len(set(names)) == len(names)


def test_every_check_in_the_module_is_in_the_tuple():
    named = {f for name, f in vars(contract).items() if name.startswith("check_") and callable(f)}
    assert named == set(CHECKS)


@dataclass(frozen=True)
class Sound(Method):
    name: ClassVar[str] = "sound"
    title: ClassVar[str] = "Sound"
    paper: ClassVar[str] = "arXiv:1703.01780"
    bibtex: ClassVar[str] = "@misc{sound}"
    fidelity: ClassVar[Fidelity] = Fidelity.PORT
    deviations: ClassVar[tuple[str, ...]] = ("It is small.",)
    inputs: ClassVar[tuple[str, ...]] = ("image", "label", "unlabelled")

    decay: float = 0.9

    def __post_init__(self):
        check_range("decay", self.decay, 0, 1)

    def init(self, build):
        student = build()
        return nn.ModuleDict({"student": student, "teacher": frozen(deepcopy(student))})

    def losses(self, nets, batch, step, rng):
        logits = nets["student"](batch.image).logits
        student = nets["student"](batch.unlabelled).logits.softmax(1)
        with torch.no_grad():
            teacher = nets["teacher"](noisy(batch.unlabelled, 0.1, 0.2, rng)).logits.softmax(1)
        return {
            "supervised": Term(supervised_loss(logits, batch.label)),
            "consistency": Term((student - teacher).square().mean(), 0.1),
        }

    def after_step(self, nets, step):
        ema_(nets["teacher"], nets["student"], self.decay)

    def predictors(self, nets):
        return {"main": predictor(nets["student"])}


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_a_sound_method_passes(check):
    check(Sound())


def caught(check, method, message):
    with pytest.raises(AssertionError, match=message):
        check(method)


def with_terms(**replaced):
    """A method like `Sound` with some terms made by functions of (nets, batch, step, rng)."""

    class Broken(Sound):
        def losses(self, nets, batch, step, rng):
            terms = super().losses(nets, batch, step, rng)
            return terms | {name: make(nets, batch, step, rng) for name, make in replaced.items()}

    return Broken()


def with_class_variable(name, value):
    return type("Broken", (Sound,), {name: value, "__module__": __name__})()


def test_a_consistency_term_made_of_the_teachers_outputs_is_caught():
    def consistency(nets, batch, step, rng):
        with torch.no_grad():
            student = nets["student"](batch.unlabelled).logits.softmax(1)
            teacher = nets["teacher"](batch.unlabelled).logits.softmax(1)
        return Term((student - teacher).square().mean(), 0.1)

    caught(
        contract.check_gradients, with_terms(consistency=consistency), "'consistency' has no grad"
    )


def test_a_ramp_inside_the_value_is_caught():
    def consistency(nets, batch, step, rng):
        value = nets["student"](batch.unlabelled).logits.softmax(1).square().mean()
        return Term(step.fraction * value)

    caught(
        contract.check_gradients,
        with_terms(consistency=consistency),
        r"\['consistency'\] have a gradient of zero where they first appear",
    )


def test_a_term_of_a_later_stage_without_gradient_is_caught():
    class Late(Sound):
        def losses(self, nets, batch, step, rng):
            terms = super().losses(nets, batch, step, rng)
            if step.fraction >= 0.5:
                terms["late"] = Term(nets["student"](batch.image).logits.detach().square().mean())
            return terms

    caught(contract.check_gradients, Late(), "'late' has no gradient")


def test_a_saturated_term_is_caught():
    def consistency(nets, batch, step, rng):
        return Term(nets["student"](batch.unlabelled).logits.clamp(50, 51).mean())

    caught(contract.check_gradients, with_terms(consistency=consistency), "gradient of zero")


def test_an_infinite_gradient_is_caught():
    def consistency(nets, batch, step, rng):
        p = nets["student"](batch.unlabelled).logits.softmax(1)
        return Term((p - p.detach()).abs().sqrt().mean())

    caught(contract.check_gradients, with_terms(consistency=consistency), "not finite")


def test_a_term_that_waits_until_something_is_learnt_is_not_accused():
    def consistency(nets, batch, step, rng):
        logits = nets["student"](batch.image).logits
        learnt = supervised_loss(logits.detach(), batch.label) < 0.5
        return Term(learnt * logits.square().mean(), 0.0)

    method = with_terms(consistency=consistency)
    batch = miniature.make_batch(method, 0)
    fresh = miniature.small_learner(method)
    assert miniature.values_at(fresh, batch, miniature.STEPS[0])["consistency"] == 0.0
    contract.check_gradients(method)


def test_a_teacher_left_to_the_optimiser_is_caught():
    class Broken(Sound):
        def init(self, build):
            student = build()
            return nn.ModuleDict({"student": student, "teacher": deepcopy(student)})

    caught(contract.check_gradients, Broken(), r"teacher\..* learn from no term")


def test_a_student_aliased_to_its_teacher_is_caught():
    class Broken(Sound):
        def init(self, build):
            student = build()
            return nn.ModuleDict({"student": student, "teacher": student})

    caught(contract.check_networks_are_separate, Broken(), "'student' and 'teacher' share weights")


def test_a_frozen_network_that_never_moves_is_caught():
    class Broken(Sound):
        def after_step(self, nets, step):
            pass

    caught(contract.check_frozen_networks, Broken(), "'teacher' is frozen and never moves")


@pytest.mark.parametrize(
    ("library", "draw"),
    [
        ("torch", lambda: torch.randn(()).item()),
        ("NumPy", lambda: np.random.rand()),  # noqa: NPY002
        ("Python", random.random),
    ],
)
def test_global_randomness_is_caught(library, draw):
    def consistency(nets, batch, step, rng):
        return Term(nets["student"](batch.unlabelled + draw()).logits.softmax(1)[:, 1].mean())

    method = with_terms(consistency=consistency)
    caught(contract.check_no_global_randomness, method, f"{library}'s global generator")
    if library != "torch":  # torch's is reseeded for dropout at every step
        caught(contract.check_repeatable, method, "draw from `rng` only")


def test_a_generator_of_ones_own_is_caught():
    def consistency(nets, batch, step, rng):
        noise = np.random.default_rng().normal()
        return Term(nets["student"](batch.unlabelled + noise).logits.softmax(1)[:, 1].mean())

    caught(contract.check_repeatable, with_terms(consistency=consistency), "draw from `rng` only")


def test_a_declared_input_that_is_ignored_is_caught():
    def consistency(nets, batch, step, rng):
        return Term(nets["student"](batch.image).logits.softmax(1)[:, 1].mean())

    caught(
        contract.check_inputs, with_terms(consistency=consistency), r"\['unlabelled'\] are declared"
    )


def test_a_declared_input_that_only_reaches_batch_norm_is_caught():
    class Broken(Sound):
        def losses(self, nets, batch, step, rng):
            both = nets["student"](torch.cat([batch.image, batch.unlabelled])).logits
            return {"supervised": Term(supervised_loss(both[:2], batch.label))}

    caught(contract.check_inputs, Broken(), r"\['unlabelled'\] are declared but change no term")


def test_an_undeclared_input_that_is_used_is_caught():
    class Broken(Sound):
        inputs = ("image", "label")

        def losses(self, nets, batch, step, rng):
            logits = nets["student"](torch.cat([batch.image, batch.unlabelled])).logits
            return {
                "supervised": Term(supervised_loss(logits[:2], batch.label)),
                "consistency": Term(logits.softmax(1)[:, 1].mean()),
            }

    caught(contract.check_inputs, Broken(), "'unlabelled' changes terms but is not declared")


def test_an_undeclared_extra_that_is_read_is_caught():
    def consistency(nets, batch, step, rng):
        return Term(batch.extras["sdf"].mean())

    caught(contract.check_terms, with_terms(consistency=consistency), "'sdf' is read but not decl")


REMEMBERED: dict[int, torch.Tensor] = {}


def test_memory_in_the_module_is_caught():
    def consistency(nets, batch, step, rng):
        now = nets["student"](batch.unlabelled).logits.softmax(1)
        before = REMEMBERED.get(step.index - 1, now.detach())
        REMEMBERED[step.index] = now.detach()
        return Term((now - before).square().mean() + now[:, 1].mean())

    caught(
        contract.check_memory, with_terms(consistency=consistency), "test_methods.REMEMBERED chan"
    )


def test_memory_in_the_class_is_caught():
    class Broken(Sound):
        seen: ClassVar[list[int]] = []

        def after_step(self, nets, step):
            super().after_step(nets, step)
            self.seen.append(step.index)

    caught(contract.check_memory, Broken(), "Broken.seen changes in training")


def test_memory_outside_the_networks_is_caught():
    class Broken(Sound):
        def losses(self, nets, batch, step, rng):
            terms = super().losses(nets, batch, step, rng)
            seen = nets["student"].seen = getattr(nets["student"], "seen", 0) + 1
            return terms | {"consistency": Term(seen * terms["consistency"].value)}

    caught(contract.check_resume, Broken(), "next step differs in .*keep all .* in `nets`")


def test_memory_that_a_later_stage_keeps_outside_the_networks_is_caught():
    class Late(Sound):
        def losses(self, nets, batch, step, rng):
            terms = super().losses(nets, batch, step, rng)
            if step.fraction < 0.5:
                return terms
            seen = nets["student"].seen = getattr(nets["student"], "seen", 0) + 1
            return terms | {"late": Term(seen * terms["consistency"].value)}

    caught(contract.check_resume, Late(), r"at step 21 of 40 the next step differs in \['late', ")


def test_a_memory_in_a_buffer_that_is_not_saved_is_caught():
    class Late(Sound):
        def init(self, build):
            nets = super().init(build)
            nets["student"].register_buffer("bank", torch.zeros(()), persistent=False)
            return nets

        def losses(self, nets, batch, step, rng):
            terms = super().losses(nets, batch, step, rng)
            return terms | {"recalled": Term(terms["consistency"].value * nets["student"].bank)}

        def after_step(self, nets, step):
            super().after_step(nets, step)
            nets["student"].bank += 1

    caught(contract.check_resume, Late(), r"differs in \['recalled', ")


def test_every_stage_is_resumed_from_within():
    history = [{"supervised": 1.0}] * 10 + [{"supervised": 1.0, "pseudo": 1.0}] * 30
    assert contract._stops(history) == [3, 10, 11, 39]


def test_weights_that_do_not_follow_the_seed_are_caught():
    class Unseeded(Sound):
        def init(self, build):
            nets = super().init(build)
            shift = np.random.default_rng().normal()
            with torch.no_grad():
                nets["student"].decoder.output.bias += shift
            return nets

    class Constant(Sound):
        def init(self, build):
            nets = super().init(build)
            for p in nets.parameters():
                nn.init.constant_(p, 0.1)
            return nets

    caught(contract.check_initialisation, Unseeded(), "differ between two runs with one seed")
    caught(contract.check_initialisation, Constant(), "two seeds give the same weights")


def test_init_must_return_a_module_dict():
    class Broken(Sound):
        def init(self, build):
            return {"student": build()}

    caught(contract.check_players, Broken(), "returns a dict; return an nn.ModuleDict")


def test_an_optimiser_for_nobody_is_caught():
    broken = type("Broken", (Sound,), {"adam": {"critic": Adam(1e-4)}})()
    caught(contract.check_players, broken, "`adam` names players that do not exist: critic")


@pytest.mark.parametrize(
    ("players", "message"),
    [
        (lambda n: {"main": list(n["student"].encoder.parameters())}, "have no player"),
        (lambda n: {"main": list(n["student"].parameters())} | {"b": []}, "'b' has no parameters"),
        (
            lambda n: {k: list(n["student"].parameters()) for k in ("main", "again")},
            "belongs to two players",
        ),
        (lambda n: {"main": list(n.parameters())}, "is frozen but belongs to 'main'"),
        (
            lambda n: {"main": [*n["student"].parameters(), nn.Parameter(torch.zeros(1))]},
            "has a parameter outside `nets`",
        ),
    ],
)
def test_players_that_do_not_cover_what_learns_are_caught(players, message):
    broken = type("Broken", (Sound,), {"players": lambda self, nets: players(nets)})()
    caught(contract.check_players, broken, message)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Term(torch.ones(2)), "is not a scalar tensor"),
        (Term(1.0), "is not a scalar tensor"),
        (Term(torch.tensor(float("nan"))), "is nan: make it finite"),
        (Term(torch.tensor(1.0), float("inf")), "has weight inf"),
        (Term(torch.tensor(1.0), torch.tensor(1.0)), r"has weight tensor\(1.\)"),
        (Term(torch.tensor(1.0), player="critic"), "for player 'critic'; players: main"),
    ],
)
def test_malformed_terms_are_caught(term, message):
    caught(contract.check_terms, with_terms(consistency=lambda *_: term), message)


def test_no_terms_at_all_are_caught():
    broken = type("Broken", (Sound,), {"losses": lambda *_: {}})()
    caught(contract.check_terms, broken, "no terms at step 0")


def test_losses_that_change_their_batch_or_weights_are_caught():
    def noise(nets, batch, step, rng):
        return Term(batch.unlabelled.add_(1.0).mean())

    def update(nets, batch, step, rng):
        ema_(nets["teacher"], nets["student"], 0.5)
        for p in nets["teacher"].parameters():
            p.mul_(0.9)
        return Term(torch.tensor(1.0))

    method = with_terms(consistency=noise)
    caught(contract.check_repeatable, method, "batch's unlabelled in place")
    caught(contract.check_repeatable, with_terms(consistency=update), "changes weights")


def test_a_supervised_term_of_the_wrong_sign_is_caught():
    class Broken(Sound):
        def losses(self, nets, batch, step, rng):
            terms = super().losses(nets, batch, step, rng)
            return terms | {"supervised": Term(terms["supervised"].value, -1.0)}

    caught(contract.check_learns, Broken(), "supervised goes from .* in 40 steps")


def test_a_method_without_a_supervised_term_is_caught():
    class Broken(Sound):
        def losses(self, nets, batch, step, rng):
            return {"dice": super().losses(nets, batch, step, rng)["supervised"]}

    caught(contract.check_learns, Broken(), "starts with 'supervised'")


def stochastic(nets):
    def predict(image):
        return predictor(nets["student"].train())(image)

    return predict


@pytest.mark.parametrize(
    ("predictors", "message"),
    [
        (lambda n: {"student": predictor(n["student"])}, "no predictor 'main'"),
        (lambda n: {"main": lambda x: n["student"](x).logits}, "does not give probabilities"),
        (lambda n: {"main": lambda x: predictor(n["student"])(x)[:, 1:]}, "gives shape"),
        (lambda n: {"main": stochastic(n)}, "gives two answers in evaluation mode"),
        (lambda n: {"main": predictor(n["student"]), "The Mean": None}, "lower-case"),
    ],
)
def test_unusable_predictors_are_caught(predictors, message):
    broken = type("Broken", (Sound,), {"predictors": lambda self, nets: predictors(nets)})()
    caught(contract.check_predictors, broken, message)


def test_a_term_that_never_counts_is_caught():
    def consistency(nets, batch, step, rng):
        value = nets["student"](batch.unlabelled).logits.softmax(1).square().mean()
        return Term(value, 0.1 * (step.index // step.total))

    caught(contract.check_terms, with_terms(consistency=consistency), r"\['consistency'\] have w")


def test_swapped_classes_are_caught():
    class Swapped(Sound):
        def predictors(self, nets):
            return {"main": lambda images: predictor(nets["student"])(images).flip(1)}

    caught(contract.check_predictors, Swapped(), "look at the order of its classes")


def test_a_predictor_that_writes_into_the_networks_is_caught():
    class Leaking(Sound):
        def init(self, build):
            nets = super().init(build)
            nets["student"].register_buffer("seen", torch.zeros(()))
            return nets

        def predictors(self, nets):
            def main(images):
                nets["student"].seen.add_(images.mean())
                return predictor(nets["student"])(images)

            return {"main": main}

    caught(contract.check_predictors, Leaking(), r"changes \['student.seen'\]")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("name", "Sound Method", "lower-case letters, digits and hyphens"),
        ("title", " ", "title is empty"),
        ("paper", "NeurIPS", "give a DOI"),
        ("bibtex", "Tarvainen 2017", "does not begin with '@'"),
        ("version", 0, "version is 0"),
        ("fidelity", "port", "use a member of methods.base.Fidelity"),
        ("deviations", (), "`deviations` is empty"),
        ("deviations", ("it is small",), "is not a sentence"),
    ],
)
def test_malformed_metadata_is_caught(variable, value, message):
    caught(contract.check_metadata, with_class_variable(variable, value), message)


@pytest.mark.parametrize(
    "paper",
    [
        "arXiv:1703.01780",
        "10.1109/3DV.2016.79",
        "ICML 2026, PMLR 306",
        "ICCV 2023, pp. 21426-21437",
    ],
)
def test_a_paper_is_a_doi_an_arxiv_id_or_a_volume_of_proceedings(paper):
    contract.check_metadata(with_class_variable("paper", paper))


def test_missing_metadata_is_caught():
    class Bare(Method):
        init = losses = predictors = None

    Bare.__abstractmethods__ = frozenset()
    caught(contract.check_metadata, Bare(), "class variable `name` is missing")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (("image", "depth"), r"unknown inputs \['depth'\]; known: image, label, unlabelled, sdf"),
        (("image", "image"), "names one twice"),
    ],
)
def test_inputs_that_no_batch_can_carry_are_caught(inputs, message):
    caught(contract.check_inputs_are_known, with_class_variable("inputs", inputs), message)


def test_an_undocumented_term_is_caught():
    method = with_terms(secret=lambda *_: Term(torch.tensor(1.0)))
    caught(contract.check_docstring, method, r"terms \['secret'\] are not in the module docstring")


def test_a_paper_that_is_not_cited_is_caught():
    method = with_class_variable("paper", "arXiv:2001.00001")
    caught(contract.check_docstring, method, "does not cite arXiv:2001.00001")


@dataclass(frozen=True)
class WithoutDefault(Sound):
    width: int = field(kw_only=True)


@dataclass(frozen=True)
class WithTuple(Sound):
    widths: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class WithInteger(Sound):
    weight: float = 1


@dataclass(frozen=True)
class WithoutRange(Sound):
    weight: float = 1.0


@dataclass(frozen=True)
class WithoutChoices(Sound):
    variant: str = "paper"


class Undecorated(Sound):
    pass


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (WithoutDefault(width=3), "'width' has no default"),
        (WithTuple(), "'widths' has no default of type bool, int, float or str"),
        (WithInteger(), "'weight' is a float with default 1"),
        (WithoutRange(), "'weight' accepts nan"),
        (WithoutChoices(), "'variant' accepts 'no such value'"),
        (Undecorated(), "Undecorated is not a frozen dataclass"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_unusable_hyperparameters_are_caught(method, message):
    caught(contract.check_hyperparameters, method, message)


@pytest.mark.parametrize(
    ("authors", "theirs", "message"),
    [
        (None, {"decay": 0.5}, "`authors` is not: add the recipe"),
        (Recipe("authors"), {"delay": 0.5}, r"names \['delay'\]; hyperparameters: \['decay'\]"),
        (Recipe("authors"), {"decay": 1.5}, "is refused: decay=1.5; it must lie in"),
    ],
)
def test_hyperparameters_of_the_authors_that_cannot_be_set_are_caught(authors, theirs, message):
    broken = {"authors": authors, "with_authors": theirs, "__module__": __name__}
    caught(contract.check_authors, type("Broken", (Sound,), broken)(), message)


def test_a_batch_carries_what_is_declared_and_nothing_else():
    batch = miniature.make_batch(with_class_variable("inputs", ("image", "label", "sdf")), 0)
    assert batch.image.shape == (2, 1, 16, 16, 16)
    assert batch.unlabelled.shape == (0, 1, 16, 16, 16)
    assert set(batch.extras) == {"sdf"}
    assert batch.extras["sdf"].shape == (2, 1, 16, 16, 16)
    assert set(batch.label.unique().tolist()) == {0, 1}
