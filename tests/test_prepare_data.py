"""prepare_data.py, run as a user runs it."""

import csv
import hashlib
import io
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import forks
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "prepare_data.py"
REAL_ARCHIVE = ROOT.parent / "shared/data/indoor_houses.tar"


def prepare(*args, code=0, **options):
    return forks.shared()("prepare_data.py", *args, **options).finish(code)


def refuse(*args, says, **kwargs):
    """Exit code 2 and one line on stderr that contains `says`; returns that line."""
    line, = prepare(*args, code=2, **kwargs).stderr.splitlines()
    assert line.startswith("prepare_data.py: error: ") and says in line, line
    return line


def manifest(out):
    with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def snapshot(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*") if p.is_file()}


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
                add(tar, f"Images/{name}/{name}_{i}.jpg", encode(picture(ord(name[0]) + i)))
    return path


def grey(values):
    return np.repeat(values[..., None], 3, 2)


def test_plain_photos_keep_their_bytes_and_get_their_true_suffix(tmp_path):
    table = {"UPPER.JPG": ("UPPER.jpg", encode(picture(1))),
             "really_a_png.jpeg": ("really_a_png.png", encode(picture(2), "PNG")),
             "Ein schönes Zimmer.jpg": ("Ein schönes Zimmer.jpg", encode(picture(3))),
             "a,b \"c\".png": ("a,b \"c\".png", encode(picture(4), "PNG")),
             "x/Same.jpg": ("x_Same.jpg", encode(picture(5))),
             "x_same.jpg": ("x_same-2.jpg", encode(picture(6)))}
    for name, (_, data) in table.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    out = tmp_path / "aus gäbe"
    prepare("--images", tmp_path / "in", "--out", out)
    text, rows = (out / "manifest.csv").read_bytes(), manifest(out)
    assert text.startswith(b"split,file,source,width,height,file_sha256,pixel_sha256,group\n")
    assert rows == sorted(rows, key=lambda r: (r["split"], r["file"])) and b"\r" not in text
    assert {r["file"] for r in rows} | {"manifest.csv"} == set(snapshot(out))
    for row in rows:
        name, data = table.pop(row["source"])
        assert row["file"] == f"{row['split']}/{name}"
        assert (out / row["file"]).read_bytes() == data
        assert row["file_sha256"] == hashlib.sha256(data).hexdigest()
        assert (row["width"], row["height"]) == ("96", "80")
    assert not table


def test_files_that_fail_to_decode_are_skipped_with_a_warning(tmp_path):
    folder = photos(tmp_path / "in")
    whole = encode(picture(1, (300, 300)), quality=95)
    bad = {"cut.jpg": whole[: len(whole) // 2], "empty.jpg": b"", "text.jpg": b"a photo, honest",
           "bomb.png": encode(Image.new("1", (20000, 20000)), "PNG"),
           "cut.png": encode(picture(1), "PNG")[:200],
           "post\nscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"}
    (folder / ".hidden").mkdir()
    others = {"notes.txt": b"not a photo", "._plain_0.jpg": b"macOS", ".hidden/x.jpg": whole,
              "small.png": encode(picture(2, (63, 200)), "PNG"),
              "edge.png": encode(picture(2, (64, 200)), "PNG")}
    for name, data in {**bad, **others}.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.jpg")
    result = prepare("--images", folder, "--out", tmp_path / "out")
    lines = result.stderr.splitlines()
    for name in bad:
        assert sum(name.replace("\n", "_") in line for line in lines) == 1, name
    assert len(lines) == len(bad) and len(manifest(tmp_path / "out")) == 5
    assert "skipped: 6 that fail to decode" in result.stdout
    assert "skipped: 1 smaller than 64 pixels" in result.stdout


def test_files_that_cannot_be_read_are_skipped_with_a_warning(launch, tmp_path):
    """Not only those that fail to decode: no rights, a broken disk, a folder without rights."""
    folder = photos(tmp_path / "in")
    photos(tmp_path / "in" / "closed")
    (folder / "private.jpg").write_bytes(encode(picture(9)))
    (folder / "private.jpg").chmod(0)
    (folder / "broken.jpg").symlink_to("/proc/self/mem")  # reading its first byte is an EIO
    (folder / "closed").chmod(0)
    photos(tmp_path / "in" / "listed", 1)
    (folder / "listed").chmod(0o600)  # its names can be read, its files can't
    process = launch("prepare_data.py", "--images", folder, "--out", tmp_path / "out",
                     powerless=True).finish()
    for name in ("closed", "listed"):
        (folder / name).chmod(0o700)
    lines = sorted(line.partition("skipped ")[2] for line in process.stderr.splitlines())
    assert lines == [f"{folder / 'closed'}: Permission denied",
                     f"{folder / 'listed' / 'plain_0.jpg'}: Permission denied",
                     "broken.jpg: it fails to decode (Input/output error)",
                     "private.jpg: it fails to decode (Permission denied)"]
    assert len(manifest(tmp_path / "out")) == 4


@pytest.mark.parametrize(("kind", "options", "room"), [
    ("PNG", {}, 300), ("JPEG", {"progressive": True}, 620), ("WEBP", {}, 300), ("AVIF", {}, 300)])
def test_memory_that_runs_out_is_no_photo_that_fails_to_decode(launch, tmp_path, kind, options,
                                                               room):
    """Some decoders say that it was memory, others that the file is broken."""
    folder = photos(tmp_path / "in")
    (folder / "large.png").write_bytes(encode(Image.new("RGB", (12000, 12000)), kind, **options))
    with open(f"/proc/{launch.server.pid}/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    process = launch("prepare_data.py", "--images", folder, "--out", tmp_path / "out",
                     limits={resource.RLIMIT_AS: size + room * 2**20}).finish(2)
    line, = process.stderr.splitlines()
    assert "error: out of memory (large.png" in line
    assert not (tmp_path / "out").exists()


def test_long_paths_make_file_names_that_can_be(script, tmp_path):
    deep = tmp_path / "in" / ("ä" * 120) / ("b" * 200)
    photos(deep, 2)
    (tmp_path / "in" / f"a.{'plain_' * 33}z.jpg").write_bytes(encode(picture(8)))  # cut to .plain_
    photos(deep / "c", 2, first=200)
    script("prepare_data.py", "--images", tmp_path / "in", "--out", tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert len({row["file"] for row in rows}) == 5 and all(
        (tmp_path / "out" / row["file"]).stat() and "plain_" in row["file"]
        and "/." not in row["file"] for row in rows)


def test_again_changes_nothing_and_nothing_there_is_overwritten(tmp_path):
    out = tmp_path / "in" / "out"  # inside the photos: not read back
    args = "--images", photos(tmp_path / "in", 8), "--out", out
    assert "nothing changed" not in prepare(*args).stdout
    before = snapshot(out)
    assert "nothing changed" in prepare(*args).stdout
    assert snapshot(out) == before
    first = next(name for name in sorted(before) if name.startswith("train/"))
    # As a kill before the manifest leaves it.
    (out / "manifest.csv").unlink()
    (out / first).unlink()
    (out / "train" / ".DS_Store").write_bytes(b"")
    prepare(*args)
    assert snapshot(out) == before | {"train/.DS_Store": b""}
    refuse(*args, "--seed", 1, says="lists another split")
    (out / "val" / "mine.jpg").write_bytes(b"mine")
    refuse(*args, says="mine.jpg does not belong to this split")
    (out / "val" / "mine.jpg").unlink()
    (out / first).write_bytes(b"changed")
    (out / "manifest.csv").unlink()
    refuse(*args, says=f"{first} does not belong to this split or was changed")
    after = {**before, first: b"changed", "train/.DS_Store": b""}
    del after["manifest.csv"]
    assert snapshot(out) == after


def test_killed_while_photos_are_prepared(launch, tmp_path):
    """Nothing half done is published; another go gives the bytes of an undisturbed one."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert launch("prepare_data.py", "--demo", 2, "--out", whole, cwd=tmp_path).wait() == 0
    chance = random.Random(0)
    for _ in range(5):
        process = launch("prepare_data.py", "--demo", 2, "--out", out, cwd=tmp_path)
        time.sleep(chance.random() * 1.5)
        process.kill()
        if (out / "manifest.csv").exists():
            break
    assert launch("prepare_data.py", "--demo", 2, "--out", out, cwd=tmp_path).wait() == 0
    for path in whole.rglob("*.*"):
        assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes()
    assert not (out / ".staging").exists()


def test_two_that_prepare_the_same_folder(launch, tmp_path):
    both = [launch("prepare_data.py", "--demo", 2, "--out", "out", cwd=tmp_path)
            for _ in range(2)]
    assert [(process.wait(), process.stderr) for process in both] == [(0, "")] * 2
    assert sorted("nothing changed" in process.stdout for process in both) == [False, True]
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 2


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_run_leaves_nothing_half_done(tmp_path, sign, code):
    out = tmp_path / "data" / "out"
    command = [sys.executable, SCRIPT, "--demo", "200", "--out", out]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob(".staging/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sign)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert len(stderr.splitlines()) == (sign != signal.SIGKILL)
    assert not (out / "train").exists() and not (out / "manifest.csv").exists()
    assert (tmp_path / "data").exists() == (sign == signal.SIGKILL)
    prepare("--images", photos(tmp_path / "in"), "--out", out)
    assert {n.partition("/")[0] for n in snapshot(out)} == {"train", "val", "manifest.csv"}


RAW = "data/.mnist/MNIST/raw"
OFFLINE = {**os.environ, "no_proxy": "", "http_proxy": "http://127.0.0.1:9",
           "https_proxy": "http://127.0.0.1:9"}


def mnist_files(folder):
    """30 and 8 noisy digits in MNIST's files; the last test digit repeats the first train digit."""
    (folder / RAW).mkdir(parents=True)
    images = np.random.default_rng(5).integers(0, 256, (38, 28, 28), dtype=np.uint8)
    labels = np.arange(38, dtype=np.uint8) * 7 % 10
    images[37] = images[0]
    for part, rows in (("train", slice(0, 30)), ("t10k", slice(30, 38))):
        n = len(images[rows])
        (folder / RAW / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, n, 28, 28) + images[rows].tobytes())
        (folder / RAW / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2I", 0x801, n) + labels[rows].tobytes())
    return images, labels


def check_digits(out, name, images, labels):
    """Every (n, height, width) image, once, in its row's file, grey and to the nearest integer."""
    rows = {row["source"]: row for row in manifest(out)}
    assert set(rows) == {f"{name}:{i}" for i in range(len(images))}
    assert len(snapshot(out)) == len(rows) + 1
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        row = rows[f"{name}:{i}"]
        assert row["file"] == f"{row['split']}/digit_{i:05d}_{label}.png"
        written = Image.open(out / row["file"])
        assert (written.format, written.mode) == ("PNG", "RGB")
        assert np.abs(np.asarray(written) - grey(image)).max() <= 0.5, row["file"]
    return rows


def test_bundled_digits(tmp_path):
    digits = load_digits()
    prepare("--digits", cwd=tmp_path, env=OFFLINE)
    out = tmp_path / "data" / "digits"
    rows = check_digits(out, "digits", digits.images / 16 * 255, digits.target)
    assert Counter(row["split"] for row in rows.values()) == {"train": 899, "val": 898}
    levels = {v for row in rows.values() for v in Image.open(out / row["file"]).tobytes()}
    assert len(levels) == 17 and {0, 255} < levels
    assert "nothing changed" in prepare("--digits", cwd=tmp_path).stdout
    prepare("--digits", "--min-size", 8, "--val-fraction", 0, "--out", tmp_path / "all")
    assert len(manifest(tmp_path / "all")) == 1797


def test_mnist_that_is_there_needs_no_network(tmp_path):
    images, labels = mnist_files(tmp_path)
    before = snapshot(tmp_path / RAW)
    for seed in range(2):
        out = tmp_path / "data" / ("mnist" if not seed else str(seed))
        prepare("--mnist", "--seed", seed, *(("--out", out) if seed else ()), cwd=tmp_path,
                env=OFFLINE)
        rows = check_digits(out, "mnist", images.astype(float), labels)
        assert rows["mnist:0"]["split"] == rows["mnist:37"]["split"]
        assert sum(row["split"] == "val" for row in rows.values()) == 19
    assert "nothing changed" in prepare("--mnist", cwd=tmp_path, env=OFFLINE).stdout
    assert snapshot(tmp_path / RAW) == before


def test_missing_or_damaged_mnist_is_refused_with_the_way_out(refused, tmp_path):
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k")
             for kind in ("images-idx3", "labels-idx1")]

    def check():
        line = refused("prepare_data.py", "--mnist", cwd=tmp_path, env=OFFLINE)
        assert f"no MNIST in {RAW} (" in line
        assert f"put {'.gz, '.join(names)}.gz from http" in line and "or use --digits" in line

    check()
    assert not snapshot(tmp_path)
    shutil.rmtree(tmp_path / "data")
    mnist_files(tmp_path)
    whole = snapshot(tmp_path / RAW)
    for name, bad in ((names[0], whole[names[0]][:999]), (names[0], whole[names[0]][:9]),
                      (names[3], b""), (names[3], b"<html>no</html>"),
                      (names[3], whole[names[1]]), (names[1], None)):
        (tmp_path / RAW / name).unlink()
        if bad is not None:
            (tmp_path / RAW / name).write_bytes(bad)
        left = snapshot(tmp_path)
        check()
        assert snapshot(tmp_path) == left
        (tmp_path / RAW / name).write_bytes(whole[name])


BAD = [  # more are in test_bad_input.py
    ([], "required"),
    (["--archive", "a.tar", "--demo", "4"], "not allowed with"),
    (["--demo", "0"], "0 is not in [1"),
    (["--demo", "4", "--seed", "-1"], "-1 is not in"),
    (["--demo", "4", "--val-fraction", "1"], "1 is not in [0, 1)"),
    (["--demo", "2", "--val-fraction", "0.1"], "both sides need one"),
    (["--demo", "2", "--min-size", "513"], "both sides need one"),
    (["--demo", "4", "--class", "bedroom"], "--class goes with"),
    (["--digits", "--min-size", "9"], "both sides need one"),
    (["--demo", "2", "--out", "file/below"], "file"),
    (["--demo", "2", "--out", "x" * 4000], "File name too long"),
    (["--images", "empty"], "no photos in empty"),
    (["--images", "twins"], "1 of them different"),
    (["--archive", "missing.tar"], "missing.tar"),
    (["--archive", "file"], "not a whole tar or zip archive"),
    (["--archive", "nothing.tar"], "not a whole tar or zip archive"),
    (["--archive", "hollow.tar"], "no photos at all"),
    (["--archive", "a.tar", "--class", "../bedroom"], "class '../bedroom'"),
]


def test_bad_input_gets_one_line(refused, tmp_path):
    (tmp_path / "file").write_text("not an archive, nor a folder " * 99)
    (tmp_path / "empty").mkdir()
    photos(tmp_path / "twins", 1)
    shutil.copy(tmp_path / "twins" / "plain_0.jpg", tmp_path / "twins" / "2.jpg")
    (tmp_path / "nothing.tar").touch()
    tarfile.open(tmp_path / "hollow.tar", "w").close()
    archive(tmp_path / "a.tar", {"bedroom": 2})
    before = set(tmp_path.rglob("*"))
    for args, says in BAD:
        assert says in refused("prepare_data.py", *args, cwd=tmp_path), args
        assert set(tmp_path.rglob("*")) == before, args


@pytest.mark.parametrize(("args", "unwanted"), [
    (["--help"], {"torch", "sklearn"}), (["--demo", "2"], {"torch", "sklearn"}),
    (["--digits"], {"torch"}),
])
def test_slow_imports_wait_for_the_option_that_needs_them(tmp_path, args, unwanted):
    code = (f"import sys, runpy\nsys.path.insert(0, {str(ROOT)!r})\n"
            f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
            f"finally: assert not {unwanted} & set(sys.modules)")
    result = subprocess.run([sys.executable, "-c", code, *args], cwd=tmp_path,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    if args == ["--help"]:
        assert "--val-fraction" in result.stdout and "prepare_data.py --demo 256" in result.stdout
