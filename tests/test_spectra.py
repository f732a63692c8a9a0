"""Power spectra and their differences: against numpy, scipy and images made for them."""

import numpy as np
import pytest
import scipy
import torch

import metrics
from common import features


def coloured(n, size, seed):
    """uint8 images whose power falls with frequency as that of photos does."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = 1
    noise = np.fft.rfft2(rng.standard_normal((n, 3, size, size))) / frequency
    noise = np.fft.irfft2(noise, (size, size)) * rng.uniform(0.5, 1.5, (n, 1, 1, 1))
    return torch.from_numpy((128 + 40 * noise / noise.std()).clip(0, 255).round().astype(np.uint8))


def differences(train, fake):
    """metrics.spectrum_difference and {its part: [low, high]}."""
    found = metrics.spectrum_difference(train, fake)
    ends = metrics.interval(lambda *sets: list(metrics.spectrum_difference(*sets).values()),
                            train, fake, replicates=40)
    return found, dict(zip(found, zip(*ends, strict=True), strict=True))


def test_spectra_equal_numpys_and_see_blur_and_grids():
    """Blur of 1 pixel and a grid of 8 pixels, 4 grey levels high, stand out by many intervals."""
    train, fake = coloured(40, 128, 0), coloured(40, 128, 1)
    grid = fake.float()
    grid[:, :, ::8] += 4
    grid[..., ::8] += 4
    grid = grid.clamp(max=255).byte()
    blurred = torch.from_numpy(scipy.ndimage.gaussian_filter(
        fake.float().numpy(), (0, 0, 1, 1), mode="mirror")).round().byte()
    powers = [features.features(x, features.Spectrum()) for x in (train, fake, grid, blurred)]

    def log_power(images):  # of the whole plane
        grey = np.einsum("nchw,c->nhw", images.double(), [0.299, 0.587, 0.114])
        window = scipy.signal.get_window("hann", 128)
        window = np.outer(window, window)
        spectra = np.fft.fft2((grey - grey.mean((1, 2), keepdims=True)) * window)
        return np.log((np.abs(spectra) ** 2).mean(0) / (window**2).sum())

    expected = log_power(fake) - log_power(train)
    np.testing.assert_allclose(metrics.log_spectrum(powers[1]) - metrics.log_spectrum(powers[0]),
                               expected[:, :65], atol=1e-3)
    radius = 2 * np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))[:, :65]
    around = scipy.ndimage.uniform_filter(expected, 17, mode="wrap")
    peaks = (expected - around)[::16, :65:16].ravel()[1:]
    (plain, ends), (with_grid, grid_ends), (soft, soft_ends) = (
        differences(powers[0], x) for x in powers[1:])
    for band, low, high in (("low", 0, 1 / 8), ("middle", 1 / 8, 1 / 2), ("high", 1 / 2, 2)):
        there = np.abs(expected[:, :65][(radius > low) & (radius <= high)])
        assert plain[band] == pytest.approx(there.mean(), abs=1e-3)
    assert plain["grid"] == pytest.approx(peaks.mean(), abs=1e-3)

    def beyond(found, ends, band):  # in half intervals of its own
        low, high = ends[band]
        return (found[band] - plain[band]) / (high - low) * 2

    assert beyond(with_grid, grid_ends, "grid") > 5 and beyond(soft, soft_ends, "high") > 5
    assert abs(beyond(soft, soft_ends, "grid")) < 1 and beyond(with_grid, grid_ends, "high") < 1
    low, high = ends["grid"]
    assert low < 0 < high


def test_intervals_of_spectra_cover_their_means_over_draws():
    draws = [[features.features(coloured(24, 32, 100 * seed + i), features.Spectrum())
              for i in (1, 2)] for seed in range(40)]
    found = [differences(*sets) for sets in draws]
    for band, width in (("high", 0.3), ("grid", 0.7)):
        low, high = np.transpose([ends[band] for _, ends in found])
        mean = np.mean([values[band] for values, _ in found])
        assert np.mean((low <= mean) & (mean <= high)) >= 0.87
        assert (high - low).mean() < width


def test_spectra_of_flat_of_small_and_of_large_images():
    tiny = torch.ones(9, 15, 8)
    with pytest.raises(ValueError, match="15 pixels"):
        metrics.spectrum_difference(tiny, tiny)
    flat = torch.full((3, 3, 16, 16), 7, dtype=torch.uint8)
    powers = features.features(flat, features.Spectrum())
    assert set(metrics.spectrum_difference(powers, powers).values()) == {0}
    assert (metrics.log_spectrum(powers) == np.log(metrics.ROUNDING, dtype=np.float32)).all()
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 700, 700), np.uint8))
    large = features.features(noise, features.Spectrum())
    squares = [features.features(noise[:, :, i : i + 256, j : j + 256], features.Spectrum())
               for i in range(0, 445, 111) for j in range(0, 445, 111)]
    torch.testing.assert_close(large, torch.stack(squares).mean(0))
    white = noise.float().var() * (0.299**2 + 0.587**2 + 0.114**2)
    assert large[:, 8:120, 8:120].mean() == pytest.approx(white.item(), rel=0.03)


def test_the_sign_of_fine_detail_and_the_period_of_a_grid():
    """Lines every 8, 4 or 2 pixels: no part of a finer grid's period; blur has less, noise more."""
    train, fake = coloured(24, 64, 0), coloured(24, 64, 1)
    powers = features.features(train, features.Spectrum())

    def found(images):
        images = images.clamp(0, 255).round().byte()
        return metrics.spectrum_difference(powers, features.features(images, features.Spectrum()))

    plain = found(fake.float())
    for period in (8, 4, 2):
        lines = fake.float()
        lines[..., ::period] += 12
        lines[..., ::period, :] += 12
        lined = found(lines)
        more = {other: lined[f"grid {other}"] - plain[f"grid {other}"] for other in (8, 4, 2)}
        assert {other for other, x in more.items() if x > 0.3} == {
            other for other in (8, 4, 2) if other <= period}, more
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 24, fake.shape))
    soft = torch.nn.functional.avg_pool2d(fake.float(), 3, 1, 1)
    assert found(soft)["high signed"] < -1 < 0.3 < found(fake + noise)["high signed"]
    for images in (soft, fake + noise):  # all in one direction
        differences = found(images)
        assert abs(differences["high signed"]) == pytest.approx(differences["high"], rel=0.1)
