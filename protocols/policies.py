"""Empty-mask policies: what a case counts when a mask is empty. Applied at report time only.

The store holds a status instead of a number, so one set of results answers every policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import Final, Literal

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Policy:
    """What a case counts whose prediction or reference is empty.

    dsc:      its DSC; NaN leaves the case out of every mean.
    distance: its ASD and HD95, or the length of the volume's diagonal.
    flatters: methods that predict nothing gain by it as a rule. (A constant distance can flatter
              them too, where measured distances exceed it: `score` marks those cases.)
    meaning:  a sentence for the foot of a table.
    """

    dsc: float
    distance: float | Literal["diagonal"]
    flatters: bool
    meaning: str


POLICIES: Final = {
    "tcseg": Policy(
        0.0,
        100.0,
        False,
        "an empty mask counts DSC 0, ASD = HD95 = 100, as in the TCSeg code, whatever the unit and "
        "the size of the volume; where a measured distance exceeds 100, the empty mask counts as "
        "the better one",
    ),
    "worst": Policy(
        0.0, "diagonal", False, "an empty mask counts DSC 0, ASD = HD95 = the volume's diagonal"
    ),
    "exclude": Policy(
        nan, nan, True, "cases with an empty mask are left out, which favours methods that fail"
    ),
    "zero": Policy(
        0.0,
        0.0,
        True,
        "an empty mask counts DSC 0, ASD = HD95 = 0, the field's habit: it rewards failure, "
        "as 0 is the best distance there is",
    ),
}
"""By name. `tcseg` is the default."""


def score(cases: pd.DataFrame, policy: Policy) -> pd.DataFrame:
    """Case rows in which every status has become numbers.

    Args:
        cases: columns status, dsc, asd, hd95 and diagonal, among others.
        policy: what empty masks count.

    Returns:
        The same rows and columns with dsc, asd and hd95 filled, `empty` (bool), and `beyond`
        (bool): measured, and with an ASD or HD95 that is worse than what an empty mask counts.
    """
    empty = (cases["status"] != "ok").to_numpy()
    worst = cases["diagonal"] if policy.distance == "diagonal" else policy.distance
    beyond = np.asarray(np.fmax(cases["asd"], cases["hd95"]) > worst)
    return cases.assign(
        dsc=np.where(empty, policy.dsc, cases["dsc"]),
        asd=np.where(empty, worst, cases["asd"]),
        hd95=np.where(empty, worst, cases["hd95"]),
        empty=empty,
        beyond=beyond & ~empty,
    )
