"""How much "best on the test set" flatters: gap, its two parts, and what chance alone gives."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from protocols.metrics import METRICS
from protocols.optimism import (
    Evaluated,
    Noise,
    evaluated,
    fit_noise,
    gap_interval,
    late,
    mean_split,
    null_gain,
    split,
)
from protocols.policies import POLICIES
from protocols.rules import REPORTED, Last
from reports.drawing import GREY, blank, colours, in_rows, legend, literal, plain, write_figure
from reports.facts import MAIN, Facts
from reports.render import Section, Sheet, csv_text, write_file, write_sheets
from reports.table import NO_VALUE, number

STEM: Final = "optimism"
EVALUATIONS: Final = (1, 5, 16, 76, 290)
"""Numbers of evaluations for which chance is simulated, besides those of the store."""
CASES: Final = (20, 60, 200)
"""Numbers of test cases for the same."""


_GAPS, _SPLITS, _NULL = range(3)
"""What draws random numbers, each from its own stream."""

_PLACE: Final = ["setting", "label", "predictor", "metric"]


def write_optimism(facts: Facts, out: Path) -> list[Path]:
    """Write `optimism.md`, `.csv`, `.tex`, `.png`, `.pdf`, `.svg` and `optimism-null.csv`."""
    values, chance = facts.once(optimism)
    return [
        *write_sheets([sheet(facts, values)], values, out, STEM),
        write_file(out / f"{STEM}-null.csv", csv_text(chance)),
        *write_figure(draw(values, chance), out, STEM),
    ]


def show_optimism(facts: Facts) -> list[Sheet]:
    """For a terminal."""
    return [sheet(facts, facts.once(optimism)[0])]


def optimism(facts: Facts) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gaps of every method, and the gains that chance gives it.

    Returns:
        One row per metric, setting, method and predictor, means over the runs that count: `last`
        and `best` as the metric is; `gap` with its interval `low` to `high`, `optimism`, `drift`
        and the same by halves, the higher the more flattering; `null_gain` and `null_optimism`
        for runs like these without any change, from the standard deviations `shared_sd` and
        `case_sd` and their lag-1 correlations. DSC is in percent. See `protocols.optimism`.

        And one row per these, number of `evaluations` and of `cases`: `gain`, `optimism`.
    """
    rows = facts.scored[facts.scored["split"] == REPORTED]
    places = rows.groupby(["run", "predictor"], observed=True).indices
    counted = facts.outcomes(Last()).groupby(["identity", "predictor"])["run"].agg(list)
    found, chances = [], []
    for row in facts.summary.to_dict("records"):
        names = counted.get((row["identity"], row["predictor"]), [])
        at = [places[run, row["predictor"]] for run in names]
        own = rows.take(np.concatenate(at)) if at else rows.iloc[:0]
        for metric in METRICS:
            numbers, chance = _row(evaluated(own, metric), metric, facts.options.seed)
            place = {name: row[name] for name in _PLACE[:-1]} | {"metric": metric}
            counts = {n: row[n] for n in ("finished", "started", "failed", "unfinished")}
            unit = "%" if metric == "dsc" else row["unit"]
            found.append({**place, "unit": unit, **counts, **numbers})
            chances.append(chance.assign(**place))
    values = pd.DataFrame(found)
    columns = [*_PLACE, "evaluations", "cases", "gain", "optimism"]
    return values, pd.concat(chances, ignore_index=True)[columns]


def sheet(facts: Facts, values: pd.DataFrame) -> Sheet:
    """The gaps as text, a section per setting and metric."""
    several = set(values["predictor"]) != {MAIN}
    columns = [("", "method"), *([("", "predictor")] if several else []), ("", "runs")]
    columns += [("selected", "out of"), ("", "cases"), ("mean", "last"), ("mean", "best")]
    columns += [("best − last", "gap"), ("best − last", "95 % interval")]
    columns += [("of the gap", "selection optimism"), ("of the gap", "training drift")]
    columns += [("by chance", "gap"), ("by chance", "of it optimism")]
    sections = []
    for (setting, metric), group in values.groupby(["setting", "metric"], sort=False):
        sign = METRICS[str(metric)]
        arrow = "↑" if sign.higher_is_better else "↓"
        heading = f"{setting}: {sign.label} {group['unit'].iloc[0]}".rstrip()
        rows = []
        for row in group.to_dict("records"):
            leading = [row["label"], *([row["predictor"]] if several else [])]
            rows.append((*leading, *_cells(row)))
        sections.append(Section(f"{heading} {arrow}", tuple(rows)))
    return Sheet(
        "Optimism of the best checkpoint on the test set",
        tuple(columns), tuple(sections), tuple(notes(facts, values)), 1 + several,
    )  # fmt: skip


def notes(facts: Facts, values: pd.DataFrame) -> list[str]:
    """What a reader must know to use the numbers, a sentence each."""
    groups = values.groupby(["setting", "label"], sort=False, as_index=False)
    methods = groups[["failed", "unfinished"]].max()
    said = [
        f"Best: the evaluation of each run with the best mean over the {REPORTED} cases, of equal "
        "ones the later, chosen by each metric for itself. Last: the last one. Both are means over "
        "runs.",
        "Gap: by how much best flatters, for distances by how much they are shorter. Its interval "
        "is of the gap that this protocol shows on average over runs and test sets, with as many "
        "evaluations and cases: crossed bootstrap of runs and cases in which the choice of each "
        f"run stays, t for few runs; {NO_VALUE} where these runs allow none. It is symmetric and "
        "may reach below 0, where no gap can be.",
        "Selection optimism: the part of the gap that cases which did not choose do not show (the "
        "score there is taken from cases left out of bootstrap draws; the CSV has halves of the "
        "cases beside it). It is rather an upper bound, as fewer cases choose worse. Training "
        "drift: the rest, by which the run was really better at the chosen evaluation than at its "
        "end, whether it declined or its end was an unlucky moment. The two add up to the gap.",
        "By chance: the gap expected of runs that do not change at all, with as many evaluations "
        "and cases, if their scores move as those in the second half of these runs do about a "
        "straight line (normal noise, shared by the cases and not, with lag-1 correlation). A gap "
        "that is no larger needs no other explanation; runs that still rise show less than that. "
        f"{STEM}-null.csv has other numbers of evaluations, at the same spacing, and of cases.",
        "Runs: finished of started; a failed or unfinished run has no gap but stays in the count."
        + _failed(methods),
        f"Empty masks, policy {facts.policy}: {POLICIES[facts.policy].meaning}.",
        *facts.omitted,
        f"Random numbers from seed {facts.options.seed}.",
    ]
    said += facts.warnings
    single = sorted(set(values.loc[_counted(values) == 1, "label"]))
    if single:
        said.append(f"One run only, so its interval is undefined: {', '.join(single)}.")
    none = values[(_counted(values) > 1) & (values["gap"] == 0)]
    if len(none):
        where = [
            f"{r['label']} ({METRICS[r['metric']].label})"
            for r in none.drop_duplicates(["label", "metric"]).to_dict("records")
        ]
        said.append(
            "All of these runs are best at their last evaluation, which tells nothing of how large "
            f"a gap others have, so its interval is undefined: {', '.join(where)}."
        )
    present = values[_counted(values) > 0]
    unfit = sorted(set(present.loc[present["case_sd"].isna(), "label"]))
    if unfit:
        said.append(
            "No chance is given where no run has 3 evaluations in its second half and 2 cases "
            f"that count at each: {', '.join(unfit)}."
        )
    free = sorted(set(present.loc[present["case_sd"].notna() & ~present["correlated"], "label"]))
    if free:
        said.append(
            "Fewer than 5 evaluations in the second half: the noise of successive evaluations is "
            f"taken as independent, so chance is an upper bound: {', '.join(free)}."
        )
    unfinished = int(methods["unfinished"].sum())
    if unfinished:
        said.append(
            f"PARTIAL: {unfinished} unfinished run(s), marked (+…), count with the evaluations "
            "they have so far; these numbers will change."
        )
    return said


def draw(values: pd.DataFrame, chance: pd.DataFrame) -> Figure:
    """DSC of the main predictor, by setting: gaps in parts, and chance by evaluations.

    A setting of more than `TOGETHER` methods has several rows, on one scale.
    """
    values = values[(values["metric"] == "dsc") & (values["predictor"] == MAIN)]
    values = values[values["gap"].notna()]
    if values.empty:
        return blank("Optimism: no run that counts has a gap yet.")
    chance = chance[(chance["metric"] == "dsc") & (chance["predictor"] == MAIN)]
    rows = list(in_rows(values))
    palette = colours(sorted(set(values["label"])))
    widest = max(own["label"].nunique() for _, _, own in rows)
    figure = Figure(
        figsize=(max(9.6, 5.4 + 1.3 * widest), 4.2 * len(rows) + 0.9), layout="constrained"
    )
    ratio = max(1.0, 0.25 * widest)
    grid = figure.add_gridspec(len(rows), 2, width_ratios=[ratio, 1], wspace=0.06)
    scales: dict[str, Axes] = {}
    for place, (setting, title, own) in enumerate(rows):
        parts = figure.add_subplot(grid[place, 0], sharey=scales.get(setting))
        scales.setdefault(setting, parts)
        by_chance = figure.add_subplot(grid[place, 1])
        parts.set_title(literal(title, max(60, 10 * widest)), fontsize=10, loc="left")
        _draw_parts(parts, own, palette)
        here = chance[chance["setting"] == setting].merge(values[["setting", "label", "cases"]])
        top = 1.05 * here["gain"].fillna(0).max() if len(here) else 0.0
        _draw_chance(by_chance, own, here, palette, top or 1.0)
    _explain(figure)
    return figure


def _row(
    runs: Sequence[Evaluated], metric: str, seed: int
) -> tuple[dict[str, object], pd.DataFrame]:
    """The numbers of one method in one metric, and the table of chance."""
    scale = 100.0 if metric == "dsc" else 1.0
    matrices = [scale * run.values for run in runs]
    lengths = [len(values) for values in matrices]
    cases = matrices[0].shape[1] if matrices else 0
    rng = np.random.default_rng([seed, _SPLITS])
    means = mean_split([split(values, rng) for values in matrices])
    interval = gap_interval(matrices, np.random.default_rng([seed, _GAPS]))
    noise = fit_noise([scale * late(run) for run in runs])
    chance = _chance(noise, lengths, cases, seed)
    like_these = chance[chance["cases"] == cases].set_index("evaluations")
    expected = like_these.reindex(lengths)[["gain", "optimism"]].mean(skipna=False)
    sign = 1 if METRICS[metric].higher_is_better else -1
    found = noise or Noise(nan, nan, nan, nan, correlated=False)
    return {
        "fewest_evaluations": min(lengths, default=0),
        "evaluations": max(lengths, default=0),
        "cases": cases,
        "last": sign * means.last,
        "best": sign * (means.last + means.gap),
        "gap": means.gap,
        "low": interval.low,
        "high": interval.high,
        "optimism": means.optimism,
        "drift": means.drift,
        "optimism_halves": means.optimism_halves,
        "drift_halves": means.drift_halves,
        "null_gain": float(expected["gain"]),
        "null_optimism": float(expected["optimism"]),
        "shared_sd": found.shared,
        "case_sd": found.case,
        "shared_correlation": found.shared_correlation,
        "case_correlation": found.case_correlation,
        "correlated": found.correlated,
    }, chance


def _chance(noise: Noise | None, lengths: Sequence[int], cases: int, seed: int) -> pd.DataFrame:
    if noise is None:
        return null_gain(Noise(0, 0, 0, 0, False), (1,), (1,), np.random.default_rng()).iloc[:0]
    rng = np.random.default_rng([seed, _NULL])
    return null_gain(noise, sorted({*EVALUATIONS, *lengths}), sorted({*CASES, cases}), rng)


def _cells(row: Mapping[Hashable, Any]) -> list[str]:
    few, many = row["fewest_evaluations"], row["evaluations"]
    known = row["low"] == row["low"]
    return [
        _runs(row),
        NO_VALUE if not many else str(many) if few == many else f"{few} to {many}",
        str(row["cases"]) if row["cases"] else NO_VALUE,
        *(number(row[name]) for name in ("last", "best")),
        _signed(row["gap"]),
        f"[{row['low']:+.2f}, {row['high']:+.2f}]" if known else NO_VALUE,
        *(_signed(row[name]) for name in ("optimism", "drift", "null_gain", "null_optimism")),
    ]


def _runs(row: Mapping[Hashable, Any]) -> str:
    begun = f" (+{row['unfinished']})" if row["unfinished"] else ""
    return f"{row['finished']}/{row['started']}{begun}"


def _signed(value: float) -> str:
    """With its sign, which zero has not."""
    return number(round(value, 2) + 0.0, "+.2f")


def _counted(values: pd.DataFrame) -> pd.Series:
    return values["finished"] + values["unfinished"]


def _failed(methods: pd.DataFrame) -> str:
    which = [f"{r['label']} {r['failed']}" for r in methods.to_dict("records") if r["failed"]]
    return f" Failed: {', '.join(which)}." if which else " None failed."


def _draw_parts(axes: Axes, values: pd.DataFrame, palette: Mapping[str, str]) -> None:
    plain(axes)
    for place, row in enumerate(values.to_dict("records")):
        colour = palette[row["label"]]
        above = row["optimism"] if row["drift"] >= 0 else 0
        axes.bar(place, row["optimism"], 0.5, color=colour, gid="optimism")
        axes.bar(
            place, row["drift"], 0.5, bottom=above, color=(colour, 0.3), edgecolor=colour,
            linewidth=0.8, gid="drift",
        )  # fmt: skip
        if row["low"] == row["low"]:
            reach = [[row["gap"] - row["low"]], [row["high"] - row["gap"]]]
            axes.errorbar(place, row["gap"], reach, color="black", capsize=5, linewidth=1.2)
        axes.scatter(place, row["gap"], s=90, marker="_", color="black", zorder=4, gid="gap")
        axes.scatter(
            place + 0.34, row["null_gain"], s=34, marker="D", facecolor="white",
            edgecolor="black", linewidth=1.1, zorder=4, gid="chance",
        )  # fmt: skip
    names = [f"{literal(row['label'], 18)}\n{_runs(row)} runs" for row in values.to_dict("records")]
    axes.set_xticks(range(len(values)), names)
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_ylabel("DSC points beyond the last checkpoint", fontsize=9)


def _draw_chance(
    axes: Axes, values: pd.DataFrame, chance: pd.DataFrame, palette: Mapping[str, str], top: float
) -> None:
    plain(axes)
    handles = []
    for row in values.to_dict("records"):
        own = chance[(chance["label"] == row["label"]) & (chance["cases"] == row["cases"])]
        if own.empty:
            continue
        colour = palette[row["label"]]
        axes.plot(own["evaluations"], own["gain"], color=colour, linewidth=2, gid=row["label"])
        axes.plot(own["evaluations"], own["optimism"], color=colour, linewidth=1.2, linestyle=":")
        name = literal(row["label"], 24)
        handles.append(Line2D([], [], color=colour, linewidth=2, label=name))
        here = own[own["evaluations"] == row["evaluations"]]
        axes.scatter(
            here["evaluations"], here["gain"], s=34, marker="D", facecolor="white",
            edgecolor=colour, linewidth=1.4, zorder=3,
        )  # fmt: skip
    counts = sorted({int(n) for n in values["cases"]})
    how_many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    axes.set_xscale("log")
    axes.set_xticks(EVALUATIONS, [str(count) for count in EVALUATIONS])
    axes.minorticks_off()
    axes.set_ylim(0, top)
    axes.set_xlabel("evaluations to choose from", fontsize=9)
    axes.set_ylabel("gap by chance, DSC points", fontsize=9)
    axes.set_title(
        literal(f"By chance: runs that do not change, {how_many} cases", 60),
        fontsize=10,
        loc="left",
    )
    axes.legend(
        handles=handles, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1),
        borderaxespad=0,
    )  # fmt: skip


def _explain(figure: Figure) -> None:
    handles = [
        Patch(color=GREY, label="selection optimism"),
        Patch(facecolor=(GREY, 0.3), edgecolor=GREY, label="training drift"),
        Line2D([], [], color="black", marker="_", markersize=9, linewidth=1.2,
               label="best − last with 95 % interval"),
        Line2D([], [], color="black", marker="D", markerfacecolor="white", linestyle="",
               markersize=6, label="gap by chance"),
        Line2D([], [], color=GREY, linewidth=1.2, linestyle=":", label="selection optimism in it"),
    ]  # fmt: skip
    legend(figure, handles)
