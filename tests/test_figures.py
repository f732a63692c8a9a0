"""The figures show what they are given; that all are written, test_evaluate.py sees."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from common import figures
from metrics import Neighbors


@pytest.fixture
def saved(monkeypatch):
    """The figures that would have been written."""
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, *_: kept.append(figure))
    return kept


@pytest.fixture
def rows_of_images(monkeypatch):
    """What figures.images was called with, in the place of its figure."""
    kept = []
    monkeypatch.setattr(figures, "images", lambda *arguments: kept.append(arguments))
    return kept


def test_a_figure_is_a_png_with_its_title(tmp_path):
    figure, ((axes,),) = figures.new_figure(4, 3)
    axes.plot([0, 1])
    figures.save_figure(figure, "data; seed 0", tmp_path / "a.png")
    assert figure.get_suptitle() == "data\nseed 0"
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and image.size == (400, 300)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_neighbours_are_beside_their_samples(rows_of_images):
    near = Neighbors(np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]),
                     np.array([[5, 6], [7, 8], [9, 4]]))
    figures.neighbours({2: ("sample 2", "image 2"), 0: ("of a long name 0123456789.png", "image")},
                       near, {2}, lambda j: (f"{j}.jpg", f"photo {j}"), "title", "n.png")
    assert rows_of_images == [([
        [("sample 2: suspect", "image 2"), ("9.jpg: 0.500", "photo 9"),
         ("4.jpg: 0.600", "photo 4")],
        [(" name 0123456789.png", "image"), ("5.jpg: 0.100", "photo 5"),
         ("6.jpg: 0.200", "photo 6")]], "title", "n.png")]


def test_pieces_are_beside_the_photos_that_they_come_from(rows_of_images):
    sources = {3: [(7, [0, 1, 9], [4, 5, 6]), (8, [2], [3])], 1: []}
    figures.pieces({3: ("sample 3", "image 3"), 1: ("sample 1", "image 1")}, sources, 8,
                   lambda j: (f"{j}.jpg", f"photo {j}"), "title", "p.png")
    assert rows_of_images == [([
        [("sample 3: 4 pieces", "image 3", {0: [0, 1, 9], 1: [2]}),
         ("7.jpg: 3", "photo 7", {0: [4, 5, 6]}), ("8.jpg: 1", "photo 8", {1: [3]})],
        [("sample 1: 0 pieces", "image 1", {})]], "title", "p.png", 8)]


def test_pieces_are_outlined_where_they_are(saved):
    """In images one wide and high, the second row's from -1.14 up; 14 × 14 cells, row by row."""
    image = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    figures.images([[("sample", image, {0: [1, 2], 1: [195]}), ("photo", image, {0: [14]})],
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


def test_components_are_scattered(saved):
    points = np.random.default_rng(0).standard_normal((3, 5, 2))
    figures.components([0.25, 0.125], {"train": {"train": points[0], "synthetic": points[2]},
                                       "test": {"test": points[1], "synthetic": points[2]}},
                       "title", "pca.png")
    for axes, one in zip(saved[0].axes, points, strict=False):
        assert [np.asarray(dots.get_offsets()).tolist() for dots in axes.collections] == [
            one.tolist(), points[2].tolist()]
        assert axes.get_title().endswith("variance 25.0% + 12.5%")


def test_a_grid_shows_as_dots_in_the_spectrum(saved):
    """The half plane is mirrored: a peak at (down 8, across 4) of 32 is at (-8, -4), too."""
    photos = -9 * np.hypot(np.fft.fftfreq(32)[:, None], np.fft.rfftfreq(32))
    grid = photos.copy()
    grid[8, 4] += 2
    figures.spectra({"photos": photos, "REAL": photos, "a": grid}, "title", "spectrum.png")
    curves, real, excess = saved[0].axes[:3]
    assert [line.get_label() for line in curves.lines] == ["photos", "REAL", "a"]
    assert not np.any(real.images[0].get_array())
    shown = np.asarray(excess.images[0].get_array())
    assert shown.shape == (32, 33) and np.argwhere(shown).tolist() == [[8, 12], [24, 20]]
    x, y = curves.lines[0].get_data()
    np.testing.assert_allclose(y, np.exp(-9 / 2 * x), rtol=0.15)
    assert x[-1] == 1
    figures.spectra({"photos": photos[:12, :7], "a": photos[:12, :7]}, "title", "spectrum.png")
    assert len(saved) == 1  # of 12 pixels there is none


def test_curves_are_of_runs_with_several_steps(saved, tmp_path):
    def result(run, step, fid, intervals):
        return {"path": str(tmp_path / run / f"ckpt_{step}.pth"), "model": "fastgan", "step": step,
                "fid": fid, "aa": fid / 100, "intervals": intervals}

    results = [result("one", 20, 60, {"fid": [50, 70]}), result("one", 10, 80, {"fid": [70, 95]}),
               result("two", 10, 90, {}), {"path": str(tmp_path), "fid": 3, "intervals": {}}]
    panels = [("FID", {"train": "fid", "again": "fid"}, 12.5),
              ("AA", {"train": "aa", "again": "aa"}, 0.5)]
    figures.curves(panels, results, "title", "curve.png")
    left, right = saved[0].axes
    line, _, level = left.lines
    assert np.transpose(line.get_data()).tolist() == [[10, 80], [20, 60]]
    assert line.get_label() == "one (fastgan), train" and level.get_ydata()[0] == 12.5
    edges = left.collections[0].get_paths()[0].vertices
    assert {(10, 70), (10, 95), (20, 50), (20, 70)} <= set(map(tuple, edges.tolist()))
    assert not right.collections and right.get_ylim() == (-0.03, 1.03)
    assert len(left.lines) == 3  # nothing of the run with one step
    figures.curves(panels, results[1:], "title", "curve.png")
    assert len(saved) == 1


def test_losses_are_drawn_by_iteration_from_where_each_has_a_mean(monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig",
                        lambda figure, *_, **__: kept.append(figure))
    rows = [{"step": str(i // 10), "iteration": str(i), "loss": str(1 + i % 2), "speed": "9"}
            for i in range(1, 101)]
    rows[4]["loss"] = ""
    figures.loss_curves(rows, [3], "title", tmp_path / "losses.png", hidden=("speed",))
    smooth, raw, resumed = kept[0].axes[0].lines
    assert smooth.get_label() == "loss" and to_hex(smooth.get_color()) == to_hex(raw.get_color())
    losses = np.asarray(raw.get_ydata())
    assert np.isnan(losses[4]) and losses[5:9].tolist() == [1, 2, 1, 2]
    assert np.asarray(smooth.get_xdata())[[0, -1]].tolist() == [4, 100]  # means of four
    assert np.allclose(np.asarray(smooth.get_ydata())[10:], 1.5)
    assert resumed.get_xdata()[0] == 39  # the last iteration of step 3


def test_what_is_no_loss_is_drawn_apart(saved, tmp_path):
    """D's logits have a panel of their own below, where the log has them; their signs don't matter
    to the losses' logarithmic axis."""
    rows = [{"step": str(i), "loss": str(i), "seen": str(-i), "new": str(i % 3)}
            for i in range(1, 51)]
    names = ["seen", "new", "not there"]
    figures.loss_curves(rows, [20], "title", "losses.png", apart=names)
    above, below = saved[0].axes
    assert above.get_position().y0 > below.get_position().y0
    assert above.get_yscale() == "log" and below.get_yscale() == "linear"
    assert [axes.get_ylabel() for axes in (above, below)] == ["loss", "D's mean logit"]
    for axes, drawn in ((above, {"loss": 1}), (below, {"seen": -1})):
        smooth, raw = axes.lines[:2]
        assert smooth.get_label() in drawn
        assert list(raw.get_ydata()) == [drawn[smooth.get_label()] * i for i in range(1, 51)]
        assert axes.lines[-1].get_xdata()[0] == 20  # resumed
    assert [text.get_text() for text in below.get_legend().get_texts()] == ["seen", "new"]
    assert len(above.lines) == 3 and len(below.lines) == 5
    figures.loss_curves([{"step": "1", "loss": "1"}], [], "title", "losses.png", apart=names)
    assert len(saved[1].axes) == 1
    figures.loss_curves(rows, [], "title", tmp_path / "losses.png", hidden=["seen"], apart=["new"])
    assert len(saved[2].axes[0].lines) == 2 == len(saved[2].axes[1].lines)
