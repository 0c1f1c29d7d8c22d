"""On a GPU: the CPU's numbers, the same seed twice, and what goes wrong is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark import environment
from benchmark.attempts import DONE
from benchmark.evaluation import Evaluator
from benchmark.executors.base import Resources
from benchmark.executors.inline import Inline
from benchmark.executors.local import Local, slots
from benchmark.inference import sliding_window
from benchmark.miniature import DeclaredExtras, make_batch
from benchmark.runner import build_learner, build_sampler, chosen_predictors, load_world
from benchmark.scheduler import execute
from benchmark.trainer import evaluating, train, train_step
from benchmark.view import Silent
from benchmark.worker import work
from methods import METHODS
from methods.base import Batch, Step
from results.store import Store
from tests.engine.conftest import Toy
from tests.engine.test_resume import contents, fresh, stop_after_every_checkpoint
from tests.engine.toy import announced, plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
PLUGIN = str(Path(__file__).with_name("plugin_methods.py"))
FOUR = ["supervised", "mt", "dtc", "tcseg"]


def on(batch: Batch, device: torch.device) -> Batch:
    """The batch in double precision, there."""
    extras = {n: x.double().to(device) for n, x in batch.extras.items()}
    return Batch(
        batch.image.double().to(device),
        batch.label.to(device),
        batch.unlabelled.double().to(device),
        DeclaredExtras(extras),
    )


@pytest.mark.parametrize("name", FOUR)
def test_terms_and_gradients_of_a_step_are_those_of_the_cpu(
    name: str, toy: Toy, tmp_path: Path
) -> None:
    # In float64, so that TF32 and the order of summation do not matter; without what is drawn on
    # the device, which differs between devices.
    settings = ["profile.dropout=0", *(["mt.noise_std=0"] if name == "mt" else [])]
    (job,) = plan(toy.folder, toy.root, tmp_path, name, settings=settings).jobs
    method = job.spec.method
    found: list[tuple[dict[str, float], float]] = []
    for device in (CPU, GPU):
        learner = build_learner(job.spec, 1, device)
        learner.nets.double()
        rng = torch.Generator(CPU if name == "tcseg" else device).manual_seed(3)
        terms = method.losses(learner.nets, on(make_batch(method, 0), device), Step(4, 8), rng)
        sum((t.weight * t.value for t in terms.values()), torch.zeros((), device=device)).backward()
        gradients = [p.grad.norm() for p in learner.nets.parameters() if p.grad is not None]
        norm = float(torch.stack(gradients).norm())
        found.append(({n: t.value.item() for n, t in terms.items()}, norm))
    (expected, expected_norm), (given, norm) = found
    assert given == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert norm == pytest.approx(expected_norm, rel=1e-7)


@pytest.mark.parametrize("precision", ["fp32", "exact", "bf16"])
def test_a_few_steps_in_the_profiles_precision_stay_near_the_cpus(
    precision: str, toy: Toy, tmp_path: Path
) -> None:
    settings = [f"profile.precision={precision}", "profile.dropout=0"]
    (job,) = plan(toy.folder, toy.root, tmp_path, "supervised", settings=settings).jobs
    rows = {}
    for device in (CPU, GPU):
        environment.make_deterministic(device, 1, exact=precision == "exact")
        world = load_world(job.spec, job.source, job.data)
        learner = build_learner(job.spec, 1, device)
        sampler = build_sampler(job.spec, world, device)
        done = train(learner, sampler, 0, 4, lambda done: None, read_every=25)
        rows[device.type] = [row.value for row in done]
    tolerance = {"exact": 1e-4, "fp32": 5e-3, "bf16": 3e-2}[precision]
    assert rows["cuda"] == pytest.approx(rows["cpu"], rel=tolerance)


def test_segmenting_there_gives_the_probabilities_and_masks_of_the_cpu(
    toy: Toy, tmp_path: Path
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path, "mt", predictors="all").jobs
    environment.make_deterministic(GPU, 1, exact=True)
    world = load_world(job.spec, job.source, job.data)
    geometry = job.spec.geometry
    masks: dict[str, list[np.ndarray]] = {}
    scores = {}
    for device in (CPU, GPU):
        learner = build_learner(job.spec, 1, device)
        predictors = chosen_predictors(job.spec, learner)
        evaluator = Evaluator(world.volumes, geometry, device, 1, lambda seconds: None)
        image = torch.from_numpy(np.array(world.volumes[world.labelled[0]].image)).to(device)
        with evaluating(learner.nets):
            found = sliding_window(
                predictors["main"], image, geometry.patch, geometry.stride, batch=4
            )
            assert found.device.type == device.type
            scores[device.type] = found.cpu().numpy()
            masks[device.type] = [
                p.mask for p in evaluator.predictions(predictors, world.evaluated, 1)
            ]
    np.testing.assert_allclose(scores["cuda"], scores["cpu"], rtol=0, atol=1e-5)
    differing = sum((a ^ b).sum() for a, b in zip(*masks.values(), strict=True))
    assert differing <= 1e-4 * sum(m.size for m in masks["cpu"])


@pytest.mark.parametrize("name", FOUR)
def test_the_same_seed_twice_gives_the_same_bytes(name: str, toy: Toy, tmp_path: Path) -> None:
    one, run = fresh(toy, tmp_path / "one", name)
    two, _ = fresh(toy, tmp_path / "two", name)
    for store in (one, two):
        assert work(store, run, "cuda:0", 2) == DONE
    assert contents(one, run) == contents(two, run)


@pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.name)
def test_every_method_trains_a_step_and_says_so_if_a_kernel_does_not_repeat_itself(
    cls: Any, toy: Toy, tmp_path: Path
) -> None:
    settings = ["profile.precision=exact"]
    (job,) = plan(toy.folder, toy.root, tmp_path, cls.name, settings=settings).jobs
    environment.make_deterministic(GPU, 1, exact=True)
    world = load_world(job.spec, job.source, job.data)
    states = []
    for _ in range(2):
        learner = build_learner(job.spec, 1, GPU)
        sampler = build_sampler(job.spec, world, GPU)
        try:
            train(learner, sampler, 4, 6, lambda done: None)
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            pytest.skip(str(error).splitlines()[0])
        states.append(learner.nets.state_dict())
    assert all(a.equal(b) for a, b in zip(*(s.values() for s in states), strict=True))


@contextmanager
def no_waiting() -> Iterator[None]:
    """An error for whatever makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["supervised", "mt", "dtc"])
def test_the_host_never_waits_for_the_device_in_a_step(name: str, toy: Toy, tmp_path: Path) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path, name).jobs
    environment.make_deterministic(GPU, 1)
    world = load_world(job.spec, job.source, job.data)
    learner = build_learner(job.spec, 1, GPU)
    sampler = build_sampler(job.spec, world, GPU)
    batches = [sampler(step) for step in range(3)]
    train_step(learner, batches[0], Step(0, 8))
    with no_waiting():
        for index, batch in enumerate(batches[1:], 1):
            train_step(learner, batch, Step(index, 8))


@pytest.mark.parametrize("method", ["mt", "tcseg"])
def test_stopping_after_any_checkpoint_changes_no_byte(
    method: str, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = fresh(toy, tmp_path / "whole", method)
    assert work(whole, run, "cuda:0", 2) == DONE
    cut, _ = fresh(toy, tmp_path / "cut", method)
    stop_after_every_checkpoint(monkeypatch)
    attempts = 0
    while not cut.is_done(run):
        attempts += 1
        work(cut, run, "cuda:0", 2)
    assert attempts > 4
    assert contents(cut, run) == contents(whole, run)


def test_a_process_that_has_not_used_the_device_yet_works_on_a_run(
    toy: Toy, tmp_path: Path
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path, "supervised").jobs
    store = Store.open(tmp_path / "store", create=True)
    places = slots(Resources(jobs=1, threads=1, gpus=("0",), cores=1))
    assert execute([job], store, Local(places), Silent()).ok
    assert store.is_done(job.spec.run_id)


def test_a_diverged_run_is_failed_at_the_step_that_the_cpu_names(toy: Toy, tmp_path: Path) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path, "explodes", plugins=[PLUGIN]).jobs
    store, run = announced(job, tmp_path)
    assert work(store, run, "cuda:0", 1, plugins=[PLUGIN]) == DONE
    assert store.record(run)["error"] == "loss term 'supervised' is not finite at step 5"
    assert list(store.read("history", [run])["step"]) == [0, 1, 2, 3, 4, 5]


def test_out_of_memory_fails_one_run_that_says_how_much_and_what_to_do(
    toy: Toy, tmp_path: Path
) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "devours,supervised", plugins=[PLUGIN])
    store = Store.open(tmp_path, create=True)
    summary = execute(made.jobs, store, Inline("cuda:0", 1, plugins=(PLUGIN,)), Silent())
    (text,) = summary.failed.values()
    assert text.startswith(
        "given up after 3 attempts; the last: out of memory on cuda:0; run fewer"
    )
    assert "devours at profile smoke, 2 + 2 patches of" in text
    assert text.endswith("GiB are free")
    assert len(summary.finished) == 1


def test_the_record_says_which_numerics_a_run_used(toy: Toy, tmp_path: Path) -> None:
    said = {}
    for precision in ("fp32", "exact"):
        settings = [f"profile.precision={precision}"]
        (job,) = plan(toy.folder, toy.root, tmp_path, "supervised", settings=settings).jobs
        store, run = announced(job, tmp_path)
        assert work(store, run, "cuda:0", 1) == DONE
        (environment_,) = json.loads(store.record(run)["environment"])
        said[precision] = [environment_[k] for k in ("tf32", "matmul_tf32", "repeating")]
        assert environment_["gpu"]
    assert said == {"fp32": [True, False, "preferred"], "exact": [False, False, "required"]}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"channels_last": True}, id="channels-last"),
        pytest.param({"precision": "bf16", "channels_last": True}, id="bf16-channels-last"),
        pytest.param({"compile": True}, id="compiled", marks=pytest.mark.slow),
    ],
)
def test_opt_in_numerics_stay_near_the_default(
    changes: dict[str, Any], toy: Toy, tmp_path: Path
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path, "tcseg", settings=["profile.dropout=0"]).jobs
    environment.make_deterministic(GPU, 1)
    world = load_world(job.spec, job.source, job.data)
    values = []
    for profile in (job.spec.profile, replace(job.spec.profile, **changes)):
        spec = replace(job.spec, profile=profile)
        learner = build_learner(spec, 1, GPU)
        rows = train(learner, build_sampler(spec, world, GPU), 0, 3, lambda done: None)
        values.append([r.value for r in rows if r.term == "supervised"])
        with evaluating(learner.nets):
            image = torch.from_numpy(np.array(world.volumes[world.labelled[0]].image)).to(GPU)
            found = sliding_window(
                chosen_predictors(spec, learner)["main"],
                image,
                spec.geometry.patch,
                spec.geometry.stride,
                batch=4,
            )
        assert found.dtype == torch.float32
    assert values[1] == pytest.approx(values[0], rel=3e-2)
