import csv
import io

import pandas as pd
import pytest
from rich.console import Console

from reports.render import (
    Section,
    Sheet,
    console,
    csv_text,
    latex,
    latex_text,
    markdown,
    markdown_text,
    write_file,
)
from results.errors import UserError

NASTY = '=cmd|"x"!A1 <b>&\\input{/etc/passwd} _a_ [u](v) *x* `q` 50% $1 #2 ~3 ^4 {5}\n| new\x1b[31m'


def page(text):
    return Sheet(
        text, (("", text), ("g", "n")), (Section(text, ((text, "1.00"),)),), (text,), left=1
    )


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "\n@", " \t +"])
def test_csv_text_that_a_spreadsheet_would_run_is_made_harmless(start):
    frame = pd.DataFrame({"name": [f"{start}HYPERLINK(1)"], "gap": [-0.5], "count": [-3]})
    row = next(csv.DictReader(io.StringIO(csv_text(frame), newline="")))
    assert row["name"] == f"'{start.strip()}HYPERLINK(1)"
    assert (row["gap"], row["count"]) == ("-0.5000", "-3")


def test_csv_text_has_no_line_breaks():
    assert csv_text(pd.DataFrame({"a": ["x\r\ny"]})) == "a\nx y\n"


def test_csv_keeps_commas_quotes_and_headings_that_look_like_formulas():
    frame = pd.DataFrame({"=a": ['x,"y"'], "b": [float("nan")]})
    assert list(csv.reader(io.StringIO(csv_text(frame)))) == [["'=a", "b"], ['x,"y"', ""]]


def test_latex_escapes_everything_that_is_a_command():
    escaped = latex_text(NASTY)
    assert r"\input" not in escaped.replace(r"\textbackslash{}input", "")
    for mark in "&%#_":
        assert escaped.count(mark) == escaped.count(rf"\{mark}") == NASTY.count(mark)
    assert latex_text("88.1 ± 0.2 – −1") == r"88.1 $\pm$ 0.2 -- $-$1"
    assert latex_text("a\nb") == "a b"


def test_markdown_cells_stay_cells_and_html_stays_text():
    escaped = markdown_text(NASTY)
    assert "<" not in escaped
    assert "\n" not in escaped
    assert all(escaped[i - 1] == "\\" for i, c in enumerate(escaped) if c in "|*_`[]#")


@pytest.mark.parametrize("write", [markdown, latex])
def test_no_nasty_text_reaches_a_page_unescaped(write):
    text = write(page(NASTY))
    if write is markdown:
        assert "<b>" not in text
    else:
        assert "\\input{" not in text
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if "1.00" in line]
    assert len(rows) == 1


def test_the_terminal_shows_names_as_they_are_and_obeys_none():
    screen = Console(width=300, file=io.StringIO(), force_terminal=True, color_system=None)
    screen.print(console(page("[bold]x[/bold] \x1b[31m")))
    text = screen.file.getvalue()
    assert "[bold]x[/bold]" in text
    assert "\x1b[31m" not in text


def test_latex_groups_of_columns_span_them():
    columns = (("", "method"), ("DSC", "a"), ("DSC", "b"), ("ASD", "c"))
    text = latex(Sheet("t", columns, (Section("s", (("m", "1", "2", "3"),)),), ()))
    assert r"\multicolumn{2}{c}{DSC} & \multicolumn{1}{c}{ASD}" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}" in text
    assert text.count("{") == text.count("}")
    assert r"m & 1 & 2 & 3 \\" in text


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = write_file(tmp_path / "new" / "x.md", "text ±")
    assert path.read_text() == "text ±"
    assert [p.name for p in path.parent.iterdir()] == ["x.md"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written: .*name another folder"):
        write_file(tmp_path / "file" / "x.md", "text")


def test_a_narrow_terminal_gets_groups_below_each_other_and_loses_nothing():
    columns = (("", "method"), ("", "runs"), ("DSC", "median"), ("DSC", "max"), ("ASD", "median"))
    rows = (("a-long-method-name", "3/5", "81.25", "82.50", "1.75"),)
    sheet = Sheet("t", columns, (Section("s", rows),), ())
    for width, tables in ((100, 1), (50, 2), (44, 2)):
        screen = Console(width=width, file=io.StringIO(), color_system=None)
        screen.print(console(sheet))
        text = screen.file.getvalue()
        assert text.count("a-long-method-name") == text.count("3/5") == tables
        assert all(text.count(number) == 1 for number in rows[0][2:])
        assert "…" not in text
