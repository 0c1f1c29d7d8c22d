"""A made-up store of any size, and its table as plain pandas gives it: for speed and equality."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from reports.facts import load_facts
from results.parquet import encode
from results.store import Store
from tests.protocols import toy

METRICS = ["dsc", "asd", "hd95"]
KEYS = ["method", "dataset", "predictor"]

MEASURE = """
import json, resource, sys, time
from pathlib import Path
from reports.facts import load_facts
from results.store import Store
began, used = time.perf_counter(), time.process_time()
facts = load_facts(Store.open(Path(sys.argv[1])), sys.argv[2], "tcseg")
len(facts.summary)
wall, cpu = time.perf_counter() - began, time.process_time() - used
status = Path("/proc/self/status").read_text().split()
peak = int(status[status.index("VmHWM:") + 1]) / 1024 if "VmHWM:" in status else (
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
)
print(json.dumps({"rows": len(facts.cases), "wall_s": wall, "cpu_s": cpu, "peak_mib": peak}))
"""


def write_store(
    path: Path,
    *,
    methods: int = 15,
    datasets: int = 10,
    seeds: int = 5,
    steps: int = 100,
    cases: int = 20,
    predictors: Sequence[str] = ("main", "teacher"),
) -> Store:
    """Runs of every method, dataset and seed; without arguments 750 runs of 4000 case rows."""
    store = Store.open(path, create=True)
    rng = np.random.default_rng(0)
    step, predictor, case = (
        axis.ravel()
        for axis in np.meshgrid(
            200 * np.arange(1, steps + 1), range(len(predictors)), range(cases), indexing="ij"
        )
    )
    fixed = pd.DataFrame(
        {
            "step": step,
            "predictor": pd.Categorical.from_codes(predictor, list(predictors)),
            "split": pd.Categorical(["test"] * len(step)),
            "case": pd.Categorical.from_codes(case, [f"case{n:02}" for n in range(cases)]),
            "status": pd.Categorical(["ok"] * len(step)),
            "fp": 5,
            "fn": 7,
            "voxels": 100_000,
            "diagonal": 150.0,
        }
    )
    for method, dataset, seed in _grid(methods, datasets, seeds):
        spec = toy.spec(method, dataset=dataset, seed=seed, predictors=list(predictors))
        run = toy.run_id(method, seed, dataset)
        dsc = rng.beta(8, 2, len(fixed))
        rows = fixed.assign(
            run=pd.Categorical([run] * len(fixed)),
            dsc=dsc,
            asd=10 * (1 - dsc),
            hd95=30 * (1 - dsc) * rng.uniform(0.8, 1.2, len(fixed)),
            tp=rng.integers(1000, 9999, len(fixed)),
        )
        record = toy.record(run, spec, steps=int(step[-1]), evaluations=steps)
        tables = {**toy.tables(rows), "runs": pd.DataFrame([record])}
        for name, table in tables.items():
            (path / name / f"{run}.parquet").write_bytes(encode(name, table))
        (path / "runs" / f"{run}.json").write_text("{}")
    return store


def plain(path: Path) -> pd.DataFrame:
    """Median over runs at the last checkpoint, as anybody would write it."""
    columns = ["run", "predictor", "split", "step", *METRICS]
    cases = pd.concat(pd.read_parquet(f, columns=columns) for f in (path / "cases").iterdir())
    runs = pd.concat(pd.read_parquet(f) for f in (path / "runs").glob("*.parquet"))
    means = cases[cases["split"] == "test"].groupby(["run", "predictor", "step"])[METRICS].mean()
    last = means.reset_index().sort_values("step").groupby(["run", "predictor"]).tail(1)
    joined = last.merge(runs[["run", "method", "dataset"]], on="run")
    return joined.groupby(KEYS)[METRICS].median()


def ours(path: Path) -> pd.DataFrame:
    """The same numbers out of the summary of a report."""
    summary = load_facts(Store.open(path), "last", "tcseg").summary.set_index(KEYS).sort_index()
    return summary[[f"{m}_median" for m in METRICS]].set_axis(METRICS, axis=1)


def measured(path: Path, protocol: str = "last") -> dict[str, float]:
    """rows, wall_s and cpu_s after start-up and peak_mib of a process of its own."""
    command = [sys.executable, "-c", MEASURE, str(path), protocol]
    free = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=free)
    return dict(json.loads(done.stdout))


def _grid(methods: int, datasets: int, seeds: int) -> Iterator[tuple[str, str, int]]:
    for m in range(methods):
        for d in range(datasets):
            for seed in range(seeds):
                yield f"method{m}", f"data{d}", seed
