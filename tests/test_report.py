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
    """In images one wide and high, the second row's from -1.14 up; 14 × 14 cells, row by row."""
    saved = []
    monkeypatch.setattr(report, "save_figure", lambda figure, *_: saved.append(figure))
    image = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    report.images_figure([[("sample", image, {0: [1, 2], 1: [195]}), ("photo", image, {0: [14]})],
                          [("one without", image)]], "title", "pieces.png", 14)
    axes, = saved[0].axes
    assert [text.get_text() for text in axes.texts] == ["sample", "photo", "one without"]
    assert (axes.images[1].get_array() == image.transpose(1, 2, 0)).all()
    assert np.allclose([drawn.get_extent() for drawn in axes.images], [
        (0, 1, 0, 1), (1.05, 2.05, 0, 1), (0, 1, -1.14, -0.14)])
    first, last, other = axes.collections
    corners = [np.concatenate(lines.get_segments()) * [14, 14] for lines in (first, last, other)]
    expected = [([1, 13], [3, 14]), ([13, 0], [14, 1]), ([14.7, 12], [15.7, 13])]  # x, y from below
    for found, (low, high) in zip(corners, expected, strict=True):
        assert np.allclose(found.min(0), low) and np.allclose(found.max(0), high)
    assert len(first.get_segments()) == 6 and len(last.get_segments()) == 4  # none between 1 and 2
    assert (first.get_colors() == other.get_colors()).all()
    assert (first.get_colors() != last.get_colors()).any()


def test_a_grid_shows_as_dots_in_the_spectrum(monkeypatch):
    """The half plane is mirrored: a peak at (down 8, across 4) of 32 is at (-8, -4), too."""
    saved = []
    monkeypatch.setattr(report, "save_figure", lambda figure, *_: saved.append(figure))
    photos = -9 * np.hypot(np.fft.fftfreq(32)[:, None], np.fft.rfftfreq(32))
    grid = photos.copy()
    grid[8, 4] += 2
    report.spectrum_figure({"photos": photos, "REAL": photos, "a": grid}, "title", "spectrum.png")
    curves, real, excess = saved[0].axes[:3]
    assert [line.get_label() for line in curves.lines] == ["photos", "REAL", "a"]
    assert not np.any(real.images[0].get_array())
    shown = np.asarray(excess.images[0].get_array())
    assert shown.shape == (32, 33) and np.argwhere(shown).tolist() == [[8, 12], [24, 20]]
    x, y = curves.lines[0].get_data()
    np.testing.assert_allclose(y, np.exp(-9 / 2 * x), rtol=0.15)
    assert x[-1] == 1
