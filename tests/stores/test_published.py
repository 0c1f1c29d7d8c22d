"""The published tables are what is printed, and a malformed table gets one clear message."""

import re
from pathlib import Path

import pandas as pd
import pytest

from results.errors import UserError
from results.published import COLUMNS, FOLDER, SPLIT_HERE, SPLITS, published, read_tables

PAPER = Path(__file__).resolve().parents[2].parent / "shared" / "paper" / "tcseg-paper.txt"
SETTINGS = [("la", 8), ("la", 16), ("pancreas", 6), ("pancreas", 12)]
SETTINGS += [("brats2019", 25), ("brats2019", 50)]


@pytest.fixture(scope="module")
def table():
    return published()


def texts(rows):
    return [f"{v:.{d}f}" for v, d in zip(rows["value"], rows["digits"], strict=True)]


# Against the paper: its lines, made again from the rows


@pytest.fixture(scope="module")
def paper():
    if not PAPER.exists():
        pytest.skip("the text of the paper is not beside this checkout; it is not ours to ship")
    return PAPER.read_text()


def lines_of(paper, number):
    """The cells of each line between a caption and the next, without the head of the table."""
    after = paper.split(f"\nTable {number}. ", 1)[1]
    body = re.split(r"\n(?:Table|Figure) \d\.|\n\d\.\d+\. |\n\[†\]|\nNote:", after)[0]
    cells = [
        re.sub(r"</?u>|\$", "", line).split("\t") for line in body.splitlines() if "\t" in line
    ]
    cells = [[c.strip() for c in line if c.strip()] for line in cells]
    return [line for line in cells if re.search(r"\d\.\d", " ".join(line))]


def leading(row):
    reference = f" ({row['reference']})" if row["reference"] else ""
    return row["method_printed"] + reference


def word(protocol):
    return {"both": "last / best", "unknown": "/"}.get(protocol, protocol)


def remade(table, number, keys, columns, cells):
    """One list of cells per printed row: what `cells` says of it, and a number or / a column."""
    made = []
    for _, rows in table[table["table"] == number].groupby("row"):
        places = [tuple(r) for r in rows[keys].itertuples(index=False)]
        values = dict(zip(places, texts(rows), strict=True))
        made.append([*cells(rows.iloc[0]), *(values.pop(c, "/") for c in columns)])
        assert not values
    return made


def test_table_1_is_transcribed(paper, table):
    made = remade(
        table,
        "1",
        ["dataset", "labelled"],
        SETTINGS,
        lambda row: [leading(row), word(row["protocol_printed"])],
    )
    assert made == lines_of(paper, 1)


@pytest.mark.parametrize(
    ("number", "dataset"), [("5", "brats2019"), ("6", "la"), ("7", "pancreas")]
)
def test_tables_of_all_metrics_are_transcribed(paper, table, number, dataset):
    made = remade(
        table,
        number,
        ["metric"],
        [("dsc",), ("asd",), ("hd95",)],
        lambda row: [
            leading(row),
            word(row["protocol_printed"]),
            f"{row['labelled']} / {row['unlabelled']}",
        ],
    )
    assert made == lines_of(paper, number)
    assert set(table.loc[table["table"] == number, "dataset"]) == {dataset}


@pytest.mark.parametrize("number", ["2", "3"])
def test_ablations_are_transcribed(paper, table, number):
    own = table[table["table"] == number]
    columns = [*SETTINGS, ("all", -1)]
    keyed = own.assign(labelled=own["labelled"].fillna(-1))
    made = remade(keyed, number, ["dataset", "labelled"], columns, lambda row: [leading(row)])
    assert made == lines_of(paper, number)


def test_costs_are_transcribed(paper, table):
    columns = [("parameters",), ("train_time",), ("test_time",), ("memory",)]
    made = remade(table, "4", ["metric"], columns, lambda row: [leading(row)])
    assert made == lines_of(paper, 4)


def test_the_caption_is_transcribed(paper, table):
    rows = table[table["table"] == "fig5"]
    assert list(rows["statistic"]) == ["mean", "std"] * 4
    assert list(zip(rows["dataset"], rows["labelled"], strict=True))[::2] == SETTINGS[:4]
    caption = paper.split("\nFigure 5. ", 1)[1].split("\n", 1)[0]
    assert re.findall(r"\d+\.\d+", caption) == texts(rows)


# Against itself


def test_tables_agree_on_what_they_both_print(table):
    keys = ["method", "dataset", "labelled", "metric", "statistic", "protocol_printed"]
    dsc = table[(table["metric"] == "dsc") & (table["dataset"] != "all")]
    loose = dsc.assign(
        protocol_printed=dsc["protocol_printed"].where(dsc["dataset"] != "brats2019", "")
    )
    printed = loose[loose["protocol_printed"] != "unknown"]
    assert (printed.groupby(keys)["value"].nunique() == 1).all()
    places = ["method", "dataset", "labelled", "statistic", "value"]
    overview, detail = (
        {tuple(r) for r in dsc.loc[dsc["table"].isin(t), places].itertuples(index=False)}
        for t in (["1"], ["5", "6", "7"])
    )
    assert overview - detail == {("bapc", "la", 8, "single", 88.55)}
    assert detail - overview == {("coranet", "pancreas", 12, "single", 79.67)}


def test_printed_means_are_means_of_the_row(table):
    for number in ("2", "3"):
        for _, rows in table[table["table"] == number].groupby("row"):
            six, mean = rows[rows["dataset"] != "all"], rows[rows["dataset"] == "all"]
            assert six["value"].mean() == pytest.approx(mean["value"].item(), abs=0.00501)


def test_every_number_of_every_table_is_there(table):
    counts = table.groupby("table").size().to_dict()
    expected = {"1": 118, "2": 21, "3": 35, "4": 20, "5": 63, "6": 153, "7": 114, "fig5": 8}
    assert counts == expected
    for _, rows in table.groupby("table"):
        assert list(rows["row"].drop_duplicates()) == list(range(1, rows["row"].max() + 1))
    keys = ["source", "table", "row", "dataset", "labelled", "metric", "statistic"]
    assert not table.duplicated(keys).any()


def test_what_is_said_of_released_code_has_its_place(table):
    assert ((table["protocol_released"] != "") == (table["evidence"] != "")).all()
    assert (table["split"].where(table["split"] == "", table["split"].map(SPLITS)).notna()).all()
    known = table[table["split"] != ""]
    assert (known["split"].str.partition("/")[0] == known["dataset"]).all()
    assert set(SPLIT_HERE.values()) <= set(SPLITS)
    switches = r" \(use_[a-z]+=False(, use_[a-z]+=False)*\)"
    assert table["method"].str.fullmatch(rf"[a-z0-9-]+({switches})?").all()


def test_distances_printed_in_mm_are_voxels(table):
    distances = table[table["metric"].isin(["asd", "hd95"])]
    assert set(distances["unit"]) == {"mm"}
    assert set(distances["unit_as_computed"]) == {"voxel", "voxel=1mm", ""}
    ours = distances[distances["method"] == "tcseg"]
    assert set(ours["unit_as_computed"]) == {"voxel", "voxel=1mm"}


# The reader

HEAD = "method,dataset,labelled,metric,statistic,value"
ROW = "mt,la,8,dsc,median,90.28"


@pytest.fixture
def write(tmp_path):
    def call(*lines, name="own.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes("\n".join(lines).encode(encoding))
        return path

    return call


def test_a_table_of_ones_own_needs_six_columns(write):
    read = read_tables([write(HEAD, ROW)])
    (row,) = read.to_dict("records")
    assert (row["method"], row["labelled"], row["value"], row["digits"]) == ("mt", 8, 90.28, 2)
    assert (row["source"], row["line"], row["protocol_printed"]) == ("own.csv", 2, "")
    assert pd.isna(row["seeds"])
    assert list(read.columns) == [*(c.name for c in COLUMNS), "digits", "file", "line"]


def test_short_names_windows_line_ends_quotes_and_blank_lines_are_fine(write):
    head = HEAD + ",protocol,n\r"
    lines = [head, '"mt, mine",la,8,dsc,median,90.20,last,5\r', "\r", ROW + ",best,\r"]
    read = read_tables([write(*lines, encoding="utf-8-sig")])
    assert list(read["protocol_printed"]) == ["last", "best"]
    assert list(read["seeds"]) == [5, pd.NA]
    assert read["method"].iloc[0] == "mt, mine"
    assert list(read["digits"]) == [2, 2]
    assert list(read["line"]) == [2, 4]


def test_folders_are_read_in_order_of_name(write, tmp_path):
    write(HEAD, ROW, name="b.csv")
    write(HEAD, ROW.replace("mt", "uamt"), name="a.csv")
    assert list(read_tables([tmp_path])["method"]) == ["uamt", "mt"]
    assert list(read_tables([FOLDER])["table"].unique()) == ["fig5", *"1234567"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], r"own\.csv, line 1: column\(s\) method, dataset, .* missing"),
        ([HEAD], r"own\.csv holds no row"),
        ([HEAD.replace(",value", ""), "x"], r"line 1: column\(s\) value missing; needed are"),
        ([HEAD + ",protokol", ROW + ","], "line 1: unknown column 'protokol'. Did you mean"),
        ([HEAD + ",value", ROW + ",1"], "line 1: column value is there twice"),
        ([HEAD, ROW, ROW + ",1"], "line 3: 7 cells, but the header names 6 columns"),
        ([HEAD, ROW, "mt,la,8,dsc,median,90.28 ± 0.12"], "line 3: value '90.28 ± 0.12' is not a"),
        ([HEAD, "mt,la,8,dsc,median,nan"], "line 2: value 'nan' is not a plain decimal number"),
        ([HEAD, "mt,la,8,dsc,median,9e99"], "line 2: value '9e99' is not"),
        ([HEAD, "mt,la,8,dsc,median,"], "line 2: value is empty; it is as printed"),
        ([HEAD, ",la,8,dsc,median,1"], "line 2: method is empty"),
        ([HEAD, "mt,la,8.5,dsc,median,1"], "line 2: labelled '8.5' is not a whole number"),
        ([HEAD, "mt,la,8,dice,median,1"], "line 2: unknown metric 'dice'. .* Known: .*dsc"),
        (
            [HEAD, "mt,la,8,dsc,Median,1"],
            "line 2: unknown statistic 'Median'. Did you mean 'median'",
        ),
        ([HEAD + ",n", ROW + ",0"], "line 2: seeds '0' is not between 1 and 1000"),
        ([HEAD + ",protocol", ROW + ",final"], "line 2: unknown protocol_printed 'final'"),
        ([HEAD, '"mt"x,la,8,dsc,median,1'], "line 2: "),
    ],
)
def test_a_malformed_table_is_refused_with_file_and_line(write, lines, said):
    with pytest.raises(UserError, match=said):
        read_tables([write(*lines)])


def test_files_that_cannot_be_read_are_named(write, tmp_path):
    with pytest.raises(UserError, match=r"none\.csv cannot be read: No such file"):
        read_tables([tmp_path / "none.csv"])
    with pytest.raises(UserError, match=r"no \.csv file in"):
        read_tables([tmp_path])
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_tables([write(HEAD, "mt,ä,8,dsc,median,1", encoding="latin-1")])
