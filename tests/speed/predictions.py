"""A prediction kept, against the field's three compressed NIfTI files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from results.parquet import encode
from results.predictions import columns_of, pack, unpack
from tests.speed.side_by_side import Line, Subject, interleaved, typical_prediction

LIMIT_BYTES, LIMIT_MS = 15_000, 2.0


def lines(subject: Subject, folder: Path) -> Iterator[Line]:
    """Milliseconds to pack one, and what it adds to the store's file of many."""
    mask = typical_prediction(subject.label == 1)
    packed = pack(mask)
    differing = int((unpack(packed, mask.shape) != mask).sum())

    def field() -> None:
        for name, content in (("pred", mask), ("img", subject.image), ("gt", subject.label)):
            image = nibabel.Nifti1Image(content.astype(np.float32), np.eye(4))
            nibabel.save(image, folder / f"{name}.nii.gz")

    a, b = interleaved(field, lambda: pack(mask), rounds=3)
    theirs = sum((folder / f"{name}.nii.gz").stat().st_size for name in ("pred", "img", "gt"))
    empty, one = (stored_bytes(m) for m in (np.zeros_like(mask), mask))
    missed = one - empty > LIMIT_BYTES or b > LIMIT_MS
    yield Line(
        "a stored prediction",
        f"<= {LIMIT_BYTES / 1e3:g} kB, {LIMIT_MS:g} ms",
        f"{theirs / 1e3:,.0f} kB, {a:.0f} ms",
        f"{(one - empty) / 1e3:.1f} kB, {b:.2f} ms",
        f"{a / b:.0f}x{' MISSED' if missed else ''}",
        f"{differing} differing voxels when read back",
    )


def stored_bytes(mask: np.ndarray) -> int:
    """Size of a file of `predictions` with this mask alone."""
    key = {"run": "r", "step": 0, "predictor": "main", "split": "test", "case": "c"}
    return len(encode("predictions", pd.DataFrame([key | columns_of(mask)])))
