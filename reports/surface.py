"""A mask as a lit surface: the first voxel on each line of sight, shaded by the mask's gradient.

The camera stands far off (orthographic), to the side and above. Silhouettes are those of the mask
itself, so that a single voxel is seen too; only the light is computed from a smoothed mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from scipy import ndimage

PIXELS: Final = 220
_AZIMUTH: Final = np.deg2rad(35)
_ELEVATION: Final = np.deg2rad(25)
_INTO: Final = -np.array(
    [
        np.cos(_ELEVATION) * np.cos(_AZIMUTH),
        np.cos(_ELEVATION) * np.sin(_AZIMUTH),
        np.sin(_ELEVATION),
    ]
)
_RIGHT: Final = np.array([-np.sin(_AZIMUTH), np.cos(_AZIMUTH), 0.0])
_DOWN: Final = np.cross(_INTO, _RIGHT)
_AXES: Final = np.stack([_INTO, _DOWN, _RIGHT], axis=1)
"""Columns: unit vectors of depth, rows and columns of the picture, in X, Y, Z."""

_LIGHT: Final = np.array([-0.75, -0.55, -0.35]) / np.linalg.norm([-0.75, -0.55, -0.35])
"""Towards the light in depth, rows, columns: from behind the camera, above and left of it."""

_SMOOTHING_VOXELS: Final = 1.2
_MARGIN: Final = 1.06
_FOG: Final = 0.25
"""How much darker the far end of the picture is."""


@dataclass(frozen=True)
class Camera:
    """What is in the picture: the point at its centre, X, Y, Z, and half its side, as spacing."""

    centre: tuple[float, float, float]
    half_side: float


def frame(mask: NDArray[np.bool_], spacing: Sequence[float]) -> Camera:
    """The camera that has all foreground in its picture; of an empty mask the whole volume."""
    points = np.argwhere(mask if mask.any() else np.ones_like(mask)) + 0.5
    seen = (points * spacing) @ _AXES
    low, high = seen.min(axis=0), seen.max(axis=0)
    x, y, z = _AXES @ ((low + high) / 2)
    half = (high - low)[1:].max() / 2 + float(np.linalg.norm(spacing)) / 2
    return Camera((float(x), float(y), float(z)), _MARGIN * float(half))


def shaded(
    mask: NDArray[np.bool_], spacing: Sequence[float], camera: Camera, pixels: int = PIXELS
) -> NDArray[np.float32]:
    """How bright the surface is.

    Returns:
        (pixels, pixels) in [0, 1], the first row at the top; NaN where nothing is in sight.
    """
    found = np.full((pixels, pixels), np.nan, dtype=np.float32)
    if not mask.any():
        return found
    size = np.asarray(spacing, dtype=np.float64)
    near, far = _depths(mask, size, camera)
    side = 2 * camera.half_side / pixels
    layers = int(np.ceil((far - near) / side)) + 3
    # Of the picture's first voxel: (layer, row, column) to a place in the mask.
    corner = np.array([near - side, *(_seen(camera)[1:] - camera.half_side + side / 2)])
    matrix = _AXES * side / size[:, None]
    offset = (_AXES @ corner) / size - 0.5
    solid = ndimage.affine_transform(
        mask.astype(np.float32), matrix, offset, (layers, pixels, pixels), order=1
    )
    hit = solid > 0.5
    rows, columns = np.nonzero(hit.any(axis=0))
    depth = hit.argmax(axis=0)[rows, columns]
    places = matrix @ np.stack([depth, rows, columns]) + offset[:, None]
    slopes = _slopes(mask, places) / size[:, None]
    normals = -(_AXES.T @ slopes)
    normals /= np.maximum(np.linalg.norm(normals, axis=0), 1e-12)
    lit = np.clip(_LIGHT @ normals, 0, 1)
    behind = near - side + depth * side - (_seen(camera)[0] - camera.half_side)
    fog = 1 - _FOG * np.clip(behind / (2 * camera.half_side), 0, 1)
    found[rows, columns] = (0.22 + 0.78 * lit) * fog
    return found


def coloured(brightness: NDArray[np.float32], colour: str) -> NDArray[np.float64]:
    """The picture in a colour: (rows, columns, RGBA), clear where nothing is in sight."""
    light = np.nan_to_num(brightness)[..., None].astype(np.float64)
    rgb = np.array(to_rgb(colour)) * (0.25 + 0.95 * light) + 0.35 * light**6
    alpha = np.isfinite(brightness)[..., None].astype(np.float64)
    return np.concatenate([np.clip(rgb, 0, 1), alpha], axis=-1)


def _seen(camera: Camera) -> NDArray[np.float64]:
    """The camera's centre in depth, rows, columns."""
    centre: NDArray[np.float64] = np.asarray(camera.centre) @ _AXES
    return centre


def _depths(
    mask: NDArray[np.bool_], spacing: NDArray[np.float64], camera: Camera
) -> tuple[float, float]:
    """The nearest and the farthest foreground, with half a voxel to spare."""
    along = ((np.argwhere(mask) + 0.5) * spacing) @ _INTO
    spare = float(np.linalg.norm(spacing)) / 2
    return float(along.min()) - spare, float(along.max()) + spare


def _slopes(mask: NDArray[np.bool_], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gradient of the smoothed mask at places (3, n), per voxel along each axis."""
    margin = 5
    smooth = ndimage.gaussian_filter(np.pad(mask, margin).astype(np.float32), _SMOOTHING_VOXELS)
    found = np.empty_like(places)
    for axis in range(3):
        step = np.zeros((3, 1))
        step[axis] = 1.0
        ahead, behind = (
            ndimage.map_coordinates(smooth, places + margin + sign * step, order=1)
            for sign in (1, -1)
        )
        found[axis] = (ahead - behind) / 2
    return found
