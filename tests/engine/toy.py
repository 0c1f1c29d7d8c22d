"""A dataset of a dozen tiny volumes in the Decathlon layout, and runs on it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmark.commands import Plan
from benchmark.jobs import Job, announce
from results.store import Store


def make_folder(folder: Path, cases: int = 12) -> Path:
    """Balls of varied place and size in noise, 20 x 20 x 18 voxels."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(7)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (20, 20, 18)), indexing="ij"))
    training = []
    for index in range(cases):
        centre = rng.uniform(7, 12, size=(3, 1, 1, 1))
        label = (((grid - centre) ** 2).sum(0) < rng.uniform(4, 6) ** 2).astype(np.uint8)
        image = (label + 0.5 * rng.normal(size=label.shape)).astype(np.float32)
        name = f"ball_{index:03d}.nii.gz"
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / name)
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labelsTr" / name)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    described = {
        "name": "Balls",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "ball"},
        "training": training,
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def plan(folder: Path, root: Path, store: Path, methods: str = "mt", **changes: object) -> Plan:
    """A plan on the toy data at the smallest profile, with any argument of `Plan.make` changed."""
    arguments: dict[str, object] = {
        "methods": methods.split(","),
        "sources": [str(folder)],
        "ratios": [],
        "labelled": [2],
        "seeds": "1",
        "profile": "smoke",
        "recipe": "common",
        "predictors": "main",
        "settings": [],
        "store": store,
        "data": root,
        "plugins": [],
        "executor": "inline",
        "jobs": None,
        "threads": 1,
    }
    return Plan.make(**(arguments | changes))  # type: ignore[arg-type]


def announced(job: Job, path: Path) -> tuple[Store, str]:
    """A store that knows the run, and the run's id."""
    store = Store.open(path, create=True)
    announce(job, store)
    return store, job.spec.run_id
