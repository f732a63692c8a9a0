"""Latents, the copy to sample from, and images that depend on their latent alone."""

import torch

from common import sampling
from nets import FastGANGenerator


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


def test_an_average_moves_by_the_weights_share_of_the_way():
    """In place, by a number or by a tensor, and through no gradient."""
    for weight in (0.25, torch.tensor(0.25)):
        average = [torch.randn(3, 4), torch.randn(5), torch.randn(())]
        present = [torch.nn.Parameter(torch.randn_like(a)) for a in average]
        expected = [0.75 * a + 0.25 * p.detach() for a, p in zip(average, present, strict=True)]
        before, kept = [p.detach().clone() for p in present], list(average)
        sampling.update_average(average, iter(present), weight)
        for a, same, e, p, b in zip(average, kept, expected, present, before, strict=True):
            torch.testing.assert_close(a, e)
            assert a is same and not a.requires_grad and torch.equal(p, b)


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
