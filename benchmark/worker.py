"""`python -m benchmark.worker`: work on one announced run. What every executor starts.

It resumes from the disk, commits first-wins, and ends at once when the run has a record. Its exit
code says what to do next:

    0 done           the run has a record: finished, diverged, or given up after several attempts
    3 error          a bug or bad input, which starting again would only repeat
    4 busy           another process has the run
    5 out of memory  of the device or the host; starting again may help
    6 input/output   a full, read-only or failing disk; starting again may help
    7 stopped        it was asked to stop (SIGTERM, SIGINT); starting again continues

A death by a signal is an accident: starting again continues. Anything else comes from before the
work, such as an installation that cannot be imported, and is an error too. What went wrong is said
in the work folder's `error.txt`, and how each attempt ended in its claim.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import torch

from benchmark import checkpoint
from benchmark.attempts import (
    ATTEMPTS,
    BUSY,
    CLAIM,
    DONE,
    ERROR,
    ERROR_FILE,
    IO,
    LOG_FILE,
    OUT_OF_MEMORY,
    STOPPED,
)
from benchmark.jobs import abandon, claim_of, clean, read_job
from benchmark.runner import run
from results import claims
from results.claims import LEASE_S, Claim, Held, Lost
from results.errors import UserError
from results.store import Store
from results.text import told

KILLED: Final = "killed"
_ENDINGS: Final = {
    ERROR: "error",
    OUT_OF_MEMORY: "out-of-memory",
    IO: "input-output",
    STOPPED: "stopped",
}
_FATAL: Final = frozenset({KILLED, _ENDINGS[OUT_OF_MEMORY]})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FAILING: Final = _FULL | {
    *(errno.EIO, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO),
    *(errno.EREMOTEIO, errno.ENOLINK, errno.EHOSTDOWN, errno.ECONNRESET, errno.ENOTCONN),
}
_NO_MEMORY: Final = ("can't allocate memory", "cannot allocate memory", "bad_alloc")


def work(
    store: Store,
    run_id: str,
    device: str,
    threads: int,
    *,
    plugins: Sequence[str] = (),
    attempts: int = ATTEMPTS,
    lease_s: float = LEASE_S,
    share: float = 1.0,
    job: str = "",
) -> int:
    """Work on one run; return the exit code.

    Args:
        store: where it was announced.
        run_id: the run.
        device: to train on.
        threads: CPU threads.
        plugins: files whose code may be run.
        attempts: how many that end fatally without getting further make it failed.
        lease_s: silence after which others may take over.
        share: of the GPU's memory that the run may take.
        job: the cluster's name of the job that this process is, if it is one.
    """
    try:
        if store.is_done(run_id):
            clean(store, run_id)
            return DONE
        if give_up(store, run_id, attempts):
            return DONE
        claim = claim_of(store, run_id, lease_s, job)
    except Held:
        return BUSY
    except (UserError, OSError) as error:
        if store.is_done(run_id):  # and its folder went meanwhile
            return DONE
        return _say(error, store, run_id)[0]
    code, reason = STOPPED, ""
    try:
        code, reason = _attempt(store, run_id, device, threads, plugins, share, claim)
    finally:
        claim.release(_ENDINGS.get(code, "done"), reason)
    if code == DONE:
        clean(store, run_id)
    return code


def give_up(store: Store, run_id: str, attempts: int) -> bool:
    """Record a run as failed if its attempts only die; whether it has a record now."""
    fatal = fatal_attempts(store, run_id)
    if len(fatal) < attempts:
        return False
    try:
        with claim_of(store, run_id, LEASE_S):
            if not store.is_done(run_id):
                count = f"{len(fatal)} attempts" if len(fatal) > 1 else "1 attempt"
                abandon(store, run_id, f"given up after {count}; the last: {fatal[-1].reason}")
    except Held:
        return False
    clean(store, run_id)
    return True


def fatal_attempts(store: Store, run_id: str) -> list[claims.Holder]:
    """The latest attempts that died or lacked memory, back to the last that got the run further.

    Those that were stopped, lost their machine, or met a failing disk are not held against a run.
    """
    folder = store.work(run_id)
    reached = checkpoint.newest_step(folder)
    found: list[claims.Holder] = []
    for holder in reversed(claims.history(folder, CLAIM)):
        began_from = holder.facts.get("step", 0)
        if reached > began_from:
            break
        reached = began_from
        if holder.ending in _FATAL:
            found.insert(0, holder)
    return found


def note_death(store: Store, run_id: str, reason: str, pid: int | None = None) -> None:
    """Say that the last attempt died, which it could not say itself.

    Args:
        store: where it was announced.
        run_id: the run.
        reason: what is known, in a sentence.
        pid: of the process that died, where it is known: an attempt of another is left alone.
    """
    with suppress(OSError, UserError):  # a disk that fails has no room for a message either
        last = claims.newest(store.work(run_id), CLAIM)
        if last is not None and not last.ending and pid in (None, last.pid):
            claims.close(last, KILLED, reason)
        if store.work(run_id).is_dir():
            store.write_work(run_id, ERROR_FILE, reason)


def busy_message(store: Store, run_id: str) -> str:
    """Who is at work on a run, and what comes of it."""
    holder = claims.newest(store.work(run_id), CLAIM)
    return (
        f"run {run_id} is being trained by {holder or 'another process'}; "
        "if that is stopped or dies, whoever runs the same command goes on with it"
    )


def _attempt(
    store: Store,
    run_id: str,
    device: str,
    threads: int,
    plugins: Sequence[str],
    share: float,
    claim: Claim,
) -> tuple[int, str]:
    """Exit code of one attempt, and what went wrong."""
    try:
        (store.work(run_id) / ERROR_FILE).unlink(missing_ok=True)
        if share < 1:
            torch.cuda.set_per_process_memory_fraction(share, device)
        run(read_job(store, run_id, plugins), store, torch.device(device), threads, claim)
    except Lost:
        return BUSY, ""
    except Exception as error:
        try:
            claim.require()
        except Lost:  # whatever went wrong, it went wrong because two were at it
            return BUSY, ""
        except OSError as failing:  # a disk that does not answer about the claim either
            return _say(failing, store, run_id)
        return _say(error, store, run_id)
    return DONE, ""


def _say(error: Exception, store: Store, run_id: str) -> tuple[int, str]:
    """Write what went wrong to the log and the work folder; exit code and text."""
    if not isinstance(error, UserError):
        traceback.print_exc()
    code, text = _explained(error, store, run_id)
    sys.stderr.write(f"{text}\n")
    # A full disk has no room for the message about it either.
    with suppress(OSError, UserError):
        store.write_work(run_id, ERROR_FILE, text.encode(errors="replace").decode())
    return code, text


def _explained(error: Exception, store: Store, run_id: str) -> tuple[int, str]:
    """Exit code, and what went wrong and what to do, in a sentence."""
    broken = _system_error(error)
    code = IO if broken is not None and broken.errno in _FAILING else ERROR
    if isinstance(error, UserError):
        return code, str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY, str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)
    ):
        advice = "run fewer at once (--jobs), or choose a smaller profile"
        return OUT_OF_MEMORY, f"out of memory on this machine; {advice}"
    if broken is not None and broken.errno in _FULL:
        return code, (
            f"no space for {broken.filename or store.path}: {broken.strerror}; free some space "
            "and run the same command again, nothing is lost"
        )
    if code == IO and broken is not None:
        return code, (
            f"{broken.filename or store.path} failed: {broken.strerror}; mend that and run the "
            "same command again, nothing is lost"
        )
    return code, f"{told(error)}; the traceback is in {store.work(run_id) / LOG_FILE}"


def _system_error(error: BaseException | None) -> OSError | None:
    """The error of the operating system that an error is, or came from."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error


def _stop(number: int, frame: object) -> NoReturn:
    """Unwind, so that the claim is let go and the next attempt begins at once."""
    raise SystemExit(STOPPED)


def main() -> int:
    """Parse the command line and work."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.worker")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plugin", action="append", default=[])
    parser.add_argument("--attempts", type=int, default=ATTEMPTS)
    parser.add_argument("--share", type=float, default=1.0, help="of the GPU's memory")
    parser.add_argument("--job", default="", help="of the cluster, that this is")
    parser.add_argument("--lease", type=float, default=LEASE_S, help="seconds")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    return work(
        Store(given.store),
        given.run,
        given.device,
        given.threads,
        plugins=given.plugin,
        attempts=given.attempts,
        lease_s=given.lease,
        share=given.share,
        job=given.job,
    )


if __name__ == "__main__":
    raise SystemExit(main())
