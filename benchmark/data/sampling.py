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

Place. Volumes lie where batches are needed, on a GPU as codes where they have few grey levels, and
all but the draws happens there: nothing but copying and looking up, so the bits are the same on
every device, and no step waits for one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark import seeding
from benchmark.data.base import Augmentation, Coded, Triple, Volume
from benchmark.data.distance import signed_distance
from methods.base import Batch
from results.lookup import unknown

LABELLED: Final = 0
UNLABELLED: Final = 1


MOST_OF_A_GPU: Final = 0.25
"""Share of a GPU's memory that volumes may take; larger sets stay in the machine's own."""


class Turn(NamedTuple):
    """What happens to a volume before it is cropped: mirrors, then X and Y change places."""

    mirror_x: bool = False
    mirror_y: bool = False
    exchange: bool = False

    @property
    def mirrored(self) -> tuple[int, ...]:
        """Axes of (..., X, Y, Z) that are mirrored."""
        return tuple(axis for axis, mirror in ((-3, self.mirror_x), (-2, self.mirror_y)) if mirror)

    def shape(self, shape: Sequence[int]) -> Triple:
        """Of a volume of this shape once it is turned."""
        x, y, z = shape
        return (y, x, z) if self.exchange else (x, y, z)


AS_IS: Final = Turn()


class Resident(NamedTuple):
    """A volume where batches are made.

    voxels: (C, X, Y, Z), float32 or codes.
    values: (L + 1,) float32, those of the codes and the zero that lies around every volume; None
            where `voxels` are the image itself.
    label:  (X, Y, Z) uint8.
    """

    voxels: Tensor
    values: Tensor | None
    label: Tensor


class Patches(NamedTuple):
    """Crops of one stream.

    image:   (B, C, X, Y, Z) float32.
    label:   (B, X, Y, Z) int64; nobody sees the labels of unlabelled volumes, so of them B = 0.
    overlap: (B, C, X, Y, Z) float32, a second crop of each volume; B = 0 unless it is asked for.
    shift:   (B, 3) int64 on the CPU, where the second crop begins minus where the first does, in
             voxels.
    """

    image: Tensor
    label: Tensor
    overlap: Tensor
    shift: Tensor


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

    def settle(self) -> None:
        """Bring the volumes to where batches are made, once, before threads ask for them."""
        _ = self._resident

    def __call__(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        labelled = self._patches(step, LABELLED)
        if "unlabelled" in self.inputs:
            unlabelled = self._patches(step, UNLABELLED)
        else:
            unlabelled = Patches(*(tensor[:0] for tensor in labelled))
        extras = {
            name: make(labelled.label) for name, make in EXTRAS.items() if name in self.inputs
        }
        if "overlap" in self.inputs:
            extras["overlap"] = torch.cat([labelled.overlap, unlabelled.overlap])
        if "shift" in self.inputs:
            extras["shift"] = torch.cat([labelled.shift, unlabelled.shift])
        return Batch(labelled.image, labelled.label, unlabelled.image, extras)

    def cases(self, step: int, stream: int) -> list[str]:
        """Whom a step draws from in a stream (`LABELLED` or `UNLABELLED`), in batch order."""
        names = (self.labelled, self.unlabelled)[stream]
        size = (self.labelled_batch, self.unlabelled_batch)[stream]
        drawn = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, len(names))
            drawn.append(names[_order(self.seed, epoch, stream, len(names))[place]])
        return drawn

    @cached_property
    def _resident(self) -> dict[str, Resident]:
        """The volumes that can be drawn, where batches are made."""
        cases = {*self.labelled, *(self.unlabelled if "unlabelled" in self.inputs else ())}
        volumes = {case: self.volumes[case] for case in sorted(cases)}
        device = torch.device(self.device)
        home = home_of(volumes.values(), device)
        # On a CPU it takes longer to look values up than to crop them; elsewhere room is dearer.
        coded = device.type != "cpu"
        return {case: settle(volume, home, coded=coded) for case, volume in volumes.items()}

    def _patches(self, step: int, stream: int) -> Patches:
        """The augmented crops of a stream."""
        cases = self.cases(step, stream)
        volumes = [self._resident[case] for case in cases]
        paired = "overlap" in self.inputs or "shift" in self.inputs
        shape = (len(cases), len(volumes[0].voxels), *self.patch)
        made = Patches(
            image=torch.empty(shape, device=self.device),
            label=torch.empty(
                (len(cases) if stream == LABELLED else 0, *self.patch),
                dtype=torch.int64,
                device=self.device,
            ),
            overlap=torch.empty(shape if paired else (0, *shape[1:]), device=self.device),
            shift=torch.zeros((len(cases), 3), dtype=torch.int64),
        )
        for slot, volume in enumerate(volumes):
            rng = seeding.generator(self.seed, "augment", step, 2 * slot + stream)
            turn = rotflip(*draw_rotflip(rng)) if self.augmentation == "rotflip" else AS_IS
            size = turn.shape(volume.label.shape)
            start = draw_start(rng, size, self.patch)
            crop_image(made.image[slot], volume, start, turn)
            if stream == LABELLED:
                crop_label(made.label[slot], volume, start, turn)
            if paired:
                second = draw_overlapping(rng, start, size, self.patch)
                crop_image(made.overlap[slot], volume, second, turn)
                made.shift[slot] = torch.tensor(second) - torch.tensor(start)
        return made


@lru_cache(maxsize=16)
def _order(seed: int, epoch: int, stream: int, count: int) -> tuple[int, ...]:
    """In which order an epoch visits its cases; kept, as every step of an epoch asks for it."""
    rng = seeding.generator(seed, "order", epoch, stream)
    return tuple(rng.permutation(count).tolist())


def home_of(volumes: Collection[Volume], device: torch.device) -> torch.device:
    """Where to keep the volumes whose crops go to a device: there, if they do not crowd it.

    Only the speed depends on it.
    """
    if device.type != "cuda":
        return device
    needed = sum(_voxels(volume).nbytes + volume.label.nbytes for volume in volumes)
    room = MOST_OF_A_GPU * torch.cuda.get_device_properties(device).total_memory
    return device if needed <= room else torch.device("cpu")


def settle(volume: Volume, home: torch.device, *, coded: bool) -> Resident:
    """The volume on a device, as codes if it has them and they are wanted.

    What a CPU has in that form already is not copied.
    """
    label = _tensor(volume.label).to(home)
    if not (coded and isinstance(volume.stored, Coded)):
        return Resident(_tensor(volume.image).to(home), None, label)
    values = torch.from_numpy(np.append(volume.stored.values, np.float32(0)))
    return Resident(_tensor(volume.stored.codes).to(home), values.to(home), label)


def _voxels(volume: Volume) -> NDArray[Any]:
    return volume.stored.codes if isinstance(volume.stored, Coded) else volume.stored


def _tensor(array: NDArray[Any]) -> Tensor:
    """In the array's memory, unless that is not writable or not in order."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def draw_rotflip(rng: np.random.Generator) -> tuple[int, int]:
    """Quarter turns (0 to 3) and mirrored axis (0 or 1) for `rotflip`."""
    return int(rng.integers(4)), int(rng.integers(2))


def rotflip(k: int, axis: int) -> Turn:
    """The turn by k · 90° from X to Y, then the mirror along X (axis 0) or Y (axis 1).

    >>> rotflip(1, 0)
    Turn(mirror_x=False, mirror_y=False, exchange=True)
    """
    mirrors = [k in (2, 3), k in (1, 2)]
    # Once X and Y have changed places, what is mirrored along X was along Y before.
    last = 1 - axis if k % 2 else axis
    mirrors[last] = not mirrors[last]
    return Turn(mirrors[0], mirrors[1], exchange=k % 2 == 1)


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


def crop_image(out: Tensor, volume: Resident, start: Triple, turn: Turn) -> None:
    """Fill `out` (C, X, Y, Z) with a crop of the turned image, zero outside of it."""
    covered = _covers(volume, start, out.shape[-3:], turn)
    if volume.values is None:
        if not covered:
            out.zero_()
        crop_into(out, volume.voxels, start, turn)
        return
    codes = torch.empty(out.shape, dtype=torch.int32, device=out.device)
    if not covered:
        codes.fill_(len(volume.values) - 1)
    crop_into(codes, volume.voxels, start, turn)
    values = volume.values.to(out.device, non_blocking=True)
    torch.index_select(values, 0, codes.view(-1), out=out.view(-1))


def crop_label(out: Tensor, volume: Resident, start: Triple, turn: Turn) -> None:
    """Fill `out` (X, Y, Z) with a crop of the turned label, zero outside of it."""
    if not _covers(volume, start, out.shape, turn):
        out.zero_()
    crop_into(out, volume.label, start, turn)


def _covers(volume: Resident, start: Triple, patch: Sequence[int], turn: Turn) -> bool:
    """Whether a crop lies within the volume."""
    shape = turn.shape(volume.label.shape)
    return all(0 <= s <= n - p for s, p, n in zip(start, patch, shape, strict=True))


def crop_into(out: Tensor, array: Tensor, start: Triple, turn: Turn = AS_IS) -> None:
    """Copy the part of the turned (..., X, Y, Z) that begins at `start` and is as large as `out`.

    What lies outside the volume is left as it is in `out`. Types and devices may differ.
    """
    inside: list[Any] = []
    target: list[Any] = []
    shape = turn.shape(array.shape[-3:])
    for begin, length, n in zip(start, out.shape[-3:], shape, strict=True):
        low = min(max(begin, 0), n)
        high = max(min(begin + length, n), low)
        inside.append(slice(low, high))
        target.append(slice(low - begin, high - begin))
    # Only what is needed is turned, so the crop comes first and has to be found before the turn.
    if turn.exchange:
        inside[0], inside[1] = inside[1], inside[0]
    for axis in turn.mirrored:
        n, place = array.shape[axis], inside[axis]
        inside[axis] = slice(n - place.stop, n - place.start)
    write = _write_by_numpy if array.is_cpu and out.is_cpu else _write
    write(out[(..., *target)], array[(..., *inside)], turn)


def _write(place: Tensor, part: Tensor, turn: Turn) -> None:
    """Copy a part to its place and turn it."""
    turned = part.flip(turn.mirrored) if turn.mirrored else part
    place.copy_(turned.transpose(-3, -2) if turn.exchange else turned)


def _write_by_numpy(place: Tensor, part: Tensor, turn: Turn) -> None:
    """The same on a CPU: NumPy mirrors by strides, torch by a copy in between."""
    turned = np.flip(part.numpy(), turn.mirrored)
    place.numpy()[...] = turned.swapaxes(-3, -2) if turn.exchange else turned


EXTRAS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "sdf": signed_distance,
}
"""Further inputs that a method may declare, made from the labels of a batch (B, X, Y, Z)."""

INPUTS: Final = ("image", "label", "unlabelled", *EXTRAS, "overlap", "shift")
"""All that a method can ask a batch to carry; `Batch` says what they are."""
