"""What is known about each metric beyond its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Metric:
    """A metric: how it is printed and which way is better."""

    label: str
    higher_is_better: bool


METRICS: Final = {
    "dsc": Metric("DSC", higher_is_better=True),
    "asd": Metric("ASD", higher_is_better=False),
    "hd95": Metric("HD95", higher_is_better=False),
}
