"""What happens to a store: writers that are killed or race, power that is cut, disks that fail."""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow.dataset
import torch

from benchmark import checkpoint
from results.errors import UserError
from results.store import Store
from tests.faults.base import Row, Scale, processes
from tests.protocols import toy
from tests.stores import writers

ROWS_PER_RUN = 18
KILLS_PER_STORE, READS_EVERY = 25, 6


def killed_writers(scale: Scale) -> Row:
    """Eight writers are killed again and again while three libraries read."""
    kills, rng = scale.pick(200, 12), scale.rng("killed writers")
    bad = reads = runs = 0
    for number in range(0, kills, KILLS_PER_STORE):  # a store of 40,000 runs is slow to read
        folder = scale.folder / str(number)
        folder.mkdir()
        found = _killed_writers(folder, min(KILLS_PER_STORE, kills - number), rng)
        bad, reads, runs = bad + found[0], reads + found[1], runs + found[2]
    said = f"{reads} reads by pyarrow, DuckDB, polars; {runs:,} acknowledged runs"
    return Row("SIGKILL of 8 concurrent writers", str(kills), bad, said)


def _killed_writers(folder: Path, kills: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Failed reads and runs lost or halved; reads; acknowledged runs."""
    store = Store.open(folder / "writers", create=True)
    acknowledged = folder / "acknowledged"
    acknowledged.touch()

    def start(number: int) -> Any:
        arguments = (str(store.path), f"w{number}", str(acknowledged))
        made = processes().Process(target=writers.commit_for_ever, args=arguments, daemon=True)
        made.start()
        return made

    at_work, bad, reads = [start(number) for number in range(8)], 0, 3
    try:
        for kill in range(kills):
            before, patience = _lines(acknowledged), time.monotonic() + 60
            while _lines(acknowledged) == before and time.monotonic() < patience:
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0, 0.02)))
            at_work[kill % 8].kill()
            at_work[kill % 8].join()
            at_work[kill % 8] = start(8 + kill)
            if kill % READS_EVERY == 0:
                bad += failed_reads(store)
                reads += 3
    finally:
        for process in at_work:
            process.kill()
            process.join()
    bad += failed_reads(store)
    acked = acknowledged.read_text().splitlines()
    counts = store.read("cases").groupby("run", observed=True).size()
    stored = set(store.records()["run"])
    bad += len(set(acked) - stored) + int((counts != ROWS_PER_RUN).sum())
    bad += abs(len(counts) - len(stored))
    return bad, reads, len(acked)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def failed_reads(store: Store) -> int:
    """How many of three libraries cannot read the store as it is."""
    files = str(store.path / "cases" / "*.parquet")
    if not list(store.path.glob("cases/*.parquet")):
        return 0
    readers: tuple[Callable[[], object], ...] = (
        lambda: pyarrow.dataset.dataset(store.path / "cases", format="parquet").to_table(),
        lambda: polars.read_parquet(files),
        lambda: duckdb.sql(f"select count(*) from '{files}'").fetchall(),
    )
    failed = 0
    for read in readers:
        try:
            read()
        except Exception:  # whatever a library raises is a failed read
            failed += 1
    return failed


def commit_race(scale: Scale) -> Row:
    """Eight processes commit the same runs, four with other bytes."""
    count = scale.pick(200, 10)
    store = Store.open(scale.folder / "race", create=True)
    runs = [f"mt-{n}" for n in range(count)]
    outcomes = scale.folder / "outcomes"
    outcomes.mkdir()
    racers = [
        processes().Process(
            target=writers.race, args=(str(store.path), runs, n % 2, str(outcomes / f"{n}"))
        )
        for n in range(8)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    seen = Counter(w for n in range(8) for w in (outcomes / f"{n}").read_text().split())
    expected = {"committed": count, "already": 3 * count, "conflict": 4 * count}
    bad = sum(abs(seen[word] - number) for word, number in expected.items())
    bad += abs(len(store.read("cases")) - ROWS_PER_RUN * count)
    said = f"{seen['committed']} winners, {seen['conflict']} losers with other bytes told so"
    return Row(f"commit race, 8 processes x {count} runs", f"{8 * count:,}", bad, said)


def power_cut(scale: Scale, commits: Callable[..., None] = writers.commit_for_ever) -> Row:
    """The block image of a file system in use is copied as it is at one moment, and mounted again.

    The writer is stopped, not ended, while the image is copied: what it has not synchronised is in
    memory only, as when the power goes. A copy of blocks that change meanwhile would show a disk
    that never was: what its journal no longer holds, but its early blocks do not hold yet, is gone.
    """
    name, cuts = "power cut (ext4 on a loop device, block image replayed)", scale.pick(50, 4)
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else scale.folder
    folder = Path(tempfile.mkdtemp(prefix="bench-power-", dir=memory))
    rng, bad, checked = scale.rng("power cut"), 0, 0
    try:
        for number in range(cuts):
            if number % 10 == 0:
                batch = folder / str(number)
                batch.mkdir()
                reason = _make_file_system(batch)
                if reason:
                    return Row(name, "0", 0, skipped=reason)
            acknowledged = batch / "acknowledged"
            acknowledged.touch()
            with _mounted(batch / "disk", batch / "mounted") as disk:
                store = Store.open(disk / "store", create=True)
                with _writing(commits, store, f"w{number}", acknowledged) as writer:
                    before, patience = _lines(acknowledged), time.monotonic() + 60
                    while _lines(acknowledged) < before + 5 and time.monotonic() < patience:
                        time.sleep(0.005)
                    time.sleep(float(rng.uniform(0, 0.3)))
                    _stop(writer)
                    acked = acknowledged.read_text().splitlines()
                    _copy_at_rest(batch / "disk", batch / "copy")
            with _mounted(batch / "copy", batch / "replayed") as disk:
                bad += _lost(Store(disk / "store"), acked)
                checked += len(acked)
    finally:
        shutil.rmtree(folder)
    return Row(name, str(cuts), bad, f"{checked:,} committed runs looked for")


@contextmanager
def _writing(
    commits: Callable[..., None], store: Store, name: str, acknowledged: Path
) -> Iterator[int]:
    """A process that commits until the end of the block; its id."""
    arguments = (str(store.path), name, str(acknowledged))
    writer = processes().Process(target=commits, args=arguments)
    writer.start()
    assert writer.pid is not None
    try:
        yield writer.pid
    finally:
        writer.kill()
        writer.join()


def _stop(process: int) -> None:
    """Stop a process, and wait until all its threads have left the kernel."""
    os.kill(process, signal.SIGSTOP)
    while any(
        (task / "stat").read_text().rpartition(")")[2].split()[0] != "T"
        for task in Path(f"/proc/{process}/task").iterdir()
    ):
        time.sleep(0.001)


def _copy_at_rest(image: Path, copy: Path) -> None:
    """Copy an image that no write changes meanwhile: until the image still equals the copy."""
    shutil.copyfile(image, copy)
    while not filecmp.cmp(image, copy, shallow=False):
        shutil.copyfile(image, copy)


def _lost(store: Store, acknowledged: list[str]) -> int:
    """Acknowledged runs that are gone or unreadable after the cut."""
    try:
        present = set(store.records()["run"])
        counts = store.read("cases").groupby("run", observed=True).size()
        whole = {str(run) for run, n in counts.items() if n == ROWS_PER_RUN}
    except UserError:
        return len(acknowledged)
    return len(set(acknowledged) - (present & whole))


def _make_file_system(folder: Path) -> str:
    """A file system in `folder/disk`; why that cannot be, else nothing."""
    if os.geteuid() != 0:
        return "needs root, to mount a loop device"
    if shutil.which("mkfs.ext4") is None:
        return "needs mkfs.ext4 (e2fsprogs)"
    with (folder / "disk").open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(folder / "disk")], check=True)
    (folder / "mounted").mkdir()
    (folder / "replayed").mkdir()
    tried = subprocess.run(
        ["mount", "-o", "loop", str(folder / "disk"), str(folder / "mounted")],
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        return f"cannot mount a loop device: {tried.stderr.strip()}"
    subprocess.run(["umount", str(folder / "mounted")], check=True)
    return ""


@contextmanager
def _mounted(image: Path, at: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-o", "loop", str(image), str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


SYSTEM_CALLS = ("open", "write", "fsync", "close", "link", "replace", "unlink", "mkdir")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)


@contextmanager
def _failing_at(index: int, number: int) -> Iterator[list[str]]:
    """Let the system call of this index fail; give the names of those made."""
    made: list[str] = []
    real = {name: getattr(os, name) for name in SYSTEM_CALLS}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) - 1 != index:
                return real[name](*given, **options)
            if name == "close":
                real[name](*given)
            raise OSError(number, os.strerror(number), str(given[0]))

        return call

    for name in SYSTEM_CALLS:
        setattr(os, name, wrapped(name))
    try:
        yield made
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def failing_commits(scale: Scale) -> Row:
    """Every system call of a commit and of a checkpoint fails, with each error, one at a time."""
    store = Store.open(scale.folder / "failing", create=True)
    _commit(store, "mt-old", 0)
    old = _files(store)
    with _failing_at(-1, 0) as calls:
        _commit(store, "mt-whole", 1)
    tried = bad = 0
    for index in range(len(calls)):
        for number in ERRORS if scale.full else (ERRORS[index % len(ERRORS)],):
            tried += 1
            run = f"mt-{index}-{number}"
            said = ""
            with _failing_at(index, number):
                try:
                    _commit(store, run, 2)
                except UserError as error:
                    said = str(error)
            bad += not (said or store.is_done(run))
            bad += bool(said) and not ("intact" in said and "store" in said)
            bad += {k: v for k, v in _files(store).items() if k in old} != old
            bad += failed_reads(store)
            _commit(store, run, 2)
            bad += len(store.read("cases", [run])) != ROWS_PER_RUN
            left = list(store.path.glob("*/.tmp-*"))
            bad += bool(left) and calls[index] != "unlink"  # what cannot be removed is swept later
            bad += store.sweep_temporary(hours=0) != len(left)
            _remove(store, run)
    saved, worse = _failing_checkpoints(scale)
    said = f"{tried} at {len(calls)} calls of a commit, {saved} at those of a checkpoint"
    name = "ENOSPC, EIO, read-only, quota at each system call"
    return Row(name, str(tried + saved), bad + worse, said)


def _failing_checkpoints(scale: Scale) -> tuple[int, int]:
    folder = scale.folder / "checkpoints"
    folder.mkdir()
    checkpoint.save(folder, 1, {"x": torch.ones(9)})
    checkpoint.save(folder, 2, {"x": torch.ones(9)})
    with _failing_at(-1, 0) as calls:
        checkpoint.save(folder, 3, {"x": torch.ones(9)})
    tried = bad = 0
    for index in range(len(calls)):
        for number in ERRORS if scale.full else (ERRORS[index % len(ERRORS)],):
            tried += 1
            (folder / "checkpoint-000000004.pt").unlink(missing_ok=True)
            checkpoint.save(folder, 3, {"x": torch.ones(9)})
            with _failing_at(index, number), suppress(OSError):
                checkpoint.save(folder, 4, {"x": torch.zeros(9)})
            found = checkpoint.load_newest(folder, torch.device("cpu"))
            bad += found is None or found[0] not in (3, 4)
            bad += found is not None and float(found[1]["x"].sum()) != 9 * (found[0] == 3)
    return tried, bad


def full_disk(scale: Scale) -> Row:
    """A file system of 4 MiB fills up, and one is mounted read-only: not injected, but real."""
    name = "a real disk that is full, and one that is read-only"
    disk = scale.folder / "small"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True).returncode:
        return Row(name, "0", 0, skipped="needs root, to mount a small file system")
    bad, tried, committed = 0, 0, 0
    try:
        store = Store.open(disk / "store", create=True)
        ballast = disk / "ballast"
        for room in range(0, 64 << 10, 2 << 10):
            ballast.unlink(missing_ok=True)
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(1 << 10)):
                    pass
            free = max(0, ballast.stat().st_size - room)
            os.truncate(ballast, free)
            tried += 1
            bad += _refused_wrongly(store, f"mt-{room}", "the store is full")
            bad += failed_reads(store)
        ballast.unlink()
        committed = len(store.records())
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        tried += 1
        bad += _refused_wrongly(store, "mt-late", "the store cannot be used")
        bad += len(store.records()) != committed
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return Row(name, str(tried), bad, f"{committed} of {tried} committed, all readable")


def _refused_wrongly(store: Store, run: str, expected: str) -> bool:
    try:
        _commit(store, run, 3)
    except UserError as error:
        return expected not in str(error) or store.is_done(run)
    return not store.is_done(run)


def _commit(store: Store, run: str, content: int) -> None:
    rows = writers.rows(run, content)
    store.commit(run, toy.tables(rows), toy.record(run), {"seconds": 1.0})


def _files(store: Store) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in store.path.rglob("*") if p.is_file()}


def _remove(store: Store, run: str) -> None:
    for path in store.path.glob(f"*/{run}.*"):
        path.unlink()
