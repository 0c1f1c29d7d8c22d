"""What an audit of printed numbers says: what was compared, and what cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from protocols.audit import Group
from protocols.metrics import METRICS
from reports.render import Section, Sheet, markdown, write_file


def write_audit(groups: Sequence[Group], path: Path) -> Path:
    """Write the sheets as one Markdown file.

    Raises:
        UserError: it cannot be written.
    """
    return write_file(path, "\n".join(map(markdown, sheets(groups))))


def impossible(groups: Sequence[Group]) -> int:
    """How many findings there are."""
    return sum(len(group.findings) for group in groups)


def sheets(groups: Sequence[Group]) -> list[Sheet]:
    """What was compared, a row a group; and where something cannot be, why."""
    return [_compared(groups), *([_findings(groups)] if impossible(groups) else [])]


def _compared(groups: Sequence[Group]) -> Sheet:
    by_source: dict[str, list[tuple[str, ...]]] = {}
    for group in groups:
        if group.checked or group.findings:
            verdict = "IMPOSSIBLE" if group.findings else "possible"
            row = (_title(group), _numbers(group), "; ".join(group.checked) or "range", verdict)
            by_source.setdefault(str(group.key["source"]), []).append(row)
    alone = sum(not group.checked for group in groups)
    count = sum(group.rows for group in groups)
    notes = (
        f"{count} number(s) in {len(groups)} group(s). A group: source, dataset, volumes, method, "
        "metric, protocol and number of runs are the same.",
        f"In {alone} group(s) there was nothing to compare: only the range of each number was.",
        "Every number stands for all that round to it. Only what no runs can give is called "
        "impossible.",
        f"Impossible: {impossible(groups)}.",
    )
    columns = (("", "numbers of"), ("", "printed"), ("", "compared"), ("", ""))
    sections = tuple(Section(source, tuple(rows)) for source, rows in by_source.items())
    return Sheet("Audit of printed numbers", columns, sections, notes, left=4)


def _findings(groups: Sequence[Group]) -> Sheet:
    sections = []
    for group in groups:
        rows = []
        for finding in group.findings:
            number = group.numbers[finding.statistic]
            place = "; ".join(number.where)
            rows.append((f"{finding.statistic} {number}", place, finding.text))
        if rows:
            sections.append(Section(f"{group.key['source']}: {_title(group)}", tuple(rows)))
    columns = (("", "printed"), ("", "where"), ("", "cannot be, because"))
    notes = (
        "“a ≤ b asks 2 ≤ 1”: the inequality holds for any runs, its sides are as printed. What "
        "“need” says is the nearest to the printed number that any such runs can have.",
    )
    return Sheet("What cannot be", columns, tuple(sections), notes, left=3)


def _title(group: Group) -> str:
    key = group.key
    metric = METRICS[key["metric"]].label if key["metric"] in METRICS else key["metric"]
    volumes = [
        f"{key[name]} {name}" for name in ("labelled", "unlabelled") if key[name] is not None
    ]
    runs = [] if key["seeds"] is None else [f"n = {key['seeds']}"]
    parts = [key["method"], key["dataset"], " / ".join(volumes), metric, key["protocol_printed"]]
    parts += [f"{name} {key[name] or 'unknown'}" for name in ("split", "unit") if name in key]
    return ", ".join(filter(None, [*parts, *runs]))


def _numbers(group: Group) -> str:
    return ", ".join(f"{name} {number}" for name, number in group.numbers.items())
