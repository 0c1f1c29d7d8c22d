"""What a run ran on: recorded with it, and what `bench doctor` shows."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of glibc's malloc.h.
_KEEP = ((-3, 32 << 20), (-1, (2 << 30) - 1), (-2, 64 << 20))
LIBRARIES = ("ssl3d-bench", "torch", "numpy", "scipy", "pandas", "pyarrow")


@dataclass(frozen=True)
class Commit:
    """The harness's own code: git commit ("" outside a checkout) and whether it was changed."""

    commit: str
    dirty: bool


def cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processor cores this process may use, by its affinity and its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    try:
        limit, period = quota.read_text().split()
        return max(1, min(allowed, int(limit) // int(period)))
    except (OSError, ValueError):
        return allowed


def memory_bytes() -> int | None:
    """Physical memory, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def fingerprint(device: torch.device, threads: int) -> dict[str, str | int | bool]:
    """Everything that may change a run's last bits. Resuming under another one is marked.

    Read it when an attempt begins: what lies on the disk at its end may be other code.
    """
    code = harness_commit()
    described: dict[str, str | int | bool] = {
        **versions(),
        "commit": code.commit,
        "dirty": code.dirty,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device.type,
        "threads": threads,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        described |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda or "",
            "cudnn": torch.backends.cudnn.version() or 0,
            "tf32": torch.backends.cudnn.allow_tf32,
            "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
            "repeating": "required" if _repeating_is_required() else "preferred",
        }
    return described


def versions() -> dict[str, str]:
    """Versions of the harness and of the libraries whose numbers it depends on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def harness_commit() -> Commit:
    """Commit of the checkout that this file belongs to."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return Commit("", False)
    commit = _git(root, "rev-parse", "HEAD")
    return Commit(commit, bool(commit) and bool(_git(root, "status", "--porcelain", "-uno")))


def make_deterministic(device: torch.device, threads: int, *, exact: bool = False) -> None:
    """Pin threads, and ask the device for kernels that repeat themselves.

    Where a GPU has none, torch warns. If `exact`, it raises RuntimeError instead, and convolutions
    are in float32 proper, without TF32.
    """
    torch.set_num_threads(threads)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = not exact
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=not exact)
        # Else torch fills every tensor that it allocates, to make reading it too early repeat.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees for the next one, where glibc is the C library.

    It would give every large block back to the system at once, and the system would hand it out
    again emptied, page by page: 5 to 20 % of a small run's time. Blocks of more than 32 MiB, the
    most that glibc takes for a threshold, are still given back.
    """
    with suppress(OSError, AttributeError):  # another C library, which has no such setting
        allocator = ctypes.CDLL(None)
        for option, value in _KEEP:
            allocator.mallopt(option, value)


def _repeating_is_required() -> bool:
    enabled = torch.are_deterministic_algorithms_enabled()
    return enabled and not torch.is_deterministic_algorithms_warn_only_enabled()


def device_name(device: torch.device) -> str:
    """Human name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        described = Path("/proc/cpuinfo").read_text()
        model = described.split("model name", 1)[1].split(":", 1)[1].splitlines()[0].strip()
    except (OSError, IndexError):
        model = platform.processor() or platform.machine()
    return f"CPU ({model})"


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
