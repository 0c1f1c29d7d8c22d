import json

import numpy as np
import pandas as pd
import pytest

from reports import costs
from reports.facts import load_facts
from results.store import Store
from tests.protocols import toy
from tests.reports.grid_toy import check_latex


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


def add(store, seed, seconds, *, method="mt", **changes):
    sidecar = {
        "seconds": 1000 * seconds,
        "seconds_per_step": seconds,
        "seconds_per_case": 2 * seconds,
        "peak_memory_bytes": round(1e9 * seconds),
    }
    rows = toy.cases(toy.run_id(method, seed), {1000: (0.5,)})
    spec = toy.spec(method, seed=seed)
    toy.add(store, rows, spec, **{"sidecar": sidecar, "parameters": 9_450_000, **changes})


def found(store):
    return costs.costs(load_facts(store, "last", "tcseg"))


def printed(store):
    return [row for s in costs.sheet(found(store)).sections for row in s.rows]


def environment(threads, device="cpu"):
    return json.dumps([{"threads": 9, "device": "cpu"}, {"threads": threads, "device": device}])


def test_a_row_has_the_medians_of_its_finished_runs(store):
    for seed, seconds in enumerate((0.1, 0.4, 0.3)):
        add(store, seed, seconds)
    add(store, 3, 99.0, state="failed")
    row = found(store).iloc[0]
    assert (row["label"], row["device"], row["runs"]) == ("mt", "cpu", 3)
    assert row["seconds_per_step"] == pytest.approx(0.3)
    assert row["seconds_per_case"] == pytest.approx(0.6)
    assert row["peak_memory_bytes"] == pytest.approx(3e8)
    assert row["seconds"] == pytest.approx(300)
    assert printed(store) == [
        ("mt", "cpu", "3", "9.45", "0.300", "0.60", "0.0 s", "0.30", "5.0 min")
    ]


def test_the_best_checkpoint_costs_the_evaluations_before_the_last(store):
    run = toy.run_id("mt", 0)
    rows = [toy.cases(run, {1000: (0.5,) * 4, 2000: (0.6,) * 4, 3000: (0.5,) * 4})]
    rows += [toy.cases(run, {1000: (0.5,), 3000: (0.5,)}, split="val")]
    toy.add(store, pd.concat(rows), toy.spec("mt"), sidecar={"seconds_per_case": 10.0})
    assert found(store)["seconds_to_choose"].tolist() == [2 * 4 * 10.0]
    assert printed(store)[0][6] == "1.3 min"


def test_devices_and_thread_counts_never_share_a_row(store):
    add(store, 0, 1.0, device="NVIDIA H200", environment=environment(4, "cuda"))
    add(store, 1, 2.0, device="NVIDIA H200", environment=environment(8, "cuda"))
    add(store, 2, 3.0, device="CPU (x)", environment=environment(1))
    add(store, 3, 4.0, device="CPU (x)", environment=environment(4))
    add(store, 4, 5.0, device="CPU (x)", environment=environment(4), resumed_elsewhere=True)
    values = found(store).set_index("device")
    assert values["runs"].to_dict() == {
        "NVIDIA H200": 2,
        "CPU (x), 1 thread": 1,
        "CPU (x), 4 threads": 1,
        "CPU (x), 4 threads, begun elsewhere": 1,
    }
    assert values.loc["NVIDIA H200", "seconds_per_step"] == pytest.approx(1.5)


def test_what_a_run_did_not_record_is_no_number(store):
    add(store, 0, 1.0)
    add(store, 1, 1.0, sidecar={"seconds": 30.0})
    row = found(store).iloc[0]
    assert np.isnan(
        [row["seconds_per_step"], row["seconds_per_case"], row["peak_memory_bytes"]]
    ).all()
    assert printed(store)[0][3:] == ("9.45", "–", "–", "–", "–", "8.6 min")


def test_methods_come_in_the_order_of_the_main_table_under_its_headings(store):
    for method, dsc in (("dtc", 0.5), ("tcseg", 0.9), ("mt", 0.7)):
        rows = toy.cases(toy.run_id(method), {1000: (dsc,)})
        toy.add(store, rows, toy.spec(method))
    assert [row[0] for row in printed(store)] == ["tcseg", "mt", "dtc"]
    headings = [s.heading for s in costs.sheet(found(store)).sections]
    assert headings == ["la, 8 labelled / 72 unlabelled, profile mini"]


def test_the_page_and_the_numbers_are_written(store, tmp_path):
    add(store, 0, 0.5)
    paths = costs.write_costs(load_facts(store, "last", "tcseg"), tmp_path)
    assert [p.name for p in paths] == ["costs.md", "costs.csv", "costs.tex"]
    assert "| mt | cpu | 1 | 9.45 | 0.500 | 1.00 | 0.0 s | 0.50 | 8.3 min |" in paths[0].read_text()
    assert "compare rows of one device" in paths[0].read_text()
    assert paths[1].read_text().splitlines()[1].endswith(",500.0000")
    latex = paths[2].read_text()
    check_latex(latex)
    assert r"mt & cpu & 1 & 9.45 & 0.500 & 1.00 & 0.0 s & 0.50 & 8.3 min \\" in latex
    assert r"10\textsuperscript{9} bytes" in latex


def test_nothing_finished_says_so(store, tmp_path):
    add(store, 0, 1.0, state="failed")
    paths = costs.write_costs(load_facts(store, "last", "tcseg"), tmp_path)
    assert "No run has finished yet" in paths[0].read_text()
