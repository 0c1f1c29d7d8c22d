"""The columns of every table in a store: the API between running, protocols and reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SCHEMA_VERSION: Final = 1
"""Bumped when a column changes; every past version stays readable (tests/stores/). A table that a
run may lack is no such change: older readers do not look for it."""

TRIAL_PROFILE: Final = "smoke"
"""Profile of runs that prove that a command works, and nothing else."""

FLOOR: Final = "atlas"
"""Method of the runs that are the floor of a dataset: untrained, they see no image."""


@dataclass(frozen=True)
class Column:
    """One column: pandas dtype (or bytes), unit ("" if none) and meaning."""

    name: str
    dtype: str
    unit: str
    meaning: str


STATUSES: Final = ("ok", "empty-prediction", "empty-reference", "empty-both")

CASES: Final = (
    Column("run", "string", "", "run id"),
    Column("step", "int64", "", "optimiser steps done when evaluated"),
    Column("predictor", "string", "", "which segmentation of the run's networks"),
    Column("split", "string", "", "train, val or test"),
    Column("case", "string", "", "case name"),
    Column("status", "string", "", "ok, or which mask is empty; a policy turns that into numbers"),
    Column("dsc", "float64", "1", "Dice similarity coefficient; NaN when both masks are empty"),
    Column("asd", "float64", "unit", "mean distance from predicted to reference surface; or NaN"),
    Column("hd95", "float64", "unit", "95th percentile of both directed distances; or NaN"),
    Column("tp", "int64", "voxel", "predicted and in the reference"),
    Column("fp", "int64", "voxel", "predicted, not in the reference"),
    Column("fn", "int64", "voxel", "in the reference, not predicted"),
    Column("voxels", "int64", "voxel", "size of the volume"),
    Column("diagonal", "float64", "unit", "length of the volume's diagonal: the worst distance"),
)

HISTORY: Final = (
    Column("run", "string", "", "run id"),
    Column("step", "int64", "", "step index, from 0"),
    Column("term", "string", "", "name of the loss term"),
    Column("value", "float64", "", "unweighted value"),
    Column("weight", "float64", "", "weight at that step"),
)

PSEUDO: Final = (
    Column("run", "string", "", "run id"),
    Column("step", "int64", "", "optimiser steps done"),
    Column("predictor", "string", "", "which segmentation of the run's networks"),
    Column("case", "string", "", "unlabelled training case"),
    Column("tp", "int64", "voxel", "pseudo-label and truth foreground"),
    Column("fp", "int64", "voxel", "pseudo-label foreground, truth background"),
    Column("fn", "int64", "voxel", "pseudo-label background, truth foreground"),
    Column("tn", "int64", "voxel", "pseudo-label and truth background"),
)

RUNS: Final = (
    Column("run", "string", "", "run id"),
    Column("state", "string", "", "finished or failed"),
    Column("error", "string", "", "why it failed, and at which step; empty when finished"),
    Column("method", "string", "", "method name"),
    Column("version", "int64", "", "method version"),
    Column("hyperparameters", "string", "", "all of them, resolved, as canonical JSON"),
    Column("changed", "string", "", "those that differ from the defaults, as canonical JSON"),
    Column("recipe", "string", "", "recipe name, with overrides"),
    Column("fidelity", "string", "", "whom the method follows: paper, released, ..."),
    Column("dataset", "string", "", "dataset name; a partial copy says so"),
    Column("fingerprint", "string", "", "sha256 of ordered cases, voxels and preprocessing"),
    Column("unit", "string", "", "of distances: mm or voxel"),
    Column("labelled", "int64", "", "labelled training volumes"),
    Column("unlabelled", "int64", "", "unlabelled training volumes"),
    Column("seed", "int64", "", "seed"),
    Column("profile", "string", "", "profile name, with overrides"),
    Column("steps", "int64", "", "length of the run in steps"),
    Column("evaluations", "int64", "", "evaluations of the test split that the run makes"),
    Column("predictors", "string", "", "evaluated predictors, comma separated"),
    Column("parameters", "int64", "", "trainable parameters"),
    Column("device", "string", "", "what it ran on"),
    Column("environment", "string", "", "torch, threads, CPU capability, GPU ... as JSON"),
    Column("resumed_elsewhere", "bool", "", "continued under another environment"),
    Column("versions", "string", "", "versions of the harness and its libraries, as JSON"),
    Column("commit", "string", "", "git commit of the harness, or empty"),
    Column("dirty", "bool", "", "uncommitted changes in the harness"),
    Column("spec", "string", "", "the whole canonical spec, as JSON"),
)

PREDICTIONS: Final = (
    Column("run", "string", "", "run id"),
    Column("step", "int64", "", "optimiser steps done when evaluated"),
    Column("predictor", "string", "", "which segmentation of the run's networks"),
    Column("split", "string", "", "train, val or test"),
    Column("case", "string", "", "case name"),
    Column("x", "int64", "voxel", "size of the volume along X, at the run's resolution"),
    Column("y", "int64", "voxel", "size of the volume along Y"),
    Column("z", "int64", "voxel", "size of the volume along Z"),
    Column("mask", "bytes", "", "runs of equal voxels; see results/predictions.py"),
)

TABLES: Final = {
    "cases": CASES,
    "history": HISTORY,
    "pseudo": PSEUDO,
    "predictions": PREDICTIONS,
    "runs": RUNS,
}
OPTIONAL: Final = ("predictions",)
"""Tables that only some runs have."""


class Keep(StrEnum):
    """Of which evaluations of a run the predictions are kept."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


class Component(StrEnum):
    """What of a prediction is measured."""

    ALL = "all"
    LARGEST = "largest"


class Unit(StrEnum):
    """What distances are measured in: the unit of the data, or voxels of the original grid."""

    DATA = "data"
    VOXEL = "voxel"


class Stratum(StrEnum):
    """Which test cases a report counts: all, or those that are not linked to a training case."""

    ALL = "all"
    UNLINKED = "unlinked"
