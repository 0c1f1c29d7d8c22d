"""The largest component of a typical mask, against the field's three lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
from scipy import ndimage

from methods import components
from methods.components import largest_component
from tests.speed.side_by_side import Line, Mask, Subject, compared, typical_prediction


def lines(subject: Subject, _: Path) -> Iterator[Line]:
    """With plain dependencies and with the compiled part."""
    mask = typical_prediction(subject.label == 1)

    def field() -> Mask:
        labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
        largest: Mask = labels == np.argmax(np.bincount(labels.flat)[1:]) + 1
        return largest

    def ours() -> Mask:
        return largest_component(mask)

    for way, must in (("plain", None), ("compiled", 5)):
        without = mock.patch.object(components, "compiled", return_value=None)
        with without if way == "plain" else nullcontext():
            differing = int((field() != ours()).sum())
            what = f"largest component, typical mask, {way}"
            yield compared(what, must, field, ours, f"{differing} differing voxels")
