"""What a run sets for its whole process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# In a process of its own: what malloc has given out before decides what it does next.
COUNT_FAULTS = """
import resource
import sys
import numpy as np
from benchmark.environment import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
def step():
    blocks = [np.ones(8 << 20, dtype=np.uint8) for _ in range(10)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*words: str) -> int:
    made = [sys.executable, "-c", COUNT_FAULTS, *words]
    return int(subprocess.run(made, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    pages_of_one_step = (80 << 20) // 4096
    assert faults("keep") < pages_of_one_step < faults()
