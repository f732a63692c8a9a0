"""Train a DCGAN (Radford et al. 2015, arXiv 1511.06434) on a folder of photos.

    python train_dcgan.py --data data/bedroom                     # the study: 64×64, 1350 epochs
    python train_dcgan.py --data data/bedroom --augment color,translation
    python train_dcgan.py --resume latest --epochs 2000           # exactly continued
    python train_dcgan.py --demo                                  # drawn scenes, minutes on a CPU

Checkpoints, samples and the log go to runs/dcgan-<data>-<time>/; a step is an epoch.
"""

import torch
from torch.nn import functional as F

import training
from nets import DCGANDiscriminator, DCGANGenerator

DEMO = {"data": "data/demo", "features": 16, "batch_size": 16, "epochs": 200, "ckpt_every": 100,
        "augment": "color,translation",  # without it D wins over so few scenes
        "sample_every": 50, "log_every": 5}


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
    z = torch.randn(len(real), generator.z_dim, device=real.device)

    def judged(images):
        with numerics.autocast():
            return discriminator(training.diff_augment(images, augment))

    with numerics.autocast():
        fake = generator(z)
    d_loss = cross_entropy(judged(real), 1) + cross_entropy(judged(fake.detach()), 0)
    numerics.update(optimizers["discriminator"], d_loss)

    discriminator.requires_grad_(False)  # its gradients would be thrown away
    g_loss = cross_entropy(judged(fake), 1)
    discriminator.requires_grad_(True)
    numerics.update(optimizers["generator"], g_loss)
    return torch.stack([d_loss, g_loss]).detach()


def main(args, checkpoint):
    config = {"image_size": args.size, "z_dim": args.z_dim, "features": args.features}
    numerics = training.start(args, checkpoint, DEMO, **config)
    device = numerics.device
    try:
        networks = {"generator": DCGANGenerator(**config),
                    "discriminator": DCGANDiscriminator(args.size, args.features)}
    except ValueError as error:
        training.fail(f"--size {args.size}: {error}")
    for network in networks.values():
        network.to(device, memory_format=numerics.layout)
    adam = {"lr": args.lr, "betas": (0.5, 0.999), "fused": True, "capturable": True}
    optimizers = {name: torch.optim.Adam(network.parameters(), **adam)
                  for name, network in networks.items()}
    images, fingerprint = training.load_photos(args, device)
    run = training.Run("dcgan", args, checkpoint, numerics, config, networks, optimizers,
                       (len(images), fingerprint), ["d_loss", "g_loss"])
    fixed = training.latents(args.seed, range(64), args.z_dim).to(device)

    update = run.compiled(
        lambda real: train_step(networks, optimizers, numerics, real, args.augment))
    for epoch in run.steps(args.epochs):
        for indices in training.epoch_batches(len(images), args.batch_size, epoch - 1, args.seed):
            real = training.take_batch(images, indices, device)
            run.add(update(real))
        run.log()
        if run.sample_due or run.save_due:
            sampler = training.sampling_copy(networks["generator"])
        if run.sample_due:
            run.save_grid(sampler(fixed))
        if run.save_due:
            run.save(sampler)


if __name__ == "__main__":
    parser = training.Parser(__doc__)
    training.add_common_arguments(parser, data="data/bedroom", size=64, fit="crop", lr=2e-4,
                                  batch_size=128, every=(50, 25, 1))
    group = parser.add_argument_group("DCGAN")
    group.add_argument("--epochs", type=training.count, default=1350, metavar="N",
                       help="steps in all")
    group.add_argument("--features", type=training.width, default=64, metavar="N",
                       help="width of the networks")
    group.add_argument("--z-dim", type=training.width, default=100, metavar="N",
                       help="length of a latent")
    group.add_argument("--augment", type=training.augmentation, default="none", metavar="LIST",
                       help="DiffAugment: color, translation, both or none")
    with training.system_errors():
        training.train(main, *training.parse_arguments(parser, "dcgan", DEMO))
