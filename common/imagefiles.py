"""Image files: which there are in a folder, and what the pixels of one are, for all scripts.

    for path in imagefiles.find("photos"):
        with imagefiles.opened(path) as (image, _):
            image.show()

An image is upright 8-bit RGB as an sRGB screen shows it, on white where it is transparent.
"""

import contextlib
import ctypes
import functools
import io
import math
import os
import re
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from common import cli

# Not EPS: Pillow would run ghostscript on it.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp",
            ".ppm", ".avif")
UNREAD = (".heic", ".heif", ".hif", ".jp2", ".jxl", ".tga", ".psd", ".dng", ".cr2", ".cr3", ".nef",
          ".arw", ".raf", ".orf", ".rw2")  # images all the same
MEMORY = 600 * 2**20  # bytes that images may take while they are decoded, but one larger alone
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU time in so many microseconds
M_ARENA_MAX = -8  # of glibc's malloc.h
THREADS = 16  # at most: their files and what is made of them take memory, too

Image.MAX_IMAGE_PIXELS = 150_000_000  # Pillow refuses twice as many: telephones make 200 million
# glibc keeps what a thread frees for that thread: without this 16 threads keep 2 GB.
Image.core.set_block_size(64 * 2**20)
with contextlib.suppress(AttributeError):  # another libc
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
warnings.filterwarnings("ignore", module="PIL")  # of an image that decodes all the same
with contextlib.suppress(OSError), open("/proc/self/maps") as loaded:
    # libtiff prints each of its complaints, without the file's name; Pillow raises what matters.
    for library in {line.split(maxsplit=5)[-1].strip() for line in loaded if "libtiff" in line}:
        ctypes.CDLL(library).TIFFSetErrorHandler(None)


# Which there are -----------------------------------------------------------------------------


def is_image(path):
    """Whether a file's name says that it is an image; hidden files are none."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def find(folder, out=None):
    """The image files in a folder and its subfolders, sorted by their paths.

    Not in hidden folders, in `out`, nor in what training and evaluation wrote. A line says which
    folders can't be read, and how many images have names that are none of images.
    """
    folder, out = Path(folder), out and Path(out).resolve()
    if not folder.is_dir():
        cli.fail(f"{folder} is not a folder" + ("; prepare_data.py --archive takes zip and tar "
                                                "files" if folder.exists() else ": nothing there"))
    found, others = [], []
    for parent, names, members in os.walk(folder, onerror=_skip):
        below = [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
        for path in below:
            if path.is_symlink():
                cli.warn_once(f"skipped {path}: a link to a folder; give that folder itself")
        names[:] = [path.name for path in below if not path.is_symlink() and path.resolve() != out
                    and not any(map(os.path.exists, (path / "args.json", path / "metrics.json")))]
        for path in (Path(parent, name) for name in members if not name.startswith(".")):
            try:
                if stat.S_ISREG(path.stat().st_mode):
                    (found if is_image(path) else others).append(path)
            except OSError as error:
                _skip(error)
    if misnamed := [path for path in others if _holds_image(path)]:
        cli.warn_once(f"skipped {len(misnamed)} images with other names than "
                      f"{' '.join(SUFFIXES)}, {misnamed[0]} first: rename them, or convert them to "
                      "JPEG (HEIC, raw)")
    return sorted(found)


def _skip(error):
    cli.warn_once(f"skipped {error.filename}: {error.strerror}")


def _holds_image(path):
    """Whether a file that is not named like the images that are read is one all the same."""
    if path.suffix.lower() in UNREAD:
        return True
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # Pillow answers strange bytes with nearly every type there is
        return False


# What its pixels are -------------------------------------------------------------------------


@contextlib.contextmanager
def opened(file):
    """(a PIL image, upright 8-bit sRGB; the suffix of a file that holds just that, None for others)
    of a path or a file object.

    For as long as it is open, it takes its part of the MEMORY that threads share. Raises
    ValueError, with the reason, for a file that fails to be read or decoded.
    """
    needed = 0
    with contextlib.ExitStack() as claim:
        try:
            # Not by its path: Pillow would map a TIFF that lies on its side with its sides swapped.
            data = file if hasattr(file, "read") else claim.enter_context(open(file, "rb"))
            with Image.open(data, formats=FORMATS) as source:
                converted = _sideways(source) or "icc_profile" in source.info
                # Bytes of a pixel: four as Pillow holds it, and four in each of a few copies.
                share = 24 if source.mode != "RGB" else 16 if converted else 8
                needed = source.width * source.height * share
                claim.enter_context(_memory.taken(needed))
                image, suffix = _srgb(source)
            del source
        except MemoryError:
            raise
        except Exception as error:  # Pillow answers broken bytes with nearly every type there is
            if "decoder object" in str(error):
                needed = 2**30  # of the largest WebP, whose sides are not known yet
            bytes(needed)  # a MemoryError where that was why: decoders have other words for it
            raise ValueError(reason(error)) from error
        yield image, suffix
        del image  # before other threads are given its memory


def size(path):
    """(width, height) of an image file, upright, without decoding it. Raises ValueError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size[::-1] if _sideways(image) else image.size
    except Exception as error:
        raise ValueError(reason(error)) from error


def reason(error):
    """Why a file can't be read, without objects' addresses in memory."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or of a kind that is not read"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r" *<[^<>]* at 0x[0-9a-fA-F]+>", "", text)


def _orientation(image):
    """1 for an upright image, 2 to 8 for others (EXIF); of a PNG file this decodes all of it."""
    value = image.getexif().get(ExifTags.Base.Orientation)
    return value if value in range(2, 9) else 1


def _sideways(image):
    """Whether an image lies on its side, as far as its header says (a PNG's may not) and Pillow has
    not turned it (a TIFF's)."""
    return image.format not in ("PNG", "TIFF") and _orientation(image) > 4


def _srgb(image):
    """What `opened` gives of a file's image."""
    deep = ";16" in str(image.tile)
    image.load()
    turned, clear = _orientation(image) > 1, image.has_transparency_data
    profile = image.info.get("icc_profile")
    suffix = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}.get(image.format)
    if image.mode != "RGB" or deep or turned or clear:
        suffix = None
    if turned:
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    elif deep:
        colors = [band for band in image.getbands() if band != "A"]
        if max(image.getchannel(band).getextrema()[1] for band in colors) < 16:
            raise ValueError("16 bits a channel, nearly black: it must use but a part of them")
        if isinstance(key := image.info.get("transparency"), tuple):  # Pillow keeps its 16 bits
            image.info["transparency"] = tuple(value >> 8 for value in key)
    if clear:
        alpha = image.convert("RGBA").getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    elif image.mode == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    elif image.mode not in ("L", "CMYK") or profile and profile[16:20] == b"RGB ":
        image = image.convert("RGB")
    if profile and (transform := _to_srgb(profile, image.mode)):
        image, suffix = ImageCms.applyTransform(image, transform), None
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if clear:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image, suffix


@functools.lru_cache(maxsize=64)
def _to_srgb(profile, mode):
    """A transform of images of this mode, RGB, L, CMYK or LAB, by their colour profile (ICC bytes);
    None where the profile is sRGB's, to two levels, or not one of such images."""
    try:
        transform = ImageCms.buildTransform(
            io.BytesIO(profile), ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode in ("RGB", "L"):
        steps = np.linspace(0, 255, 9 if mode == "RGB" else 256).round().astype(np.uint8)
        shades = np.stack(np.meshgrid(*[steps] * len(mode)), -1).reshape(-1, 1, len(mode))
        shades = Image.fromarray(shades.squeeze(2) if mode == "L" else shades)
        shown = np.asarray(ImageCms.applyTransform(shades, transform), int)
        if np.abs(shown - np.asarray(shades.convert("RGB"))).max() <= 2:
            return None
    return transform


def _eight_bits(image):
    """A grey image of more than 8 bits in mode L, scaled by the range that its file names.

    Raises ValueError where it names none, or one that its samples don't fit.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF file; PNG and PGM mean 16 bits
    bits, kind = tags.get(258, (16,))[0], tags.get(339, (1,))[0]
    values = np.asarray(image)
    if kind == 2:
        raise ValueError("signed samples: it does not say which of them is white")
    if values.dtype.kind == "f":
        top = 1
    else:
        top = int(tags.get(281, (2**bits - 1,))[0])
        values = values.view(np.uint32) if bits == 32 else values
    low, high = values.min(), values.max()
    if not (low >= 0 and top / 16 < high <= top):
        raise ValueError(f"samples from {low:g} to {high:g}, where {top} should be white")
    if tags.get(262) == 0:  # PhotometricInterpretation: white is zero
        values = top - values
    grey = (values * (255 / top) + 0.5).astype(np.uint8)
    if (clear := image.info.get("transparency")) is not None:  # of a PNG: one of the values
        grey[values == clear] = 255
    return Image.fromarray(grey)


# At once -------------------------------------------------------------------------------------


def threads():
    """How many threads decode: of the CPUs that this process may use, by its affinity and by the
    quota of its container, at most THREADS."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a quota: "max"
        quota, period = QUOTA.read_text().split()
        cpus = min(cpus, math.ceil(int(quota) / int(period)))
    return min(cpus, THREADS)


class _Budget:
    """A number of bytes that threads share: who wants more than is left waits."""

    def __init__(self, size):
        self.size = self.left = size
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, size):
        size = min(size, self.size)
        with self.changed:
            self.changed.wait_for(lambda: self.left >= size)
            self.left -= size
        try:
            yield
        finally:
            with self.changed:
                self.left += size
                self.changed.notify_all()


_memory = _Budget(MEMORY)
