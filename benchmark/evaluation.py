"""Segment whole volumes with a run's predictors and measure them. Selects nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from benchmark.data.base import Geometry, Split, Volume
from benchmark.inference import segment, sliding_window
from benchmark.metrics import CaseMetrics, Reference, case_metrics, prepare_reference
from benchmark.trainer import Diverged
from methods.base import Predictor
from results.predictions import Mask, columns_of

WINDOWS_AT_ONCE = 4
"""Of the sliding window; part of the engine's numbers, by rounding."""


@dataclass(frozen=True)
class Prediction:
    """What one predictor makes of one case at one step; mask (X, Y, Z) at the run's scale."""

    step: int
    predictor: str
    split: Split
    case: str
    mask: Mask

    @property
    def key(self) -> dict[str, Any]:
        """What identifies its row in a table of the run."""
        return {
            "step": self.step,
            "predictor": self.predictor,
            "split": self.split,
            "case": self.case,
        }

    def packed(self) -> dict[str, Any]:
        """Its row of the `predictions` table, but for the run."""
        return self.key | columns_of(self.mask)


@dataclass(frozen=True)
class Evaluator:
    """The cases of one run and how they are segmented.

    volumes: case -> volume, at the run's scale.
    segmented: called after every segmented volume with the seconds it took.
    """

    volumes: Mapping[str, Volume]
    geometry: Geometry
    device: torch.device
    threads: int
    segmented: Callable[[float], None]

    def predictions(
        self,
        predictors: Mapping[str, Predictor],
        splits: Mapping[Split, Sequence[str]],
        step: int,
    ) -> list[Prediction]:
        """Every predictor on every case.

        Raises:
            Diverged: a prediction is not finite.
        """
        return [
            Prediction(step, predictor, split, case, mask)
            for split, names in splits.items()
            for case in names
            for predictor, mask in self._segmented(predictors, case, step)
        ]

    def cases(
        self, predictions: Sequence[Prediction], references: Callable[[str], Reference]
    ) -> list[dict[str, Any]]:
        """Rows of the `cases` table, but for the run: the predictions measured."""
        measured = Parallel(n_jobs=self.threads, prefer="threads")(
            delayed(case_metrics)(p.mask, references(p.case)) for p in predictions
        )
        return [p.key | asdict(m) for p, m in zip(predictions, measured, strict=True)]

    def cases_later(
        self,
        predictions: Sequence[Prediction],
        references: Callable[[str], Reference],
        pool: Executor,
    ) -> Callable[[], list[dict[str, Any]]]:
        """As `cases`, measured by the pool; what it returns waits for the rows."""
        measured = [pool.submit(_measured, p, references) for p in predictions]
        return lambda: [
            p.key | asdict(m.result()) for p, m in zip(predictions, measured, strict=True)
        ]

    def pseudo(
        self, predictors: Mapping[str, Predictor], names: Iterable[str], step: int
    ) -> list[dict[str, Any]]:
        """Rows of the `pseudo` table, but for the run: pseudo-labels against the truth.

        Raises:
            Diverged: a prediction is not finite.
        """
        rows: list[dict[str, Any]] = []
        for case in names:
            truth = self.volumes[case].label.astype(bool)
            for predictor, mask in self._segmented(predictors, case, step):
                counts = {
                    "tp": int((mask & truth).sum()),
                    "fp": int((mask & ~truth).sum()),
                    "fn": int((~mask & truth).sum()),
                    "tn": int((~mask & ~truth).sum()),
                }
                rows.append({"step": step, "predictor": predictor, "case": case} | counts)
        return rows

    def _segmented(
        self, predictors: Mapping[str, Predictor], case: str, step: int
    ) -> Iterable[tuple[str, Mask]]:
        image = torch.from_numpy(np.array(self.volumes[case].image)).to(self.device)
        for name, predictor in predictors.items():
            began = time.monotonic()
            try:
                probabilities = sliding_window(
                    predictor,
                    image,
                    self.geometry.patch,
                    self.geometry.stride,
                    batch=WINDOWS_AT_ONCE,
                )
            except FloatingPointError:
                raise Diverged(step, f"the prediction '{name}' of case {case}") from None
            mask = segment(probabilities).cpu().numpy()
            self.segmented(time.monotonic() - began)
            yield name, mask


def _measured(prediction: Prediction, references: Callable[[str], Reference]) -> CaseMetrics:
    return case_metrics(prediction.mask, references(prediction.case))


def reference_cache(volumes: Mapping[str, Volume]) -> Callable[[str], Reference]:
    """What `case_metrics` needs of a case's label, prepared once a run."""

    @cache
    def reference(case: str) -> Reference:
        volume = volumes[case]
        return prepare_reference(volume.label.astype(bool), volume.spacing)

    return reference
