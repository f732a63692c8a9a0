"""Train a GAN of linear layers (Goodfellow et al. 2014, arXiv 1406.2661) on small images.

    python train_gan.py --data data/all                      # the study: 28×28, 50 epochs
    python train_gan.py --data data/bedroom --limit 2 --batch-size 16 --epochs 3000
    python train_gan.py --data data/digits --batch-size 16   # after prepare_data.py --digits
    python train_gan.py --demo                               # drawn scenes, a minute on a CPU

Checkpoints, samples and the log go to runs/gan-<data>-<time>/; a step is an epoch.
"""

import torch
from torch.nn import functional as F

from common import cli, devices, photos, sampling
from common.run import Run, launch, load_photos, start
from nets import GANDiscriminator, GANGenerator

DEMO = {"data": "data/demo", "batch_size": 16, "epochs": 50, "ckpt_every": 25,
        "sample_every": 10, "log_every": 1}


def train_step(networks, optimizers, numerics, real):
    """One update of both networks on photos (n, 3, h, w) in [-1, 1]: (d_loss, g_loss), detached.

    Binary cross-entropy on logits; G's is the non-saturating one. D has no batch norm, so that
    photos and samples can be one batch.
    """
    generator, discriminator = networks["generator"], networks["discriminator"]
    judge = devices.plain(discriminator)  # of G's samples: D learns nothing from it
    n = len(real)
    z = torch.randn(n, devices.plain(generator).z_dim, device=real.device)
    is_real = torch.cat([torch.ones(n, device=real.device), torch.zeros(n, device=real.device)])

    with numerics.autocast():
        fake = generator(z)
        logits = discriminator(torch.cat([real, fake.detach()]))
    d_loss = F.binary_cross_entropy_with_logits(logits.float(), is_real)
    numerics.update(optimizers["discriminator"], d_loss)

    judge.requires_grad_(False)  # its gradients would be thrown away
    with numerics.autocast():
        logits = judge(fake)
    judge.requires_grad_(True)
    g_loss = F.binary_cross_entropy_with_logits(logits.float(), is_real[:n])
    numerics.update(optimizers["generator"], g_loss)
    return torch.stack([d_loss, g_loss]).detach()


def main(args, checkpoint):
    config = {"image_size": args.size, "z_dim": args.z_dim}
    if args.batch_size < 2:
        cli.fail("--batch-size 1: batch norm needs two images")
    numerics = start(args, checkpoint, DEMO, **config)
    device = numerics.device
    networks = {"generator": GANGenerator(**config).to(device),
                "discriminator": GANDiscriminator(args.size).to(device)}
    adam = {"lr": args.lr, "betas": (0.5, 0.999), "fused": True, "capturable": True}
    optimizers = {name: torch.optim.AdamW(network.parameters(), **adam)
                  for name, network in networks.items()}
    images, fingerprint = load_photos(args, device)
    run = Run("gan", args, checkpoint, numerics, config, networks, optimizers,
              (len(images), fingerprint), ["d_loss", "g_loss"])
    fixed = sampling.latents(args.seed, range(64), args.z_dim).to(device)

    shared = {name: devices.parallel(network) for name, network in networks.items()}
    update = run.recorded(lambda real: train_step(shared, optimizers, numerics, real))
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
    cli.add_training_flags(parser, data="data/all", size=28, fit="square", lr=2e-4,
                           batch_size=128, every=(10, 5, 1))
    group = parser.add_argument_group("GAN")
    group.add_argument("--epochs", type=cli.count, default=50, metavar="N",
                       help="epochs in all, those of a resumed run included")
    group.add_argument("--z-dim", type=cli.width, default=50, metavar="N",
                       help="length of a latent")
    launch(main, parser, "gan", demo=DEMO)
