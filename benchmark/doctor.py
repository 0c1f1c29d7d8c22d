"""What `bench doctor` looks at: everything that commonly keeps a first run from working."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmark import environment
from benchmark.commands_data import data_states
from results.errors import UserError
from results.store import Store

_LITTLE_DISK = 5e9
_LITTLE_MEMORY = 4e9


@dataclass(frozen=True)
class Finding:
    """One thing looked at: "ok", "note" (it works, but know it) or "bad" (mend it)."""

    state: Literal["ok", "note", "bad"]
    subject: str
    text: str


def examine(store: Path, data: Path) -> list[Finding]:
    """Machine, libraries, data and store."""
    return [*_machine(), *_data(data), _writable(store), *_store(store)]


def _machine() -> list[Finding]:
    versions = ", ".join(f"{name} {v}" for name, v in environment.versions().items())
    commit = environment.harness_commit()
    changed = ", changed" if commit.dirty else ""
    code = f"commit {commit.commit[:12]}{changed}" if commit.commit else "not a checkout"
    cores, memory = environment.cores(), environment.memory_bytes()
    found = [
        Finding("ok", "libraries", f"{versions}; {code}"),
        Finding("ok", "processor", f"{cores} cores, {torch.backends.cpu.get_cpu_capability()}"),
    ]
    if memory is not None:
        enough = memory > _LITTLE_MEMORY
        text = f"{memory / 1e9:.0f} GB"
        found.append(
            Finding("ok", "memory", text)
            if enough
            else Finding("note", "memory", f"{text}; use --jobs 1")
        )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            size = properties.total_memory / 1e9
            found.append(Finding("ok", f"GPU {index}", f"{properties.name}, {size:.0f} GB"))
    else:
        text = "none that torch can use; --profile mini runs on the CPU, paper needs a GPU"
        found.append(Finding("note", "GPU", text))
    return found


def _data(data: Path) -> list[Finding]:
    found = []
    for state in data_states(data):
        text = state.advice or f"{state.cells[1]}, {state.cells[2]} training cases"
        noteworthy = state.advice or state.cells[1] == "partial"
        mark: Literal["ok", "note"] = "note" if noteworthy else "ok"
        broken = state.cells[1] == "damaged"
        found.append(Finding("bad" if broken else mark, f"data {state.name}", text))
    return found


def _writable(store: Path) -> Finding:
    nearest = store
    while not nearest.exists():
        nearest = nearest.parent
    if not os.access(nearest, os.W_OK):
        return Finding("bad", "store", f"{nearest} cannot be written; name another with --store")
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"x")
    except OSError as error:
        return Finding("bad", "store", f"{nearest} cannot be written: {error.strerror}")
    free = shutil.disk_usage(nearest).free
    text = f"{free / 1e9:.0f} GB free at {nearest.resolve()}"
    return Finding("ok" if free > _LITTLE_DISK else "note", "disk", text)


def _store(path: Path) -> list[Finding]:
    if not (path / "runs").is_dir():
        return [Finding("ok", "store", f"none yet at {path}; `bench run` makes it")]
    try:
        store = Store.open(path)
        records = store.records()
    except UserError as error:
        return [Finding("bad", "store", str(error))]
    states = records["state"].value_counts()
    text = (
        f"{states.get('finished', 0)} runs finished, {states.get('failed', 0)} failed, "
        f"{len(store.unfinished())} unfinished"
    )
    return [Finding("ok", "store", text)]
