"""Train a FastGAN (Liu et al. 2021, arXiv 2101.04775) on a folder of photos.

    python train_fastgan.py --data data/bedroom                 # the study: 1024×1024, 50,000 steps
    python train_fastgan.py --data data/bedroom --size 256
    python train_fastgan.py --resume latest --iters 100000      # the next phase, exactly continued
    python train_fastgan.py --demo                              # drawn scenes, minutes on a CPU

Checkpoints, samples and the log go to runs/fastgan-<data>-<time>/.
"""

import copy

import torch
from torch.nn import functional as F

from common import checkpoints, cli, devices, photos, sampling
from common.run import Run, launch, load_photos, start
from nets import FastGANDiscriminator, FastGANGenerator, quadrant

DEMO = {"data": "data/demo", "size": 256, "features": 8, "batch_size": 6, "iters": 500,
        "lr": 5e-4, "augment": "translation",  # the study's need more steps to show rooms
        "reconstruction": "l1", "ckpt_every": 250, "sample_every": 100, "log_every": 10}


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


def perceptual_distance(kind, numerics):
    """A function of two lists of image batches in [-1, 1]: their distances pair by pair, summed
    over pairs and images, and differentiable in the first list.

    "lpips": LPIPS-VGG, as published. "l1": mean absolute difference, which needs no weights.
    """
    if kind == "l1":
        return lambda xs, ys: sum((x - y).abs().mean((1, 2, 3)).sum()
                                  for x, y in zip(xs, ys, strict=True))
    from common.weights import WeightsError, lpips_network

    try:
        network = lpips_network("vgg", device=numerics.device)
    except WeightsError as error:
        cli.fail(f"{error}, or choose --reconstruction l1")
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


def hinge_real(logits):
    """Hinge loss on real logits, its margin drawn from U(0.8, 1) for each."""
    logits = logits.float()
    return F.relu(torch.rand_like(logits) * 0.2 + 0.8 - logits).mean()


def hinge_fake(logits):
    """Hinge loss on fake logits, its margin drawn from U(0.8, 1) for each."""
    logits = logits.float()
    return F.relu(torch.rand_like(logits) * 0.2 + 0.8 + logits).mean()


def train_step(networks, optimizers, numerics, average, weight, real, augment, distance):
    """One iteration on photos (n, 3, size, size) in [-1, 1]: the three losses, (3,), detached.

    Updates both networks and the averaged parameters, in which the new ones get `weight` (a number
    or a tensor ()). One pass of G serves both updates, and each sees the fakes through the same
    augmentation. `distance` is of perceptual_distance.
    """
    generator, discriminator = networks["generator"], networks["discriminator"]
    judge = devices.plain(discriminator)  # of G's samples: D learns nothing from it
    z = torch.randn(len(real), devices.plain(generator).z_dim, device=real.device)
    part = torch.randint(4, (), device=real.device)
    real = photos.diff_augment(real, augment)
    with numerics.autocast():
        fakes = generator(z)
    fakes = [photos.diff_augment(fake.float(), augment) for fake in fakes]

    # D's three decoders show the whole photo, again from the small path, and one quadrant.
    real_128 = F.interpolate(real, size=128)
    targets = [real_128, real_128, F.interpolate(quadrant(real, part), size=128)]
    with numerics.autocast(), devices.unsynchronized(discriminator):
        logits, maps = discriminator(real, real_128)
        decoded = judge.reconstruct(maps, part)
    reconstruction = distance([images.float() for images in decoded], targets)
    on_real = hinge_real(logits)
    numerics.backward(on_real + reconstruction)
    with numerics.autocast():
        logits, _ = discriminator(*(fake.detach() for fake in fakes))
    on_fake = hinge_fake(logits)
    numerics.update(optimizers["discriminator"], on_fake)

    judge.requires_grad_(False)  # its gradients would be thrown away
    with numerics.autocast():
        logits, _ = judge(*fakes)
    judge.requires_grad_(True)
    g_loss = -logits.float().mean()
    numerics.update(optimizers["generator"], g_loss)
    with torch.no_grad():  # three calls: lerp has none for all tensors and a weight on the device
        change = torch._foreach_sub(list(generator.parameters()), average)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(average, change)
    return torch.stack([on_real + on_fake, reconstruction, g_loss]).detach()


@torch.no_grad()
def reconstructions(discriminator, images, device):
    """Photos; decoded from the last map; from the small path; top left quadrants; decoded.

    Eight each, (40, 3, 128, 128). By batch statistics, as in training, on a copy that may change
    its buffers.
    """
    discriminator = copy.deepcopy(discriminator).train()
    real = photos.take_batch(images, torch.arange(8) % len(images), device)
    real_128 = F.interpolate(real, size=128)
    maps = discriminator(real, real_128)[1]
    whole, whole_small, quarter = discriminator.reconstruct(maps, 0)
    target = F.interpolate(quadrant(real, 0), size=128)
    return torch.cat([real_128, whole, whole_small, target, quarter])


def main(args, checkpoint):
    config = {"image_size": args.size, "z_dim": args.z_dim, "features": args.features}
    numerics = start(args, checkpoint, DEMO, **config)
    device = numerics.device
    try:
        generator = FastGANGenerator(**config).to(device)
    except ValueError as error:
        cli.fail(f"--size {args.size}: {error}")
    discriminator = FastGANDiscriminator(args.size, args.features).to(device)
    distance = perceptual_distance(args.reconstruction, numerics)
    images, fingerprint = load_photos(args, device)

    adam = {"lr": args.lr, "betas": (0.5, 0.999), "fused": True, "capturable": True}
    optimizers = {"generator": torch.optim.Adam(generator.parameters(), **adam),
                  "discriminator": torch.optim.Adam(discriminator.parameters(), **adam)}
    networks = {"generator": generator, "discriminator": discriminator}
    run = Run("fastgan", args, checkpoint, numerics, config, networks, optimizers,
              (len(images), fingerprint), ["d_hinge", "d_reconstruction", "g_loss"])
    average = [parameter.detach().clone() for parameter in generator.parameters()]
    if checkpoint:
        averaged = copy.deepcopy(generator)
        checkpoints.load_weights(averaged, checkpoint["sampler"], checkpoint["path"])
        average = [parameter.detach() for parameter in averaged.parameters()]
    fixed = sampling.latents(args.seed, range(16), args.z_dim).to(device)

    # The decoders have no part in D's pass over fakes, which shares the gradients.
    shared = {"generator": devices.parallel(generator),
              "discriminator": devices.parallel(discriminator, find_unused_parameters=True)}
    update = run.compiled(
        lambda real, weight: train_step(shared, optimizers, numerics, average, weight, real,
                                        args.augment, distance))
    for step in run.steps(args.iters):
        real = photos.mirror(photos.take_batch(images, run.draw(), device))
        run.add(update(real, torch.full((), sampling.average_weight(step), device=device)))
        run.log()
        if run.sample_due or run.save_due:
            sampler = sampling.sampling_copy(generator, average)
        if run.sample_due:
            run.save_grid(sampler(fixed)[0])
            run.save_grid(reconstructions(discriminator, images, device), "reconstructions")
        if run.save_due:
            run.save(sampler)


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    cli.add_training_flags(parser, data="data/bedroom", size=1024, fit="square",
                           batch_size=8, lr=2e-4, every=(5000, 1000, 100))
    group = parser.add_argument_group("FastGAN")
    group.add_argument("--iters", type=cli.count, default=50000, metavar="N",
                       help="steps in all, those of a resumed run included")
    group.add_argument("--features", type=cli.width, default=64, metavar="N",
                       help="width of the networks")
    group.add_argument("--z-dim", type=cli.width, default=256, metavar="N",
                       help="length of a latent")
    group.add_argument("--reconstruction", choices=["lpips", "l1"], default="lpips",
                       help="the decoders' loss; l1 needs no pretrained weights")
    group.add_argument("--augment", type=cli.augmentation, default="color,translation",
                       metavar="LIST", help="DiffAugment: color, translation, both or none")
    launch(main, parser, "fastgan", DEMO)
