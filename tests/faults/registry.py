"""Every fault by name."""

from __future__ import annotations

from tests.faults import clusters, running, storing
from tests.faults.base import Fault

FAULTS: dict[str, Fault] = {
    "killed-writers": storing.killed_writers,
    "power-cut": storing.power_cut,
    "commit-race": storing.commit_race,
    "failing-calls": storing.failing_commits,
    "full-disk": storing.full_disk,
    "killed-phases": running.killed_phases,
    "damaged-checkpoints": running.damaged_checkpoints,
    "same-grid": running.same_grid,
    "killed-workers": running.killed_workers,
    "killed-parents": running.killed_parents,
    "slurm": clusters.slurm,
    "same-grid-on-clusters": clusters.same_grid,
    "frozen-ray": clusters.frozen_ray,
}
