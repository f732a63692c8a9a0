"""metrics.py against the reference implementations, ten-line definitions and known answers."""

import hashlib
import sys
import warnings
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from published import pytorch_fid_distance

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import metrics


def gaussian(n, d, shift=0.0, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * scale + shift


def drawn(n, size=64, seed=0):
    """Smooth uint8 images of random colours: unlike noise, they differ in what they show."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator) * 255
    return F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 255).byte()


@pytest.fixture(scope="module")
def inception():
    return metrics.inception_network("random")


@pytest.fixture(scope="module")
def resnet():
    return metrics.resnet50_network("random")


@pytest.fixture(autouse=True)
def global_random_state_is_untouched():
    torch.manual_seed(1234)  # a state that no function here would leave behind by chance
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


# Networks and weights


def test_inception_features_equal_those_of_pytorch_fid(inception, monkeypatch):
    reference = pytest.importorskip("pytorch_fid.inception")
    state = metrics._network("inception", metrics._fid_inception, "random").state_dict()
    monkeypatch.setattr(reference, "load_state_dict_from_url", lambda *_, **__: state)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = reference.InceptionV3([3]).eval()
    images = drawn(6, 200)
    with torch.no_grad():
        expected = theirs(images / 255)[0][:, :, 0, 0]
    ours = metrics.features(images, inception)
    assert ours.shape == (6, 2048) and ours.dtype == torch.float32
    assert (ours - expected).norm() < 1e-4 * expected.norm()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().mean())


def test_features_of_an_image_do_not_depend_on_its_batch(inception, resnet):
    images, done = drawn(7, 96), []
    for network in (inception, resnet):
        together = metrics.features(images.numpy(), network, batch_size=4, progress=done.append)
        alone = metrics.features(images, network, batch_size=1)
        assert (together - alone).norm(dim=1).max() < 1e-5 * alone.norm(dim=1).min()
    assert done == [4, 3, 4, 3]


@pytest.mark.parametrize("size", [(64, 64), (299, 299), (400, 333)])
def test_clean_resize_equals_clean_fid(size):
    resize = pytest.importorskip("cleanfid.resize").build_resizer("clean")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours = metrics._prepare_clean_fid(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = (resize(image) - 128) / 128
    np.testing.assert_allclose(ours[0].permute(1, 2, 0).numpy(), expected, atol=1e-4)


def test_resnet_embedding_is_torchvisions(resnet):
    net = metrics._network("resnet50", torchvision.models.resnet50, "random")
    net.fc = torch.nn.Identity()
    images = drawn(3, 224)
    with torch.no_grad():
        normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        expected = net(normalize(images / 255))
    ours = metrics.features(images, resnet)
    assert (ours - expected).norm() < 1e-4 * expected.norm()


def test_random_weights_are_the_same_each_time_and_tell_images_apart(resnet):
    again = metrics.resnet50_network("random").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in resnet.state_dict().items())
    x, y = (metrics.features(drawn(12, 96, seed), resnet) for seed in (1, 2))
    noise = np.random.default_rng(0).integers(0, 256, (12, 3, 96, 96), dtype=np.uint8)
    far = metrics.frechet_distance(x, metrics.features(noise, resnet))
    assert metrics.frechet_distance(x, y) < far / 2
    assert metrics.pairwise_cosine(x, y).min() > 1e-3


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub cache and a 'release' of SqueezeNet weights at a file:// URL."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with torch.random.fork_rng(devices=[]):
        torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "release")
    digest = hashlib.sha256((tmp_path / "release").read_bytes()).hexdigest()
    release = (tmp_path / "release").rename(tmp_path / f"squeezenet1_1-{digest[:8]}.pth")
    monkeypatch.setitem(metrics.WEIGHTS, "squeeze", release.as_uri())
    return release, tmp_path / "home/hub/checkpoints" / release.name


def test_pretrained_weights_are_downloaded_cached_and_verified(hub):
    release, cached = hub
    network = metrics.lpips_network("squeeze")
    expected = torch.load(release, weights_only=True)["features.0.weight"]
    assert torch.equal(network.net.slice1[0].weight, expected)
    assert not any(p.requires_grad for p in network.parameters()) and not network.training
    content = bytearray(cached.read_bytes())
    release.unlink()
    metrics.lpips_network("squeeze")  # needs the cache alone
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    with pytest.raises(metrics.WeightsError, match="damaged") as error:
        metrics.lpips_network("squeeze")
    assert str(cached) in str(error.value)


def test_a_download_with_the_wrong_hash_is_refused(hub):
    release, cached = hub
    release.write_bytes(release.read_bytes() + b"!")
    with pytest.raises(metrics.WeightsError, match="hash"):
        metrics.lpips_network("squeeze")
    assert not cached.exists()


@pytest.mark.parametrize("make", ["inception", "resnet50", "alex", "vgg", "squeeze"])
def test_without_network_and_cache_the_error_says_what_to_do(make, hub, monkeypatch):
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    build = {"inception": metrics.inception_network, "resnet50": metrics.resnet50_network}
    with pytest.raises(metrics.WeightsError) as error:
        build.get(make, partial(metrics.lpips_network, make))("pretrained")
    message, url = str(error.value), metrics.WEIGHTS[make]
    assert url in message and str(hub[1].parent / url.rsplit("/", 1)[1]) in message
    assert "--weights random" in message and "\n" not in message


def test_weights_from_a_path(tmp_path, hub, resnet):
    images = drawn(2, 96)
    net = metrics._network("resnet50", torchvision.models.resnet50, "random")
    torch.save(net.state_dict(), tmp_path / "resnet.pth")
    ours = metrics.features(images, metrics.resnet50_network(tmp_path / "resnet.pth"))
    assert torch.equal(ours, metrics.features(images, resnet))
    metrics.lpips_network("squeeze", hub[0])
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").touch()
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text.pth", "empty.pth", "list.pth", "absent.pth", "resnet.pth"):
        for make in (metrics.inception_network, partial(metrics.lpips_network, "squeeze")):
            with pytest.raises(metrics.WeightsError, match=name) as error:
                make(str(tmp_path / name))
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("images", [
    np.zeros((2, 3, 64, 64)), np.zeros((2, 64, 64, 3), np.uint8), np.zeros((0, 3, 9, 9), np.uint8),
])
def test_images_that_are_none(images, resnet):
    with pytest.raises(ValueError, match="uint8"):
        metrics.features(images, resnet)


# Distances between distributions


@pytest.mark.parametrize("n, m, d", [(300, 300, 24), (40, 100, 24), (100, 40, 24), (26, 25, 24)])
def test_frechet_distance_equals_pytorch_fid(n, m, d):
    pytest.importorskip("pytorch_fid")
    x, y = gaussian(n, d), gaussian(m, d, 0.5, 1.5, seed=1)
    assert metrics.frechet_distance(x, y) == pytest.approx(pytorch_fid_distance(x, y), rel=1e-6)


def test_frechet_distance_of_fewer_points_than_dimensions():
    x, y = gaussian(20, 64), gaussian(30, 64, 0.5, seed=1)
    a, b = (np.cov(z.double().numpy(), rowvar=False) for z in (x, y))
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    mean = (x.double().mean(0) - y.double().mean(0)).square().sum().item()
    expected = mean + np.trace(a) + np.trace(b) - 2 * trace
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)
    assert metrics.frechet_distance(y, x) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "n, d", [(2, 8), (50, 8), (2, 2048), (331, 2048), (2047, 2048), (2048, 2048), (5000, 2048)]
)
def test_frechet_distance_is_real_for_every_size(n, d):
    x = gaussian(n, d) * torch.linspace(0, 1, d)  # one dimension never varies
    scale = x.square().sum().item() / n
    assert metrics.frechet_distance(x, x.clone()) <= 1e-6 * scale
    if n in (2047, 2048):  # seconds each, and the same code as for 331
        return
    collapsed = torch.full((min(n, 331), d), 0.5)
    to_collapsed = metrics.frechet_distance(x, collapsed)
    expected = (x.mean(0) - 0.5).square().sum() + x.var(0).sum()
    assert to_collapsed == pytest.approx(expected.item(), rel=1e-5)
    assert metrics.frechet_distance(collapsed, collapsed) == 0


def test_frechet_distance_by_blocks(monkeypatch):
    x, y = gaussian(90, 6), gaussian(70, 6, 0.3, seed=1)
    whole = metrics.frechet_distance(x.numpy(), y.numpy())
    monkeypatch.setattr(metrics, "BLOCK", 11)
    assert metrics.frechet_distance(x, y) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("x, y", [
    (gaussian(1, 4), gaussian(9, 4)), (gaussian(9, 4), gaussian(9, 5)),
    (gaussian(9, 4), gaussian(9, 4) / 0), (gaussian(9, 4)[0], gaussian(9, 4)),
])
def test_features_that_are_none(x, y):
    with pytest.raises(ValueError, match="features"):
        metrics.frechet_distance(x, y)


def test_frechet_distance_infinity_is_nearer_to_the_truth():
    d, plain, extrapolated = 32, [], []
    truth = d * 0.1**2 + d * 0.2**2
    for seed in range(6):
        x, y = gaussian(300, d, seed=2 * seed), gaussian(300, d, 0.1, 1.2, seed=2 * seed + 1)
        plain.append(metrics.frechet_distance(x, y) - truth)
        fit = metrics.frechet_distance_infinity(x, y, seed=seed)
        extrapolated.append(fit.value - truth)
    assert np.mean(plain) > 0.5 and abs(np.mean(extrapolated)) < 0.3 * np.mean(plain)
    assert fit.sizes[0] == 150 and fit.sizes[-1] == 300 and len(fit.sizes) == len(fit.distances)
    assert fit.distances[-1] == pytest.approx(metrics.frechet_distance(x, y))


@pytest.mark.parametrize("n, size", [(60, 30), (60, 60), (400, 20)])
def test_kernel_distance_equals_torch_fidelity(n, size):
    reference = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = gaussian(n, 16), gaussian(n + 10, 16, 0.3, seed=1)
    expected = reference.kid_features_to_metric(
        x.double(), y.double(), kid_subsets=20, kid_subset_size=size, rng_seed=5, verbose=False
    )
    ours = metrics.kernel_distance(x, y, subsets=20, subset_size=size, seed=5)
    assert ours == pytest.approx(tuple(expected.values()), rel=1e-6, abs=1e-12)


def test_kernel_distance_caps_its_subsets_and_works_by_blocks(monkeypatch):
    x, y = gaussian(50, 8), gaussian(40, 8, 0.5, seed=1)
    whole = metrics.kernel_distance(x, y)
    assert whole == metrics.kernel_distance(x, y, subset_size=40)
    monkeypatch.setattr(metrics, "BLOCK", 7)
    assert metrics.kernel_distance(x, y) == pytest.approx(whole, rel=1e-10)
    assert metrics.kernel_distance(x, y, seed=1) != whole


# Distances between points


def test_pairwise_cosine():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = gaussian(30, 12), gaussian(20, 12, seed=1)
    ours = metrics.pairwise_cosine(x, y)
    np.testing.assert_allclose(ours, pairwise.cosine_distances(x, y), atol=1e-6)
    assert (metrics.pairwise_cosine(x, 3 * x).diagonal() == 0).all()
    noisy = x * (1 + 1e-7 * gaussian(30, 12, seed=2))
    assert (metrics.pairwise_cosine(x, noisy).diagonal() == 0).all()
    assert (metrics.pairwise_cosine(x, x * 0) == 1).all()


def lpips_pair_by_pair(x, y, network):
    x, y = x / 127.5 - 1, y / 127.5 - 1
    with torch.inference_mode():
        return torch.stack([
            torch.cat([network(a[None], b[None]).flatten() for b in y]) for a in x
        ])


@pytest.mark.parametrize("net, size", [
    ("alex", 64), ("alex", 160), ("alex", 512), ("squeeze", 96), ("vgg", 64)
])
def test_pairwise_lpips_equals_the_module_pair_by_pair(net, size):
    network = metrics.lpips_network(net, "random")
    x, y = drawn(3, size), drawn(4, size, seed=1)
    y[0] = x[1]
    expected = lpips_pair_by_pair(x, y, network)
    ours = metrics.pairwise_lpips(x, y, network)
    assert expected.max() > 0.05
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert ours[1, 0] == 0 and ours.dtype == torch.float32
    assert (metrics.pairwise_lpips(x, x, network).diagonal() == 0).all()


def test_lpips_features_are_points_computed_once(monkeypatch):
    network = metrics.lpips_network("alex", "random")
    x, y, done = drawn(6), drawn(5, seed=1), []
    expected = metrics.pairwise_lpips(x, y, network)
    points = metrics.lpips_features(x, network, batch_size=4, progress=done.append)
    monkeypatch.setattr(metrics, "lpips_features", None)  # no forward pass from here on
    assert done == [4, 2] and len(points) == 6 and len(points[2:4]) == 2
    rows = [4, 0, 2]
    among = metrics.pairwise_lpips(points[rows], points[1:], network)
    assert among.shape == (3, 5) and among[2, 1] == 0
    monkeypatch.undo()
    torch.testing.assert_close(
        metrics.pairwise_lpips(points[rows], y, network), expected[rows], rtol=0, atol=1e-6
    )
    with pytest.raises(ValueError, match="one size"):
        metrics.pairwise_lpips(points, drawn(2, 96), network)


def test_lpips_features_of_a_stream():
    network = metrics.lpips_network("alex", "random")
    x = drawn(7)
    expected = metrics.pairwise_lpips(x, x, network)
    points = metrics.lpips_features(iter(x.split([3, 4])), network, batch_size=2, total=7)
    torch.testing.assert_close(metrics.pairwise_lpips(points, points, network), expected,
                               rtol=0, atol=1e-6)
    for batches, total in (([x], 6), ([x], 8), ([x, drawn(2, 96)], 9)):
        with pytest.raises(ValueError, match="LPIPS features of"):
            metrics.lpips_features(batches, network, total=total)


# Neighbours


@pytest.mark.parametrize("block", [2048, 7])
def test_nearest_neighbors_equal_scikit_learns(block, monkeypatch):
    neighbors = pytest.importorskip("sklearn.neighbors")
    monkeypatch.setattr(metrics, "BLOCK", block)
    x, y = gaussian(25, 8), gaussian(40, 8, seed=1)
    model = neighbors.NearestNeighbors(n_neighbors=5, metric="cosine").fit(y.double().numpy())
    distances, indices = model.kneighbors(x.double().numpy())
    ours = metrics.nearest_neighbors(x, y, 5)
    np.testing.assert_allclose(ours[0], distances, atol=1e-6)
    np.testing.assert_array_equal(ours[1], indices)
    _, others = metrics.nearest_neighbors(y, y, 1, leave_out_self=True)
    np.testing.assert_array_equal(others[:, 0], model.kneighbors()[1][:, 0])


def test_equally_near_neighbors_come_in_order(monkeypatch):
    x = gaussian(4, 8)
    for block in (2048, 3):
        monkeypatch.setattr(metrics, "BLOCK", block)
        _, indices = metrics.nearest_neighbors(x, torch.cat([x, x, x]), 3)
        assert indices.tolist() == [[i, i + 4, i + 8] for i in range(4)]
    for k in (0, 5):
        with pytest.raises(ValueError, match="neighbours"):
            metrics.nearest_neighbors(x, x, k)


@pytest.mark.parametrize("block", [2048, 7])
def test_mutual_neighbors_are_those_of_both_directions(block, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", block)
    x, y, calls = gaussian(25, 8), gaussian(40, 8, seed=1), []

    def counted(a, b):
        calls.append(len(a) * len(b))
        return metrics.pairwise_cosine(a, b)

    of_x, of_y = metrics.mutual_neighbors(x, y, (5, 9), counted)
    assert sum(calls) == 25 * 40
    for ours, expected in ((of_x, metrics.nearest_neighbors(x, y, 5)),
                           (of_y, metrics.nearest_neighbors(y, x, 9))):
        assert torch.equal(ours.indices, expected.indices)
        torch.testing.assert_close(ours.distances, expected.distances)
    with pytest.raises(ValueError, match="k = 26"):
        metrics.mutual_neighbors(x, y, (5, 26))


def euclidean(x, y):
    return torch.cdist(torch.as_tensor(x).double(), torch.as_tensor(y).double())


def brute_force_accuracy(real, fake, distance):
    within_real, within_fake = distance(real, real).numpy(), distance(fake, fake).numpy()
    across = distance(real, fake).numpy()
    count = 0
    for i in range(len(real)):
        others = [j for j in range(len(real)) if j != i]
        count += across[i].min() > within_real[i, others].min()
        count += across[:, i].min() > within_fake[i, others].min()
    return count / (2 * len(real))


@pytest.mark.parametrize("distance", [metrics.pairwise_cosine, euclidean])
def test_adversarial_accuracy_equals_its_definition(distance, monkeypatch):
    real, fake = gaussian(60, 5), gaussian(60, 5, 0.8, seed=1)
    expected = brute_force_accuracy(real, fake, distance)
    assert 0.5 < expected < 1
    assert metrics.adversarial_accuracy(real, fake, distance) == expected
    assert metrics.adversarial_accuracy(real.numpy(), fake.numpy(), distance) == expected
    matrix = distance(torch.cat([real, fake]), torch.cat([real, fake]))
    rows = torch.arange(120)
    assert expected == metrics.adversarial_accuracy(
        rows[:60], rows[60:], lambda i, j: matrix[i][:, j]
    )
    monkeypatch.setattr(metrics, "BLOCK", 13)
    assert metrics.adversarial_accuracy(real, fake, distance) == expected


def test_adversarial_accuracy_where_the_answer_is_known():
    real, other = gaussian(200, 6), gaussian(200, 6, seed=1)
    accuracy = metrics.adversarial_accuracy
    low, high = metrics.interval(accuracy, real, other, replicates=40)
    assert low < 0.5 < high and high - low < 0.35
    assert accuracy(real, real.clone()) == 0
    assert accuracy(real, real[torch.randperm(200, generator=torch.Generator())]) == 0
    far = gaussian(200, 6, 50.0, 1e-3, seed=2)
    assert accuracy(real, far, euclidean) == 1
    half = torch.cat([real[:100], other[100:]])
    shares = [torch.cat([real[:k], other[k:]]) for k in (0, 50, 100, 150, 200)]
    values = [accuracy(real, fake) for fake in shares]
    assert values == sorted(values, reverse=True) and len(set(values)) == 5
    assert 0.15 < accuracy(real, half) < 0.4
    with pytest.raises(ValueError, match="200 and 199"):
        accuracy(real, other[1:])


def test_rounding_does_not_decide_ties_of_copies():
    real = torch.cat([gaussian(40, 300, 5.0)] * 2)  # each photo twice
    assert metrics.adversarial_accuracy(real, real * 1.7) == 0
    noisy = real * (1 + 1e-7 * gaussian(80, 300, seed=3))
    assert metrics.adversarial_accuracy(real, noisy) == 0
    # Only the first half is copied; the nearest neighbour of many others is a copied photo,
    # as far away as its copy, and such a tie counts as near whatever the rounding.
    real, other = gaussian(80, 300, 5.0), gaussian(80, 300, 5.0, seed=4)
    fake = torch.cat([real[:40], other[40:]])
    assert metrics.adversarial_accuracy(real, fake) == metrics.adversarial_accuracy(
        real, fake * (1 + 1e-7 * gaussian(80, 300, seed=5))
    )


def test_privacy_loss():
    train, validation = gaussian(150, 6), gaussian(150, 6, seed=1)
    assert metrics.privacy_loss(train, validation, train) > 0.3
    assert abs(metrics.privacy_loss(train, validation, gaussian(150, 6, seed=2))) < 0.12


@pytest.mark.parametrize("block", [2048, 17])
@pytest.mark.parametrize("n, m, k, shift", [(80, 80, 5, 0.3), (50, 70, 3, 0.0), (60, 60, 1, 2.0)])
def test_precision_recall_density_coverage_equal_prdc(n, m, k, shift, block, monkeypatch, capsys):
    prdc = pytest.importorskip("prdc")
    monkeypatch.setattr(metrics, "BLOCK", block)
    real, fake = gaussian(n, 6), gaussian(m, 6, shift, seed=1)
    expected = prdc.compute_prdc(real.numpy(), fake.numpy(), k)
    assert metrics.precision_recall_density_coverage(real, fake, k) == pytest.approx(expected)
    with pytest.raises(ValueError, match="n >="):
        metrics.precision_recall_density_coverage(real, fake, 90)


def test_copy_test_names_the_copies():
    train, validation = gaussian(300, 20), gaussian(300, 20, seed=1)
    fake = gaussian(200, 20, seed=2)
    fake[[3, 77]] = train[[9, 8]]
    fake[150] = train[5] + 0.01 * gaussian(1, 20, seed=3)[0]
    result = metrics.copy_test(fake, train, validation)
    assert result.indices[:3] == [3, 77, 150] and len(result.indices) < 12
    assert result.share == len(result.indices) / 200
    assert result.nearest[[3, 77, 150]].tolist() == [9, 8, 5]
    assert (result.distances[result.indices] < result.threshold).all()


# Numbers from lists of neighbours, as evaluate.py takes them


def lists_of(sets, n):
    """Neighbors of all pairs of {letter: points}."""
    lists = {}
    for x in sets:
        for y in sets:
            if x + y not in lists:
                lists |= metrics.neighbor_lists(x, y, sets[x], sets[y], n, metrics.pairwise_cosine)
    return lists


def test_numbers_and_intervals_from_lists_equal_those_from_points():
    t, v, f = (gaussian(n, 6, shift, seed=n) for n, shift in ((120, 0), (90, 0), (60, 0.4)))
    f[:20] = t[:20] * 1.5  # copies, by cosine
    lists = lists_of({"T": t, "V": v, "F": f}, 60)
    assert lists["FT"].indices.shape == (60, 64) and lists["TF"].indices.shape == (120, 32)
    assert lists["VV"].indices.shape == (90, 48)
    rows = torch.arange(120)[::2], torch.arange(90)[15:75], torch.arange(60)
    measure = metrics.neighbor_measure(lists, "_x")

    def accuracies(x, y, z):
        aa = [metrics.adversarial_accuracy(x, z), metrics.adversarial_accuracy(y, z)]
        return [*aa, aa[1] - aa[0]]

    points = t[rows[0]], v[rows[1]], f
    names = ["aa_train_x", "aa_test_x", "privacy_loss_x"]
    assert measure.values(60, *rows) == dict(zip(names, accuracies(*points), strict=True))
    low, high = metrics.interval(accuracies, *points, bounds=([0, 0, -1], [1, 1, 1]))
    assert measure.intervals(60, *rows) == {
        name: [a, b] for name, a, b in zip(names, low, high, strict=True)}

    measure = metrics.real_measure(lists)
    assert measure.values(60, *rows[:2])["aa_train"] == metrics.adversarial_accuracy(*points[:2])

    everything = torch.arange(120), torch.arange(90), rows[2]
    test = metrics.copy_test(f, t, v)
    listed = metrics.listed_copies(lists["FT"], lists["VT"])
    assert listed.indices == test.indices and set(test.indices) >= set(range(20))
    measure = metrics.copy_measure(lists)
    assert measure.values(60, *everything) == {"copies": pytest.approx(test.share)}
    low, high = measure.intervals(60, *everything)["copies"]
    assert low < test.share < high and high - low < 0.35


def test_numbers_of_features_and_what_needs_more_points(monkeypatch):
    monkeypatch.setattr(metrics, "FEWEST_FOR_INFINITY", 100)
    x, y, z = (gaussian(n, 8, n / 500, seed=n) for n in (100, 101, 102))
    x, y, z = x, y[:100], z[:100]
    measures = metrics.inception_measures(["train", "validation"])
    values = {name: value for m in measures for name, value in m.values(100, x, y, z).items()}
    assert list(values) == [
        "fid_train", "fid_validation", "kid_train", "kid_validation", "precision", "recall",
        "density", "coverage", "fid_infinity_train", "fid_infinity_validation"]
    assert values["fid_validation"] == metrics.frechet_distance(y, z)
    assert values["kid_train"] == metrics.kernel_distance(x, z)[0]
    assert values["recall"] == metrics.precision_recall_density_coverage(x, z)["recall"]
    assert values["fid_infinity_train"] == metrics.frechet_distance_infinity(x, z, 5).value
    few = [name for m in measures for name in m.values(6, x[:6], y[:6], z[:6])]
    assert few == list(values)[:8]
    spread = [name for m in measures for name in m.intervals(6, x[:6], y[:6], z[:6])]
    assert spread == list(values)[:4]
    assert not any(m.intervals(3, x[:3], y[:3], z[:3]) for m in measures)


# Intervals and components


def test_interval_covers_a_known_frechet_distance():
    d, n, shift, hits = 4, 150, 0.8, 0
    for seed in range(60):
        x, y = gaussian(n, d, seed=2 * seed), gaussian(n, d, shift, seed=2 * seed + 1)
        low, high = metrics.interval(metrics.frechet_distance, x, y, replicates=40, seed=seed)
        hits += low < d * shift**2 < high
    assert 0.87 <= hits / 60 <= 1


def test_interval_covers_adversarial_accuracy_of_one_distribution():
    hits, widths = 0, []
    for seed in range(40):
        x, y = gaussian(60, 3, seed=2 * seed), gaussian(60, 3, seed=2 * seed + 1)
        statistic = partial(metrics.adversarial_accuracy, distance=euclidean)
        low, high = metrics.interval(statistic, x, y, replicates=30, seed=seed)
        hits += low < 0.5 < high
        widths.append(high - low)
    assert hits >= 36 and np.mean(widths) < 0.4


@pytest.mark.parametrize("name, n, d, shift, least", [
    ("kid", 60, 8, 0.4, 0.85), ("fid", 24, 40, 0.3, 0.85), ("precision", 50, 3, 0.8, 0.85),
    ("coverage", 50, 3, 0.8, 0.85), ("privacy_loss", 50, 3, 0.0, 0.9)])
def test_interval_covers_the_mean_over_draws(name, n, d, shift, least):
    """The number itself, at this n: its mean over many draws is its truth."""

    def statistic(x, y, z):
        if name == "kid":
            return metrics.kernel_distance(x, z, subsets=1)[0]
        if name == "fid":  # with fewer points than dimensions
            return metrics.frechet_distance(x, z)
        if name == "privacy_loss":
            return metrics.privacy_loss(x, y, z, euclidean)
        return metrics.precision_recall_density_coverage(x, z)[name]

    def sets(seed):
        return [gaussian(n, d, part, seed=3 * seed + i) for i, part in enumerate((0, 0, shift))]

    draws = [statistic(*sets(1000 + seed)) for seed in range(80)]
    hits = []
    for seed in range(40):
        low, high = metrics.interval(statistic, *sets(seed), replicates=24, seed=seed)
        hits.append(low < np.mean(draws) < high)
    assert least <= np.mean(hits)


def test_interval_of_several_numbers_bounds_and_seed():
    x, y = gaussian(40, 4), gaussian(40, 4, 0.2, seed=1)

    def statistic(x, y):
        return list(metrics.precision_recall_density_coverage(x, y, 3).values())

    low, high = metrics.interval(statistic, x, y, replicates=20, bounds=(0, 1))
    assert len(low) == len(high) == 4 and max(high) == 1
    again = metrics.interval(statistic, x.numpy(), y.numpy(), replicates=20, bounds=(0, 1))
    assert again == (low, high)
    mean = metrics.interval(lambda x: x.mean().item(), gaussian(400, 1), replicates=400)
    assert mean[1] - mean[0] == pytest.approx(2 * 1.96 / 20, rel=0.2)


def test_principal_components_equal_scikit_learns():
    decomposition = pytest.importorskip("sklearn.decomposition")
    x, y = gaussian(50, 8) * torch.arange(1, 9), gaussian(20, 8, seed=1)
    pca = metrics.principal_components(x)
    expected = decomposition.PCA(2).fit(x.double().numpy())
    np.testing.assert_allclose(pca.explained, expected.explained_variance_ratio_, rtol=1e-6)
    signs = np.sign((pca.components.numpy() * expected.components_).sum(1))
    np.testing.assert_allclose(pca.project(y), expected.transform(y.double().numpy()) * signs)
    for seed in range(8):
        components = metrics.principal_components(gaussian(9, 8, seed=seed)).components
        assert (components[[0, 1], components.abs().argmax(1)] > 0).all()
