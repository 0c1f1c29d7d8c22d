"""What each method costs: the TCSeg paper's Table 4, and the time of a whole run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protocols.rules import REPORTED
from reports.facts import MAIN, Facts
from reports.render import Section, Sheet, write_sheets
from reports.table import NO_VALUE, number

STEM: Final = "costs"
_MEASURED: Final = ("seconds_per_step", "seconds_per_case", "peak_memory_bytes", "seconds")
"""Keys of a sidecar."""

_COLUMNS: Final = (*_MEASURED[:2], "seconds_to_choose", *_MEASURED[2:])

_KEYS: Final = ["setting", "label", "device"]


def write_costs(facts: Facts, out: Path) -> list[Path]:
    """Write `costs.md`, `.csv` and `.tex`; return the paths."""
    values = costs(facts)
    return write_sheets([sheet(values, facts.omitted)], values, out, STEM)


def costs(facts: Facts) -> pd.DataFrame:
    """One row per setting, method and device.

    Returns:
        setting, label, device, `runs` (finished ones), and medians over them: parameters
        (trainable), seconds_per_step, seconds_per_case, seconds_to_choose (what the best
        checkpoint on the test set takes more than the last one), peak_memory_bytes, seconds (of a
        run). NaN where a run has not recorded it.
    """
    runs = facts.finished
    measured = pd.DataFrame(
        [[facts.sidecars[run].get(key) for key in _MEASURED] for run in runs["run"]],
        columns=list(_MEASURED),
        dtype=float,
    )
    measured["seconds_to_choose"] = measured["seconds_per_case"] * _more(facts, runs["run"])
    devices = [_device(row) for row in runs.to_dict("records")]
    found = pd.concat([runs[["setting", "label", "parameters"]], measured], axis=1)
    groups = found.assign(device=devices).groupby(_KEYS, sort=False)
    medians = groups[["parameters", *_COLUMNS]].median(skipna=False)
    return medians.assign(runs=groups.size()).reset_index()[
        [*_KEYS, "runs", "parameters", *_COLUMNS]
    ]


def sheet(values: pd.DataFrame, omitted: Sequence[str] = ()) -> Sheet:
    """`costs` as text, a section per setting; `omitted` as in `Facts`."""
    columns = (
        *(("", "method"), ("", "device"), ("", "runs"), ("parameters", "M")),
        *(("training", "s/step"), ("evaluation", "s/case"), ("evaluation", "to choose best")),
        *(("peak memory", "GB"), ("run", "time")),
    )
    sections = [
        Section(str(setting), tuple(_row(row) for row in group.to_dict("records")))
        for setting, group in values.groupby("setting", sort=False)
    ]
    notes = [
        f"Medians over finished runs, of each number by itself; {NO_VALUE} where a run did not "
        "record it. Parameters: all that are trained.",
        "s/step: wall time of training over steps. s/case: wall time of segmenting one volume "
        "with one predictor. To choose best: that time over the test cases of all evaluations but "
        "the last, which the best checkpoint on the test set takes beyond the last one. Run: "
        "training, evaluation and pseudo-labels of all attempts.",
        "Peak memory: what the networks took on a GPU, the whole process elsewhere, so these two "
        "do not compare; 1 GB is 10⁹ bytes.",
        "Times are those of the machine and of what else it did then: compare rows of one device.",
        *omitted,
    ]
    if values.empty:
        notes.insert(0, "No run has finished yet.")
    return Sheet("Costs", columns, tuple(sections), tuple(notes), left=2)


def duration(seconds: float) -> str:
    """A time as text, in the largest unit of which there is one.

    >>> duration(59.6), duration(200), duration(20_000), duration(float("nan"))
    ('59.6 s', '3.3 min', '5.6 h', '–')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return NO_VALUE if seconds != seconds else f"{seconds:.1f} s"


def _row(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return (
        row["label"],
        row["device"],
        str(row["runs"]),
        number(row["parameters"] / 1e6),
        number(row["seconds_per_step"], ".3f"),
        number(row["seconds_per_case"]),
        duration(row["seconds_to_choose"]),
        number(row["peak_memory_bytes"] / 1e9),
        duration(row["seconds"]),
    )


def _more(facts: Facts, runs: Iterable[str]) -> NDArray[np.float64]:
    """How many test cases the main predictor of each run segmented before the last evaluation."""
    steps = facts.trajectory
    steps = steps[(steps["split"] == REPORTED) & (steps["predictor"] == MAIN)]
    cases = steps.astype({"run": object}).sort_values("step").groupby("run")["cases"]
    more = cases.sum() - cases.last()
    return more.reindex(list(runs)).to_numpy(dtype=np.float64)


def _device(run: Mapping[Any, Any]) -> str:
    """What the times of a run are of: its device, and what else decides them."""
    environments = json.loads(run["environment"])
    latest = environments[-1] if isinstance(environments, list) and environments else {}
    words = [run["device"]]
    if latest.get("device") == "cpu" and "threads" in latest:
        words.append("1 thread" if latest["threads"] == 1 else f"{latest['threads']} threads")
    if run["resumed_elsewhere"]:
        words.append("begun elsewhere")
    return ", ".join(words)
