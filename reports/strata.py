"""Strata of test cases: which of them count, as far as the runs say how they are linked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from protocols.rules import REPORTED
from results.errors import UserError
from results.schema import Stratum

Linked = Mapping[str, tuple[str, ...]]
"""Test cases that are linked to training cases (the same patient, or the same scan), with those."""

LinkReader = Callable[[Mapping[str, Any]], Linked | None]
"""Gives the linked cases of a dataset, described by the `dataset` part of a spec; None where nobody
has looked for any."""

WORD: Final = "unlinked test cases"


@dataclass(frozen=True)
class Selection:
    """Which test cases do not count.

    names:    of the datasets that lack cases, by run: how tables call them then.
    left_out: test cases, by run.
    notes:    what a reader must know, a sentence each.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, frozenset[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of_cases(self, cases: pd.DataFrame) -> pd.DataFrame:
        """The rows of a `cases` table that count.

        Raises:
            UserError: no test case of some run is left.
        """
        if not self.left_out or cases.empty:
            return cases
        groups: dict[frozenset[str], list[str]] = {}
        for run, names in self.left_out.items():
            groups.setdefault(names, []).append(run)
        gone = pd.Series(False, index=cases.index)
        for names, runs in groups.items():
            gone |= cases["run"].isin(runs) & cases["case"].isin(names)
        reported = cases["split"] == REPORTED
        bare = set(cases.loc[reported, "run"]) - set(cases.loc[reported & ~gone, "run"])
        if bare:
            raise UserError(
                f"all test cases of run {min(bare)} are linked to training cases: none is left to "
                "report"
            )
        return cases[~(gone & reported)].reset_index(drop=True)

    def of_runs(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The `runs` table, in which datasets that lack cases have a name of their own."""
        named = runs["run"].map(self.names).astype(object)
        return runs.assign(dataset=named.where(named.notna(), runs["dataset"]))


def choose(
    stratum: Stratum,
    runs: pd.DataFrame,
    sidecars: Mapping[str, Mapping[str, Any]],
    read: LinkReader | None,
) -> Selection:
    """What a stratum leaves out.

    What one run says of a dataset holds for all runs with its fingerprint. Where none says
    anything, as older ones do not, `read` is asked.

    Args:
        stratum: which test cases count.
        runs: the `runs` table.
        sidecars: by run id.
        read: looks at the data themselves.

    Raises:
        UserError: nobody has looked for links in any of the datasets, or no test case is left.
    """
    if stratum is Stratum.ALL:
        return Selection()
    told = _told(runs, sidecars)
    names, left_out, notes, silent = {}, {}, set(), set()
    for key, group in runs.groupby(["fingerprint", "dataset"], sort=True):
        fingerprint, dataset = map(str, key)
        if fingerprint not in told and read is not None:
            told[fingerprint] = read(json.loads(group["spec"].iloc[0])["dataset"])
        linked = told.get(fingerprint)
        if linked is None:
            silent.add(dataset)
            continue
        notes.add(f"{dataset}: {_note(linked)}")
        for run in group["run"]:
            names[run] = _renamed(dataset)
            left_out[run] = frozenset(linked)
    if not names:
        raise UserError(
            f"--cases {stratum}: nobody has looked for links between training and test cases of "
            f"{', '.join(sorted(silent))}. Leave the option out; `bench data check` compares the "
            "images of any dataset"
        )
    notes |= {f"{name}: {_SILENT}" for name in silent}
    return Selection(names, left_out, tuple(sorted(notes)))


_SILENT: Final = (
    "nobody has looked for links between its training and test cases; all test cases count."
)


def _told(
    runs: pd.DataFrame, sidecars: Mapping[str, Mapping[str, Any]]
) -> dict[str, Linked | None]:
    """What sidecars say, by fingerprint."""
    found: dict[str, Linked | None] = {}
    for run, fingerprint in zip(runs["run"], runs["fingerprint"], strict=True):
        said = sidecars.get(run, {})
        if "linked" in said:
            linked = said["linked"]
            found[fingerprint] = None if linked is None else dict(linked)
    return found


def _note(linked: Linked) -> str:
    if not linked:
        return "no test case is known to be linked to a training case; all of them count."
    pairs = [f"{case} ({', '.join(others)})" for case, others in sorted(linked.items())]
    return (
        f"{len(linked)} test cases that are linked to training cases, as scans of one patient, "
        f"are left out, in selection too: {', '.join(pairs)}. These numbers do not compare with "
        "those over all test cases."
    )


def _renamed(dataset: str) -> str:
    """How tables call a dataset some of whose cases do not count.

    >>> _renamed("la"), _renamed("la (partial: 4 cases)")
    ('la (unlinked test cases)', 'la (partial: 4 cases; unlinked test cases)')
    """
    return f"{dataset[:-1]}; {WORD})" if dataset.endswith(")") else f"{dataset} ({WORD})"
