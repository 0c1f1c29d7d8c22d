"""Segmenting a whole volume with overlapping windows, as the field does it.

Along an axis of n voxels, with windows of p and a stride of s: where n < p, zeros are added,
(p - n) // 2 before and the rest after; windows start at min(s k, n - p), k = 0 … ceil((n - p) / s).
Class probabilities are summed in float32, X outermost and Z innermost, then divided by the number
of windows over each voxel. Same placement, padding and order of summation as the released test
loops of DTC and SSL4MIS; here in batches, and without leaving the device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from benchmark.data.base import Triple
from results.errors import UserError

Window = tuple[slice, ...]


def window_starts(size: int, patch: int, stride: int) -> tuple[int, ...]:
    """Where windows start along one axis, in voxels of the volume padded to at least `patch`.

    >>> window_starts(88, patch=80, stride=4)
    (0, 4, 8)
    >>> window_starts(100, patch=80, stride=18)
    (0, 18, 20)

    Raises:
        UserError: a length is below 1, or the stride leaves voxels between windows.
    """
    if min(size, patch, stride) < 1:
        raise UserError(
            f"Size {size}, patch {patch} and stride {stride} of a sliding window: all must be >= 1."
        )
    if stride > patch:
        raise UserError(
            f"A stride of {stride} with a patch of {patch} leaves voxels between the windows "
            "unseen. Choose a stride of at most the patch."
        )
    last = max(size - patch, 0)
    return tuple(min(stride * k, last) for k in range(math.ceil(last / stride) + 1))


def count_windows(shape: Sequence[int], patch: Triple, stride: Triple) -> int:
    """Windows that a volume of `shape` (X, Y, Z) takes: the number of forward passes.

    >>> count_windows((200, 140, 88), patch=(112, 112, 80), stride=(18, 18, 4))
    54
    """
    return math.prod(
        len(window_starts(n, p, s)) for n, p, s in zip(shape, patch, stride, strict=True)
    )


@torch.no_grad()
def sliding_window(
    predict: Callable[[Tensor], Tensor],
    image: Tensor,
    patch: Triple,
    stride: Triple,
    *,
    batch: int = 1,
) -> Tensor:
    """Class probabilities of a whole volume, averaged over windows.

    Args:
        predict: (B, C, *patch) -> class probabilities (B, 2, *patch); a method's predictor.
        image: (C, X, Y, Z), on the device to compute on.
        patch: window size in voxels.
        stride: step between windows in voxels, at most the patch.
        batch: most windows per call of `predict`; changes the result by rounding inside it only.

    Returns:
        (2, X, Y, Z) float32 on the image's device.

    Raises:
        UserError: a wrong shape of the image or of what `predict` gives; a batch, patch or stride
            out of range.
        FloatingPointError: probabilities that are NaN or infinite, as after a training that has
            diverged; they must not pass for an empty mask.
    """
    if image.ndim != 4 or batch < 1:
        raise UserError(
            f"The sliding window got an image of shape {tuple(image.shape)} and batches of "
            f"{batch}; it needs (C, X, Y, Z) and at least 1."
        )
    size = image.shape[1:]
    before = [max(p - n, 0) // 2 for n, p in zip(size, patch, strict=True)]
    after = [max(p - n, 0) - b for n, p, b in zip(size, patch, before, strict=True)]
    # `pad` counts axes from the last to the first.
    padded = functional.pad(image, [w for a in (2, 1, 0) for w in (before[a], after[a])])

    starts = [window_starts(n, p, s) for n, p, s in zip(size, patch, stride, strict=True)]
    windows = [
        tuple(slice(start, start + p) for start, p in zip(corner, patch, strict=True))
        for corner in itertools.product(*starts)
    ]
    total = torch.zeros((2, *padded.shape[1:]), dtype=torch.float32, device=image.device)
    crops = image.new_empty((min(batch, len(windows)), image.shape[0], *patch))
    for chunk in _even_chunks(windows, batch):
        for crop, window in zip(crops, chunk, strict=False):
            crop.copy_(padded[(slice(None), *window)])
        probabilities = predict(crops[: len(chunk)])
        _check_output(probabilities, (len(chunk), 2, *patch))
        for part, window in zip(probabilities, chunk, strict=True):
            # `total[...] += part` would copy the sum onto itself once more.
            total[(slice(None), *window)].add_(part)

    total /= _window_counts(padded.shape[1:], starts, patch, image.device)
    # One pass and one wait for the device; NaN is both the least and the greatest.
    if not torch.stack(torch.aminmax(total)).isfinite().all():
        raise FloatingPointError("class probabilities are not finite")
    return total[(slice(None), *(slice(b, b + n) for b, n in zip(before, size, strict=True)))]


def segment(probabilities: Tensor) -> Tensor:
    """The foreground mask (X, Y, Z) bool of class probabilities (2, X, Y, Z).

    p1 > p0, which is argmax with ties going to class 0. The field's other rule, p1 > 0.5, is the
    same in exact arithmetic, as p0 + p1 = 1; the two can differ only where rounding decides.
    """
    if probabilities.ndim != 4 or probabilities.shape[0] != 2:
        raise UserError(
            f"Got class probabilities of shape {tuple(probabilities.shape)}; "
            "segmenting needs (2, X, Y, Z)."
        )
    return probabilities[1] > probabilities[0]


def _even_chunks(windows: list[Window], largest: int) -> Iterator[list[Window]]:
    """Chunks of about equal size, none above `largest`.

    Even, because torch's CPU kernels for a batch of one are several times slower a window than
    for two.
    """
    number = math.ceil(len(windows) / largest)
    bounds = [len(windows) * i // number for i in range(number + 1)]
    for first, last in itertools.pairwise(bounds):
        yield windows[first:last]


def _check_output(probabilities: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(probabilities.shape) != expected:
        raise UserError(
            f"The predictor gave an output of shape {tuple(probabilities.shape)} for windows that "
            f"need {expected}: batch, two classes, and the patch. "
            "Check the predictor, and that the network can take patches of this size."
        )


def _window_counts(
    shape: Sequence[int],
    starts: Sequence[tuple[int, ...]],
    patch: Triple,
    device: torch.device,
) -> Tensor:
    """Windows over each voxel (X, Y, Z), float32.

    Windows are a Cartesian product, so the count is the outer product of one count per axis.
    """
    x, y, z = (
        _axis_counts(n, first, p).to(device)
        for n, first, p in zip(shape, starts, patch, strict=True)
    )
    return x[:, None, None] * y[:, None] * z


def _axis_counts(size: int, starts: tuple[int, ...], patch: int) -> Tensor:
    counts = torch.zeros(size)
    for start in starts:
        counts[start : start + patch] += 1
    return counts
