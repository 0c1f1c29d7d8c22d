"""The short form of the table; `make faults` makes the full one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.base import Scale
from tests.faults.registry import FAULTS

ON_REQUEST = ("power-cut",)
"""Needs a quiet disk to itself: `python -m tests.faults --short power-cut`."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ON_REQUEST])
def test_nothing_is_lost_doubled_or_different(name: str, tmp_path: Path) -> None:
    row = FAULTS[name](Scale(full=False, folder=tmp_path))
    if row.skipped:
        pytest.skip(row.skipped)
    assert row.bad == 0, row
