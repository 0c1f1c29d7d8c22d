"""The queue of a SLURM cluster, and which of its jobs work on the runs of a store.

Every submission has a name, which is the name of its jobs in the queue and of a folder in the
store, `work/.slurm/<name>/`, that says which runs they are for. The folder is written before the
jobs are submitted. So no job is ever lost, whenever a driver is killed and however late a
controller answers: whoever comes later finds the jobs in the queue by their names.

Only `squeue` is asked, never `sacct`: accounting is an extra that many clusters lack.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmark.attempts import OUT_OF_MEMORY, STOPPED
from results.errors import UserError
from results.store import Store

_FOLDER: Final = ".slurm"
_RUNS_FILE: Final = "runs.json"
_NAME: Final = re.compile(r"bench-[0-9a-f]{8}-(\d+)")
_PATIENCE_S: Final = 60.0
_COLUMNS: Final = {
    "Name": 40,
    "ArrayTaskID": 16,
    "JobID": 16,
    "JobArrayID": 32,
    "State": 24,
    "exit_code": 16,
    "NodeList": 64,
    "Reason": 64,
}
_BY_CODE: Final = {"COMPLETED", "FAILED"}
_BY_SOMEBODY: Final = {"CANCELLED", "DEADLINE"}
_CUT: Final = {
    "TIMEOUT": "reached its time limit",
    "NODE_FAIL": "lost its node",
    "BOOT_FAIL": "had a node that did not start",
    "PREEMPTED": "was preempted",
    "REVOKED": "was revoked",
}
_HELD: Final = "launch failed requeued held"


class UnreachableError(UserError):
    """The queue cannot be asked now; later it may."""


@dataclass(frozen=True)
class Entry:
    """A job as the queue has it.

    name, index: of the submission, and its place among the runs of that.
    job:    id that no other start of another job has.
    label:  id as people write it, such as 12_3.
    state:  SLURM's word for it.
    code:   exit code; negative for a signal. It means something once the job has ended.
    node:   where it runs; "" where it does not.
    reason: why it waits or ended, in SLURM's words.
    """

    name: str
    index: int
    job: str
    label: str
    state: str
    code: int
    node: str
    reason: str

    def __str__(self) -> str:
        """For people."""
        where = f" on {self.node}" if self.node else ""
        why = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return f"job {self.label} {self.state.lower()}{where}{why}"


@dataclass(frozen=True)
class End:
    """How a job ended.

    code: exit code of its worker, or the one that says the same; None when somebody ended it.
    how:  what is known, in a sentence.
    """

    code: int | None
    how: str


def parse(text: str) -> list[Entry]:
    """The entries of `squeue`'s answer in the form that `ask` asks for.

    Raises:
        ValueError: it has another form.
    """
    found = []
    for line in text.splitlines():
        cells, at = {}, 0
        for column, width in _COLUMNS.items():
            cells[column] = line[at : at + width].strip()
            at += width
        status = int(cells["exit_code"] or 0)
        found.append(
            Entry(
                name=cells["Name"],
                index=int(cells["ArrayTaskID"]),
                job=cells["JobID"],
                label=cells["JobArrayID"],
                state=cells["State"],
                code=status >> 8 if status > 255 else -(status & 127),
                node=cells["NodeList"],
                reason=cells["Reason"].replace("_", " "),
            )
        )
    return found


def end_of(entry: Entry | None) -> End | None:
    """How a job ended, from what the queue says of it; None while it has not.

    A job that was requeued, by SLURM after the loss of its node or by itself, has not ended. One
    that is held since it could not be launched would never go on, and counts as lost.
    """
    if entry is None:
        return End(STOPPED, "its job is gone from the queue")
    if entry.state in _BY_CODE:
        return End(entry.code, "")
    if entry.state in _BY_SOMEBODY:
        return End(None, f"{entry} before it ended; the same command submits it again")
    if entry.state == "OUT_OF_MEMORY":
        return End(OUT_OF_MEMORY, f"job {entry.label} used more memory than it asked for")
    if entry.state in _CUT:
        return End(STOPPED, f"job {entry.label} {_CUT[entry.state]}")
    if entry.state == "PENDING" and entry.reason.lower().startswith(_HELD):
        return End(STOPPED, f"job {entry.label} could not be launched")
    return None


def ask(names: Iterable[str]) -> list[Entry]:
    """What the queue says of submissions; jobs that ended minutes ago may be forgotten.

    Raises:
        UnreachableError: there is no `squeue`, or no controller that answers it.
    """
    wanted = ",".join(names)
    if not wanted:
        return []
    columns = ",".join(f"{name}:{width}" for name, width in _COLUMNS.items())
    command = ["squeue", "--noheader", "--array", "--states=all", f"--name={wanted}", "-O", columns]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreachableError(f"the SLURM queue cannot be asked: {error}") from None
    if done.returncode != 0:
        raise UnreachableError(f"the SLURM queue cannot be asked: {done.stderr.strip()}")
    try:
        return parse(done.stdout)
    except ValueError as error:
        raise UnreachableError(f"squeue answers in an unknown form: {error}") from None


def submissions(store: Store) -> dict[str, tuple[str, ...]]:
    """The runs of every submission, by its name, oldest first."""
    found = {}
    for path in folder_of(store).glob(f"*/{_RUNS_FILE}"):
        match = _NAME.fullmatch(path.parent.name)
        if match is not None:
            with suppress(FileNotFoundError):  # another driver found it finished, and removed it
                runs = json.loads(path.read_text())
                found[int(match[1]), path.parent.name] = tuple(map(str, runs))
    return {name: found[number, name] for number, name in sorted(found)}


def queue_of(store: Store) -> dict[str, Entry]:
    """The newest job of every run that has one in the queue.

    Raises:
        UnreachableError: the queue cannot be asked.
    """
    known = submissions(store)
    return newest(known, ask(known))


def newest(known: Mapping[str, Sequence[str]], entries: Iterable[Entry]) -> dict[str, Entry]:
    """The entry of the newest submission that every run is part of, where the queue has it."""
    by_place = {(entry.name, entry.index): entry for entry in entries}
    latest = {run: (name, i) for name, runs in known.items() for i, run in enumerate(runs)}
    return {run: by_place[place] for run, place in latest.items() if place in by_place}


def folder_of(store: Store) -> Path:
    """Where a store keeps its submissions."""
    return store.path / "work" / _FOLDER


def new_submission(store: Store, runs: Sequence[str]) -> Path:
    """A folder for a submission that is about to be made; its name is that of its jobs."""
    numbers = [int(name.rpartition("-")[2]) for name in submissions(store)]
    folder = folder_of(store) / f"bench-{uuid.uuid4().hex[:8]}-{max(numbers, default=0) + 1}"
    folder.mkdir(parents=True)
    temporary = folder / f".tmp-{_RUNS_FILE}"
    temporary.write_text(json.dumps(list(runs)))
    temporary.replace(folder / _RUNS_FILE)
    return folder


def forget_finished(store: Store) -> None:
    """Remove the folders of submissions all of whose runs have a record."""
    for name, runs in submissions(store).items():
        if all(map(store.is_done, runs)):
            shutil.rmtree(folder_of(store) / name, ignore_errors=True)
