"""One thread a process: several test workers share the cores, and bytes depend on threads."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)
