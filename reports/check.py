"""What `bench check` found: a table, a JUnit file and a Markdown summary for a CI service.

Not a report of a store: it needs a baseline, so it is not among `REPORTS`.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocols.equivalence import CONTROL_MARGINS, Answer, Claim, Verdict
from reports.render import Section, Sheet, markdown
from reports.table import NO_VALUE, number
from results.text import one_line

EXIT_CODES: Final = {
    Answer.REPRODUCED: 0,
    Answer.REGRESSED: 3,
    Answer.INCONCLUSIVE: 4,
    Answer.NOTHING: 5,
}

_WORST_FIRST: Final = (Answer.NOTHING, Answer.REGRESSED, Answer.INCONCLUSIVE, Answer.REPRODUCED)
_OF_WRONG_TARGETS: Final = (
    *(Answer.NOTHING, Answer.REPRODUCED, Answer.INCONCLUSIVE, Answer.REGRESSED),
)
"""From worst to best where all targets are wrong, and regressed is what they must be."""

_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""


@dataclass(frozen=True)
class Checked:
    """One target and what came of it.

    name, unit: of the target.
    claim:      what was tested.
    verdict:    what came of it.
    runs:       ids of the finished runs that it rests on.
    started:    how many there are with failed and unfinished ones.
    """

    name: str
    unit: str
    claim: Claim
    verdict: Verdict
    runs: tuple[str, ...] = ()
    started: int = 0


def overall(checked: Sequence[Checked], *, control: bool = False) -> Answer:
    """The worst answer: nothing measured, then regressed, then inconclusive.

    Of negative controls, which must regress: nothing measured, then reproduced, then inconclusive.
    """
    answers = {c.verdict.answer for c in checked}
    order = _OF_WRONG_TARGETS if control else _WORST_FIRST
    return next(answer for answer in order if answer in answers)


def sheet(checked: Sequence[Checked], protocol: str) -> Sheet:
    """A row for each target, and under the table why.

    protocol: in words.
    """
    columns = (
        *(("", "target"), ("", "answer"), ("", "runs")),
        *(("reported", "value"), ("reported", "± margin")),
        *(("here", "value"), ("here", "low"), ("here", "high"), ("here", "SD")),
        *(("test", "confirmable"), ("test", "control")),
    )
    rows = tuple(_row(c) for c in checked)
    notes = [f"{c.name}: {c.verdict.answer}; {why(c)}." for c in checked]
    notes += [
        "Here, low and high: interval of the true value over runs, each end at one-sided level "
        "5 %. Reproduced: it lies within the margin. Regressed: it lies beyond. Inconclusive: "
        "neither is shown.",
        "Confirmable: how probably as many runs with this SD confirm a value that is exactly true. "
        "Where that is low, more runs are needed, whatever the truth is.",
        f"Control: the answer to a wrong target, {CONTROL_MARGINS:g} margins better than both the "
        "reported and the measured value; unless it is regressed, nothing counts as reproduced.",
    ]
    return Sheet(
        f"Check: {overall(checked)}", columns, (Section(protocol, rows),), tuple(notes), left=2
    )


def why(checked: Checked) -> str:
    """The reasons of a verdict in a line."""
    return "; ".join(checked.verdict.reasons)


def summary(checked: Sequence[Checked], protocol: str) -> str:
    """Markdown, as for `$GITHUB_STEP_SUMMARY`."""
    return markdown(sheet(checked, protocol))


def junit(checked: Sequence[Checked], protocol: str) -> bytes:
    """JUnit XML with a test case for each target.

    A regressed target is a failure. One that is inconclusive or was not measured is an error: the
    test could not be carried out. It is not "skipped", which services show in green.
    """
    answers = [c.verdict.answer for c in checked]
    regressed = answers.count(Answer.REGRESSED)
    counts = {
        "name": "bench check",
        "tests": str(len(checked)),
        "failures": str(regressed),
        "errors": str(len(checked) - regressed - answers.count(Answer.REPRODUCED)),
        "skipped": "0",
    }
    root = ET.Element("testsuites", {k: v for k, v in counts.items() if k != "skipped"})
    suite = ET.SubElement(root, "testsuite", counts)
    for c in checked:
        names = {"classname": "bench.check", "name": _xml(c.name), "time": "0"}
        case = ET.SubElement(suite, "testcase", names)
        answer = c.verdict.answer
        if answer is not Answer.REPRODUCED:
            kind = "failure" if answer is Answer.REGRESSED else "error"
            given = {"type": str(answer), "message": _xml(f"{answer}: {why(c)}")}
            ET.SubElement(case, kind, given)
        ET.SubElement(case, "system-out").text = _xml(_facts(c, protocol))
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _row(checked: Checked) -> tuple[str, ...]:
    v, claim = checked.verdict, checked.claim
    return (
        checked.name,
        str(v.answer),
        f"{len(checked.runs)}/{checked.started}",
        f"{claim.value:.2f} {checked.unit}",
        number(claim.margin),
        number(v.estimate),
        _end(v.low),
        _end(v.high),
        number(v.sd),
        number(v.confirmable),
        str(v.control),
    )


def _end(bound: float) -> str:
    return number(bound) if math.isfinite(bound) else NO_VALUE


def _facts(checked: Checked, protocol: str) -> str:
    """Everything about one target, a fact a line."""
    columns = [" ".join(filter(None, c)) for c in sheet([checked], protocol).columns]
    lines = [f"{name}: {cell}" for name, cell in zip(columns, _row(checked), strict=True)]
    lines += [f"why: {why(checked)}", f"protocol: {protocol}"]
    lines += [f"direction: {checked.claim.direction}", f"run ids: {', '.join(checked.runs)}"]
    return "\n".join(map(one_line, lines))


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
