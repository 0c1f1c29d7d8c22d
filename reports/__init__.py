"""Tables, figures and pages of a store. `REPORTS` is all there is."""

from __future__ import annotations

from typing import Final

from reports import costs, table
from reports.base import Report
from reports.best_vs_last import write_best_vs_last
from reports.curves import write_curves
from reports.pseudo import write_pseudo

REPORTS: Final[dict[str, Report]] = {
    "table": Report(
        "every method under the protocol: median, maximum, mean ± std",
        table.write_table,
        lambda facts: [table.sheet(facts)],
        standard=True,
    ),
    "best-vs-last": Report(
        "best and last checkpoint of every run, and how both spread (Fig. 5)",
        write_best_vs_last,
        standard=True,
    ),
    "curves": Report("DSC at every evaluation of every run", write_curves, standard=True),
    "pseudo": Report(
        "pseudo-labels of the unlabelled volumes against the truth (Fig. 4)",
        write_pseudo,
        standard=True,
    ),
    "costs": Report(
        "parameters, time and memory (Table 4)",
        costs.write_costs,
        lambda facts: [costs.sheet(costs.costs(facts))],
        standard=True,
    ),
}
