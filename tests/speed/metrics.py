"""DSC + ASD + 95HD of three kinds of prediction, against medpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
from medpy.metric import binary

from benchmark import metrics
from benchmark.metrics import case_metrics, prepare_reference
from tests.speed.side_by_side import Line, Mask, Subject, compared, typical_prediction

SPACING = (0.625, 0.625, 0.625)
NOISE = 0.0025
"""Share of voxels flipped: about 5,000 components in an LA volume."""


def lines(subject: Subject, _: Path) -> Iterator[Line]:
    """With plain dependencies and with the compiled part; the reference is prepared before."""
    truth = subject.label == 1
    typical = typical_prediction(truth)
    noise = np.random.default_rng(2).random(truth.shape) < NOISE
    reference = prepare_reference(truth, SPACING)
    for name, mask, plain, fast in (
        ("typical", typical, 20, 40),
        ("noisy", typical ^ noise, 1, 10),
        ("full", np.ones_like(truth), 1, 10),
    ):
        for way, must in (("plain", plain), ("compiled", fast)):

            def medpy(mask: Mask = mask) -> tuple[float, float, float]:
                return (
                    binary.dc(mask, truth),
                    binary.asd(mask, truth, SPACING),
                    binary.hd95(mask, truth, SPACING),
                )

            def ours(mask: Mask = mask) -> tuple[float, float, float]:
                found = case_metrics(mask, reference)
                return found.dsc, found.asd, found.hd95

            without = mock.patch.object(metrics, "compiled", return_value=None)
            with without if way == "plain" else nullcontext():
                worst = max(abs(a - b) for a, b in zip(medpy(), ours(), strict=True))
                what = f"DSC + ASD + 95HD against medpy, {name} mask, {way}"
                yield compared(what, must, medpy, ours, f"|diff| <= {worst:g}")
