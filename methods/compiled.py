"""Loops over voxels, compiled by numba where it is installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Final

WORTH_COMPILING: Final = 500_000
"""Voxels of a volume from where on compiled loops earn the second that importing numba takes."""


@cache
def compiled(*loops: Callable[..., Any]) -> tuple[Callable[..., Any], ...] | None:
    """Functions of loops over arrays, compiled; None where numba cannot be used.

    numba is the extra `fast` (`pip install 'ssl3d-bench[fast]'`). It is imported at the first
    call. What it compiles it keeps beside the source or, where that cannot be written, in the
    user's cache. Compiled loops let other threads go on meanwhile.

    Whoever calls this has a slower way to the same bits.
    """
    try:
        from numba import njit
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        warnings.warn(f"numba cannot be used, so some things take longer: {error}", stacklevel=2)
        return None
    try:
        return tuple(njit(nogil=True, cache=True)(loop) for loop in loops)
    except RuntimeError:  # There is no folder to keep them in.
        return tuple(njit(nogil=True)(loop) for loop in loops)
