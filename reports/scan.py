"""The images behind the numbers. A store holds none: whoever asks for a picture brings them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scan:
    """One case as a run saw it.

    image:   (X, Y, Z), one channel.
    label:   (X, Y, Z), the reference.
    spacing: edge lengths of a voxel along X, Y, Z, in the unit of the run's distances.
    """

    image: NDArray[np.float32]
    label: NDArray[np.bool_]
    spacing: tuple[float, float, float]


ScanReader = Callable[[Mapping[str, Any], str], Scan]
"""From the `dataset` part of a run's spec and a case to the volume at the run's resolution.

It raises `UserError` where the data are missing, or are others than those of the run.
"""
