"""metrics.py against the reference implementations, short definitions and known answers."""

import numpy as np
import pytest
import torch
from published import pytorch_fid_distance

import metrics

pytestmark = pytest.mark.usefixtures("random_state_untouched")


def gaussian(n, d, shift=0.0, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * scale + shift


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


@pytest.mark.parametrize("repeated, slope", [(1, 0), (1, 3), (3, 0), (3, 3)])
@pytest.mark.parametrize("n, m", [(60, 60), (60, 90), (90, 60)])
def test_frechet_distance_by_eigenvalues_equals_that_by_singular_values(n, m, repeated, slope):
    """Also where they can't be trusted: equal points, whose singular values are 0, and small ones
    of features that hardly vary in most directions."""
    fall = 10 ** -torch.linspace(0, slope, 256, dtype=torch.float64)
    x, y = (gaussian(k // repeated, 256, seed=k + j).double().repeat(repeated, 1) * fall
            for j, k in enumerate((n, m)))
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    root = np.linalg.svd((a @ b.T).numpy(), compute_uv=False).sum()
    apart = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    assert metrics.frechet_distance(x, y) == pytest.approx(apart.item() - 2 * root, rel=1e-9)


@pytest.mark.parametrize(
    "n, d", [(2, 8), (50, 8), (2, 2048), (331, 2048), (255, 256), (256, 256), (900, 256)])
def test_frechet_distance_is_real_for_every_size(n, d):
    x = gaussian(n, d) * torch.linspace(0, 1, d)  # one dimension never varies
    scale = x.square().sum().item() / n
    assert metrics.frechet_distance(x, x.clone()) <= 1e-6 * scale
    collapsed = torch.full((min(n, 331), d), 0.5)
    to_collapsed = metrics.frechet_distance(x, collapsed)
    expected = (x.mean(0) - 0.5).square().sum() + x.var(0).sum()
    assert to_collapsed == pytest.approx(expected.item(), rel=1e-5)
    assert metrics.frechet_distance(collapsed, collapsed) == 0


@pytest.mark.parametrize("distance", [metrics.frechet_distance, metrics.kernel_distance])
def test_distances_by_blocks(distance, monkeypatch):
    x, y = gaussian(90, 6), gaussian(70, 6, 0.3, seed=1)
    whole = distance(x.numpy(), y.numpy())
    monkeypatch.setattr(metrics, "BLOCK", 11)
    assert distance(x, y) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("x, y", [
    (gaussian(1, 4), gaussian(9, 4)), (gaussian(9, 4), gaussian(9, 5)),
    (gaussian(9, 4), gaussian(9, 4) / 0), (gaussian(9, 4)[0], gaussian(9, 4))])
def test_features_that_are_none(x, y):
    with pytest.raises(ValueError, match="features"):
        metrics.frechet_distance(x, y)


def test_frechet_distance_infinity(monkeypatch):
    """Nearer to the truth, and exact where the distance is linear in 1 / n, for odd n, too."""
    d, plain, extrapolated = 32, [], []
    truth = d * 0.1**2 + d * 0.2**2
    for seed in range(6):
        x, y = gaussian(300, d, seed=2 * seed), gaussian(300, d, 0.1, 1.2, seed=2 * seed + 1)
        plain.append(metrics.frechet_distance(x, y) - truth)
        extrapolated.append(metrics.frechet_distance_infinity(x, y, seed=seed) - truth)
    assert np.mean(plain) > 0.5 and abs(np.mean(extrapolated)) < 0.3 * np.mean(plain)
    sizes = []

    def distance(x, y):
        sizes.append((len(x), len(y)))
        return 5 + 70 / len(x)

    monkeypatch.setattr(metrics, "frechet_distance", distance)
    for n, d, halves in ((30, 32, 15), (31, 2, 5)):
        sizes.clear()
        assert metrics.frechet_distance_infinity(gaussian(n, d), gaussian(40, d)) == (
            pytest.approx(5))
        assert sizes == [(15, 15)] * halves + [(n, n)]


def test_frechet_distance_infinity_varies_less_than_a_line_fitted_to_15_sizes():
    """As Chong & Forsyth fit it; over new draws, both near the same mean."""

    def fitted(x, y):
        rng, sizes = np.random.default_rng(0), np.linspace(50, 100, 15).astype(int)
        distances = [metrics.frechet_distance(*(z[rng.permutation(100)[:size]] for z in (x, y)))
                     for size in sizes]
        return np.polyfit(1 / sizes, distances, 1)[1]

    fall = torch.logspace(0, -1.5, 256)
    draws = [metrics.product_views(*(gaussian(100, 256, 0.03, 1 + i / 10, seed=2 * seed + i) * fall
                                   for i in range(2))) for seed in range(40)]
    ours, theirs = ([distance(*draw) for draw in draws]
                    for distance in (metrics.frechet_distance_infinity, fitted))
    assert abs(np.mean(ours) - np.mean(theirs)) < 0.1 * np.mean(ours)
    assert np.std(ours) < 0.8 * np.std(theirs)


def test_kernel_distance_equals_torch_fidelity():
    reference = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = gaussian(60, 16), gaussian(60, 16, 0.3, seed=1)
    expected = reference.kid_features_to_metric(
        x.double(), y.double(), kid_subsets=1, kid_subset_size=60, verbose=False)
    expected = expected["kernel_inception_distance_mean"]
    assert metrics.kernel_distance(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert metrics.kernel_distance(y, x) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    same = metrics.kernel_distance(x, x)  # the diagonal counts across two sets, not within one
    assert same == pytest.approx(metrics.kernel_distance(x, x.clone())) and same < 0


@pytest.mark.parametrize("d", [12, 300])  # fewer and more than points
def test_numbers_by_look_up_equal_those_of_features(d, monkeypatch):
    """Of subsets, from one matrix of inner products; above its largest size, of features."""
    x, y, z = gaussian(80, d), gaussian(70, d, 0.3, 1.5, seed=1), gaussian(9, d, seed=2)
    points = metrics.product_views(x, y, z)
    assert [type(p) for p in points] == [metrics.Products] * 3
    rng = np.random.default_rng(0)
    rows, others = rng.permutation(80)[:41], rng.permutation(70)[:33]
    for statistic in (metrics.frechet_distance, metrics.kernel_distance,
                      metrics.frechet_distance_infinity, metrics.precision_recall_density_coverage):
        found = statistic(points[0][rows], points[1][others])
        assert found == pytest.approx(statistic(x[rows], y[others]), rel=1e-9)
        with monkeypatch.context() as patch:
            patch.setattr(metrics, "VIEWED", 0)
            assert all(isinstance(p, torch.Tensor) for p in metrics.product_views(x, y, z))
            assert found == pytest.approx(statistic(x[rows], y[others]), rel=1e-9)
    for pair in ((points[0], y), (points[0], metrics.product_views(y)[0])):
        with pytest.raises(ValueError, match="views"):
            metrics.frechet_distance(*pair)


# Neighbours


def euclidean(x, y):
    return torch.cdist(torch.as_tensor(x).double(), torch.as_tensor(y).double())


def test_pairwise_distances():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = gaussian(30, 12), gaussian(20, 12, seed=1)
    ours = metrics.pairwise_cosine(x, y)
    np.testing.assert_allclose(ours, pairwise.cosine_distances(x, y), atol=1e-6)
    torch.testing.assert_close(metrics.pairwise_euclidean(x, y), euclidean(x, y).float())
    noisy = x * (1 + 1e-7 * gaussian(30, 12, seed=2))
    for copies in (3 * x, noisy):
        assert (metrics.pairwise_cosine(x, copies).diagonal() == 0).all()
    assert (metrics.pairwise_cosine(x, x * 0) == 1).all()


@pytest.mark.parametrize("block", [2048, 7])
def test_neighbors_equal_scikit_learns(block, monkeypatch):
    neighbors = pytest.importorskip("sklearn.neighbors")
    monkeypatch.setattr(metrics, "BLOCK", block)
    x, y = gaussian(25, 8), gaussian(40, 8, seed=1)
    model = neighbors.NearestNeighbors(n_neighbors=5, metric="cosine").fit(y.double().numpy())
    distances, indices = model.kneighbors(x.double().numpy())
    ours = metrics.nearest_neighbors(x, y, 5)
    np.testing.assert_allclose(ours.distances, distances, atol=1e-6)
    np.testing.assert_array_equal(ours.indices, indices)
    _, others = metrics.nearest_neighbors(y, y, 1, leave_out_self=True)
    np.testing.assert_array_equal(others[:, 0], model.kneighbors()[1][:, 0])
    for views in (metrics.product_views(x, y), metrics.distance_views(x, y)):
        again = metrics.nearest_neighbors(*views, 5)
        assert torch.equal(again.indices, ours.indices)
        torch.testing.assert_close(again.distances, ours.distances, rtol=0, atol=1e-7)


@pytest.mark.parametrize("block", [2048, 7])
def test_distance_views_hold_each_distance_once(block, monkeypatch):
    """Between all sets, whatever blocks they are computed by; what is known is not computed."""
    monkeypatch.setattr(metrics, "BLOCK", block)
    sets, computed = [gaussian(n, 4, seed=n) for n in (20, 9, 15)], []

    def counted(x, y):
        computed.append(len(x) * len(y))
        return euclidean(x, y)

    views = metrics.distance_views(*sets, distance=counted)
    for x, view in zip(sets, views, strict=True):
        for y, other in zip(sets, views, strict=True):
            torch.testing.assert_close(view.between(other), euclidean(x, y).float())
    assert sum(computed) == 20 * 20 + 9 * 29 + 15 * 44
    computed.clear()
    known = metrics.distance_views(*sets[:2], distance=euclidean)[0].matrix
    again = metrics.distance_views(*sets, distance=counted, known=known)
    torch.testing.assert_close(again[0].matrix, views[0].matrix)
    assert sum(computed) == 15 * 44
    few = views[1][[3, 0]]
    assert len(few) == 2 and torch.equal(few.between(views[2]), views[1].between(views[2])[[3, 0]])
    with pytest.raises(ValueError, match="several matrices"):
        few.between(again[0])


def test_equally_near_neighbors_come_in_order(monkeypatch):
    x = gaussian(4, 8)
    for block in (2048, 3):
        monkeypatch.setattr(metrics, "BLOCK", block)
        _, indices = metrics.nearest_neighbors(x, torch.cat([x, x, x]), 3)
        assert indices.tolist() == [[i, i + 4, i + 8] for i in range(4)]
    for k in (0, 5):
        with pytest.raises(ValueError, match="neighbours"):
            metrics.nearest_neighbors(x, x, k)


# Distances between sets of points


accuracy = metrics.adversarial_accuracy


def brute_force_accuracy(real, fake, distance):
    across, apart = distance(real, fake), 0
    for points, nearest in ((real, across.min(1).values), (fake, across.min(0).values)):
        within = distance(points, points).fill_diagonal_(torch.inf).min(1).values
        apart += (nearest > within).sum().item()
    return apart / (2 * len(real))


@pytest.mark.parametrize("distance", [metrics.pairwise_cosine, euclidean])
def test_adversarial_accuracy_equals_its_definition(distance, monkeypatch):
    real, fake = gaussian(60, 5), gaussian(60, 5, 0.8, seed=1)
    expected = brute_force_accuracy(real, fake, distance)
    assert 0.5 < expected < 1
    assert accuracy(real, fake, distance) == expected
    assert accuracy(real.numpy(), fake.numpy(), distance) == expected
    assert expected == accuracy(*metrics.distance_views(real, fake, distance=distance))
    if distance is metrics.pairwise_cosine:
        assert expected == accuracy(*metrics.product_views(real, fake)) == accuracy(real, fake)
    monkeypatch.setattr(metrics, "BLOCK", 13)
    assert accuracy(real, fake, distance) == expected


def test_adversarial_accuracy_where_the_answer_is_known():
    real, other = gaussian(200, 6), gaussian(200, 6, seed=1)
    low, high = metrics.interval(accuracy, real, other, replicates=40)
    assert low < 0.5 < high and high - low < 0.35
    assert accuracy(real, real[torch.randperm(200, generator=torch.Generator())]) == 0
    assert accuracy(real, gaussian(200, 6, 50.0, 1e-3, seed=2), euclidean) == 1
    values = [accuracy(real, torch.cat([real[:k], other[k:]])) for k in (0, 50, 100, 150, 200)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 5
    assert 0.15 < values[2] < 0.4
    with pytest.raises(ValueError, match="200 and 199"):
        accuracy(real, other[1:])
    loss = metrics.privacy_loss(real, other, real)
    assert loss == accuracy(other, real) - accuracy(real, real) > 0.3
    assert abs(metrics.privacy_loss(real, other, gaussian(200, 6, seed=2))) < 0.15


def test_rounding_does_not_decide_ties_of_copies():
    real = torch.cat([gaussian(40, 300, 5.0)] * 2)  # each photo twice
    noise = 1 + 1e-7 * gaussian(80, 300, seed=3)
    assert accuracy(real, real * 1.7) == 0
    assert accuracy(real, real * noise) == 0
    # Only the first half is copied; the nearest neighbour of many others is a copied photo,
    # as far away as its copy, and such a tie counts as near whatever the rounding.
    real, other = gaussian(80, 300, 5.0), gaussian(80, 300, 5.0, seed=4)
    fake = torch.cat([real[:40], other[40:]])
    assert accuracy(real, fake) == accuracy(
        real, fake * noise)


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
    found = metrics.suspected_copies(train, validation, fake)
    assert found[[3, 77, 150]].all() and found.sum() < 12
    near, unseen = (metrics.pairwise_cosine(x, train).min(1).values for x in (fake, validation))
    assert torch.equal(found, near < unseen.double().quantile(0.01))
    views = metrics.product_views(train, validation, fake)
    assert torch.equal(found, metrics.suspected_copies(*views))


def test_effective_number_equals_its_definition():
    """Of the similarity matrix's eigenvalues, whichever way they come; of copies, of orthogonal
    points and in between what everybody would say."""
    assert metrics.effective_number(torch.eye(30)) == pytest.approx(30)
    assert metrics.effective_number(torch.ones(30, 5)) == pytest.approx(1)
    assert metrics.effective_number(torch.eye(10).repeat(3, 1)) == pytest.approx(10)
    weights = np.array([0.5, 0.3, 0.2])
    uneven = torch.eye(3).repeat_interleave(torch.tensor([5, 3, 2]), 0)
    assert metrics.effective_number(uneven) == pytest.approx(
        np.exp(-(weights * np.log(weights)).sum()))
    for n, d in ((20, 50), (90, 7)):
        x = gaussian(n, d, 0.5)
        unit = torch.nn.functional.normalize(x.double(), dim=1).numpy()
        values = np.linalg.eigvalsh(unit @ unit.T / n).clip(1e-300)
        expected = np.exp(-(values * np.log(values)).sum())
        assert metrics.effective_number(x) == pytest.approx(expected, rel=1e-9)
        (view,) = metrics.product_views(x)
        assert metrics.effective_number(view) == pytest.approx(expected, rel=1e-9)


def test_pieces_equal_their_definition():
    """Distances, sides and counts by loops; the planted pieces are found where they come from."""
    train, validation, fake = (torch.nn.functional.normalize(x, dim=2) for x in gaussian(
        36, 16 * 8).view(3, 12, 16, 8))
    fake[0, :3], fake[1, 4:6] = train[3, :3], validation[5, 4:6]
    fake[2, :2], fake[2, 2] = train[7, 2:4], train[8, 9]
    rows = [torch.tensor([0, 3, 4, 7, 8, 11]), torch.tensor([1, 2, 5, 6, 9, 10]), torch.arange(5)]
    distances = np.array([[[1 - (photo @ cell).max() for photo in (*train, *validation)]
                           for cell in image] for image in fake])
    matrix = torch.cat([metrics.cell_distances(photos, fake) for photos in (train, validation)])
    np.testing.assert_allclose(matrix, distances.transpose(2, 0, 1).clip(0), atol=1e-6)
    sets = train[rows[0]], validation[rows[1]], fake[:5]
    views = [metrics.Distances(matrix, own) for own in (rows[0], 12 + rows[1], rows[2])]
    near = distances[:5][..., rows[0]], distances[:5][..., 12 + rows[1]]
    ratios = np.log(near[1].min(2).clip(1e-6) / near[0].min(2).clip(1e-6))
    counted = np.sort(np.abs(ratios).ravel())[-8:]  # a tenth of 80 cells
    expected = np.where(np.abs(ratios) >= counted[0] * (1 - 1e-3), np.sign(ratios), 0)
    for points in (sets, views):
        sides, photos = metrics.piece_sides(*points)
        assert (sides.numpy() == expected).all() and (expected != 0).sum() == 8
        assert (photos.numpy() == near[0].argmin(2)).all()
        assert rows[0][photos[0, :3]].tolist() == [3, 3, 3]
        assert rows[0][photos[2, :3]].tolist() == [7, 7, 8]
        assert metrics.pieces(*points) == 6 / 8


def test_pieces_of_nothing_copied():
    """0.5 within the interval, which holds it for 95 draws of 100, and is no wider than it must."""
    ends = []
    for seed in range(20):
        cells = gaussian(90, 9 * 6, seed=seed).view(3, 30, 9, 6)
        sets = torch.nn.functional.normalize(cells, dim=3)
        ends.append(metrics.interval(metrics.pieces, *sets, replicates=40))
    low, high = np.transpose(ends)
    assert ((low <= 0.5) & (high >= 0.5)).sum() >= 18 and (high - low).mean() < 0.7


# Intervals


def share(name):
    return lambda x, _, z: metrics.precision_recall_density_coverage(x, z)[name]


@pytest.mark.parametrize("statistic, n, d, shift, truth, least", [
    (lambda x, _, z: metrics.frechet_distance(x, z), 150, 4, 0.8, 4 * 0.8**2, 0.87),
    (lambda x, _, z: accuracy(x, z, euclidean), 60, 3, 0.0, 0.5, 0.9),
    (lambda x, _, z: metrics.kernel_distance(x, z), 60, 8, 0.4, None, 0.85),
    (lambda x, _, z: metrics.frechet_distance(x, z), 24, 40, 0.3, None, 0.85),  # n < d
    (share("precision"), 50, 3, 0.8, None, 0.85),
    (share("coverage"), 50, 3, 0.8, None, 0.85),
    (metrics.privacy_loss, 50, 3, 0.0, None, 0.9),
    (lambda x, y, z: metrics.suspected_copies(x, y, z).double().mean().item(),
     100, 2, 0.0, None, 0.9),
    (lambda x, _, z: metrics.effective_number(z), 60, 5, 0.3, None, 0.85)])
def test_interval_covers_the_truth(statistic, n, d, shift, truth, least):
    """The number itself, at this n: its mean over many draws is its truth where none is known."""

    def sets(seed):
        return [gaussian(n, d, part, seed=3 * seed + i) for i, part in enumerate((0, 0, shift))]

    if truth is None:
        truth = np.mean([statistic(*sets(1000 + seed)) for seed in range(80)])
    ends = np.array([metrics.interval(statistic, *sets(seed), replicates=30, seed=seed)
                     for seed in range(40)])
    assert least <= np.mean((ends[:, 0] < truth) & (truth < ends[:, 1]))
    if truth == 0.5:
        assert np.mean(ends[:, 1] - ends[:, 0]) < 0.4


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
