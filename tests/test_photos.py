"""Photos: data order, batches, augmentation, decoding and its cache, damaged photos, grids."""

import hashlib
import io
import itertools
import random
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from damage import fuzz_count, mutations, refusal, small_disk
from PIL import Image
from torch.nn import functional as F

from common import imagefiles, photos

CPU = torch.device("cpu")


def test_data_order_is_an_endless_row_of_permutations():
    indices = photos.data_order(7, 0, 21, seed=3)
    for epoch in indices.view(3, 7):
        assert sorted(epoch.tolist()) == list(range(7))
    assert not torch.equal(indices[:7], indices[7:14])
    pieces = [photos.data_order(7, start, 3, seed=3) for start in range(0, 21, 3)]
    assert torch.equal(torch.cat(pieces), indices)
    assert not torch.equal(photos.data_order(7, 0, 21, seed=4), indices)


@pytest.mark.parametrize(("n", "size", "parts"), [
    (20, 2, 3), (331, 8, 2), (13, 2, 2), (14, 2, 3), (9, 2, 4), (13, 4, 1), (9, 4, 1), (8, 4, 1),
    (3, 4, 1), (2, 7, 1), (1, 2, 1)])
def test_an_epoch_is_dealt_out_and_gone_on_with(n, size, parts):
    """Every photo once; the last batch filled up to equal parts of two or more. From any batch
    on, the others are the same; after another batch size, what is left comes."""
    batches, taken = photos.epoch_batches(n, size * parts, 1, seed=0, parts=parts), 0
    for number, batch in enumerate(batches):
        assert len(batch) % parts == 0 and len(batch) >= 2 * parts
        rest = photos.epoch_batches(n, size * parts, 1, 0, taken, parts)
        assert all(map(torch.equal, rest, batches[number:])) and len(rest) == len(batches) - number
        taken += len(batch)
    assert {len(batch) for batch in batches[:-1]} <= {size * parts}
    order = torch.cat(batches).tolist()
    assert set(order) == set(range(n))
    assert taken < n + parts or taken == size * parts  # few photos fill a batch, evenly
    assert max(map(order.count, order)) <= -(-taken // n)
    assert photos.epoch_batches(n, size * parts, 1, 0, taken, parts) == []
    if n > 6:
        after = torch.cat(photos.epoch_batches(n, size * parts, 2, seed=0, parts=parts))
        assert after.tolist() != order
        others = photos.epoch_batches(n, 6, 1, 0, start=n - 1)
        assert len(others) == 1 and len(others[0]) == 2
        assert others[0][0] == photos.permutation(n, 0, 1)[-1]


def test_batches_are_mirrored_half_the_time_and_span_minus_one_to_one():
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    images[0, :, :, 0] = 255
    batch = photos.mirror(photos.take_batch(images, torch.zeros(2000, dtype=torch.long), CPU))
    assert set(batch.unique().tolist()) == {-1.0, 1.0}
    share = (batch[:, 0, 0, 0] == -1).float().mean()
    assert 0.45 < share < 0.55


def translated(image, dy, dx):
    """Zeros come in where the 16×16 image moved away."""
    return F.pad(image, [2] * 4)[:, 2 + dy : 18 + dy, 2 + dx : 18 + dx]


def test_translation_moves_each_image_by_up_to_an_eighth():
    x = torch.rand(200, 3, 16, 16) + 1
    moves = {(dy, dx): translated(x[0], dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    seen = set()
    for image in photos.diff_augment(x[:1].expand(200, -1, -1, -1), ["translation"]):
        seen |= {move for move, moved in moves.items() if torch.equal(image, moved)}
    assert len(seen) >= 24  # all 25 are likely, and nothing else may come out
    y = photos.diff_augment(x, ["translation"])
    assert all(any(torch.equal(b, translated(a, *move)) for move in moves)
               for a, b in zip(x[:10], y[:10], strict=True))


def test_gradients_of_a_translation_are_autograds():
    x = torch.rand(25, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    rows, columns = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3)).T
    y = photos.Translation.apply(x, rows, columns)
    expected = torch.stack([translated(image, *move) for image, *move in zip(
        x, rows.tolist(), columns.tolist(), strict=True)])
    assert torch.equal(y, expected)
    weights = torch.rand_like(y)
    gradients = [torch.autograd.grad((moved * weights).sum(), x)[0] for moved in (y, expected)]
    assert torch.equal(*gradients) and (gradients[0] == 0).any()


def test_color_augmentation_is_the_papers_formula():
    x = torch.rand(4, 3, 8, 8) * 2 - 1
    torch.manual_seed(0)
    y = photos.diff_augment(x, ["color"])
    torch.manual_seed(0)
    brightness, saturation, contrast = torch.rand(3, 4)
    for i in range(4):
        image = x[i] + brightness[i] - 0.5
        grey = image.mean(0)
        image = grey + (image - grey) * saturation[i] * 2
        image = image.mean() + (image - image.mean()) * (contrast[i] + 0.5)
        torch.testing.assert_close(y[i], image)
    assert photos.diff_augment(x, []) is x


def test_cutout_is_half_a_side_wide_wherever_its_middle_is():
    """In the published formula what lies outside the image is clamped onto its border."""
    x = (torch.rand(3000, 3, 8, 8) + 1).requires_grad_()
    y = photos.diff_augment(x, ["cutout"])
    rows = [{min(max(middle - 2 + k, 0), 7) for k in range(4)} for middle in range(9)]
    squares = {}
    for middle in np.ndindex(9, 9):
        square = torch.ones(8, 8)
        for place in itertools.product(*(rows[m] for m in middle)):
            square[place] = 0
        squares[square.numpy().tobytes()] = middle
    left = (y != 0).float()
    assert torch.equal(y, x * left) and (left == left[:, :1]).all()
    times = Counter(squares[one.numpy().tobytes()] for one in left[:, 0])
    assert len(times) == 81 and max(times.values()) < 2 * 3000 / 81  # each as likely
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], left)


def test_cutout_comes_after_translation():
    """Where both are asked for, the square has half a side, too: it is not moved out of sight."""
    torch.manual_seed(0)
    y = photos.diff_augment(torch.ones(500, 3, 16, 16), ["translation", "cutout"])
    torch.manual_seed(0)
    moved = photos.diff_augment(torch.ones(500, 3, 16, 16), ["translation"])
    assert torch.equal(y, photos.diff_augment(moved, ["cutout"]))


# Decoding and its cache


def write_photos(folder, n=5, size=(40, 30)):
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = np.random.RandomState(i).randint(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_photos_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    write_photos(tmp_path / "a b é" / "train")
    images, fingerprint = photos.load_images(tmp_path / "a b é", "train", 16)
    assert fingerprint == hashlib.sha256(images.numpy()).hexdigest()
    expected = Image.open(tmp_path / "a b é" / "train" / "2.png").resize((16, 16), 2)
    assert np.array_equal(images[2].permute(1, 2, 0), np.asarray(expected))
    with monkeypatch.context() as patch:
        patch.setattr(photos, "decode", None)  # would fail if it were called
        again = photos.load_images(tmp_path / "a b é", "train", 16)
    assert torch.equal(again[0], images) and again[1] == fingerprint
    Image.new("RGB", (40, 30)).save(tmp_path / "a b é" / "train" / "2.png")
    changed = photos.load_images(tmp_path / "a b é", "train", 16)
    assert changed[0][2].max() == 0 and changed[1] != fingerprint


def test_crop_keeps_proportions(tmp_path):
    image = Image.new("RGB", (60, 20))
    image.paste((255, 255, 255), (20, 0, 40, 20))
    image.save(tmp_path / "wide.png")
    assert photos.decode(tmp_path / "wide.png", 20, "crop").min() > 250
    assert photos.decode(tmp_path / "wide.png", 20, "square").min() == 0


def test_decoding_depends_on_no_order(tmp_path):
    write_photos(tmp_path / "train", n=70)
    files = imagefiles.find(tmp_path / "train")
    shuffled = random.Random(0).sample(files, len(files))
    images = photos.decode_all(shuffled, 8)
    for i in (0, 40, 69):
        assert np.array_equal(images[i], photos.decode(shuffled[i], 8, "square"))


def test_a_cache_that_does_not_fit_is_done_without(bedrooms, tmp_path, capfd):
    shutil.copytree(bedrooms, tmp_path / "d", ignore=shutil.ignore_patterns(".cache"))
    expected = photos.load_images(bedrooms, "train", 32)
    with small_disk(5000):
        found = photos.load_images(tmp_path / "d", "train", 32)
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]
    (warning,) = capfd.readouterr().err.splitlines()
    assert "nothing is kept in " in warning and not list((tmp_path / "d" / ".cache").iterdir())


def test_fuzzed_manifests(request, bedrooms, tmp_path):
    shutil.copytree(bedrooms, tmp_path / "d", ignore=shutil.ignore_patterns(".cache"))
    manifest = tmp_path / "d" / "manifest.csv"
    damaged = mutations(random.Random(2), manifest.read_bytes())
    for _ in range(fuzz_count(request, 0.3)):
        manifest.write_bytes(next(damaged))
        line = refusal(photos.split_files, tmp_path / "d", "train")
        assert line is None or "d " in line or "manifest.csv" in line


@pytest.mark.filterwarnings("ignore")  # of Pillow
def test_fuzzed_photos(request, tmp_path):
    """Of a plain folder what decodes is let in; where a manifest lists checksums, nothing is."""
    chance = random.Random(3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
    kinds = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp",
             "WEBP": ".webp", "PPM": ".ppm"}
    folder = tmp_path / "photos"
    folder.mkdir()
    (tmp_path / "listed" / "train").mkdir(parents=True)
    for kind, suffix in kinds.items():
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        damaged = mutations(chance, buffer.getvalue())
        for i in range(fuzz_count(request, 0.3) // len(kinds) + 1):
            path, data = folder / f"x{suffix}", next(damaged)
            path.write_bytes(data)
            line = refusal(photos.decode_all, imagefiles.find(folder), 8)
            assert line is None or "cannot be read" in line
            path.unlink()
            if i % 20 == 0:
                photo = tmp_path / "listed" / "train" / f"x{suffix}"
                photo.write_bytes(data)
                (tmp_path / "listed" / "manifest.csv").write_text(
                    "file,file_sha256\n"
                    f"train/{photo.name},{hashlib.sha256(buffer.getvalue()).hexdigest()}\n")
                line = refusal(photos.load_images, tmp_path / "listed", "train", 8)
                assert "is not the photo that" in line
                photo.unlink()


def test_fuzzed_caches(request, bedrooms, tmp_path):
    """A damaged cache or label gives the right photos all the same."""
    shutil.copytree(bedrooms, tmp_path / "d", copy_function=shutil.copy2)
    expected, _ = photos.load_images(tmp_path / "d", "train", 8)
    for path in list((tmp_path / "d" / ".cache").glob("train_8_square.*")):
        damaged, whole = mutations(random.Random(4), path.read_bytes()), path.read_bytes()
        for data in [whole[:200], *(next(damaged) for _ in range(fuzz_count(request, 0.01)))]:
            path.write_bytes(data)
            assert torch.equal(photos.load_images(tmp_path / "d", "train", 8)[0], expected)


def test_grid_shows_images_row_by_row(tmp_path):
    images = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8)
                          for value in (0, 128, 255)])
    photos.save_grid(images, tmp_path / "grid.png", columns=2)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (16, 16, 3)
    assert grid[4, 4, 0] == 0 and grid[4, 12, 0] == 128 and grid[12, 4, 0] == 255
    assert grid[12, 12, 0] == 0 == grid[0, 12, 0]
    photos.save_grid(images, tmp_path / "captioned.png", caption="what it shows")
    grid = np.asarray(Image.open(tmp_path / "captioned.png"))
    assert grid.shape == (8 + 14, 64, 3) and grid[8:].max() > 200


def test_a_disk_that_fills_up_leaves_no_part_of_an_image(tmp_path):
    images = torch.randint(256, (3, 3, 40, 40), dtype=torch.uint8)
    images[0] = 0
    with small_disk(2000), pytest.raises(OSError) as error:
        photos.save_images([images], tmp_path)
    assert error.value.filename == str(tmp_path / "00001.png")
    assert [path.name for path in tmp_path.iterdir()] == ["00000.png"]


def test_what_a_thread_makes_ahead():
    assert list(photos.ahead(range(1, 8))) == list(range(1, 8))

    def breaks():
        yield 1
        raise SystemExit(2)

    made = photos.ahead(breaks())
    assert next(made) == 1
    with pytest.raises(SystemExit):
        next(made)
