"""Connected components of masks: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from methods.compiled import WORTH_COMPILING, compiled

Mask = NDArray[np.bool_]


def largest_component(mask: Mask, *, corners: bool = True) -> Mask:
    """The largest set of connected foreground voxels.

    Of equally large ones the first in C order; an empty mask stays empty. With corners it is the
    usual post-processing of the field (scikit-image's `label` with its default connectivity).

    >>> largest_component(np.array([[[1, 0, 1, 1]]], dtype=bool))
    array([[[False, False,  True,  True]]])

    Args:
        mask: (X, Y, Z) bool.
        corners: voxels touch by faces, edges or corners; otherwise by faces.
    """
    loops = compiled(mark_largest) if mask.size >= WORTH_COMPILING else None
    largest = np.zeros(mask.shape, dtype=bool)
    if loops:
        (mark,) = loops
        mark(np.ascontiguousarray(mask).view(np.uint8), corners, largest.view(np.uint8))
        return largest
    box = bounding_box(mask)
    labels, count = ndimage.label(mask[box], np.ones((3, 3, 3)) if corners else None)
    if count:
        largest[box] = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return largest


def bounding_box(mask: Mask) -> tuple[slice, slice, slice]:
    """Smallest box that holds the foreground of a mask (X, Y, Z); an empty one where none is."""
    box: list[slice] = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        # The axes that are done are narrow already, which makes the next ones cheaper.
        hit = np.flatnonzero(mask[tuple(box)].any(axis=others))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
    return box[0], box[1], box[2]


def mark_largest(mask: NDArray[np.uint8], corners: bool, largest: NDArray[np.uint8]) -> None:
    """Set `largest` to 1 on the largest component of `mask`, both (X, Y, Z); a compiled loop.

    The foreground is taken as runs of voxels along Z. A run joins those that it touches in the
    rows before it, by union-find; the first run of a component is its root.
    """
    nx, ny, nz = mask.shape
    # Where the runs of each row begin in the list of all, and one entry for the end.
    begins = np.zeros(nx * ny + 1, np.int64)
    runs = 0
    for x in range(nx):
        for y in range(ny):
            row = mask[x, y]
            some = np.uint8(0)
            for z in range(nz):
                some |= row[z]
            if some:
                inside = np.uint8(0)
                for z in range(nz):
                    runs += row[z] > inside
                    inside = row[z]
            begins[x * ny + y + 1] = runs
    first, after, root = np.empty((3, runs), np.int64)
    size = np.zeros(runs, np.int64)
    reach = 1 if corners else 0
    for x in range(nx):
        for y in range(ny):
            here, end = begins[x * ny + y], begins[x * ny + y + 1]
            if here == end:
                continue
            row = mask[x, y]
            z = 0
            for run in range(here, end):
                while not row[z]:
                    z += 1
                first[run] = z
                while z < nz and row[z]:
                    z += 1
                after[run] = z
                root[run] = run
                size[run] = z - first[run]
            for dx, dy in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
                if x + dx < 0 or y + dy < 0 or y + dy >= ny or (dx * dy != 0 and not corners):
                    continue
                beside = (x + dx) * ny + y + dy
                other, last = begins[beside], begins[beside + 1]
                run = here
                while run < end and other < last:
                    if first[other] < after[run] + reach and first[run] < after[other] + reach:
                        a, b = run, other
                        while root[a] != a:
                            root[a] = root[root[a]]
                            a = root[a]
                        while root[b] != b:
                            root[b] = root[root[b]]
                            b = root[b]
                        if a != b:
                            a, b = min(a, b), max(a, b)
                            root[b] = a
                            size[a] += size[b]
                    if after[run] < after[other]:
                        run += 1
                    else:
                        other += 1
    chosen = 0
    for run in range(runs):
        # A run's root lies before it and so is final already.
        root[run] = root[root[run]]
        if root[run] == run and size[run] > size[chosen]:
            chosen = run
    for x in range(nx):
        for y in range(ny):
            for run in range(begins[x * ny + y], begins[x * ny + y + 1]):
                if root[run] == chosen:
                    for z in range(first[run], after[run]):
                        largest[x, y, z] = 1
