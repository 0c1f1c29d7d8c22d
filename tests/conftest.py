"""One thread a process: several test workers share the cores, and bytes depend on threads.

Wide lines without colours, and no store or data but a test's own: consoles and options take what
they have from the environment, some of it when they are imported.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "400"
os.environ["FORCE_COLOR"] = os.environ["PY_COLORS"] = os.environ["GITHUB_ACTIONS"] = ""
os.environ["TTY_COMPATIBLE"] = os.environ["TTY_INTERACTIVE"] = ""
os.environ["BENCH_STORE"] = os.environ["BENCH_DATA"] = ""

import torch

torch.set_num_threads(1)
