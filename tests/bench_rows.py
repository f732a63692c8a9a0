"""Which rows of the evaluation's table earn their place: what each sees, and from when on.

    python tests/bench_rows.py --data data/bedroom --others data/kitchen    # an hour on a core

Each draw deals the photos anew: a quarter to train, a quarter to validate, of the rest honest
samples, and sample sets that are wrong in a known way. Numbers and intervals are those of the
table. A row sees what is wrong if its 95% interval leaves out the mean of honest sets over all
draws: in copying on the side of copies, in quality on either.
"""

import argparse
import csv
import functools
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch.nn import functional as F
from torchvision.io import decode_jpeg, encode_jpeg

sys.path.insert(0, str(Path(__file__).parents[1]))

import metrics
from common import features, photos, rows, weights

COPIED = (1, 2, 5, 10, 20)  # % of samples that are copies
OTHERS = (10, 25, 50, 100)  # % that show another scene, or as many as there are
CSV = ("part", "row", "samples", "seen", "draws", "mean")
LISTED, FREE = {row.name: row for row in rows.ROWS}, (-np.inf, np.inf)


def rounded(images):
    return torch.as_tensor(images).round().clamp(0, 255).byte()


def encoded(images, quality):
    return torch.stack([decode_jpeg(encode_jpeg(image, quality)) for image in images])


def cropped(images):
    size, edge = images.shape[-1], round(0.03 * images.shape[-1])
    return features.resized(images[:, :, edge:-edge, edge:-edge], size)


def gridded(images, levels):
    line = torch.arange(images.shape[-1]) % 8 == 0
    return rounded(images.float() + levels * (line[:, None] | line))


def collages(images, n, blocks, rng):
    """n images of blocks × blocks parts, each of a random image, at its own place."""
    place = torch.arange(images.shape[-1])
    part = place * blocks // len(place)
    source = torch.from_numpy(rng.integers(len(images), size=(n, blocks, blocks)))
    return images[source[:, part[:, None], part], :, place[:, None], place].permute(0, 3, 1, 2)


COPIES = {"copies": torch.clone, "JPEG 60": lambda images: encoded(images, 60),
          "cropped 3%": cropped, "mirrored": lambda images: images.flip(3),
          "collage 2×2": 2, "collage 4×4": 4}  # blocks a side
DEFECTS = {
    **{f"blur {sigma}": lambda images, sigma=sigma: rounded(
        ndimage.gaussian_filter(images.float().numpy(), (0, 0, sigma, sigma)))
       for sigma in (0.5, 1, 2, 6)},
    **{f"grid {levels}": functools.partial(gridded, levels=levels) for levels in (1, 4, 16)},
    "JPEG 20": lambda images: encoded(images, 20),
    "tinted": lambda images: rounded(images * torch.tensor([1.15, 1, 0.8])[:, None, None])}


def both(function):
    """function(photos, samples) with training and with validation photos."""
    def of_both(train, validation, samples):
        near, unseen = (function(photos, samples) for photos in (train, validation))
        return {"train": near, "validation": unseen, "less": unseen - near}
    return of_both


def authenticity(train, validation, samples):
    """AuthPct (Alaa et al. 2022): % of samples farther from their photo than that from others."""
    own = metrics.nearest_neighbors(train, train, 1, leave_out_self=True).distances[:, 0]
    found = metrics.nearest_neighbors(samples, train, 1)
    return 100 * (found.distances > own[found.indices]).double().mean().item()


def sources(train, validation, samples):
    """The median number of training photos that the nearer pieces of a sample are of."""
    sides, photos = metrics.piece_sides(train, validation, samples)
    return float(np.median([len(found[nearer].unique()) for nearer, found in zip(
        sides > 0, photos, strict=True) if nearer.any()] or 0))


def copying_points(*sets):
    """Embeddings for copying_score: 64 principal components of their directions, and the cell."""
    sets = [F.normalize(x.double(), dim=1).numpy() for x in sets]
    project = PCA(min(64, *sets[0].shape), random_state=0).fit(sets[0]).transform
    kmeans = KMeans(3, n_init=10, random_state=0).fit(project(sets[0]))
    return [torch.from_numpy(np.column_stack([project(x), kmeans.predict(project(x))]))
            for x in sets]


def copying_score(train, validation, samples, used, n):
    """C_T (Meehan et al. 2020) of copying_points in the cells `used`, a z score at n samples."""
    total = weight = 0
    for cell in used:
        known, unseen, made = (x[x[:, -1] == cell, :-1] for x in (train, validation, samples))
        if len(known) and len(unseen) and len(made):
            near, far = (torch.cdist(x, known).amin(1) for x in (made, unseen))
            pairs = len(near) * len(far)
            u = ((near[:, None] > far).sum() + (near[:, None] == far).sum() / 2).item()
            z = (u - (pairs / 2 - 0.5)) / (pairs * (len(near) + len(far) + 1) / 12) ** 0.5
            total, weight = total + len(far) * z, weight + len(far)
    return total / weight * (n / len(samples)) ** 0.5 if weight else 0.0


def row(name, like, **changes):
    return LISTED[like]._replace(name=name, **changes)


frechets, accuracies = both(metrics.frechet_distance), both(metrics.adversarial_accuracy)
DISTANCES = [*(row(f"FD {part}", "fid_train", function=frechets, part=part)
               for part in ("train", "validation")), row("KD validation", "kid_validation")]
ACCURACIES = [row("AA train", "aa_train", function=accuracies, part="train"),
              row("AA test", "aa_test", function=accuracies, part="validation")]
COPYING = {  # and the side on which copies are
    **dict.fromkeys([*DISTANCES, *ACCURACIES], -1),
    row("FD validation less train", "fid_train", function=frechets, part="less", bounds=FREE): 1,
    row("privacy loss", "privacy_loss", function=accuracies, part="less"): 1,
    row("suspected copies", "copies", space="embeddings"): 1, row("pieces", "pieces"): 1,
    row("photos they are of", "pieces", function=sources, bounds=FREE): -1,
    row("AuthPct", "aa_train", function=authenticity, bounds=(0, 100)): -1,
    row("C_T", "aa_train", function=copying_score, space="copying points", bounds=FREE): -1}
QUALITY = [
    *DISTANCES, row("FD∞ validation", "fid_infinity_validation", least=8),
    row("precision", "precision"), row("density", "precision", part="density", bounds=FREE),
    row("recall", "recall"), row("coverage", "recall", part="coverage"), *ACCURACIES,
    row("effective images", "effective_images", space="features"),
    row("effective images, centred", "effective_images", space="centred"),
    *(row(f"spectrum, {band}", "spectrum_high", part=band) for band in ("low", "middle", "high")),
    row("spectrum, grid", "spectrum_grid")]


def different(data, size):
    """uint8 images of a data folder, both splits, one of each group; and how many there are."""
    with open(data / "manifest.csv", newline="", encoding="utf-8") as file:
        groups = {line["file"]: line["group"] or line["file"] for line in csv.DictReader(file)}
    paths = [path for split in ("train", "val") for path in photos.split_files(data, split)]
    first = {groups[path.relative_to(data).as_posix()]: path for path in reversed(paths)}
    return photos.decode_all(sorted(first.values()), size), len(paths)


class Library:
    """Features of photos, of others and of what is made of them, each computed once."""

    def __init__(self, images, others):
        self.images, self.count, self.known = torch.cat([images, others]), len(images), {}
        self.network, self.spectrum = weights.efficientnet_lite2_network(), features.Spectrum()

    @torch.inference_mode()
    def describe(self, images):
        """{name: features} of uint8 images."""
        pairs = [self.network.with_cells(few) for few in images.split(4)]
        embeddings, cells = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return {"embeddings": embeddings, "cells": cells,
                "spectra": features.features(images, self.spectrum)}

    def get(self, indices, kind="photo", make=torch.clone):
        """{name: features} of the images at these indices after `make`, which `kind` names."""
        missing = [i for i in indices if (kind, i) not in self.known]
        for some in (missing[start : start + 32] for start in range(0, len(missing), 32)):
            found = self.describe(make(self.images[some]))
            self.known |= {(kind, i): {name: value[at] for name, value in found.items()}
                           for at, i in enumerate(some)}
        return {name: torch.stack([self.known[kind, i][name] for i in indices])
                for name in ("embeddings", "cells", "spectra")}


def copying_sets(library, train, rest, n, rng):
    """(parts of a pool of features, {name: the rows of a sample set in the pool})."""
    every, pool = torch.arange(n), [library.get(rest[:n])]
    sets, counts = {"honest": every}, [max(1, round(share * n / 100)) for share in COPIED]
    sources = rng.permutation(train)[: counts[-1]].tolist()
    for at, (kind, make) in enumerate(COPIES.items()):
        pool.append(library.get(sources, kind, make) if callable(make) else library.describe(
            collages(library.images[train], counts[-1], make, rng)))
        for share, k in zip(COPIED, counts, strict=True):
            sets[f"{kind}, {share}%"] = torch.cat([n + at * counts[-1] + every[:k], every[k:]])
    return pool, sets


def quality_sets(library, train, rest, n, rng):
    """The same, of sets with a defect."""
    every, pool, start = torch.arange(n), [library.get(rest)], len(rest)
    sets, others = {"honest": every}, np.arange(library.count, len(library.images))
    for kind, make in DEFECTS.items():
        pool.append(library.get(rest[:n], kind, make))
        sets[kind], start = start + every, start + n
    pool.append(library.get(rng.permutation(others).tolist()))
    for k in (min(round(share * n / 100), len(others)) for share in OTHERS):
        sets[f"others {100 * k / n:.0f}%"] = torch.cat([start + every[:k], every[k:]])
    embeddings = F.normalize(pool[0]["embeddings"], dim=1)
    alike = (embeddings @ embeddings[0]).argsort(descending=True)
    for kind, few in {"ten repeated": every[:10], "half, twice": every[: n // 2],
                      "alike half, twice": alike[: n // 2]}.items():
        sets[kind] = few.repeat(-(-n // len(few)))[:n]
    return pool, sets


PARTS = {"copying": (COPYING, copying_sets), "quality": (dict.fromkeys(QUALITY, 0), quality_sets)}


def compared(part, train, validation, pool):
    """{space: (training photos, validation photos, pool)}, as features.spaces has them."""
    sets = [train, validation, {name: torch.cat([some[name] for some in pool]) for name in train}]
    embeddings, cells, spectra = ([some[name] for some in sets] for name in train)
    found = {"features": metrics.product_views(*embeddings)}
    found["embeddings"] = metrics.distance_views(*found["features"])
    if part == "copying":
        matrix = metrics.cell_distances(torch.cat(cells[:2]), cells[2])
        own = [*torch.arange(len(matrix)).split([len(x) for x in cells[:2]]),
               torch.arange(len(cells[2]))]
        return found | {"cells": [metrics.Distances(matrix, chosen) for chosen in own],
                        "copying points": copying_points(*embeddings)}
    mean = embeddings[0].mean(0)
    return found | {"centred": metrics.product_views(*(x - mean for x in embeddings)),
                    "spectra": [spectra[0], spectra[2]]}


def measured(part, library, n, draws):
    """{row: {sample set: what counted says of it}}."""
    (candidates, make_sets), found = PARTS[part], {}
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        train, validation, rest = (part.tolist() for part in np.split(
            rng.permutation(library.count), [n, 2 * n]))
        pool, sets = make_sets(library, train, rest, n, rng)
        spaces = compared(part, library.get(train), library.get(validation), pool)
        for kind, chosen in sets.items():
            points = {space: (*those[:-1], those[-1][chosen]) for space, those in spaces.items()}
            labels = [x[:, -1] for x in points.get("copying points", ())[1:]]
            used = [cell for cell in range(3) if all((of == cell).sum() >= 20 for of in labels)]
            functions = {"C_T": functools.partial(copying_score, used=used, n=n)}
            values, intervals = rows.numbers([row._replace(
                function=functions.get(row.name, row.function)) for row in candidates], points)
            for name, value in values.items():
                found.setdefault(name, {}).setdefault(kind, []).append((value, *intervals[name]))
        print(f"{part}: {draw + 1} of {draws} draws", file=sys.stderr, flush=True)
    return {row.name: counted(found[row.name], side) for row, side in candidates.items()}


def counted(numbers, side):
    """{sample set: (draws in which the row sees it, draws, mean value)} of a row's numbers."""
    honest, counts = np.mean(numbers["honest"], 0)[0], {}
    for kind, draws in numbers.items():
        values, lows, highs = np.transpose(draws)
        seen = (lows > honest) * (side >= 0) + (highs < honest) * (side <= 0)
        counts[kind] = int(seen.sum()), len(draws), values.mean()
    return counts


def table(first, kinds, counts, cell):
    print(f"\n| {first} | {' | '.join(kinds)} |\n| --- |" + " ---: |" * len(kinds))
    for name, of in counts.items():
        print(f"| {name} | {' | '.join(cell(of, kind) for kind in kinds)} |", flush=True)


def smallest(counts, kind):
    """The least % of copies that is seen in half of the draws, and in 9 of 10."""
    if kind in counts:
        return f"{counts[kind][0]} of {counts[kind][1]}"
    seen = {str(share): np.divide(*counts[f"{kind}, {share}%"][:2]) for share in COPIED}
    return " / ".join(next((share for share in seen if seen[share] >= least), "–")
                      for least in (0.5, 0.9))


def main(args):
    torch.set_num_threads(args.threads)
    (images, total), (others, _) = (different(data, args.size) for data in (args.data, args.others))
    library, lines = Library(images, others), []
    for part in args.parts:
        counts = measured(part, library, round(total / 4), args.draws)
        if part == "copying":
            table("% of copies seen in half / in 9 of 10 draws", ["honest", *COPIES], counts,
                  smallest)
        else:
            kinds = counts["FD train"]
            table("seen, % of draws", kinds, counts,
                  lambda of, kind: f"{100 * of[kind][0] / of[kind][1]:.0f}")
            table("mean", kinds, counts, lambda of, kind: f"{of[kind][2]:.3g}")
        lines += [(part, name, kind, *count) for name, of in counts.items()
                  for kind, count in of.items()]
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([CSV, *lines])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/bedroom"))
    parser.add_argument("--others", type=Path, default=Path("data/kitchen"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, help="a file for all counts")
    main(parser.parse_args())
