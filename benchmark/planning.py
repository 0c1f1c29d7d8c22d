"""`bench plan`: seeds, cases, hours and disk that a comparison takes, from what a store measured.

What a store lacks is None: nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protocols.comparison import chosen_cases
from protocols.power import FEWEST, case_floor, detectable, sd_interval, seeds_needed
from reports.facts import MAIN, Facts, load_facts
from reports.plan import Budget, Cell, Pair, Question, Spread, place
from results.schema import FLOOR, TABLES
from results.store import Store


def make(path: Path, question: Question) -> Budget:
    """Plan from a store, or from a given SD alone where there is no store.

    Raises:
        UserError: no store and no SD, an unknown name, or a store that cannot be read.
    """
    given = None if question.sd is None else _given(question)
    if given is not None and (not path.exists() or Store.open(path).records().empty):
        return Budget(question, (given,), (), ())
    facts = load_facts(Store.open(path), question.protocol, question.empty)
    outcomes = facts.outcomes(facts.rule)
    outcomes = outcomes[outcomes["predictor"] == MAIN]
    rows = [row for row in facts.summary.to_dict("records") if question.wants(row)]
    rows = [row for row in rows if row["predictor"] == MAIN and _trained(row["method"], question)]
    by_row = {row["identity"]: outcomes[outcomes["identity"] == row["identity"]] for row in rows}
    measured = {row["identity"]: _spread(row, by_row[row["identity"]], question) for row in rows}
    spreads = tuple(measured.values()) if given is None else (given,)
    needed = {key: (given or spread).seeds for key, spread in measured.items()}
    pairs = [
        _pair(a, b, by_row[a["identity"]], by_row[b["identity"]], facts, question)
        for a, b in combinations(rows, 2)
        if a["section"] == b["section"]
    ]
    return Budget(question, spreads, tuple(pairs), tuple(_grid(facts, question, needed)))


def case_spread(differences: NDArray[np.float64]) -> float | None:
    """Standard deviation over cases of a difference of two methods, free of the noise of seeds.

    √((MS_cases - MS_residual)/seeds), the mean squares of the two-way layout without replication
    (cases and seeds random): Searle, Casella & McCulloch, Variance Components, 1992.

    Args:
        differences: (seeds, cases), at least 2 by 2.

    Returns:
        None where the noise of seeds hides it: the estimate of the variance is not above 0.
    """
    seeds, cases = differences.shape
    by_case = differences.mean(0, keepdims=True)
    by_seed = differences.mean(1, keepdims=True)
    residual = differences - by_case - by_seed + differences.mean()
    ms_residual = float((residual**2).sum()) / ((seeds - 1) * (cases - 1))
    variance = float(by_case.var(ddof=1)) - ms_residual / seeds
    return math.sqrt(variance) if variance > 0 else None


def _given(question: Question) -> Spread:
    sd = question.sd or 0.0
    n = question.seeds
    smallest = _detectable(question, sd, n) if n >= FEWEST else None
    seeds = _needed(question, sd)
    return Spread("given by --sd", "any", n, sd, detectable=smallest, seeds=seeds)


def _spread(row: Mapping[Hashable, Any], runs: pd.DataFrame, question: Question) -> Spread:
    setting, label, n = row["setting"], row["label"], len(runs)
    sd = question.scale * float(runs[question.metric].std(ddof=1, skipna=False))
    if n < FEWEST or math.isnan(sd):
        return Spread(setting, label, n, None)
    low, high = sd_interval(sd, n)
    needed = (_needed(question, s) for s in (sd, low, high))
    return Spread(setting, label, n, sd, low, high, _detectable(question, sd, n), *needed)


def _pair(
    a: Mapping[Hashable, Any],
    b: Mapping[Hashable, Any],
    runs_a: pd.DataFrame,
    runs_b: pd.DataFrame,
    facts: Facts,
    question: Question,
) -> Pair:
    both = runs_a.merge(runs_b, on="seed", suffixes=("_a", "_b")).sort_values("seed")
    n, metric = len(both), question.metric
    names = (a["setting"], a["label"], b["label"], n)
    difference = question.scale * (both[f"{metric}_a"] - both[f"{metric}_b"])
    if n < FEWEST or difference.isna().any():
        return Pair(*names)
    sd = float(difference.std(ddof=1))
    found = Pair(
        *names,
        sd=sd,
        detectable=_detectable(question, sd, n, paired=True),
        seeds=_needed(question, sd, paired=True),
    )
    layout = _layout(runs_a, runs_b, facts, metric)
    if layout is None:
        return found
    sd_case, cases = case_spread(question.scale * layout), layout.shape[1]
    if sd_case is None:
        return replace(found, cases=cases)
    return replace(
        found,
        cases=cases,
        sd_case=sd_case,
        floor=case_floor(sd_case, cases, question.power, question.alpha),
        cases_needed=_needed(question, sd_case, paired=True),
    )


def _trained(method: str, question: Question) -> bool:
    """Whether a method is one to plan for: the floor of a dataset is, only where it is named."""
    return method != FLOOR or method in question.methods


def _detectable(question: Question, sd: float, n: int, paired: bool = False) -> float:
    return detectable(sd, n, paired, question.power, question.alpha)


def _needed(question: Question, sd: float, paired: bool = False) -> int | None:
    return seeds_needed(question.detect, sd, paired, question.power, question.alpha)


def _layout(
    runs_a: pd.DataFrame, runs_b: pd.DataFrame, facts: Facts, metric: str
) -> NDArray[np.float64] | None:
    """Differences by common seed and case; None where the two were not scored on the same cases."""
    if facts.rule.by_case:
        return None
    common = set(runs_a["seed"]) & set(runs_b["seed"])
    sides = []
    for runs in (runs_a, runs_b):
        own = runs[runs["seed"].isin(common)]
        found = chosen_cases(facts.scored, own, facts.rule).merge(own[["run", "seed"]], on="run")
        sides.append(found.pivot(index="seed", columns="case", values=metric))
    first, second = sides
    if list(first.columns) != list(second.columns) or first.shape[1] < FEWEST:
        return None
    differences = first.to_numpy() - second.to_numpy()
    return None if np.isnan(differences).any() else differences


def _grid(facts: Facts, question: Question, needed: Mapping[str, int | None]) -> list[Cell]:
    """What is asked for by name, else what there is; cells that no run measured say so."""
    finished = facts.finished
    finished = finished[[_trained(method, question) for method in finished["method"]]]
    settings = facts.runs[["dataset", "labelled", "profile"]].drop_duplicates()
    settings = settings.sort_values(list(settings.columns))
    there = list(settings.itertuples(index=False, name=None))
    wanted = product(
        question.datasets or [None], question.labelled or [None], question.profiles or [None]
    )
    cells = []
    for asked in wanted:
        similar = [s for s in there if all(a in (None, v) for a, v in zip(asked, s, strict=True))]
        for dataset, labelled, profile in similar or [asked]:
            at = (
                finished["dataset"].eq(dataset)
                & finished["labelled"].eq(labelled)
                & finished["profile"].eq(profile)
            )
            name = place(dataset, labelled, profile)
            for method in question.methods or sorted(set(finished.loc[at, "method"])):
                own = finished[at & finished["method"].eq(method)]
                if own.empty:
                    cells.append(Cell(method, name, note=_elsewhere(method, finished)))
                for _, runs in own.groupby(["identity", "device"], sort=False):
                    cells.append(_cell(runs, name, facts, question, needed))
            if not question.methods and not at.any():
                cells.append(Cell("any", name, note="no finished run of this setting"))
    return cells


def _cell(
    runs: pd.DataFrame,
    setting: str,
    facts: Facts,
    question: Question,
    needed: Mapping[str, int | None],
) -> Cell:
    first = runs.iloc[0]
    times = [facts.sidecars[run].get("seconds") for run in runs["run"]]
    known = [float(t) for t in times if isinstance(t, int | float)]
    seconds = median(known) if known else None
    size = median(_stored_bytes(facts.store, run) for run in runs["run"])
    seeds = needed.get(first["identity"])
    return Cell(
        method=first["label"],
        setting=setting,
        runs=len(runs),
        device=first["device"],
        seconds=seconds,
        stored_bytes=size,
        hours=None if seconds is None else question.seeds * seconds / 3600,
        total_bytes=question.seeds * size,
        needed=seeds,
        hours_needed=None if seconds is None or seeds is None else seeds * seconds / 3600,
        note="" if known else "its runs did not record their time",
    )


def _stored_bytes(store: Store, run: str) -> int:
    """Of everything that is kept of a run."""
    files = [store.path / table / f"{run}.parquet" for table in TABLES]
    files.append(store.path / "runs" / f"{run}.json")
    return sum(file.stat().st_size for file in files if file.exists())


def _elsewhere(method: str, finished: pd.DataFrame) -> str:
    own = finished[finished["method"] == method]
    if own.empty:
        known = ", ".join(sorted(set(finished["method"]))) or "none"
        return f"no finished run of {method} in the store, which has {known}"
    rows = own[["dataset", "labelled", "profile"]].drop_duplicates().itertuples(index=False)
    return f"{method} was measured at {'; '.join(sorted(place(*row) for row in rows))}"
