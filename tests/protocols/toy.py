"""Made-up runs for tests: whole stores and frames in the schema's shape."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from results.schema import RUNS
from results.store import Store

STEPS = (1000, 2000, 3000)


def spec(
    method="mt", *, version=1, decay=0.99, dataset="la", fingerprint="f" * 64, seed=0, **changes
) -> dict:
    """A canonical spec, shaped as the harness writes it."""
    return {
        "engine": 1,
        "method": {"name": method, "version": version, "hyperparameters": {"decay": decay}},
        "recipe": {"name": "common"},
        "dataset": {"name": dataset, "fingerprint": fingerprint},
        "labelled": 8,
        "seed": seed,
        "profile": {"name": "mini"},
        "predictors": ["main"],
        **changes,
    }


def run_id(method="mt", seed=0, dataset="la", tag="0") -> str:
    return f"{method}-{dataset}-8-s{seed}-mini-{tag}"


def record(
    run: str, content: Mapping | None = None, *, state: str = "finished", **changes: object
) -> dict:
    """A row of `runs` that agrees with its spec."""
    content = content or spec()
    row = {
        "run": run,
        "state": state,
        "error": "" if state == "finished" else "loss is NaN at step 7",
        "method": content["method"]["name"],
        "version": content["method"]["version"],
        "hyperparameters": json.dumps(content["method"]["hyperparameters"]),
        "changed": "{}",
        "recipe": content["recipe"]["name"],
        "fidelity": "paper",
        "dataset": content["dataset"]["name"],
        "fingerprint": content["dataset"]["fingerprint"],
        "unit": "mm",
        "labelled": content["labelled"],
        "unlabelled": 72,
        "seed": content["seed"],
        "profile": content["profile"]["name"],
        "steps": 3000,
        "evaluations": len(STEPS),
        "predictors": ",".join(content["predictors"]),
        "parameters": 1234,
        "device": "cpu",
        "environment": "{}",
        "resumed_elsewhere": False,
        "versions": "{}",
        "commit": "",
        "dirty": False,
        "spec": json.dumps(content),
        **changes,
    }
    assert list(row) == [c.name for c in RUNS]
    return row


def planned(run: str, content: Mapping | None = None, **changes: object) -> dict:
    """What is known of a run before it begins: `row` of its `spec.json`."""
    at_the_end = ("state", "error", "parameters", "device", "environment", "resumed_elsewhere")
    row = record(run, content, **changes)
    return {k: v for k, v in row.items() if k not in (*at_the_end, "versions", "commit", "dirty")}


def cases(
    run: str,
    scores: Mapping[int, Sequence[float]],
    *,
    split: str = "test",
    predictor: str = "main",
    empty: Sequence[tuple[int, int]] = (),
) -> pd.DataFrame:
    """Case rows from DSC by step; ASD = 10 (1 - DSC), HD95 = 30 (1 - DSC).

    empty: (step, place of the case) whose prediction is empty.
    """
    rows = []
    for step, values in scores.items():
        for place, dsc in enumerate(values):
            gone = (step, place) in empty
            rows.append(
                {
                    "run": run,
                    "step": step,
                    "predictor": predictor,
                    "split": split,
                    "case": f"case{place}",
                    "status": "empty-prediction" if gone else "ok",
                    "dsc": 0.0 if gone else dsc,
                    "asd": np.nan if gone else 10 * (1 - dsc),
                    "hd95": np.nan if gone else 30 * (1 - dsc),
                    "tp": 0 if gone else round(1000 * dsc),
                    "fp": 0 if gone else 5,
                    "fn": 1000 if gone else 1000 - round(1000 * dsc),
                    "voxels": 100_000,
                    "diagonal": 150.0,
                }
            )
    return pd.DataFrame(rows)


def history(run: str) -> pd.DataFrame:
    rows = [{"run": run, "step": s, "term": "supervised", "value": 1 / (s + 1)} for s in range(3)]
    return pd.DataFrame(rows).assign(weight=1.0)


def pseudo(run: str, counts: Sequence[tuple[int, int, int, int]] = ((1, 2, 3, 4),)) -> pd.DataFrame:
    """Pseudo-labels of one volume for each (tp, fp, fn, tn)."""
    rows = [
        {"run": run, "step": 3000, "predictor": "main", "case": f"u{place}"}
        | dict(zip(("tp", "fp", "fn", "tn"), values, strict=True))
        for place, values in enumerate(counts)
    ]
    return pd.DataFrame(rows)


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    run = rows["run"].iloc[0]
    return {"cases": rows, "history": history(run), "pseudo": pseudo(run)}


def add(
    store: Store,
    rows: pd.DataFrame,
    content: Mapping | None = None,
    *,
    sidecar: Mapping | None = None,
    pseudo_labels: pd.DataFrame | None = None,
    **changes,
) -> str:
    """Commit one run."""
    run = str(rows["run"].iloc[0])
    frames = tables(rows) | ({} if pseudo_labels is None else {"pseudo": pseudo_labels})
    store.commit(run, frames, record(run, content, **changes), sidecar or {"seconds": 1.0})
    return run


def fill(
    store: Store,
    rng: np.random.Generator,
    *,
    methods: Mapping[str, float],
    seeds: int = 5,
    datasets: Sequence[str] = ("la",),
    steps: Sequence[int] = STEPS,
    n_cases: int = 6,
) -> None:
    """Runs of several methods whose DSC rises to a level and swings about it."""
    for d, dataset in enumerate(datasets):
        for method, level in methods.items():
            for seed in range(seeds):
                content = spec(method, dataset=dataset, seed=seed)
                peak = level - 0.05 * d + 0.01 * rng.standard_normal()
                scores = {}
                for place, step in enumerate(steps):
                    mean = peak - 0.2 * np.exp(-4 * (place + 1) / len(steps))
                    mean += 0.008 * rng.standard_normal()
                    scores[step] = np.clip(mean + 0.03 * rng.standard_normal(n_cases), 0, 1)
                add(store, cases(run_id(method, seed, dataset), scores), content)
