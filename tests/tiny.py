"""Every model, small unless told otherwise: its script's arguments, networks, a step of them.

"projected" is FastGAN with the projected discriminator, in SMALL with the extended one, which has
networks and a step of its own here, "extended".
"""

import functools

import torch

import nets
import train_dcgan
import train_fastgan
import train_gan
import train_vae
from common import sampling, weights

SIZES = {"gan": 8, "dcgan": 16, "vae": 32, "fastgan": 256, "projected": 256, "extended": 256}
FASTGAN = ["--size", 256, "--features", 2, "--z-dim", 8]
ARGUMENTS = {
    "gan": ["--size", 8, "--z-dim", 4],
    "dcgan": ["--size", 8, "--features", 4, "--z-dim", 4, "--augment", "color,translation"],
    "vae": ["--size", 32, "--latent", 4, "--lr-decay", 0.9],
    "fastgan": [*FASTGAN, "--reconstruction", "l1"],
    "projected": [*FASTGAN, "--discriminator", "projected"],
}
SMALL = {**ARGUMENTS, "projected": [*FASTGAN, "--discriminator", "extended"]}
STEPS = {"gan": "--epochs", "dcgan": "--epochs", "vae": "--epochs", "fastgan": "--iters",
         "projected": "--iters"}
SCRIPTS = {model: f"train_{'fastgan' if model == 'projected' else model}.py" for model in STEPS}

critic_levels = functools.cache(weights.critic_levels)


def networks(model, size=None, z_dim=16, features=4, seed=0):
    torch.manual_seed(seed)
    size = size or SIZES[model]
    if model == "vae":
        return {"vae": nets.VAE(size, z_dim)}
    width = () if model == "gan" else (features,)
    generator, discriminator = {
        "gan": (nets.GANGenerator, nets.GANDiscriminator),
        "dcgan": (nets.DCGANGenerator, nets.DCGANDiscriminator),
        "fastgan": (nets.FastGANGenerator, nets.FastGANDiscriminator),
        "projected": (nets.FastGANGenerator,
                      lambda _, width: nets.ProjectedDiscriminator(width)),
        "extended": (nets.FastGANGenerator,
                     lambda _, width: nets.ProjectedDiscriminator(width, extended=True))}[model]
    return {"generator": generator(size, z_dim, *width),
            "discriminator": discriminator(size, *width)}


def photos(model, n, size=None):
    size = size or SIZES[model]
    return torch.rand(n, 3, size, size) * 2 - 1


def training(model, networks, optimizers, numerics, policy=(), distance=None):
    """(its step, a function of photos; FastGAN's averaged parameters, which that changes)."""
    average, levels, common = [], None, (networks, optimizers, numerics)
    if model in ("fastgan", "projected", "extended"):
        average = [p.detach().clone() for p in networks["generator"].parameters()]
    if model in ("projected", "extended"):
        levels = critic_levels(device=numerics.device)
    step = {
        "gan": lambda real: train_gan.train_step(*common, real),
        "dcgan": lambda real: train_dcgan.train_step(*common, real, policy),
        "vae": lambda real: train_vae.train_step(*networks.values(), *optimizers.values(),
                                                 numerics, real, 0.01),
        "fastgan": lambda real: train_fastgan.published_step(*common, real, policy, distance),
        "projected": lambda real: train_fastgan.projected_step(*common, real, policy, levels),
        "extended": lambda real: train_fastgan.projected_step(*common, real, policy, levels,
                                                              train_fastgan.VARIETY["extended"]),
    }[model]

    def averaging(real):
        losses = step(real)
        if average:
            sampling.update_average(average, networks["generator"].parameters(), real.amax())
        return losses

    return averaging, average
