"""Latents, the copy to sample from, and images that depend on their latent alone."""

import pytest
import torch
from torch import nn

from common import sampling
from nets import DCGANGenerator, FastGANGenerator, GANGenerator, VAEDecoder


def test_latents_depend_on_seed_and_index_alone():
    rows = sampling.latents(5, range(10), 64)
    assert torch.equal(sampling.latents(5, [7, 3], 64), rows[[7, 3]])
    assert not torch.equal(sampling.latents(6, range(10), 64), rows)
    many = sampling.latents(0, range(500), 256)
    assert abs(many.mean()) < 0.01 and abs(many.std() - 1) < 0.01


def test_the_way_between_two_latents_keeps_their_length():
    way = sampling.between(*torch.randn(2, 500), 9).norm(dim=1)
    assert (way / way.mean() - 1).abs().max() < 0.1
    a = torch.randn(9)
    assert torch.equal(sampling.between(a, a, 3), a.expand(3, 9))


def test_the_averages_decay_ends_at_the_published_one():
    assert sampling.average_weight(1) == 9 / 11
    assert 0.01 < sampling.average_weight(500) < 0.02
    assert sampling.average_weight(9000) == sampling.average_weight(50000) == 0.001


def test_pixels_round_and_clamp():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 7.0])
    assert sampling.to_uint8(x).tolist() == [0, 0, 128, 255, 255, 255]


@torch.no_grad()
def test_an_image_depends_on_its_latent_alone():
    """16 latents give the same images in batches of 1, 5 and 16, noise injected and all."""
    torch.manual_seed(0)
    generator = FastGANGenerator(256, 64, 8)
    generator.feat_8[2].weight.fill_(0.5)  # a strength that would show
    before = torch.get_rng_state()
    average = [parameter * 1.1 for parameter in generator.parameters()]
    averaged = sampling.sampling_copy(generator, average)
    assert torch.equal(torch.get_rng_state(), before)
    z = sampling.latents(0, range(16), 64)
    with torch.enable_grad():
        assert not averaged(z[:1])[0].requires_grad  # a grid would hold every activation
    images = [torch.cat([averaged(part)[0] for part in z.split(size)]) for size in (1, 5, 16)]
    torch.testing.assert_close(images[0], images[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(images[1], images[2], atol=1e-5, rtol=1e-5)
    assert (images[0][0] - images[0][1]).abs().mean() > 1e-3
    torch.testing.assert_close(averaged.to_big.weight_orig, generator.to_big.weight_orig * 1.1)


@torch.no_grad()
def test_batch_norm_statistics_are_those_of_the_generators_own_samples():
    torch.manual_seed(0)
    generator = FastGANGenerator(256, 64, 8)
    generator.init.init[1].running_mean.fill_(9)  # what training would leave behind
    sampling.estimate_batch_norm(generator, batches=4, batch_size=16)
    norm, inputs = generator.init.init[1], []
    generator.init.init[0].register_forward_hook(lambda *call: inputs.append(call[-1]))
    generator(sampling.latents(0, range(64), 64))
    torch.testing.assert_close(norm.running_mean, inputs[0].mean((0, 2, 3)), atol=1e-2, rtol=0.02)
    torch.testing.assert_close(norm.running_var, inputs[0].var((0, 2, 3)), atol=1e-2, rtol=0.1)


def test_an_image_is_the_same_to_the_bit_however_many_there_are():
    generator = sampling.sampling_copy(FastGANGenerator(256, 8, 4))
    z = sampling.latents(0, range(11), 8)
    images = sampling.generate(generator, z)
    assert images.shape == (11, 3, 256, 256) and images.dtype == torch.uint8
    assert torch.equal(sampling.generate(generator, z[:3]), images[:3])
    other = sampling.generate(generator, z, batch_size=5)
    assert (other.int() - images.int()).abs().max() <= 1  # a rounding may fall the other way
    with torch.no_grad():
        expected = sampling.to_uint8(generator(z)[0])
    assert (expected.int() - images.int()).abs().max() <= 1


def test_a_style_is_another_latents_excitations():
    torch.manual_seed(0)
    generator = sampling.estimate_batch_norm(FastGANGenerator(256, 16, 4), batches=1)
    z, style = torch.randn(2, 3, 16)
    own = sampling.generate(generator, z)
    assert torch.equal(sampling.generate(generator, z, z), own)
    assert not torch.equal(sampling.generate(generator, z, style), own)
    for excitation in (generator.se_64, generator.se_128, generator.se_256):
        excitation.register_forward_hook(lambda _, inputs, __: inputs[1])
    assert torch.equal(sampling.generate(generator, z, style), sampling.generate(generator, z))


class Linear(nn.Module):
    """Images (n, 3, 4, 4) = grey + scale · z · matrix, beside a second output as FastGAN's."""

    def __init__(self, scale, z_dim=6):
        super().__init__()
        self.z_dim = z_dim
        seeded = torch.Generator().manual_seed(1)
        self.matrix = nn.Parameter(scale * torch.randn(z_dim, 48, generator=seeded))

    def forward(self, z):
        return 0.1 + (z @ self.matrix).view(-1, 3, 4, 4), None


def squared(images, targets):
    return (images - targets).square().mean((1, 2, 3))


def noise(n, size, seed=0):
    """uint8 photos (n, 3, size, size) of noise."""
    seeded = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=seeded)


@pytest.mark.parametrize(("model", "config", "steps"), [
    (GANGenerator, (8, 8), 25), (DCGANGenerator, (16, 8, 4), 25), (VAEDecoder, (32, 8), 25),
    (FastGANGenerator, (256, 4, 2), 16)])
def test_a_generators_own_images_are_recovered(model, config, steps):
    torch.manual_seed(0)
    generator = sampling.sampling_copy(model(*config))
    with torch.no_grad():  # the contrast that training would give
        list(generator.parameters())[-2 if model is VAEDecoder else -1].mul_(4)
    known = sampling.latents(7, range(2), generator.z_dim)
    photos = sampling.generate(generator, known)
    targets = photos / 127.5 - 1
    z, errors = sampling.recover(generator, photos, squared, steps, starts=steps // 8)
    assert z.shape == known.shape and errors.shape == (2,)
    assert z.dtype == errors.dtype == torch.float32
    assert squared(targets, targets.flip(0)).min() > 0.01
    assert errors.max() < 1e-5  # half of which is the rounding to uint8


def test_quasi_newton_is_the_bfgs_update_of_each_row_by_itself():
    slope, *moves = torch.randn(5, 3, 6, dtype=torch.float64)
    stretch = torch.rand(6, dtype=torch.float64) + 0.5
    inverse = torch.stack([1 / (move * move * stretch).sum(1, keepdim=True) for move in moves])
    inverse[2:, 1], inverse[:, 2] = 0, 0  # a row with two pairs, and one without any
    pairs = [(move, move * stretch, part) for move, part in zip(moves, inverse, strict=True)]
    expected, eye = [], torch.eye(6, dtype=torch.float64)
    for row in range(3):
        used = [(s[row], y[row]) for s, y, part in pairs if part[row] > 0]
        s, y = used[-1] if used else (slope[row], slope[row] * slope[row].norm())
        matrix = s @ y / (y @ y) * eye
        for s, y in used:
            left = eye - torch.outer(s, y) / (s @ y)
            matrix = left @ matrix @ left.T + torch.outer(s, s) / (s @ y)
        expected.append(-matrix @ slope[row])
    torch.testing.assert_close(sampling.quasi_newton(pairs, slope), torch.stack(expected))


def test_recovery_from_a_linear_generator_is_least_squares():
    generator, photos = Linear(0.1), noise(5, 4) // 16 + 110
    matrix, targets = generator.matrix.detach(), photos / 127.5 - 1
    best = torch.linalg.lstsq(matrix.T.double(), (targets.flatten(1) - 0.1).T.double()).solution.T
    residual = squared(0.1 + (best.float() @ matrix).view(targets.shape), targets)
    assert best.norm(dim=1).max() < 6**0.5 + 2 and residual.min() > 1e-4
    z, errors = sampling.recover(generator, photos, squared, steps=20, starts=1)
    torch.testing.assert_close(errors, residual, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(z, best.float(), atol=1e-3, rtol=1e-3)


def test_recovered_latents_are_such_as_are_drawn_and_pixels_are_clamped():
    white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    weak = Linear(0.01)
    weak.matrix.data.abs_()  # the whiter the farther out
    z, _ = sampling.recover(weak, white, squared, starts=2)
    torch.testing.assert_close(z.norm(), torch.tensor(6**0.5 + 2), atol=1e-4, rtol=0)
    strong = Linear(1.0)
    strong.matrix.data.abs_()
    assert sampling.recover(strong, white, squared)[1] < 1e-9


def test_a_photos_recovery_depends_on_the_photo_and_the_seed_alone():
    torch.manual_seed(0)
    generator, photos = sampling.sampling_copy(GANGenerator(8, 6)), noise(5, 8)
    done, before = [], torch.get_rng_state()
    z, errors = sampling.recover(generator, photos, squared, 20, update=done.append)
    assert torch.equal(torch.get_rng_state(), before) and done == [4, 1]
    torch.manual_seed(1)
    with torch.no_grad():
        again = sampling.recover(generator, photos, squared, 20)
    assert torch.equal(again[0], z) and torch.equal(again[1], errors)
    for rows, size in ([0, 1, 2, 3, 4], 1), ([0, 1, 2, 3, 4], 12), ([3, 1], 32):
        _, other = sampling.recover(generator, photos[rows], squared, 20, batch_size=size)
        torch.testing.assert_close(other, errors[rows], atol=1e-5, rtol=1e-3)
    assert not torch.equal(sampling.recover(generator, photos, squared, 20, seed=1)[0], z)
    images = generator(z)
    torch.testing.assert_close(squared(images, photos / 127.5 - 1), errors)


def test_more_steps_and_more_starts_never_make_a_recovery_worse():
    torch.manual_seed(0)
    generator, photos = sampling.sampling_copy(GANGenerator(8, 6)), noise(4, 8)
    errors = [sampling.recover(generator, photos, squared, steps, 2)[1] for steps in (1, 5, 9, 25)]
    errors.append(sampling.recover(generator, photos, squared, 25, 8)[1])
    first = generator(sampling.latents(0, range(2), 6))
    targets = (photos / 127.5 - 1).repeat_interleave(2, 0)
    start = squared(first.repeat(4, 1, 1, 1), targets).view(4, 2).amin(1)
    torch.testing.assert_close(errors[0], start)
    for worse, better in zip(errors, errors[1:], strict=False):
        assert (better <= worse + 1e-6).all() and better.mean() < worse.mean()


def test_a_gradient_that_is_none_stops_no_photos_recovery():
    """LPIPS gives NaN where all channels of a map are 0: here at the second pass, for one photo."""
    torch.manual_seed(0)
    generator, passes = sampling.sampling_copy(GANGenerator(8, 6)), []
    photos = sampling.generate(generator, sampling.latents(3, range(2), 6))  # can be recovered

    def distance(images, targets):
        passes.append(1)
        errors = squared(images, targets)
        if len(passes) == 2:  # the derivative of sqrt at 0 is infinite, and 0 times it is NaN
            errors = torch.cat([errors[:1] + (0 * images[0]).square().sum().sqrt(), errors[1:]])
        return errors

    first = sampling.recover(generator, photos, squared, 2, 1)[1]
    errors = sampling.recover(generator, photos, distance, 60, 1)[1]
    assert (errors < 0.7 * first).all()  # not kept where it was
