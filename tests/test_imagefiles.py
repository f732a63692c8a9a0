"""Image files: one function decides what their pixels are, whoever reads them; which are found."""

import contextlib
import csv
import io
import os
import struct
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import evaluate
from common import imagefiles, photos

PICTURE = np.asarray(Image.fromarray(np.random.default_rng(1).integers(
    0, 256, (4, 4, 3), dtype=np.uint8)).resize((96, 80), Image.Resampling.BICUBIC))
GREY = PICTURE[..., 0].copy()
RAMP = np.linspace(0, 1, 80 * 96).reshape(80, 96)
OPAQUE = RAMP[..., None]
STEPS = np.uint8([[20] * 32 + [100] * 32 + [240] * 32] * 80)


def encode(image, kind="PNG", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values):
    return np.repeat(values[..., None], 3, 2)


def deep_png(image, *clear):
    """A PNG of 16 bits a channel, which Pillow can't write: by hand. image: (80, 96) or with a last
    dimension of 2, 3 or 4 channels; clear: the values of the color that is transparent."""
    raw = b"".join(b"\0" + line.tobytes() for line in image.astype(">u2") * 257)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[image[..., None].shape[2]]
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 96, 80, 16, kind, 0, 0, 0)),
              *([(b"tRNS", struct.pack(f">{len(clear)}H", *clear))] if clear else []),
              (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)


def profile(space, tags):
    """An ICC profile (version 2) of these tags, {name: bytes}."""
    places, data = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        places += name + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    header = b"    \2\x10\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(24)
    header += struct.pack(">I", 0) + struct.pack(">3i", 63190, 65536, 54061)  # D50
    body = header.ljust(124, b"\0") + struct.pack(">I", len(tags)) + places + data
    return struct.pack(">I", len(body) + 4) + body


def xyz(*values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


GAMMA = b"curv\0\0\0\0" + struct.pack(">IH", 1, 563)  # 563 / 256
WHITE = xyz(0.9642, 1, 0.8249)
ADOBE_RGB = profile(b"RGB ", {  # Adobe's specification of 2005, 4.3.8
    b"wtpt": WHITE, b"rTRC": GAMMA, b"gTRC": GAMMA, b"bTRC": GAMMA,
    b"rXYZ": xyz(0.60974, 0.31111, 0.01947), b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
    b"bXYZ": xyz(0.14919, 0.06322, 0.74457)})
GREY_GAMMA = profile(b"GRAY", {b"wtpt": WHITE, b"kTRC": GAMMA})
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def srgb(linear):
    """Linear light to sRGB's levels (IEC 61966-2-1)."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def of_adobe_rgb(image):
    """Adobe RGB in sRGB: both have D65 and nearly the same red and blue."""
    matrix = [[1.39836, -0.39836, 0], [0, 1, 0], [0, -0.04293, 1.04293]]
    return srgb((image / 255) ** (563 / 256) @ np.transpose(matrix))


def of_lab(image):
    """CIE Lab (D50), a and b around 128, in sRGB."""
    lightness, a, b = np.moveaxis(image.astype(float), -1, 0)
    y = (lightness / 2.55 + 16) / 116
    f = np.stack([y + (a - 128) / 500, y, y - (b - 128) / 200], -1)
    found = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    to_srgb = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    return srgb(found @ np.transpose(to_srgb))


TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned 90 degrees clockwise
INK = Image.merge("CMYK", [*Image.fromarray(255 - PICTURE).split(), Image.new("L", (96, 80))])
PALETTE = Image.fromarray(PICTURE).quantize(32)
CLEAR = Image.fromarray(np.repeat(np.uint8([[0] * 48 + [1] * 48]), 80, 0))
CLEAR.putpalette([10, 20, 30, 200, 100, 50])
LAB = np.stack([60 + 100 * RAMP, 128 + 25 * RAMP, 148 - 40 * RAMP], -1).round().astype(np.uint8)
JPEG = encode(PICTURE, "JPEG", icc_profile=ADOBE_RGB)
FORMATS = {  # name: bytes, the pixels that it shows, tolerance
    "turned.jpg": (encode(PICTURE, "JPEG", quality=95, subsampling=0, exif=TURNED),
                   np.rot90(PICTURE, -1), 6),
    "turned.png": (encode(PICTURE, exif=TURNED), np.rot90(PICTURE, -1), 0),
    "deep.png": (encode((RAMP * 65535).astype(np.uint16)), grey(RAMP * 255), 0.51),
    "turned.tif": (encode(GREY, "TIFF", tiffinfo={274: 6}), np.rot90(grey(GREY), -1), 0),
    "deep_rgb.png": (deep_png(PICTURE), PICTURE, 1),
    "deep_clear.png": (deep_png(STEPS, 257 * 100), grey(np.where(STEPS == 100, 255, STEPS)), 0),
    "deep_rgb_clear.png": (deep_png(grey(STEPS), *[257 * 100] * 3),
                           grey(np.where(STEPS == 100, 255, STEPS)), 0),
    "deep.tif": (encode((RAMP * 65535).astype(np.uint16), "TIFF"), grey(RAMP * 255), 0.51),
    "inverted.tif": (encode((RAMP * 65535).astype(np.uint16), "TIFF", tiffinfo={262: 0}),
                     grey(255 - RAMP * 255), 0.51),
    "12_bits.tif": (encode((RAMP * 4095).astype(np.uint16), "TIFF", tiffinfo={281: 4095}),
                    grey(RAMP * 255), 0.6),
    "12_bits.ppm": (b"P5 96 80 4095\n" + (RAMP * 4095).astype(">u2").tobytes(), grey(RAMP * 255),
                    0.6),
    "float.tiff": (encode(RAMP.astype(np.float32), "TIFF"), grey(RAMP * 255), 0.51),
    "alpha.png": (encode(np.dstack([PICTURE, (RAMP * 255).astype(np.uint8)])),
                  PICTURE * OPAQUE + 255 * (1 - OPAQUE), 2),
    "grey_alpha.png": (encode(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(
        (RAMP * 255).astype(np.uint8))])), grey(GREY) * OPAQUE + 255 * (1 - OPAQUE), 2),
    "gif_named.jpg": (encode(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB")), 0),
    "palette.png": (encode(PALETTE), np.asarray(PALETTE.convert("RGB")), 0),
    "clear_palette.png": (encode(CLEAR, transparency=0),
                          np.where(np.asarray(CLEAR)[..., None], (200, 100, 50), 255), 0),
    "two.bmp": (encode(Image.fromarray(GREY > 99), "BMP"), grey((GREY > 99) * 255), 0),
    "cmyk.jpe": (encode(INK, "JPEG", quality=98), PICTURE, 4),
    "cmyk.tif": (encode(INK, "TIFF"), PICTURE, 0),
    "lab.tif": (encode(Image.merge("LAB", [*map(Image.fromarray, np.moveaxis(LAB, -1, 0).copy())]),
                       "TIFF"), of_lab(LAB), 2),
    "grey.jfif": (encode(GREY, "JPEG", quality=98), grey(GREY), 4),
    "lossless.webp": (encode(PICTURE, "WEBP", lossless=True), PICTURE, 0),
    "good.avif": (encode(PICTURE, "AVIF", quality=95, subsampling="4:4:4"), PICTURE, 6),
    "adobe_rgb.png": (encode(PICTURE, icc_profile=ADOBE_RGB), of_adobe_rgb(PICTURE), 1.5),
    "adobe_rgb.jpg": (JPEG, of_adobe_rgb(np.asarray(Image.open(io.BytesIO(JPEG)))), 1.5),
    "adobe_rgb_palette.png": (encode(PALETTE, icc_profile=ADOBE_RGB),
                              of_adobe_rgb(np.asarray(PALETTE.convert("RGB"))), 1.5),
    "grey_gamma.png": (encode(GREY, icc_profile=GREY_GAMMA),
                       srgb((grey(GREY) / 255) ** (563 / 256)), 1.5),
    "grey_adobe_rgb.png": (encode(GREY, icc_profile=ADOBE_RGB),
                           srgb((grey(GREY) / 255) ** (563 / 256)), 1.5),
    "srgb.png": (encode(PICTURE, icc_profile=SRGB), PICTURE, 0),
    "no_profile.png": (encode(PICTURE, icc_profile=b"what is this"), PICTURE, 0),
    "another_profile.png": (encode(PICTURE, icc_profile=GREY_GAMMA), PICTURE, 0),
}
PLAIN = {"srgb.png", "no_profile.png", "another_profile.png"}  # keep their bytes
REFUSED = {  # name: bytes, what is said; the first eight would be black or white without a word
    "12_bits.tif": (encode((RAMP * 4095).astype(np.uint16), "TIFF"), "0 to 4095, where 65535"),
    "12_bits.png": (encode((RAMP * 4095).astype(np.uint16)), "0 to 4095, where 65535"),
    "12_bits_rgb.png": (deep_png(PICTURE >> 4), "nearly black"),
    "12_bits_rgba.png": (deep_png(np.dstack([PICTURE >> 4, GREY | 255])), "nearly black"),
    "12_bits_grey_alpha.png": (deep_png(np.dstack([GREY >> 4, GREY | 255])), "nearly black"),
    "32_bits.tif": (encode((RAMP * 65535).astype(np.int32), "TIFF"), "signed samples"),
    "float_to_255.tif": (encode((RAMP * 255).astype(np.float32), "TIFF"), "from 0 to 255, where 1"),
    "nan.tif": (encode((RAMP * np.nan).astype(np.float32), "TIFF"), "where 1 should be white"),
    "text.jpg": (b"a photo, honest", "not an image, or of a kind that is not read"),
    "cut.jpg": (encode(PICTURE, "JPEG")[:700], "truncated"),
    "bomb.png": (encode(Image.new("1", (18000, 17000))), "decompression bomb"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file of each of FORMATS."""
    folder = tmp_path_factory.mktemp("formats")
    for name, (data, _, _) in FORMATS.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_pixels_of_a_file(folder, name):
    _, expected, tolerance = FORMATS[name]
    with imagefiles.opened(folder / name) as (image, suffix):
        found = np.asarray(image)
    assert image.mode == "RGB" and found.shape == expected.shape
    assert np.abs(found - expected.astype(float)).max() <= tolerance
    assert suffix == (".png" if name in PLAIN else None)
    assert imagefiles.size(folder / name) == image.size or name == "turned.png"  # see there


@pytest.mark.parametrize("name", REFUSED)
def test_files_whose_pixels_are_not_known(tmp_path, name):
    data, says = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=says) as error, imagefiles.opened(tmp_path / name):
        pass
    assert " at 0x" not in str(error.value)


def test_prepared_plain_and_judged_photos_have_equal_pixels(folder, script, tmp_path):
    script("prepare_data.py", "--images", folder, "--out", tmp_path / "out", "--min-size", 1)
    with open(tmp_path / "out" / "manifest.csv", newline="") as file:
        rows = {row["source"]: tmp_path / "out" / row["file"] for row in csv.DictReader(file)}
    assert rows.keys() == FORMATS.keys()
    column = evaluate.folder_column(folder, 64)
    compared = SimpleNamespace(seed=0, n=len(FORMATS), size=64, fit="square", out=tmp_path)
    samples, labels = evaluate.sample_set(column, compared, compared.n, torch.device("cpu"))
    judged = torch.cat(list(samples.batches(torch.arange(samples.n))))
    plain, _ = photos.load_images(folder, "train", 64)
    prepared = photos.decode_all([rows[name] for name in labels], 64)
    assert labels == sorted(FORMATS)
    assert torch.equal(plain, judged) and torch.equal(plain, prepared)
    for name, path in rows.items():  # and all of them, before they are made smaller
        with imagefiles.opened(folder / name) as (image, _), Image.open(path) as written:
            assert np.array_equal(image, written) and not written.getexif()
            assert "icc_profile" not in written.info or name in PLAIN


def test_libtiff_does_not_print(tmp_path, capfd):
    whole = encode(PICTURE, "TIFF", compression="tiff_lzw")
    for at in range(8, len(whole), 40):
        with contextlib.suppress(ValueError), imagefiles.opened(
                io.BytesIO(whole[:at] + bytes(9) + whole[at + 9 :])):
            pass
    assert capfd.readouterr().err == ""


# Which there are


def test_what_counts_as_an_image():
    for name, expected in {"a.JPG": True, "a.b.tiff": True, ".a.jpg": False, "a.eps": False,
                           "a.jpg.txt": False, "jpg": False, "a.jfif": True}.items():
        assert imagefiles.is_image(Path(name)) == expected, name


def test_images_of_subfolders_are_found_and_what_is_left_out_is_said(folder, tmp_path, capfd):
    image = (folder / "palette.png").read_bytes()
    for name in ("b/2.png", "b/1.PNG", "a.png", "b/c d/3.png", ".hidden/4.png", "b/.5.png",
                 "eval/suspects.png", "runs/a/samples.png", "mine/eval/6.png", "out/7.png",
                 "photo", "b/8.png_large"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image)
    (tmp_path / "b" / "iphone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    (tmp_path / "eval" / "metrics.json").write_text("{}")
    (tmp_path / "runs" / "a" / "args.json").write_text("{}")
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.png")
    found = imagefiles.find(tmp_path, tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "a.png", "b/1.PNG", "b/2.png", "b/c d/3.png", "mine/eval/6.png"]
    link, dangling, misnamed = capfd.readouterr().err.splitlines()
    assert "dangling.png: No such file" in dangling
    assert link.endswith("linked: a link to a folder; give that folder itself")
    assert "skipped 3 images with other names than .jpg" in misnamed and "HEIC" in misnamed


# At once


def test_threads_keep_to_their_cpus(monkeypatch, tmp_path):
    """Of 64 CPUs those that the process may run on, and as many as its container's quota lasts."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(imagefiles, "QUOTA", tmp_path / "cpu.max")
    for cpus, quota, expected in ((64, None, 16), (3, None, 3), (64, "max 100000\n", 16),
                                  (64, "250000 100000\n", 3), (2, "250000 100000\n", 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cpus=cpus: set(range(cpus)))
        if quota:
            (tmp_path / "cpu.max").write_text(quota)
        assert imagefiles.threads() == expected, (cpus, quota)


def test_images_wait_until_there_is_memory_for_them(monkeypatch, folder):
    """What threads hold at once stays within the budget, but for one that is larger than it."""
    budget = imagefiles._Budget(100)
    monkeypatch.setattr(imagefiles, "_memory", budget)
    held, seen = [], []

    def take(size):
        with budget.taken(size):
            held.append(size)
            seen.append(list(held))
            time.sleep(0.005)
            held.remove(size)

    threads = [threading.Thread(target=take, args=(size,)) for size in [40, 50, 300, 30] * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sum(sizes) <= 100 or sizes == [300] for sizes in seen)
    assert max(map(len, seen)) > 1 and len(seen) == 20
    with imagefiles.opened(folder / "palette.png"):
        assert budget.left == 0  # the image is larger than the budget
    assert budget.left == 100
