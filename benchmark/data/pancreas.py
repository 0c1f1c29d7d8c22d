"""NIH Pancreas-CT with the 62/20 split that most semi-supervised papers share."""

from __future__ import annotations

from pathlib import Path
from typing import Final, final

from benchmark.data.base import Card, Dataset, Geometry, Source
from benchmark.data.prepared import Progress
from results.errors import UserError

CARD: Final = Card(
    name="pancreas",
    title="Pancreas-CT",
    reference="10.7937/K9/TCIA.2016.tNB1kqBU",
    bibtex="""@misc{roth2016pancreas,
  title     = {Data from {Pancreas-CT}},
  author    = {Roth, Holger R. and Farag, Amal and Turkbey, Evrim B. and Lu, Le and Liu, Jiamin
               and Summers, Ronald M.},
  publisher = {The Cancer Imaging Archive},
  year      = {2016},
  doi       = {10.7937/K9/TCIA.2016.tNB1kqBU}
}""",
    licence="CC BY 3.0",
    modality="CT",
    structure="pancreas",
    unit="mm",
    geometry={
        "full": Geometry(patch=(96, 96, 96), stride=(16, 16, 16)),
        "reduced": Geometry(patch=(48, 40, 48), stride=(24, 20, 24), scale=0.3),
        "tiny": Geometry(patch=(16, 16, 16), stride=(8, 8, 8), scale=0.15),
    },
    augmentation="crop",
    how_to_get=(
        "Get the 80 CT series and the label archive of the collection Pancreas-CT from The Cancer "
        "Imaging Archive (cancerimagingarchive.net). `bench data prepare pancreas --source DIR` "
        "will be the command; this version cannot prepare it yet. A Medical Segmentation Decathlon "
        "folder works today: `bench data prepare FOLDER`."
    ),
    notes=(
        "At least five splits are compared in one table in the literature; this is the 62/20 one "
        "of MC-Net.",
        "Cases 25 and 70 are the same patient, one in the test and one in the training list. TCIA "
        "has withdrawn both, so this split cannot be rebuilt in full from there.",
        "Volumes are cropped around the true label with constant margins, test cases too.",
        "There is no validation set.",
    ),
)


@final
class Pancreas(Source):
    """Known by name; its preparation is not written yet."""

    card = CARD

    def prepare(self, source: Path, root: Path, progress: Progress) -> Path:
        """See `Source.prepare`. Always raises `UserError`."""
        raise UserError(f"This version cannot prepare pancreas. {CARD.how_to_get}")

    def open(self, root: Path) -> Dataset:
        """See `Source.open`. Always raises `UserError`."""
        raise UserError(f"pancreas is not prepared in {root}. {CARD.how_to_get}")
