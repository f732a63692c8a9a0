"""Which photos prepare_data.py puts on which side: by pixels, seed and fraction, never by names."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_prepare_data import (
    REAL_ARCHIVE,
    encode,
    manifest,
    photos,
    picture,
    prepare,
    refuse,
)


def test_identical_pixels_stay_on_one_side(tmp_path):
    folder = photos(tmp_path / "in", 8)
    for i in range(3):  # the same pixels under other names and in other bytes
        Image.open(folder / f"plain_{i}.jpg").save(folder / f"again_{i}.png")
        shutil.copy(folder / f"plain_{i}.jpg", folder / f"copy_{i}.jpg")
    for seed in range(3):
        result = prepare("--images", folder, "--seed", seed, "--out", tmp_path / str(seed))
        rows = manifest(tmp_path / str(seed))
        assert len({(row["pixel_sha256"], row["split"]) for row in rows}) == 8
        assert sum(row["split"] == "val" for row in rows) == 7
        assert "9 of the photos show 3 pictures" in result.stdout


def room(seed):
    """Smooth shades and random boxes, as (120, 160, 3) uint8: no two alike."""
    image, rng = picture(seed, (120, 160)).copy(), np.random.default_rng(seed)
    for _ in range(12):
        (top, left), (height, width) = rng.integers(0, (110, 150)), rng.integers(8, 60, 2)
        image[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return Image.fromarray(image)


COPIES = {  # of a picture, as people make them
    "quality_50.jpg": lambda image: encode(image, quality=50),
    "half.png": lambda image: encode(image.resize((80, 64)), "PNG"),
    "crop.jpg": lambda image: encode(image.crop((5, 4, 160, 120)), quality=80),
    "mirror.jpg": lambda image: encode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "grey.png": lambda image: encode(image.convert("L"), "PNG"),
    "all.jpg": lambda image: encode(image.crop((0, 3, 156, 120)).resize((100, 75)).transpose(
        Image.Transpose.FLIP_LEFT_RIGHT), quality=60),
}


def test_copies_of_a_picture_stay_on_one_side(tmp_path):
    """Every kind of copy of 8 of 24 rooms is found, in a group with its picture and no other."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(24):
        (folder / f"{i}_original.png").write_bytes(encode(room(i), "PNG"))
        for kind, make in COPIES.items() if i < 8 else ():
            (folder / f"{i}_{kind}").write_bytes(make(room(i)))
    for seed in range(2):
        result = prepare("--images", folder, "--seed", seed, "--out", tmp_path / str(seed))
        assert "56 of the photos show 8 pictures" in result.stdout
        rows, groups = manifest(tmp_path / str(seed)), {}
        for row in rows:
            groups.setdefault(row["source"].split("_")[0], set()).add((row["group"], row["split"]))
        assert all(len(group) == 1 for group in groups.values())
        numbers = {i: next(iter(group))[0] for i, group in groups.items()}
        assert {int(i) for i, number in numbers.items() if number} == set(range(8))
        assert len(set(numbers.values())) == 9  # and "" of those that are alone
        assert sum(row["split"] == "val" for row in rows) in range(33, 40)  # of 72, 7 at a time


def test_rooms_that_are_merely_alike_are_not_grouped(tmp_path):
    """One room with another bed; one in negative; one flat shade each, some in a black frame."""
    folder = tmp_path / "in"
    folder.mkdir()
    other = np.asarray(room(0)).copy()
    other[40:100, 30:110] = np.asarray(room(1))[40:100, 30:110]
    alike = [room(0), other, 255 - np.asarray(room(0)), np.uint8(np.full((80, 80, 3), 20)),
             np.uint8(np.full((80, 80, 3), 21)), np.uint8(np.full((90, 80, 3), 20))]
    alike += [np.pad(np.full((78, 78, 3), shade, np.uint8), ((1, 1), (1, 1), (0, 0)))
              for shade in (90, 91)]
    for i, image in enumerate(alike):
        (folder / f"{i}.png").write_bytes(encode(image, "PNG"))
    result = prepare("--images", folder, "--out", tmp_path / "out")
    assert "pictures" not in result.stdout and not result.stderr


def test_a_split_without_copies_is_that_of_pixels_alone(tmp_path):
    """As before there were groups; and a manifest of then is still good."""
    folder, out = photos(tmp_path / "in", 10), tmp_path / "out"
    args = "--images", folder, "--out", out, "--seed", 3, "--val-fraction", 0.3
    prepare(*args)
    rows = manifest(out)
    ordered = sorted(rows, key=lambda row: hashlib.sha256(
        f"3 {row['pixel_sha256']}".encode()).hexdigest())
    assert [row["split"] for row in ordered] == ["val"] * 3 + ["train"] * 7
    old = (out / "manifest.csv").read_text().replace(",group\n", "\n").replace(",\n", "\n")
    (out / "manifest.csv").write_text(old)
    assert "nothing changed" in prepare(*args).stdout
    assert (out / "manifest.csv").read_text() == old
    refuse(*args, "--seed", 4, says="lists another split")


@pytest.mark.skipif(not REAL_ARCHIVE.exists(), reason="needs the Houses photos")
def test_the_six_photos_of_the_houses_that_are_there_twice(tmp_path):
    prepare("--archive", REAL_ARCHIVE, "--class", "all", "--out", tmp_path / "out")
    groups = {}
    for row in manifest(tmp_path / "out"):
        groups.setdefault(row["group"], []).append(Path(row["source"]).stem)
    del groups[""]
    assert sorted(map(sorted, groups.values())) == [
        ["bedroom_199", "bedroom_214"], ["bedroom_21", "bedroom_9"],
        ["bedroom_259", "bedroom_296"], ["bedroom_271", "bedroom_305"],
        ["kitchen_10", "kitchen_27"], ["kitchen_59", "kitchen_72"]]  # looked at: each is one


def test_split_follows_seed_and_fraction_not_names(tmp_path):
    folder, renamed = photos(tmp_path / "in", 10), tmp_path / "renamed"
    renamed.mkdir()
    for i, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        (renamed / f"{i}.jpg").write_bytes(path.read_bytes())

    def val(*args, images=folder):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        prepare("--images", images, "--out", out, *args)
        return {row["pixel_sha256"] for row in manifest(out) if row["split"] == "val"}

    half, fifth = val(), val("--val-fraction", 0.2)
    assert half == val(images=renamed) != val("--seed", 1)
    assert len(half) == 5 and len(fifth) == 2 and fifth < half
    assert val("--val-fraction", 0) == set()
