"""Committed case lists, and which of the training cases are labelled."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from importlib import resources

from benchmark.data.base import Dataset
from results.errors import UserError


def read_list(name: str, folder: str = "splits", end: str = ".txt") -> tuple[str, ...]:
    """The lines of a committed list.

    >>> read_list("la_train")[:2]
    ('06SR5RBREL16DQ6M8LWS', '0RZDK210BSMWAA6467LU')
    """
    path = resources.files("benchmark.data") / folder / f"{name}{end}"
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1])


def labelled_count(ratio: float, n_train: int) -> int:
    """Labelled volumes that a ratio stands for: the nearest number, halves upward.

    >>> labelled_count(0.1, 80), labelled_count(0.1, 62), labelled_count(0.1, 250)
    (8, 6, 25)

    Raises:
        UserError: the ratio is outside (0, 1], or so small that no volume is labelled, or smaller
            than one and yet no volume is unlabelled.
    """
    if not 0 < ratio <= 1:
        raise UserError(f"ratio {ratio:g} is not in (0, 1]. 0.1 means 10 % of the training cases.")
    exact = Decimal(str(ratio)) * n_train
    count = int(exact.to_integral_value(ROUND_HALF_UP))
    if count == 0:
        raise UserError(
            f"ratio {ratio:g} of {n_train} training cases leaves no labelled case. "
            f"Use --labelled 1 or a ratio of at least {_up(0.5 / n_train)}."
        )
    if count == n_train and ratio < 1:
        raise UserError(
            f"ratio {ratio:g} of {n_train} training cases leaves no unlabelled case. "
            f"Use --labelled with 1 to {n_train - 1}, or ratio 1 to train fully supervised."
        )
    return count


def split_labelled(
    dataset: Dataset, labelled: int, *, need_unlabelled: bool = True
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labelled and the unlabelled training cases: the first `labelled` ones, and the rest.

    Args:
        dataset: gives the ordered training cases.
        labelled: number of labelled cases.
        need_unlabelled: whether the method trains on unlabelled cases.

    Raises:
        UserError: no labelled case would be left, more are asked for than there are, or no
            unlabelled case would be left for a method that needs them.
    """
    train = dataset.splits["train"]
    if not 1 <= labelled <= len(train):
        raise UserError(
            f"{labelled} labelled cases of {dataset.label}: it has {len(train)} training cases. "
            f"Choose 1 to {len(train)}."
        )
    if labelled == len(train) and need_unlabelled:
        raise UserError(
            f"{labelled} labelled cases of {dataset.label} leave no unlabelled case, but the "
            f"method needs some. Choose at most {len(train) - 1}, or a fully supervised method."
        )
    return train[:labelled], train[labelled:]


def _up(ratio: float) -> str:
    """A ratio rounded up to three places, as text."""
    return f"{int(ratio * 1000) / 1000 + 0.001:g}"
