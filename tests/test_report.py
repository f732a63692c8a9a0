"""The table of evaluate.py, and a figure; the others are drawn by tests/test_evaluate.py."""

import csv
import io

import numpy as np

from common import report

COLUMNS = [
    {"name": "REAL", "kind": "real", "n": 6, "fid_train": 1.0, "aa_train": 0.5},
    {"name": "a", "kind": "judged", "n": 6, "fid_train": 80.04, "aa_train": 0.41,
     "kid_train": -2.4e-6, "privacy_loss": -0.001,
     "intervals": {"aa_train": [0.3, 0.5]}},
    {"name": "b", "kind": "judged", "n": 6, "fid_train": 79.96, "aa_train": 0.6,
     "kid_train": 0.01234},
    {"name": "p", "kind": "published", "n": 331, "fid_train": 2.0}]


def test_cells_and_the_best_of_them():
    assert [report.cell(row, COLUMNS[1]) for row in (
        "fid_train", "aa_train", "privacy_loss", "recall")] == ["80.0", "0.41 ±0.11", "0.00", "–"]
    assert report.cell("kid_train", COLUMNS[2]) == "0.0123"
    assert report.cell("kid_train", {"kid_train": -2501.98}) == "-2502"
    assert [report.best(row, COLUMNS) for row in ("fid_train", "aa_train", "recall")] == [
        {1, 2}, {1}, set()]


def test_markdown_is_aligned():
    assert report.markdown(COLUMNS).splitlines() == [
        "|              | REAL |               a |        b |   p |",
        "| ------------ | ---: | --------------: | -------: | --: |",
        "| FID train    |  1.0 |        **80.0** | **80.0** | 2.0 |",
        "| KID train    |    – | **-0.00000240** |   0.0123 |   – |",
        "| AA train     | 0.50 |  **0.41 ±0.11** |     0.60 |   – |",
        "| privacy loss |    – |            0.00 |        – |   – |"]


def test_csv():
    rows = list(csv.DictReader(io.StringIO(report.csv_text(COLUMNS, "random"))))
    assert [row["note"] for row in rows] == ["random"] * 3 + ["published"]
    assert rows[1]["aa_train"] == "0.41" and rows[1]["recall"] == rows[3]["aa_train"] == ""
    assert [rows[1][f"aa_train_{end}"] for end in ("low", "high")] == ["0.3", "0.5"]


def test_pieces_are_outlined_where_they_are(monkeypatch):
    """Of images 28 pixels wide, in 14 × 14 cells of 2 pixels counted row by row."""
    saved = []
    monkeypatch.setattr(report, "save_figure", lambda figure, *_: saved.append(figure))
    image = np.zeros((3, 28, 28), np.uint8)
    report.pieces_figure([[("sample", image, {0: [1, 2], 1: [195]}), ("photo", image, {0: [14]})],
                          [("one without pieces", image, {})]], 14, "title", "pieces.png")
    sample, photo, without, empty = saved[0].axes
    assert [axis.get_title() for axis in (sample, without, empty)] == [
        "sample", "one without pieces", ""]
    first, last, other = *sample.collections, *photo.collections
    corners = [np.concatenate(lines.get_segments()) for lines in (first, last, other)]
    assert [(found.min(0).tolist(), found.max(0).tolist()) for found in corners] == [
        ([1.5, -0.5], [5.5, 1.5]), ([25.5, 25.5], [27.5, 27.5]), ([-0.5, 1.5], [1.5, 3.5])]  # x, y
    assert len(first.get_segments()) == 6 and len(last.get_segments()) == 4  # none between 1 and 2
    assert (first.get_colors() == other.get_colors()).all()
    assert (first.get_colors() != last.get_colors()).any()
