"""The rows of the table: what each says, and the function that gives its number.

    values, intervals = numbers(rows("efficientnet"), spaces)     # spaces: of features.py

To add a number: a Row here and its function in metrics.py. Table, page, CSV and JSON have it then,
and a test asks for a line in README.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import metrics

GROUPS = ("quality", "variety", "copying")
SHORT = {"efficientnet": "EfficientNet", "dinov2": "DINOv2"}  # FD-...; Inception's is FID


class Row(NamedTuple):
    """A row of the table.

    function: of a space's sets (training photos, validation photos, samples; spectra: photos and
    samples), returns the number, or a dict that holds it as `part`. real: of the two sets of
    photos, what the column REAL shows; None: nothing. Spaces: "features" for distributions, as
    tensors or metrics.Products; "embeddings" and "lpips", of as many photos as samples, and "all
    embeddings" and "all lpips", of all photos, for neighbours: metrics.Distances, or, of very many,
    tensors and LpipsPoints; "cells" for metrics.pieces, "spectra" for spectrum_difference, of 500
    images at most; "recovery": errors of training and validation photos; "few-shot": features of
    all training photos and of many samples.
    """

    name: str  # in JSON and CSV
    label: str  # in the table
    group: str
    says: str
    ideal: float | None
    digits: int | None  # after the point; None: three in all
    space: str
    function: Callable
    real: Callable | None = None
    part: str | None = None
    bounds: tuple = (-np.inf, np.inf)
    least: int = 2  # points a set
    replicates: int = 200  # random halves that give the interval; 0: it has none


def against_train(function):
    """function(photos, samples) as one of training photos, validation photos and samples."""
    return lambda train, validation, samples: function(train, samples)


def against_validation(function):
    """The same with validation photos."""
    return lambda train, validation, samples: function(validation, samples)


def copied_share(*sets):
    return metrics.suspected_copies(*sets).double().mean().item()


frechet, infinity = metrics.frechet_distance, metrics.frechet_distance_infinity
kernel, accuracy = metrics.kernel_distance, metrics.adversarial_accuracy
prdc, prdc_train = (metrics.precision_recall_density_coverage,
                    against_train(metrics.precision_recall_density_coverage))
spectrum = metrics.spectrum_difference

ROWS = [
    Row("fid_train", "FID train", "quality",
        "distance from the training photos; lower is better. Biased upwards with few images: "
        "compare at equal n only",
        0, 1, "features", against_train(frechet), bounds=(0, np.inf)),
    Row("fid_validation", "FID validation", "quality",
        "the same from validation photos, which training has not seen; REAL shows the floor",
        0, 1, "features", against_validation(frechet), frechet, bounds=(0, np.inf)),
    Row("fid_infinity_validation", "FID∞ validation", "quality",
        "the same, extrapolated to infinitely many images; shown from 200 images a set on",
        0, 1, "features", against_validation(infinity), infinity, least=200, replicates=20),
    Row("kid_validation", "KID validation", "quality",
        "kernel distance (MMD²), without that bias; 0 is ideal",
        0, None, "features", against_validation(kernel), kernel),
    Row("precision", "precision", "quality",
        "the share of samples that lie among the photos",
        1, 2, "features", prdc_train, prdc, "precision", (0, 1), least=6),
    Row("aa_train", "AA train", "quality",
        "adversarial accuracy: the share of samples and photos that a nearest-neighbour test tells "
        "apart. 0.5 is ideal, 1 is far from the photos, 0 is copied",
        0.5, 2, "embeddings", against_train(accuracy), accuracy, bounds=(0, 1)),
    Row("aa_test", "AA test", "quality",
        "the same against validation photos",
        0.5, 2, "embeddings", against_validation(accuracy), bounds=(0, 1)),
    Row("aa_train_lpips", "AA train, LPIPS", "quality",
        "AA train by LPIPS",
        0.5, 2, "lpips", against_train(accuracy), accuracy, bounds=(0, 1)),
    Row("spectrum_high", "spectrum, high", "quality",
        "difference in log power in fine detail (0.7 is a factor of two); REAL shows the floor",
        0, 2, "spectra", spectrum, spectrum, "high", (0, np.inf), replicates=40),
    Row("spectrum_grid", "spectrum, grid", "quality",
        "a regular grid of 8, 4 or 2 pixels, as upsampling layers leave it; 0 is ideal",
        0, 2, "spectra", spectrum, spectrum, "grid", replicates=40),
    Row("recall", "recall", "variety",
        "the share of photos that lie among the samples",
        1, 2, "features", prdc_train, prdc, "recall", (0, 1), least=6),
    Row("effective_images", "effective images", "variety",
        "how many images with nothing in common would vary as much (Vendi score); compare with "
        "REAL",
        None, 1, "features", lambda train, validation, samples: metrics.effective_number(samples),
        lambda train, validation: metrics.effective_number(validation), bounds=(1, np.inf)),
    Row("privacy_loss", "privacy loss", "copying",
        "AA test less AA train; copies push it above 0",
        0, 2, "embeddings", metrics.privacy_loss, bounds=(-1, 1)),
    Row("copies", "suspected copies", "copying",
        "the share of samples nearer to a training photo than 99% of validation photos are: 0.01 "
        "by chance, more with few photos. They are named; look at them",
        0, 2, "all embeddings", copied_share, bounds=(0, 1)),
    Row("pieces", "pieces nearer to training", "copying",
        "of the 10% of pieces that are much nearer to one side than to the other, the share that "
        "is nearer to a training than to a validation photo: 0.5 is chance, 1 a collage",
        0.5, 2, "cells", metrics.pieces, bounds=(0, 1), replicates=40),
    Row("recovery_gap", "recovery gap", "copying",
        "with --recover 100: can the generator reproduce training photos better than validation "
        "photos? 0 is ideal",
        0, None, "recovery", metrics.recovery_gap),
]
DETAILS = [  # in the JSON, for the verdict in words
    Row("copies_lpips", "suspected copies, LPIPS", "copying", "suspected copies by LPIPS",
        0, 2, "all lpips", copied_share, bounds=(0, 1)),
    Row("spectrum_high_signed", "spectrum, high, signed", "quality",
        "spectrum, high with its sign: below 0 samples have less than photos",
        0, 2, "spectra", spectrum, spectrum, "high signed", replicates=40),
    *(Row(f"spectrum_grid_{period}", f"spectrum, grid of {period} pixels", "quality",
          f"the part of spectrum, grid that only a grid of {period} pixels has",
          0, 2, "spectra", spectrum, spectrum, f"grid {period}", replicates=40)
      for period in (8, 4, 2)),
]


def name_of(name, kind):
    """How a row of this name, with FID or KID in it, is called with `--features kind`."""
    return name if kind == "inception" else re.sub("^([fk])id", rf"\1d_{kind}", name)


def label_of(label, kind):
    return label if kind == "inception" else re.sub(
        "^([FK])ID(∞?)", rf"\1D\2-{SHORT[kind]}", label)


def named(row, kind):
    """The row as it is called with `--features kind`."""
    return row._replace(name=name_of(row.name, kind), label=label_of(row.label, kind))


def few_shot(kind, n, size):
    """The row of `--few-shot n` at this size of images; it stands below the table."""
    return named(Row(
        "fid_few_shot", "FID, few-shot", "few-shot",
        f"the distance of {n:,} samples from all training photos, at {size}×{size}, as papers on "
        "few-shot generators report it. Not comparable with the table, whose sets are equal in "
        "number; and copying is rewarded: the photos themselves have 0",
        0, 1, "few-shot", frechet, bounds=(0, np.inf), replicates=0), kind)


def rows(kind):
    """The table's rows for `--features kind`; with efficientnet there are none of LPIPS."""
    return [named(row, kind) for row in ROWS
            if kind != "efficientnet" or "lpips" not in row.space]


def numbers(chosen, spaces, real=False):
    """({name: number}, {name: [low, high]}) of the rows whose points are there and enough.

    spaces: of features.spaces; real: its sets are photos alone. Intervals are of each row's
    `replicates` random halves, of 20 above 1,000 images; of more points than can be views (see
    metrics.VIEWED) there are none. Rows of one function are computed in one go.
    """
    together = {}
    for row in chosen:
        function = row.real if real else row.function
        if function and len(spaces.get(row.space, ((),))[0]) >= row.least:
            key = function, row.space, row.least, row.replicates
            together.setdefault(key, []).append(row)
    values, intervals = {}, {}
    bar = tqdm(together.items(), desc="numbers", disable=None, leave=False)
    for (function, space, least, replicates), same in bar:

        def statistic(*points, function=function, same=same):
            found = function(*points)
            return [found[row.part] if row.part else found for row in same]

        sets, names = spaces[space], [row.name for row in same]
        values |= zip(names, statistic(*sets), strict=True)
        n = len(sets[-1])
        few = max(3 * n, sum(map(len, sets))) <= metrics.VIEWED
        if replicates and few and n // 2 >= min(least, 8):
            ends = metrics.interval(
                statistic, *sets, bounds=np.transpose([row.bounds for row in same]),
                replicates=replicates if len(sets[0]) <= 1000 else 20)
            intervals |= zip(names, map(list, zip(*ends, strict=True)), strict=True)
    order = [row.name for row in chosen]
    return tuple(dict(sorted(found.items(), key=lambda item: order.index(item[0])))
                 for found in (values, intervals))
