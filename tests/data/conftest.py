"""Small datasets on disk, made for these tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark import cli
from tests.data.made_data import CASES, LA_TEST, LA_TRAIN, ball, write_facts, write_la, write_nifti


@pytest.fixture
def la_source(tmp_path: Path) -> Path:
    """Three training cases and a test case of LA, with made-up voxels."""
    for case in LA_TRAIN + LA_TEST:
        write_la(tmp_path / "source", case)
    return tmp_path / "source"


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """Ten cases in the Decathlon layout, with labels 1 and 2."""
    folder = tmp_path / "Task99_Blobs"
    for i, case in enumerate(CASES):
        label = ball(radius=5 + 0.2 * i)
        write_nifti(folder, case, label=label + ball(radius=3))
    write_facts(folder, CASES)
    return folder


@pytest.fixture
def succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    """Calls the command line, which must end well."""

    def call(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["bench", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0, capsys.readouterr()

    return call
