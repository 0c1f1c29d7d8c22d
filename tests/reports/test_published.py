"""Published numbers beside ours: differences only where nothing forbids them."""

import csv
import io
import json
from statistics import median

import pytest

from protocols.rules import parse_rule
from reports import published as report
from reports.facts import load_facts
from reports.published import FORBIDS, HERE, MARKS, REFUSED, beside, marks, protocol_of, sheet
from reports.report import write_report
from results.errors import UserError
from results.published import published, read_tables
from results.store import Store
from tests.protocols import toy

LEVELS = {"tcseg": 0.90, "dtc": 0.87, "mt": 0.85}
CASES = 20


def score(method, seed, step):
    """Mean DSC: best (2000) is not last (3000), and seeds are not in order."""
    return LEVELS[method] + {1000: -0.1, 2000: 0.02, 3000: 0.0}[step] + 0.003 * ((2 * seed) % 5)


def fill(store, *, methods=("tcseg",), seeds=1, n_cases=CASES, spec=None, **row):
    for method in methods:
        for seed in range(seeds):
            content = toy.spec(method, seed=seed, **{"profile": {"name": "paper"}, **(spec or {})})
            signs = [0.01 if case % 2 else -0.01 for case in range(n_cases)]
            scores = {s: [score(method, seed, s) + sign for sign in signs] for s in toy.STEPS}
            rows = toy.cases(toy.run_id(method, seed), scores)
            toy.add(store, rows, content, **{"unit": "voxel", **row})
    return store


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Three methods with five seeds each, on all of LA, at the paper's scale."""
    store = Store.open(tmp_path_factory.mktemp("full") / "store", create=True)
    return fill(store, methods=LEVELS, seeds=5)


@pytest.fixture(scope="module")
def facts(full):
    return load_facts(full, "last", "tcseg")


def rows_of(facts, printed=None):
    return beside(facts, published() if printed is None else printed)


def one(rows, **values):
    for name, value in values.items():
        rows = rows[rows[name] == value]
    (row,) = rows.to_dict("records")
    return row


@pytest.fixture
def printed(tmp_path):
    """Reads a table of the test's own."""

    columns = "table,row,method,dataset,labelled,metric,statistic,value,protocol,split"

    def call(*lines):
        path = tmp_path / "own.csv"
        path.write_text("\n".join([columns, *lines]) + "\n")
        return read_tables([path])

    return call


# What is compared


def test_differences_are_those_of_the_same_statistic(facts):
    rows = rows_of(facts)
    ours = {m: [100 * score(m, s, 3000) for s in range(5)] for m in LEVELS}
    expected = {
        ("tcseg", "median"): median(ours["tcseg"]) - 90.28,
        ("tcseg", "maximum"): max(ours["tcseg"]) - 90.39,
        ("dtc", "single"): median(ours["dtc"]) - 87.51,
    }
    for (method, statistic), difference in expected.items():
        row = one(
            rows, method=method, statistic=statistic, protocol_printed="last", source="tcseg2026"
        )
        assert row["ours_minus_printed"] == pytest.approx(difference)
        assert not set(row["marks"]) & FORBIDS
    refused = rows[rows["ours_minus_printed"] == REFUSED]
    assert set(zip(refused["method"], refused["statistic"], refused["marks"], strict=True)) == {
        ("tcseg", "median", "PR"),
        ("tcseg", "maximum", "PR"),
        ("tcseg", "mean", "X"),
    }
    compared = rows[rows["ours_minus_printed"].notna()]
    assert set(compared["method"]) == {"tcseg", "dtc"}


def test_our_rows_are_those_of_the_store(facts):
    rows = rows_of(facts)
    for method in LEVELS:
        values = [100 * score(method, seed, 3000) for seed in range(5)]
        own = rows[(rows["source"] == HERE) & (rows["method"] == method)]
        found = own.set_index("statistic")["dsc_percent"]
        assert found["median"] == pytest.approx(median(values))
        assert found["maximum"] == pytest.approx(max(values))
        assert found["mean"] == pytest.approx(sum(values) / 5)
        assert set(own["runs"]) == {"5"}


def test_every_number_of_the_setting_is_there_once(facts):
    rows = rows_of(facts)
    theirs = rows[rows["source"] != HERE]
    table6 = published().query("table == '6' and labelled == 8 and metric == 'dsc'")
    numbers = [*table6["value"], 88.55, 89.86]
    assert sorted(theirs["dsc_percent"]) == sorted(numbers)
    assert one(theirs, method="bapc")["table"] == "1"
    assert one(theirs, method="ccnet")["table"] == "1, 6"
    assert one(theirs, method="ccnet")["hd95"] == 7.50
    assert one(theirs, statistic="mean")["std"] == 0.12
    assert one(theirs, method="tcseg", statistic="median", protocol_printed="last")["runs"] == "5"
    assert list(rows["dsc_percent"]) == sorted(rows["dsc_percent"], reverse=True)


def test_an_ablation_stands_beside_the_same_ablation_and_not_beside_another_method(store):
    off = dict.fromkeys(("use_probability", "use_feature", "use_image"), False)
    method = {"name": "tcseg", "version": 1, "hyperparameters": off}
    content = {**toy.spec(profile={"name": "paper"}), "method": method}
    rows = toy.cases(toy.run_id("tcseg"), {3000: [0.6] * CASES})
    toy.add(store, rows, content, unit="voxel", changed=json.dumps(off))
    run = toy.run_id("supervised")
    content = toy.spec("supervised", profile={"name": "paper"})
    toy.add(store, toy.cases(run, {3000: [0.7] * CASES}), content, unit="voxel")
    rows = rows_of(load_facts(store, "last", "tcseg"))
    theirs = rows[(rows["source"] != HERE) & (rows["table"] == "3")]
    (row,) = theirs.to_dict("records")
    assert row["method"] == "tcseg (use_feature=False, use_image=False, use_probability=False)"
    assert (row["dsc_percent"], row["ours_minus_printed"]) == (76.18, REFUSED)
    assert "Q" in row["marks"]
    assert set(rows.loc[rows["method"] == "supervised", "source"]) == {HERE}


def test_under_best_the_other_rows_are_refused(full):
    rows = rows_of(load_facts(full, "best", "tcseg"))
    theirs = rows[rows["source"] != HERE]
    last = one(theirs, method="tcseg", statistic="median", protocol_printed="last")
    best = one(theirs, method="tcseg", statistic="median", protocol_printed="best")
    assert (last["ours_minus_printed"], last["marks"]) == (REFUSED, "PR")
    ours = median(100 * score("tcseg", seed, 2000) for seed in range(5))
    assert best["ours_minus_printed"] == pytest.approx(ours - 90.73)
    assert one(theirs, method="tracoco", dsc_percent=89.29)["marks"] == "PN"
    assert one(theirs, method="tracoco", dsc_percent=89.86)["marks"] == "N"


def test_a_variant_stands_beside_the_same_variant_only(store):
    fill(store, changed='{"use_uncertainty": false}')
    rows = rows_of(load_facts(store, "last", "tcseg"))
    variants = rows[rows["method"].str.contains("(", regex=False) & (rows["source"] != HERE)]
    assert list(variants["dsc_percent"]) == [90.12]
    assert list(variants["ours_minus_printed"]) == [REFUSED]
    assert list(variants["marks"]) == ["QN"]


def test_a_number_that_stands_for_both_protocols_is_shown_once(store):
    spec = {"dataset": "brats2019", "labelled": 25}
    fill(store, spec=spec, unlabelled=225, unit="mm", n_cases=60)
    facts = load_facts(store, "last", "tcseg")
    theirs = rows_of(facts).query("source != @HERE")
    table5 = published().query("table == '5' and labelled == 25 and metric == 'dsc'")
    assert sorted(theirs["dsc_percent"]) == sorted(table5["value"])
    row = one(theirs, method="tcseg", statistic="median")
    assert (row["protocol_printed"], row["table"]) == ("both", "1, 2, 3, 5")
    assert row["protocol_released"] == "best(split=val)"
    assert "R" in row["marks"]
    assert "P" not in row["marks"]


# Marks

PRINTED = {
    "protocol_printed": "last",
    "protocol_released": "last",
    "split": "la/uamt",
    "unlabelled": 72,
    "unit": "mm",
    "unit_as_computed": "voxel",
    "statistic": "median",
    "accused": False,
}
OURS = {"dataset": "la", "unlabelled": 72, "cases": 20, "profile": "paper", "unit": "voxel"}


@pytest.mark.parametrize(
    ("letters", "printed_changes", "our_changes"),
    [
        ("", {}, {}),
        ("P", {"protocol_printed": "best"}, {}),
        ("", {"protocol_printed": "both"}, {}),
        ("", {"protocol_printed": "unknown"}, {}),
        ("Q", {"protocol_printed": "both", "protocol_released": ""}, {}),
        ("", {"protocol_released": ""}, {}),
        ("", {"protocol_released": "unclear"}, {}),
        ("R", {"protocol_released": "best"}, {}),
        ("R", {"protocol_released": "best(split=val)"}, {}),
        ("Q", {"protocol_printed": "unknown", "protocol_released": ""}, {}),
        ("Q", {"protocol_printed": "", "protocol_released": "unclear"}, {}),
        ("S", {"split": "la/mcf-5fold"}, {}),
        ("T", {"split": ""}, {}),
        ("V", {"unlabelled": 48}, {}),
        ("", {"unlabelled": None}, {}),
        ("C", {}, {"dataset": "la (partial: 30 cases)"}),
        ("C", {}, {"cases": 6}),
        ("F", {}, {"profile": "mini"}),
        ("F", {}, {"profile": "paper (steps=2000)"}),
        ("U", {"unit_as_computed": "mm"}, {}),
        ("U", {"unit_as_computed": ""}, {}),
        ("", {"unit_as_computed": "", "unit": ""}, {}),
        ("", {"unit_as_computed": "voxel=1mm"}, {}),
        ("N", {"statistic": "single"}, {}),
        ("X", {"accused": True}, {}),
    ],
)
def test_each_mark_has_its_own_reason(letters, printed_changes, our_changes):
    found = marks(PRINTED | printed_changes, OURS | our_changes, parse_rule("last"))
    assert found == letters


def test_the_five_test_sets_of_the_pancreas_are_not_one():
    ours = OURS | {"dataset": "pancreas", "unlabelled": 50, "unit": "mm"}
    table = published().query("table == '7' and labelled == 12 and metric == 'dsc'")
    by_method = {
        row["method"]: marks(row | {"accused": False}, ours, parse_rule("last"))
        for row in table.to_dict("records")
    }
    other = {m for m, letters in by_method.items() if "S" in letters}
    assert other == {"mcf", "aua", "coranet", "bcp", "versemi", "ccnet"}
    assert "V" in by_method["aua"]
    same = {m for m, letters in by_method.items() if not set("ST") & set(letters)}
    assert same == {"caussl-mc", "tracoco", "mcnetp", "cobionet"}


@pytest.mark.parametrize(
    ("changes", "letter"),
    [
        ({"spec": {"profile": {"name": "mini"}}}, "F"),
        ({"n_cases": 6}, "C"),
        ({"spec": {"dataset": "la (partial: 30 cases)"}}, "C"),
        ({"unlabelled": 60}, "V"),
    ],
)
def test_nothing_is_compared_with_runs_of_another_world(store, changes, letter):
    facts = load_facts(fill(store, **changes), "last", "tcseg")
    rows = rows_of(facts)
    assert rows.loc[rows["source"] != HERE, "marks"].str.contains(letter).all()
    theirs = rows[(rows["source"] != HERE) & (rows["method"] == "tcseg")]
    assert set(theirs["ours_minus_printed"]) == {REFUSED}
    assert f"{letter}: {MARKS[letter]}." in sheet(facts, rows).notes


def test_nothing_is_compared_under_a_policy_that_the_papers_do_not_have(full):
    facts = load_facts(full, "last", "exclude")
    rows = rows_of(facts)
    theirs = rows[(rows["source"] != HERE) & (rows["method"] == "tcseg")]
    assert theirs["marks"].str.contains("E").all()
    assert set(theirs["ours_minus_printed"]) == {REFUSED}
    assert set(rows["policy"]) == {"exclude"}
    notes = sheet(facts, rows).notes
    assert any(note.startswith("Empty masks here, policy exclude:") for note in notes)
    assert any(note.startswith("WARNING: policy exclude flatters") for note in notes)


def test_every_mark_that_is_used_is_explained_and_no_other(facts):
    rows = rows_of(facts)
    used = set("".join(rows["marks"]))
    explained = {note[0] for note in sheet(facts, rows).notes if note[1:2] == ":"}
    assert explained == used


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("last", "last"),
        ("best", "best"),
        ("best(split=val)", "best(split=val)"),
        ("val", "best(split=val)"),
        ("best(metric=asd)", "best(metric=asd)"),
        ("val(metric=asd)", "val(metric=asd)"),
        ("last-k(k=3)", "last-k(k=3)"),
        ("last(every=2000)", "last(every=2000)"),
        ("best(from=3000)", "best(from=3000)"),
        ("best(predictors=all)", "best(predictors=all)"),
        ("val(every=400)", "val(every=400)"),
        ("best(tie=earlier)", "best"),
        ("val(tie=earlier)", "best(split=val)"),
    ],
)
def test_rules_are_put_in_the_words_of_the_tables(rule, words):
    assert protocol_of(parse_rule(rule)) == words


def test_under_a_rule_that_nobody_uses_all_is_refused_and_said(full):
    facts = load_facts(full, "last-k(k=2)", "tcseg")
    rows = rows_of(facts)
    theirs = rows[(rows["source"] != HERE) & (rows["method"] == "tcseg")]
    assert set(theirs["ours_minus_printed"]) == {REFUSED}
    assert "No published number is made under protocol last-k(k=2)." in sheet(facts, rows).notes


# Files, and stores of other kinds


def test_the_files_say_the_same_whatever_the_order(facts, full, tmp_path, monkeypatch):
    table = published()
    first = report.write_published(facts, tmp_path / "a")
    monkeypatch.setattr(report, "published", lambda: table.sample(frac=1, random_state=1))
    mixed = load_facts(full, "last", "tcseg")
    object.__setattr__(mixed, "runs", mixed.runs.sample(frac=1, random_state=2))
    again = report.write_published(mixed, tmp_path / "b")
    assert [p.name for p in first] == [f"published-last.{end}" for end in ("md", "csv", "tex")]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    rows = list(csv.DictReader(io.StringIO(first[1].read_text())))
    row = next(r for r in rows if r["method"] == "mcnetp")
    assert (row["evidence"], row["split"]) == (
        "ycwu1997/MC-Net code/train_mcnet_3d.py:203-214, code/utils/test_patch.py:19",
        "la/uamt",
    )


def test_it_is_made_by_name(full, tmp_path):
    written = write_report(full.path, "last", tmp_path / "out", names=["published"])
    assert {p.suffix for p in written.paths} == {".md", ".csv", ".tex"}
    assert len(written.tables) == 1


def test_a_store_without_published_settings_is_told_what_there_is(store):
    facts = load_facts(fill(store, spec={"dataset": "phantom"}), "last", "tcseg")
    with pytest.raises(UserError, match=r"\(phantom, 8 labelled .*la 8, .*brats2019 25"):
        rows_of(facts)


def test_settings_without_published_numbers_are_named(store):
    fill(store)
    run = toy.run_id("mt", 0, tag="other")
    content = toy.spec("mt", dataset="phantom", profile={"name": "paper"})
    toy.add(store, toy.cases(run, {3000: [0.5] * CASES}), content, unit="voxel")
    facts = load_facts(store, "last", "tcseg")
    notes = sheet(facts, rows_of(facts)).notes
    assert "Nothing is published for: phantom, 8 labelled / 72 unlabelled, profile paper." in notes


def test_a_failed_run_is_said_not_compared(store, printed, tmp_path):
    fill(store, methods=["mt"])
    run = toy.run_id("mt", 1, tag="paper")
    content = toy.spec("mt", seed=1, profile={"name": "paper"})
    toy.add(store, toy.cases(run, {1000: [0.9] * CASES}), content, state="failed", unit="voxel")
    facts = load_facts(store, "last", "tcseg")
    table = printed("1,1,mt,la,8,dsc,median,85.00,last,la/uamt")
    rows = rows_of(facts, table)
    assert one(rows, source="own.csv")["ours_minus_printed"] == "failed"
    cells = [row for section in sheet(facts, rows).sections for row in section.rows]
    assert {row[3] for row in cells if row[1] == HERE} == {"2"}


def test_names_are_escaped(store, printed, tmp_path, monkeypatch):
    fill(store, methods=["mt"])
    table = printed("1,1,=<b>|x$,la,8,dsc,single,80.0,,")
    monkeypatch.setattr(report, "published", lambda: table)
    md, flat, tex = report.write_published(load_facts(store, "last", "tcseg"), tmp_path / "o")
    assert "=&lt;b&gt;\\|x$" in md.read_text()
    assert "'=<b>|x$" in flat.read_text()
    assert r"=\textless{}b\textgreater{}\textbar{}x\$" in tex.read_text()
