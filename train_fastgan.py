"""Train a FastGAN (Liu et al. 2021, arXiv 2101.04775) on a folder of photos.

    python train_fastgan.py --data data/bedroom                 # the study: 1024×1024, 50,000 steps
    python train_fastgan.py --data data/bedroom --size 256
    python train_fastgan.py --resume latest --iters 100000      # the next phase, exactly continued
    python train_fastgan.py --demo                              # drawn scenes, minutes on a CPU

Checkpoints, samples and the log go to runs/fastgan-<data>-<time>/.
"""

import copy
import sys

import torch
from torch.nn import functional as F
from tqdm import tqdm

import training
from nets import FastGANDiscriminator, FastGANGenerator, quadrant

DEMO = {"data": "data/demo", "size": 256, "features": 16, "batch_size": 4, "iters": 500,
        "reconstruction": "l1", "ckpt_every": 250, "sample_every": 100, "log_every": 10}


def augmentation(text):
    """The names in --augment, as a list."""
    names = [] if text == "none" else text.split(",")
    if not set(names) <= {"color", "translation"}:
        raise ValueError
    return names


def perceptual_distance(kind, device):
    """A function of two image batches in [-1, 1] that returns their distance, summed over images.

    "lpips": LPIPS-VGG, as published. "l1": mean absolute difference, which needs no weights.
    """
    if kind == "l1":
        return lambda x, y: (x - y).abs().mean((1, 2, 3)).sum()
    from metrics import WeightsError, lpips_network

    try:
        network = lpips_network("vgg", device=device)
    except WeightsError as error:
        training.fail(str(error).replace("--weights random", "--reconstruction l1"))
    return lambda x, y: network(x, y).sum()


def hinge_real(logits):
    """Hinge loss on real logits, its margin drawn from U(0.8, 1) for each."""
    return F.relu(torch.rand_like(logits) * 0.2 + 0.8 - logits).mean()


def hinge_fake(logits):
    """Hinge loss on fake logits, its margin drawn from U(0.8, 1) for each."""
    return F.relu(torch.rand_like(logits) * 0.2 + 0.8 + logits).mean()


def reconstruction_loss(discriminator, maps, real, real_128, part, distance):
    """The three decoded images against the real ones they show, shrunk by nearest interpolation."""
    whole, whole_small, quarter = discriminator.reconstruct(maps, part)
    target = F.interpolate(quadrant(real, part), size=128)
    return distance(whole, real_128) + distance(whole_small, real_128) + distance(quarter, target)


def train_step(networks, optimizers, average, decay, real, augment, distance):
    """One iteration on photos (n, 3, size, size) in [-1, 1]: the three losses, (3,), detached.

    Updates both networks and the averaged parameters, these with `decay`. One pass of G serves
    both updates, and each sees the fakes through the same augmentation. `distance` is of
    perceptual_distance.
    """
    generator, discriminator = networks["generator"], networks["discriminator"]
    z = torch.randn(len(real), generator.z_dim, device=real.device)
    part = int(torch.randint(4, ()))
    real = training.diff_augment(real, augment)
    fakes = [training.diff_augment(fake, augment) for fake in generator(z)]

    real_128 = F.interpolate(real, size=128)
    logits, maps = discriminator(real, real_128)
    reconstruction = reconstruction_loss(discriminator, maps, real, real_128, part, distance)
    on_real = hinge_real(logits)
    (on_real + reconstruction).backward()
    on_fake = hinge_fake(discriminator(*(fake.detach() for fake in fakes))[0])
    on_fake.backward()
    optimizers["discriminator"].step()
    optimizers["discriminator"].zero_grad(set_to_none=True)

    discriminator.requires_grad_(False)  # its gradients would be thrown away
    g_loss = -discriminator(*fakes)[0].mean()
    g_loss.backward()
    discriminator.requires_grad_(True)
    optimizers["generator"].step()
    optimizers["generator"].zero_grad(set_to_none=True)
    with torch.no_grad():
        torch._foreach_lerp_(average, list(generator.parameters()), 1 - decay)
    return torch.stack([on_real + on_fake, reconstruction, g_loss]).detach()


@torch.no_grad()
def save_reconstructions(discriminator, images, path, device):
    """A grid: photos; decoded from the last map; from the small path; top left quadrants; decoded.

    Batch statistics, as in training, on a copy that may change its buffers.
    """
    discriminator = copy.deepcopy(discriminator).train()
    real = images[:8].to(device).float() / 127.5 - 1
    real_128 = F.interpolate(real, size=128)
    maps = discriminator(real, real_128)[1]
    whole, whole_small, quarter = discriminator.reconstruct(maps, 0)
    target = F.interpolate(quadrant(real, 0), size=128)
    rows = torch.cat([real_128, whole, whole_small, target, quarter])
    training.save_grid(rows, path, columns=len(real))


def main(args, checkpoint):
    device = training.choose_device(args.device)
    args.device = str(device)
    if args.demo and args.data == DEMO["data"]:
        training.make_demo_data(args.data)
    config = {"image_size": args.size, "z_dim": args.z_dim, "features": args.features}
    if checkpoint:
        training.check_unchanged(checkpoint, **config)
    torch.manual_seed(args.seed)
    try:
        generator = FastGANGenerator(**config).to(device)
    except ValueError as error:
        training.fail(f"--size {args.size}: {error}")
    discriminator = FastGANDiscriminator(args.size, args.features).to(device)
    distance = perceptual_distance(args.reconstruction, device)
    images, fingerprint = training.load_images(args.data, "train", args.size)
    images = training.place_images(images, device)

    adam = {"lr": args.lr, "betas": (0.5, 0.999)}
    optimizers = {"generator": torch.optim.Adam(generator.parameters(), **adam),
                  "discriminator": torch.optim.Adam(discriminator.parameters(), **adam)}
    networks = {"generator": generator, "discriminator": discriminator}
    average = [parameter.detach().clone() for parameter in generator.parameters()]
    totals = torch.zeros(3, device=device)  # of the losses since the last row of the log
    names = ["d_hinge", "d_reconstruction", "g_loss"]
    start = seen = logged = 0
    if checkpoint:
        training.check_data(checkpoint, args.data, fingerprint)
        start, path = checkpoint["step"], checkpoint["path"]
        for name, network in networks.items():
            training.load_weights(network, checkpoint["networks"][name], path)
        average = [checkpoint["averaged"][name].to(device)
                   for name, _ in generator.named_parameters()]
        if checkpoint["optimizers"]:
            for name, optimizer in optimizers.items():
                training.load_weights(optimizer, checkpoint["optimizers"][name], path)
                for group in optimizer.param_groups:
                    group["lr"] = args.lr
        else:
            print(f"{path} holds no optimisers: Adam starts afresh", file=sys.stderr)
        seen, logged = checkpoint.get("seen", start * args.batch_size), start
        if not checkpoint["published"]:
            totals, logged = checkpoint["totals"].to(device), checkpoint["logged"]
            training.set_random_state(checkpoint["random"], device)
    if start >= args.iters:
        print(f"{checkpoint['path']} is at step {start} of --iters {args.iters}: nothing to do")
        return

    folder = training.open_run(args, "fastgan", checkpoint)
    print(f"{len(images)} photos at {args.size}×{args.size} on {device}; run folder {folder}")
    fixed = training.latents(args.seed, range(16), args.z_dim).to(device)

    def save(step, averaged):
        return training.save_checkpoint(folder, {
            "model": "fastgan", "config": config, "step": step, "args": vars(args),
            "networks": {name: network.state_dict() for name, network in networks.items()},
            "averaged": averaged.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
            "random": training.random_state(device), "seen": seen, "data": fingerprint,
            "totals": totals, "logged": logged,
        }, args.keep)

    caught = training.catch_signals()
    bar = tqdm(range(start + 1, args.iters + 1), initial=start, total=args.iters, unit="it",
               disable=None)
    for step in bar:
        indices = training.data_order(len(images), seen, args.batch_size, args.seed)
        real = training.take_batch(images, indices, device)
        seen += len(real)
        decay = training.average_decay(step)
        totals += train_step(networks, optimizers, average, decay, real, args.augment, distance)

        stop = bool(caught) or step == args.iters
        checkpoint_due = stop or step % args.ckpt_every == 0
        if checkpoint_due or step % args.log_every == 0:
            training.check_finite(dict(zip(names, totals.tolist(), strict=True)), logged, step)
        if step % args.log_every == 0:
            losses = (totals / (step - logged)).tolist()
            row = dict(zip(names, losses, strict=True))
            training.append_row(folder / "log.csv", {"step": step, **row})
            bar.set_postfix({name: f"{loss:.3f}" for name, loss in row.items()})
            totals.zero_()
            logged = step
        sample_due = step % args.sample_every == 0 or step == args.iters
        if sample_due or checkpoint_due:
            averaged = training.averaged_generator(generator, average)
        if sample_due:
            training.save_grid(averaged(fixed)[0], folder / f"samples_{step:06d}.png")
            save_reconstructions(discriminator, images,
                                 folder / f"reconstructions_{step:06d}.png", device)
            training.plot_losses(folder)
        if checkpoint_due:
            path = save(step, averaged)
        if stop:
            break
    bar.close()
    print(f"step {step}: {path}")
    if caught:
        print(f"stopped by a signal; --resume {folder} goes on", file=sys.stderr)
        sys.exit(128 + caught[0])


if __name__ == "__main__":
    parser = training.Parser(__doc__)
    training.add_common_arguments(parser, size=1024, batch_size=8, lr=2e-4, ckpt_every=5000,
                                  sample_every=1000, log_every=100)
    group = parser.add_argument_group("FastGAN")
    group.add_argument("--iters", type=training.count, default=50000, help="steps in all")
    group.add_argument("--features", type=training.count, default=64, help="width of the networks")
    group.add_argument("--z-dim", type=training.count, default=256, help="length of a latent")
    group.add_argument("--reconstruction", choices=["lpips", "l1"], default="lpips",
                       help="the decoders' loss; l1 needs no pretrained weights")
    group.add_argument("--augment", type=augmentation, default="color,translation",
                       help="DiffAugment: color, translation, both or none")
    with training.system_errors():
        main(*training.parse_arguments(parser, "fastgan", DEMO))
