"""Committed case lists, and which of the training cases are labelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from importlib import resources
from pathlib import Path
from typing import Final

from benchmark.data.base import SPLITS, Dataset, Split
from results.errors import UserError
from results.lookup import unknown

FOLDER: Final = "splits"


@dataclass(frozen=True)
class CaseLists:
    """Which cases are in which split, in the order that counts.

    name:  of the split, in lower-case letters, digits and dashes; empty for a dataset's canonical
           one.
    lists: case names by split; "val" may be empty.
    """

    name: str
    lists: Mapping[Split, tuple[str, ...]]

    @property
    def cases(self) -> tuple[str, ...]:
        """All cases, in the order of the splits."""
        return tuple(case for split in SPLITS for case in self.lists[split])

    def dataset_name(self, base: str) -> str:
        """How a dataset is called that was prepared with this split.

        >>> CaseLists("coranet", {}).dataset_name("pancreas")
        'pancreas-coranet'
        """
        return f"{base}-{self.name}" if self.name else base


def split_names(dataset: str) -> tuple[str, ...]:
    """The committed splits of a dataset besides its canonical one.

    >>> split_names("pancreas")
    ('aua', 'ccnet', 'coranet', 'mcf-0', 'mcf-1', 'mcf-2', 'mcf-3')
    """
    begin, end = f"{dataset}-", "_train.txt"
    files = (path.name for path in (resources.files("benchmark.data") / FOLDER).iterdir())
    return tuple(
        sorted(
            file.removeprefix(begin).removesuffix(end)
            for file in files
            if file.startswith(begin) and file.endswith(end)
        )
    )


def choose_split(dataset: str, asked: str | None = None) -> CaseLists:
    """A dataset's canonical split, one of its other committed ones, or one in a JSON file.

    Args:
        dataset: a dataset with committed lists.
        asked: None for the canonical split, a name, or a path that ends with ".json".

    Raises:
        UserError: there is no such split, or the file cannot be used.
    """
    if asked is not None and asked.endswith(".json"):
        from benchmark.data.split_file import read_split

        return read_split(Path(asked))
    known = split_names(dataset)
    if asked is not None and asked not in known:
        only = f"unknown split of {dataset} '{asked}'. It has none but its canonical one"
        error = unknown(f"split of {dataset}", asked, known) if known else only
        raise UserError(f"{error}; or a file that ends with .json")
    base = CaseLists(asked or "", {}).dataset_name(dataset)
    has_val = (resources.files("benchmark.data") / FOLDER / f"{base}_val.txt").is_file()
    return CaseLists(
        asked or "",
        {
            "train": read_list(f"{base}_train"),
            "val": read_list(f"{base}_val") if has_val else (),
            "test": read_list(f"{base}_test"),
        },
    )


def read_list(name: str, folder: str = FOLDER, end: str = ".txt") -> tuple[str, ...]:
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
