"""A sheet of text as console table, Markdown, LaTeX; any text escaped for where it goes."""

from __future__ import annotations

import csv
import io
import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import Final

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from results.errors import UserError
from results.text import one_line

FAILURE: Final = "failed"
"""Stands where a statistic is that of a failed run."""

_GAP: Final = 3
"""Between columns on a terminal."""
_FOLDED: Final = 8
"""Letters that a column of names keeps at least."""

_WIDE: Final = 8
"""Columns above which LaTeX sets a table small."""

_MARKDOWN: Final = re.compile(r"([\\`*_\[\]|#~])")
_HTML: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_FORMULA: Final = ("=", "+", "-", "@")
_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "[": "{[}",
    "*": "{*}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "·": r"$\cdot$",
    "⁹": r"\textsuperscript{9}",
    "×": r"$\times$",
    "√": r"$\surd$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "⌊": r"$\lfloor$",
    "⌋": r"$\rfloor$",
    "∞": r"$\infty$",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
}


class Bold(str):
    """A cell that is printed bold."""

    __slots__ = ()


class Underlined(str):
    """A cell that is printed underlined."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """Rows that stand under one heading."""

    heading: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Sheet:
    """A table to print. All text is plain; each writer escapes it.

    columns:  (group, name) of each column; neighbours of one group share a heading. The first
              `left` columns are text, the others numbers.
    sections: of rows with a text per column.
    notes:    sentences that stand under it.
    commands: of a shell, a line each, under the notes.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    left: int = 1
    commands: tuple[str, ...] = ()


def console(sheet: Sheet) -> Group:
    """For a terminal, by rich; where it is narrow, groups of columns go below each other."""
    parts: list[RenderableType] = [Text(one_line(sheet.title), style="bold"), Text()]
    widths = [_width(sheet, place) for place in range(len(sheet.columns))]
    for section in sheet.sections:
        parts += [Text(one_line(section.heading), style="italic"), _Fitting(sheet, section, widths)]
    parts += [Padding(Text(f"· {one_line(n)}", style="dim"), (0, 0, 0, 2)) for n in sheet.notes]
    parts += [Padding(Text(one_line(c), overflow="fold"), (0, 0, 0, 4)) for c in sheet.commands]
    return Group(*parts)


@dataclass(frozen=True)
class _Fitting:
    """A section as one table, or as several that repeat the columns without a group."""

    sheet: Sheet
    section: Section
    widths: Sequence[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for places in self._parts(options.max_width):
            yield self._table(places)

    def _parts(self, room: int) -> list[list[int]]:
        names = [group for group, _ in self.sheet.columns]
        lead = [place for place, group in enumerate(names) if not group]
        parts = [list(lead)]

        def begin_where_full(more: list[int]) -> None:
            wide = sum(self.widths[place] + _GAP for place in parts[-1] + more)
            if parts[-1] != lead and wide > room:
                parts.append(list(lead))

        for group in dict.fromkeys(filter(None, names)):
            own = [place for place, name in enumerate(names) if name == group]
            # Columns without a group may be folded; one whose numbers do not fit is divided.
            if sum(self.widths[place] + _GAP for place in own) + _FOLDED * len(lead) > room:
                for place in own:
                    begin_where_full([place])
                    parts[-1].append(place)
            else:
                begin_where_full(own)
                parts[-1] += own
        return parts

    def _table(self, places: Sequence[int]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        shown = ""
        for place in places:
            group, name = map(one_line, self.sheet.columns[place])
            number = place >= self.sheet.left
            table.add_column(
                Text(f"{'' if group == shown else group}\n{name}"),
                justify="right" if number else "left",
                no_wrap=number,
                overflow="ellipsis" if number else "fold",
                min_width=self.widths[place] if number else None,
            )
            shown = group
        for row in self.section.rows:
            table.add_row(*(_styled(row[place]) for place in places))
        return table


def _styled(cell: str) -> Text:
    styles: dict[type[str], str] = {Bold: "bold", Underlined: "underline"}
    return Text(one_line(cell), style=styles.get(type(cell), ""))


def _width(sheet: Sheet, place: int) -> int:
    group, name = sheet.columns[place]
    rows = [row[place] for section in sheet.sections for row in section.rows]
    return max(cell_len(one_line(text)) for text in (group, name, *rows))


def markdown(sheet: Sheet) -> str:
    """GitHub's dialect: a table per section."""
    lines = [f"# {markdown_text(sheet.title)}", ""]
    head = [markdown_text(" ".join(filter(None, column))) for column in sheet.columns]
    rule = ["---" if place < sheet.left else "---:" for place in range(len(head))]
    for section in sheet.sections:
        lines += [f"## {markdown_text(section.heading)}", "", _piped(head), _piped(rule)]
        lines += [_piped([_markdown_cell(cell) for cell in row]) for row in section.rows]
        lines.append("")
    lines += [f"- {markdown_text(note)}" for note in sheet.notes]
    if sheet.commands:
        lines += ["", "```sh", *map(one_line, sheet.commands), "```"]
    return "\n".join(lines) + "\n"


def latex(sheet: Sheet) -> str:
    """A booktabs table environment; needs the packages booktabs and textcomp's T1 symbols."""
    width = len(sheet.columns)
    form = "l" * sheet.left + "r" * (width - sheet.left)
    lines = [
        r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(sheet.title)}}}",
    ]
    if width > _WIDE:
        lines.append(r"\small\setlength{\tabcolsep}{3pt}")
    if sheet.sections:
        lines += [rf"\begin{{tabular}}{{{form}}}", r"\toprule", *_latex_head(sheet.columns)]
    for section in sheet.sections:
        heading = latex_text(section.heading)
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{heading}}}}} \\"]
        lines += [" & ".join(map(_latex_cell, row)) + r" \\" for row in section.rows]
    if sheet.sections:
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    lines.append(r"\raggedright\footnotesize")
    lines += [latex_text(note) + r"\par" for note in sheet.notes]
    lines += [rf"% {one_line(command)}" for command in sheet.commands]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def write_sheets(sheets: Sequence[Sheet], frame: pd.DataFrame, out: Path, stem: str) -> list[Path]:
    """Write `<stem>.md`, `.csv` (of the frame) and `.tex`; return the paths.

    Raises:
        UserError: they cannot be written.
    """
    return [
        write_file(out / f"{stem}.md", "\n".join(map(markdown, sheets))),
        write_file(out / f"{stem}.csv", csv_text(frame)),
        write_file(out / f"{stem}.tex", "\n".join(map(latex, sheets))),
    ]


def csv_text(frame: pd.DataFrame) -> str:
    """Comma-separated, numbers to 4 decimals, text that a spreadsheet would run made harmless."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(csv_cell, frame.columns))
    for row in frame.itertuples(index=False):
        writer.writerow(map(csv_cell, row))
    return out.getvalue()


def csv_cell(value: object) -> str:
    """One value; NaN is empty, and what is infinite is that of a failed run.

    >>> csv_cell("=HYPERLINK(1)"), csv_cell(-0.5), csv_cell(float("nan")), csv_cell(float("-inf"))
    ("'=HYPERLINK(1)", '-0.5000', '', 'failed')
    """
    if isinstance(value, float):
        return FAILURE if isinf(value) else "" if value != value else f"{value:.4f}"
    if not isinstance(value, str):
        return str(value)
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def markdown_text(text: str) -> str:
    r"""Plain text for Markdown, in a table cell too.

    >>> print(markdown_text("a|b <c> mean_teacher"))
    a\|b &lt;c&gt; mean\_teacher
    """
    escaped = "".join(_HTML.get(c, c) for c in one_line(text))
    return _MARKDOWN.sub(r"\\\1", escaped)


def latex_text(text: str) -> str:
    r"""Plain text for LaTeX.

    >>> print(latex_text(r"50% of \input{x}"))
    50\% of \textbackslash{}input\{x\}
    """
    return "".join(_LATEX.get(c, c) for c in one_line(text))


def write_file(path: Path, content: str | bytes) -> Path:
    """Write a whole file or nothing.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}; name another folder for reports"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def _markdown_cell(cell: str) -> str:
    escaped = markdown_text(cell)
    if isinstance(cell, Bold):
        return f"**{escaped}**"
    return f"<u>{escaped}</u>" if isinstance(cell, Underlined) else escaped


def _latex_cell(cell: str) -> str:
    escaped = latex_text(cell)
    if isinstance(cell, Bold):
        return rf"\textbf{{{escaped}}}"
    return rf"\underline{{{escaped}}}" if isinstance(cell, Underlined) else escaped


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex_head(columns: Sequence[tuple[str, str]]) -> list[str]:
    spans: list[tuple[str, int]] = []
    for group, _ in columns:
        if spans and group and spans[-1][0] == group:
            spans[-1] = (group, spans[-1][1] + 1)
        else:
            spans.append((group, 1))
    cells, rules, place = [], [], 1
    for group, width in spans:
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_text(group)}}}" if group else "")
        if group:
            rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
        place += width
    names = " & ".join(latex_text(name) for _, name in columns)
    if not rules:
        return [names + r" \\"]
    return [" & ".join(cells) + r" \\", " ".join(rules), names + r" \\"]
