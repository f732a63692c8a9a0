"""Every model, small unless told otherwise: its script's arguments, networks, a step of them."""

import torch

import nets
import train_dcgan
import train_fastgan
import train_gan
import train_vae

SIZES = {"gan": 8, "dcgan": 16, "vae": 32, "fastgan": 256}
ARGUMENTS = {
    "gan": ["--size", 8, "--z-dim", 4],
    "dcgan": ["--size", 8, "--features", 4, "--z-dim", 4, "--augment", "color,translation"],
    "vae": ["--size", 32, "--latent", 4, "--lr-decay", 0.9],
    "fastgan": ["--size", 256, "--features", 2, "--z-dim", 8, "--reconstruction", "l1"],
}
STEPS = {"gan": "--epochs", "dcgan": "--epochs", "vae": "--epochs", "fastgan": "--iters"}


def networks(model, size=None, z_dim=16, features=4, seed=0):
    torch.manual_seed(seed)
    size = size or SIZES[model]
    if model == "vae":
        return {"vae": nets.VAE(size, z_dim)}
    width = () if model == "gan" else (features,)
    generator, discriminator = {
        "gan": (nets.GANGenerator, nets.GANDiscriminator),
        "dcgan": (nets.DCGANGenerator, nets.DCGANDiscriminator),
        "fastgan": (nets.FastGANGenerator, nets.FastGANDiscriminator)}[model]
    return {"generator": generator(size, z_dim, *width),
            "discriminator": discriminator(size, *width)}


def photos(model, n, size=None):
    size = size or SIZES[model]
    return torch.rand(n, 3, size, size) * 2 - 1


def training(model, networks, optimizers, numerics, policy=(), distance=None):
    """(its step, a function of photos; FastGAN's averaged parameters, which that changes)."""
    average = [p.detach().clone() for p in networks["generator"].parameters()
               ] if model == "fastgan" else []
    step = {
        "gan": lambda real: train_gan.train_step(networks, optimizers, numerics, real),
        "dcgan": lambda real: train_dcgan.train_step(networks, optimizers, numerics, real, policy),
        "vae": lambda real: train_vae.train_step(*networks.values(), *optimizers.values(),
                                                 numerics, real, 0.01),
        "fastgan": lambda real: train_fastgan.train_step(
            networks, optimizers, numerics, average, real.amax(), real, policy, distance),
    }[model]
    return step, average
