"""Stored predictions measured again under another policy, as runs of a store of their own.

Nothing is trained or predicted. A derived run has the policy in its spec, and so in its identity:
no table mixes it with what it was derived from. Under the policy that a run was measured with it is
that run again, with the same id and, where all of its predictions are kept, the same `cases` file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.data.volumes import load_volumes
from benchmark.metrics import Reference, case_metrics, prepare_reference
from benchmark.scans import open_evaluated
from benchmark.spec import canonical_json
from methods.components import largest_component
from results.errors import UserError
from results.predictions import Mask, columns_of, unpack
from results.schema import FLOOR, TABLES, Component, Unit
from results.store import Store

_DIGITS = 12
"""Of the digest that ends a run's id."""


@dataclass(frozen=True)
class Policy:
    """How predictions are measured."""

    component: Component = Component.ALL
    unit: Unit = Unit.DATA


def rescore(store: Store, derived: Store, policy: Policy, data: Path) -> list[str]:
    """Measure every run of a store again and commit it to another; a second time does nothing.

    Failed runs go along, as they stay in the denominator. The floor of a dataset does not: nobody
    trained it, and `bench data floor` makes it again.

    Raises:
        UserError: a finished run without predictions, damaged ones, or data that are not there.
    """
    records = store.records()
    records = records[records["method"] != FLOOR]
    finished = records.loc[records["state"] == "finished", "run"]
    without = [run for run in finished if not store.has("predictions", run)]
    if without:
        raise UserError(
            f"{len(without)} of {len(finished)} finished runs in {store.path} keep no predictions, "
            f"as {without[0]}: train into another store with `bench run --keep-predictions last` "
            "(`all` for other protocols than last; the numbers will be the same)"
        )
    if records.empty:
        raise UserError(f"the store {store.path} holds no run yet: start some with `bench run`")

    @cache
    def references(dataset: str) -> Callable[[str], Reference]:
        return _references(json.loads(dataset), policy, data)

    done = []
    for run in records["run"]:
        record = store.record(run)
        made = _record(record, policy)
        if not derived.is_done(made["run"]):
            dataset = canonical_json(json.loads(record["spec"])["dataset"])
            tables = _tables(store, run, policy, references(dataset))
            evaluated = tables["cases"].query("split == 'test'")["step"]
            made["evaluations"] = int(evaluated.nunique())
            derived.commit(made["run"], tables, made, store.sidecar(run))
        done.append(str(made["run"]))
    return done


def _record(record: dict[str, Any], policy: Policy) -> dict[str, Any]:
    """The derived run's record: another id, spec, profile label and unit where these differ."""
    spec = json.loads(record["spec"])
    changes: dict[str, str] = {}
    if policy.component is not Component.ALL:
        changes["component"] = policy.component
    if policy.unit is Unit.VOXEL and record["unit"] != "voxel":
        changes["unit"] = policy.unit
    if not changes:
        return dict(record)
    if "rescored" in spec:
        raise UserError(
            f"run {record['run']} is rescored already; rescore the store that it was derived from"
        )
    spec["rescored"] = changes
    text = canonical_json(spec)
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
    return record | {
        "run": f"{record['run'][:-_DIGITS]}{digest}",
        "spec": text,
        "profile": "+".join([record["profile"], *(f"{k}={v}" for k, v in changes.items())]),
        "unit": changes.get("unit", record["unit"]),
    }


def _tables(
    store: Store, run: str, policy: Policy, references: Callable[[str], Reference]
) -> dict[str, pd.DataFrame]:
    """The tables of the derived run, without the `run` column."""
    kept = store.read("predictions", [run]) if store.has("predictions", run) else pd.DataFrame()
    cases, predictions = [], []
    for row in kept.to_dict("records"):
        key = {name: row[name] for name in ("step", "predictor", "split", "case")}
        mask = _mask(row, run)
        if policy.component is Component.LARGEST:
            mask = largest_component(mask)
        reference = references(row["case"])
        if mask.shape != reference.mask.shape:
            raise UserError(
                f"the prediction of run {run} for case {row['case']} has shape {mask.shape}, its "
                f"volume {reference.mask.shape}: the store or the data were changed by hand"
            )
        cases.append(key | asdict(case_metrics(mask, reference)))
        predictions.append(key | columns_of(mask))
    pseudo = store.read("pseudo", [run])
    # Those of other components are not known: their masks are not kept.
    same = policy.component is Component.ALL
    return {
        "cases": _frame("cases", cases),
        "predictions": _frame("predictions", predictions),
        "history": store.read("history", [run]).drop(columns="run"),
        "pseudo": (pseudo if same else pseudo.iloc[:0]).drop(columns="run"),
    }


def _mask(row: dict[Any, Any], run: str) -> Mask:
    try:
        return unpack(row["mask"], (row["x"], row["y"], row["z"]))
    except ValueError as error:
        raise UserError(
            f"the predictions of run {run} are damaged at case {row['case']}: {error}"
        ) from None


def _references(dataset: dict[str, Any], policy: Policy, data: Path) -> Callable[[str], Reference]:
    found = open_evaluated(data, dataset)

    @cache
    def reference(case: str) -> Reference:
        volume = load_volumes(found, [case], dataset["geometry"]["scale"])[case]
        spacing = volume.spacing
        if policy.unit is Unit.VOXEL:
            x, y, z = (s / o for s, o in zip(spacing, found.load(case).spacing, strict=True))
            spacing = (x, y, z)
        return prepare_reference(volume.label.astype(bool), spacing)

    return reference


def _frame(table: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[c.name for c in TABLES[table] if c.name != "run"])
