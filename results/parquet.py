"""Frames to Parquet bytes and back, checked against the schema. Equal frames give equal bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api import types

from results.errors import UserError
from results.schema import SCHEMA_VERSION, STATUSES, TABLES, Column

_TABLE_KEY: Final = b"bench.table"
_VERSION_KEY: Final = b"bench.schema"
_ARROW: Final = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "bytes": pa.binary(),
}
_MAY_BE_NAN: Final = {("cases", "dsc"), ("cases", "asd"), ("cases", "hd95"), ("history", "value")}


def encode(table: str, frame: pd.DataFrame) -> bytes:
    """The frame as a Parquet file.

    Raises:
        ValueError: the frame does not have the table's columns, types or values.
    """
    check(table, frame)
    arrays = [
        pa.array(_plain(frame[c.name], c), type=_ARROW[c.dtype], from_pandas=False)
        for c in TABLES[table]
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=_schema(table)),
        sink,
        version="2.6",
        data_page_version="1.0",
        # Reading a small column costs a start of the codec, which is slow for zstd: ten times the
        # rest. It is worth that only for masks.
        compression={c.name: "zstd" if c.dtype == "bytes" else "snappy" for c in TABLES[table]},
        use_dictionary=[c.name for c in TABLES[table] if c.dtype not in ("float64", "bytes")],
        row_group_size=1 << 20,
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def decode(
    table: str,
    paths: Sequence[tuple[str, Path]],
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The rows of several files, each of one run.

    Args:
        table: name of the table.
        paths: (run id, file) in the order of the rows.
        columns: which ones, or None for all.

    Returns:
        Columns in the schema's types; text is categorical but in `runs`, as millions of rows
        repeat a few words.

    Raises:
        UserError: a file that is damaged, of another table or run, or of a newer schema.
        FileNotFoundError: a file that is not there.
    """
    names = [c.name for c in TABLES[table]] if columns is None else list(columns)
    wanted = list(dict.fromkeys([*names, "run"]))
    text = [c.name for c in TABLES[table] if c.dtype == "string" and table != "runs"]
    size = max(1, -(-len(paths) // pa.cpu_count()))
    shares = [paths[start : start + size] for start in range(0, len(paths), size)]
    with ThreadPoolExecutor(pa.cpu_count()) as threads:
        # Handing over each small file by itself takes as long as opening it.
        read = threads.map(
            lambda share: [_read(table, run, path, wanted, text) for run, path in share], shares
        )
        parts = [part for parts in read for part in parts]
    empty = _schema(table).empty_table().select(wanted)
    joined = pa.concat_tables([p for p in parts if len(p)] or [_encoded(empty, text)])
    joined = joined.select(names).unify_dictionaries()
    if table == "runs":
        # Text that pandas keeps in Arrow: everything done with it goes from piece to piece.
        joined = joined.combine_chunks()
    del parts
    # Column after column, so that millions of rows are never there twice. Not into Arrow's own
    # pool: it maps huge pages, which take longer to clear than all the rest.
    frame: pd.DataFrame = joined.to_pandas(
        memory_pool=pa.system_memory_pool(), split_blocks=True, self_destruct=True
    )
    del joined
    if table == "runs":
        frame = frame.astype({c.name: c.dtype for c in TABLES[table] if c.name in names})
    return frame


def check(table: str, frame: pd.DataFrame) -> None:
    """Hold a frame against the schema.

    Raises:
        ValueError: names the table, the column and what is wrong with it.
    """
    columns = TABLES[table]
    expected = {c.name for c in columns}
    missing, extra = expected - set(frame.columns), set(frame.columns) - expected
    if missing or extra or len(frame.columns) != len(expected):
        raise ValueError(
            f"{table}: expected each of the columns {', '.join(c.name for c in columns)} once; "
            f"missing: {_listed(missing)}; not known: {_listed(extra)}"
        )
    if frame.empty:
        return
    for column in columns:
        _check_column(table, frame[column.name], column)
    if table == "cases":
        _check_statuses(frame)


def _check_column(table: str, values: pd.Series, column: Column) -> None:
    where = f"{table}.{column.name}"
    if not _fits(values, column.dtype):
        raise ValueError(f"{where}: expected {column.dtype}, not {values.dtype}")
    may_be_nan = (table, column.name) in _MAY_BE_NAN
    if column.dtype == "float64":
        if not may_be_nan and not np.isfinite(values.to_numpy(dtype=np.float64)).all():
            raise ValueError(f"{where}: NaN or infinite values, which it may not hold")
    elif values.isna().any():
        raise ValueError(f"{where}: missing values, which it may not hold")


def _fits(values: pd.Series, dtype: str) -> bool:
    if dtype == "string":
        if isinstance(values.dtype, pd.CategoricalDtype):
            return bool(types.is_string_dtype(values.cat.categories))
        return bool(types.is_string_dtype(values))
    if dtype == "bool":
        return bool(types.is_bool_dtype(values))
    if dtype == "bytes":
        return all(isinstance(value, bytes) for value in values)
    if dtype == "int64":
        return bool(types.is_integer_dtype(values))
    return bool(types.is_numeric_dtype(values)) and not types.is_bool_dtype(values)


def _check_statuses(cases: pd.DataFrame) -> None:
    unknown = set(cases["status"].unique()) - set(STATUSES)
    if unknown:
        raise ValueError(f"cases.status: {_listed(unknown)} is not one of {_listed(STATUSES)}")
    measured = cases.loc[(cases["status"] == "ok").to_numpy(), ["dsc", "asd", "hd95"]]
    if not np.isfinite(measured.to_numpy(dtype=np.float64)).all():
        raise ValueError("cases: status ok, but dsc, asd or hd95 is not a finite number")


def _schema(table: str) -> pa.Schema:
    metadata = {_TABLE_KEY: table.encode(), _VERSION_KEY: str(SCHEMA_VERSION).encode()}
    fields = [pa.field(c.name, _ARROW[c.dtype], nullable=True) for c in TABLES[table]]
    return pa.schema(fields, metadata=metadata)


def _plain(values: pd.Series, column: Column) -> object:
    if column.dtype in ("string", "bytes"):
        return values.astype(object).to_numpy()
    return values.to_numpy(dtype=column.dtype)


def _encoded(table: pa.Table, text: Iterable[str]) -> pa.Table:
    for name in set(text) & set(table.column_names):
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].dictionary_encode())
    return table


def _read(
    table: str, run: str, path: Path, columns: Sequence[str], text: Sequence[str]
) -> pa.Table:
    try:
        with (
            pa.OSFile(str(path)) as source,
            pq.ParquetFile(
                source, read_dictionary=text, pre_buffer=False, page_checksum_verification=True
            ) as file,
        ):
            _check_origin(table, path, file.schema_arrow)
            rows = file.read(columns=list(columns), use_threads=False)
            if rows.column_names != columns:
                rows = rows.select(columns)
    except FileNotFoundError:
        raise
    except KeyError as error:
        _damaged(path, f"it is not a table of {table} written by bench: it has no column {error}")
    except (pa.ArrowException, OSError) as error:
        _damaged(path, str(error).splitlines()[0])
    runs = _words(rows["run"])
    if runs - {run}:
        _damaged(path, f"it holds rows of {_listed(runs)}, so it was renamed or written by others")
    return rows.replace_schema_metadata()


def _words(column: pa.ChunkedArray) -> set[str]:
    """The distinct words of a column; of categories without a look at the rows."""
    if not pa.types.is_dictionary(column.type) or column.null_count:
        return set(column.unique().to_pylist())
    return {word for chunk in column.chunks for word in chunk.dictionary.to_pylist()}


def _check_origin(table: str, path: Path, schema: pa.Schema) -> None:
    metadata = schema.metadata or {}
    version = metadata.get(_VERSION_KEY, b"").decode()
    if not version.isdigit() or metadata.get(_TABLE_KEY) != table.encode():
        _damaged(path, f"it is not a table of {table} written by bench")
    if int(version) > SCHEMA_VERSION:
        raise UserError(
            f"{path} was written by a newer bench (schema {version} > {SCHEMA_VERSION}): "
            "upgrade ssl3d-bench to read this store"
        )
    if not any(schema.equals(known) for known in _as_written(table)) and not _is_complete(
        table, schema
    ):
        _damaged(path, f"its columns are not those of {table} in schema {version}")


@cache
def _as_written(table: str) -> tuple[pa.Schema, pa.Schema]:
    """What a file's columns mostly are, with text as it is or as categories."""
    plain = pa.schema([pa.field(c.name, _ARROW[c.dtype]) for c in TABLES[table]])
    words = pa.dictionary(pa.int32(), pa.string())
    fields = [f.with_type(words) if f.type == pa.string() else f for f in plain]
    return plain, pa.schema(fields)


def _is_complete(table: str, schema: pa.Schema) -> bool:
    found = {
        f.name: f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in schema
    }
    return found == {c.name: _ARROW[c.dtype] for c in TABLES[table]}


def _damaged(path: Path, reason: str) -> NoReturn:
    raise UserError(
        f"{path} cannot be read: {reason}. Restore it from a copy, or delete every file of this "
        "run in the store and run it again"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
