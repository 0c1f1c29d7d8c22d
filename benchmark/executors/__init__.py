"""Where runs are worked on, by the names that `--executor` takes."""

from __future__ import annotations

from benchmark.executors.base import Executor
from benchmark.executors.inline import Inline
from benchmark.executors.local import Local
from benchmark.executors.ray import Ray
from benchmark.executors.slurm import Slurm

EXECUTORS: dict[str, type[Executor]] = {
    "local": Local,
    "inline": Inline,
    "slurm": Slurm,
    "ray": Ray,
}
