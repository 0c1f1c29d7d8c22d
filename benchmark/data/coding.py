"""Images of few grey levels as codes: smaller in memory and on disk, and not a bit is lost.

On disk an array is one zstd frame. Its bytes are sorted by significance first, which compresses
better where a number has several: all lowest bytes, then all second lowest, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmark.data.base import Coded

MOST_LEVELS: Final = 2**15
"""Codes are uint8 up to 256 levels and int16 above; an image of more than these has none."""

BLOCK: Final = 2**20
"""Voxels that are looked up at once: sorting and places of all would need twelve bytes a voxel."""

COMPRESSION: Final = 9
"""Of zstd. 12 takes three times longer for 0.3 % less room, 19 fifteen times for 7 %."""


def encode(image: NDArray[np.float32]) -> NDArray[np.float32] | Coded:
    """The image as codes, or as it is where it has more than `MOST_LEVELS` distinct values.

    Values are told apart by their bits, so that -0.0 and every NaN come back as they were.

    >>> encode(np.array([[[[0.5, -1.0, 0.5]]]], np.float32))
    Coded(codes=array([[[[1, 0, 1]]]], dtype=uint8), values=array([-1. ,  0.5], dtype=float32))
    """
    bits = np.ascontiguousarray(image, np.float32).view(np.uint32).reshape(-1)
    patterns = np.empty(0, np.uint32)
    for block in _blocks(bits):
        patterns = np.union1d(patterns, bits[block])
        if len(patterns) > MOST_LEVELS:
            return image
    values = patterns.view(np.float32)
    order = np.argsort(values, kind="stable")
    ranks: NDArray[Any] = np.empty(len(order), code_type(len(order)))
    ranks[order] = np.arange(len(order))
    codes = np.empty(bits.shape, ranks.dtype)
    for block in _blocks(bits):
        codes[block] = ranks[np.searchsorted(patterns, bits[block])]
    return Coded(codes.reshape(image.shape), values[order])


def code_type(levels: int) -> type[np.uint8] | type[np.int16]:
    """What codes of so many levels are stored as; torch knows no uint16 to speak of."""
    return np.uint8 if levels <= 256 else np.int16


def pack_image(stored: NDArray[np.float32] | Coded) -> bytes:
    """An image as a file holds it: the values, then the codes; or the float32 image."""
    if isinstance(stored, Coded):
        return _compress(stored.values, stored.codes)
    return _compress(stored)


def unpack_image(content: bytes, shape: Sequence[int], levels: int) -> NDArray[np.float32] | Coded:
    """What was given to `pack_image`.

    Args:
        content: of the file.
        shape: of the image.
        levels: number of its values; 0 where it has no codes.

    Raises:
        ValueError: the content is damaged, or not of this size.
    """
    voxels = prod(shape)
    if not levels:
        return _joined(_decompress(content, 4 * voxels), np.float32, shape)
    kind = np.dtype(code_type(levels))
    payload = _decompress(content, 4 * levels + kind.itemsize * voxels)
    values = _joined(payload[: 4 * levels], np.float32, [levels])
    codes = _joined(payload[4 * levels :], kind, shape)
    if codes.min() < 0 or codes.max() >= levels:
        raise ValueError(f"a code is not in [0, {levels})")
    return Coded(codes, values)


def pack_label(label: NDArray[np.uint8]) -> bytes:
    """A label as a file holds it."""
    return _compress(label)


def unpack_label(content: bytes, shape: Sequence[int]) -> NDArray[np.uint8]:
    """What was given to `pack_label`.

    Raises:
        ValueError: the content is damaged, or not of this size.
    """
    return _joined(_decompress(content, prod(shape)), np.uint8, shape)


def _blocks(voxels: NDArray[Any]) -> Iterator[slice]:
    for low in range(0, voxels.size, BLOCK):
        yield slice(low, low + BLOCK)


def _joined(planes: NDArray[np.uint8], kind: Any, shape: Sequence[int]) -> NDArray[Any]:
    """The array whose planes these are, as `_compress` takes them, in memory of its own."""
    little = np.dtype(kind).newbyteorder("<")
    rows = planes.reshape(little.itemsize, -1).T.copy()
    return rows.view(little).astype(kind, copy=False).reshape(shape)


def _compress(*arrays: NDArray[Any]) -> bytes:
    """The bytes of arrays one after the other, those of each sorted by significance."""
    payload = np.empty(sum(array.nbytes for array in arrays), np.uint8)
    at = 0
    for array in arrays:
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1, 1)
        planes = payload[at : at + array.nbytes].reshape(array.itemsize, -1)
        planes[...] = little.view(np.uint8).T
        at += array.nbytes
    codec = pa.Codec("zstd", compression_level=COMPRESSION)
    packed: bytes = codec.compress(payload, asbytes=True)
    return packed


def _decompress(content: bytes, size: int) -> NDArray[np.uint8]:
    try:
        payload = pa.Codec("zstd").decompress(content, decompressed_size=size)
    except OSError as error:
        raise ValueError(str(error)) from error
    return np.frombuffer(payload, np.uint8)
