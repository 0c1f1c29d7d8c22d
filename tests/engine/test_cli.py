"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmark import catalogue, cli, status, terminal
from benchmark.data import SOURCES
from benchmark.estimate import costs
from benchmark.profiles import PROFILES
from methods import METHODS
from protocols.rules import RULES
from results.store import Store
from tests.engine.conftest import Toy
from tests.engine.toy import make_folder, plan
from tests.protocols import toy as runs

Bench = Callable[..., tuple[int, str, str]]
PLUGIN = str(Path(__file__).with_name("plugin_methods.py"))


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Calls the command line; gives exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def small(toy: Toy, store: Path, *more: object) -> tuple[object, ...]:
    return (
        *("run", "-m", "supervised", "-d", toy.folder, "--labelled", "2", "--profile", "smoke"),
        *("--data", toy.root, "--store", store, "--executor", "inline", "--threads", "1"),
        *more,
    )


def test_run_then_report_then_status(bench: Bench, toy: Toy, tmp_path: Path) -> None:
    code, out, _ = bench(*small(toy, tmp_path, "-m", "mt", "--seeds", "2"))
    assert code == 0
    events = [json.loads(line) for line in out.splitlines()]
    assert (events[0]["event"], events[0]["runs"], events[0]["done"]) == ("begin", 4, 0)
    assert sum(e["event"] == "end" for e in events) == 4
    code, out, _ = bench("report", "--protocol", "last", "--store", tmp_path)
    assert code == 0
    assert "supervised" in out
    assert "2/2" in out
    written = {p.name for p in (tmp_path / "reports").iterdir()}
    assert {"table-last.md", "table-last.csv", "table-last.tex", "best-vs-last.png"} <= written
    code, out, _ = bench("status", "--store", tmp_path, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [r["state"] for r in rows] == ["finished"] * 4


def test_running_again_does_nothing_and_says_so(bench: Bench, toy: Toy, tmp_path: Path) -> None:
    assert bench(*small(toy, tmp_path, "--seeds", "1"))[0] == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    code, out, _ = bench(*small(toy, tmp_path, "--seeds", "1"))
    assert code == 0
    assert json.loads(out.splitlines()[0])["done"] == 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")} == before


def test_bars_end_with_a_table(bench: Bench, toy: Toy, tmp_path: Path) -> None:
    code, out, _ = bench(*small(toy, tmp_path, "--seeds", "1", "--progress", "bars"))
    assert code == 0
    assert "supervised" in out
    assert "DSC" in out


def test_a_dry_run_tells_time_and_disk_and_begins_nothing(
    bench: Bench, toy: Toy, tmp_path: Path
) -> None:
    code, out, _ = bench(*small(toy, tmp_path / "store", "--seeds", "3", "--dry-run"))
    assert code == 0
    assert "3 runs to do, 0 done already" in out
    assert "MB of results" in out
    assert not (tmp_path / "store").exists()


def test_a_failed_run_gives_exit_code_one_and_its_reason(
    bench: Bench, toy: Toy, tmp_path: Path
) -> None:
    more = ("-m", "explodes", "--plugin", PLUGIN, "--seeds", "1")
    code, out, err = bench(*small(toy, tmp_path, *more))
    assert code == 1
    events = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert {e["run"].split("-")[0]: e["state"] for e in events if e["event"] == "end"} == {
        "supervised": "finished",
        "explodes": "failed",
    }
    assert "is not finite at step 5" in out + err
    assert "1 of 2 runs finished" in out + err
    assert "`--retry-failed` forgets them" in out + err
    code, out, _ = bench("report", "--store", tmp_path)
    assert code == 0
    assert "0/1" in out


def test_a_failed_run_can_be_tried_again(bench: Bench, toy: Toy, tmp_path: Path) -> None:
    more = ("-m", "explodes", "--plugin", PLUGIN, "--seeds", "1")
    bench(*small(toy, tmp_path, *more))
    _, out, _ = bench(*small(toy, tmp_path, *more, "--retry-failed"))
    events = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert events[0]["done"] == 1
    assert sum(e["event"] == "start" for e in events) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "-m", "tcsge"), "unknown method 'tcsge'. Did you mean 'tcseg'?"),
        (("run", "-m", "mt", "-d", "phantm"), "unknown dataset 'phantm'. Did you mean 'phantom'?"),
        (("run", "-m", "mt", "--profile", "mni"), "unknown profile 'mni'. Did you mean 'mini'?"),
        (("run", "-m", "mt", "--recipe", "authors"), "unknown recipe of mt 'authors'"),
        (("run", "-m", "mt", "--ratio", "0.001"), "leaves no labelled case"),
        (("run", "-m", "mt", "--ratio", "1"), "no unlabelled case"),
        (("run", "-m", "mt", "--seeds", "none"), "expected a count such as 5"),
        (("run", "-m", "mt", "--set", "mt.decya=1"), "Did you mean 'decay'?"),
        (("run", "-m", "mt", "-d", "pancreas"), "Cancer Imaging Archive"),
        (("run", "-m", "mt", "-d", "brats2019"), "BraTS"),
        (("run", "-m", "mt", "-d", "la"), "bench data prepare la"),
        (("run", "-m", "mt", "--plugin", "nowhere.py"), "no such file"),
        (("report", "--store", "nowhere"), "no store at nowhere"),
        (("status", "--store", "nowhere"), "no store at nowhere"),
        (("data", "prepare", "la"), "--source is missing"),
        (("data", "check", "la"), "not prepared"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_one_clear_line_and_exit_code_two(
    arguments: tuple[str, ...],
    said: str,
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = bench(*arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_an_unknown_protocol_is_refused_before_anything_is_written(
    bench: Bench, toy: Toy, tmp_path: Path
) -> None:
    bench(*small(toy, tmp_path, "--seeds", "1"))
    code, _, err = bench("report", "--protocol", "bset", "--store", tmp_path)
    assert code == 2
    assert "Did you mean 'best'" in err
    assert not (tmp_path / "reports").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_cannot_be_written_is_said(bench: Bench, toy: Toy, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    code, _, err = bench(*small(toy, tmp_path / "store"))
    assert code == 2
    assert "the store cannot be used" in err


def test_a_store_that_is_a_file_is_said(bench: Bench, toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    code, _, err = bench(*small(toy, tmp_path / "store"))
    assert code == 2
    assert "the store cannot be used" in err


def test_the_papers_scale_by_default_says_how_long_it_takes_without_a_gpu(
    bench: Bench, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.commands.usable_gpus", tuple)
    given = ("run", "-m", "supervised", "-d", toy.folder, "--labelled", "2", "--data", toy.root)
    code, _, err = bench(*given, "--store", tmp_path / "store", "--seeds", "1")
    assert code == 2
    assert "1 runs at the paper's scale would take about" in err
    assert "--profile mini" in err
    assert not (tmp_path / "store").exists()
    code, out, told = bench(*given, "--store", tmp_path / "store", "--seeds", "1", "--dry-run")
    assert code == 2
    assert "20,000" in out
    assert "1 runs at the paper's scale would take about" in told


def test_seeds_given_twice_are_refused(bench: Bench, toy: Toy, tmp_path: Path) -> None:
    code, _, err = bench(*small(toy, tmp_path / "store", "--seeds", "3", "--seeds", "0,4"))
    assert code == 2
    assert "--seeds given 2 times (3 and 0,4): give it once" in err
    assert not (tmp_path / "store").exists()


def test_a_report_of_some_methods(bench: Bench, toy: Toy, tmp_path: Path) -> None:
    store = tmp_path / "store"
    bench(*small(toy, store, "-m", "mt", "--seeds", "1"))
    code, out, err = bench("report", "table", "--store", store, "-m", "mt")
    assert code == 0
    assert "Only mt, as asked: the store holds runs of 1 other method (supervised)." in " ".join(
        out.split()
    )
    assert "only-mt/table-last.md" in err.replace("\n", "")
    code, _, err = bench("report", "table", "--store", store, "-m", "dtc")
    assert code == 2
    assert "'dtc'. Known: mt, supervised" in " ".join(err.split())


def test_a_folder_is_prepared_on_first_use(bench: Bench, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "spheres", cases=10)
    unprepared = Toy(folder, tmp_path / "data")
    code, out, err = bench(*small(unprepared, tmp_path / "store", "--seeds", "1"))
    assert code == 0
    assert all(json.loads(line) for line in out.splitlines())
    assert "7 train, 1 val, 2 test" in err
    _, out, _ = bench("data", "list", "--data", unprepared.root)
    assert "spheres" in out
    code, out, _ = bench("data", "check", folder, "--data", unprepared.root)
    assert code == 0
    assert "fingerprint" in out


def test_lists_show_everything_there_is(bench: Bench) -> None:
    for what, names in (
        ("methods", [m.name for m in METHODS]),
        ("datasets", list(SOURCES)),
        ("rules", list(RULES)),
        ("profiles", list(PROFILES)),
    ):
        code, out, _ = bench("list", what)
        assert code == 0
        assert all(name in out for name in names)


def test_a_plugin_is_listed_and_can_be_tested(bench: Bench, tmp_path: Path) -> None:
    _, out, _ = bench("list", "methods", "--plugin", PLUGIN)
    assert "explodes" in out
    assert "cannot be built: ValueError: num_channels (4)" in " ".join(out.split())
    code, out, _ = bench("test-method", PLUGIN)
    assert code == 1
    assert "broken" in out
    assert "KeyError: 'a bug' (plugin_methods.py:" in " ".join(out.split())
    assert "must be divisible by num_groups (3) (plugin_methods.py:" in " ".join(out.split())


def test_the_doctor_examines_everything(bench: Bench, toy: Toy, tmp_path: Path) -> None:
    bench(*small(toy, tmp_path, "--seeds", "1"))
    code, out, _ = bench("doctor", "--store", tmp_path, "--data", toy.root)
    assert code == 0
    for subject in ("libraries", "processor", "GPU", "data phantom", "disk", "store"):
        assert subject in out
    assert "1 runs finished, 0 failed, 0 unfinished" in out


def test_every_command_has_help_that_teaches(bench: Bench) -> None:
    for command in (
        *(("run",), ("report",), ("status",), ("doctor",), ("test-method",)),
        *(("list", name) for name in ("methods", "datasets", "rules", "profiles")),
        *(("data", name) for name in ("prepare", "check", "list")),
    ):
        code, out, _ = bench(*command, "--help")
        assert code == 0
        described = out.split("Options")[0].split("Usage:")[1].splitlines()[1:]
        assert len(" ".join(described).split()) >= 4, command


def test_these_tests_do_not_depend_on_who_runs_them() -> None:
    """A CI service asks for colours, a user has a store of theirs."""
    asked = {"FORCE_COLOR": "1", "GITHUB_ACTIONS": "true", "COLUMNS": "40", "BENCH_STORE": "none"}
    here = Path(__file__).parent
    names = ("test_plan.py::test_the_help_teaches", "test_plan.py::test_a_given_sd_needs_no_store")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no"]
    done = subprocess.run(
        [*command, *(str(here / name) for name in names)],
        env=os.environ | asked, cwd=here.parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_status_counts_finished_runs_where_they_are_many(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path, create=True)
    for seed in range(4):
        run, state = runs.run_id(seed=seed), "finished" if seed else "failed"
        record = runs.record(run, runs.spec(seed=seed), state=state)
        store.commit(run, runs.tables(runs.cases(run, {10: [0.5]})), record, {"seconds": 1.0})
    assert bench("status", "--store", tmp_path)[1].count("finished") == 3
    monkeypatch.setattr(status, "MANY", 2)
    _, out, _ = bench("status", "--store", tmp_path)
    assert "3 more runs finished; --all lists them." in out
    assert "loss is NaN at step 7" in out
    assert len(out.splitlines()) == 3
    assert bench("status", "--store", tmp_path, "--all")[1].count("finished") == 3
    assert len(bench("status", "--store", tmp_path, "--json")[1].splitlines()) == 4


@pytest.mark.parametrize("told", [{}, {"record": {}}, {"record": "finished"}])
def test_status_reads_stores_whose_sidecars_do_not_repeat_the_record(
    bench: Bench, tmp_path: Path, told: dict[str, object]
) -> None:
    store, run = Store.open(tmp_path, create=True), runs.run_id()
    record = runs.record(run, runs.spec())
    store.commit(run, runs.tables(runs.cases(run, {10: [0.5]})), record, {"seconds": 1.0})
    sidecar = tmp_path / "runs" / f"{run}.json"
    sidecar.write_text(json.dumps({"seconds": 1.0, "resumed": True} | told))
    (row,) = map(json.loads, bench("status", "--store", tmp_path, "--json")[1].splitlines())
    assert (row["state"], row["step"], row["note"]) == ("finished", 3000, "resumed")


def test_a_table_breaks_no_short_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "out", Console(width=40))
    note = "a note of more words than there is room for"
    terminal.print_table(("run", "state", "note"), [("tcseg-la-8-s0-mini-0", "finished", note)])
    said = capsys.readouterr().out
    assert "tcseg-la-8-s0-mini-0 finished" in said
    assert note.split() == [w for line in said.splitlines()[1:] for w in line[30:].split()]


def test_a_table_of_methods_loses_nothing_at_any_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = catalogue.rows(METHODS)
    letters = Counter("".join(cell for row in (catalogue.HEAD, *rows) for cell in row))
    del letters[" "]
    for width in (60, 74, 80, 81, 100, 130):
        monkeypatch.setattr(terminal, "out", Console(width=width))
        terminal.print_table(catalogue.HEAD, rows)
        assert Counter("".join(capsys.readouterr().out.split())) == letters, width


def test_one_label_of_a_folder_is_prepared_and_trained_by_its_name(
    bench: Bench, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "balls", 10)
    words = ("-m", "supervised", "--profile", "smoke", "--seeds", "1", "--labelled", "2")
    code, _, err = bench(
        *("run", *words, "-d", f"{folder}:1", "--data", tmp_path / "data"),
        *("--store", tmp_path / "s", "--executor", "inline"),
    )
    assert code == 0, err
    assert Store.open(tmp_path / "s").records()["dataset"].tolist() == ["balls-label1"]


def test_a_folder_that_is_no_dataset_is_told_as_such(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(tmp_path)
    code, _, err = bench("run", "-m", "supervised", "-d", "bare")
    assert code == 2
    assert "the folder bare has no dataset.json" in err


def test_a_dry_run_times_the_stages_of_a_run(toy: Toy, tmp_path: Path) -> None:
    made = plan(toy.folder, toy.root, tmp_path, "slows", plugins=[PLUGIN])
    [cost] = costs(made.jobs, torch.device("cpu"), 1).values()
    assert cost.seconds >= 0.5 * made.jobs[0].spec.steps


def test_a_dry_run_of_a_method_that_fails_is_one_line(bench: Bench, toy: Toy) -> None:
    words = ("-d", toy.folder, "--data", toy.root, "--profile", "smoke", "--labelled", "2")
    code, _, err = bench("run", "--plugin", PLUGIN, "-m", "crashes", *words, "--dry-run")
    assert code == 2
    assert "crashes cannot be tried: KeyError" in err
    assert "plugin_methods.py:" in err


def test_a_report_of_nothing_finished_says_so(bench: Bench, toy: Toy, tmp_path: Path) -> None:
    words = ("-d", toy.folder, "--data", toy.root, "--profile", "smoke", "--labelled", "2")
    store = ("--store", tmp_path / "s")
    bench("run", "--plugin", PLUGIN, "-m", "crashes", *words, "--seeds", "1", *store)
    _, _, err = bench("report", "table", *store)
    assert "has finished yet" in err
    (row,) = bench("status", "--json", *store)[1].splitlines()
    assert json.loads(row)["state"] == "error"
