"""What a prepared dataset holds, and what a reader of its numbers must know: damage and leaks.

Images are compared as thumbnails on a common physical grid of about 40,000 cells. Of every pair
the shift (up to a quarter of the thumbnail) with the highest cross-correlation is taken, and there
Pearson's r over the overlap, so the crop does not matter. Two limits:

- `SAME_IMAGE` = 0.95, and no less than the other limit: nearly the same image. A scan exported
  twice and cropped differently reaches 0.99 (left atrium); other pairs of the left atrium, even of
  one patient, stay below 0.93, those of the hippocampus below 0.87.
- `alike_limit`, at least 0.80 and 5 robust standard deviations above the usual pair: as alike as
  two scans of one patient. Of the 4950 pairs of the left atrium 9 exceed it, all of them among
  the 30 that a rigid registration found; of the 33,670 of the hippocampus none does. It misses
  most of what registration finds, so silence is no proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import fft, ndimage
from torch.nn import functional as F

from benchmark.data.base import SPLITS, Dataset, Split, Volume
from benchmark.data.links import Kind, Link, known_links
from benchmark.data.manifest import array_sha256, read_manifest
from benchmark.data.prepared import problems
from results.errors import UserError

SAME_IMAGE: Final = 0.95
ALIKE: Final = 0.80
ALIKE_DEVIATIONS: Final = 5.0
"""Robust standard deviations, of Fisher's z, that a pair must lie above the usual one."""

CELLS: Final = 40_000
LARGEST_SHIFT: Final = 0.25
"""Of a thumbnail, along each axis."""

Thumbnail = NDArray[np.float32]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Finding:
    """Something a check found.

    severity: "error" (the data cannot be used) or "warning" (a reader of the results must know).
    subject:  the case, or the dataset's name.
    """

    severity: Literal["error", "warning"]
    subject: str
    text: str


@dataclass(frozen=True)
class Examined:
    """What was seen of one sound case.

    shape:      of the label, (X, Y, Z).
    foreground: share of the voxels.
    components: of the label, voxels that touch by faces, edges or corners.
    stray:      voxels outside the largest of them.
    cut:        the label touches the border of the volume.
    image, label: digests; that of the label inside its bounding box.
    thumbnail:  of the first channel; every cell `Inspection.cell` long.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    foreground: float
    components: int
    stray: int
    cut: bool
    image: str
    label: str
    thumbnail: Thumbnail


@dataclass(frozen=True)
class Inspection:
    """What a check saw.

    cases:    sound cases, in the order of the splits.
    findings: errors first, then leaks from training to test, then others.
    """

    cases: Mapping[str, Examined]
    findings: tuple[Finding, ...]

    def summary(self) -> list[tuple[str, str]]:
        """Facts over all sound cases, by what they are of."""
        seen = list(self.cases.values())
        if not seen:
            return []
        shapes = np.array([case.shape for case in seen])
        spacings = np.array([case.spacing for case in seen])
        share = [100 * case.foreground for case in seen]
        stray = [case.stray for case in seen if case.components > 1]
        parts = f"{len(stray)} labels have more than one, with up to {max(stray, default=0)}"
        return [
            ("cases", str(len(seen))),
            ("voxels", " × ".join(_range(axis, "d") for axis in shapes.T)),
            ("spacing", " × ".join(_range(axis, ".3g") for axis in spacings.T)),
            ("foreground", f"{_range(share, '.2g')} % (median {np.median(share):.2g} %)"),
            ("components", f"{parts} voxels beside the largest" if stray else "one in every label"),
            ("at the border", f"{sum(case.cut for case in seen)} labels touch the volume's border"),
        ]


def inspect(dataset: Dataset, jobs: int = 1) -> Inspection:
    """Read every voxel of a dataset.

    Errors are damage (voxels that are not those in the manifest), values that cannot be used, and
    a case in two splits. Warnings are originals that are not the published files, and pairs of
    cases that share the image, the label (compared inside its bounding box, so that two crops of
    one scan are found) or the patient, as far as that can be seen or is known.

    Args:
        dataset: a prepared one.
        jobs: threads.
    """
    findings, split_of = _split_overlaps(dataset)
    cell = _cell(dataset, list(split_of))
    results = Parallel(n_jobs=jobs, prefer="threads")(
        delayed(_examine)(dataset, case, cell) for case in split_of
    )
    cases = {}
    for case, result in zip(split_of, results, strict=True):
        if isinstance(result, Examined):
            cases[case] = result
        else:
            findings += [Finding("error", case, text) for text in result]
    findings += _unpublished(dataset)
    findings += _shared(dataset, split_of, cases, jobs)
    return Inspection(cases, tuple(findings))


def check_prepared(dataset: Dataset, jobs: int = 1) -> list[Finding]:
    """The findings of `inspect`."""
    return list(inspect(dataset, jobs).findings)


def alike_limit(similarities: Sequence[float]) -> float:
    """From where on two scans are as alike as those of one patient; see the module.

    >>> round(alike_limit([0.4, 0.5, 0.6]), 2), round(alike_limit([0.7, 0.75, 0.8, 0.81]), 2)
    (0.9, 0.92)
    """
    if not len(similarities):
        return ALIKE
    z = np.arctanh(np.clip(similarities, -0.999, 0.999))
    deviation = 1.4826 * np.median(np.abs(z - np.median(z)))
    return max(ALIKE, float(np.tanh(np.median(z) + ALIKE_DEVIATIONS * deviation)))


def thumbnail(volume: Volume, cell: float) -> Thumbnail:
    """The first channel on a grid of whole cells, each the average over an area.

    Args:
        volume: the case.
        cell: edge of a cell, in the unit of the spacing.
    """
    image = np.asarray(volume.image[0])
    counts, kept = [], []
    for voxels, spacing in zip(image.shape, volume.spacing, strict=True):
        edge = max(1.0, cell / spacing)
        count = max(1, int(voxels / edge + 1e-6))
        counts.append(count)
        kept.append(slice(0, min(voxels, max(1, round(count * edge)))))
    part = torch.from_numpy(np.array(image[tuple(kept)]))
    x, y, z = counts
    pooled: Thumbnail = F.adaptive_avg_pool3d(part[None], (x, y, z))[0].numpy()
    return pooled


def similarities(thumbnails: Mapping[str, Thumbnail], jobs: int = 1) -> dict[Pair, float]:
    """Pearson's r of every two thumbnails at the shift that fits best; 0 where one is constant."""
    if len(thumbnails) < 2:
        return {}
    names = list(thumbnails)
    largest = np.max([thumbnails[name].shape for name in names], axis=0)
    reach = [int(LARGEST_SHIFT * n) for n in largest]
    size = [fft.next_fast_len(int(n) + r, real=True) for n, r in zip(largest, reach, strict=True)]
    spectra = [fft.rfftn(thumbnails[name] - thumbnails[name].mean(), size) for name in names]
    shifts = [np.r_[0 : r + 1, -r:0] for r in reach]

    def row(i: int) -> list[float]:
        found = []
        for j in range(i + 1, len(names)):
            fits = fft.irfftn(spectra[i] * spectra[j].conj(), size)[np.ix_(*shifts)]
            places = np.unravel_index(int(fits.argmax()), fits.shape)
            best = [int(axis[p]) for axis, p in zip(shifts, places, strict=True)]
            found.append(_correlation(thumbnails[names[i]], thumbnails[names[j]], best))
        return found

    rows = Parallel(n_jobs=jobs, prefer="threads")(delayed(row)(i) for i in range(len(names)))
    pairs = combinations(names, 2)
    return dict(zip(pairs, (value for found in rows for value in found), strict=True))


def _correlation(a: Thumbnail, b: Thumbnail, shift: Sequence[int]) -> float:
    """Pearson's r over the overlap of `a` and of `b` moved by a shift."""
    of_a, of_b = [], []
    for n, m, d in zip(a.shape, b.shape, shift, strict=True):
        low, high = max(0, d), min(n, m + d)
        of_a.append(slice(low, high))
        of_b.append(slice(low - d, high - d))
    x, y = (v.ravel().astype(np.float64) for v in (a[tuple(of_a)], b[tuple(of_b)]))
    if not x.size:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else 0.0


def _split_overlaps(dataset: Dataset) -> tuple[list[Finding], dict[str, Split]]:
    findings = []
    split_of: dict[str, Split] = {}
    for split in SPLITS:
        for case in dataset.splits[split]:
            if case in split_of:
                text = f"The case is in {split_of[case]} and in {split}."
                findings.append(Finding("error", case, text))
            split_of.setdefault(case, split)
    return findings, split_of


def _cell(dataset: Dataset, cases: Sequence[str]) -> float:
    """Edge of a thumbnail's cell, so that the median volume has about `CELLS` of them."""
    if dataset.folder is None:
        volumes = map(dataset.load, cases)
        sizes = [(volume.label.shape, volume.spacing) for volume in volumes]
    else:
        records = read_manifest(dataset.folder).cases
        sizes = [(records[case].shape[1:], records[case].spacing) for case in cases]
    volume = float(np.median([np.prod(shape) * np.prod(spacing) for shape, spacing in sizes]))
    return float((volume / CELLS) ** (1 / 3))


def _examine(dataset: Dataset, case: str, cell: float) -> Examined | list[str]:
    """What a case holds, or what is wrong with it."""
    try:
        volume = dataset.load(case)
    except UserError as error:
        return [str(error)]
    wrong = problems(volume.image, volume.label)
    if wrong:
        return wrong
    box = ndimage.find_objects(volume.label)[0]
    inside = np.asarray(volume.label[box])
    parts, count = ndimage.label(inside, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    return Examined(
        shape=volume.label.shape,
        spacing=volume.spacing,
        foreground=float(sizes.sum()) / volume.label.size,
        components=int(count),
        stray=int(sizes.sum() - sizes.max()),
        cut=any(
            part.start == 0 or part.stop == n
            for part, n in zip(box, volume.label.shape, strict=True)
        ),
        image=array_sha256(volume.image),
        label=array_sha256(inside),
        thumbnail=thumbnail(volume, cell),
    )


def _unpublished(dataset: Dataset) -> Iterator[Finding]:
    if dataset.folder is None:
        return
    for case, record in read_manifest(dataset.folder).cases.items():
        if record.verified is False:
            text = "The original differs from the published file (sha256)."
            yield Finding("warning", case, text)


def _shared(
    dataset: Dataset, split_of: Mapping[str, Split], cases: Mapping[str, Examined], jobs: int
) -> list[Finding]:
    """Pairs of cases that share something, those of training and test first."""
    known: dict[Pair, Link] = {}
    for listed in known_links(dataset) or ():
        known[listed.first, listed.second] = known[listed.second, listed.first] = listed
    alike = similarities({case: seen.thumbnail for case, seen in cases.items()}, jobs)
    limit = alike_limit(list(alike.values()))
    usual = float(np.median(list(alike.values()))) if alike else 0.0
    places = {case: n for cs in dataset.splits.values() for n, case in enumerate(cs, start=1)}
    found = []
    for a, b in combinations(split_of, 2):
        reasons = []
        if a in cases and b in cases:
            reasons = list(_reasons(cases[a], cases[b], alike[a, b], limit, usual))
        if (a, b) not in known and not reasons:
            continue
        link = known.get((a, b))
        where = f"{split_of[a]} {places[a]} and {split_of[b]} {places[b]}"
        parts = [f"{_joined(reasons)} as {b}: {where}." if reasons else f"With {b}: {where}."]
        parts += [_KNOWN[link.kind].format(_agreement(link))] if link else []
        parts.append(_consequence(split_of[a], places[a], split_of[b], places[b]))
        between = split_of[a] != split_of[b]
        found.append((not between, Finding("warning", a, " ".join(parts))))
    return [finding for _, finding in sorted(found, key=lambda pair: pair[0])]


_KNOWN: Final[Mapping[Kind, str]] = {
    Kind.COPY: "Listed as one scan under two names{}.",
    Kind.PATIENT: "Listed as probably the same patient{}.",
}


def _agreement(link: Link) -> str:
    if link.agreement is None:
        return ""
    return f" (registered images correlate at {link.agreement:.2f})"


def _reasons(a: Examined, b: Examined, r: float, limit: float, usual: float) -> Iterator[str]:
    if a.image == b.image:
        yield "the same image"
    elif r >= max(SAME_IMAGE, limit):
        yield f"nearly the same image (r = {r:.3f})"
    elif r >= limit:
        yield f"an image as alike as that of one patient (r = {r:.2f}; usual {usual:.2f})"
    if a.label == b.label:
        yield "the same label, up to the crop,"


def _joined(reasons: Sequence[str]) -> str:
    text = " and ".join(reasons)
    return text[0].upper() + text[1:]


def _consequence(split_a: Split, a: int, split_b: Split, b: int) -> str:
    """What a pair of cases that share something does to the numbers."""
    if split_a != split_b:
        return f"This leaks from {split_a} to {split_b}."
    if split_a != "train":
        return f"It counts twice in {split_a}."
    counts = f"{a} to {b - 1}" if a < b - 1 else f"{a}"
    return f"With {counts} labelled cases the one is labelled and the other is not."


def _range(values: Iterable[float], form: str) -> str:
    low, high = min(values), max(values)
    return format(low, form) if low == high else f"{low:{form}}–{high:{form}}"
