"""Turn raw photos into a training and a validation set.

    python prepare_data.py --demo 256               # drawn bedrooms: no network, no files needed
    python prepare_data.py --download               # MIT Indoor Scenes (2.6 GB), its bedrooms
    python prepare_data.py --archive data/indoorCVPR_09.tar --class kitchen
    python prepare_data.py --images ~/photos --out data/mine    # with its subfolders
    python prepare_data.py --digits                 # 1,797 digits, 8x8: no network needed
    python prepare_data.py --mnist                  # 70,000 digits, 28x28 (12 MB)

Writes OUT/train/, OUT/val/ and OUT/manifest.csv. Upright 8-bit sRGB JPEGs and PNGs are copied as
they are, everything else is converted to such PNGs (transparency becomes white), and files that
fail to decode are skipped with a warning. The split depends only on the pixels and on --seed;
photos that are one picture (re-encoded, rescaled, slightly cropped or mirrored) stay on one side.
The same command again changes nothing, and existing files are never overwritten: another split
needs another --out.
"""

import csv
import errno
import hashlib
import http.client
import io
import lzma
import os
import shutil
import signal
import socket
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count, islice
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from common import cli, files, imagefiles, twins
from common.scenes import draw_scene

MIT_URL = "http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar"
MIT_SIZE = 2_592_010_240  # bytes
NAME_BYTES = 200  # of a file name without its suffix; file systems take 255
COLUMNS = ("split", "file", "source", "width", "height", "file_sha256", "pixel_sha256", "group")


# Sources of photos ---------------------------------------------------------------------------
# Each returns (number of photos, iterator of (source, file name, read)). The source goes into the
# manifest; read() returns the bytes of an image file and is called in a worker thread.


def printable(text):
    return "".join(c if c.isprintable() else "_" for c in text)


def folder_photos(folder, out):
    """Photos in `folder` and its subfolders, sorted by path, without those in the folder `out`."""
    paths = imagefiles.find(folder, out)
    if not paths:
        cli.fail(f"no photos in {folder}: it needs files named {' '.join(imagefiles.SUFFIXES)}")
    names = [path.relative_to(folder) for path in paths]
    return len(paths), ((name.as_posix(), "_".join(name.parts), path.read_bytes)
                        for name, path in zip(names, paths, strict=True))


def archive_photos(path, class_name):
    """Photos of one class ("all": of every class) in a tar or zip file with paths
    .../<class>/<file>."""
    if path.is_dir():
        cli.fail(f"{path} is a folder: --images takes folders")
    if path.exists() and not path.is_file():  # a named pipe would block
        cli.fail(f"{path} is not a file")
    classes = defaultdict(list)
    is_zip = zipfile.is_zipfile(path) and not tarfile.is_tarfile(path)
    for name, read in (zip_members if is_zip else tar_members)(path):
        place = PurePosixPath(name)
        if read is None or place.is_absolute() or ".." in place.parts:
            cli.warn(f"skipped {printable(name)}: a link, a device, a path outside or over 1 GB")
        elif imagefiles.is_image(place) and not any(part.startswith(".") for part in place.parts):
            classes[place.parent.name].append((name, read))
    chosen = sum(classes.values(), []) if class_name == "all" else classes.get(class_name)
    if not chosen:
        found = ", ".join(f"{c or 'no class'} ({len(classes[c])})" for c in sorted(classes))
        cli.fail(f"{path} has no photos of class {class_name!r}; it has: "
                 f"{f'{found}; --class all takes them all' if found else 'no photos at all'}")

    def photos():
        for source, read in chosen:
            *_, parent, name = ("", *PurePosixPath(source).parts)
            if class_name == "all" and parent and not name.startswith(f"{parent}_"):
                name = f"{parent}_{name}"
            try:  # in their order: a packed archive is read once
                read = partial(bytes, read())
            except Exception as error:
                read = partial(fails, error)
            yield source, name, read

    return len(chosen), photos()


def fails(error):
    raise error


def tar_members(path):
    """(name, a function that returns its bytes, or None for what is no file) of all in a tar file
    but folders."""
    try:
        archive = tarfile.open(path)  # noqa: SIM115 (photos are read from it later)
        members = archive.getmembers()  # so that a truncated file is found before all else
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(512) != bytes(512):  # tarfile takes any bad header for the end
            raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        cli.fail(f"{path} is not a whole tar or zip archive ({str(error).splitlines()[0]}): fetch "
                 "it again")

    def read(member):
        return archive.extractfile(member).read()

    return [(member.name, partial(read, member) if member.isreg() else None)
            for member in members if not member.isdir()]


def zip_members(path):
    """The same of a zip file."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        cli.fail(f"{path} is not a whole tar or zip archive ({error}): fetch it again")
    if any(member.flag_bits & 1 for member in archive.infolist()):
        cli.fail(f"{path} is encrypted: unpack it, and give --images the folder")
    # A few bytes may claim to be any number of them.
    return [(member.filename.replace("\\", "/"),
             partial(archive.read, member) if member.file_size < 2**30 else None)
            for member in archive.infolist() if not member.is_dir()]


def download(url, folder):
    """Path of the file at `url`, fetched into `folder`; resumes an earlier download."""
    path, known_size = folder / PurePosixPath(url).name, MIT_SIZE if url == MIT_URL else None
    if path.exists():
        if known_size not in (None, path.stat().st_size):
            cli.fail(f"{path} is not {known_size:,} bytes long: delete it and run again")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have, before = part.stat().st_size if part.exists() else 0, -1
    while have > before:  # as long as each attempt brings something
        before, reason = have, "the connection was dropped"
        headers = {"User-Agent": "prepare_data.py", "Range": f"bytes={have}-"}
        request = urllib.request.Request(url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                have = have if response.status == 206 else 0  # 200: the server sends everything
                length = response.headers.get("Content-Length")
                size = have + int(length) if length else known_size  # None: as much as comes
                with part.open("ab" if have else "wb") as file, tqdm(
                        total=size, initial=have, unit="B", unit_scale=True, disable=None) as bar:
                    while block := response.read(2**20):
                        bar.update(file.write(block))
            if size in (None, part.stat().st_size):
                return part.replace(path)
        except urllib.error.HTTPError as error:
            remedy = f": delete {part} and run again" if error.code == 416 else ""
            cli.fail(f"{url} answers {error.code} {error.reason}{remedy}")
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                cli.fail(f"{part}: {error.strerror}")
            reason = getattr(error, "reason", error)
        have = part.stat().st_size if part.exists() else 0
        time.sleep(1)
    cli.fail(f"{url}: {reason} after {have:,} bytes; running again resumes from there")


def digit_photos(name, images, labels):
    """White digits on black from uint8 images (n, height, width); file names hold the labels."""
    header = b"P5 %d %d 255\n" % images.shape[:0:-1]  # of a PGM file
    return len(images), (
        (f"{name}:{i}", f"digit_{i:05d}_{label}.png", partial(bytes, header + image.tobytes()))
        for i, (image, label) in enumerate(zip(images, labels, strict=True)))


def bundled_digits():
    """(uint8 images (1797, 8, 8), labels) of scikit-learn's digits, scaled from 0..16 to 0..255."""
    from sklearn.datasets import load_digits  # slow to import, as torchvision is

    digits = load_digits()
    return (digits.images * 255 / 16).round().astype(np.uint8), digits.target


def mnist(cache):
    """(uint8 images (70000, 28, 28), labels) of MNIST, training digits first; kept in `cache`."""
    from torchvision.datasets import MNIST

    socket.setdefaulttimeout(30)  # torchvision sets none
    raw = cache / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    try:
        parts = [MNIST(cache, train=train, download=True) for train in (True, False)]
        if any(len(part.data) != len(part.targets) for part in parts):
            raise ValueError("images and labels differ in number")
    except Exception as error:  # torchvision raises nearly anything for broken files
        reason = (str(error).splitlines() or [type(error).__name__])[-1]
        names = ", ".join(name for name, _ in MNIST.resources)
        cli.fail(f"no MNIST in {raw} ({reason}): empty that folder and run again, or put {names} "
                 f"from {MNIST.mirrors[0]} into it, or use --digits, which needs no network")
    return (np.concatenate([part.data for part in parts]),
            np.concatenate([part.targets for part in parts]))


# From photos to files ------------------------------------------------------------------------


def convert(data):
    """(file bytes, suffix, manifest columns) of any photo's bytes.

    Upright 8-bit sRGB JPEGs and PNGs keep their bytes, anything else becomes such a PNG. Raises
    ValueError for what fails to decode.
    """
    with imagefiles.opened(io.BytesIO(data)) as (image, suffix):
        width, height = image.size
        thumbnail = twins.thumbnail(image) if min(width, height) >= twins.THUMBNAIL else None
        pixels = hashlib.sha256(f"{width}x{height}:".encode())
        pixels.update(image.tobytes())
        if not suffix:
            buffer, image.info = io.BytesIO(), {}  # what the file said besides its pixels
            image.save(buffer, "PNG", compress_level=3)
            data = buffer.getvalue()
        del image  # before its memory is given to others
    return data, suffix or ".png", {
        "width": width, "height": height, "file_sha256": files.sha256(data),
        "pixel_sha256": pixels.hexdigest(), "thumbnail": thumbnail}


def load(numbered, folder):
    """A manifest row of a photo (number, (source, name, read)) with the "path" in `folder` that its
    bytes went to; of one that fails to decode its "source" and why it "fails"."""
    number, (source, name, read) = numbered
    source, name = printable(source), printable(name)
    try:
        data, suffix, columns = convert(read())
    except MemoryError as error:
        raise MemoryError(f"{source}: {error}") from error
    except Exception as error:  # an archive may be damaged in any way, too
        return {"source": source, "fails": imagefiles.reason(error)}
    path = folder / str(number)
    with files.naming(path):
        path.write_bytes(data)
    stem = PurePosixPath(name).stem.encode()[-NAME_BYTES:].decode(errors="ignore")
    return {"source": source, "path": path, "file": stem.lstrip(".") + suffix, **columns}


def write_photos(photos, total, folder, min_size):
    """Writes usable photos into `folder`; returns (manifest rows, {reason: number skipped})."""
    rows, taken, skipped, workers = [], set(), Counter(), imagefiles.threads()
    photos = enumerate(photos)
    with tqdm(total=total, unit="photo", disable=None) as bar, ThreadPoolExecutor(workers) as pool:
        while batch := list(islice(photos, 2 * workers)):  # never all photos in memory
            for row in pool.map(partial(load, folder=folder), batch):
                bar.update()
                if "fails" in row:
                    cli.warn(f"skipped {row['source']}: it fails to decode ({row['fails']})")
                    skipped["that fail to decode"] += 1
                    continue
                path = row.pop("path")
                if min(row["width"], row["height"]) < min_size:
                    skipped[f"smaller than {min_size} pixels"] += 1
                    path.unlink()
                    continue
                stem, suffix = os.path.splitext(row["file"])
                names = (f"{stem}-{i}{suffix}" if i > 1 else stem + suffix for i in count(1))
                name = next(n for n in names if n.casefold() not in taken)  # a disk may ignore case
                taken.add(name.casefold())
                rows.append({**row, "file": path.rename(folder / name).name})
    return rows, skipped


# From files to a split -----------------------------------------------------------------------


def group_pictures(rows):
    """Adds to each row its "picture", a name that rows of one picture share, and its "group".

    The group is a number for a picture of two or more files, None for a file alone.
    """
    pictures = twins.pictures([row["pixel_sha256"] for row in rows],
                              [row["thumbnail"] for row in rows])
    sizes = Counter(pictures)
    number = {name: i for i, name in enumerate(sorted(n for n in sizes if sizes[n] > 1), 1)}
    for row, picture in zip(rows, pictures, strict=True):
        row.update(picture=picture, group=number.get(picture))


def split(rows, val_fraction, seed):
    """Adds its split to each row and to its file name; returns {split: number of rows}.

    Rows of one picture get the same split. Pictures are sorted by a hash of the seed and their
    pixels, so file names don't matter. Validation gets round(n * val_fraction) rows, or as near as
    the groups allow.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row["picture"]].append(row)
    room = round(len(rows) * val_fraction)
    for picture in sorted(groups, key=lambda picture: files.sha256(f"{seed} {picture}")):
        group = groups[picture]
        name = "val" if len(group) <= room else "train"
        room -= len(group) if name == "val" else 0
        for row in group:
            row.update(split=name, file=f"{name}/{row['file']}")
    sizes = Counter(row["split"] for row in rows)
    if not sizes["train"] or (val_fraction and not sizes["val"]):
        cli.fail(f"{len(rows)} usable photos, {len(groups)} of them different, can't be split with "
                 f"--val-fraction {val_fraction:g}: both sides need one")
    return sizes


@contextmanager
def staging_folder(out):
    """An empty folder in `out`, removed at the end, as are new folders that stayed empty."""
    staging = out / ".staging"
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    lock = files.lock(out, wait=True)  # several processes may prepare the same folder
    try:
        shutil.rmtree(staging, ignore_errors=True)  # from a killed process
        staging.mkdir(parents=True)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)
        for folder in created:
            with suppress(OSError):
                folder.rmdir()


def publish(rows, staging, out):
    """Moves photos and writes the manifest, if nothing is in the way; returns if any was new."""
    manifest = out / "manifest.csv"
    # One of an earlier version, without groups, is as good if the split is the same.
    if manifest.exists() and manifest.read_bytes() not in (listing(rows, COLUMNS),
                                                           listing(rows, COLUMNS[:-1])):
        cli.fail(f"{manifest} lists another split: choose another --out or remove {out}")
    new = {row["file"]: row["file_sha256"] for row in rows}
    for path in (*(out / "train").glob("[!.]*"), *(out / "val").glob("[!.]*")):
        if new.pop(path.relative_to(out).as_posix(), None) != files.file_sha256(path):
            cli.fail(f"{path} does not belong to this split or was changed: choose another --out "
                     "or move it away")
    for name in new:
        (out / name).parent.mkdir(exist_ok=True)
        (staging / PurePosixPath(name).name).rename(out / name)
    if manifest.exists():
        return bool(new)
    with files.replacing(manifest) as file:
        file.write(listing(rows, COLUMNS))
    return True


def listing(rows, columns):
    """The bytes of a manifest."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (row["split"], row["file"])))
    return text.getvalue().encode()


def parse_args():
    parser = cli.Parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", type=Path, metavar="FILE",
                        help="a tar or zip file of <class>/<file>")
    source.add_argument("--download", nargs="?", const=MIT_URL, metavar="URL",
                        help="fetch an archive into data/ (default: MIT Indoor Scenes, 2.6 GB)")
    source.add_argument("--images", type=Path, metavar="DIR", help="your photos, subfolders too")
    source.add_argument("--demo", type=cli.count, metavar="N", help="draw N bedroom scenes")
    source.add_argument("--digits", action="store_true", help="scikit-learn's 1,797 digits, 8x8")
    source.add_argument("--mnist", action="store_true", help="fetch MNIST's 70,000 digits, 28x28")
    parser.add_argument("--class", dest="class_name", metavar="NAME",
                        help="class to take from an archive (default: bedroom), or all")
    parser.add_argument("--val-fraction", type=cli.number(float, 0, 1), default=0.5, metavar="F",
                        help="share of the photos kept for validation")
    parser.add_argument("--seed", type=cli.seed, default=0,
                        help="random seed of the split and of drawn scenes")
    parser.add_argument("--min-size", type=cli.number(int, 0), metavar="PIXELS",
                        help="skip photos whose shorter side is less (default: 64; digits: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="output folder (default: data/ and the class, the folder's name, "
                        "demo, digits or mnist)")
    args = parser.parse_args()
    if args.download and not args.download.startswith(("http://", "https://")):
        parser.error(f"--download {args.download} is not an http(s) URL")
    if args.class_name is not None and not (args.archive or args.download):
        parser.error("--class goes with --archive or --download")
    args.class_name = args.class_name or "bedroom"
    if args.min_size is None:
        args.min_size = 0 if args.digits or args.mnist else 64
    name = args.images.resolve().name if args.images else args.class_name
    name = next((flag for flag in ("demo", "digits", "mnist") if getattr(args, flag)), name)
    args.out = args.out or Path("data", name)
    return args


def main(args):
    if args.images:
        total, photos = folder_photos(args.images, args.out)
    elif args.demo:
        total, photos = args.demo, (
            (f"demo:{args.seed}:{i}", f"scene_{i:05d}.png", partial(draw_scene, args.seed, i))
            for i in range(args.demo))
    elif args.digits:
        total, photos = digit_photos("digits", *bundled_digits())
    elif args.mnist:
        total, photos = digit_photos("mnist", *mnist(Path("data", ".mnist")))
    else:
        archive = args.archive or download(args.download, Path("data"))
        total, photos = archive_photos(archive, args.class_name)
    with staging_folder(args.out) as staging:
        rows, skipped = write_photos(photos, total, staging, args.min_size)
        group_pictures(rows)
        sizes = split(rows, args.val_fraction, args.seed)
        changed = publish(rows, staging, args.out)
    cli.say(f"{args.out}: {sizes['train']} train and {sizes['val']} val photos"
            + ("" if changed else "; nothing changed"))
    for reason, number in skipped.items():
        cli.say(f"skipped: {number} {reason}")
    if grouped := [row["group"] for row in rows if row["group"]]:
        cli.say(f"{len(grouped)} of the photos show {len(set(grouped))} pictures (re-encoded, "
                "rescaled, cropped or mirrored): each stays on one side (group in manifest.csv)")


if __name__ == "__main__":
    args = parse_args()
    for name in cli.stop_signals():
        signal.signal(name, cli.interrupt)
    with cli.system_errors():
        main(args)
