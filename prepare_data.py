"""Turn raw photos into a verified train/val split.

    python prepare_data.py --demo 64                # drawn bedrooms: no network, no files needed
    python prepare_data.py --download               # MIT Indoor Scenes (2.6 GB), its bedrooms
    python prepare_data.py --archive indoorCVPR_09.tar --class kitchen
    python prepare_data.py --images ~/photos --out data/mine --val-fraction 0.2
    python prepare_data.py --digits                 # 1,797 digits, 8x8: no network needed
    python prepare_data.py --mnist                  # 70,000 digits, 28x28 (12 MB)

Writes OUT/train/, OUT/val/ and OUT/manifest.csv. An upright 8-bit RGB JPEG or PNG keeps its
bytes, anything else becomes an upright 8-bit RGB PNG, and what does not decode is left out with a
warning. The split depends on the pixels and on --seed alone, and photos with identical pixels stay
on one side; MNIST's own two sets are split as one. Running it again changes nothing; nothing that
it did not write is ever overwritten.
"""

import argparse
import csv
import fcntl
import hashlib
import http.client
import io
import lzma
import os
import random
import shutil
import signal
import socket
import sys
import tarfile
import time
import urllib.error
import urllib.request
import warnings
import zlib
from collections import Counter, defaultdict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count, islice, product
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

MIT_URL = "http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar"
MIT_SIZE = 2_592_010_240
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # never EPS: it runs ghostscript
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
COLUMNS = ("split", "file", "source", "width", "height", "file_sha256", "pixel_sha256")


class InputError(Exception):
    """Something the user can mend: told in one line, exit code 2."""


def warn(message):
    tqdm.write(f"prepare_data.py: warning: {message}", file=sys.stderr)


def printable(text):
    return "".join(c if c.isprintable() else "_" for c in text)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def is_photo(path):
    return path.name.lower().endswith(SUFFIXES) and not any(p.startswith(".") for p in path.parts)


# ---------------------------------------------------------------------------------------- sources
# A source returns (number of photos, iterator of (source, wished file name, read)). `read` gives
# the bytes and is called in a worker thread.


def folder_photos(folder, out):
    """Photos under `folder`, recursively and in order, except those in `out`."""
    root, out = folder.resolve(), out.resolve()
    paths = sorted(p for p in root.rglob("*") if p.is_file() and out not in p.parents)
    names = [p.relative_to(root) for p in paths if is_photo(p.relative_to(root))]
    if not names:
        raise InputError(f"no photos in {folder}: it needs files named {' '.join(SUFFIXES)}")
    return len(names), ((p.as_posix(), "_".join(p.parts), (root / p).read_bytes) for p in names)


def archive_photos(path, wanted):
    """Photos of the class `wanted` ("all" for every class) in a tar laid out `.../<class>/<file>`.

    The headers are read first, so that a truncated archive is found before anything is written.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise InputError(f"{path} is not a file")
    try:
        archive = tarfile.open(path)  # noqa: SIM115 (stays open: photos are read as they are needed)
        members = archive.getmembers()
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(512) != bytes(512):  # tarfile takes any bad header for the end
            raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise InputError(f"{path} is not a whole tar archive ({reason}): fetch it again") from error
    classes = defaultdict(list)
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not (member.isreg() or member.isdir()):
            warn(f"left out {printable(member.name)}: a link, a device or a path leading outside")
        elif member.isreg() and is_photo(name):
            classes[name.parent.name].append(member)
    chosen = sum(classes.values(), []) if wanted == "all" else classes.get(wanted)
    if not chosen:
        found = ", ".join(f"{c} ({len(classes[c])})" for c in sorted(classes)) or "no photos at all"
        raise InputError(f"{path} has no photos of class {wanted!r}; it has: {found}")

    def photos():
        for member in chosen:
            *_, parent, name = ("", *PurePosixPath(member.name).parts)
            if wanted == "all" and not name.startswith(f"{parent}_"):
                name = f"{parent}_{name}"
            yield member.name, name, partial(bytes, archive.extractfile(member).read())

    return len(chosen), photos()


def download(url, folder):
    """Fetch `url` into `folder`, resuming what an earlier run left; return the file's path."""
    path, known_size = folder / PurePosixPath(url).name, MIT_SIZE if url == MIT_URL else None
    if path.exists():
        if known_size not in (None, path.stat().st_size):
            raise InputError(f"{path} is not {known_size:,} bytes long: delete it and run again")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have, before = part.stat().st_size if part.exists() else 0, -1
    while have > before:  # as long as each try brings something
        before, reason = have, "the connection was dropped"
        headers = {"User-Agent": "prepare_data.py", "Range": f"bytes={have}-"}
        request = urllib.request.Request(url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                have = have if response.status == 206 else 0  # it can't resume, it sends all
                length = response.headers.get("Content-Length")
                size = have + int(length) if length else known_size  # None: whatever comes
                if known_size not in (None, size):
                    raise InputError(f"{url} has {size:,} bytes, not {known_size:,}")
                with part.open("ab" if have else "wb") as file, tqdm(
                        total=size, initial=have, unit="B", unit_scale=True, disable=None) as bar:
                    while block := response.read(2**20):
                        bar.update(file.write(block))
            if size in (None, part.stat().st_size):
                return part.replace(path)
        except urllib.error.HTTPError as error:
            remedy = f": delete {part} and run again" if error.code == 416 else ""
            raise InputError(f"{url} answers {error.code} {error.reason}{remedy}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
        have = part.stat().st_size if part.exists() else 0
        time.sleep(1)
    raise InputError(f"{url}: {reason} after {have:,} bytes; running again resumes from there")


def digit_photos(name, images, labels):
    """White digits on black from uint8 images (n, height, width), their labels in their names."""
    header = b"P5 %d %d 255\n" % images.shape[:0:-1]  # a PGM file, which `convert` reads
    return len(images), (
        (f"{name}:{i}", f"digit_{i:05d}_{label}.png", partial(bytes, header + image.tobytes()))
        for i, (image, label) in enumerate(zip(images, labels, strict=True)))


def bundled_digits():
    """(images, labels) of the 1,797 digits that scikit-learn brings, their 0..16 made 0..255."""
    from sklearn.datasets import load_digits  # slow to import, as torchvision is

    digits = load_digits()
    return (digits.images * 255 / 16).round().astype(np.uint8), digits.target


def mnist(cache):
    """(images, labels) of MNIST through torchvision, which keeps it in `cache`.

    Its 60,000 training digits come first, then its 10,000 test digits.
    """
    from torchvision.datasets import MNIST

    socket.setdefaulttimeout(30)  # torchvision sets none
    raw = cache / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    try:
        parts = [MNIST(cache, train=train, download=True) for train in (True, False)]
        if any(len(part.data) != len(part.targets) for part in parts):
            raise ValueError("images and labels differ in number")
        return (np.concatenate([part.data for part in parts]),
                np.concatenate([part.targets for part in parts]))
    except Exception as error:  # torchvision answers broken files with nearly every type there is
        reason = (str(error).splitlines() or [type(error).__name__])[-1]
        missing = [f for f, _ in MNIST.resources if not (raw / f.removesuffix(".gz")).exists()]
        if not missing:
            raise InputError(f"{raw} does not hold MNIST ({reason}): empty it and run again, or "
                             "use --digits, which needs no network") from error
        raise InputError(
            f"could not fetch {MNIST.mirrors[0]}{missing[0]} ({reason}): put {', '.join(missing)} "
            f"into {raw} and run again, or use --digits, which needs no network") from error


# ----------------------------------------------------------------------------------------- photos


def convert(data):
    """Any photo's bytes -> (bytes of an upright 8-bit RGB JPEG or PNG, suffix, what they hold).

    Such a photo keeps its bytes. 16-bit greys are scaled, alpha is composited on white.
    """
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    image.load()
    jpeg = image.format in ("JPEG", "MPO")  # MPO: a JPEG with previews behind it, from phones
    png = image.format == "PNG" and data[24] == 8 and "transparency" not in image.info
    rotated = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    plain = image.mode == "RGB" and (jpeg or png) and not rotated
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 257 + 0.5).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    (width, height), pixels = image.size, image.convert("RGB").tobytes()
    if not plain:
        buffer = io.BytesIO()
        Image.frombytes("RGB", image.size, pixels).save(buffer, "PNG", compress_level=3)
        data = buffer.getvalue()
    return data, ".jpg" if plain and jpeg else ".png", {
        "width": width, "height": height, "file_sha256": sha256(data),
        "pixel_sha256": sha256(f"{width}x{height}:".encode() + pixels),
    }


def load(item):
    """An item of a source -> (source, wished name, what `convert` returns or why it does not)."""
    source, wish, read = item
    data = read()
    try:
        return printable(source), printable(wish), convert(data)
    except Exception as error:  # Pillow answers broken bytes with nearly every type there is
        return printable(source), None, str(error) or type(error).__name__


def stage(items, total, folder, min_size):
    """Write the usable photos into `folder`; return their manifest rows and what was left out."""
    rows, taken, left_out, workers = [], set(), Counter(), os.cpu_count() or 1
    with tqdm(total=total, unit="photo", disable=None) as bar, ThreadPoolExecutor(workers) as pool:
        while batch := list(islice(items, 4 * workers)):  # memory never holds all photos
            for source, wish, photo in pool.map(load, batch):
                bar.update()
                if wish is None:
                    warn(f"left out {source}: it does not decode ({photo})")
                    left_out["not decodable"] += 1
                    continue
                data, suffix, row = photo
                if min(row["width"], row["height"]) < min_size:
                    left_out[f"smaller than {min_size} pixels"] += 1
                    continue
                stem = PurePosixPath(wish).stem
                names = (f"{stem}-{i}{suffix}" if i > 1 else stem + suffix for i in count(1))
                name = next(n for n in names if n.casefold() not in taken)  # a disk may ignore case
                taken.add(name.casefold())
                (folder / name).write_bytes(data)
                rows.append({"file": name, "source": source, **row})
    return rows, left_out


# ------------------------------------------------------------------------------ split and publish


def split(rows, val_fraction, seed):
    """Name each row's split, in place; rows with the same pixels get the same one.

    Groups are ordered by a hash of the seed and their pixels, so the split depends on neither file
    names nor order. Validation takes round(n * val_fraction) rows, or as near as groups allow.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row["pixel_sha256"]].append(row)
    room = round(len(rows) * val_fraction)
    for pixels in sorted(groups, key=lambda p: sha256(f"{seed} {p}".encode())):
        group = groups[pixels]
        name = "val" if len(group) <= room else "train"
        room -= len(group) if name == "val" else 0
        for row in group:
            row.update(split=name, file=f"{name}/{row['file']}")
    sizes = Counter(row["split"] for row in rows)
    if not sizes["train"] or (val_fraction and not sizes["val"]):
        raise InputError(
            f"{len(rows)} usable photos, {len(groups)} of them different, can't be split with "
            f"--val-fraction {val_fraction:g}: both sides need one"
        )
    return sizes


@contextmanager
def staging_folder(out):
    """A scratch folder in `out`; at the end it goes, and so do the folders that stayed empty.

    Of several processes that prepare the same folder one goes after the other.
    """
    staging = out / ".staging"
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        shutil.rmtree(staging, ignore_errors=True)  # left by a kill
        staging.mkdir(parents=True)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(handle)
        for folder in created:
            with suppress(OSError):
                folder.rmdir()


def publish(rows, staging, out):
    """Move the staged photos into `out`, the manifest last; return whether any file was new.

    Everything is checked before anything moves, and what is there is never replaced.
    """
    target = out / "manifest.csv"
    with (staging / "manifest").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["split"], row["file"])))
    if target.exists() and target.read_bytes() != (staging / "manifest").read_bytes():
        raise InputError(f"{target} lists another split: choose another --out or remove {out}")
    new = {row["file"]: row["file_sha256"] for row in rows}
    for path in (*(out / "train").glob("[!.]*"), *(out / "val").glob("[!.]*")):
        if new.pop(path.relative_to(out).as_posix(), None) != sha256(path.read_bytes()):
            raise InputError(f"{path} is not of this split or was changed: choose another --out "
                             "or move it away")
    for name in new:
        (out / name).parent.mkdir(exist_ok=True)
        (staging / PurePosixPath(name).name).rename(out / name)
    if target.exists():
        return bool(new)
    (staging / "manifest").rename(target)
    return True


# ------------------------------------------------------------------------------------ demo scenes
# A small ray caster, in metres: x runs right, y away from the camera, z up. Points and colours
# (linear RGB) are float32 arrays of shape (3, n). Every piece of furniture is one convex solid.

PALETTES = (  # wall, accent, bedding, wood, second accent
    "e8dcc8 2f4858 f4efe6 8a5a34 c8553d", "cfd8d7 33658a ffffff c69c6d f6ae2d",
    "6f8f86 d9ae94 f1dca7 6b4226 9b3d3d", "efe9e1 7a8b6f e4e0d5 d2b48c b5651d",
    "2e4057 c9ada7 e8e6e3 5c3d2e e0a458", "d8b4a0 7d4e57 f7ede2 a47148 4f6d7a",
    "b7c9d6 1d3557 f1faee e0c097 e63946", "f2e3bc 618985 fdfaf3 96705b c19875",
    "8c7aa9 f0c6b2 f5f0f6 4a3728 3f3351", "9f4a3c e9c9a0 f5ebe0 4b2e20 3d5a5b",
)
Hour = namedtuple("Hour", "zenith horizon sun_color sun_height sun sky ambient lamps view")
HOURS = (  # colours, the sun's height, and how strong each light is
    Hour("3f7fd6", "cfe6f7", "fff1d8", 0.6, 6.0, 3.2, 0.42, 0.5, 1.9),  # noon
    Hour("5a83b8", "ffd9a0", "ffb46a", 0.3, 5.5, 2.2, 0.32, 1.2, 1.3),  # evening
    Hour("27376b", "f0876a", "ff9a70", 0.3, 0.0, 1.2, 0.16, 2.6, 0.8),  # dusk
    Hour("070b1f", "1e2a4a", "8aa0d8", 0.5, 0.0, 0.3, 0.07, 3.4, 0.35),  # night
)
CORNERS = np.float32(list(product((-1, 1), repeat=3))).T
BOX, BALL, DRUM, CUSHION = (6, 6, 6), (1, 1, 1), (1, 1, 5), (2, 1, 2)  # see View.solid
Wall = namedtuple("Wall", "origin axes span")  # axes: u along it, w into the room, z up
turn = partial(np.einsum, "ij,jn->in")  # not @: the threads of a BLAS get in each other's way
dot = partial(np.einsum, "in,in->n")


def rgb(code):
    """Linear (3, 1) colour of an sRGB hex code."""
    return (np.frombuffer(bytes.fromhex(code), np.uint8)[:, None] / np.float32(255)) ** 2.2


WHITE, LAMP = rgb("f1eee8"), rgb("ffd29a")


def smooth(x, low, high):
    x = ((x - low) / (high - low)).clip(0, 1)
    return x * x * (3 - 2 * x)


def mix(a, b, weight):
    return a + (b - a) * weight


def noise(table, x, y):
    """Smooth noise in [0, 1] from bilinear look-ups in a 64x64 table."""
    i, j = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = smooth(x - i, 0, 1), smooth(y - j, 0, 1)
    i, j, k, m = i % 64, j % 64, (i + 1) % 64, (j + 1) % 64
    return mix(mix(table[i, j], table[k, j], u), mix(table[i, m], table[k, m], u), v)


def stripes(a, b, width, axis=0):  # a paint: from (3, n) metres in a solid to colours
    return lambda p: mix(a, b, smooth(np.abs(p[axis] / width % 1 - 0.5), 0.22, 0.28))


def checks(a, b, width):
    return lambda p: mix(a, b, (p[:2] / width % 1 > 0.5).mean(0, np.float32))


def scenery(u, z, sky, horizon, hill, disc, table):
    """A sky with clouds and a sun or moon of color `disc`, over three ridges of hills."""
    color = mix(horizon, sky, smooth(z, -0.1, 0.9))
    clouds = smooth(noise(table, u * 3 + z * 2, z * 9), 0.45, 0.85) * smooth(z, 0.0, 0.2)
    color = mix(color, horizon, clouds * 0.7)
    color = np.where(np.hypot(u - 0.3, z - 0.35) < 0.16, disc, color)
    for k in range(3):
        ridge = 0.05 - 0.15 * k + 0.25 * noise(table, u * (2 + k) + 7 * k, z * 0)
        color = mix(color, mix(horizon * 0.6, hill, 0.3 + 0.35 * k), smooth(ridge - z, 0.0, 0.01))
    return color


def room(wall, points):
    """Points (u, w, z) of the wall's frame, (3,) or (3, n), in the room's."""
    return wall.origin + turn(wall.axes.T, np.float32(points).reshape(3, -1))


class View:
    """A camera, and what its rays have hit so far, one entry per pixel."""

    def __init__(self, eye, yaw, pitch, zoom, n):
        self.n, self.zoom, self.eye, self.boxes = n, zoom, np.float32(eye)[:, None], []
        cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
        self.axes = np.float32([(cy, -sy, 0), (sy * sp, cy * sp, -cp), (sy * cp, cy * cp, sp)])
        line = ((np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1) / zoom
        right, down = np.meshgrid(line, line)
        self.rays = turn(self.axes.T, np.stack((right, down, right * 0 + 1)).reshape(3, -1))
        self.depth = np.full(n * n, np.inf, np.float32)
        self.normal, self.color, self.glow = np.zeros((3, 3, n * n), np.float32)

    def put(self, where, depth, normal, color, glow):
        self.depth[where], self.normal[:, where] = depth, normal
        self.color[:, where], self.glow[:, where] = color, glow

    def around(self, center, half):
        """Indices of the pixels in the rectangle that holds a box; all where it is too near."""
        x, y, z = turn(self.axes, center + CORNERS * half - self.eye)
        if z.min() < 0.1:
            return np.arange(self.n**2)
        columns, rows = ((v / z * self.zoom + 1) / 2 * self.n for v in (x, y))
        columns, rows = (np.arange(max(v.min(), 0), min(v.max() + 1, self.n), dtype=int)
                         for v in (columns, rows))
        return (rows[:, None] * self.n + columns).ravel()

    def plane(self, origin, axes, paint):
        """Draw the plane that faces along axes[1]; `paint` gets points and rays in its frame."""
        rays, eye = turn(axes, self.rays), axes @ (self.eye - origin)
        depth = -eye[1] / rays[1]
        where = np.flatnonzero((depth > 0) & (depth < self.depth))
        depth, rays = depth[where], rays.take(where, 1)
        self.put(where, depth, axes[1][:, None], *paint(eye + depth * rays, rays))

    def solid(self, wall, center, half, paint, shape=BOX, glow=0, lean=0, casts=True):
        """Draw |u/a|^p + |w/b|^q + |z/c|^r <= 1: boxes, cushions, cylinders, balls.

        `half` is (a, b, c), `shape` has p, q, r as powers of two, and the top leans to the wall.
        """
        c, s = np.cos(lean), np.sin(lean)
        axes = np.float32([(1, 0, 0), (0, c, -s), (0, s, c)]) @ wall.axes
        center, half = room(wall, center), np.float32(half)[:, None]
        extent = np.abs(axes.T) @ half
        if casts and half.min() > 0.02:
            self.boxes.append((center, extent * 0.93))
        where = self.around(center, extent)  # then a slab test, then Newton's method
        origin = axes @ (self.eye - center) / half
        rays = turn(axes / half, self.rays.take(where, 1))
        a, b = (-1 - origin) / rays, (1 - origin) / rays
        depth, far = np.minimum(a, b).max(0), np.maximum(a, b).min(0)
        hit = np.flatnonzero((depth < far) & (depth > 0.05) & (depth < self.depth[where]))
        where, depth, rays = where[hit], depth[hit], rays.take(hit, 1)
        for _ in range(6):
            at = origin + depth * rays + 1e-6
            power = at * at
            for axis, exponent in enumerate(shape):
                for _ in range(exponent - 1):
                    power[axis] *= power[axis]
            normal = power / at * (np.float32(2) ** np.float32(shape)[:, None])
            excess = power.sum(0) - 1
            depth = depth - excess / np.minimum(dot(normal, rays), -1e-3)
        hit = np.flatnonzero((np.abs(excess) < 0.05) & (depth > 0.05) & (depth < self.depth[where]))
        at, normal = at.take(hit, 1) * half, normal.take(hit, 1) / half
        normal = turn(axes.T, normal / np.sqrt(dot(normal, normal)))
        color = paint(at) if callable(paint) else paint
        self.put(where[hit], depth[hit], normal, color * max(1 - glow, 0), color * glow)

    def ambient(self, size):
        """How open each point is: 1, or less where a wall or a solid is within half a metre."""
        self.start = self.eye + self.depth * self.rays + 0.02 * self.normal
        at = self.start + 0.48 * self.normal
        free = np.minimum(at, size - at).min(0)
        for center, half in self.boxes:
            near = self.around(center, half + 0.5)
            gap = np.maximum(np.abs(at.take(near, 1) - center) - half, 0)
            free[near] = np.minimum(free[near], np.sqrt(dot(gap, gap)))
        return (1 - 0.75 * (1 - 2 * free).clip(0, 1) ** 1.5) * (0.75 + 0.25 * self.normal[2])

    def light(self, target, strength):
        """Light that arrives from (3, n) points; `strength` gets directions and distances."""
        ray = target - self.start
        distance = np.sqrt(dot(ray, ray))
        way = ray / distance
        e = dot(self.normal, way).clip(0) * strength(way, distance)
        lit = np.flatnonzero(e > 0.01)
        for part in np.array_split(lit, len(lit) // 2**14 + 1):  # each stays in the cache
            start, inverse = self.start.take(part, 1), 1 / ray.take(part, 1)
            for center, half in self.boxes:
                a, b = (center - half - start) * inverse, (center + half - start) * inverse
                near, far = np.minimum(a, b).max(0), np.maximum(a, b).min(0)
                e[part] *= (near >= far) | (far <= 0) | (near >= 1)
        return e

    def soften(self, e):
        """Average the light of 3x3 pixels, but not across edges."""
        e, depth, normal = (a.reshape(-1, self.n, self.n) for a in (e, self.depth, self.normal))
        total, weight = 0, 1e-6
        for shift in product((-1, 0, 1), repeat=2):
            e2, depth2, normal2 = (np.roll(a, shift, (1, 2)) for a in (e, depth, normal))
            same = (normal * normal2).sum(0) > 0.9
            same &= (np.abs(depth2 - depth) < 0.05 * depth)[0]
            total, weight = total + e2 * same, weight + same
        return (total / weight).reshape(3, -1)


@np.errstate(all="ignore")  # rays that miss: infinities, masked where they appear
def demo_scene(seed, index, size=512):
    """A random bedroom as PNG bytes, the same for the same seed and index."""
    rng, n = random.Random(f"{seed} {index}"), size * 9 // 8
    table = np.random.default_rng([abs(seed), index]).random((64, 64), np.float32)
    number, choice = rng.uniform, rng.choice
    paper, accent, bedding, timber, second = (
        rgb(c) * number(0.9, 1.05) for c in choice(PALETTES).split())
    hour = rng.choices(HOURS, (4, 3, 2, 2))[0]
    width, length, height = number(3.7, 4.8), number(3.9, 5.0), number(2.4, 2.85)
    extent = np.float32([[width], [length], [height]])
    flip = np.float32([[1], [-1], [1]])
    left = Wall(0 * extent, np.float32([(0, 1, 0), (1, 0, 0), (0, 0, 1)]), length)
    right = Wall(extent * [[1], [0], [0]], left.axes * flip, length)
    back = Wall(extent * [[0], [1], [0]], np.diag(flip[:, 0]), width)
    bed_wall, places, aim = rng.choices((
        (back, (0.2, 0.5, 0.8), 0.5), (left, (0.6, 0.82), 0.38), (right, (0.18, 0.4), 0.62),
    ), (5, 3, 3))[0]
    free_wall, window_wall = rng.sample((left, right), 2)
    if bed_wall is not back:
        window_wall, free_wall = back, right if bed_wall is left else left
    x, y = width * choice(places) + number(-0.2, 0.2), number(0.1, 0.3)
    yaw = np.arctan2(width * aim + number(-0.2, 0.2) - x, length * 0.75 - y)
    view = View((x, y, number(1.25, 1.75)), yaw, number(-0.22, -0.12), number(1.12, 1.45), n)
    draw, lamps = view.solid, []

    def grain(p):
        return timber * (0.8 + 0.4 * noise(table, p[0] * 2, (p[1] + p[2]) * 30))

    def hang(wall, u, z, a, b):
        low, high, hill, disc = rng.sample((paper * 0.6, accent, second, bedding), 4)
        shift = number(0, 64)

        def paint(p):
            art = scenery(p[0] / a + shift, p[2] / b, low, high, hill, disc, table)
            border = np.minimum(a - np.abs(p[0]), b - np.abs(p[2]))
            return np.where(border < 0.022, disc * 0.3, np.where(border < 0.07, 0.8, art))

        draw(wall, (u, 0.015, z), (a, 0.015, b), paint)

    def lamp(wall, u, w, z, radius, height):
        draw(wall, (u, w, z), (radius, radius, height), LAMP, DRUM, glow=0.3 + 0.45 * hour.lamps,
             casts=False)
        lamps.append(room(wall, (u, w, z)))

    # The window: a hole with bars in it, curtains and a sill.
    half, top, foot = number(0.5, 0.75), number(2.0, 2.2), choice((0.12, 0.75, 0.95))
    u = window_wall.span * number(*((0.4, 0.6) if window_wall is back else (0.62, 0.72)))
    panes = choice(((2, 1, 1), (2, 1, 2), (3, 1, 2)))
    hole, opening, panes = np.float32([
        (u, 0, (foot + top) / 2), (half, 1, (top - foot) / 2), panes])[:, :, None]

    def glass(p):
        """How far (u, w, z) points are from the edge of the hole, and from the next bar."""
        bar = ((p - hole) / opening * panes + panes) / 2
        bar = np.abs(bar - bar.round()) * 2 * opening / panes
        return (np.abs(p - hole) - opening).max(0), bar.min(0)

    cloth, folds = choice((accent, second, bedding)), number(38, 60)
    hem, top = choice((0.05, 0.05, foot - 0.1)), top + 0.15

    def curtain(p):
        return cloth * (0.72 + 0.28 * np.sin(p[0] * folds + 0.6 * np.sin(p[2] * 2)))

    for side in (-0.15 - half, half + 0.15):
        draw(window_wall, (u + side, 0.1, (hem + top) / 2), (0.22, 0.05, (top - hem) / 2), curtain,
             (5, 3, 6))
    draw(window_wall, (u, 0.1, top), (half + 0.5, 0.016, 0.016), timber * 0.7, (6, 1, 1))
    draw(window_wall, (u, 0.07, foot - 0.03), (half + 0.1, 0.09, 0.02), WHITE)

    # The bed, with pillows, pictures over it and a rug before it.
    half = choice((0.55, number(0.7, 0.85), number(0.7, 0.85)))
    u = length - half - number(0.65, 1.1)
    if bed_wall is back:  # leave room for nightstands and, on one side, for a wardrobe
        u = number(half + 1.2, width - half - 0.6)
        u = u if free_wall is left else width - u
    low, head, reach = number(0.16, 0.24), number(0.45, 0.7), number(0.62, 0.74)
    put, soft = partial(draw, bed_wall), partial(draw, bed_wall, casts=False)
    put((u, 1.08, low), (half + 0.03, 1.05, 0.08), grain)
    put((u, 1.08, low / 2), (half - 0.1, 0.9, low / 2), timber * 0.3)
    put((u, 0.06, head), (half + 0.06, 0.055, head), *choice(((grain, BOX), (accent, (5, 2, 5)))))
    soft((u, 1.1, low + 0.17), (half, 1.0, 0.14), WHITE, (5, 5, 3))
    cover = choice((bedding, accent, checks(bedding, second, 0.3),
                    stripes(bedding, accent, number(0.15, 0.4), choice((0, 1)))))
    put((u, 2.16 - reach, low + 0.19), (half + 0.06, reach, 0.2), cover, (4, 5, 3))
    soft((u, 2.2 - 2 * reach, low + 0.225), (half + 0.065, 0.13, 0.185), mix(bedding, WHITE, 0.6),
         (4, 2, 3))
    if choice((True, False)):
        throw = stripes(second, mix(second, WHITE, 0.25), 0.06)
        soft((u, 1.76, low + 0.2), (half + 0.085, 0.24, 0.215), throw, (4, 4, 3))
    cases = choice((WHITE, second)), mix(accent, WHITE, 0.5)
    for k, side in product(range(choice((1, 2, 2))), (-0.5, 0.5) if half > 0.6 else (0,)):
        soft((u + side * half, 0.26 + 0.17 * k, low + 0.5 - 0.04 * k),
             (min(0.4, half * 0.46) - 0.05 * k, 0.11, 0.24 - 0.03 * k), cases[k], CUSHION,
             lean=0.5 + 0.12 * k)
    wool = mix(bedding, WHITE, 0.3)
    rug = choice((stripes(second, wool, 0.3, 1), checks(second, wool, 0.4)))
    put((u, 1.75, 0.008), (half + number(0.35, 0.6), number(0.75, 1.0), 0.012), rug,
        choice(((6, 6, 2), (1, 1, 2))), casts=False)
    for k in choice(((0,), (-1, 1))):
        hang(bed_wall, u + 0.28 * k, 2 * head + 0.42, 0.2 if k else half * 0.62, 0.27)

    # Nightstands, a wardrobe or a large picture, and perhaps a lamp under the ceiling.
    def cabinet(wall, u, half, depth, h, paint, rows, columns):
        def fronts(p):  # drawers or doors, with gaps and knobs
            part = np.float32([[half / columns], [h / rows]]) * 2
            at = ((p[::2] + [[half], [h]]) / part % 1 - 0.5) * part
            knob = np.hypot(at[0] - 0.4 * part[0] * (rows == 1), at[1]) < 0.02
            gap = smooth((part / 2 - np.abs(at)).min(0), 0.012, 0.004)
            return paint(p) * np.where(p[1] < 0.9 * depth, 1, (1 - 0.65 * gap) * (1 - 0.7 * knob))

        draw(wall, (u, depth, h), (half, depth, h), fronts)

    h, stem, foot = number(0.24, 0.3), choice((second, accent, WHITE)), number(0.13, 0.2)
    for side in (-1, 1):
        at = u + side * (half + 0.32)
        cabinet(bed_wall, at, 0.22, 0.2, h, grain, 2, 1)
        put((at, 0.24, 2 * h + foot), (0.07, 0.07, foot), stem, BALL, casts=False)
        lamp(bed_wall, at, 0.24, 2 * h + 2 * foot + 0.13, 0.16, 0.12)
    if rng.random() < 0.65:
        finish = choice((grain, lambda p: WHITE, lambda p: mix(accent, WHITE, 0.2)))
        cabinet(free_wall, free_wall.span - 0.7, 0.6, 0.28, number(0.9, 1.1), finish, 1, 2)
    else:
        hang(free_wall, free_wall.span * 0.65, 1.6, number(0.3, 0.5), number(0.3, 0.45))
    if rng.random() < 0.4:
        u, w, z = width / 2 + number(-0.3, 0.3), length * 0.4, height - number(0.45, 0.7)
        draw(back, (u, w, z + 0.5), (0.006, 0.006, 0.5), timber * 0.3, casts=False)
        lamp(back, u, w, z, 0.2, 0.14)

    # Walls, floor and ceiling, where nothing stands before them.
    striped, feature = choice((True, False)), choice((paper, accent))
    tone, board = mix(timber, WHITE, number(0, 0.45)), number(0.1, 0.2)

    def planks(p):
        x, y = p[0] / board, p[1] / board / 8
        y += table[x.astype(int) % 64, 0] * 8
        plank = table[x.astype(int) % 64, y.astype(int) % 64]
        gap = smooth(np.maximum(np.abs(x % 1 - 0.5), np.abs(y % 1 - 0.5) * 8 - 3.5), 0.46, 0.5)
        rings = noise(table, p[0] * 40, p[1] * 2 + plank * 50)
        return tone * (0.7 + 0.35 * plank + 0.2 * rings) * (1 - 0.5 * gap)

    def wall_paint(wall, p, rays):
        color = feature if wall is bed_wall else paper
        if striped and wall is bed_wall:
            color = stripes(color, mix(color, WHITE, 0.3), 0.24)(p)
        color = np.where(p[2] < 0.1, WHITE * 0.9, color)
        if wall is not window_wall:
            return color, 0
        edge, _ = glass(p)
        inner, bar = glass(p - 0.14 / rays[1] * rays)  # the glass is 0.14 m behind the wall
        color = np.where(edge < 0.06, 0.7 - 0.2 * ((edge < 0) & (inner > 0)), color)
        outside = (inner < 0) & (edge < 0) & (bar > 0.02)
        land = scenery(rays[0] / -rays[1], rays[2] / -rays[1], rgb(hour.zenith), rgb(hour.horizon),
                       rgb("33502f") * rgb(hour.horizon), rgb(hour.sun_color), table)
        return color * ~outside, land * hour.view * outside

    flat = np.float32([(1, 0, 0), (0, 0, 1), (0, 1, 0)])
    floor = choice((planks, planks, lambda p: tone * (0.75 + 0.4 * noise(table, *p[:2] * 50))))
    view.plane(0 * extent, flat, lambda p, rays: (floor(p[[0, 2, 1]]), 0))
    view.plane(extent, -flat, lambda p, rays: (WHITE * 0.95, 0))
    for wall in (back, left, right):
        view.plane(wall.origin, wall.axes, partial(wall_paint, wall))

    # Light: ambient, from the sky and the sun through the window, and from the lamps. For soft
    # shadows each pixel of a 3x3 tile aims at another point of a light.
    i, j = np.divmod(np.arange(n * n, dtype=np.int32), n)
    tile = np.float32([i % 3 - 1, 0 * i, j % 3 - 1])
    sky, horizon, facing = rgb(hour.zenith), rgb(hour.horizon), window_wall.axes[1:2]
    tint = mix(mix(1, sky / sky.mean(), 0.35), mix(paper, tone, 0.4), 0.4)
    e = hour.ambient * tint * view.ambient(extent)
    target = room(window_wall, hole + [[0], [0.02], [0]] + tile * opening * 0.62)
    e += mix(horizon, sky, 0.3) * view.light(target, lambda way, distance: (
        np.abs(turn(facing, way)[0]) * 4 * opening.prod() * hour.sky / (distance**2 + 0.4)))
    sun = np.float32([[number(-0.7, 0.7)], [-1], [hour.sun_height]])
    p = turn(window_wall.axes, view.start - window_wall.origin)
    edge, bar = glass(p + p[1] * (sun + 0.012 * tile))
    e += rgb(hour.sun_color) * view.light(room(window_wall, 99 * sun), lambda way, distance:
                                          ((edge < 0) & (bar > 0.02)) * hour.sun)
    halo, rays = 0, view.rays / np.sqrt(dot(view.rays, view.rays))
    for at in lamps:
        e += LAMP * view.light(at + 0.04 * tile, lambda way, distance: hour.lamps * (
            mix(0.12, 0.5, smooth(np.abs(way[2]), 0.62, 0.78)) / (distance**2 + 0.12)))
        way = at - view.eye - dot(rays, at - view.eye + 0 * rays) * rays  # from a ray to the lamp
        r = np.sqrt(dot(way, way))
        halo += (np.exp(-r * 4.4) * 0.16 + np.exp(-r * 1.4) * 0.035) * LAMP * hour.lamps

    # Exposure
    image = view.color * view.soften(e) + view.glow + halo
    key = np.exp(np.log(image.mean(0) + 0.02).mean())
    image = 1 - np.exp(-1.25 * image * (0.42 / key) ** (0.85 if hour.lamps < 2 else 0.6))
    image = (image ** (1 / 2.2) * 255 + 0.5).clip(0, 255).astype(np.uint8).reshape(3, n, n)
    image, png = Image.fromarray(image.transpose(1, 2, 0)), io.BytesIO()
    image.resize((size, size), Image.Resampling.LANCZOS).save(png, "PNG", compress_level=1)
    return png.getvalue()


# ------------------------------------------------------------------------------------------- main


def main(args):
    if args.images:
        total, items = folder_photos(args.images, args.out)
    elif args.demo is not None:
        total, items = args.demo, ((f"demo:{args.seed}:{i}", f"scene_{i:05d}.png", partial(
            demo_scene, args.seed, i)) for i in range(args.demo))
    elif args.digits:
        total, items = digit_photos("digits", *bundled_digits())
    elif args.mnist:
        total, items = digit_photos("mnist", *mnist(Path("data", ".mnist")))
    else:
        archive = args.archive or download(args.download, Path("data"))
        total, items = archive_photos(archive, args.class_name)
    with staging_folder(args.out) as staging:
        rows, left_out = stage(items, total, staging, args.min_size)
        sizes = split(rows, args.val_fraction, args.seed)
        new = publish(rows, staging, args.out)
    print(f"{args.out}: {sizes['train']} train and {sizes['val']} val photos"
          + ("" if new else "; nothing changed"))
    for why, number in left_out.items():
        print(f"left out: {number} {why}")
    if copies := len(rows) - len({row["pixel_sha256"] for row in rows}):
        print(f"repeats of another photo's pixels: {copies}; they stay on its side")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse_args(parser):
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", type=Path, metavar="TAR", help="a tar of <class>/<file>")
    source.add_argument("--download", nargs="?", const=MIT_URL, metavar="URL",
                        help="fetch an archive into data/ (default: MIT Indoor Scenes, 2.6 GB)")
    source.add_argument("--images", type=Path, metavar="DIR", help="your own photos, recursively")
    source.add_argument("--demo", type=int, metavar="N", help="draw N bedroom scenes")
    source.add_argument("--digits", action="store_true", help="scikit-learn's 1,797 digits, 8x8")
    source.add_argument("--mnist", action="store_true", help="fetch MNIST's 70,000 digits, 28x28")
    parser.add_argument("--class", dest="class_name", metavar="NAME",
                        help="which photos of an archive (default: bedroom); all takes every class")
    parser.add_argument("--val-fraction", type=float, default=0.5, metavar="F",
                        help="share of the photos kept for validation (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="of split and demo scenes")
    parser.add_argument("--min-size", type=int, metavar="PIXELS", help="leave out photos whose "
                        "shorter side is less (default: 64; of digits, none)")
    parser.add_argument("--out", type=Path,
                        help="default: data/<class, folder name, demo, digits or mnist>")
    args = parser.parse_args()
    if not 0 <= args.val_fraction < 1:
        parser.error(f"--val-fraction {args.val_fraction} is not at least 0 and less than 1")
    if args.download and not args.download.startswith(("http://", "https://")):
        parser.error(f"--download {args.download} is not an http(s) URL")
    if args.class_name is not None and not (args.archive or args.download):
        parser.error("--class goes with --archive or --download")
    if args.class_name is None:
        args.class_name = "bedroom"
    if args.min_size is None:
        args.min_size = 0 if args.digits or args.mnist else 64
    name = ("demo" if args.demo is not None else "digits" if args.digits else "mnist" if args.mnist
            else args.images.resolve().name if args.images else args.class_name)
    args.out = args.out or Path("data", name)
    return args


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = parse_args(parser)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore", module="PIL")  # of a photo that decodes all the same
    try:
        main(args)
    except InputError as error:
        parser.error(error)
    except OSError as error:
        parser.error(f"{error.strerror or error}: {error.filename or args.out}")
    except KeyboardInterrupt:
        parser.exit(130, "prepare_data.py: interrupted; run it again to go on\n")
