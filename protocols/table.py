"""From runs and trajectories to the rows of a table. What differs in identity is never mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from typing import Any, Final

import pandas as pd

from protocols.metrics import METRICS
from protocols.rules import REPORTED, Last, Rule, select
from protocols.statistics import STATISTICS
from results.errors import UserError

SETTING: Final = ("dataset", "fingerprint", "labelled", "unlabelled", "profile", "steps", "unit")
"""What sets of numbers must share to stand under each other."""

METHOD: Final = ("method", "version", "hyperparameters", "changed", "recipe", "fidelity")

UNFINISHED: Final = "unfinished"
"""`state` of a run that has no record yet."""


def planned_runs(specs: Mapping[str, Mapping[str, Any]], records: pd.DataFrame) -> pd.DataFrame:
    """Runs that were begun and have no record, as rows of the `runs` table.

    What a spec does not say (unit, unlabelled volumes, labels) is taken from a record of the
    same identity, where there is one.

    Args:
        specs: canonical spec by run id.
        records: the `runs` table.

    Raises:
        UserError: a spec that cannot be understood.
    """
    known = with_identity(records).drop_duplicates("identity").set_index("identity")
    rows = []
    for run, spec in specs.items():
        text = json.dumps(spec)
        try:
            row = _described(spec)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"work/{run}/spec.json cannot be understood ({error!r}): run the same `bench run` "
                "command again, or delete that folder"
            ) from None
        identity = _identity(text, run)
        if identity in known.index:
            row |= {name: known.at[identity, name] for name in (*SETTING, *METHOD, "predictors")}
        rows.append({**row, "run": run, "state": UNFINISHED, "spec": text})
    return pd.DataFrame(rows, columns=list(records.columns))


def with_identity(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows of `runs` with `identity`: a digest of everything in the spec but the seed."""
    digests = [_identity(s, r) for s, r in zip(runs["spec"], runs["run"], strict=True)]
    return runs.assign(identity=pd.Series(digests, index=runs.index, dtype=object))


def outcomes(
    runs: pd.DataFrame, trajectory: pd.DataFrame, rule: Rule, partial: bool = False
) -> pd.DataFrame:
    """What every run that counts scored under a rule, and under `last` beside it.

    Args:
        runs: the `runs` table, unfinished ones among them (`planned_runs`).
        trajectory: evaluations of these runs.
        rule: picks the evaluation to report.
        partial: whether unfinished runs count, with the evaluations that they have.

    Returns:
        One row per run and predictor: the columns of `runs` and of `rules.select`, `identity`,
        and `dsc_last`, `asd_last`, `hd95_last`. By identity, predictor and seed.

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
    chosen = select(own, rule)
    last = chosen if isinstance(rule, Last) else select(own, Last())
    chosen = chosen.assign(**{f"{m}_last": last[m] for m in METRICS})
    joined = chosen.merge(kept, on="run", validate="m:1")
    return joined.sort_values(["identity", "predictor", "seed", "run"], ignore_index=True)


def summarise(
    runs: pd.DataFrame, trajectory: pd.DataFrame, rule: Rule, partial: bool = False
) -> pd.DataFrame:
    """One row per method, setting and predictor.

    Rows are apart wherever anything but the seed differs: dataset fingerprint, labelled volumes,
    profile, method version, hyperparameters, recipe, engine. By setting, best median DSC first.

    Args:
        runs: the `runs` table, unfinished ones among them (`planned_runs`).
        trajectory: evaluations of these runs.
        rule: picks the evaluation to report.
        partial: whether unfinished runs count, with the evaluations that they have.

    Returns:
        What identifies the row; `label` and `setting` (unique together with the predictor);
        `finished` of `started` runs, `unfinished` ones that count, `resumed_elsewhere`; `rule`,
        `selected_on`, `evaluations` (the most that a run was selected from), `cases`, `empty`
        (cases with an empty mask at the reported checkpoints, over all runs); and for each
        metric and statistic `<metric>_<statistic>`, besides `<metric>_gap`: the median over
        runs of the reported value minus the last one, where the rule sees the test split.
        DSC is a fraction, distances are in `unit`.
    """
    values = outcomes(runs, trajectory, rule, partial)
    by_row = dict(list(values.groupby(["identity", "predictor"])))
    rows = []
    for identity, group in with_identity(runs).groupby("identity"):
        first = group.iloc[0]
        for predictor in _predictors(group, values):
            counted = by_row.get((identity, predictor), values.iloc[:0])
            rows.append(
                {
                    **{name: first[name] for name in (*SETTING, *METHOD)},
                    "identity": identity,
                    "predictor": predictor,
                    "started": len(group),
                    "finished": int((counted["state"] == "finished").sum()),
                    "failed": int((group["state"] == "failed").sum()),
                    "unfinished": int((counted["state"] == UNFINISHED).sum()),
                    "resumed_elsewhere": int(counted["resumed_elsewhere"].eq(True).sum()),
                    "rule": rule.expression,
                    "selected_on": rule.selected_on,
                    "evaluations": int(counted["evaluations"].max()) if len(counted) else 0,
                    "cases": int(counted["cases"].max()) if len(counted) else 0,
                    "empty": int(counted["empty"].sum()),
                    **_statistics(counted),
                    **_gaps(counted, rule),
                }
            )
    table = pd.DataFrame(rows, columns=_columns())
    return _ordered(_labelled(table))


def _identity(spec: str, run: str) -> str:
    try:
        content = json.loads(spec)
        rest = {k: v for k, v in content.items() if k != "seed"}
    except (ValueError, AttributeError):
        raise UserError(
            f"the record of run {run} holds no readable spec: delete every file of this run in "
            "the store and run it again"
        ) from None
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _described(spec: Mapping[str, Any]) -> dict[str, Any]:
    method = spec["method"]
    return {
        "method": method["name"],
        "version": method["version"],
        "hyperparameters": json.dumps(method["hyperparameters"], sort_keys=True),
        "changed": "{}",
        "recipe": spec["recipe"]["name"],
        "fidelity": "",
        "dataset": spec["dataset"]["name"],
        "fingerprint": spec["dataset"]["fingerprint"],
        "unit": "",
        "labelled": spec["labelled"],
        "unlabelled": -1,
        "seed": spec["seed"],
        "profile": spec["profile"]["name"],
        "steps": -1,
        "predictors": ",".join(spec["predictors"]),
        "resumed_elsewhere": False,
    }


def _predictors(group: pd.DataFrame, values: pd.DataFrame) -> list[str]:
    """Those that were evaluated, else those that will be."""
    evaluated = set(values.loc[values["run"].isin(group["run"]), "predictor"])
    announced = {p for text in group["predictors"] for p in text.split(",")} - {"all", ""}
    return sorted(evaluated or announced or {"main"})


def _statistics(counted: pd.DataFrame) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, statistic in STATISTICS.items():
        values = statistic.compute(counted)
        found |= {f"{metric}_{name}": float(values[metric]) for metric in METRICS}
    return found


def _gaps(counted: pd.DataFrame, rule: Rule) -> dict[str, float]:
    if REPORTED not in rule.sees:
        return {f"{metric}_gap": float("nan") for metric in METRICS}
    return {
        f"{metric}_gap": float((counted[metric] - counted[f"{metric}_last"]).median(skipna=False))
        for metric in METRICS
    }


def _columns() -> list[str]:
    counts = ("started", "finished", "failed", "unfinished", "resumed_elsewhere")
    selection = ("rule", "selected_on", "evaluations", "cases", "empty")
    numbers = [f"{m}_{name}" for m in METRICS for name in (*STATISTICS, "gap")]
    return [*SETTING, *METHOD, "identity", "predictor", *counts, *selection, *numbers]


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    """Add `setting` and `label`, with as much in them as is needed to tell rows apart."""
    rows = table.to_dict("records")
    table = table.assign(
        setting=pd.Series([_setting(r) for r in rows], index=table.index, dtype=object),
        label=pd.Series([_method(r) for r in rows], index=table.index, dtype=object),
    )
    ambiguous = table.groupby("setting")["fingerprint"].transform("nunique") > 1
    exact = table["setting"] + " [data " + table["fingerprint"].str[:8] + "]"
    table = table.assign(setting=table["setting"].where(~ambiguous, exact))
    place = ["setting", "label", "predictor"]
    for more in (" v" + table["version"].astype(str), " #" + table["identity"].str[:8]):
        ambiguous = table.duplicated(place, keep=False)
        table = table.assign(label=table["label"].where(~ambiguous, table["label"] + more))
    return table


def _setting(row: Mapping[Hashable, Any]) -> str:
    counts = f"{row['labelled']} labelled"
    if row["unlabelled"] >= 0:
        counts += f" / {row['unlabelled']} unlabelled"
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
