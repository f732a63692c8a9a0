"""Photos: a folder becomes one uint8 tensor, the tensor batches, and batches are augmented.

Photos are decoded once, by a pool of threads, and kept in data/.cache/: no JPEG is decoded while
a network trains. Grids of images, the way back, are at the end.
"""

import csv
import functools
import json
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch.nn import functional as F
from tqdm import tqdm

from common import cli, files, imagefiles

# From files to a tensor ----------------------------------------------------------------------


def split_folder(data, split):
    """data/<split>/ ("train" or "val"), or `data` itself for a plain folder of photos."""
    data = Path(data)
    if not data.is_dir():
        cli.fail(f"{data} is not a folder; prepare_data.py makes one (--images of a folder of "
                 "photos, --archive of a zip or tar file, --demo 256 of nothing)")
    if (data / split).is_dir():
        return data / split
    if split != "train" or (data / "manifest.csv").exists() or (data / "val").is_dir():
        cli.fail(f"{data} has no {split}/ folder; prepare_data.py --images splits photos")
    return data


def split_files(data, split):
    """The photos of a split, sorted; they must be those of the manifest if there is one."""
    data, folder = Path(data), split_folder(data, split)
    paths = imagefiles.find(folder)
    if not paths:
        cli.fail(f"no images in {folder}")
    if (data / "manifest.csv").exists():
        listed = {name for name in listed_hashes(data) if name.startswith(f"{split}/")}
        changed = listed ^ {path.relative_to(data).as_posix() for path in paths}
        if changed:
            cli.fail(f"{data} is not what its manifest lists ({min(changed)}): prepare it again")
    return paths


def listed_hashes(data):
    """{<split>/<name>: the file's SHA-256} by the manifest of a data folder; {} if it has none."""
    manifest = Path(data) / "manifest.csv"
    if not manifest.exists():
        return {}
    with open(manifest, newline="", encoding="utf-8", errors="replace") as file:
        try:
            return {row.get("file") or "": row.get("file_sha256") for row in csv.DictReader(file)}
        except csv.Error as error:
            cli.fail(f"{manifest} cannot be read ({error}): prepare it again")


def has_validation(data):
    """Whether a data folder has a val/; a plain folder of photos has none."""
    return (Path(data) / "val").is_dir()


def median_aspect(data, limit=None):
    """The median width : height of the training photos, the first `limit` of them.

    As their headers say, but a PNG's, if EXIF turns it.
    """
    sizes = []
    for path in split_files(data, "train")[:limit]:
        try:
            sizes.append(imagefiles.size(path))
        except ValueError as error:
            cli.fail(f"{path} cannot be read: {error}")
    return float(np.median([width / height for width, height in sizes]))


def decode(path, size, fit):
    """uint8 (3, size, size): stretched ("square"), or the middle of the photo ("crop").

    Antialiased bilinear, as torchvision's Resize on PIL images. Raises ValueError.
    """
    try:
        with imagefiles.opened(path) as (image, _):
            if fit == "square":
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            else:
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            return np.asarray(image).transpose(2, 0, 1)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except MemoryError as error:
        raise MemoryError(f"{path}: {error}") from error


def decoded(paths, size, fit="square", batch_size=32):
    """Batches of uint8 images (b, 3, size, size) of files, decoded by a pool of threads."""
    read = functools.partial(decode, size=size, fit=fit)
    with ThreadPoolExecutor(imagefiles.threads()) as pool:
        for start in range(0, len(paths), batch_size):
            try:
                images = np.stack(list(pool.map(read, paths[start : start + batch_size])))
            except ValueError as error:
                cli.fail(error)
            yield torch.from_numpy(images)


def decode_all(paths, size, fit="square"):
    """uint8 tensor (n, 3, size, size) of files."""
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    done = 0
    with tqdm(total=len(paths), desc="decoding", unit="img", disable=None, leave=False) as bar:
        for batch in decoded(paths, size, fit):
            images[done : done + len(batch)] = batch
            done += len(batch)
            bar.update(len(batch))
    return images


def load_images(data, split, size, fit="square"):
    """(uint8 tensor (n, 3, size, size), its SHA-256) of a split, from data/.cache/ if it is there.

    The cache is keyed by the manifest and the files' names, sizes and times. Where the folder
    can't be written, photos are decoded anew each time.
    """
    paths, manifest = split_files(data, split), Path(data) / "manifest.csv"
    folder = split_folder(data, split)
    stats = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
             for path in paths]
    text = manifest.read_bytes().hex() if manifest.exists() else ""
    key = files.sha256(json.dumps([stats, text]))
    cache = Path(data) / ".cache" / f"{split}_{size}_{fit}.npy"
    label = cache.with_suffix(".json")
    try:
        saved = json.loads(label.read_text())
        if saved["key"] == key:
            images = np.load(cache)
            whole = images.shape == (len(paths), 3, size, size) and images.dtype == np.uint8
            if whole and files.sha256(images) == saved["sha256"]:
                return torch.from_numpy(images), saved["sha256"]
    except Exception:  # a damaged file may raise anything
        pass  # no cache, or not a whole one: made anew below
    listed = listed_hashes(data)
    for path in paths:
        expected = listed.get(path.relative_to(data).as_posix())
        if expected is not None and files.file_sha256(path) != expected:
            cli.fail(f"{path} is not the photo that {manifest} lists: prepare {data} again")
    images = decode_all(paths, size, fit)
    fingerprint = files.sha256(images.numpy())
    try:
        cache.parent.mkdir(exist_ok=True)
        # The label goes first and comes back last: it never stands beside other images.
        label.unlink(missing_ok=True)
        with files.replacing(cache) as file:
            np.save(file, images.numpy())
        with files.replacing(label) as file:
            file.write(json.dumps({"key": key, "sha256": fingerprint}).encode())
    except OSError as error:
        cli.warn_once(f"nothing is kept in {cache.parent} ({error.strerror or error})")
    return images, fingerprint


# From the tensor to augmented batches --------------------------------------------------------


@functools.lru_cache(maxsize=2)
def permutation(n, seed, epoch):
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))


def data_order(n, start, length, seed):
    """Indices (length,): entries start, start + 1, ... of an endless row of permutations of n.

    A function of its arguments alone: where a run stands in its data is one number.
    """
    parts = []
    while length:
        epoch, position = divmod(start, n)
        part = permutation(n, seed, epoch)[position : position + length]
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return torch.cat(parts)


def draw_rows(total, n, seed):
    """n of the rows 0 ... total - 1, drawn by seed, in their order: a tensor (n,)."""
    return torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(total)[:n]))


def epoch_batches(n, batch_size, epoch, seed, start=0, parts=1):
    """Index tensors that go through n photos once, in the order of `epoch` (0, 1, ...).

    The last batch is what remains; a single photo joins the batch before it, since batch norm
    needs two. Fewer photos than a batch holds are repeated until it is full. start: photos of
    this epoch that have been taken before. parts: of several processes, each takes one of as many
    equal parts of a batch, of at least two photos; the last batch is filled up for it.
    """
    if n <= batch_size:
        return [] if start else [data_order(n, epoch * batch_size, batch_size, seed)]
    order = permutation(n, seed, epoch)
    batches = list(order[start:].split(batch_size)) if start < n else []
    if len(batches) > 1 and len(batches[-1]) < 2 * parts:
        batches[-2:] = [torch.cat(batches[-2:])]
    if batches:
        last = len(batches[-1])
        missing = max(-last % parts, 2 * parts - last)
        batches[-1] = torch.cat([batches[-1], order[:missing]])
    return batches


def take_batch(images, indices, device):
    """float (b, 3, h, w) in [-1, 1] on the device, of uint8 images (n, 3, h, w)."""
    if device.type == "cuda":  # through pinned memory: neither side waits for the other
        if images.is_cuda:
            indices = indices.pin_memory().to(device, non_blocking=True)
        else:
            images = images[indices].pin_memory().to(device, non_blocking=True)
            indices = slice(None)
    return images[indices].float() / 127.5 - 1


def ahead(batches, depth=2):
    """The same batches, made by a thread while those before them are in use."""
    batches = iter(batches)
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, batches, None) for _ in range(depth))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, batches, None))
            yield batch


def mirror(batch):
    """The images, each flipped left to right with probability 1/2."""
    flipped = torch.rand(len(batch), 1, 1, 1, device=batch.device) < 0.5
    return torch.where(flipped, batch.flip(3), batch)


class Translation(torch.autograd.Function):
    """apply(x (n, c, h, w), rows (n,), columns (n,)): each image moved up by its rows and left by
    its columns, zeros come in.

    Its gradients are moved back. Autograd's own would be summed up index by index, which GPUs do
    by sorting the indices.
    """

    @staticmethod
    def forward(ctx, x, rows, columns):
        ctx.save_for_backward(rows, columns)
        n, _, height, width = x.shape
        # One border pixel of zeros: every index that falls outside is clamped onto it.
        rows, columns = ((torch.arange(side, device=x.device) + shift[:, None] + 1)
                         .clamp(0, side + 1)
                         for side, shift in ((height, rows), (width, columns)))
        image = torch.arange(n, device=x.device)[:, None, None]
        padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, gradient):
        rows, columns = ctx.saved_tensors
        return Translation.apply(gradient, -rows, -columns), None, None


def diff_augment(x, policy):
    """Differentiable augmentation of (n, 3, h, w), with draws of its own for each image.

    `policy` holds "color" (brightness ±1/2, saturation 0 to 2, contrast 1/2 to 3/2), "translation"
    (up to 1/8 of a side, zeros come in) and "cutout" (zeros in a square of half the side, its
    centre anywhere). Zhao et al. 2020 (arXiv 2006.10738).
    """
    n, _, height, width = x.shape
    if "color" in policy:
        brightness, saturation, contrast = torch.rand(3, n, 1, 1, 1, device=x.device)
        x = x + (brightness - 0.5)
        mean = x.mean(1, keepdim=True)
        x = (x - mean) * (2 * saturation) + mean
        mean = x.mean((1, 2, 3), keepdim=True)
        x = (x - mean) * (contrast + 0.5) + mean
    if "translation" in policy:
        reaches = int(height / 8 + 0.5), int(width / 8 + 0.5)
        uniform = torch.rand(2, n, device=x.device)
        shifts = [((2 * reach + 1) * u).long() - reach
                  for reach, u in zip(reaches, uniform, strict=True)]
        x = Translation.apply(x, *shifts)
    if "cutout" in policy:
        inside = []
        for side, u in zip((height, width), torch.rand(2, n, device=x.device), strict=True):
            middle = ((side + 1) * u).long()[:, None]  # between two pixels, or at the border
            place = torch.arange(side, device=x.device) - middle
            inside.append((-(side // 4) <= place) & (place < side // 4))
        x = x * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
    return x


# Grids ---------------------------------------------------------------------------------------


def save_grid(images, path, columns=8, caption=""):
    """A PNG of uint8 images (n, 3, h, w), row by row, a black line around each, a caption below."""
    images = F.pad(images, (2, 2, 2, 2))
    blank = -len(images) % columns
    images = torch.cat([images, images.new_zeros(blank, *images.shape[1:])])
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns)]
    grid = F.pad(torch.cat(rows, dim=1), (0, 0, 0, 14 if caption else 0))
    picture = Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())
    ImageDraw.Draw(picture).text((3, grid.shape[1] - 13), caption, "white")
    with files.replacing(path) as file:
        picture.save(file, format="PNG")


def save_images(batches, folder, update=lambda images: None):
    """Writes batches of uint8 images (n, 3, h, w) to a folder, as 00000.png, 00001.png, ...

    update: called with the number of images written since the last call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for row, image in enumerate(image for batch in batches for image in batch):
        path = folder / f"{row:05d}.png"
        try:
            with files.naming(path):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        except OSError:
            path.unlink(missing_ok=True)  # a part of an image
            raise
        update(1)
