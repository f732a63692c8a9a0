"""Numbers that compare two sets of images by their features, and the numbers' intervals.

    frechet_distance(x, y), interval(frechet_distance, x, y)

Features x, y are float tensors or arrays (n, d), or GramPoints. A distance is a function of two
blocks of points that returns their (n, m) distances; points are anything with a length that slices
and indexes. Everything is computed block by block, so memory stays bounded. Every random draw has a
seed of its own: the global random state is neither read nor changed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2048  # rows and columns of a distance matrix held at once
GRAM_POINTS = 12_000  # of all sets together: their inner products take 1.2 GB


@dataclass(frozen=True)
class GramPoints:
    """Features (n, d) as row numbers of a matrix that holds all their inner products, in float64.

    Has a length and is indexed like a tensor. A subset's entry costs a look-up, not d products.
    """

    products: Tensor
    rows: Tensor
    width: int

    @property
    def shape(self):
        return len(self.rows), self.width

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return GramPoints(self.products, self.rows[index], self.width)


def gram_points(*sets):
    """Features (n, d) as GramPoints of one matrix. GramPoints stay as they are, and so do features
    of more than GRAM_POINTS points."""
    sets = _checked(*sets)
    sizes = [len(x) for x in sets]
    if sum(sizes) > GRAM_POINTS or isinstance(sets[0], GramPoints):
        return sets
    points = torch.cat(sets)
    products, rows = inner(points, points), torch.arange(len(points)).split(sizes)
    return [GramPoints(products, own, points.shape[1]) for own in rows]


def inner(x, y):
    """Inner products (n, m) of the rows of x and y, in float64."""
    if isinstance(x, GramPoints):
        places = x.rows[:, None] * len(x.products) + y.rows
        return torch.from_numpy(x.products.numpy().take(places.numpy()))  # twice as fast as torch's
    return torch.as_tensor(x).double() @ torch.as_tensor(y).double().T


def _blocks(x, y, function):
    """(first row, first column, function of a block of x and a block of y), row by row."""
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            yield i, j, function(x[i : i + BLOCK], y[j : j + BLOCK])


def _checked(*sets, least=1):
    """The sets as tensors; ValueError unless (n, d) with one d, n >= least, and finite."""
    sets = [x if isinstance(x, GramPoints) else torch.as_tensor(x).cpu() for x in sets]
    if len({id(getattr(x, "products", None)) for x in sets}) > 1:
        raise ValueError("features and GramPoints, or GramPoints of several matrices")
    for x in sets:
        if len(x.shape) != 2 or x.shape[1] != sets[0].shape[1] or len(x) < least:
            raise ValueError(f"features must be (n, d) with one d and n >= {least}, not "
                             f"{[tuple(x.shape) for x in sets]}")
        if not (isinstance(x, GramPoints) or all(b.isfinite().all() for b in x.split(BLOCK))):
            raise ValueError("features are not finite")
    return sets


# Distances between distributions -------------------------------------------------------------


def frechet_distance(x, y):
    """Fréchet distance of Gaussians fitted to features x (n, d) and y (m, d): FID if Inception's.

    |mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), Heusel et al. 2017, eq. 6. With
    C_x = A'A and C_y = B'B the last trace is the nuclear norm of A B' (min(n, d) x min(m, d)),
    so no root of a near-singular matrix is taken: the result is real and >= 0 for any n, m >= 2.
    n < d makes FID too large (see frechet_distance_infinity). Raises ValueError.
    """
    x, y = _checked(x, y, least=2)
    if max(len(x), len(y)) <= x.shape[1]:
        x, y = gram_points(x, y)
    if isinstance(x, GramPoints):
        xx, xy, yy = inner(x, x), inner(x, y), inner(y, y)
        means = xx.mean() + yy.mean() - 2 * xy.mean()
        traces = sum((own.trace() - own.sum() / len(own)) / (len(own) - 1) for own in (xx, yy))
        cross = xy - xy.mean(0) - xy.mean(1, keepdim=True) + xy.mean()
        root = _nuclear_norm(cross if len(x) < len(y) else cross.T)
        root /= ((len(x) - 1) * (len(y) - 1)) ** 0.5
    else:
        (mean_x, a), (mean_y, b) = _gaussian(x), _gaussian(y)
        means, traces = (mean_x - mean_y).square().sum(), a.square().sum() + b.square().sum()
        root = torch.linalg.svdvals(a @ b.T).sum()
    return max((means + traces - 2 * root).item(), 0.0)


def _nuclear_norm(matrix):
    """The sum of the singular values of a matrix (n, m), n <= m, whose columns each sum to 0.

    The roots of the eigenvalues of M M' take two thirds of the time. Where one is below 1e-6 of the
    largest, as with repeated points, squaring has lost its digits: then the singular values.
    """
    squares = matrix @ matrix.T
    known = squares.trace() / len(matrix)  # replaces the eigenvalue 0 of (1, ..., 1)
    values = torch.linalg.eigvalsh(squares + known / len(matrix))
    if values[0] <= 1e-12 * values[-1]:
        return torch.linalg.svdvals(matrix).sum()
    return values.sqrt().sum() - known.sqrt()


def _gaussian(x):
    """Mean (d,) and a factor A (min(n, d), d) of the covariance A'A, in float64."""
    n, d = x.shape
    mean, factor = x.mean(0, dtype=torch.float64), torch.empty(0, d, dtype=torch.float64)
    for block in x.split(BLOCK + d):  # the rows so far are as good as their triangular factor
        factor = torch.linalg.qr(torch.cat([factor, block - mean]), mode="r").R
    return mean, factor / (n - 1) ** 0.5


def frechet_distance_infinity(x, y, seed=0):
    """Fréchet distance of features x (n, d), y (m, d) without the bias of small sets: FID∞.

    The bias is linear in 1 / n (Chong & Forsyth 2020, sec. 4), so the distance of all points and
    the mean over random halves (15; 5 if n > d, where each takes seconds) give the intercept. Chong
    & Forsyth fit a line to 15 sizes of subsets; from its two ends alone the standard error is 0.6
    of that. For n below the number of directions that matter the bias falls more slowly, and the
    result is still too large, if less so. Raises ValueError, for n or m < 8 too.
    """
    x, y = _checked(x, y, least=8)
    rng, n = np.random.default_rng(seed), min(len(x), len(y))
    wide = n <= x.shape[1]
    x, y = gram_points(x, y) if wide else (x, y)
    small, whole = (np.mean([
        frechet_distance(*(z[rng.permutation(len(z))[:size]] for z in (x, y)))
        for _ in range(repeats)]) for size, repeats in ((n // 2, 15 if wide else 5), (n, 1)))
    return float(whole - (small - whole) * (n // 2) / (n - n // 2))


def kernel_distance(x, y):
    """Kernel distance (KID if Inception's features) of x (n, d) and y (m, d).

    Unbiased MMD^2 with the kernel (x.y / d + 1)^3, Bińkowski et al. 2018, eq. 4, of all points:
    what the customary mean over random subsets estimates. Raises ValueError as frechet_distance.
    """
    x, y = _checked(x, y, least=2)

    def kernel_mean(a, b, own=False):
        kernel = _blocks(a, b, lambda *rows: inner(*rows).div_(x.shape[1]).add_(1).pow_(3))
        total = sum(block.sum() - (block.trace() if own and i == j else 0)
                    for i, j, block in kernel)
        return total.item() / (len(a) * (len(b) - own))

    return kernel_mean(x, x, True) + kernel_mean(y, y, True) - 2 * kernel_mean(x, y)


# Nearest neighbours --------------------------------------------------------------------------


def pairwise_cosine(x, y):
    """Cosine distances 1 - cos in [0, 2] between rows of x (n, d) and y (m, d): float32 (n, m).

    Computed in float64. What is below 1e-10 (rows equal to about 1e-5, the accuracy of features) is
    0, so that copies are at no distance. A zero row is at distance 1 of everything.
    """
    x, y = (F.normalize(rows.double(), dim=1) for rows in _checked(x, y))
    distances = 1 - x @ y.T
    return distances.masked_fill_(distances < 1e-10, 0).float()


def pairwise_euclidean(x, y):
    """Euclidean distances between rows of x (n, d) and y (m, d): float32 (n, m)."""
    # In float64, and rounded once, so that equal distances stay equal.
    squares_x, squares_y = (points.products.diagonal()[points.rows]
                            if isinstance(points, GramPoints)
                            else torch.as_tensor(points).double().square().sum(1)
                            for points in (x, y))
    squares = inner(x, y).mul_(-2).add_(squares_x[:, None]).add_(squares_y)
    return squares.clamp_(min=0).sqrt_().float()


class Neighbors(NamedTuple):
    """The k nearest points of one set to each of n points: `distances` (n, k) in float64, nearest
    first, and their `indices` (n, k) in the set, of equals the first."""

    distances: Tensor
    indices: Tensor

    def among(self, rows, members):
        """(distances, indices) of the points `rows` to the nearest among `members` of the set.

        members: an index tensor. Infinite where none of the k neighbours is a member: for a
        random half of the set, with k = 32, one time in 4,000,000,000.
        """
        member = torch.zeros(int(max(self.indices.max(), members.max())) + 1, dtype=torch.bool)
        member[members] = True
        indices = self.indices[rows]
        distances, first = self.distances[rows].masked_fill(~member[indices], torch.inf).min(1)
        return distances, indices.gather(1, first[:, None])[:, 0]


def nearest_neighbors(x, y, k, distance=pairwise_cosine, leave_out_self=False):
    """The k nearest of the points y to each of the points x, as Neighbors.

    leave_out_self: x is y, and no point is its own neighbour. Raises ValueError for fewer than k.
    """
    if not 1 <= k <= len(y) - leave_out_self:
        raise ValueError(f"k = {k} neighbours among {len(y) - leave_out_self} points")
    best = {}
    for i, j, block in _blocks(x, y, distance):
        if leave_out_self and i == j:
            block = torch.as_tensor(block).clone().fill_diagonal_(torch.inf)
        best[i] = _smallest(best.get(i), block, j, k)
    return _neighbors(best)


def _smallest(best, block, start, k):
    """The k smallest of those so far (or None) and of distances to points start, start + 1, ...

    As integers of a distance's bits, which order as distances do, and of the point's number below
    them: equals come in their order, which topk alone doesn't promise.
    """
    keys = torch.as_tensor(block).float().clamp(min=0).view(torch.int32).long() << 32
    keys += torch.arange(start, start + block.shape[1])
    keys = keys if best is None else torch.cat([best, keys], 1)
    return keys.topk(min(k, keys.shape[1]), largest=False).values


def _neighbors(blocks):
    keys = torch.cat(list(blocks.values()))
    return Neighbors((keys >> 32).int().view(torch.float32).double(), keys & (2**32 - 1))


def neighbor_lists(pairs, points, n=None, distance=pairwise_cosine):
    """{"TF": Neighbors of the set T among the set F, "FT": the reverse, ...} of points {"T": ...}.

    pairs: such as ["TT", "TF"]; "TT" is T among itself. 32 neighbours a point, more of sets larger
    than n: enough for any n of the points and for random halves of these, at any size.
    """
    lists = {}
    for pair in pairs:
        x, y = (points[letter] for letter in pair)
        k_x, k_y = (min(len(z), -(-NEIGHBORS_KEPT * len(z) // (n or len(z)))) for z in (x, y))
        if pair[0] == pair[1]:
            lists[pair] = nearest_neighbors(x, x, min(k_x, len(x) - 1), distance, True)
        else:
            of_x, of_y = {}, {}  # each distance, computed once, serves both: it is symmetric
            for i, j, block in _blocks(x, y, distance):
                of_x[i] = _smallest(of_x.get(i), block, j, k_y)
                of_y[j] = _smallest(of_y.get(j), block.T, i, k_x)
            lists |= {pair: _neighbors(of_x), pair[::-1]: _neighbors(of_y)}
    return lists


# Distances between sets of points ------------------------------------------------------------


def precision_recall_density_coverage(real, fake, k=5):
    """Dict of precision, recall, density and coverage of fake (m, d) against real (n, d).

    Balls around each point reach to its k-th neighbour in its own set, Euclidean; Kynkäänniemi
    et al. 2019 (precision, recall), Naeem et al. 2020 (density, coverage), and the numbers of
    the package prdc. All in [0, 1] but density (>= 0). Raises ValueError if k >= n or k >= m.
    """
    real, fake = _checked(real, fake, least=k + 1)
    real_radii, fake_radii = (
        nearest_neighbors(x, x, k, pairwise_euclidean, leave_out_self=True).distances[:, -1].float()
        for x in (real, fake))
    balls = torch.zeros(len(fake))  # of real points, around each fake one
    recalled = torch.zeros(len(real), dtype=torch.bool)
    nearest = torch.full((len(real),), torch.inf)
    for i, j, block in _blocks(real, fake, pairwise_euclidean):
        rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
        balls[columns] += (block < real_radii[rows, None]).sum(0)
        recalled[rows] |= (block < fake_radii[columns]).any(1)
        nearest[rows] = nearest[rows].minimum(block.min(1).values)
    return {"precision": (balls > 0).double().mean().item(),
            "recall": recalled.double().mean().item(),
            "density": balls.double().mean().item() / k,
            "coverage": (nearest < real_radii).double().mean().item()}


def adversarial_accuracy(lists, pair, real_rows, fake_rows):
    """Nearest-neighbour adversarial accuracy of two sets of n >= 2 points: a number in [0, 1].

    (mean_i 1[d_TS(i) > d_TT(i)] + mean_i 1[d_ST(i) > d_SS(i)]) / 2, T real and S fake, d the
    distance to the nearest other point; Yale et al. 2020, eq. 1. 0.5 is ideal, 1 is far from
    real, 0 is copied. "Greater" means by more than 1e-5 of the distance: a photo and its copy are
    equally far from any third, and rounding must not decide between them. A tie counts as
    near the other set, so duplicates within the real set change nothing about copies of them.
    lists: of neighbor_lists. pair: the letters of the real and the fake set. rows: the points that
    count, index tensors. Raises ValueError for sets of unequal size.
    """
    n, (real, fake) = len(real_rows), pair
    if n != len(fake_rows) or n < 2:
        raise ValueError(f"adversarial accuracy of {n} and {len(fake_rows)} points: "
                         "the sets must be equally large, with 2 points or more")
    apart = 0
    for own, other, own_rows, other_rows in ((real, fake, real_rows, fake_rows),
                                             (fake, real, fake_rows, real_rows)):
        within, _ = lists[own + own].among(own_rows, own_rows)
        across, _ = lists[own + other].among(own_rows, other_rows)
        apart += (across > within * (1 + 1e-5)).sum().item()
    return apart / (2 * n)


def suspected_copies(lists, train_rows, validation_rows, fake_rows):
    """Which fake points are nearer to a training point than unseen photos ever are: bool (n,).

    Nearer than the 0.01 quantile of the validation points, as 0.01 are by chance: a larger share,
    and each suspect beside its neighbour, is what to look at. lists: of neighbor_lists.
    """
    unseen, _ = lists["VT"].among(validation_rows, train_rows)
    distances, _ = lists["FT"].among(fake_rows, train_rows)
    return distances < unseen.quantile(0.01)


def authenticity(lists, pair, train_rows, fake_rows):
    """AuthPct: the percentage of fake points that are authentic (Alaa et al. 2022, sec. 3.3).

    A fake point is not if it is nearer to its nearest training point than that one is to any other
    training point. Photos of one kind give 50 to 70, copies 0. Arguments: as above.
    """
    train, fake = pair
    own, _ = lists[train + train].among(slice(None), train_rows)
    distances, nearest = lists[fake + train].among(fake_rows, train_rows)
    return 100 * (distances > own[nearest]).double().mean().item()


def copying_score(train, validation, fake, cells=3, components=64, least=20, seed=0):
    """C_T (Meehan et al. 2020) of features (n, d): a function of row numbers of the three sets,
    without any of all points; None if cells are too small.

    In each of `cells` cells, made by k-means of the training points, the Mann-Whitney U of fake
    against validation points' Euclidean distances to the nearest training point there, as a z
    score; their mean, weighted by the validation points. 0 where fake points are as near as unseen
    ones, below -3 or so where they are copies, above 3 where they are far. More than `components`
    dimensions are projected on as many principal components of train. Cells need `least` points.
    """
    from scipy.stats import rankdata
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.decomposition import PCA

    def within_cells(x, y):  # the last coordinate is the cell
        return pairwise_euclidean(x[:, :-1], y[:, :-1]).masked_fill_(
            x[:, -1:] != y[:, -1], torch.inf)

    sets = [x.double().numpy() for x in _checked(train, validation, fake, least=cells)]
    if sets[0].shape[1] > components:
        project = PCA(min(components, *sets[0].shape), random_state=seed).fit(sets[0]).transform
        sets = [project(x) for x in sets]
    kmeans = KMeans(cells, n_init=10, random_state=seed).fit(sets[0])
    labels = [torch.from_numpy(kmeans.predict(x)) for x in sets]
    train, *others = (torch.column_stack([torch.from_numpy(x), cell])
                      for x, cell in zip(sets, labels, strict=True))
    nearest = [nearest_neighbors(x, train, min(NEIGHBORS_KEPT, len(train)), within_cells)
               for x in others]
    used = [cell for cell in range(cells) if all((of == cell).sum() >= least for of in labels[1:])]

    def score(*rows):
        rows, total, weight = rows or [torch.arange(len(of)) for of in labels], 0, 0
        distances = [near.among(some, rows[0])[0]
                     for near, some in zip(nearest, rows[1:], strict=True)]
        for cell in used:
            unseen, made = (distance[of[some] == cell] for distance, of, some
                            in zip(distances, labels[1:], rows[1:], strict=True))
            n, m = len(unseen), len(made)
            if n and m:
                u = rankdata(torch.cat([made, unseen]))[:m].sum() - m * (m + 1) / 2
                z = (u - (n * m / 2 - 0.5)) / (n * m * (n + m + 1) / 12) ** 0.5
                total, weight = total + n * z, weight + n
        return float(total / weight) if weight else 0.0

    return score if used else None


def recovery_gap(train, validation):
    """(gap, p) of recovery errors (n,) of photos (Webster et al. 2019): the median of validation
    less that of train, and p of the Kolmogorov-Smirnov test that both are alike."""
    from scipy.stats import ks_2samp

    return float(np.median(validation) - np.median(train)), float(ks_2samp(train, validation)[1])


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


def pieces_of_neighbors(train, validation, train_rows, validation_rows, fake_rows, cells):
    """(sides, photos), both (n, cells), of some samples' cells.

    sides: 1 where a cell is nearer to training, -1 where to validation, 0 where that tells little.
    Only the tenth of all cells counts at which the two distances differ most, as a ratio: a choice
    that favours neither side, so the share of 1 is 0.5 by chance. photos: the nearest training
    photos. train, validation: nearest_pieces of all samples' cells, sample after sample.
    """
    rows = (fake_rows[:, None] * cells + torch.arange(cells)).flatten()
    to_train, photos = train.among(rows, train_rows)
    to_validation, _ = validation.among(rows, validation_rows)
    ratio = (to_validation.clamp(1e-6, 2) / to_train.clamp(1e-6, 2)).log()
    size, counted = ratio.abs(), max(1, int(DECISIVE * len(ratio)))
    sides = ratio.sign() * (size >= size.kthvalue(len(ratio) - counted + 1).values)
    return sides.int().view(-1, cells), photos.view(-1, cells)


# Spectra -------------------------------------------------------------------------------------

ROUNDING = 0.447 / 12  # power of luminance rounded to 8 bits a channel: what is below it is nothing


def log_spectrum(powers):
    """Natural logarithm (h, w) of the mean of power spectra (n, h, w) of squared grey levels."""
    return powers.mean(0).clamp(min=ROUNDING).log()


# Intervals, and the numbers of a table -------------------------------------------------------

NEIGHBORS_KEPT = 32  # of a point among n: enough for any random half of them


def interval(statistic, *sets, replicates=200, seed=0, bounds=(-np.inf, np.inf)):
    """95% confidence interval (low, high) of statistic(*sets) for the sampling of the sets' points.

    statistic: any function here that returns a number, or several as an array, then low and
    high are lists. bounds: its range, to which the interval is cut.
    By the delete-half jackknife (Shao & Wu 1989): statistic ± 1.96 times its standard deviation
    over random halves of all sets, drawn without replacement: a bootstrap's points drawn twice are
    neighbours at distance 0. Where the variance falls faster than 1 / n (two sets of one
    distribution, n < d) the interval is too wide, never too narrow. It doesn't cover bias.
    """
    rng = np.random.default_rng(seed)
    halves = [
        statistic(*(points[rng.permutation(len(points))[: len(points) // 2]] for points in sets))
        for _ in range(replicates)]
    margin = 1.959964 * np.std(halves, axis=0, ddof=1)
    value = np.asarray(statistic(*sets))
    return tuple(np.clip(value + side * margin, *bounds).tolist() for side in (-1, 1))


class Measure(NamedTuple):
    """What gives some rows of a table: statistic(*sets), a dict of numbers."""

    statistic: Callable
    sets: list
    bounds: tuple = (-np.inf, np.inf)
    least: int = 2  # points a set
    effort: float = 1.0  # the share of the replicates that it gets


def numbers(measures, n):
    """{"n": n, name: number, ..., "intervals": {name: [low, high]}} of Measures of n points a set.

    None and what needs more points are left out. Intervals are of 200 halves times effort, but of
    20 at least, and of 20 where a set has more than 1000 points.
    """
    values, intervals = {}, {}
    for statistic, sets, bounds, least, effort in filter(None, measures):
        if n < least:
            continue
        row = statistic(*sets)
        values |= row
        if n // 2 >= min(least, 8):
            replicates = max(20, int(effort * (200 if len(sets[0]) <= 1000 else 20)))
            ends = interval(lambda *halves: list(statistic(*halves).values()), *sets,  # noqa: B023
                            replicates=replicates, bounds=bounds)
            intervals |= zip(row, map(list, zip(*ends, strict=True)), strict=True)
    return {"n": n, **values, "intervals": intervals}


def spectrum_measure(train, fake):
    """Mean power spectra (n, h, h // 2 + 1) of samples beside photos', in natural logarithms.

    By bands, the mean absolute difference. Grid: how much more samples have at periods of 8 pixels
    and parts of these (4, 8/3, 2) than photos, beyond what they have more around them: traces of
    layers that double the resolution. 0 is ideal. None below 16 pixels.
    """
    h = fake.shape[1]
    at, m = 2 * torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(h)), -(-h // 16)
    bands = {f"spectrum_{band}": (low < at) & (at <= high) for band, low, high in (
        ("low", 0, 1 / 8), ("middle", 1 / 8, 1 / 2), ("high", 1 / 2, 2))}  # of Nyquist's frequency
    eighths = torch.isin(torch.arange(h), (torch.arange(8) * h / 8).round().long())
    grid = eighths[:, None] & eighths[: h // 2 + 1] & (at > 0)

    def differences(*sets):
        photos, samples = map(log_spectrum, sets)
        more = (samples - photos)[None]
        around = F.pad(F.pad(more, (m, m, 0, 0), "reflect"), (0, 0, m, m), "circular")
        around = F.avg_pool2d(F.avg_pool2d(around, (2 * m + 1, 1), 1), (1, 2 * m + 1), 1)
        return {row: more[0][band].abs().mean().item() for row, band in bands.items()} | {
            "spectrum_grid": (more - around)[0][grid].mean().item()}

    bounds = [0, 0, 0, -np.inf], np.inf
    return Measure(differences, [train, fake], bounds, effort=0.2) if h >= 16 else None


def distribution_measures(references, fake, frechet="fid", kernel="kid"):
    """Measures of features of samples, fake (n, d), against {"train": those of photos, ...}.

    Precision and its like are against the first. frechet, kernel: how rows begin.
    """

    def of_each(row, distance):
        return lambda *sets: {f"{row}_{name}": distance(x, sets[-1])
                              for name, x in zip(references, sets, strict=False)}

    plain = [*references.values(), fake]
    sets = gram_points(*plain)
    wide = sets if len(fake) <= fake.shape[1] else plain  # singular values of n × n are slow
    return [
        Measure(of_each(frechet, frechet_distance), wide, (0, np.inf)),
        Measure(of_each(kernel, kernel_distance), sets),
        Measure(lambda *sets: precision_recall_density_coverage(sets[0], sets[-1]), sets,
                ([0, 0, 0, 0], [1, 1, np.inf, 1]), least=6),
        Measure(of_each(f"{frechet}_infinity", frechet_distance_infinity), wide,
                least=200, effort=0.1)]  # the trend of fewer says little


def neighbor_measure(lists, rows, suffix="", fake="F"):
    """AA on both sides, privacy loss and AuthPct of row numbers of train, validation and samples.

    lists: of neighbor_lists, by T, V and F. fake: "V" takes validation photos as the samples.
    """

    def accuracies(train_rows, validation_rows, *fake_rows):
        side = "T" + fake, train_rows, *(fake_rows or [validation_rows])
        train = adversarial_accuracy(lists, *side)
        row = {"aa_train": train}
        if fake != "V":
            test = adversarial_accuracy(lists, "V" + fake, validation_rows, *fake_rows)
            row |= {"aa_test": test, "privacy_loss": test - train}
        row["authpct"] = authenticity(lists, *side)
        return {name + suffix: value for name, value in row.items()}

    low, high = zip((0, 1), *([(0, 1), (-1, 1)] if fake != "V" else []), (0, 100), strict=True)
    return Measure(accuracies, rows, (low, high))


def copy_measure(lists, rows, suffix=""):
    """The share of suspected copies, of row numbers of all photos and samples."""

    def share(*rows):
        return {f"copies{suffix}": suspected_copies(lists, *rows).double().mean().item()}

    return Measure(share, rows, (0, 1))


def copying_measure(train, validation, fake):
    """C_T of the directions of features (n, d), as cosine sees them; None if points are too few."""
    directions = [F.normalize(x.double(), dim=1) for x in (train, validation, fake)]
    score = copying_score(*directions) if len(fake) >= 20 else None

    def at_full_size(*rows):  # a z score grows with the root of n: halves are brought to n
        return {"ct": score(*rows) * (len(fake) / len(rows[0])) ** 0.5}

    return Measure(at_full_size, [torch.arange(len(fake))] * 3) if score else None


def piece_measure(train, validation, rows, cells):
    """The share of pieces nearer to training and the median number of photos that they are of."""

    def share(*rows):
        sides, photos = pieces_of_neighbors(train, validation, *rows, cells)
        nearer = sides > 0
        counts = [len(found[mine].unique()) for mine, found in zip(nearer, photos, strict=True)
                  if mine.any()]
        of = nearer.sum().item() / sides.count_nonzero().item() if sides.any() else 0.5
        return {"pieces": of, "piece_photos": float(np.median(counts or 0))}

    return Measure(share, rows, ([0, 0], [1, np.inf]), effort=0.2)
