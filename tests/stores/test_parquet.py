"""Many files at once, files of other writers, and damage that leaves the structure whole."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from results.errors import UserError
from results.parquet import decode, encode
from tests.protocols import toy

RUN = toy.run_id()


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    rows = toy.cases(RUN, {step: rng.random(50) for step in range(40)})
    file = tmp_path / f"{RUN}.parquet"
    file.write_bytes(encode("cases", rows))
    return file


@pytest.mark.parametrize("column", ["run", "step", "case", "status", "dsc", "hd95"])
def test_one_bit_that_flips_in_a_value_is_found(path, column):
    group = pq.read_metadata(path).row_group(0)
    chunk = next(group.column(n) for n in range(14) if group.column(n).path_in_schema == column)
    content = bytearray(path.read_bytes())
    end = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size
    content[end - 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{RUN}\.parquet cannot be read: .*run it again"):
        decode("cases", [(RUN, path)], ["step", column])


def test_a_file_without_checksums_is_read(path, tmp_path):
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(path), other, compression="zstd", write_page_checksum=False)
    columns = ["step", "case", "dsc"]
    assert decode("cases", [(RUN, other)], columns).equals(decode("cases", [(RUN, path)], columns))


def test_a_file_with_its_columns_in_another_order_is_read_beside_others(path, tmp_path):
    other = tmp_path / "other.parquet"
    table = pq.read_table(path)
    pq.write_table(table.select(table.column_names[::-1]), other)
    for columns in (None, ["step", "case", "dsc"]):
        one = decode("cases", [(RUN, path)], columns)
        found = decode("cases", [(RUN, path), (RUN, other)], columns)
        assert found.equals(pd.concat([one, one], ignore_index=True))


@pytest.fixture
def many(tmp_path):
    """Seven files, each of a run with as many rows as its place."""
    files = []
    for seed in range(1, 8):
        run = toy.run_id(seed=seed)
        file = tmp_path / f"{run}.parquet"
        file.write_bytes(encode("cases", toy.cases(run, {1000: [0.5] * seed})))
        files.append((run, file))
    return files


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 16])
def test_rows_come_in_the_order_of_the_files_however_many_threads_read(many, threads, monkeypatch):
    monkeypatch.setattr(pa, "cpu_count", lambda: threads)
    files = many[::-1]
    expected = [run for run, _ in files for _ in range(int(run.split("-s")[1][0]))]
    assert decode("cases", files, ["run"])["run"].tolist() == expected


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_of_several_damaged_files_the_first_is_named(many, threads, monkeypatch):
    monkeypatch.setattr(pa, "cpu_count", lambda: threads)
    for run, file in (many[2], many[3], many[6]):
        file.write_bytes(b"nothing of " + run.encode())
    with pytest.raises(UserError, match=rf"{many[2][0]}\.parquet cannot be read"):
        decode("cases", many)
