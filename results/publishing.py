"""Giving content its final name in one stroke, and flushed to the disk, on any file system."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from results.errors import UserError

TEMPORARY: Final = ".tmp-"
"""How names of files begin that are being written."""

PAUSE_S: Final = 0.02
"""Between two looks at what another process is doing."""

_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_CLAIM_PATIENCE_S: Final = 10.0


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of the file system into a message that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            text = f"the store is full: {path} could not be written; free some space and run again"
        else:
            text = (
                f"the store cannot be used at {path}: {error.strerror or error}; "
                "mend that, or name another with --store"
            )
        raise UserError(f"{text} (what is stored is intact)") from error


def make_folder(path: Path) -> None:
    """Make a folder unless it is there, also while other processes make and remove it.

    `Path.mkdir` finds it there, looks whether it is a folder, and fails if it has gone in between.
    """
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            return
        except FileExistsError:
            if path.exists() and not path.is_dir():
                raise


@contextmanager
def temporary_file(folder: Path, run: str, content: bytes) -> Iterator[Path]:
    """A flushed temporary file, gone afterwards."""
    path = folder / f"{TEMPORARY}{run}-{uuid.uuid4().hex}"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        yield path
    finally:
        with suppress(OSError):
            os.unlink(path)


def replace(final: Path, run: str, content: bytes) -> None:
    """Give the content that name, whatever had it before.

    Raises:
        UserError: the file system fails; what was there stays.
    """
    with explained(final):
        make_folder(final.parent)
        with temporary_file(final.parent, run, content) as temporary:
            os.replace(temporary, final)
        flush_folder(final.parent)


def link(temporary: Path, final: Path) -> bool:
    """Name a file unless the name is taken; whether it was free."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _claim_and_rename(temporary, final)
    return True


def _claim_and_rename(temporary: Path, final: Path) -> bool:
    """As `link`, where the file system has no hard links: whoever creates the claim may rename."""
    claim = final.parent / f"{TEMPORARY}claim-{final.name}"
    give_up = time.monotonic() + _CLAIM_PATIENCE_S
    while True:
        try:
            os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            break
        except FileExistsError:
            if time.monotonic() > give_up:
                raise UserError(
                    f"another process has been writing {final} for {_CLAIM_PATIENCE_S:.0f} s; "
                    f"if there is none, delete {claim} and run again"
                ) from None
            time.sleep(PAUSE_S)
    try:
        if final.exists():
            return False
        os.rename(temporary, final)
        return True
    finally:
        os.unlink(claim)


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot flush a folder and need not.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
