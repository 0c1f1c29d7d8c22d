"""`bench audit` as a user meets it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark import cli
from results.published import FOLDER

Bench = Callable[..., tuple[int, str, str]]
HEAD = "method,dataset,labelled,metric,protocol,statistic,value,n\n"


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Calls the command line; gives exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def own(folder: Path, *rows: str) -> Path:
    path = folder / "own.csv"
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows))
    return path


@pytest.mark.parametrize("paths", [[], [FOLDER], sorted(FOLDER.glob("*.csv"))])
def test_of_the_published_tables_four_spreads_cannot_be(
    bench: Bench, tmp_path: Path, paths: list[Path]
) -> None:
    code, out, err = bench("audit", *paths, "--out", tmp_path / "a" / "audit.md")
    assert code == 1
    assert "Impossible: 4." in out
    assert out.count("IMPOSSIBLE") == 4
    assert f"wrote {tmp_path / 'a' / 'audit.md'}" in err.replace("\n", "")
    written = (tmp_path / "a" / "audit.md").read_text()
    places = [
        ("la, 8 labelled / 72 unlabelled", "std 0.12", "fig5, row 1", "0.61"),
        ("la, 16 labelled / 64 unlabelled", "std 0.09", "fig5, row 2", "0.25"),
        ("pancreas, 6 labelled / 56 unlabelled", "std 0.28", "fig5, row 3", "0.35"),
        ("pancreas, 12 labelled / 50 unlabelled", "std 0.37", "fig5, row 4", "0.56"),
    ]
    parts = written.split("# What cannot be\n")[1].split("## ")[1:]
    assert len(parts) == 4
    for part, (setting, number, place, needed) in zip(parts, places, strict=True):
        assert part.startswith(f"tcseg2026: tcseg, {setting}, DSC, last, n = 5")
        assert f"| {number} | {place} | " in part
        assert f"need SD (n − 1) ≥ {needed} or SD (n) ≥ " in part
    assert "asks 0.42 ≤ 0.098" in parts[0]
    assert "maximum − mean ≤ 2.00 · 0.37 asks 0.83 ≤ 0.740" in parts[3]


def test_a_table_that_can_be_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    rows = [f"mt,la,8,dsc,last,{s},{v},5" for s, v in (("median", 90.2), ("mean", 90.0))]
    code, out, _ = bench("audit", own(tmp_path, *rows, "mt,la,8,dsc,last,std,0.6,5"))
    assert code == 0
    assert "median 90.2, mean 90.0, std 0.6" in out
    assert "Impossible: 0." in out
    assert "What cannot be" not in out


def test_a_table_that_cannot_be_is_told_from_one_that_can_by_the_exit_code(
    bench: Bench, tmp_path: Path
) -> None:
    path = own(tmp_path, "mt,la,8,dsc,last,median,90.5,5", "mt,la,8,dsc,last,maximum,90.3,5")
    code, out, _ = bench("audit", path)
    assert code == 1
    assert "median ≤ maximum asks 90.5 ≤ 90.3" in out


def test_names_are_text_whatever_is_in_them(bench: Bench, tmp_path: Path) -> None:
    name = "<b>[red]=1|2[/]"
    rows = [f"{name},la,8,dsc,last,{s},{v},5" for s, v in (("median", 90.5), ("maximum", 90.3))]
    code, out, _ = bench("audit", own(tmp_path, *rows), "--out", tmp_path / "audit.md")
    assert code == 1
    assert name in out
    assert "&lt;b&gt;\\[red\\]=1\\|2" in (tmp_path / "audit.md").read_text()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["mt,la,8,dsc,last,median,about 90,5"], "own.csv, line 2: value 'about 90' is not"),
        (["mt,la,8,dsc,last,midian,90,5"], "line 2: unknown statistic 'midian'. Did you mean"),
        ([], "own.csv holds no row under its header"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    bench: Bench, tmp_path: Path, rows: list[str], said: str
) -> None:
    code, out, err = bench("audit", own(tmp_path, *rows))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert bench("audit", tmp_path / "none.csv")[0] == 2
