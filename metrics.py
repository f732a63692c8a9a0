"""Numbers that compare two sets of images, and the networks that turn images into features.

    network = inception_network()                      # or weights='random', or a file
    x, y = features(photos, network), features(samples, network)
    frechet_distance(x, y), interval(frechet_distance, x, y)

Images are uint8 tensors or arrays (n, 3, h, w), features float tensors or arrays (n, d).
A distance is a function of two blocks of points that returns their (n, m) distances; points
are anything with a length that slices and indexes: features, images, LpipsFeatures. To use a
known distance matrix again, let the points be its row numbers:

    adversarial_accuracy(rows, columns, distance=lambda i, j: matrix[i][:, j])

Everything is computed block by block, and every random draw has its own seed: the global
random state is neither read nor changed.
In this order: networks; weights; features; distances between distributions; distances between
points; nearest neighbours; confidence intervals; the numbers of a table; principal components.
torchvision and lpips take a second to import: the functions that need them do it.
"""

import hashlib
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

BLOCK = 2048  # rows and columns of a distance matrix held at once
LISTED = 32  # neighbours listed of a point among n: enough for any random half of them
FEWEST_FOR_INFINITY = 200  # points a set: the trend of fewer says little


class WeightsError(RuntimeError):
    """Weights that are missing, damaged, or another network's. The message is one line."""


# Networks ---------------------------------------------------------------------------------


def inception_network(weights="pretrained", device="cpu", resize="bilinear"):
    """The 2015-12-05 Inception behind FID: uint8 images (n, 3, h, w) -> (n, 2048) features.

    weights: 'pretrained' (pytorch-fid's release file through torch.hub's cache), 'random'
    (seeded; not comparable with published numbers), or the path of such a state dict.
    resize: to 299x299, 'bilinear' without antialiasing, as pytorch-fid does, or 'clean',
    antialiased bicubic (Parmar et al. 2022, as in the package clean-fid).
    Raises WeightsError. Source: Heusel et al. 2017, Szegedy et al. 2016.
    """
    prepare = {"bilinear": _prepare_fid, "clean": _prepare_clean_fid}[resize]
    net = _network("inception", _fid_inception, weights)
    net.fc = nn.Identity()
    return _Extractor(net, prepare).to(device)


def resnet50_network(weights="pretrained", device="cpu"):
    """torchvision's ResNet-50: uint8 images (n, 3, h, w) -> (n, 2048) pooled embeddings.

    The whole image is resized to 224x224 with antialiasing; nothing is cropped. 'pretrained'
    is IMAGENET1K_V1 (`resnet50(pretrained=True)` of the study's time): V2's training tricks
    raise accuracy and blur the distances between embeddings (Kornblith et al. 2021).
    weights: as for inception_network. Raises WeightsError. Source: He et al. 2016.
    """
    from torchvision.models import resnet50

    net = _network("resnet50", resnet50, weights)
    net.fc = nn.Identity()
    return _Extractor(net, _prepare_imagenet).to(device)


def lpips_network(net="alex", weights="pretrained", device="cpu"):
    """The lpips package's module with trunk 'alex', 'vgg' or 'squeeze': two batches of images
    in [-1, 1], (n, 3, h, w) each -> (n, 1, 1, 1) distances.

    weights: of the trunk, 'pretrained' or the path of torchvision's state dict of AlexNet,
    VGG-16 or SqueezeNet 1.1, or 'random' (seeded). The learned linear heads come with the
    package. Raises WeightsError. Source: Zhang et al. 2018.
    """
    from lpips import LPIPS

    def build():
        with warnings.catch_warnings():  # lpips builds its trunks by torchvision's old arguments
            warnings.simplefilter("ignore", UserWarning)
            return LPIPS(net=net, pnet_rand=True, verbose=False)

    module = _network(net, build, weights, trunk=lambda module: module.net)
    return module.to(device, memory_format=torch.channels_last)


class _Extractor(nn.Module):
    """A network with the preparation of its input: uint8 images -> features."""

    def __init__(self, net, prepare):
        super().__init__()
        _fuse_batch_norm(net)
        self.net = net.to(memory_format=torch.channels_last)
        self.prepare = prepare

    def forward(self, images):
        return self.net(self.prepare(images.float()).contiguous(memory_format=torch.channels_last))


def _prepare_fid(images):
    return 2 * F.interpolate(images / 255, size=(299, 299), mode="bilinear") - 1


def _prepare_clean_fid(images):
    images = F.interpolate(images, size=(299, 299), mode="bicubic", antialias=True)
    return (images.clamp(0, 255) - 128) / 128


def _prepare_imagenet(images):
    images = F.interpolate(images / 255, size=(224, 224), mode="bilinear", antialias=True)
    mean = images.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    return (images - mean) / images.new_tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def _fid_inception():
    """torchvision's Inception but for its pools, which are TensorFlow's.

    The average leaves the padding out of the count, and the last block has a maximum where
    every other block has an average.
    """
    from torchvision.models import Inception3, inception

    def average_pool(x):
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def max_pool(x):
        return F.max_pool2d(x, 3, stride=1, padding=1)

    class InceptionA(inception.InceptionA):
        def _forward(self, x):
            return [
                self.branch1x1(x),
                self.branch5x5_2(self.branch5x5_1(x)),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                self.branch_pool(average_pool(x)),
            ]

    class InceptionC(inception.InceptionC):
        def _forward(self, x):
            y = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
            return [
                self.branch1x1(x),
                self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
                self.branch7x7dbl_5(self.branch7x7dbl_4(y)),
                self.branch_pool(average_pool(x)),
            ]

    class InceptionE(inception.InceptionE):
        pool = staticmethod(average_pool)

        def _forward(self, x):
            y, z = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
            return [
                self.branch1x1(x),
                *(self.branch3x3_2a(y), self.branch3x3_2b(y)),
                *(self.branch3x3dbl_3a(z), self.branch3x3dbl_3b(z)),
                self.branch_pool(self.pool(x)),
            ]

    blocks = [inception.BasicConv2d, InceptionA, inception.InceptionB, InceptionC,
              inception.InceptionD, InceptionE, inception.InceptionAux]
    net = Inception3(1008, False, inception_blocks=blocks, init_weights=False)
    net.Mixed_7c.pool = max_pool
    return net


def _fuse_batch_norm(module):
    """Fold every batch norm into the convolution registered just before it."""
    children = list(module.named_children())
    for (name, conv), (next_name, norm) in zip(children, children[1:], strict=False):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, next_name, nn.Identity())
    for child in module.children():
        _fuse_batch_norm(child)


# Weights ----------------------------------------------------------------------------------


TORCHVISION = "https://download.pytorch.org/models/"
WEIGHTS = {
    "inception": "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    "resnet50": TORCHVISION + "resnet50-0676ba61.pth",
    "alex": TORCHVISION + "alexnet-owt-7be5be79.pth",
    "vgg": TORCHVISION + "vgg16-397923af.pth",
    "squeeze": TORCHVISION + "squeezenet1_1-b8a52dc0.pth",
}


def _network(name, build, weights, trunk=lambda net: net):
    """Build a network in evaluation mode without gradients, its trunk with the named weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = build()
        if str(weights) == "random":
            _randomize(trunk(net))
    if str(weights) != "random":
        path = _pretrained(name) if str(weights) == "pretrained" else Path(weights)
        _load(trunk(net), path, name)
    return net.eval().requires_grad_(False)


@torch.no_grad()
def _randomize(net):
    """He-initialised convolutions, and the batch-norm statistics of seeded noise of all scales.

    Without those statistics the activations of a deep random network all point one way, and
    it can hardly tell photos apart. The noise is mostly grey, as photos are.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if norms:
        images = torch.zeros(16, 3, 224, 224)
        for size in (1, 2, 4, 8, 16, 32, 64, 128):
            noise = torch.randn(16, 1, size, size) + torch.randn(16, 3, size, size) / 4
            images += F.interpolate(noise, size=images.shape[2:], mode="bilinear")
        net.eval()
        for norm in norms:
            norm.train().momentum = 1.0
        net(images / images.std())


def _pretrained(name):
    """Path of the pretrained weights in torch.hub's cache, downloaded if need be, verified."""
    url = WEIGHTS[name]
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    prefix = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)[1]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"cannot download {url} ({_first_line(error)}): save it as {path}, "
                "or choose --weights random"
            ) from error
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if not digest.hexdigest().startswith(prefix):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 begins with {digest.hexdigest()[:8]}, not {prefix}; "
            f"replace it by {url}, or choose --weights random"
        )
    return path


def _load(net, path, name):
    """Load a torchvision state dict; trunks of lpips keep the numbers of its layers."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"cannot read weights from {path}: {_first_line(error)}") from error
    names = {key: re.sub(r"^slice\d+\.", "features.", key) for key in net.state_dict()}
    try:
        if any(key != name for key, name in names.items()):
            state = {key: state[name] for key, name in names.items()}
        net.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise WeightsError(f"{path} does not hold the weights of {name}") from error


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


# Features ---------------------------------------------------------------------------------

# Convolutions on a GPU round to TensorFloat-32 (10 bits) by default: too coarse for a metric.
_full_precision = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@_full_precision
@torch.inference_mode()
def features(images, network, batch_size=32, progress=None):
    """Features of uint8 images (n, 3, h, w): a float32 tensor (n, d) on the CPU.

    network: from inception_network or resnet50_network. progress: called with the number of
    images done after each batch, such as a tqdm bar's update. A row depends on its image alone,
    up to 1e-5 of its size.
    """
    images = _images(images)
    device = next(network.parameters()).device
    rows = []
    for batch in images.split(batch_size):
        rows.append(network(batch.to(device, non_blocking=True)).float().cpu())
        if progress:
            progress(len(batch))
    return torch.cat(rows)


def _images(images):
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or not len(images):
        raise ValueError(
            f"images must be uint8 (n, 3, h, w) with n >= 1, not {images.dtype} "
            f"{tuple(images.shape)}"
        )
    return images


def _features(*sets, least=1):
    """Tensors of features, checked: 2-d, finite, of one width, with enough rows."""
    sets = [torch.as_tensor(x).cpu() for x in sets]
    for x in sets:
        if x.ndim != 2 or x.shape[1] != sets[0].shape[1] or len(x) < least:
            raise ValueError(
                f"features must be (n, d) with one d and n >= {least}, not "
                f"{[tuple(x.shape) for x in sets]}"
            )
        if not all(block.isfinite().all() for block in x.split(BLOCK)):
            raise ValueError("features are not finite")
    return sets


# Distances between distributions ----------------------------------------------------------


def frechet_distance(x, y):
    """Frechet distance of Gaussians fitted to features x (n, d) and y (m, d): FID if Inception's.

    |mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), Heusel et al. 2017, eq. 6. With
    C_x = A'A and C_y = B'B the last trace is the nuclear norm of A B' (min(n, d) x min(m, d)),
    so no root of a near-singular matrix is taken: the result is real and >= 0 for any n, m >= 2.
    Raises ValueError for other shapes or non-finite features. n < d makes FID biased upward
    (see frechet_distance_infinity).
    """
    x, y = _features(x, y, least=2)
    (mean_x, a), (mean_y, b) = _gaussian(x), _gaussian(y)
    root = torch.linalg.svdvals(a @ b.T).sum()
    distance = (mean_x - mean_y).square().sum() + a.square().sum() + b.square().sum() - 2 * root
    return max(distance.item(), 0.0)


def _gaussian(x):
    """Mean (d,) and a factor A (min(n, d), d) of the covariance A'A, in float64."""
    mean = x.mean(0, dtype=torch.float64)
    n, d = x.shape
    if n <= d:
        factor = x - mean
    else:  # QR by blocks: the rows seen so far are as good as their triangular factor
        factor = torch.empty(0, d, dtype=torch.float64)
        for block in x.split(BLOCK + d):
            factor = torch.linalg.qr(torch.cat([factor, block - mean]), mode="r").R
    return mean, factor / (n - 1) ** 0.5


def kernel_distance(x, y, subsets=100, subset_size=1000, seed=0):
    """Kernel distance (KID if Inception's features) of x (n, d) and y (m, d): (mean, std).

    Unbiased MMD^2 with the kernel (x.y / d + 1)^3 over random subsets of both, mean and
    standard deviation; Binkowski et al. 2018, eq. 4. subset_size is capped to n and m (at the
    cap of equal sets every subset is the whole, and std 0: see interval). The draws are
    torch-fidelity's for the same seed. Raises ValueError for bad shapes or non-finite features.
    """
    x, y = _features(x, y, least=2)
    size = min(subset_size, len(x), len(y))
    if size == len(x) == len(y):
        subsets = 1  # all are the whole
    draw = np.random.RandomState(seed)  # its stream never changes between versions
    draws = [
        tuple(torch.from_numpy(draw.choice(len(z), size, replace=False)) for z in (x, y))
        for _ in range(subsets)
    ]
    if len(x) * len(y) > subsets * size**2:
        values = torch.cat([_mmd(x[i], y[j], torch.ones(2, size, 1).double()) for i, j in draws])
    else:  # each entry of the whole kernel matrix serves all subsets
        members = [torch.zeros(len(z), subsets, dtype=torch.float64) for z in (x, y)]
        for column, pair in enumerate(draws):
            for member, rows in zip(members, pair, strict=True):
                member[rows, column] = 1
        values = _mmd(x, y, members)
    return values.mean().item(), values.std(correction=0).item()


def _mmd(x, y, members):
    """Unbiased MMD^2 of subsets, given as columns of 0 and 1: members[0] (n, s), [1] (m, s)."""

    def kernel_sum(a, b, a_members, b_members):
        total = 0
        for rows, member in zip(a.split(BLOCK), a_members.split(BLOCK), strict=True):
            kernel = (rows @ b.T / b.shape[1]).add_(1).pow_(3)
            total = total + (kernel @ b_members * member).sum(0)
        return total

    def within(a, member):
        diagonal = (a.square().mean(1) + 1) ** 3
        return (kernel_sum(a, a, member, member) - diagonal @ member) / (size * (size - 1))

    x, y, size = x.double(), y.double(), members[0].sum(0)
    across = kernel_sum(x, y, *members) / size**2
    return within(x, members[0]) + within(y, members[1]) - 2 * across


class Extrapolation(NamedTuple):
    """A distance for infinitely many points, and the fit: distances at sizes, over 1 / sizes."""

    value: float
    sizes: list[int]
    distances: list[float]


def frechet_distance_infinity(x, y, points=15, seed=0):
    """Frechet distance of features x (n, d), y (m, d) without the bias of small sets (FID_inf).

    The distance of random subsets of both sets, from half of the smaller set to all of it,
    regressed on 1 / size: the intercept. Chong & Forsyth 2020, sec. 4, who subsample one set
    against a large reference; both are small here. The bias is linear in 1 / n only for n well
    above the number of directions that matter: below, what is returned is still too large, if
    less so than the plain distance. Raises ValueError as frechet_distance, and for n or m < 8.
    """
    x, y = _features(x, y, least=8)
    rng = np.random.default_rng(seed)
    n = min(len(x), len(y))
    sizes = np.unique(np.linspace(n // 2, n, points).astype(int)).tolist()
    distances = [
        frechet_distance(*(z[rng.permutation(len(z))[:size]] for z in (x, y))) for size in sizes
    ]
    _, intercept = np.polyfit(1 / np.array(sizes), distances, 1)
    return Extrapolation(float(intercept), sizes, distances)


# Distances between points -----------------------------------------------------------------


def pairwise_cosine(x, y):
    """Cosine distances 1 - cos in [0, 2] between rows of x (n, d) and y (m, d): float32 (n, m).

    Computed in float64. What is below 1e-10 (rows equal to about 1e-5, the accuracy of
    features) is 0, so that copies are at no distance, whatever the order of summation. A zero
    row is at distance 1 of everything.
    """
    x, y = (F.normalize(rows.double(), dim=1) for rows in _features(x, y))
    distances = 1 - x @ y.T
    return distances.masked_fill_(distances < 1e-10, 0).float()


CHUNK = 2**14  # coordinates of LPIPS points held at once
HALF_SCALE = 2.0**8  # keeps LPIPS coordinates of all image sizes well inside float16's range


@dataclass(frozen=True)
class LpipsFeatures:
    """Images as LPIPS sees them: points whose squared Euclidean distances are LPIPS distances.

    Made by lpips_features; has a length and is indexed like a tensor, for any function here
    that takes a distance. The coordinates are in an unnamed temporary file (in TMPDIR), which
    goes with the last reference to it.
    """

    file: BinaryIO  # pieces of `widths` coordinates of all `total` images, piece after piece
    dtype: np.dtype
    widths: list[int]
    total: int
    rows: Tensor  # the images among them that these points are

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return replace(self, rows=self.rows[index])

    def pieces(self):
        """The coordinates (n, width), piece after piece."""
        first, last = self.rows.min().item(), self.rows.max().item()
        start = 0
        for width in self.widths:
            self.file.seek((start * self.total + first * width) * self.dtype.itemsize)
            piece = np.fromfile(self.file, self.dtype, (last - first + 1) * width)
            yield torch.from_numpy(piece).view(-1, width)[self.rows - first]
            start += width


@_full_precision
@torch.inference_mode()
def lpips_features(images, network, batch_size=None, progress=None, total=None):
    """Points for pairwise_lpips of uint8 images (n, 3, h, w), by one forward pass each.

    images: with `total`, the number of images in all, an iterable of such tensors instead, for
    more images than memory holds. network: from lpips_network. batch_size: by default 2^20
    pixels. progress: as for features. The temporary file takes 2.6 MB an image at 256x256 with
    'alex', 21 MB at 1024x1024 (13 times as much with 'vgg'). Raises OSError when the disk is
    full, ValueError where the images are not `total` of one size.
    """
    from lpips import normalize_tensor

    if total is None:
        images, total = [_images(images)], len(images)
    device = next(network.parameters()).device
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (it lives as long as the points)
    done, dtype, widths, shape = 0, None, None, None
    for batch in _split(images, batch_size):
        if shape not in (None, batch.shape[1:]) or done + len(batch) > total:
            raise ValueError(f"LPIPS features of more than {total} images, or of several sizes")
        shape = batch.shape[1:]
        # The rounding errors of float16 average out over the many coordinates of a large image.
        dtype = np.dtype(np.float16 if batch[0, 0].numel() >= 512**2 else np.float32)
        maps, widths, start = network.scaling_layer(batch.to(device).float() / 127.5 - 1), [], 0
        for layer, head in zip(network.net.children(), network.lins, strict=True):
            maps = layer(maps)
            scale = (head.model[-1].weight / maps[0, 0].numel()).sqrt() * HALF_SCALE
            points = normalize_tensor(maps).mul_(scale).flatten(1).cpu().numpy()
            for piece in np.split(points, range(CHUNK, points.shape[1], CHUNK), axis=1):
                widths.append(piece.shape[1])
                file.seek((start * total + done * widths[-1]) * dtype.itemsize)
                file.write(piece.astype(dtype, order="C"))
                start += widths[-1]
        done += len(batch)
        if progress:
            progress(len(batch))
    if done < total:
        raise ValueError(f"LPIPS features of {done} images, not {total}")
    return LpipsFeatures(file, dtype, widths, total, torch.arange(total))


def _split(sets, batch_size):
    """The images of all sets in batches, by default of 2^20 pixels."""
    for images in map(_images, sets):
        yield from images.split(batch_size or max(1, 2**20 // images[0, 0].numel()))


@torch.inference_mode()
def pairwise_lpips(x, y, network):
    """LPIPS between all pairs of x (n) and y (m): float32 (n, m), on the CPU.

    x, y: uint8 images (n, 3, h, w) of one size, or their lpips_features, which spare the forward
    passes when a set is used again. LPIPS (Zhang et al. 2018, eq. 1) is a weighted squared
    distance of unit-normalised maps: n + m forward passes and a matrix product give what the
    module gives pair by pair, to 1e-5; what is below 1e-5 is 0. Raises ValueError.
    """
    same = x is y
    x = x if isinstance(x, LpipsFeatures) else lpips_features(x, network)
    y = x if same else y if isinstance(y, LpipsFeatures) else lpips_features(y, network)
    if x.widths != y.widths:
        raise ValueError("LPIPS compares images of one size by one network")
    device = next(network.parameters()).device
    distances = torch.zeros(len(x), len(y), dtype=torch.float64)
    for a, b in zip(x.pieces(), y.pieces(), strict=True):
        a, b = a.to(device).float(), b.to(device).float()
        center = a.mean(0)  # distances don't change, their rounding errors shrink
        a, b = a - center, b - center
        squares = a.square().sum(1)[:, None] + b.square().sum(1)
        distances += (squares - 2 * (a @ b.T)).cpu()
    distances /= HALF_SCALE**2
    return distances.masked_fill_(distances < 1e-5, 0).float()


# Nearest neighbours -----------------------------------------------------------------------


TIE = 1e-5  # relative: the accuracy of features, so of distances, from batch to batch


class Neighbors(NamedTuple):
    """The k nearest points of one set to each of n points: `distances` (n, k) in float64, nearest
    first, and their `indices` (n, k) in the set, of equals the first."""

    distances: Tensor
    indices: Tensor

    def among(self, rows, members):
        """Distances (len(rows),) of the points `rows` to the nearest among `members` of the set.

        rows, members: index tensors. Infinite where none of the k neighbours listed is a member:
        for a random half of the set, with k = 32, one time in 4,000,000,000.
        """
        member = torch.zeros(int(max(self.indices.max(), members.max())) + 1, dtype=torch.bool)
        member[members] = True
        listed = member[self.indices[rows]]
        return self.distances[rows].masked_fill(~listed, torch.inf).min(1).values


def nearest_neighbors(x, y, k, distance=pairwise_cosine, leave_out_self=False):
    """The k nearest of the points y to each of the points x, as Neighbors.

    leave_out_self: x is y, and no point is its own neighbour. Block by block: memory grows with
    len(x) * k. Raises ValueError if there are fewer than k.
    """
    _check_k(k, len(y) - leave_out_self)
    nearest = []
    for i in range(0, len(x), BLOCK):
        best = None
        for j in range(0, len(y), BLOCK):
            block = torch.as_tensor(distance(x[i : i + BLOCK], y[j : j + BLOCK])).double()
            if leave_out_self and i == j:
                block = block.clone().fill_diagonal_(torch.inf)
            best = _merge(best, block, j, k)
        nearest.append(best)
    return Neighbors(*map(torch.cat, zip(*nearest, strict=True)))


def mutual_neighbors(x, y, k, distance=pairwise_cosine):
    """(the k[0] nearest y to each x, the k[1] nearest x to each y), as two Neighbors.

    What two calls of nearest_neighbors give, with every distance computed once: the distance
    must be symmetric. k: a number, or one for each direction. Raises ValueError.
    """
    k_x, k_y = (k, k) if isinstance(k, int) else k
    _check_k(k_x, len(y))
    _check_k(k_y, len(x))
    of_x, of_y = {}, {}
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            block = torch.as_tensor(distance(x[i : i + BLOCK], y[j : j + BLOCK])).double()
            of_x[i] = _merge(of_x.get(i), block, j, k_x)
            of_y[j] = _merge(of_y.get(j), block.T, i, k_y)
    return tuple(Neighbors(*map(torch.cat, zip(*blocks.values(), strict=True)))
                 for blocks in (of_x, of_y))


def _check_k(k, points):
    if not 1 <= k <= points:
        raise ValueError(f"k = {k} neighbours among {points} points")


def _merge(best, block, start, k):
    """The k nearest so far (or None) and the distances to points start, start + 1, ..., merged."""
    indices = torch.arange(start, start + block.shape[1]).expand(block.shape)
    if best:
        block = torch.cat([best.distances, block], 1)
        indices = torch.cat([best.indices, indices], 1)
    if k == 1:
        values, order = block.min(1, keepdim=True)
    else:  # topk promises no order of equals; clones, not views of the whole
        values, order = (ranked[:, :k].clone() for ranked in block.sort(dim=1, stable=True))
    return Neighbors(values, indices.gather(1, order))


def adversarial_accuracy(real, fake, distance=pairwise_cosine):
    """Nearest-neighbour adversarial accuracy of two sets of n >= 2 points: a number in [0, 1].

    (mean_i 1[d_TS(i) > d_TT(i)] + mean_i 1[d_ST(i) > d_SS(i)]) / 2, T real and S fake, d the
    distance to the nearest other point; Yale et al. 2020, eq. 1. 0.5 is ideal, 1 is far from
    real, 0 is copied. "Greater" means by more than 1e-5 of the distance: a photo and its copy are
    equally far from any third, and rounding must not decide between them. A tie counts as
    near the other set, so duplicates within the real set change nothing about copies of them.
    Raises ValueError for sets of unequal size.
    """
    if len(real) != len(fake) or len(real) < 2:
        raise ValueError(
            f"adversarial accuracy of {len(real)} and {len(fake)} points: "
            "the sets must be equally large, with 2 points or more"
        )
    across = mutual_neighbors(real, fake, 1, distance)
    within = [nearest_neighbors(points, points, 1, distance, leave_out_self=True)
              for points in (real, fake)]
    rows = torch.arange(len(real))
    return listed_accuracy(across, within, rows, rows)


def listed_accuracy(across, within, real_rows, fake_rows):
    """adversarial_accuracy of some real and as many fake points, from lists of their neighbours.

    across: Neighbors of the real points among the fake and of the fake among the real, within:
    of the real among themselves and of the fake. Lists of 32 serve every random half of the
    sets (see Neighbors.among): that is what makes intervals cheap at any size.
    """
    rows, apart = (real_rows, fake_rows), 0
    for side in (0, 1):
        own, other = rows[side], rows[1 - side]
        inner = within[side].among(own, own) * (1 + TIE)
        apart += (across[side].among(own, other) > inner).sum().item()
    return apart / (2 * len(real_rows))


def privacy_loss(train, validation, fake, distance=pairwise_cosine):
    """Adversarial accuracy on validation less that on train: a number in [-1, 1].

    Above 0, the fake points are nearer to the training points than to others of the same
    kind: training data leaks (Yale et al. 2020, eq. 2). Three sets of one size, else ValueError.
    """
    return adversarial_accuracy(validation, fake, distance) - adversarial_accuracy(
        train, fake, distance
    )


def precision_recall_density_coverage(real, fake, k=5):
    """Dict of precision, recall, density and coverage of fake (m, d) against real (n, d).

    Balls around each point reach to its k-th neighbour in its own set, Euclidean; Kynkaanniemi
    et al. 2019 (precision, recall), Naeem et al. 2020 (density, coverage), and the numbers of
    the package prdc. All in [0, 1] but density (>= 0). Raises ValueError if k >= n or k >= m.
    """
    real, fake = _features(real, fake, least=k + 1)
    real_radii, fake_radii = (
        nearest_neighbors(x, x, k, _pairwise_euclidean, leave_out_self=True)[0][:, -1]
        for x in (real, fake)
    )
    balls = torch.zeros(len(fake))  # of real points, around each fake one
    recalled, covered = [], []
    for rows, radii in zip(real.split(BLOCK), real_radii.split(BLOCK), strict=True):
        nearest = torch.full((len(rows),), torch.inf)
        inside = torch.zeros(len(rows), dtype=torch.bool)
        for j in range(0, len(fake), BLOCK):
            distances = _pairwise_euclidean(rows, fake[j : j + BLOCK])
            balls[j : j + BLOCK] += (distances < radii[:, None]).sum(0)
            inside |= (distances < fake_radii[j : j + BLOCK]).any(1)
            nearest = nearest.minimum(distances.min(1).values)
        recalled.append(inside)
        covered.append(nearest < radii)
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": balls.double().mean().item() / k,
        "coverage": torch.cat(covered).double().mean().item(),
    }


def _pairwise_euclidean(x, y):
    """Computed in float64 and rounded to float32, so that equal distances stay equal."""
    x, y = x.double(), y.double()
    squares = x.square().sum(1)[:, None] + y.square().sum(1)
    return squares.addmm_(x, y.T, alpha=-2).clamp_(min=0).sqrt_().float()


QUANTILE = 0.01  # of validation photos, nearer to training photos than a suspected copy is not


class CopyTest(NamedTuple):
    """Result of copy_test: `indices` of the suspects, nearest first, `share` of them among the
    fake points, the `threshold`; of every fake point the `distances` (n,) to and the `nearest`
    (n,) of the training points."""

    indices: list[int]
    share: float
    threshold: float
    distances: Tensor
    nearest: Tensor


def copy_test(fake, train, validation, distance=pairwise_cosine):
    """Which fake points are nearer to a training point than unseen photos ever are? A CopyTest.

    The suspects are nearer than the 0.01 quantile of the distances of validation points to
    their nearest training points. By chance, that is a share of 0.01: a larger one, and each
    suspect beside its neighbour, is what to look at.
    """
    return listed_copies(nearest_neighbors(fake, train, 1, distance),
                         nearest_neighbors(validation, train, 1, distance))


def listed_copies(fake, validation):
    """copy_test from the Neighbors of fake and of validation points among the training points."""
    distances, nearest = fake.distances[:, 0], fake.indices[:, 0]
    threshold = validation.distances[:, 0].quantile(QUANTILE).item()
    order = distances.argsort(stable=True)
    suspects = order[distances[order] < threshold].tolist()
    return CopyTest(suspects, len(suspects) / len(distances), threshold, distances, nearest)


# Confidence intervals ---------------------------------------------------------------------


def interval(statistic, *sets, level=0.95, replicates=200, seed=0, bounds=(-np.inf, np.inf)):
    """Confidence interval (low, high) of statistic(*sets) for the sampling of the sets' points.

    statistic: any function here that returns a number, or several as an array, then low and
    high are lists. bounds: its range, to which the interval is cut.

    By the delete-half jackknife (Shao & Wu 1989): statistic +- z times its standard deviation
    over random halves of all sets, drawn without replacement. The bootstrap, with
    replacement, breaks these numbers: a point drawn twice is its own neighbour at distance 0,
    so neighbours within a set look closer (adversarial accuracy, precision, ..., copy_test),
    and it lowers the rank of a covariance, so Frechet distances shift upward beyond their own
    interval. Halves keep all points distinct, and the jackknife is consistent for numbers that
    are no smooth function of the data. Where the variance falls faster than 1 / n (two sets of
    one distribution, n < d) the interval is too wide, never too narrow. It is about the number
    at this n: it doesn't cover the bias of small sets (see frechet_distance_infinity).
    """
    rng = np.random.default_rng(seed)
    halves = [
        statistic(*(points[rng.permutation(len(points))[: len(points) // 2]] for points in sets))
        for _ in range(replicates)
    ]
    margin = NormalDist().inv_cdf((1 + level) / 2) * np.std(halves, axis=0, ddof=1)
    value = np.asarray(statistic(*sets))
    return tuple(np.clip(value + side * margin, *bounds).tolist() for side in (-1, 1))


# The numbers of a table -------------------------------------------------------------------


class Measure(NamedTuple):
    """A statistic of sets that gives the numbers `names`, and the set sizes n that it needs."""

    names: list[str]
    statistic: Callable
    least: int = 2
    least_half: int = 2  # for an interval
    bounds: tuple = (-np.inf, np.inf)
    effort: float = 1.0  # the share of the replicates that it gets

    def values(self, n, *sets):
        """{name: number}; empty where n is too small."""
        if n < self.least:
            return {}
        return dict(zip(self.names, map(float, self.statistic(*sets)), strict=True))

    def intervals(self, n, *sets):
        """{name: [low, high]} by `interval`, of 200 random halves, of 20 above n = 1000."""
        if n < self.least or n // 2 < self.least_half:
            return {}
        replicates = max(10, int(self.effort * (200 if n <= 1000 else 20)))
        ends = interval(self.statistic, *sets, replicates=replicates, bounds=self.bounds)
        return dict(zip(self.names, map(list, zip(*ends, strict=True)), strict=True))


def inception_measures(references):
    """Measures of (a set of features for each name in references, ..., the samples' features).

    The first set is the training photos': precision and its like are against them.
    """

    def of_each(distance):
        return lambda *sets: [distance(x, sets[-1]) for x in sets[:-1]]

    def infinity(x, y):  # each of the 15 distances takes seconds where n > d
        return frechet_distance_infinity(x, y, 15 if len(x) <= x.shape[1] else 5).value

    def shares(*sets):
        return list(precision_recall_density_coverage(sets[0], sets[-1]).values())

    return [
        Measure([f"fid_{x}" for x in references], of_each(frechet_distance), bounds=(0, np.inf)),
        Measure([f"kid_{x}" for x in references], of_each(lambda x, y: kernel_distance(x, y)[0])),
        Measure(["precision", "recall", "density", "coverage"], shares, 6, 6,
                ([0, 0, 0, 0], [1, 1, np.inf, 1])),
        Measure([f"fid_infinity_{x}" for x in references],
                of_each(infinity),
                FEWEST_FOR_INFINITY, FEWEST_FOR_INFINITY // 2, effort=0.2)]


def neighbor_lists(x_name, y_name, x, y, n, distance):
    """{names: Neighbors} long enough for any n of the points and for halves of these.

    x_name + y_name: of the points x among y, and the reverse; x_name twice: of x among itself.
    """
    k_x, k_y = (min(len(z), -(-LISTED * len(z) // n)) for z in (x, y))
    if x_name == y_name:
        return {x_name * 2: nearest_neighbors(x, x, min(k_x, len(x) - 1), distance, True)}
    lists = mutual_neighbors(x, y, (k_y, k_x), distance)
    return dict(zip((x_name + y_name, y_name + x_name), lists, strict=True))


def neighbor_measure(lists, suffix=""):
    """Adversarial accuracies and privacy loss of row numbers of train, validation and samples.

    lists: Neighbors of train T, validation V and samples F by pairs: "TF" of T among F, ...
    """

    def accuracies(i, j, k):
        train, test = (listed_accuracy((lists[f"{x}F"], lists[f"F{x}"]),
                                       (lists[f"{x}{x}"], lists["FF"]), rows, k)
                       for x, rows in (("T", i), ("V", j)))
        return [train, test, test - train]

    names = [f"{name}{suffix}" for name in ("aa_train", "aa_test", "privacy_loss")]
    return Measure(names, accuracies, bounds=([0, 0, -1], [1, 1, 1]))


def real_measure(lists, suffix=""):
    """The same where validation photos stand in for samples: one number has a sense."""

    def accuracy(i, j):
        return [listed_accuracy((lists["TV"], lists["VT"]), (lists["TT"], lists["VV"]), i, j)]

    return Measure([f"aa_train{suffix}"], accuracy, bounds=(0, 1))


def copy_measure(lists, suffix=""):
    """The share of copy_test, of row numbers of all training and validation photos and samples."""

    def share(i, j, k):
        threshold = lists["VT"].among(j, i).quantile(QUANTILE)
        return [(lists["FT"].among(k, i) < threshold).double().mean()]

    return Measure([f"copies{suffix}"], share, bounds=(0, 1))


# Principal components ---------------------------------------------------------------------


class PrincipalComponents(NamedTuple):
    """mean (d,), components (k, d), each one's share of the variance (k,), all float64."""

    mean: Tensor
    components: Tensor
    explained: Tensor

    def project(self, x):
        """Coordinates (n, k) of features x (n, d)."""
        return (torch.as_tensor(x).double() - self.mean) @ self.components.T


def principal_components(train, k=2):
    """The first k principal components of features train (n, d), to project any others on.

    By singular values; the largest loading of each component is positive, so that panels
    keep their orientation. Raises ValueError if n <= k.
    """
    (train,) = _features(train, least=k + 1)
    mean, factor = _gaussian(train)
    _, values, components = torch.linalg.svd(factor, full_matrices=False)
    components = components[:k]
    sign = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
    variances = values.square()
    return PrincipalComponents(mean, components * sign, variances[:k] / variances.sum())
