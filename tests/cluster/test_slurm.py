"""On a real SLURM, started for each test on loopback in a namespace of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.loopback import missing_slurm
from tests.cluster.namespace import inside
from tests.cluster.slurm_scenarios import CHECKPOINT_EVERY

REASON = missing_slurm()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(REASON), reason=REASON or "-"),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, as names of sockets must be, which the user of munge may enter."""
    with tempfile.TemporaryDirectory(prefix="bench-slurm-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_the_same_grid_has_the_same_bytes_on_every_executor(folder: Path) -> None:
    found = inside("tests.cluster.slurm_scenarios", "grid", folder, timeout_s=280)
    for executor, got in found.items():
        assert got["code"] == 0, executor
        assert got["attempts"] == [1] * 4, executor
        assert got["digests"] == found["inline"]["digests"], executor


def test_a_killed_run_goes_on_from_its_checkpoint_without_accounting(folder: Path) -> None:
    got = inside("tests.cluster.slurm_scenarios", "kill", folder, timeout_s=280)
    assert got["code"] == 0
    assert got["states"] == ["finished"]
    assert got["attempts"] == [2]
    assert got["lost_steps"] <= CHECKPOINT_EVERY
    assert got["left"] == []


def test_the_same_command_attaches_to_the_jobs_of_one_that_died(folder: Path) -> None:
    got = inside("tests.cluster.slurm_scenarios", "attach", folder, timeout_s=280)
    assert got["code"] == 0
    assert got["submissions"] == [1, 1]
    assert got["attempts"] == [1, 1]
    assert got["interrupted"] == 130
    assert "the same command attaches to them. To stop them: scancel --name=bench-" in got["said"]
    assert any(said.startswith("job 1_0 running on n") for said in got["queue"])
    assert any("pending (JobArrayTaskLimit)" in said for said in got["queue"])
