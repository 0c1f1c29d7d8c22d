"""What every report starts from: the runs of a store and their trajectories, under one protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final, TypeVar, cast

import pandas as pd

from protocols.policies import POLICIES, score
from protocols.rules import Rule, parse_rule
from protocols.table import outcomes, planned_runs, summarise, with_identity
from protocols.trajectory import KEYS, joined, trajectory
from reports.scan import ScanReader
from reports.strata import LinkReader, choose
from results.errors import UserError
from results.lookup import find, unknown
from results.schema import TRIAL_PROFILE, Stratum
from results.store import Store

_T = TypeVar("_T")

MAIN: Final = "main"
"""The predictor that figures show: what the paper of a method reports."""

_SCORED: Final = (*KEYS, "case", "status", "dsc", "asd", "hd95", "diagonal")

_BATCH: Final = 32
"""Runs whose cases are in memory at once."""


@dataclass(frozen=True)
class Options:
    """What a user asks of single reports, beyond the protocol; each takes what concerns it.

    seed:  of resampling: the same seed gives the same intervals.
    cases: names of cases to show; none lets the report choose.
    scan:  reads the images behind the numbers; None where there are none.
    stratum: which test cases count.
    linked: gives the linked cases of a dataset whose runs do not say them; None where the data
           are not there.
    methods: names of those to report; none for all of the store.
    """

    seed: int = 0
    cases: tuple[str, ...] = ()
    scan: ScanReader | None = None
    stratum: Stratum = Stratum.ALL
    linked: LinkReader | None = None
    methods: tuple[str, ...] = ()


DEFAULTS: Final = Options()


@dataclass(frozen=True)
class Facts:
    """The content of a store, ready for tables and figures.

    store:      where they are from.
    runs:       the `runs` table, with runs that have no record yet as `unfinished`.
    stored:     gives `cases`, which it reads when first asked and keeps.
    trajectory: as `protocols.trajectory` gives it, under `policy`.
    sidecars:   of runs that have a record, by run id.
    policy:     name of the empty-mask policy.
    partial:    whether unfinished runs count, with the evaluations that they have.
    omitted:    what a reader must know of methods and test cases that are left out, a sentence
                each.
    """

    store: Store
    runs: pd.DataFrame
    stored: Callable[[], pd.DataFrame]
    trajectory: pd.DataFrame
    sidecars: Mapping[str, Mapping[str, Any]]
    rule: Rule
    policy: str
    partial: bool
    options: Options
    omitted: tuple[str, ...] = ()

    @property
    def cases(self) -> pd.DataFrame:
        """Rows of the `cases` table that count, as stored: statuses are no numbers yet."""
        return self.stored()

    @cached_property
    def scored(self) -> pd.DataFrame:
        """`cases` with numbers for every status, under `policy`."""
        return score(self.cases, POLICIES[self.policy])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must be warned of: a policy that flatters, runs of a few steps."""
        said = []
        if POLICIES[self.policy].flatters:
            said.append(f"WARNING: policy {self.policy} flatters methods that predict nothing.")
        if self.runs["profile"].str.match(rf"{TRIAL_PROFILE}(\+|$)").any():
            said.append(
                f"WARNING: profile {TRIAL_PROFILE} proves that a command works; its numbers mean "
                "nothing."
            )
        return tuple(said)

    @cached_property
    def pseudo(self) -> pd.DataFrame:
        """The `pseudo` table of runs that have a record."""
        return self.store.read("pseudo", list(self.sidecars))

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per method, setting and predictor; see `protocols.table.summarise`."""
        cases = self.rows_for(self.rule)
        return summarise(self.runs, self.trajectory, self.rule, self.partial, cases)

    @cached_property
    def finished(self) -> pd.DataFrame:
        """Finished runs: the `runs` table with `setting` and `label`, in the summary's order."""
        rows = self.summary.drop_duplicates("identity")[["identity", "setting", "label"]]
        runs = with_identity(self.runs[self.runs["state"] == "finished"])
        return rows.merge(runs, on="identity", validate="1:m").drop(columns="section")

    def not_drawn(self, drawn: pd.DataFrame) -> str:
        """Which methods a figure lacks, as none of their runs finished; "" where it has all.

        Args:
            drawn: what it shows; setting and label.
        """
        rows = self.summary[self.summary["predictor"] == MAIN]
        there = set(zip(drawn["setting"], drawn["label"], strict=True))
        several = rows["setting"].nunique() > 1
        absent = [
            _unfinished(row, several)
            for row in rows.to_dict("records")
            if (row["setting"], row["label"]) not in there
        ]
        return f"Not drawn: {', '.join(absent)}." if absent else ""

    def once(self, make: Callable[[Facts], _T]) -> _T:
        """What a function gives for these facts; it is called once, whoever asks."""
        if make not in self._made:
            self._made[make] = make(self)
        return cast(_T, self._made[make])

    @cached_property
    def _made(self) -> dict[Callable[[Facts], Any], Any]:
        return {}

    def outcomes(self, rule: Rule) -> pd.DataFrame:
        """One row per run and predictor; see `protocols.table.outcomes`."""
        return outcomes(self.runs, self.trajectory, rule, self.partial, self.rows_for(rule))

    def rows_for(self, rule: Rule) -> pd.DataFrame | None:
        """The rows of `scored`, for a rule that works case by case; None for others."""
        return self.scored if rule.by_case else None


def load_facts(
    store: Store,
    protocol: str,
    policy: str,
    *,
    partial: bool = False,
    runs: Collection[str] | None = None,
    options: Options = DEFAULTS,
) -> Facts:
    """Read a store.

    Args:
        store: where the results are.
        protocol: a rule, as `last`, `best` or `best(split=val)`.
        policy: name of an empty-mask policy.
        partial: whether unfinished runs count, with the evaluations that they have.
        runs: run ids to consider; None for all.
        options: what concerns single reports.

    Raises:
        UserError: an unknown name, a method without a run, a store without any run, one that
            cannot be read, or a stratum of which nothing is known.
    """
    rule = parse_rule(protocol)
    chosen = find("policy", policy, POLICIES)
    begun = _begun(store, runs)
    # After the unfinished runs: one that ends in between is then among both, not among neither.
    records = store.records()
    if runs is not None:
        records = records[records["run"].isin(runs)]
    ended = set(records["run"])
    begun = {run: row for run, row in begun.items() if run not in ended}
    if records.empty and not begun:
        raise UserError(f"the store {store.path} holds no run yet: start some with `bench run`")
    omitted: tuple[str, ...] = ()
    if options.methods:
        held = {*records["method"], *(str(row.get("method")) for row in begun.values())}
        omitted = _others(options.methods, held, store)
        records = records[records["method"].isin(options.methods)]
        begun = {run: row for run, row in begun.items() if row.get("method") in options.methods}
    done = list(records["run"])
    more = store.read("cases", [], _SCORED)
    if begun:
        records = pd.concat([records, planned_runs(begun)], ignore_index=True)
    if begun and partial:
        rows = store.read_partial("cases")
        more = rows[rows["run"].isin(begun)][list(_SCORED)]
    sidecars = {run: store.sidecar(run) for run in done}
    counted = choose(options.stratum, records, sidecars, options.linked)
    more = counted.of_cases(more)

    def stored(runs: list[str]) -> pd.DataFrame:
        return counted.of_cases(store.read("cases", runs, _SCORED))

    # A few runs at a time: millions of rows are never in memory unless a report asks for them.
    batches = (done[start : start + _BATCH] for start in range(0, len(done), _BATCH))
    parts = [trajectory(stored(runs), chosen) for runs in batches]
    return Facts(
        store=store,
        runs=counted.of_runs(records),
        stored=cache(lambda: _joined(stored(done), more)),
        trajectory=joined([*parts, trajectory(more, chosen)]),
        sidecars=sidecars,
        rule=rule,
        policy=policy,
        partial=partial,
        options=options,
        omitted=(*omitted, *counted.notes),
    )


def _others(wanted: Collection[str], held: Collection[str], store: Store) -> tuple[str, ...]:
    """Says which of the methods that a store holds are not wanted.

    Raises:
        UserError: the store holds no run of a wanted one.
    """
    for name in wanted:
        if name not in held:
            raise unknown(f"method in the store {store.path}:", name, held)
    others = sorted(set(held) - set(wanted))
    if not others:
        return ()
    return (
        f"Only {', '.join(sorted(set(wanted)))}, as asked: the store holds runs of {len(others)} "
        f"other method{'s' * (len(others) > 1)} ({', '.join(others)}).",
    )


def _unfinished(row: Mapping[Any, Any], several: bool) -> str:
    """A method and how far its runs came; with its setting where there are several."""
    setting = f"{row['setting']}; " if several else ""
    failed = f", {row['failed']} failed" if row["failed"] else ""
    return f"{row['label']} ({setting}{row['finished']} of {row['started']} runs finished{failed})"


def _begun(store: Store, wanted: Collection[str] | None) -> dict[str, dict[str, Any]]:
    """What is known of unfinished runs, by run id."""
    found = {}
    for run in store.unfinished():
        if wanted is not None and run not in wanted:
            continue
        try:
            found[run] = _row(store, run)
        except UserError:
            # A run that has just ended has no work folder any more.
            if not store.is_done(run):
                raise
    return found


def _row(store: Store, run: str) -> dict[str, Any]:
    path = store.work(run) / "spec.json"
    advice = "run the same `bench run` command again, or delete that folder"
    try:
        content = dict(json.loads(store.read_work(run, "spec.json")))
        row = None if "row" not in content else dict(content["row"])
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): {advice}") from None
    if row is None:
        raise UserError(f"{path} says too little: the run was begun by an older bench; {advice}")
    return row


def _joined(cases: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    if more.empty:
        return cases
    text = [c for c in cases.columns if isinstance(cases[c].dtype, pd.CategoricalDtype)]
    # Two sets of categories do not concatenate.
    plain = [frame.astype(dict.fromkeys(text, object)) for frame in (cases, more) if len(frame)]
    return pd.concat(plain, ignore_index=True) if plain else cases
