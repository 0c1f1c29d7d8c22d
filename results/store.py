"""The store: immutable Parquet, one file per run and table. No lock, no server, no manifest.

    cases/ history/ pseudo/ runs/   <run>.parquet, complete or absent
    predictions/                    the same, of runs that were asked to keep them
    runs/<run>.json                 sidecar: what varies between attempts (times, host)
    runs/.discarded-<run>           the record of a failed run that is being forgotten
    work/<run>/                     an unfinished run: its spec, checkpoints and parts of tables

A file is written as `.tmp-<run>-<uuid>`, flushed to the disk and linked to its final name: the
first attempt wins and nothing is ever overwritten. The run's record is linked last, so "done" is
that it exists. Readers skip names with a leading dot.

A failed run is forgotten by renaming its record, which is one stroke, and then removing the rest.
Whoever is killed in between leaves the renamed record behind, which says that the rest is rubbish.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd

from results.claims import Claim, Held
from results.errors import UserError
from results.parquet import decode, encode
from results.publishing import (
    PAUSE_S,
    TEMPORARY,
    explained,
    flush_folder,
    link,
    make_folder,
    replace,
    temporary_file,
)
from results.schema import OPTIONAL, TABLES

RUN_TABLES: Final = ("cases", "history", "pseudo")
_RUN_ID: Final = re.compile(r"[a-z0-9-]{1,64}")
_PART: Final = re.compile(r"([a-z]+)-(\d+)\.parquet")
_DISCARDED: Final = ".discarded-"
_CLAIM: Final = "discard"
TOLD: Final = ("state", "error", "steps", "evaluations")
"""What the sidecar repeats of the record: JSON of ten thousand runs is read in a moment."""


class ConflictError(UserError):
    """Two attempts at one run gave different bytes."""


class Store:
    """A folder of results; see the module's docstring for its layout."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: Path | str, create: bool = False) -> Store:
        """The store at a path.

        Raises:
            UserError: it is missing and `create` is false, or it cannot be created.
        """
        store = cls(path)
        if create:
            with explained(store.path):
                for name in (*RUN_TABLES, "runs", "work"):
                    make_folder(store.path / name)
                flush_folder(store.path)
            store.refuse_links()
        elif not (store.path / "runs").is_dir():
            raise UserError(
                f"no store at {store.path}: run `bench run` first, or name another with --store"
            )
        else:
            store.refuse_links()
        return store

    def refuse_links(self) -> None:
        """Refuse a store whose folders lead out of it.

        Raises:
            UserError: names one that does.
        """
        inside = self.path.resolve()
        for folder in (self.path / name for name in (*TABLES, "work")):
            if not folder.resolve().is_relative_to(inside):
                raise UserError(
                    f"{folder} leads out of the store, to {folder.resolve()}, which a store's own "
                    "folders may not. Link the whole store, or replace it by what it leads to"
                )

    # Committed runs

    def commit(
        self,
        run: str,
        tables: Mapping[str, pd.DataFrame],
        record: Mapping[str, Any],
        sidecar: Mapping[str, Any],
    ) -> Literal["committed", "already"]:
        """Publish a finished or failed run, all of it or (until the record) nothing.

        Args:
            run: run id.
            tables: `cases`, `history` and `pseudo`, and of optional ones those that the run has;
                the `run` column may be left out.
            record: the run's row of `runs`.
            sidecar: what varies between attempts; kept from the attempt that completes.

        Returns:
            "already" when an earlier attempt published the same bytes.

        Raises:
            ConflictError: an earlier attempt published other bytes; they stay.
            UserError: the store is full or cannot be written.
            ValueError: frames that do not follow the schema.
        """
        if set(tables) - set(OPTIONAL) != set(RUN_TABLES):
            raise ValueError(f"tables of a run: expected {RUN_TABLES}, not {tuple(tables)}")
        contents = {name: encode(name, _of_run(tables[name], run)) for name in tables}
        last = encode("runs", _of_run(pd.DataFrame([dict(record)]), run))
        self._finish_discarding(run)
        for name, content in contents.items():
            self._publish(self._file(name, run), run, content)
        if not self.is_done(run):
            told = {**sidecar, "record": {name: record[name] for name in TOLD}}
            text = json.dumps(told, sort_keys=True, indent=1, allow_nan=False)
            replace(self._file("runs", run, "json"), run, text.encode())
        created = self._publish(self._file("runs", run), run, last)
        return "committed" if created else "already"

    def is_done(self, run: str) -> bool:
        """Whether the run has a record: it finished or failed, and is never touched again."""
        return self._file("runs", run).exists()

    def done(self) -> list[str]:
        """Ids of finished and failed runs, in order."""
        with explained(self.path / "runs"):
            entries = os.listdir(self.path / "runs")
        names = [n for n in entries if n.endswith(".parquet") and not n.startswith(".")]
        return sorted(_checked(name.removesuffix(".parquet")) for name in names)

    def has(self, table: str, run: str) -> bool:
        """Whether a run that is done has this optional table."""
        return self.is_done(run) and self._file(table, run).exists()

    def records(self) -> pd.DataFrame:
        """The `runs` table: one row per finished or failed run."""
        return self.read("runs")

    def record(self, run: str) -> dict[str, Any]:
        """The record of one run.

        Raises:
            UserError: it has none.
        """
        return {str(k): v for k, v in self.read("runs", [run]).iloc[0].to_dict().items()}

    def state(self, run: str) -> str:
        """How a run ended: finished or failed.

        Raises:
            UserError: it has no record.
        """
        return str(self.record(run)["state"])

    def sidecar(self, run: str) -> dict[str, Any]:
        """What varied between attempts at a committed run.

        Raises:
            UserError: the run has none, or the file is damaged.
        """
        path = self._file("runs", run, "json")
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None

    def read(
        self,
        table: str,
        runs: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Rows of committed runs, by run id and then as written.

        Args:
            table: one of `schema.TABLES`.
            runs: which ones; None for all that have a record (and this table, if it is optional).
            columns: which ones, in this order; None for all.

        Returns:
            The schema's types; text is categorical except in `runs`.

        Raises:
            UserError: no such run, a damaged file, or a store of a newer version.
        """
        names = self.done() if runs is None else list(runs)
        if runs is None and table in OPTIONAL:
            names = [run for run in names if self.has(table, run)]
        for run in names:
            if not self.is_done(run):
                raise UserError(f"{self.path} has no finished or failed run {run}")
        files = [(run, self._file(table, run)) for run in names]
        try:
            return decode(table, files, columns)
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename or error} is missing although its run has a record: restore it "
                "from a copy, or delete every file of this run in the store and run it again"
            ) from None

    def discard_failed(self, run: str) -> None:
        """Forget a failed run, so that it can be tried again.

        Killed half-way, the run is either as it was, or without a record; then the next call, or
        the next commit of the run, removes the rest.

        Raises:
            UserError: it has no record, or it finished: finished runs are never removed.
        """
        discarded = self._discarded(run)
        if self.is_done(run) or not discarded.exists():
            if self.state(run) != "failed":
                raise UserError(f"run {run} finished; only failed runs can be discarded")
            # Without a record by now, another process is about the same.
            with explained(self.path), suppress(FileNotFoundError):
                os.replace(self._file("runs", run), discarded)
                flush_folder(discarded.parent)
        self._finish_discarding(run)

    # Unfinished runs

    def work(self, run: str) -> Path:
        """The work folder of a run; it need not exist.

        Raises:
            UserError: not a run id, or something else in its place that leads elsewhere.
        """
        folder = self.path / "work" / _checked(run)
        if folder.is_symlink():
            raise UserError(f"{folder} is a link, which no run has made; remove it")
        return folder

    def write_work(self, run: str, name: str, text: str) -> Path:
        """Write a text file into the work folder, atomically; `spec.json` makes a run known."""
        path = self.work(run) / name
        replace(path, run, text.encode())
        return path

    def read_work(self, run: str, name: str) -> str:
        """A text file of the work folder.

        Raises:
            UserError: it cannot be read.
        """
        with explained(self.work(run) / name):
            return (self.work(run) / name).read_text()

    def unfinished(self) -> list[str]:
        """Runs that are known (`work/<run>/spec.json`) and have no record."""
        found = sorted(p.parent.name for p in (self.path / "work").glob("*/spec.json"))
        return [run for run in found if _RUN_ID.fullmatch(run) and not self.is_done(run)]

    def write_part(self, run: str, table: str, step: int, frame: pd.DataFrame) -> None:
        """Keep the rows of an unfinished run up to `step`, atomically; again is the same.

        The `run` column may be left out.
        """
        content = encode(table, _of_run(frame, run))
        replace(self.work(run) / f"{table}-{step}.parquet", run, content)

    def read_parts(self, run: str, table: str) -> pd.DataFrame:
        """All rows kept for an unfinished run, in the order of steps."""
        files = [(run, path) for _, path in self._parts(run, table)]
        return decode(table, files)

    def drop_parts_after(self, run: str, step: int) -> None:
        """Remove rows kept beyond `step`: those of a checkpoint that was lost."""
        with explained(self.work(run)):
            for table in (*RUN_TABLES, *OPTIONAL):
                for at, path in self._parts(run, table):
                    if at > step:
                        path.unlink()
            if self.work(run).is_dir():
                flush_folder(self.work(run))

    def read_partial(self, table: str) -> pd.DataFrame:
        """The rows that unfinished runs have so far."""
        files = []
        for run in self.unfinished():
            files += [(run, path) for _, path in self._parts(run, table)]
        while True:
            try:
                return decode(table, files)
            except FileNotFoundError:
                # A run has ended meanwhile, or went back to an earlier checkpoint.
                files = [(run, path) for run, path in files if path.exists()]

    def clean_work(self, run: str) -> None:
        """Remove the work folder of a committed run.

        Raises:
            UserError: the run has no record yet, so the folder is all there is of it.
        """
        if not self.is_done(run):
            raise UserError(f"run {run} has no record: its work folder {self.work(run)} stays")
        with explained(self.work(run)):
            if self.work(run).exists():
                shutil.rmtree(self.work(run))

    def sweep_temporary(self, hours: float) -> int:
        """Remove temporary files that killed processes left, older than `hours`; count them."""
        oldest = time.time() - hours * 3600
        swept = 0
        with explained(self.path):
            for path in self.path.glob(f"*/**/{TEMPORARY}*"):
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < oldest:
                        path.unlink()
                        swept += 1
        return swept

    def _finish_discarding(self, run: str) -> None:
        """Remove what a discarded attempt has left, if anything; the renamed record goes last."""
        discarded = self._discarded(run)
        with explained(discarded):
            while discarded.exists():
                make_folder(self.work(run))
                # Its folder goes where another process has finished the run by now.
                with suppress(Held, FileNotFoundError), Claim.take(self.work(run), _CLAIM) as claim:
                    self._remove_discarded(run, claim)
                    claim.forget()
                    with suppress(OSError):  # more lies in it where the run was announced
                        self.work(run).rmdir()
                    return
                time.sleep(PAUSE_S)

    def _remove_discarded(self, run: str, claim: Claim) -> None:
        discarded = self._discarded(run)
        for path in (
            *(self._file(name, run) for name in (*RUN_TABLES, *OPTIONAL)),
            self._file("runs", run, "json"),
            discarded,
        ):
            # Whoever was here before may be through, and what lies there of a new attempt.
            claim.require()
            if discarded.exists() and path.exists():
                path.unlink()
                flush_folder(path.parent)

    def _discarded(self, run: str) -> Path:
        return self.path / "runs" / f"{_DISCARDED}{_checked(run)}"

    def _file(self, table: str, run: str, suffix: str = "parquet") -> Path:
        if table not in TABLES:
            raise ValueError(f"unknown table {table!r}; known: {', '.join(TABLES)}")
        return self.path / table / f"{_checked(run)}.{suffix}"

    def _parts(self, run: str, table: str) -> list[tuple[int, Path]]:
        found = []
        for path in self.work(run).glob(f"{table}-*.parquet"):
            match = _PART.fullmatch(path.name)
            if match is not None:
                found.append((int(match.group(2)), path))
        return sorted(found)

    def _publish(self, final: Path, run: str, content: bytes) -> bool:
        """Give the content its final name unless that is taken; whether it was free."""
        with explained(final):
            make_folder(final.parent)
            with temporary_file(final.parent, run, content) as temporary:
                created = link(temporary, final)
            flush_folder(final.parent)
            if created:
                return True
            ours, theirs = _digest(content), _digest(final.read_bytes())
        if ours != theirs:
            raise ConflictError(
                f"two attempts at run {run} differ: {final} holds sha256 {theirs}, this one is "
                f"{ours}. The stored file stays. {self._advice(final, run)}"
            )
        return False

    def _advice(self, final: Path, run: str) -> str:
        if self.is_done(run):
            return "Compare the two environments: equal runs should be equal bytes"
        return (
            f"The run has no record, so that attempt was cut; if no other process is at work on "
            f"it, delete {final} and run again"
        )


def _checked(run: str) -> str:
    if not _RUN_ID.fullmatch(run):
        raise UserError(f"{run!r} is not a run id: expected 1 to 64 of a-z, 0-9 and -")
    return run


def _of_run(frame: pd.DataFrame, run: str) -> pd.DataFrame:
    if "run" not in frame.columns:
        return frame.assign(run=pd.Series(run, index=frame.index, dtype=object))
    others = set(frame["run"].unique()) - {run}
    if others:
        raise ValueError(f"rows of run {', '.join(map(str, sorted(others)))} given for run {run}")
    return frame


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
