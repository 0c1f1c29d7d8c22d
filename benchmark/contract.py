"""What every method must keep to, as checks that anyone can run on their own method.

`CHECKS` has them all. Each takes a method and raises AssertionError with the rule that is broken
and what to do. They look at it in miniature (`benchmark.miniature`): a few seconds in all, and no
data needed.
"""

from __future__ import annotations

import dataclasses
import io
import math
import random  # noqa: TID251 - its state is read, to see that nobody drew from it
import re
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.miniature import (
    RUN,
    SIDE,
    STEPS,
    TOTAL,
    DeclaredExtras,
    check_inputs_are_known,
    demand,
    fresh_and_trained,
    make_batch,
    small_learner,
    straight_run,
    terms_at,
    train,
    values_at,
)
from benchmark.seeding import torch_generator
from methods.base import Batch, Fidelity, Method, Term

_NAME = re.compile(r"[a-z0-9-]+")
_PAPER = re.compile(
    r"arXiv:\d{4}\.\d{4,5}|10\.\d{4,9}/\S+|[A-Za-z]+ \d{4}, (PMLR \d+|pp\. \d+-\d+)"
)


def check_metadata(method: Method) -> None:
    """Name, title, paper, BibTeX, version and fidelity are given and well formed."""
    for attribute in ("name", "title", "paper", "bibtex", "fidelity", "inputs"):
        demand(hasattr(method, attribute), f"class variable `{attribute}` is missing: add it")
    demand(
        _NAME.fullmatch(method.name) is not None,
        f"name is {method.name!r}; use lower-case letters, digits and hyphens only",
    )
    demand(bool(method.title.strip()), "title is empty: give the name that tables print")
    demand(
        _PAPER.fullmatch(method.paper) is not None,
        f"paper is {method.paper!r}; give a DOI ('10.…/…') or an arXiv id ('arXiv:1703.01780')",
    )
    demand(method.bibtex.startswith("@"), "bibtex does not begin with '@': give a BibTeX entry")
    demand(
        isinstance(method.version, int) and method.version >= 1,
        f"version is {method.version!r}; use 1, 2, … and raise it when the numbers change",
    )
    demand(
        isinstance(method.fidelity, Fidelity),
        f"fidelity is {method.fidelity!r}; use a member of methods.base.Fidelity",
    )
    demand(
        method.fidelity is Fidelity.PAPER or len(method.deviations) > 0,
        f"fidelity is {method.fidelity!s} but `deviations` is empty: list what differs from the "
        "paper or the release, a sentence each",
    )
    for deviation in method.deviations:
        demand(
            deviation.endswith("."),
            f"deviation {deviation!r} is not a sentence: end it with a full stop",
        )


def check_docstring(method: Method) -> None:
    """The module docstring cites the paper and mentions every term."""
    text = sys.modules[type(method).__module__].__doc__ or ""
    demand(
        method.paper in text,
        f"the module docstring does not cite {method.paper}: name it in the first line",
    )
    learner, batch = small_learner(method), make_batch(method, 0)
    terms = {name for step in STEPS for name in terms_at(learner, batch, step)}
    missing = sorted(name for name in terms if f"``{name}``" not in text)
    demand(
        not missing,
        f"terms {missing} are not in the module docstring: add a row ``term`` | here | paper each",
    )


def check_hyperparameters(method: Method) -> None:
    """A frozen dataclass of validated bool, int, float and str fields with defaults."""
    cls = type(method)
    params = vars(cls).get("__dataclass_params__")
    demand(
        params is not None and params.frozen,
        f"{cls.__name__} is not a frozen dataclass: decorate it with @dataclass(frozen=True)",
    )
    for field in dataclasses.fields(method):
        default = field.default
        demand(
            type(default) in (bool, int, float, str),
            f"hyperparameter {field.name!r} has no default of type bool, int, float or str: "
            "give it one, so that it can be set on the command line and stored in a column",
        )
        demand(
            field.type not in ("float", float) or type(default) is float,
            f"hyperparameter {field.name!r} is a float with default {default!r}: write a float",
        )
        nonsense: float | str = math.nan if type(default) is float else "no such value"
        if type(default) in (float, str):
            demand(
                _refuses(method, field.name, nonsense),
                f"hyperparameter {field.name!r} accepts {nonsense!r}: check its range or "
                "choices in __post_init__ and raise ValueError",
            )


def check_authors(method: Method) -> None:
    """What the authors' recipe sets are hyperparameters of the method, within their ranges."""
    cls = type(method)
    demand(
        cls.authors is not None or not cls.with_authors,
        "`with_authors` is given but `authors` is not: add the recipe, or drop it",
    )
    known = {field.name for field in dataclasses.fields(method)}
    unknown = sorted(set(cls.with_authors) - known)
    demand(not unknown, f"`with_authors` names {unknown}; hyperparameters: {sorted(known)}")
    try:
        cls(**cls.with_authors)
    except ValueError as error:
        raise AssertionError(f"`with_authors` is refused: {error}") from None


def _refuses(method: Method, name: str, value: float | str) -> bool:
    try:
        dataclasses.replace(method, **{name: value})
    except ValueError:
        return True
    return False


def check_initialisation(method: Method) -> None:
    """The seed, and nothing else, decides the weights at step 0."""
    first, again, other = (small_learner(method, s).nets.state_dict() for s in (0, 0, 1))
    different = [name for name in first if not first[name].equal(again[name])]
    demand(
        not different,
        f"{different[:3]} differ between two runs with one seed: draw weights with torch only",
    )
    demand(
        any(not first[name].equal(other[name]) for name in first),
        "two seeds give the same weights: build networks with the factory that `init` is given",
    )


def check_networks_are_separate(method: Method) -> None:
    """No parameter or buffer belongs to two networks: a teacher is not its student."""
    owner: dict[int, str] = {}
    for name, net in small_learner(method).nets.items():
        for tensor in (*net.parameters(), *net.buffers()):
            other = owner.setdefault(id(tensor), name)
            demand(
                other == name,
                f"networks {other!r} and {name!r} share weights: build two, or use copy.deepcopy",
            )


def check_players(method: Method) -> None:
    """The optimisers' parameters are those with requires_grad, each once."""
    nets = small_learner(method).nets
    names = {id(p): name for name, p in nets.named_parameters()}
    unknown = set(method.adam) - set(method.players(nets))
    demand(not unknown, f"`adam` names players that do not exist: {', '.join(sorted(unknown))}")
    seen: set[int] = set()
    for player, parameters in method.players(nets).items():
        for p in parameters:
            demand(
                id(p) in names, f"player {player!r} has a parameter outside `nets`: put it inside"
            )
            name = names[id(p)]
            demand(id(p) not in seen, f"{name} belongs to two players: give it to one")
            demand(p.requires_grad, f"{name} is frozen but belongs to {player!r}: leave it out")
            seen.add(id(p))
    forgotten = [n for n, p in nets.named_parameters() if p.requires_grad and id(p) not in seen]
    demand(
        not forgotten,
        f"{len(forgotten)} parameters, {forgotten[:1]} first, learn but have no player: "
        "give them to one, or freeze them",
    )


def check_terms(method: Method) -> None:
    """Terms are finite scalars with finite weights and known players; each counts at some time."""
    learner, batch = small_learner(method), make_batch(method, 0)
    players = set(method.players(learner.nets))
    weights: dict[str, list[float]] = {}
    for step in STEPS:
        terms = terms_at(learner, batch, step)
        demand(bool(terms), f"no terms at step {step.index}: return at least the supervised one")
        for name, term in terms.items():
            where = f"term {name!r} at step {step.index} of {step.total}"
            demand(
                isinstance(term.value, Tensor) and term.value.shape == (),
                f"{where} is not a scalar tensor: reduce it",
            )
            demand(bool(term.value.isfinite()), f"{where} is {term.value.item()}: make it finite")
            demand(
                isinstance(term.weight, float | int) and math.isfinite(term.weight),
                f"{where} has weight {term.weight!r}: make it a finite float",
            )
            demand(
                term.player in players,
                f"{where} is for player {term.player!r}; players: {', '.join(sorted(players))}",
            )
            weights.setdefault(name, []).append(term.weight)
    never = sorted(name for name, given in weights.items() if not any(given))
    demand(
        not never,
        f"terms {never} have weight 0 at the first, middle and last step: they train nothing, so "
        "look at their schedule (`step.fraction`), or drop them",
    )


def check_gradients(method: Method) -> None:
    """The unweighted value of each term moves its player where it first appears; no one is idle."""
    batch = make_batch(method, 0)
    appeared: set[str] = set()
    moving: set[str] = set()
    for learner in fresh_and_trained(method):
        players = method.players(learner.nets)
        reached: set[int] = set()
        seen: set[str] = set()
        for step in STEPS:
            terms = terms_at(learner, batch, step)
            for name in terms.keys() - seen:
                term, player = terms[name], players[terms[name].player]
                gradients = _gradients(name, term, player)
                reached |= {id(p) for p, g in zip(player, gradients, strict=True) if g is not None}
                if any(g is not None and g.count_nonzero() for g in gradients):
                    moving.add(name)
            seen |= terms.keys()
        appeared |= seen
        idle = [
            name
            for name, p in learner.nets.named_parameters()
            if p.requires_grad and id(p) not in reached
        ]
        demand(
            not idle,
            f"{len(idle)} parameters, {idle[:1]} first, learn from no term of their player: "
            "freeze them (`frozen`) if they are averaged or copied, or use them",
        )
        if appeared == moving:
            return
    raise AssertionError(
        f"terms {sorted(appeared - moving)} have a gradient of zero where they first appear, so "
        "they train nothing: give schedules as weights, not as values, and look for saturated or "
        "detached parts"
    )


def _gradients(name: str, term: Term, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    demand(
        term.value.requires_grad,
        f"term {name!r} has no gradient, so it trains nothing: it is made of detached "
        "tensors or under no_grad (are the student's outputs in it?)",
    )
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
        term.value, parameters, retain_graph=True, allow_unused=True
    )
    demand(
        all(g is None or bool(g.isfinite().all()) for g in gradients),
        f"the gradient of term {name!r} is not finite: guard roots, logs and divisions",
    )
    return gradients


def check_inputs(method: Method) -> None:
    """Each declared input changes some term, and an undeclared one changes none."""
    check_inputs_are_known(method)
    batch = make_batch(method, 0)
    ignored = set(method.inputs)
    for learner in fresh_and_trained(method):
        learner.nets.eval()
        for step in STEPS:
            before = values_at(learner, batch, step)
            for name in ("image", "label", "unlabelled", *batch.extras):
                if values_at(learner, _altered(batch, name), step) != before:
                    demand(
                        name in method.inputs,
                        f"input {name!r} changes terms but is not declared: add it to `inputs`",
                    )
                    ignored.discard(name)
        if not ignored:
            return
        learner.nets.train()
    raise AssertionError(
        f"inputs {sorted(ignored)} are declared but change no term: use them or drop them "
        "from `inputs`"
    )


def _altered(batch: Batch, name: str) -> Batch:
    """The batch with one input changed; unlabelled volumes appear where there were none."""
    if name == "label":
        return dataclasses.replace(batch, label=1 - batch.label)
    if name == "image":
        return dataclasses.replace(batch, image=batch.image.flip(2))
    if name == "unlabelled":
        volumes = batch.unlabelled if len(batch.unlabelled) else batch.image
        return dataclasses.replace(batch, unlabelled=volumes.flip(2))
    return dataclasses.replace(
        batch, extras=DeclaredExtras({**batch.extras, name: -batch.extras[name]})
    )


def check_repeatable(method: Method) -> None:
    """Same networks, batch, step and seed give the same terms, and nothing is changed by them."""
    learner, batch = small_learner(method), make_batch(method, 0)
    for step in STEPS:
        twin, given = deepcopy(learner), deepcopy(batch)
        before = [p.clone() for p in twin.nets.parameters()]
        first = values_at(twin, given, step)
        for p, q in zip(twin.nets.parameters(), before, strict=True):
            demand(p.equal(q), "`losses` changes weights: do it in `after_step`")
        for name in ("image", "label", "unlabelled"):
            demand(
                getattr(given, name).equal(getattr(batch, name)),
                f"`losses` changes the batch's {name} in place: work on a copy",
            )
        second = values_at(deepcopy(learner), deepcopy(batch), step)
        demand(
            first == second,
            f"the same step {step.index} gives {first}, then {second}: draw from `rng` only, and "
            "keep what changes in `nets`",
        )


def check_no_global_randomness(method: Method) -> None:
    """Without dropout nothing draws from the global generators of torch, NumPy or Python."""
    learner, batch = small_learner(method), make_batch(method, 0)
    learner.nets.eval()
    for step in STEPS:
        rng = torch_generator(0, "noise", step.index)
        before = _global_states()
        method.losses(learner.nets, batch, step, rng)
        method.after_step(learner.nets, step)
        for library, state in _global_states().items():
            demand(
                state == before[library],
                f"{library}'s global generator is used at step {step.index}: pass "
                "`generator=rng` to every draw",
            )


def _global_states() -> dict[str, bytes]:
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "NumPy": repr(np.random.get_state()).encode(),  # noqa: NPY002 - read, not drawn from
        "Python": repr(random.getstate()).encode(),
    }


def check_frozen_networks(method: Method) -> None:
    """Weights without gradient are moved by the method itself, and by nothing else."""
    learner, batch = small_learner(method), make_batch(method, 0)
    start = {n: p.clone() for n, p in learner.nets.named_parameters() if not p.requires_grad}
    train(learner, batch, STEPS)
    now = dict(learner.nets.named_parameters())
    for name in sorted({n.split(".")[0] for n in start}):
        mine = [n for n in start if n.split(".")[0] == name]
        demand(
            all(now[n].grad is None for n in mine), f"network {name!r} is frozen but has gradients"
        )
        demand(
            any(not now[n].equal(start[n]) for n in mine),
            f"network {name!r} is frozen and never moves: update it in `after_step`",
        )


def check_memory(method: Method) -> None:
    """Training changes nothing in the method's module and class, which no checkpoint holds."""
    learner, batch = small_learner(method, seed=1), make_batch(method, 1)
    before = _held(method)
    train(learner, batch, STEPS)
    after = _held(method)
    changed = sorted(name for name in after if after[name] != before.get(name))
    demand(
        not changed,
        f"{', '.join(changed)} changes in training: keep all that the method remembers in `nets`, "
        "as parameters or buffers",
    )


def _held(method: Method) -> dict[str, bytes]:
    """What the method's module and class hold, functions and classes apart, by name."""
    cls = type(method)
    held = {}
    for owner in (sys.modules[cls.__module__], cls):
        for name, value in vars(owner).items():
            plain = not callable(value) or isinstance(value, nn.Module)
            if plain and not name.startswith("__") and not isinstance(value, ModuleType):
                held[f"{owner.__name__}.{name}"] = _bytes_of(value)
    return held


def _bytes_of(value: object) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except Exception:  # of a plugin's class, whatever it is
        return repr(value).encode()
    return buffer.getvalue()


def check_resume(method: Method) -> None:
    """Stop, save, load and continue equals the straight run to the last bit, in every stage.

    Stops are early, late, and before and after each step at which terms appear or go, which is
    where stages change and memories are first used.
    """
    batch, (history, states) = make_batch(method, 0), straight_run(method)
    for stop in _stops(history):
        buffer = io.BytesIO()
        torch.save(states[stop], buffer)
        buffer.seek(0)
        resumed = small_learner(method, seed=1)
        resumed.seed = 0
        resumed.load(torch.load(buffer, weights_only=True))
        [values] = train(resumed, batch, RUN[stop : stop + 1])
        nets, expected = resumed.nets.state_dict(), states[stop + 1]["nets"]
        different = [name for name in values if values[name] != history[stop][name]]
        different += [name for name in nets if not nets[name].equal(expected[name])]
        demand(
            not different,
            f"after save and load at step {stop} of {TOTAL} the next step differs in "
            f"{different[:3]}: keep all that the method remembers in `nets`, as parameters or "
            "buffers",
        )


def _stops(history: Sequence[dict[str, float]]) -> list[int]:
    """Steps before which to stop: the fourth, the last, and those around a change of terms."""
    changes = {i for i in range(1, TOTAL) if history[i].keys() != history[i - 1].keys()}
    return sorted({3, TOTAL - 1} | changes | {i + 1 for i in changes if i + 1 < TOTAL})


def check_learns(method: Method) -> None:
    """Forty steps on one batch lower the supervised terms."""
    learner, batch = small_learner(method), make_batch(method, 0)
    names = [n for n in terms_at(learner, batch, RUN[0]) if n.startswith("supervised")]
    demand(
        bool(names), "no term's name starts with 'supervised': name those on labelled volumes so"
    )
    history, _ = straight_run(method)
    losses = [sum(values[name] for name in names) for values in history]
    first, last = float(np.mean(losses[:5])), float(np.mean(losses[-5:]))
    demand(
        last < first,
        f"{', '.join(names)} goes from {first:.3f} to {last:.3f} in {TOTAL} steps on one batch: "
        "look at its sign, and at what competes with it",
    )


def check_predictors(method: Method) -> None:
    """Predictors give class probabilities, without chance or traces; "main" is what was learnt."""
    *_, learner = fresh_and_trained(method)
    batch = make_batch(method, 0)
    predictors = method.predictors(learner.nets)
    demand("main" in predictors, "there is no predictor 'main': name so what the paper reports")
    learner.nets.eval()
    before = deepcopy(learner.nets.state_dict())
    shape = (len(batch.image), 2, SIDE, SIDE, SIDE)
    for name, predict in predictors.items():
        where = f"predictor {name!r}"
        demand(
            _NAME.fullmatch(name) is not None, f"{where}: use lower-case letters, digits, hyphens"
        )
        with torch.inference_mode():
            first, second = predict(batch.image), predict(batch.image)
        demand(first.shape == shape, f"{where} gives shape {tuple(first.shape)}, not {shape}")
        demand(
            bool((first >= 0).all()) and torch.allclose(first.sum(1), torch.ones(()), atol=1e-5),
            f"{where} does not give probabilities that sum to 1 over the classes: apply softmax",
        )
        demand(first.equal(second), f"{where} gives two answers in evaluation mode: remove chance")
        after = learner.nets.state_dict()
        changed = [n for n in after if n not in before or not after[n].equal(before[n])]
        demand(
            not changed,
            f"{where} changes {changed[:3]}: predict without writing into `nets`, or what is "
            "evaluated reaches training",
        )
    with torch.inference_mode():
        foreground = predictors["main"](batch.image)[:, 1]
    inside = batch.label.bool()
    demand(
        bool(foreground[inside].mean() > foreground[~inside].mean()),
        f"after {TOTAL} steps on one batch 'main' finds foreground less likely inside the labels "
        "than outside: look at the order of its classes, and at which network it asks",
    )


CHECKS: tuple[Callable[[Method], None], ...] = (
    check_metadata,
    check_inputs_are_known,
    check_docstring,
    check_hyperparameters,
    check_authors,
    check_initialisation,
    check_networks_are_separate,
    check_players,
    check_terms,
    check_gradients,
    check_inputs,
    check_repeatable,
    check_no_global_randomness,
    check_frozen_networks,
    check_memory,
    check_resume,
    check_learns,
    check_predictors,
)
"""All of them, cheap ones first."""
