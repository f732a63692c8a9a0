"""Turn raw photos into a verified train/val split.

    python prepare_data.py --demo 64                # drawn bedrooms: no network, no files needed
    python prepare_data.py --download               # MIT Indoor Scenes (2.6 GB), its bedrooms
    python prepare_data.py --archive indoorCVPR_09.tar --class kitchen
    python prepare_data.py --images ~/photos --out data/mine --val-fraction 0.2

Writes OUT/train/, OUT/val/ and OUT/manifest.csv. An upright 8-bit RGB JPEG or PNG keeps its
bytes, anything else becomes an upright 8-bit RGB PNG, and what does not decode is left out with a
warning. The split depends on the pixels and on --seed alone, and photos with identical pixels stay
on one side. Running it again changes nothing; nothing that it did not write is ever overwritten.
"""

import argparse
import csv
import hashlib
import http.client
import io
import lzma
import os
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zlib
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count, product
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

MIT_URL = "http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar"
MIT_SIZE = 2_592_010_240
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # never EPS: it runs ghostscript
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
MAX_BYTES = 256 * 2**20
COLUMNS = ("split", "file", "source", "width", "height", "file_sha256", "pixel_sha256")


class InputError(Exception):
    """Something the user can mend: told in one line, exit code 2."""


def warn(message):
    tqdm.write(f"prepare_data.py: warning: {message}", file=sys.stderr)


def printable(text):
    """`text` on one line and encodable, whatever bytes a file name was made of."""
    return "".join(c if c.isprintable() else "_" for c in str(text))


def safe_name(name):
    """A file name that works on every system: short, visible, without separators."""
    name = "".join("_" if c in '/\\:*?"<>|' else c for c in printable(name)).lstrip(".")
    return name.encode()[:200].decode(errors="ignore") or "unnamed"


# ---------------------------------------------------------------------------------------- sources
# A source returns (number of photos, iterator of (source, wished file name, read)). `read` gives
# the bytes and is called in a worker thread.


def is_photo(name):
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def folder_photos(folder, out):
    """Photos under `folder`, recursively and in order, except those in `out`."""

    def stop(error):
        raise error

    paths = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        here = Path(parent)
        folders[:] = [f for f in folders if f[0] != "." and (here / f).resolve() != out.resolve()]
        for path in (here / name for name in names if is_photo(name)):
            if not path.is_file():
                warn(f"left out {printable(path)}: it is not a regular file")
            elif path.stat().st_size > MAX_BYTES:
                warn(f"left out {printable(path)}: it is larger than {MAX_BYTES >> 20} MiB")
            else:
                paths.append(path.relative_to(folder))
    if not paths:
        raise InputError(f"no photos in {folder}: it needs files named {' '.join(SUFFIXES)}")
    paths.sort(key=PurePosixPath)
    items = ((p.as_posix(), "_".join(p.parts), (Path(folder) / p).read_bytes) for p in paths)
    return len(paths), items


class StrictTarInfo(tarfile.TarInfo):
    """A missing or broken header is damage; tarfile itself takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


@contextmanager
def tar_damage_named(path):
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise InputError(f"{path} is not a whole tar archive ({reason}): fetch it again") from error


def archive_photos(path, wanted):
    """Photos of the class `wanted` ("all" for every class) in a tar laid out `.../<class>/<file>`.

    The headers are read first, so that a truncated archive is found before anything is written.
    """
    with tar_damage_named(path):
        archive = tarfile.open(path, "r:*", tarinfo=StrictTarInfo)  # noqa: SIM115 (read lazily)
        members = archive.getmembers()
    classes = defaultdict(list)
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            warn(f"left out {printable(name)}: its path points out of the archive")
        elif not (member.isreg() or member.isdir()):
            warn(f"left out {printable(name)}: it is a link or a device, which is never followed")
        elif member.isreg() and is_photo(name.name):
            classes[printable(name.parent.name)].append(member)
    chosen = [m for c in classes for m in classes[c]] if wanted == "all" else classes.get(wanted)
    if not chosen:
        found = ", ".join(f"{c} ({len(classes[c])})" for c in sorted(classes)) or "no photos at all"
        raise InputError(f"{path} has no photos of class {wanted!r}; it has: {found}")

    def items():
        with archive:
            for member in chosen:
                name = PurePosixPath(member.name)
                if member.size > MAX_BYTES:
                    warn(f"left out {printable(name)}: it is larger than {MAX_BYTES >> 20} MiB")
                    continue
                with tar_damage_named(path):
                    data = archive.extractfile(member).read()
                prefix = f"{name.parent.name}_" if wanted == "all" else ""
                wish = name.name if name.name.startswith(prefix) else prefix + name.name
                yield str(name), wish, lambda data=data: data

    return len(chosen), items()


def demo_photos(number, seed):
    names = (f"scene_{i:05d}.png" for i in range(number))
    items = ((f"demo:{seed}:{i}", name, partial(demo_scene, seed, i))
             for i, name in enumerate(names))
    return number, items


def fetch(url, part, known_size):
    """Bring the rest of `url` into `part`; return its full size, or None if the server hid it."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "prepare_data.py", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return have
        part.unlink()  # longer than the file there is: not a beginning of it
        return fetch(url, part, known_size)
    with response:
        resumed = re.fullmatch(rf"bytes {have}-\d+/(\d+)", response.headers["Content-Range"] or "")
        if response.status == 206 and not resumed:
            raise InputError(f"{url} resumes in the wrong place: delete {part} and run again")
        size = resumed[1] if resumed else response.headers["Content-Length"]
        size = int(size) if size else None
        if known_size and size not in (None, known_size):
            raise InputError(f"{url} has {size:,} bytes instead of {known_size:,}: not the archive")
        start = have if resumed else 0
        bar = tqdm(total=size, initial=start, unit="B", unit_scale=True, desc=part.stem,
                   disable=None)
        with bar, part.open("ab" if resumed else "wb") as file:
            while block := response.read(2**20):
                file.write(block)
                bar.update(len(block))
    return size


def download(url, folder, known_size=None):
    """Fetch `url` into `folder`, resuming what an earlier run left; return the file's path."""
    path = folder / safe_name(PurePosixPath(urllib.parse.urlsplit(url).path).name)
    if path.exists():
        if known_size and path.stat().st_size != known_size:
            raise InputError(f"{path} is not {known_size:,} bytes long: delete it and run again")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for wait in (1, 2, 4, 8, None):
        before = part.stat().st_size if part.exists() else 0
        reason = "the connection was dropped"
        try:
            size = fetch(url, part, known_size) or known_size
            if size in (None, part.stat().st_size):
                part.replace(path)
                return path
        except urllib.error.HTTPError as error:
            raise InputError(f"{url} answers {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError,
                TimeoutError) as error:
            reason = printable(getattr(error, "reason", error))
        have = part.stat().st_size if part.exists() else 0
        if wait is None or have == before:
            break
        time.sleep(wait)
    raise InputError(f"{url}: {reason} after {have:,} bytes; running again resumes from there")


# ----------------------------------------------------------------------------------------- photos


class Photo(NamedTuple):
    data: bytes
    suffix: str
    width: int
    height: int
    pixel_sha256: str


def to_rgb(image):
    """Any Pillow mode as 8-bit RGB: deep greys scaled, alpha composited on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = np.nan_to_num(np.asarray(image, np.float64))
        # Integers are 16-bit greys unless they are larger; floats have no agreed white.
        whites = (1, 255, 65535) if image.mode == "F" else (65535,)
        white = next((w for w in whites if grey.max() <= w), grey.max())
        grey = (grey * (255 / white) + 0.5).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def convert(data):
    """The bytes of any photo as a `Photo`: an upright 8-bit RGB JPEG or PNG, untouched if it is."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    image.load()
    jpeg = image.format in ("JPEG", "MPO")  # MPO: a JPEG with previews behind it, from phones
    png = image.format == "PNG" and data[24] == 8 and "transparency" not in image.info
    rotated = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    plain = image.mode == "RGB" and (jpeg or png) and not rotated
    pixels = np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    if not plain:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
        data = buffer.getvalue()
    height, width, _ = pixels.shape
    digest = hashlib.sha256(f"{width}x{height}:".encode() + pixels.tobytes()).hexdigest()
    return Photo(data, ".jpg" if plain and jpeg else ".png", width, height, digest)


def load(item):
    """One item of a source -> (source, wished name, `Photo` or the reason why there is none)."""
    source, wish, read = item
    data = read()
    try:
        return source, wish, convert(data)
    except Exception as error:  # Pillow answers broken bytes with nearly every type there is
        return source, wish, str(error) or type(error).__name__


def map_ahead(function, items, workers):
    """`map` in threads, in order, with a bounded look-ahead: memory holds a few photos, not all."""
    with ThreadPoolExecutor(workers) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def unique_name(stem, suffix, taken):
    """`stem` + `suffix`, numbered where case or accents' spelling alone would tell two apart."""
    for i in count(1):
        name = f"{stem}-{i}{suffix}" if i > 1 else stem + suffix
        key = unicodedata.normalize("NFC", name).casefold()
        if key not in taken:
            taken.add(key)
            return name


def stage(items, total, folder, min_size):
    """Write the usable photos into `folder`; return their manifest rows and what was left out."""
    rows, taken, left_out = [], set(), Counter()
    bar = tqdm(map_ahead(load, items, os.cpu_count() or 1), total=total, unit="photo", disable=None)
    for source, wish, photo in bar:
        source = printable(source)
        if isinstance(photo, str):
            warn(f"left out {source}: it does not decode ({printable(photo)})")
            left_out["not decodable"] += 1
        elif min(photo.width, photo.height) < min_size:
            left_out[f"smaller than {min_size} pixels"] += 1
        else:
            stem = os.path.splitext(safe_name(wish))[0]
            name = unique_name(stem, photo.suffix, taken)
            (folder / name).write_bytes(photo.data)
            rows.append({
                "file": name, "source": source, "width": photo.width, "height": photo.height,
                "file_sha256": hashlib.sha256(photo.data).hexdigest(),
                "pixel_sha256": photo.pixel_sha256,
            })
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
    for pixels in sorted(groups, key=lambda p: hashlib.sha256(f"{seed} {p}".encode()).digest()):
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


def manifest(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (row["split"], row["file"])))
    return text.getvalue().encode()


@contextmanager
def staging_folder(out):
    """A scratch folder in `out`; at the end it goes, and so do the folders that stayed empty."""
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in out.glob(".staging-*"):
            shutil.rmtree(left_by_a_kill)
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=out) as folder:
            yield Path(folder)
    finally:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()


def publish(rows, staging, out):
    """Move the staged photos into `out`, the manifest last; return how many files were new.

    Everything is checked before anything moves, and what is there is never replaced.
    """
    target, text = out / "manifest.csv", manifest(rows)
    if target.exists() and target.read_bytes() != text:
        raise InputError(f"{target} lists another split: choose another --out or remove {out}")
    planned = {row["file"]: row for row in rows}
    for folder in ("train", "val"):
        for path in sorted((out / folder).iterdir()) if (out / folder).exists() else ():
            name = f"{folder}/{path.name}"
            if path.name.startswith("."):
                continue
            if name not in planned:
                problem = "is not of this split"
            elif hashlib.sha256(path.read_bytes()).hexdigest() != planned[name]["file_sha256"]:
                problem = "was changed since it was written"
            else:
                del planned[name]
                continue
            raise InputError(f"{path} {problem}: choose another --out or move it away")
    for name in planned:
        (out / name).parent.mkdir(exist_ok=True)
        (staging / PurePosixPath(name).name).rename(out / name)
    if not target.exists():
        (staging / "manifest").write_bytes(text)
        (staging / "manifest").rename(target)
        return len(planned) + 1
    return len(planned)


# ------------------------------------------------------------------------------------ demo scenes
# A small ray caster, in metres: x runs right, y away from the camera, z up. Points and colours
# (linear RGB) are float32 arrays of shape (3, n). Every piece of furniture is one convex solid.

PALETTES = (  # wall, accent, bedding, wood, second accent
    "e8dcc8 2f4858 f4efe6 8a5a34 c8553d", "cfd8d7 33658a ffffff c69c6d f6ae2d",
    "6f8f86 d9ae94 f1dca7 6b4226 9b3d3d", "efe9e1 7a8b6f e4e0d5 d2b48c b5651d",
    "2e4057 c9ada7 e8e6e3 5c3d2e e0a458", "d8b4a0 7d4e57 f7ede2 a47148 4f6d7a",
    "b7c9d6 1d3557 f1faee e0c097 e63946", "f2e3bc 618985 fdfaf3 96705b c19875",
    "8c7aa9 f0c6b2 f5f0f6 4a3728 3f3351", "b9c4a3 5b7553 f3f0e4 b08968 dda15e",
    "9f4a3c e9c9a0 f5ebe0 4b2e20 3d5a5b", "dfe0e2 474b55 c5cbd3 2b2b2f d4a017",
)


class Hour(NamedTuple):
    """Colours of sky and sun, and how strong each light is."""

    top: str
    horizon: str
    sun_color: str
    sun_heights: tuple
    sun: float
    sky: float
    ambient: float
    lamps: float
    view: float  # brightness of what the window shows


HOURS = (
    Hour("3f7fd6", "cfe6f7", "fff1d8", (0.35, 0.8), 6.0, 3.2, 0.42, 0.5, 1.9),  # noon
    Hour("a9b7c4", "e9eef0", "ffffff", (0.5, 0.6), 0.0, 4.2, 0.50, 0.9, 1.9),  # overcast
    Hour("5a83b8", "ffd9a0", "ffb46a", (0.2, 0.4), 5.5, 2.2, 0.32, 1.2, 1.3),  # evening
    Hour("27376b", "f0876a", "ff9a70", (0.2, 0.4), 0.0, 1.2, 0.16, 2.6, 0.8),  # dusk
    Hour("070b1f", "1e2a4a", "8aa0d8", (0.5, 0.6), 0.0, 0.3, 0.07, 3.4, 0.35),  # night
)


def rgb(code):
    """Linear (3, 1) colour of an sRGB hex code."""
    return (np.frombuffer(bytes.fromhex(code), np.uint8)[:, None] / np.float32(255)) ** 2.2


WHITE = rgb("f1eee8")


def dot(a, b):  # spelled out, here and below: numpy reduces a short axis ten times slower
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def least(v):
    return np.minimum(np.minimum(v[0], v[1]), v[2])


def most(v):
    return np.maximum(np.maximum(v[0], v[1]), v[2])


def unit(v):
    return v / np.sqrt(dot(v, v) + 1e-12)


def smooth(x, low, high):
    x = ((x - low) / (high - low)).clip(0, 1)
    return x * x * (3 - 2 * x)


def mix(a, b, weight):
    return a + (b - a) * weight


def corners(low, high):
    """The (3, 8) corners of the box between two (3, 1) points."""
    return np.where(np.array(list(product((False, True), repeat=3))).T, high, low)


class Wall(NamedTuple):
    """A wall and its frame: u along it, w into the room, z up. Every solid stands in one."""

    axis: int  # the room's axis that crosses it
    place: float  # on that axis
    sign: int  # of w along that axis
    span: float

    def turn(self, v):
        """A direction from the room's frame to the wall's, or back."""
        return np.stack((v[1], self.sign * v[0], v[2]) if self.axis == 0
                        else (v[0], self.sign * v[1], v[2]))

    def local(self, p):
        return np.stack((p[1 - self.axis], self.sign * (p[self.axis] - self.place), p[2]))

    def room(self, p):
        uz, w = (p[0], p[2]), self.place + self.sign * p[1]
        return np.array((w, *uz) if self.axis == 0 else (uz[0], w, uz[1]), np.float32)


class Window(NamedTuple):
    wall: Wall
    u: float
    z: float
    half_u: float
    half_z: float
    bars: tuple

    def across(self, u, z):
        """Position in the window, in [-1, 1] where it is open."""
        return (u - self.u) / self.half_u, (z - self.z) / self.half_z


class Solid(NamedTuple):
    """|u/a|^p + |w/b|^q + |z/c|^r <= 1: boxes, cushions, cylinders, balls."""

    wall: Wall
    center: tuple
    half: tuple
    paint: object  # (3, n) metres from the centre -> (3, n) colours
    shape: tuple  # p, q, r as exponents of two
    glow: float = 0.0
    lean: float = 0.0  # radians, the top away from the wall
    wrinkle: float = 0.0
    casts: bool = True  # a shadow


BOX, BALL, DISC, POST, CUSHION = (6, 6, 6), (1, 1, 1), (1, 1, 4), (1, 1, 6), (2, 1, 2)


class View:
    """The camera, and what its rays have hit so far: one entry per pixel."""

    def __init__(self, eye, yaw, pitch, zoom, n):
        self.n, self.zoom, self.eye = n, zoom, np.array(eye, np.float32)[:, None]
        cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
        axes = [(cy, -sy, 0), (sy * sp, cy * sp, -cp), (sy * cp, cy * cp, sp)]
        self.axes = np.array(axes, np.float32)  # right, down, forward
        line = ((np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1) / zoom
        right, down, forward = self.axes[:, :, None, None]
        self.rays = (right * line + down * line[:, None] + forward).reshape(3, -1)
        self.rays[self.rays == 0] = 1e-9
        self.depth = np.full(n * n, np.inf, np.float32)
        self.normal, self.color, self.glow = np.zeros((3, 3, n * n), np.float32)

    def project(self, points):
        """Pixel column, row and depth of (3, n) points."""
        p = points - self.eye
        x, y, z = (dot(axis, p) for axis in self.axes)
        return (x / z * self.zoom + 1) / 2 * self.n, (y / z * self.zoom + 1) / 2 * self.n, z

    def around(self, points):
        """Indices of the pixels in the rectangle that holds all of `points`."""
        *sides, z = self.project(points)
        if z.min() < 0.1:
            return np.arange(self.n**2)
        (x0, x1), (y0, y1) = (np.clip([s.min(), s.max() + 1], 0, self.n).astype(int) for s in sides)
        return (np.arange(y0, y1)[:, None] * self.n + np.arange(x0, x1)).ravel()

    def put(self, where, depth, normal, color, glow=0):
        self.depth[where], self.normal[:, where] = depth, normal
        self.color[:, where], self.glow[:, where] = color, glow


def cast(view, solid):
    """Draw a solid: a slab test finds the pixels, Newton's method the (convex) surface."""
    wall, (c, s) = solid.wall, np.float32([np.cos(solid.lean), np.sin(solid.lean)])
    half, center = (np.array(v, np.float32)[:, None] for v in (solid.half, solid.center))

    def tilt(v, s):
        return np.stack((v[0], c * v[1] + s * v[2], c * v[2] - s * v[1])) if solid.lean else v

    where = view.around(wall.room(tilt(corners(-half, half), -s) + center))
    origin = tilt(wall.local(view.eye) - center, s) / half
    rays = tilt(wall.turn(view.rays[:, where]), s) / half
    a, b = (-1 - origin) / rays, (1 - origin) / rays
    t = most(np.minimum(a, b))
    hit = (t < least(np.maximum(a, b))) & (t > 0.05) & (t < view.depth[where])
    where, t, rays = where[hit], t[hit], rays[:, hit]
    for _ in range(6):
        at = origin + t * rays
        at[at == 0] = 1e-6
        power = at * at
        for axis, exponent in enumerate(solid.shape):
            for _ in range(exponent - 1):
                power[axis] *= power[axis]
        excess = power[0] + power[1] + power[2] - 1
        slope = power / at * np.float32(2) ** np.float32(solid.shape)[:, None]
        t = t - excess / np.minimum(dot(slope, rays), -1e-3)
    hit = (np.abs(excess) < 0.05) & (t > 0.05) & (t < view.depth[where])
    where, t, at, normal = where[hit], t[hit], at[:, hit] * half, unit(slope[:, hit] / half)
    if solid.wrinkle:
        u, w, z = at * 9
        normal[0] += solid.wrinkle * np.sin(u + 1.7 * np.sin(w * 0.8) + z)
        normal[1] += solid.wrinkle * np.sin(w * 1.3 + 2 * np.sin(u * 0.6 + 1) + z)
    color = solid.paint(at)
    view.put(where, t, wall.turn(tilt(unit(normal), -s)), color * max(1 - solid.glow, 0),
             color * solid.glow)


def cast_room(view, size, walls, wall_paint, floor, ceiling, hole, outside):
    """Draw the planes of the room; one wall has a window with depth, bars and a view."""
    t = (np.where(view.rays > 0, size, 0) - view.eye) / view.rays
    axis, depth = t.argmin(0), least(t)
    for sign, paint in ((1, floor), (-1, ceiling)):
        where = np.flatnonzero((axis == 2) & (view.rays[2] * sign < 0))
        p = view.eye + depth[where] * view.rays[:, where]
        view.put(where, depth[where], np.float32([[0], [0], [sign]]), paint(p))
    for wall in walls:
        where = np.flatnonzero((axis == wall.axis) & (view.rays[wall.axis] * wall.sign < 0))
        rays = wall.turn(view.rays[:, where])
        p = wall.local(view.eye) + depth[where] * rays
        normal = wall.turn(np.float32([[0], [1], [0]]))
        view.put(where, depth[where], normal, wall_paint(wall, p))
        if wall != hole.wall:
            continue
        edge = np.maximum(np.abs(p[0] - hole.u) - hole.half_u, np.abs(p[2] - hole.z) - hole.half_z)
        view.color[:, where[(edge < 0.06) & (edge > 0)]] = 0.75
        where, rays, p = where[edge < 0], rays[:, edge < 0], p[:, edge < 0]
        p = p - 0.14 / rays[1] * rays  # on to the glass, 0.14 m behind the wall
        x, y = hole.across(p[0], p[2])
        sideways = np.abs(x) > np.abs(y)
        reveal = np.maximum(np.abs(x), np.abs(y)) > 1
        bars = np.zeros(len(where), bool)
        for v, half, n in ((x, hole.half_u, hole.bars[0]), (y, hole.half_z, hole.bars[1])):
            bars |= np.abs(((v + 1) * n / 2 + 0.5) % 1 - 0.5) * 2 * half / n < 0.02
        side = wall.turn(np.stack((-np.sign(x) * sideways, 0 * x, -np.sign(y) * ~sideways)))
        solid = reveal | bars
        view.put(where, depth[where], np.where(reveal, side, normal), np.where(solid, 0.7, 0),
                 np.where(solid, 0, outside(view.rays[:, where])))


def shadowed(origin, ray, boxes):
    """Whether the segments from `origin` to `origin + ray` meet any of the (low, high) boxes."""
    blocked = np.zeros(origin.shape[1], bool)
    for part in (slice(k, k + 2**14) for k in range(0, len(blocked), 2**14)):  # stays in the cache
        start, inverse = origin[:, part], 1 / ray[:, part]
        for low, high in boxes:
            a, b = (low - start) * inverse, (high - start) * inverse
            near, far = most(np.minimum(a, b)), least(np.maximum(a, b))
            blocked[part] |= (near < far) & (far > 0) & (near < 1)
    return blocked


def light(view, size, boxes, hole, lamps, hour, sun, tint, jitter):
    """Ambient light with occlusion, the sky and the sun through the window, and the lamps."""
    n, wall, normal = view.n, hole.wall, view.normal
    p, top = view.eye + view.depth * view.rays, rgb(hour.top)
    reach = 0.5
    q = p + reach * normal
    free = least(np.minimum(q, size - q))
    for low, high in boxes:
        near = view.around(corners(low - reach, high + reach))
        gap = np.maximum(np.abs(q[:, near] - (low + high) / 2) - (high - low) / 2, 0)
        free[near] = np.minimum(free[near], np.sqrt(dot(gap, gap)))
    occlusion = 0.75 * (1 - free / reach).clip(0, 1) ** 1.5
    e = mix(mix(np.float32(1), top / top.mean(), 0.35), tint, 0.4)
    e = hour.ambient * e * (0.75 + 0.25 * normal[2]) * (1 - occlusion)

    # Soft shadows: each pixel of a 3x3 tile tries one of nine points of a light, and a filter
    # that stops at edges averages them.
    row, column = np.divmod(np.arange(n * n), n)
    i, j = np.float32([row % 3, column % 3]) - 1 + (jitter - 0.5) * np.float32(0.6)
    start = p + 0.02 * normal

    large = [(low, high) for low, high in boxes if (high - low).prod() > 0.01]

    def add(ray, strength, color):
        lit = np.flatnonzero(strength > 1e-2)
        strength[lit] *= ~shadowed(start[:, lit], ray[:, lit], large)
        return strength * color

    area = (hole.u + i * hole.half_u * 0.62, 0 * i + 0.02, hole.z + j * hole.half_z * 0.62)
    ray = wall.room(area) - start
    square = dot(ray, ray)
    facing = dot(normal, ray).clip(0) * np.abs(ray[wall.axis]) / (square * (square + 0.4))
    facing *= 2 * hole.half_u * hole.half_z * hour.sky
    e += add(ray, facing, mix(rgb(hour.horizon), top, 0.3))
    if hour.sun:
        to_sun, (u, w, z) = wall.turn(sun), wall.local(start)
        way = w / -sun[1]
        x, y = hole.across(u + way * (sun[0] + 0.012 * i), z + way * (sun[2] + 0.012 * j))
        open_glass = (np.abs(x) < 1) & (np.abs(y) < 1)
        for v, bars in ((x, hole.bars[0]), (y, hole.bars[1])):
            open_glass &= (v + 1) * bars / 2 % 1 > 0.04
        facing = dot(normal, to_sun).clip(0) * open_glass * hour.sun
        e += add(to_sun * way, facing, rgb(hour.sun_color))
    for lamp in lamps:
        ray = lamp + 0.04 * np.stack((i, j, 0 * i)) - start
        square = dot(ray, ray)
        cone = mix(0.25, 1.0, smooth(np.abs(ray[2]) / np.sqrt(square), 0.62, 0.78))
        facing = dot(normal, ray).clip(0) / np.sqrt(square) / (square + 0.12)
        e += add(ray, facing * cone * 0.5 * hour.lamps, rgb("ffd29a"))

    e, depth, normal = (a.reshape(-1, n, n) for a in (e, view.depth, normal))
    for step, axis in product((1, 2), (1, 2)):
        total, weight = e.copy(), np.ones((n, n), np.float32)
        for shift in (-step, step):
            e2, depth2, normal2 = (np.roll(a, shift, axis) for a in (e, depth, normal))
            same = (np.abs(depth2 - depth)[0] < 0.05 * depth[0]) & (dot(normal, normal2) > 0.9)
            total += e2 * same
            weight += same
        e = total / weight
    return e.reshape(3, -1)


def noise(table, x, y):
    """Smooth noise in [0, 1] from bilinear look-ups in a square table."""
    i, j = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v, n = smooth(x - i, 0, 1), smooth(y - j, 0, 1), len(table)
    i, j, k, m = i % n, j % n, (i + 1) % n, (j + 1) % n
    return mix(mix(table[i, j], table[k, j], u), mix(table[i, m], table[k, m], u), v)


def stripes(a, b, width, axis=0):
    return lambda p: mix(a, b, smooth(np.abs(p[axis] / width % 1 - 0.5), 0.22, 0.28))


def checks(a, b, width):
    return lambda p: mix(a, b, ((p[0] / width % 1 > 0.5) * 0.5 + (p[1] / width % 1 > 0.5) * 0.5))


def diamonds(a, b):
    return lambda p: np.where(np.abs(p[0] * 4 % 2 - 1) + np.abs(p[1] * 4 % 2 - 1) < 0.9, a, b)


def rings(a, b, c):
    def paint(p):
        ring = np.maximum(np.abs(p[0]), np.abs(p[1])) * 6 % 2
        return np.where(ring < 1, a, np.where(ring < 1.3, b, c))

    return paint


def pile(color, table, scale):
    def paint(p):
        fine, coarse = noise(table, p[0] * scale, p[1] * scale), noise(table, p[0] * 7, p[1] * 7)
        return color * (0.78 + 0.25 * fine + 0.15 * coarse)

    return paint


def wood(color, table, axis):
    def paint(p):
        across = p[(axis + 1) % 3] + p[(axis + 2) % 3]
        return color * (0.8 + 0.4 * noise(table, p[axis] * 2, across * 30))

    return paint


def planks(color, table, width, axis):
    def paint(p):
        x, y = p[axis], p[1 - axis]
        row = np.floor(x / width).astype(int) % 64
        along = y / (8 * width) + table[row, 0] * 8
        tone = table[row, np.floor(along).astype(int) % 64]
        gap = smooth(np.abs(x / width % 1 - 0.5), 0.46, 0.5)
        gap = np.maximum(gap, smooth(np.abs(along % 1 - 0.5), 0.493, 0.5))
        grain = noise(table, x * 40, y * 2 + tone * 50)
        return color * (0.7 + 0.35 * tone + 0.2 * grain) * (1 - 0.5 * gap)

    return paint


def fronts(paint, half, rows, columns):
    """Drawers or doors with gaps and knobs, on the front of a cabinet of these half sizes."""

    def color(p):
        du, dz = 2 * half[0] / columns, 2 * half[2] / rows
        x, y = (p[0] / du + columns / 2) % 1 - 0.5, (p[2] / dz + rows / 2) % 1 - 0.5
        gap = np.minimum((0.5 - np.abs(x)) * du, (0.5 - np.abs(y)) * dz)
        knob = np.hypot(x * du - (0.38 * du if rows == 1 else 0), y * dz) < 0.02
        shade = np.where(knob, 0.25, 1 - 0.65 * smooth(gap, 0.012, 0.004))
        return paint(p) * np.where(p[1] > 0.9 * half[1], shade, 1)

    return color


def books(colors, table, row):
    def paint(p):
        book = np.floor(p[0] / 0.034).astype(int) % 64
        spine = np.hstack(colors)[:, (table[book, row] * len(colors)).astype(int)]
        round_spine = smooth(np.abs(p[0] / 0.034 % 1 - 0.5), 0.5, 0.36)
        return spine * (0.35 + 0.65 * round_spine) * np.where(np.abs(p[2] - 0.04) < 0.008, 1.4, 1)

    return paint


def picture(kind, colors, table, half, frame, mat):
    """Hills, a sun, blocks or brush strokes, in a frame, perhaps with a mat."""
    a, b, c, d = colors

    def art(u, z):
        if kind == 0:
            color = mix(a, b, smooth(z, -1, 1))
            for k in range(3):
                ridge = 0.07 - 0.4 * k + 0.35 * noise(table, u * (1.5 + k) + 9 * k, 0 * z + k)
                color = np.where(z < ridge, mix(c, d, k / 2), color)
            return color
        if kind == 1:
            sun = smooth(np.hypot(u - 0.1, z - 0.15), 0.52, 0.48)
            return mix(mix(b, c, sun), d, z < -0.35 + 0.1 * np.sin(3 * u))
        if kind == 2:
            cell = table[np.floor(u * 1.5).astype(int), np.floor(z * 2).astype(int)]
            return np.where(cell < 0.3, a, np.where(cell < 0.6, b, np.where(cell < 0.8, c, d)))
        stroke = smooth(noise(table, u * 4 + z, z * 2), 0.6, 0.7)
        return mix(mix(a, b, noise(table, u * 2, z * 3)), c, stroke)

    def paint(p):
        border = np.minimum(half[0] - np.abs(p[0]), half[2] - np.abs(p[2]))
        color = np.where(border < 0.022 + mat, 0.8, art(p[0] / half[0], p[2] / half[2]))
        return np.where(border < 0.022, frame, color)

    return paint


def landscape(rays, wall, hour, table):
    """What the window shows: sky and clouds, then hills, or roofs with windows lit at night."""
    u, w, z = wall.turn(rays)
    x, up = u / -w, z / -w
    horizon, night = rgb(hour.horizon), hour.view < 0.5
    color = mix(horizon, rgb(hour.top), smooth(up, -0.05, 0.75))
    clouds = smooth(noise(table, x * 3 + up * 2, up * 9), 0.45, 0.85) * smooth(up, 0.0, 0.15)
    color = mix(color, horizon * 1.05, clouds * (0.25 if night else 0.7))
    if table[0, 0] < 0.55:
        for k in range(3):
            ridge = 0.05 - 0.1 * k + 0.16 * noise(table, x * (2 + k) + 7 * k, up * 0)
            green = mix(horizon * 0.55, rgb("33502f") * horizon, 0.4 + 0.3 * k)
            color = mix(color, green, smooth(ridge - up, 0.0, 0.01))
        return color * hour.view
    block = np.floor(x * 9).astype(int) % 64
    pane = table[np.floor(x * 70).astype(int) % 64, np.floor(up * 50).astype(int) % 64]
    facade = horizon * (0.3 + 0.3 * table[block, 2])
    facade = np.where((pane > 0.75) & night, rgb("ffc966") * 1.5, facade)
    return mix(color, facade, smooth(0.3 * table[block, 1] - 0.02 - up, 0.0, 0.008)) * hour.view


class Bedroom:
    """One random bedroom: its size, colours, hour, solids, lamps and camera."""

    def __init__(self, rng, n):
        self.rng, self.solids, self.lamps, self.taken = rng, [], [], []
        self.table = rng.random((64, 64), dtype=np.float32)
        colors = [rgb(c) * self.number(0.9, 1.05) for c in self.pick(PALETTES).split()]
        self.wall_color, self.accent, self.bedding, self.timber, self.second = colors
        self.hour = HOURS[rng.choice(len(HOURS), p=[0.3, 0.15, 0.22, 0.15, 0.18])]
        width, length = self.number(3.5, 4.8), self.number(3.9, 5.0)
        self.size = np.float32([[width], [length], [self.number(2.4, 2.85)]])
        self.back = back = Wall(1, length, -1, width)
        left, right = Wall(0, 0.0, 1, length), Wall(0, width, -1, length)
        self.walls = [back, left, right, Wall(1, 0.0, 1, width)]
        self.bed_wall = [back, left, right][rng.choice(3, p=[0.46, 0.27, 0.27])]
        others = [w for w in (back, left, right) if w != self.bed_wall]
        in_view = self.chance(0.5 if self.bed_wall == back else 0.85)
        self.window_wall, self.free_wall = others if in_view else others[::-1]

        places, aim = {back: ((0.2, 0.5, 0.8), 0.5), left: ((0.6, 0.82), 0.38),
                       right: ((0.18, 0.4), 0.62)}[self.bed_wall]
        x = width * self.pick(places) + self.number(-0.2, 0.2)
        eye = x, self.number(0.1, 0.3), self.number(1.25, 1.75)
        yaw = np.arctan2(width * aim + self.number(-0.2, 0.2) - x, length * 0.75 - eye[1])
        self.view = View(eye, yaw, self.number(-0.22, -0.12), self.number(1.12, 1.45), n)

        self.grain = wood(self.timber, self.table, self.pick((0, 1)))
        self.bed()
        self.window()
        self.nightstands()
        self.cabinet()
        if self.chance(0.55):
            self.plant()
        if not self.lamps or self.chance(0.3):
            self.pendant()
        self.pictures()

    def number(self, low, high):
        return float(self.rng.uniform(low, high))

    def chance(self, p):
        return self.rng.random() < p

    def pick(self, options):
        return options[self.rng.integers(len(options))]

    def put(self, wall, center, half, paint, shape=BOX, **options):
        paint = paint if callable(paint) else lambda p, color=paint: color
        self.solids.append(Solid(wall, center, half, paint, shape, **options))

    def claim(self, wall, u, half_u, depth):
        """Reserve floor along a wall; False where there is no room."""
        a, b = wall.room((u - half_u, 0, 0))[:2], wall.room((u + half_u, depth, 0))[:2]
        low, high = np.minimum(a, b), np.maximum(a, b)
        if not 0.05 < u - half_u < u + half_u < wall.span - 0.05:
            return False
        if any((low < taken_high).all() and (high > taken_low).all()
               for taken_low, taken_high in self.taken):
            return False
        self.taken.append((low, high))
        return True

    def bed(self):
        wall, accent, bedding, second = self.bed_wall, self.accent, self.bedding, self.second
        self.half = half = self.number(0.5, 0.62) if self.chance(0.18) else self.number(0.75, 0.95)
        self.u = u = (wall.span * self.number(0.38, 0.62) if wall == self.back
                      else wall.span - half - self.number(0.65, 1.1))
        self.claim(wall, u, half, 2.2)
        low, self.head = self.number(0.16, 0.24), self.number(0.45, 0.7)
        self.put(wall, (u, 1.08, low), (half + 0.03, 1.05, 0.08), self.grain)
        for du, w in product((0.06 - half, half - 0.06), (0.12, 2.0)):
            leg = (0.04, 0.04, low / 2)
            self.put(wall, (u + du, w, low / 2 - 0.03), leg, self.grain, casts=False)
        tufts, headboard = self.pick((2, 3, 4, 5)), (half + 0.06, 0.055, self.head)
        if self.chance(0.5):
            def padding(p):
                crease = np.abs(np.sin((p[0] / half + 1) * np.pi * tufts / 2))
                return accent * (0.6 + 0.4 * smooth(crease, 0.0, 0.12))

            self.put(wall, (u, 0.06, self.head), headboard, padding, (5, 2, 5))
        else:
            self.put(wall, (u, 0.06, self.head), headboard, self.grain)
        self.put(wall, (u, 1.1, low + 0.17), (half, 1.0, 0.14), WHITE, (5, 5, 3), casts=False)
        cover = self.pick((
            bedding, accent, mix(second, WHITE, 0.3), checks(bedding, second, 0.3),
            stripes(bedding, accent, self.number(0.15, 0.4), self.pick((0, 1))),
        ))
        reach = self.number(0.62, 0.74)
        self.put(wall, (u, 2.16 - reach, low + 0.19), (half + 0.06, reach, 0.2), cover, (4, 5, 3),
                 wrinkle=0.12)
        self.put(wall, (u, 2.2 - 2 * reach, low + 0.225), (half + 0.065, 0.13, 0.185),
                 mix(bedding, WHITE, 0.6), (4, 2, 3), wrinkle=0.08, casts=False)
        if self.chance(0.6):
            throw = stripes(second, mix(second, WHITE, 0.25), 0.06)
            self.put(wall, (u, self.number(1.66, 1.86), low + 0.2), (half + 0.085, 0.24, 0.215),
                     throw, (4, 4, 3), wrinkle=0.15, casts=False)
        cases = [self.pick((WHITE, mix(accent, WHITE, 0.15), second)), mix(accent, WHITE, 0.5)]
        for k, side in product(range(1 + self.chance(0.6)), (-0.5, 0.5) if half > 0.7 else (0,)):
            self.put(wall, (u + side * half, 0.26 + 0.17 * k, low + 0.5 - 0.04 * k),
                     (min(0.4, half * 0.46) - 0.05 * k, 0.11, 0.24 - 0.03 * k), cases[k], CUSHION,
                     lean=-0.45 - 0.12 * k + self.number(-0.05, 0.05), wrinkle=0.06, casts=False)
        if self.chance(0.5):
            self.put(wall, (u + self.number(-0.2, 0.2) * half, 0.62, low + 0.43), (0.2, 0.08, 0.17),
                     stripes(second, bedding, 0.09), CUSHION, lean=-0.6, casts=False)
        if self.chance(0.75):
            wool = mix(bedding, WHITE, 0.3)
            weave = self.pick((stripes(second, wool, 0.3, 1), diamonds(second, wool),
                               rings(second, wool, accent), pile(wool, self.table, 50)))
            self.put(wall, (u + self.number(-0.1, 0.1), 1.75, 0.008),
                     (half + self.number(0.35, 0.6), self.number(0.75, 1.0), 0.012), weave,
                     self.pick(((6, 6, 2), (6, 6, 2), (1, 1, 2))), casts=False)

    def window(self):
        wall, tall = self.window_wall, self.chance(0.25)
        half, top = self.number(0.5, 0.95), self.number(2.0, 2.2)
        foot = 0.12 if tall else self.number(0.75, 0.95)
        low, high = (0.35, 0.65) if wall == self.back else (0.62, 0.74)
        u, bars = wall.span * self.number(low, high), self.pick(((2, 1), (2, 2), (3, 2), (1, 1)))
        self.hole = Window(wall, u, (foot + top) / 2, half, (top - foot) / 2, bars)
        pale = mix(self.wall_color, WHITE, 0.5)
        cloth = self.pick((self.accent, self.second, self.bedding, pale))
        folds, hem = self.number(38, 60), 0.05 if self.chance(0.7) else foot - 0.15

        def curtain(p):
            return cloth * (0.72 + 0.28 * np.sin(p[0] * folds + 0.6 * np.sin(p[2] * 2)))

        for side in (-1, 1):
            width = self.number(0.17, 0.26)
            self.put(wall, (u + side * (half + width * 0.7), 0.1, (hem + top + 0.15) / 2),
                     (width, 0.05, (top + 0.15 - hem) / 2), curtain, (5, 3, 6))
            self.put(wall, (u + side * (half + 0.5), 0.1, top + 0.17), (0.035,) * 3,
                     self.timber * 0.7, BALL, casts=False)
        self.put(wall, (u, 0.1, top + 0.17), (half + 0.5, 0.014, 0.014), self.timber * 0.7,
                 (6, 1, 1), casts=False)
        if not tall:
            self.put(wall, (u, 0.07, foot - 0.03), (half + 0.1, 0.09, 0.02), WHITE)

    def shade(self, wall, u, w, z, radius, height):
        self.put(wall, (u, w, z), (radius, radius, height), rgb("ffe2b0"), (1, 1, 5),
                 glow=0.25 + 0.42 * self.hour.lamps, casts=False)
        self.lamps.append(wall.room((u, w, z))[:, None])

    def pendant(self):
        width, length, height = self.size[:, 0].tolist()
        x, y = width / 2 + self.number(-0.3, 0.3), length * self.number(0.55, 0.7)
        drop, radius, wall = self.number(0.45, 0.7), self.number(0.16, 0.24), self.walls[1]
        self.put(wall, (y, x, height - drop / 2), (0.006, 0.006, drop / 2), self.timber * 0.3, POST,
                 casts=False)
        self.shade(wall, y, x, height - drop, radius, radius * self.number(0.5, 1.0))

    def nightstands(self):
        wall, lamps, dark = self.bed_wall, 1 + self.chance(0.4), self.timber * 0.6
        sides = (-1, 1) if self.chance(0.5) else (1, -1)
        round_top = self.chance(0.3)
        centers = [self.u + s * (self.half + 0.32) for s in sides]
        centers = [u for u in centers if self.claim(wall, u, 0.24, 0.5)]
        for k, u in enumerate(centers):
            h = self.number(0.24, 0.3)
            if round_top:
                self.put(wall, (u, 0.27, 2 * h), (0.24, 0.24, 0.018), self.grain, DISC)
                self.put(wall, (u, 0.27, h), (0.03, 0.03, h), dark, POST, casts=False)
                self.put(wall, (u, 0.27, 0.01), (0.15, 0.15, 0.012), dark, DISC, casts=False)
            else:
                half = 0.22, 0.2, h - 0.04
                self.put(wall, (u, 0.25, h + 0.04), half, fronts(self.grain, half, 2, 1))
            if k < lamps:
                foot, body = self.number(0.13, 0.2), self.pick((self.second, self.accent, WHITE))
                self.put(wall, (u, 0.24, 2 * h + foot), (0.07, 0.07, foot), body,
                         self.pick((BALL, DISC, (1, 1, 2))), casts=False)
                self.shade(wall, u, 0.24, 2 * h + 2 * foot + 0.13, self.number(0.13, 0.18),
                           self.number(0.1, 0.14))
            else:
                for b, cover in enumerate((self.accent, self.second, WHITE)):
                    self.put(wall, (u + 0.02 * (b % 2), 0.25, 2 * h + 0.03 + 0.034 * b),
                             (0.1 - 0.01 * b, 0.13, 0.016), cover, casts=False)

    def cabinet(self):
        """A wardrobe, a dresser with a mirror or a bookshelf; where none fits, a picture."""
        wall, half = self.free_wall, self.number(0.6, 0.68)
        kind = self.pick(("wardrobe", "dresser", "shelf"))
        depth = {"wardrobe": 0.28, "dresser": 0.23, "shelf": 0.15}[kind]
        u = wall.span - half - 0.1
        if wall == self.back and self.chance(0.5):
            u = half + 0.1
        finish = self.pick((self.grain, lambda p: WHITE, lambda p: mix(self.accent, WHITE, 0.2)))
        if not self.claim(wall, u, half, 2 * depth):
            self.hang(wall, wall.span * 0.6, 1.6, self.number(0.3, 0.5), self.number(0.3, 0.45))
        elif kind == "wardrobe":
            size = half, depth, self.number(0.95, 1.1)
            self.put(wall, (u, depth, size[2] + 0.04), size, fronts(finish, size, 1, 2))
        elif kind == "dresser":
            size = half, depth, 0.38
            self.put(wall, (u, depth, 0.45), size, fronts(finish, size, 3, 2))
            for side in (-1, 1):
                self.put(wall, (u + side * (half - 0.08), depth, 0.05), (0.03, 0.2, 0.06),
                         self.timber * 0.5, casts=False)
            self.put(wall, (u, 0.02, 1.5), (0.38, 0.012, 0.5), self.timber,
                     rounding := self.pick((BOX, (1, 6, 1))), casts=False)
            self.put(wall, (u, 0.025, 1.5), (0.35, 0.015, 0.47), lambda p: mix(
                self.wall_color, WHITE, smooth(p[0] + p[2], -0.15, 0.2)), rounding, casts=False)
            self.put(wall, (u - 0.3, depth, 0.95), (0.07, 0.07, 0.12), self.second, BALL,
                     casts=False)
        else:
            spines = self.accent, self.second, WHITE, self.timber, self.wall_color
            for side in (-1, 1):
                self.put(wall, (u + side * half, depth, 0.92), (0.018, depth, 0.84), finish)
            for k in range(5):
                board = (half, depth, 0.015)
                self.put(wall, (u, depth, 0.1 + 0.4 * k), board, finish, casts=k in (0, 4))
            for k in range(4):
                h, width = self.number(0.11, 0.15), self.number(0.2, 0.45)
                self.put(wall, (u + self.number(-0.1, 0.1), depth - 0.02, 0.115 + 0.4 * k + h),
                         (width, 0.1, h), books(spines, self.table, k), casts=False)

    def plant(self):
        wall = self.pick((self.back, self.window_wall))
        for u in (0.32, wall.span - 0.32):
            if self.claim(wall, u, 0.24, 0.5):
                break
        else:
            return
        pot, foot = self.pick((WHITE, self.second, rgb("b5651d"))), wall.room((u, 0.3, 0))
        self.put(wall, (u, 0.3, 0.17), (0.15, 0.15, 0.17), pot, (1, 1, 3))
        for _ in range(16):
            side, lean, h = self.pick(self.walls), self.number(0.1, 0.9), self.number(0.18, 0.36)
            u, w, _ = side.local(foot)
            self.put(side, (u + self.number(-0.08, 0.08), w + h * np.sin(lean),
                            0.34 + h * np.cos(lean)), (0.055, 0.012, h),
                     mix(rgb("2f5d34"), rgb("7da453"), self.number(0, 1)), BALL, lean=-lean,
                     casts=False)

    def hang(self, wall, u, z, half_u, half_z):
        colors = [self.wall_color * 0.6, mix(self.accent, WHITE, 0.2), self.second, self.bedding]
        self.rng.shuffle(colors)
        half, table = (half_u, 0.015, half_z), self.rng.random((64, 64), dtype=np.float32)
        frame, mat = self.pick((self.timber * 0.6, WHITE, rgb("222222"))), 0.05 * self.chance(0.6)
        paint = picture(self.pick((0, 1, 2, 3)), colors, table, half, frame, mat)
        self.put(wall, (u, 0.015, z), half, paint)

    def pictures(self):
        z = max(1.62, 2 * self.head + 0.4)
        pieces = self.pick((0, 1, 2, 3 if self.half > 0.7 else 2))
        if pieces == 1:
            self.hang(self.bed_wall, self.u, z, self.half * 0.62, 0.28)
        for k in range(pieces if pieces > 1 else 0):
            self.hang(self.bed_wall, self.u + (k - (pieces - 1) / 2) * 0.56, z, 0.2, 0.27)

    def surfaces(self):
        """Paint of the walls and of the floor."""
        base, accent, table = self.wall_color, self.accent, self.table
        style = self.pick(("plain", "plain", "striped", "panels", "dots", "slats", "two-tone"))
        feature = self.chance(0.45)

        def paper(wall, p):
            color, here = base, wall == self.bed_wall
            if here and feature:
                color = accent
            if style == "panels":
                panel = np.maximum(np.abs(p[0] % 0.6 - 0.3) - 0.22, np.abs(p[2] - 0.5) - 0.3)
                panel = WHITE * (0.95 - 0.25 * smooth(np.abs(panel), 0.012, 0.004))
                color = np.where(p[2] < 0.95, np.where(p[2] > 0.9, WHITE, panel), color)
            elif here and style == "striped":
                color = stripes(color, mix(color, WHITE, 0.3), 0.24)(p)
            elif here and style == "dots":
                x, y = p[0] / 0.26, p[2] / 0.26
                dot = np.hypot(x % 1 - 0.5, (y + 0.5 * (np.floor(x) % 2)) % 1 - 0.5)
                color = mix(mix(color, self.second, 0.5), color, smooth(dot, 0.14, 0.18))
            elif here and style == "slats":
                gap = 0.35 + 0.65 * smooth(np.abs(p[0] % 0.09 - 0.045), 0.044, 0.036)
                color = self.timber * gap * (0.75 + 0.3 * noise(table, p[0] * 25, p[2] * 1.5))
            elif here and style == "two-tone":
                color = np.where(p[2] < 1.2, mix(accent, base, 0.15), color)
            return np.where(p[2] < 0.1, WHITE * (0.95 - 0.3 * (p[2] > 0.09)), color)

        if self.chance(0.25):
            carpet = mix(mix(base, self.timber, 0.5), WHITE, self.number(0, 0.5))
            return paper, pile(carpet, table, 60), carpet
        tone = mix(self.timber, WHITE, self.number(0.0, 0.45))
        return paper, planks(tone, table, self.number(0.1, 0.2), self.pick((0, 0, 1))), tone

    def render(self):
        """The picture as (n, n, 3) uint8."""
        view, hour, hole, n = self.view, self.hour, self.hole, self.view.n
        paper, floor, tone = self.surfaces()
        sun = unit(np.float32([[self.number(-0.7, 0.7)], [-1], [self.number(*hour.sun_heights)]]))
        cast_room(view, self.size, self.walls, paper, floor, lambda p: WHITE * 0.95, hole,
                  lambda rays: landscape(rays, hole.wall, hour, self.table))
        boxes = []
        for solid in self.solids:
            cast(view, solid)
            if solid.casts:
                ends = (solid.wall.room(np.add(solid.center, s * np.array(solid.half)))[:, None]
                        for s in (-0.93, 0.93))
                a, b = ends
                boxes.append((np.minimum(a, b), np.maximum(a, b)))
        jitter = self.rng.random((2, n * n), dtype=np.float32)
        tint = mix(self.wall_color, tone, 0.4)
        e = light(view, self.size, boxes, hole, self.lamps, hour, sun, tint, jitter)
        image = view.color * e + view.glow
        line = np.arange(n, dtype=np.float32)
        for lamp in self.lamps:
            x, y, z = view.project(lamp)
            if z > 0.2:
                r = np.hypot(line - x, line[:, None] - y).ravel() * (z / n)
                halo = np.exp(-r * 7) * 0.16 + np.exp(-r * 2.2) * 0.035
                image += halo * rgb("ffb866") * hour.lamps
        key = np.exp(np.log(image.mean(0) + 0.02).mean())
        image = 1 - np.exp(-1.25 * image * (0.42 / key) ** (0.85 if hour.lamps < 2 else 0.6))
        image = (image ** (1 / 2.2) * 255 + 0.5).clip(0, 255).astype(np.uint8)
        return image.reshape(3, n, n).transpose(1, 2, 0)


def demo_scene(seed, index, size=512):
    """A drawn bedroom as PNG bytes; the same for the same seed and index."""
    with np.errstate(all="ignore"):  # rays that miss: infinities, masked where they appear
        image = Bedroom(np.random.default_rng([seed, index]), size * 5 // 4).render()
    buffer = io.BytesIO()
    Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS).save(
        buffer, "PNG", compress_level=1)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------- main


def source(args):
    if args.images:
        return folder_photos(args.images, args.out)
    if args.demo:
        return demo_photos(args.demo, args.seed)
    known_size = MIT_SIZE if args.url == MIT_URL else None
    archive = args.archive or download(args.url, args.cache, known_size)
    return archive_photos(archive, args.class_name)


def main(args):
    total, items = source(args)
    with staging_folder(args.out) as staging:
        rows, left_out = stage(items, total, staging, args.min_size)
        sizes = split(rows, args.val_fraction, args.seed)
        new = publish(rows, staging, args.out)
    print(f"{printable(args.out)}: {sizes['train']} train and {sizes['val']} val photos"
          + ("" if new else "; nothing changed"))
    if left_out:
        print("left out: " + ", ".join(f"{n} {why}" for why, n in left_out.items()))
    if copies := len(rows) - len({row["pixel_sha256"] for row in rows}):
        print(f"repeats of another photo's pixels: {copies}; they stay on its side")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def number(kind, low, below=None):
    """An argparse type: a `kind` of at least `low`, and less than `below` where given."""

    def parse(text):
        value = kind(text)
        if not (value >= low and (below is None or value < below)):  # false for NaN too
            raise argparse.ArgumentTypeError(
                f"{text} is not {low} or more" + (f" and less than {below}" if below else "")
            )
        return value

    parse.__name__ = kind.__name__  # argparse: "invalid int value"
    return parse


def web_url(text):
    if not re.match("https?://[^/]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an http(s) URL")
    return text


def parse_args(parser):
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", type=Path, metavar="TAR", help="a tar of <class>/<file>")
    source.add_argument("--download", action="store_true", help="fetch MIT Indoor Scenes, 2.6 GB")
    source.add_argument("--images", type=Path, metavar="DIR", help="your own photos, recursively")
    source.add_argument("--demo", type=number(int, 2), metavar="N", help="draw N bedroom scenes")
    parser.add_argument("--class", dest="class_name", metavar="NAME",
                        help="which photos of an archive (default: bedroom); all takes every class")
    parser.add_argument("--val-fraction", type=number(float, 0, 1), default=0.5, metavar="F",
                        help="share of the photos kept for validation (default: 0.5)")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of split and demo scenes")
    parser.add_argument("--min-size", type=number(int, 1), default=64, metavar="PIXELS",
                        help="leave out photos whose shorter side is less (default: 64)")
    parser.add_argument("--out", type=Path, help="default: data/<class, folder name or demo>")
    parser.add_argument("--url", type=web_url, default=MIT_URL, help="another archive to download")
    parser.add_argument("--cache", type=Path, default=Path("data"), metavar="DIR",
                        help="where the download goes (default: data)")
    args = parser.parse_args()
    if args.class_name is not None and (args.images or args.demo):
        parser.error("--class goes with --archive or --download")
    if args.url != MIT_URL and not args.download:
        parser.error("--url goes with --download")
    if args.class_name is None:
        args.class_name = "bedroom"
    name = "demo" if args.demo else args.class_name
    if args.images:
        name = args.images.resolve().name or "images"
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
