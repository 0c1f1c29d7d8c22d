"""One thread a process: several test workers share the cores, and bytes depend on threads.

Wide lines: the command line's consoles take their width from the environment when they are made.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "400"

import torch

torch.set_num_threads(1)
