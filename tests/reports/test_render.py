import csv
import io
from xml.etree import ElementTree

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console

from reports.drawing import legend, literal, write_figure
from reports.render import (
    Bold,
    Section,
    Sheet,
    Underlined,
    console,
    csv_text,
    latex,
    latex_text,
    markdown,
    markdown_text,
    write_file,
    write_sheets,
)
from results.errors import UserError
from tests.reports.grid_toy import check_latex

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


def test_a_group_that_is_wider_than_the_terminal_is_divided_and_loses_nothing():
    places = [f"rank {n}" for n in range(1, 25)]
    columns = (("", "method"), ("rank", "mean"), *(("draws, %", place) for place in places))
    rows = (("a-long-method-name", "2.50", *(f"{n}.{n}{n}" for n in range(10, 34))),)
    sheet = Sheet("t", columns, (Section("s", rows),), ())
    for width in (50, 80, 230):
        screen = Console(width=width, file=io.StringIO(), color_system=None)
        screen.print(console(sheet))
        text = screen.file.getvalue()
        assert all(text.count(number) == 1 for number in rows[0][1:])
        assert text.count("a-long-method-name") == text.count("draws, %")
        assert "…" not in text


def test_marks_are_set_by_each_writer_and_their_text_is_escaped():
    cells = (("m", Bold("a|_1"), Underlined("b&2")),)
    columns = (("", "method"), ("", "x"), ("", "y"))
    sheet = Sheet("t", columns, (Section("s", cells),), ())
    assert r"| m | **a\|\_1** | <u>b&amp;2</u> |" in markdown(sheet)
    assert r"m & \textbf{a\textbar{}\_1} & \underline{b\&2} \\" in latex(sheet)
    screen = Console(width=80, file=io.StringIO(), force_terminal=True, color_system="standard")
    screen.print(console(sheet))
    text = screen.file.getvalue()
    assert "\x1b[1ma|_1\x1b[0m" in text
    assert "\x1b[4mb&2\x1b[0m" in text


def test_commands_can_be_copied_from_every_page():
    command = "bench run --method mt --set mt.weight_x=0.1"
    sheet = Sheet("t", (("", "method"),), (), ("note",), commands=(command,))
    assert f"```sh\n{command}\n```" in markdown(sheet)
    assert f"% {command}\n" in latex(sheet)
    screen = Console(width=120, file=io.StringIO(), color_system=None)
    screen.print(console(sheet))
    assert command in screen.file.getvalue()


def test_a_command_stays_on_its_line():
    sheet = Sheet("t", (("", "m"),), (), (), commands=("bench\n```\n\\input{x}",))
    assert "\n```\n" not in markdown(sheet).split("```sh\n")[1].split("\n", 1)[0]
    assert all(line.startswith("% ") for line in latex(sheet).splitlines() if "input" in line)


def test_latex_without_rows_is_notes_only_and_without_groups_has_one_heading():
    empty = latex(Sheet("t", (("", "method"),), (), ("nothing",)))
    assert "tabular" not in empty
    assert r"nothing\par" in empty
    plain = latex(Sheet("t", (("", "a"), ("", "b")), (Section("s", (("x", "1"),)),), ()))
    assert "\\toprule\na & b \\\\\n\\midrule" in plain
    check_latex(plain)


@pytest.mark.parametrize("start", ["[x]", "*"])
def test_a_latex_row_never_begins_with_an_argument_of_the_line_break_before(start):
    rows = (("a", "1"), (start, "2"))
    text = latex(Sheet("t", (("", "a"), ("", "b")), (Section("s", rows),), ()))
    (line,) = [line for line in text.splitlines() if "& 2" in line]
    assert line.startswith("{")


def test_wide_latex_is_set_small():
    def of(width):
        columns = tuple(("", str(place)) for place in range(width))
        return latex(Sheet("t", columns, (Section("s", (("x",) * width,)),), ()))

    assert r"\small" not in of(8)
    assert r"\small" in of(9)


def test_several_sheets_are_one_file_of_each_kind(tmp_path):
    sheets = [page("first"), page("second")]
    paths = write_sheets(sheets, pd.DataFrame({"a": [1]}), tmp_path, "x")
    assert [p.name for p in paths] == ["x.md", "x.csv", "x.tex"]
    assert paths[0].read_text() == markdown(sheets[0]) + "\n" + markdown(sheets[1])
    assert paths[1].read_text() == "a\n1\n"
    check_latex(paths[2].read_text())
    assert paths[2].read_text().count(r"\begin{table}") == 2


def drawing():
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    for place in range(2):
        axes.plot([0, 1], [place, 1], gid='no "unique" <name>\x1b')
    axes.set_title(literal("<b>&amp; --> $x$ 50%", 80))
    axes.fill_between([0, 1], [0, 1], hatch="/")
    return figure


def test_figures_are_the_same_bytes_each_time_in_three_formats(tmp_path):
    made = [write_figure(drawing(), tmp_path / name, "x") for name in ("a", "b")]
    assert [p.name for p in made[0]] == ["x.png", "x.pdf", "x.svg"]
    first, second = ([p.read_bytes() for p in paths] for paths in made)
    assert first == second
    assert first[0].startswith(b"\x89PNG")
    assert first[1].startswith(b"%PDF")
    assert b"dc:date" not in first[2]
    assert b"CreationDate" not in first[1]


def test_svg_is_well_formed_and_its_ids_are_unique(tmp_path):
    svg = write_figure(drawing(), tmp_path, "x")[2].read_text()
    ids = [e.get("id") for e in ElementTree.fromstring(svg).iter() if e.get("id")]
    assert len(ids) == len(set(ids)) > 0


def test_names_are_wrapped_at_their_parts():
    text = literal("tcseg (tau_min=0.05, use_probability=False)", 20)
    assert text == "tcseg (tau_min=0.05,\nuse_probability=\nFalse)"
    assert literal("x" * 30, 15) == "x" * 15 + "\n" + "x" * 15


@pytest.mark.parametrize("count", [1, 6, 14])
def test_a_legend_fits_the_width_of_its_figure(count):
    figure = Figure(figsize=(6.4, 6), layout="constrained")
    figure.add_subplot()
    names = [f"_method-{n} (use_confidence=False, tau={n}, more=1)" for n in range(count)]
    legend(figure, [Line2D([], [], marker="o", label=name) for name in names])
    figure.draw_without_rendering()
    shown = [t.get_text().replace("\n", " ").strip() for t in figure.legends[0].get_texts()]
    assert shown == names
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_a_long_legend_takes_no_height_from_the_panels():
    heights = []
    for count in (4, 28):
        figure = Figure(figsize=(8, 4.3), layout="constrained")
        axes = figure.add_subplot()
        legend(figure, [Line2D([], [], label=f"a method {n}") for n in range(count)])
        figure.draw_without_rendering()
        heights.append(axes.get_window_extent().height)
        assert axes.get_window_extent().y1 < figure.legends[0].get_window_extent().y0
    assert heights[1] >= 0.98 * heights[0]
