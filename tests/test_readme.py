"""What the README shows is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from benchmark.cli import app
from benchmark.contract import CHECKS
from benchmark.plugins import from_file
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


def example(tmp_path: Path) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    path = tmp_path / "entmin.py"
    path.write_text(code)
    return path


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_its_example_method_keeps_the_contract(check: object, tmp_path: Path) -> None:
    (method,) = from_file(example(tmp_path))
    check(method())  # type: ignore[operator]
