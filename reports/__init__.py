"""Tables, figures and pages of a store. `REPORTS` is all there is."""

from __future__ import annotations

from functools import partial
from typing import Final

from reports import ablations, costs, html, leaderboard, published, sensitivity, table
from reports.base import Report
from reports.best_vs_last import write_best_vs_last
from reports.cases import show_cases, write_cases
from reports.comparison import show_comparison, write_comparison
from reports.optimism import show_optimism, write_optimism
from reports.pseudo import write_pseudo
from reports.ranks import show_ranks, write_ranks
from reports.slices import write_slices
from reports.trajectories import write_trajectories
from results.lookup import find

REPORTS: Final[dict[str, Report]] = {
    "table": Report(
        "every method under the protocol: median with its interval, maximum, mean ± std and more",
        table.write_table,
        table.sheets,
        standard=True,
    ),
    "best-vs-last": Report(
        "best and last checkpoint of every run, and how both spread (Fig. 5)",
        write_best_vs_last,
        standard=True,
    ),
    "trajectories": Report(
        "DSC at every evaluation of every run, its last and its best",
        write_trajectories,
        standard=True,
    ),
    "optimism": Report(
        "best − last with its interval, what of it is selection, and what chance gives",
        write_optimism,
        show_optimism,
    ),
    "comparison": Report(
        "every two methods: difference, exact tests, what they can decide; where variance is from",
        write_comparison,
        show_comparison,
    ),
    "ranks": Report(
        "order of methods under every protocol and policy: agreement, flips, stability",
        write_ranks,
        show_ranks,
    ),
    "cases": Report(
        "which cases carry the difference between methods, and which are hard for all",
        write_cases,
        show_cases,
    ),
    "pseudo": Report(
        "pseudo-labels of the unlabelled volumes against the truth (Fig. 4)",
        write_pseudo,
        standard=True,
    ),
    "costs": Report(
        "parameters, time and memory (Table 4)",
        costs.write_costs,
        lambda facts: [costs.sheet(costs.costs(facts), facts.omitted)],
        standard=True,
    ),
    "slices": Report(
        "cases to look at: image, reference and methods in three planes and as surfaces (Fig. 3)",
        write_slices,
    ),
    "leaderboard": Report(
        "methods by settings, DSC under last and best (Table 1)",
        leaderboard.write_leaderboard,
        leaderboard.leaderboard,
    ),
    "all-metrics": Report(
        "every dataset: DSC, ASD and 95HD under last and best (Tables 5 to 7)",
        leaderboard.write_all_metrics,
        leaderboard.all_metrics,
    ),
    ablations.AXES.name: Report(
        "TCSeg without an axis of its reliability, against the full method (Table 2)",
        partial(ablations.write_study, ablations.AXES),
        partial(ablations.sheets, ablations.AXES),
    ),
    ablations.SPACES.name: Report(
        "TCSeg without a space of its calibration, against the full method (Table 3)",
        partial(ablations.write_study, ablations.SPACES),
        partial(ablations.sheets, ablations.SPACES),
    ),
    "sensitivity": Report(
        "what other values of hyperparameters give: radar over settings (Fig. 6)",
        sensitivity.write_sensitivity,
        sensitivity.sheets,
    ),
    "published": Report(
        "numbers that papers print for the same settings, beside ours, with what forbids comparing",
        published.write_published,
        published.show_published,
    ),
    "html": Report(
        "one page for a browser: protocols, plots, cases, and where each number is from",
        html.write_html,
    ),
}

PAPER: Final[dict[str, str]] = {
    "table1": "leaderboard",
    "table2": ablations.AXES.name,
    "table3": ablations.SPACES.name,
    "table4": "costs",
    "table5": "all-metrics",
    "table6": "all-metrics",
    "table7": "all-metrics",
    "fig3": "slices",
    "fig4": "pseudo",
    "fig5": "best-vs-last",
    "fig6": "sensitivity",
}
"""Which report is which table or figure of the TCSeg paper."""


def named(name: str) -> Report:
    """The report of a name, its own or the paper's, as `costs` or `table4`.

    Raises:
        UserError: there is none.
    """
    return find("report", name, {**REPORTS, **{k: REPORTS[v] for k, v in PAPER.items()}})
