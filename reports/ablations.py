"""What TCSeg loses without one of its parts: the TCSeg paper's Tables 2 and 3.

A run is an ablation when hyperparameters of a study are switched off; whatever else it changes is
its base, and bases are never compared with each other.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, Final

import pandas as pd

from protocols.statistics import STATISTICS
from protocols.table import with_identity
from reports.facts import MAIN, Facts
from reports.grid import (
    Block,
    blocks,
    common_notes,
    options_text,
    protocol_note,
    records,
    runs_text,
    setting_notes,
    text,
    value,
)
from reports.render import Section, Sheet, write_sheets
from reports.table import file_name, number

METHOD: Final = "tcseg"
NOT_RUN: Final = "not run"


@dataclass(frozen=True, eq=False)
class Study:
    """A table of ablations.

    switches: hyperparameters that are on by default, and what stands for each being off.
    rows:     names by the switches that are off, in order; others found in a store follow.
    """

    name: str
    title: str
    switches: Mapping[str, str]
    rows: Mapping[frozenset[str], str]

    def row_name(self, off: frozenset[str]) -> str:
        """What a row is called."""
        parts = [part for switch, part in self.switches.items() if switch in off]
        return self.rows.get(off) or f"w/o {', '.join(parts)}"


AXES: Final = Study(
    "ablation-axes",
    "Ablation of the axes of reliability",
    {"use_uncertainty": "U(v)", "use_confidence": "C(v)"},
    {
        frozenset({"use_uncertainty"}): "w/o U(v)",
        frozenset({"use_confidence"}): "w/o C(v)",
        frozenset(): "dual-axis",
    },
)

SPACES: Final = Study(
    "ablation-spaces",
    "Ablation of the spaces of calibration",
    {"use_probability": "prob.", "use_image": "img.", "use_feature": "feat."},
    {
        frozenset({"use_probability", "use_feature", "use_image"}): "only sup",
        frozenset({"use_probability"}): "w/o prob.",
        frozenset({"use_image"}): "w/o img.",
        frozenset({"use_feature"}): "w/o feat.",
        frozenset(): "full",
    },
)


@dataclass(frozen=True)
class Ablation:
    """One base of a study in a block, with the rows of its summary by what is off."""

    block: Block
    heading: str
    base: Mapping[str, Any]
    version: int
    found: Mapping[frozenset[str], Mapping[str, Mapping[str, Any]]]
    """By switches that are off and setting."""

    @property
    def settings(self) -> list[str]:
        """Those of the block in which any row was run."""
        return [s for s in self.block.settings if any(s in rows for rows in self.found.values())]


def write_study(study: Study, facts: Facts, out: Path) -> list[Path]:
    """Write `<study>-<protocol>.md`, `.csv` and `.tex`; return the paths."""
    stem = f"{study.name}-{file_name(facts.rule.expression)}"
    return write_sheets(sheets(study, facts), flat(study, facts), out, stem)


def ablations(study: Study, facts: Facts) -> list[Ablation]:
    """Every base of which something was switched off; else the unchanged method, if it was run."""
    found = [
        _ablation(study, block, rows)
        for block in blocks(facts, [facts.rule])
        for rows in _by_base(study, block.rows[block.rows["method"] == METHOD])
    ]
    return [a for a in found if any(a.found)] or [a for a in found if not a.base]


def sheets(study: Study, facts: Facts) -> list[Sheet]:
    """A sheet per base, rows by settings: median DSC, and how much less than in full."""
    found = ablations(study, facts)
    if found:
        return [_sheet(study, ablation, facts) for ablation in found]
    off = next(iter(study.switches))
    note = f"No ablation to show: this store holds no run of {METHOD} with its defaults."
    command = f"bench run --method {METHOD} --set {METHOD}.{off}=false"
    return [Sheet(study.title, (("", "method"),), (), (note,), commands=(command,))]


def flat(study: Study, facts: Facts) -> pd.DataFrame:
    """For other programs: one row per base, row and setting; NaN and 0 runs where not run."""
    columns = ["profile_and_recipe", "base", "version", "row", "setting", "protocol", "policy"]
    columns += ["finished", "started", "dsc_percent_median", "dsc_percent_minus_full"]
    rows = []
    for ablation in ablations(study, facts):
        for off in _row_keys(study, ablation):
            for setting in ablation.settings:
                row = ablation.found.get(off, {}).get(setting)
                lead = [ablation.block.heading, options_text(ablation.base), ablation.version]
                lead += [study.row_name(off), setting, facts.rule.expression, facts.policy]
                runs = [0, 0] if row is None else [row["finished"], row["started"]]
                rows.append([*lead, *runs, value(row, "dsc_median"), _loss(ablation, off, setting)])
    return pd.DataFrame(rows, columns=columns)


def _by_base(study: Study, rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows that differ in nothing but the switches of the study; the plainest base first."""
    keys = [
        json.dumps([len(changed), changed, version, kind, _without(study, options)], sort_keys=True)
        for changed, version, kind, options in zip(
            (_without(study, changed) for changed in rows["changed"]),
            rows["version"],
            rows["kind"],
            rows["hyperparameters"],
            strict=True,
        )
    ]
    return [group for _, group in rows.groupby(pd.Series(keys, index=rows.index, dtype=object))]


def _without(study: Study, options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in study.switches}


def _ablation(study: Study, block: Block, rows: pd.DataFrame) -> Ablation:
    found: dict[frozenset[str], dict[str, Mapping[str, Any]]] = {}
    for row in records(rows):
        off = frozenset(k for k in study.switches if row["hyperparameters"].get(k) is False)
        found.setdefault(off, {})[row["setting"]] = row
    first = rows.iloc[0]
    base = _without(study, first["changed"])
    heading = f"{METHOD}{f' ({options_text(base)})' if base else ''} v{first['version']}"
    return Ablation(block, heading, base, int(first["version"]), found)


def _row_keys(study: Study, ablation: Ablation) -> list[frozenset[str]]:
    """Those of the study with the full method last, after others that the store holds."""
    others = sorted((off for off in ablation.found if off not in study.rows), key=sorted)
    *parts, full = study.rows
    return [*parts, *others, full]


def _loss(ablation: Ablation, off: frozenset[str], setting: str) -> float:
    """Median DSC in percent minus that of the full method; NaN if either lacks."""
    if not off:
        return nan
    full = ablation.found.get(frozenset(), {}).get(setting)
    return value(ablation.found.get(off, {}).get(setting), "dsc_median") - value(full, "dsc_median")


def _sheet(study: Study, ablation: Ablation, facts: Facts) -> Sheet:
    keys, settings = _row_keys(study, ablation), ablation.settings
    columns = [("", "method")]
    for setting in settings:
        short = ablation.block.settings[setting]
        columns += [(short, "DSC % ↑"), (short, "− full"), (short, "runs")]
    several = len(settings) > 1
    if several:
        columns.append(("mean", "DSC % ↑"))
    rows = []
    for off in keys:
        cells = [ablation.found.get(off, {}).get(setting) for setting in settings]
        line = [study.row_name(off)]
        for setting, cell in zip(settings, cells, strict=True):
            loss = number(_loss(ablation, off, setting), "+.2f")
            line += [NOT_RUN if cell is None else text(cell, "dsc_median"), loss, runs_text(cell)]
        if several:
            line.append(number(sum(value(c, "dsc_median") for c in cells) / len(cells)))
        rows.append(tuple(line))
    title = f"{study.title}: {ablation.block.heading}"
    commands = _commands(ablation, keys, facts.runs)
    notes = _notes(facts, ablation, several, bool(commands))
    section = Section(ablation.heading, tuple(rows))
    return Sheet(title, tuple(columns), (section,), tuple(notes), commands=commands)


def _notes(facts: Facts, ablation: Ablation, several: bool, lacking: bool) -> list[str]:
    rows = pd.DataFrame([row for cells in ablation.found.values() for row in cells.values()])
    said = [
        protocol_note(facts.rule, rows),
        f"DSC: the median {STATISTICS['median'].meaning}. − full: minus the median of the full "
        "method; that it differs from zero is no test of significance.",
    ]
    if several:
        said.append("Mean: of the medians over all settings; none where one of them is lacking.")
    said += [*common_notes(facts, rows), *setting_notes(ablation.block)]
    if not any(ablation.found):
        said.insert(0, "No ablation of this study has been run here.")
    if lacking:
        said.append(
            f"“{NOT_RUN}”: these commands would make the runs (a dataset that is a folder is "
            "given by its path, and the store by --store)."
        )
    return said


def _commands(
    ablation: Ablation, keys: Iterable[frozenset[str]], runs: pd.DataFrame
) -> tuple[str, ...]:
    """One per setting and row that the store lacks, for the seeds that the setting has.

    None for a version of the method that has a later one, since a command would run that, nor for
    rescored runs, which `bench rescore` makes of others.
    """
    if any("rescored" in json.loads(spec) for spec in runs["spec"]):
        return ()
    if ablation.version < runs.loc[runs["method"] == METHOD, "version"].max():
        return ()
    runs = with_identity(runs)
    commands = []
    for setting in ablation.settings:
        present = {off: rows[setting] for off, rows in ablation.found.items() if setting in rows}
        like = present[min(present, key=sorted)]
        alike = runs[runs["identity"] == like["identity"]]
        commands += [_command(ablation.base, off, alike) for off in keys if off not in present]
    return tuple(commands)


def _command(base: Mapping[str, Any], off: frozenset[str], alike: pd.DataFrame) -> str:
    """`bench run` for a row: as other runs of the setting, but for the switches."""
    run = records(alike)[0]
    profile, *profile_changes = _parts(run["profile"])
    recipe, *recipe_changes = _parts(run["recipe"])
    dataset = json.loads(run["spec"])["dataset"]["name"]
    changes = [f"{METHOD}.{k}={_plain(v)}" for k, v in sorted(base.items())]
    changes += [f"{METHOD}.{switch}=false" for switch in sorted(off)]
    changes += [f"profile.{change}" for change in profile_changes]
    changes += [f"recipe.{change}" for change in recipe_changes]
    words = ["bench", "run", "--method", METHOD, "--dataset", str(dataset)]
    words += ["--labelled", str(run["labelled"]), "--seeds", _seeds(alike["seed"])]
    words += ["--profile", profile, "--recipe", recipe]
    if run["predictors"] != MAIN:
        words += ["--predictors", str(run["predictors"])]
    for change in changes:
        words += ["--set", change]
    return shlex.join(words)


def _seeds(seeds: Iterable[int]) -> str:
    """As `--seeds` takes them: how many, or which.

    >>> _seeds([2, 0, 1]), _seeds([7, 1]), _seeds([3])
    ('3', '1,7', '3,')
    """
    which = sorted(set(seeds))
    if which == list(range(len(which))):
        return str(len(which))
    return ",".join(map(str, which)) + ("," if len(which) == 1 else "")


def _parts(label: str) -> list[str]:
    """Name and changes of a profile or recipe as tables show it, `mini+steps=500`."""
    return re.split(r"\+(?=[a-z_]+=)", label)


def _plain(option: object) -> str:
    return option if isinstance(option, str) else json.dumps(option)
