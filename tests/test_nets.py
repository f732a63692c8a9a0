"""FastGAN's networks give the numbers of the published ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import svds
from torch.nn import functional as F

import nets
import training

FIXTURES = Path(__file__).parent / "fixtures"


def leading_singular_vectors(matrix):
    if min(matrix.shape) < 50:
        u, _, v = np.linalg.svd(matrix, full_matrices=False)
    else:
        u, _, v = svds(matrix, k=1, tol=1e-8, random_state=0)
    return u[:, 0], v[0]


def recipe(specification):
    """The state dict behind a fixture: its weights by position in the published state dict."""
    state = {}
    for k, (name, shape) in enumerate(specification):
        w = np.random.RandomState(k).standard_normal(int(np.prod(shape))).reshape(shape)
        if name.endswith("weight_orig"):
            matrix = w.swapaxes(0, 1) if name == "init.init.0.weight_orig" else w
            u, v = leading_singular_vectors(matrix.reshape(len(matrix), -1))
            stem = name.removesuffix("orig")
            state |= {name: w, f"{stem}u": u, f"{stem}v": v}
        elif name.endswith(("running_mean", "num_batches_tracked")):
            state[name] = 0 * w
        elif name.endswith("running_var"):
            state[name] = 0 * w + 1
        elif name.endswith("bias"):
            state[name] = 0.1 * w
        elif not name.endswith(("weight_u", "weight_v")):
            state[name] = 0 * w if w.size == 1 else 1 + 0.1 * w
    kinds = {True: torch.int64, False: torch.float32}
    return {name: torch.tensor(state[name].copy(), dtype=kinds["num_batches" in name])
            for name, _ in specification}


def read_fixture(size):
    return json.loads((FIXTURES / f"fastgan_{size}.json").read_text())


def fixture_inputs(size):
    z = np.random.RandomState(10001).standard_normal((4, 256))
    x = np.random.RandomState(10002).standard_normal((4, 3, 64, 64))
    x = F.interpolate(torch.tensor(x).float(), size, mode="bilinear").clamp(-1, 1)
    return torch.tensor(z).float(), x


def check_image(image, expected):
    assert list(image.shape) == expected["shape"]
    assert abs(image.mean().item() - expected["mean"]) < 1e-3
    assert abs(image.std().item() - expected["std"]) < 1e-3
    pooled = F.adaptive_avg_pool2d(image, 8)
    assert (pooled - torch.tensor(expected["pooled8x8"])).abs().max() < 1e-3
    assert (image[0, :, 0, :8] - torch.tensor(expected["row0"])).abs().max() < 1e-3


def check_logits(logits, expected):
    """The fixture has all large-path logits first; ours has both paths in each row."""
    flat = torch.cat([logits[:, :25].flatten(), logits[:, 25:].flatten()])
    assert (flat - torch.tensor(expected["values"])).abs().max() < 1e-3


@pytest.mark.parametrize("size", [256, 1024])
@torch.no_grad()
def test_published_outputs(size):
    fixture = read_fixture(size)
    z, x = fixture_inputs(size)
    x_128 = F.interpolate(x, 128)
    networks = {"G": nets.FastGANGenerator(size), "D": nets.FastGANDiscriminator(size)}
    for name, network in networks.items():
        state = network.state_dict()
        assert [[key, list(value.shape)] for key, value in state.items()] == (
            fixture[name]["state_dict"])
        assert sum(p.numel() for p in network.parameters()) == fixture[name]["parameters"]
        network.load_state_dict(recipe(fixture[name]["state_dict"]))

    outputs = fixture["G"]["outputs"]
    image, image_128 = networks["G"](z)
    check_image(image, outputs["image"])
    check_image(image_128, outputs["image_128"])

    outputs = fixture["D"]["outputs"]
    logits, maps = networks["D"](x, x_128)
    check_logits(logits, outputs["logits_real"])
    for part in range(4):
        whole, small, quarter = networks["D"].reconstruct(maps, part)
        check_image(quarter, outputs[f"rec_part_{part}"])
    check_image(whole, outputs["rec_all"])
    check_image(small, outputs["rec_small"])
    check_logits(networks["D"](x, 0.5 * x_128)[0], outputs["logits_fake_pair"])


@pytest.mark.parametrize("size", [256, 512, 1024])
@torch.no_grad()
def test_sizes(size):
    generator = nets.FastGANGenerator(size, z_dim=32, features=8)
    discriminator = nets.FastGANDiscriminator(size, features=8)
    image, image_128 = generator(torch.randn(2, 32))
    assert image.shape == (2, 3, size, size) and image_128.shape == (2, 3, 128, 128)
    logits, maps = discriminator(image, image_128)
    assert logits.shape == (2, 50)
    assert [r.shape for r in discriminator.reconstruct(maps, 3)] == [(2, 3, 128, 128)] * 3


def test_other_sizes_are_refused():
    for network in (nets.FastGANGenerator, nets.FastGANDiscriminator):
        with pytest.raises(ValueError, match="256, 512 or 1024"):
            network(300)


@pytest.mark.parametrize("ours, theirs", [
    (nets.SpectralConv2d(3, 5, 4, 2, 1), torch.nn.Conv2d(3, 5, 4, 2, 1, bias=False)),
    (nets.SpectralConvTranspose2d(3, 5, 4), torch.nn.ConvTranspose2d(3, 5, 4, bias=False)),
])
def test_spectral_normalisation_is_torchs(ours, theirs):
    """Values, gradients and the moving singular vectors, in training and in evaluation."""
    theirs = torch.nn.utils.spectral_norm(theirs)
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.double(), theirs.double()  # the formulas are ordered differently
    x = torch.randn(2, 3, 8, 8).double()
    for _ in range(3):
        outputs = [conv(x) for conv in (ours, theirs)]
        gradients = [torch.autograd.grad(y.square().sum(), conv.weight_orig)[0]
                     for y, conv in zip(outputs, (ours, theirs), strict=True)]
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(ours.weight_u, theirs.weight_u)
    before = ours.weight_u.clone()
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert torch.equal(ours.weight_u, before)


def test_noise_is_one_map_per_image_in_training_and_fixed_in_evaluation():
    noise = nets.NoiseInjection(8, seed=1)
    torch.nn.init.ones_(noise.weight)
    x = torch.zeros(64, 5, 8, 8)
    drawn = noise(x)
    assert torch.equal(drawn[:, 0], drawn[:, 4]) and not torch.equal(drawn[0], drawn[1])
    assert abs(drawn.std().item() - 1) < 0.1
    fixed = noise.eval()(x)
    assert torch.equal(fixed[0], fixed[63]) and torch.equal(fixed, noise(x))
    assert fixed.std() > 0.5


def test_style_mixing_takes_the_excitations_of_another_latent():
    torch.manual_seed(0)
    generator = training.estimate_batch_norm(nets.FastGANGenerator(256, 16, 4), batches=1)
    z, style = torch.randn(2, 3, 16)
    with torch.no_grad():
        own, other = generator(z)[0], generator(z, style)[0]
        torch.testing.assert_close(generator(z, z)[0], own)
        assert not torch.allclose(other, own)
        for excitation in (generator.se_64, generator.se_128, generator.se_256):
            excitation.register_forward_hook(lambda _, inputs, __: inputs[1])
        torch.testing.assert_close(generator(z, style)[0], generator(z)[0])
