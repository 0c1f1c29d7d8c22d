"""Images as codes, in memory and as files: not a bit is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.data.base import Coded
from benchmark.data.coding import (
    MOST_LEVELS,
    encode,
    pack_image,
    pack_label,
    unpack_image,
    unpack_label,
)


def decoded(stored: np.ndarray | Coded) -> np.ndarray:
    return stored.decoded() if isinstance(stored, Coded) else stored


def bits(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image).view(np.uint32)


def levels_of(stored: np.ndarray | Coded) -> int:
    return len(stored.values) if isinstance(stored, Coded) else 0


@given(
    shape=st.tuples(*[st.integers(1, 7)] * 4),
    patterns=st.integers(1, 400),
    seed=st.integers(0, 999),
)
def test_every_bit_of_an_image_survives_memory_and_disk(shape, patterns, seed):
    rng = np.random.default_rng(seed)
    known = rng.integers(2**32, size=patterns, dtype=np.uint32)  # NaNs and infinities among them
    known[: min(patterns, 2)] = (0, 2**31)[: min(patterns, 2)]  # 0.0 and -0.0
    image = rng.choice(known, shape).view(np.float32)
    stored = encode(image)
    read = unpack_image(pack_image(stored), shape, levels_of(stored))
    for one in (stored, read):
        assert np.array_equal(bits(decoded(one)), bits(image))
        assert levels_of(one) == len(np.unique(bits(image)))


@pytest.mark.parametrize(
    ("levels", "kind"),
    [(256, np.uint8), (257, np.int16), (MOST_LEVELS, np.int16), (MOST_LEVELS + 1, None)],
)
def test_the_smallest_kind_of_code_is_chosen(levels, kind):
    image = np.arange(-5, levels - 5, dtype=np.float32).reshape(1, 1, 1, -1)[..., ::-1]
    stored = encode(image)
    if kind is None:
        assert stored is image
    else:
        assert stored.codes.dtype == kind
        assert np.array_equal(stored.values, np.sort(image.ravel()))
    read = unpack_image(pack_image(stored), image.shape, levels_of(stored))
    assert np.array_equal(decoded(read), image)


def test_what_is_read_can_be_written_to():
    image = np.zeros((1, 4, 4, 4), np.float32)
    stored = unpack_image(pack_image(encode(image)), image.shape, 1)
    stored.codes[:] = 0
    plain = unpack_image(pack_image(image), image.shape, 0)
    plain[:] = 1
    unpack_label(pack_label(np.ones((3, 3, 3), np.uint8)), (3, 3, 3))[:] = 0


def test_labels_keep_values_that_they_should_not_have():
    label = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    assert np.array_equal(unpack_label(pack_label(label), label.shape), label)


@pytest.mark.parametrize("shape", [(1, 4, 5, 7), (1, 4, 5, 5)])
def test_a_file_of_another_size_is_refused(shape):
    image = np.arange(120, dtype=np.float32).reshape(1, 4, 5, 6)
    for content, levels in ((pack_image(encode(image)), 120), (pack_image(image), 0)):
        with pytest.raises(ValueError, match="ZSTD"):
            unpack_image(content, shape, levels)
    with pytest.raises(ValueError, match="ZSTD"):
        unpack_label(pack_label(np.zeros((4, 5, 6), np.uint8)), shape[1:])


def test_a_code_without_a_value_is_refused():
    stored = Coded(np.full((1, 2, 2, 2), 3, np.uint8), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"not in \[0, 3\)"):
        unpack_image(pack_image(stored), (1, 2, 2, 2), 3)


def test_rubbish_and_a_cut_file_are_refused():
    content = pack_image(encode(np.arange(500, dtype=np.float32).reshape(1, 5, 10, 10)))
    for damaged in (b"", b"rubbish" * 9, content[:-9]):
        with pytest.raises(ValueError, match="ZSTD"):
            unpack_image(damaged, (1, 5, 10, 10), 500)
