"""What a dataset is: a card (facts), cases in frozen splits, and volumes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Triple = tuple[int, int, int]
Split = Literal["train", "val", "test"]
Augmentation = Literal["rotflip", "crop"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Coded:
    """An image of few grey levels: each voxel is `values[code]`, exactly.

    codes:  (C, X, Y, Z) uint8 or int16, never negative.
    values: (L,) float32.
    """

    codes: NDArray[np.uint8] | NDArray[np.int16]
    values: NDArray[np.float32]

    def decoded(self) -> NDArray[np.float32]:
        """The image, made anew."""
        return np.take(self.values, self.codes)


@dataclass(frozen=True)
class Volume:
    """One case.

    stored:  the image as it is kept in memory: (C, X, Y, Z) float32, normalised, or its codes.
    label:   (X, Y, Z) uint8 in {0, 1}.
    spacing: edge lengths of a voxel along X, Y, Z in the card's `unit`.
    """

    stored: NDArray[np.float32] | Coded
    label: NDArray[np.uint8]
    spacing: tuple[float, float, float]

    @property
    def image(self) -> NDArray[np.float32]:
        """(C, X, Y, Z) float32, normalised; made anew at every access if it is kept as codes."""
        if isinstance(self.stored, Coded):
            return self.stored.decoded()
        return self.stored


@dataclass(frozen=True)
class Geometry:
    """At what size a dataset is trained and evaluated.

    scale:  factor per axis by which volumes are reduced (area average; labels at 0.5) before use.
    patch:  crop and sliding-window size in (reduced) voxels.
    stride: step of the sliding window in (reduced) voxels.
    """

    patch: Triple
    stride: Triple
    scale: float = 1.0


@dataclass(frozen=True)
class Card:
    """Facts about a dataset.

    unit:         what distances are in: "mm", or "voxel" where the files carry no spacing.
    geometry:     by the names that profiles use: "full", "reduced", "tiny".
    augmentation: "rotflip" (the field's RandomRotFlip, then crop) or "crop".
    how_to_get:   what a user downloads where, and the command that prepares it.
    source:       who distributes it, in a few words.
    size:         of how many volumes, and how much disk they need.
    counts:       training, validation and test cases of its own split; zeros where it is drawn.
    notes:        what a reader of a table must know (leaks, quirks), a sentence each.
    split_notes:  the same, of what holds for its own split alone.
    """

    name: str
    title: str
    reference: str
    bibtex: str
    licence: str
    modality: str
    structure: str
    unit: Literal["mm", "voxel"]
    geometry: Mapping[str, Geometry]
    augmentation: Augmentation
    how_to_get: str
    channels: int = 1
    source: str = ""
    size: str = ""
    counts: Triple = (0, 0, 0)
    notes: tuple[str, ...] = ()
    split_notes: tuple[str, ...] = ()

    @property
    def all_notes(self) -> tuple[str, ...]:
        """What a reader of a table must know, of the data and of the split."""
        return (*self.notes, *self.split_notes)


@dataclass(frozen=True)
class Dataset:
    """A dataset that is ready to use.

    splits:      case names by split; order of "train" is part of the benchmark, its first k are
                 the labelled ones. "val" and "test" may not overlap it. "val" may be empty.
    fingerprint: sha256 over ordered cases, voxels and preprocessing.
    complete:    False for a partial copy, whose numbers never share a table with the full set.
    load:        case name -> Volume at full resolution.
    folder:      where it lies on disk (None for a dataset that is drawn).
    remark:      in what else it differs from the published data, in a few words; mostly empty.
    """

    card: Card
    splits: Mapping[Split, tuple[str, ...]]
    fingerprint: str
    load: Callable[[str], Volume] = field(repr=False, compare=False)
    complete: bool = True
    folder: Path | None = None
    remark: str = ""

    @property
    def label(self) -> str:
        """How tables and messages name it; a copy that is partial or not as published says so."""
        n = sum(len(self.splits[s]) for s in SPLITS)
        said = [f"partial: {n} cases"] * (not self.complete) + [self.remark] * bool(self.remark)
        return f"{self.card.name} ({'; '.join(said)})" if said else self.card.name


class Source(ABC):
    """Where a dataset comes from: a known name, or a folder."""

    card: Card

    @abstractmethod
    def prepare(
        self,
        source: Path,
        root: Path,
        progress: Callable[[int, int, str], None],
        split: str | None = None,
    ) -> Path:
        """Convert the files under `source` into `root`/<name>; return that folder.

        Args:
            source: the user's download.
            root: the data root (`--data`).
            progress: called with (done, total, what) as work goes on.
            split: None for the dataset's own split, the name of another committed one, or a JSON
                file. With another one the dataset has another name, <name>-<split>.

        Raises:
            UserError: anything wrong with the input; nothing is left half-prepared.
        """

    @abstractmethod
    def open(self, root: Path) -> Dataset:
        """The prepared dataset under the data root.

        Raises:
            UserError: it is not prepared; the text says what to get and what to run.
        """
