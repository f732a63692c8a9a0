"""Train a DCGAN (Radford et al. 2015, arXiv 1511.06434) on a folder of photos.

    python train_dcgan.py --data data/bedroom                     # the study: 64×64, 1350 epochs
    python train_dcgan.py --data data/bedroom --augment color,translation
    python train_dcgan.py --resume latest --epochs 2000           # exactly continued
    python train_dcgan.py --demo                                  # drawn scenes, minutes on a CPU

Checkpoints, samples and the log go to runs/dcgan-<data>-<time>/; a step is an epoch.
"""

import torch
from torch.nn import functional as F

from common import cli, devices, photos, sampling
from common.run import Run, launch, load_photos, start
from nets import DCGANDiscriminator, DCGANGenerator

DEMO = {"data": "data/demo", "features": 16, "batch_size": 16, "epochs": 50, "ckpt_every": 25,
        "augment": "color,translation",  # without it D wins over so few scenes
        "sample_every": 10, "log_every": 1}


def cross_entropy(logits, is_real):
    """Binary cross-entropy of logits against one label."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, is_real))


def train_step(networks, optimizers, numerics, real, augment):
    """One update of both networks on photos (n, 3, h, w) in [-1, 1]: (d_loss, g_loss), detached.

    D sees photos and samples in batches of their own, since its batch norms would tell a mixed one
    apart. One pass of G serves both updates. `augment` is of diff_augment, on all that D sees.
    """
    generator, discriminator = networks["generator"], networks["discriminator"]
    judge = devices.plain(discriminator)  # of G's samples: D learns nothing from it
    z = torch.randn(len(real), devices.plain(generator).z_dim, device=real.device)

    def logits(network, images):
        with numerics.autocast():
            return network(photos.diff_augment(images, augment))

    with numerics.autocast():
        fake = generator(z)
    d_loss = cross_entropy(logits(discriminator, real), 1)
    d_loss = d_loss + cross_entropy(logits(discriminator, fake.detach()), 0)
    numerics.update(optimizers["discriminator"], d_loss)

    judge.requires_grad_(False)  # its gradients would be thrown away
    g_loss = cross_entropy(logits(judge, fake), 1)
    judge.requires_grad_(True)
    numerics.update(optimizers["generator"], g_loss)
    return torch.stack([d_loss, g_loss]).detach()


def main(args, checkpoint):
    config = {"image_size": args.size, "z_dim": args.z_dim, "features": args.features}
    numerics = start(args, checkpoint, DEMO, **config)
    device = numerics.device
    try:
        networks = {"generator": DCGANGenerator(**config),
                    "discriminator": DCGANDiscriminator(args.size, args.features)}
    except ValueError as error:
        cli.fail(f"--size {args.size}: {error}")
    for network in networks.values():
        network.to(device, memory_format=numerics.layout)
    adam = {"lr": args.lr, "betas": (0.5, 0.999), "fused": True, "capturable": True}
    optimizers = {name: torch.optim.Adam(network.parameters(), **adam)
                  for name, network in networks.items()}
    images, fingerprint = load_photos(args, device)
    run = Run("dcgan", args, checkpoint, numerics, config, networks, optimizers,
              (len(images), fingerprint), ["d_loss", "g_loss"])
    fixed = sampling.latents(args.seed, range(64), args.z_dim).to(device)

    shared = {name: devices.parallel(network) for name, network in networks.items()}
    update = run.recorded(
        lambda real: train_step(shared, optimizers, numerics, real, args.augment))
    for _ in run.steps(args.epochs):
        for indices in run.batches():
            run.add(update(photos.take_batch(images, indices, device)))
        run.log()
        if run.sample_due or run.save_due:
            sampler = sampling.sampling_copy(networks["generator"])
        if run.sample_due:
            run.save_grid(sampler(fixed))
        if run.save_due:
            run.save(sampler)


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    cli.add_training_flags(parser, data="data/bedroom", size=64, fit="crop", lr=2e-4,
                           batch_size=128, every=(50, 25, 1))
    group = parser.add_argument_group("DCGAN")
    group.add_argument("--epochs", type=cli.count, default=1350, metavar="N",
                       help="epochs in all, those of a resumed run included")
    group.add_argument("--features", type=cli.width, default=64, metavar="N",
                       help="width of the networks")
    group.add_argument("--z-dim", type=cli.width, default=100, metavar="N",
                       help="length of a latent")
    group.add_argument("--augment", type=cli.augmentation, default="none", metavar="LIST",
                       help="DiffAugment: color, translation, cutout, or none")
    launch(main, parser, "dcgan", demo=DEMO)
