"""Tables and figures of a store. `REPORTS` is all there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from reports.best_vs_last import write_best_vs_last
from reports.costs import write_costs
from reports.curves import write_curves
from reports.facts import Facts
from reports.pseudo import write_pseudo
from reports.table import write_table

REPORTS: Final[dict[str, Callable[[Facts, Path], list[Path]]]] = {
    "table": write_table,
    "best-vs-last": write_best_vs_last,
    "curves": write_curves,
    "pseudo": write_pseudo,
    "costs": write_costs,
}
