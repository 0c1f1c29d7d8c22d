"""The loops over voxels of `benchmark.metrics`, written to be compiled (`methods.compiled`).

Squared distances are whole numbers below `FAR`: lattice offsets d with integer weights w, as
w_x d_x^2 + w_y d_y^2 + w_z d_z^2. They are exact in any order of summation.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

FAR: Final = 1 << 30
"""Above every squared distance; twice as much is an int32 still."""

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int32]


def outline(
    mask: Bytes, low: int, high: int, weight: int, points: Integers, gap: Integers
) -> tuple[int, Bytes]:
    """The surface voxels of a mask, and how far along Z the nearest one is.

    Args:
        mask: (X, Y, Z), 0 or 1.
        low: first z for which `gap` is wanted.
        high: one after the last such z.
        weight: w_z.
        points: (3, N) for the indices of the surface voxels, in C order; N not below their number.
        gap: (X, Y, high - low) for the least w_z d_z^2 within each row that has surface voxels.

    Returns:
        The number of surface voxels, and (X, Y): 1 where a row has any.
    """
    nx, ny, nz = mask.shape
    edge = np.empty(nz, np.uint8)
    marked = np.zeros((nx, ny), np.uint8)
    count = 0
    for x in range(nx):
        for y in range(ny):
            row = mask[x, y]
            some = np.uint8(0)
            for z in range(nz):
                some |= row[z]
            if not some:
                continue
            edge[:] = row
            if 0 < x < nx - 1 and 0 < y < ny - 1:
                left, right = mask[x - 1, y], mask[x + 1, y]
                below, above = mask[x, y - 1], mask[x, y + 1]
                for z in range(1, nz - 1):
                    beside = left[z] & right[z] & below[z] & above[z]
                    edge[z] = row[z] & ~(row[z - 1] & row[z + 1] & beside)
            here = count
            for z in range(nz):
                if edge[z]:
                    points[0, count] = x
                    points[1, count] = y
                    points[2, count] = z
                    count += 1
            if here == count:
                continue
            marked[x, y] = 1
            for z in range(low, high):
                while here + 1 < count and abs(points[2, here + 1] - z) <= abs(points[2, here] - z):
                    here += 1
                gap[x, y, z - low] = weight * (points[2, here] - z) ** 2
    return count, marked


def look_up(
    nearest: NDArray[np.unsignedinteger],
    points: Integers,
    weights: tuple[int, int, int],
    squared: Integers,
) -> None:
    """Squared distance of each of the points (3, N) to the voxel named by `nearest` there.

    Args:
        nearest: (X, Y, Z) flat indices.
        points: (3, N).
        weights: w.
        squared: (N,) for the result.
    """
    _, ny, nz = nearest.shape
    wx, wy, wz = weights
    for i in range(squared.size):
        x, y, z = points[0, i], points[1, i], points[2, i]
        flat = np.int64(nearest[x, y, z])
        row = flat // nz
        column = row // ny
        squared[i] = (
            wx * (column - x) ** 2
            + wy * (row - column * ny - y) ** 2
            + wz * (flat - row * nz - z) ** 2
        )


def search(
    points: NDArray[np.intp],
    gap: Integers,
    marked: Bytes,
    weights: tuple[int, int, int],
    squared: Integers,
) -> None:
    """Squared distance of each of the points (3, N) to the nearest surface voxel of `outline`.

    One axis after the other: `gap` has the minimum over Z, a line the minimum over Y and Z for
    one x and y, and a point looks along X. Lines are made when first asked for.

    Args:
        points: (3, N).
        gap: from `outline`, from the least z of the points to the greatest.
        marked: from `outline`.
        weights: w; that of Z is in `gap`.
        squared: (N,) for the result.
    """
    nx, ny, nz = gap.shape
    wx, wy, _ = weights
    y0, z0 = points[1].min(), points[2].min()
    lines = np.empty((nx, points[1].max() - y0 + 1, nz), np.int32)
    made = np.zeros(lines.shape[:2], np.uint8)
    occupied = np.zeros(nx, np.uint8)
    for x in range(nx):
        for y in range(ny):
            occupied[x] |= marked[x, y]
    for i in range(squared.size):
        px, py, pz = points[0, i], points[1, i], points[2, i] - z0
        best = np.int32(FAR)
        for dx in range(nx):
            along_x = np.int32(wx * dx * dx)
            if along_x >= best:
                break
            for x in (px - dx, px + dx):
                if x < 0 or x >= nx or not occupied[x]:
                    continue
                line = lines[x, py - y0]
                if not made[x, py - y0]:
                    made[x, py - y0] = 1
                    line[:] = FAR
                    farthest = np.int32(FAR)
                    for dy in range(ny):
                        along_y = np.int32(wy * dy * dy)
                        if dy % 4 == 0:
                            farthest = line[0]
                            for z in range(nz):
                                farthest = line[z] if line[z] > farthest else farthest
                        if along_y >= farthest:
                            break
                        for y in (py - dy, py + dy):
                            if y < 0 or y >= ny or not marked[x, y]:
                                continue
                            beside = gap[x, y]
                            for z in range(nz):
                                # Without the cast numba goes on in 64 bits, at half the speed.
                                found = np.int32(beside[z] + along_y)
                                line[z] = found if found < line[z] else line[z]
                best = min(best, np.int32(line[pz] + along_x))
        squared[i] = best
