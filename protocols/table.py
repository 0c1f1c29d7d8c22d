"""From runs and trajectories to the rows of a table. What differs in identity is never mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final

import pandas as pd

from protocols.metrics import METRICS
from protocols.rules import REPORTED, Last, Rule, select
from protocols.statistics import STATISTICS
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
    identities, sections = [], []
    for run, spec in zip(runs["run"], runs["spec"], strict=True):
        content = _readable(run, spec)
        identities.append(_digest({k: v for k, v in content.items() if k != "seed"}))
        sections.append(_digest(_world(content)))
    return runs.assign(
        identity=pd.Series(identities, index=runs.index, dtype=object),
        section=pd.Series(sections, index=runs.index, dtype=object),
    )


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
        One row per run and predictor: the columns of `runs` and of `rules.select`, `identity`
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
    A setting is all of that but the method, its recipe and which predictors are evaluated; where
    one name would stand for several, it says what differs and ends in a digest.

    Args:
        runs: the `runs` table, unfinished ones among them (`planned_runs`).
        trajectory: evaluations of these runs.
        rule: picks the evaluation to report.
        partial: whether unfinished runs count, with the evaluations that they have.

    Returns:
        What identifies the row; `label` and `setting` (unique together with the predictor);
        `finished` of `started` runs, `unfinished` ones that count, `resumed_elsewhere`; `rule`,
        `selected_on`, `evaluations` and `fewest_evaluations` (the most and the fewest that a run
        was selected from), `cases`; `empty` and `beyond` (over all runs, the cases at the
        reported checkpoints with an empty mask, and those measured as farther off than an empty
        mask counts); and for each metric and statistic `<metric>_<statistic>`, besides
        `<metric>_gap`: the median over runs of the reported value minus the last one, where the
        rule sees the test split. DSC is a fraction, distances are in `unit`.
    """
    values = outcomes(runs, trajectory, rule, partial)
    by_row = dict(list(values.groupby(["identity", "predictor"])))
    rows = []
    runs = with_identity(runs)
    for identity, group in runs.groupby("identity"):
        first = group.iloc[0]
        for predictor in _predictors(group, values):
            counted = by_row.get((identity, predictor), values.iloc[:0])
            rows.append(
                {
                    **{name: first[name] for name in (*SETTING, *METHOD)},
                    "identity": identity,
                    "section": first["section"],
                    "predictor": predictor,
                    "started": len(group),
                    "finished": int((counted["state"] == "finished").sum()),
                    "failed": int((group["state"] == "failed").sum()),
                    "unfinished": int((counted["state"] == UNFINISHED).sum()),
                    "resumed_elsewhere": int(counted["resumed_elsewhere"].eq(True).sum()),
                    "rule": rule.expression,
                    "selected_on": rule.selected_on,
                    "evaluations": int(counted["evaluations"].max()) if len(counted) else 0,
                    "fewest_evaluations": int(counted["evaluations"].min()) if len(counted) else 0,
                    "cases": int(counted["cases"].max()) if len(counted) else 0,
                    "empty": int(counted["empty"].sum()),
                    "beyond": int(counted["beyond"].sum()),
                    **_statistics(counted),
                    **_gaps(counted, rule),
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


def _readable(run: str, spec: str) -> dict[str, Any]:
    try:
        return _content(spec)
    except ValueError:
        raise UserError(
            f"the record of run {run} holds no readable spec: delete every file of this run in "
            "the store and run it again"
        ) from None


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
    selection = ("rule", "selected_on", "evaluations", "fewest_evaluations")
    found = ("cases", "empty", "beyond")
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
