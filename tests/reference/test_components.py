"""The largest component against a flood, and against scipy where a flood would take too long."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from methods import components
from methods.compiled import compiled
from methods.components import Mask, bounding_box, largest_component


@pytest.fixture(params=[math.inf, 0], ids=["scipy", "compiled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, whatever the size of the volume."""
    monkeypatch.setattr(components, "WORTH_COMPILING", request.param)


def naive(mask: Mask, corners: bool) -> Mask:
    """By flooding from every voxel in C order, over all 26 neighbours or the 6 by faces."""
    left = {tuple(p) for p in np.argwhere(mask)}
    best: set[tuple[int, ...]] = set()
    for seed in map(tuple, np.argwhere(mask)):
        if seed not in left:
            continue
        found, edge = {seed}, [seed]
        left.discard(seed)
        while edge:
            here = edge.pop()
            for step in np.ndindex(3, 3, 3):
                near = tuple(int(h + s - 1) for h, s in zip(here, step, strict=True))
                if near in left and (corners or sum(s != 1 for s in step) == 1):
                    left.discard(near)
                    found.add(near)
                    edge.append(near)
        if len(found) > len(best):
            best = found
    out = np.zeros_like(mask)
    for place in best:
        out[place] = True
    return out


def by_scipy(mask: Mask, corners: bool) -> Mask:
    """As scikit-image's users write it."""
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)) if corners else None)
    largest: Mask = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return largest


@pytest.mark.usefixtures("way")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrays(
        bool,
        array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=st.sampled_from([False, False, True]),
    ),
    st.booleans(),
)
def test_the_largest_component_is_that_of_a_flood(mask: Mask, corners: bool) -> None:
    np.testing.assert_array_equal(largest_component(mask, corners=corners), naive(mask, corners))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.4, 0.9, 1])
def test_noise_of_any_density_gives_what_scipy_gives(share: float, corners: bool) -> None:
    mask = np.random.default_rng(4).random((30, 21, 26)) < share
    for turned in (mask, mask.T):
        found = largest_component(turned, corners=corners)
        np.testing.assert_array_equal(found, by_scipy(turned, corners))


@pytest.mark.usefixtures("way")
def test_of_equally_large_ones_the_first_is_taken_and_nothing_of_nothing() -> None:
    mask = np.zeros((5, 5, 5), dtype=bool)
    assert not largest_component(mask).any()
    mask[0, 0, :2] = mask[2, 2, :2] = mask[4, 4, :2] = True
    mask.setflags(write=False)
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 0, 0], [0, 0, 1]]
    assert not np.shares_memory(largest_component(mask), mask)


def test_a_volume_worth_compiling_gives_the_same_without(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(99, 80, 70)), 2) > 0.05
    assert mask.size >= components.WORTH_COMPILING
    fast = largest_component(mask)
    monkeypatch.setattr(components, "compiled", lambda *_: None)
    np.testing.assert_array_equal(largest_component(mask), fast)


def test_a_bounding_box_is_the_smallest_and_empty_for_nothing() -> None:
    mask = np.zeros((4, 5, 6), dtype=bool)
    assert bounding_box(mask) == (slice(0, 0),) * 3
    mask[1, 2, 3] = mask[3, 2, 5] = True
    assert bounding_box(mask) == (slice(1, 4), slice(2, 3), slice(3, 6))


# Compiling


def twice(x: int) -> int:
    return 2 * x


def fake_numba(monkeypatch: pytest.MonkeyPatch, **content: Callable[..., object]) -> None:
    module = ModuleType("numba")
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, "numba", module)


def test_loops_are_compiled_and_do_what_they_say() -> None:
    loops = compiled(twice)
    assert loops is not None
    assert loops[0](21) == 42
    assert loops[0].signatures


def test_without_numba_there_are_no_compiled_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert compiled.__wrapped__(twice) is None


def test_a_numba_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_numba(monkeypatch)
    with pytest.warns(UserWarning, match="numba cannot be used, so some .* longer: cannot import"):
        assert compiled.__wrapped__(twice) is None


def test_loops_are_compiled_anew_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(*, nogil: bool, cache: bool = False) -> Callable[[object], object]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda loop: loop

    fake_numba(monkeypatch, njit=njit)
    assert compiled.__wrapped__(twice) == (twice,)
