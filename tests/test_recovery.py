"""The latents of photos: the best there are, each found by itself."""

import pytest
import torch
from torch import nn

from common import recovery, sampling
from nets import DCGANGenerator, FastGANGenerator, GANGenerator, VAEDecoder


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
    z, errors = recovery.recover(generator, photos, squared, steps, starts=steps // 8)
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
    torch.testing.assert_close(recovery.quasi_newton(pairs, slope), torch.stack(expected))


def test_recovery_from_a_linear_generator_is_least_squares():
    generator, photos = Linear(0.1), noise(5, 4) // 16 + 110
    matrix, targets = generator.matrix.detach(), photos / 127.5 - 1
    best = torch.linalg.lstsq(matrix.T.double(), (targets.flatten(1) - 0.1).T.double()).solution.T
    residual = squared(0.1 + (best.float() @ matrix).view(targets.shape), targets)
    assert best.norm(dim=1).max() < 6**0.5 + 2 and residual.min() > 1e-4
    z, errors = recovery.recover(generator, photos, squared, steps=20, starts=1)
    torch.testing.assert_close(errors, residual, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(z, best.float(), atol=1e-3, rtol=1e-3)


def test_recovered_latents_are_such_as_are_drawn_and_pixels_are_clamped():
    white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    weak = Linear(0.01)
    weak.matrix.data.abs_()  # the whiter the farther out
    z, _ = recovery.recover(weak, white, squared, starts=2)
    torch.testing.assert_close(z.norm(), torch.tensor(6**0.5 + 2), atol=1e-4, rtol=0)
    strong = Linear(1.0)
    strong.matrix.data.abs_()
    assert recovery.recover(strong, white, squared)[1] < 1e-9


def test_a_photos_recovery_depends_on_the_photo_and_the_seed_alone():
    torch.manual_seed(0)
    generator, photos = sampling.sampling_copy(GANGenerator(8, 6)), noise(5, 8)
    done, before = [], torch.get_rng_state()
    z, errors = recovery.recover(generator, photos, squared, 20, update=done.append)
    assert torch.equal(torch.get_rng_state(), before) and done == [4, 1]
    torch.manual_seed(1)
    with torch.no_grad():
        again = recovery.recover(generator, photos, squared, 20)
    assert torch.equal(again[0], z) and torch.equal(again[1], errors)
    for rows, size in ([0, 1, 2, 3, 4], 1), ([0, 1, 2, 3, 4], 12), ([3, 1], 32):
        _, other = recovery.recover(generator, photos[rows], squared, 20, batch_size=size)
        torch.testing.assert_close(other, errors[rows], atol=1e-5, rtol=1e-3)
    assert not torch.equal(recovery.recover(generator, photos, squared, 20, seed=1)[0], z)
    images = generator(z)
    torch.testing.assert_close(squared(images, photos / 127.5 - 1), errors)


def test_more_steps_and_more_starts_never_make_a_recovery_worse():
    torch.manual_seed(0)
    generator, photos = sampling.sampling_copy(GANGenerator(8, 6)), noise(4, 8)
    errors = [recovery.recover(generator, photos, squared, steps, 2)[1] for steps in (1, 5, 9, 25)]
    errors.append(recovery.recover(generator, photos, squared, 25, 8)[1])
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

    first = recovery.recover(generator, photos, squared, 2, 1)[1]
    errors = recovery.recover(generator, photos, distance, 60, 1)[1]
    assert (errors < 0.7 * first).all()  # not kept where it was
