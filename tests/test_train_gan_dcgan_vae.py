"""GAN, DCGAN and VAE: their networks, their losses and steps beside formulas, and their scripts."""

import csv
import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from published import plain_gan_step, plain_vae_step
from torch.nn import functional as F

import nets
import train_vae
from common import checkpoints, devices, photos, sampling

CPU = torch.device("cpu")
FLOAT32 = devices.Numerics(CPU, "fp32")


def test_divergence_is_torchs():
    mean, log_variance = torch.randn(2, 5, 7) * 2
    ours = train_vae.divergence(mean, log_variance)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    standard = torch.distributions.Normal(torch.zeros(5, 7), torch.ones(5, 7))
    expected = torch.distributions.kl_divergence(normal, standard).sum(1).mean()
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scale", [1e3, 1e10, 1e18])
def test_divergence_cannot_overflow(precision, scale):
    """Weights that would give log-variances of 1e18: the study's validation loss was 1e30."""
    torch.manual_seed(0)
    vae = nets.VAE(32, 8)
    with torch.no_grad():
        for head in (vae.encoder.mean, vae.encoder.log_variance):
            head.weight.mul_(scale)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    numerics = devices.Numerics(CPU, precision)
    for mode in (True, False):
        reconstruction, kl = train_vae.losses(vae.train(mode), numerics, images)
        assert reconstruction.isfinite() and kl.isfinite()
        assert kl < 8 * (1e8 + np.exp(10) + 20)  # the bounds' own divergence
        (reconstruction + kl).backward()
        assert all(parameter.grad.isfinite().all() for parameter in vae.parameters())


@pytest.mark.parametrize(("model", "policy"), [
    ("gan", []), ("dcgan", []), ("dcgan", ["color", "translation"]), ("vae", [])])
def test_a_step_is_the_plain_one(model, policy):
    """The same losses and weights; no gradient stays, and nothing that it froze stays frozen."""
    ours, reference = tiny.networks(model), tiny.networks(model)
    kind = torch.optim.AdamW if model == "gan" else torch.optim.Adam
    adams = [{name: kind(net.parameters(), 1e-3, (0.5, 0.999)) for name, net in networks.items()}
             for networks in (ours, reference)]
    real = tiny.photos(model, 6)
    step, _ = tiny.training(model, ours, adams[0], FLOAT32, policy)
    torch.manual_seed(3)
    losses = step(real)
    torch.manual_seed(3)
    if model == "vae":
        expected = plain_vae_step(reference["vae"], adams[1]["vae"], real, 0.01)
    else:
        expected = plain_gan_step(*reference.values(), *adams[1].values(), real, policy,
                                  0.5 if model == "gan" else 1)  # a mean over photos and samples
    torch.testing.assert_close(losses, expected)
    for name, network in ours.items():
        for key, value in network.state_dict().items():
            torch.testing.assert_close(value, reference[name].state_dict()[key], rtol=1e-3,
                                       atol=2e-5)
        assert all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("model", ["gan", "dcgan", "vae"])
def test_script(script, bedrooms, tmp_path, model):
    """Three epochs on a folder of photos, the last batch not full, and the images judged."""
    done = script(f"train_{model}.py", *tiny.ARGUMENTS[model], "--data", bedrooms, "--epochs", 3,
                  "--batch-size", 4, "--out", tmp_path, "--name", "run", "--ckpt-every", 2,
                  "--sample-every", 2, "--log-every", 1, "--precision", "fp32")
    assert all("collapsed" in line for line in done.stderr.splitlines())  # after three epochs
    run = tmp_path / "run"
    kinds = ["samples", "reconstructions"] if model == "vae" else ["samples"]
    assert {path.name for path in run.iterdir()} == {
        "args.json", "log.csv", "losses.png", "ckpt_000002.pth", "ckpt_000003.pth",
        *(f"{kind}_00000{step}.png" for kind in kinds for step in (2, 3))}
    rows = list(csv.DictReader((run / "log.csv").open()))
    assert [(row["step"], row["iteration"]) for row in rows] == [("1", "2"), ("2", "4"), ("3", "6")]
    names = (["reconstruction", "kl", "total", "val_reconstruction", "val_kl", "val_total"]
             if model == "vae" else ["d_loss", "g_loss"])
    assert [*rows[0]][2:] == names and float(rows[2][names[-1]]) > 0
    saved = checkpoints.read(run / "ckpt_000003.pth")
    assert saved["model"] == model and saved["step"] == 3 and saved["iteration"] == 6
    assert json.loads((run / "args.json").read_text())["arguments"]["epochs"] == 3
    if model == "vae":
        assert saved["optimizers"]["vae"]["param_groups"][0]["lr"] == pytest.approx(3e-4 * 0.9**2)
        vae = nets.VAE(32, 4).eval()
        vae.encoder.load_state_dict(saved["networks"]["encoder"])
        vae.decoder.load_state_dict(saved["networks"]["generator"])
        images = photos.load_images(bedrooms, "val", 32)[0].float() / 127.5 - 1
        with torch.no_grad():
            decoded, mean, log_variance = vae(images)
            kl = train_vae.divergence(mean, log_variance)
        assert abs(float(rows[-1]["val_reconstruction"]) - F.mse_loss(decoded, images)) < 1e-5
        assert abs(float(rows[-1]["val_kl"]) - kl) < 1e-5 * (1 + kl)
        grid = np.asarray(Image.open(run / "reconstructions_000003.png"))
        # Photos and decoded, of train and validation, and a caption.
        assert grid.shape == (4 * 36 + 14, 8 * 36, 3) and grid[4 * 36 :].max() > 200

    # A plain folder of photos does as well, without a validation side.
    script(f"train_{model}.py", *tiny.ARGUMENTS[model], "--data", bedrooms / "train", "--epochs", 1,
           "--batch-size", 5, "--out", tmp_path, "--name", "plain", "--log-every", 1)
    header = (tmp_path / "plain" / "log.csv").read_text().splitlines()[0]
    assert header == ",".join(["step", "iteration", *names[:3]])


def test_a_gan_of_two_photos_copies_them(script, bedrooms, tmp_path):
    """The study's overfitting experiment, small: samples are the two photos, and of each some."""
    script("train_gan.py", "--size", 8, "--data", bedrooms, "--limit", 2, "--epochs", 600,
           "--batch-size", 16, "--lr", 5e-4, "--out", tmp_path, "--name", "run", "--precision",
           "fp32", "--ckpt-every", 600, "--sample-every", 600, "--log-every", 100)
    saved = checkpoints.read(tmp_path / "run" / "ckpt_000600.pth")
    generator = nets.GANGenerator(8).eval()
    generator.load_state_dict(saved["sampler"])
    images = photos.load_images(bedrooms, "train", 8)[0].float() / 127.5 - 1
    with torch.no_grad():
        samples = generator(sampling.latents(1, range(64), 50))
    two = images[:2].flatten(1)
    distances = torch.cdist(samples.flatten(1), two)
    apart = (two[0] - two[1]).norm()
    assert (distances.min(1).values < apart / 2).float().mean() > 0.8
    assert torch.bincount(distances.argmin(1), minlength=2).min() >= 8  # both are there
