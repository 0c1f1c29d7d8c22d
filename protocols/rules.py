"""Checkpoint rules: which evaluations of a run are reported. A rule sees only what it declares.

A new rule is a frozen dataclass below, listed in `RULES`; its fields are its parameters, which
users write as `best(split=val)`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, NamedTuple, cast, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protocols.metrics import METRICS
from results.errors import UserError
from results.lookup import find, unknown

REPORTED: Final = "test"
"""The split whose numbers are reported, whatever they are selected on."""

SPLITS: Final = ("train", "val", "test")


class Choice(NamedTuple):
    """What a rule chose: the mean over `steps` is reported, picked out of `evaluations`."""

    steps: tuple[int, ...]
    evaluations: int


@dataclass(frozen=True)
class Rule(ABC):
    """Chooses evaluations of one run and predictor."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def sees(self) -> tuple[str, ...]:
        """Splits whose scores the rule may use; all others are removed before it runs."""

    @property
    @abstractmethod
    def meaning(self) -> str:
        """A sentence for the foot of a table."""

    @abstractmethod
    def choose(self, steps: NDArray[np.int64], seen: pd.DataFrame) -> Choice:
        """Choose among the evaluations of one run and predictor.

        Args:
            steps: all steps at which it was evaluated, ascending.
            seen: trajectory rows (split, step, cases, empty, beyond, dsc, asd, hd95) of the
                declared splits, by split and step.
        """

    @property
    def expression(self) -> str:
        """What a user writes to get this rule."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        given = [f"{f.name}={values[f.name]}" for f in fields(self) if values[f.name] != f.default]
        return f"{self.name}({','.join(given)})" if given else self.name

    @property
    def selected_on(self) -> str:
        """The splits it selects on, in words."""
        return " and ".join(self.sees) or "nothing"


@final
@dataclass(frozen=True)
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
        return "the last checkpoint of each run; nothing is selected"

    def choose(self, steps: NDArray[np.int64], seen: pd.DataFrame) -> Choice:
        """The last step, which is not picked out of any."""
        return Choice((int(steps[-1]),), 1)


@final
@dataclass(frozen=True)
class Best(Rule):
    """The evaluation with the best mean over cases; of equal ones the later, as TCSeg's `>=`.

    split:  which cases decide. On `test` this is an oracle.
    metric: which metric decides.
    """

    name: ClassVar[str] = "best"
    split: str = "test"
    metric: str = "dsc"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)

    @property
    def sees(self) -> tuple[str, ...]:
        """The split that decides."""
        return (self.split,)

    @property
    def meaning(self) -> str:
        """For the foot of a table; says so when it is an oracle."""
        label = METRICS[self.metric].label
        text = (
            f"the checkpoint of each run with the best mean {label} over the {self.split} cases "
            "(of equal ones the later)"
        )
        if self.split == REPORTED:
            text += (
                "; it is chosen on the very test set that it is reported on, so it is an upper "
                "bound and not what anybody would get in use"
            )
        return text

    def choose(self, steps: NDArray[np.int64], seen: pd.DataFrame) -> Choice:
        """The step of the best mean; NaN (no case counts there) is never the best."""
        means = seen[self.metric].to_numpy()
        if np.isnan(means).all():
            # Every case is left out at every step: the value is NaN whichever is taken.
            return Choice((int(steps[-1]),), len(means))
        best = np.nanmax(means) if METRICS[self.metric].higher_is_better else np.nanmin(means)
        place = np.flatnonzero(means == best)[-1]
        return Choice((int(seen["step"].to_numpy()[place]),), len(means))


RULES: Final[dict[str, type[Rule]]] = {"last": Last, "best": Best}


def parse_rule(text: str) -> Rule:
    """The rule that an expression names.

    >>> parse_rule("best(split=val)")
    Best(split='val', metric='dsc')

    Raises:
        UserError: not `name` or `name(key=value,...)`, an unknown name, or a bad value.
    """
    match = re.fullmatch(r"\s*([^\s()]+)\s*(?:\((.*)\))?\s*", text)
    if match is None:
        raise UserError(f"rule '{text}': expected name or name(key=value,...), as best(split=val)")
    rule = find("rule", match.group(1), RULES)
    defaults: dict[str, Any] = {f.name: f.default for f in fields(rule)}
    values: dict[str, object] = {}
    for part in (match.group(2) or "").split(","):
        if not part.strip():
            continue
        key, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not value:
            raise UserError(f"rule '{text}': expected key=value, not '{part.strip()}'")
        if key not in defaults:
            raise unknown(f"parameter of rule {rule.name}", key, defaults)
        if key in values:
            raise UserError(f"rule '{text}': {key} is given twice; keep one")
        kind = type(defaults[key])
        try:
            values[key] = kind(value)
        except ValueError:
            raise UserError(
                f"rule '{text}': {key} takes a value of type {kind.__name__}, not '{value}'"
            ) from None
    return rule(**values)


def select(trajectory: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """Apply a rule to every run and predictor, and report the test split at what it chose.

    Args:
        trajectory: as `protocols.trajectory.trajectory` gives it.
        rule: gets the rows of the splits it declares, and no others.

    Returns:
        One row per run and predictor: `averaged` steps were chosen out of `evaluations`, the
        last of them is `step`, with so many cases, empty masks and cases `beyond` these; dsc,
        asd and hd95 are means over the chosen steps on the test split.

    Raises:
        UserError: a run without the splits that the rule needs, or without a test evaluation.
    """
    splits = trajectory["split"].to_numpy(dtype=object)
    steps = trajectory["step"].to_numpy()
    scores = pd.DataFrame(trajectory[["split", "step", "cases", "empty", "beyond", *METRICS]])
    nothing = scores.iloc[:0]
    owners = trajectory.groupby(["run", "predictor"], observed=True, sort=True).indices
    groups: list[tuple[str, str]] = []
    choices: list[Choice] = []
    reported: list[NDArray[np.int64]] = []
    for key, places in owners.items():
        run, predictor = cast("tuple[str, str]", key)
        own = splits[places]
        _require({*rule.sees, REPORTED}, set(own), rule, run)
        seen = nothing
        if rule.sees:
            seen = scores.take(np.asarray(places)[np.isin(own, rule.sees)])
        choice = rule.choose(np.unique(steps[places]), seen)
        rows = places[(own == REPORTED) & np.isin(steps[places], choice.steps)]
        if len(rows) != len(choice.steps):
            raise UserError(
                f"rule {rule.expression} chose step {max(choice.steps)} of run {run}, where the "
                f"{REPORTED} cases were not evaluated; choose another rule"
            )
        groups.append((run, predictor))
        choices.append(choice)
        reported.append(rows)
    selected = pd.DataFrame(groups, columns=["run", "predictor"])
    selected["averaged"] = [len(c.steps) for c in choices]
    selected["evaluations"] = [c.evaluations for c in choices]
    last = scores.iloc[[rows[-1] for rows in reported]]
    for name in ("step", "cases", "empty", "beyond"):
        selected[name] = last[name].to_numpy()
    for metric in METRICS:
        values = trajectory[metric].to_numpy()
        selected[metric] = np.array([values[rows].mean() for rows in reported], dtype=np.float64)
    return selected


def _require(needed: set[str], present: set[str], rule: Rule, run: str) -> None:
    missing = ", ".join(sorted(needed - present))
    if missing:
        raise UserError(
            f"rule {rule.expression} needs evaluations of split {missing}, but run {run} has only "
            f"{', '.join(sorted(present))}; choose another rule, or another store"
        )
