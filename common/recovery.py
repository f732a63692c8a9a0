"""The latents of given photos: those whose images come nearest to them (Webster et al. 2019).

    z, errors = recovery.recover(generator, photos, distance)
"""

import torch

from common import sampling


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
    first, found = sampling.latents(seed, range(starts), z_dim).to(device), []

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


def compare(generator, sets, distance, seed=0, update=None):
    """([the recovery errors (n,) of each set], rows of labelled images for figures.images).

    sets: {name: photos}. The rows show of each set the three photos that came out best, each with
    its recovery, and the three that came out worst. Other arguments: as for recover.
    """
    found, rows = [], []
    for name, photos in sets.items():
        z, errors = recover(generator, photos, distance, seed=seed, update=update)
        found.append(errors)
        for which, order in (("best", errors.argsort()), ("worst", errors.argsort().flip(0))):
            order = order.repeat(3)[:3]
            images = sampling.generate(generator, z[order])
            rows.append([])
            for i, image in zip(order, images, strict=True):
                rows[-1] += [(f"{name}, {which}", photos[i]),
                             (f"recovered: {errors[i]:.4f}", image)]
    return found, rows
