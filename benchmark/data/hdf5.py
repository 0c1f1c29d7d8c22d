"""The community's .h5 volumes: the data sets `image` and `label`, ready for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmark.data.base import Volume
from benchmark.data.prepared import problems
from results.errors import UserError

AGAIN: Final = "Get the file again, or remove {} to prepare a partial copy."
LARGEST_MEAN: Final = 0.5
DEVIATION: Final = (0.5, 2.0)
"""Beyond these an image is not z-scored: raw intensities, or such in [0, 1]."""


def read_h5(path: Path, removable: str = "it") -> Volume:
    """One volume, checked; its voxels have edge length 1.

    Args:
        path: the file.
        removable: what to remove to do without it, in words.

    Raises:
        UserError: it is damaged, or cannot be used.
    """
    again = AGAIN.format(removable)
    try:
        with h5py.File(path) as file:
            image, label = np.asarray(file["image"]), np.asarray(file["label"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no data set 'image' or no 'label'. {again}") from error
    except OSError as error:
        raise UserError(f"{path} is truncated or damaged ({error}). {again}") from error
    kinds = image.dtype.kind, label.dtype.kind
    if not set(kinds) <= set("biuf"):
        types = f"{image.dtype} and {label.dtype}"
        raise UserError(f"{path} holds values of type {types}, not numbers. {again}")
    wrong = problems(image[None], label)
    if wrong:
        raise UserError(f"{path} cannot be used. {' '.join(wrong)} {again}")
    return Volume(image[None].astype(np.float32), label.astype(np.uint8), (1.0, 1.0, 1.0))


def require_z_scored(path: Path, values: NDArray[Any], what: str) -> None:
    """Refuse an image that was not normalised as the published files are.

    Args:
        path: of the file, for the message.
        values: the voxels whose mean should be 0 and whose standard deviation should be 1.
        what: which voxels these are, in words.

    Raises:
        UserError: they are far from it.
    """
    mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    if abs(mean) > LARGEST_MEAN or not DEVIATION[0] <= deviation <= DEVIATION[1]:
        raise UserError(
            f"{path} is not z-scored: {what} has mean {mean:.3g} and standard deviation "
            f"{deviation:.3g}, not 0 and 1. It was prepared in another way than the files that "
            "published numbers were made with; prepare the original files instead."
        )
