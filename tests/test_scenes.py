"""Drawn bedrooms: the same for the same seed, different from each other, and made of parts."""

import io

import numpy as np
import pytest
from PIL import Image

from common.scenes import draw_scene


def pixels(png):
    """float (h, w, 3) of a PNG's bytes."""
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image).astype(float)


@pytest.fixture(scope="module")
def drawn():
    return [pixels(draw_scene(5, i, 128)) for i in range(16)]


def test_a_scene_depends_on_seed_and_index_alone():
    first = draw_scene(1, 2, 64)
    assert draw_scene(1, 2, 64) == first
    assert len({first, draw_scene(1, 3, 64), draw_scene(2, 2, 64), draw_scene(2**62, 2, 64)}) == 4
    assert pixels(draw_scene(0, 0)).shape == (256, 256, 3)


def test_scenes_are_exposed_well_and_differ(drawn):
    for i, scene in enumerate(drawn):
        assert scene.shape == (128, 128, 3) and scene.std() > 20 and 40 < scene.mean() < 220
        assert all(np.abs(scene - other).mean() > 10 for other in drawn[:i])


def test_scenes_show_several_surfaces_and_edges(drawn):
    """Noise has no smooth surface, a blank wall no edges and one colour: a room has all three."""
    for scene in drawn:
        step = np.abs(np.diff(scene, axis=1)).max(2)
        assert (step < 6).mean() > 0.5 and (step > 30).mean() > 0.01
        colors, counts = np.unique(scene.reshape(-1, 3) // 32, axis=0, return_counts=True)
        assert (counts > 0.01 * counts.sum()).sum() >= 8
