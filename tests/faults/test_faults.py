"""The short form of the table; `make faults` makes the full one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.base import Scale
from tests.faults.registry import FAULTS
from tests.faults.storing import power_cut
from tests.stores import writers


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_doubled_or_different(name: str, tmp_path: Path) -> None:
    row = FAULTS[name](Scale(full=False, folder=tmp_path))
    if row.skipped:
        pytest.skip(row.skipped)
    assert row.bad == 0, row


@pytest.mark.slow
def test_a_store_that_does_not_synchronise_loses_runs_when_the_power_goes(tmp_path: Path) -> None:
    row = power_cut(Scale(full=False, folder=tmp_path), writers.commit_without_synchronising)
    if row.skipped:
        pytest.skip(row.skipped)
    assert row.bad > 0
