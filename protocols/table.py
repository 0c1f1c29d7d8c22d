"""From runs and trajectories to the rows of a table. What differs in identity is never mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pandas as pd

from protocols.intervals import median_rank
from protocols.metrics import METRICS
from protocols.rules import Last, Rule
from protocols.selection import select
from protocols.statistics import (
    STATISTICS,
    Floats,
    best_place,
    median,
    median_place,
    with_failed,
)
from results.errors import UserError
from results.parquet import check
from results.schema import RUNS

SETTING: Final = ("dataset", "fingerprint", "labelled", "unlabelled", "profile", "steps", "unit")
"""What sets of numbers must share to stand under each other."""

_COMPETITOR: Final = ("seed", "method", "recipe", "predictors")
"""What of a spec may differ under one heading."""

METHOD: Final = ("method", "version", "hyperparameters", "changed", "recipe", "fidelity")

UNFINISHED: Final = "unfinished"
"""`state` of a run that has no record yet."""

_COUNTS: Final = {
    "finished": "sum",
    "unfinished": "sum",
    "resumed_elsewhere": "sum",
    "evaluations": "max",
    "fewest_evaluations": "min",
    "cases": "max",
    "empty": "sum",
    "beyond": "sum",
}
"""How the counts of a summary come about from those of its runs."""

_NOT_YET: Final = {
    "state": UNFINISHED,
    "error": "",
    "parameters": -1,
    "device": "",
    "environment": "[]",
    "resumed_elsewhere": False,
    "versions": "{}",
    "commit": "",
    "dirty": False,
}
"""Columns of `runs` that are known only at the end of a run."""


def planned_runs(rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Runs that were begun and have no record, as rows of the `runs` table.

    Args:
        rows: by run id, the columns of `runs` that are known before a run begins.

    Raises:
        UserError: a row that is not one of `runs`.
    """
    columns = [c.name for c in RUNS]
    frames = [pd.DataFrame(columns=columns)]
    for run, row in rows.items():
        frame = pd.DataFrame([{**row, **_NOT_YET}])
        try:
            check("runs", frame)
            if row["run"] != run:
                raise ValueError(f"it is of run {row['run']}")
            _content(row["spec"])
        except ValueError as error:
            raise UserError(
                f"work/{run}/spec.json cannot be understood ({error}): run the same `bench run` "
                "command again, or delete that folder"
            ) from None
        frames.append(frame[columns])
    return pd.concat(frames[1:] or frames, ignore_index=True)


def with_identity(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows of `runs` with two digests of their spec.

    Returns:
        `identity`, of everything but the seed: equal for the runs of one row of a table.
        `section`, without method, recipe and predictors too: equal for what compares.
    """
    pairs = [_readable(run, spec) for run, spec in zip(runs["run"], runs["spec"], strict=True)]
    return runs.assign(
        identity=pd.Series([p[0] for p in pairs], index=runs.index, dtype=object),
        section=pd.Series([p[1] for p in pairs], index=runs.index, dtype=object),
    )


def outcomes(
    runs: pd.DataFrame,
    trajectory: pd.DataFrame,
    rule: Rule,
    partial: bool = False,
    cases: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """What every run that counts scored under a rule, and under `last` beside it.

    Args:
        runs: the `runs` table, unfinished ones among them (`planned_runs`).
        trajectory: evaluations of these runs.
        rule: picks the evaluation to report.
        partial: whether unfinished runs count, with the evaluations that they have.
        cases: the scored rows behind the trajectory, for rules by case.

    Returns:
        One row per run and predictor: the columns of `runs` and of `selection.select`, `identity`
        and `section`, and `dsc_last`, `asd_last`, `hd95_last`. By identity, predictor and seed.

    Raises:
        UserError: the rule cannot be applied, or a finished run has no evaluation.
    """
    counted = runs["state"].isin(["finished", UNFINISHED] if partial else ["finished"])
    kept = with_identity(runs[counted]).drop(columns="evaluations")
    own = trajectory[trajectory["run"].isin(kept["run"])]
    silent = set(kept.loc[kept["state"] == "finished", "run"]) - set(own["run"])
    if silent:
        raise UserError(
            f"run {min(silent)} finished without any evaluation: the store was changed by hand; "
            "delete every file of this run in the store and run it again"
        )
    chosen = select(own, rule, cases)
    last = chosen if rule == Last() else select(own, Last())
    last = last[["run", "predictor", *METRICS]].rename(columns={m: f"{m}_last" for m in METRICS})
    chosen = chosen.merge(last, on=["run", "predictor"], how="left", validate="1:1")
    joined = chosen.merge(kept, on="run", validate="m:1")
    return joined.sort_values(["identity", "predictor", "seed", "run"], ignore_index=True)


def summarise(
    runs: pd.DataFrame,
    trajectory: pd.DataFrame,
    rule: Rule,
    partial: bool = False,
    cases: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per method, setting and predictor.

    Rows are apart wherever anything but the seed differs: dataset fingerprint, labelled volumes,
    profile, method version, hyperparameters, recipe, engine. By setting, best median DSC first.
    A setting is all of that but the method, its recipe and which predictors are evaluated; where
    one name would stand for several, it says what differs and ends in a digest.

    Args:
        runs: the `runs` table, unfinished ones among them (`planned_runs`).
        trajectory: evaluations of these runs.
        rule: picks the evaluation to report.
        partial: whether unfinished runs count, with the evaluations that they have.
        cases: the scored rows behind the trajectory, for rules by case.

    Returns:
        What identifies the row; `label` and `setting` (unique together with the predictor);
        `finished` and `failed` of `started` runs, `unfinished` ones that count, `counted` runs
        in the statistics (finished, failed and these), `resumed_elsewhere`; `rule`,
        `selected_on`, `evaluations` and `fewest_evaluations` (the most and the fewest that a run
        was selected from), `cases`; `empty` and `beyond` (over all runs, the cases at the
        reported checkpoints with an empty mask, and those measured as farther off than an empty
        mask counts); `median_coverage` of the interval of the median; `median_seed` and
        `best_seed`, the seeds of the median run and of the best one ("failed", or "" where there
        is none); and for each metric and statistic `<metric>_<statistic>`, infinite where it is
        that of a failed run, besides `<metric>_gap`: the median over the runs that count and did
        not fail of the reported value minus the last one, where the rule sees the test split.
        DSC is a fraction, distances are in `unit`.
    """
    values = outcomes(runs, trajectory, rule, partial, cases)
    scores = _matrix(values, METRICS)
    gaps = scores - _matrix(values, [f"{m}_last" for m in METRICS])
    seeds = values["seed"].astype(str).to_numpy(dtype=object)
    of_row: dict[Any, Any] = dict(values.groupby(["identity", "predictor"]).indices)
    counts = _counts(values)
    evaluated: dict[str, list[str]] = {}
    for identity, predictor in sorted(of_row):
        evaluated.setdefault(identity, []).append(predictor)
    runs = with_identity(runs)
    of_identity: dict[Any, Any] = dict(runs.groupby("identity").indices)
    groups = sorted(of_identity.items())
    firsts = runs.iloc[[members[0] for _, members in groups]]
    fixed = firsts[[*SETTING, *METHOD, "identity", "section"]].to_dict("records")
    broken = (runs["state"] == "failed").to_numpy()
    rows = []
    for (identity, members), first in zip(groups, fixed, strict=True):
        failed = int(broken[members].sum())
        for predictor in evaluated.get(identity) or _announced(runs.iloc[members]):
            at = of_row.get((identity, predictor), np.array([], dtype=np.int64))
            rows.append(
                {
                    **first,
                    "predictor": predictor,
                    "started": len(members),
                    "failed": failed,
                    "counted": len(at) + failed,
                    "rule": rule.expression,
                    "selected_on": rule.selected_on,
                    **counts.get((identity, predictor), dict.fromkeys(_COUNTS, 0)),
                    **_statistics(scores[at], failed, list(seeds[at])),
                    **_gaps(gaps[at], rule),
                }
            )
    table = pd.DataFrame(rows, columns=_columns())
    specs = runs.drop_duplicates("section").set_index("section")["spec"]
    return _ordered(_labelled(table, {key: _world(_content(s)) for key, s in specs.items()}))


def _content(spec: str) -> dict[str, Any]:
    """A canonical spec.

    Raises:
        ValueError: it is none.
    """
    content = json.loads(spec)
    if not isinstance(content, dict):
        raise ValueError("the spec is not a JSON object")
    return content


def _readable(run: str, spec: str) -> tuple[str, str]:
    """Digests of a run's spec; see `with_identity`."""
    try:
        return _digests(spec)
    except ValueError:
        raise UserError(
            f"the record of run {run} holds no readable spec: delete every file of this run in "
            "the store and run it again"
        ) from None


@lru_cache(maxsize=1 << 13)
def _digests(spec: str) -> tuple[str, str]:
    """`identity` and `section`; cached, as one report asks for those of all runs several times."""
    content = _content(spec)
    own = {k: v for k, v in content.items() if k != "seed"}
    return _digest(own), _digest(_world(content))


def _world(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a spec says but for who competes: engine, data, labelled volumes, profile."""
    return {k: v for k, v in content.items() if k not in _COMPETITOR}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _differing(contents: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of what differs, as `dataset.geometry.patch`."""
    flat = [_flattened(content) for content in contents]
    names = sorted({name for values in flat for name in values})
    return [n for n in names if len({json.dumps(values.get(n)) for values in flat}) > 1]


def _flattened(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        found |= _flattened(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _announced(runs: pd.DataFrame) -> list[str]:
    """Predictors that will be evaluated, of runs that have not evaluated any yet."""
    names = {name for text in runs["predictors"] for name in text.split(",")} - {"all", ""}
    return sorted(names) or ["main"]


def _counts(values: pd.DataFrame) -> dict[Any, dict[Any, int]]:
    """What a summary says of its runs in whole numbers, by identity and predictor."""
    found = values.assign(
        finished=values["state"] == "finished",
        unfinished=values["state"] == UNFINISHED,
        resumed_elsewhere=values["resumed_elsewhere"].eq(True),
        fewest_evaluations=values["evaluations"],
    )
    return found.groupby(["identity", "predictor"]).agg(_COUNTS).to_dict("index")


def _matrix(values: pd.DataFrame, columns: Iterable[str]) -> Floats:
    """Rows x columns, row after row in memory: the layout decides the last bit of a mean."""
    return np.column_stack([values[name].to_numpy(dtype=np.float64) for name in columns])


def _statistics(scores: Floats, failed: int, seeds: list[str]) -> dict[str, Any]:
    """Statistics of runs that count, of these seeds, and of failed ones."""
    runs = with_failed(scores, failed)
    # Failed runs come after the others.
    seeds = [*seeds, *["failed"] * failed]
    middle, best = median_place(runs), best_place(runs)
    found: dict[str, Any] = {
        "median_coverage": median_rank(len(runs))[1],
        "median_seed": "" if middle is None else seeds[middle],
        "best_seed": "" if best is None else seeds[best],
    }
    for name, statistic in STATISTICS.items():
        values = statistic.compute(runs).tolist()
        found |= {f"{m}_{name}": value for m, value in zip(METRICS, values, strict=True)}
    return found


def _gaps(gaps: Floats, rule: Rule) -> dict[str, float]:
    if not rule.optimistic:
        return {f"{metric}_gap": float("nan") for metric in METRICS}
    return {f"{m}_gap": gap for m, gap in zip(METRICS, median(gaps).tolist(), strict=True)}


def _columns() -> list[str]:
    counts = ("started", "finished", "failed", "unfinished", "counted", "resumed_elsewhere")
    selection = ("rule", "selected_on", "evaluations", "fewest_evaluations")
    found = ("cases", "empty", "beyond", "median_coverage", "median_seed", "best_seed")
    numbers = [f"{m}_{name}" for m in METRICS for name in (*STATISTICS, "gap")]
    keys = [*SETTING, *METHOD, "identity", "section", "predictor"]
    return [*keys, *counts, *selection, *found, *numbers]


def _labelled(table: pd.DataFrame, worlds: Mapping[Hashable, Mapping[str, Any]]) -> pd.DataFrame:
    """Add `setting` and `label`, with as much in them as is needed to tell rows apart.

    worlds: by section, what its specs have in common.
    """
    rows = table.to_dict("records")
    table = table.assign(
        setting=pd.Series([_setting(r) for r in rows], index=table.index, dtype=object),
        label=pd.Series([_method(r) for r in rows], index=table.index, dtype=object),
    )
    for setting, group in table.groupby("setting"):
        sections = sorted(set(group["section"]))
        if len(sections) > 1:
            what = ", ".join(_differing(worlds[key] for key in sections))
            exact = f"{setting} [{what} differs, #" + group["section"].str[:8] + "]"
            table.loc[group.index, "setting"] = exact
    place = ["setting", "label", "predictor"]
    for more in (" v" + table["version"].astype(str), " #" + table["identity"].str[:8]):
        ambiguous = table.duplicated(place, keep=False)
        table = table.assign(label=table["label"].where(~ambiguous, table["label"] + more))
    return table


def _setting(row: Mapping[Hashable, Any]) -> str:
    counts = f"{row['labelled']} labelled / {row['unlabelled']} unlabelled"
    return f"{row['dataset']}, {counts}, profile {row['profile']}"


def _method(row: Mapping[Hashable, Any]) -> str:
    changed = json.loads(row["changed"])
    options = [f"{k}={v}" for k, v in sorted(changed.items())]
    if row["recipe"] != "common":
        options.append(f"recipe {row['recipe']}")
    return str(row["method"]) + (f" ({', '.join(options)})" if options else "")


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """By setting, the method with the best median first, predictors of a method together."""
    level = table.groupby(["setting", "label"])["dsc_median"].transform("max")
    keyed = table.assign(_level=-level, _other=table["predictor"] != "main")
    keys = ["dataset", "labelled", "setting", "_level", "label", "_other", "predictor", "identity"]
    return keyed.sort_values(keys, ignore_index=True)[list(table.columns)]
