"""Feature networks and their weights; images to features; features kept on disk.

    network = inception_network()                      # or weights="random", or a file
    x, y = features(photos, network), features(samples, network)

Images are uint8 tensors or arrays (n, 3, h, w), features float tensors (n, d). The global random
state is neither read nor changed. torchvision and lpips are imported where they are needed.
"""

import functools
import json
import re
import tempfile
import warnings
from collections import deque
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from common import cli, files


class WeightsError(RuntimeError):
    """Weights that are missing, damaged, or another network's. The message is one line."""


# Networks and their weights ------------------------------------------------------------------


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
    return _resnet50(weights, "embedding").to(device)


def pieces_network(weights="pretrained", device="cpu"):
    """What ResNet-50 sees in each cell of uint8 images (n, 3, h, w): unit vectors (n, 196, 128).

    Its second stage's map of the whole image at 224x224, averaged to 14x14 cells, row by row; 512
    channels projected on 128 random directions, which keep angles (Johnson & Lindenstrauss 1984)
    and favour no image. The third stage sees more of a cell's surroundings, and pieces less well.
    weights: as for inception_network. Raises WeightsError.
    """
    return _resnet50(weights, "cells").to(device)


def _resnet50(weights, *outputs):
    """Images -> embeddings, cells, or both of one pass, side by side: (n, 2048 + 196 * 128)."""
    from torchvision.models import resnet50

    net = _network("resnet50", resnet50, weights)
    stages = [net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2]
    heads = {"embedding": nn.Sequential(net.layer3, net.layer4, net.avgpool, nn.Flatten()),
             "cells": nn.Sequential(nn.AvgPool2d(2), _Cells())}
    last = _SideBySide(map(heads.get, outputs)) if outputs[1:] else heads[outputs[0]]
    return _Extractor(nn.Sequential(*stages, last), _prepare_imagenet)


class _Cells(nn.Module):
    """Maps (n, 512, h, w) -> projected unit vectors (n, h * w, 128)."""

    def forward(self, maps):
        directions = torch.randn(512, 128, generator=torch.Generator().manual_seed(0)).to(maps)
        cells = F.normalize(maps.flatten(2).transpose(1, 2), dim=2)
        return F.normalize(cells @ directions, dim=2)


class _SideBySide(nn.ModuleList):
    def forward(self, maps):
        return torch.cat([head(maps).flatten(1) for head in self], 1)


def dinov2_network(weights="pretrained", device="cpu"):
    """DINOv2's ViT-L/14 (Oquab et al. 2023): uint8 images (n, 3, h, w) -> (n, 1024) class tokens.

    Images are resized to 224x224, antialiased bicubic, as for the Fréchet distances of Stein et
    al. 2023. weights: as for inception_network, a path being of the authors' file.
    """
    def build():
        with torch.device("cpu" if str(weights) == "random" else "meta"):
            return _vision_transformer()

    net = _network("dinov2", build, weights, convert=_from_dinov2)
    return _Extractor(net, functools.partial(_prepare_imagenet, mode="bicubic")).to(device)


def _vision_transformer(side=16, width=1024, depth=24, heads=16):
    from torchvision.models import VisionTransformer

    net = VisionTransformer(14 * side, 14, depth, heads, width, 4 * width)
    net.heads = nn.Identity()
    return net


DINOV2_NAMES = (  # of the authors' state dict, and torchvision's
    ("cls_token", "class_token"), ("pos_embed", "encoder.pos_embedding"),
    ("patch_embed.proj", "conv_proj"), ("blocks.", "encoder.layers.encoder_layer_"),
    (".norm", ".ln_"), ("norm.", "encoder.ln."), ("attn.qkv.", "self_attention.in_proj_"),
    ("attn.proj", "self_attention.out_proj"), ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.3"))


def _from_dinov2(state, side=16):
    """torchvision's state dict of DINOv2's. LayerScale goes into the layers before it."""
    state = {name: value.float() for name, value in state.items() if name != "mask_token"}
    for gamma in [name for name in state if name.endswith(".gamma")]:
        scale, block = state.pop(gamma), gamma.split(".ls")[0]
        layer = f"{block}.{'attn.proj' if '.ls1.' in gamma else 'mlp.fc2'}"
        state[f"{layer}.weight"] = scale[:, None] * state[f"{layer}.weight"]
        state[f"{layer}.bias"] = scale * state[f"{layer}.bias"]
    state["pos_embed"] = _resampled(state["pos_embed"], side)
    converted = {}
    for name, value in state.items():
        for theirs, torchvisions in DINOV2_NAMES:
            name = name.replace(theirs, torchvisions)
        converted[name] = value
    return converted


def _resampled(positions, side):
    """Position embeddings (1, 1 + m * m, d), the class token's first, for side * side patches, as
    the published model resamples them: bicubic, at a scale of (side + 0.1) / m."""
    first, grid = positions.split([1, positions.shape[1] - 1], 1)
    m = round(grid.shape[1] ** 0.5)
    grid = grid.view(1, m, m, -1).permute(0, 3, 1, 2)
    if m != side:
        grid = F.interpolate(grid, scale_factor=((side + 0.1) / m,) * 2, mode="bicubic")
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)


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
        return torch.cat([self.powers(part) for part in _small_batches([images])])

    def powers(self, images):
        images = torch.einsum("nchw,c->nhw", images.float(), self.luminance)
        beyond = max(0, images.shape[-1] - 256)
        side, step = images.shape[-1] - beyond, max(1, beyond // max(1, -(-beyond // 128)))
        squares = images.unfold(1, side, step).unfold(2, side, step).flatten(1, 2)
        window = torch.hann_window(side, device=images.device)
        window = torch.outer(window, window) / window.square().sum()
        flat = squares.mean((-2, -1), keepdim=True)
        return torch.fft.rfft2((squares - flat) * window).abs().square().mean(1)


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


def _prepare_imagenet(images, mode="bilinear"):
    images = F.interpolate(images / 255, size=(224, 224), mode=mode, antialias=True).clamp(0, 1)
    mean = images.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    return (images - mean) / images.new_tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def _fid_inception():
    """torchvision's Inception but for its pools, which are TensorFlow's.

    Averages leave the padding out of the count, and the last block has a maximum instead.
    """
    from torchvision.models import Inception3, inception

    def without_padding(_, pooled):  # the average of ones: the share that is not padding
        return pooled[0] / F.avg_pool2d(torch.ones_like(pooled[0][:1, :1]), 3, 1, 1)

    class Last(inception.InceptionE):
        def _forward(self, x):
            return [*super()._forward(x)[:3], self.branch_pool(F.max_pool2d(x, 3, 1, 1))]

    net = Inception3(1008, False, init_weights=False)
    for block in net.children():
        if hasattr(block, "branch_pool"):
            block.branch_pool.register_forward_pre_hook(without_padding)
    with torch.random.fork_rng(devices=[]):  # random weights are what they are without this block
        net.Mixed_7c = Last(2048)
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


TORCHVISION = "https://download.pytorch.org/models/"
WEIGHTS = {
    "inception": "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    "resnet50": TORCHVISION + "resnet50-0676ba61.pth",
    "alex": TORCHVISION + "alexnet-owt-7be5be79.pth",
    "vgg": TORCHVISION + "vgg16-397923af.pth",
    "squeeze": TORCHVISION + "squeezenet1_1-b8a52dc0.pth",
    "dinov2": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
}


def _network(name, build, weights, trunk=lambda net: net, convert=None):
    """A network in evaluation mode without gradients, its trunk with the named weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = build()
        if str(weights) == "random":
            _randomize(trunk(net))
    if str(weights) != "random":
        path = _pretrained(name) if str(weights) == "pretrained" else Path(weights)
        _load(trunk(net), path, name, convert)
    return net.float().eval().requires_grad_(False)


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
    """Path of the weights in torch.hub's cache, downloaded if need be; a hash in a name holds."""
    url = WEIGHTS[name]
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    prefix = (re.search(r"-([0-9a-f]{8,})\.pth$", path.name) or ["", ""])[1]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix or None)
        except (OSError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise WeightsError(f"cannot download {url} ({reason}): save it as {path}, or choose "
                               "--weights random") from error
    digest = files.file_sha256(path) if prefix else ""
    if not digest.startswith(prefix):
        raise WeightsError(f"{path} is damaged: its SHA-256 begins with {digest[:8]}, not "
                           f"{prefix}; replace it by {url}, or choose --weights random")
    return path


def _load(net, path, name, convert=None):
    """Load a torchvision state dict; trunks of lpips keep the numbers of its layers."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"cannot read weights from {path}: replace it by {WEIGHTS[name]}, or "
                           "choose --weights random") from error
    names = {key: re.sub(r"^slice\d+\.", "features.", key) for key in net.state_dict()}
    try:
        state = convert(state) if convert else {key: state[old] for key, old in names.items()}
        net.load_state_dict(state, assign=True)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise WeightsError(f"{path} does not hold the weights of {name}") from error


# Images to features --------------------------------------------------------------------------

CHUNK = 2**14  # coordinates of LPIPS points held at once
HALF_SCALE = 2.0**8  # keeps LPIPS coordinates of all image sizes well inside float16's range

# Convolutions on a GPU round to TensorFloat-32 (10 bits) by default: too coarse for a metric.
_full_precision = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@_full_precision
@torch.inference_mode()
def features(images, network, batch_size=32):
    """Features of uint8 images (n, 3, h, w): a float32 tensor (n, d) or (n, c, d) on the CPU.

    network: from inception_network or another above but lpips_network. A row depends on its image
    alone, up to 1e-5 of its size. Raises ValueError for images of another kind.
    """
    device = next(network.parameters()).device
    return torch.cat([network(batch.to(device, non_blocking=True)).float().cpu()
                      for batch in _checked(images).split(batch_size)])


def _checked(images):
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or not len(images):
        raise ValueError(f"images must be uint8 (n, 3, h, w) with n >= 1, not {images.dtype} "
                         f"{tuple(images.shape)}")
    return images


def resized(images, size):
    """uint8 images (n, 3, h, w) at size × size, by antialiased bilinear interpolation."""
    if images.shape[2:] == (size, size):
        return images
    images = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).byte()


@dataclass(frozen=True)
class LpipsFeatures:
    """Images as LPIPS sees them: points whose squared Euclidean distances are LPIPS distances.

    Made by lpips_features; has a length and is indexed like a tensor, for any function that takes
    a distance. The coordinates are in unnamed temporary files (in TMPDIR), one for each layer,
    which go with the last reference to them.
    """

    layers: list[BinaryIO]  # each holds (total, width) coordinates
    widths: list[int]
    dtype: np.dtype
    total: int
    rows: Tensor  # the images among them that these points are

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return replace(self, rows=self.rows[index])

    def pieces(self):
        """The coordinates (n, CHUNK or less), piece after piece."""
        for file, width in zip(self.layers, self.widths, strict=True):
            for start in range(0, width, CHUNK):
                # Mapped anew each time: what was read before is then no memory of this process.
                layer = np.memmap(file, self.dtype, "r", shape=(self.total, width))
                yield torch.from_numpy(layer[:, start : start + CHUNK][self.rows.numpy()])


@_full_precision
@torch.inference_mode()
def lpips_features(batches, network, total):
    """Points for pairwise_lpips of `total` uint8 images, by one forward pass each.

    batches: yields tensors (b, 3, h, w). network: from lpips_network. The temporary files take
    2.6 MB an image at 256x256 with "alex", 21 MB at 1024x1024 (13 times as much with "vgg").
    Raises OSError when the disk is full, ValueError where the images are not `total` of one size.
    """
    from lpips import normalize_tensor

    device = next(network.parameters()).device
    layers = [tempfile.TemporaryFile() for _ in network.lins]  # noqa: SIM115 (the points keep them)
    done, shape, dtype = 0, None, None
    for batch in _small_batches(batches):
        if shape not in (None, batch.shape[1:]) or done + len(batch) > total:
            raise ValueError(f"LPIPS features of more than {total} images, or of several sizes")
        shape, widths = batch.shape[1:], []
        # The rounding errors of float16 average out over the many coordinates of a large image.
        dtype = np.dtype(np.float16 if batch[0, 0].numel() >= 512**2 else np.float32)
        maps = network.scaling_layer(batch.to(device).float() / 127.5 - 1)
        for file, layer, head in zip(layers, network.net.children(), network.lins, strict=True):
            maps = layer(maps)
            scale = (head.model[-1].weight / maps[0, 0].numel()).sqrt() * HALF_SCALE
            points = normalize_tensor(maps).mul_(scale).flatten(1).cpu().numpy()
            file.write(points.astype(dtype, order="C"))
            file.flush()
            widths.append(points.shape[1])
        done += len(batch)
    if done < total:
        raise ValueError(f"LPIPS features of {done} images, not {total}")
    return LpipsFeatures(layers, widths, dtype, total, torch.arange(total))


def _small_batches(batches):
    """The same images in batches of at most 2^20 pixels, or of one image."""
    for images in map(_checked, batches):
        yield from images.split(max(1, 2**20 // images[0, 0].numel()))


@torch.inference_mode()
def pairwise_lpips(x, y, network):
    """LPIPS between all pairs of x (n) and y (m): float32 (n, m), on the CPU.

    x, y: uint8 images (n, 3, h, w) of one size, or their lpips_features, which spare the forward
    passes when a set is used again. LPIPS (Zhang et al. 2018, eq. 1) is a weighted squared
    distance of unit-normalised maps: n + m forward passes and a matrix product give what the
    module gives pair by pair, to 1e-5; what is below 1e-5 is 0. Raises ValueError.
    """
    x, y = (points if isinstance(points, LpipsFeatures)
            else lpips_features([points], network, len(points)) for points in (x, y))
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


# Features of whole sets, kept on disk --------------------------------------------------------

CELLS = 14  # along a side of an image, of pieces_network
BOTH = "resnet and pieces"  # the network that gives both in one pass
NOT_KEPT = {"lpips", "pieces"}  # 1 GB and 40 MB for 400 images: their neighbours are kept instead
VERSION = 1  # raised when cached values change their meaning: older ones are then computed anew


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
        cli.warn(f"{path} not written ({error.strerror})")


class FeatureNetworks:
    """The networks by name, each built when first asked for.

    keys: {name: what the features depend on besides the images}. lpips: its trunk. lpips_size:
    the side that images are resized to for LPIPS.
    """

    def __init__(self, weights, device, resize="bilinear", lpips="alex", lpips_size=256):
        self.lpips_size = lpips_size
        versions = [metadata.version(name) for name in ("torch", "torchvision", "lpips")]
        makers = {"inception": (lambda: inception_network(weights, device, resize), [resize]),
                  "dinov2": (lambda: dinov2_network(weights, device), []),
                  "resnet": (lambda: resnet50_network(weights, device), []),
                  "pieces": (lambda: pieces_network(weights, device), []),
                  BOTH: (lambda: _resnet50(weights, "embedding", "cells").to(device), []),
                  "spectrum": (lambda: Spectrum().to(device), []),
                  "lpips": (lambda: lpips_network(lpips, weights, device), [lpips, lpips_size])}
        self.keys = {name: [VERSION, weights, versions, *more]
                     for name, (_, more) in makers.items()}
        self._makers = {name: functools.cache(make) for name, (make, _) in makers.items()}

    def __getitem__(self, name):
        try:
            return self._makers[name]()
        except WeightsError as error:
            cli.fail(error)


class ImageSet:
    """Images, and those of their features that were asked for so far.

    key: a hash of what determines the pixels. batches(rows): yields uint8 tensors, the images of
    these rows. cache: a folder. features: {name of a network: tensor (n, d), or LpipsFeatures}.
    """

    def __init__(self, name, key, n, batches, cache):
        self.name, self.key, self.n = name, key, n
        self.batches, self.cache, self.features = batches, cache, {}

    def load(self, names, networks):
        """Fills `features` by the named FeatureNetworks, from the cache if they are there."""
        paths = {name: cache_path(self.cache, name, [networks.keys[name], self.key])
                 for name in sorted(set(names) - set(self.features))}
        found = {name: read_cache(path) for name, path in paths.items()}
        self.features |= found
        missing = {name for name, value in found.items() if value is None}
        if missing:
            self.features |= self.extract(missing, networks)
        for name in missing - NOT_KEPT:
            write_cache(paths[name], self.features[name])

    def subset(self, rows):
        """The ImageSet of some rows, in ascending order; itself if they are all."""
        if len(rows) == self.n:
            return self
        return ImageSet(self.name, f"{self.key} {files.sha256(str(rows.tolist()))}", len(rows),
                        lambda some: self.batches(rows[some]), self.cache)

    def extract(self, names, networks):
        """{name: features} by the named networks in one pass over the images."""
        if both := names >= {"resnet", "pieces"}:
            names = names - {"resnet", "pieces"} | {BOTH}
        used = {name: networks[name] for name in sorted(names)}
        parts = {name: [] for name in used if name != "lpips"}
        bar = tqdm(total=self.n, desc=f"features of {self.name}", unit="img", disable=None,
                   leave=False)

        def passing():
            for batch in self.batches(torch.arange(self.n)):
                for name, rows in parts.items():
                    rows.append(features(batch, used[name]))
                bar.update(len(batch))
                yield batch

        found = {}
        with bar:
            if "lpips" in used:
                found["lpips"] = lpips_features((resized(batch, networks.lpips_size)
                                                 for batch in passing()), used["lpips"], self.n)
            else:
                deque(passing(), maxlen=0)
        found |= {name: torch.cat(rows) for name, rows in parts.items()}
        if both:
            embeddings, cells = found.pop(BOTH).tensor_split([2048], 1)
            found |= {"resnet": embeddings.contiguous(), "pieces": cells.unflatten(1, (-1, 128))}
        return found
