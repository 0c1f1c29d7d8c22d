"""What lies in a folder in the layout of the Medical Segmentation Decathlon or nnU-Net."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from benchmark.data.published import seems
from results.errors import UserError

ENDINGS: Final = (".nii.gz", ".nii")


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of dataset.json."""
    path = folder / "dataset.json"
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not in the Medical Segmentation Decathlon layout: it has no "
            "dataset.json. Expected are dataset.json, imagesTr/ and labelsTr/"
            f"{seems(folder)}."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Cannot read {path}: {error}.") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} holds no JSON object.")
    ending = facts.get("file_ending", ENDINGS[0])
    if ending not in ENDINGS:
        raise UserError(
            f"{path} says that files end with {ending}. Convert them to NIfTI: {ENDINGS[0]} and "
            f"{ENDINGS[1]} can be read."
        )
    return facts


def label_names(folder: Path, facts: Mapping[str, Any]) -> dict[int, str]:
    """Names of the foreground labels, from {"1": name} or {name: 1} or {name: [1, 2]}."""
    labels: dict[int, str] = {}
    try:
        for key, value in facts["labels"].items():
            if str(key).isdigit():
                labels[int(key)] = str(value)
            elif key == "ignore":
                raise UserError(f"{folder} has an 'ignore' label; this version cannot use it.")
            else:
                for number in value if isinstance(value, list) else [value]:
                    labels.setdefault(int(number), str(key))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f'{folder / "dataset.json"} has no valid "labels", such as {{"0": "background", '
            '"1": "liver"}.'
        ) from error
    labels.pop(0, None)
    if not labels:
        raise UserError(f"{folder / 'dataset.json'} lists no label but the background.")
    return labels


def channel_names(folder: Path, facts: Mapping[str, Any]) -> list[str]:
    """Names of the channels, under the Decathlon's or nnU-Net's key; "unknown" without any."""
    key = "modality" if "modality" in facts else "channel_names"
    channels = facts.get(key, {"0": "unknown"})
    try:
        names = {int(number): str(name) for number, name in channels.items()}
    except (AttributeError, ValueError):
        names = {}
    if sorted(names) != list(range(len(channels))) or not names:
        raise UserError(
            f'{folder / "dataset.json"} has no valid "{key}", such as {{"0": "CT"}}: the channels '
            "by number, from 0 on."
        )
    return [names[number] for number in sorted(names)]


def listed_cases(folder: Path, facts: Mapping[str, Any]) -> list[str]:
    """Cases that dataset.json lists under "training"; nnU-Net v2 lists none."""
    path = folder / "dataset.json"
    try:
        cases = [_stem(Path(pair["label"]).name) for pair in facts.get("training", [])]
    except (TypeError, KeyError) as error:
        example = '[{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]'
        raise UserError(f'{path} has no valid "training", such as {example}.') from error
    twice = sorted({case for case in cases if cases.count(case) > 1})
    if twice:
        raise UserError(
            f"{path} lists {len(twice)} cases twice: {first_few(twice)}. List each once."
        )
    return cases


def nifti_files(folder: Path) -> dict[str, Path]:
    """The NIfTI files of a folder by name without ending; hidden files are not data."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing. Expected are dataset.json, imagesTr/ and labelsTr/.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(ENDINGS) and not path.name.startswith("."):
            name = _stem(path.name)
            if name in found:
                raise UserError(f"{found[name]} and {path} are the same case. Remove one.")
            found[name] = path
    return found


def _stem(name: str) -> str:
    for ending in ENDINGS:
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name


def read_canonical(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels and affine of a file, its axes in the order and direction R, A, S.

    Voxels are of their own type where the file scales nothing, else in double precision.
    """
    to_canonical: Callable[[Any], Any] = nib.as_closest_canonical
    try:
        stored: Any = nib.load(path)
        scales = (stored.dataobj.slope, stored.dataobj.inter) != (1, 0)
        image = to_canonical(stored)
        voxels = np.asarray(image.dataobj, dtype=np.float64 if scales else None)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise UserError(
            f"{path} is truncated or damaged ({error}). Get it again, or take the case out of "
            "dataset.json and of both folders."
        ) from error
    if voxels.dtype.kind not in "biuf":
        raise UserError(f"{path} holds values of type {voxels.dtype}, not numbers.")
    return voxels, np.asarray(image.affine)


def first_few(names: Sequence[str]) -> str:
    """Five names at most."""
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
