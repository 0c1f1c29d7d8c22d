"""Inputs of the comparisons with the authors' released code.

A test that is named "..._of_the_released_code" holds a figure that public code gave for these
tensors, with the repository, commit, file and function beside it. They are drawn from no generator,
so that anyone can make them again in any language.
"""

from __future__ import annotations

import torch
from torch import Tensor


def waves(*shape: int, phase: float = 0.0) -> Tensor:
    """2 sin(i² / 7 + phase) for the i-th element in C order, in float64."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return 2 * torch.sin(i * i / 7 + phase).reshape(shape)


def halves(*shape: int, phase: float = 0.0) -> Tensor:
    """Labels in {0, 1}: where `waves` are above 0.5, int64."""
    return (waves(*shape, phase=phase) > 0.5).long()
