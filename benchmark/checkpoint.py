"""Save and restore the state of training, atomically; a damaged file falls back to the one before.

A checkpoint is `checkpoint-<step>.pt`: 64 hex digits of the SHA-256 of what follows, a newline,
then what `torch.save` wrote. Two are kept. They load with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any

import torch

from results.publishing import flush_folder

KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{9})\.pt")


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state after `step` steps and drop all but the newest `KEPT` checkpoints.

    Raises:
        OSError: the disk is full or not writable; older checkpoints are untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    digest = hashlib.sha256(payload).hexdigest().encode()
    final = folder / f"checkpoint-{step:09d}.pt"
    temporary = folder / f".tmp-{final.name}-{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            file.write(digest + b"\n")
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(folder)
    for _, old in _checkpoints(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return final


def load_newest(folder: Path, device: torch.device) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest intact checkpoint; None when there is none.

    Damaged files are deleted, so that what they belonged to is trained again.

    Raises:
        RuntimeError: an intact one cannot be loaded here and now, as for want of memory or of a
            device; it stays.
    """
    for stale in folder.glob(".tmp-checkpoint-*"):
        stale.unlink(missing_ok=True)
    for step, path in _checkpoints(folder):
        state = _read(path, device)
        if state is not None:
            return step, state
        path.unlink()
    return None


def newest_step(folder: Path) -> int:
    """Steps done at the newest checkpoint, intact or not; 0 when there is none."""
    return max((step for step, _ in _checkpoints(folder)), default=0)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    found = ((_NAME.fullmatch(p.name), p) for p in folder.glob("checkpoint-*.pt"))
    return sorted(((int(m[1]), p) for m, p in found if m), reverse=True)


def _read(path: Path, device: torch.device) -> dict[str, Any] | None:
    content = path.read_bytes()
    digest, newline, payload = content[:64], content[64:65], content[65:]
    if newline != b"\n" or hashlib.sha256(payload).hexdigest().encode() != digest:
        return None
    try:
        state = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except (MemoryError, RuntimeError, OSError):  # of this machine, now; the file is intact
        raise
    except Exception:  # of whatever kind: it holds more than tensors, or is not what was saved
        return None
    return state if isinstance(state, dict) else None
