"""From a generator to images: latents by seed and index, the copy to sample from, samples."""

import copy

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


def latents(seed, indices, z_dim):
    """float (len(indices), z_dim), N(0, 1): a row depends on the seed and its index alone."""
    rows = [np.random.default_rng([seed, i]).standard_normal(z_dim, np.float32) for i in indices]
    return torch.from_numpy(np.stack(rows))


def between(a, b, steps):
    """Latents (steps, z_dim) along the great circle from a to b, (z_dim,) each.

    The straight line passes nearer to the origin than N(0, 1) latents ever are (White 2016,
    arXiv 1609.04468).
    """
    t = torch.linspace(0, 1, steps)[:, None]
    angle = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if angle < 1e-3:
        return a + t * (b - a)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def average_weight(step):
    """The weight of a step's parameters in their moving average.

    The published 0.001 from step 9,000 on and more before: with 0.001 alone the average still
    holds 60% of the initial parameters at step 500.
    """
    return max(0.001, 9 / (10 + step))


@torch.no_grad()
def update_average(average, parameters, weight):
    """Moves a list of averaged parameters towards the present ones, in place.

    weight: a number or a tensor () on their device, which a CUDA graph sees change.
    """
    # Three calls: lerp has none for all tensors and a weight on the device.
    change = torch._foreach_sub(list(parameters), average)
    torch._foreach_mul_(change, weight)
    torch._foreach_add_(average, change)


def sampling_copy(generator, average=None):
    """A copy to sample from: in evaluation mode, with batch-norm statistics of its own.

    average: parameters that it gets instead of the generator's, in the same order.
    """
    sampler = copy.deepcopy(generator)
    if average:
        with torch.no_grad():
            for parameter, value in zip(sampler.parameters(), average, strict=True):
                parameter.copy_(value)
    return estimate_batch_norm(sampler).requires_grad_(False)


def estimate_batch_norm(generator, batches=8, batch_size=16):
    """The generator in evaluation mode, its batch-norm statistics measured over its own samples.

    Running statistics, gathered while the weights changed, fit neither averaged nor final weights.
    Depends on the weights alone, and leaves the random state as it was.
    """
    device = next(generator.parameters()).device
    norms = [module for module in generator.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    generator.train()
    cuda = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(0)
        for start in range(0, batches * batch_size, batch_size):
            z = latents(0, range(start, start + batch_size), generator.z_dim)
            generator(z.to(device))
    for norm in norms:
        norm.momentum = 0.1
    return generator.eval()


def to_uint8(images):
    """[-1, 1] -> uint8; what lies outside is clamped. The pixels that a PNG would hold."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@torch.no_grad()
def generate(generator, *z, batch_size=8):
    """uint8 images (n, 3, h, w) on the CPU of latents (n, z_dim); for FastGAN also of styles.

    The last batch is filled up: an image is the same, to the bit, however many there are.
    """
    device, n, images = next(generator.parameters()).device, len(z[0]), []
    for start in range(0, n, batch_size):
        parts = [rows[start : start + batch_size] for rows in z]
        filled = [F.pad(part, (0, 0, 0, batch_size - len(part))).to(device) for part in parts]
        batch = generator(*filled)
        batch = batch[0] if isinstance(batch, tuple) else batch  # FastGAN gives a small one, too
        images.append(to_uint8(batch).cpu())
    return torch.cat(images)[:n]


def samples(generator, seed, rows, batch_size=32):
    """Batches of the samples of these numbers: each depends on the seed and its number alone."""
    return (generate(generator, latents(seed, part.tolist(), generator.z_dim))
            for part in rows.split(batch_size))


def mixed(generator, z):
    """A square grid of uint8 images ((n + 1)^2, 3, h, w), row by row, of FastGAN's latents (n, z).

    In each row the layout of one sample, in each column the style of another; the samples
    themselves stand above and to the left.
    """
    plain, n = generate(generator, z), len(z)
    cells = generate(generator, z.repeat_interleave(n, 0), z.repeat(n, 1))
    first = torch.cat([torch.zeros_like(plain[:1]), plain])
    rows = [torch.cat([plain[i : i + 1], cells[i * n : (i + 1) * n]]) for i in range(n)]
    return torch.cat([first, *rows])
