"""`bench check` through the command line: answers, exit codes, files, bad input, the workflow."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark import cli
from benchmark.baseline import Baseline, Protocol, Target, read_baseline, toml_text
from benchmark.checking import write_baseline
from protocols.equivalence import Answer, Claim, check, derived_margin, nothing
from protocols.rules import RULES
from reports.check import EXIT_CODES, Checked, junit, overall, summary
from results.errors import UserError
from results.store import Store
from tests.protocols import toy

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "examples" / "ci-check.yml"
LEVELS = {"mt": (0.70, 0.71, 0.69, 0.705, 0.695), "tcseg": (0.80, 0.81, 0.79, 0.805, 0.795)}


@pytest.fixture
def bench(capsys, monkeypatch):
    """Calls the command line; gives exit code, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def made(path, levels=LEVELS, *, off=0.0, tag="0", failed=0, first_seed=0, **changes):
    """A store whose runs have these mean DSC at the last step; `mt` is off by so much."""
    store = Store.open(path, create=True)
    for method, means in levels.items():
        for place, mean in enumerate(means):
            seed = first_seed + place
            level = mean + (off if method == "mt" else 0.0)
            rows = toy.cases(
                toy.run_id(method, seed, tag=tag),
                {1000: (level - 0.2, level - 0.1), 3000: (level - 0.05, level + 0.05)},
            )
            toy.add(store, rows, toy.spec(method, seed=seed, **changes))
    for seed in range(50, 50 + failed):
        rows = toy.cases(toy.run_id("mt", seed), {1000: (0.1, 0.1)})
        toy.add(store, rows, toy.spec("mt", seed=seed), state="failed")
    return store


@pytest.fixture(scope="module")
def trusted(tmp_path_factory):
    path = tmp_path_factory.mktemp("trusted")
    made(path)
    return path


@pytest.fixture(scope="module")
def written(trusted, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "b.toml"
    write_baseline(trusted, path)
    return path


@pytest.fixture
def baseline(written, tmp_path):
    return shutil.copy(written, tmp_path / "b.toml")


# Writing


def test_a_baseline_holds_what_plain_numpy_says(baseline):
    read = read_baseline(baseline)
    assert read.protocol == Protocol("last", "tcseg", "mean")
    assert [t.method for t in read.targets] == ["tcseg", "mt"]
    for target in read.targets:
        dsc = 100 * np.array(LEVELS[target.method])
        assert target.value == round(dsc.mean(), 2)
        assert target.sd == pytest.approx(dsc.std(ddof=1), abs=1e-4)
        exact = derived_margin(5, dsc.std(ddof=1), 0.01)
        assert exact <= target.margin <= exact + 0.01
        assert (target.n, target.failed, target.unit) == (5, 0, "%")
        assert target.runs == tuple(toy.run_id(target.method, seed) for seed in range(5))


def test_what_is_written_can_be_chosen(bench, trusted, tmp_path):
    path = tmp_path / "other.toml"
    options = ("--protocol", "best", "--empty", "worst", "--statistic", "median")
    more = ("--metric", "dsc", "--metric", "hd95", "--margin", "2.5", "--direction", "at-least")
    assert bench("check", "--write", path, "--store", trusted, *options, *more)[0] == 0
    read = read_baseline(path)
    assert read.protocol == Protocol("best", "worst", "median")
    assert {(t.metric, t.unit) for t in read.targets} == {("dsc", "%"), ("hd95", "mm")}
    assert {(t.margin, t.direction) for t in read.targets} == {(2.5, "at-least")}
    distances = [30 * (1 - mean) for mean in LEVELS["mt"]]
    (target,) = (t for t in read.targets if (t.method, t.metric) == ("mt", "hd95"))
    assert target.value == round(float(np.median(distances)), 2)


def test_a_row_that_can_be_no_target_is_said_not_dropped(bench, tmp_path):
    made(tmp_path / "s", {"mt": (0.7,), "tcseg": LEVELS["tcseg"]})
    code, out, err = bench("check", "--write", tmp_path / "b.toml", "--store", tmp_path / "s")
    assert code == 0
    assert "wrote 1 target(s)" in out
    assert "left out mt, la 8, DSC: 1 finished run(s); a margin for a mean takes 2" in err


def test_a_baseline_is_never_overwritten(bench, baseline, trusted):
    before = baseline.read_bytes()
    code, _, err = bench("check", "--write", baseline, "--store", trusted)
    assert code == 2
    assert "exists: delete it" in err
    assert baseline.read_bytes() == before


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
number = st.floats(0, 100, allow_subnormal=False)


@settings(max_examples=150, deadline=None)
@given(text, text, text, number, number, st.lists(text, max_size=3), st.none() | number)
def test_what_is_written_is_read_back_identical(
    tmp_path_factory, name, method, key, value, margin, runs, sd
):
    target = Target(
        name=name,
        method=method,
        hyperparameters=json.dumps({key: value}),
        recipe=key,
        dataset=method,
        fingerprint="f" * 64,
        labelled=8,
        profile="mini+steps=5",
        metric="dsc",
        unit="%",
        value=value,
        margin=margin + 1e-9,
        direction="equal",
        n=5,
        runs=tuple(runs),
        sd=sd,
    )
    written = Baseline(Protocol("best(split=val)", "worst", "median"), (target,))
    content = toml_text(written)
    (table,) = tomllib.loads(content)["target"]
    given = {f.name: getattr(target, f.name) for f in fields(target)}
    assert {k: tuple(v) if k == "runs" else v for k, v in table.items()} == {
        k: v for k, v in given.items() if k in table
    }
    path = tmp_path_factory.getbasetemp() / "written.toml"
    path.write_text(content, newline="")
    assert read_baseline(path) == written


# Answers and exit codes


@pytest.mark.parametrize(
    ("off", "code", "answer"),
    [
        (0.0, 0, "reproduced"),
        (-0.002, 0, "reproduced"),
        (-0.013, 4, "inconclusive"),
        (-0.05, 3, "regressed"),
        (+0.05, 3, "regressed"),
    ],
)
def test_other_seeds_are_held_against_the_target(bench, baseline, tmp_path, off, code, answer):
    made(tmp_path / "new", off=off, first_seed=10, tag="new")
    exit_code, out, _ = bench("check", baseline, "--store", tmp_path / "new")
    assert exit_code == code
    assert f"Check: {answer}" in out
    (row,) = re.findall(r"^ *mt, la 8, DSC .*$", out, flags=re.MULTILINE)
    assert answer in row
    (other,) = re.findall(r"^ *tcseg, la 8, DSC .*$", out, flags=re.MULTILINE)
    assert "reproduced" in other


def test_the_same_seeds_again_are_reproduced_but_remarked_upon(bench, baseline, trusted):
    code, out, _ = bench("check", baseline, "--store", trusted)
    assert code == 0
    assert "5 of 5 runs have seeds of the baseline's own" in out


def test_one_run_is_inconclusive_though_it_hits_the_value(bench, baseline, tmp_path):
    made(tmp_path / "new", {"mt": (0.70,), "tcseg": (0.80,)})
    code, out, _ = bench("check", baseline, "--store", tmp_path / "new")
    assert code == 4
    assert "1 finished run(s) can decide nothing about a mean" in out


def test_a_failed_run_where_there_was_none_is_inconclusive(bench, baseline, tmp_path):
    made(tmp_path / "new", failed=1)
    code, out, _ = bench("check", baseline, "--store", tmp_path / "new")
    assert code == 4
    assert "5/6" in out
    assert "1 of 6 runs failed, 0 of 5 for the target" in out


def test_many_failed_runs_are_a_regression(bench, baseline, tmp_path):
    made(tmp_path / "new", failed=12)
    assert bench("check", baseline, "--store", tmp_path / "new")[0] == 3


def test_runs_that_all_failed_measure_nothing(bench, baseline, tmp_path):
    made(tmp_path / "new", {"tcseg": LEVELS["tcseg"]}, failed=5)
    code, out, _ = bench("check", baseline, "--store", tmp_path / "new")
    assert code == 5
    assert "no run has a value: 0 finished without one, 5 failed" in out


def test_an_unfinished_run_forbids_reproduced(bench, baseline, tmp_path):
    store = made(tmp_path / "new")
    run, content = toy.run_id("mt", 77), toy.spec("mt", seed=77)
    row = toy.planned(run, content)
    store.write_work(run, "spec.json", json.dumps({"spec": content, "row": row}))
    code, out, _ = bench("check", baseline, "--store", tmp_path / "new")
    assert code == 4
    assert "1 run(s) were begun and are unfinished" in out
    code, _, err = bench("check", "--write", tmp_path / "new.toml", "--store", tmp_path / "new")
    assert code == 0
    assert "left out 1 unfinished run(s) of mt, la 8, DSC\n" in err


@pytest.mark.parametrize("there", ["store", "folder", "nothing"])
def test_a_store_without_runs_measures_nothing(bench, baseline, tmp_path, there):
    if there == "store":
        Store.open(tmp_path / "new", create=True)
    if there == "folder":
        (tmp_path / "new").mkdir()
    code, out, _ = bench("check", baseline, "--store", tmp_path / "new")
    assert code == 5
    assert "Check: nothing measured" in out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": "e" * 64}, "fingerprint is eeeeeeeeeeee... instead of ffffffffffff..."),
        ({"profile": {"name": "paper"}}, "profile is paper instead of mini"),
        ({"decay": 0.9}, "decay is 0.9 instead of 0.99"),
        ({"labelled": 16}, "labelled is 16 instead of 8"),
    ],
)
def test_runs_of_something_else_measure_nothing_and_the_nearest_is_named(
    bench, baseline, tmp_path, changes, said
):
    made(tmp_path / "new", **changes)
    code, out, _ = bench("check", baseline, "--store", tmp_path / "new")
    assert code == 5
    assert f"no run of this target; nearest is mt-la-8-s0-mini-0, where {said}." in out


def test_of_a_run_of_another_method_no_hyperparameter_is_compared(bench, baseline, tmp_path):
    made(tmp_path / "new", {"tcseg": LEVELS["tcseg"]})
    code, out, _ = bench("check", baseline, "--store", tmp_path / "new")
    assert code == 5
    assert "where method is tcseg instead of mt." in out
    assert "None" not in out


def test_a_hyperparameter_that_is_not_set_is_said_to_be(bench, baseline, tmp_path):
    read = read_baseline(baseline)
    more = [replace(t, hyperparameters='{"decay":0.99,"extra":1}') for t in read.targets]
    baseline.write_text(toml_text(replace(read, targets=tuple(more))))
    made(tmp_path / "new")
    out = bench("check", baseline, "--store", tmp_path / "new")[1]
    assert "extra is not set instead of 1" in out


def test_two_versions_are_never_mixed_unless_one_is_named(bench, baseline, tmp_path):
    levels = {"mt": LEVELS["mt"]}
    store = made(tmp_path / "new", levels)
    made(tmp_path / "new", levels, version=2, tag="v2", off=-0.2)
    code, out, _ = bench("check", baseline, "--store", tmp_path / "new")
    assert code == 5
    assert "runs of 2 kinds match" in out
    assert "and are never mixed" in out
    old, new = (
        re.search(rf"([0-9a-f]{{8}}) \(version {v}, 5 runs\)", out).group(1) for v in (1, 2)
    )
    read = read_baseline(baseline)
    for identity, expected in ((old, 0), (new, 3)):
        (target,) = (t for t in read.targets if t.method == "mt")
        path = tmp_path / f"{identity}.toml"
        path.write_text(toml_text(replace(read, targets=(replace(target, identity=identity),))))
        assert bench("check", path, "--store", store.path)[0] == expected


def test_the_worst_answer_decides():
    def checked(answer):
        return Checked("t", "%", Claim(1, 1, True), replace(nothing("why"), answer=answer))

    worst_last = [Answer.REPRODUCED, Answer.INCONCLUSIVE, Answer.REGRESSED, Answer.NOTHING]
    for place, worst in enumerate(worst_last):
        assert overall([checked(a) for a in worst_last[: place + 1]]) is worst
    wrong = [Answer.REGRESSED, Answer.INCONCLUSIVE, Answer.REPRODUCED, Answer.NOTHING]
    for place, worst in enumerate(wrong):
        assert overall([checked(a) for a in wrong[: place + 1]], control=True) is worst
    assert dict(zip(worst_last, (0, 4, 3, 5), strict=True)) == EXIT_CODES


@pytest.mark.parametrize("rule", [*RULES, "best(predictors=all)", "last-k(k=2)"])
def test_what_is_written_under_any_rule_is_reproduced_by_the_same_store(bench, tmp_path, rule):
    store = Store.open(tmp_path / "s", create=True)
    for seed, mean in enumerate(LEVELS["mt"]):
        steps = {
            s: [mean - 0.05, mean + 0.01 * s / 1000, mean + 0.05] for s in range(1000, 6000, 1000)
        }
        both = [toy.cases(toy.run_id("mt", seed), steps, split=split) for split in ("test", "val")]
        toy.add(store, pd.concat(both, ignore_index=True), toy.spec("mt", seed=seed))
    path = tmp_path / "b.toml"
    bench("check", "--write", path, "--store", store.path, "--protocol", rule)
    code, out, err = bench("check", path, "--store", store.path)
    assert code == 0, out + err


def test_a_control_passes_only_if_every_wrong_target_is_told_from_the_truth(bench, tmp_path):
    made(tmp_path / "s", {"tcseg": LEVELS["tcseg"], "mt": (0.60, 0.80)})
    path = tmp_path / "b.toml"
    bench("check", "--write", path, "--store", tmp_path / "s", "--margin", "1")
    code, out, _ = bench("check", path, "--store", tmp_path / "s", "--control")
    assert "inconclusive" in out
    assert code == 4


def test_rows_of_one_method_that_differ_in_what_was_evaluated_are_targets_of_their_own(
    bench, tmp_path
):
    store = made(tmp_path / "s", {"mt": LEVELS["mt"]})
    made(tmp_path / "s", {"mt": LEVELS["mt"]}, tag="both", predictors=["main", "teacher"])
    path = tmp_path / "b.toml"
    assert bench("check", "--write", path, "--store", store.path)[0] == 0
    targets = read_baseline(path).targets
    assert len({t.identity for t in targets}) == len(targets) == 2
    code, out, _ = bench("check", path, "--store", store.path)
    assert code == 0, out


def test_the_wrong_targets_of_the_control_fail(bench, baseline, trusted):
    code, out, _ = bench("check", baseline, "--store", trusted, "--control")
    assert code == 3
    assert "deliberately WRONG targets" in out


# Files for CI services


def test_junit_has_a_case_for_each_target_and_hides_nothing(bench, baseline, tmp_path):
    made(tmp_path / "new", off=-0.2)
    path = tmp_path / "check.xml"
    bench("check", baseline, "--store", tmp_path / "new", "--junit", path)
    root = ET.parse(path).getroot()
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("2", "1", "0")
    good, bad = root.iter("testcase")
    assert good.find("failure") is None
    assert "regressed: worse than the target" in bad.find("failure").get("message")
    assert "here value: 50.00" in bad.find("system-out").text
    assert "mt-la-8-s4-mini-0" in bad.find("system-out").text


def test_in_junit_what_could_not_be_told_is_an_error_not_green():
    few = check([80.0], Claim(80.0, 1.0, True))
    rows = [Checked("few", "%", Claim(80.0, 1.0, True), v) for v in (few, nothing("crashed"))]
    root = ET.fromstring(junit(rows, "p"))
    assert root.get("errors") == "2"
    assert [e.get("type") for e in root.iter("error")] == ["inconclusive", "nothing measured"]


HOSTILE = "\x00\x1b[31m</testcase>&<script>alert('x')</script>\ufffe|`]]>\n=1+1"


def test_hostile_names_stay_text():
    rows = [Checked(HOSTILE, "%", Claim(80.0, 1.0, True), nothing(HOSTILE))]
    root = ET.fromstring(junit(rows, HOSTILE))
    (case,) = root.iter("testcase")
    assert "</testcase>&<script>alert('x')</script>" in case.get("name")
    assert "\x00" not in case.get("name")
    page = summary(rows, HOSTILE)
    assert "<script>" not in page
    assert "\x1b" not in page


def test_the_summary_is_appended_as_ci_services_want_it(bench, baseline, trusted, tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    bench("check", baseline, "--store", trusted, "--summary", path)
    content = path.read_text()
    assert content.startswith("before\n# Check: reproduced\n")
    assert "| mt, la 8, DSC | reproduced | 5/5 | 70.00 % |" in content


def test_a_summary_that_cannot_be_written_is_said(bench, baseline, trusted, tmp_path):
    code, _, err = bench("check", baseline, "--store", trusted, "--summary", tmp_path)
    assert code == 2
    assert "cannot be written" in err


# Bad input


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('rule = "last"', 'rule = "lst"', "[protocol]: unknown rule 'lst'. Did you mean 'last'?"),
        ('rule = "last"', "", "[protocol]: missing: rule"),
        ("n = 5", "n = 1000000000000000000000000000000", "expected 1 to 1,000,000"),
        ('empty = "tcseg"', 'empty = "zreo"', "unknown policy 'zreo'. Did you mean 'zero'?"),
        ("statistic =", "statstic =", "unknown key 'statstic'. Did you mean 'statistic'?"),
        ("version = 1", "version = 2", "version = 2: this bench reads version 1"),
        ("version = 1", "", "version = 1 is missing"),
        (
            "version = 1",
            "version = 1\nverbose = 1",
            "unknown key 'verbose'. Did you mean 'version'",
        ),
        ("[protocol]", "[protocl]", "unknown key 'protocl'. Did you mean 'protocol'?"),
        ("margin =", "margn =", "target 1 (tcseg, la 8, DSC): unknown key 'margn'. Did you mean"),
        ("labelled = 8\n", "", "target 1 (tcseg, la 8, DSC): missing: labelled"),
        ("labelled = 8", 'labelled = "8"', "labelled = '8': expected a whole number"),
        ("labelled = 8", "labelled = true", "labelled = True: expected a whole number"),
        ("value = 80.0", "value = nan", "value = nan: expected a number"),
        ("value = 80.0", "value = 800", "DSC is in percent, from 0 to 100"),
        ("value = 80.0", 'value = "80"', "value = '80': expected a number"),
        ("margin = ", "margin = -", "expected above 0"),
        ("n = 5", "n = 0", "n = 0: expected 1 to 1,000,000"),
        ('unit = "%"', 'unit = "mm"', "unknown unit of dsc 'mm'. Known: %"),
        ('metric = "dsc"', 'metric = "dcs"', "unknown metric 'dcs'. Did you mean 'dsc'?"),
        ('"equal"', '"equals"', "unknown direction 'equals'. Did you mean 'equal'?"),
        ("runs = [", "runs = [1, ", "expected a list of texts"),
        ("hyperparameters = '{", "hyperparameters = '", "expected all of them as a JSON object"),
        ("tcseg, la 8, DSC", "mt, la 8, DSC", "two targets are called 'mt, la 8, DSC'"),
        ("[protocol]", "[protocol", "is not TOML"),
    ],
)
def test_a_malformed_baseline_is_one_clear_message(bench, baseline, trusted, old, new, said):
    content = baseline.read_text()
    assert old in content
    baseline.write_text(content.replace(old, new, 1))
    code, _, err = bench("check", baseline, "--store", trusted)
    assert code == 2
    assert err.startswith(f"error: {baseline}")
    assert said in err


@pytest.mark.parametrize("content", ["version = 1\n[protocol]\n", "version = 1\ntarget = [1]\n"])
def test_half_a_baseline_is_refused(tmp_path, content):
    path = tmp_path / "b.toml"
    path.write_text(content)
    with pytest.raises(UserError, match="missing"):
        read_baseline(path)


def test_a_baseline_that_is_binary_or_missing_is_said(tmp_path):
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not TOML"):
        read_baseline(tmp_path / "b.toml")
    with pytest.raises(UserError, match="make one with `bench check --write"):
        read_baseline(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either a baseline to check, or --write PATH"),
        (("b.toml", "--write", "c.toml"), "give either a baseline to check, or --write PATH"),
        (("b.toml", "--protocol", "best"), "--protocol goes with --write"),
        (("--write", "c.toml", "--control"), "--write only makes a baseline"),
        (("--write", "c.toml", "--store", "nowhere"), "no store at nowhere"),
        (("none.toml",), "none.toml cannot be read"),
    ],
)
def test_commands_that_make_no_sense_are_refused(bench, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = bench("check", *arguments)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--margin", "-1", "expected above 0"),
        ("--direction", "up", "unknown direction 'up'"),
        ("--statistic", "mode", "unknown statistic 'mode'"),
        ("--metric", "dcs", "unknown metric 'dcs'. Did you mean 'dsc'?"),
    ],
)
def test_bad_choices_write_nothing(bench, trusted, tmp_path, option, value, said):
    code, _, err = bench("check", "--write", tmp_path / "b", "--store", trusted, option, value)
    assert code == 2
    assert said in err
    assert not (tmp_path / "b").exists()


def test_a_rule_that_the_runs_do_not_suit_names_the_target(bench, baseline, trusted):
    baseline.write_text(baseline.read_text().replace('"last"', '"best(split=val)"'))
    code, _, err = bench("check", baseline, "--store", trusted)
    assert code == 2
    assert "target tcseg, la 8, DSC: " in err
    assert "split val" in err


def test_the_help_teaches_the_exit_codes(bench):
    code, out, _ = bench("check", "--help")
    assert code == 0
    said = " ".join(out.split())
    for answer, number_ in EXIT_CODES.items():
        assert f"{number_} {answer}" in said


# The workflow


def steps():
    """(name, whether it runs after a failure, shell text) of the steps that run something."""
    blocks = re.split(r"\n      - ", WORKFLOW.read_text().split("    steps:\n")[1])
    for block in blocks:
        run = re.search(r"^        run: (?:\|\n((?:          .*\n?)+)|(.+))", block, re.MULTILINE)
        if run:
            name = re.search(r"name: (.+)", block).group(1)
            yield name, "if: always()" in block, run.group(1) or run.group(2)


def worked(tmp_path, store):
    """Run the workflow as a CI service does; exit codes by step. Training gives `store`."""
    tools, here = tmp_path / "bin", tmp_path / "checkout"
    tools.mkdir()
    here.mkdir(exist_ok=True)
    real = Path(sys.executable).with_name("bench")
    trains = f'cp -r "{store}" "$BENCH_STORE"' if store else "exit 1"
    scripts = {
        "pip": "exit 0",
        "bench": f'if [ "$1" = run ]; then {trains}; else exec {real} "$@"; fi',
    }
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    variables = dict(re.findall(r"^      ([A-Z_]+): (.+)$", WORKFLOW.read_text(), re.MULTILINE))
    env = os.environ | variables | {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    env["PATH"] = f"{tools}:{env['PATH']}"
    codes, failed = {}, False
    for name, always, shell in steps():
        if failed and not always:
            continue
        codes[name] = subprocess.run(["bash", "-e", "-c", shell], cwd=here, env=env).returncode
        failed = failed or codes[name] != 0
    return codes


@pytest.mark.parametrize(
    ("off", "code", "answer"), [(0.0, 0, "reproduced"), (-0.1, 3, "regressed")]
)
def test_the_workflow_ends_as_the_numbers_do(baseline, tmp_path, off, code, answer):
    made(tmp_path / "new", off=off, first_seed=10)
    (tmp_path / "checkout" / "baselines").mkdir(parents=True)
    shutil.copy(baseline, tmp_path / "checkout" / "baselines" / "mt.toml")
    assert worked(tmp_path, tmp_path / "new") == {
        "Install": 0,
        "Train": 0,
        "Check the reported numbers": code,
        "A wrong target must fail": 0,
    }
    assert f"# Check: {answer}" in (tmp_path / "summary.md").read_text()
    ET.parse(tmp_path / "checkout" / "check.xml")


def test_the_workflow_fails_when_training_crashes(baseline, tmp_path):
    (tmp_path / "checkout" / "baselines").mkdir(parents=True)
    shutil.copy(baseline, tmp_path / "checkout" / "baselines" / "mt.toml")
    codes = worked(tmp_path, None)
    assert codes["Train"] == 1
    assert codes["Check the reported numbers"] == 5
    assert codes["A wrong target must fail"] == 1


def test_the_training_command_of_the_workflow_exists():
    from typer.main import get_command

    (shell,) = (shell for name, _, shell in steps() if name == "Train")
    words = shell.split()
    assert words[:2] == ["bench", "run"]
    get_command(cli.app).commands["run"].make_context("bench", words[2:])


def test_a_check_starts_without_torch():
    code = "import sys, benchmark.checking, benchmark.planning; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
