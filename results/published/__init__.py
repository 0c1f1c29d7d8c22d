"""Numbers printed in papers, as rows with a source. One CSV file a table; this is their schema.

The same form, with fewer columns, is what users write down for `bench audit`: only the columns
marked `needed` below, in any order. `protocol` may stand for `protocol_printed` and `n` for
`seeds`. Where `source` is missing, the name of the file is the source.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from results.errors import UserError
from results.lookup import unknown

FOLDER: Final = Path(__file__).parent
"""Where the packaged tables lie."""

MOST_RUNS: Final = 1000

PROTOCOLS: Final = (
    "last",
    "best",
    "both",
    "best(split=val)",
    "best(split=train)",
    "unclear",
    "unknown",
)
"""`best` is chosen on the reported cases; `both` is printed where one number stands for last and
best; `unclear`: the released code leaves the choice open; `unknown`: nothing is printed."""

STATISTICS: Final = (
    "single",
    "median",
    "maximum",
    "minimum",
    "mean",
    "best_run",
    "std",
    "std_sample",
    "std_population",
    "standard_error",
    "plus_minus",
)
"""`single`: one number, of how many runs is not told. `best_run`: of the run with the highest DSC.
`std`: n - 1 or n is not told. `plus_minus`: a number after ± without any word."""

METRICS: Final = (
    "dsc",
    "jaccard",
    "asd",
    "hd95",
    "parameters",
    "train_time",
    "test_time",
    "memory",
)

PERCENTAGES: Final = ("dsc", "jaccard")

UNITS: Final = ("%", "mm", "voxel", "voxel=1mm", "M", "s/step", "s/case", "GB")
"""`voxel=1mm`: computed in voxels, whose edges are 1 mm."""

SPLITS: Final[Mapping[str, str]] = {
    "la/uamt": "UA-MT's 80 / 20",
    "la/mcf-5fold": "MCF's five folds",
    "pancreas/mcnet": "MC-Net's 62 / 20 of 82 scans",
    "pancreas/ccnet": "CC-Net's 60 / 20 of 80 scans",
    "pancreas/coranet": "CoraNet's 62 / 18 of 80 scans, other preprocessing",
    "pancreas/mcf-4fold": "MCF's four folds",
    "pancreas/aua": "AUA's 60 / 20 of 80 scans, own order",
    "brats2019/ssl4mis": "SSL4MIS's 250 / 25 / 60",
}
"""Which cases are trained and tested on, by name."""

SPLIT_HERE: Final[Mapping[str, str]] = {
    "la": "la/uamt",
    "pancreas": "pancreas/mcnet",
    "brats2019": "brats2019/ssl4mis",
}
"""The split of a complete dataset of this harness."""


def _text(text: str) -> str:
    return text


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError("not a whole number")
    return int(text)


def _runs(text: str) -> int:
    n = _count(text)
    if not 1 <= n <= MOST_RUNS:
        raise ValueError(f"not between 1 and {MOST_RUNS}")
    return n


def _number(text: str) -> float:
    if not re.fullmatch(r"-?\d{1,15}(\.\d{1,15})?", text):
        raise ValueError("not a plain decimal number as 90.28")
    return float(text)


@dataclass(frozen=True)
class Column:
    """One column of a CSV file.

    parse:   text of a cell, not empty -> value; raises ValueError with what it is not.
    needed:  whether every table must have it.
    empty:   whether a cell of it may be empty; where it may not, it is needed.
    allowed: the only values; none for any.
    """

    name: str
    meaning: str
    parse: Callable[[str], Any] = _text
    needed: bool = False
    empty: bool = True
    allowed: tuple[str, ...] = ()


COLUMNS: Final = (
    Column("source", "paper that prints the number, by a short name"),
    Column("table", "table or figure there"),
    Column("row", "place of the row in the table, from 1", _count),
    Column("method", "name here, with options as in tables here", needed=True, empty=False),
    Column("method_printed", "name in the paper"),
    Column("reference", "authors and year as printed beside the name"),
    Column("dataset", "name here; `all` for a mean over settings", needed=True, empty=False),
    Column("labelled", "labelled volumes; empty where none is meant", _count, needed=True),
    Column("unlabelled", "unlabelled volumes", _count),
    Column("metric", "what is measured", needed=True, empty=False, allowed=METRICS),
    Column("statistic", "of the runs", needed=True, empty=False, allowed=STATISTICS),
    Column("value", "as printed, with all its decimals", _number, needed=True, empty=False),
    Column("unit", "as printed", allowed=UNITS),
    Column("unit_as_computed", "by the released code; empty where none was read", allowed=UNITS),
    Column("protocol_printed", "how the checkpoint was chosen, by the paper", allowed=PROTOCOLS),
    Column("protocol_released", "the same, by the released trainer", allowed=PROTOCOLS),
    Column("evidence", "repository, file and lines that show it"),
    Column("split", "which cases, by name; empty where not known", allowed=tuple(SPLITS)),
    Column("seeds", "number of runs; empty where not known", _runs),
    Column("note", "what else a reader must know"),
)

ALIASES: Final = {"protocol": "protocol_printed", "n": "seeds"}

_BY_NAME: Final = {c.name: c for c in COLUMNS}


def published() -> pd.DataFrame:
    """All packaged tables; see `read_tables`."""
    return read_tables([FOLDER])


def read_tables(paths: Iterable[Path]) -> pd.DataFrame:
    """Read CSV files.

    Args:
        paths: files, or folders whose `.csv` files are meant.

    Returns:
        One row per number, in order of paths: every column of `COLUMNS` (text, "" where empty;
        `row`, `labelled`, `unlabelled` and `seeds` as Int64, `value` as float64), and `digits`
        (decimals of the value), `file` and `line`.

    Raises:
        UserError: nothing to read, or a file that is not of this form; names file and line.
    """
    rows = [row for path in _files(paths) for row in _rows(path)]
    names = [*_BY_NAME, "digits", "file", "line"]
    table = pd.DataFrame(rows, columns=names)
    whole = {c.name: "Int64" for c in COLUMNS if c.parse in (_count, _runs)}
    return table.astype({**whole, "value": "float64"})


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(path.glob("*.csv"))
        if not inside:
            raise UserError(f"no .csv file in {path}: name files, or a folder that holds some")
        yield from inside


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = _header(path, next(reader, []))
            found = 0
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    found += 1
                    yield _row(path, reader.line_num, names, cells)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8: save it as a CSV file in UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    if not found:
        raise UserError(f"{path} holds no row under its header")


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [ALIASES.get(cell.strip(), cell.strip()) for cell in cells]
    for name in names:
        if name not in _BY_NAME:
            error = unknown("column", name, [*_BY_NAME, *ALIASES])
            raise UserError(f"{path}, line 1: {error}")
        if names.count(name) > 1:
            raise UserError(f"{path}, line 1: column {name} is there twice; keep one")
    missing = [c.name for c in COLUMNS if c.needed and c.name not in names]
    if missing:
        raise UserError(
            f"{path}, line 1: column(s) {', '.join(missing)} missing; needed are "
            f"{', '.join(c.name for c in COLUMNS if c.needed)}"
        )
    return names


def _row(path: Path, line: int, names: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(names):
        raise UserError(
            f"{path}, line {line}: {len(cells)} cells, but the header names {len(names)} columns"
        )
    given = dict(zip(names, (cell.strip() for cell in cells), strict=True))
    row: dict[str, Any] = {}
    for column in COLUMNS:
        text = given.get(column.name, "")
        row[column.name] = _parsed(path, line, column, text)
    row["source"] = row["source"] or path.name
    row["digits"] = len(given["value"].partition(".")[2])
    return {**row, "file": str(path), "line": line}


def _parsed(path: Path, line: int, column: Column, text: str) -> Any:
    where = f"{path}, line {line}: {column.name}"
    if not text:
        if not column.empty:
            raise UserError(f"{where} is empty; it is {column.meaning}")
        return "" if column.parse is _text else None
    if column.allowed and text not in column.allowed:
        raise UserError(f"{path}, line {line}: {unknown(column.name, text, column.allowed)}")
    try:
        return column.parse(text)
    except ValueError as error:
        raise UserError(f"{where} '{text}' is {error}") from None
