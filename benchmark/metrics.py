"""How well a predicted mask agrees with a reference: DSC, ASD and HD95, by medpy's definitions.

- The surface of a mask is what an erosion with the 6-neighbourhood removes; outside the volume is
  background, so foreground at the border of the volume is surface.
- DSC = 2 |P ∩ R| / (|P| + |R|).
- ASD = mean distance from the predicted to the reference surface (directed, not symmetric).
- HD95 = 95th percentile (linear) of the distances of both directions pooled.

The numbers equal medpy 0.5's `dc`, `asd` and `hd95`: DSC and ASD to the last bit, HD95 to the last
bit where squared distances are exact in float64 (spacings such as 1, 0.625 or 2.5) and within a few
units in the last place elsewhere. Where numba is installed (the extra `fast`), compiled loops take
over in large volumes with such spacings; they give the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from benchmark import loops
from methods.compiled import WORTH_COMPILING, compiled
from methods.components import bounding_box
from results.errors import UserError

Mask = NDArray[np.bool_]
Points = NDArray[np.intp]
Spacing = tuple[float, float, float]
Distances = NDArray[np.float64]

_LEAF_SIZE = 32
_PROBE_EVERY = 100
# Surface voxels times mean distance in voxels, from where on a distance map is the faster search.
_TREE_LIMIT = 500_000


@dataclass(frozen=True)
class CaseMetrics:
    """One row of `results.schema.CASES`, from `status` on.

    status:     one of `results.schema.STATUSES`.
    dsc:        0 when one mask is empty, NaN when both are.
    asd, hd95:  in the unit of the spacing; NaN when a mask is empty.
    tp, fp, fn: voxels.
    voxels:     size of the volume.
    diagonal:   length of the volume's diagonal, in the unit of the spacing.
    """

    status: str
    dsc: float
    asd: float
    hd95: float
    tp: int
    fp: int
    fn: int
    voxels: int
    diagonal: float


@dataclass(frozen=True)
class Lattice:
    """A spacing whose squared distances are whole numbers of a unit squared, and so exact.

    unit:    a power of two, in the unit of the spacing.
    weights: (spacing / unit)^2 of each axis.
    """

    unit: float
    weights: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference mask, prepared so that comparing many predictions with it is cheap.

    mask:    (X, Y, Z) bool.
    spacing: edge lengths of a voxel; their unit is that of all distances.
    surface: (3, N) indices of the surface voxels, in C order.
    nearest: (X, Y, Z) flat index of the surface voxel nearest to each voxel (4 bytes a voxel, 8 in
             a volume of more than 2^32); (0, 0, 0) for an empty mask.
    lattice: of the spacing, None where squared distances are not exact.
    """

    mask: Mask
    spacing: Spacing
    surface: Points
    nearest: NDArray[np.unsignedinteger]
    lattice: Lattice | None

    @property
    def diagonal(self) -> float:
        """Length of the volume's diagonal, from outer corner to outer corner."""
        return math.hypot(*(n * s for n, s in zip(self.mask.shape, self.spacing, strict=True)))


def prepare_reference(mask: Mask, spacing: Spacing) -> Reference:
    """Do once per case what does not depend on the prediction.

    Args:
        mask: (X, Y, Z) bool.
        spacing: edge lengths of a voxel along X, Y, Z.

    Raises:
        UserError: the mask is not 3-D bool or has no voxels; a spacing is not finite and > 0.
    """
    _check_mask("The reference", mask)
    if len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise UserError(
            f"The spacing is {spacing}; it must be three finite lengths > 0, one an axis. "
            "Use (1, 1, 1) to measure in voxels."
        )
    x, y, z = (float(s) for s in spacing)
    surface = surface_voxels(mask)
    if surface.size:
        nearest = _nearest_voxels(surface, mask.shape, (x, y, z))
    else:
        nearest = np.empty((0, 0, 0), dtype=np.uint32)
    return Reference(mask, (x, y, z), surface, nearest, _lattice((x, y, z), mask.shape))


def case_metrics(prediction: Mask, reference: Reference) -> CaseMetrics:
    """Compare a predicted mask with a prepared reference.

    >>> mask = np.zeros((8, 8, 8), dtype=bool)
    >>> mask[2:6, 2:6, 2:6] = True
    >>> result = case_metrics(np.roll(mask, 1, axis=0), prepare_reference(mask, (2.0, 2.0, 2.0)))
    >>> result.status, result.dsc, result.hd95
    ('ok', 0.75, 2.0)

    Args:
        prediction: (X, Y, Z) bool, of the reference's shape.
        reference: from `prepare_reference`.

    Raises:
        UserError: the prediction is not a bool array of the reference's shape.
    """
    _check_mask("The prediction", prediction)
    if prediction.shape != reference.mask.shape:
        raise UserError(
            f"The prediction has shape {prediction.shape}, its reference {reference.mask.shape}. "
            "Compare masks on the same grid: undo any cropping or resampling first."
        )
    tp = int(np.count_nonzero(prediction & reference.mask))
    predicted = int(np.count_nonzero(prediction))
    positive = int(np.count_nonzero(reference.mask))
    asd = hd95 = math.nan
    if predicted and positive:
        to_reference, from_reference = _surface_distances(prediction, predicted, reference)
        asd = float(to_reference.mean())
        hd95 = float(np.percentile(np.hstack((to_reference, from_reference)), 95))
    return CaseMetrics(
        status=_status(predicted, positive),
        dsc=2.0 * tp / (predicted + positive) if predicted or positive else math.nan,
        asd=asd,
        hd95=hd95,
        tp=tp,
        fp=predicted - tp,
        fn=positive - tp,
        voxels=prediction.size,
        diagonal=reference.diagonal,
    )


def surface_voxels(mask: Mask) -> Points:
    """Foreground voxels with a 6-neighbour that is background or outside, (3, N) in C order."""
    box = bounding_box(mask)
    crop = mask[box]
    surface = crop.copy()
    if min(crop.shape) > 2:
        inside = slice(1, -1)
        # Shifted ANDs within the bounding box take a fraction of the time of scipy's erosion.
        interior = crop[inside, inside, inside].copy()
        for shifted in (slice(None, -2), slice(2, None)):
            interior &= crop[shifted, inside, inside]
            interior &= crop[inside, shifted, inside]
            interior &= crop[inside, inside, shifted]
        surface[inside, inside, inside] ^= interior
    corner = np.array([[axis.start] for axis in box])
    points: Points = np.stack(np.unravel_index(np.flatnonzero(surface), crop.shape)) + corner
    return points


def _check_mask(what: str, mask: Mask) -> None:
    if mask.dtype != np.bool_ or mask.ndim != 3 or mask.size == 0:
        raise UserError(
            f"{what} is an array of {mask.dtype} with shape {mask.shape}; a mask must be a 3-D "
            "array of bool with at least one voxel. Convert labels with `label == 1`."
        )


def _status(predicted: int, positive: int) -> str:
    match bool(predicted), bool(positive):
        case True, True:
            return "ok"
        case False, True:
            return "empty-prediction"
        case True, False:
            return "empty-reference"
        case _:
            return "empty-both"


def _nearest_voxels(
    surface: Points, shape: tuple[int, ...], spacing: Spacing
) -> NDArray[np.unsignedinteger]:
    """Flat index of the surface voxel nearest to each voxel of a volume of that shape."""
    background = np.ones(shape, dtype=bool)
    background[tuple(surface)] = False
    indices = distance_transform_edt(
        background, sampling=spacing, return_distances=False, return_indices=True
    )
    flat: NDArray[np.unsignedinteger] = np.ravel_multi_index(tuple(indices), shape).astype(
        np.promote_types(np.uint32, np.min_scalar_type(background.size))
    )
    return flat


def _lattice(spacing: Spacing, shape: tuple[int, ...]) -> Lattice | None:
    """The spacing as multiples of a power of two, if its squared distances are small enough.

    >>> _lattice((0.625, 0.625, 1.25), (9, 9, 9))
    Lattice(unit=0.125, weights=(25, 25, 100))
    """
    ratios = [s.as_integer_ratio() for s in spacing]
    # Denominators of floats are powers of two: the largest is a multiple of the others.
    finest = max(denominator for _, denominator in ratios)
    x, y, z = ((numerator * (finest // denominator)) ** 2 for numerator, denominator in ratios)
    if sum(w * n * n for w, n in zip((x, y, z), shape, strict=True)) >= loops.FAR:
        return None
    return Lattice(1 / finest, (x, y, z))


def _surface_distances(
    prediction: Mask, predicted: int, reference: Reference
) -> tuple[Distances, Distances]:
    """From each surface voxel of a prediction to the reference's surface, and the other way.

    Both in C order. `predicted`: foreground voxels of the prediction, of which there are some.
    """
    lattice = reference.lattice
    worth = lattice is not None and prediction.size >= WORTH_COMPILING
    fast = compiled(loops.outline, loops.look_up, loops.search) if worth else None
    if lattice is None or fast is None:
        surface = surface_voxels(prediction)
        return (
            _distances_to_reference(surface, reference),
            _distances_from_reference(surface, reference),
        )
    outline, look_up, search = fast
    points = np.empty((3, predicted), dtype=np.int32)
    low, high = int(reference.surface[2].min()), int(reference.surface[2].max()) + 1
    gap = np.empty((*prediction.shape[:2], high - low), dtype=np.int32)
    mask = np.ascontiguousarray(prediction).view(np.uint8)
    count, marked = outline(mask, low, high, lattice.weights[2], points, gap)
    there, back = (np.empty(n, dtype=np.int32) for n in (count, reference.surface.shape[1]))
    look_up(reference.nearest, points, lattice.weights, there)
    search(reference.surface, gap, marked, lattice.weights, back)
    return np.sqrt(there * lattice.unit**2), np.sqrt(back * lattice.unit**2)


def _distances_to_reference(surface: Points, reference: Reference) -> Distances:
    """From each voxel of a surface (3, N) to the reference's surface: a look-up."""
    flat = reference.nearest[tuple(surface)]
    nearest = np.stack(np.unravel_index(flat, reference.mask.shape))
    return _lengths(nearest - surface, reference.spacing)


def _distances_from_reference(surface: Points, reference: Reference) -> Distances:
    """From each voxel of the reference's surface to a surface (3, N)."""
    scale = np.array(reference.spacing)
    queries = reference.surface.T * scale
    tree = cKDTree(surface.T * scale, leafsize=_LEAF_SIZE, balanced_tree=False)
    # A k-d tree is slow where many points are about equally far away, as inside a prediction that
    # fills the volume. There a distance map of the box around both surfaces takes over.
    probe = np.mean(tree.query(queries[::_PROBE_EVERY])[0]) / min(reference.spacing)
    if surface.shape[1] * probe < _TREE_LIMIT:
        nearest = surface[:, tree.query(queries)[1]]
    else:
        both = np.hstack((surface, reference.surface))
        start = both.min(axis=1, keepdims=True)
        shape = tuple(int(n) for n in np.ptp(both, axis=1) + 1)
        flat = _nearest_voxels(surface - start, shape, reference.spacing)
        here = flat[tuple(reference.surface - start)]
        nearest = np.stack(np.unravel_index(here, shape)) + start
    return _lengths(nearest - reference.surface, reference.spacing)


def _lengths(offsets: Points, spacing: Spacing) -> Distances:
    """Lengths of voxel offsets (3, N), rounded exactly as scipy's distance transform rounds."""
    x, y, z = (offset * s for offset, s in zip(offsets, spacing, strict=True))
    lengths: Distances = np.sqrt(x * x + y * y + z * z)
    return lengths
