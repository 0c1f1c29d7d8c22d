"""A command in a network and process namespace of its own: only `lo`, and nothing outlives it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
UNSHARE = ("unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child")


@cache
def missing_rights() -> str:
    """Why no cluster is started here; "" where one can be."""
    if not os.environ.get("BENCH_CLUSTERS"):
        return "starts a cluster, for minutes: set BENCH_CLUSTERS=1"
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "no unshare or no ip: install util-linux and iproute2"
    tried = subprocess.run(
        [*UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False
    )
    return f"no right to make namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def missing_ray() -> str:
    """Why no Ray is started here; "" where one can be."""
    return missing_rights() or ("" if find_spec("ray") else "Ray is not installed here")


def inside(module: str, *arguments: object, timeout_s: float) -> Any:
    """What `python -m module` in a namespace writes as its last line, as JSON.

    The kernel ends every process of the namespace with its first one, however that ends.
    """
    words = [sys.executable, "-m", module, *map(str, arguments)]
    script = 'ip link set lo up && ip addr add 127.0.0.2/8 dev lo && exec "$@"'
    done = subprocess.run(
        [*UNSHARE, "bash", "-c", script, "bash", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"{module} {arguments}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])
