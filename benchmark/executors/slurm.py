"""A SLURM cluster: runs are jobs of an array, which go on without the command that submitted them.

The batch script calls the worker, which continues from the disk, and the store says what is done;
of the queue only `squeue` is asked (`benchmark.slurm_queue`). submitit checks the parameters,
writes the script and submits it. Its functions are not used, because they travel as pickles, and
neither are its states: without accounting it waits for a killed job for ever, and after the loss
of a node it calls failed what SLURM runs again.

A job that nears its time limit or is preempted with a signal requeues itself; what is preempted
without one, or loses its node, SLURM requeues; what ends otherwise is submitted again by whoever
runs the same command, as long as it gets further.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, ClassVar

from benchmark.attempts import LOG_FILE, STOPPED
from benchmark.executors.base import (
    THREAD_VARIABLES,
    Ending,
    Event,
    Executor,
    Resources,
    Starts,
    busy,
    command,
    let_go,
    settle,
)
from benchmark.jobs import clean
from benchmark.slurm_queue import (
    Entry,
    UnreachableError,
    ask,
    end_of,
    folder_of,
    forget_finished,
    new_submission,
    queue_of,
    submissions,
)
from benchmark.spec import override
from results.claims import Claim, Held, Holder
from results.errors import UserError
from results.store import Store

_IDLE_S = 0.2
_PATIENCE_S = 60
_LARGEST_ARRAY = 1000
_RUN = "RUN"
_NOBODY = "bench-nobody"
"""A name that no submission has, to see whether the queue answers."""
_PASSED = ("partition", "account", "qos", "time", "gres", "mem", "constraint")
_SILENCE_S = 1800
"""How long a queue may not answer before the command ends; the jobs go on without it."""

_SCRIPT = """\
run=${{RUNS[$SLURM_ARRAY_TASK_ID]}}
work={work}/$run
mkdir -p "$work"
reached() {{ ls "$work" | grep '^checkpoint-' | tail -n 1; }}
before=$(reached)
trap 'near=yes; kill -TERM "$worker" 2>/dev/null' USR2
trap 'told=yes' TERM
{worker} --job "$SLURM_JOB_ID" >>"$work/{log}" 2>&1 &
worker=$!
while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done
wait "$worker"
code=$?
if [ "$code" = {stopped} ] && [ -n "$near" ]; then
  if [ "$(reached)" != "$before" ] || [ "${{SLURM_RESTART_COUNT:-0}}" -lt {attempts} ]; then
    # One task of an array has the id of the whole array as its own.
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
  fi
elif [ "$code" = {stopped} ] && [ -n "$told" ]; then
  sleep {patience} & wait  # whoever told it to stop ends or requeues it
fi
exit "$code"
"""


class RefusedError(UserError):
    """SLURM does not take a job as it is asked for."""


@dataclass(frozen=True)
class SlurmSettings:
    """What is asked of SLURM for each run; "" leaves it to the cluster.

    partition, account, qos, time, gres, mem, constraint: as `sbatch` takes them.
    extra:    further options of `sbatch`, such as "--reservation=x --exclude=n7".
    setup:    a shell command before the run, such as "module load cuda".
    device:   to train on; "" for a GPU where `gres` asks for one, else the CPU.
    signal_s: seconds before the time limit at which a job requeues itself; 0 for never.
    poll_s:   seconds between looks at the queue.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    gres: str = ""
    mem: str = ""
    constraint: str = ""
    extra: str = ""
    setup: str = ""
    device: str = ""
    signal_s: int = 60
    poll_s: float = 10.0


@dataclass
class _Try:
    """What this command has done for a run.

    starts: times it was submitted.
    begun:  its start was told.
    ended:  the last look found its job ended; the next one decides.
    lost:   it is to be submitted, again or since there was no room for it.
    """

    starts: Starts = field(default_factory=Starts)
    begun: bool = False
    ended: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Slurm(Executor):
    """A job a run, at most `jobs` of a submission at once, `threads` CPUs each."""

    asked: SlurmSettings
    jobs: int | None = None
    threads: int = 1
    settings: ClassVar[Any] = SlurmSettings()
    elsewhere: ClassVar[bool] = True

    @classmethod
    def within(cls, resources: Resources) -> dict[str, Any]:
        """With one CPU a run unless told otherwise.

        Raises:
            UserError: submitit is not installed, or a setting is unknown.
        """
        asked = override(cls.settings, "slurm", resources.settings)
        _extra(asked.extra)
        _submitit()
        return {"asked": asked, "jobs": resources.jobs, "threads": resources.threads or 1}

    @property
    def parallel(self) -> int:
        """The limit on jobs at once; without one, the largest array."""
        return self.jobs or _LARGEST_ARRAY

    def unreachable(self) -> str:
        """See `Executor`."""
        try:
            ask([_NOBODY])
        except UnreachableError as error:
            return (
                f"{error}. Run the command where `squeue` answers, such as a login node, or choose "
                "another executor: local, inline or ray"
            )
        return ""

    def execute(
        self,
        runs: Sequence[str],
        store: Store,
        notify: Callable[[Event], None],
        idle: Callable[[], None],
    ) -> None:
        """See `Executor`. Runs that have a job in the queue already are attached to.

        Raises:
            UserError: SLURM does not answer, or refuses the jobs while it has none of this store.
            KeyboardInterrupt: at once; the jobs go on.
        """
        store = Store(store.path.resolve())
        tries = {run: _Try() for run in runs}

        def end(event: Event) -> None:
            if not tries.pop(event.run).begun:
                notify(Event(event.run, None))
            notify(event)

        for event in self._submit(runs, tries, store):
            end(event)
        answered = time.monotonic()
        while tries:
            next_look = time.monotonic() + self.asked.poll_s
            while time.monotonic() < next_look:
                idle()
                time.sleep(_IDLE_S)
            try:
                queue = queue_of(store)
                for run, now in list(tries.items()):
                    entry = queue.get(run)
                    if entry is not None and entry.state == "RUNNING" and not now.begun:
                        now.begun = True
                        notify(Event(run, None))
                    judged = self._judge(run, now, entry, store)
                    if judged is not None:
                        end(judged)
                lost = [run for run, now in tries.items() if now.lost]
                try:
                    for event in self._submit(lost, tries, store):
                        end(event)
                except RefusedError as error:
                    for run in [run for run, now in tries.items() if now.lost]:
                        end(Event(run, Ending.ERROR, str(error)))
                answered = time.monotonic()
            except UnreachableError as error:
                # Jobs do without the controller, and the next look may find it.
                for run in filter(store.is_done, list(tries)):
                    clean(store, run)
                    end(Event(run, Ending.DONE))
                if tries and time.monotonic() > answered + _SILENCE_S:
                    raise UserError(
                        f"{error}, for {_SILENCE_S // 60} minutes now. The jobs go on without this "
                        "command, and the same command attaches to them"
                    ) from None
        forget_finished(store)

    def farewell(self, store: Store) -> str:
        """See `Executor`."""
        names = [n for n, runs in submissions(store).items() if not all(map(store.is_done, runs))]
        if not names:
            return super().farewell(store)
        named = f"--name={','.join(names)}"
        return (
            f"interrupted; the jobs go on in the queue without this command (squeue {named}), and "
            f"the same command attaches to them. To stop them: scancel {named}; nothing is lost "
            "either way"
        )

    def _judge(self, run: str, now: _Try, entry: Entry | None, store: Store) -> Event | None:
        """The event for a run that has ended; None where it goes on, or is to be started again."""
        if now.lost:
            return None
        done, end = store.is_done(run), end_of(entry)
        if done or end is not None:
            if not done and not now.ended:
                now.ended = True  # but its last files may come late on a network file system
                return None
            if entry is not None and entry.state == "PENDING":
                with suppress(OSError, subprocess.TimeoutExpired):  # it would end by itself
                    words = ["scancel", entry.label]
                    subprocess.run(words, capture_output=True, timeout=_PATIENCE_S)
        if done:
            clean(store, run)
            return Event(run, Ending.DONE)
        now.ended = False
        if end is None:
            return None
        if end.code is None:
            return Event(run, Ending.ERROR, end.how)
        how = end.how or str(entry)

        def own(holder: Holder) -> bool:
            return entry is not None and holder.facts.get("job") == entry.job

        event = settle(
            *(run, end.code, store),
            starts=now.starts,
            attempts=self.attempts,
            how=how,
            pid=let_go(run, end.code, store, own, how),
        )
        now.lost = event is None
        return event

    def _submit(self, runs: Sequence[str], tries: dict[str, _Try], store: Store) -> list[Event]:
        """Submit those that have no job; the events of those that others finished or work on.

        Where SLURM takes no more, those that it does not take stay lost while it has others.

        Raises:
            UnreachableError: the queue cannot be asked.
            RefusedError: SLURM does not take the jobs, and has none of this store.
        """
        if not runs:
            return []
        events, missing = [], []
        with _alone(store):
            queue = queue_of(store)
            for run in runs:
                tries[run].lost = False
                if end_of(queue.get(run)) is not None:
                    event = busy(run, store)
                    if event is not None:
                        events.append(event)
                    else:
                        missing.append(run)
            before = ""
            for run in missing:
                tries[run].lost = True
            for at in range(0, len(missing), _LARGEST_ARRAY):
                part = missing[at : at + _LARGEST_ARRAY]
                for run in part:  # before it can have begun
                    tries[run].starts.begin(run, store)
                try:
                    before = self._send(part, before, store)
                except RefusedError:
                    for run in part:
                        tries[run].starts.number -= 1
                    if not at and all(end_of(entry) is not None for entry in queue.values()):
                        raise
                    break
                for run in part:
                    tries[run].lost = False
        return events

    def _send(self, runs: Sequence[str], before: str, store: Store) -> str:
        """Submit one array, to begin after the one before if jobs at once are limited; its id."""
        submitit = _submitit()
        folder = new_submission(store, runs)
        try:
            executor = submitit.SlurmExecutor(folder)
            executor.update_parameters(**self.parameters(folder.name, runs, before))
            executor.parameters["map_count"] = len(runs)
            with redirect_stderr(StringIO()):  # it prints what it raises
                return str(executor._submit_command(self.script(store)).job_id)
        except (RuntimeError, submitit.core.utils.FailedJobError) as error:
            if any(entry.name == folder.name for entry in ask([folder.name])):
                return ""  # it went through, though too late for sbatch to say so
            shutil.rmtree(folder)
            raise RefusedError(f"SLURM refuses the jobs: {error}") from None

    def parameters(self, name: str, runs: Sequence[str], before: str) -> dict[str, Any]:
        """What submitit is told of a submission, by its names for them."""
        asked = self.asked
        variables = [f"export {name}={self.threads}" for name in THREAD_VARIABLES]
        given = {k: getattr(asked, k) for k in _PASSED if getattr(asked, k)}
        return {
            "job_name": name,
            "array_parallelism": self.jobs or len(runs),
            "cpus_per_task": self.threads,
            "setup": [
                *([asked.setup] if asked.setup else []),
                *(*variables, "export CUBLAS_WORKSPACE_CONFIG=:4096:8"),
                f"RUNS=({' '.join(runs)})",
            ],
            "use_srun": False,  # a job step would need the controller to begin
            "stderr_to_stdout": True,
            "wckey": None,
            "time": None,
            "dependency": f"afterany:{before}" if before and self.jobs else None,
            **given,
            "additional_parameters": {
                "requeue": True,
                "signal": f"B:USR2@{asked.signal_s}",
                **_extra(asked.extra),
            },
        }

    def script(self, store: Store) -> str:
        """The shell commands of a job, after the parameters."""
        asked = self.asked
        gpu = "gpu" in asked.gres or "--gpu" in asked.extra
        words = command(
            *(_RUN, store),
            device=asked.device or ("cuda:0" if gpu else "cpu"),
            threads=self.threads,
            plugins=self.plugins,
            attempts=self.attempts,
        )
        return _SCRIPT.format(
            work=shlex.quote(str(store.path / "work")),
            log=LOG_FILE,
            worker=" ".join('"$run"' if w == _RUN else shlex.quote(w) for w in words),
            stopped=STOPPED,
            attempts=self.attempts,
            patience=_PATIENCE_S,
        )


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """While nobody else submits jobs for the store: look and submit are one step."""
    folder = folder_of(store)
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            claim = Claim.take(folder, "submitting")
            break
        except Held:
            time.sleep(_IDLE_S)
    with claim:
        yield


def _extra(text: str) -> dict[str, Any]:
    """Further options of sbatch: `--name=value` and `--name`."""
    words = shlex.split(text)
    wrong = [word for word in words if not word.startswith("--")]
    if wrong:
        raise UserError(
            f"--set slurm.extra: {wrong[0]!r} is not an option; write --name=value or --name"
        )
    parts = [word.removeprefix("--").partition("=") for word in words]
    return {name: value if equals else True for name, equals, value in parts}


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(
            "--executor slurm needs submitit, which is not installed: pip install "
            "'ssl3d-bench[slurm]'"
        ) from None
    return submitit
