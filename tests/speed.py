"""`make bench`: ratios against what the field uses, measured side by side in one run.

CPU time of one thread, medians over interleaved rounds; every row says what it equals.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from medpy.metric import binary
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from benchmark import seeding
from benchmark.data import SOURCES, open_dataset
from benchmark.data.base import SPLITS, Volume
from benchmark.data.coding import encode
from benchmark.data.sampling import Sampler, draw_rotflip, draw_start
from benchmark.inference import sliding_window
from benchmark.metrics import case_metrics, prepare_reference
from tests import made_store

LA = Path(__file__).resolve().parents[2] / "shared" / "data" / "la"
PATCH, STRIDE = (112, 112, 80), (18, 18, 4)
ROUNDS = 5


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    image, label, source = load_volume()
    table = Table("what", "field (ms)", "here (ms)", "ratio", "equality", box=None)
    with tempfile.TemporaryDirectory() as folder:
        for name, theirs, ours, equality in (
            *metrics_rows(label),
            window_row(image),
            loading_row(image, label, Path(folder)),
        ):
            a, b = interleaved(theirs, ours)
            table.add_row(name, f"{a:.1f}", f"{b:.1f}", f"{a / b:.1f}x", equality)
        row, cost = reporting(Path(folder) / "store")
        table.add_row(*row)
        table.add_row(*disk_row(Path(folder)))
    console = Console(width=120)
    console.print(f"{source}, shape {label.shape}; CPU time, one thread, {ROUNDS} rounds")
    console.print(table)
    console.print(cost)
    console.print(patches_line(image, label))


def load_volume() -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
    """A real LA volume where there is one, else one of its size with an atrium-sized body."""
    files = sorted(LA.glob("*/mri_norm2.h5"))
    if files:
        with h5py.File(files[0]) as file:
            return file["image"][:], file["label"][:], "a real LA volume"
    rng = np.random.default_rng(0)
    shape = (194, 142, 88)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    body = ((grid / np.array([0.8, 0.6, 0.6])[:, None, None, None]) ** 2).sum(0) < 1
    return rng.normal(size=shape).astype(np.float32), body.astype(np.uint8), "a made volume"


Row = tuple[str, Callable[[], object], Callable[[], object], str]


def metrics_rows(label: NDArray[np.uint8]) -> list[Row]:
    """DSC + ASD + 95HD of three kinds of prediction, against medpy."""
    rng = np.random.default_rng(1)
    truth = label.astype(bool)
    good = np.roll(ndimage.binary_erosion(truth, iterations=2), (2, -1, 1), (0, 1, 2))
    noisy = good ^ (rng.random(truth.shape) < 0.02)
    full = np.ones_like(truth)
    reference = prepare_reference(truth, (1.0, 1.0, 1.0))
    rows: list[Row] = []
    for name, mask in (("typical", good), ("noisy", noisy), ("full", full)):

        def medpy(mask: NDArray[np.bool_] = mask) -> tuple[float, float, float]:
            return (
                binary.dc(mask, truth),
                binary.asd(mask, truth),
                binary.hd95(mask, truth),
            )

        def ours(mask: NDArray[np.bool_] = mask) -> tuple[float, float, float]:
            found = case_metrics(mask, reference)
            return found.dsc, found.asd, found.hd95

        worst = max(abs(a - b) for a, b in zip(medpy(), ours(), strict=True))
        rows.append((f"metrics, {name} mask, against medpy", medpy, ours, f"|diff| <= {worst:g}"))
    return rows


def window_row(image: NDArray[np.float32]) -> Row:
    """Sliding window around a network that costs nothing, against the field's loop."""
    volume = torch.from_numpy(image)[None]

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, -x], 1)

    def field() -> NDArray[np.float32]:
        shape = image.shape
        score = np.zeros((2, *shape), np.float32)
        count = np.zeros(shape, np.float32)
        counts = [range(-(-(n - p) // s) + 1) for n, p, s in zip(shape, PATCH, STRIDE, strict=True)]
        for corner in itertools.product(*counts):
            cut = tuple(
                slice(min(s * k, n - p), min(s * k, n - p) + p)
                for k, n, p, s in zip(corner, shape, PATCH, STRIDE, strict=True)
            )
            window = torch.from_numpy(image[cut][None, None].astype(np.float32))
            with torch.no_grad():
                score[(slice(None), *cut)] += network(window).numpy()[0]
            count[cut] += 1
        return score / count[None]

    def ours() -> torch.Tensor:
        return sliding_window(network, volume, PATCH, STRIDE)

    differing = int(((field()[1] > 0.0) != (ours().numpy()[1] > 0.0)).sum())
    return "sliding window, zero-cost network", field, ours, f"{differing} differing voxels"


def patch_sampler(image: NDArray[np.float32], label: NDArray[np.uint8]) -> Sampler:
    """One labelled patch a step from one volume."""
    volume = Volume(encode(image[None]), label, (1.0, 1.0, 1.0))
    return Sampler(
        {"case": volume}, ["case"], [], PATCH, "rotflip", ("image", "label"), 0, labelled_batch=1
    )


def loading_row(image: NDArray[np.float32], label: NDArray[np.uint8], folder: Path) -> Row:
    """One augmented labelled patch, against opening and unpacking an .h5 file for each item."""
    path = folder / "mri_norm2.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=image, compression="gzip")
        file.create_dataset("label", data=label, compression="gzip")
    sampler = patch_sampler(image, label)

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
    return (
        "loading one augmented patch",
        lambda: field(next(theirs)),
        lambda: sampler(next(ours)),
        f"{differing} differing voxels",
    )


def patches_line(image: NDArray[np.float32], label: NDArray[np.uint8]) -> str:
    """How many augmented labelled patches one core makes in a second, by the median."""
    sampler = patch_sampler(image, label)
    spent = []
    for step in range(200):
        began = time.process_time()
        sampler(step)
        spent.append(time.process_time() - began)
    size = "x".join(map(str, PATCH))
    return f"Loading: {1 / statistics.median(spent):,.0f} augmented patches of {size} a second"


def disk_row(folder: Path) -> tuple[str, ...]:
    """Size of prepared LA in MiB, against the .h5 files that it is made from.

    All of LA where the environment variable BENCH_LA names it, else the part that is at hand.
    """
    source = Path(os.environ.get("BENCH_LA", LA))
    if not any(source.glob("*/mri_norm2.h5")):
        return "prepared LA on disk", "-", "-", "-", f"not measured: no volumes in {source}"
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
    a, b = theirs / 2**20, ours / 2**20
    part = "all 100 volumes" if dataset.complete else f"a part: {len(cases)} of 100 volumes"
    name = f"prepared LA on disk (MiB), {part}"
    return name, f"{a:.1f}", f"{b:.1f}", f"{a / b:.1f}x", f"{differing} differing voxels"


def reporting(path: Path) -> tuple[tuple[str, ...], str]:
    """The summary of 3,000,000 case rows under one protocol, against plain pandas."""
    made_store.write_store(path)
    costs = [made_store.measured(path) for _ in range(3)]
    wall, cpu = (statistics.median(c[name] for c in costs) for name in ("wall_s", "cpu_s"))
    theirs, ours = (lambda: made_store.plain(path)), (lambda: made_store.ours(path))
    worst = float(np.abs(theirs().to_numpy() - ours().to_numpy()).max())
    a, b = interleaved(theirs, ours, rounds=3)
    equality = f"|diff| <= {worst:g}"
    row = ("table of a store, against pandas", f"{a:.1f}", f"{b:.1f}", f"{a / b:.1f}x", equality)
    return row, (
        f"Table of a store: {costs[0]['rows']:,.0f} case rows in 750 runs take {wall:.2f} s "
        f"({cpu:.2f} s CPU) on one core after start-up, and "
        f"{max(c['peak_mib'] for c in costs):.0f} MiB at the peak"
    )


def interleaved(
    theirs: Callable[[], object], ours: Callable[[], object], rounds: int = ROUNDS
) -> tuple[float, float]:
    """Median CPU milliseconds of both, called in turns after one call to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for spent, call in zip(times, (theirs, ours), strict=True):
            began = time.process_time()
            call()
            if turn:
                spent.append(1e3 * (time.process_time() - began))
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
