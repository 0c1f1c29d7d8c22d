"""Apply a rule to every run. What a rule does not declare is removed before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protocols.base import ALL, EACH, REPORTED, Choice, Offer, Rule, Seen, said
from protocols.metrics import METRICS
from protocols.trajectory import ordered
from results.errors import UserError
from results.lookup import unknown

MAIN: Final = "main"
"""The predictor that the paper of a method reports, and that a choice among several stands for."""

Ints = NDArray[np.int64]


def select(trajectory: pd.DataFrame, rule: Rule, cases: pd.DataFrame | None = None) -> pd.DataFrame:
    """Apply a rule to every run and predictor, and report the test split at what it chose.

    Args:
        trajectory: as `protocols.trajectory.trajectory` gives it.
        rule: gets the scores of the splits it declares, and no others.
        cases: the scored case rows behind the trajectory (`protocols.policies.score`), for rules
            with `by_case`; rows of other runs are left aside.

    Returns:
        One row per run and predictor, or per run with predictor `main` where the rule chooses
        among several: `averaged` evaluations were chosen out of `evaluations` (steps times
        predictors: how often each case of the deciding split was evaluated for it); the last of
        them is at `step`, of predictor `picked`, over `cases` cases; `empty` and `beyond` are
        sums over the chosen; dsc, asd and hd95 are what the rule reports, or means over the
        chosen on the test split.

    Raises:
        UserError: a run without the splits or predictors that the rule needs, without a test
            evaluation, or without any at the steps it considers.
        ValueError: a rule by case, and no cases.
    """
    if rule.by_case and cases is None:
        raise ValueError(f"rule {rule.name} needs the rows of single cases")
    table = _candidates(trajectory, rule)
    matrices = _matrices(cases, table, rule) if cases is not None and rule.by_case else None
    scores = {m: trajectory[m].to_numpy(dtype=np.float64) for m in METRICS}
    groups: list[tuple[str, str]] = []
    choices: list[Choice] = []
    chosen: list[Ints] = []
    picked: list[str] = []
    for start, stop in pairwise(table.starts):
        run = table.runs[table.run[start]]
        rows = {split: at[start:stop] for split, at in table.rows.items()}
        _require(rows, rule, run)
        seen = {
            split: Seen(
                rows[split] >= 0,
                {m: np.where(rows[split] < 0, np.nan, v[rows[split]]) for m, v in scores.items()},
                next(matrices[split]) if matrices else {},
            )
            for split in rule.sees
        }
        choice = rule.choose(Offer(run, table.step[start:stop], seen))
        reported = rows[REPORTED][list(choice.places)]
        if (reported < 0).any():
            step = table.step[start + max(choice.places)]
            raise UserError(
                f"rule {rule.expression} chose step {step} of run {run}, where the {REPORTED} "
                "cases were not evaluated; choose another rule"
            )
        predictor = table.predictors[table.predictor[start + choice.places[-1]]]
        groups.append((run, predictor if rule.among == EACH else MAIN))
        choices.append(choice)
        chosen.append(reported)
        picked.append(predictor)
    selected = pd.DataFrame(groups, columns=["run", "predictor"])
    selected["averaged"] = [len(c.places) for c in choices]
    selected["evaluations"] = [c.evaluations for c in choices]
    last = np.array([rows[-1] for rows in chosen], dtype=np.int64)
    for name in ("step", "cases"):
        selected[name] = trajectory[name].to_numpy()[last]
    for name in ("empty", "beyond"):
        counts = trajectory[name].to_numpy()
        selected[name] = np.array([counts[rows].sum() for rows in chosen], dtype=np.int64)
    for m, values in scores.items():
        selected[m] = np.array(
            [
                values[rows].mean() if c.values is None else c.values[m]
                for c, rows in zip(choices, chosen, strict=True)
            ],
            dtype=np.float64,
        )
    return selected.assign(picked=np.array(picked, dtype=object))


class _Table(NamedTuple):
    """Evaluations that a rule is offered, by group, step and predictor.

    run, predictor: places in `runs` and `predictors`.
    rows:           by split, their rows of the trajectory; -1 where it was not evaluated.
    starts:         where each group begins, and the end.
    """

    run: Ints
    predictor: Ints
    step: Ints
    rows: Mapping[str, Ints]
    starts: Ints
    runs: list[str]
    predictors: list[str]


def _candidates(trajectory: pd.DataFrame, rule: Rule) -> _Table:
    """Every evaluation at the steps and of the predictors that the rule considers."""
    run, names = ordered(trajectory["run"])
    at, predictors = ordered(trajectory["predictor"])
    split = trajectory["split"].to_numpy(dtype=object)
    step = trajectory["step"].to_numpy(dtype=np.int64)
    runs, known = [str(n) for n in names], [str(n) for n in predictors]
    # `main` first, then by name.
    first = sorted(range(len(known)), key=lambda k: (known[k] != MAIN, known[k]))
    predictor = np.argsort(first)[at] if first else at
    known = [known[k] for k in first]
    kept = _considered(run, predictor, step, rule, runs, known)
    group = run * len(known) + predictor if rule.among == EACH else run
    order = kept[np.lexsort((predictor[kept], step[kept], group[kept]))]
    keys = np.stack([group[order], step[order], predictor[order]])
    new = np.any(keys[:, 1:] != keys[:, :-1], axis=0)
    candidate = np.cumsum(np.r_[0, new])[: len(order)]
    heads = order[np.flatnonzero(np.r_[True, new])] if len(order) else order
    rows = {}
    for name in {*split[order], *rule.sees, REPORTED}:
        own = split[order] == name
        rows[name] = np.full(len(heads), -1, dtype=np.int64)
        rows[name][candidate[own]] = order[own]
    starts = np.flatnonzero(np.r_[True, group[heads][1:] != group[heads][:-1]])
    starts = np.r_[starts[: len(heads)], len(heads)]
    return _Table(run[heads], predictor[heads], step[heads], rows, starts, runs, known)


def _considered(
    run: Ints, predictor: Ints, step: Ints, rule: Rule, runs: list[str], known: list[str]
) -> Ints:
    """Rows of the predictors and at the steps that the rule considers.

    Raises:
        UserError: a run has no such predictor, or no such step.
    """
    among = np.full(len(run), True)
    if rule.among not in (EACH, ALL):
        wanted = rule.among.split("+")
        among = np.isin(predictor, [known.index(name) for name in wanted if name in known])
        for name in wanted:
            having = run[predictor == known.index(name)] if name in known else run[:0]
            lacking = np.setdiff1d(run, having)
            if len(lacking):
                present = {known[p] for p in predictor[run == lacking[0]]}
                raise unknown(f"predictor of run {runs[lacking[0]]}", name, present)
    kept = among & (step >= rule.start) & (step % rule.every == 0)
    group = run * len(known) + predictor if rule.among == EACH else run
    empty = np.setdiff1d(group[among], group[kept])
    if len(empty):
        own = among & (group == empty[0])
        raise UserError(
            f"rule {rule.expression} leaves no evaluation of run {runs[run[own][0]]}: it was "
            f"evaluated at {said(step[own])}; choose every and from to meet some of these"
        )
    return np.flatnonzero(kept)


def _require(rows: Mapping[str, Ints], rule: Rule, run: str) -> None:
    """Raise an error when a split that the rule needs was never evaluated."""
    present = {split for split, at in rows.items() if (at >= 0).any()}
    missing = {*rule.sees, REPORTED} - present
    if missing:
        raise UserError(
            f"rule {rule.expression} needs evaluations of split {', '.join(sorted(missing))}, but "
            f"run {run} has only {', '.join(sorted(present))}; choose another rule, or another "
            "store"
        )


def _matrices(
    cases: pd.DataFrame, table: _Table, rule: Rule
) -> dict[str, Iterator[dict[str, NDArray[np.float64]]]]:
    """By declared split, for one group after the other, each metric as (cases, evaluations)."""
    return {split: _of_split(cases, split, table) for split in rule.sees}


def _of_split(
    cases: pd.DataFrame, split: str, table: _Table
) -> Iterator[dict[str, NDArray[np.float64]]]:
    rows = cases[(cases["split"] == split).to_numpy()]
    case, _ = ordered(rows["case"])
    steps, places = np.unique(table.step, return_inverse=True)
    width = len(table.predictors)
    key = (table.run * width + table.predictor) * len(steps) + places
    at = np.searchsorted(steps, rows["step"].to_numpy()).clip(max=len(steps) - 1)
    run, predictor = _places(rows["run"], table.runs), _places(rows["predictor"], table.predictors)
    own = (run >= 0) & (predictor >= 0) & (steps[at] == rows["step"].to_numpy())
    theirs = np.where(own, (run * width + predictor) * len(steps) + at, -1)
    by_key = np.argsort(key)
    found = np.searchsorted(key[by_key], theirs).clip(max=len(key) - 1)
    candidate = by_key[found]
    kept = np.flatnonzero(key[candidate] == theirs)
    kept = kept[np.argsort(candidate[kept], kind="stable")]
    bounds = np.searchsorted(candidate[kept], table.starts)
    values = {m: rows[m].to_numpy() for m in METRICS}
    for group, (start, stop) in enumerate(pairwise(bounds)):
        own = kept[start:stop]
        names, row = np.unique(case[own], return_inverse=True)
        column = candidate[own] - table.starts[group]
        shape = (len(names), table.starts[group + 1] - table.starts[group])
        matrices = {}
        for m, scores in values.items():
            matrices[m] = np.full(shape, np.nan)
            matrices[m][row, column] = scores[own]
        yield matrices


def _places(column: pd.Series, names: list[str]) -> Ints:
    """Where each value stands among names; -1 for others."""
    places, values = ordered(column)
    return pd.Index(names).get_indexer(pd.Index(values))[places].astype(np.int64)
