"""Train a convolutional VAE (Kingma and Welling 2013, arXiv 1312.6114) on a folder of photos.

    python train_vae.py --data data/bedroom                       # the study's second: 256×256
    python train_vae.py --data data/bedroom --size 64 --latent 256 --lr 5e-3 --lr-decay 0.95 \\
        --batch-size 64 --epochs 100                              # its first
    python train_vae.py --resume latest --epochs 2000             # exactly continued
    python train_vae.py --demo                                    # drawn scenes, minutes on a CPU

Checkpoints, samples, reconstructions and the log go to runs/vae-<data>-<time>/; a step is an epoch.
"""

import math

import torch
from torch.nn import functional as F

from common import cli, devices, photos, sampling
from common.run import Run, launch, load_sets, start
from nets import VAE

DEMO = {"data": "data/demo", "size": 64, "latent": 64, "lr": 1e-3, "batch_size": 16, "epochs": 50,
        "ckpt_every": 25, "sample_every": 10, "log_every": 1}


def divergence(mean, log_variance):
    """KL(N(mean, variance) || N(0, 1)) of latents (n, z_dim), a mean over images, in nats.

    Kingma and Welling 2013, appendix B. Finite for what nets.VAEEncoder gives.
    """
    terms = mean.square() + log_variance.exp() - 1 - log_variance
    return terms.sum(1).mean() / 2


def losses(vae, numerics, images):
    """(mean squared error over pixels, KL) of images in [-1, 1]."""
    with numerics.autocast():
        reconstructed, mean, log_variance = vae(images)
    return F.mse_loss(reconstructed.float(), images), divergence(mean, log_variance)


def train_step(vae, optimizer, numerics, real, kl_weight):
    """One update on photos (n, 3, h, w) in [-1, 1]: (reconstruction, KL, total), detached."""
    reconstruction, kl = losses(vae, numerics, real)
    total = reconstruction + kl_weight * kl
    numerics.update(optimizer, total)
    return torch.stack([reconstruction, kl, total]).detach()


@torch.no_grad()
def validate(vae, numerics, images, batch_size, kl_weight, stopping):
    """The losses over all validation photos, in evaluation mode, as columns of the log.

    `stopping` is asked after each batch: where it says so, the rest is left out.
    """
    vae.eval()
    sums = torch.zeros(2, device=numerics.device)
    for indices in torch.arange(len(images)).split(batch_size):
        batch = photos.take_batch(images, indices, numerics.device)
        sums += torch.stack(losses(vae, numerics, batch)) * len(batch)
        if stopping():
            break
    vae.train()
    reconstruction, kl = (sums / len(images)).tolist()
    return {"val_reconstruction": reconstruction, "val_kl": kl,
            "val_total": reconstruction + kl_weight * kl}


@torch.no_grad()
def reconstructions(vae, sets, device):
    """Eight photos of each set and, below them, what a VAE in evaluation mode makes of them."""
    rows = []
    for images in sets:
        batch = photos.take_batch(images, torch.arange(8) % len(images), device)
        rows += [batch, vae(batch)[0]]
    return torch.cat(rows)


def main(args, checkpoint):
    config = {"image_size": args.size, "z_dim": args.latent}
    if args.batch_size < 2 and args.size == 32:
        cli.fail("--batch-size 1: batch norm of 1×1 maps needs two images")
    numerics = start(args, checkpoint, DEMO, **config)
    device = numerics.device
    try:
        vae = VAE(**config).to(device, memory_format=numerics.layout)
    except ValueError as error:
        cli.fail(f"--size {args.size}: {error}")
    # The learning rate is a tensor, so that a CUDA graph sees it change.
    optimizer = torch.optim.Adam(vae.parameters(), torch.tensor(args.lr, device=device),
                                 fused=True, capturable=True)
    sets, fingerprint = load_sets(args, device)
    images = sets[0]
    # The decoder is named as the generator of the other models is, and sampled from like it.
    networks = {"encoder": vae.encoder, "generator": vae.decoder}
    run = Run("vae", args, checkpoint, numerics, config, networks, {"vae": optimizer},
              (len(images), fingerprint), ["reconstruction", "kl", "total"])
    fixed = sampling.latents(args.seed, range(16), args.latent).to(device)

    shared = devices.parallel(vae)
    update = run.recorded(
        lambda real: train_step(shared, optimizer, numerics, real, args.kl_weight))
    for epoch in run.steps(args.epochs):
        optimizer.param_groups[0]["lr"].fill_(args.lr * args.lr_decay ** (epoch - 1))
        for indices in run.batches():
            run.add(update(photos.take_batch(images, indices, device)))
        if run.log_due and len(sets) > 1:
            run.log(**validate(vae, numerics, sets[1], args.batch_size, args.kl_weight,
                               run.stopping))
        else:
            run.log()
        if run.sample_due:
            vae.eval()
            with torch.no_grad():
                run.save_grid(vae.decoder(fixed))
            run.save_grid(reconstructions(vae, sets, device), "reconstructions")
            vae.train()
        if run.save_due:
            run.save(vae.decoder)


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    cli.add_training_flags(parser, data="data/bedroom", size=256, fit="square", lr=3e-4,
                           batch_size=8, every=(50, 25, 5))
    group = parser.add_argument_group("VAE")
    group.add_argument("--epochs", type=cli.count, default=1500, metavar="N",
                       help="epochs in all, those of a resumed run included")
    group.add_argument("--latent", type=cli.width, default=512, metavar="N",
                       help="length of a latent")
    group.add_argument("--kl-weight", type=cli.number(float, 0), default=0.00025, metavar="X",
                       help="weight of the KL divergence in the loss")
    group.add_argument("--lr-decay", type=cli.number(float, 0, math.nextafter(1, 2)),
                       default=1.0, metavar="X",
                       help="factor on the learning rate after each epoch")
    launch(main, parser, "vae", demo=DEMO)
