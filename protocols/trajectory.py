"""From cases to trajectories: what a run scored at each of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import union_categoricals

from protocols.metrics import METRICS
from protocols.policies import Policy, score
from results.errors import UserError

KEYS: Final = ("run", "predictor", "split", "step")

_COUNTS: Final = ("cases", "empty", "beyond")


def trajectory(cases: pd.DataFrame, policy: Policy) -> pd.DataFrame:
    """Mean over cases of every evaluation.

    The order of rows changes nothing, not even the last bit: cases are summed in order of name.

    Args:
        cases: the `cases` table or a part of it.
        policy: what empty masks count.

    Returns:
        One row per run, predictor, split and step, in this order: `cases` (how many), `empty`
        (how many with an empty mask), `beyond` (how many measured ones are farther off than an
        empty mask counts) and the means dsc, asd, hd95 over the cases that count (NaN when none
        does).

    Raises:
        UserError: a case occurs twice in one evaluation.
    """
    if cases.empty:
        return cases.assign(**dict.fromkeys(_COUNTS, 0))[[*KEYS, *_COUNTS, *METRICS]]
    rows = score(cases, policy)
    code = np.zeros(len(rows), dtype=np.int64)
    values: dict[str, NDArray[np.generic]] = {}
    for name in (*KEYS, "case"):
        places, values[name] = ordered(rows[name])
        code *= len(values[name])
        code += places
    order = np.argsort(code, kind="stable")
    code = code[order]
    repeated = np.flatnonzero(code[1:] == code[:-1])
    if len(repeated):
        row = rows.iloc[order[repeated[0]]]
        raise UserError(
            f"case {row['case']} occurs twice in run {row['run']} at step {row['step']} "
            f"({row['predictor']}, {row['split']}): the store was changed by hand"
        )
    code //= len(values["case"])
    starts = np.flatnonzero(np.r_[True, code[1:] != code[:-1]])
    code = code[starts]
    at: dict[str, NDArray[np.int64]] = {}
    for name in reversed(KEYS):
        code, at[name] = np.divmod(code, len(values[name]))
    means: dict[str, object] = {}
    for name in KEYS:
        text = rows[name].dtype.kind not in "iu"
        index = pd.Index(values[name])
        means[name] = pd.Categorical.from_codes(at[name], index) if text else index[at[name]]
    means["cases"] = np.diff(np.r_[starts, len(rows)])
    for name in ("empty", "beyond"):
        means[name] = np.add.reduceat(rows[name].to_numpy()[order].astype(np.int64), starts)
    for metric in METRICS:
        means[metric] = _means(rows[metric].to_numpy()[order], starts)
    return pd.DataFrame(means)


def joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Trajectories of different runs as one, in the order of `trajectory`; at least one."""
    filled = [part for part in parts if len(part)]
    if not filled:
        return parts[0]
    columns: dict[str, Any] = {}
    for name in filled[0].columns:
        values = [part[name] for part in filled]
        text = isinstance(values[0].dtype, pd.CategoricalDtype)
        columns[name] = (
            union_categoricals(values, sort_categories=True)
            if text
            else np.concatenate([v.to_numpy() for v in values])
        )
    frame = pd.DataFrame(columns)
    order = np.lexsort([ordered(frame[name])[0] for name in reversed(KEYS)])
    return frame.take(order).reset_index(drop=True)


def ordered(column: pd.Series) -> tuple[NDArray[np.int64], NDArray[np.generic]]:
    """Each value's place among sorted distinct values, and these; some may not occur."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = column.cat.categories.to_numpy(dtype=object)
        ranks = np.argsort(np.argsort(names))
        return ranks[column.cat.codes.to_numpy()], np.sort(names)
    places, values = pd.factorize(column, sort=True)
    return places.astype(np.int64), np.asarray(values)


def _means(values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    counted = ~np.isnan(values)
    sums = np.add.reduceat(np.where(counted, values, 0.0), starts)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / np.add.reduceat(counted.astype(np.int64), starts))
