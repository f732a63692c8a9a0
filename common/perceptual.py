"""LPIPS (Zhang et al. 2018) as a loss, and between all pairs of two sets of images; a distance of
its kind without a download.

    loss = perceptual_loss(numerics)       # one pass for all pairs, its gradients by hand
    loss([decoded], [photos]).backward()

    x, y = lpips_points([photos], network, len(photos)), lpips_points([samples], network, n)
    pairwise_lpips(x, y)                   # network: weights.lpips_network(); one pass an image
"""

import tempfile
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common import files
from common.weights import critic_levels, full_precision, lpips_network, small_batches

CHUNK = 2**14  # coordinates held at once
HALF_SCALE = 2.0**8  # keeps the coordinates of all image sizes well inside float16's range


# As a loss -----------------------------------------------------------------------------------


class LayerDistance(torch.autograd.Function):
    """LPIPS of one layer's maps (Zhang et al. 2018), differentiable in the first.

    apply(a, b (n, c, h, w), w (c, 1, 1)): squared differences of the maps, each pixel's c values
    divided by their length, weighted by w; a sum over images of means over pixels, in float32.
    With autograd's own gradients and every image at once, a third of a CPU's step was this.
    """

    @staticmethod
    def forward(ctx, a, b, w):
        dtype = torch.promote_types(a.dtype, torch.float32)
        total, saved = a.new_zeros((), dtype=dtype), []
        # On a CPU image by image, which its cache holds; a GPU would wait for launches.
        for x, y in zip(*(maps.split(1 if maps.is_cpu else len(maps)) for maps in (a, b)),
                        strict=True):
            scale, other = (torch.linalg.vector_norm(maps, dim=1, keepdim=True, dtype=dtype)
                            .clamp_min_(1e-10).reciprocal_() for maps in (x, y))
            difference = x * scale
            difference -= y * other
            weighted = difference * w
            total += torch.dot(*(maps.permute(0, 2, 3, 1).flatten()
                                 for maps in (difference, weighted)))
            saved += x, scale, weighted
        ctx.pixels = a[0, 0].numel()
        ctx.save_for_backward(*saved)
        return total / ctx.pixels

    @staticmethod
    def backward(ctx, gradient):
        parts, gradient = [], 2 * gradient / ctx.pixels
        for x, scale, weighted in zip(*(ctx.saved_tensors[i::3] for i in range(3)), strict=True):
            along = (x * weighted).sum(1, keepdim=True)  # what only changes a pixel's length
            change = weighted - x * (along * scale.square())
            parts.append((change * (scale * gradient)).to(x.dtype))
        return torch.cat(parts), None, None


def perceptual_loss(numerics):
    """LPIPS-VGG as a function of two lists of image batches (n, 3, h, w) in [-1, 1]: distances pair
    by pair, summed over pairs and images, and differentiable in the first list.

    numerics: a devices.Numerics, in whose precision the network computes. Raises WeightsError.
    """
    network = lpips_network("vgg", device=numerics.device)
    weights = [head.model[-1].weight[0] for head in network.lins]

    def features(batches):
        with numerics.autocast():
            return network.net(network.scaling_layer(torch.cat(batches)))

    def distance(xs, ys):
        place = {y: i for i, y in enumerate(dict.fromkeys(ys))}  # a target given twice: one pass
        with torch.no_grad():
            targets = [maps.chunk(len(place)) for maps in features(list(place))]
        return sum(LayerDistance.apply(x, target[place[y]], w)
                   for maps, target, w in zip(features(xs), targets, weights, strict=True)
                   for x, y in zip(maps.chunk(len(xs)), ys, strict=True))

    return distance


def lite_distance(device="cpu"):
    """A distance for recovery.recover without a download: (n,) of images a, b (n, 3, h, w) in
    [-1, 1], differentiable in a.

    As LPIPS, but by EfficientNet-Lite0's four levels of maps of the images at 256×256 or less,
    unweighted, and with a mean squared difference of pixels. Raises WeightsError.
    """
    levels = critic_levels(device=device)

    def maps(images):
        if images.shape[-1] > 256:  # it knows objects as small photos show them
            images = F.interpolate(images, (256, 256), mode="bilinear", antialias=True)
        return levels(images)

    def distance(a, b):
        total = (a - b).square().mean((1, 2, 3))
        for x, y in zip(maps(a), maps(b), strict=True):
            x, y = F.normalize(x, eps=1e-10), F.normalize(y, eps=1e-10)
            total = total + 0.1 * (x - y).square().sum(1).mean((1, 2))
        return total

    return distance


# Between all pairs ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LpipsPoints:
    """Images as LPIPS sees them: points whose squared Euclidean distances are LPIPS distances.

    Made by lpips_points; has a length and is indexed like a tensor, for every function of
    metrics.py that is about neighbours. The coordinates are in unnamed temporary files (in
    TMPDIR), one for each layer, which go with the last reference to them.
    """

    layers: list[BinaryIO]  # each holds (total, width) coordinates
    widths: list[int]
    dtype: np.dtype
    device: torch.device  # where distances are computed
    total: int
    rows: Tensor  # the images among them that these points are

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return replace(self, rows=self.rows[index])

    def between(self, other):
        """LPIPS (n, m) to other points: metrics.py asks for it."""
        return pairwise_lpips(self, other)

    def pieces(self):
        """The coordinates (n, CHUNK or less), piece after piece."""
        for file, width in zip(self.layers, self.widths, strict=True):
            for start in range(0, width, CHUNK):
                # Mapped anew each time: what was read before is then no memory of this process.
                layer = np.memmap(file, self.dtype, "r", shape=(self.total, width))
                yield torch.from_numpy(layer[:, start : start + CHUNK][self.rows.numpy()])


@full_precision
@torch.inference_mode()
def lpips_points(batches, network, total):
    """LpipsPoints of `total` uint8 images, by one forward pass each.

    batches: yields tensors (b, 3, h, w). network: of weights.lpips_network. The temporary files
    take 2.6 MB an image at 256x256 with "alex", 21 MB at 1024x1024 (13 times as much with "vgg").
    Raises OSError when the disk is full, ValueError where the images are not `total` of one size.
    """
    from lpips import normalize_tensor

    device = next(network.parameters()).device
    layers = [tempfile.TemporaryFile() for _ in network.lins]  # noqa: SIM115 (the points keep them)
    done, shape, dtype = 0, None, None
    for batch in small_batches(batches):
        if shape not in (None, batch.shape[1:]) or done + len(batch) > total:
            raise ValueError(f"LPIPS points of more than {total} images, or of several sizes")
        shape, widths = batch.shape[1:], []
        # The rounding errors of float16 average out over the many coordinates of a large image.
        dtype = np.dtype(np.float16 if batch[0, 0].numel() >= 512**2 else np.float32)
        maps = network.scaling_layer(batch.to(device).float() / 127.5 - 1)
        for file, layer, head in zip(layers, network.net.children(), network.lins, strict=True):
            maps = layer(maps)
            scale = (head.model[-1].weight / maps[0, 0].numel()).sqrt() * HALF_SCALE
            points = normalize_tensor(maps).mul_(scale).flatten(1).cpu().numpy()
            with files.naming(tempfile.gettempdir()):
                file.write(points.astype(dtype, order="C"))
                file.flush()
            widths.append(points.shape[1])
        done += len(batch)
    if done < total:
        raise ValueError(f"LPIPS points of {done} images, not {total}")
    return LpipsPoints(layers, widths, dtype, device, total, torch.arange(total))


@torch.inference_mode()
def pairwise_lpips(x, y):
    """LPIPS between all pairs of LpipsPoints x (n) and y (m): float32 (n, m), on the CPU.

    LPIPS (Zhang et al. 2018, eq. 1) is a weighted squared distance of unit-normalised maps, so a
    matrix product gives what the module gives pair by pair, to 1e-5; what is below 1e-5 is 0.
    Raises ValueError for images of two sizes.
    """
    if x.widths != y.widths:
        raise ValueError("LPIPS compares images of one size by one network")
    distances = torch.zeros(len(x), len(y), dtype=torch.float64)
    for a, b in zip(x.pieces(), y.pieces(), strict=True):
        a, b = a.to(x.device).float(), b.to(x.device).float()
        center = a.mean(0)  # distances don't change, their rounding errors shrink
        a, b = a - center, b - center
        squares = a.square().sum(1)[:, None] + b.square().sum(1)
        distances += (squares - 2 * (a @ b.T)).cpu()
    distances /= HALF_SCALE**2
    return distances.masked_fill_(distances < 1e-5, 0).float()
