"""Numbers that compare two sets of images by their features, and the numbers' intervals.

    frechet_distance(x, y), interval(frechet_distance, x, y)

Features x, y are float tensors or arrays (n, d). A distance is a function of two blocks of points
that returns their (n, m) distances; points are anything with a length that slices and indexes.
Everything is computed block by block, so memory stays bounded. Every random draw has a seed of its
own: the global random state is neither read nor changed.
"""

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2048  # rows and columns of a distance matrix held at once


def _checked(*sets, least=1):
    """The sets as tensors; ValueError unless (n, d) with one d, n >= least, and finite."""
    sets = [torch.as_tensor(x).cpu() for x in sets]
    for x in sets:
        if x.ndim != 2 or x.shape[1] != sets[0].shape[1] or len(x) < least:
            raise ValueError(f"features must be (n, d) with one d and n >= {least}, not "
                             f"{[tuple(x.shape) for x in sets]}")
        if not all(block.isfinite().all() for block in x.split(BLOCK)):
            raise ValueError("features are not finite")
    return sets


# Distances between distributions -------------------------------------------------------------


def frechet_distance(x, y):
    """Fréchet distance of Gaussians fitted to features x (n, d) and y (m, d): FID if Inception's.

    |mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), Heusel et al. 2017, eq. 6. With
    C_x = A'A and C_y = B'B the last trace is the nuclear norm of A B' (min(n, d) x min(m, d)),
    so no root of a near-singular matrix is taken: the result is real and >= 0 for any n, m >= 2.
    Raises ValueError for other shapes or non-finite features. n < d makes FID biased upward
    (see frechet_distance_infinity).
    """
    x, y = _checked(x, y, least=2)
    (mean_x, a), (mean_y, b) = _gaussian(x), _gaussian(y)
    root = torch.linalg.svdvals(a @ b.T).sum()
    distance = (mean_x - mean_y).square().sum() + a.square().sum() + b.square().sum() - 2 * root
    return max(distance.item(), 0.0)


def _gaussian(x):
    """Mean (d,) and a factor A (min(n, d), d) of the covariance A'A, in float64."""
    mean = x.mean(0, dtype=torch.float64)
    n, d = x.shape
    if n <= d:
        factor = x - mean
    else:  # QR by blocks: the rows seen so far are as good as their triangular factor
        factor = torch.empty(0, d, dtype=torch.float64)
        for block in x.split(BLOCK + d):
            factor = torch.linalg.qr(torch.cat([factor, block - mean]), mode="r").R
    return mean, factor / (n - 1) ** 0.5


def frechet_distance_infinity(x, y, sizes=15, seed=0):
    """Fréchet distance of features x (n, d), y (m, d) without the bias of small sets: FID∞.

    The distance of random subsets of both sets, of `sizes` sizes from half of the smaller set to
    all of it, regressed on 1 / size: the intercept. Chong & Forsyth 2020, sec. 4, who subsample
    one set against a large reference; both are small here. The bias is linear in 1 / n only for n
    well above the number of directions that matter: below, the result is still too large, if less
    so than the plain distance. Raises ValueError as frechet_distance, and for n or m < 8.
    """
    x, y = _checked(x, y, least=8)
    rng = np.random.default_rng(seed)
    n = min(len(x), len(y))
    sizes = np.unique(np.linspace(n // 2, n, sizes).astype(int))
    distances = [frechet_distance(*(z[rng.permutation(len(z))[:size]] for z in (x, y)))
                 for size in sizes]
    _, intercept = np.polyfit(1 / sizes, distances, 1)
    return float(intercept)


def kernel_distance(x, y, subsets=100, subset_size=1000, seed=0):
    """Kernel distance (KID if Inception's features) of x (n, d) and y (m, d): (mean, std).

    Unbiased MMD^2 with the kernel (x.y / d + 1)^3 over random subsets of both, mean and
    standard deviation; Bińkowski et al. 2018, eq. 4. subset_size is capped to n and m (at the
    cap of equal sets every subset is the whole, and std 0: see interval). The draws are
    torch-fidelity's for the same seed. Raises ValueError for bad shapes or non-finite features.
    """
    x, y = _checked(x, y, least=2)
    size = min(subset_size, len(x), len(y))
    if size == len(x) == len(y):
        subsets = 1  # all are the whole
    rng = np.random.RandomState(seed)  # its stream never changes between versions
    draws = [tuple(torch.from_numpy(rng.choice(len(z), size, replace=False)) for z in (x, y))
             for _ in range(subsets)]
    if len(x) * len(y) > subsets * size**2:
        values = torch.cat([_mmd(x[i], y[j], torch.ones(2, size, 1).double()) for i, j in draws])
    else:  # each entry of the whole kernel matrix serves all subsets
        members = [torch.zeros(len(z), subsets, dtype=torch.float64) for z in (x, y)]
        for column, pair in enumerate(draws):
            for member, rows in zip(members, pair, strict=True):
                member[rows, column] = 1
        values = _mmd(x, y, members)
    return values.mean().item(), values.std(correction=0).item()


def _mmd(x, y, members):
    """Unbiased MMD^2 (s,) of s subsets, given as columns of 0 and 1: (n, s) of x, (m, s) of y."""

    def kernel_sum(a, b, a_members, b_members):
        total = 0
        for rows, member in zip(a.split(BLOCK), a_members.split(BLOCK), strict=True):
            kernel = (rows @ b.T / b.shape[1]).add_(1).pow_(3)
            total = total + (kernel @ b_members * member).sum(0)
        return total

    def within(a, member):
        diagonal = (a.square().mean(1) + 1) ** 3
        return (kernel_sum(a, a, member, member) - diagonal @ member) / (size * (size - 1))

    x, y, size = x.double(), y.double(), members[0].sum(0)
    across = kernel_sum(x, y, *members) / size**2
    return within(x, members[0]) + within(y, members[1]) - 2 * across


# Nearest neighbours --------------------------------------------------------------------------


def pairwise_cosine(x, y):
    """Cosine distances 1 - cos in [0, 2] between rows of x (n, d) and y (m, d): float32 (n, m).

    Computed in float64. What is below 1e-10 (rows equal to about 1e-5, the accuracy of
    features) is 0, so that copies are at no distance, whatever the order of summation. A zero
    row is at distance 1 of everything.
    """
    x, y = (F.normalize(rows.double(), dim=1) for rows in _checked(x, y))
    distances = 1 - x @ y.T
    return distances.masked_fill_(distances < 1e-10, 0).float()


def pairwise_euclidean(x, y):
    """Euclidean distances between rows of x (n, d) and y (m, d): float32 (n, m)."""
    # In float64, and rounded once, so that equal distances stay equal.
    x, y = (torch.as_tensor(rows).double() for rows in (x, y))
    squares = x.square().sum(1)[:, None] + y.square().sum(1)
    return squares.addmm_(x, y.T, alpha=-2).clamp_(min=0).sqrt_().float()


class Neighbors(NamedTuple):
    """The k nearest points of one set to each of n points: `distances` (n, k) in float64, nearest
    first, and their `indices` (n, k) in the set, of equals the first."""

    distances: Tensor
    indices: Tensor

    def among(self, rows, members):
        """(distances, indices) of the points `rows` to the nearest among `members` of the set.

        rows, members: index tensors. Infinite where none of the k neighbours is a member: for a
        random half of the set, with k = 32, one time in 4,000,000,000.
        """
        member = torch.zeros(int(max(self.indices.max(), members.max())) + 1, dtype=torch.bool)
        member[members] = True
        indices = self.indices[rows]
        distances, first = self.distances[rows].masked_fill(~member[indices], torch.inf).min(1)
        return distances, indices.gather(1, first[:, None])[:, 0]


def nearest_neighbors(x, y, k, distance=pairwise_cosine, leave_out_self=False):
    """The k nearest of the points y to each of the points x, as Neighbors.

    leave_out_self: x is y, and no point is its own neighbour. Block by block: memory grows with
    len(x) * k. Raises ValueError if there are fewer than k.
    """
    _check_k(k, len(y) - leave_out_self)
    nearest = {}
    for i, j, block in _distance_blocks(x, y, distance):
        if leave_out_self and i == j:
            block = block.clone().fill_diagonal_(torch.inf)
        nearest[i] = _merge(nearest.get(i), block, j, k)
    return _joined(nearest)


def mutual_neighbors(x, y, k, distance=pairwise_cosine):
    """(the k[0] nearest y to each x, the k[1] nearest x to each y), as two Neighbors.

    What two calls of nearest_neighbors give, with every distance computed once: the distance
    must be symmetric. k: a number, or one for each direction. Raises ValueError.
    """
    k_x, k_y = (k, k) if isinstance(k, int) else k
    _check_k(k_x, len(y))
    _check_k(k_y, len(x))
    of_x, of_y = {}, {}
    for i, j, block in _distance_blocks(x, y, distance):
        of_x[i] = _merge(of_x.get(i), block, j, k_x)
        of_y[j] = _merge(of_y.get(j), block.T, i, k_y)
    return _joined(of_x), _joined(of_y)


def _check_k(k, points):
    if not 1 <= k <= points:
        raise ValueError(f"k = {k} neighbours among {points} points")


def _distance_blocks(x, y, distance):
    """(first row, first column, a block of the distances of x to y, float64), row by row."""
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            yield i, j, torch.as_tensor(distance(x[i : i + BLOCK], y[j : j + BLOCK])).double()


def _merge(best, block, start, k):
    """The k nearest so far (or None) and the distances to points start, start + 1, ..., merged."""
    indices = torch.arange(start, start + block.shape[1]).expand(block.shape)
    if best:
        block = torch.cat([best.distances, block], 1)
        indices = torch.cat([best.indices, indices], 1)
    if k == 1:
        values, order = block.min(1, keepdim=True)
    else:  # topk promises no order of equals; clones, not views of the whole
        values, order = (ranked[:, :k].clone() for ranked in block.sort(dim=1, stable=True))
    return Neighbors(values, indices.gather(1, order))


def _joined(blocks):
    return Neighbors(*map(torch.cat, zip(*blocks.values(), strict=True)))


# Distances between sets of points ------------------------------------------------------------

TIE = 1e-5  # relative: the accuracy of features, so of distances, from batch to batch
COPY_QUANTILE = 0.01  # of the validation photos' distances: a suspected copy is nearer than it


def precision_recall_density_coverage(real, fake, k=5):
    """Dict of precision, recall, density and coverage of fake (m, d) against real (n, d).

    Balls around each point reach to its k-th neighbour in its own set, Euclidean; Kynkäänniemi
    et al. 2019 (precision, recall), Naeem et al. 2020 (density, coverage), and the numbers of
    the package prdc. All in [0, 1] but density (>= 0). Raises ValueError if k >= n or k >= m.
    """
    real, fake = _checked(real, fake, least=k + 1)
    real_radii, fake_radii = (
        nearest_neighbors(x, x, k, pairwise_euclidean, leave_out_self=True).distances[:, -1]
        for x in (real, fake))
    balls = torch.zeros(len(fake))  # of real points, around each fake one
    recalled = torch.zeros(len(real), dtype=torch.bool)
    nearest = torch.full((len(real),), torch.inf, dtype=torch.float64)
    for i, j, block in _distance_blocks(real, fake, pairwise_euclidean):
        rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
        balls[columns] += (block < real_radii[rows, None]).sum(0)
        recalled[rows] |= (block < fake_radii[columns]).any(1)
        nearest[rows] = nearest[rows].minimum(block.min(1).values)
    return {"precision": (balls > 0).double().mean().item(),
            "recall": recalled.double().mean().item(),
            "density": balls.double().mean().item() / k,
            "coverage": (nearest < real_radii).double().mean().item()}


def adversarial_accuracy(real, fake, distance=pairwise_cosine):
    """Nearest-neighbour adversarial accuracy of two sets of n >= 2 points: a number in [0, 1].

    (mean_i 1[d_TS(i) > d_TT(i)] + mean_i 1[d_ST(i) > d_SS(i)]) / 2, T real and S fake, d the
    distance to the nearest other point; Yale et al. 2020, eq. 1. 0.5 is ideal, 1 is far from
    real, 0 is copied. "Greater" means by more than 1e-5 of the distance: a photo and its copy are
    equally far from any third, and rounding must not decide between them. A tie counts as
    near the other set, so duplicates within the real set change nothing about copies of them.
    Raises ValueError for sets of unequal size.
    """
    if len(real) != len(fake) or len(real) < 2:
        raise ValueError(f"adversarial accuracy of {len(real)} and {len(fake)} points: "
                         "the sets must be equally large, with 2 points or more")
    real_fake, fake_real = mutual_neighbors(real, fake, 1, distance)
    real_real, fake_fake = (nearest_neighbors(points, points, 1, distance, leave_out_self=True)
                            for points in (real, fake))
    lists = {"TF": real_fake, "FT": fake_real, "TT": real_real, "FF": fake_fake}
    rows = torch.arange(len(real))
    return accuracy_of_neighbors(lists, "TF", rows, rows)


def accuracy_of_neighbors(lists, pair, real_rows, fake_rows):
    """adversarial_accuracy of some real and as many fake points, from their known neighbours.

    lists: {"TF": Neighbors of each point of the set T among the set F, ...}. pair: the letters of
    the real and of the fake set. 32 neighbours a point serve every random half of the sets (see
    Neighbors.among): that is what makes intervals cheap at any size.
    """
    real, fake = pair
    apart = 0
    for own, other, own_rows, other_rows in ((real, fake, real_rows, fake_rows),
                                             (fake, real, fake_rows, real_rows)):
        within, _ = lists[own + own].among(own_rows, own_rows)
        across, _ = lists[own + other].among(own_rows, other_rows)
        apart += (across > within * (1 + TIE)).sum().item()
    return apart / (2 * len(real_rows))


def copy_test(fake, validation):
    """Which fake points are nearer to a training point than unseen photos ever are? Nearest first.

    fake, validation: Neighbors of both among the training points. The suspects are nearer than the
    0.01 quantile of the validation points. By chance, that is a share of 0.01: a larger one, and
    each suspect beside its neighbour, is what to look at.
    """
    distances = fake.distances[:, 0]
    order = distances.argsort(stable=True)
    threshold = validation.distances[:, 0].quantile(COPY_QUANTILE)
    return order[distances[order] < threshold].tolist()


def authenticity(train, fake, distance=pairwise_cosine):
    """AuthPct: the percentage of fake points that are authentic (Alaa et al. 2022, sec. 3.3).

    A fake point is not if it is nearer to its nearest training point than that one is to any other
    training point. Photos of one kind give 50 to 70, whatever the model; copies give 0. Raises
    ValueError for fewer than 2 training points.
    """
    lists = {"FT": nearest_neighbors(fake, train, 1, distance),
             "TT": nearest_neighbors(train, train, 1, distance, leave_out_self=True)}
    return authenticity_of_neighbors(lists, "TF", torch.arange(len(train)),
                                     torch.arange(len(fake)))


def authenticity_of_neighbors(lists, pair, train_rows, fake_rows):
    """authenticity of some rows, from their known neighbours: see accuracy_of_neighbors."""
    train, fake = pair
    own = torch.full((int(train_rows.max()) + 1,), torch.inf, dtype=torch.float64)
    own[train_rows], _ = lists[train + train].among(train_rows, train_rows)
    distances, nearest = lists[fake + train].among(fake_rows, train_rows)
    return 100 * (distances > own[nearest]).double().mean().item()


class CopyingScore:
    """C_T (Meehan et al. 2020) of sets of features (n, d): score() of all or of some rows.

    In each of `cells` cells, made by k-means of the training points, the Mann-Whitney U of fake
    against validation points' Euclidean distances to the nearest training point there, as a z
    score; their mean, weighted by the validation points. 0 where fake points are as near as unseen
    ones, below -3 or so where they are copies, above 3 where they are far. More than `components`
    dimensions are first projected on as many principal components of train. Cells with fewer than
    `least` points of either kind are left out.
    """

    def __init__(self, train, validation, fake, cells=3, components=64, least=20, seed=0):
        from sklearn.cluster import KMeans  # slow to import
        from sklearn.decomposition import PCA

        sets = [x.double().numpy() for x in _checked(train, validation, fake, least=cells)]
        if sets[0].shape[1] > components:
            project = PCA(min(components, *sets[0].shape), random_state=seed).fit(sets[0]).transform
            sets = [project(x) for x in sets]
        kmeans = KMeans(cells, n_init=10, random_state=seed).fit(sets[0])
        self.cells = [torch.from_numpy(kmeans.predict(x)) for x in sets]
        train, *others = (torch.column_stack([torch.from_numpy(x), cell])
                          for x, cell in zip(sets, self.cells, strict=True))
        self.nearest = [nearest_neighbors(x, train, min(NEIGHBORS_KEPT, len(train)),
                                          _distance_within_cells) for x in others]
        self.used = [cell for cell in range(cells)
                     if all((labels == cell).sum() >= least for labels in self.cells[1:])]

    def score(self, train_rows=None, validation_rows=None, fake_rows=None):
        """C_T; None if no cell is large enough."""
        from scipy.stats import rankdata

        rows = [torch.arange(len(labels)) if some is None else some for labels, some in
                zip(self.cells, (train_rows, validation_rows, fake_rows), strict=True)]
        distances = [nearest.among(some, rows[0])[0]
                     for nearest, some in zip(self.nearest, rows[1:], strict=True)]
        total = weight = 0
        for cell in self.used:
            validation, fake = (distance[labels[some] == cell] for distance, labels, some
                                in zip(distances, self.cells[1:], rows[1:], strict=True))
            n, m = len(validation), len(fake)
            if n and m:
                ranks = rankdata(torch.cat([fake, validation]))
                u = ranks[:m].sum() - m * (m + 1) / 2
                z = (u - (n * m / 2 - 0.5)) / (n * m * (n + m + 1) / 12) ** 0.5
                total, weight = total + n * z, weight + n
        return float(total / weight) if weight else None


def _distance_within_cells(x, y):
    """Euclidean distances of points whose last coordinate is their cell; infinite to others."""
    distances = pairwise_euclidean(x[:, :-1], y[:, :-1])
    return distances.masked_fill_(x[:, -1:] != y[:, -1], torch.inf)


def recovery_gap(train, validation):
    """(gap, p) of recovery errors (n,) of photos (Webster et al. 2019): the median of validation
    less that of train, and p of the Kolmogorov-Smirnov test that both are alike."""
    from scipy.stats import ks_2samp

    gap = np.median(validation) - np.median(train)
    return float(gap), float(ks_2samp(train, validation).pvalue)


# Pieces: cells of images ---------------------------------------------------------------------

DECISIVE = 0.1  # the share of cells that count: most are as near to the one side as to the other


def nearest_pieces(cells, photos, k):
    """The k photos (m, c, d) nearest to each of cells (n, d), each by its nearest cell: Neighbors
    by 1 - x.y of unit vectors, computed on the photos' device."""

    def distance(x, y):
        x = x.to(y.device)
        return torch.cat([1 - (x @ part.flatten(0, 1).T).view(len(x), *part.shape[:2]).amax(2)
                          for part in y.split(32)], 1).cpu()

    return nearest_neighbors(cells, photos, k, distance)


def piece_sides(train, validation):
    """1 where a cell is nearer to training, -1 where to validation, 0 where that tells little.

    train, validation: distances (n, c) of n samples' c cells to the nearest cell of any photo. Only
    the tenth of all cells counts at which the two differ most, as a ratio: a choice that favours
    neither side, so the share of 1 is 0.5 by chance.
    """
    ratio = (validation.clamp(1e-6, 2) / train.clamp(1e-6, 2)).log()
    size, counted = ratio.abs(), max(1, int(DECISIVE * ratio.numel()))
    least = size.flatten().kthvalue(ratio.numel() - counted + 1).values
    return (ratio.sign() * (size >= least)).int()


def pieces_of_neighbors(train, validation, train_rows, validation_rows, fake_rows, cells):
    """(sides, photos) of some rows: piece_sides, and each cell's (n, c) nearest training photo.

    train, validation: nearest_pieces of all samples' cells, image after image.
    """
    rows = (fake_rows[:, None] * cells + torch.arange(cells)).flatten()
    to_train, photos = train.among(rows, train_rows)
    to_validation, _ = validation.among(rows, validation_rows)
    shape = -1, cells
    return piece_sides(to_train.view(shape), to_validation.view(shape)), photos.view(shape)


# Intervals, and the numbers of a table -------------------------------------------------------

NEIGHBORS_KEPT = 32  # of a point among n: enough for any random half of them
FEWEST_FOR_INFINITY = 200  # points a set: the trend of fewer says little


def interval(statistic, *sets, level=0.95, replicates=200, seed=0, bounds=(-np.inf, np.inf)):
    """Confidence interval (low, high) of statistic(*sets) for the sampling of the sets' points.

    statistic: any function here that returns a number, or several as an array, then low and
    high are lists. bounds: its range, to which the interval is cut.

    By the delete-half jackknife (Shao & Wu 1989): statistic ± z times its standard deviation
    over random halves of all sets, drawn without replacement. A bootstrap would draw points
    twice: neighbours at distance 0, and covariances of lower rank, so that Fréchet distances
    shift upward beyond their own interval. Where the variance falls faster than 1 / n (two sets
    of one distribution, n < d) the interval is too wide, never too narrow. It doesn't cover the
    bias of small sets (see frechet_distance_infinity).
    """
    rng = np.random.default_rng(seed)
    halves = [
        statistic(*(points[rng.permutation(len(points))[: len(points) // 2]] for points in sets))
        for _ in range(replicates)]
    margin = NormalDist().inv_cdf((1 + level) / 2) * np.std(halves, axis=0, ddof=1)
    value = np.asarray(statistic(*sets))
    return tuple(np.clip(value + side * margin, *bounds).tolist() for side in (-1, 1))


class Measure(NamedTuple):
    """What gives some rows of a table: statistic(*sets), a dict of numbers."""

    statistic: Callable
    sets: list
    bounds: tuple = (-np.inf, np.inf)
    least: int = 2  # points a set
    least_half: int = 2  # points in half of a set, for an interval
    effort: float = 1.0  # the share of the replicates that it gets


def numbers(measures, n):
    """{"n": n, name: number, ..., "intervals": {name: [low, high]}} of Measures of n points a set.

    Without those that need more points. Intervals are by 200 random halves, by 20 above n = 1000.
    """
    values, intervals = {}, {}
    for statistic, sets, bounds, least, least_half, effort in measures:
        if n < least:
            continue
        row = statistic(*sets)
        values |= row
        if n // 2 >= least_half:
            replicates = max(10, int(effort * (200 if n <= 1000 else 20)))
            ends = interval(lambda *halves: list(statistic(*halves).values()), *sets,  # noqa: B023
                            replicates=replicates, bounds=bounds)
            intervals |= zip(row, map(list, zip(*ends, strict=True)), strict=True)
    return {"n": n, **values, "intervals": intervals}


def inception_measures(references, fake):
    """Measures of Inception's features of samples, fake (n, d).

    references: {"train": features (n, d) of the training photos, any others by name}.
    Precision and its like are against the first.
    """

    def of_each(row, distance):
        return lambda *sets: {f"{row}_{name}": distance(x, sets[-1])
                              for name, x in zip(references, sets, strict=False)}

    def infinity(x, y):  # each of the 15 distances takes seconds where n > d
        return frechet_distance_infinity(x, y, 15 if len(x) <= x.shape[1] else 5)

    sets = [*references.values(), fake]
    return [
        Measure(of_each("fid", frechet_distance), sets, (0, np.inf)),
        Measure(of_each("kid", lambda x, y: kernel_distance(x, y)[0]), sets),
        Measure(lambda *sets: precision_recall_density_coverage(sets[0], sets[-1]), sets,
                ([0, 0, 0, 0], [1, 1, np.inf, 1]), least=6, least_half=6),
        Measure(of_each("fid_infinity", infinity), sets, least=FEWEST_FOR_INFINITY, effort=0.2)]


def neighbor_lists(pair, points, n, distance):
    """{"TF": Neighbors of T among F, "FT": the reverse} of the pair "TF" of points {letter: set}.

    Long enough for any n of the points and for halves of these. Of "TT": of T among itself.
    """
    x, y = (points[letter] for letter in pair)
    k_x, k_y = (min(len(z), -(-NEIGHBORS_KEPT * len(z) // n)) for z in (x, y))
    if x is y:
        return {pair: nearest_neighbors(x, x, min(k_x, len(x) - 1), distance, True)}
    lists = mutual_neighbors(x, y, (k_y, k_x), distance)
    return dict(zip((pair, pair[::-1]), lists, strict=True))


def neighbor_measure(lists, rows, suffix=""):
    """AA on both sides, privacy loss and AuthPct of row numbers of train, validation and samples.

    lists: of neighbor_lists, of train T, validation V and samples F.
    """

    def accuracies(train_rows, validation_rows, fake_rows):
        train = accuracy_of_neighbors(lists, "TF", train_rows, fake_rows)
        test = accuracy_of_neighbors(lists, "VF", validation_rows, fake_rows)
        return {f"aa_train{suffix}": train, f"aa_test{suffix}": test,
                f"privacy_loss{suffix}": test - train,
                f"authpct{suffix}": authenticity_of_neighbors(lists, "TF", train_rows, fake_rows)}

    return Measure(accuracies, rows, ([0, 0, -1, 0], [1, 1, 1, 100]))


def real_measure(lists, rows, suffix=""):
    """The same of row numbers of train and validation, the latter as if they were samples."""

    def accuracy(*rows):
        return {f"aa_train{suffix}": accuracy_of_neighbors(lists, "TV", *rows),
                f"authpct{suffix}": authenticity_of_neighbors(lists, "TV", *rows)}

    return Measure(accuracy, rows, ([0, 0], [1, 100]))


def copy_measure(lists, rows, suffix=""):
    """The share of copy_test, of row numbers of all training and validation photos and samples."""

    def share(train_rows, validation_rows, fake_rows):
        unseen, _ = lists["VT"].among(validation_rows, train_rows)
        distances, _ = lists["FT"].among(fake_rows, train_rows)
        nearer = distances < unseen.quantile(COPY_QUANTILE)
        return {f"copies{suffix}": nearer.double().mean().item()}

    return Measure(share, rows, (0, 1))


def copying_measure(train, validation, fake):
    """C_T of the directions of features (n, d), as cosine sees them; None if points are too few."""
    if len(fake) < 20:
        return None
    copying = CopyingScore(*(F.normalize(x.double(), dim=1) for x in (train, validation, fake)))
    n = len(fake)

    def score(*rows):  # a z score grows with the root of n: halves are brought to n
        return {"ct": (copying.score(*rows) or 0.0) * (n / len(rows[0])) ** 0.5}

    return Measure(score, [torch.arange(n)] * 3) if copying.used else None


def piece_measure(train, validation, rows, cells):
    """The share of pieces nearer to training and the median number of photos that they are of."""

    def share(*rows):
        sides, photos = pieces_of_neighbors(train, validation, *rows, cells)
        nearer = sides > 0
        counts = [len(found[mine].unique()) for mine, found in zip(nearer, photos, strict=True)
                  if mine.any()]
        of = nearer.sum().item() / sides.count_nonzero().item() if sides.any() else 0.5
        return {"pieces": of, "piece_photos": float(np.median(counts or 0))}

    return Measure(share, rows, ([0, 0], [1, np.inf]))
