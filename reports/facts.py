"""What every report starts from: the runs of a store and their trajectories, under one protocol."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import pandas as pd

from protocols.lookup import find
from protocols.policies import POLICIES
from protocols.rules import Rule, parse_rule
from protocols.table import outcomes, planned_runs, summarise
from protocols.trajectory import KEYS, trajectory
from results.errors import UserError
from results.store import Store

MAIN: Final = "main"
"""The predictor that figures show: what the paper of a method reports."""

_SCORED: Final = (*KEYS, "case", "status", "dsc", "asd", "hd95", "diagonal")


@dataclass(frozen=True)
class Facts:
    """The content of a store, ready for tables and figures.

    runs:       the `runs` table, with runs that have no record yet as `unfinished`.
    trajectory: as `protocols.trajectory` gives it, under `policy`.
    policy:     name of the empty-mask policy.
    partial:    whether unfinished runs count, with the evaluations that they have.
    """

    runs: pd.DataFrame
    trajectory: pd.DataFrame
    rule: Rule
    policy: str
    partial: bool

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per method, setting and predictor; see `protocols.table.summarise`."""
        return summarise(self.runs, self.trajectory, self.rule, self.partial)

    def outcomes(self, rule: Rule) -> pd.DataFrame:
        """One row per run and predictor; see `protocols.table.outcomes`."""
        return outcomes(self.runs, self.trajectory, rule, self.partial)


def load_facts(
    store: Store,
    protocol: str,
    policy: str,
    *,
    partial: bool = False,
    runs: Collection[str] | None = None,
) -> Facts:
    """Read a store.

    Args:
        store: where the results are.
        protocol: a rule, as `last`, `best` or `best(split=val)`.
        policy: name of an empty-mask policy.
        partial: whether unfinished runs count, with the evaluations that they have.
        runs: run ids to consider; None for all.

    Raises:
        UserError: an unknown name, a store without any run, or one that cannot be read.
    """
    rule = parse_rule(protocol)
    chosen = find("policy", policy, POLICIES)
    records = store.records()
    begun = store.unfinished()
    if runs is not None:
        records = records[records["run"].isin(runs)]
        begun = [run for run in begun if run in runs]
    if records.empty and not begun:
        raise UserError(f"the store {store.path} holds no run yet: start some with `bench run`")
    cases = store.read("cases", list(records["run"]), _SCORED)
    if begun:
        specs = {run: _spec(store, run) for run in begun}
        records = pd.concat([records, planned_runs(specs, records)], ignore_index=True)
    if begun and partial:
        rows = store.read_partial("cases")
        cases = _joined(cases, rows[rows["run"].isin(begun)][list(_SCORED)])
    return Facts(records, trajectory(cases, chosen), rule, policy, partial)


def _spec(store: Store, run: str) -> dict[str, object]:
    try:
        return dict(json.loads(store.read_work(run, "spec.json"))["spec"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{store.work(run) / 'spec.json'} is damaged ({error}): run the same `bench run` "
            "command again, or delete that folder"
        ) from None


def _joined(cases: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    text = [c for c in cases.columns if isinstance(cases[c].dtype, pd.CategoricalDtype)]
    # Two sets of categories do not concatenate.
    plain = [frame.astype(dict.fromkeys(text, object)) for frame in (cases, more) if len(frame)]
    return pd.concat(plain, ignore_index=True) if plain else cases
