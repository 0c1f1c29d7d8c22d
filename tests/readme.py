"""`python -m tests.readme`: make the README's tables anew; a test compares.

They are from the registries, and from the runs in `examples/mini`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmark import catalogue
from benchmark.data import SOURCES
from benchmark.data.splits import split_names
from benchmark.profiles import PROFILES
from methods import METHODS
from protocols.rules import REPORTED, RULES, parse_rule, signature
from reports import PAPER, REPORTS
from reports.facts import load_facts
from results.store import Store

README = Path(__file__).resolve().parent.parent / "README.md"
RUNS = README.parent / "examples" / "mini"


def tables() -> dict[str, str]:
    """The generated sections by name."""
    return {
        "profiles": profiles(),
        "datasets": datasets(),
        "methods": methods(),
        "rules": rules(),
        "reports": reports(),
        **{f"{dataset}-mini": measured(dataset) for dataset in ("la", "hippocampus")},
    }


def profiles() -> str:
    """Profiles and their sizes."""
    rows = [
        (
            f"`{p.name}`",
            p.purpose,
            str(p.width),
            f"{p.steps:,}",
            f"{len(p.evaluated(p.steps))}, every {p.evaluate_every} from {p.evaluate_from:,}",
        )
        for p in PROFILES.values()
    ]
    return markdown(("profile", "what for", "filters", "steps", "evaluations"), rows)


def datasets() -> str:
    """Dataset cards, and what a reader must know of each."""
    cards = [source.card for source in SOURCES.values()]
    rows = [
        (
            f"`{c.name}`",
            f"{c.title}: {c.structure}, {c.modality}",
            c.source,
            c.licence,
            c.size,
            "/".join(map(str, c.counts)),
            ", ".join(f"`{name}`" for name in split_names(c.name)),
            c.unit,
        )
        for c in cards
    ]
    head = (
        *("dataset", "what", "from", "licence", "size"),
        *("train/val/test", "other splits", "distances in"),
    )
    said = [f"- `{c.name}`: {' '.join(c.all_notes)}" for c in cards]
    return "\n".join([markdown(head, rows), "", "What a reader of a table must know:", "", *said])


def methods() -> str:
    """Methods: whom they follow, how large they are, where numbers of them are printed."""
    rows = [(f"`{name}`", *rest) for name, *rest in catalogue.rows(METHODS)]
    return markdown(("method", *catalogue.HEAD[1:]), rows)


def rules() -> str:
    """Rules with their parameters."""
    rows = []
    for name, rule in RULES.items():
        meaning = (rule.__doc__ or "").strip().splitlines()[0]
        rows.append((f"`{name}`", meaning, f"`{signature(rule)}`"))
    return markdown(("rule", "what is reported of a run", "parameters and their defaults"), rows)


def reports() -> str:
    """Reports and the paper's names for them."""
    rows = []
    for name, report in REPORTS.items():
        also = ", ".join(f"`{paper}`" for paper, own in PAPER.items() if own == name)
        rows.append((f"`{name}`" + " \\*" * report.standard, also, report.meaning))
    return markdown(("report (\\* standard)", "or", "what it shows"), rows)


def measured(dataset: str) -> str:
    """All methods on one dataset: what `bench report` says under last and best, and between."""
    last = load_facts(Store.open(RUNS), "last", "tcseg")
    best = replace(last, rule=parse_rule("best")).summary.set_index("identity")["dsc_median"]
    scores = last.trajectory[last.trajectory["split"] == REPORTED]
    scores = scores.merge(last.finished[["run", "identity"]], on="run")
    between = scores.groupby("identity")["dsc"].agg(["mean", "min"])
    rows = last.summary[last.summary["dataset"] == dataset].sort_values("dsc_median")
    lines = [
        (
            f"`{row['label']}`",
            f"{row['finished']}/{row['started']}",
            f"{100 * row['dsc_median']:.1f} [{100 * row['dsc_minimum']:.1f}, "
            f"{100 * row['dsc_maximum']:.1f}]",
            f"{100 * row['dsc_mean']:.1f}"
            + (f" ± {100 * row['dsc_std']:.1f}" if row["finished"] > 1 else ""),
            f"{row['asd_median']:.2f}",
            f"{row['hd95_median']:.2f}",
            f"{100 * best[row['identity']]:.1f}",
            *(f"{100 * between.loc[row['identity'], name]:.1f}" for name in ("mean", "min")),
        )
        for row in rows.iloc[::-1].to_dict("records")
    ]
    head = (
        *("method", "runs", "last: DSC % median [min, max]", "mean ± std", "ASD", "HD95"),
        *("best on test: median", "mean of all evaluations", "lowest of all"),
    )
    return markdown(head, lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replaced(text: str) -> str:
    """The README with its generated sections made anew."""
    for name, table in tables().items():
        pattern = f"<!-- {name} -->.*?<!-- /{name} -->"
        section = f"<!-- {name} -->\n{table}\n<!-- /{name} -->"
        text, count = re.subn(pattern, lambda _, new=section: new, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"README.md needs the section {name} once, not {count} times")
    return text


if __name__ == "__main__":
    README.write_text(replaced(README.read_text()))
