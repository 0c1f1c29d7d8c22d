"""The one loop, and what a run stores, against independent computations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import pytest
import torch
from medpy.metric import binary
from torch import nn

from benchmark import checkpoint
from benchmark.attempts import DONE
from benchmark.jobs import Job
from benchmark.networks import initialise
from benchmark.prefetch import prefetched
from benchmark.runner import build_learner, chosen_predictors, load_world
from benchmark.trainer import Diverged, make_learner, train, train_step
from benchmark.worker import work
from methods.base import (
    Adam,
    Batch,
    Fidelity,
    Method,
    NetworkFactory,
    Predictor,
    Recipe,
    Step,
    Term,
)
from methods.mean_teacher import MeanTeacher
from results.store import Store
from tests.engine.conftest import Toy
from tests.engine.toy import announced, plan

CPU = torch.device("cpu")


@final
@dataclass(frozen=True)
class Duel(Method):
    """Two players who share a graph: w pulls w*v up, v pulls it down."""

    name: ClassVar[str] = "duel"
    title: ClassVar[str] = "duel"
    paper: ClassVar[str] = "arXiv:0000.00000"
    bibtex: ClassVar[str] = "@misc{duel}"
    fidelity: ClassVar[Fidelity] = Fidelity.PAPER
    inputs: ClassVar[tuple[str, ...]] = ("image", "label")

    def init(self, build: NetworkFactory) -> nn.ModuleDict:
        nets = nn.ModuleDict({"w": nn.Linear(1, 1, bias=False), "v": nn.Linear(1, 1, bias=False)})
        nn.init.constant_(nets["w"].weight, 2.0)
        nn.init.constant_(nets["v"].weight, 3.0)
        return nets

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        product = (nets["w"].weight * nets["v"].weight).sum()
        return {"up": Term(-product, 0.5, "w"), "down": Term(product, 2.0, "v")}

    def predictors(self, nets: nn.ModuleDict) -> dict[str, Predictor]:
        return {"main": lambda x: x}

    def players(self, nets: nn.ModuleDict) -> dict[str, list[nn.Parameter]]:
        return {name: list(net.parameters()) for name, net in nets.items()}


def empty_batch(step: int) -> Batch:
    image = torch.zeros(2, 1, 8, 8, 8)
    return Batch(image, torch.zeros(2, 8, 8, 8, dtype=torch.long), image[:0], {})


def test_each_player_follows_only_its_own_terms() -> None:
    recipe = Recipe(learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    nets = initialise(Duel(), 0, channels=1, width=1, levels=2, dropout=0.0)
    learner = make_learner(Duel(), nets, recipe, seed=0, total=1)
    train_step(learner, empty_batch(0), Step(0, 1))
    assert nets["w"].weight.item() == pytest.approx(2.0 + 0.1 * 0.5 * 3.0)
    assert nets["v"].weight.item() == pytest.approx(3.0 - 0.1 * 2.0 * 2.0)


def test_the_recipes_learning_rate_reaches_every_optimiser() -> None:
    recipe = Recipe(schedule="step", milestones=(0.5,))
    nets = initialise(Duel(), 0, channels=1, width=1, levels=2, dropout=0.0)
    learner = make_learner(Duel(), nets, recipe, seed=0, total=4)
    rates = []
    for index in range(4):
        train_step(learner, empty_batch(index), Step(index, 4))
        rates.append([o.param_groups[0]["lr"] for o in learner.optimisers.values()])
    assert rates == [pytest.approx([r, r]) for r in (0.01, 0.01, 0.001, 0.001)]


def test_a_player_with_adam_learns_by_it_at_its_own_rate_whatever_the_recipe() -> None:
    class Uneven(Duel):
        adam: ClassVar = {"v": Adam(0.25)}

    recipe = Recipe(learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    nets = initialise(Uneven(), 0, channels=1, width=1, levels=2, dropout=0.0)
    learner = make_learner(Uneven(), nets, recipe, seed=0, total=2)
    train_step(learner, empty_batch(0), Step(0, 2))
    assert nets["w"].weight.item() == pytest.approx(2.0 + 0.1 * 0.5 * 3.0)
    # Adam's first step is the rate times the sign of the gradient.
    assert nets["v"].weight.item() == pytest.approx(3.0 - 0.25)


def test_a_long_run_keeps_about_a_thousand_steps_of_history_and_always_the_last() -> None:
    nets = initialise(Duel(), 0, channels=1, width=1, levels=2, dropout=0.0)
    learner = make_learner(Duel(), nets, Recipe(learning_rate=1e-9), seed=0, total=2_500)
    kept = sorted({row.step for row in train(learner, empty_batch, 0, 2_500, lambda done: None)})
    assert kept == [*range(0, 2_500, 2), 2_499]


class Bursts(Duel):
    """NaN from step 7 on, and an error two steps later."""

    name: ClassVar[str] = "bursts"

    def losses(
        self, nets: nn.ModuleDict, batch: Batch, step: Step, rng: torch.Generator
    ) -> dict[str, Term]:
        if step.index == 9:
            raise KeyError("what a NaN led to")
        terms = super().losses(nets, batch, step, rng)
        if step.index < 7:
            return terms
        return terms | {"down": Term(terms["down"].value * float("nan"), 2.0, "v")}


@pytest.mark.parametrize("read_every", [1, 3, 8, 9, 25])
def test_reading_terms_later_changes_neither_rows_nor_the_step_that_diverged(
    read_every: int,
) -> None:
    found = []
    for every in (1, read_every):
        nets = initialise(Bursts(), 0, channels=1, width=1, levels=2, dropout=0.0)
        learner = make_learner(Bursts(), nets, Recipe(learning_rate=1e-3), seed=0, total=20)
        kept = train(learner, empty_batch, 0, 6, lambda done: None, read_every=every)
        with pytest.raises(Diverged, match="term 'down' is not finite at step 7") as raised:
            train(learner, empty_batch, 6, 20, lambda done: None, read_every=every)
        found.append([*kept, *raised.value.rows])
    assert str(found[0]) == str(found[1])  # NaN is not equal to itself
    assert [row.step for row in found[0]] == [s for s in range(8) for _ in range(2)]


def test_batches_made_ahead_are_those_of_their_steps_and_none_is_made_beyond_the_end() -> None:
    made = []

    def sample(step: int) -> Batch:
        made.append(step)
        if step == 8:
            raise ValueError("no such step")
        return replace(empty_batch(step), extras={"step": torch.tensor(step)})

    for threads in (0, 1, 3):
        made.clear()
        with prefetched(sample, 7, threads) as ahead:
            assert [int(ahead(step).extras["step"]) for step in range(2, 7)] == [2, 3, 4, 5, 6]
        assert sorted(made) == [2, 3, 4, 5, 6]
    with prefetched(sample, 20, 2) as ahead, pytest.raises(ValueError, match="no such step"):
        _ = [ahead(step) for step in range(20)]


def test_training_is_sgd_with_momentum_and_weight_decay() -> None:
    recipe = Recipe()
    nets = initialise(Duel(), 0, channels=1, width=1, levels=2, dropout=0.0)
    learner = make_learner(Duel(), nets, recipe, seed=0, total=2)
    w, v, momentum_w, momentum_v = 2.0, 3.0, 0.0, 0.0
    for index in range(2):
        train_step(learner, empty_batch(index), Step(index, 2))
        gradient_w, gradient_v = -0.5 * v + 1e-4 * w, 2.0 * w + 1e-4 * v
        momentum_w = 0.9 * momentum_w + gradient_w
        momentum_v = 0.9 * momentum_v + gradient_v
        w, v = w - 0.01 * momentum_w, v - 0.01 * momentum_v
    assert nets["w"].weight.item() == pytest.approx(w, rel=1e-6)
    assert nets["v"].weight.item() == pytest.approx(v, rel=1e-6)


def test_stored_rows_are_those_of_the_saved_networks(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path, "mt", predictors="all").jobs
    store, run = announced(job, tmp_path)
    monkeypatch.setattr("benchmark.worker.clean", lambda store, run: None)
    assert work(store, run, "cpu", 1) == DONE

    world = load_world(job.spec, job.source, job.data)
    learner = build_learner(job.spec, 1, CPU)
    step, state = checkpoint.load_newest(store.work(run), CPU) or (0, {})
    learner.load(state["learner"])
    learner.nets.eval()
    predictors = chosen_predictors(job.spec, learner)
    assert step == job.spec.steps
    cases = store.read("cases", [run])
    cases = cases[cases["step"] == step]
    assert len(cases) == len(predictors) * sum(map(len, world.evaluated.values()))
    for row in cases.itertuples():
        assert row.case in world.evaluated[row.split]
        mask = naive_mask(predictors[row.predictor], world.volumes[row.case].image, job)
        truth = world.volumes[row.case].label.astype(bool)
        assert (row.tp, row.fp) == ((mask & truth).sum(), (mask & ~truth).sum())
        assert row.fn == (~mask & truth).sum()
        assert row.voxels == truth.size
        assert row.dsc == binary.dc(mask, truth)
        if row.status == "ok":
            spacing = world.volumes[row.case].spacing
            assert row.hd95 == pytest.approx(binary.hd95(mask, truth, spacing), abs=1e-12)
            assert row.asd == pytest.approx(binary.asd(mask, truth, spacing), abs=1e-12)
    pseudo = store.read("pseudo", [run])
    assert set(pseudo["case"]) == set(world.unlabelled)
    for row in pseudo.itertuples():
        mask = naive_mask(predictors[row.predictor], world.volumes[row.case].image, job)
        truth = world.volumes[row.case].label.astype(bool)
        assert (row.tp, row.tn) == ((mask & truth).sum(), (~mask & ~truth).sum())


def naive_mask(predict: Predictor, image: np.ndarray, job: Job) -> np.ndarray:
    """The field's loop, one window at a time."""
    patch, stride = job.spec.geometry.patch, job.spec.geometry.stride
    shape = image.shape[1:]
    score, count = np.zeros((2, *shape), np.float32), np.zeros(shape, np.float32)
    starts = [
        [min(s * k, n - p) for k in range(-(-(n - p) // s) + 1)]
        for n, p, s in zip(shape, patch, stride, strict=True)
    ]
    for corner in np.array(np.meshgrid(*starts, indexing="ij")).reshape(3, -1).T:
        cut = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
        with torch.no_grad():
            window = torch.from_numpy(np.ascontiguousarray(image[(slice(None), *cut)]))
            score[(slice(None), *cut)] += predict(window[None])[0].numpy()
        count[cut] += 1
    score /= count
    mask: np.ndarray = score[1] > score[0]
    return mask


def test_bf16_changes_the_numbers_a_little_and_gives_float32(toy: Toy, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        settings = [f"profile.precision={precision}"]
        (job,) = plan(toy.folder, toy.root, tmp_path, settings=settings).jobs
        learner = build_learner(job.spec, 1, CPU)
        output = learner.nets["student"](torch.randn(2, 1, 16, 16, 16))
        assert output.logits.dtype == output.features.dtype == torch.float32
        store, run = announced(job, tmp_path)
        assert work(store, run, "cpu", 1) == DONE
        history = store.read("history", [run])
        losses[precision] = history[history["term"] == "supervised"]["value"].to_numpy()
    assert not np.array_equal(losses["fp32"], losses["bf16"])
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_a_checkpoint_holds_teacher_momentum_and_buffers(toy: Toy, tmp_path: Path) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path, "mt").jobs
    learner = build_learner(job.spec, 1, CPU)
    assert isinstance(job.spec.method, MeanTeacher)
    state = learner.state()
    assert any(name.startswith("teacher.") for name in state["nets"])
    assert any("running_mean" in name for name in state["nets"])
    assert set(state["optimisers"]) == {"main"}


def test_a_store_reads_back_what_a_run_wrote_in_any_engine(toy: Toy, tmp_path: Path) -> None:
    import duckdb
    import polars

    (job,) = plan(toy.folder, toy.root, tmp_path, "supervised").jobs
    store, run = announced(job, tmp_path)
    assert work(store, run, "cpu", 1) == DONE
    path = str(tmp_path / "cases" / "*.parquet")
    ours = Store(tmp_path).read("cases")["dsc"].mean()
    found = duckdb.sql(f"select avg(dsc) from '{path}'").fetchall()
    assert found == [(pytest.approx(ours),)]
    assert polars.read_parquet(path)["dsc"].mean() == pytest.approx(ours)
