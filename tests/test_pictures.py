"""Pictures of generators without a table, made as their user makes them."""

import argparse
import contextlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from drawn import smooth
from PIL import Image
from untrained import sample, write_checkpoint

import evaluate
import nets
from common import checkpoints, features, photos, pictures, recovery, sampling

FFMPEG = shutil.which("ffmpeg")


def cells(path, rows, columns, width, height):
    """The images of a grid, (rows · columns, 3, height, width)."""
    grid = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).int()
    cut = grid.view(3, rows, height + 4, columns, width + 4).permute(1, 3, 0, 2, 4)
    return cut[..., 2:-2, 2:-2].flatten(0, 1)


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return path


# Samples -------------------------------------------------------------------------------------


def test_generated_images_are_those_of_latents(script, refused, tmp_path):
    """Of a published checkpoint, too; at another size with --size; by seed; never into a folder
    that holds something."""
    g, d = nets.FastGANGenerator(256, 16, 2), nets.FastGANDiscriminator(256, 2)
    torch.save({"g": g.state_dict(), "d": d.state_dict()}, tmp_path / "70.pth")
    command = ["--ckpt", tmp_path / "70.pth", "--generate", 3]
    done = script("evaluate.py", *command, "--out", tmp_path / "new" / "a")
    assert "new/a" in done.stdout and not done.stderr
    files = sorted((tmp_path / "new" / "a").iterdir())
    assert [path.name for path in files] == ["00000.png", "00001.png", "00002.png"]
    images = photos.decode_all(files, 256)
    assert torch.equal(images, sample(tmp_path / "70.pth", 3))
    script("evaluate.py", *command, "--out", tmp_path / "b", "--size", 64, "--seed", 1)
    other = photos.decode_all(sorted((tmp_path / "b").iterdir()), 64)
    assert torch.equal(other, features.resized(sample(tmp_path / "70.pth", 3, seed=1), 64))
    for arguments, words in [
            (["--out", tmp_path / "b"], "b is not an empty folder"),
            (["--out", tmp_path / "70.pth"], "70.pth is not an empty folder"),
            ([], "needs a folder by --out"),
            (["--out", tmp_path / "c", "--mix", 0, 1], "--generate goes with no --mix"),
            (["--out", tmp_path / "c", "--samples", tmp_path / "b"], "--samples is of the table"),
            (["--out", tmp_path / "c", "--recover", 2], "--recover is of the table"),
            (["--out", tmp_path / "c", "--few-shot"], "--few-shot is of the table"),
            (["--out", tmp_path / "c", "--json", "-"], "--json is of the table"),
            (["--out", tmp_path / "c", "--generate", 0], "0 is not in")]:
        assert words in refused("evaluate.py", *command, *arguments, cwd=tmp_path)
    assert not (tmp_path / "c").exists() and len(list((tmp_path / "b").iterdir())) == 3


def test_images_have_the_photos_shape(script, refused, tmp_path):
    """The checkpoint keeps the median width : height of the training photos; crops are square."""
    for number, (width, height) in enumerate([(30, 30), (40, 30), (80, 40), (45, 30), (30, 60)]):
        image = smooth(1, 90, number)[0, :, :height, :width]
        save(image, tmp_path / "photos" / f"{number}.png")
    train = "train_gan.py", "--data", "photos", "--size", 8, "--epochs", 1, "--batch-size", 4
    for name, more, aspect in [("all", (), 4 / 3), ("three", ("--limit", 3), 4 / 3),
                               ("cropped", ("--fit", "crop"), 1.0), ("two", ("--limit", 2), 7 / 6)]:
        script(*train, "--name", name, *more, cwd=tmp_path)
        checkpoint = checkpoints.read(tmp_path / f"runs/{name}/ckpt_000001.pth")
        assert checkpoint["aspect"] == pytest.approx(aspect)

    squares = sample(tmp_path / "runs/all/ckpt_000001.pth", 2)
    for out, more, shape in [
            ("a", ["--aspect", "photos"], (11, 8)), ("b", ["--aspect", "3:4"], (8, 11)),
            ("c", ["--aspect", "photos", "--size", 24], (32, 24)), ("d", [], (8, 8)),
            ("e", ["--aspect", "photos", "--run", "runs/cropped"], (8, 8))]:
        script("evaluate.py", "--run", "runs/all", "--generate", 2, *more, "--out", out,
               cwd=tmp_path)
        image = Image.open(tmp_path / out / "00001.png")
        assert image.size == shape
        if out in "ab":  # Pillow's own bicubic: all of the square, none of it lost
            square = Image.fromarray(squares[1].permute(1, 2, 0).numpy())
            expected = np.asarray(square.resize(shape, Image.Resampling.BICUBIC), int)
            assert np.abs(expected - np.asarray(image)).max() <= 1
    script("evaluate.py", "--run", "runs/all", "--interpolate", 0, 1, "--aspect", "photos",
           "--out", "f", cwd=tmp_path)
    assert Image.open(tmp_path / "f" / "interpolate_0_1_gan-1.png").size == (8 * 15, 12)

    script("train_gan.py", "--resume", "runs/all", "--epochs", 2, cwd=tmp_path)
    resumed = checkpoints.read(tmp_path / "runs/all/ckpt_000002.pth")
    assert resumed["aspect"] == pytest.approx(4 / 3)
    old = write_checkpoint(tmp_path / "old", 1, 28, model="gan")
    for more, words in [
            (["--ckpt", old, "--aspect", "photos"], "does not say its photos' shape"),
            (["--run", "runs/all", "--aspect", "4"], "4 is neither photos nor W:H"),
            (["--run", "runs/all", "--aspect", "0:3"], "0:3 is neither photos nor W:H"),
            (["--run", "runs/all", "--aspect", "1:0"], "1:0"),
            (["--run", "runs/all", "--aspect", "a:b"], "a:b")]:
        line = refused("evaluate.py", *more, "--generate", 2, "--out", "g", cwd=tmp_path)
        assert words in line, line
    assert "--aspect is for --generate" in refused(
        "evaluate.py", "--run", "runs/all", "--aspect", "4:3", cwd=tmp_path)
    assert not (tmp_path / "g").exists()


# The way and mixtures ------------------------------------------------------------------------


def test_interpolation_and_mixing(script, tmp_path):
    """Ends are the samples themselves, the way keeps its length; a mix with itself is itself."""
    out, path = tmp_path / "out", write_checkpoint(tmp_path / "run", 10, 128, seed=1)
    script("evaluate.py", "--ckpt", path, "--interpolate", 2, 5, 0, "--mix", 4, 1, "--out", out,
           env={"PATH": ""})  # where no ffmpeg is
    strip_name, animation, grid_name = (
        "interpolate_2_5_0_fastgan-10.png", "interpolate_2_5_0_fastgan-10.gif",
        "mix_4_1_fastgan-10.png")
    assert {file.name for file in out.iterdir()} == {strip_name, animation, grid_name}
    samples = sample(path, 6).int()
    strip, mixed = (cells(out / name, *shape, 128, 128)
                    for name, shape in ((strip_name, (2, 8)), (grid_name, (3, 3))))
    for cell, i in ((strip[0], 2), (strip[7], 5), (strip[8], 5), (strip[15], 0), (mixed[1], 4),
                    (mixed[2], 1), (mixed[3], 4), (mixed[4], 4), (mixed[6], 1), (mixed[8], 1)):
        assert (cell - samples[i]).abs().max() <= 1
    assert not mixed[0].any()
    assert not torch.equal(mixed[5], mixed[4]) and not torch.equal(mixed[5], mixed[8])
    with Image.open(out / animation) as picture:
        assert picture.size == (128, 128) and picture.n_frames > 80


def test_a_video_where_there_is_ffmpeg(script, tmp_path):
    """One that keeps its arguments and writes what it is given; a GIF if it fails."""
    path = write_checkpoint(tmp_path / "run", 10, 29, model="gan", z_dim=4)
    bin = tmp_path / "bin"
    bin.mkdir()
    command = "evaluate.py", "--ckpt", path, "--interpolate", 0, 1, "--out", tmp_path / "out"

    def ffmpeg(body):
        (bin / "ffmpeg").write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
        (bin / "ffmpeg").chmod(0o755)

    ffmpeg("open(sys.argv[-1], 'wb').write(sys.stdin.buffer.read())\n"
           f"open({str(tmp_path / 'arguments')!r}, 'w').write(' '.join(sys.argv[1:]))")
    done = script(*command, env={"PATH": str(bin)})
    assert not done.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "interpolate_0_1_gan-10.mp4", "interpolate_0_1_gan-10.png"}
    frames = np.fromfile(tmp_path / "out" / "interpolate_0_1_gan-10.mp4", np.uint8)
    frames = torch.from_numpy(frames.reshape(-1, 29, 29, 3)).permute(0, 3, 1, 2).int()
    samples = sample(path, 2).int()
    assert len(frames) == 48 + 46 and torch.equal(frames[1:47], frames[48:].flip(0))
    assert (frames[[0, 47]] - samples).abs().max() <= 1
    arguments = (tmp_path / "arguments").read_text()
    assert "-s 29x29 -r 1000/60" in arguments and "crop=28:28" in arguments

    ffmpeg("open(sys.argv[-1], 'w').write('half')\nprint('no encoder', file=sys.stderr)\nexit(1)")
    done = script(*command[:-1], tmp_path / "gif", env={"PATH": str(bin)})
    assert done.stderr.endswith("warning: a GIF, since ffmpeg failed: no encoder\n")
    assert {file.name for file in (tmp_path / "gif").iterdir()} == {
        "interpolate_0_1_gan-10.gif", "interpolate_0_1_gan-10.png"}


@pytest.mark.skipif(not FFMPEG, reason="there is no ffmpeg")
def test_ffmpegs_video_shows_the_frames(script, tmp_path):
    path = write_checkpoint(tmp_path / "run", 10, 29, model="gan", z_dim=4)
    script("evaluate.py", "--ckpt", path, "--interpolate", 0, 1, "--size", 65, "--aspect", "4:3",
           "--out", tmp_path / "out")
    raw = subprocess.run(
        [FFMPEG, "-loglevel", "error", "-i", tmp_path / "out" / "interpolate_0_1_gan-10.mp4", "-f",
         "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(94, 64, 86, 3)
    strip = cells(tmp_path / "out" / "interpolate_0_1_gan-10.png", 1, 8, 87, 65)
    blurred = [np.asarray(image).astype(float).reshape(8, 8, 2, 43, 3).mean((1, 3))
               for image in (frames[47], strip[-1].permute(1, 2, 0)[:64, :86])]
    assert np.abs(blurred[0] - blurred[1]).max() < 4  # colours have half the resolution


# Photos --------------------------------------------------------------------------------------


def test_photos_stand_beside_samples(script, refused, tmp_path):
    """A sample's own picture is found again, and is an end of the way and a row of the mixtures."""
    path = write_checkpoint(tmp_path / "run", 10, 128, seed=3)
    three, five, eight = pictures.shaped(sample(path, 9)[[3, 5, 8]], 128, 2)
    mine, out = save(eight, tmp_path / "my photo.png"), tmp_path / "out"
    done = script("evaluate.py", "--ckpt", path, "--recover-photo", mine, "--interpolate", 3, mine,
                  "--mix", mine, 5, "--aspect", "2:1", "--out", out)
    assert not done.stderr
    picture = out / "photos_my-photo_fastgan-10.png"
    photo, found = cells(picture, 2, 1, 256, 128)
    assert len(list(out.glob("interpolate_3_my-photo_fastgan-10.*"))) == 2
    strip = cells(out / "interpolate_3_my-photo_fastgan-10.png", 1, 8, 256, 128)
    mixed = cells(out / "mix_my-photo_5_fastgan-10.png", 3, 3, 256, 128)
    square = photos.decode_all([mine], 128)  # as all photos of this run
    assert torch.equal(photo, pictures.shaped(square, 128, 2)[0].int())

    def off(a, b):
        return (a - b.int()).abs().float().mean()

    for image in (found, strip[7], mixed[1], mixed[3], mixed[4]):
        assert off(image, eight) < 0.3 * off(three.int(), eight)
    assert off(strip[0], three) < 0.01 and off(mixed[2], five) < 0.01
    before = picture.read_bytes()
    (kept,) = (out / ".cache").glob("latent_*")
    age = kept.stat().st_mtime_ns
    script("evaluate.py", "--ckpt", path, "--recover-photo", mine, "--aspect", "2:1", "--out", out)
    assert picture.read_bytes() == before
    assert kept.stat().st_mtime_ns == age  # its latent was not sought again

    for arguments, words in [
            (["--recover-photo", "none.jpg"], "none.jpg is not a file"),
            (["--recover-photo", 3], "3 is not a file"),
            (["--interpolate", 3, "none.jpg"], "none.jpg is not a file"),
            (["--interpolate", 3], "--interpolate needs two points or more"),
            (["--mix", "-1", 2], "-1 is not a file"),
            (["--recover-photo", path, "--export", tmp_path / "new.pt2"], "cannot be read"),
            (["--recover-photo", mine, "--few-shot"], "not with --recover-photo"),
            (["--mix", 1, "--out", mine], "my photo.png is a file: pictures go to a folder")]:
        line = refused("evaluate.py", "--ckpt", path, "--out", tmp_path / "new", *arguments)
        assert words in line, line
    assert not list(tmp_path.glob("new*"))


def test_many_photos_in_rows_and_many_points_in_a_name(tmp_path, monkeypatch):
    """Each photo above its own image, eight a row; each kept as soon as it is found."""
    images, known = smooth(10, 32), torch.randn(10, 4)
    path = write_checkpoint(tmp_path / "run", 1, 32, model="gan", z_dim=4)
    paths = [save(image, tmp_path / f"{'long ' * 9}{i}.png") for i, image in enumerate(images)]
    parts = []

    def recover(generator, few, distance, seed, update):
        parts.append(len(few))
        if len(parts) == 3:
            raise KeyboardInterrupt
        return torch.stack([known[(images == photo).flatten(1).all(1)][0] for photo in few]), None

    monkeypatch.setattr(recovery, "recover", recover)
    column = evaluate.Column("gan 1", tmp_path, 32, "key", "square", checkpoints.read(path))
    args = argparse.Namespace(size=None, seed=0, recover_photo=paths, interpolate=None, mix=None)
    generator = checkpoints.load_generator(path)
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            written = [*pictures.explore(args, column, 1.0, generator, paths, images, tmp_path)]
    assert parts == [4, 4, 2, 2]  # the eight of before it was stopped are there
    (picture,) = tmp_path.glob("photos_*_gan-1.png")
    assert len(picture.name) < 80 and written == [str(picture)]
    shown = cells(picture, 4, 8, 32, 32)
    assert torch.equal(shown[[*range(8), 16, 17]], images.int())
    assert torch.equal(shown[[*range(8, 16), 24, 25]], sampling.generate(generator, known).int())
    assert not shown[18:24].any() and not shown[26:].any()


def test_shapes_lose_no_detail():
    """Stripes along the side that keeps its pixels are as they were."""
    stripes = (255 * (torch.arange(256) % 4 < 2)).byte().expand(1, 3, 256, 256)
    shape = pictures.shaped(stripes, 128, 2.0)
    assert shape.shape == (1, 3, 128, 256) and torch.equal(shape, stripes[:, :, :128])


# A file for torch alone ----------------------------------------------------------------------


def test_an_exported_generator_needs_nothing_of_this_project(script, refused, tmp_path):
    """In a process that cannot import it: the same images, for any number of latents."""
    paths = [write_checkpoint(tmp_path / "gan", 1, 28, model="gan"),
             write_checkpoint(tmp_path / "dcgan", 1, 32, model="dcgan", features=4),
             write_checkpoint(tmp_path / "vae", 1, 32, model="vae"),
             write_checkpoint(tmp_path / "fastgan", 1, 256)]
    for path in paths[:-1]:
        checkpoints.export(checkpoints.load_generator(path), path.with_suffix(".pt2"))
    done = script("evaluate.py", "--ckpt", paths[-1], "--export", paths[-1].with_suffix(".pt2"))
    assert "latents (n, 64) to images (n, 3, 256, 256)" in done.stdout and not done.stderr
    z = 3 * torch.randn(5, 64)
    torch.save(z, tmp_path / "z.pt")
    program = """
import sys, torch
z = torch.load("z.pt")
for path in sys.argv[1:]:
    generator = torch.export.load(path).module()
    torch.save([generator(z), generator(z[:1])], path + ".images")
    generator.to("meta")(z.to("meta"))  # on any device: nothing in it is of one
"""
    subprocess.run([sys.executable, "-I", "-c", program, *(path.with_suffix(".pt2")
                                                           for path in paths)],
                   check=True, cwd=tmp_path)
    for path in paths:
        assert str(ROOT).encode() not in path.with_suffix(".pt2").read_bytes()
        generator = checkpoints.load_generator(path)
        for latents, images in zip((z, z[:1]), torch.load(f"{path.with_suffix('.pt2')}.images"),
                                   strict=True):
            expected = generator(latents)
            expected = expected[0] if isinstance(expected, tuple) else expected
            assert expected.std() > 0.01
            torch.testing.assert_close(images, expected.clamp(-1, 1))
    assert "--size is of pictures" in refused("evaluate.py", "--ckpt", paths[0], "--size", 8,
                                              "--export", "a.pt2", cwd=tmp_path)
    for arguments in (["--export", "a.pth"], ["--export", ""],
                      ["--export", "b.pt2", "--ckpt", *paths[:2]]):
        assert "one checkpoint, into a file that ends in .pt2" in refused(
            "evaluate.py", "--ckpt", paths[0], *arguments, cwd=tmp_path)
    assert not list(tmp_path.glob("*.pt2"))
