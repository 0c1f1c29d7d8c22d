"""Claims: who is at work on something, where several processes and machines share a folder.

A claim is a file `<name>-<number>` that its holder created; the highest number holds. Creating a
name that must not exist is atomic on every file system in use, NFS included, where locks may not
be. The holder touches its file a few times per lease; a claim is over when its holder says so, when
its process is gone (seen by others on the same system at once) or when a lease has passed since the
last touch. Then the next number is free, and one process gets it.

Nothing is ever renamed away or created twice, so a holder that was frozen and thaws finds the next
number taken: `Claim.require` tells it, and it must stop. Ages are differences of times of the file
system, so clocks of machines need not agree. The files stay, as the history of attempts, until the
folder goes.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from results.errors import UserError

LEASE_S: Final = 30.0
BEAT_S: Final = LEASE_S / 6
"""Between two touches of a holder with the usual lease."""
_BEATS_PER_LEASE: Final = LEASE_S / BEAT_S
_LARGEST: Final = 1 << 16
_DIGITS: Final = 6


@dataclass(frozen=True)
class Holder:
    """What a claim says of whoever took it.

    path:    its file; touched while the holder lives.
    number:  1 for the first claim of a name, then one more each.
    token:   unlike that of any other claim.
    host:    name of the machine, for people.
    system:  boot and process namespace that `pid` belongs to; "" where the system does not tell.
    began:   when the process began, in ticks since the boot, as process ids are used again.
    lease_s: seconds without a touch after which the claim is over.
    facts:   what else the holder wants known.
    ending:  how it ended, in a word; "" while it lasts, or where nobody has seen it end.
    reason:  the same in a sentence.
    """

    path: Path
    number: int
    token: str = ""
    host: str = ""
    system: str = ""
    pid: int = 0
    began: str = ""
    lease_s: float = LEASE_S
    facts: Mapping[str, Any] = field(default_factory=dict)
    ending: str = ""
    reason: str = ""

    @property
    def dead(self) -> bool:
        """Its process ran on this system and is gone; False where that cannot be told."""
        if not self.system or self.system != _system():
            return False
        began = _began(self.pid)
        return not _exists(self.pid) if began is None else began != self.began

    def silent_s(self, now: float) -> float:
        """Seconds since the last touch, at a time of the file system."""
        try:
            return now - self.path.stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def is_live(self, now: float | None = None) -> bool:
        """Whether the claim still holds.

        Args:
            now: time of the file system, or close to it; None to ask the file system, which
                writes to the folder.
        """
        if self.ending or self.dead:
            return False
        when = file_system_time(self.path.parent) if now is None else now
        return self.silent_s(when) <= self.lease_s

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.pid} on {self.host}" if self.pid else "another process"


class Held(UserError):
    """Another process has the claim."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(f"{holder.path} is held by {holder}")
        self.holder = holder


class Lost(UserError):
    """The claim was taken by another process, after this one had been silent for a lease."""


class Claim:
    """A claim of this process, kept alive by a thread until it is released."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @classmethod
    def take(
        cls,
        folder: Path,
        name: str,
        lease_s: float = LEASE_S,
        facts: Mapping[str, Any] | None = None,
    ) -> Self:
        """Get the claim of this name in a folder.

        Raises:
            Held: another process has it.
            OSError: the folder is not there or cannot be written.
        """
        while True:
            last = newest(folder, name)
            if last is not None and last.is_live():
                raise Held(last)
            number = last.number + 1 if last is not None else 1
            holder = Holder(
                path=_path(folder, name, number),
                number=number,
                token=uuid.uuid4().hex,
                host=platform.node(),
                system=_system(),
                pid=os.getpid(),
                began=_began(os.getpid()) or "",
                lease_s=lease_s,
                facts=dict(facts or {}),
            )
            try:
                handle = os.open(holder.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                continue  # somebody was faster; see whether it lives
            try:
                os.write(handle, _text(holder))
            finally:
                os.close(handle)
            if last is not None and not last.ending:
                close(last, "expired", f"taken over by {holder}")
            return cls(holder)

    def require(self) -> None:
        """Go on only as the holder.

        Raises:
            Lost: another process has taken over.
        """
        path = self.holder.path
        now = _read(path, self.holder.number)
        stem, _, number = path.name.rpartition("-")
        taken = _path(path.parent, stem, int(number) + 1).exists()
        if taken or now.token != self.holder.token or now.ending:
            raise Lost(
                f"{path.parent} belongs to another process by now, since this one was silent for "
                f"more than {self.holder.lease_s:g} s; that one goes on"
            )

    def release(self, ending: str = "released", reason: str = "") -> None:
        """Let others have it at once."""
        self._over.set()
        self._thread.join()
        # A folder that is gone needs no release; one that cannot be written frees it by time.
        with suppress(OSError):
            now = _read(self.holder.path, self.holder.number)
            if now.token == self.holder.token and not now.ending:
                close(self.holder, ending, reason)

    def forget(self) -> None:
        """Release it and remove its history, where what it was about cannot come again."""
        self.release()
        path = self.holder.path
        stem = path.name.rpartition("-")[0]
        for number in range(1, self.holder.number + 1):  # a newer one belongs to others
            _path(path.parent, stem, number).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._over.is_set():
            self.release()

    def _beat(self) -> None:
        while not self._over.wait(self.holder.lease_s / _BEATS_PER_LEASE):
            with suppress(OSError):  # a beat that cannot be written is missed, not fatal
                os.utime(self.holder.path)


def history(folder: Path, name: str) -> list[Holder]:
    """Every claim there was, oldest first."""
    return [_read(_path(folder, name, number), number) for number in _numbers(folder, name)]


def newest(folder: Path, name: str) -> Holder | None:
    """The claim that holds, or was the last to; None when there was none."""
    number = max(_numbers(folder, name), default=0)
    while _path(folder, name, number + 1).exists():  # listings of network file systems lag behind
        number += 1
    return _read(_path(folder, name, number), number) if number else None


def close(holder: Holder, ending: str, reason: str = "") -> None:
    """Write how a claim ended; also for a holder that was seen to die."""
    text = _text(replace(holder, ending=ending, reason=reason))
    temporary = holder.path.with_name(f".tmp-{holder.path.name}-{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):  # the folder went: what it was about is done
        try:
            temporary.write_bytes(text)
            temporary.replace(holder.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _numbers(folder: Path, name: str) -> list[int]:
    pattern = re.compile(rf"{re.escape(name)}-(\d{{{_DIGITS},9}})")
    try:
        found = (pattern.fullmatch(entry) for entry in os.listdir(folder))
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in found if match)


def _path(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number:0{_DIGITS}d}"


def _text(holder: Holder) -> bytes:
    described = {k: v for k, v in asdict(holder).items() if k not in ("path", "number")}
    return json.dumps(described, sort_keys=True).encode()


def _read(path: Path, number: int) -> Holder:
    """A claim; one that is just being written, or is damaged, says nothing and ages by its time."""
    unknown = Holder(path, number)
    try:
        with path.open("rb") as file:
            said = json.loads(file.read(_LARGEST))
        if not isinstance(said, dict) or not isinstance(said["facts"], dict):
            return unknown
        words = ("token", "host", "system", "began", "ending", "reason")
        return Holder(
            path,
            number,
            pid=int(said["pid"]),
            lease_s=float(said["lease_s"]),
            facts=said["facts"],
            **{word: str(said[word]) for word in words},
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return unknown


def file_system_time(folder: Path) -> float:
    """Now, by the clock that stamps files here."""
    probe = folder / f".tmp-clock-{uuid.uuid4().hex}"
    try:
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError:
        return time.time()  # a folder that cannot be written cannot be claimed either
    try:
        os.utime(handle)
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        with suppress(OSError):
            probe.unlink()


def _system() -> str:
    """What process ids here belong to: this boot of this kernel, and the process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _exists(pid: int) -> bool:
    """Whether there is a process of this id, also where those of other users are hidden."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the boot; "" for a corpse, None where nothing tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in ("Z", "X") else fields[19]
