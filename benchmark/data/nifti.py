"""NIfTI files as they are stored."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from results.errors import UserError


@dataclass(frozen=True)
class Nifti:
    """A volume with its geometry.

    voxels:  (X, Y, Z), in their own type where the file scales nothing.
    affine:  (4, 4), from voxel indices to mm.
    spacing: edge lengths of a voxel in mm, as the header has them.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]


def read_nifti(path: Path, axes: str | None = None) -> Nifti:
    """A file as it is stored, or with its axes brought to some order and direction.

    Args:
        path: .nii or .nii.gz.
        axes: directions that the axes are brought to, such as "LPS"; None leaves them.

    Raises:
        UserError: the file is damaged or has not three axes.
    """
    try:
        image: Any = nib.load(path)
        if axes is not None:
            now = nib.orientations.io_orientation(image.affine)
            wanted = nib.orientations.axcodes2ornt(tuple(axes))
            image = image.as_reoriented(nib.orientations.ornt_transform(now, wanted))
        voxels = np.asanyarray(image.dataobj)
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise UserError(
            f"{path} is truncated or damaged ({error}). Get it again, or remove its case to "
            "prepare a partial copy."
        ) from error
    if voxels.ndim != 3:
        raise UserError(f"{path} has {voxels.ndim} axes, not 3.")
    spacing = tuple(float(mm) for mm in image.header.get_zooms())
    return Nifti(voxels, np.asarray(image.affine, dtype=np.float64), spacing)
