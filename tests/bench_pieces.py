"""Are a generator's samples made of pieces of training photos? From which share on would it show?

    python evaluate.py --ckpt CKPT --generate 267 --seed 1 --out samples
    python tests/bench_pieces.py --samples samples --data data/bedroom    # a minute on a core

The table's row "pieces nearer to training" of the samples as they are answers the first (0.5 is
chance). The second: of the same samples after some of them gave way to collages of training photos
(4 × 4 parts, each in its place), to such collages blurred (shrunk to 5/8 and enlarged), to collages
of validation photos, as a control, or had one of 16 parts replaced by a training photo's.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_rows import collages

import metrics
from common import features, imagefiles, photos, rows, weights

SHARES = (1, 2, 3, 5, 10, 20)  # % of samples that give way
PIECES = next(row for row in rows.ROWS if row.name == "pieces")
BLOCKS = 4  # a side


def one_part(samples, sources, rng):
    """The samples, each with one part, at its own place, of its source."""
    place = torch.arange(samples.shape[-1]) * BLOCKS // samples.shape[-1]
    part = torch.from_numpy(rng.integers(BLOCKS**2, size=len(samples)))[:, None, None, None]
    return torch.where(place[:, None] * BLOCKS + place == part, sources, samples)


@torch.inference_mode()
def cells(images, network):
    return torch.cat([network.with_cells(few)[1] for few in images.split(4)])


def main(args):
    torch.set_num_threads(args.threads)
    samples = photos.decode_all(imagefiles.find(args.samples), args.size)
    train, validation = (photos.load_images(args.data, split, args.size)[0]
                         for split in ("train", "val"))
    n, rng = min(map(len, (samples, train, validation))), np.random.default_rng(0)
    samples, train, validation = (
        torch.as_tensor(images)[rng.permutation(len(images))[:n]]
        for images in (samples, train, validation))
    counts = {share: round(share * n / 100) for share in SHARES}
    made, control = (collages(images, counts[SHARES[-1]], BLOCKS, rng)
                     for images in (train, validation))
    kinds = {"collages": made,
             "blurred": features.resized(features.resized(made, args.size * 5 // 8), args.size),
             "of validation photos": control,
             "one part of 16": one_part(samples, train[rng.integers(n, size=n)], rng)}
    network = weights.efficientnet_lite2_network()
    pool = torch.cat([samples, *kinds.values()])
    matrix = metrics.cell_distances(
        torch.cat([cells(train, network), cells(validation, network)]), cells(pool, network))
    first = dict(zip(kinds, np.cumsum([n, *map(len, kinds.values())]), strict=False))

    def pieces(kind, k):
        """The row's text if the first k samples are of this kind."""
        chosen = torch.arange(n)
        chosen[:k] += first.get(kind, 0)
        points = [metrics.Distances(matrix, own)
                  for own in (*torch.arange(2 * n).split(n), chosen)]
        values, intervals = rows.numbers([PIECES], {"cells": points})
        low, high = intervals["pieces"]
        return f"{values['pieces']:.2f} ±{(high - low) / 2:.2f}"

    print(f"\n{n} samples as they are: {pieces('', 0)}\n\n| of the samples | {' | '.join(kinds)} |"
          f"\n| --- |{' ---: |' * len(kinds)}")
    for share, k in (counts | {50: n // 2, 100: n}).items():
        print(f"| {share}% |", " | ".join(
            pieces(kind, k) if k <= len(kinds[kind]) else "–" for kind in kinds), "|", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=Path, required=True, help="a folder of images")
    parser.add_argument("--data", type=Path, default=Path("data/bedroom"))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    main(parser.parse_args())
