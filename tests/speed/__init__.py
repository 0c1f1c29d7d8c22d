"""`make bench`: ratios against what the field uses, measured side by side in one run.

CPU time of one thread, medians over interleaved rounds; every row says what it equals. One file an
area, with a function `lines`; `AREAS` lists them in the order of the table.
"""
