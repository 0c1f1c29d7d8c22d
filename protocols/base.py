"""What a checkpoint rule is: what it is offered, what it answers, and how users write it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from inspect import get_annotations
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from results.errors import UserError

REPORTED: Final = "test"
"""The split whose numbers are reported, whatever they are selected on."""

EACH: Final = "each"
ALL: Final = "all"


class Seen(NamedTuple):
    """Scores of the offered evaluations on one split that the rule declares.

    evaluated: whether this split was evaluated there, (evaluations,).
    means:     by metric, means over the cases that count, (evaluations,); NaN where none does.
    cases:     by metric, (cases, evaluations), cases by name; NaN where one does not count. Only
               for rules with `by_case`.
    """

    evaluated: NDArray[np.bool_]
    means: Mapping[str, NDArray[np.float64]]
    cases: Mapping[str, NDArray[np.float64]]


class Offer(NamedTuple):
    """What a rule chooses from: evaluations of one run, of one predictor or of several.

    run:   run id.
    steps: (evaluations,), ascending; within a step by predictor, `main` first.
    seen:  by declared split, and no other.
    """

    run: str
    steps: NDArray[np.int64]
    seen: Mapping[str, Seen]


class Choice(NamedTuple):
    """What a rule chose.

    places:      of the chosen among the offered evaluations, ascending; their mean is reported.
    evaluations: out of how many they were picked.
    values:      by metric, what is reported instead of that mean; None for the mean.
    """

    places: tuple[int, ...]
    evaluations: int
    values: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """Chooses evaluations of one run.

    every: only evaluations at steps that are multiples of it.
    start: only evaluations at this step or later; users write `from`.
    """

    name: ClassVar[str]
    by_case: ClassVar[bool] = False
    """Whether it gets the scores of single cases."""

    every: int = 1
    start: int = field(default=0, metadata={"written": "from"})

    def __post_init__(self) -> None:
        self._at_least("every", 1)
        self._at_least("start", 0)

    @property
    @abstractmethod
    def sees(self) -> tuple[str, ...]:
        """Splits whose scores the rule may use; all others are removed before it runs."""

    @property
    @abstractmethod
    def meaning(self) -> str:
        """A sentence for the foot of a table."""

    @abstractmethod
    def choose(self, offer: Offer) -> Choice:
        """Choose among the evaluations of one run; there is at least one."""

    @property
    def among(self) -> str:
        """Predictors that it chooses among: `each` by itself, `all`, or names joined by `+`."""
        return EACH

    @property
    def optimistic(self) -> bool:
        """Whether it reports cases that it chose on, as they are."""
        return False

    @property
    def expression(self) -> str:
        """What a user writes to get this rule."""
        given = [
            f"{key}={getattr(self, f.name)}"
            for key, f in parameters(type(self)).items()
            if getattr(self, f.name) != f.default
        ]
        return f"{self.name}({','.join(given)})" if given else self.name

    @property
    def selected_on(self) -> str:
        """The splits it selects on, in words."""
        return " and ".join(self.sees) or "nothing"

    @property
    def _offered(self) -> str:
        """Which evaluations it is offered, in words, if not all."""
        every = f" at multiples of {self.every} steps" if self.every > 1 else ""
        return every + (f" from step {self.start} on" if self.start else "")

    def _at_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            written = next(k for k, f in parameters(type(self)).items() if f.name == name)
            raise UserError(
                f"rule {self.name}: {written} is {getattr(self, name)}; expected {least} or more"
            )


def parameters(rule: type[Rule]) -> dict[str, Field[Any]]:
    """The parameters of a rule, its own first, by the name that users write.

    >>> list(parameters(Rule))
    ['every', 'from']
    """
    known = {f.name: f for f in fields(rule)}
    names = [name for base in rule.__mro__ for name in get_annotations(base) if name in known]
    return {known[n].metadata.get("written", n): known[n] for n in names}


def said(steps: NDArray[np.int64]) -> str:
    """Steps in words, the middle of many left out.

    >>> said(np.array([100, 200, 300, 400, 500, 600]))
    'steps 100, 200, 300 … 600'
    """
    texts = [str(step) for step in np.unique(steps)]
    if len(texts) > 5:
        return f"steps {', '.join(texts[:3])} … {texts[-1]}"
    return f"step{'s' if len(texts) > 1 else ''} {', '.join(texts)}"
