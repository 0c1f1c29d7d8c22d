"""The summary of 3,000,000 case rows under one protocol, against plain pandas."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests import made_store
from tests.speed.side_by_side import Line, Subject, compared


def lines(_: Subject, folder: Path) -> Iterator[Line]:
    """The ratio, and what it costs a process of its own after start-up."""
    path = folder / "store"
    made_store.write_store(path)
    costs = [made_store.measured(path) for _ in range(3)]
    wall, cpu = (statistics.median(c[name] for c in costs) for name in ("wall_s", "cpu_s"))
    theirs, ours = (lambda: made_store.plain(path)), (lambda: made_store.ours(path))
    worst = float(np.abs(theirs().to_numpy() - ours().to_numpy()).max())
    equality = f"|diff| <= {worst:g}"
    yield compared("table of a store, against pandas", None, theirs, ours, equality, rounds=3)
    rows, peak = costs[0]["rows"], max(c["peak_mib"] for c in costs)
    cost = f"{wall:.2f} s, {cpu:.2f} s CPU"
    what = f"  its {rows:,.0f} case rows in 750 runs"
    yield Line(what, "<= 1.5 s", "", cost, "MISSED" if wall > 1.5 else "", f"peak {peak:.0f} MiB")
