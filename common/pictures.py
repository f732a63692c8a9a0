"""Pictures of generators without a table: samples as files, the way from one to the next, mixtures
of their styles, photos and the nearest images that a generator can make.

A point, a place among a generator's images, is a sample's number or the file of a photo.
"""

import argparse
import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    checkpoints,
    cli,
    features,
    files,
    perceptual,
    photos,
    recovery,
    sampling,
    weights,
)

FRAMES, DURATION = 48, 60  # from a point to the next; of a frame, in milliseconds
WIDE = 8  # images side by side


# Arguments -----------------------------------------------------------------------------------


def photo(text):
    """An argparse type: the Path of a file."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return Path(text)


def point(text):
    """An argparse type: the number of a sample, or the Path of a photo."""
    return cli.seed(text) if text.isascii() and text.isdecimal() else photo(text)


def aspect(text):
    """An argparse type: "photos", or W:H as W / H."""
    if text == "photos":
        return text
    try:
        width, height = map(float, text.split(":"))
        ratio = width / height
    except (ValueError, ZeroDivisionError):
        ratio = 0
    if not 0.1 <= ratio <= 10:
        raise argparse.ArgumentTypeError(f"{text} is neither photos nor W:H, 1:10 to 10:1")
    return ratio


def wanted(args):
    """Which flags ask for pictures instead of a table."""
    return given(args, "generate", "interpolate", "mix", "recover_photo", "export")


def given(args, *names):
    """Those of the flags that are among the arguments, as they are typed."""
    return ["--" + name.replace("_", "-") for name in names
            if getattr(args, name) not in (None, False)]


def check(args, columns):
    """Ends the program where the arguments don't go together."""
    asked, out = wanted(args), args.out and Path(args.out)
    for flag in given(args, "samples", "n", "recover", "few_shot", "json", "show", "study"):
        cli.fail(f"{flag} is of the table: not with {asked[0]}, which draws a checkpoint's images")
    if asked == ["--export"]:
        for flag in given(args, "out", "size", "aspect"):
            cli.fail(f"{flag} is of pictures: not with --export alone")
    if args.export is not None and (columns[1:] or not args.export.endswith(".pt2")):
        cli.fail(f"--export {args.export}: one checkpoint, into a file that ends in .pt2")
    if args.generate:
        for flag in given(args, "interpolate", "mix", "recover_photo"):
            cli.fail(f"--generate goes with no {flag}")
        if not out:
            cli.fail("--generate needs a folder by --out")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            cli.fail(f"--out {out} is not an empty folder")
    elif out and out.exists() and not out.is_dir():
        cli.fail(f"--out {out} is a file: pictures go to a folder")
    if args.interpolate and len(args.interpolate) < 2:
        cli.fail("--interpolate needs two points or more")
    for column in columns if args.mix else ():
        if column.checkpoint["model"] != "fastgan":
            cli.fail(f"--mix is for FastGAN; {column.checkpoint['path']} is of "
                     f"{column.checkpoint['model']}")


def aspect_of(column, asked):
    """Width : height for the images of a checkpoint."""
    if asked != "photos":
        return asked or 1.0
    known = column.checkpoint.get("aspect")
    if not isinstance(known, float) or not 0.1 <= known <= 10:
        cli.fail(f"{column.checkpoint['path']} does not say its photos' shape (older ones don't): "
                 "give it by --aspect W:H")
    return known


# What is drawn -------------------------------------------------------------------------------


def draw(args, columns, device):
    """All that the arguments ask for, of each Column of a checkpoint: files in --out or eval/."""
    check(args, columns)
    ratios = [aspect_of(column, args.aspect) for column in columns]
    points = [*(args.recover_photo or ()), *(args.interpolate or ()), *(args.mix or ())]
    paths = [point for point in dict.fromkeys(points) if isinstance(point, Path)]
    read = [photos.decode_all(paths, column.size, args.fit or column.fit) for column in columns]
    if args.export:
        generator = checkpoints.load_generator(columns[0].checkpoint["path"])
        checkpoints.export(generator, args.export)
        cli.say(f"{args.export}: latents (n, {generator.z_dim}) to images (n, 3, {columns[0].size},"
                f" {columns[0].size})")
    if args.generate:
        generate(args, columns, ratios, device)
    elif points:
        out = Path(args.out or columns[0].home / "eval")
        out.mkdir(parents=True, exist_ok=True)
        for column, ratio, targets in zip(columns, ratios, read, strict=True):
            generator = checkpoints.load_generator(column.checkpoint["path"], device)
            for path in explore(args, column, ratio, generator, paths, targets, out):
                cli.say(path)


def shaped(images, size, ratio):
    """uint8 images (n, 3, s, s) with a shorter side of `size` pixels and this width : height."""
    sides = max(size, round(size / ratio)), max(size, round(size * ratio))

    def resized(few):
        if sides == (size, size):
            return features.resized(few, size)  # as they are judged
        few = F.interpolate(few.float(), sides, mode="bicubic", antialias=True)
        return few.round().clamp(0, 255).byte()

    return torch.cat([resized(few) for few in images.split(WIDE)])


def generate(args, columns, ratios, device):
    """--generate: the samples that an evaluation judges; a folder each for several columns."""
    out = Path(args.out)
    for column, ratio in zip(columns, ratios, strict=True):
        generator = checkpoints.load_generator(column.checkpoint["path"], device)
        batches = sampling.samples(generator, args.seed, torch.arange(args.generate))
        images = (shaped(batch, args.size or column.size, ratio)
                  for batch in photos.ahead(batches))
        folder = out / files.slug(column.name) if columns[1:] else out
        with tqdm(total=args.generate, desc=column.name, unit="img", disable=None) as bar:
            photos.save_images(images, folder, bar.update)
    cli.say(f"written to {out}/")


def explore(args, column, ratio, generator, paths, targets, out):
    """--recover-photo, --interpolate and --mix of a column, one file after the other; targets: the
    photos' pixels."""
    size, known = args.size or column.size, {}

    def latents(points):
        return torch.stack([known[point] if isinstance(point, Path) else
                            sampling.latents(args.seed, [point], generator.z_dim)[0]
                            for point in points])

    def named(kind, points):
        """The files of these points without their suffix."""
        name = "_".join(files.slug(getattr(point, "stem", str(point))) for point in points)
        if len(name) > 40:  # names of files have an end
            name = f"{name[:30]}-{files.sha256(name)[:8]}"
        return f"{out / kind}_{name}_{files.slug(column.name)}"

    if paths:
        z = recovered(generator, targets, column, args.seed, out)
        known = dict(zip(paths, z, strict=True))
        pairs = above(targets, sampling.generate(generator, z))
        path = f"{named('photos', paths)}.png"
        photos.save_grid(shaped(pairs, size, ratio), path, min(WIDE, len(paths)))
        yield path
    if args.interpolate:
        z, shown = way(latents(args.interpolate))
        bar = tqdm(z.split(WIDE), desc=f"the way by {column.name}", disable=None, leave=False)
        images = torch.cat([shaped(sampling.generate(generator, few), size, ratio) for few in bar])
        path = named("interpolate", args.interpolate)
        yield animation(images, path)
        photos.save_grid(images[shown], f"{path}.png", WIDE)
        yield f"{path}.png"
    if args.mix:
        images = shaped(sampling.mixed(generator, latents(args.mix)), size, ratio)
        path = f"{named('mix', args.mix)}.png"
        photos.save_grid(images, path, len(args.mix) + 1)
        yield path


def above(first, second):
    """Images (n, 3, h, w) in rows of WIDE at most, the second below the first: (2n, 3, h, w), or
    more if the last row is filled up."""
    wide = min(WIDE, len(first))
    first, second = (F.pad(images, (0, 0, 0, 0, 0, 0, 0, -len(images) % wide)).split(wide)
                     for images in (first, second))
    return torch.cat([*itertools.chain(*zip(first, second, strict=True))])


def way(z):
    """(latents from each of z (n, z_dim) to the next, which of them to show: eight a section)."""
    sections = [sampling.between(a, b, FRAMES)[:-1] for a, b in itertools.pairwise(z)]
    eighths = torch.linspace(0, FRAMES - 1, WIDE).round().long()
    starts = (FRAMES - 1) * torch.arange(len(sections))
    return torch.cat([*sections, z[-1:]]), (starts[:, None] + eighths).flatten()


def recovered(generator, targets, column, seed, out):
    """Latents (n, z_dim) of the images nearest to uint8 photos (n, 3, s, s); kept in out/.cache."""
    paths = [features.cache_path(out / ".cache", "latent", [
        features.VERSION, weights.WEIGHTS["efficientnet_lite0"], column.key, seed,
        files.sha256(target.numpy())]) for target in targets]
    found = [features.read_cache(path) for path in paths]
    missing = torch.tensor([i for i, z in enumerate(found) if z is None])
    if len(missing):
        try:
            distance = perceptual.lite_distance(next(generator.parameters()).device)
        except weights.WeightsError as error:
            cli.fail(error)
        with tqdm(total=len(missing), desc=f"recovering photos by {column.name}", unit="img",
                  disable=None, leave=False) as bar:
            for few in missing.split(4):  # a batch of recover: two starts each
                z, _ = recovery.recover(generator, targets[few], distance, seed=seed,
                                        update=bar.update)
                for i, own in zip(few.tolist(), z, strict=True):
                    found[i] = own
                    features.write_cache(paths[i], own.clone())
    return torch.stack(found)


# An animation --------------------------------------------------------------------------------


def animation(images, path):
    """Writes uint8 images (n, 3, h, w), there and back: <path>.mp4 if there is an ffmpeg that makes
    it, else <path>.gif, which begins again and again. Returns its name."""
    there = [image.permute(1, 2, 0).contiguous().numpy() for image in images]
    frames = there + there[-2:0:-1]
    if mp4(frames, f"{path}.mp4"):
        return f"{path}.mp4"
    first, *others = map(Image.fromarray, frames)
    with files.replacing(f"{path}.gif") as file:
        first.save(file, "GIF", save_all=True, append_images=others, duration=DURATION, loop=0)
    return f"{path}.gif"


def mp4(frames, path):
    """Whether ffmpeg has made a video of uint8 frames (h, w, 3)."""
    if not shutil.which("ffmpeg"):
        return False
    height, width, _ = frames[0].shape
    even = f"crop={width // 2 * 2}:{height // 2 * 2}"  # colours have half the resolution
    command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s",
               f"{width}x{height}", "-r", f"1000/{DURATION}", "-i", "-", "-vf", even, "-pix_fmt",
               "yuv420p", "-crf", "18", "-movflags", "+faststart", "-f", "mp4"]
    try:
        with tempfile.TemporaryFile() as raw, files.replacing(path) as file:
            for frame in frames:
                raw.write(frame)
            raw.seek(0)
            subprocess.run([*command, file.name], stdin=raw, stderr=subprocess.PIPE, check=True)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        cli.warn(f"a GIF, since ffmpeg failed: {reason[-1]}")
        return False
    return True
