"""Any folder in the layout of the Medical Segmentation Decathlon or nnU-Net.

    <folder>/dataset.json
    <folder>/imagesTr/<case>.nii.gz    or <case>_0000.nii.gz
    <folder>/labelsTr/<case>.nii.gz

Several channels are the fourth axis of one file, or files of their own (<case>_0001.nii.gz ...).

Such a folder has no published split for semi-supervised training, so one is drawn from a fixed
seed when the folder is prepared, and stays as it is in the manifest; or it is prepared with a split
from a file, under a name of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from benchmark.data.base import Card, Dataset, Source, Split, Volume
from benchmark.data.decathlon_folder import (
    channel_names,
    first_few,
    label_names,
    listed_cases,
    nifti_files,
    read_canonical,
    read_facts,
)
from benchmark.data.derived import derive_geometry, draw_split
from benchmark.data.manifest import Manifest, file_sha256, is_prepared, read_manifest
from benchmark.data.prepared import Original, Progress, open_prepared, prepare_folder, problems
from benchmark.data.split_file import read_split, require_cases
from benchmark.data.steps import z_scored, z_scored_in_blocks
from results.errors import UserError

CT_WINDOW_HU: Final = (-200.0, 300.0)
"""To which CT is clipped before it is z-scored: soft tissue."""

HIGHEST_HU: Final = 2**15 - 1
"""Beyond it values of CT were stored without a sign and overflowed."""

KIND: Final = "decathlon"


@dataclass(frozen=True)
class Scan:
    """The files of one case; several images are one channel each."""

    images: tuple[Path, ...]
    label: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.images, self.label)


@final
class Decathlon(Source):
    """A folder with dataset.json, imagesTr and labelsTr.

    Args:
        folder: where it lies.
        label: the one label value that is foreground; None takes all but 0 together.

    Raises:
        UserError: it is not such a folder, or it has no such label.
    """

    def __init__(self, folder: Path, label: int | None = None) -> None:
        self.folder = folder.expanduser().resolve()
        self.label = label
        self.facts = read_facts(self.folder)
        self.labels = label_names(self.folder, self.facts)
        self.modalities = channel_names(self.folder, self.facts)
        if label is not None and label not in self.labels:
            known = ", ".join(f"{v} ({n})" for v, n in sorted(self.labels.items()))
            raise UserError(f"{self.folder} has no label {label}. Known: {known}.")
        self.card = self._card()

    def prepare(
        self, source: Path, root: Path, progress: Progress, split: str | None = None
    ) -> Path:
        """See `Source.prepare`; `source` is the folder itself."""
        if source.expanduser().resolve() != self.folder:
            raise UserError(f"The source of {self.folder} is that folder, not {source}.")
        scans = self._scans()
        card, splits = self._split(scans, split)
        used = {case: scans[case] for cases in splits.values() for case in cases}
        files = [path for scan in used.values() for path in scan.files]
        facts = {
            "kind": KIND,
            "card": asdict(card),
            "source": {"folder": str(self.folder), "states": self._states(files)},
        }
        originals = [
            Original(
                case=case,
                split=part,
                files={self._name(path): path for path in scans[case].files},
                read=partial(self._read, scans[case]),
            )
            for part, cases in splits.items()
            for case in cases
        ]
        return prepare_folder(
            root,
            card.name,
            originals,
            self._preprocessing,
            progress,
            facts=facts,
        )

    def _split(
        self, scans: Mapping[str, Scan], asked: str | None
    ) -> tuple[Card, Mapping[Split, tuple[str, ...]]]:
        """The drawn split, or that in a file, whose name is part of the dataset's."""
        if asked is None:
            return self.card, draw_split(sorted(scans))
        if not asked.endswith(".json"):
            raise UserError(
                f"--split {asked}: a folder has no splits with names. Give a JSON file, such as "
                "split.json."
            )
        chosen = read_split(Path(asked))
        require_cases(asked, chosen, scans)
        left = len(scans) - len(chosen.cases)
        said = f"The split is that of {Path(asked).name}"
        said += f", which leaves out {left} of {len(scans)} cases." if left else "."
        name = chosen.dataset_name(self.card.name)
        return replace(self.card, name=name, notes=(said,)), chosen.lists

    def open(self, root: Path) -> Dataset:
        """See `Source.open`. The folder must still hold the files it was prepared from.

        Files that have the size and time of change they had are taken to be the same; the content
        of all others is compared, so a mere copy of the folder opens too.
        """
        prepared = root / self.card.name
        if not is_prepared(prepared):
            raise UserError(f"{self.folder} is not prepared in {root}. {self.card.how_to_get}")
        reason = self._difference(read_manifest(prepared))
        if reason:
            raise UserError(
                f"{prepared} is not prepared from what {self.folder} holds now: {reason}. To use "
                f"what it holds now, remove {prepared} and run `bench data prepare "
                f"{self._argument}`; to keep both, rename {self.folder} first, as its name is the "
                "dataset's."
            )
        return open_folder(prepared)

    def _difference(self, manifest: Manifest) -> str:
        """Why the folder is not what was prepared, in words; empty if it is."""
        old = {
            name: sha256
            for record in manifest.cases.values()
            for name, sha256 in record.sources.items()
        }
        new = {self._name(path): path for scan in self._scans().values() for path in scan.files}
        if old.keys() != new.keys():
            other = sorted(old.keys() ^ new.keys())
            return f"{len(old)} files were prepared and {len(new)} are there, such as {other[0]}"
        source = manifest.facts.get("source", {})
        known = source["states"] if source and source["folder"] == str(self.folder) else {}
        states = self._states(new.values())
        changed = [
            name
            for name, path in new.items()
            if states[name] != known.get(name) and file_sha256(path) != old[name]
        ]
        if changed:
            return f"{len(changed)} of {len(old)} files have other content, such as {changed[0]}"
        if manifest.preprocessing != self._preprocessing:
            return (
                f"the preprocessing was '{manifest.preprocessing}' and is now "
                f"'{self._preprocessing}'"
            )
        return ""

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    def _states(self, files: Iterable[Path]) -> dict[str, list[int]]:
        """Size in bytes and time of change in ns of files, by name."""
        states = {}
        for path in files:
            try:
                state = path.stat()
            except OSError as error:
                raise UserError(f"Cannot read {path}: {error.strerror}.") from error
            states[self._name(path)] = [state.st_size, state.st_mtime_ns]
        return states

    @property
    def _preprocessing(self) -> str:
        merged = "all labels" if self.label is None else f"label {self.label}"
        several = len(self.modalities) > 1
        clip = ""
        ct = [str(n) for n, modality in enumerate(self.modalities) if _is_ct(modality)]
        if ct:
            which = f"channel {' and '.join(ct)} (CT) " * several
            clip = "{}clipped to {:g}..{:g} HU, ".format(which, *CT_WINDOW_HU)
        each = "each channel " * several
        return (
            f"canonical orientation (RAS), {merged} as foreground, {clip}{each}z-scored over the "
            "whole volume, not resampled (version 1)"
        )

    @property
    def _argument(self) -> str:
        return f"{self.folder}" if self.label is None else f"{self.folder}:{self.label}"

    def _card(self) -> Card:
        """The card, still without geometry: that follows from the volumes."""
        name = slug(self.folder.name)
        names = ", ".join(self.labels[v] for v in sorted(self.labels))
        return Card(
            name=name if self.label is None else f"{name}-label{self.label}",
            title=str(self.facts.get("name", self.folder.name)),
            reference=str(self.facts.get("reference", "")),
            bibtex="",
            licence=str(self.facts.get("licence", self.facts.get("license", "unknown"))),
            modality=", ".join(self.modalities),
            structure=names if self.label is None else self.labels[self.label],
            unit="mm",
            geometry={},
            augmentation="rotflip",
            how_to_get=f"Run `bench data prepare {self._argument}`.",
            source=str(self.folder),
            channels=len(self.modalities),
            notes=(
                "The split was drawn from a fixed seed at preparation; it is nobody's official "
                "one.",
            ),
        )

    def _scans(self) -> dict[str, Scan]:
        """The files of every case."""
        labels = nifti_files(self.folder / "labelsTr")
        images = nifti_files(self.folder / "imagesTr")
        listed = listed_cases(self.folder, self.facts)
        bases = {name if name in labels else _without_channel(name) for name in images}
        expected = set(listed) if listed else labels.keys() | bases
        names = {case: self._image_names(case, images) for case in expected}
        lacking = {
            "image": [_lacking(case, names[case], images) for case in sorted(expected)],
            "label": [case for case in sorted(expected) if case not in labels],
        }
        for what, cases in lacking.items():
            missing = [case for case in cases if case]
            if missing:
                raise UserError(
                    f"{self.folder} has no {what} of {len(missing)} of {len(expected)} cases: "
                    f"{first_few(missing)}. Get it again, or take the cases out of dataset.json "
                    "and of both folders."
                )
        used = {name for case in expected for name in names[case]}
        unused = sorted(images.keys() - used)
        surplus = [name for name in unused if _without_channel(name) in expected]
        if surplus:
            raise UserError(
                f"{images[surplus[0]]} is one channel too many: dataset.json names "
                f"{self._channels}. Name it there, or remove the file."
            )
        extra = sorted((labels.keys() - expected) | {_without_channel(name) for name in unused})
        if extra:
            raise UserError(
                f"{self.folder} has {len(extra)} cases that dataset.json does not list: "
                f"{first_few(extra)}. List them or move them elsewhere."
            )
        return {
            case: Scan(tuple(images[name] for name in names[case]), labels[case])
            for case in sorted(expected)
        }

    @property
    def _channels(self) -> str:
        return f"{len(self.modalities)} ({', '.join(self.modalities)})"

    def _image_names(self, case: str, images: Mapping[str, Path]) -> list[str]:
        """Names of the files of a case's image: one of all channels, or one for each."""
        if case in images:
            return [case]
        return [f"{case}_{channel:04d}" for channel in range(len(self.modalities))]

    def _read(self, scan: Scan) -> Volume:
        """One case: reoriented, normalised and checked."""
        first, label_path = scan.images[0], scan.label
        label, affine = read_canonical(label_path)
        if label.ndim != 3:
            raise UserError(f"{label_path} has {label.ndim} axes, not 3.")
        channels: list[NDArray[Any]] = []
        for path in scan.images:
            image, image_affine = read_canonical(path)
            channels += self._split_channels(image, path, alone=len(scan.images) == 1)
            if channels[-1].shape == label.shape and not np.allclose(
                affine, image_affine, atol=1e-2
            ):
                raise UserError(
                    f"{path} and its label lie in different places: their affines differ by up "
                    f"to {np.abs(affine - image_affine).max():.3g}. Bring both to the same grid."
                )
            if channels[-1].shape != channels[0].shape:
                raise UserError(
                    f"{path} has {channels[-1].shape} voxels, {first} {channels[0].shape}. Bring "
                    "all channels to the same grid."
                )
        odd = np.setdiff1d(_values(label), [0, *self.labels])
        if odd.size:
            known = ", ".join(str(v) for v in sorted({0, *self.labels}))
            raise UserError(
                f"{label_path} has label values that dataset.json does not list: "
                f"{', '.join(f'{v:g}' for v in odd[:5])}. Known: {known}. Mend either of them."
            )
        mask = ((label > 0) if self.label is None else (label == self.label)).view(np.uint8)
        del label
        wrong = problems(np.stack(channels) if len(channels) > 1 else channels[0][None], mask)
        if wrong:
            raise UserError(f"{first} with its label cannot be used. {' '.join(wrong)}")
        x, y, z = (float(size) for size in np.linalg.norm(affine[:3, :3], axis=0))
        normalised = [
            _normalised(channel, _is_ct(modality), first)
            for channel, modality in zip(channels, self.modalities, strict=True)
        ]
        image = np.stack(normalised) if len(normalised) > 1 else normalised[0][None]
        return Volume(image, mask, (x, y, z))

    def _split_channels(
        self, image: NDArray[Any], path: Path, *, alone: bool
    ) -> list[NDArray[Any]]:
        """The channels in a file; `alone`: it should have all of them."""
        expected = len(self.modalities) if alone else 1
        if image.ndim == 3 and expected == 1:
            return [image]
        found = image.shape[3] if image.ndim == 4 else 1
        if image.ndim not in (3, 4) or found != expected:
            said = f"{found} channels" if image.ndim in (3, 4) else f"{image.ndim} axes"
            raise UserError(
                f"{path} has {said}, not {expected}: dataset.json names {self._channels}. Mend "
                "either of them."
            )
        return list(np.moveaxis(image, 3, 0))


def _values(label: NDArray[Any]) -> NDArray[Any]:
    """The values in a label, plane by plane: sorting all voxels at once needs much memory."""
    return np.unique(np.concatenate([np.unique(plane) for plane in label]))


def _normalised(image: NDArray[Any], ct: bool, path: Path) -> NDArray[np.float32]:
    """Z-score over the whole volume; CT is clipped to the soft-tissue window first."""
    if ct and image.max() > HIGHEST_HU:
        raise UserError(
            f"{path} has values up to {image.max():g}, which are no Hounsfield units: 16 bits have "
            "overflowed or are read with the wrong sign. Get it again."
        )
    try:
        if ct:
            return z_scored_in_blocks(image, CT_WINDOW_HU)
        if image.dtype != np.float64:
            return z_scored_in_blocks(image)
        return z_scored(image, image.mean(), image.std())
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}. Get it again.") from error


def open_folder(prepared: Path) -> Dataset:
    """A prepared folder of this kind, without its original.

    Raises:
        UserError: it is damaged, or of another kind.
    """
    manifest = read_manifest(prepared)
    facts = manifest.facts
    if facts.get("kind") != KIND:
        raise UserError(f"{prepared} was not prepared from a folder in the Decathlon layout.")
    shapes = np.array([record.shape[1:] for record in manifest.cases.values()])
    x, y, z = (int(n) for n in np.median(shapes, axis=0))
    derived = {"notes": tuple(facts["card"]["notes"]), "geometry": derive_geometry((x, y, z))}
    return open_prepared(prepared, Card(**{**facts["card"], **derived}))


def slug(name: str) -> str:
    """A folder's name in lower-case letters, digits and dashes.

    >>> slug("Task04_Hippocampus")
    'task04-hippocampus'

    Raises:
        UserError: nothing is left of it.
    """
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not text:
        raise UserError(f"The folder name '{name}' has no letter or digit. Rename the folder.")
    return text


def _is_ct(modality: str) -> bool:
    return modality.upper() == "CT"


def _without_channel(name: str) -> str:
    """The case of nnU-Net's file name.

    >>> _without_channel("liver_003_0001"), _without_channel("liver_003")
    ('liver_003', 'liver_003')
    """
    return re.sub(r"_\d{4}$", "", name)


def _lacking(case: str, names: Sequence[str], images: Mapping[str, Path]) -> str:
    """What of a case's image is missing, by name; empty if nothing is."""
    missing = [name for name in names if name not in images]
    if not missing:
        return ""
    return case if len(missing) == len(names) else missing[0]
