"""The store's numbers beside those that papers print, with a mark for all that forbids comparing.

A difference is written only between the same method and statistic, and only where no mark of
`FORBIDS` stands.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from math import isinf, nan
from pathlib import Path
from typing import Any, Final

import pandas as pd

from protocols.audit import audit
from protocols.policies import POLICIES
from protocols.rules import Best, Last, Rule, Val
from reports.facts import MAIN, Facts
from reports.render import FAILURE, Section, Sheet, write_sheets
from reports.table import NO_VALUE, file_name, number
from results.errors import UserError
from results.published import SPLIT_HERE, published

HERE: Final = "this store"

REFUSED: Final = "refused"

MARKS: Final = {
    "P": "the printed protocol is not the one of this table",
    "R": "the released trainer chooses the checkpoint in another way than this table",
    "Q": "neither print nor released code tells how the one checkpoint was chosen",
    "S": "other cases: the split is not that of the dataset here",
    "T": "on which split is not known",
    "V": "another number of unlabelled volumes",
    "C": "the runs here are not on the full published set of cases: a partial or altered copy, or "
    "another number of test cases",
    "F": "the runs here are not of profile paper",
    "E": "empty masks count in another way here than in the code of the papers",
    "U": "distances in another unit than here: as computed by the released code, else as printed",
    "N": "of how many runs is not told; compared with the median here",
    "X": "cannot be with the other numbers of its source: see `bench audit`",
}
"""What stands beside a printed number."""

FORBIDS: Final = frozenset("PRQSVCFEX")
"""Marks with which no difference is written."""

POLICY: Final = "tcseg"
"""For empty masks: that of the papers' code."""

TEST_CASES: Final = {"la": 20, "pancreas": 20, "brats2019": 60}
"""Of the split that a complete dataset has here."""

_OURS: Final = {
    "single": "median",
    "median": "median",
    "maximum": "best_run",
    "best_run": "best_run",
    "mean": "mean",
}
"""Which statistic of ours a printed one is compared with."""

_NUMBERS: Final = ("dsc", "asd", "hd95")
_KEPT: Final = (
    *("source", "table", "method", "reference", "labelled", "unlabelled", "statistic"),
    *("protocol_printed", "protocol_released", "evidence", "split", "seeds", "note"),
)
_PRINTED_ROW: Final = ["source", "table", "row"]
_UNITS: Final = {"voxel=1mm": {"mm", "voxel"}}


def write_published(facts: Facts, out: Path) -> list[Path]:
    """Write `published-<protocol>.md`, `.csv` and `.tex`; return the paths."""
    rows = beside(facts, published())
    stem = "published-" + file_name(facts.rule.expression)
    return write_sheets([sheet(facts, rows)], rows, out, stem)


def show_published(facts: Facts) -> list[Sheet]:
    """For a terminal."""
    return [sheet(facts, beside(facts, published()))]


def beside(facts: Facts, printed: pd.DataFrame) -> pd.DataFrame:
    """Rows of the store and of papers, by setting, the highest DSC first.

    Args:
        facts: of the store.
        printed: as `results.published.published` gives it.

    Returns:
        What identifies a row; `statistic`, `dsc_percent` (with `std`), `asd`, `hd95`, `unit`
        (of the distances, in papers as printed), `marks`, `policy` (of the store's numbers);
        `ours_minus_printed` in DSC points for methods of the store, "refused" where a mark forbids
        it.

    Raises:
        UserError: nothing is printed for any setting of the store.
    """
    known = printed[printed["metric"].isin(_NUMBERS)]
    accused = _accused(printed)
    frames = []
    for _, ours in facts.summary.groupby("setting", sort=False):
        theirs = _rows_of(known, ours.iloc[0].to_dict(), set(ours["label"]), accused)
        if theirs:
            marked = [_marked(row, ours, facts) for row in theirs]
            rows = pd.DataFrame([*_own(ours, facts.rule), *marked]).assign(policy=facts.policy)
            keys = ["dsc_percent", "method", "source", "table", "statistic"]
            frames.append(rows.sort_values(keys, ascending=[False, True, True, True, True]))
    if not frames:
        have = "; ".join(dict.fromkeys(facts.summary["setting"]))
        settings = known[known["labelled"].notna()].drop_duplicates(["dataset", "labelled"])
        there = ", ".join(f"{d} {n}" for d, n in settings[["dataset", "labelled"]].to_numpy())
        raise UserError(
            f"no number is published for what {facts.store.path} holds ({have}); there are some "
            f"for these datasets and numbers of labelled volumes: {there}"
        )
    return pd.concat(frames, ignore_index=True)


def sheet(facts: Facts, rows: pd.DataFrame) -> Sheet:
    """The rows as text, a section per setting."""
    columns = [("", name) for name in ("method", "from", "statistic", "runs")]
    columns += [("checkpoint", "printed"), ("checkpoint", "released"), ("", "marks")]
    left = len(columns)
    columns += [("DSC % ↑", "value"), ("DSC % ↑", "ours − printed")]
    columns += [("ASD ↓", "value"), ("HD95 ↓", "value")]
    sections = []
    for setting, group in rows.groupby("setting", sort=False):
        unit = group.loc[group["source"] == HERE, "unit"].iloc[0]
        heading = f"{setting}; distances here in {unit}, in papers as they print them"
        cells = tuple(_cells(row) for row in group.to_dict("records"))
        sections.append(Section(heading, cells))
    title = f"Published numbers beside ours, protocol {facts.rule.expression}"
    return Sheet(title, tuple(columns), tuple(sections), tuple(_notes(facts, rows)), left)


def protocol_of(rule: Rule) -> str:
    """A rule in the words of `results.published.PROTOCOLS`, else as users write it.

    Which of equal evaluations counts makes no other protocol; any other parameter does.
    """
    if isinstance(rule, Best | Val):
        rule = replace(rule, tie=Best().tie)
    words = {
        Last(): "last",
        Best(): "best",
        Best(split="val"): "best(split=val)",
        Val(): "best(split=val)",
    }
    return words.get(rule, rule.expression)


def marks(
    row: Mapping[str, Any], ours: Mapping[Hashable, Any], rule: Rule, policy: str = POLICY
) -> str:
    """The letters of `MARKS` that a printed row gets beside a setting of the store."""
    here = protocol_of(rule)
    printed, released = row["protocol_printed"], row["protocol_released"]
    # A paper that prints one number for both chose it on validation cases, or not at all.
    printed_here = {"last", "best", "best(split=val)"} if printed == "both" else {printed}
    dataset = str(ours["dataset"]).partition(" (")[0]
    unit = row["unit_as_computed"] or row["unit"]
    found = {
        "P": printed not in ("", "unknown") and here not in printed_here,
        "R": released not in ("", "unclear", here),
        "Q": released in ("", "unclear") and printed in ("", "unknown", "both"),
        "S": row["split"] not in ("", SPLIT_HERE[dataset]),
        "T": row["split"] == "",
        "V": pd.notna(row["unlabelled"]) and row["unlabelled"] != ours["unlabelled"],
        "C": dataset != ours["dataset"] or ours["cases"] not in (0, TEST_CASES[dataset]),
        "F": ours["profile"] != "paper",
        "E": policy != POLICY,
        "U": unit != "" and ours["unit"] not in _UNITS.get(unit, {unit}),
        "N": row["statistic"] == "single",
        "X": row["accused"],
    }
    return "".join(letter for letter, stands in found.items() if stands)


def _accused(printed: pd.DataFrame) -> list[dict[str, Any]]:
    """What identifies the numbers that cannot be: columns and values, `statistic` among them."""
    return [
        {**group.key, "statistic": finding.statistic}
        for group in audit(printed)
        for finding in group.findings
    ]


def _rows_of(
    known: pd.DataFrame,
    ours: Mapping[Hashable, Any],
    labels: set[str],
    accused: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What papers print for a setting; the same number of several tables once."""
    dataset = str(ours["dataset"]).partition(" (")[0]
    here = (known["dataset"] == dataset) & (known["labelled"] == ours["labelled"]).fillna(False)
    # A variant of a method is of use only beside the same variant.
    plain = ~known["method"].str.contains("(", regex=False) | known["method"].isin(labels)
    rows = [_joined(group, accused) for _, group in known[here & plain].groupby(_PRINTED_ROW)]
    by_number: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = tuple(row[n] for n in ("source", "method", "reference", "statistic", "dsc_percent"))
        by_number.setdefault(key, []).append(row)
    return [row for same in by_number.values() for row in _once(same)]


def _joined(group: pd.DataFrame, accused: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One printed row: its metrics, and a standard deviation with the mean."""
    lines = {(r["metric"], r["statistic"]): r for r in group.to_dict("records")}
    dsc = [r for (metric, name), r in lines.items() if metric == "dsc" and name in _OURS]
    first = (dsc or list(lines.values()))[0]
    spread = next((r for (m, s), r in lines.items() if m == "dsc" and s not in _OURS), None)
    distances = {m: r for (m, _), r in lines.items() if m != "dsc"}
    unit = next(iter(distances.values()), {"unit": "", "unit_as_computed": ""})
    return {
        **{name: first[name] for name in _KEPT},
        "dsc_percent": dsc[0]["value"] if dsc else nan,
        "std": nan if spread is None else spread["value"],
        **{m: distances[m]["value"] if m in distances else nan for m in ("asd", "hd95")},
        "unit": unit["unit"],
        "unit_as_computed": unit["unit_as_computed"],
        "accused": any(_is(row, key) for row in lines.values() for key in accused),
    }


def _is(row: Mapping[Hashable, Any], key: Mapping[str, Any]) -> bool:
    return all(pd.isna(row[n]) if v is None else row[n] == v for n, v in key.items())


def _once(same: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One number of several tables once for each protocol that is printed, with most metrics."""
    printed = {row["protocol_printed"] for row in same}
    if "both" in printed:
        printed = {"both"}
    elif len(printed) > 1:
        printed -= {"", "unknown"}
    tables = {row["table"] for row in same}
    kept = []
    for protocol in sorted(printed):
        rows = [row for row in same if row["protocol_printed"] == protocol]
        fullest = max(rows, key=lambda row: sum(row[m] == row[m] for m in _NUMBERS[1:]))
        where = tables if len(printed) == 1 else {row["table"] for row in rows}
        kept.append({**fullest, "table": ", ".join(sorted(where))})
    return kept


def _marked(row: Mapping[str, Any], ours: pd.DataFrame, facts: Facts) -> dict[str, Any]:
    first = ours.iloc[0].to_dict()
    letters = marks(row, first, facts.rule, facts.policy)
    mine = ours[(ours["label"] == row["method"]) & (ours["predictor"] == MAIN)]
    difference: float | str = nan
    if len(mine) and row["statistic"] in _OURS:
        value = 100 * mine.iloc[0][f"dsc_{_OURS[row['statistic']]}"]
        difference = FAILURE if isinf(value) else value - row["dsc_percent"]
        difference = REFUSED if set(letters) & FORBIDS else difference
    rest = {k: v for k, v in row.items() if k not in ("accused", "seeds")}
    runs = "" if pd.isna(row["seeds"]) else str(row["seeds"])
    place = {name: first[name] for name in ("setting", "dataset")}
    return {**place, **rest, "runs": runs, "marks": letters, "ours_minus_printed": difference}


def _own(ours: pd.DataFrame, rule: Rule) -> list[dict[str, Any]]:
    """The store's rows of a setting in the shape of printed ones."""
    rows = []
    for row in ours.to_dict("records"):
        statistics = {"median": "median"}
        if row["counted"] > 1:
            statistics |= {"maximum": "best_run", "mean": "mean"}
        for name, statistic in statistics.items():
            method = (
                row["label"] if row["predictor"] == MAIN else f"{row['label']} [{row['predictor']}]"
            )
            rows.append(
                {
                    **{n: row[n] for n in ("setting", "dataset", "labelled", "unlabelled", "unit")},
                    "source": HERE,
                    "table": "",
                    "method": method,
                    "reference": "",
                    "statistic": name,
                    "protocol_printed": protocol_of(rule),
                    "protocol_released": "",
                    "evidence": "",
                    "split": "",
                    "note": "",
                    "dsc_percent": 100 * row[f"dsc_{statistic}"],
                    "std": 100 * row["dsc_std"] if name == "mean" else nan,
                    "asd": row[f"asd_{statistic}"],
                    "hd95": row[f"hd95_{statistic}"],
                    "unit_as_computed": row["unit"],
                    "runs": str(row["counted"]),
                    "marks": "",
                    "ours_minus_printed": nan,
                }
            )
    return rows


def _cells(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    place = HERE if row["source"] == HERE else f"{row['source']}, {_tables(row['table'])}"
    reference = f" ({row['reference']})" if row["reference"] else ""
    difference = row["ours_minus_printed"]
    value = number(row["dsc_percent"])
    return (
        f"{row['method']}{reference}",
        place,
        row["statistic"],
        row["runs"] or "?",
        row["protocol_printed"] or "unknown",
        row["protocol_released"] or NO_VALUE,
        " ".join(row["marks"]),
        value if row["std"] != row["std"] else f"{value} ± {number(row['std'])}",
        difference if isinstance(difference, str) else number(difference, "+.2f"),
        number(row["asd"]),
        number(row["hd95"]),
    )


def _tables(names: str) -> str:
    return names if "fig" in names else f"table{'s' if ', ' in names else ''} {names}"


def _notes(facts: Facts, rows: pd.DataFrame) -> list[str]:
    here = protocol_of(facts.rule)
    said = [
        f"Protocol {facts.rule.expression}: {facts.rule.meaning}.",
        "Checkpoint: how it was chosen, as the paper prints it and as the released trainer does "
        "it (the file is in the .csv); best: on the very cases that are reported; both: one "
        "number is printed for last and best; unclear: the code leaves the choice open.",
        f"Ours − printed: DSC points, of the same method and statistic; “{REFUSED}” where one of "
        f"{', '.join(sorted(FORBIDS))} stands.",
    ]
    used = {letter for letters in rows["marks"] for letter in letters}
    said += [f"{letter}: {meaning}." for letter, meaning in MARKS.items() if letter in used]
    said += [
        "Single: one number, of how many runs is not told. A paper's maximum: its distances are "
        "those of the run with the highest DSC, as here.",
        "Training length, batch and augmentation differ between papers, and from here, without a "
        "mark.",
        f"Empty masks here, policy {facts.policy}: {POLICIES[facts.policy].meaning}.",
        *facts.omitted,
    ]
    said += facts.warnings
    if here not in ("last", "best", "best(split=val)"):
        said.append(f"No published number is made under protocol {facts.rule.expression}.")
    silent = [s for s in dict.fromkeys(facts.summary["setting"]) if s not in set(rows["setting"])]
    if silent:
        said.append(f"Nothing is published for: {'; '.join(silent)}.")
    return said
