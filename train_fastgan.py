"""Train a FastGAN (Liu et al. 2021, arXiv 2101.04775) on a folder of photos.

    python train_fastgan.py --data data/bedroom                 # the study: 1024×1024, 50,000 steps
    python train_fastgan.py --data data/bedroom --discriminator projected --size 256
    python train_fastgan.py --data data/bedroom --small         # for laptops: rooms within hours
    python train_fastgan.py --data data/mine --small --init CKPT    # few photos: another run's nets
    python train_fastgan.py --resume latest --iters 100000      # the next phase, exactly continued
    python train_fastgan.py --demo                              # drawn scenes, minutes on a CPU

A generator is trained against one of three discriminators. The published one learns to see from
nothing; it has to reconstruct the photos from what it sees, so that it looks at all of them. The
projected one (Sauer et al. 2021, arXiv 2111.01007) judges what a frozen network sees that knows
ImageNet's photos already, and rooms come in a tenth of the steps. The extended one is the same
with more to see: pixels, colours, and the whole image at once.

Checkpoints, samples and the log go to runs/fastgan-<data>-<time>/.
"""

import copy
import functools

import torch
from torch.nn import functional as F

from common import checkpoints, cli, devices, photos, sampling
from common.perceptual import perceptual_loss
from common.run import Run, launch, load_sets, start
from common.weights import WeightsError, critic_levels
from nets import FastGANDiscriminator, FastGANGenerator, ProjectedDiscriminator, quadrant

# By discriminator: Adam's betas and DiffAugment, of the first two as published; the energy
# distance's weight; the decoders' loss; the log's columns.
BETAS = {"published": (0.5, 0.999), "projected": (0.0, 0.99), "extended": (0.0, 0.99)}
AUGMENT = {"published": ["color", "translation"], "projected": ["color", "translation", "cutout"],
           "extended": ["translation", "cutout"]}  # colours are left alone, so that it learns them
VARIETY = {"published": 0.0, "projected": 0.0, "extended": 3.0}
RECONSTRUCTION = {"published": "lpips", "projected": None, "extended": None}
LOSSES = {"published": ["d_hinge", "d_reconstruction", "g_loss"],
          "projected": ["d_hinge", "g_loss"], "extended": ["d_hinge", "g_loss"]}
LOGITS = ["d_train", "d_validation", "d_fake"]
SMALL = {"discriminator": "extended", "size": 256, "features": 32, "batch_size": 8, "lr": 4e-4,
         "iters": 10000, "ckpt_every": 500, "sample_every": 100, "log_every": 50}
DEMO = {**SMALL, "data": "data/demo", "size": 128, "iters": 500, "ckpt_every": 250,
        "log_every": 25}


# The published discriminator -----------------------------------------------------------------


def l1(xs, ys):
    """Mean absolute differences, summed as perceptual_loss sums LPIPS; they need no weights."""
    return sum((x - y).abs().mean((1, 2, 3)).sum() for x, y in zip(xs, ys, strict=True))


def reconstruction_loss(kind, numerics):
    """The decoders' loss: "lpips" as published, or "l1"."""
    if kind == "l1":
        return l1
    try:
        return perceptual_loss(numerics)
    except WeightsError as error:
        cli.fail(f"{error}, or choose --small, --discriminator projected, or "
                 "--reconstruction l1")


def hinge_real(logits):
    """Hinge loss on real logits, its margin drawn from U(0.8, 1) for each."""
    logits = logits.float()
    return F.relu(torch.rand_like(logits) * 0.2 + 0.8 - logits).mean()


def hinge_fake(logits):
    """Hinge loss on fake logits, its margin drawn from U(0.8, 1) for each."""
    logits = logits.float()
    return F.relu(torch.rand_like(logits) * 0.2 + 0.8 + logits).mean()


def published_step(networks, optimizers, numerics, real, augment, distance):
    """One iteration on photos (n, 3, size, size) in [-1, 1]: the three losses, (3,), detached.

    One pass of G serves both updates, and each sees the fakes through the same augmentation.
    distance: of reconstruction_loss.
    """
    generator, discriminator = networks["generator"], networks["discriminator"]
    plain = devices.plain(discriminator)  # for G's update, whose gradients of D are not shared
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
        decoded = plain.reconstruct(maps, part)
    reconstruction = distance([images.float() for images in decoded], targets)
    on_real = hinge_real(logits)
    numerics.backward(on_real + reconstruction)
    with numerics.autocast():
        logits, _ = discriminator(*(fake.detach() for fake in fakes))
    on_fake = hinge_fake(logits)
    numerics.update(optimizers["discriminator"], on_fake)

    plain.requires_grad_(False)  # its gradients would be thrown away
    with numerics.autocast():
        logits, _ = plain(*fakes)
    plain.requires_grad_(True)
    g_loss = -logits.float().mean()
    numerics.update(optimizers["generator"], g_loss)
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


def published(args, numerics):
    """The discriminator; its step; its logits of (image, image at 128)."""
    discriminator = FastGANDiscriminator(args.size, args.features).to(numerics.device)
    distance = reconstruction_loss(args.reconstruction, numerics)
    return (discriminator, functools.partial(published_step, distance=distance),
            lambda image, image_128: discriminator(image, image_128)[0])


# The projected discriminator -----------------------------------------------------------------


def energy_distance(real, fake):
    """How far two batches of maps are apart: 2 E|x - y| - E|x - x'| - E|y - y'|, divided by
    E|x - x'|, for x in real and y in fake; the mean over the levels of maps.

    real, fake: lists of (n, c, h, w), n at least 2; x and y are their channels' means. Batches of
    one distribution have about 0 on average, fakes that are off, or too much alike, more (Székely
    and Rizzo 2013, doi 10.1016/j.jspi.2013.03.018).
    """
    def mean(x, y, pairs):
        return (x[:, None] - y).norm(dim=2).sum() / pairs

    distances, n = [], len(real[0])
    for x, y in zip(real, fake, strict=True):
        x, y = x.float().mean((2, 3)), y.float().mean((2, 3))
        within = mean(x, x, n * (n - 1))
        # At least a fifth of E|x|, so that a batch of twins does not weigh without bounds (of
        # eight bedrooms it is 0.35 to 0.9 of it).
        scale = within.clamp_min(0.2 * x.norm(dim=1).mean())
        distances.append((2 * mean(x, y, n * n) - within - mean(y, y, n * (n - 1))) / scale)
    return torch.stack(distances).mean()


def projected_step(networks, optimizers, numerics, real, augment, levels, variety=0):
    """One update of D and of G on photos (n, 3, h, w) in [-1, 1]: the losses (D's, G's), detached.

    D sees the maps of `levels`, the frozen network of weights.critic_levels. With a weight,
    `variety`, G's update gets the energy distance, too, a third loss. One pass of G and of the
    frozen network over the fakes serves both updates; D's is cut off from it.
    """
    generator, discriminator = networks["generator"], networks["discriminator"]
    plain = devices.plain(discriminator)
    z = torch.randn(len(real), devices.plain(generator).z_dim, device=real.device)
    real = photos.diff_augment(real, augment)
    with numerics.autocast():
        fake, _ = generator(z)
    fake = photos.diff_augment(fake.float(), augment)
    with numerics.autocast():
        with torch.no_grad():
            real_maps = levels(real)
        fake_maps = levels(fake)

    with numerics.autocast(), devices.unsynchronized(discriminator):
        on_real = F.relu(1 - discriminator(real_maps, real).float()).mean()
    numerics.backward(on_real)
    with numerics.autocast():
        logits = discriminator([maps.detach() for maps in fake_maps], fake.detach())
    on_fake = F.relu(1 + logits.float()).mean()
    numerics.update(optimizers["discriminator"], on_fake)

    plain.requires_grad_(False)
    with numerics.autocast():
        g_loss = -plain(fake_maps, fake).float().mean()
    plain.requires_grad_(True)
    losses, loss = [on_real + on_fake, g_loss], g_loss
    if variety:
        losses.append(energy_distance(real_maps, fake_maps))
        loss = g_loss + variety * losses[-1]
    numerics.update(optimizers["generator"], loss)
    return torch.stack(losses).detach()


def projected(args, numerics):
    """As `published`: the discriminator; its step; its logits, which are of the image alone."""
    extended = args.discriminator == "extended"
    discriminator = ProjectedDiscriminator(args.features, extended).to(numerics.device)
    try:
        levels = critic_levels(device=numerics.device).to(memory_format=numerics.layout)
    except WeightsError as error:
        cli.fail(error)
    return (discriminator, functools.partial(projected_step, levels=levels, variety=args.variety),
            lambda image, image_128: discriminator(levels(image), image))


# All three -----------------------------------------------------------------------------------


@torch.no_grad()
def mean_logits(networks, logits, numerics, sets, row, args):
    """{of LOGITS: D's mean logit}, on a batch of training photos, of validation photos, of samples.

    In evaluation mode. When D learns its photos by heart, validation photos fall from the training
    photos to the samples (Karras et al. 2020, arXiv 2006.06676: r_v). logits: of `published` or
    `projected`; sets: training and validation photos; row: number of the log's row: each row has
    other photos and samples.
    """
    generator, n, means = networks["generator"], args.batch_size, []
    for network in networks.values():
        network.eval()
    with numerics.autocast():
        for images in sets:
            indices = photos.data_order(len(images), n * row, n, args.seed)
            image = photos.take_batch(images, indices, numerics.device)
            means.append(logits(image, F.interpolate(image, size=128)).float().mean())
        z = sampling.latents(args.seed, range(n * row, n * row + n), args.z_dim)
        fakes = generator(z.to(numerics.device))
        means.append(logits(*(fake.float() for fake in fakes)).float().mean())
    for network in networks.values():
        network.train()
    return dict(zip(LOGITS, torch.stack(means).tolist(), strict=True))


def fresh(args, checkpoint):
    """The networks that begin anew: a discriminator where the checkpoint's is of another kind."""
    if checkpoint is None:
        return []
    path, new = checkpoint["path"], args.discriminator
    old = checkpoint["args"].get("discriminator", "published")
    if old == new:
        return []
    if args.resume and not checkpoint["published"]:
        cli.fail(f"a resumed run keeps its discriminator: {old} in {path}, {new} now; "
                 f"--init {path} begins a new run with its generator")
    if devices.rank() == 0:
        cli.warn(f"{path} was trained with the {old} discriminator: the {new} one begins anew")
    return ["discriminator"]


def by_discriminator(args, checkpoint):
    """Sets the arguments whose defaults are the discriminator's; refuses what is not for it."""
    # Older versions kept a reconstruction loss in every checkpoint, used or not.
    kept = checkpoint and checkpoint["args"].get("reconstruction")
    if args.discriminator != "published" and args.reconstruction not in (None, kept):
        cli.fail("--reconstruction is for --discriminator published: others have no decoders")
    for name, defaults in (("augment", AUGMENT), ("variety", VARIETY),
                           ("reconstruction", RECONSTRUCTION)):
        if getattr(args, name) is None:
            setattr(args, name, defaults[args.discriminator])
    if args.variety and args.discriminator == "published":
        cli.fail("--variety is not for --discriminator published")
    if args.variety and args.batch_size == 1:
        cli.fail("--variety compares the images of a batch: --batch-size 2 or more, or --variety 0")


def averaged_parameters(generator, checkpoint):
    """Those of the checkpoint, or at first the generator's own."""
    average = copy.deepcopy(generator)
    if checkpoint:
        checkpoints.load_weights(average, checkpoint["sampler"], checkpoint["path"])
    return [parameter.detach() for parameter in average.parameters()]


def main(args, initial):
    """initial: the checkpoint of --resume or --init."""
    config = {"image_size": args.size, "z_dim": args.z_dim, "features": args.features}
    checkpoint = initial if args.resume else None
    by_discriminator(args, checkpoint)
    numerics = start(args, initial, DEMO, **config)
    new, device = fresh(args, initial), numerics.device
    build = published if args.discriminator == "published" else projected
    try:
        generator = FastGANGenerator(**config).to(device)
        discriminator, train_step, logits = build(args, numerics)
    except ValueError as error:
        cli.fail(f"--size {args.size}: {error}")
    sets, fingerprint = load_sets(args, device)
    images = sets[0]

    adam = {"lr": args.lr, "betas": BETAS[args.discriminator], "fused": True, "capturable": True}
    networks = {"generator": generator, "discriminator": discriminator}
    optimizers = {name: torch.optim.Adam(network.parameters(), **adam)
                  for name, network in networks.items()}
    if args.init:
        for name in networks.keys() - new:
            checkpoints.load_weights(networks[name], initial["networks"].get(name), args.init)
    names = LOSSES[args.discriminator] + ["g_distance"] * (args.variety > 0)
    run = Run("fastgan", args, checkpoint, numerics, config, networks, optimizers,
              (len(images), fingerprint), names, LOGITS, new)
    average = averaged_parameters(generator, checkpoint)
    fixed = sampling.latents(args.seed, range(16), args.z_dim).to(device)

    # The published decoders have no part in D's pass over fakes, which shares the gradients.
    decoders = args.discriminator == "published"
    if not decoders:
        generator.to_128.requires_grad_(False)  # the small image is not used: no gradients
    shared = {"generator": devices.parallel(generator),
              "discriminator": devices.parallel(discriminator, find_unused_parameters=decoders)}

    def step_and_average(real, weight):
        losses = train_step(shared, optimizers, numerics, real, args.augment)
        sampling.update_average(average, generator.parameters(), weight)
        return losses

    update = run.recorded(step_and_average)
    for step in run.steps(args.iters):
        real = photos.mirror(photos.take_batch(images, run.draw(), device))
        weight = sampling.average_weight(run.trained + step)
        run.add(update(real, torch.full((), weight, device=device)))
        if run.log_due and len(sets) > 1:
            run.log(**mean_logits(networks, logits, numerics, sets, step // args.log_every, args))
        else:
            run.log()
        if run.sample_due or run.save_due:
            sampler = sampling.sampling_copy(generator, average)
        if run.sample_due:
            run.save_grid(sampler(fixed)[0])
            if decoders:
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
    group.add_argument("--discriminator", choices=LOSSES, default="published",
                       help="published learns to see from nothing, projected sees through "
                            "EfficientNet: rooms in a tenth of the steps; extended sees pixels, "
                            "colours and the whole image, too, without batch norm")
    group.add_argument("--variety", type=cli.weight, metavar="WEIGHT",
                       help="with projected or extended: weight of the batch's energy distance in "
                            "the generator's loss, of neither paper (default: 3 with extended, "
                            "else 0)")
    group.add_argument("--reconstruction", choices=["lpips", "l1"],
                       help="loss of the published discriminator's decoders; l1 needs no "
                            "pretrained weights (default: lpips)")
    group.add_argument("--augment", type=cli.augmentation, metavar="LIST",
                       help="DiffAugment: color, translation, cutout, or none (default: by "
                            "discriminator)")
    group.add_argument("--init", metavar="CKPT", help="begin a new run with the networks of a "
                       "checkpoint, and their sizes, whatever its photos were")
    group.add_argument("--small", action="store_true",
                       help="settings for a CPU or laptop: extended, 256×256, narrow networks")
    launch(main, parser, "fastgan", demo=DEMO, small=SMALL)
