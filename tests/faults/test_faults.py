"""The short form of the table; `make faults` makes the full one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.base import Scale
from tests.faults.registry import FAULTS


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_doubled_or_different(name: str, tmp_path: Path) -> None:
    row = FAULTS[name](Scale(full=False, folder=tmp_path))
    if row.skipped:
        pytest.skip(row.skipped)
    assert row.bad == 0, row
