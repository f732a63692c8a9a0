"""Sets of images to features, each image once through each network; features kept on disk.

    x, y = features(photos, network), features(samples, network)      # of weights.py
    compared = spaces(FeatureNetworks("efficientnet", device), train, validation, samples)

Images are uint8 tensors or arrays (n, 3, h, w), features float tensors (n, d).
"""

import functools
import json
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import metrics
from common import cli, files, perceptual, photos, weights

FEW = 500  # images a set at most whose cells and spectra are compared: they are large
KINDS = {  # --features: (their caption, network of FID's place, of embeddings and cells, LPIPS)
    "efficientnet": ("EfficientNet-Lite2", "efficientnet_lite2", "efficientnet_lite2", False),
    "inception": ("Inception, ResNet-50 and LPIPS", "inception", "resnet50", True),
    "dinov2": ("DINOv2, ResNet-50 and LPIPS", "dinov2", "resnet50", True)}


# Images to features --------------------------------------------------------------------------


@weights.full_precision
@torch.inference_mode()
def features(images, network, batch_size=32):
    """Features of uint8 images (n, 3, h, w): a float32 tensor (n, d) on the CPU.

    network: of weights.py, but not LPIPS. A row depends on its image alone, up to 1e-5 of its size.
    Raises ValueError for images of another kind.
    """
    return torch.cat([network(batch).float().cpu()
                      for batch in _on_device(weights.checked(images), network, batch_size)])


def _on_device(images, network, batch_size=32):
    """The images in batches, where the network is."""
    device = next(network.parameters()).device
    if device.type == "cpu":
        batch_size = min(batch_size, getattr(network, "at_once", batch_size))
    for batch in images.split(batch_size):
        yield batch.to(device, non_blocking=True)


def resized(images, size):
    """uint8 images (n, 3, h, w) at size × size, by antialiased bilinear interpolation."""
    if images.shape[2:] == (size, size):
        return images
    images = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).byte()


class Spectrum(nn.Module):
    """Power spectra: uint8 images (n, 3, s, s) -> (n, m, m // 2 + 1), m = min(s, 256).

    |FFT|^2 of the luminance (ITU-R BT.601), its mean removed, under a Hann window; 1 is what white
    noise of one squared grey level has. Larger images are the mean over half-overlapping squares
    of 256 pixels (Welch 1967): their spectrum with less noise, and of bounded size.
    """

    def __init__(self):
        super().__init__()
        self.luminance = nn.Parameter(torch.tensor([0.299, 0.587, 0.114]), requires_grad=False)

    def forward(self, images):  # a few at once: overlapping squares are many more
        return torch.cat([self.powers(part) for part in weights.small_batches([images])])

    def powers(self, images):
        images = torch.einsum("nchw,c->nhw", images.float(), self.luminance)
        beyond = max(0, images.shape[-1] - 256)
        side, step = images.shape[-1] - beyond, max(1, beyond // max(1, -(-beyond // 128)))
        squares = images.unfold(1, side, step).unfold(2, side, step).flatten(1, 2)
        window = torch.hann_window(side, device=images.device)
        window = torch.outer(window, window) / window.square().sum()
        flat = squares.mean((-2, -1), keepdim=True)
        return torch.fft.rfft2((squares - flat) * window).abs().square().mean(1)


# Kept on disk --------------------------------------------------------------------------------

VERSION = 2  # raised when cached values change their meaning: older ones are then computed anew


def cache_path(folder, kind, key):
    """The file for a value of this kind that was made from what `key` (plain values) lists."""
    return folder / f"{kind}_{files.sha256(json.dumps(key))[:32]}.pt"


def read_cache(path):
    """What write_cache wrote under this name; None if nothing whole is there."""
    try:
        files.check_zip(path)
        saved = torch.load(path, weights_only=True)
        return saved["value"] if saved["name"] == path.name else None
    except Exception:  # a damaged file can raise anything
        return None


def write_cache(path, value):
    """Tensors, lists and dicts of them into a file; a warning where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            torch.save({"value": value, "name": path.name}, file)
    except OSError as error:
        cli.warn_once(f"nothing is kept in {path.parent} ({error.strerror})")


# Whole sets ----------------------------------------------------------------------------------


class FeatureNetworks:
    """The networks of a kind of KINDS, each built when first needed.

    names: of what they give: "embeddings", "cells", "spectra", "features" where these are not the
    embeddings, "lpips". keys: {name: what it depends on besides the images}. lpips_size: the side
    that images are shrunk to for LPIPS. Weights that can't be had end the program.
    """

    def __init__(self, kind, device, resize="bilinear", lpips_size=256):
        self.kind, self.device, self.lpips_size = kind, device, lpips_size
        self.caption, first, second, lpips = KINDS[kind]
        self.names = {"embeddings", "cells", "spectra", *(["features"] if first != second else [])}
        self.lpips = lpips
        options = {"resize": resize} if first == "inception" else {}
        self._makers = {
            "features": lambda: getattr(weights, f"{first}_network")(device=device, **options),
            "embeddings": lambda: getattr(weights, f"{second}_network")(device=device),
            "spectra": lambda: Spectrum().to(device),
            "lpips": lambda: weights.lpips_network("alex", device=device)}
        self._makers = {name: functools.cache(make) for name, make in self._makers.items()}
        versions = [metadata.version(name) for name in ("torch", "torchvision", "lpips")]
        of = weights.WEIGHTS  # whose names hold a hash
        more = {"features": [of[first], resize], "embeddings": [of[second]],
                "cells": [of[second]], "spectra": [], "lpips": [of["alex"], lpips_size]}
        self.keys = {name: [VERSION, versions, *parts] for name, parts in more.items()}

    def __getitem__(self, name):
        try:
            return self._makers[name]()
        except weights.WeightsError as error:
            other = ", or choose --features efficientnet, which needs no download"
            cli.fail(f"{error}{other if self.kind != 'efficientnet' else ''}")


class ImageSet:
    """Images, and those of their features that were asked for so far.

    key: a hash of what determines the pixels. batches(rows): yields uint8 tensors, the images of
    these rows. cache: a folder. `choose` sets `rows`, which are compared, and `few` among these, of
    which cells and spectra are kept. features: {name: tensor (n, ...), or LpipsPoints}.
    """

    def __init__(self, name, key, n, batches, cache):
        self.name, self.key, self.n = name, key, n
        self.batches, self.cache, self.features = batches, cache, {}
        self.rows = self.few = torch.arange(n)

    def choose(self, rows, few):
        """The set; it compares the images `rows`, and of these the ones at `few` in detail."""
        self.rows, self.few = rows, rows[few]
        return self

    def of(self, name):
        """What the features of this name depend on: the images."""
        return [self.key, self.few.tolist()] if name in ("cells", "spectra") else self.key

    def load(self, names, networks):
        """Fills `features` by the FeatureNetworks, from the cache if they are there."""
        paths = {name: cache_path(self.cache, name, [networks.keys[name], self.of(name)])
                 for name in sorted(set(names) - set(self.features))}
        found = {name: read_cache(path) for name, path in paths.items() if name != "lpips"}
        self.features |= {name: value for name, value in found.items() if value is not None}
        missing = paths.keys() - self.features.keys()
        if missing:
            self.features |= self.extract(missing, networks)
        for name in missing - {"lpips"}:  # LPIPS points take 1 GB for 400 images
            write_cache(paths[name], self.features[name])

    def extract(self, names, networks):
        """{name: features} in one pass over the images."""
        parts = {name: [] for name in names}
        lpips = parts.pop("lpips", None) is not None
        for name in names:  # networks are built before the thread that makes batches runs
            networks["embeddings" if name == "cells" else name]
        is_few = torch.isin(torch.arange(self.n), self.few)
        bar = tqdm(total=self.n, desc=f"features of {self.name}", unit="img", disable=None,
                   leave=False)

        def passing():
            done = 0
            for batch in self.batches(torch.arange(self.n)):
                few = is_few[done : done + len(batch)]
                for name, rows in _extracted(batch, few, parts, networks).items():
                    parts[name].append(rows)
                done += len(batch)
                bar.update(len(batch))
                yield batch

        with bar:
            if lpips:
                parts["lpips"] = perceptual.lpips_points(
                    (resized(batch, networks.lpips_size) for batch in passing()),
                    networks["lpips"], self.n)
            else:
                for _ in passing():
                    pass
        return {name: torch.cat(rows) if name != "lpips" else rows for name, rows in parts.items()}


@weights.full_precision
@torch.inference_mode()
def _extracted(batch, few, names, networks):
    """{name: features of a batch}, cells and spectra of the images where `few` is true."""
    found = {}
    if "features" in names:
        found["features"] = features(batch, networks["features"])
    if "cells" in names:
        network = networks["embeddings"]
        pairs = [network.with_cells(part) for part in _on_device(weights.checked(batch), network)]
        embeddings, cells = (torch.cat(parts).cpu() for parts in zip(*pairs, strict=True))
        found |= {"embeddings": embeddings, "cells": cells[few]}
    elif "embeddings" in names:
        found["embeddings"] = features(batch, networks["embeddings"])
    if "spectra" in names and few.any():
        found["spectra"] = features(batch[few], networks["spectra"])
    return {name: found[name] for name in names if name in found}


def photo_set(data, split, size, fit, batch_size=32):
    """The ImageSet of a split's photos; they are read for each pass, not held."""
    images, fingerprint = photos.load_images(data, split, size, fit)

    def batches(rows):
        images, _ = photos.load_images(data, split, size, fit)
        return photos.ahead(images[part] for part in rows.split(batch_size))

    return ImageSet(split, fingerprint, len(images), batches, Path(data) / ".cache")


# What is compared ----------------------------------------------------------------------------

NEAREST = 32  # photos kept of each cell's distances: enough for any random half of the photos


def spaces(networks, train, validation, samples=None):
    """{name: sets of points}, training, validation photos and samples, for the rows of the table.

    "features", "embeddings", "lpips": of the images that are compared, in equal number. "all
    embeddings", "all lpips": of all photos, to look for copies among them. "cells": of few images.
    "spectra": of few training photos and samples. Without samples (for REAL) they are those of the
    photos alone. Where points are few enough, they are views.
    """
    sets = [train, validation, *([samples] if samples else [])]
    found = {}
    if networks.lpips:
        found["all lpips"] = lpips_views(networks, *sets)
        found["lpips"] = metrics.distance_views(
            *(x[images.rows] for x, images in zip(found["all lpips"], sets, strict=True)))
    for images in sets:
        images.load(networks.names, networks)
    embeddings = [images.features["embeddings"] for images in sets]
    distribution = [images.features.get("features", own)[images.rows]
                    for images, own in zip(sets, embeddings, strict=True)]
    found["features"] = metrics.product_views(*distribution)
    found["all embeddings"] = metrics.distance_views(*embeddings)
    found["embeddings"] = metrics.distance_views(
        *(x[images.rows] for x, images in zip(found["all embeddings"], sets, strict=True)))
    spectra = [train.features["spectra"], sets[-1].features["spectra"]]
    if spectra[0].shape[1] >= 16:
        found["spectra"] = spectra
    if samples:
        found["cells"] = cell_views(networks, *sets)
    return found


def lpips_views(networks, *sets):
    """Training, validation photos and samples as views of their LPIPS distances, which are kept on
    disk; as LpipsPoints if they are too many."""
    path = cache_path(sets[-1].cache, "lpips", [networks.keys["lpips"],
                                                *(images.key for images in sets)])
    few = sum(images.n for images in sets) <= metrics.VIEWED
    matrix = read_cache(path) if few else None
    if matrix is None:
        known = lpips_views(networks, *sets[:2])[0].matrix if few and sets[2:] else None
        for images in sets:
            images.load({*networks.names, "lpips"}, networks)
        points = [images.features["lpips"] for images in sets]
        if not few:
            return points
        matrix = metrics.distance_views(*points, known=known)[0].matrix
        write_cache(path, matrix)
    return [metrics.Distances(matrix, rows)
            for rows in torch.arange(len(matrix)).split([images.n for images in sets])]


def cell_views(networks, train, validation, samples):
    """Training, validation photos and samples, few of each, as views of metrics.cell_distances.

    The distances to the NEAREST photos of each cell are kept on disk; farther ones are infinite.
    """
    path = cache_path(samples.cache, "pieces", [networks.keys["cells"], NEAREST, *(
        images.of("cells") for images in (train, validation, samples))])
    nearest, sides = read_cache(path), (train, validation)
    if nearest is None:
        bar = tqdm(sides, desc=f"pieces of {samples.name}", disable=None, leave=False)
        nearest = []
        for images in bar:
            distances = metrics.cell_distances(images.features["cells"].to(networks.device),
                                               samples.features["cells"])
            values, indices = distances.topk(min(NEAREST, len(images.few)), 0, largest=False)
            nearest.append((values, indices.int()))
        write_cache(path, nearest)
    few = [len(images.few) for images in sides]
    matrix = torch.cat([
        torch.full((n, *values.shape[1:]), torch.inf).scatter_(0, indices.long(), values)
        for n, (values, indices) in zip(few, nearest, strict=True)])
    rows = torch.arange(len(matrix)).split(few)
    return [*(metrics.Distances(matrix, own) for own in rows),
            metrics.Distances(matrix, torch.arange(len(samples.few)))]


def piece_sources(train, samples, sides, nearest):
    """The four samples with the most cells nearer to training, and where these come from: {sample:
    [(training photo, cells of the sample, the photo's cells that they are like)]}, of the three
    photos that most are of. sides, nearest: of metrics.piece_sides."""
    found = {}
    for i in (sides > 0).sum(1).argsort(descending=True, stable=True)[:4].tolist():
        nearer, sources = sides[i] > 0, []
        for j, _ in Counter(nearest[i][nearer].tolist()).most_common(3):
            own = (nearer & (nearest[i] == j)).nonzero()[:, 0]
            likeness = samples.features["cells"][i, own] @ train.features["cells"][j].T
            sources.append((train.few[j].item(), own, likeness.argmax(1)))
        found[samples.few[i].item()] = sources
    return found


class Components(NamedTuple):
    """Two principal components, and the shares of all variance that they explain."""

    mean: torch.Tensor  # (d,)
    directions: torch.Tensor  # (2, d)
    shares: torch.Tensor  # (2,)

    def project(self, x):
        """Coordinates (n, 2) of features x (n, d)."""
        return (torch.as_tensor(x).double() - self.mean) @ self.directions.T


def principal_components(x):
    """The first two Components of features x (n, d), n >= 2."""
    x = x.double()
    mean = x.mean(0)
    _, lengths, directions = torch.linalg.svd(x - mean, full_matrices=False)
    shares = lengths.square() / lengths.square().sum().clamp(min=1e-30)
    return Components(mean, directions[:2], shares[:2])
