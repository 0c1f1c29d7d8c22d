"""Faults that runs survive, each tried many times: `python -m tests.faults` prints the table."""
