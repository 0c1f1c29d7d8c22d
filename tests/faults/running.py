"""What happens to a run: killed in every phase, robbed of a checkpoint, its driver shot."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmark import checkpoint, environment, runner, trainer
from benchmark.attempts import DONE, ERROR_FILE
from benchmark.evaluation import Evaluator
from benchmark.executors.base import Event, Executor
from benchmark.executors.inline import Inline
from benchmark.executors.local import Local, Slot
from benchmark.scheduler import execute
from benchmark.view import Silent
from benchmark.worker import work
from methods import METHODS
from results import store as store_module
from results.store import RUN_TABLES, Store
from tests.faults.base import Row, Scale, contents, fresh, planned, processes, toy

PATIENCE_S = 5.0


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(real: Callable[..., Any], nth: int) -> Callable[..., Any]:
    """The function, whose nth call ends the process instead."""
    calls = 0

    def call(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            _die()
        return real(*given, **options)

    return call


def _after(real: Callable[..., Any], nth: int) -> Callable[..., Any]:
    """The function, after whose nth call the process ends."""
    calls = 0

    def call(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        found = real(*given, **options)
        if calls == nth:
            _die()
        return found

    return call


def _half_written(nth: int) -> None:
    """The nth checkpoint reaches the disk in half, and then its process is gone."""
    save, flush, saving = checkpoint.save, os.fsync, [0]

    def counted(*given: Any) -> Path:
        saving[0] += 1
        return save(*given)

    def cut(handle: int) -> None:
        if saving[0] == nth:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            _die()
        flush(handle)

    checkpoint.save, os.fsync = counted, cut


def _start(nth: int) -> None:
    names = ("load_world", "build_learner", "build_sampler")
    name = names[nth % len(names)]
    setattr(runner, name, _before(getattr(runner, name), 1))


def _forward(nth: int) -> None:
    trainer._backward = _before(trainer._backward, nth)


def _half_step(nth: int) -> None:
    """One optimiser has moved; other players, teachers and queues have not."""
    torch.optim.SGD.step = _after(torch.optim.SGD.step, nth)  # type: ignore[method-assign]


def _evaluation(nth: int) -> None:
    Evaluator.cases = _before(Evaluator.cases, nth)  # type: ignore[method-assign]


def _before_commit(nth: int) -> None:
    store_module.link = _before(store_module.link, nth)


def _after_commit(nth: int) -> None:
    store_module.link = _after(store_module.link, nth)


PHASES: dict[str, tuple[Callable[[int], None], int]] = {
    "start": (_start, 3),
    "forward and backward": (_forward, 8),
    "half step": (_half_step, 8),
    "evaluation": (_evaluation, 2),
    "half-written checkpoint": (_half_written, 4),
    "before a commit": (_before_commit, 4),
    "after a commit": (_after_commit, 3),
}
"""How each is brought about, and how many places it has in a run of eight steps."""


def _attempt(path: str, run: str, phase: str, nth: int) -> None:
    """Work on a run in this process, to be killed at the nth place of a phase, if it comes."""
    if phase:
        PHASES[phase][0](nth)
    os._exit(work(Store(path), run, "cpu", 1))


def attempt(store: Store, run: str, phase: str = "", nth: int = 0) -> int:
    """Exit code of an attempt in a process of its own."""
    child = processes().Process(target=_attempt, args=(str(store.path), run, phase, nth))
    child.start()
    child.join()
    return int(child.exitcode or 0)


def killed_phases(scale: Scale) -> Row:
    """Every method is killed in every phase, resumed, and compared to the last byte."""
    names = [m.name for m in METHODS] if scale.full else ["tcseg"]
    each = scale.pick(scale.each, 1)
    toy(scale)
    # Not threads: starting a process polls those of other threads too, and takes exit codes away.
    with ProcessPoolExecutor(environment.cores(), get_context("spawn")) as drivers:
        found = drivers.map(_killed_phases, repeat(scale), names, repeat(each))
        wrong = [what for of_a_method in found for what in of_a_method]
    count = f"{len(names)} methods x {len(PHASES)} phases x {each} = "
    count += f"{len(names) * len(PHASES) * each:,}"
    said = "differing runs; loading in the run's process"
    return Row("run killed in 7 phases", count, len(wrong), "; ".join([said, *wrong]))


def _killed_phases(scale: Scale, name: str, each: int) -> list[str]:
    """What went wrong with a method's runs after kills, `each` in every phase."""
    made = planned(scale, scale.folder / "x", name, predictors="all")
    whole, (run,) = fresh(made, scale.folder / f"whole-{name}")
    cut, _ = fresh(made, scale.folder / f"cut-{name}")
    code, rng, wrong = attempt(whole, run), scale.rng(name), []
    if code != DONE:
        return [f"{name}: {_ended(whole, run, code)}"]
    # A run is cut in one phase after another until it ends, so that cuts of cuts are tried too.
    for phase, (_, places) in list(PHASES.items()) * each:
        code = DONE
        while code != -signal.SIGKILL:
            if cut.is_done(run):
                wrong += [f"{name}, before {phase}: {t}" for t in _unlike(whole, cut, run)]
                shutil.rmtree(cut.path)
                fresh(made, cut.path)
            code = attempt(cut, run, phase, int(rng.integers(places)) + 1)
            if code not in (-signal.SIGKILL, DONE):
                return [*wrong, f"{name}, {phase}: {_ended(cut, run, code)}"]
    code = attempt(cut, run)
    if code != DONE:
        return [*wrong, f"{name}, at the end: {_ended(cut, run, code)}"]
    return wrong + [f"{name}, at the end: {t}" for t in _unlike(whole, cut, run)]


def _ended(store: Store, run: str, code: int) -> str:
    """How an attempt ended that should not have."""
    path = store.work(run) / ERROR_FILE
    return f"exit code {code} {path.read_text() if path.exists() else ''}".rstrip()


def _unlike(one: Store, other: Store, run: str) -> list[str]:
    """Tables of a run that differ."""
    expected, found = contents(one, run), contents(other, run)
    return [f"{table} differs" for table in expected if expected[table] != found[table]]


def damaged_checkpoints(scale: Scale) -> Row:
    """The newest checkpoint is cut short or has a bit flipped, at many places."""
    places = scale.pick(50, 4)
    made = planned(scale, scale.folder / "x", "mt")
    whole, (run,) = fresh(made, scale.folder / "undamaged")
    bad = int(attempt(whole, run) != DONE)
    cut, _ = fresh(made, scale.folder / "to-damage")
    bad += attempt(cut, run, "half-written checkpoint", 4) != -signal.SIGKILL
    rng = scale.rng("damage")
    for place in range(places):
        copy = Store(scale.folder / f"damaged-{place}")
        shutil.copytree(cut.path, copy.path)
        newest = max(copy.work(run).glob("checkpoint-*.pt"))
        content = bytearray(newest.read_bytes())
        where = int(rng.integers(len(content)))
        if place % 2:
            content[where] ^= 1 << int(rng.integers(8))
        else:
            del content[where:]
        newest.write_bytes(content)
        fell_back = checkpoint.load_newest(copy.work(run), torch.device("cpu"))
        bad += fell_back is None or fell_back[0] != checkpoint.newest_step(cut.work(run)) - 2
        bad += attempt(copy, run) != DONE or contents(copy, run) != contents(whole, run)
        shutil.rmtree(copy.path)
    return Row("checkpoint truncated or bit-flipped", f"{places} places", bad, "falls back")


def same_grid(scale: Scale) -> Row:
    """The same grid by every executor that works here gives the same tables."""
    slots = (Slot("cpu", None, 1),) * 2
    executors: dict[str, Executor] = {"inline": Inline("cpu", 1), "local": Local(slots)}
    methods = scale.pick(4, 2)
    bad = differing(scale, executors, [m.name for m in METHODS][:methods])
    name = f"same grid by {', '.join(executors)}"
    return Row(name, f"{len(executors)} executors", bad, f"{2 * methods} runs, SHA-256 of tables")


def differing(scale: Scale, executors: Mapping[str, Executor], methods: list[str]) -> int:
    """Files of a grid's tables that differ between executors, or that some lack."""
    seen: list[dict[str, str]] = []
    for name, executor in executors.items():
        path = scale.folder / f"grid-{name}"
        made = planned(scale, path, ",".join(methods), seeds="2")
        store = Store.open(path, create=True)
        execute(made.jobs, store, executor, Silent())
        seen.append(
            {
                f"{table}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
                for table in (*RUN_TABLES, "runs")
                for file in (store.path / table).glob("*.parquet")
            }
        )
    files = {name for found in seen for name in found}
    expected = len(methods) * 2 * (len(RUN_TABLES) + 1)
    return abs(len(files) - expected) + sum(len({s.get(f) for s in seen}) > 1 for f in files)


LONG = ["profile.steps=60", "profile.evaluate_from=60", "profile.evaluate_every=60"]


def killed_workers(scale: Scale) -> Row:
    """Workers of a grid are shot at random; their runs begin again, the others are untouched."""
    kills = scale.pick(20, 2)
    path = scale.folder / "shot"
    made = planned(scale, path, "supervised", seeds=str(scale.pick(8, 2)), settings=LONG)
    store = Store.open(path, create=True)
    rng = scale.rng("shot")

    class Killer(Silent):
        """Shoots a worker at work once in a while, and waits for its run to begin again."""

        def __init__(self) -> None:
            self.shot: Counter[str] = Counter()
            self.waits: list[float] = []
            self.waiting: dict[str, float] = {}
            self.next = time.monotonic()

        def event(self, event: Event) -> None:
            if event.ending is None and event.run in self.waiting:
                self.waits.append(time.monotonic() - self.waiting.pop(event.run))

        def refresh(self) -> None:
            if self.shot.total() >= kills or self.waiting or time.monotonic() < self.next:
                return
            for run in rng.permutation(store.unfinished()):
                now = _progress(store.work(run))
                if now and now["step"] < 60 and self.shot[run] < 5:
                    os.kill(now["pid"], signal.SIGKILL)
                    self.shot[str(run)] += 1
                    self.waiting[str(run)] = time.monotonic()
                    self.next = time.monotonic() + float(rng.uniform(0, 1.5))
                    return

    view = Killer()
    executor = Local((Slot("cpu", None, 1),) * 2, attempts=100)
    summary = execute(made.jobs, store, executor, view)
    bad = len(made.jobs) - len(summary.finished)
    for run in summary.finished:
        bad += len(store.sidecar(run)["attempts"]) != 1 + view.shot[run]
    bad += sum(wait > PATIENCE_S for wait in view.waits) + len(view.waiting)
    bad += view.shot.total() != kills
    said = f"begun again after {max(view.waits):.1f} s at most; the others' attempts: 1"
    return Row("worker killed", str(kills), bad, said)


def _progress(folder: Path) -> dict[str, int] | None:
    """The attempt at work there, if its process lives."""
    try:
        attempts = json.loads((folder / "progress.json").read_text())["attempts"]
    except (OSError, ValueError):
        return None
    if not attempts or not Path(f"/proc/{attempts[-1]['pid']}").exists():
        return None
    return dict(attempts[-1])


def killed_parents(scale: Scale) -> Row:
    """`bench run` is shot at any moment of its workers' lives; nothing of it is left after 5 s."""
    name, kills = "parent killed", scale.pick(20, 2)
    if not Path("/proc/self/stat").exists():
        return Row(name, "0", 0, skipped="needs /proc, to see what is left")
    folder, root = toy(scale)
    rng, bad, longest = scale.rng("parents"), 0, 0.0
    for number in range(kills):
        path = scale.folder / f"orphans-{number}"
        words = [
            *("-m", "benchmark.cli", "run", "-m", "supervised", "-d", str(folder)),
            *("--labelled", "2", "--seeds", "2", "--profile", "smoke", "--jobs", "2"),
            *("--set", "profile.steps=4000", "--set", "profile.evaluate_from=4000"),
            *("--store", str(path), "--data", str(root)),
        ]
        parent = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        patience = time.monotonic() + 120
        while len(_workers(path)) < 2 and time.monotonic() < patience:
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, scale.pick(6, 2))))
        bad += len(_workers(path)) < 2
        parent.kill()
        parent.wait()
        shot = time.monotonic()
        while _workers(path) and time.monotonic() < shot + PATIENCE_S:
            time.sleep(0.02)
        longest = max(longest, time.monotonic() - shot)
        bad += len(_workers(path))
    return Row(name, str(kills), bad, f"no process left after {longest:.1f} s")


def _workers(store: Path) -> list[int]:
    """Process ids of workers on a store."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"benchmark.worker" in words and str(store).encode() in words:
                found.append(int(entry.name))
    return found
