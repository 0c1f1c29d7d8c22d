"""The floor of a dataset: what its atlas scores, by itself or as runs beside those of a store."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pandas as pd
import torch
from joblib import Parallel, delayed

from benchmark import environment
from benchmark.data.atlas import GRID, Atlas, build
from benchmark.data.base import Dataset, Split, Volume
from benchmark.data.links import linked_cases
from benchmark.data.splits import split_labelled
from benchmark.data.volumes import load_volumes
from benchmark.metrics import case_metrics, prepare_reference
from benchmark.spec import canonical_json
from results.errors import UserError
from results.schema import FLOOR, TABLES
from results.store import Store

VERSION: Final = 1
"""Bumped when its numbers change."""

NOTE: Final = (
    "atlas never looks at an image: it is the mean label of the labelled cases, placed by where a "
    "voxel lies in its volume. It is the floor that methods have to beat."
)
EVALUATED: Final[tuple[Split, ...]] = ("val", "test")
_OF_A_RUN: Final = ("method", "predictors", "seed")
"""What of a spec is not that of the setting."""


@dataclass(frozen=True)
class Setting:
    """Where an atlas is measured: what one run that is there already says.

    record: of that run.
    steps:  at which it was evaluated, by split.
    """

    record: Mapping[str, Any]
    steps: Mapping[Split, tuple[int, ...]]


def measure(
    dataset: Dataset, labelled: int, scale: float = 1.0, jobs: int = 1
) -> list[dict[str, Any]]:
    """What the atlas of the first labelled cases scores on each validation and test case.

    Args:
        dataset: a prepared one.
        labelled: number of labelled cases.
        scale: of the volumes, as for `load_volumes`.
        jobs: threads.

    Returns:
        split, case, and the fields of `CaseMetrics`.

    Raises:
        UserError: there are fewer training cases, or a case is damaged.
    """
    names, _ = split_labelled(dataset, labelled, need_unlabelled=False)
    atlas = build(volume.label for volume in load_volumes(dataset, names, scale).values())
    cases = [(split, case) for split in EVALUATED for case in dataset.splits[split]]
    volumes = load_volumes(dataset, [case for _, case in cases], scale)
    measured = Parallel(n_jobs=jobs, prefer="threads")(
        delayed(_scored)(atlas, volumes[case]) for _, case in cases
    )
    return [
        {"split": split, "case": case, **scores}
        for (split, case), scores in zip(cases, measured, strict=True)
    ]


def settings(store: Store, dataset: Dataset) -> list[Setting]:
    """The settings of a dataset in which a store holds finished runs of methods.

    Rescored runs are not among them: what they measure are stored predictions.
    """
    records = store.records()
    own = records[
        (records["fingerprint"] == dataset.fingerprint)
        & (records["state"] == "finished")
        & (records["method"] != FLOOR)
    ]
    found: dict[str, Setting] = {}
    for record in own.sort_values("run").to_dict("records"):
        spec = json.loads(record["spec"])
        if "rescored" in spec:
            continue
        key = canonical_json({k: v for k, v in spec.items() if k not in _OF_A_RUN})
        if key not in found:
            found[key] = Setting({str(k): v for k, v in record.items()}, _steps(store, record))
    return list(found.values())


def add_runs(store: Store, dataset: Dataset, jobs: int = 1) -> list[str]:
    """Commit a run of the atlas for every setting of a dataset in a store; a second time nothing.

    Its rows are the same at every step at which the methods were evaluated, as it learns nothing;
    so every protocol finds it.

    Returns:
        Ids of the runs, new or not.

    Raises:
        UserError: the store holds no finished run on this dataset.
    """
    there = settings(store, dataset)
    if not there:
        raise UserError(
            f"{store.path} holds no finished run on {dataset.label} with fingerprint "
            f"{dataset.fingerprint[:12]}: start some with `bench run`, then the floor can stand "
            "beside them"
        )
    done = []
    for setting in there:
        record = _record(setting)
        if not store.is_done(record["run"]):
            began = time.monotonic()
            spec = json.loads(record["spec"])
            scale = spec["dataset"]["geometry"]["scale"]
            rows = measure(dataset, spec["labelled"], scale, jobs)
            store.commit(
                record["run"],
                {"cases": _cases(rows, setting), "history": _empty("history")}
                | {"pseudo": _empty("pseudo")},
                record,
                {
                    "attempts": [],
                    "resumed": False,
                    "seconds": time.monotonic() - began,
                    "notes": [*dataset.card.all_notes, NOTE],
                    "linked": linked_cases(dataset),
                    "plugins": {},
                },
            )
        done.append(str(record["run"]))
    return done


def _scored(atlas: Atlas, volume: Volume) -> dict[str, Any]:
    reference = prepare_reference(volume.label.astype(bool), volume.spacing)
    x, y, z = volume.label.shape
    return asdict(case_metrics(atlas.segment((x, y, z)), reference))


def _steps(store: Store, record: Mapping[Any, Any]) -> dict[Split, tuple[int, ...]]:
    cases = store.read("cases", [record["run"]], ["split", "step"])
    return {
        split: tuple(sorted({int(s) for s in cases.loc[cases["split"] == split, "step"]}))
        for split in EVALUATED
    }


def _record(setting: Setting) -> dict[str, Any]:
    """The row of `runs`: that of the setting's run where it is not about the method."""
    method = {"name": FLOOR, "version": VERSION, "hyperparameters": {"grid": list(GRID)}}
    changes = {"method": method, "predictors": ["main"], "seed": 0}
    spec = canonical_json(json.loads(setting.record["spec"]) | changes)
    digest = hashlib.sha256(spec.encode()).hexdigest()[:12]
    dataset = json.loads(spec)["dataset"]["name"]
    slug = f"{FLOOR}-{dataset}-{setting.record['labelled']}-s0"
    commit = environment.harness_commit()
    return {
        **setting.record,
        "run": f"{slug[:51].rstrip('-')}-{digest}",
        "error": "",
        "method": FLOOR,
        "version": VERSION,
        "hyperparameters": canonical_json(method["hyperparameters"]),
        "changed": "{}",
        "fidelity": "floor",
        "seed": 0,
        "predictors": "main",
        "parameters": 0,
        "device": "cpu",
        "environment": canonical_json([environment.fingerprint(torch.device("cpu"), 1)]),
        "resumed_elsewhere": False,
        "versions": canonical_json(environment.versions()),
        "commit": commit.commit,
        "dirty": commit.dirty,
        "spec": spec,
    }


def _cases(rows: Sequence[Mapping[str, Any]], setting: Setting) -> pd.DataFrame:
    return _frame(
        "cases",
        (
            {**row, "step": step, "predictor": "main"}
            for row in rows
            for step in setting.steps[row["split"]]
        ),
    )


def _empty(table: str) -> pd.DataFrame:
    return _frame(table, iter(()))


def _frame(table: str, rows: Iterator[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=[c.name for c in TABLES[table] if c.name != "run"])
