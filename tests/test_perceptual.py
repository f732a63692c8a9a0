"""LPIPS as a loss and between all pairs of two sets, against the lpips package's module."""

import copy
import tempfile
from functools import partial

import pytest
import torch
from damage import small_disk
from drawn import smooth
from torch.nn import functional as F

import metrics
from common import devices, perceptual, weights

pytestmark = pytest.mark.usefixtures("random_state_untouched")


@pytest.fixture(scope="module")
def alex():
    return weights.lpips_network("alex", "random")


@pytest.fixture(scope="module")
def vgg():
    return weights.lpips_network("vgg", "random")


@pytest.mark.parametrize("chunked", [True, False])
def test_the_loss_is_the_modules_distance_summed_over_images(monkeypatch, vgg, chunked):
    """And its gradient is the one that autograd finds for the module; image by image as on a CPU
    or all at once as on a GPU; one target for two."""
    network = copy.deepcopy(vgg).double()
    monkeypatch.setattr(perceptual, "lpips_network", lambda name, device: {"vgg": network}[name])
    if not chunked:
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    x, y = (smooth(6, 64, seed).double() / 127.5 - 1 for seed in (0, 1))
    y[2:4] = y[:2]
    x.requires_grad_()
    distance = perceptual.perceptual_loss(devices.Numerics(torch.device("cpu"), "fp32"))
    parts = list(y.split(2))
    found = distance(list(x.split(2)), [parts[0], parts[0], parts[2]])
    expected = network(x, y).sum()
    assert abs(found.item() - expected.item()) < 1e-6 * expected.item()
    one, other = (torch.autograd.grad(loss, x)[0] for loss in (found, expected))
    assert (one - other).norm() < 1e-5 * other.norm() and other.norm() > 0


def points(images, network):
    return perceptual.lpips_points([images], network, len(images))


@pytest.mark.parametrize("net, size", [("alex", 64), ("alex", 160), ("alex", 512), ("vgg", 64)])
def test_pairwise_lpips_equals_the_module_pair_by_pair(net, size, alex, vgg):
    network = {"alex": alex, "vgg": vgg}[net]
    x, y = smooth(3, size), smooth(4, size, seed=1)
    y[0] = x[1]
    with torch.inference_mode():
        expected = torch.stack([
            torch.cat([network(a[None] / 127.5 - 1, b[None] / 127.5 - 1).flatten() for b in y])
            for a in x])
    points_x, points_y = points(x, network), points(y, network)
    ours = perceptual.pairwise_lpips(points_x, points_y)
    assert expected.max() > 0.05
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert ours[1, 0] == 0 and ours.dtype == torch.float32
    assert (perceptual.pairwise_lpips(points_x, points_x).diagonal() == 0).all()


def test_points_are_computed_once_and_indexed_like_a_tensor(alex):
    x, y = smooth(7), smooth(5, seed=1)
    y[3] = x[2]
    seen = []
    hook = alex.scaling_layer.register_forward_hook(
        lambda _, images, __: seen.append(len(images[0])))
    points_x = perceptual.lpips_points(iter(x.split([3, 4])), alex, total=7)
    points_y = points(y, alex)
    assert sum(seen) == 12
    whole, rows = perceptual.pairwise_lpips(points_x, points_y), [4, 0, 2]
    assert len(points_x) == 7 and len(points_x[2:4]) == 2 and whole.shape == (7, 5)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
    close(points_x[rows].between(points_y[1:]), whole[rows, 1:])
    close(points_x[torch.tensor(rows)][[2, 1]].between(points_y), whole[[2, 0]])
    near = metrics.nearest_neighbors(points_x, points_y, 2)
    assert near.indices[2, 0] == 3 and near.distances[2, 0] == 0
    close(near.distances.float(), whole.topk(2, largest=False).values)
    sets = points_x[:5], points_y
    assert metrics.adversarial_accuracy(*sets) == metrics.adversarial_accuracy(
        *metrics.distance_views(*sets))
    assert sum(seen) == 12
    hook.remove()


def test_images_of_other_sizes_and_numbers_are_refused(alex):
    x = smooth(7)
    with pytest.raises(ValueError, match="one size"):
        perceptual.pairwise_lpips(points(x[:2], alex), points(smooth(2, 96), alex))
    for batches, total in (([x], 6), ([x], 8), ([x, smooth(2, 96)], 9)):
        with pytest.raises(ValueError, match="LPIPS points of"):
            perceptual.lpips_points(batches, alex, total=total)
    with pytest.raises(ValueError, match="uint8"):
        perceptual.lpips_points([x.float()], alex, total=7)


def test_a_disk_without_room_for_points_is_named(alex):
    with small_disk(1000), pytest.raises(OSError) as error:
        points(smooth(2), alex)
    assert error.value.filename == tempfile.gettempdir()


@pytest.mark.parametrize("size", [96, 384])
def test_the_lite_distance_is_what_its_docstring_says(size):
    """By hand, of each image alone; with gradients. Large ones are seen at 256×256."""
    distance, levels = perceptual.lite_distance(), weights.critic_levels()
    a, b = smooth(6, size).float().div(127.5).sub(1).split(3)
    b[2] = a[2]
    expected = (a - b).square().mean((1, 2, 3)).double()
    few = [F.interpolate(x, (256, 256), mode="bilinear", antialias=True) if size > 256 else x
           for x in (a, b)]
    with torch.no_grad():
        for x, y in zip(*map(levels, few), strict=True):
            for i in range(3):
                x_i, y_i = (maps[i].flatten(1).double() for maps in (x, y))
                cosines = (x_i * y_i).sum(0) / (x_i.norm(dim=0) * y_i.norm(dim=0))
                expected[i] += 0.1 * (2 - 2 * cosines).mean()
    a.requires_grad_()
    found = distance(a, b)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    assert found[2] == 0 and found[:2].min() > 0.1
    found.sum().backward()
    assert a.grad.isfinite().all() and a.grad[:2].abs().sum() > 0
