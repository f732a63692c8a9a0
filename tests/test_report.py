"""The table of evaluate.py: its cells, what is bold, Markdown, CSV, JSON, and what is printed."""

import csv
import io
import json
import re

import pytest

from common import report, rows

ROWS = [row for row in rows.rows("inception")
        if row.name in ("fid_train", "kid_validation", "precision", "aa_train", "privacy_loss")]
ROW = {row.name: row for row in ROWS}
COLUMNS = [
    {"name": "REAL", "kind": "real", "n": 6, "fid_train": 1.0, "aa_train": 0.5},
    {"name": "a", "kind": "judged", "n": 6, "fid_train": 80.04, "aa_train": 0.41,
     "kid_validation": -2.4e-6, "privacy_loss": -0.001,
     "intervals": {"aa_train": [0.3, 0.5]}},
    {"name": "b", "kind": "judged", "n": 6, "fid_train": 79.96, "aa_train": 0.6,
     "kid_validation": 0.01234},
    {"name": "p", "kind": "published", "n": 331, "fid_train": 2.0}]


def test_cells():
    assert [report.cell(ROW[name], COLUMNS[1]) for name in (
        "fid_train", "aa_train", "privacy_loss", "precision")] == ["80.0", "0.41 ±0.11", "0.00",
                                                                   "–"]
    kid = ROW["kid_validation"]
    assert report.cell(kid, COLUMNS[2]) == "0.0123"
    assert report.cell(kid, {"kid_validation": -2501.98}) == "-2502"
    assert report.cell(kid, {"kid_validation": 0.0}) == "0.00"
    wide = {"kid_validation": 0.00012, "intervals": {"kid_validation": [-0.012, 0.0122]}}
    assert report.cell(kid, wide) == "0.0001 ±0.0121"  # no more digits than its interval has


def test_the_best_are_of_those_that_are_judged():
    """By what is shown, nearest to the ideal, which is 0.5 of AA; of two columns or more."""
    assert [report.best(ROW[name], COLUMNS) for name in ("fid_train", "aa_train", "precision")] == [
        {1, 2}, {1}, set()]
    assert report.best(ROW["fid_train"], COLUMNS[:2]) == set()
    assert report.best(ROW["fid_train"]._replace(ideal=None), COLUMNS) == set()


def test_markdown_is_aligned_and_in_groups():
    assert report.markdown(ROWS, COLUMNS).splitlines() == [
        "|                | REAL |               a |        b |   p |",
        "| -------------- | ---: | --------------: | -------: | --: |",
        "| **quality**    |      |                 |          |     |",
        "| FID train      |  1.0 |        **80.0** | **80.0** | 2.0 |",
        "| KID validation |    – | **-0.00000240** |   0.0123 |   – |",
        "| AA train       | 0.50 |  **0.41 ±0.11** |     0.60 |   – |",
        "| **copying**    |      |                 |          |     |",
        "| privacy loss   |    – |            0.00 |        – |   – |"]


def test_a_name_is_one_cell_whatever_it_holds():
    names = ["REAL", "a|b", "|"]
    table = report.markdown(ROWS, [{**result, "name": name}
                                   for result, name in zip(COLUMNS, names, strict=False)])
    first, *others = (re.split(r"(?<!\\)\|", line) for line in table.splitlines())
    assert [cell.strip().replace(r"\|", "|") for cell in first[2:-1]] == names
    assert {len(cells) for cells in others} == {len(first)}


def test_csv():
    lines = list(csv.DictReader(io.StringIO(report.csv_text(ROWS, COLUMNS))))
    assert [line["kind"] for line in lines] == ["real", "judged", "judged", "published"]
    assert lines[1]["aa_train"] == "0.41" and lines[1]["precision"] == lines[3]["aa_train"] == ""
    assert [lines[1][f"aa_train_{end}"] for end in ("low", "high")] == ["0.3", "0.5"]
    assert lines[2]["aa_train_low"] == "" and lines[3]["n"] == "331"


def test_the_study_is_in_rows_that_there_are():
    names = {row.name for row in rows.rows("inception")}
    for column in report.STUDY:
        assert column.keys() - {"name", "kind", "n"} <= names
    assert report.cell(ROW["aa_train"], report.STUDY[1]) == "0.91"


def test_groups_without_numbers_are_left_out():
    groups = report.groups(ROWS, COLUMNS)
    assert [(group, [row.name for row in members]) for group, members in groups] == [
        ("quality", ["fid_train", "kid_validation", "aa_train"]), ("copying", ["privacy_loss"])]


@pytest.mark.parametrize("where", [None, "-", "also.json"])
def test_what_is_written_and_printed(where, tmp_path, capsys):
    """The words, then the table; with "-" the JSON is alone on stdout."""
    words = {"columns": {"a": {"quality": "Good ±1."}}}
    report.write(ROWS, COLUMNS, words, "the words", {"n": 6}, "a caption", tmp_path,
                 tmp_path / where if where == "also.json" else where)
    printed = capsys.readouterr()
    text = printed.err if where == "-" else printed.out
    assert text == f"a caption\n\nthe words\n\n{report.markdown(ROWS, COLUMNS)}\n\n"
    expected = {"settings": {"n": 6}, "verdict": words, "columns": COLUMNS}
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected
    assert (tmp_path / "table.md").read_text() in text
    assert (tmp_path / "metrics.csv").read_text() == report.csv_text(ROWS, COLUMNS)
    if where == "-":
        assert json.loads(printed.out) == expected
    else:
        assert printed.err == "" and (tmp_path / "also.json").exists() == (where is not None)
