"""Prepared data on disk: a manifest, and one compressed file per image and label.

    <root>/<name>/manifest.json
    <root>/<name>/images/<case>.zst    (C, X, Y, Z), float32 or codes of its values
    <root>/<name>/labels/<case>.zst    (X, Y, Z), uint8

A folder is written under a temporary name and renamed once everything in it is on the disk, so a
folder that exists under its own name is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmark.data.base import SPLITS, Card, Coded, Dataset, Split, Volume
from benchmark.data.coding import encode, pack_image, pack_label, unpack_image, unpack_label
from benchmark.data.manifest import (
    Manifest,
    Record,
    array_sha256,
    dataset_fingerprint,
    files_sha256,
    read_manifest,
    remark,
    shared_scan,
)
from results.claims import Claim, Held
from results.errors import UserError

WORKERS: Final = 2
"""Cases that are prepared at once. Threads do: the work is in libraries that let others run."""

Progress = Callable[[int, int, str], None]
Files = Mapping[str, Path | tuple[Path, ...]]
"""The files of a case, or several of them as one, by a name that does not depend on where they lie.
"""

R = TypeVar("R")
Read = TypeVar("Read", NDArray[np.uint8], NDArray[np.float32] | Coded)


@dataclass(frozen=True)
class Original:
    """One case as the user has it.

    files: what it is made of.
    read:  gives the case in its prepared form, or raises `UserError`.
    known_sha256: of its one file, as published; None where nothing is published.
    """

    case: str
    split: Split
    files: Files
    read: Callable[[], Volume]
    known_sha256: str | None = None


def problems(image: NDArray[Any], label: NDArray[Any]) -> list[str]:
    """What makes a case unusable, as sentences; empty if nothing does.

    Args:
        image: (C, X, Y, Z).
        label: (X, Y, Z), as read, before any conversion.
    """
    if label.ndim != 3:
        return [f"The label has {label.ndim} axes, not 3."]
    if image.shape[1:] != label.shape:
        return [f"Image {_times(image.shape[1:])} and label {_times(label.shape)} differ in shape."]
    found = []
    bad = int(image.size - np.count_nonzero(np.isfinite(image)))
    if bad:
        found.append(f"The image has {bad} voxels that are NaN or infinite.")
    odd = np.setdiff1d(np.unique(label), [0, 1])
    if odd.size:
        listed = ", ".join(f"{value:g}" for value in odd[:5])
        found.append(f"The label has values other than 0 and 1: {listed}.")
    elif not np.any(label):
        found.append("The label is empty: it has no foreground voxel.")
    return found


def prepare_folder(
    root: Path,
    name: str,
    originals: Sequence[Original],
    preprocessing: str,
    progress: Progress,
    *,
    complete: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write `root`/`name` from the originals, or nothing at all; return that folder.

    If it is there already, from the same files, nothing is done and `progress` says so. Its last
    words also say how many files differ from the published ones.

    Args:
        root: the data root; made if it is missing.
        name: the folder's name.
        originals: all cases, in the order of their splits.
        preprocessing: what was done to the voxels, in words, with a version.
        progress: called with (done, total, what).
        complete: whether these are all cases of the dataset.
        facts: the manifest's `facts`.

    Raises:
        UserError: a case cannot be used or is in two splits, the folder holds something else, the
            disk is full or not writable, or another process is preparing the same dataset.
    """
    folder = root / name
    total = len(originals)
    splits: dict[Split, tuple[str, ...]] = {
        split: tuple(o.case for o in originals if o.split == split) for split in SPLITS
    }
    with _exclusive(root, name):
        sources = _each(
            lambda o: {key: files_sha256(files) for key, files in o.files.items()},
            originals,
            lambda done, _: progress(
                0, total, f"checking the files of {name} ({done} of {total} cases)"
            ),
        )
        if folder.exists():
            manifest = read_manifest(folder)
            _require_same(folder, manifest, preprocessing, sources, splits)
            said = f"{name} is already prepared in {folder}: nothing to do"
            progress(total, total, said + _in_brackets(remark(manifest)))
            return folder
        temporary = _make_temporary(root, name)
        try:
            records = _each(
                lambda original: _write_case(temporary, original, sources[original.case]),
                originals,
                lambda done, case: progress(done, total, case),
            )
            leak = shared_scan(splits, records, facts or {})
            if leak:
                raise UserError(f"{leak} Take one of them out of the source.")
            manifest = Manifest(
                name=name,
                preprocessing=preprocessing,
                splits=splits,
                cases=records,
                complete=complete,
                facts=facts or {},
                fingerprint=dataset_fingerprint(preprocessing, splits, records),
            )
            with _writing(temporary):
                text = json.dumps(asdict(manifest), indent=1) + "\n"
                _write_durably(temporary / "manifest.json", text.encode())
                _sync_folders(temporary, temporary / "images", temporary / "labels")
                temporary.rename(folder)
                _sync_folders(root)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    said = f"{name} is prepared in {folder}"
    progress(total, total, said + _in_brackets(remark(manifest)))
    return folder


def open_prepared(folder: Path, card: Card) -> Dataset:
    """The dataset in a prepared folder, after a check that costs no reading of voxels.

    Voxels are compared with the manifest when a process first loads a case.

    Raises:
        UserError: the manifest or a volume is missing or damaged, or two splits share a scan.
    """
    manifest = read_manifest(folder)
    leak = shared_scan(manifest.splits, manifest.cases, manifest.facts)
    if leak:
        raise UserError(
            f"{leak} Take one of them out of the source, remove the folder {folder} and run "
            "`bench data prepare` again."
        )
    for case, record in manifest.cases.items():
        for path, expected in zip(
            _paths(folder, case), (record.image_bytes, record.label_bytes), strict=True
        ):
            size = path.stat().st_size if path.is_file() else None
            if size != expected:
                state = "is missing" if size is None else f"has {size} bytes, not {expected}"
                raise _damaged(folder, f"{path} {state}")
    return Dataset(
        card=card,
        splits=manifest.splits,
        fingerprint=manifest.fingerprint,
        load=partial(_load, folder, manifest),
        complete=manifest.complete,
        folder=folder,
        remark=remark(manifest),
    )


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _paths(folder: Path, case: str) -> tuple[Path, Path]:
    return folder / "images" / f"{case}.zst", folder / "labels" / f"{case}.zst"


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(
        f"Damaged data: {what}. Remove the folder {folder} and run `bench data prepare` again."
    )


def _load(folder: Path, manifest: Manifest, case: str) -> Volume:
    """Read one case into memory."""
    record = manifest.cases[case]
    image_path, label_path = _paths(folder, case)
    unpack = partial(unpack_image, shape=record.shape, levels=record.levels)
    stored = _read(folder, image_path, unpack, record.image_sha256)
    unpack_mask = partial(unpack_label, shape=record.shape[1:])
    label = _read(folder, label_path, unpack_mask, record.label_sha256)
    return Volume(stored, label, record.spacing)


_COMPARED: Final[set[tuple[Path, int, str]]] = set()
"""Files whose voxels this process has compared with their sha256, by time of change."""


def _read(folder: Path, path: Path, unpack: Callable[[bytes], Read], sha256: str) -> Read:
    """What a file holds; its voxels are compared when a process first reads it."""
    try:
        changed_ns = path.stat().st_mtime_ns
        found = unpack(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{path} cannot be read ({error})") from error
    if (path, changed_ns, sha256) not in _COMPARED:
        voxels = found.decoded() if isinstance(found, Coded) else found
        if array_sha256(voxels) != sha256:
            raise _damaged(folder, f"{path} is not what was prepared (sha256): it was changed")
        _COMPARED.add((path, changed_ns, sha256))
    return found


def _each(
    work: Callable[[Original], R], originals: Iterable[Original], report: Callable[[int, str], None]
) -> dict[str, R]:
    """What `work` gives for every case, in their order, `WORKERS` of them at once.

    What has begun is finished before an error or an interruption goes on, so that nothing is
    written afterwards.
    """
    results = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        pending = [(original.case, pool.submit(work, original)) for original in originals]
        try:
            for done, (case, future) in enumerate(pending):
                report(done, case)
                results[case] = future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _require_same(
    folder: Path,
    manifest: Manifest,
    preprocessing: str,
    sources: Mapping[str, Mapping[str, str]],
    splits: Mapping[Split, Sequence[str]],
) -> None:
    """Raise unless the folder was made from just these files in just this way."""
    old = {case: dict(record.sources) for case, record in manifest.cases.items()}
    same_way = manifest.preprocessing == preprocessing and manifest.splits == splits
    if old == sources and same_way:
        return
    if old.keys() != sources.keys():
        reason = f"it holds {len(old)} cases, the source {len(sources)}, and not the same ones"
        if old.keys() < sources.keys() or sources.keys() < old.keys():
            reason = f"it holds {len(old)} cases, the source {len(sources)}"
    elif old != sources:
        changed = sorted(case for case in old if old[case] != sources[case])
        reason = f"{len(changed)} of {len(old)} cases have other files, such as {changed[0]}"
    elif manifest.preprocessing != preprocessing:
        reason = "the preprocessing is another one"
    else:
        reason = "the cases are split in another way"
    raise UserError(
        f"{folder} is prepared from something else: {reason}. To replace it, remove that folder "
        "and run the same command again; to keep both, use another data root (--data)."
    )


def _write_case(folder: Path, original: Original, sources: Mapping[str, str]) -> Record:
    volume = original.read()
    image = np.ascontiguousarray(volume.image, dtype=np.float32)
    label = np.ascontiguousarray(volume.label, dtype=np.uint8)
    shape, spacing, image_sha256 = image.shape, volume.spacing, array_sha256(image)
    stored = encode(image)
    del volume, image  # four bytes a voxel that packing codes has no use for
    image_path, label_path = _paths(folder, original.case)
    packed_image, packed_label = pack_image(stored), pack_label(label)
    with _writing(folder):
        _write_durably(image_path, packed_image)
        _write_durably(label_path, packed_label)
    known = original.known_sha256
    return Record(
        shape=shape,
        levels=len(stored.values) if isinstance(stored, Coded) else 0,
        spacing=spacing,
        image_sha256=image_sha256,
        label_sha256=array_sha256(label),
        image_bytes=image_path.stat().st_size,
        label_bytes=label_path.stat().st_size,
        sources=sources,
        verified=None if known is None else known in sources.values(),
    )


def _make_temporary(root: Path, name: str) -> Path:
    """A new folder to build in; what killed preparations left behind is removed.

    Other datasets' names may begin with this one, as those of other splits do: theirs may be in
    use, and are left.
    """
    prefix = f".tmp-{name}-"
    for left in root.glob(f"{prefix}*"):
        if "-" not in left.name.removeprefix(prefix):
            shutil.rmtree(left, ignore_errors=True)
    with _writing(root):
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        temporary.chmod(0o755)
        (temporary / "images").mkdir()
        (temporary / "labels").mkdir()
    return temporary


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a failed write into a message."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder}: {error.strerror or error}. Make room or choose another "
            "data root (--data, or the environment variable BENCH_DATA)."
        ) from error


@contextmanager
def _exclusive(root: Path, name: str) -> Iterator[None]:
    """Hold the right to prepare one dataset; others get it when this process is done, or dies."""
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        try:
            claim = Claim.take(root, f".{name}.claim")
        except Held as held:
            raise UserError(
                f"{held.holder} is preparing {name} in {root}. Wait until it is done."
            ) from None
    with claim:
        yield


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folders(*folders: Path) -> None:
    for folder in folders:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
