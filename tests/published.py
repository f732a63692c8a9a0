"""What published code computes: references of tests and of benchmarks. FastGAN's steps first:

float32, nothing spared: D's gradients flow in G's step too and are thrown away, the average is
kept tensor by tensor, and shrinking, quadrants and losses are spelled out.
"""

from unittest import mock

import numpy as np
import torch

from common import photos


def published_l1(x, y):
    return (x - y).abs().flatten(1).mean(1).sum()


def published_step(g, d, adam_g, adam_d, average, decay, real, distance):
    """One iteration on photos in [-1, 1]; changes the networks and `average` (a list).

    Gives the losses (3,) as train_fastgan.published_step does.
    """
    policy = ["color", "translation"]
    z = torch.randn(len(real), g.z_dim, device=real.device)
    part = int(torch.randint(4, (), device=real.device))
    real = photos.diff_augment(real, policy)
    big, small = g(z)
    big, small = photos.diff_augment(big, policy), photos.diff_augment(small, policy)

    d.zero_grad()
    half, stride = real.shape[-1] // 2, real.shape[-1] // 128
    shrunk = real[:, :, ::stride, ::stride]
    top, left = part // 2 * half, part % 2 * half
    crop = real[:, :, top : top + half, left : left + half]
    crop = crop[:, :, :: stride // 2, :: stride // 2]
    logits, maps = d(real, shrunk)
    whole, whole_small, quarter = d.reconstruct(maps, part)
    loss = distance(whole, shrunk) + distance(whole_small, shrunk) + distance(quarter, crop)
    margin = 0.8 + 0.2 * torch.rand(logits.shape, device=real.device)
    on_real = (margin - logits).clamp(min=0).mean()
    (loss + on_real).backward()
    logits, _ = d(big.detach(), small.detach())
    margin = 0.8 + 0.2 * torch.rand(logits.shape, device=real.device)
    on_fake = (margin + logits).clamp(min=0).mean()
    on_fake.backward()
    adam_d.step()

    g.zero_grad()
    g_loss = -d(big, small)[0].mean()
    g_loss.backward()
    adam_g.step()
    keep_average(average, g, decay)
    return torch.stack([on_real + on_fake, loss, g_loss]).detach()


def energy_distance(real, fake):
    """Of two lists of vectors, over that of the real ones, pair by pair."""
    def mean(xs, ys):
        return sum((x - y).square().sum().sqrt() for x in xs for y in ys if x is not y) / (
            len(xs) * (len(ys) - (xs is ys)))

    within = mean(real, real)
    return (2 * mean(real, fake) - within - mean(fake, fake)) / within


def projected_step(g, d, adam_g, adam_d, average, decay, real, levels, variety=0):
    """The same with a projected discriminator, on the maps of `levels`: the losses (2,), and where
    it has a weight, `variety`, the mean energy distance of its four maps.

    The frozen network sees the fakes twice, once for each update.
    """
    policy = ["color", "translation", "cutout"]
    z = torch.randn(len(real), g.z_dim, device=real.device)
    real = photos.diff_augment(real, policy)
    fake = photos.diff_augment(g(z)[0], policy)

    d.zero_grad()
    on_real = (1 - d(levels(real), real)).clamp(min=0).mean()
    on_real.backward()
    on_fake = (1 + d(levels(fake.detach()), fake.detach())).clamp(min=0).mean()
    on_fake.backward()
    adam_d.step()

    g.zero_grad()
    maps = levels(fake)
    g_loss = loss = -d(maps, fake).mean()
    losses = [on_real + on_fake, g_loss]
    if variety:
        losses.append(sum(energy_distance([*x.mean((2, 3))], [*y.mean((2, 3))])
                          for x, y in zip(levels(real), maps, strict=True)) / 4)
        loss = g_loss + variety * losses[-1]
    loss.backward()
    adam_g.step()
    keep_average(average, g, decay)
    return torch.stack(losses).detach()


def keep_average(average, g, decay):
    for a, p in zip(average, g.parameters(), strict=True):
        a.mul_(decay).add_((1 - decay) * p.data)


def plain_gan_step(g, d, adam_g, adam_d, real, policy=(), weight=1):
    """The step of a GAN and of a DCGAN as PyTorch's DCGAN tutorial does it; gives the losses (2,).

    weight: of D's two losses.
    """
    n, device = len(real), real.device
    loss, ones = torch.nn.BCEWithLogitsLoss(), torch.ones(n, device=device)
    z = torch.randn(n, g.z_dim, device=device)
    d.zero_grad()
    on_real = weight * loss(d(photos.diff_augment(real, policy)), ones)
    on_real.backward()
    fake = g(z)
    on_fake = weight * loss(d(photos.diff_augment(fake.detach(), policy)),
                            torch.zeros(n, device=device))
    on_fake.backward()
    adam_d.step()
    g.zero_grad()
    g_loss = loss(d(photos.diff_augment(fake, policy)), ones)
    g_loss.backward()
    adam_g.step()
    return torch.stack([on_real + on_fake, g_loss]).detach()


def plain_vae_step(vae, adam, real, kl_weight):
    """The step of a VAE as its tutorials do it; gives the losses (3,)."""
    adam.zero_grad()
    reconstructed, mean, log_variance = vae(real)
    kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
    mse = torch.nn.functional.mse_loss(reconstructed, real)
    (mse + kl_weight * kl).backward()
    adam.step()
    return torch.stack([mse, kl, mse + kl_weight * kl]).detach()


def older_scipy():
    """A context in which scipy's sqrtm takes pytorch-fid's argument, which scipy 1.18 dropped."""
    from pytorch_fid import fid_score

    sqrtm = fid_score.linalg.sqrtm
    return mock.patch.object(fid_score.linalg, "sqrtm",
                             lambda x, disp=True: sqrtm(x) if disp else (sqrtm(x), None))


def pytorch_fid_distance(x, y):
    """pytorch-fid's Fréchet distance of features (n, d); raises ImportError without it."""
    from pytorch_fid import fid_score

    x, y = x.double().numpy(), y.double().numpy()
    moments = [part for z in (x, y) for part in (z.mean(0), np.cov(z, rowvar=False))]
    with older_scipy():
        return fid_score.calculate_frechet_distance(*moments)
