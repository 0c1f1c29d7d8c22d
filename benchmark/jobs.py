"""A run as the store knows it besides its rows: announced, claimed, given up, cleaned away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmark import checkpoint, environment
from benchmark.attempts import CLAIM, JOB_FILE
from benchmark.data import is_folder, split_label
from benchmark.plugins import resolve
from benchmark.progress import Progress
from benchmark.progress import read as read_progress
from benchmark.spec import RunSpec, canonical_json, spec_from_canonical
from results.claims import Claim, close, newest
from results.errors import UserError
from results.schema import OPTIONAL, Keep
from results.store import RUN_TABLES, Store

UNKNOWN = -1
"""Number of parameters of a run that no attempt lived long enough to tell."""


@dataclass(frozen=True)
class Job:
    """A run and where its things are.

    source:  the dataset as the user named it: a known name or a folder.
    data:    the data root.
    label, unit, unlabelled: of the dataset, and how many volumes it leaves unlabelled.
    plugins: files that hold methods from outside the harness.
    keep:    of which evaluations the predictions are stored; no part of the run's identity.
    """

    spec: RunSpec
    source: str
    data: Path
    label: str
    unit: str
    unlabelled: int
    plugins: tuple[str, ...] = ()
    keep: Keep = Keep.NONE

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps whose predictions are stored."""
        choices = {Keep.NONE: (), Keep.LAST: (self.spec.steps,), Keep.ALL: self.spec.evaluated}
        return choices[self.keep]


def announce(job: Job, store: Store) -> None:
    """Make the run known to the store before it begins, so that none is ever forgotten."""
    content = {
        "spec": job.spec.canonical(),
        "checkpoint_every": job.spec.profile.checkpoint_every,
        "dataset": _anywhere(job.source),
        "data": str(job.data.resolve()),
        "plugins": list(job.plugins),
        "keep_predictions": job.keep,
        "row": row_of(job),
    }
    store.write_work(job.spec.run_id, JOB_FILE, canonical_json(content))


def _anywhere(source: str) -> str:
    """A dataset as workers in other folders find it: folders by their whole path."""
    if not is_folder(source):
        return source
    folder, label = split_label(source)
    whole = str(Path(folder).expanduser().resolve())
    return whole if label is None else f"{whole}:{label}"


def read_job(store: Store, run_id: str, plugins: Sequence[str]) -> Job:
    """The job that `announce` wrote into the run's work folder.

    Args:
        store: where it was announced.
        run_id: the run.
        plugins: files whose code may be run; what the folder says is not enough.

    Raises:
        UserError: it needs another plugin, is of another run, or cannot be read.
    """
    try:
        data = json.loads(store.read_work(run_id, JOB_FILE))
        named = [str(name) for name in data["plugins"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{store.work(run_id) / JOB_FILE} is damaged ({error!r}); run the same `bench run` "
            "command again"
        ) from None
    foreign = [name for name in named if name not in plugins]
    if foreign:
        raise UserError(
            f"run {run_id} needs the plugin {foreign[0]}, which this command does not name; "
            f"if you trust its code, add --plugin {foreign[0]}"
        )
    methods = resolve([data["spec"]["method"]["name"]], data["plugins"])
    spec = spec_from_canonical(data["spec"], methods)
    if spec.run_id != run_id:
        raise UserError(
            f"{store.work(run_id) / JOB_FILE} is of the run {spec.run_id}: another version of "
            "bench announced it; give the same `bench run` command again"
        )
    profile = replace(spec.profile, checkpoint_every=data["checkpoint_every"])
    row = data["row"]
    return Job(
        spec=replace(spec, profile=profile),
        source=data["dataset"],
        data=Path(data["data"]),
        label=row["dataset"],
        unit=row["unit"],
        unlabelled=row["unlabelled"],
        plugins=tuple(data["plugins"]),
        keep=Keep(data.get("keep_predictions", Keep.NONE)),
    )


def claim_of(store: Store, run_id: str, lease_s: float, job: str = "") -> Claim:
    """Claim a run, saying which step this attempt begins from.

    Args:
        store: where it was announced.
        run_id: the run.
        lease_s: silence after which others may take over.
        job: the cluster's name of the job that this process is, if it is one. Only one process of
            a job lives at a time, so what the same job held before it was requeued is let go.

    Raises:
        Held: another process is at work on it.
    """
    folder = store.work(run_id)
    last = newest(folder, CLAIM)
    if job and last is not None and last.facts.get("job") == job and not last.ending:
        close(last, "requeued", "its job was started again")
    facts = {"step": checkpoint.newest_step(folder), "job": job}
    return Claim.take(folder, CLAIM, lease_s, facts)


def abandon(store: Store, run_id: str, reason: str) -> None:
    """Record an announced run as failed, with the rows that it has.

    Raises:
        UserError: the store cannot be written, or what was announced cannot be read.
    """
    row = json.loads(store.read_work(run_id, JOB_FILE))["row"]
    tables = {name: store.read_parts(run_id, name) for name in (*RUN_TABLES, *OPTIONAL)}
    code = environment.harness_commit()
    record = row | {
        "state": "failed",
        "error": reason,
        "parameters": UNKNOWN,
        "device": "",
        "environment": "[]",
        "resumed_elsewhere": False,
        "versions": canonical_json(environment.versions()),
        "commit": code.commit,
        "dirty": code.dirty,
    }
    now = read_progress(store.work(run_id)) or Progress(row["steps"], row["evaluations"])
    kept = {n: rows for n, rows in tables.items() if n in RUN_TABLES or len(rows)}
    store.commit(run_id, kept, record, spent(now) | {"notes": [], "linked": {}, "plugins": {}})


def clean(store: Store, run_id: str) -> None:
    """Remove what a run that is done left in its work folder."""
    # Another process may be announcing the same run this moment; the next command cleans then.
    with suppress(UserError):
        store.clean_work(run_id)


def spent(progress: Progress) -> dict[str, Any]:
    """What all attempts took."""
    attempts = progress.attempts
    return {
        "attempts": [asdict(a) for a in attempts],
        "resumed": len(attempts) > 1,
        "seconds": progress.seconds,
        "seconds_per_step": progress.spent("training") / max(1, progress.trained),
        "seconds_per_case": sum(a.segmenting_seconds for a in attempts)
        / max(1, sum(a.segmented for a in attempts)),
        "seconds_per_evaluation": progress.spent("evaluating") / max(1, progress.evaluations_made),
        "pseudo_label_seconds": progress.spent("pseudo-labels"),
        "peak_memory_bytes": max((a.peak_memory_bytes for a in attempts), default=0),
    }


def row_of(job: Job) -> dict[str, Any]:
    """What is known of a run before it begins: the columns of its record that its spec decides."""
    spec = job.spec
    return {
        "run": spec.run_id,
        "method": spec.method.name,
        "version": spec.method.version,
        "hyperparameters": canonical_json(asdict(spec.method)),
        "changed": canonical_json(spec.changed()),
        "recipe": spec.recipe_label,
        "fidelity": str(spec.method.fidelity),
        "dataset": job.label,
        "fingerprint": spec.fingerprint,
        "unit": job.unit,
        "labelled": spec.labelled,
        "unlabelled": job.unlabelled,
        "seed": spec.seed,
        "profile": spec.profile_label,
        "steps": spec.steps,
        "evaluations": len(spec.evaluated),
        "predictors": ",".join(spec.predictors),
        "spec": canonical_json(spec.canonical()),
    }
