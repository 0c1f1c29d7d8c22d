"""`python -m tests.gpu_measure --out DIR`: what a GPU makes of training and evaluation.

Sections run one after the other, each in a process of its own with a time box, so that none can
take another along. Every figure is written to DIR as it comes; a table is printed last.

    step      a training step, its memory and a segmented case: as the field writes it and as the
              harness does it, in turns; what the card can do at most
    variants  precision, memory layout, kernels: the step alone, on batches that lie on the device
    repeat    the same seed twice; kernels that do not repeat themselves
    together  several runs at once on the card
    profile   where the time of a step goes
    compile   `torch.compile`
    run       a whole small run through the worker
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from benchmark import environment
from benchmark.data.base import Dataset, Volume
from benchmark.data.la import CARD
from benchmark.data.sampling import draw_rotflip, draw_start, padding
from benchmark.data.volumes import reduce_volume
from benchmark.evaluation import WINDOWS_AT_ONCE
from benchmark.inference import count_windows, segment, sliding_window, window_starts
from benchmark.prefetch import prefetched
from benchmark.profiles import PROFILES
from benchmark.runner import READ_EVERY, World, build_learner, build_sampler, chosen_predictors
from benchmark.spec import RunSpec
from benchmark.trainer import Learner, evaluating, train, train_step
from methods import METHODS
from methods.base import Batch, Method, Recipe, Step
from methods.dtc import DTC
from methods.mean_teacher import MeanTeacher
from methods.supervised import Supervised
from methods.tcseg import TCSeg

ROOT = Path(__file__).resolve().parents[1]
MEASURED: tuple[type[Method], ...] = (TCSeg, Supervised, DTC, MeanTeacher)
BOXES = {
    "step": 70,
    "variants": 40,
    "together": 45,
    "profile": 18,
    "repeat": 22,
    "compile": 50,
    "run": 25,
}
"""Seconds that each section may take, start of its process included."""
WARM_UP, TIMED, ROUNDS = 3, 8, 2
LABELLED, UNLABELLED = 4, 4
MINI_RUNS, PAPER_RUNS = (8, 14), (1, 2, 4)
CALLS = (
    "cudaLaunchKernel",
    "cudaMemcpyAsync",
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "aten::item",
)
"""Of the host, counted in a step."""


@dataclass(frozen=True)
class Given:
    """What the command line says; `until` is the end of this section on the monotonic clock."""

    out: Path
    profile: str
    device: torch.device
    data: Path | None
    until: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()


def main() -> None:
    """Run all sections, or the one that is named."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_measure")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float(sum(BOXES.values())))
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", type=Path, help="a folder with <case>/mri_norm2.h5 files of LA")
    parser.add_argument("--only", default=",".join(BOXES), help="sections, with commas between")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    # Of the machine's clock, so that the start of a process counts.
    until = given.until or time.monotonic() + given.seconds
    here = Given(given.out, given.profile, torch.device(given.device), given.data, until)
    if given.worker:
        work(here, given.worker)
    elif given.section:
        environment.make_deterministic(here.device, threads_of(here.device))
        SECTIONS[given.section](here)
    else:
        conduct(here, given.only.split(","), sys.argv[1:])


def conduct(given: Given, sections: Sequence[str], arguments: Sequence[str]) -> None:
    """Every section in a process of its own; then the table."""
    more = max(1.0, given.left / sum(BOXES[section] for section in sections))
    for section in sections:
        box = min(BOXES[section] * more, given.left)
        if box < 10:
            note(given, section, "skipped", reason="no time left")
            continue
        say(f"{section}: up to {box:.0f} s")
        command = [
            *(sys.executable, "-m", "tests.gpu_measure", *arguments),
            *("--section", section, "--until", str(time.monotonic() + box)),
        ]
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        try:
            code = process.wait(box + 5)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        finally:
            with suppress(ProcessLookupError):  # and whatever it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code:
            note(given, section, "ended", reason=f"exit code {code}")
    rows = [
        json.loads(line)
        for path in sorted(given.out.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    (given.out / "results.json").write_text(json.dumps(rows, indent=1))
    print(table(rows))


def say(text: str) -> None:
    """A line of progress, at once."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def note(given: Given, section: str, what: str, **figures: Any) -> None:
    """Keep and show figures."""
    row = {"section": section, "what": what} | figures
    with (given.out / f"{section}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    say(f"{section}: {what}: {shown(figures)}")


def shown(figures: dict[str, Any]) -> str:
    """Figures on a line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
        if not isinstance(value, list | dict)
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All figures but the long ones."""
    lines = []
    for row in rows:
        figures = {k: v for k, v in row.items() if k not in ("section", "what")}
        lines.append(f"{row['section']:9} {row['what']:44} {shown(figures)}")
    return "\n".join(["", *lines])


@contextmanager
def attempt(given: Given, section: str, what: str) -> Iterator[None]:
    """An error inside the block is noted, and the rest goes on."""
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        note(given, section, what, error=text[:300])
        traceback.print_exc()
    finally:
        if given.device.type == "cuda":
            with suppress(Exception):
                torch.cuda.empty_cache()


def finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Wall time of a call, the device's work included."""
    finish(device)
    began = time.perf_counter()
    call()
    finish(device)
    return time.perf_counter() - began


def threads_of(device: torch.device) -> int:
    """All cores beside a GPU; one on a CPU, which is only to try the script out."""
    return environment.cores() if device.type == "cuda" else 1


def gib(device: torch.device) -> float:
    """Most memory that tensors took since the last call."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


# Data


def found_files(given: Given) -> list[Path]:
    """Real LA volumes, wherever they are."""
    asked = [given.data] if given.data else []
    for folder in (*asked, ROOT.parent / "shared" / "data" / "la", ROOT / "shared" / "data" / "la"):
        files = sorted(folder.rglob("mri_norm2.h5"))
        if len(files) >= LABELLED + UNLABELLED:
            return files
    return []


def made_volume(index: int) -> Volume:
    """Of the size of an LA volume, with a body as large as an atrium."""
    rng = np.random.default_rng(index)
    shape = tuple(int(n) for n in np.array([194, 142, 88]) + rng.integers(-8, 9, 3) * [1, 1, 0])
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    radii = rng.uniform(0.5, 0.7, 3)
    body = sum((g / r) ** 2 for g, r in zip(grid, radii, strict=True)) < 1
    image = (rng.normal(size=shape) + 1.5 * body).astype(np.float32)
    return Volume(image[None], body.astype(np.uint8), (1.0, 1.0, 1.0))


def load_volumes(given: Given) -> tuple[list[Volume], str]:
    """Eight volumes at the profile's scale, and what they are."""
    volumes = []
    files = found_files(given)[: LABELLED + UNLABELLED]
    for path in files:
        with h5py.File(path) as file:
            volumes.append(
                Volume(
                    np.asarray(file["image"][:], np.float32)[None],
                    np.asarray(file["label"][:], np.uint8),
                    (1.0, 1.0, 1.0),
                )
            )
    if not files:
        volumes = [made_volume(i) for i in range(LABELLED + UNLABELLED)]
    scale = CARD.geometry[PROFILES[given.profile].geometry].scale
    if scale != 1:
        volumes = [reduce_volume(v, scale) for v in volumes]
    return volumes, "real LA volumes" if files else "made volumes of LA's size"


def make_world(volumes: Sequence[Volume]) -> World:
    """Half of the volumes labelled; the first is also what is evaluated."""
    named = {f"case-{i}": v for i, v in enumerate(volumes)}
    names = tuple(named)
    labelled, unlabelled = names[:LABELLED], names[LABELLED:]
    splits = {"train": names, "val": (), "test": names[:1]}
    dataset = Dataset(CARD, splits, "made", named.__getitem__)
    return World(dataset, named, labelled, unlabelled, {"test": names[:1]})


def make_spec(given: Given, method: Method, **profile: Any) -> RunSpec:
    """A run on LA."""
    chosen = replace(PROFILES[given.profile], **profile)
    return RunSpec(
        method=method,
        recipe=Recipe(),
        dataset="la",
        fingerprint="made",
        geometry=CARD.geometry[chosen.geometry],
        augmentation=CARD.augmentation,
        labelled=LABELLED,
        seed=0,
        profile=chosen,
    )


def middle(spec: RunSpec) -> int:
    """A step in which every term of a method is there."""
    return spec.steps // 2


# A step as the field writes it


class Files(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Opens and unpacks a whole file for each item, then turns and crops."""

    def __init__(self, paths: Sequence[Path], patch: Sequence[int]) -> None:
        self.paths, self.patch = list(paths), tuple(patch)

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Labelled items first, as the field's two-stream sampler gives them.
        half = len(self.paths) // 2
        stream = (index % 4) // 2
        rng = np.random.default_rng(index)
        with h5py.File(self.paths[stream * half + int(rng.integers(half))]) as file:
            image, label = file["image"][:], file["label"][:]
        k, axis = draw_rotflip(rng)
        image, label = (np.flip(np.rot90(a, k), axis).copy() for a in (image, label))
        pads = padding(label.shape, self.patch)
        start = draw_start(rng, label.shape, self.patch)
        image, label = (np.pad(a, [(n, n) for n in pads]) for a in (image, label))
        place = tuple(
            slice(s + n, s + n + p) for s, n, p in zip(start, pads, self.patch, strict=True)
        )
        patch, mask = image[place][None].copy(), label[place].copy()
        return torch.from_numpy(patch), torch.from_numpy(mask).long()


def written(volumes: Sequence[Volume], folder: Path) -> list[Path]:
    """The volumes as the community distributes them."""
    paths = []
    for index, volume in enumerate(volumes):
        paths.append(folder / f"{index}.h5")
        with h5py.File(paths[-1], "w") as file:
            file.create_dataset("image", data=volume.image[0], compression="gzip")
            file.create_dataset("label", data=volume.label, compression="gzip")
    return paths


def field_loader(paths: Sequence[Path], spec: RunSpec) -> Iterator[list[torch.Tensor]]:
    """Four worker processes, as its scripts have."""
    files = Files(paths, spec.geometry.patch)
    return iter(
        torch.utils.data.DataLoader(
            files, batch_size=4, num_workers=4, pin_memory=torch.cuda.is_available()
        )
    )


def field_distance(label: NDArray[np.int64]) -> NDArray[np.float32]:
    """Signed distance by two transforms of SciPy, as DTC's loop makes it."""
    inside = label > 0
    if not inside.any() or inside.all():
        return np.zeros(label.shape, np.float32)
    outer, inner = (ndimage.distance_transform_edt(m) for m in (~inside, inside))
    return np.asarray(outer / outer.max() - inner / inner.max(), np.float32)


def field_steps(
    learner: Learner, batches: Iterator[list[torch.Tensor]], first: int, number: int, device: Any
) -> None:
    """Batches from files, losses read every step, distance maps made in the loop."""
    for index in range(first, first + number):
        image, label = (x.to(device) for x in next(batches))
        extras = {}
        if "sdf" in learner.method.inputs:
            maps = np.stack([field_distance(one) for one in label[:2].cpu().numpy()])
            extras["sdf"] = torch.from_numpy(maps)[:, None].to(device)
        unlabelled = image[2:] if "unlabelled" in learner.method.inputs else image[:0]
        batch = Batch(image[:2], label[:2], unlabelled, extras)
        terms = train_step(learner, batch, Step(index, learner.total))
        for term in terms.values():
            term.value.item()


def field_case(
    predict: Callable[[torch.Tensor], torch.Tensor], volume: Volume, spec: RunSpec, device: Any
) -> Any:
    """One window at a time, there and back, summed on the host."""
    image, (patch, stride) = volume.image[0], (spec.geometry.patch, spec.geometry.stride)
    short = [max(p - n, 0) for n, p in zip(image.shape, patch, strict=True)]
    image = np.pad(image, [(s // 2, s - s // 2) for s in short])
    score, count = np.zeros((2, *image.shape), np.float32), np.zeros(image.shape, np.float32)
    starts = [window_starts(n, p, s) for n, p, s in zip(image.shape, patch, stride, strict=True)]
    for corner in itertools.product(*starts):
        cut = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
        window = torch.from_numpy(image[cut][None, None].astype(np.float32)).to(device)
        with torch.no_grad():
            probabilities = predict(window).cpu().numpy()[0]
        score[(slice(None), *cut)] += probabilities
        count[cut] += 1
    return np.argmax(score / count, axis=0)


# Sections


def step_section(given: Given) -> None:
    """See the module docstring."""
    note(given, "step", "machine", **machine(given.device))
    with attempt(given, "step", "floor"):
        floor(given)
    volumes, source = load_volumes(given)
    world = make_world(volumes)
    note(given, "step", "data", source=source, shape=str(volumes[0].label.shape))
    with tempfile.TemporaryDirectory() as folder:
        full = make_spec(given, Supervised()).geometry.scale == 1
        paths = found_files(given)[: LABELLED + UNLABELLED] if full else []
        paths = paths or written(volumes, Path(folder))
        for cls in MEASURED:
            if given.left < 8:
                note(given, "step", cls.name, skipped="no time left")
                continue
            with attempt(given, "step", cls.name):
                compare(given, cls(), world, paths)


def compare(given: Given, method: Method, world: World, paths: Sequence[Path]) -> None:
    """One method, field and harness in turns."""
    device, spec = given.device, make_spec(given, method)
    sampler = build_sampler(spec, world, device)
    batches = field_loader(paths, spec)
    first, peaks, learners = middle(spec), [], []

    def ours(number: int) -> None:
        # A pipeline that begins empty: what was made while the field had its turn does not count.
        helpers = threads_of(device) if device.type == "cuda" else 0
        with prefetched(sampler, first + number, helpers) as sample:
            train(
                learners[1], sample, first, first + number, lambda done: None, read_every=READ_EVERY
            )

    for turn in range(2):
        gib(device)
        before = torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
        learners.append(build_learner(spec, 1, device))
        learners[turn].nets.train()
        if turn:
            ours(WARM_UP)
        else:
            field_steps(learners[0], batches, first, WARM_UP, device)
        finish(device)
        peaks.append(gib(device) - before)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS):
        if turn and given.left < 3 * (times[0][0] + times[1][0]) * TIMED:
            break
        times[0].append(
            seconds(device, lambda: field_steps(learners[0], batches, first, TIMED, device)) / TIMED
        )
        times[1].append(seconds(device, lambda: ours(TIMED)) / TIMED)
    field, harness = (min(t) for t in times)
    figures: dict[str, Any] = {
        "field_s_per_iter": field,
        "here_s_per_iter": harness,
        "ratio": field / harness,
        "field_gib": peaks[0],
        "here_gib": peaks[1],
        "all_s_per_iter": [*times],
    }
    note(given, "step", f"{method.name} training", **figures)
    note(given, "step", f"{method.name} cases", **compare_cases(given, learners[1], spec, world))


def compare_cases(given: Given, learner: Learner, spec: RunSpec, world: World) -> dict[str, Any]:
    """Seconds a case, and voxels that differ."""
    device, volume = given.device, world.volumes["case-0"]
    predict = chosen_predictors(spec, learner)["main"]
    masks: list[Any] = [None, None]

    def field() -> None:
        masks[0] = field_case(predict, volume, spec, device)

    def ours() -> None:
        image = torch.from_numpy(np.array(volume.image)).to(device)
        found = sliding_window(
            predict, image, spec.geometry.patch, spec.geometry.stride, batch=WINDOWS_AT_ONCE
        )
        masks[1] = segment(found).cpu().numpy()

    with evaluating(learner.nets):
        ours()
        here, theirs = seconds(device, ours), seconds(device, field)
        here = min(here, seconds(device, ours))
    x, y, z = volume.label.shape
    return {
        "field_s_per_case": theirs,
        "here_s_per_case": here,
        "ratio": theirs / here,
        "windows": count_windows((x, y, z), spec.geometry.patch, spec.geometry.stride),
        "differing_voxels": int((masks[0].astype(bool) != masks[1]).sum()),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Card, driver, versions."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cores": environment.cores(),
        "device": environment.device_name(device),
    }
    if device.type == "cuda":
        found["cudnn"] = torch.backends.cudnn.version()
        found["gib"] = torch.cuda.get_device_properties(device).total_memory / 2**30
        query = [
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.sm,power.limit",
            "--format=csv,noheader",
        ]
        with suppress(OSError, subprocess.SubprocessError):
            found["driver"] = subprocess.run(
                query, capture_output=True, text=True, timeout=10
            ).stdout.strip()
    return found


def floor(given: Given) -> None:
    """What the card reaches in the operations that a step is made of."""
    device = given.device
    large = device.type == "cuda" and given.profile == "paper"
    n, voxels, channels = (8192, (112, 112, 80), 16) if large else (64, (16, 16, 16), 4)
    figures: dict[str, float] = {}

    def rate(name: str, amount: float, call: Callable[[], object]) -> None:
        call()
        figures[name] = amount * 10 / seconds(device, lambda: [call() for _ in range(10)])

    for name, kind in (("matmul_bf16", torch.bfloat16), ("matmul_fp32", torch.float32)):
        a = torch.randn(n, n, device=device, dtype=kind)
        rate(f"{name}_tflops", 2e-12 * n**3, partial(torch.matmul, a, a))
    x = torch.randn(2 ** (29 if large else 12), device=device)
    y = torch.empty_like(x)
    rate("copy_gb_per_s", 2e-9 * x.numel() * 4, partial(y.copy_, x))
    del x, y
    for wide in (channels, 4 * channels):
        for name, kind, layout in (
            ("fp32", torch.float32, torch.contiguous_format),
            ("bf16", torch.bfloat16, torch.contiguous_format),
            ("bf16_last", torch.bfloat16, torch.channels_last_3d),
        ):
            size = [v * channels // wide for v in voxels]
            image = torch.randn(4, wide, *size, device=device, dtype=kind)
            weight = torch.randn(wide, wide, 3, 3, 3, device=device, dtype=kind)
            image, weight = (t.contiguous(memory_format=layout) for t in (image, weight))
            flop = 2e-12 * 4 * wide * wide * 27 * float(np.prod(size))
            rate(
                f"conv{wide}_{name}_tflops",
                flop,
                partial(nn.functional.conv3d, image, weight, padding=1),
            )
    note(given, "step", "floor", **figures)


def variants_section(given: Given) -> None:
    """See the module docstring."""
    volumes, _ = load_volumes(given)
    world = make_world(volumes)
    base: dict[str, list[float]] = {}
    for name, profile, switches in (
        ("fp32", {}, {}),
        ("bf16 channels-last", {"precision": "bf16", "channels_last": True}, {}),
        ("bf16", {"precision": "bf16"}, {}),
        ("fp32 channels-last", {"channels_last": True}, {}),
        ("exact", {"precision": "exact"}, {}),
        ("fp32 any kernels", {}, {"any": True}),
        ("fp32 cudnn.benchmark", {}, {"benchmark": True}),
    ):
        for cls in (TCSeg, Supervised):
            if given.left < 5:
                note(given, "variants", f"{cls.name} {name}", skipped="no time left")
                continue
            with attempt(given, "variants", f"{cls.name} {name}"):
                environment.make_deterministic(
                    given.device, threads_of(given.device), exact=name == "exact"
                )
                torch.backends.cudnn.benchmark = "benchmark" in switches
                if "any" in switches:
                    torch.use_deterministic_algorithms(False)
                spec = make_spec(given, cls(), **profile)
                figures, values = alone(given, spec, world)
                first, *_, last = base.setdefault(cls.name, values)
                figures["first_loss_vs_fp32"] = values[0] / first - 1
                figures["last_loss_vs_fp32"] = values[-1] / last - 1
                note(given, "variants", f"{cls.name} {name}", **figures)
    environment.make_deterministic(given.device, threads_of(given.device))
    for profile in dict.fromkeys((given.profile, "mini" if given.profile == "paper" else "smoke")):
        if given.device.type == "cuda" and given.left > 4:
            with attempt(given, "variants", f"supervised {profile} CUDA graph"):
                graphed(replace(given, profile=profile))


def alone(
    given: Given, spec: RunSpec, world: World, number: int = 10
) -> tuple[dict[str, Any], list[float]]:
    """The step on batches that lie on the device: time, memory, losses."""
    device = given.device
    learner = build_learner(spec, 1, device)
    learner.nets.train()
    sampler = build_sampler(spec, world, device)
    first = middle(spec)
    batches = [sampler(first + i) for i in range(2)]
    losses: list[torch.Tensor] = []

    def steps(count: int) -> None:
        for i in range(count):
            terms = train_step(learner, batches[i % 2], Step(first + i, learner.total))
            losses.append(next(iter(terms.values())).value.detach())

    gib(device)
    steps(WARM_UP)
    spent = seconds(device, lambda: steps(number)) / number
    figures: dict[str, Any] = {"s_per_iter": spent, "gib": gib(device)}
    if device.type == "cuda":
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            steps(1)
        figures["tflop"] = counter.get_total_flops() / 1e12
        figures["tflops"] = figures["tflop"] / spent
    return figures, [float(x) for x in losses]


class Logits(nn.Module):
    """A network as a function from tensor to tensor, which is what a graph can capture."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images).logits


def graphed(given: Given) -> None:
    """Forward and backward of one network, captured once; loss and optimiser outside."""
    from methods.common import supervised_loss

    device, spec = given.device, make_spec(given, Supervised())
    learner = build_learner(spec, 1, device)
    net = Logits(next(iter(learner.nets.values()))).train()
    batch = build_sampler(spec, make_world(load_volumes(given)[0]), device)(0)
    optimiser = next(iter(learner.optimisers.values()))

    def step(forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        supervised_loss(forward(batch.image), batch.label).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def steps(forward: Callable[[torch.Tensor], torch.Tensor]) -> float:
        for _ in range(WARM_UP):
            step(forward)
        return seconds(device, lambda: [step(forward) for _ in range(20)]) / 20

    eager = steps(net)
    captured = torch.cuda.make_graphed_callables(net, (batch.image,))
    figures = {"eager_s_per_iter": eager, "graph_s_per_iter": steps(captured)}
    note(given, "variants", f"supervised {given.profile} CUDA graph", **figures)


def repeat_section(given: Given) -> None:
    """See the module docstring."""
    volumes, _ = load_volumes(given)
    world = make_world(volumes)
    for cls in MEASURED:
        with attempt(given, "repeat", f"{cls.name} {given.profile}"):
            spec = make_spec(given, cls())
            first, again = (after_steps(given, spec, world, 4) for _ in range(2))
            worst = max(float((a - b).abs().max()) for a, b in zip(first, again, strict=True))
            note(given, "repeat", f"{cls.name} {given.profile}", largest_difference=worst)
    small = replace(given, profile="smoke")
    world = make_world(load_volumes(small)[0])
    failing: dict[str, str] = {}
    equal: list[str] = []
    warned: set[str] = set()
    for cls in METHODS:
        if given.left < 3:
            note(given, "repeat", "methods left out", first=cls.name)
            break
        spec = make_spec(small, cls(), precision="exact")
        environment.make_deterministic(given.device, threads_of(given.device), exact=True)
        try:
            first, again = (after_steps(small, spec, world, 2) for _ in range(2))
            if all(a.equal(b) for a, b in zip(first, again, strict=True)):
                equal.append(cls.name)
            else:
                failing[cls.name] = "differs"
        except Exception as error:
            failing[cls.name] = str(error).splitlines()[0][:160]
            environment.make_deterministic(given.device, threads_of(given.device))
            with warnings.catch_warnings(record=True) as caught, suppress(Exception):
                warnings.simplefilter("always")
                after_steps(small, spec, world, 1)
                warned |= {str(w.message).splitlines()[0][:160] for w in caught}
    note(
        given,
        "repeat",
        "two exact steps twice, every method",
        bit_equal=len(equal),
        not_equal=", ".join(failing) or "none",
        reasons=failing,
        kernels=sorted(warned),
    )


def after_steps(given: Given, spec: RunSpec, world: World, number: int) -> list[torch.Tensor]:
    """All tensors of the networks after some steps."""
    learner = build_learner(spec, 1, given.device)
    first = middle(spec)
    sample = build_sampler(spec, world, given.device)
    train(learner, sample, first, first + number, lambda done: None, read_every=number)
    return [t.float().cpu() for t in learner.nets.state_dict().values()]


def together_section(given: Given) -> None:
    """See the module docstring."""
    plans: tuple[tuple[str, Sequence[int]], ...] = (("smoke", (1, 2)),)
    if given.profile == "paper":
        plans = (("mini", MINI_RUNS), ("paper", PAPER_RUNS))
    for position, (profile, counts) in enumerate(plans):
        share = given.left / (len(plans) - position)
        with attempt(given, "together", profile):
            several(given, profile, counts, share)


def several(given: Given, profile: str, counts: Sequence[int], share: float) -> None:
    """Steps a second in all, of several processes that train `tcseg`."""
    until = time.monotonic() + share
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workers = []
        for index in range(max(counts)):
            command = [
                *(sys.executable, "-m", "tests.gpu_measure", "--out", str(folder)),
                *("--profile", profile, "--device", str(given.device), "--worker", str(index)),
                *("--until", str(until)),
            ]
            variables = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            workers.append(subprocess.Popen(command, cwd=ROOT, env=variables))
        try:
            while len(list(folder.glob("ready-*"))) < len(workers):
                if time.monotonic() > until - 3 or all(w.poll() is not None for w in workers):
                    ready = len(list(folder.glob("ready-*")))
                    note(given, "together", f"{profile} start", ready=ready, of=len(workers))
                    if ready < counts[0]:
                        return
                    break
                time.sleep(0.1)
            for phase, count in enumerate(counts):
                span = min(7.0, (until - time.monotonic()) / (len(counts) - phase))
                if span < 1:
                    note(given, "together", f"{profile} x {count}", skipped="no time left")
                    continue
                (folder / f"go-{phase}").write_text(json.dumps({"runs": count, "seconds": span}))
                patience = time.monotonic() + span + 6
                while time.monotonic() < patience:
                    time.sleep(0.2)
                    if len(list(folder.glob(f"done-{phase}-*"))) == count:
                        break
                counted = [json.loads(p.read_text()) for p in folder.glob(f"done-{phase}-*")]
                note(
                    given,
                    "together",
                    f"tcseg {profile} x {count}",
                    runs=len(counted),
                    steps_per_s=sum(c["steps"] / c["seconds"] for c in counted),
                    gib_a_run=max((c["gib"] for c in counted), default=0.0),
                )
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.wait()


def work(given: Given, index: str) -> None:
    """One of several: train whenever a phase asks for it."""
    device = given.device
    environment.make_deterministic(device, 1)
    spec = make_spec(given, TCSeg())
    learner = build_learner(spec, 1, device)
    sampler = build_sampler(spec, make_world(load_volumes(given)[0]), device)
    first = step = middle(spec)

    def steps(number: int) -> None:
        nonlocal step
        with prefetched(sampler, step + number, 1) as sample:
            train(learner, sample, step, step + number, lambda done: None, read_every=READ_EVERY)
        step = first + (step + number - first) % 1_000

    steps(WARM_UP)
    (given.out / f"ready-{index}").touch()
    for phase in itertools.count():
        order = given.out / f"go-{phase}"
        while not order.exists():
            time.sleep(0.02)
            if given.left < 0:
                return
        time.sleep(0.05)
        asked = json.loads(order.read_text())
        if int(index) >= asked["runs"]:
            continue
        began, done = time.monotonic(), 0
        while time.monotonic() - began < asked["seconds"]:
            steps(5)
            finish(device)
            done += 5
        spent = time.monotonic() - began
        result = {"steps": done, "seconds": spent, "gib": gib(device)}
        target = given.out / f"done-{phase}-{index}"
        target.with_name(f".{target.name}").write_text(json.dumps(result))
        target.with_name(f".{target.name}").rename(target)


def profile_section(given: Given) -> None:
    """See the module docstring."""
    volumes, _ = load_volumes(given)
    world = make_world(volumes)
    tuned = {"precision": "bf16", "channels_last": True}
    for cls, name, profile in (
        (TCSeg, "fp32", {}),
        (Supervised, "fp32", {}),
        (TCSeg, "bf16 channels-last", tuned),
        (Supervised, "bf16 channels-last", tuned),
    ):
        if given.left < 4:
            note(given, "profile", f"{cls.name} {name}", skipped="no time left")
            continue
        with attempt(given, "profile", f"{cls.name} {name}"):
            profiled(given, make_spec(given, cls(), **profile), world, f"{cls.name} {name}")


def profiled(given: Given, spec: RunSpec, world: World, what: str, number: int = 3) -> None:
    """Time by kernel, waits for the device, share of the time in which it works."""
    from torch.profiler import ProfilerActivity, profile

    device, first = given.device, middle(spec)
    learner = build_learner(spec, 1, device)
    sampler = build_sampler(spec, world, device)
    batches = {first + i: sampler(first + i) for i in range(number)}

    def steps() -> None:
        train(learner, batches.__getitem__, first, first + number, lambda d: None, read_every=99)

    steps()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as recorded:
        wall = seconds(device, steps)
    events = recorded.key_averages()
    waits = {
        e.key: e.count / number
        for e in events
        if e.key
        in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpyAsync", "aten::item")
        or e.key == "cudaLaunchKernel"
    }
    spent: dict[str, float] = {}
    for e in events:
        is_kernel = "CUDA" in str(getattr(e, "device_type", ""))
        own = getattr(e, "self_device_time_total", 0) if on_gpu else e.self_cpu_time_total
        if own and is_kernel == on_gpu:
            spent[e.key[:110]] = spent.get(e.key[:110], 0.0) + own / number / 1e3
    top = sorted(spent.items(), key=lambda item: -item[1])[:20]
    total = sum(spent.values())
    note(
        given,
        "profile",
        what,
        wall_ms=1e3 * wall / number,
        device_ms=total,
        busy=total / (1e3 * wall / number),
        calls=waits,
        top_ms=dict(top),
    )
    for name, milliseconds in top[:10]:
        say(f"    {milliseconds:8.2f} ms  {milliseconds / max(total, 1e-9):5.1%}  {name}")
    say(f"    a step: {waits}")


def compile_section(given: Given) -> None:
    """See the module docstring."""
    world = make_world(load_volumes(given)[0])
    tuned = {"precision": "bf16", "channels_last": True}
    for cls, name, profile in (
        (Supervised, "bf16 channels-last", tuned),
        (TCSeg, "bf16 channels-last", tuned),
        (Supervised, "fp32", {}),
    ):
        if given.left < 15:
            note(given, "compile", f"{cls.name} {name}", skipped="no time left")
            continue
        with attempt(given, "compile", f"{cls.name} {name}"):
            began = time.monotonic()
            spec = make_spec(given, cls(), compile=True, **profile)
            figures, values = alone(given, spec, world)
            figures["whole_s"] = time.monotonic() - began
            note(given, "compile", f"{cls.name} {name}", **figures, last_loss=values[-1])


def run_section(given: Given) -> None:
    """See the module docstring."""
    for how in ("cases measured beside training", "cases measured before training goes on"):
        with tempfile.TemporaryDirectory() as name, attempt(given, "run", how):
            if given.left > 5:
                whole_run(given, Path(name), how)


def whole_run(given: Given, root: Path, how: str) -> None:
    """A run of `tcseg` on the embedded data."""
    from benchmark import runner
    from benchmark.attempts import DONE
    from benchmark.worker import work as attempt_run
    from tests.engine.toy import announced, plan

    measure = runner._Attempt._measure

    def at_once(self: Any, step: int, predictions: Any) -> None:
        self.pool = None
        measure(self, step, predictions)

    if "before" in how:
        runner._Attempt._measure = at_once  # type: ignore[method-assign]
    size = "demo" if given.profile == "paper" else "smoke"
    (job,) = plan(root, root, root, "tcseg", sources=["phantom"], profile=size).jobs
    store, run = announced(job, root / "store")
    began = time.monotonic()
    code = attempt_run(store, run, str(given.device), threads_of(given.device))
    spent = time.monotonic() - began
    if code != DONE:
        raise RuntimeError((store.work(run) / "error.txt").read_text())
    sidecar = store.sidecar(run)
    phases = sidecar["attempts"][-1]["spent"]
    last = store.read("cases", [run]).query("split == 'test'").groupby("step")["dsc"].mean()
    note(
        given,
        "run",
        f"tcseg {size}, {how}",
        seconds=spent,
        last_dsc=float(last.iloc[-1]),
        s_per_iter=sidecar["seconds_per_step"],
        s_per_case=sidecar["seconds_per_case"],
        s_per_evaluation=sidecar["seconds_per_evaluation"],
        **{f"{k}_s": v for k, v in phases.items()},
    )


SECTIONS: dict[str, Callable[[Given], None]] = {
    "step": step_section,
    "variants": variants_section,
    "together": together_section,
    "profile": profile_section,
    "repeat": repeat_section,
    "compile": compile_section,
    "run": run_section,
}


if __name__ == "__main__":
    main()
