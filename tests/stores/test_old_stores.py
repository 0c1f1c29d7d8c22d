"""Stores of every past schema version stay readable.

`v1/` was written by `write_v1` when the schema was at version 1 and is never written again:
`python tests/stores/test_old_stores.py FOLDER` shows how.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from results.parquet import encode
from results.schema import SCHEMA_VERSION
from results.store import Store

V1 = Path(__file__).parent / "v1"
FINISHED, FAILED, BEGUN = "mt-la-8-s0-mini-1", "mt-la-8-s1-mini-2", "mt-la-8-s2-mini-3"
SPEC = {
    "engine": 1,
    "method": {"name": "mt", "version": 1, "hyperparameters": {"decay": 0.99}},
    "recipe": {"name": "common"},
    "dataset": {"name": "la", "fingerprint": "ab" * 32},
    "labelled": 8,
    "profile": {"name": "mini"},
    "predictors": ["main"],
}


def v1_cases(run: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": run,
            "step": [100, 100, 200, 200],
            "predictor": "main",
            "split": "test",
            "case": ["a", "b", "a", "b"],
            "status": ["ok", "empty-prediction", "ok", "ok"],
            "dsc": [0.5, 0.0, 0.75, 0.25],
            "asd": [2.0, np.nan, 1.0, 3.0],
            "hd95": [8.0, np.nan, 4.0, 12.0],
            "tp": [1, 0, 3, 4],
            "fp": [1, 0, 1, 1],
            "fn": [1, 5, 1, 1],
            "voxels": 1000,
            "diagonal": 17.5,
        }
    )


def v1_tables(run: str) -> dict[str, pd.DataFrame]:
    history = {"run": run, "step": [0, 1], "term": "supervised", "value": [0.9, np.nan]}
    pseudo = {"run": run, "step": [200], "predictor": "main", "case": "u", "tp": 1, "fp": 2}
    return {
        "cases": v1_cases(run),
        "history": pd.DataFrame({**history, "weight": 1.0}),
        "pseudo": pd.DataFrame({**pseudo, "fn": 3, "tn": 4}),
    }


def v1_record(run: str, state: str, seed: int) -> dict[str, object]:
    return {
        "run": run,
        "state": state,
        "error": "" if state == "finished" else "loss is NaN at step 1",
        "method": "mt",
        "version": 1,
        "hyperparameters": '{"decay":0.99}',
        "changed": "{}",
        "recipe": "common",
        "fidelity": "released",
        "dataset": "la",
        "fingerprint": "ab" * 32,
        "unit": "voxel",
        "labelled": 8,
        "unlabelled": 72,
        "seed": seed,
        "profile": "mini",
        "steps": 200,
        "evaluations": 2,
        "predictors": "main",
        "parameters": 123,
        "device": "cpu",
        "environment": "{}",
        "resumed_elsewhere": False,
        "versions": "{}",
        "commit": "0123abc",
        "dirty": True,
        "spec": json.dumps({**SPEC, "seed": seed}),
    }


def write_v1(path: Path) -> None:
    store = Store.open(path, create=True)
    for seed, (run, state) in enumerate({FINISHED: "finished", FAILED: "failed"}.items()):
        record = v1_record(run, state, seed)
        store.commit(run, v1_tables(run), record, {"seconds": 1.5, "resumed": False})
    store.write_work(BEGUN, "spec.json", json.dumps({"spec": {**SPEC, "seed": 2}}))
    store.write_part(BEGUN, "cases", 100, v1_cases(BEGUN).iloc[:2])


def test_the_store_of_version_1_reads_as_it_was_written():
    store = Store.open(V1)
    records = store.records().set_index("run").to_dict("index")
    for seed, (run, state) in enumerate({FINISHED: "finished", FAILED: "failed"}.items()):
        assert {**records[run], "run": run} == v1_record(run, state, seed)
        for name, written in v1_tables(run).items():
            pd.testing.assert_frame_equal(
                store.read(name, [run]), written, check_dtype=False, check_categorical=False
            )
    assert store.sidecar(FINISHED) == {"seconds": 1.5, "resumed": False}
    assert store.unfinished() == [BEGUN]
    assert store.read_partial("cases")["step"].to_list() == [100, 100]


def test_the_kept_store_is_of_version_1_and_the_newest_version_is_kept_too():
    for path in V1.rglob("*.parquet"):
        assert pq.read_schema(path).metadata[b"bench.schema"] == b"1"
    assert (Path(__file__).parent / f"v{SCHEMA_VERSION}").is_dir()


def test_files_say_which_version_they_are(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(encode("cases", v1_cases("a")))
    metadata = pq.read_schema(path).metadata
    assert metadata[b"bench.schema"] == str(SCHEMA_VERSION).encode()
    assert metadata[b"bench.table"] == b"cases"


if __name__ == "__main__":
    write_v1(Path(sys.argv[1]))
