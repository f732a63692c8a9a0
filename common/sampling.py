"""From a generator to images and back: latents by seed and index, samples, latents of photos."""

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


def samples(generator, seed, rows, batch_size):
    """Batches of the samples of these numbers: each depends on the seed and its number alone."""
    return (generate(generator, latents(seed, part.tolist(), generator.z_dim))
            for part in rows.split(batch_size))


def quasi_newton(pairs, slope):
    """Each row's L-BFGS step for slopes (n, d): Nocedal 1980, in two loops.

    pairs, oldest first: moves (n, d), the changes of slope that they made, and 1 over the product
    of the two (n, 1), which is 0 in rows without one. A row without any pair makes a step of 1.
    """
    weights, step, scale = [], -slope, 1 / slope.norm(dim=1, keepdim=True).clamp(min=1e-20)
    for move, change, inverse in reversed(pairs):
        weights.append(inverse * (move * step).sum(1, keepdim=True))
        step = step - weights[-1] * change
    for _, change, inverse in pairs:  # the newest has the last word
        newer = 1 / (inverse * change.square().sum(1, keepdim=True))
        scale = torch.where(inverse > 0, newer, scale)
    step = scale * step
    for (move, change, inverse), weight in zip(pairs, reversed(weights), strict=True):
        step = step + (weight - inverse * (change * step).sum(1, keepdim=True)) * move
    return step


def recover(generator, photos, distance, steps=100, starts=2, batch_size=8, seed=0, update=None):
    """Latents (n, z_dim) of the images nearest to uint8 photos (n, 3, s, s), and their distances.

    The recovery of Webster et al. 2019 (arXiv 1901.03396): a generator that comes nearer to
    training than to validation photos has memorised some of them. L-BFGS as there (it reaches lower
    errors than Adam with twice the passes), but for each photo by itself: a result depends on the
    photo and the seed alone, up to rounding (1% of the error from one batch size to another).
    Both are float32, on the CPU.
    distance(images, targets), of (b, 3, s, s) in [-1, 1] both, gives (b,) and has gradients.
    steps: passes from each of the starts, which are latents of the seed, the same for every photo.
    batch_size: images on their way at once, or `starts` if that is more.
    update(k) is called when k more photos are done.
    """
    device, z_dim = next(generator.parameters()).device, generator.z_dim
    first, found = latents(seed, range(starts), z_dim).to(device), []

    def inside(z):
        # One draw in 400 lies farther out. Free latents go to where no sample comes from, twice as
        # far; on the shell alone, images of shorter or longer draws could not be found again.
        return z * ((z_dim**0.5 + 2) / z.norm(dim=1, keepdim=True)).clamp(max=1)

    @torch.enable_grad()
    def judge(z, targets):
        z = z.detach().requires_grad_()
        images = generator(inside(z))
        images = images[0] if isinstance(images, tuple) else images
        # Clamped as pixels are, but with the gradients of what is not.
        errors = distance(images + (images.clamp(-1, 1) - images).detach(), targets)
        return errors.detach()[:, None], torch.autograd.grad(errors.sum(), z)[0]

    for part in photos.split(max(1, batch_size // starts)):
        targets = (part.to(device).float() / 127.5 - 1).repeat_interleave(starts, 0)
        z, pairs = first.repeat(len(part), 1), []
        errors, slope = judge(z, targets)
        step = quasi_newton(pairs, slope)
        for _ in range(steps - 1):
            new_errors, new_slope = judge(z + step, targets)
            # LPIPS has no gradient where all channels of a map are 0: such an image is passed over.
            better = (new_errors < errors) & new_slope.isfinite().all(1, keepdim=True)
            new_slope = torch.where(better, new_slope, slope)
            change = new_slope - slope
            product = (step * change).sum(1, keepdim=True)
            usable = better & (product > 1e-10 * change.square().sum(1, keepdim=True))
            pairs = [*pairs, (step, change, torch.where(usable, 1 / product, 0.0))][-5:]
            z, slope = torch.where(better, z + step, z), new_slope
            errors = torch.where(better, new_errors, errors)
            # A row whose image came no nearer tries again, less far.
            step = torch.where(better, quasi_newton(pairs, slope), step / 3)
        errors, best = errors.view(-1, starts).min(1)
        z = inside(z).view(-1, starts, z_dim)[torch.arange(len(part)), best]
        found.append((z.float().cpu(), errors.float().cpu()))
        if update:
            update(len(part))
    return tuple(map(torch.cat, zip(*found, strict=True)))


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
