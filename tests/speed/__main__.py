"""`python -m tests.speed`: measure and print."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.speed import components, loading, metrics, predictions, reporting, training, windows
from tests.speed.side_by_side import ROUNDS, load_subject

AREAS = (metrics, windows, loading, components, predictions, training, reporting)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    subject = load_subject()
    table = Table("what", "must reach", "field", "here", "ratio", "equality", box=None)
    with tempfile.TemporaryDirectory() as folder:
        for area in AREAS:
            for line in area.lines(subject, Path(folder)):
                table.add_row(*line)
    console = Console(width=150)
    console.print(
        f"{subject.source}, shape {subject.label.shape}; CPU time, one thread, medians of "
        f"{ROUNDS} interleaved rounds"
    )
    console.print(table)


if __name__ == "__main__":
    main()
