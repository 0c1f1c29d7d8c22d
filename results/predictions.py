"""Stored predictions: masks as small byte strings, and what asks a store for them.

A mask is the lengths of its runs of equal voxels in C order, background and foreground in turn and
background first (of length 0 where the first voxel is foreground), each as an unsigned LEB128
number: seven bits a byte, the lowest first, the eighth set on all bytes but the last. A left atrium
of 175 x 132 x 88 voxels is 20 kB so, and 8 kB in the (zstd) Parquet file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from results.errors import UserError
from results.store import Store

Mask = NDArray[np.bool_]
_BITS: Final = 7
_MOST_BYTES: Final = 5


def pack(mask: Mask) -> bytes:
    r"""The runs of a mask of any shape; see above.

    >>> pack(np.array([False, False, True])), pack(np.array([True] * 200))
    (b'\x02\x01', b'\x00\xc8\x01')
    """
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0] * (1 + bool(flat[:1].any())), changes, [flat.size]])
    lengths = np.diff(bounds)
    place = np.arange(_MOST_BYTES)
    digits = lengths[:, None] >> (_BITS * place)
    more = (digits >> _BITS) > 0
    used = (place == 0) | (digits > 0)
    return bytes(((digits & 0x7F) | (more << _BITS))[used].astype(np.uint8))


def unpack(packed: bytes, shape: Sequence[int]) -> Mask:
    r"""The mask that `pack` was given.

    >>> unpack(b"\x02\x01", (1, 3))
    array([[False, False,  True]])

    Raises:
        ValueError: the bytes are no runs, or those of a mask of another size.
    """
    digits = np.frombuffer(packed, dtype=np.uint8)
    ends = np.flatnonzero(digits < 0x80)
    if not len(ends) or ends[-1] != len(digits) - 1:
        raise ValueError("the runs of voxels are cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= _MOST_BYTES:
        raise ValueError("a run of voxels is longer than any volume")
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    values = (digits & 0x7F).astype(np.int64) << (_BITS * place)
    lengths = np.add.reduceat(values, starts)
    size = int(np.prod(shape))
    if lengths.sum() != size:
        raise ValueError(f"its runs hold {lengths.sum()} voxels, not {size}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(shape)


def columns_of(mask: Mask) -> dict[str, Any]:
    """The part of a row of `predictions` that a mask (X, Y, Z) decides."""
    x, y, z = mask.shape
    return {"x": x, "y": y, "z": z, "mask": pack(mask)}


def load_masks(
    store: Store, run: str, step: int, predictor: str, cases: Sequence[str]
) -> dict[str, Mask]:
    """Predictions of a run that is done, by case, each (X, Y, Z) at the run's resolution.

    Raises:
        UserError: the run, that step, predictor or case has none, or the file is damaged.
    """
    if not store.has("predictions", run):
        raise UserError(
            f"run {run} keeps no predictions: train it into another store with "
            "`bench run --keep-predictions last` (`all` for other protocols than last)"
        )
    rows = store.read("predictions", [run])
    where = f"the predictions of run {run}"
    for column, wanted, advice in (
        (
            "step",
            step,
            "; report with --protocol last, or keep all steps by `bench run --keep-predictions "
            "all` into another store",
        ),
        ("predictor", predictor, ""),
    ):
        kept = sorted(set(rows[column]))
        rows = rows[rows[column] == wanted]
        if rows.empty:
            raise UserError(
                f"{where} are of {column} {', '.join(map(str, kept))}, not {wanted}{advice}"
            )
    found = {row["case"]: row for row in rows.to_dict("records") if row["case"] in cases}
    missing = sorted(set(cases) - set(found))
    if missing:
        raise UserError(f"{where} hold no case {', '.join(missing)} at step {step}")
    masks = {}
    for case in cases:
        row = found[case]
        try:
            masks[case] = unpack(row["mask"], (row["x"], row["y"], row["z"]))
        except ValueError as error:
            raise UserError(
                f"{where} are damaged at case {case}: {error}. Restore the file from a copy, or "
                "delete every file of this run in the store and run it again"
            ) from None
    return masks
