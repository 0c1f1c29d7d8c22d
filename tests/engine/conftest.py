"""Toy data, made and prepared once a session."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from benchmark.data import source_for
from tests.engine.toy import make_folder


class Toy(NamedTuple):
    """Where the toy data lie: the folder as a user has it, and the prepared root."""

    folder: Path
    root: Path


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    base = tmp_path_factory.mktemp("toy")
    folder, root = make_folder(base / "balls"), base / "data"
    source_for(str(folder)).prepare(folder, root, lambda done, total, what: None)
    return Toy(folder, root)
