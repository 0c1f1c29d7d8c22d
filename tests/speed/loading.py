"""Augmented patches against opening and unpacking an .h5 file for each, and prepared LA on disk."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmark import seeding
from benchmark.data import SOURCES, open_dataset
from benchmark.data.base import SPLITS, Volume
from benchmark.data.coding import encode
from benchmark.data.sampling import Sampler, draw_rotflip, draw_start
from tests.speed.side_by_side import LA, PATCH, Line, Subject, compared

PATCHES = 200
LIMIT_MIB = 150


def lines(subject: Subject, folder: Path) -> Iterator[Line]:
    """One patch a call; patches a second; bytes of LA."""
    path = folder / "mri_norm2.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=subject.image, compression="gzip")
        file.create_dataset("label", data=subject.label, compression="gzip")
    sampler = patch_sampler(subject)

    def field(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        with h5py.File(path) as file:
            arrays = [file["image"][:], file["label"][:]]
        rng = seeding.generator(sampler.seed, "augment", step, 0)
        k, axis = draw_rotflip(rng)
        arrays = [np.flip(np.rot90(a, k), axis).copy() for a in arrays]
        start = draw_start(rng, arrays[0].shape, PATCH)
        cut = tuple(slice(s, s + p) for s, p in zip(start, PATCH, strict=True))
        x, y = (a[cut] for a in arrays)
        return torch.from_numpy(x[None].copy()), torch.from_numpy(y.astype(np.int64))

    differing = 0
    for step in range(8):
        batch, (x, y) = sampler(step), field(step)
        differing += int((batch.image[0] != x).sum() + (batch.label[0] != y).sum())
    theirs, ours = itertools.count(), itertools.count()
    yield compared(
        "loading one augmented patch",
        20,
        lambda: field(next(theirs)),
        lambda: sampler(next(ours)),
        f"{differing} differing voxels",
    )
    yield patches_a_second(sampler)
    yield on_disk(folder)


def patch_sampler(subject: Subject) -> Sampler:
    """One labelled patch a step from one volume."""
    volume = Volume(encode(subject.image[None]), subject.label, (1.0, 1.0, 1.0))
    return Sampler(
        {"case": volume}, ["case"], [], PATCH, "rotflip", ("image", "label"), 0, labelled_batch=1
    )


def patches_a_second(sampler: Sampler) -> Line:
    """How many augmented labelled patches one core makes, by the median."""
    spent = []
    for step in range(PATCHES):
        began = time.process_time()
        sampler(step)
        spent.append(time.process_time() - began)
    rate = 1 / statistics.median(spent)
    missed = " MISSED" if rate < 500 else ""
    return Line("patches a second and core", ">= 500", "-", f"{rate:,.0f}", f"-{missed}", "-")


def on_disk(folder: Path) -> Line:
    """Size of prepared LA, against the .h5 files that it is made from.

    All of LA where the environment variable BENCH_LA names it, else the part that is at hand.
    """
    source = Path(os.environ.get("BENCH_LA", LA))
    must = f"<= {LIMIT_MIB} MiB (all)"
    if not any(source.glob("*/mri_norm2.h5")):
        return Line("prepared LA on disk", must, "-", "-", "-", f"no volumes in {source}")
    prepared = SOURCES["la"].prepare(source, folder / "data", lambda *_: None)
    dataset = open_dataset("la", prepared.parent)
    cases = [case for split in SPLITS for case in dataset.splits[split]]
    theirs, differing = 0, 0
    for case in cases:
        (path,) = source.rglob(f"{case}/mri_norm2.h5")
        theirs += path.stat().st_size
        volume = dataset.load(case)
        with h5py.File(path) as file:
            differing += int((file["image"][:].astype(np.float32) != volume.image[0]).sum())
            differing += int((file["label"][:] != volume.label).sum())
    ours = sum(path.stat().st_size for path in prepared.rglob("*") if path.is_file())
    part = "all 100 volumes" if dataset.complete else f"a part: {len(cases)} of 100 volumes"
    return Line(
        f"prepared LA on disk, {part}",
        must,
        f"{theirs / 2**20:.1f} MiB",
        f"{ours / 2**20:.1f} MiB",
        f"{theirs / ours:.1f}x",
        f"{differing} differing voxels",
    )
