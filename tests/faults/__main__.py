"""`python -m tests.faults [--short] [NAME ...]`: try every fault and print what it cost."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.base import Scale
from tests.faults.registry import FAULTS


def main() -> int:
    """Print the table; 1 when anything was lost, doubled or differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="as `make test` does")
    parser.add_argument("--each", type=int, default=5, help="kills a method and phase")
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(FAULTS)}")
    given = parser.parse_args()
    unknown = set(given.names) - set(FAULTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(FAULTS)}")
    bad = 0
    print("| fault | tried | lost, doubled or differing |\n| --- | ---: | --- |", flush=True)
    for name in given.names or FAULTS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="bench-faults-") as folder:
            row = FAULTS[name](Scale(not given.short, Path(folder), given.each))
        took = time.monotonic() - began
        said = f"skipped: {row.skipped}" if row.skipped else f"{row.bad}; {row.said}"
        print(f"| {row.fault} | {row.tried} | {said} |", flush=True)
        print(f"{name}: {took:.0f} s", file=sys.stderr, flush=True)
        bad += row.bad
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
