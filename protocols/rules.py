"""Checkpoint rules: which evaluations of a run are reported. A rule sees only what it declares.

A new rule is a frozen dataclass below, listed in `RULES`; its fields are its parameters, which
users write as `best(split=val)`. `protocols.selection.select` applies a rule to every run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import numpy as np

from protocols.base import ALL, EACH, REPORTED, Choice, Offer, Rule, parameters, said
from protocols.correction import LEAST_DRAWS, METHODS, best_of, corrected
from protocols.metrics import METRICS
from results.errors import UserError
from results.lookup import find, unknown

__all__ = [
    "REPORTED",
    "RULES",
    "Best",
    "Corrected",
    "Last",
    "LastK",
    "Rule",
    "Selection",
    "Val",
    "parse_rule",
    "signature",
]

SPLITS: Final = ("train", "val", "test")

TIES: Final = ("later", "earlier")


@final
@dataclass(frozen=True, kw_only=True)
class Last(Rule):
    """The last evaluation of the run."""

    name: ClassVar[str] = "last"

    @property
    def sees(self) -> tuple[str, ...]:
        """No score of any split."""
        return ()

    @property
    def meaning(self) -> str:
        """For the foot of a table."""
        return f"the last checkpoint of each run{self._offered}; nothing is selected"

    def choose(self, offer: Offer) -> Choice:
        """The last step, which is not picked out of any."""
        return Choice((len(offer.steps) - 1,), 1)


@final
@dataclass(frozen=True)
class LastK(Rule):
    """The mean over the last k evaluations of the run.

    k: how many; a run with fewer is an error.
    """

    name: ClassVar[str] = "last-k"
    k: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("k", 1)

    @property
    def sees(self) -> tuple[str, ...]:
        """No score of any split."""
        return ()

    @property
    def meaning(self) -> str:
        """For the foot of a table."""
        return (
            f"the mean over the last {self.k} evaluated checkpoints of each run{self._offered}; "
            "nothing is selected"
        )

    def choose(self, offer: Offer) -> Choice:
        """The last k evaluations, which are not picked out of any."""
        count = len(offer.steps)
        if count < self.k:
            raise UserError(
                f"rule {self.expression} averages {self.k} evaluations, but run {offer.run} has "
                f"only {count}{self._offered}, at {said(offer.steps)}; choose a smaller k"
            )
        return Choice(tuple(range(count - self.k, count)), 1)


@dataclass(frozen=True, kw_only=True)
class Selection(Rule):
    """Chooses the evaluation with the best mean over the cases of one split.

    metric:     which metric decides.
    tie:        which of equally good evaluations: the later, as TCSeg's `>=`, or the earlier.
    predictors: each by itself; or the choice is also made among all, or among those named.
    """

    metric: str = "dsc"
    tie: str = "later"
    predictors: str = EACH

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("metric", self.metric, METRICS)
        _one_of("tie", self.tie, TIES)
        names = self.predictors.split("+")
        if not all(names) or len(set(names)) < len(names):
            raise UserError(
                f"rule {self.name}: predictors is '{self.predictors}'; expected {EACH}, {ALL}, or "
                "names joined by +, each once, as main+teacher"
            )

    @property
    def among(self) -> str:
        """As the parameter says."""
        return self.predictors

    def choose(self, offer: Offer) -> Choice:
        """The best evaluation; NaN (no case counts there) is never the best."""
        (split,) = self.sees
        seen = offer.seen[split]
        evaluated = np.flatnonzero(seen.evaluated)
        place = best_of(seen.means[self.metric][None, evaluated], *self._order)[0]
        return Choice((int(evaluated[place]),), len(evaluated))

    @property
    def _order(self) -> tuple[bool, bool]:
        """Whether higher is better, and whether the later of equal ones."""
        return METRICS[self.metric].higher_is_better, self.tie == "later"

    @property
    def _chosen(self) -> str:
        """What it chooses, in words."""
        among = ""
        if self.predictors != EACH:
            among = f" and predictor (of {self.predictors.replace('+', ' and ')})"
        return (
            f"the checkpoint{among} of each run{self._offered} with the best mean "
            f"{METRICS[self.metric].label} over the {self.selected_on} cases (of equal ones the "
            f"{self.tie})"
        )


@final
@dataclass(frozen=True)
class Best(Selection):
    """The evaluation with the best mean over cases; on test, an oracle.

    split: which cases decide.
    """

    name: ClassVar[str] = "best"
    split: str = "test"

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("split", self.split, SPLITS)

    @property
    def sees(self) -> tuple[str, ...]:
        """The split that decides."""
        return (self.split,)

    @property
    def optimistic(self) -> bool:
        """When it chooses on the test cases."""
        return self.split == REPORTED

    @property
    def meaning(self) -> str:
        """For the foot of a table; says so when it is an oracle."""
        if not self.optimistic:
            return self._chosen
        return (
            f"{self._chosen}; it is chosen on the very test set that it is reported on, so it is "
            "an upper bound and not what anybody would get in use"
        )


@final
@dataclass(frozen=True, kw_only=True)
class Val(Selection):
    """The evaluation with the best mean over the validation cases."""

    name: ClassVar[str] = "val"

    @property
    def sees(self) -> tuple[str, ...]:
        """The validation cases."""
        return ("val",)

    @property
    def meaning(self) -> str:
        """For the foot of a table."""
        return f"{self._chosen}; it is reported on the {REPORTED} cases, which choose nothing"


@final
@dataclass(frozen=True)
class Corrected(Selection):
    """What best on test would reach on cases that it was not chosen on, by resampling the cases.

    method: bootstrap: choose on cases drawn with replacement, score on those left out; split:
            choose on a random half, score on the other, and the other way round.
    draws:  how often.
    seed:   of the draws; each run has its own, whatever other runs there are.

    References:
        Tsamardinos et al., Bootstrapping the out-of-sample predictions, Machine Learning 2018.
        Efron & Tibshirani, Improvements on cross-validation, JASA 1997, for the mean over cases.
    """

    name: ClassVar[str] = "corrected"
    by_case: ClassVar[bool] = True
    method: str = "bootstrap"
    draws: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("method", self.method, METHODS)
        self._at_least("draws", LEAST_DRAWS)
        self._at_least("seed", 0)

    @property
    def sees(self) -> tuple[str, ...]:
        """The test cases."""
        return (REPORTED,)

    @property
    def meaning(self) -> str:
        """For the foot of a table; says that it is an estimate, and how it is made."""
        return (
            f"{self._chosen}, corrected for that choice: an estimate of what it reaches on cases "
            f"that it was not chosen on. {METHODS[self.method].meaning(self.draws)}, seed "
            f"{self.seed}; each case counts with the mean of its scores when left out. Choosing "
            "on fewer cases than there are makes it slightly too low as a rule: read it as a "
            "lower bound where best is an upper one"
        )

    def choose(self, offer: Offer) -> Choice:
        """The evaluation that best reports, with the corrected value of every metric."""
        best = super().choose(offer)
        seen = offer.seen[REPORTED]
        cases = {m: scores[:, seen.evaluated] for m, scores in seen.cases.items()}
        count = len(cases[self.metric])
        if count < 2:
            raise UserError(
                f"rule {self.expression} leaves cases out, but run {offer.run} has only {count} "
                f"{REPORTED} case; choose another rule"
            )
        digest = hashlib.sha256(offer.run.encode()).digest()
        rng = np.random.default_rng([self.seed, int.from_bytes(digest[:8], "big")])
        weights = METHODS[self.method].draw(rng, self.draws, count)
        values = corrected(cases, self.metric, weights, *self._order)
        return best._replace(values=values)


RULES: Final[dict[str, type[Rule]]] = {
    "last": Last,
    "last-k": LastK,
    "best": Best,
    "val": Val,
    "corrected": Corrected,
}


def signature(rule: type[Rule]) -> str:
    """A rule's parameters with their defaults.

    >>> signature(Last)
    'every=1, from=0'
    """
    return ", ".join(f"{key}={f.default}" for key, f in parameters(rule).items())


def parse_rule(text: str) -> Rule:
    """The rule that an expression names.

    >>> parse_rule("best(split=val,from=800)").expression
    'best(split=val,from=800)'

    Raises:
        UserError: not `name` or `name(key=value,...)`, an unknown name, or a bad value.
    """
    match = re.fullmatch(r"\s*([^\s()]+)\s*(?:\((.*)\))?\s*", text)
    if match is None:
        raise UserError(f"rule '{text}': expected name or name(key=value,...), as best(split=val)")
    rule = find("rule", match.group(1), RULES)
    known = parameters(rule)
    values: dict[str, Any] = {}
    for part in (match.group(2) or "").split(","):
        if not part.strip():
            continue
        key, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not value:
            raise UserError(f"rule '{text}': expected key=value, not '{part.strip()}'")
        if key not in known:
            raise unknown(f"parameter of rule {rule.name}", key, known)
        if known[key].name in values:
            raise UserError(f"rule '{text}': {key} is given twice; keep one")
        kind: type[Any] = type(known[key].default)
        try:
            values[known[key].name] = kind(value)
        except ValueError:
            raise UserError(
                f"rule '{text}': {key} takes a value of type {kind.__name__}, not '{value}'"
            ) from None
    return rule(**values)


def _one_of(kind: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise unknown(kind, value, known)
