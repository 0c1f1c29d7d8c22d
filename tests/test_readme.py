"""What the README shows is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.contract import CHECKS
from benchmark.plugins import from_file
from results.errors import UserError
from tests.readme import README, replaced

TEXT = README.read_text()


def test_its_tables_are_those_of_the_registries() -> None:
    assert replaced(TEXT) == TEXT, "run `python -m tests.readme`"


def commands() -> list[str]:
    lines = re.findall(r"^    (bench .+?)(?:\s{2,}#.*)?$", TEXT, flags=re.MULTILINE)
    return [line.replace("DIR", ".") for line in lines]


@pytest.mark.parametrize("line", commands())
def test_every_command_it_names_exists_with_these_options(line: str) -> None:
    words = shlex.split(line.split("#")[0])[1:]
    command = get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    command.make_context("bench", words, resilient_parsing=False)


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 8


EXITS = {"bench audit": {1}, "bench check baselines": {0, 3, 4, 5}, "bench report published": {2}}
"""Exit codes by how a command begins, where not 0: the packaged tables hold what cannot be, two
runs decide little, and nobody has published numbers of the embedded dataset."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everything_it_does_with_results_works_in_the_order_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On real runs of the embedded dataset, at the smallest scale."""
    monkeypatch.chdir(tmp_path)
    for name in ("results", "examples"):
        (tmp_path / name).symlink_to(README.parent / name)
    (tmp_path / "baselines").mkdir()
    masks = "run -m supervised -m mt --seeds 2 --profile smoke --set profile.evaluate_every=1"
    assert main([*masks.split(), "--keep-predictions", "last", "--store", "masks"]) == 0
    for name in ("runs", "new"):
        (tmp_path / name).symlink_to("masks")
    tried = 0
    for line in commands():
        words = shlex.split(line, comments=True)[1:]
        if words[0] not in {"report", "check", "plan", "audit", "rescore", "status", "list"}:
            continue
        code = main(words)
        allowed = [codes for begin, codes in EXITS.items() if line.startswith(begin)]
        assert code in (allowed or [{0}])[0], f"{line}: exit code {code}"
        tried += 1
    assert tried >= 15


def main(words: list[str]) -> int:
    """The exit code of a command line."""
    result = CliRunner().invoke(app, words)
    if isinstance(result.exception, UserError):
        return 2
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code


def example(tmp_path: Path) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    path = tmp_path / "entmin.py"
    path.write_text(code)
    return path


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_its_example_method_keeps_the_contract(check: object, tmp_path: Path) -> None:
    (method,) = from_file(example(tmp_path))
    check(method())  # type: ignore[operator]
