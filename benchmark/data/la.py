"""Left atrium (2018 Atrial Segmentation Challenge), as the semi-supervised field uses it.

The field trains on 100 volumes that the authors of UA-MT cropped and normalised once
(`<case>/mri_norm2.h5`). Their script draws the crop margins without a seed, so the files cannot be
made again; they are known by their sha256 (checksums/la.tsv).
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Final, final

import h5py
import numpy as np

from benchmark.data.base import Card, Dataset, Geometry, Source, Split, Volume
from benchmark.data.prepared import (
    Original,
    Progress,
    is_prepared,
    open_prepared,
    prepare_folder,
    problems,
)
from benchmark.data.splits import read_list
from results.errors import UserError

FILE: Final = "mri_norm2.h5"
PREPROCESSING: Final = (
    "mri_norm2.h5 as published: z-scored over the whole scan, then cropped around the label with "
    "random margins; not resampled (version 1)"
)

CARD: Final = Card(
    name="la",
    title="Left atrium",
    reference="10.1016/j.media.2020.101832",
    bibtex="""@article{xiong2021la,
  title   = {A global benchmark of algorithms for segmenting the left atrium from late
             gadolinium-enhanced cardiac magnetic resonance imaging},
  author  = {Xiong, Zhaohan and Xia, Qing and Hu, Zhiqiang and others},
  journal = {Medical Image Analysis},
  volume  = {67},
  pages   = {101832},
  year    = {2021},
  doi     = {10.1016/j.media.2020.101832}
}""",
    licence="terms of the 2018 Atrial Segmentation Challenge (cardiacatlas.org)",
    modality="LGE-MRI",
    structure="left atrium",
    unit="voxel",
    geometry={
        "full": Geometry(patch=(112, 112, 80), stride=(18, 18, 4)),
        "reduced": Geometry(patch=(40, 40, 24), stride=(24, 24, 16), scale=1 / 3),
        "tiny": Geometry(patch=(16, 16, 16), stride=(8, 8, 8), scale=0.2),
    },
    augmentation="rotflip",
    how_to_get=(
        f"Get the folder of 100 cases, each with {FILE}, that the repository yulequan/UA-MT on "
        "GitHub distributes (data/2018LA_Seg_Training Set), then run "
        "`bench data prepare la --source DIR`."
    ),
    notes=(
        "Volumes are cropped around the true label, test cases and unlabelled ones too: a "
        "predictor that never sees an image reaches a Dice of 0.65 to 0.68.",
        "0RZDK210BSMWAA6467LU (labelled from the second case on) and CMPXO4J23G58J53Q98SZ "
        "(unlabelled) are the same scan with the same label.",
        "Patients are repeated: registration links 7 of the 20 test cases to training cases.",
        "The files carry no spacing, so distances are in voxels; papers that print mm mean these.",
        "There is no validation set.",
    ),
)


@final
class LeftAtrium(Source):
    """The 100 published .h5 volumes, or some of them."""

    card = CARD

    def prepare(self, source: Path, root: Path, progress: Progress) -> Path:
        """See `Source.prepare`. Looks for <case>/mri_norm2.h5 anywhere below `source`.

        Files that are not the published ones (sha256) are taken, and the dataset's label says so.
        """
        lists: dict[Split, tuple[str, ...]] = {
            "train": read_list("la_train"),
            "test": read_list("la_test"),
        }
        known = dict(line.split("\t") for line in read_list("la", folder="checksums", end=".tsv"))
        found = _find(source, frozenset(known))
        originals = [
            Original(
                case=case,
                split=split,
                files={f"{case}/{FILE}": found[case]},
                read=partial(_read, found[case]),
                known_sha256=known[case],
            )
            for split, cases in lists.items()
            for case in cases
            if case in found
        ]
        for split, cases in lists.items():
            if not found.keys() & set(cases):
                raise UserError(
                    f"{source} holds {len(found)} LA cases, none of them of the {split} split. "
                    f"Add at least one of its {len(cases)} cases, such as {cases[0]}."
                )
        return prepare_folder(
            root,
            CARD.name,
            originals,
            PREPROCESSING,
            progress,
            complete=len(originals) == len(known),
        )

    def open(self, root: Path) -> Dataset:
        """See `Source.open`."""
        folder = root / CARD.name
        if not is_prepared(folder):
            raise UserError(f"la is not prepared in {root}. {CARD.how_to_get}")
        return open_prepared(folder, CARD)


def _find(source: Path, known: frozenset[str]) -> dict[str, Path]:
    """The volumes below a folder, by case."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder. {CARD.how_to_get}")
    found: dict[str, Path] = {}
    strange = []
    for folder, _, files in sorted(os.walk(source, followlinks=True)):
        case = Path(folder).name
        if FILE in files and case not in known:
            strange.append(folder)
        elif FILE in files and case in found:
            raise UserError(
                f"The LA case {case} is there twice: {found[case].parent} and {folder}. "
                "Give a folder that holds one of them."
            )
        elif FILE in files:
            found[case] = Path(folder) / FILE
        elif case in known and not any(Path(folder).rglob(FILE)):
            raise UserError(
                f"The LA case {case} has no {FILE} in {folder}. Get that file again, or remove the "
                "folder to prepare a partial copy."
            )
    if strange:
        listed = ", ".join(strange[:5]) + (" …" if len(strange) > 5 else "")
        raise UserError(
            f"{len(strange)} folders with a {FILE} are in neither of the two LA lists (80 train, "
            f"20 test): {listed}. Their name must be the case's; rename or remove them."
        )
    if not found:
        raise UserError(f"There is no <case>/{FILE} below {source}. {CARD.how_to_get}")
    return found


def _read(path: Path) -> Volume:
    """One published volume, checked."""
    again = "Get the file again, or remove its folder to prepare a partial copy."
    try:
        with h5py.File(path) as file:
            image, label = file["image"][()], file["label"][()]
    except KeyError as error:
        raise UserError(f"{path} has no data set 'image' or no 'label'. {again}") from error
    except OSError as error:
        raise UserError(f"{path} is truncated or damaged ({error}). {again}") from error
    wrong = problems(image[None], label)
    if wrong:
        raise UserError(f"{path} cannot be used. {' '.join(wrong)} {again}")
    return Volume(image[None].astype(np.float32), label.astype(np.uint8), (1.0, 1.0, 1.0))
