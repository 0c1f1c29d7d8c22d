import csv
import io
import shlex

import pytest
from typer.testing import CliRunner

from reports import ablations
from reports.ablations import AXES, SPACES
from reports.facts import load_facts
from results.store import Store
from tests.reports import grid_toy
from tests.reports.grid_toy import Run, cells, naive_median, of

OFF = {
    "w/o U(v)": {"use_uncertainty": False},
    "w/o C(v)": {"use_confidence": False},
    "dual-axis": {},
    "only sup": {"use_probability": False, "use_feature": False, "use_image": False},
    "w/o prob.": {"use_probability": False},
    "w/o img.": {"use_image": False},
    "w/o feat.": {"use_feature": False},
    "full": {},
}
ROWS = {
    AXES: ["w/o U(v)", "w/o C(v)", "dual-axis"],
    SPACES: ["only sup", "w/o prob.", "w/o img.", "w/o feat.", "full"],
}
SHORT = {"la-8": "la 8 / 72", "pancreas-6": "pancreas 6 / 56"}
LACKING = ("w/o feat.", "pancreas-6")


def grid():
    """Every ablation with three seeds, but one in one setting; one run of a space has failed."""
    runs = []
    for place, changed in enumerate({str(v): v for v in OFF.values()}.values()):
        for s, setting in enumerate(SHORT):
            if (changed, setting) == (OFF[LACKING[0]], LACKING[1]):
                continue
            for seed in range(3):
                level = 0.8 - 0.03 * place - 0.1 * s + 0.017 * ((2 * seed) % 3)
                failed = (place, setting, seed) == (4, "la-8", 2)
                runs.append(Run("tcseg", setting, seed, level, changed, failed))
    return runs


RUNS = grid()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return grid_toy.fill(tmp_path_factory.mktemp("ablations") / "store", RUNS)


@pytest.fixture
def empty_store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


def facts_of(store, protocol="last"):
    return load_facts(store, protocol, "tcseg")


def medians(name, protocol="last"):
    """By setting, of the runs of a row; empty where there are none."""
    found = {s: of(RUNS, "tcseg", s, **OFF[name]) for s in SHORT}
    return {s: naive_median(runs, protocol) for s, runs in found.items() if runs}


@pytest.mark.parametrize("study", ROWS, ids=lambda study: study.name)
@pytest.mark.parametrize("protocol", ["last", "best"])
def test_every_number_is_what_plain_python_says(store, study, protocol):
    (sheet,) = ablations.sheets(study, facts_of(store, protocol))
    found = {key[1]: row for key, row in cells(sheet).items()}
    assert list(found) == ROWS[study]
    full = medians("full", protocol)
    for name, row in found.items():
        own = medians(name, protocol)
        for setting, short in SHORT.items():
            runs = of(RUNS, "tcseg", setting, **OFF[name])
            if setting not in own:
                assert [row[short, c] for c in ("DSC % ↑", "− full", "runs")] == [
                    "not run",
                    "–",
                    "–",
                ]
                continue
            assert row[short, "DSC % ↑"] == f"{own[setting]:.2f}"
            assert row[short, "runs"] == f"{sum(not r.failed for r in runs)}/{len(runs)}"
            loss = "–" if not OFF[name] else f"{own[setting] - full[setting]:+.2f}"
            assert row[short, "− full"] == loss
        mean = "–" if len(own) < len(SHORT) else f"{sum(own.values()) / len(own):.2f}"
        assert row["mean", "DSC % ↑"] == mean


def test_what_was_not_run_has_the_command_that_makes_it(store):
    (sheet,) = ablations.sheets(SPACES, facts_of(store))
    assert sheet.commands == (
        "bench run --method tcseg --dataset pancreas --labelled 6 --seeds 3 --profile mini "
        "--recipe common --set tcseg.use_feature=false",
    )
    (axes,) = ablations.sheets(AXES, facts_of(store))
    assert axes.commands == ()


def test_a_command_repeats_base_profile_recipe_seeds_and_predictors(empty_store):
    for seed in (2, 7):
        run = Run("tcseg", "la-8", seed, 0.7, {"tau": 0.1, "variant": "released"})
        labels = {"profile": "mini+steps=500+width=4", "recipe": "common+learning_rate=0.02"}
        content = grid_toy.spec_of(run)
        content["dataset"]["name"] = "my data; rm -rf"
        off = Run("tcseg", "la-8", seed, 0.6, {**run.changed, "use_confidence": False})
        both = grid_toy.spec_of(off)
        both["dataset"]["name"] = "my data; rm -rf"
        predictors = {"predictors": "main,teacher", "dataset": "my data; rm -rf (partial 3/9)"}
        grid_toy.add(empty_store, run, content=content, **labels, **predictors)
        grid_toy.add(empty_store, off, content=both, tag="o", **labels, **predictors)
    (sheet,) = ablations.sheets(AXES, facts_of(empty_store))
    (command,) = sheet.commands
    words = shlex.split(command)
    assert words[:2] == ["bench", "run"]
    options = list(zip(words[2::2], words[3::2], strict=True))
    assert options == [
        ("--method", "tcseg"),
        ("--dataset", "my data; rm -rf"),
        ("--labelled", "8"),
        ("--seeds", "2,7"),
        ("--profile", "mini"),
        ("--recipe", "common"),
        ("--predictors", "main,teacher"),
        ("--set", "tcseg.tau=0.1"),
        ("--set", "tcseg.variant=released"),
        ("--set", "tcseg.use_uncertainty=false"),
        ("--set", "profile.steps=500"),
        ("--set", "profile.width=4"),
        ("--set", "recipe.learning_rate=0.02"),
    ]


def test_rescored_runs_have_no_command_as_training_does_not_make_them(empty_store):
    run = Run("tcseg", "la-8", 0, 0.7)
    content = grid_toy.spec_of(run) | {"rescored": {"component": "largest"}}
    grid_toy.add(empty_store, run, content=content, profile="mini+component=largest")
    (sheet,) = ablations.sheets(AXES, facts_of(empty_store))
    assert sheet.commands == ()


def test_the_commands_are_understood_by_the_command_line(empty_store, tmp_path):
    from benchmark.cli import app

    run = Run("tcseg", "la-8", 0, 0.7)
    content = grid_toy.spec_of(run)
    content["dataset"]["name"] = "phantom"
    grid_toy.add(empty_store, run, content=content | {"labelled": 3}, profile="smoke", labelled=3)
    (sheet,) = ablations.sheets(SPACES, facts_of(empty_store))
    words = shlex.split(sheet.commands[0])[1:]
    folders = ["--store", str(tmp_path / "new"), "--data", str(tmp_path / "data")]
    result = CliRunner().invoke(app, [*words, *folders, "--dry-run"])
    assert result.exit_code == 0, result.output


def test_bases_are_never_compared_with_each_other(empty_store):
    for changed in ({}, {"variant": "released"}):
        for off in ({}, {"use_uncertainty": False}):
            level = 0.8 - 0.1 * len(changed) - 0.05 * len(off)
            grid_toy.add(empty_store, Run("tcseg", "la-8", 0, level, {**changed, **off}))
    sheets = ablations.sheets(AXES, facts_of(empty_store))
    assert [s.sections[0].heading for s in sheets] == ["tcseg v1", "tcseg (variant=released) v1"]
    for sheet in sheets:
        rows = {key[1]: row for key, row in cells(sheet).items()}
        assert rows["w/o U(v)"]["la 8 / 72", "− full"] == "-5.00"


def test_profiles_and_predictors_are_tables_of_their_own(empty_store):
    run = Run("tcseg", "la-8", 0, 0.7, {"use_image": False})
    grid_toy.add(empty_store, run)
    for tag, changes in (("a", {"predictors": ["main", "x"]}), ("b", {"profile": {"name": "p"}})):
        label = {"profile": "p"} if "profile" in changes else {}
        grid_toy.add(empty_store, run, tag=tag, content=grid_toy.spec_of(run, **changes), **label)
    sheets = ablations.sheets(SPACES, facts_of(empty_store))
    assert len(sheets) == 3
    for sheet in sheets:
        assert [row[1] for row in sheet.sections[0].rows if row[1] != "not run"] == ["71.50"]


def test_a_combination_that_the_paper_has_not_is_a_row_too(empty_store):
    off = {"use_feature": False, "use_image": False}
    for changed in ({}, off):
        grid_toy.add(empty_store, Run("tcseg", "la-8", 0, 0.7, changed))
    (sheet,) = ablations.sheets(SPACES, facts_of(empty_store))
    names = [row[0] for row in sheet.sections[0].rows]
    assert names == [*ROWS[SPACES][:-1], "w/o img., feat.", "full"]


def test_an_older_version_has_no_command_as_it_would_run_the_new_one(empty_store):
    for version in (1, 2):
        run = Run("tcseg", "la-8", 0, 0.7, {"use_image": False})
        content = grid_toy.spec_of(run)
        content["method"]["version"] = version
        grid_toy.add(empty_store, run, tag=str(version), content=content)
    old, new = ablations.sheets(SPACES, facts_of(empty_store))
    assert (old.sections[0].heading, new.sections[0].heading) == ("tcseg v1", "tcseg v2")
    assert old.commands == ()
    assert len(new.commands) == 4


def test_without_any_ablation_the_full_method_stands_alone_and_the_page_says_so(empty_store):
    grid_toy.add(empty_store, Run("tcseg", "la-8", 0, 0.7))
    grid_toy.add(empty_store, Run("tcseg", "la-8", 0, 0.7, {"tau": 0.1}))
    (sheet,) = ablations.sheets(AXES, facts_of(empty_store))
    assert sheet.notes[0] == "No ablation of this study has been run here."
    assert [row[1] for row in sheet.sections[0].rows] == ["not run", "not run", "71.50"]
    assert len(sheet.commands) == 2


@pytest.mark.parametrize("study", ROWS, ids=lambda study: study.name)
def test_a_store_without_the_method_says_so(empty_store, tmp_path, study):
    grid_toy.add(empty_store, Run("mt", "la-8", 0, 0.7))
    page, table, latex = (
        p.read_text() for p in ablations.write_study(study, facts_of(empty_store), tmp_path)
    )
    assert "this store holds no run of tcseg" in page
    assert "bench run --method tcseg --set tcseg." in page
    assert "tabular" not in latex
    assert len(table.splitlines()) == 1


def test_only_failed_runs_read_failed(empty_store):
    for changed in ({}, {"use_uncertainty": False}):
        grid_toy.add(empty_store, Run("tcseg", "la-8", 0, 0.7, changed, failed=True))
    (sheet,) = ablations.sheets(AXES, facts_of(empty_store))
    rows = sheet.sections[0].rows
    assert rows[0][1:] == ("failed", "–", "0/1")
    assert rows[2][1:] == ("failed", "–", "0/1")


def test_the_order_of_runs_and_rows_changes_no_byte(tmp_path):
    one = facts_of(grid_toy.fill(tmp_path / "one", RUNS[:15]))
    other = facts_of(grid_toy.fill(tmp_path / "other", RUNS[14::-1], shuffled=True))
    for study in ROWS:
        first, second = (
            [p.read_bytes() for p in ablations.write_study(study, facts, tmp_path / "out")]
            for facts in (one, other)
        )
        assert first == second


def test_the_files_are_named_after_study_and_protocol_and_hold_the_numbers(store, tmp_path):
    paths = ablations.write_study(SPACES, facts_of(store, "best"), tmp_path)
    assert [p.name for p in paths] == [f"ablation-spaces-best.{s}" for s in ("md", "csv", "tex")]
    grid_toy.check_latex(paths[2].read_text())
    assert "```sh\nbench run" in paths[0].read_text()
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert len(rows) == len(ROWS[SPACES]) * len(SHORT)
    (row,) = [r for r in rows if (r["row"], r["setting"][:2]) == ("w/o img.", "la")]
    assert float(row["dsc_percent_median"]) == pytest.approx(
        medians("w/o img.", "best")["la-8"], abs=1e-4
    )
    (gone,) = [r for r in rows if (r["row"], r["setting"][:2]) == ("w/o feat.", "pa")]
    assert (gone["started"], gone["dsc_percent_median"]) == ("0", "")


def test_the_switches_are_those_of_the_method():
    from methods.tcseg import TCSeg

    defaults = vars(TCSeg())
    assert TCSeg.name == ablations.METHOD
    for study in ROWS:
        assert all(defaults[switch] is True for switch in study.switches)
        assert all(off <= set(study.switches) for off in study.rows)
    assert grid_toy.DEFAULTS.items() <= defaults.items()
