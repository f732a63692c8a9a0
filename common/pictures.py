"""Pictures of generators without a table: samples as files, the way from one to the next, mixtures
of their styles, photos and the nearest images that a generator can make.

A point, a place among a generator's images, is a sample's number or the file of a photo.
"""

import argparse
import itertools
import shutil
import subprocess
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

BATCH = 32  # images on their way at once
FRAMES, DURATION = 48, 60  # from a point to the next; of a frame, in milliseconds


# Arguments -----------------------------------------------------------------------------------


def photo(text):
    """An argparse type: the Path of a file."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return Path(text)


def point(text):
    """An argparse type: the number of a sample, or the Path of a photo."""
    return cli.seed(text) if text.isdecimal() else photo(text)


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
    flags = ("generate", "interpolate", "mix", "recover_photo", "export")
    return ["--" + flag.replace("_", "-") for flag in flags if getattr(args, flag) is not None]


def aspect_of(column, asked):
    """Width : height for the images of a checkpoint."""
    if asked != "photos":
        return asked or 1.0
    known = column.checkpoint.get("aspect")
    if not isinstance(known, float) or not 0 < known < float("inf"):
        cli.fail(f"{column.checkpoint['path']} does not say its photos' shape (older ones don't): "
                 "--aspect W:H")
    return known


def shaped(images, size, ratio):
    """uint8 images (n, 3, s, s) with a shorter side of `size` pixels and this width : height."""
    images = features.resized(images, size)
    sides = max(size, round(size / ratio)), max(size, round(size * ratio))
    if sides == (size, size):
        return images
    images = F.interpolate(images.float(), sides, mode="bicubic", antialias=True)
    return images.round().clamp(0, 255).byte()


# What is drawn -------------------------------------------------------------------------------


def draw(args, columns, device):
    """All that the arguments ask for, of each Column of a checkpoint: files in --out or eval/."""
    check(args, columns)
    ratios = [aspect_of(column, args.aspect) for column in columns]
    if args.export:
        generator = checkpoints.load_generator(columns[0].checkpoint["path"])
        checkpoints.export(generator, args.export)
        cli.say(f"{args.export}: latents (n, {generator.z_dim}) to images (n, 3, {columns[0].size},"
                f" {columns[0].size})")
    if args.generate:
        generate(args, columns, ratios, device)
    elif wanted(args) != ["--export"]:
        explore(args, columns, ratios, device)


def check(args, columns):
    """Ends the program where the arguments don't go together, before anything is written."""
    asked = wanted(args)
    if args.samples:
        cli.fail(f"{asked[0]} needs checkpoints, not --samples")
    if args.generate and set(asked) - {"--generate", "--export"}:
        cli.fail(f"--generate goes with no {' and no '.join(asked[1:])}")
    out = args.out and Path(args.out)
    if args.generate and not out:
        cli.fail("--generate needs a folder by --out")
    if args.generate and out.exists() and (not out.is_dir() or any(out.iterdir())):
        cli.fail(f"--out {out} is not an empty folder")
    if args.interpolate and len(args.interpolate) < 2:
        cli.fail("--interpolate needs two points or more")
    if args.export and (columns[1:] or not args.export.endswith(".pt2")):
        cli.fail(f"--export {args.export}: one checkpoint, into a file that ends in .pt2")
    for column in columns if args.mix else ():
        if column.checkpoint["model"] != "fastgan":
            cli.fail(f"--mix is for FastGAN; {column.checkpoint['path']} is of "
                     f"{column.checkpoint['model']}")


def generate(args, columns, ratios, device):
    """--generate: the samples that an evaluation judges; a folder each for several columns."""
    out = Path(args.out)
    for column, ratio in zip(columns, ratios, strict=True):
        generator = checkpoints.load_generator(column.checkpoint["path"], device)
        batches = sampling.samples(generator, args.seed, torch.arange(args.generate), BATCH)
        images = (shaped(batch, args.size or column.size, ratio)
                  for batch in photos.ahead(batches))
        folder = out / files.slug(column.name) if columns[1:] else out
        with tqdm(total=args.generate, desc=column.name, unit="img", disable=None) as bar:
            photos.save_images(images, folder, bar.update)
    cli.say(f"written to {out}/")


def explore(args, columns, ratios, device):
    """--recover-photo, --interpolate and --mix."""
    out = Path(args.out or columns[0].home / "eval")
    points = [*(args.recover_photo or ()), *(args.interpolate or ()), *(args.mix or ())]
    given = [point for point in dict.fromkeys(points) if isinstance(point, Path)]
    read = [photos.decode_all(given, column.size, column.fit) for column in columns]
    out.mkdir(parents=True, exist_ok=True)
    for column, ratio, targets in zip(columns, ratios, read, strict=True):
        generator = checkpoints.load_generator(column.checkpoint["path"], device)
        name, size = files.slug(column.name), args.size or column.size
        known = {}
        if given:
            z = recovered(generator, targets, column, args.seed, out / ".cache")
            known = dict(zip(given, z, strict=True))
            images = torch.cat([targets, sampling.generate(generator, z)])
            photos.save_grid(shaped(images, size, ratio), out / f"photos_{name}.png", len(given))
        if args.interpolate:
            z, shown = way(latents(args.interpolate, known, generator, args.seed))
            images = shaped(sampling.generate(generator, z), size, ratio)
            ends = "_".join(files.slug(getattr(point, "stem", str(point)))
                            for point in args.interpolate)
            animation(images, out / f"interpolate_{ends}_{name}")
            photos.save_grid(images[shown], out / f"interpolate_{ends}_{name}.png")
        if args.mix:
            z = latents(args.mix, known, generator, args.seed)
            images = shaped(sampling.mixed(generator, z), size, ratio)
            photos.save_grid(images, out / f"mix_{name}.png", len(z) + 1)
    cli.say(f"written to {out}/")


def latents(points, known, generator, seed):
    """Latents (n, z_dim) of points; known: {photo: its latent}."""
    return torch.stack([known[point] if isinstance(point, Path) else
                        sampling.latents(seed, [point], generator.z_dim)[0] for point in points])


def way(z):
    """(latents from each of z (n, z_dim) to the next, which of them to show: eight a section)."""
    sections = [sampling.between(a, b, FRAMES)[:-1] for a, b in itertools.pairwise(z)]
    eighths = torch.linspace(0, FRAMES - 1, 8).round().long()
    starts = (FRAMES - 1) * torch.arange(len(sections))
    return torch.cat([*sections, z[-1:]]), (starts[:, None] + eighths).flatten()


def recovered(generator, targets, column, seed, cache):
    """Latents (n, z_dim) of the images nearest to uint8 photos (n, 3, s, s); kept in `cache`."""
    paths = [features.cache_path(cache, "latent", [
        features.VERSION, weights.WEIGHTS["efficientnet_lite0"], column.key, seed,
        files.sha256(photo.numpy())]) for photo in targets]
    found = {i: z for i, z in enumerate(map(features.read_cache, paths)) if z is not None}
    missing = [i for i in range(len(targets)) if i not in found]
    if missing:
        try:
            distance = perceptual.seen_distance(next(generator.parameters()).device)
        except weights.WeightsError as error:
            cli.fail(error)
        with tqdm(total=len(missing), desc=f"recovering photos by {column.name}", unit="img",
                  disable=None, leave=False) as bar:
            z, _ = recovery.recover(generator, targets[missing], distance, seed=seed,
                                    update=bar.update)
        for i, own in zip(missing, z, strict=True):
            found[i] = own
            features.write_cache(paths[i], own.clone())
    return torch.stack([found[i] for i in range(len(targets))])


# An animation --------------------------------------------------------------------------------


def animation(images, path):
    """uint8 images (n, 3, h, w), there and back: <path>.mp4 if there is an ffmpeg that makes it,
    else <path>.gif, which begins again and again."""
    frames = torch.cat([images, images[1:-1].flip(0)]).permute(0, 2, 3, 1).contiguous().numpy()
    if not mp4(frames, f"{path}.mp4"):
        first, *others = map(Image.fromarray, frames)
        with files.replacing(f"{path}.gif") as file:
            first.save(file, "GIF", save_all=True, append_images=others, duration=DURATION, loop=0)


def mp4(frames, path):
    """Whether ffmpeg has made a video of uint8 frames (n, h, w, 3)."""
    if not shutil.which("ffmpeg"):
        return False
    height, width = frames.shape[1:3]
    even = f"crop={width // 2 * 2}:{height // 2 * 2}"  # colours have half the resolution
    try:
        with files.replacing(path) as file:
            subprocess.run(
                ["ffmpeg", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24",
                 "-s", f"{width}x{height}", "-r", f"1000/{DURATION}", "-i", "-", "-vf", even,
                 "-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart", "-f", "mp4",
                 file.name], input=frames.tobytes(), stderr=subprocess.PIPE, check=True)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        cli.warn(f"a GIF, since ffmpeg failed: {reason[-1]}")
        return False
    return True
