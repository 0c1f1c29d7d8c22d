"""Scans in the form their owners distribute, with organs at known places in mm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

FAT_HU, ORGAN_HU, BONE_HU, AIR_HU = -90, 90, 700, -1000


@dataclass(frozen=True)
class Body:
    """A ball of fat in air with an organ (a ball) and a bone (a ball behind it).

    spacing, centre, radius, bone: in mm, from the first voxel's centre, along columns, rows and
        slices.
    """

    shape: tuple[int, int, int] = (104, 110, 24)
    spacing: tuple[float, float, float] = (1.8, 1.7, 1.5)
    centre: tuple[float, float, float] = (80.0, 70.0, 20.0)
    radius: float = 8.0
    bone: tuple[float, float, float] = (95.0, 130.0, 18.0)

    def distance(self, point: tuple[float, float, float]) -> np.ndarray:
        """Of every voxel to a point, in mm; (X, Y, Z)."""
        grid = np.meshgrid(
            *(np.arange(n) * mm for n, mm in zip(self.shape, self.spacing, strict=True)),
            indexing="ij",
        )
        return np.sqrt(sum((g - p) ** 2 for g, p in zip(grid, point, strict=True)))

    def label(self) -> np.ndarray:
        return (self.distance(self.centre) <= self.radius).astype(np.uint8)

    def image(self) -> np.ndarray:
        """Hounsfield units with a little noise, int16."""
        middle = tuple(n * mm / 2 for n, mm in zip(self.shape, self.spacing, strict=True))
        hu = np.where(self.distance(middle) < 90, FAT_HU, AIR_HU)
        hu[self.distance(self.bone) <= 12] = BONE_HU
        hu[self.label() == 1] = ORGAN_HU
        noise = np.random.default_rng(int(sum(self.centre))).integers(-15, 16, self.shape)
        return (hu + noise).astype(np.int16)


SMALL = Body((60, 58, 16), (1.8, 1.7, 1.5), (52.0, 40.0, 12.0), bone=(60.0, 76.0, 11.0))
BODIES = {
    number: replace(SMALL, centre=(50.0 + shift, 36.0 + 1.5 * shift, 12.0))
    for shift, number in enumerate((57, 18, 50, 1, 64, 13))
}
"""By case number: of train, train and test of MC-Net's split; the others serve other splits."""


def write_slice(
    path: Path,
    plane_hu: np.ndarray,
    number: int,
    z_mm: float,
    spacing: tuple[float, float, float],
    *,
    series: str = "1.2.3",
    modality: str = "CT",
    slope: float = 1.0,
    intercept: float = -1024.0,
    unsigned: bool = False,
    rows: int = 1,
) -> Path:
    """One DICOM slice; `plane_hu` is (columns, rows), `rows` -1 runs from back to front."""
    stored = np.round((plane_hu.T - intercept) / slope)
    stored = stored.astype(np.int32).astype(np.uint16 if unsigned else np.int16)
    uid = generate_uid()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = Dataset()
    made.file_meta = meta
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, uid
    made.StudyInstanceUID, made.SeriesInstanceUID, made.Modality = "1.2", series, modality
    made.InstanceNumber, made.ImagePositionPatient = number, [-100.0, -90.0, float(z_mm)]
    made.ImageOrientationPatient = [1, 0, 0, 0, rows, 0]
    made.PixelSpacing, made.SliceThickness = [spacing[1], spacing[0]], spacing[2]
    made.Rows, made.Columns = stored.shape
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
    made.PixelRepresentation, made.SamplesPerPixel = int(not unsigned), 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.RescaleSlope, made.RescaleIntercept = slope, intercept
    made.PixelData = stored.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path, body: Body, *, descending: bool = False, **how: object
) -> list[Path]:
    """A CT series whose file names are not in the order of its slices."""
    image = body.image()
    paths = []
    for z in range(body.shape[2]):
        place = (-z if descending else z) * body.spacing[2]
        name = f"{(7 * z) % body.shape[2]:06d}.dcm"
        paths.append(write_slice(folder / name, image[:, :, z], z + 1, place, body.spacing, **how))
    return paths


def write_label(path: Path, label: np.ndarray, spacing: tuple[float, float, float]) -> Path:
    """A NIfTI file whose affine knows nothing but the spacing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(label, np.diag([*spacing, 1.0])), path)
    return path


def write_tcia(source: Path, number: int, body: Body | None = None, **how: object) -> Path:
    """A case of Pancreas-CT as TCIA distributes it; return the folder of its series."""
    body = body or BODIES[number]
    folder = source / "Pancreas-CT" / f"PANCREAS_{number:04d}" / "11-24-2015" / "Pancreas-18957"
    write_series(folder, body, **how)
    write_label(label_of(source, number), body.label(), body.spacing)
    return folder


def label_of(source: Path, number: int) -> Path:
    return source / "TCIA_pancreas_labels-02-05-2017" / f"label{number:04d}.nii.gz"


def write_h5(path: Path, image: np.ndarray, label: np.ndarray) -> Path:
    """The community's form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=image.astype(np.float32), compression="gzip")
        file.create_dataset("label", data=label, compression="gzip")
    return path


def write_nrrd(
    path: Path,
    voxels: np.ndarray,
    direction: tuple[float, ...] | None = None,
    spacing: tuple[float, float, float] = (0.625, 0.625, 0.625),
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Path:
    """(X, Y, Z) with the grid of the atrial challenge."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path), useCompression=True)
    return path
