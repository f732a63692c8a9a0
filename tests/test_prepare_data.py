"""prepare_data.py, run as a user runs it."""

import csv
import hashlib
import io
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "prepare_data.py"
REAL_ARCHIVE = ROOT.parent / "shared/data/indoor_houses.tar"


def prepare(*args, cwd=None):
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def succeed(*args, **kwargs):
    result = prepare(*args, **kwargs)
    assert result.returncode == 0, result.stderr
    return result


def refuse(*args, says="", **kwargs):
    """Exit code 2 and one line on stderr (warnings apart) that contains `says`."""
    result = prepare(*args, **kwargs)
    lines = [line for line in result.stderr.splitlines() if ": warning: " not in line]
    assert result.returncode == 2 and len(lines) == 1, result
    assert lines[0].startswith("prepare_data.py: error: ") and says in lines[0], lines[0]
    return result


def manifest(out):
    with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def snapshot(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if
            p.is_file()}


def picture(seed=0, size=(80, 96)):
    """Smooth random colours as (height, width, 3) uint8, so that JPEG keeps them nearly."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def encode(image, kind="JPEG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photos(folder, n=4, first=100):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"plain_{i}.jpg").write_bytes(encode(picture(first + i)))
    return folder


def add(tar, name, data=b"", kind=tarfile.REGTYPE, link=""):
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    tar.addfile(member, io.BytesIO(data))


def archive(path, classes=None, mode="w"):
    """A small tar with the layout of MIT Indoor Scenes."""
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as tar:
        for name, n in (classes or {"bedroom": 4, "kitchen": 3}).items():
            for i in range(n):
                data = encode(picture(hash_seed(name, i)))
                add(tar, f"Images/{name}/{name}_{i}.jpg", data)
    return path


def hash_seed(name, i):
    return int.from_bytes(name.encode()[:4], "big") + i


def result_of(out, source):
    """The manifest row of a source, and its pixels as written."""
    (row,) = [row for row in manifest(out) if row["source"] == source]
    return row, np.asarray(Image.open(out / row["file"]))


# ----------------------------------------------------------------------------------- photo formats


def rotated_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    return encode(picture(1), quality=95, subsampling=0, exif=exif), np.rot90(picture(1), -1)


def deep_grey():
    ramp = np.linspace(0, 65535, 80 * 96).reshape(80, 96).astype(np.uint16)
    return encode(ramp, "PNG"), np.repeat((ramp / 257.0)[..., None], 3, 2)


def alpha_png():
    alpha = np.linspace(0, 255, 96).astype(np.uint8)[None].repeat(80, 0)[..., None]
    weight = alpha / 255.0
    expected = picture(2) * weight + 255 * (1 - weight)
    return encode(np.concatenate([picture(2), alpha], 2), "PNG"), expected


def grey_alpha_png():
    grey, alpha = picture(3)[..., 0], np.full((80, 96), 51, np.uint8)
    expected = np.repeat((grey * 0.2 + 255 * 0.8)[..., None], 3, 2)
    return encode(Image.merge("LA", list(map(Image.fromarray, (grey, alpha)))), "PNG"), expected


def palette(kind, **options):
    image = Image.fromarray(picture(4)).quantize(32)
    return encode(image, kind, **options), np.asarray(image.convert("RGB")).astype(float)


def clear_palette():
    image = Image.new("P", (96, 80), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(0, (0, 0, 48, 80))
    expected = np.full((80, 96, 3), (200.0, 100.0, 50.0))
    expected[:, :48] = 255
    return encode(image, "PNG", transparency=0), expected


def float_tiff():
    values = np.linspace(0, 1, 80 * 96, dtype=np.float32).reshape(80, 96)
    return encode(values, "TIFF"), np.repeat(values[..., None] * 255, 3, 2)


def two_tone():
    bits = picture(5)[..., 0] > 128
    expected = np.repeat(bits[..., None] * 255.0, 3, 2)
    return encode(Image.fromarray(bits.astype(np.uint8) * 255).convert("1"), "PNG"), expected


def cmyk():
    ink = 255 - picture(6)
    image = Image.merge("CMYK", [*map(Image.fromarray, ink.transpose(2, 0, 1).copy()),
                                 Image.new("L", (96, 80))])
    return encode(image, quality=98), picture(6).astype(float)


def deep_rgb_png():
    """8-bit tools show a 16-bit RGB PNG as RGB, and Pillow can't write one: by hand."""
    pixels = picture(7).astype(">u2") * 257
    raw = b"".join(b"\0" + line.tobytes() for line in pixels)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 96, 80, 16, 2, 0, 0, 0)),
              (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
                    for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body, picture(7).astype(float)


FORMATS = {  # name: ((bytes, expected pixels), tolerance)
    "turned.jpg": (rotated_jpeg(), 6),
    "deep.png": (deep_grey(), 0.51),
    "deep_rgb.png": (deep_rgb_png(), 1),
    "alpha.png": (alpha_png(), 1.01),
    "grey_alpha.png": (grey_alpha_png(), 1.01),
    "gif_named.jpg": (palette("GIF"), 0),
    "palette.png": (palette("PNG"), 0),
    "palette.bmp": (palette("BMP"), 0),
    "clear_palette.png": (clear_palette(), 0),
    "float.tiff": (float_tiff(), 0.51),
    "bits.png": (two_tone(), 0),
    "cmyk.jpg": (cmyk(), 4),
    "grey.jpg": ((encode(picture(8)[..., 0], quality=98),
                  picture(8)[..., :1].repeat(3, 2)), 4),
    "lossless.webp": ((encode(picture(9), "WEBP", lossless=True), picture(9)), 0),
}


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    folder = photos(tmp_path_factory.mktemp("formats") / "in")
    for name, ((data, _), _) in FORMATS.items():
        (folder / name).write_bytes(data)
    succeed("--images", folder, "--out", folder.parent / "out")
    return folder.parent / "out"


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_become_upright_rgb_png(formats, name):
    (_, expected), tolerance = FORMATS[name]
    row, pixels = result_of(formats, name)
    assert row["file"].endswith(".png") and pixels.dtype == np.uint8
    assert pixels.shape == expected.shape == (int(row["height"]), int(row["width"]), 3)
    assert np.abs(pixels - expected.astype(float)).max() <= tolerance
    assert (formats / row["file"]).read_bytes()[24] == 8, "bits a channel"
    written = Image.open(formats / row["file"])
    assert written.format == "PNG" and written.mode == "RGB" and not written.getexif()


def test_plain_photos_keep_their_bytes_and_get_their_true_suffix(tmp_path):
    data = {"UPPER.JPG": encode(picture(1)), "really_a_png.jpeg": encode(picture(2), "PNG"),
            "Ein schönes Zimmer.jpg": encode(picture(3)),
            "a,b \"c\".png": encode(picture(4), "PNG")}
    for name, content in data.items():
        photos(tmp_path / "in", 0).joinpath(name).write_bytes(content)
    succeed("--images", tmp_path / "in", "--out", tmp_path / "out")
    rows = {row["source"]: row for row in manifest(tmp_path / "out")}
    assert {s: r["file"].partition("/")[2] for s, r in rows.items()} == {
        "UPPER.JPG": "UPPER.jpg", "really_a_png.jpeg": "really_a_png.png",
        "Ein schönes Zimmer.jpg": "Ein schönes Zimmer.jpg", "a,b \"c\".png": "a,b _c_.png",
    }
    for source, row in rows.items():
        assert (tmp_path / "out" / row["file"]).read_bytes() == data[source]
        assert row["file_sha256"] == hashlib.sha256(data[source]).hexdigest()


def test_what_does_not_decode_is_named_and_left_out(tmp_path):
    folder = photos(tmp_path / "in")
    whole = encode(picture(1, (300, 300)), quality=95)
    bomb = encode(Image.new("1", (20000, 20000)), "PNG")
    bad = {"cut.jpg": whole[: len(whole) // 2], "empty.jpg": b"", "text.jpg": b"a photo, honest",
           "bomb.png": bomb, "pcx.jpg": encode(picture(1), "PCX"),
           "cut.png": encode(picture(1), "PNG")[:200],
           "post\nscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    with (folder / "huge.jpg").open("wb") as file:
        file.truncate(300 * 2**20)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "notes.txt").write_text("not a photo")
    (folder / "._plain_0.jpg").write_bytes(b"macOS")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.jpg").write_bytes(whole)
    (folder / "small.png").write_bytes(encode(picture(2, (63, 200)), "PNG"))
    result = succeed("--images", folder, "--out", tmp_path / "out")
    warnings = result.stderr.splitlines()
    for name in [*bad, "huge.jpg", "pipe.jpg"]:
        assert sum(name.replace("\n", "_") in line for line in warnings) == 1, name
    assert len(warnings) == len(bad) + 2
    assert "7 not decodable" in result.stdout and "1 smaller than 64 pixels" in result.stdout
    assert len(manifest(tmp_path / "out")) == 4


def test_min_size_is_the_shorter_side(tmp_path):
    folder = photos(tmp_path / "in")
    (folder / "edge.jpg").write_bytes(encode(picture(1, (50, 200))))
    assert "1 smaller than 51" in succeed("--images", folder, "--min-size", 51, "--out",
                                          tmp_path / "a").stdout
    succeed("--images", folder, "--min-size", 50, "--out", tmp_path / "b")
    assert len(manifest(tmp_path / "a")) == 4 and len(manifest(tmp_path / "b")) == 5


# -------------------------------------------------------------------------------------- the split


def test_manifest_and_names(tmp_path):
    folder = photos(tmp_path / "in")
    for sub in ("x/Same.jpg", "x_same.jpg", "y/z/deep.jpg"):
        (folder / sub).parent.mkdir(parents=True, exist_ok=True)
        (folder / sub).write_bytes(encode(picture(len(sub))))
    out = tmp_path / "aus gäbe"
    succeed("--images", folder, "--out", out)
    text = (out / "manifest.csv").read_bytes()
    assert text.startswith(b"split,file,source,width,height,file_sha256,pixel_sha256\n")
    assert b"\r" not in text
    rows = manifest(out)
    assert rows == sorted(rows, key=lambda r: (r["split"], r["file"]))
    assert {r["file"] for r in rows} | {"manifest.csv"} == set(snapshot(out))
    assert all(r["file"].startswith(r["split"] + "/") for r in rows)
    names = [r["file"].partition("/")[2] for r in rows]
    assert "y_z_deep.jpg" in names and len({n.casefold() for n in names}) == len(names) == 7
    assert {"x_Same.jpg", "x_same-2.jpg"} <= set(names)
    for row in rows:
        assert hashlib.sha256((out / row["file"]).read_bytes()).hexdigest() == row["file_sha256"]
        assert Image.open(out / row["file"]).size == (int(row["width"]), int(row["height"]))


@pytest.mark.parametrize("seed", range(4))
def test_identical_pixels_stay_on_one_side(tmp_path, seed):
    folder = photos(tmp_path / "in", 8)
    for i in range(3):  # the same pixels under other names and in other bytes
        same = Image.open(folder / f"plain_{i}.jpg")
        (folder / f"again_{i}.png").write_bytes(encode(same, "PNG"))
        (folder / f"copy_{i}.jpg").write_bytes((folder / f"plain_{i}.jpg").read_bytes())
    result = succeed("--images", folder, "--seed", seed, "--out", tmp_path / "out")
    rows = manifest(tmp_path / "out")
    sides = {}
    for row in rows:
        sides.setdefault(row["pixel_sha256"], set()).add(row["split"])
    assert len(sides) == 8 and all(len(side) == 1 for side in sides.values())
    assert sum(row["split"] == "val" for row in rows) == 7
    assert "repeats of another photo's pixels: 6" in result.stdout


def test_split_follows_seed_and_fraction_not_names(tmp_path):
    folder = photos(tmp_path / "in", 10)

    def val(*args, images=folder):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        succeed("--images", images, "--out", out, *args)
        return {row["pixel_sha256"] for row in manifest(out) if row["split"] == "val"}

    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for i, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        (renamed / f"{i}.jpg").write_bytes(path.read_bytes())
    assert val() == val() == val(images=renamed)
    assert val() != val("--seed", 1)
    assert len(val()) == 5
    assert len(val("--val-fraction", 0.2)) == 2 and val("--val-fraction", 0.2) < val()
    assert val("--val-fraction", 0) == set()


def test_again_changes_nothing_and_restores_what_is_missing(tmp_path):
    args = "--images", photos(tmp_path / "in"), "--out", tmp_path / "out"
    assert "nothing changed" not in succeed(*args).stdout
    before = snapshot(tmp_path / "out")
    assert "nothing changed" in succeed(*args).stdout
    assert snapshot(tmp_path / "out") == before
    # As a kill before the manifest leaves it, with the scratch folder of a kill -9.
    (tmp_path / "out" / "manifest.csv").unlink()
    (tmp_path / "out" / manifest_file(before)).unlink()
    (tmp_path / "out" / ".staging-dead").mkdir()
    (tmp_path / "out" / ".staging-dead" / "x.jpg").write_bytes(b"half")
    (tmp_path / "out" / "train" / ".DS_Store").write_bytes(b"")
    succeed(*args)
    assert snapshot(tmp_path / "out") == before | {"train/.DS_Store": b""}


def manifest_file(files):
    return next(name for name in sorted(files) if name.startswith("train/"))


def test_nothing_there_is_overwritten(tmp_path):
    args = "--images", photos(tmp_path / "in", 8), "--out", tmp_path / "out"
    succeed(*args)
    before = snapshot(tmp_path / "out")
    refuse(*args, "--seed", 1, says="lists another split")
    refuse(*args, "--val-fraction", 0.25, says="lists another split")
    assert snapshot(tmp_path / "out") == before
    foreign = tmp_path / "out" / "val" / "mine.jpg"
    foreign.write_bytes(b"mine")
    refuse(*args, says="mine.jpg is not of this split")
    foreign.unlink()
    damaged = tmp_path / "out" / manifest_file(before)
    damaged.write_bytes(b"changed")
    refuse(*args, says=f"{damaged.name} was changed")
    (tmp_path / "out" / "manifest.csv").unlink()
    refuse(*args, says=f"{damaged.name} was changed")
    after = {**before, manifest_file(before): b"changed"}
    del after["manifest.csv"]
    assert snapshot(tmp_path / "out") == after


def test_output_inside_the_photos_is_not_read_back(tmp_path):
    args = "--images", photos(tmp_path), "--out", tmp_path / "out"
    succeed(*args)
    assert "nothing changed" in succeed(*args).stdout


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130),
                                            (signal.SIGKILL, -9)])
def test_a_stopped_run_leaves_nothing_half_done(tmp_path, sign, code):
    out = tmp_path / "data" / "out"
    command = [sys.executable, SCRIPT, "--demo", "200", "--out", out]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob(".staging-*/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sign)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert len(stderr.splitlines()) == (sign != signal.SIGKILL)
    assert not (out / "train").exists() and not (out / "manifest.csv").exists()
    if sign != signal.SIGKILL:
        assert not (tmp_path / "data").exists()
    else:
        succeed("--images", photos(tmp_path / "in"), "--out", out)
        assert {n.partition("/")[0] for n in snapshot(out)} == {"train", "val", "manifest.csv"}


# --------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("suffix", ["", "gz", "bz2", "xz"])
def test_archive_classes(tmp_path, suffix):
    tar = archive(tmp_path / "indoor.tar", mode=f"w:{suffix}")
    succeed("--archive", tar, "--out", tmp_path / "a")
    assert [r["source"] for r in sorted(manifest(tmp_path / "a"), key=lambda r: r["source"])] == [
        f"Images/bedroom/bedroom_{i}.jpg" for i in range(4)]
    succeed("--archive", tar, "--class", "all", "--out", tmp_path / "b")
    assert len(manifest(tmp_path / "b")) == 7
    refuse("--archive", tar, "--class", "kitchn", "--out", tmp_path / "c",
           says="class 'kitchn'; it has: bedroom (4), kitchen (3)")
    assert not (tmp_path / "c").exists()


def test_all_classes_prefix_names(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("bedroom/1.jpg", "kitchen/1.jpg", "kitchen/kitchen_2.jpg"):
            add(tar, f"Images/{name}", encode(picture(len(name) + ord(name[0]))))
    succeed("--archive", "a.tar", "--class", "all", cwd=tmp_path)
    names = {row["file"].partition("/")[2] for row in manifest(tmp_path / "data" / "all")}
    assert names == {"bedroom_1.jpg", "kitchen_1.jpg", "kitchen_2.jpg"}


def test_hostile_members_are_named_and_never_followed(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(encode(picture(77)))
    archive(tmp_path / "a.tar")
    data = encode(picture(1))
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        add(tar, "Images/bedroom/../../../escape.jpg", data)
        add(tar, "../bedroom/escape2.jpg", data)
        add(tar, f"{tmp_path}/bedroom/absolute.jpg", data)
        add(tar, "Images/bedroom/soft.jpg", kind=tarfile.SYMTYPE, link=f"{tmp_path}/secret.jpg")
        add(tar, "Images/bedroom/hard.jpg", kind=tarfile.LNKTYPE,
            link="Images/kitchen/kitchen_0.jpg")
        add(tar, "Images/bedroom/null.jpg", kind=tarfile.CHRTYPE)
        add(tar, "Images/bedroom/pipe.jpg", kind=tarfile.FIFOTYPE)
        add(tar, "Images/bedroom/._mac.jpg", b"junk")
        add(tar, "Images/bedroom/odd\n\x1bname\udcff.jpg", data)
    before = set(tmp_path.rglob("*"))
    result = succeed("--archive", tmp_path / "a.tar", "--out", tmp_path / "out")
    for name in ("escape.jpg", "escape2.jpg", "absolute.jpg", "soft.jpg", "hard.jpg", "null.jpg",
                 "pipe.jpg"):
        assert len(re.findall(rf"warning: left out \S*{name}", result.stderr)) == 1, name
    assert len(result.stderr.splitlines()) == 7
    assert sorted(r["source"].rpartition("/")[2] for r in manifest(tmp_path / "out")) == [
        *(f"bedroom_{i}.jpg" for i in range(4)), "odd__name_.jpg"]
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "out") for path in new)


def test_oversized_member_is_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as tar:
        add(tar, "Images/bedroom/huge.jpg", bytes(257 * 2**20))
        for i in range(2):
            add(tar, f"Images/bedroom/{i}.jpg", encode(picture(i)))
    result = succeed("--archive", tmp_path / "a.tar.gz", "--out", tmp_path / "out")
    assert "huge.jpg: it is larger than 256 MiB" in result.stderr


@pytest.mark.parametrize("where", ["in a photo", "in a header", "between members", "gzip",
                                   "first header", "broken header"])
def test_damaged_archive_is_refused_before_anything_is_written(tmp_path, where):
    path = archive(tmp_path / "a.tar", mode="w:gz" if where == "gzip" else "w")
    whole = path.read_bytes()
    if where != "gzip":
        with tarfile.open(path) as tar:
            start = tar.getmembers()[3].offset
    data = {
        "in a photo": lambda: whole[: start + 700],
        "in a header": lambda: whole[: start + 100],
        "between members": lambda: whole[:start],
        "gzip": lambda: whole[: len(whole) * 2 // 3],
        "first header": lambda: whole[:300],
        "broken header": lambda: whole[: start + 3] + b"???" + whole[start + 6 :],
    }[where]()
    path.write_bytes(data)
    refuse("--archive", path, "--out", tmp_path / "new/out", says="is not a whole tar archive")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not REAL_ARCHIVE.exists(), reason=f"needs {REAL_ARCHIVE}")
def test_real_bedrooms(tmp_path):
    args = "--archive", REAL_ARCHIVE, "--class", "bedroom", "--out", tmp_path / "bedroom"
    succeed(*args)
    rows = manifest(tmp_path / "bedroom")
    assert len(rows) == 535
    assert sorted(len(list((tmp_path / "bedroom" / s).iterdir())) for s in ("train", "val")) == [
        267, 268]
    before = snapshot(tmp_path / "bedroom")
    assert "nothing changed" in succeed(*args).stdout
    assert snapshot(tmp_path / "bedroom") == before


# --------------------------------------------------------------------------------------- download


class Server(ThreadingHTTPServer):
    """Serves `data`; drops the first `drops` answers half-way; resumes if `ranges`."""

    def __init__(self, data, drops=0, ranges=True, status=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.drops, self.ranges, self.status = data, drops, ranges, status
        self.requests = []
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/files/indoor.tar?raw=1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers["Range"]
        server.requests.append((asked, self.headers["User-Agent"]))
        if server.status:
            self.send_error(server.status)
            return
        start = int(asked[6:-1]) if asked and server.ranges else 0
        total = len(server.data)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        body = server.data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        dropped = server.drops > 0
        server.drops -= dropped
        self.wfile.write(body[: len(body) // 2] if dropped else body)


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(**options):
        servers.append(Server(archive(tmp_path / "served.tar").read_bytes(), **options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download_resumes_after_a_drop(tmp_path, serve):
    server = serve(drops=2)
    args = "--download", "--url", server.url, "--cache", tmp_path / "c", "--out", tmp_path / "out"
    succeed(*args)
    half = len(server.data) // 2
    assert [r[0] for r in server.requests] == [None, f"bytes={half}-",
                                               f"bytes={half + (len(server.data) - half) // 2}-"]
    assert all("prepare_data" in agent for _, agent in server.requests)
    assert (tmp_path / "c" / "indoor.tar").read_bytes() == server.data
    assert len(manifest(tmp_path / "out")) == 4
    assert "nothing changed" in succeed(*args).stdout
    assert len(server.requests) == 3, "a whole archive is not fetched again"


@pytest.mark.parametrize("left", ["beginning", "whole", "too long"])
def test_download_takes_up_a_part_file(tmp_path, serve, left):
    server = serve()
    part = {"beginning": server.data[:1000], "whole": server.data,
            "too long": server.data + b"more"}[left]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "indoor.tar.part").write_bytes(part)
    succeed("--download", "--url", server.url, "--cache", tmp_path / "c", "--out", tmp_path / "out")
    assert server.requests[0][0] == f"bytes={len(part)}-"
    assert snapshot(tmp_path / "c") == {"indoor.tar": server.data}


def test_download_starts_over_where_ranges_are_ignored(tmp_path, serve):
    server = serve(drops=1, ranges=False)
    succeed("--download", "--url", server.url, "--cache", tmp_path / "c", "--out", tmp_path / "out")
    assert (tmp_path / "c" / "indoor.tar").read_bytes() == server.data


def test_download_that_keeps_dropping_can_be_resumed(tmp_path, serve):
    server = serve(drops=100, ranges=False)
    args = "--download", "--url", server.url, "--cache", tmp_path / "c", "--out", tmp_path / "out"
    refuse(*args, says="running again resumes")
    assert (tmp_path / "c" / "indoor.tar.part").stat().st_size == len(server.data) // 2
    server.drops, server.ranges = 0, True
    succeed(*args)
    assert server.requests[-1][0] == f"bytes={len(server.data) // 2}-"


def test_download_errors_name_the_url(tmp_path, serve):
    server = serve(status=404)
    args = "--cache", tmp_path / "c", "--out", tmp_path / "out"
    refuse("--download", "--url", server.url, *args, says=f"{server.url} answers 404")
    dead = "http://127.0.0.1:9/x.tar"
    refuse("--download", "--url", dead, *args, says=f"{dead}: ")
    (tmp_path / "c" / "indoorCVPR_09.tar").write_bytes(b"short")
    refuse("--download", *args, says="is not 2,592,010,240 bytes long")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ demo scenes


def test_demo_scenes_depend_on_seed_and_index_alone(tmp_path):
    succeed("--demo", 4, "--out", tmp_path / "a")
    succeed("--demo", 6, "--out", tmp_path / "b")
    succeed("--demo", 4, "--seed", 1, "--out", tmp_path / "c")
    assert "nothing changed" in succeed("--demo", 4, "--out", tmp_path / "a").stdout
    a, b, c = ({Path(k).name: v for k, v in snapshot(tmp_path / d).items()} for d in "abc")
    names = [f"scene_{i:05d}.png" for i in range(4)]
    assert set(a) == {*names, "manifest.csv"}
    assert all(a[name] == b[name] != c[name] for name in names)
    scenes = [np.asarray(Image.open(io.BytesIO(a[name]))) for name in names]
    for scene in scenes:
        assert scene.shape == (512, 512, 3)
        assert scene.std() > 20 and 40 < scene.mean() < 220
    assert min(np.abs(x - y.astype(float)).mean() for x in scenes for y in scenes
               if x is not y) > 10


# -------------------------------------------------------------------------------------- bad input


BAD = [
    ([], "required"),
    (["--archive", "a.tar", "--demo", "4"], "not allowed with"),
    (["--demo", "0"], "0 is not 2 or more"),
    (["--demo", "many"], "many"),
    (["--demo", "4", "--seed", "-1"], "-1 is not 0 or more"),
    (["--demo", "4", "--seed", "1.5"], "1.5"),
    (["--demo", "4", "--val-fraction", "1"], "less than 1"),
    (["--demo", "4", "--val-fraction", "nan"], "nan"),
    (["--demo", "4", "--val-fraction", "-0.1"], "-0.1"),
    (["--demo", "2", "--val-fraction", "0.1"], "both sides need one"),
    (["--demo", "2", "--val-fraction", "0.9"], "both sides need one"),
    (["--demo", "4", "--min-size", "0"], "0 is not 1 or more"),
    (["--demo", "2", "--min-size", "513"], "both sides need one"),
    (["--demo", "4", "--class", "bedroom"], "--class goes with"),
    (["--demo", "4", "--url", "http://x.org/y.tar"], "--url goes with"),
    (["--demo", "2", "--out", "file"], "file"),
    (["--demo", "2", "--out", "file/below"], "file"),
    (["--demo", "2", "--out", "x" * 4000], "File name too long"),
    (["--download", "--url", "file:///etc/passwd"], "not an http(s) URL"),
    (["--download", "--url", "http://"], "not an http(s) URL"),
    (["--images", "missing"], "missing"),
    (["--images", "file"], "file"),
    (["--images", "empty"], "no photos in empty"),
    (["--images", "one"], "both sides need one"),
    (["--images", "twins"], "1 of them different"),
    (["--archive", "missing.tar"], "missing.tar"),
    (["--archive", "empty"], "empty"),
    (["--archive", "file"], "not a whole tar archive"),
    (["--archive", "nothing.tar"], "not a whole tar archive"),
    (["--archive", "hollow.tar"], "no photos at all"),
    (["--archive", "a.tar", "--class", "../bedroom"], "class '../bedroom'"),
    (["--archive", "a.tar", "--class", ""], "class ''"),
    (["--sources", "x"], ""),
]


@pytest.mark.parametrize(("args", "says"), BAD, ids=[" ".join(a)[:40] or "none" for a, _ in BAD])
def test_bad_input_gets_one_line(tmp_path, args, says):
    (tmp_path / "file").write_text("not an archive, nor a folder " * 99)
    (tmp_path / "empty").mkdir()
    photos(tmp_path / "one", 1)
    photos(tmp_path / "twins", 1)
    (tmp_path / "twins" / "2.jpg").write_bytes((tmp_path / "twins" / "plain_0.jpg").read_bytes())
    (tmp_path / "nothing.tar").touch()
    tarfile.open(tmp_path / "hollow.tar", "w").close()
    archive(tmp_path / "a.tar", {"bedroom": 2})
    before = set(tmp_path.rglob("*"))
    refuse(*args, says=says, cwd=tmp_path)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refuse("--demo", 2, "--out", tmp_path / "locked" / "out", says="Permission denied")


def test_help_is_quick_and_imports_no_torch():
    code = ("import sys, runpy; sys.argv = ['prepare_data.py', '--help']\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "finally: assert 'torch' not in sys.modules")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--val-fraction" in result.stdout and "prepare_data.py --demo 64" in result.stdout
