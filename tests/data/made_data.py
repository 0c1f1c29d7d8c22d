"""Makers of small volumes and files for these tests."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np

from benchmark.data.base import Coded, Dataset, Volume
from benchmark.data.coding import pack_image, pack_label

SHARED = Path(__file__).parents[3] / "shared" / "data"
LA_TRAIN = ("06SR5RBREL16DQ6M8LWS", "0RZDK210BSMWAA6467LU", "1D7CUD1955YZPGK8XHJX")
LA_TEST = ("UPT6DX9IQY9JAZ7HJKA7",)

Log = list[tuple[int, int, str]]


def quiet(done: int, total: int, what: str) -> None:
    """A progress callback that keeps nothing."""


def ball(shape: tuple[int, int, int] = (20, 18, 16), radius: float = 5.0) -> np.ndarray:
    """A label: a ball in the middle."""
    grid = np.stack(np.meshgrid(*(np.arange(n) - n / 2 for n in shape), indexing="ij"))
    return (np.square(grid).sum(0) <= radius**2).astype(np.uint8)


def volume(seed: int = 0, shape: tuple[int, int, int] = (20, 18, 16), radius: float = 5) -> Volume:
    """A case: noise, brighter inside the ball."""
    label = ball(shape, radius)
    noise = np.random.default_rng(seed).standard_normal(shape)
    return Volume((noise + 2 * label)[None].astype(np.float32), label, (1.0, 1.0, 1.0))


def change_voxel(dataset: Dataset, kind: str, case: str) -> Path:
    """Change the first voxel of a prepared image or label on disk; return the file."""
    path = dataset.folder / kind / f"{case}.zst"
    loaded = dataset.load(case)
    if kind == "images":
        codes, values = loaded.stored.codes, loaded.stored.values
        codes[0, 0, 0, 0] = (codes[0, 0, 0, 0] + 1) % len(values)
        path.write_bytes(pack_image(Coded(codes, values)))
    else:
        loaded.label[0, 0, 0] += 1
        path.write_bytes(pack_label(loaded.label))
    return path


def write_la(
    folder: Path, case: str, image: np.ndarray | None = None, label: np.ndarray | None = None
) -> Path:
    """One LA case; arrays that are not given are made up, and differ between cases."""
    made = volume(seed=sum(map(ord, case)))
    path = folder / case / "mri_norm2.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"] = made.image[0] if image is None else image
        file["label"] = made.label if label is None else label
    return path


def write_nifti(
    folder: Path,
    case: str,
    image: np.ndarray | None = None,
    label: np.ndarray | None = None,
    affine: np.ndarray | None = None,
    label_affine: np.ndarray | None = None,
    suffix: str = "",
) -> tuple[Path, Path]:
    """One case in the Decathlon layout; arrays that are not given are made up."""
    made = volume(seed=sum(map(ord, case)))
    affine = np.diag([1.0, 1.5, 2.0, 1.0]) if affine is None else affine
    paths = folder / "imagesTr" / f"{case}{suffix}.nii.gz", folder / "labelsTr" / f"{case}.nii.gz"
    for path, array, where in zip(
        paths,
        (made.image[0] if image is None else image, made.label if label is None else label),
        (affine, affine if label_affine is None else label_affine),
        strict=True,
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, where), path)
    return paths


def write_facts(folder: Path, cases: list[str], **changes: object) -> None:
    """The dataset.json of a folder, in the Decathlon's words."""
    facts: dict[str, object] = {
        "name": "Blobs",
        "licence": "MIT",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "core", "2": "rim"},
        "training": [
            {"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases
        ],
    }
    facts |= changes
    kept = {key: value for key, value in facts.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(kept))


CASES = [f"blob_{i:02d}" for i in range(10)]
