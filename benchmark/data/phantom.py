"""The embedded dataset: atrium-like bodies drawn from a seed. Nothing to download.

A case holds one target and look-alikes of equal brightness and texture. The target is a warped
union of ellipsoids with thin curved appendages, as the left atrium with its pulmonary veins, and
has a wall that may be darker than tissue. The look-alikes are a smooth chamber beside it (no
appendages, no wall), a straight vessel that crosses the volume (no body), and small blobs.
Contrast, wall, texture, blur, bias field and noise differ between cases, so that a few cases do not
show all there is to see.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final, final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmark import seeding
from benchmark.data.base import SPLITS, Card, Dataset, Geometry, Source, Split, Triple, Volume
from benchmark.data.prepared import Progress
from results.errors import UserError

VERSION: Final = 1
"""Bump when `draw` gives other voxels: it is part of the fingerprint."""

SEED: Final = 0
COUNTS: Final[dict[Split, int]] = {"train": 30, "val": 4, "test": 12}

GREY_LEVELS: Final = 200
"""Between air and tissue."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Difficulty:
    """What makes the task hard. Ranges are drawn from uniformly, once a case or once a thing.

    size, size_jitter: sides of the volume in voxels, and by how much they vary.
    centre_jitter: shift of the target along each axis, in voxels.
    radii:        of the target's main ellipsoid along X, Y, Z, in voxels.
    lobes:        number of further ellipsoids in the target (lowest, highest).
    warp:         size of the smooth displacement of all surfaces, in voxels.
    appendages:   number of tubes that leave the target (lowest, highest).
    appendage_length, appendage_radius: in voxels; length counts from the target's centre.
    chamber_radii: of the look-alike chamber, in voxels.
    gap:          tissue between the target and a look-alike, in voxels.
    vessel_radius: of the look-alike vessel, in voxels.
    blobs:        number of small look-alikes (lowest, highest).
    wall:         how much darker than tissue the wall around the target is.
    wall_thickness: in voxels; no more than `gap`.
    contrast:     brightness of target and look-alikes over tissue.
    texture:      standard deviation of the tissue's structure.
    mottle:       standard deviation of the structure inside bright bodies.
    blur:         partial-volume blur, sigma in voxels.
    bias:         strength of the multiplicative bias field (log scale).
    noise:        of the Rician noise.
    """

    size: Triple = (48, 48, 32)
    size_jitter: Triple = (3, 3, 2)
    centre_jitter: float = 3.0
    radii: tuple[Range, Range, Range] = ((10.0, 13.5), (8.0, 11.0), (6.0, 8.5))
    lobes: tuple[int, int] = (1, 2)
    warp: float = 1.2
    appendages: tuple[int, int] = (3, 5)
    appendage_length: Range = (16.0, 24.0)
    appendage_radius: Range = (1.4, 2.4)
    chamber_radii: tuple[Range, Range, Range] = ((7.0, 11.0), (7.0, 10.0), (6.0, 9.0))
    gap: float = 2.0
    vessel_radius: Range = (2.0, 3.5)
    blobs: tuple[int, int] = (2, 4)
    wall: Range = (0.0, 0.6)
    wall_thickness: Range = (1.0, 2.0)
    contrast: Range = (0.3, 1.5)
    texture: Range = (0.05, 0.25)
    mottle: Range = (0.05, 0.25)
    blur: Range = (0.4, 0.8)
    bias: Range = (0.0, 0.5)
    noise: Range = (0.05, 0.4)


DIFFICULTY: Final = Difficulty()

CARD: Final = Card(
    name="phantom",
    title="Phantom",
    reference="drawn by benchmark/data/phantom.py",
    bibtex="",
    licence="MIT",
    modality="synthetic",
    structure="atrium-like body",
    unit="voxel",
    geometry={
        "full": Geometry(patch=(48, 48, 32), stride=(24, 24, 16)),
        "reduced": Geometry(patch=(24, 24, 16), stride=(16, 16, 8), scale=2 / 3),
        "tiny": Geometry(patch=(16, 16, 16), stride=(8, 8, 8), scale=0.5),
    },
    augmentation="rotflip",
    how_to_get="Nothing to get: it is drawn when it is used.",
    source="drawn from a seed",
    size="46 volumes of about 48 × 48 × 32 voxels; no disk",
    counts=(COUNTS["train"], COUNTS["val"], COUNTS["test"]),
    notes=("Synthetic: it shows that the harness works, and nothing about patients.",),
)


@final
class Phantom(Source):
    """Drawn when it is used."""

    card = CARD

    def prepare(
        self, source: Path, root: Path, progress: Progress, split: str | None = None
    ) -> Path:
        """See `Source.prepare`. Always raises `UserError`."""
        raise UserError("phantom needs no preparation: it is drawn when it is used.")

    def open(self, root: Path) -> Dataset:
        """See `Source.open`. Touches no file."""
        splits: dict[Split, tuple[str, ...]] = {
            split: tuple(f"{split}-{i:02d}" for i in range(COUNTS[split])) for split in SPLITS
        }
        names = tuple(name for split in SPLITS for name in splits[split])
        recipe = {
            "version": VERSION,
            "seed": SEED,
            "cases": names,
            "difficulty": asdict(DIFFICULTY),
        }
        return Dataset(
            card=CARD,
            splits=splits,
            fingerprint=hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
            load=partial(_load, names),
        )


def draw(rng: np.random.Generator, difficulty: Difficulty = DIFFICULTY) -> Volume:
    """One case, z-scored, with voxels of size 1."""
    d = difficulty
    shape = tuple(
        n + int(rng.integers(-j, j + 1)) for n, j in zip(d.size, d.size_jitter, strict=True)
    )
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"))
    middle = (np.array(shape) - 1) / 2
    centre = middle + rng.uniform(-d.centre_jitter, d.centre_jitter, 3) * (1, 1, 0.5)
    warped = grid + np.stack([d.warp * _smooth_field(rng, shape, 8.0) for _ in range(3)])
    target, radii = _body(rng, d, warped, centre)
    target |= _appendages(rng, d, shape, centre, radii)
    outside = np.asarray(ndimage.distance_transform_edt(~target))
    bright = target | (_look_alikes(rng, d, warped, centre, radii) & (outside > d.gap))
    wall = (outside <= rng.uniform(*d.wall_thickness)) & ~target
    image = _image(rng, d, bright, wall)
    return Volume(image[None], target.astype(np.uint8), (1.0, 1.0, 1.0))


def _load(names: Sequence[str], case: str) -> Volume:
    return draw(seeding.generator(SEED, "data", names.index(case)))


def _body(
    rng: np.random.Generator, d: Difficulty, grid: NDArray[np.float64], centre: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The target without appendages (X, Y, Z), and the radii of its main ellipsoid."""
    radii = np.array([rng.uniform(*r) for r in d.radii])
    body = _ellipsoid(grid, centre, radii)
    for _ in range(_count(rng, d.lobes)):
        direction = _direction(rng, flatten=0.5)
        size = radii * rng.uniform(0.5, 0.75)
        body |= _ellipsoid(grid, centre + 0.8 * radii * direction, size)
    return body, radii


def _appendages(
    rng: np.random.Generator,
    d: Difficulty,
    shape: Sequence[int],
    centre: NDArray[np.float64],
    radii: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Tapering tubes along quadratic curves that begin inside the body."""
    mask = np.zeros(shape, bool)
    angle = rng.uniform(0, 2 * np.pi)
    number = _count(rng, d.appendages)
    for i in range(number):
        turn = angle + 2 * np.pi * i / number + rng.uniform(-0.4, 0.4)
        direction = np.array([np.cos(turn), np.sin(turn), rng.uniform(-0.5, 0.5)])
        end = centre + direction * rng.uniform(*d.appendage_length)
        bend = centre + 0.7 * direction * radii + rng.normal(0, 3.0, 3)
        t = np.linspace(0, 1, 30)[:, None]
        path = (1 - t) ** 2 * centre + 2 * t * (1 - t) * bend + t**2 * end
        thickness = rng.uniform(*d.appendage_radius) * np.linspace(1.3, 0.8, len(path))
        _stamp(mask, path, thickness)
    return mask


def _look_alikes(
    rng: np.random.Generator,
    d: Difficulty,
    grid: NDArray[np.float64],
    centre: NDArray[np.float64],
    radii: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """A chamber beside the target, a vessel from end to end, and blobs."""
    shape = grid.shape[1:]
    size = np.array([rng.uniform(*r) for r in d.chamber_radii])
    side = centre + (radii + size) * _direction(rng, flatten=0.6)
    mask = _ellipsoid(grid, side, size)
    axis = int(rng.integers(3))
    ends = rng.uniform(0, 1, (2, 3)) * (np.array(shape) - 1)
    ends[:, axis] = (-2, shape[axis] + 1)
    path = np.linspace(ends[0], ends[1], 60)
    _stamp(mask, path, np.full(len(path), rng.uniform(*d.vessel_radius)))
    for _ in range(_count(rng, d.blobs)):
        place = rng.uniform(0, 1, 3) * (np.array(shape) - 1)
        mask |= _ellipsoid(grid, place, rng.uniform(2.0, 4.0, 3))
    return mask


def _image(
    rng: np.random.Generator, d: Difficulty, bright: NDArray[np.bool_], wall: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Tissue and bright bodies with texture, blur, bias field and Rician noise; z-scored."""
    shape = bright.shape
    tissue = 1 + rng.uniform(*d.texture) * _smooth_field(rng, shape, 2.5)
    tissue -= rng.uniform(*d.wall) * wall
    blood = 1 + rng.uniform(*d.contrast) + rng.uniform(*d.mottle) * _smooth_field(rng, shape, 1.5)
    clean = ndimage.gaussian_filter(np.where(bright, blood, tissue), rng.uniform(*d.blur))
    clean *= np.exp(rng.uniform(*d.bias) * _smooth_field(rng, shape, 14.0))
    noise = rng.uniform(*d.noise) * rng.standard_normal((2, *shape))
    scanned = np.hypot(clean + noise[0], noise[1])
    # Whole numbers, as from a scanner: rounding errors that differ between machines vanish, and
    # both sums are exact.
    levels = np.rint(GREY_LEVELS * scanned).astype(np.int64)
    mean = levels.sum() / levels.size
    deviation = np.sqrt(np.square(levels).sum() / levels.size - mean**2)
    return np.asarray((levels - mean) / deviation, dtype=np.float32)


def _ellipsoid(
    grid: NDArray[np.float64], centre: NDArray[np.float64], radii: NDArray[np.float64]
) -> NDArray[np.bool_]:
    scaled = (grid - centre[:, None, None, None]) / radii[:, None, None, None]
    return np.asarray(np.square(scaled).sum(0) <= 1)


def _stamp(
    mask: NDArray[np.bool_], path: NDArray[np.float64], thickness: NDArray[np.float64]
) -> None:
    """Set all voxels within `thickness` of a point of the path (N, 3)."""
    for point, radius in zip(path, thickness, strict=True):
        low = np.clip(np.ceil(point - radius).astype(int), 0, mask.shape)
        high = np.clip(np.floor(point + radius).astype(int) + 1, 0, mask.shape)
        window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = (np.arange(a, b) - p for a, b, p in zip(low, high, point, strict=True))
        x, y, z = np.ix_(*axes)
        mask[window] |= x * x + y * y + z * z <= radius * radius


def _smooth_field(
    rng: np.random.Generator, shape: Sequence[int], wavelength: float
) -> NDArray[np.float64]:
    """A random field with mean 0 and standard deviation 1 that varies over some voxels.

    Noise on a grid with that spacing, each point of which spreads as a Gaussian.
    """
    counts = [round(n / wavelength) + 3 for n in shape]
    field = rng.standard_normal(counts)
    for n, count in zip(shape, counts, strict=True):
        knots = (np.arange(count) - (count - 1) / 2) * wavelength + (n - 1) / 2
        offsets = (np.arange(n)[:, None] - knots) / (0.6 * wavelength)
        # The new axis comes last, so after three turns they are X, Y, Z again.
        field = np.tensordot(field, np.exp(-0.5 * offsets**2), axes=(0, 1))
    return np.asarray((field - field.mean()) / field.std())


def _direction(rng: np.random.Generator, flatten: float) -> NDArray[np.float64]:
    """A random unit vector that leans towards the X-Y plane."""
    vector = rng.standard_normal(3) * (1, 1, flatten)
    return np.asarray(vector / np.linalg.norm(vector))


def _count(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))
