"""Numbers that compare sets of images by their features, and the numbers' intervals.

    frechet_distance(photos, samples)
    adversarial_accuracy(photos, samples)
    privacy_loss(train, validation, samples)
    interval(frechet_distance, photos, samples)

Features are float tensors or arrays (n, d). Each function also takes views: rows of a matrix of
inner products (product_views) or of distances (distance_views), so that a subset's are looked up.
Functions about neighbours take any points with a length and indexing, and a distance: a function of
two blocks of points that returns their (n, m) distances. Distances between all pairs are computed
block by block, in bounded memory. The global random state is neither read nor changed.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2048  # rows and columns of a distance matrix held at once
VIEWED = 12_000  # points at most whose inner products are kept: 1.2 GB


# Views ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class View:
    """Points given by their row numbers in a precomputed matrix (m, m, ...), say of distances.

    Has a length and is indexed like a tensor.
    """

    matrix: Tensor
    rows: Tensor

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return replace(self, rows=self.rows[index])

    def entries(self, other):
        """The matrix's entries (n, m, ...) of these points and those of another view of it."""
        if self.matrix is not other.matrix:
            raise ValueError("views of several matrices")
        places = self.rows[:, None] * self.matrix.shape[1] + other.rows
        return torch.from_numpy(  # twice as fast as torch's own
            self.matrix.flatten(0, 1).numpy().take(places.numpy(), 0))


class Distances(View):
    """A view of distances."""

    between = View.entries


@dataclass(frozen=True, eq=False)
class Products(View):
    """A view of inner products, in float64, of features (m, d)."""

    features: Tensor

    @property
    def shape(self):
        return len(self), self.features.shape[1]


def product_views(*sets):
    """Features (n, d), each set as Products of one matrix. Views stay as they are, and so do sets
    of more than VIEWED points together."""
    sets = _checked(*sets)
    sizes = [len(x) for x in sets]
    if sum(sizes) > VIEWED or isinstance(sets[0], View):
        return sets
    features = torch.cat(sets)
    products, rows = inner(features, features), torch.arange(len(features)).split(sizes)
    return [Products(products, own, features) for own in rows]


def distance_views(*sets, distance=None, known=None):
    """Sets of points, each as a view of one matrix of their Distances; else as product_views.

    distance: as in nearest_neighbors. known: the matrix of the first sets', not computed again.
    """
    sizes, there = [len(x) for x in sets], 0 if known is None else len(known)
    if sum(sizes) > VIEWED or isinstance(sets[0], Distances):
        return list(sets)
    matrix = torch.empty(sum(sizes), sum(sizes))
    matrix[:there, :there] = known if there else 0
    rows = torch.arange(len(matrix)).split(sizes)
    pairs = [(a, b) for a in range(len(sets)) for b in range(a + 1) if rows[a][0] >= there]
    for a, b in pairs:
        for i, j, block in _blocks(sets[a], sets[b], distance or _own_distance):
            mine, others = rows[a][i : i + BLOCK], rows[b][j : j + BLOCK]
            matrix[mine[:, None], others] = torch.as_tensor(block).float()
            matrix[others[:, None], mine] = torch.as_tensor(block).float().T
    return [Distances(matrix, own) for own in rows]


def inner(x, y):
    """Inner products (n, m) of the rows of x and y, in float64."""
    if isinstance(x, View):
        return x.entries(y)
    return torch.as_tensor(x).double() @ torch.as_tensor(y).double().T


def _squared_lengths(x):
    if isinstance(x, View):
        return x.matrix.diagonal()[x.rows]
    return torch.as_tensor(x).double().square().sum(1)


def _blocks(x, y, function):
    """(first row, first column, function of a block of x and a block of y), row by row."""
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            yield i, j, function(x[i : i + BLOCK], y[j : j + BLOCK])


def _checked(*sets, least=1):
    """The sets as tensors; ValueError unless (n, d) with one d, n >= least, and finite."""
    sets = [x if isinstance(x, View) else torch.as_tensor(x).cpu() for x in sets]
    if len({id(getattr(x, "matrix", None)) for x in sets}) > 1:
        raise ValueError("features and views, or views of several matrices")
    for x in sets:
        if isinstance(x, Distances):
            raise ValueError("views of distances hold no features")
        if len(x.shape) != 2 or x.shape[1] != sets[0].shape[1] or len(x) < least:
            raise ValueError(f"features must be (n, d) with one d and n >= {least}, not "
                             f"{[tuple(x.shape) for x in sets]}")
        if not (isinstance(x, View) or all(b.isfinite().all() for b in x.split(BLOCK))):
            raise ValueError("features are not finite")
    return sets


# Distributions -------------------------------------------------------------------------------


def frechet_distance(x, y):
    """Fréchet distance of Gaussians fitted to features x (n, d) and y (m, d): FID if Inception's.

    |mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), Heusel et al. 2017, eq. 6. With
    C_x = A'A and C_y = B'B the last trace is the nuclear norm of A B' (min(n, d) x min(m, d)),
    so no root of a near-singular matrix is taken: the result is real and >= 0 for any n, m >= 2.
    n < d makes FID too large (see frechet_distance_infinity). Raises ValueError.
    """
    x, y = _checked(x, y, least=2)
    if max(len(x), len(y)) <= x.shape[1]:
        x, y = product_views(x, y)
        xx, xy, yy = inner(x, x), inner(x, y), inner(y, y)
        means = xx.mean() + yy.mean() - 2 * xy.mean()
        traces = sum((own.trace() - own.sum() / len(own)) / (len(own) - 1) for own in (xx, yy))
        cross = xy - xy.mean(0) - xy.mean(1, keepdim=True) + xy.mean()
        root = _nuclear_norm(cross if len(x) < len(y) else cross.T)
        root /= ((len(x) - 1) * (len(y) - 1)) ** 0.5
    else:
        (mean_x, a), (mean_y, b) = (_gaussian(z.features[z.rows] if isinstance(z, View) else z)
                                    for z in (x, y))
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
    the mean over random halves (15; 5 if n > d, where each takes seconds) give the intercept, with
    0.6 of the standard error of their line through 15 sizes. With n below the number of directions
    that matter the result is still too large, if less so. Raises ValueError, for n or m < 8 too.
    """
    x, y = _checked(x, y, least=8)
    rng, n = np.random.default_rng(seed), min(len(x), len(y))
    wide = n <= x.shape[1]
    x, y = product_views(x, y) if wide else (x, y)
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
    distances = _cosines(*_checked(x, y)).neg_().add_(1)
    return distances.masked_fill_(distances < 1e-10, 0).float()


def _cosines(x, y):
    lengths_x, lengths_y = (_squared_lengths(z).sqrt().clamp(min=1e-12) for z in (x, y))
    return inner(x, y).div_(lengths_x[:, None]).div_(lengths_y)


def pairwise_euclidean(x, y):
    """Euclidean distances between rows of x (n, d) and y (m, d): float32 (n, m)."""
    # In float64, and rounded once, so that equal distances stay equal.
    squares = inner(x, y).mul_(-2).add_(_squared_lengths(x)[:, None]).add_(_squared_lengths(y))
    return squares.clamp_(min=0).sqrt_().float()


class Neighbors(NamedTuple):
    """The k nearest points of one set to each of n points: `distances` (n, k) in float64, nearest
    first, and their `indices` (n, k) in the set, of equals the first."""

    distances: Tensor
    indices: Tensor


def nearest_neighbors(x, y, k, distance=None, leave_out_self=False):
    """The k nearest of the points y to each of the points x, as Neighbors.

    distance: a function of two blocks of points; by default that of the points themselves (x's
    method `between`: views of distances and LpipsPoints have one), of features pairwise_cosine.
    leave_out_self: x is y, and no point is its own neighbour. Raises ValueError for fewer than k.
    """
    if not 1 <= k <= len(y) - leave_out_self:
        raise ValueError(f"k = {k} neighbours among {len(y) - leave_out_self} points")
    best = {}
    for i, j, block in _blocks(x, y, distance or _own_distance):
        block = torch.as_tensor(block).float().clamp(min=0)
        if leave_out_self and i == j:
            block.fill_diagonal_(torch.inf)
        # As integers of a distance's bits, which order as distances do, and of the point's number
        # below them: equals come in their order, which topk alone doesn't promise.
        keys = (block.view(torch.int32).long() << 32) + torch.arange(j, j + block.shape[1])
        keys = torch.cat([best[i], keys], 1) if i in best else keys
        best[i] = keys.topk(min(k, keys.shape[1]), largest=False).values
    keys = torch.cat(list(best.values()))
    return Neighbors((keys >> 32).int().view(torch.float32).double(), keys & (2**32 - 1))


def _own_distance(x, y):
    return x.between(y) if hasattr(x, "between") else pairwise_cosine(x, y)


def _nearest(x, y, distance, leave_out_self=False):
    """(distances (n,) from each x to the nearest y, (m,) from each y to the nearest x), float64."""
    of_x, of_y = torch.full((len(x),), torch.inf), torch.full((len(y),), torch.inf)
    for i, j, block in _blocks(x, y, distance or _own_distance):
        block = torch.as_tensor(block).float()
        if leave_out_self and i == j:
            block = block.clone().fill_diagonal_(torch.inf)
        rows, columns = slice(i, i + BLOCK), slice(j, j + BLOCK)
        of_x[rows] = of_x[rows].minimum(block.amin(1))
        of_y[columns] = of_y[columns].minimum(block.amin(0))
    return of_x.double(), of_y.double()


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


def adversarial_accuracy(real, fake, distance=None):
    """Nearest-neighbour adversarial accuracy of two sets of n >= 2 points: a number in [0, 1].

    (mean_i 1[d_TS(i) > d_TT(i)] + mean_i 1[d_ST(i) > d_SS(i)]) / 2, T real and S fake, d the
    distance to the nearest other point; Yale et al. 2020, eq. 1. 0.5 is ideal, 1 is far from
    real, 0 is copied. "Greater" means by more than 1e-5 of the distance: a photo and its copy are
    equally far from any third, and rounding must not decide between them. A tie counts as
    near the other set, so duplicates within the real set change nothing about copies of them.
    Raises ValueError for sets of unequal size.
    """
    n = len(real)
    if n != len(fake) or n < 2:
        raise ValueError(f"adversarial accuracy of {n} and {len(fake)} points: it takes two sets "
                         "of one size, 2 or more")
    apart = 0
    for points, across in zip((real, fake), _nearest(real, fake, distance), strict=True):
        within, _ = _nearest(points, points, distance, leave_out_self=True)
        apart += (across > within * (1 + 1e-5)).sum().item()
    return apart / (2 * n)


def privacy_loss(train, validation, fake, distance=None):
    """Adversarial accuracy against validation less that against training points, in [-1, 1].

    Above 0 where fake points are nearer to training than to validation ones, as copies are; Yale
    et al. 2020, eq. 3. Three sets of one size. Raises ValueError.
    """
    return (adversarial_accuracy(validation, fake, distance)
            - adversarial_accuracy(train, fake, distance))


def suspected_copies(train, validation, fake, distance=None):
    """Which fake points are nearer to a training point than unseen photos ever are: bool (n,).

    Nearer than the 0.01 quantile of the validation points, as 0.01 are by chance: a larger share,
    and each suspect beside its neighbour, is what to look at. Sets of any size.
    """
    unseen, _ = _nearest(validation, train, distance)
    distances, _ = _nearest(fake, train, distance)
    return distances < unseen.quantile(0.01)


def effective_number(x):
    """How many different points features x (n, d) amount to, in [1, n]: the Vendi score.

    The exponential of the entropy of the eigenvalues of the points' cosines, divided by n; Friedman
    and Dieng 2022 (arXiv 2210.02410), eq. 2: 1 for n copies of one point, n for orthogonal ones. It
    grows with n, so compare it at equal n.
    """
    (x,) = _checked(x)
    n, d = x.shape
    if isinstance(x, View) or n <= d:
        similarities = _cosines(x, x)
    else:  # the same eigenvalues but for zeros
        similarities = torch.zeros(d, d, dtype=torch.float64)
        for block in x.split(BLOCK):
            block = F.normalize(block.double(), dim=1)
            similarities += block.T @ block
    shares = torch.linalg.eigvalsh(similarities / n).clamp(min=0)
    return torch.special.entr(shares).sum().exp().item()


def recovery_gap(train, validation):
    """Median of the recovery errors (n,) of validation photos less that of training photos: above 0
    where a generator reproduces what it was trained on better (Webster et al. 2019)."""
    return float(np.median(validation) - np.median(train))


# Pieces: cells of images ---------------------------------------------------------------------

DECISIVE = 0.1  # the share of cells that count: most are as near to the one side as to the other


def cell_distances(photos, fake):
    """From each cell of fake (n, c, d) to the nearest cell of each of photos (m, p, d), unit
    vectors: 1 - x.y, float32 (m, n, c), computed on the photos' device."""
    parts = []
    for few in fake.split(8):
        cells = few.flatten(0, 1).to(photos.device)
        nearest = torch.cat([(cells @ part.flatten(0, 1).T).view(len(cells), *part.shape[:2])
                             .amax(2) for part in photos.split(4)], 1)  # a cache holds them
        parts.append((1 - nearest).clamp(min=0).T.unflatten(1, few.shape[:2]).cpu())
    return torch.cat(parts, 1)


def piece_sides(train, validation, fake):
    """(sides, photos), both (n, c), of the cells of fake.

    sides: 1 where a cell is nearer to training, -1 where to validation, 0 where that tells little.
    Only the tenth of all cells counts at which the two distances differ most, as a ratio: a choice
    that favours neither side, so the share of 1 is 0.5 by chance. photos: the nearest training
    photos. The sets are cells, unit vectors (n, c, d), or views of cell_distances.
    """
    (to_train, photos), (to_validation, _) = (
        (side.between(fake) if isinstance(side, Distances) else cell_distances(side, fake)).min(0)
        for side in (train, validation))
    ratio = (to_validation.double().clamp(1e-6, 2) / to_train.double().clamp(1e-6, 2)).log()
    size, counted = ratio.abs().flatten(), max(1, int(DECISIVE * ratio.numel()))
    least = size.kthvalue(len(size) - counted + 1).values
    return (ratio.sign() * (ratio.abs() >= least)).int(), photos


def pieces(train, validation, fake):
    """The share of fake's telling cells (see piece_sides) that are nearer to training: 0.5 where
    nothing is copied, 1 of collages."""
    sides, _ = piece_sides(train, validation, fake)
    told = sides.count_nonzero().item()
    return (sides > 0).sum().item() / told if told else 0.5


# Spectra -------------------------------------------------------------------------------------

ROUNDING = 0.447 / 12  # power of luminance rounded to 8 bits a channel: what is below it is nothing


def log_spectrum(powers):
    """Natural logarithm (h, w) of the mean of power spectra (n, h, w) of squared grey levels."""
    return powers.mean(0).clamp(min=ROUNDING).log()


def spectrum_difference(train, fake):
    """Mean power spectra of samples beside photos', both (n, h, h // 2 + 1), in natural logarithms.

    "low", "middle", "high": mean absolute difference below 1/8, to 1/2, and above 1/2 of Nyquist's
    frequency. "grid": how much more samples have at periods of 8 pixels and parts of these (4, 8/3,
    2) than photos, beyond what they have more around them: traces of layers that double the
    resolution; "grid 8", "grid 4", "grid 2": at those of a grid of so many pixels that no finer one
    has. "high signed": as "high", but with its sign, below 0 where samples have less. 0 is
    ideal. Raises ValueError for h < 16.
    """
    h = fake.shape[1]
    if h < 16:
        raise ValueError(f"spectra of {h} pixels a side; they need 16")
    at, m = 2 * torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(h)), -(-h // 16)
    more = (log_spectrum(fake) - log_spectrum(train))[None]
    around = F.pad(F.pad(more, (m, m, 0, 0), "reflect"), (0, 0, m, m), "circular")
    around = F.avg_pool2d(F.avg_pool2d(around, (2 * m + 1, 1), 1), (1, 2 * m + 1), 1)
    bands = {"low": (0, 1 / 8), "middle": (1 / 8, 1 / 2), "high": (1 / 2, 2)}
    bands = {band: more[0][(low < at) & (at <= high)] for band, (low, high) in bands.items()}
    eighths = torch.arange(5)  # of the sampling frequency; negative ones come from the end
    rows, columns = torch.meshgrid(torch.arange(-3, 5), eighths, indexing="ij")
    places = ((rows % 8 * h / 8).round().long(), (columns * h / 8).round().long())
    peaks = (more - around)[0][places]
    finest = torch.gcd(torch.gcd(rows, columns), torch.tensor(8))  # 8: the mean of the image
    return {band: values.abs().mean().item() for band, values in bands.items()} | {
        "grid": peaks[finest < 8].mean().item(), "high signed": bands["high"].mean().item(),
        **{f"grid {8 // k}": peaks[finest == k].mean().item() for k in (1, 2, 4)}}


# Intervals -----------------------------------------------------------------------------------


def interval(statistic, *sets, replicates=200, seed=0, bounds=(-np.inf, np.inf)):
    """95% confidence interval (low, high) of statistic(*sets) for the sampling of the sets' points.

    statistic: any function here that returns a number, or several as an array, then low and
    high are lists. bounds: its range, to which the interval is cut.
    By the delete-half jackknife (Shao & Wu 1989): ± 1.96 times the statistic's standard deviation
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
