"""Whether the order of methods depends on how one counts, or on who was drawn."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, Final

import pandas as pd

from protocols.intervals import DRAWS
from protocols.metrics import METRICS
from protocols.policies import POLICIES
from protocols.ranks import agreement, flips, rank_distribution, robust_winner
from protocols.rules import RULES, Last, Rule
from protocols.table import with_identity
from protocols.trajectory import trajectory
from reports.comparison import generator, tables
from reports.facts import MAIN, Facts
from reports.render import Section, Sheet, csv_text, write_file, write_sheets
from reports.table import NO_VALUE, file_name, number
from results.errors import UserError

STEM: Final = "ranks"


def write_ranks(facts: Facts, out: Path) -> list[Path]:
    """Write `ranks-<protocol>.md`, `.csv`, `.tex`, and `-agreement.csv`, `-stability.csv`."""
    stem = f"{STEM}-{file_name(facts.rule.expression)}"
    placed, drawn = facts.once(placings), facts.once(stability)
    return [
        *write_sheets(_sheets(facts, placed, drawn), placed, out, stem),
        write_file(out / f"{stem}-agreement.csv", csv_text(_agreements(placed))),
        write_file(out / f"{stem}-stability.csv", csv_text(drawn)),
    ]


def show_ranks(facts: Facts) -> list[Sheet]:
    """All sheets."""
    return _sheets(facts, facts.once(placings), facts.once(stability))


def placings(facts: Facts) -> pd.DataFrame:
    """Ranks of the main predictor's medians under every protocol and policy.

    A protocol is left out of a setting whose runs lack what it needs, as validation cases. Of
    policies for empty masks that can only give the same numbers, the first stands for all.

    Returns:
        setting, metric, protocol, policy, method, median (DSC in percent; infinite for a failed
        run) and rank (1 the best, ties their average; NaN without a number), in the order of the
        summary, of the metrics, and of the protocols.
    """
    names = facts.summary.loc[facts.summary["predictor"] == MAIN, ["identity", "setting", "label"]]
    summaries = {
        (rule.expression, policy): _summary(counted, rule)
        for policy, counted in _under_policies(facts).items()
        for rule in _rules(facts)
    }
    frames = []
    for metric, rule in product(METRICS, _rules(facts)):
        for policy in _policies(facts, metric):
            found = summaries[rule.expression, policy]
            found = found.loc[found["predictor"] == MAIN, ["identity", f"{metric}_median"]]
            found = names.merge(found, on="identity", validate="1:1")
            found["median"] = found[f"{metric}_median"] * (100 if metric == "dsc" else 1)
            ascending = not METRICS[metric].higher_is_better
            found["rank"] = found.groupby("setting")["median"].rank(ascending=ascending)
            scheme = {"metric": metric, "protocol": rule.expression, "policy": policy}
            frames.append(found.assign(**scheme))
    placed = pd.concat(frames, ignore_index=True).rename(columns={"label": "method"})
    order = {setting: place for place, setting in enumerate(dict.fromkeys(names["setting"]))}
    placed = placed.sort_values(
        "setting", key=lambda column: column.map(order), kind="stable", ignore_index=True
    )
    return placed[["setting", "metric", "protocol", "policy", "method", "median", "rank"]]


def stability(facts: Facts) -> pd.DataFrame:
    """How often each method takes each rank when seeds and cases are drawn anew.

    Under the chosen protocol, or `last` where that one has no numbers of single cases.

    Returns:
        setting, method, mean (rank), and `rank_1`, `rank_2`, ...: shares of the draws.
    """
    frames = []
    resampled = facts if not facts.rule.by_case else replace(facts, rule=Last())
    for setting, by_metric in resampled.once(tables).items():
        rng = generator(facts, STEM, setting)
        drawn = rank_distribution(by_metric["dsc"], "dsc", rng).reset_index()
        drawn = drawn.rename(columns={c: f"rank_{c}" for c in drawn if isinstance(c, int)})
        drawn.insert(0, "setting", pd.Series(setting, index=drawn.index, dtype=object))
        frames.append(drawn)
    found = pd.concat(frames, ignore_index=True)
    places = sorted((c for c in found if str(c).startswith("rank_")), key=_place)
    return found[["setting", "method", "mean", *places]]


def _sheets(facts: Facts, placed: pd.DataFrame, drawn: pd.DataFrame) -> list[Sheet]:
    by_metric = {str(metric): group for metric, group in placed.groupby("metric", sort=False)}
    return [
        *(_ranks_sheet(facts, metric, group) for metric, group in by_metric.items()),
        *(_agreement_sheet(metric, group) for metric, group in by_metric.items()),
        _flips_sheet(placed),
        _stability_sheet(facts, drawn),
    ]


def _ranks_sheet(facts: Facts, metric: str, placed: pd.DataFrame) -> Sheet:
    schemes, by_setting = _schemes(placed), _by_setting(placed)
    sections = []
    for setting, table in by_setting.items():
        rows = [(str(m), *(number(_at(table, s, m), "g") for s in schemes)) for m in table.columns]
        sections.append(Section(setting, tuple(rows)))
    label = METRICS[metric].label
    applied = [rule for rule in _rules(facts) if rule.expression in set(placed["protocol"])]
    missing = [rule.expression for rule in _rules(facts) if rule not in applied]
    notes = [
        f"Ranks by the median over runs of the {label} of the main predictor, 1 the best; tied "
        "methods have the average of their ranks, failed runs count as worse than any number.",
        f"Protocols: {'; '.join(f'{r.expression}: {r.meaning}' for r in applied)}. {NO_VALUE} "
        "where the runs of a setting lack what a protocol needs, or have no number.",
    ]
    if missing:
        notes.append(f"Left out, as no setting has what they need: {', '.join(missing)}.")
    used = _policies(facts, metric)
    notes.append(
        "Policies for empty masks: "
        + "; ".join(f"{name}: {POLICIES[name].meaning}" for name in used)
        + ("." if len(used) == len(POLICIES) else ". All others give these ranks too.")
    )
    notes += [_winner(setting, label, table) for setting, table in by_setting.items()]
    notes += facts.omitted
    columns = (("", "method"), *_headings(placed))
    return Sheet(f"Ranks of methods by {label}", columns, tuple(sections), tuple(notes))


def _agreement_sheet(metric: str, placed: pd.DataFrame) -> Sheet:
    schemes = _schemes(placed)
    sections = []
    for setting, table in _by_setting(placed).items():
        taus = agreement(table)
        rows = [
            (_shown(a, placed), *(number(_at(taus, a, b)) for b in schemes)) for a in taus.index
        ]
        sections.append(Section(setting, tuple(rows)))
    notes = (
        "Kendall's τ-b between the ranks: 1 the same order, −1 the reverse, 0 no relation; "
        f"corrected for ties. {NO_VALUE} where there is nothing to order.",
    )
    title = f"Agreement of ranks by {METRICS[metric].label}"
    heading = "protocol" if _one_policy(placed) else "protocol / policy"
    columns = (("", heading), *_headings(placed))
    return Sheet(title, columns, tuple(sections), notes)


def _flips_sheet(placed: pd.DataFrame) -> Sheet:
    sections = []
    for setting, of_setting in placed.groupby("setting", sort=False):
        rows = []
        for metric, group in of_setting.groupby("metric", sort=False):
            for row in flips(_table(group)).to_dict("records"):
                ahead = (row["first_ahead"], row["second_ahead"])
                schemes = (", ".join(_shown(a, placed) for a in names) for names in ahead)
                rows.append((METRICS[str(metric)].label, row["first"], row["second"], *schemes))
        if rows:
            sections.append(Section(str(setting), tuple(rows)))
    notes = ["Pairs of methods whose order depends on the protocol or the policy."]
    if not sections:
        notes.append("There is none: every two methods keep their order under all of them.")
    columns = [("", "by"), ("", "first"), ("", "second")]
    columns += [("", "first ahead under"), ("", "second ahead under")]
    return Sheet("Flips", tuple(columns), tuple(sections), tuple(notes), left=5)


def _stability_sheet(facts: Facts, drawn: pd.DataFrame) -> Sheet:
    places = [str(c) for c in drawn if str(c).startswith("rank_")]
    columns = [("", "method"), ("rank", "mean")]
    columns += [("draws, %", place.replace("_", " ")) for place in places]
    sections = [
        Section(
            str(setting),
            tuple(
                (
                    row["method"],
                    number(row["mean"]),
                    *(number(100 * row[place], ".1f") for place in places),
                )
                for row in group.to_dict("records")
            ),
        )
        for setting, group in drawn.groupby("setting", sort=False)
    ]
    notes = (
        f"Protocol {_resampled(facts.rule).expression}, policy {facts.policy}: ranks of the "
        f"median over runs of the DSC in {DRAWS} resamples of seeds × cases, both drawn anew (seed "
        f"{facts.options.seed}). Cases are drawn together for all methods, seeds too where all "
        "have the same. Rank 1: how often a method is the best; tied methods share ranks. With "
        "few seeds the shares are surer of themselves than they should be.",
    )
    return Sheet("Stability of ranks", tuple(columns), tuple(sections), notes)


def _winner(setting: str, label: str, table: pd.DataFrame) -> str:
    winner = robust_winner(table)
    if winner is None:
        return f"{setting}: by {label} no method is first, and alone there, under all of these."
    return (
        f"{setting}: robust winner by {label}: {winner}, first and alone there under all. That is "
        "no test of a difference."
    )


def _resampled(rule: Rule) -> Rule:
    return Last() if rule.by_case else rule


def _policies(facts: Facts, metric: str) -> list[str]:
    """Those that can differ in a metric, the chosen one first."""
    if (facts.cases["status"] == "ok").all():
        return [facts.policy]
    different: dict[str, str] = {}
    for name in (facts.policy, *POLICIES):
        counts = POLICIES[name].dsc if metric == "dsc" else POLICIES[name].distance
        different.setdefault(str(counts), name)
    return list(different.values())


def _under_policies(facts: Facts) -> dict[str, Facts]:
    found = {}
    for name in dict.fromkeys(name for metric in METRICS for name in _policies(facts, metric)):
        steps = trajectory(facts.cases, POLICIES[name]) if name != facts.policy else None
        found[name] = facts if steps is None else replace(facts, policy=name, trajectory=steps)
    return found


def _rules(facts: Facts) -> list[Rule]:
    """All by their defaults, and the one that was asked for."""
    return list(dict.fromkeys([*(rule() for rule in RULES.values()), facts.rule]))


def _summary(facts: Facts, rule: Rule) -> pd.DataFrame:
    """The summary under a rule, of the settings whose runs have what it needs."""
    counted = replace(facts, rule=rule)
    try:
        return counted.summary
    except UserError:
        pass
    runs = with_identity(facts.runs)
    found = [facts.summary.iloc[:0]]
    for _, group in runs.groupby("section"):
        own = facts.trajectory["run"].isin(group["run"])
        part = replace(counted, runs=facts.runs.loc[group.index], trajectory=facts.trajectory[own])
        with suppress(UserError):
            found.append(part.summary)
    return pd.concat(found[1:] or found, ignore_index=True)


def _schemes(placed: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(placed["protocol"], placed["policy"], strict=True)))


def _by_setting(placed: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(setting): _table(group) for setting, group in placed.groupby("setting", sort=False)}


def _table(group: pd.DataFrame) -> pd.DataFrame:
    """Ranks, schemes x methods, both in the order of rows."""
    schemes = pd.MultiIndex.from_tuples(_schemes(group))
    methods = list(dict.fromkeys(group["method"]))
    wide = group.pivot(index=["protocol", "policy"], columns="method", values="rank")
    return wide.reindex(index=schemes, columns=methods)


def _agreements(placed: pd.DataFrame) -> pd.DataFrame:
    """One row per setting, metric and pair of schemes: setting, metric, first, second, tau."""
    rows = []
    for (setting, metric), group in placed.groupby(["setting", "metric"], sort=False):
        taus = agreement(_table(group))
        for a, b in combinations(taus.index, 2):
            rows.append((setting, metric, _name(a), _name(b), float(taus.loc[a, b])))
    return pd.DataFrame(rows, columns=["setting", "metric", "first", "second", "tau"])


def _at(table: Any, row: tuple[str, str], column: object) -> float:
    known = row in table.index and column in table.columns
    return float(table.loc[row, column]) if known else float("nan")


def _name(scheme: tuple[str, str]) -> str:
    return " / ".join(scheme)


def _one_policy(placed: pd.DataFrame) -> bool:
    """Then it need not be named beside every protocol, where it reads as a method's name."""
    return placed["policy"].nunique() == 1


def _shown(scheme: tuple[str, str], placed: pd.DataFrame) -> str:
    return scheme[0] if _one_policy(placed) else _name(scheme)


def _headings(placed: pd.DataFrame) -> list[tuple[str, str]]:
    schemes = _schemes(placed)
    return [("", protocol) for protocol, _ in schemes] if _one_policy(placed) else schemes


def _place(column: object) -> int:
    return int(str(column).removeprefix("rank_"))
