import errno
import os
from contextlib import suppress
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from results import claims, publishing
from results import store as store_module
from results.errors import UserError
from results.parquet import encode
from results.schema import OPTIONAL, RUNS, TABLES
from results.store import ConflictError, Store
from tests.protocols import toy

EVERY_RUN_HAS = [table for table in TABLES if table not in OPTIONAL]
RUN = toy.run_id()
FILES = [f"{t}/{RUN}.parquet" for t in ("cases", "history", "pseudo", "runs")] + [
    f"runs/{RUN}.json"
]


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture
def rows():
    return toy.cases(RUN, {1000: (0.5, 0.6), 2000: (0.7, 0.8)}, empty=[(1000, 1)])


def commit(store, rows, **changes):
    run = rows["run"].iloc[0]
    return store.commit(run, toy.tables(rows), toy.record(run, **changes), {"seconds": 2.5})


def everything(store):
    return {str(p.relative_to(store.path)): p.read_bytes() for p in files(store)}


def files(store):
    return sorted(p for p in store.path.rglob("*") if p.is_file())


def plain(frame):
    categories = [c for c in frame if isinstance(frame[c].dtype, pd.CategoricalDtype)]
    return frame.astype(dict.fromkeys(categories, object))


# What is committed


def test_a_committed_run_is_read_back_as_it_was(store, rows):
    assert commit(store, rows) == "committed"
    back = store.read("cases")
    pd.testing.assert_frame_equal(plain(back), plain(rows), check_dtype=False)
    assert list(back.columns) == [c.name for c in TABLES["cases"]]
    assert store.record(RUN) == toy.record(RUN)
    told = {"state": "finished", "error": "", "steps": 3000, "evaluations": 3}
    assert store.sidecar(RUN) == {"seconds": 2.5, "record": told}
    assert store.is_done(RUN)
    assert store.state(RUN) == "finished"


@pytest.mark.parametrize("table", EVERY_RUN_HAS)
def test_tables_come_in_the_types_of_the_schema_even_when_empty(store, rows, table):
    for _ in range(2):
        frame = store.read(table)
        for column in TABLES[table]:
            if column.dtype == "string" and table != "runs":
                assert isinstance(frame[column.name].dtype, pd.CategoricalDtype)
            else:
                assert frame[column.name].dtype == column.dtype
        if not store.is_done(RUN):
            assert frame.empty
            commit(store, rows)


def test_rows_come_by_run_id_with_the_columns_and_runs_that_were_asked_for(store, rows):
    for seed in (2, 0, 1):
        commit(store, rows.assign(run=toy.run_id(seed=seed)))
    assert list(store.records()["run"]) == [toy.run_id(seed=s) for s in (0, 1, 2)]
    one = store.read("cases", [toy.run_id(seed=2)], ["dsc", "case"])
    assert list(one.columns) == ["dsc", "case"]
    assert len(one) == len(rows)
    with pytest.raises(UserError, match="no finished or failed run mt-9"):
        store.read("cases", ["mt-9"])


@pytest.mark.parametrize("table", EVERY_RUN_HAS)
def test_equal_frames_give_equal_bytes_whatever_holds_the_text(rows, table):
    frame = {**toy.tables(rows), "runs": pd.DataFrame([toy.record(RUN)])}[table]
    text = {c.name: "category" for c in TABLES[table] if c.dtype == "string"}
    shuffled = frame.astype(text)[sorted(frame.columns)]
    assert encode(table, frame) == encode(table, shuffled)
    assert encode(table, frame) == encode(table, frame.astype(dict.fromkeys(text, "string")))


def test_the_run_column_may_be_left_out_but_not_name_another_run(store, rows):
    tables = {k: v.drop(columns="run") for k, v in toy.tables(rows).items()}
    store.commit(RUN, tables, toy.record(RUN), {})
    assert set(store.read("cases")["run"]) == {RUN}
    with pytest.raises(ValueError, match=r"rows of run .* given for run mt-other"):
        store.commit("mt-other", toy.tables(rows), toy.record("mt-other"), {})


def test_a_failed_run_without_any_row_has_a_record_too(store, rows):
    tables = {k: v.iloc[:0] for k, v in toy.tables(rows).items()}
    store.commit(RUN, tables, toy.record(RUN, state="failed"), {})
    assert store.state(RUN) == "failed"
    assert store.read("cases").empty


def test_other_programs_read_the_folders(store, rows):
    commit(store, rows)
    (store.path / "cases" / ".tmp-mt-1-aa").write_bytes(b"half")
    folder = store.path / "cases"
    assert pyarrow.dataset.dataset(folder, format="parquet").to_table().num_rows == 4
    assert polars.read_parquet(folder / "*.parquet").height == 4
    assert duckdb.sql(f"select count(*) from '{folder}/*.parquet'").fetchall() == [(4,)]


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.drop(columns="dsc"), "missing: dsc"),
        (lambda c: c.assign(extra=1), "not known: extra"),
        (lambda c: c.assign(dsc="high"), r"cases\.dsc: expected float64"),
        (lambda c: c.assign(step=1.5), r"cases\.step: expected int64"),
        (lambda c: c.assign(tp=True), r"cases\.tp: expected int64"),
        (lambda c: c.assign(case=3), r"cases\.case: expected string"),
        (lambda c: c.assign(case=[None, "a", "b", "c"]), r"cases\.case: missing values"),
        (lambda c: c.assign(diagonal=np.nan), r"cases\.diagonal: NaN or infinite"),
        (lambda c: c.assign(status="fine"), "fine is not one of"),
        (lambda c: c.assign(status="ok"), "status ok, but"),
        (lambda c: c.assign(hd95=np.inf), "status ok, but"),
    ],
)
def test_frames_that_do_not_follow_the_schema_are_refused(store, rows, change, message):
    with pytest.raises(ValueError, match=message):
        store.commit(RUN, {**toy.tables(rows), "cases": change(rows)}, toy.record(RUN), {})
    assert files(store) == []


def test_history_may_hold_the_nan_that_ended_a_run(store, rows):
    history = toy.history(RUN).assign(value=[1.0, 0.5, np.nan])
    store.commit(RUN, {**toy.tables(rows), "history": history}, toy.record(RUN), {})
    assert store.read("history")["value"].isna().sum() == 1


@pytest.mark.parametrize("run", ["", "../x", "/etc/x", "A", "a b", "a" * 65, "a.parquet", "a\n"])
def test_run_ids_that_could_leave_the_store_are_refused(store, rows, run):
    for act in (
        lambda: store.commit(run, toy.tables(rows.assign(run=run)), toy.record(run), {}),
        lambda: store.is_done(run),
        lambda: store.work(run),
        lambda: store.write_work(run, "spec.json", "{}"),
        lambda: store.sidecar(run),
    ):
        with pytest.raises(UserError, match="is not a run id"):
            act()
    assert files(store) == []


# First wins


def test_a_second_attempt_with_the_same_bytes_is_recognised(store, rows):
    commit(store, rows)
    before = everything(store)
    again = store.commit(RUN, toy.tables(rows), toy.record(RUN), {"seconds": 99.0})
    assert again == "already"
    assert everything(store) == before


def test_a_second_attempt_with_other_bytes_is_reported_and_changes_nothing(store, rows):
    commit(store, rows)
    before = everything(store)
    with pytest.raises(ConflictError) as error:
        commit(store, rows.assign(tp=rows["tp"] + 1))
    assert len(set(words_of_64_hex(str(error.value)))) == 2
    with pytest.raises(ConflictError, match=rf"runs/{RUN}\.parquet"):
        commit(store, rows, device="another")
    assert everything(store) == before


def words_of_64_hex(text):
    return [w.strip(".,") for w in text.split() if len(w.strip(".,")) == 64]


def test_an_attempt_that_was_cut_before_its_record_is_completed_by_the_next(
    store, rows, monkeypatch
):
    link = os.link

    def cut_at_the_record(source, target):
        if Path(target).parent.name == "runs":
            raise KeyboardInterrupt
        link(source, target)

    monkeypatch.setattr(os, "link", cut_at_the_record)
    with pytest.raises(KeyboardInterrupt):
        store.commit(RUN, toy.tables(rows), toy.record(RUN), {"attempt": 1})
    monkeypatch.undo()
    assert not store.is_done(RUN)
    assert store.read("cases").empty
    with pytest.raises(ConflictError, match=rf"delete .*cases/{RUN}\.parquet and run again"):
        commit(store, rows.assign(tp=0))
    assert store.commit(RUN, toy.tables(rows), toy.record(RUN), {"attempt": 2}) == "committed"
    assert store.sidecar(RUN)["attempt"] == 2


def test_files_are_flushed_before_they_are_named_and_the_record_is_named_last(
    store, rows, monkeypatch
):
    events = []
    real = {name: getattr(os, name) for name in ("fsync", "link", "replace", "open")}
    names = {}

    def opened(path, flags, *mode):
        handle = real["open"](path, flags, *mode)
        names[handle] = Path(path)
        return handle

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(
        os, "fsync", lambda h: (events.append(("flush", names[h])), real["fsync"](h))
    )
    for kind in ("link", "replace"):
        monkeypatch.setattr(
            os, kind, lambda a, b, k=kind: (events.append((k, Path(a), Path(b))), real[k](a, b))
        )
    commit(store, rows)
    named = [e for e in events if e[0] in ("link", "replace")]
    assert [str(e[2].relative_to(store.path)) for e in named] == [*FILES[:3], FILES[4], FILES[3]]
    for event in named:
        at = events.index(event)
        assert events[at - 1] == ("flush", event[1])
        assert events[at + 1] == ("flush", event[2].parent)


# Trouble with the disk


@pytest.mark.parametrize("function", ["write", "fsync", "link", "replace"])
@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "the store is full"), (errno.EROFS, "the store cannot be used")],
)
@pytest.mark.parametrize("nth", [1, 2, 4])
def test_a_full_or_unwritable_store_gives_one_message_and_keeps_what_it_has(
    store, rows, monkeypatch, function, number, message, nth
):
    commit(store, rows)
    before = everything(store)
    real, calls = getattr(os, function), []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) >= nth:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    monkeypatch.setattr(os, function, fails)
    other = rows.assign(run="mt-other")
    if function == "replace" and nth > 1:
        commit(store, other)
        return
    with pytest.raises(UserError, match=message):
        commit(store, other)
    monkeypatch.undo()
    assert not store.is_done("mt-other")
    after = everything(store)
    assert {k: after[k] for k in before} == before
    assert not [name for name in after if ".tmp-" in name]
    assert commit(store, other) == "committed"


def test_a_folder_that_cannot_be_flushed_is_no_error(store, rows, monkeypatch):
    real = os.fsync

    def only_files(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    assert commit(store, rows) == "committed"


def no_links(monkeypatch, number=errno.EPERM):
    def refuse(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links_the_first_attempt_wins_too(store, rows, monkeypatch, number):
    no_links(monkeypatch, number)
    assert commit(store, rows) == "committed"
    assert commit(store, rows) == "already"
    with pytest.raises(ConflictError):
        commit(store, rows.assign(tp=0))
    assert sorted(everything(store)) == sorted(FILES)


def test_without_hard_links_a_claim_that_stays_is_explained(store, rows, monkeypatch):
    no_links(monkeypatch)
    monkeypatch.setattr(publishing, "_CLAIM_PATIENCE_S", 0.05)
    claim = store.path / "cases" / f".tmp-claim-{RUN}.parquet"
    claim.touch()
    with pytest.raises(UserError, match=rf"if there is none, delete .*{claim.name}"):
        commit(store, rows)
    claim.unlink()
    assert commit(store, rows) == "committed"


# Opening


def test_reading_where_no_store_is_says_so_and_makes_none(tmp_path):
    with pytest.raises(UserError, match=r"no store at .*/nowhere: run `bench run` first"):
        Store.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_store_where_a_file_is_in_the_way_is_one_message(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="the store cannot be used at"):
        Store.open(tmp_path / "file", create=True)


# Damage


def test_a_store_of_a_newer_version_asks_for_an_upgrade(store, rows, monkeypatch):
    monkeypatch.setattr("results.parquet.SCHEMA_VERSION", 2)
    commit(store, rows)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"written by a newer bench \(schema 2 > 1\): upgrade"):
        store.read("cases")


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
@pytest.mark.parametrize("table", ["cases", "runs"])
def test_a_truncated_file_is_named_with_the_remedy(store, rows, table, keep):
    commit(store, rows)
    path = store.path / table / f"{RUN}.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{RUN}\.parquet cannot be read: .*run it again"):
        store.read(table)


def test_a_file_whose_pages_are_damaged_is_named(store, rows):
    commit(store, rows)
    path = store.path / "cases" / f"{RUN}.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{RUN}\.parquet cannot be read"):
        store.read("cases")


def test_a_file_that_is_missing_beside_its_record_is_named(store, rows):
    commit(store, rows)
    (store.path / "cases" / f"{RUN}.parquet").unlink()
    with pytest.raises(UserError, match=rf"{RUN}\.parquet.* is missing although its run"):
        store.read("cases")


def test_a_copied_file_does_not_count_twice(store, rows):
    commit(store, rows)
    for table in ("runs", "cases"):
        source = store.path / table / f"{RUN}.parquet"
        (store.path / table / "copy.parquet").write_bytes(source.read_bytes())
        with pytest.raises(UserError, match=rf"copy\.parquet cannot be read: .*rows of {RUN}"):
            store.read(table, ["copy"] if table == "cases" else None)


def test_a_parquet_file_from_elsewhere_is_refused(store, rows):
    commit(store, rows)
    pq.write_table(pa.table({"run": [RUN]}), store.path / "cases" / f"{RUN}.parquet")
    with pytest.raises(UserError, match="not a table of cases written by bench"):
        store.read("cases")
    (store.path / "runs" / "Copy of x.parquet").touch()
    with pytest.raises(UserError, match="'Copy of x' is not a run id"):
        store.records()


def test_a_damaged_sidecar_is_named(store, rows):
    commit(store, rows)
    (store.path / "runs" / f"{RUN}.json").write_text("{")
    with pytest.raises(UserError, match=rf"{RUN}\.json cannot be read"):
        store.sidecar(RUN)


# Unfinished runs


def test_parts_of_an_unfinished_run_are_read_in_the_order_of_steps(store):
    store.write_work(RUN, "spec.json", "{}")
    for step in (10_000, 2000, 1000):
        store.write_part(RUN, "cases", step, toy.cases(RUN, {step: (0.5,)}).drop(columns="run"))
    assert list(store.read_parts(RUN, "cases")["step"]) == [1000, 2000, 10_000]
    assert store.read_parts(RUN, "pseudo").empty
    store.drop_parts_after(RUN, 2000)
    assert list(store.read_partial("cases")["step"]) == [1000, 2000]
    assert store.read("cases").empty


def test_writing_a_part_again_gives_the_same_bytes(store):
    store.write_part(RUN, "history", 3, toy.history(RUN))
    path = store.work(RUN) / "history-3.parquet"
    before = path.read_bytes()
    store.write_part(RUN, "history", 3, toy.history(RUN))
    assert path.read_bytes() == before


def test_dropping_parts_of_a_run_that_has_none_is_fine(store):
    store.drop_parts_after(RUN, 0)
    assert store.read_parts(RUN, "cases").empty


def test_a_run_is_unfinished_from_its_spec_until_its_record(store, rows):
    assert store.unfinished() == []
    store.write_work(RUN, "spec.json", '{"seed": 1}')
    assert store.unfinished() == [RUN]
    assert store.read_work(RUN, "spec.json") == '{"seed": 1}'
    with pytest.raises(UserError, match=r"has no record: its work folder .* stays"):
        store.clean_work(RUN)
    commit(store, rows)
    assert store.unfinished() == []
    store.clean_work(RUN)
    assert not store.work(RUN).exists()
    store.clean_work(RUN)


def test_partial_reading_survives_a_run_that_ends_meanwhile(store, rows, monkeypatch):
    for seed in (0, 1):
        run = toy.run_id(seed=seed)
        store.write_work(run, "spec.json", "{}")
        store.write_part(run, "cases", 1000, toy.cases(run, {1000: (0.5,)}))
    real = store_module.decode

    def one_ends_first(table, files, *columns):
        if store.work(RUN).exists():
            commit(store, rows)
            store.clean_work(RUN)
        return real(table, files, *columns)

    monkeypatch.setattr(store_module, "decode", one_ends_first)
    assert set(store.read_partial("cases")["run"]) == {toy.run_id(seed=1)}


def test_only_failed_runs_can_be_discarded(store, rows):
    commit(store, rows)
    with pytest.raises(UserError, match="only failed runs can be discarded"):
        store.discard_failed(RUN)
    other = "mt-other"
    store.commit(other, toy.tables(rows.assign(run=other)), toy.record(other, state="failed"), {})
    before = {f: f.read_bytes() for f in files(store) if f.name.startswith(RUN)}
    store.discard_failed(other)
    assert {f: f.read_bytes() for f in files(store)} == before


class Killed(BaseException):
    """Stands for the end of a process."""


def kill_at(monkeypatch, step):
    """From the given change to the disk on, every one ends the process; whether it came to that."""
    calls = []

    def counted(real):
        def change(*arguments, **options):
            calls.append(real)
            if len(calls) > step:
                raise Killed
            return real(*arguments, **options)

        return change

    for name in ("replace", "unlink", "fsync"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    return lambda: len(calls) > step


DISCARDED_STEPS = 12
"""Renaming, five removals, and a flush after each."""
DISCARD_STEPS = DISCARDED_STEPS + 2
"""And then the claim is let go, and removed."""


def die(monkeypatch, store):
    """From now on it is another process that asks, a day later."""
    monkeypatch.undo()
    monkeypatch.setattr(claims, "_began", lambda pid: "later")
    store.sweep_temporary(hours=0)


@pytest.mark.parametrize("healed_by", ["discard", "commit"])
@pytest.mark.parametrize("step", range(DISCARD_STEPS + 1))
def test_a_discard_that_is_killed_at_any_step_is_healed_by_the_next(
    store, rows, monkeypatch, step, healed_by
):
    commit(store, rows.assign(run="mt-other"))
    others = everything(store)
    commit(store, rows, state="failed")
    killed = kill_at(monkeypatch, step)
    with suppress(Killed):
        store.discard_failed(RUN)
    assert killed() == (step < DISCARD_STEPS)
    die(monkeypatch, store)
    # Whatever has a record is whole, at every moment.
    assert len(store.read("cases")) == len(rows) * (1 + store.is_done(RUN))
    assert store.is_done(RUN) == (step == 0)
    if step == 0 or (healed_by == "discard" and step < DISCARDED_STEPS - 1):
        store.discard_failed(RUN)
        assert everything(store) == others
    assert commit(store, rows.assign(tp=7)) == "committed"
    left = {f"work/{RUN}/discard-000001"} if DISCARDED_STEPS - 1 <= step < DISCARD_STEPS else set()
    assert set(everything(store)) == {*others, *FILES, *left}
    assert set(store.read("cases", [RUN])["tp"]) == {7}
    assert store.state(RUN) == "finished"


def test_a_heal_that_is_killed_at_any_step_is_healed_too(store, rows, monkeypatch):
    commit(store, rows, state="failed")
    for step in range(1, 9):
        with suppress(Killed), monkeypatch.context() as patched:
            kill_at(patched, step)
            if store.is_done(RUN):
                store.discard_failed(RUN)
            else:
                commit(store, rows.assign(tp=7))
        die(monkeypatch, store)
        assert not store.is_done(RUN)
        assert store.read("cases").empty
    assert commit(store, rows.assign(tp=7)) == "committed"
    assert set(everything(store)) == set(FILES)


def test_a_run_without_a_record_cannot_be_discarded(store, rows):
    with pytest.raises(UserError, match=f"no finished or failed run {RUN}"):
        store.discard_failed(RUN)
    commit(store, rows, state="failed")
    store.discard_failed(RUN)
    assert everything(store) == {}
    with pytest.raises(UserError, match=f"no finished or failed run {RUN}"):
        store.discard_failed(RUN)


def test_a_half_discarded_run_is_swept_away_by_no_one(store, rows, monkeypatch):
    """What tells rubbish from an attempt that was cut must outlive temporary files."""
    commit(store, rows, state="failed")
    with suppress(Killed), monkeypatch.context() as patched:
        kill_at(patched, 2)
        store.discard_failed(RUN)
    store.sweep_temporary(hours=-1)
    assert commit(store, rows.assign(tp=7)) == "committed"


def test_only_old_temporary_files_are_swept(store):
    old, new = store.path / "cases" / ".tmp-a-1", store.path / "work" / RUN / ".tmp-a-2"
    new.parent.mkdir()
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    assert store.sweep_temporary(hours=1) == 1
    assert new.exists()
    assert not old.exists()


def test_the_schema_has_every_column_of_a_record():
    assert [c.name for c in RUNS] == list(toy.record(RUN))


def test_a_folder_that_another_process_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    make, tries = os.mkdir, []

    def hindered(path, mode=0o777):
        tries.append(path)
        if len(tries) == 1:  # there when it is made, gone when it is looked at
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        make(path, mode)

    monkeypatch.setattr(os, "mkdir", hindered)
    publishing.make_folder(tmp_path / "work")
    assert (tmp_path / "work").is_dir()
    assert len(tries) == 2


def test_a_file_where_a_folder_must_be_is_an_error(tmp_path):
    (tmp_path / "work").write_text("")
    with pytest.raises(FileExistsError):
        publishing.make_folder(tmp_path / "work")
