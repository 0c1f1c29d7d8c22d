"""What each step trains on: a pure function of the step.

Order. Position p = step · B + slot of a stream with B volumes a batch lies in epoch e = p // n of
its n cases; epoch e visits them in a permutation of its own. The labelled and the unlabelled
stream are independent, so all methods see the same labelled patches at one seed.

Augmentation. The field's transforms with their quirks, kept because published numbers have them:

* `RandomRotFlip` turns by k · 90° in the (X, Y) plane and then always mirrors along X or Y. Only
  four distinct outcomes exist and each is a mirror image: the orientation of the test volumes is
  never trained on.
* `RandomCrop` pads every axis with zeros once one axis is not longer than the patch, even axes up
  to four voxels longer than it. Its start excludes the last possible offset.

Overlap. A method may declare a second crop of every volume that overlaps the first, for
consistency under translation: see `draw_overlapping`. The first crop is the one that all methods
see, and both are turned alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from benchmark import seeding
from benchmark.data.base import Augmentation, Triple, Volume
from methods.base import Batch
from results.lookup import unknown

LABELLED: Final = 0
UNLABELLED: Final = 1


class Patches(NamedTuple):
    """Crops of one stream.

    image:   (B, C, X, Y, Z).
    label:   (B, X, Y, Z).
    overlap: (B, C, X, Y, Z), a second crop of each volume; empty unless an input needs it.
    shift:   (B, 3), where the second crop begins minus where the first does, in voxels.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    overlap: NDArray[np.float32]
    shift: NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """Makes the batch of any step; equal arguments give equal bytes.

    volumes:      by case, at the run's resolution.
    labelled:     cases of the labelled stream.
    unlabelled:   cases of the unlabelled stream; may be empty if `inputs` does not name it.
    patch:        size of a crop in voxels.
    augmentation: of the dataset's card.
    inputs:       what the method declares, of `INPUTS`.
    seed:         the run's seed.
    labelled_batch, unlabelled_batch: volumes a batch.
    device:       where batches go.

    Raises:
        UserError: an input is not known.
        ValueError: a stream that is needed has no case.
    """

    volumes: Mapping[str, Volume]
    labelled: Sequence[str]
    unlabelled: Sequence[str]
    patch: Triple
    augmentation: Augmentation
    inputs: Collection[str]
    seed: int
    labelled_batch: int = 2
    unlabelled_batch: int = 2
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        for name in self.inputs:
            if name not in INPUTS:
                raise unknown("input", name, INPUTS)
        if not self.labelled:
            raise ValueError("there is no labelled case to draw from")
        if "unlabelled" in self.inputs and not self.unlabelled:
            raise ValueError("there is no unlabelled case to draw from")

    def __call__(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        labelled = self._patches(step, LABELLED)
        if "unlabelled" in self.inputs:
            unlabelled = self._patches(step, UNLABELLED)
        else:
            image, label, overlap, shift = labelled
            unlabelled = Patches(image[:0], label[:0], overlap[:0], shift[:0])
        extras = {
            name: self._tensor(np.stack([make(label) for label in labelled.label])[:, None])
            for name, make in EXTRAS.items()
            if name in self.inputs
        }
        if "overlap" in self.inputs:
            extras["overlap"] = self._tensor(np.concatenate([labelled.overlap, unlabelled.overlap]))
        if "shift" in self.inputs:
            extras["shift"] = torch.from_numpy(np.concatenate([labelled.shift, unlabelled.shift]))
        return Batch(
            image=self._tensor(labelled.image),
            label=self._tensor(labelled.label).long(),
            unlabelled=self._tensor(unlabelled.image),
            extras=extras,
        )

    def cases(self, step: int, stream: int) -> list[str]:
        """Whom a step draws from in a stream (`LABELLED` or `UNLABELLED`), in batch order."""
        names = (self.labelled, self.unlabelled)[stream]
        size = (self.labelled_batch, self.unlabelled_batch)[stream]
        drawn = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, len(names))
            order = seeding.generator(self.seed, "order", epoch, stream).permutation(len(names))
            drawn.append(names[order[place]])
        return drawn

    def _patches(self, step: int, stream: int) -> Patches:
        """The augmented crops of a stream."""
        cases = self.cases(step, stream)
        channels = len(self.volumes[cases[0]].image)
        paired = "overlap" in self.inputs or "shift" in self.inputs
        shape = (len(cases), channels, *self.patch)
        made = Patches(
            image=np.zeros(shape, np.float32),
            label=np.zeros((len(cases), *self.patch), np.uint8),
            overlap=np.zeros(shape if paired else 0, np.float32),
            shift=np.zeros((len(cases), 3), np.int64),
        )
        for slot, case in enumerate(cases):
            rng = seeding.generator(self.seed, "augment", step, 2 * slot + stream)
            image, label = self.volumes[case].image, self.volumes[case].label
            if self.augmentation == "rotflip":
                k, axis = draw_rotflip(rng)
                image, label = rotflip(image, k, axis), rotflip(label, k, axis)
            x, y, z = label.shape
            start = draw_start(rng, (x, y, z), self.patch)
            crop_into(made.image[slot], image, start)
            crop_into(made.label[slot], label, start)
            if paired:
                second = draw_overlapping(rng, start, (x, y, z), self.patch)
                crop_into(made.overlap[slot], image, second)
                made.shift[slot] = np.subtract(second, start)
        return made

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def draw_rotflip(rng: np.random.Generator) -> tuple[int, int]:
    """Quarter turns (0 to 3) and mirrored axis (0 or 1) for `rotflip`."""
    return int(rng.integers(4)), int(rng.integers(2))


def rotflip(array: NDArray[Any], k: int, axis: int) -> NDArray[Any]:
    """A view of (..., X, Y, Z) turned k times by 90° from X to Y, then mirrored along X or Y.

    Args:
        array: any array whose last three axes are space.
        k: number of quarter turns.
        axis: 0 mirrors along X, 1 along Y.
    """
    return np.flip(np.rot90(array, k, axes=(-3, -2)), axis - 3)


def padding(shape: Triple, patch: Triple) -> Triple:
    """Zeros on either side of each axis: max((patch - n) // 2 + 3, 0) if any n <= patch, else 0.

    >>> padding((35, 50, 36), (32, 48, 40))
    (1, 2, 5)
    >>> padding((35, 50, 41), (32, 48, 40))
    (0, 0, 0)
    """
    if all(n > p for n, p in zip(shape, patch, strict=True)):
        return 0, 0, 0
    x, y, z = (max((p - n) // 2 + 3, 0) for n, p in zip(shape, patch, strict=True))
    return x, y, z


def draw_start(rng: np.random.Generator, shape: Triple, patch: Triple) -> Triple:
    """Where a crop begins, in voxels of the unpadded volume, so it may be negative.

    Uniform over [0, n - patch) of the padded volume: the last offset, n - patch, is never drawn.
    """
    pads = padding(shape, patch)
    x, y, z = (
        int(rng.integers(n + 2 * pad - p)) - pad
        for n, p, pad in zip(shape, patch, pads, strict=True)
    )
    return x, y, z


def draw_overlapping(
    rng: np.random.Generator, start: Triple, shape: Triple, patch: Triple
) -> Triple:
    """Where a second crop begins that overlaps the one at `start`, in the same coordinates.

    Along each axis uniform over the places before `start` that share a voxel with it; at `start`
    where there are none, which is at the border of the padded volume. As TraCoCo's released code
    (Liu et al., TMI 2025), which never looks beyond `start` either.
    """
    lowest = (
        max(-pad, s - p + 1) for s, p, pad in zip(start, patch, padding(shape, patch), strict=True)
    )
    x, y, z = (
        int(rng.integers(low, max(s, low + 1))) for low, s in zip(lowest, start, strict=True)
    )
    return x, y, z


def crop_into(out: NDArray[Any], array: NDArray[Any], start: Triple) -> None:
    """Copy the part of (..., X, Y, Z) that begins at `start` and is as large as `out`.

    What lies outside the volume is left as it is in `out`.
    """
    inside: list[slice | EllipsisType] = [...]
    target: list[slice | EllipsisType] = [...]
    for begin, length, n in zip(start, out.shape[-3:], array.shape[-3:], strict=True):
        low, high = max(begin, 0), min(begin + length, n)
        inside.append(slice(low, high))
        target.append(slice(low - begin, high - begin))
    out[tuple(target)] = array[tuple(inside)]


def signed_distance(label: NDArray[np.uint8]) -> NDArray[np.float32]:
    r"""Signed distance to the boundary of a mask, in [-1, 1], negative inside.

    .. math:: d(v) = \frac{D_{out}(v)}{\max D_{out}} - \frac{D_{in}(v)}{\max D_{in}}

    with D_out the Euclidean distance in voxels to the nearest foreground voxel and D_in that to the
    nearest background voxel; foreground voxels with a background neighbour across a face have 0.
    As the released code of DTC and SASSNet: per patch, and zero everywhere where the patch has no
    foreground. A patch that is all foreground, which they leave undefined, is -1 everywhere.

    Args:
        label: (X, Y, Z) in {0, 1}.
    """
    inside = label.astype(bool)
    if not inside.any():
        return np.zeros(label.shape, np.float32)
    if inside.all():
        return np.full(label.shape, -1, np.float32)
    outer = ndimage.distance_transform_edt(~inside)
    inner = ndimage.distance_transform_edt(inside)
    distance = outer / outer.max() - inner / inner.max()
    distance[inner == 1] = 0
    return np.asarray(distance, dtype=np.float32)


EXTRAS: Final[Mapping[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]]] = {
    "sdf": signed_distance,
}
"""Further inputs that a method may declare, made from the label of a crop (X, Y, Z)."""

INPUTS: Final = ("image", "label", "unlabelled", *EXTRAS, "overlap", "shift")
"""All that a method can ask a batch to carry; `Batch` says what they are."""
