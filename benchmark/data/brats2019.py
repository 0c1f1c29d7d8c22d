"""BraTS 2019, whole tumour in FLAIR, with the 250/25/60 split of SSL4MIS."""

from __future__ import annotations

from pathlib import Path
from typing import Final, final

from benchmark.data.base import Card, Dataset, Geometry, Source
from benchmark.data.prepared import Progress
from results.errors import UserError

CARD: Final = Card(
    name="brats2019",
    title="BraTS 2019",
    reference="10.1109/TMI.2014.2377694",
    bibtex="""@article{menze2015brats,
  title   = {The Multimodal Brain Tumor Image Segmentation Benchmark ({BRATS})},
  author  = {Menze, Bjoern H. and Jakab, Andras and Bauer, Stefan and others},
  journal = {IEEE Transactions on Medical Imaging},
  volume  = {34},
  number  = {10},
  pages   = {1993--2024},
  year    = {2015},
  doi     = {10.1109/TMI.2014.2377694}
}""",
    licence="on request from the BraTS organisers",
    modality="FLAIR-MRI",
    structure="whole tumour",
    unit="mm",
    geometry={
        "full": Geometry(patch=(96, 96, 96), stride=(64, 64, 64)),
        "reduced": Geometry(patch=(48, 48, 48), stride=(24, 24, 24), scale=0.35),
        "tiny": Geometry(patch=(16, 16, 16), stride=(8, 8, 8), scale=0.15),
    },
    augmentation="rotflip",
    how_to_get=(
        "Ask the BraTS organisers for the 2019 training data (HGG/ and LGG/, 335 cases; "
        "www.med.upenn.edu/cbica/brats2019). `bench data prepare brats2019 --source DIR` will be "
        "the command; this version cannot prepare it yet. A Medical Segmentation Decathlon folder "
        "works today: `bench data prepare FOLDER`."
    ),
    notes=(
        "Sites are mixed unevenly: TCIA10 is 20 of 250 training and 12 of 60 test cases.",
        "Volumes are cropped to the non-zero image, not to the label.",
    ),
)


@final
class Brats2019(Source):
    """Known by name; its preparation is not written yet."""

    card = CARD

    def prepare(self, source: Path, root: Path, progress: Progress) -> Path:
        """See `Source.prepare`. Always raises `UserError`."""
        raise UserError(f"This version cannot prepare brats2019. {CARD.how_to_get}")

    def open(self, root: Path) -> Dataset:
        """See `Source.open`. Always raises `UserError`."""
        raise UserError(f"brats2019 is not prepared in {root}. {CARD.how_to_get}")
