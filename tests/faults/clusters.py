"""What happens to runs on real schedulers: the scenarios of `tests.cluster`, as lines of the table.

The short form is in `tests/cluster`, which `make test` runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster.loopback import missing_programs, missing_slurm
from tests.cluster.namespace import inside, missing_ray
from tests.cluster.slurm_scenarios import CHECKPOINT_EVERY
from tests.faults.base import Row, Scale

_SHORT = "in the full form only; tests/cluster has the short one"
_LIMIT_S = 600
_SLURM = {
    "kill": ("kill",),
    "kill with sacct": ("kill", "accounting"),
    "preemption": ("preempt",),
    "preemption with signal": ("preempt", "signal"),
    "node loss": ("lose-node",),
    "controller restart": ("restart-controller",),
    "cancel": ("cancel",),
}


def slurm(scale: Scale) -> Row:
    """Each fault once on a SLURM of its own; the tables of all are the same bytes."""
    fault = "SLURM: time limit x2, preemption x2, kill x2, node loss, controller restart, cancel"
    missing = _SHORT if not scale.full else missing_slurm()
    if missing:
        return Row(fault, "0", 0, skipped=missing)
    bad, said, tables, tried = 0, [], [], 0
    for name, words in _SLURM.items():
        if "accounting" in words and missing_programs(accounting=True):
            said.append(f"{name} not tried ({missing_programs(accounting=True)})")
            continue
        got = _inside("slurm_scenarios", *words)
        tried += 1
        bad += _wrong(got)
        tables.append(_tables(got))
        said.append(f"{name}: {got['lost_steps']} steps lost, {_after(got)}")
    bad += sum(found != tables[0] for found in tables)
    for name, got in _inside("slurm_scenarios", "limit").items():
        tried += 1
        bad += got["lost_steps"] > CHECKPOINT_EVERY
        said.append(f"time limit, {name}: {got['lost_steps']} steps lost")
    return Row(fault, str(tried), bad, "; ".join(said))


def same_grid(scale: Scale) -> Row:
    """The same grid in the driver, on its machine, on SLURM and on Ray gives the same tables."""
    fault = "same grid by inline, local, slurm, ray"
    missing = _SHORT if not scale.full else missing_slurm() or missing_ray()
    if missing:
        return Row(fault, "0", 0, skipped=missing)
    found = {**_inside("ray_scenarios", "grid"), **_inside("slurm_scenarios", "grid")}
    expected = found["inline"]["digests"]
    bad = sum(got["code"] != 0 or got["digests"] != expected for got in found.values())
    said = f"SHA-256 of each of {len(expected)} tables"
    return Row(fault, f"{len(found)} executors", bad, said)


def frozen_ray(scale: Scale) -> Row:
    """A run on Ray is frozen, tried again, and thawed."""
    fault = "frozen Ray run thawed after the retry"
    missing = _SHORT if not scale.full else missing_ray()
    if missing:
        return Row(fault, "0", 0, skipped=missing)
    found = [_inside("ray_scenarios", "zombie") for _ in range(5)]
    bad = sum(map(_wrong, found)) + sum(_tables(got) != _tables(found[0]) for got in found)
    slowest = max(got["resumed_after_s"] for got in found)
    return Row(fault, "5", bad, f"one committed result each; tried again within {slowest} s")


def _inside(module: str, *words: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as name:
        Path(name).chmod(0o755)  # the user of munge must get at its socket
        scenario, *options = words
        where = Path(name)
        return inside(f"tests.cluster.{module}", scenario, where, *options, timeout_s=_LIMIT_S)


def _wrong(got: Mapping[str, Any]) -> int:
    right = got["code"] == 0 and got["states"] == ["finished"] and not got["left"]
    return int(not right or got["lost_steps"] > CHECKPOINT_EVERY)


def _tables(got: Mapping[str, Any]) -> dict[str, str]:
    return {k: v for k, v in got["digests"].items() if not k.startswith("runs/")}


def _after(got: Mapping[str, Any]) -> str:
    if "noticed_s" in got:
        return f"noticed after {got['noticed_s']} s"
    after = got["resumed_after_s"]
    return f"training again after {after} s" if after else "no attempt lost"
