"""The data behind stored runs, for reports: those that a run was evaluated on, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.data import open_dataset
from benchmark.data.base import Dataset
from benchmark.data.links import linked_cases
from benchmark.data.volumes import load_volumes
from reports.scan import Scan
from results.errors import UserError


def load_scan(data: Path, dataset: Mapping[str, Any], case: str) -> Scan:
    """A case at a run's resolution; of several channels the first.

    Args:
        data: the data root.
        dataset: the `dataset` part of the run's spec.
        case: its name.

    Raises:
        UserError: the data are not there, are not those of the run, or lack the case.
    """
    found = open_evaluated(data, dataset)
    if not any(case in cases for cases in found.splits.values()):
        raise UserError(f"{found.label} in {data} has no case {case}")
    volume = load_volumes(found, [case], dataset["geometry"]["scale"])[case]
    return Scan(volume.image[0], volume.label.astype(bool), volume.spacing)


def load_linked(data: Path, dataset: Mapping[str, Any]) -> dict[str, tuple[str, ...]] | None:
    """The test cases of a run that are linked to training cases; None where nothing is known.

    Args:
        data: the data root.
        dataset: the `dataset` part of the run's spec.

    Raises:
        UserError: the data are not there, or are not those of the run.
    """
    return linked_cases(open_evaluated(data, dataset))


def open_evaluated(data: Path, dataset: Mapping[str, Any]) -> Dataset:
    """The dataset that a run was evaluated on, described by the `dataset` part of its spec.

    Raises:
        UserError: it is not there, or is another by now.
    """
    name = dataset["name"]
    try:
        found = open_dataset(name, data)
    except UserError as error:
        raise UserError(
            f"the images of {name} are not in {data}; name the folder of prepared data that the "
            f"runs were made with (--data). {error}"
        ) from None
    if found.fingerprint != dataset["fingerprint"]:
        raise UserError(
            f"{found.label} in {data} is not what the runs were made with: fingerprint "
            f"{found.fingerprint[:12]}, theirs {dataset['fingerprint'][:12]}; name the folder of "
            "prepared data that they were made with (--data)"
        )
    return found
