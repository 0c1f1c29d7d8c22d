"""Stores, baselines, data of others: nothing in them runs, leads elsewhere, or becomes markup."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from benchmark import checkpoint, progress
from benchmark.attempts import CLAIM, DONE, ERROR
from benchmark.baseline import read_baseline
from benchmark.cli import app
from benchmark.data import open_dataset
from benchmark.data.split_file import read_split
from benchmark.data.volumes import load_volumes
from benchmark.executors.local import Local, Slot
from benchmark.jobs import announce, read_job
from benchmark.plugins import installed, resolve
from benchmark.worker import work
from reports.render import csv_text, latex_text, markdown_text
from reports.report import write_report
from results import claims
from results.errors import UserError
from results.store import Store
from tests.engine.conftest import Toy
from tests.engine.toy import announced, plan
from tests.protocols import toy as made

ROOT = Path(__file__).resolve().parents[2]
DEEP = "[" * 100_000
DEEP_OBJECT = '{"a":' * 100_000


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path):
    """What exists once something was executed, or written outside; it must not."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def sealed(payload: bytes) -> bytes:
    """A checkpoint file whose digest is right."""
    return hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def torch_saved(thing: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, **options)
    return buffer.getvalue()


CHECKPOINTS = {
    "a pickle": lambda evil: pickle.dumps(evil),
    "a pickle by torch": torch_saved,
    "the old format": lambda evil: torch_saved(evil, _use_new_zipfile_serialization=False),
    "a pickle among tensors": lambda evil: torch_saved({"learner": {"nets": {"x": evil}}}),
    "a list": lambda evil: torch_saved([1, 2]),
    "nothing": lambda evil: b"",
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_holds_more_than_tensors_is_damaged(
    name: str, tmp_path: Path, canary: Path
) -> None:
    checkpoint.save(tmp_path, 1, {"x": torch.ones(2)})
    newest = tmp_path / "checkpoint-000000002.pt"
    newest.write_bytes(sealed(CHECKPOINTS[name](Evil(canary))))
    found = checkpoint.load_newest(tmp_path, torch.device("cpu"))
    assert found is not None
    assert found[0] == 1


def test_the_bait_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "bait")))
    assert (tmp_path / "bait").exists()


def evil_arrays(canary: Path) -> dict[str, bytes]:
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, np.array([Evil(canary)], dtype=object), allow_pickle=True)
    np.savez(npz, image=np.array([Evil(canary)], dtype=object))
    return {"npy": npy.getvalue(), "npz": npz.getvalue(), "pickle": pickle.dumps(Evil(canary))}


@pytest.mark.parametrize("kind", ["npy", "npz", "pickle"])
def test_a_pickle_in_a_cache_of_volumes_is_made_anew(
    kind: str,
    toy: Toy,
    tmp_path: Path,
    canary: Path,
) -> None:
    root = tmp_path / "data"
    shutil.copytree(toy.root, root)
    dataset = open_dataset(str(toy.folder), root)
    case = dataset.splits["train"][0]
    honest = load_volumes(dataset, [case], 0.5)[case]
    (folder,) = root.glob("*/reduced-*")
    content = evil_arrays(canary)[kind]
    (folder / f"{case}.image.npy").write_bytes(content)
    record = json.loads((folder / f"{case}.json").read_text())
    record["files"][0] = hashlib.sha256(content).hexdigest()
    (folder / f"{case}.json").write_text(json.dumps(record))
    again = load_volumes(dataset, [case], 0.5)[case]
    assert np.array_equal(again.image, honest.image)


@pytest.mark.parametrize("kind", ["npy", "npz", "pickle"])
def test_a_pickle_among_prepared_volumes_is_refused(
    kind: str,
    toy: Toy,
    tmp_path: Path,
    canary: Path,
) -> None:
    root = tmp_path / "data"
    shutil.copytree(toy.root, root)
    (folder,) = (p.parent for p in root.glob("*/manifest.json"))
    case = open_dataset(str(toy.folder), root).splits["train"][0]
    content = evil_arrays(canary)[kind]
    (folder / "images" / f"{case}.npy").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"][case]["image_bytes"] = len(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError):
        open_dataset(str(toy.folder), root).load(case)


ESCAPES = ["../../canary", "/etc/canary", "..", ".hidden", "a/b", "a\\b", "a\0b", ""]


@pytest.mark.parametrize("name", ESCAPES)
def test_a_case_name_that_leaves_its_folder_is_refused(
    name: str,
    toy: Toy,
    tmp_path: Path,
    canary: Path,
) -> None:
    from benchmark.data import manifest

    root = tmp_path / "data"
    shutil.copytree(toy.root, root)
    (path,) = root.glob("*/manifest.json")
    old = manifest.read_manifest(path.parent)
    raw = json.loads(path.read_text())
    victim = raw["splits"]["train"][0]
    raw["splits"]["train"][0] = name
    raw["cases"][name] = raw["cases"].pop(victim)
    splits = old.splits | {"train": (name, *old.splits["train"][1:])}
    cases = {name if k == victim else k: v for k, v in old.cases.items()}
    raw["fingerprint"] = manifest.dataset_fingerprint(old.preprocessing, splits, cases)
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="is damaged"):
        open_dataset(str(toy.folder), root)


@pytest.mark.parametrize("run", ["../canary", "/canary", "a" * 65, "A", "a.b", "", "mt\n", "ä"])
def test_a_run_id_never_is_a_path(run: str, tmp_path: Path, canary: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    for attempt in (store.work, store.is_done, store.discard_failed, store.clean_work):
        with pytest.raises(UserError, match="is not a run id"):
            attempt(run)
    with pytest.raises(UserError, match="is not a run id"):
        store.write_work(run, "spec.json", "")
    with pytest.raises(UserError, match="is not a run id"):
        store.commit(run, made.tables(made.cases(run, {1: np.ones(1)})), made.record(run), {})


@pytest.mark.parametrize("folder", ["cases", "history", "pseudo", "runs", "predictions", "work"])
def test_a_folder_of_a_store_that_leads_out_of_it_is_refused(folder: str, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    shutil.rmtree(store.path / folder, ignore_errors=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (store.path / folder).symlink_to(outside)
    for create in (False, True):
        with pytest.raises(UserError, match="leads out of the store"):
            Store.open(store.path, create=create)
    assert not list(outside.iterdir())


def test_a_store_itself_may_be_a_link(tmp_path: Path) -> None:
    Store.open(tmp_path / "store", create=True)
    (tmp_path / "link").symlink_to(tmp_path / "store")
    assert Store.open(tmp_path / "link").unfinished() == []


def test_links_in_the_place_of_a_runs_folder_or_files_are_not_followed(
    toy: Toy,
    tmp_path: Path,
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path / "store", "supervised").jobs
    store, run = announced(job, tmp_path / "store")
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in ("log.txt", "error.txt", "progress.json", "spec.json"):
        (store.work(run) / name).unlink(missing_ok=True)
        (store.work(run) / name).symlink_to(outside)
    announce(job, store)
    said = []
    Local((Slot("cpu", None, 1),)).execute([run], store, said.append, lambda: None)
    assert "cannot be started" in said[-1].message
    (store.work(run) / "log.txt").unlink()
    assert work(store, run, "cpu", 1) == DONE
    assert outside.read_text() == "mine"
    shutil.rmtree(store.path / "work")
    (store.path / "work").mkdir()
    (tmp_path / "folder").mkdir()
    (store.path / "work" / run).symlink_to(tmp_path / "folder")
    with pytest.raises(UserError, match="is a link"):
        announce(job, store)


PLUGIN = """
from pathlib import Path
Path({canary!r}).touch()
"""


def test_a_plugin_that_only_a_store_names_is_not_run(
    toy: Toy,
    tmp_path: Path,
    canary: Path,
) -> None:
    (job,) = plan(toy.folder, toy.root, tmp_path / "store", "supervised").jobs
    store, run = announced(job, tmp_path / "store")
    plugin = tmp_path / "evil.py"
    plugin.write_text(PLUGIN.format(canary=str(canary)))
    spec = json.loads(store.read_work(run, "spec.json"))
    store.write_work(run, "spec.json", json.dumps(spec | {"plugins": [str(plugin)]}))
    assert work(store, run, "cpu", 1) == ERROR
    with pytest.raises(UserError, match="which this command does not name"):
        read_job(store, run, [])


def test_listing_entry_points_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    def never(self: EntryPoint) -> object:
        raise AssertionError("imported")

    monkeypatch.setattr(EntryPoint, "load", never)
    monkeypatch.setattr(
        "benchmark.plugins.entry_points",
        lambda group: [EntryPoint("evil", "os:system", group)],
    )
    assert installed() == {"evil": "os:system"}


def test_an_entry_point_that_cannot_be_imported_is_one_clear_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from importlib.metadata import EntryPoint

    broken = EntryPoint("mine", "no_such_package:Mine", "bench.methods")
    monkeypatch.setattr("benchmark.plugins.entry_points", lambda group: [broken])
    said = r"entry point mine \(no_such_package:Mine\) fails to import: ModuleNotFoundError"
    with pytest.raises(UserError, match=said):
        resolve(["mine"], [])


JSONS = [DEEP, DEEP_OBJECT, "null", "[]", "{}", '{"attempts": 1}', "\xff", '{"attempts": [{}]}']


@pytest.mark.parametrize("text", JSONS, ids=lambda t: t[:12])
def test_a_crafted_work_folder_neither_stops_nor_fools_status(text: str, tmp_path: Path) -> None:
    store = Store.open(tmp_path, create=True)
    folder = store.work("mt-1")
    folder.mkdir()
    for name in ("spec.json", "progress.json", f"{CLAIM}-000001"):
        (folder / name).write_text(text, encoding="latin-1")
    (folder / "error.txt").write_text("\x1b]0;owned\x07[bold]x[/bold]\x1b[31m")
    result = CliRunner().invoke(app, ["status", "--store", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "[bold]x" in result.output
    assert progress.read(folder) is None
    holder = claims.newest(folder, CLAIM)
    assert holder is not None
    assert holder.pid == 0
    with pytest.raises(UserError, match="is damaged"):
        read_job(store, "mt-1", [])


@pytest.mark.parametrize("text", [DEEP, DEEP_OBJECT, "null", "[1]", "\xff"], ids=lambda t: t[:8])
def test_crafted_json_of_data_is_an_error_message(
    text: str,
    toy: Toy,
    tmp_path: Path,
) -> None:
    root, folder = tmp_path / "data", tmp_path / "balls"
    shutil.copytree(toy.root, root)
    shutil.copytree(toy.folder, folder)
    (manifest,) = root.glob("*/manifest.json")
    for path in (manifest, folder / "dataset.json", tmp_path / "split.json"):
        path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError):
        open_dataset(str(toy.folder), root)
    with pytest.raises(UserError):
        open_dataset(str(folder), root)
    with pytest.raises(UserError):
        read_split(tmp_path / "split.json")


TOMLS = ["a = " + DEEP, "[" + "a." * 50_000 + "a]", "a = " + "{a = " * 50_000, "version = 'x'"]


@pytest.mark.parametrize("text", TOMLS, ids=lambda t: t[:8])
def test_a_crafted_baseline_is_an_error_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text(text)
    with pytest.raises(UserError):
        read_baseline(tmp_path / "b.toml")


def test_an_image_that_lies_outside_of_its_folder_is_not_read(
    toy: Toy,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "balls"
    shutil.copytree(toy.folder, folder)
    facts = json.loads((folder / "dataset.json").read_text())
    facts["training"][0] = {"image": "../../etc/passwd", "label": "/etc/passwd"}
    (folder / "dataset.json").write_text(json.dumps(facts))
    result = CliRunner().invoke(
        app, ["data", "prepare", str(folder), "--data", str(tmp_path / "data")]
    )
    assert isinstance(result.exception, UserError)
    assert not list((tmp_path / "data").glob("*/images"))


def parquet(tables: dict[str, list[object]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(tables), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"PAR1" * 1000, parquet({"run": ["x"]}), parquet({}), pickle.dumps([1])],
    ids=["empty", "magic", "garbage", "columns", "none", "pickle"],
)
def test_a_crafted_table_is_an_error_message(content: bytes, tmp_path: Path) -> None:
    store = Store.open(tmp_path, create=True)
    for table in ("runs", "cases"):
        (tmp_path / table / "mt-1.parquet").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        store.records()
    with pytest.raises(UserError, match="cannot be read"):
        store.read("cases")


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    '"><svg onload=alert(1)>',
    "\\input{/etc/passwd}",
    "\\write18{id}",
    "$\\catcode$%&_#{}~^",
    '=HYPERLINK("http://x")',
    "@SUM(1)",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "\t=1+1",
    "\r=1+1",
    "\x1b]0;title\x07\x1b[2J",
    "[x](javascript:alert(1))|a\n# b",
    "long" * 500,
]
BAD_TEX = ("\\input{", "\\write18", "\\catcode")


class Tags(HTMLParser):
    """Names of all elements, and attributes that run code."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.seen += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_becomes_markup(text: str) -> None:
    assert not any(word in latex_text(text) for word in BAD_TEX)
    assert "<" not in markdown_text(text)
    (_, line) = csv_text(pd.DataFrame({"a": [text]})).split("\n", 1)
    assert line.lstrip('"')[0] not in "=+-@\t\r"
    for writer in (latex_text, markdown_text):
        assert not any(ord(c) < 32 or ord(c) == 127 for c in writer(text))


@pytest.mark.slow
def test_no_name_in_a_store_becomes_markup_in_any_report(tmp_path: Path) -> None:
    """Hostile text wherever a store holds text, through every standard report and the page."""
    store = Store.open(tmp_path / "store", create=True)
    clean = Store.open(tmp_path / "clean", create=True)
    evil = "".join(HOSTILE[:13]) + "\x1b[2J"
    for target, word in ((store, evil), (clean, "plain")):
        for seed in range(2):
            content = made.spec("mt", dataset="la", seed=seed)
            run = made.run_id("mt", seed)
            record = made.record(run, content) | {
                "device": word,
                "dataset": word,
                "recipe": word,
                "commit": word,
            }
            rows = made.cases(run, {step: np.full(6, 0.8) for step in made.STEPS})
            rows["case"] = [f"{word}{c}" for c in rows["case"]]
            sidecar = {
                "seconds": 1.0,
                "resumed": False,
                "attempts": [],
                "notes": [word],
                "seconds_per_step": 1.0,
                "seconds_per_case": 1.0,
                "seconds_per_evaluation": 1.0,
                "pseudo_label_seconds": 1.0,
                "peak_memory_bytes": 1,
                "linked": {},
                "plugins": {word: "0"},
            }
            target.commit(run, made.tables(rows), record, sidecar)
    pages = {}
    for target in (store, clean):
        written = write_report(
            target.path,
            "last",
            target.path / "reports",
            names=["table", "trajectories", "optimism", "cases", "costs", "leaderboard", "html"],
        )
        pages[target.path.name] = {p.name: p for p in written.paths}
    assert pages["store"].keys() == pages["clean"].keys()
    for name, path in pages["store"].items():
        if path.suffix == ".tex":
            assert not any(word in path.read_text() for word in BAD_TEX), name
        elif path.suffix == ".csv":
            cells = path.read_text().splitlines()
            assert not any(line.lstrip('"').startswith(tuple("=@")) for line in cells), name
        elif path.suffix == ".md":
            assert "<script" not in path.read_text(), name
        elif path.suffix in (".html", ".svg"):
            tags, expected = Tags(), Tags()
            tags.feed(path.read_text())
            expected.feed(pages["clean"][name].read_text())
            for tag in ("script", "img", "svg onload", "img onerror"):
                assert tags.seen.count(tag) == expected.seen.count(tag), (name, tag)
        if path.suffix in (".tex", ".csv", ".md", ".html", ".svg"):
            assert "\x1b" not in path.read_text(), name


def test_the_code_has_nothing_that_opens_archives_or_runs_text() -> None:
    forbidden = {"tarfile", "zipfile", "yaml", "pickle", "shelve", "marshal", "dill"}
    called = {"eval", "exec", "compile", "unpack_archive", "system", "popen"}
    for package in ("benchmark", "methods", "protocols", "results", "reports"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    assert not {a.name.split(".")[0] for a in node.names} & forbidden, path
                elif isinstance(node, ast.ImportFrom):
                    assert (node.module or "").split(".")[0] not in forbidden, path
                elif isinstance(node, ast.Call):
                    name = getattr(node.func, "id", None)
                    owner = getattr(getattr(node.func, "value", None), "id", None)
                    attribute = getattr(node.func, "attr", None)
                    assert name not in called, (path, name)
                    assert not (owner in ("os", "shutil") and attribute in called), path


def test_security_md_says_what_is_trusted() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    for word in ("Plugins are code", "Stores, baselines", "weights_only=True", "[a-z0-9-]{1,64}"):
        assert word in text
