"""Two methods over the same cases and seeds, tested in pairs.

A method is a table of seeds x cases, with a row of `statistics.FAILED` for a failed run, so a
failed run is worse than any other in every test by ranks, and differences of means are undefined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from math import isfinite, nan
from typing import Any, Final

import numpy as np
import pandas as pd

from protocols.intervals import Floats, crossed_bootstrap
from protocols.metrics import METRICS
from protocols.rules import REPORTED, Rule
from protocols.significance import (
    Answer,
    holm,
    rank_sum,
    sign_flip,
    signed_rank,
    verdict,
)
from protocols.statistics import FAILED
from results.errors import UserError

FEWEST: Final = 2
"""Shared seeds below which methods are not compared in pairs."""

TESTS: Final = {
    "seeds": "sign-flip test of the mean difference over seeds (where a run failed, Wilcoxon's "
    "signed-rank test; where methods share no two seeds, Mann-Whitney's test)",
    "ranks": "Wilcoxon's signed-rank test over seeds",
    "cases": "sign-flip test of the mean difference over cases",
}
"""By prefix of the columns of `compare`."""


def chosen_cases(scored: pd.DataFrame, outcomes: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """What each test case scored at the evaluations that a rule chose.

    Args:
        scored: case rows with numbers, as `policies.score` gives them.
        outcomes: one row per run, what the rule chose; see `table.outcomes`.
        rule: the same.

    Returns:
        run, case, dsc, asd, hd95 by run and case: means over those of the chosen evaluations in
        which a case counts, NaN where it counts in none.

    Raises:
        UserError: the rule reports a number of a whole run that is no mean over cases.
    """
    if rule.by_case:
        raise UserError(
            f"protocol {rule.expression} estimates what a run reaches, not what its cases do, so "
            "cases cannot be compared under it; choose another, as last or best"
        )
    kept = (
        (scored["split"] == REPORTED)
        & (scored["step"] >= rule.start)
        & (scored["step"] % rule.every == 0)
        & scored["run"].isin(outcomes["run"])
    )
    if (outcomes["averaged"] == 1).all():
        # Most rows go before anything is copied.
        kept &= scored["step"].isin(outcomes["step"])
    rows = scored.loc[kept, ["run", "predictor", "step", "case", *METRICS]]
    rows = rows.astype({"run": object, "predictor": object, "case": object})
    chosen = outcomes[["run", "picked", "step", "averaged"]]
    chosen = chosen.rename(columns={"picked": "predictor", "step": "until"})
    rows = rows.merge(chosen, on=["run", "predictor"], validate="m:1")
    rows = rows[rows["step"] <= rows["until"]]
    back = rows.groupby("run")["step"].rank(method="dense", ascending=False)
    rows = rows[back <= rows["averaged"]].sort_values(["run", "case", "step"])
    return rows.groupby(["run", "case"])[list(METRICS)].mean().reset_index()


def seeds_by_cases(
    values: pd.DataFrame, cases: Sequence[str], failed: Sequence[int], metric: str
) -> pd.DataFrame:
    """The table of one method.

    Args:
        values: seed, case and the metric, of one method in one setting.
        cases: of the setting.
        failed: seeds of failed runs.
        metric: which one.

    Returns:
        Seeds x cases, both sorted: a failed run's row is `FAILED`, NaN is a case that does not
        count.
    """
    table = values.pivot(index="seed", columns="case", values=metric).astype(float)
    table = table.reindex(index=sorted({*table.index, *failed}), columns=sorted(cases))
    table.loc[sorted(failed)] = FAILED[metric]
    return table


def compare(
    tables: Mapping[str, pd.DataFrame], metric: str, rng: np.random.Generator
) -> pd.DataFrame:
    """Every two methods of one setting.

    The difference is the first minus the second: per case averaged over seeds, per seed averaged
    over cases, over the cases that count in both. Methods are paired over the seeds that both
    have; where these are fewer than `FEWEST`, all seeds of both are compared unpaired. Holm's
    correction is over all pairs, for each kind of test by itself; the attainable p after Holm is
    what would come out if every test gave the least that it can.

    The detectable difference δ is what a t-test over seeds finds 4 times in 5: with SE = SD / √n
    for n pairs, or SD √(2/n) for n runs each, P(|T| > t(1 − α/2)) = 0.8 where T is noncentral t
    with noncentrality δ / SE (`protocols.power.detectable`). SD is that of the differences per
    seed; unpaired it is pooled over both methods, and n is the smaller number.

    Args:
        tables: by method, as `seeds_by_cases`, over the same cases; the first of a pair comes
            first here.
        metric: which one they are of.
        rng: decides the resamples; pairs draw one after the other.

    Returns:
        first, second, metric, `paired`, `seeds` (how many shared ones, or how many of each, as
        text),
        `failed` (how many of these are of a failed run), `cases` that count, `difference`, `low`,
        `high` (crossed bootstrap, nominal 95 %), `sd`, `detectable`, all in the metric's unit;
        `seeds_test` (which one); and for each prefix in `TESTS` `_p`, `_holm`, `_attainable`,
        `_attainable_holm` and `_verdict`.
    """
    pairs = [_pair(*names, tables, metric, rng) for names in combinations(tables, 2)]
    rows = [row for row, _ in pairs]
    better = 1 if METRICS[metric].higher_is_better else -1
    for kind in TESTS:
        tests = [found[kind] for _, found in pairs]
        adjusted = holm([test.p for test in tests])
        least = holm([test.attainable for test in tests])
        for row, test, p, attainable in zip(rows, tests, adjusted, least, strict=True):
            row |= {
                f"{kind}_p": test.p,
                f"{kind}_holm": p,
                f"{kind}_attainable": test.attainable,
                f"{kind}_attainable_holm": attainable,
                f"{kind}_verdict": verdict(p, attainable, better * test.sign),
            }
    return pd.DataFrame(rows, columns=_columns())


def by_case(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Which cases carry the difference of two methods.

    Args:
        first: seeds x cases; see `seeds_by_cases`.
        second: the same cases.

    Returns:
        case, `first`, `second` (means over the seeds that finished with both methods; over each
        one's own where they share fewer than `FEWEST`), `difference`, `share` of the sum of
        differences, its running sum `cumulative`, and `first_seeds` and `second_seeds`, how many
        these are: largest difference first, of equal ones by name. Shares are NaN where the sum
        is 0. Cases that do not count with both methods are left out.
    """
    x, y = (table[~np.isinf(table).any(axis=1)] for table in (first, second))
    shared = x.index.intersection(y.index)
    if len(shared) >= FEWEST:
        x, y = x.loc[shared], y.loc[shared]
    found = pd.DataFrame({"first": x.mean(), "second": y.mean()}).rename_axis("case").reset_index()
    found["difference"] = found["first"] - found["second"]
    found = found.dropna().sort_values(
        ["difference", "case"], ascending=[False, True], ignore_index=True
    )
    total = found["difference"].sum()
    level = 1e-12 * found["difference"].abs().sum()
    found["share"] = found["difference"] / total if abs(total) > level else nan
    found["cumulative"] = found["share"].cumsum()
    return found.assign(first_seeds=len(x), second_seeds=len(y))


def _columns() -> list[str]:
    found = ["first", "second", "metric", "paired", "seeds", "failed", "cases"]
    found += ["difference", "low", "high", "sd", "detectable", "seeds_test"]
    parts = ("p", "holm", "attainable", "attainable_holm", "verdict")
    return [*found, *(f"{kind}_{part}" for kind in TESTS for part in parts)]


def _pair(
    first: str,
    second: str,
    tables: Mapping[str, pd.DataFrame],
    metric: str,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], dict[str, Answer]]:
    a, b = tables[first], tables[second]
    shared = a.index.intersection(b.index).sort_values()
    paired = len(shared) >= FEWEST
    if paired:
        a, b = a.loc[shared], b.loc[shared]
    numbers, tests = (_paired if paired else _unpaired)(a.to_numpy(), b.to_numpy(), rng)
    if paired and not len(shared) == len(tables[first]) == len(tables[second]):
        numbers["seeds"] += f" of {len(tables[first])} and {len(tables[second])}"
    named = {"first": first, "second": second, "metric": metric, "paired": paired}
    return named | numbers, tests


def _paired(
    x: Floats, y: Floats, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Answer]]:
    n, m = x.shape
    failed = np.isinf(x).any(axis=1) | np.isinf(y).any(axis=1)
    with np.errstate(invalid="ignore"):
        differences = x - y
    by_seed = _means(differences, 1)
    by_case = np.full(m, nan) if failed.any() else _means(differences, 0)
    both_failed = np.isinf(x).any(axis=1) & np.isinf(y).any(axis=1)
    ranks = signed_rank(np.where(both_failed, 0.0, by_seed))
    sd = _sd(by_seed)
    interval = crossed_bootstrap(differences, rng)
    tests = {
        "seeds": ranks if failed.any() else sign_flip(by_seed, rng),
        "ranks": ranks,
        "cases": sign_flip(by_case if failed.any() else by_case[~np.isnan(by_case)], rng),
    }
    return {
        "seeds": str(n),
        "failed": int(failed.sum()),
        "cases": _counting(differences),
        "difference": _mean(by_seed),
        "low": interval.low,
        "high": interval.high,
        "sd": sd,
        "detectable": _detectable(sd, n, paired=True),
        "seeds_test": "signed-rank" if failed.any() else "sign-flip",
    }, tests


def _unpaired(
    x: Floats, y: Floats, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Answer]]:
    failed = int(np.isinf(x).any(axis=1).sum() + np.isinf(y).any(axis=1).sum())
    first, second = _means(x, 1), _means(y, 1)
    per_case = _means(x, 0) - _means(y, 0) if not failed else np.full(x.shape[1], nan)
    interval = crossed_bootstrap(x, rng, other=y)
    free = len(x) + len(y) - 2
    squares = sum((len(v) - 1) * _sd(v) ** 2 for v in (first, second) if len(v) > 1)
    sd = float(np.sqrt(squares / free)) if free > 0 else nan
    tests = {
        "seeds": rank_sum(first, second),
        "ranks": Answer(nan, nan, 0),
        "cases": sign_flip(per_case if failed else per_case[~np.isnan(per_case)], rng),
    }
    return {
        "seeds": f"{len(x)} and {len(y)}",
        "failed": failed,
        "cases": _counting(np.concatenate([x, y])),
        "difference": _mean(first) - _mean(second),
        "low": interval.low,
        "high": interval.high,
        "sd": sd,
        "detectable": _detectable(sd, min(len(x), len(y)), paired=False),
        "seeds_test": "Mann-Whitney",
    }, tests


def _means(values: Floats, axis: int) -> Floats:
    """Means along an axis of what is not NaN; NaN where nothing is."""
    missing = np.isnan(values)
    with np.errstate(invalid="ignore"):
        sums = np.where(missing, 0.0, values).sum(axis=axis)
        return np.asarray(sums / (~missing).sum(axis=axis), dtype=np.float64)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) and np.isfinite(values).all() else nan


def _sd(values: Floats) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 and np.isfinite(values).all() else nan


def _counting(values: Floats) -> int:
    return int((~np.isnan(values)).any(axis=0).sum())


def _detectable(sd: float, n: int, paired: bool) -> float:
    return _detectable_in_sd(n, paired) * sd if n >= FEWEST and isfinite(sd) else nan


@cache
def _detectable_in_sd(n: int, paired: bool) -> float:
    # scipy.stats takes longer to import than most reports take to write.
    from protocols.power import detectable

    return detectable(1.0, n, paired)
