import pytest
from typer.testing import CliRunner

from benchmark.cli import app
from reports import PAPER, REPORTS, named, optimism
from reports.facts import load_facts
from reports.render import latex
from reports.report import write_report
from results.errors import UserError
from tests.reports import grid_toy
from tests.reports.grid_toy import Run

TABLES = {f"table{n}" for n in range(1, 8)}
FIGURES = {"fig3", "fig4", "fig5", "fig6"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    runs = [
        Run(method, setting, seed, 0.6 + 0.01 * seed, changed)
        for method, changed in (("mt", {}), ("tcseg", {}), ("tcseg", {"use_uncertainty": False}))
        for setting in ("la-8", "pancreas-6")
        for seed in range(2)
    ]
    return grid_toy.fill(tmp_path_factory.mktemp("names") / "store", runs)


def test_every_table_and_figure_of_the_paper_that_a_store_can_give_has_a_name():
    assert set(PAPER) == TABLES | FIGURES


def test_names_of_the_paper_are_no_names_of_reports_and_mean_one():
    assert not set(PAPER) & set(REPORTS)
    assert set(PAPER.values()) <= set(REPORTS)
    for name, report in PAPER.items():
        assert named(name) is REPORTS[report]
    for name, report in REPORTS.items():
        assert named(name) is report


def test_each_report_says_of_which_table_or_figure_it_is():
    for name, report in PAPER.items():
        number = int(name[-1])
        word = "Fig. " if name.startswith("fig") else "Table"
        meaning = REPORTS[report].meaning
        between = "Tables 5 to 7" in meaning and word == "Table" and 5 <= number <= 7
        assert between or f"{word.strip()} {number}" in meaning


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_is_made_by_the_papers_name_and_shown(store, tmp_path, name):
    made = write_report(store.path, "last", tmp_path / "out", names=[name])
    assert {p.suffix for p in made.paths} == {".md", ".csv", ".tex"}
    assert all(p.name.startswith(PAPER[name]) for p in made.paths)
    assert made.tables


@pytest.mark.parametrize("name", ["fig4", "fig5"])
def test_a_figure_is_made_by_the_papers_name_in_three_formats(store, tmp_path, name):
    made = write_report(store.path, "last", tmp_path / "out", names=[name])
    assert {".png", ".pdf", ".svg"} <= {p.suffix for p in made.paths}


def test_a_report_named_twice_is_made_once(store, tmp_path):
    names = ["table4", "costs", "table4"]
    made = write_report(store.path, "last", tmp_path / "out", names=names)
    assert [p.name for p in made.paths] == ["costs.md", "costs.csv", "costs.tex"]
    assert len(made.tables) == 1


def test_what_is_shown_and_written_is_worked_out_once(store, tmp_path, monkeypatch):
    calls = []

    def counted(facts, real=optimism.optimism):
        calls.append(facts)
        return real(facts)

    monkeypatch.setattr(optimism, "optimism", counted)
    made = write_report(store.path, "last", tmp_path / "out", names=["optimism"])
    assert len(made.tables) == 1
    assert len(calls) == 1
    write_report(store.path, "best", tmp_path / "out", names=["optimism"])
    assert len(calls) == 2


@pytest.mark.parametrize("name", [n for n, report in REPORTS.items() if report.show])
def test_what_we_say_ourselves_is_latex_that_compiles(store, name):
    facts = load_facts(store, "best", "tcseg")
    text = "".join(map(latex, REPORTS[name].show(facts)))
    grid_toy.check_latex(text)
    known_to_t1 = "“”‘’…—éèöäüß"
    assert {c for c in text if not c.isascii()} <= set(known_to_t1)


def test_an_unknown_name_is_told_the_nearest_of_both_kinds():
    with pytest.raises(UserError, match=r"unknown report 'tabel4'. Did you mean 'table4'\?"):
        named("tabel4")
    with pytest.raises(UserError, match=r"unknown report 'leader'. Did you mean 'leaderboard'\?"):
        named("leader")


def test_the_command_line_knows_and_lists_them(store, tmp_path):
    folders = ["--store", str(store.path), "--out", str(tmp_path)]
    made = CliRunner().invoke(app, ["report", "table4", "table2", *folders])
    assert made.exit_code == 0, made.output
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{stem}.{suffix}"
        for stem in ("costs", "ablation-axes-last")
        for suffix in ("md", "csv", "tex")
    }
    listed = CliRunner().invoke(app, ["list", "reports"]).output
    assert all(name in listed for name in PAPER)
