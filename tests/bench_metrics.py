"""One table: each metric beside its reference implementation, on the same images, in one run.

    python tests/bench_metrics.py                      # data/bedroom if it is there, else drawn
    python tests/bench_metrics.py --data DIR --size 256 --threads 2
    python tests/bench_metrics.py --scaling            # memory at 2,500, 5,000, 10,000 points
    python tests/bench_metrics.py --lpips-memory 331   # 331 x 331 images of 1024x1024
    python tests/bench_metrics.py --memorisation       # pieces of 331 a set
    python tests/bench_metrics.py --intervals          # of 331 a set, by views and by features
    python tests/bench_metrics.py --verdict            # evaluate.py beside the tools people use
    python tests/bench_metrics.py --efficientnet       # README's first table beside one FID
    python tests/bench_metrics.py --spectra            # rows of photos, blurred, with grids
    python tests/bench_metrics.py --dinov2             # the full network beside timm's

Networks have the same seeded random weights on both sides. Peak is the memory of the whole
process while ours runs. The reference of LPIPS, the module pair by pair, is timed on a sample
of pairs and scaled to all of them; its rows are marked with ~.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import prdc
import pytorch_fid.inception
import sklearn.metrics.pairwise
import sklearn.neighbors
import torch
import torch_fidelity
from cleanfid.resize import build_resizer
from pytorch_fid.fid_score import calculate_fid_given_paths
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F
from torch_fidelity.metric_kid import kid_features_to_metric

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench_train import Peak
from drawn import smooth
from published import older_scipy, pytorch_fid_distance

import metrics
from common import features, perceptual, photos, rows, weights

CPU = torch.device("cpu")
drawn = partial(smooth, coarse=9)


def timed(function, repeats):
    """Result and median seconds; one untimed call first if there are several."""
    seconds = []
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
            result = function()
        seconds.append(time.perf_counter() - start)
    return result, float(np.median(seconds[-repeats:]))


def row(name, ours, reference, repeats=3, reference_repeats=1, scale=1.0, relative=True):
    """Time both and print a line. reference runs 1 / scale of the work and is compared alone."""
    peak = Peak(CPU)
    result, seconds = timed(ours, repeats)
    peak_mb = 1024 * peak.read()
    expected, reference_seconds = timed(reference, reference_repeats)
    reference_seconds *= scale
    expected = np.asarray(expected, dtype=float)
    got = np.asarray(result, dtype=float)[tuple(slice(n) for n in expected.shape)]
    difference = np.abs(got - expected).max() / (np.abs(expected).max() if relative else 1)
    approximately = "~" if scale != 1 else ""
    print(f"| {name} | {seconds:.4g} | {approximately}{reference_seconds:.4g} | "
          f"{approximately}{reference_seconds / seconds:.3g} | "
          f"{difference:.1e} {'rel' if relative else 'abs'} | {peak_mb:,.0f} MB |", flush=True)
    return result


def gaussian_pair(n, d=2048):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator) + 0.1


def scaling(args):
    """Seconds and peak memory of each metric over the number of 2048-d features a side.

    A distance block of 2048 x 2048 in float64 is 34 MB whatever n is; what grows with n are the
    features themselves, 8 kB a point and side.
    """
    numbers = {
        "Frechet distance": metrics.frechet_distance,
        "kernel distance": metrics.kernel_distance,
        "precision, recall, density, coverage": metrics.precision_recall_density_coverage,
        "adversarial accuracy": metrics.adversarial_accuracy,
    }
    print("| metric | n a side | s | peak | of it features |\n| --- | ---: | ---: | ---: | ---: |")
    print(f"| before | – | – | {1024 * Peak(CPU).read():,.0f} MB | – |")
    for n in (2500, 5000, 10000):
        x, y = gaussian_pair(n)
        for name, function in numbers.items():
            peak = Peak(CPU)
            _, seconds = timed(partial(function, x, y), 1)
            print(f"| {name} | {n:,} | {seconds:.1f} | {1024 * peak.read():,.0f} MB | "
                  f"{(x.nbytes + y.nbytes) / 2**20:,.0f} MB |", flush=True)


def lpips_memory(args, size=1024):
    """Peak memory of n x n LPIPS distances of drawn images that no one holds at once.

    Of VGG, whose points take 270 MB of disk an image, a tenth of the images.
    """
    for net, share in (("alex", 1), ("vgg", 10)):
        n = max(2, args.lpips_memory // share)
        module = weights.lpips_network(net, "random")
        start, peak = time.perf_counter(), Peak(CPU)
        x, y = (perceptual.lpips_points((drawn(1, size, seed + i) for i in range(n)), module,
                                        total=n) for seed in (0, n))
        made, points_peak, peak = time.perf_counter() - start, 1024 * peak.read(), Peak(CPU)
        perceptual.pairwise_lpips(x, y)
        print(f"LPIPS {net}, {n} x {n} at {size}x{size}: points {made:.0f} s, peak "
              f"{points_peak:,.0f} MB; distances {time.perf_counter() - start - made:.0f} s, "
              f"peak {1024 * peak.read():,.0f} MB", flush=True)


def rows_of(*spaces):
    return [row for row in rows.rows("inception") if row.space in spaces]


def memorisation(args, n=331, cells=196):
    """Pieces, beside a line of torch, and the seconds of their row with its interval."""
    generator = torch.Generator().manual_seed(1)
    maps = F.normalize(torch.randn(n, cells, 128, generator=generator), dim=2)
    few = maps[:8]
    row(f"pieces: {few.shape[0] * cells} cells of {n * cells} near {n} photos, all at once",
        lambda: metrics.cell_distances(maps, few).amin(0).flatten(),
        lambda: 1 - (few.flatten(0, 1) @ maps.flatten(0, 1).T).amax(1), relative=False)
    matrix = torch.rand(2 * n, n, cells, generator=generator)
    views = [metrics.Distances(matrix, part) for part in torch.arange(2 * n).split(n)]
    _, seconds = timed(lambda: rows.numbers(rows_of("cells"), {
        "cells": [*views, metrics.Distances(matrix, torch.arange(n))]}), 1)
    print(f"pieces of {n} images, from distances on, with the interval: {seconds:.1f} s")


def intervals(args, n=331, d=2048):
    """Seconds of all numbers of features with their intervals, of REAL and one column: each half's
    looked up in a matrix of inner products or distances, and each anew from its features."""
    train, validation, fake = torch.randn(3, n, d, generator=torch.Generator().manual_seed(0)).abs()
    for names, views in ((("features",), metrics.product_views),
                         (("embeddings", "all embeddings"), metrics.distance_views)):
        seconds, ends = [], []
        for prepared in (views, lambda *sets: sets):
            start, found = time.perf_counter(), []
            for real, sets in ((True, (train, validation)), (False, (train, validation, fake))):
                spaces = dict.fromkeys(names, prepared(*sets))
                found += rows.numbers(rows_of(*names), spaces, real)[1].values()
            seconds.append(time.perf_counter() - start)
            ends.append(np.array(found))
        apart = np.abs(np.subtract(*ends)).max(1) / np.maximum(np.ptp(ends[1], 1), 1e-9)
        print(f"{len(found)} numbers and intervals of {n} x {d} {names[0]}, REAL and a column: "
              f"{seconds[0]:.1f} s, {seconds[1]:.1f} s by features, {seconds[1] / seconds[0]:.1f}x,"
              f" ends apart by {apart.max():.1e} of the interval", flush=True)


def spectra(args):
    """The spectrum rows of --data's validation photos at 256x256, plain, blurred, with grids."""
    train, photo = (photos.load_images(args.data, split, 256)[0] for split in ("train", "val"))
    n, network = min(len(train), len(photo)), features.Spectrum()
    lines = torch.zeros(256, 256)
    lines[::8] = lines[:, ::8] = 1
    kinds = {"as they are": photo,
             "blurred by 1 pixel": torch.from_numpy(gaussian_filter(
                 photo.float().numpy(), (0, 0, 1, 1))).round().byte(),
             **{f"a line of {high} grey levels every 8 pixels": (
                 photo.float() + high * lines).clamp(0, 255).byte() for high in (1, 4)}}
    power = features.features(train[:n], network)
    for kind, images in kinds.items():
        found, ends = rows.numbers(rows_of("spectra"), {
            "spectra": [power, features.features(images[:n], network)]})
        print(f"| {kind} | " + " | ".join(f"{found[name]:.2f} ±{high - found[name]:.2f}" for name, (
            _, high) in ends.items()) + " |", flush=True)


def dinov2(args):
    """DINOv2's ViT-L/14 at its native 518x518 beside timm's, with timm's random weights."""
    import timm

    peak, network = Peak(CPU), weights.dinov2_network("random")
    _, seconds = timed(lambda: features.features(drawn(8, 256, 0), network), 1)
    print(f"an image at 224x224: {seconds / 8:.1f} s, peak {1024 * peak.read():,.0f} MB")
    theirs = timm.create_model("vit_large_patch14_dinov2.lvd142m", pretrained=False).eval()
    for name, value in theirs.named_parameters():
        if name.endswith("gamma"):  # 1e-5 would leave nothing of the blocks
            torch.nn.init.uniform_(value.data, 0.5, 1.5)
    with torch.device("meta"):
        ours = weights._vision_transformer(37).eval()
    ours.load_state_dict(weights._from_dinov2(theirs.state_dict(), side=37), assign=True)
    image = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    row("DINOv2 of one image of 518x518, timm", lambda: ours(image), lambda: theirs(image),
        repeats=1, relative=False)


RANDOM = """
import runpy, sys, torch
from common import perceptual, weights
def random(make):
    return lambda *trunk, **options: make(*trunk, weights="random", **options)
for name in "inception_network", "resnet50_network", "lpips_network":
    setattr(weights, name, random(getattr(weights, name)))
"""
WITHOUT_LPIPS = """
def no_points(batches, network, total):
    return torch.rand(sum(map(len, batches)), 2)
perceptual.lpips_points = no_points
"""


def evaluation(folder, threads, samples, kind, program=""):
    """Seconds of evaluate.py of folders, in a process of its own that runs the program before."""
    script = Path(__file__).resolve().parents[1] / "evaluate.py"
    program = f"""import runpy, sys; sys.argv[0] = r'{script}'
{program}
runpy.run_path(sys.argv[0], run_name='__main__')"""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program, "--samples", *samples, "--data", "data",
                    "--features", kind, "--out", "out"], cwd=folder, check=True,
                   stdout=subprocess.DEVNULL, env={
                       **os.environ, "OMP_NUM_THREADS": str(threads),
                       "PYTHONPATH": str(script.parent)})
    return time.perf_counter() - start


def image_folders(folder, n, samples):
    """Photos and samples, n drawn images a set at 256x256, as evaluate.py takes them."""
    sets = [folder / "data" / "train", folder / "data" / "val", *(folder / c for c in samples)]
    for seed, where in enumerate(sets):
        photos.save_images([drawn(n, 256, seed)], where)
    return sets


def random_inception():
    """The state dict of the seeded random Inception, which pytorch-fid uses from here on."""
    state = weights._network("inception", weights._fid_inception, "random").state_dict()
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    return state


def one_fid(folders):
    """Seconds of pytorch-fid for the FID of two folders, its imports not counted."""
    with older_scipy():
        return timed(lambda: calculate_fid_given_paths(
            [str(folder) for folder in folders], 50, "cpu", 2048), 1)[1]


def verdict(args, n=331, columns=4, pairs=30):
    """evaluate.py, from files to table, beside pytorch-fid, torch-fidelity, prdc and lpips.

    pytorch-fid and torch-fidelity are run on the files of two sets, and their seconds multiplied by
    the pairs of sets that evaluate.py compares. prdc needs features, and gets them for nothing.
    LPIPS is scaled from a few pairs to all.
    """
    samples = "abcd"[:columns]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, _, first, *_ = image_folders(folder, n, samples)
        torch.save(random_inception(), folder / "inception.pth")
        fid = one_fid([train, first])
        _, kid = timed(lambda: torch_fidelity.calculate_metrics(
            input1=str(train), input2=str(first), kid=True, kid_subset_size=n, cuda=False,
            cache=False, verbose=False,
            feature_extractor_weights_path=str(folder / "inception.pth")), 1)
        ours = {way: evaluation(folder, args.threads, samples, "inception", RANDOM)
                for way in ("cold", "warm")}
        for cache in folder.rglob(".cache"):
            cache.rename(folder / f"cache_{cache.parent.name}")
        ours |= {f"{way}, without LPIPS": evaluation(folder, args.threads, samples, "inception",
                                                     RANDOM + WITHOUT_LPIPS)
                 for way in ("cold", "warm")}

    x, y = (torch.randn(n, 2048, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    _, manifold = timed(lambda: prdc.compute_prdc(x.numpy(), y.numpy(), 5), 1)
    some, module = drawn(2 * pairs, 256, 0) / 127.5 - 1, weights.lpips_network("alex", "random")
    a, b = some.split(pairs)
    _, lpips = timed(lambda: [module(p[None], q[None]) for p, q in zip(a, b, strict=True)], 1)
    tools = {  # both sides of each column; LPIPS within and between all sets that AA compares
        "pytorch-fid": 2 * columns * fid, "torch-fidelity's KID": 2 * columns * kid,
        "prdc": columns * manifold, "lpips": ((2.5 * columns + 2) * n**2) * lpips / pairs}
    print(f"{columns} columns of {n} images at 256x256, {args.threads} threads, random weights\n\n"
          "| | s | the tools' time / ours |\n| --- | ---: | ---: |")
    for name, seconds in tools.items():
        print(f"| ~ {name} | {seconds:,.0f} | |")
    every = sum(tools.values())
    for name, seconds in ours.items():
        theirs = every - tools["lpips"] if "without" in name else every
        print(f"| evaluate.py, {name} | {seconds:,.0f} | {theirs / seconds:.3g} |")


def efficientnet(args, n=267):
    """evaluate.py --features efficientnet, all numbers and figures of REAL and one column, from
    files and from nothing kept, beside pytorch-fid for one FID of two of its three folders."""
    random_inception()
    with tempfile.TemporaryDirectory() as name:
        train, _, fake = image_folders(Path(name), n, "a")
        fid = one_fid([train, fake])
        ours = evaluation(Path(name), args.threads, "a", "efficientnet")
    print(f"{n} images a set at 256x256, {args.threads} threads: evaluate.py --features "
          f"efficientnet {ours:.1f} s, one FID by pytorch-fid {fid:.1f} s, {fid / ours:.2f}x")


def compare(args):
    """The table of every metric beside its reference."""
    if args.data.is_dir():
        x, y = (photos.load_images(args.data, split, args.size)[0] for split in ("train", "val"))
    else:
        x, y = drawn(args.n, args.size, 0), drawn(args.n, args.size, 1)
    print(f"{len(x)} and {len(y)} images of {args.size}x{args.size} from "
          f"{args.data if args.data.is_dir() else 'drawings'}, torch {torch.__version__}, "
          f"{args.threads} threads, seeded random weights\n")
    print("| metric, against its reference | ours s | reference s | ratio | difference | peak |\n"
          "| --- | ---: | ---: | ---: | ---: | ---: |")
    compare_inception(x[: args.images])
    network = weights.inception_network("random")
    compare_numbers(features.features(x, network), features.features(y, network))
    for net in ("alex", "vgg")[: args.lpips]:
        compare_lpips(net, x, y)


def compare_inception(images):
    network = weights.inception_network("random")
    random_inception()
    reference = pytorch_fid.inception.InceptionV3([3]).eval()
    row(f"Inception features of {len(images)}, pytorch-fid",
        lambda: features.features(images, network),
        lambda: torch.cat([reference(b / 255)[0] for b in images.split(32)])[:, :, 0, 0],
        reference_repeats=3)
    resize = build_resizer("clean")
    row(f"clean resize of {len(images)}, clean-fid (of 255)",
        lambda: torch.cat([weights._prepare_clean_fid(b.float()) for b in images.split(32)]) * 128,
        lambda: np.stack([resize(i).transpose(2, 0, 1)
                          for i in images.permute(0, 2, 3, 1).numpy()]) - 128,
        reference_repeats=3, relative=False)


def compare_numbers(a, b):
    row(f"Frechet distance {len(a)} x {len(b)}, pytorch-fid",
        lambda: metrics.frechet_distance(a, b), lambda: pytorch_fid_distance(a, b))
    for n in (331, 2048, 5000):
        p, q = gaussian_pair(n)
        row(f"Frechet distance {n:,} Gaussian, pytorch-fid",
            partial(metrics.frechet_distance, p, q), partial(pytorch_fid_distance, p, q),
            repeats=3 if n < 1000 else 1)
    size = min(len(a), len(b))
    kid = {"kid_subsets": 1, "kid_subset_size": size, "verbose": False}
    row(f"kernel distance of {size}, torch-fidelity",
        lambda: metrics.kernel_distance(a[:size], b[:size]),
        lambda: next(iter(kid_features_to_metric(a[:size].double(), b[:size].double(),
                                                 **kid).values())))
    row("precision, recall, density, coverage, prdc",
        lambda: list(metrics.precision_recall_density_coverage(a, b).values()),
        lambda: list(prdc.compute_prdc(a.numpy(), b.numpy(), 5).values()), reference_repeats=3)
    row("cosine distances, scikit-learn", lambda: metrics.pairwise_cosine(a, b),
        lambda: sklearn.metrics.pairwise.cosine_distances(a.double(), b.double()),
        reference_repeats=3, relative=False)
    model = sklearn.neighbors.NearestNeighbors(n_neighbors=4, metric="cosine")
    row("4 nearest neighbours, scikit-learn", lambda: metrics.nearest_neighbors(b, a, 4)[1],
        lambda: model.fit(a.double().numpy()).kneighbors(b.double().numpy())[1],
        reference_repeats=3, relative=False)


def compare_lpips(net, x, y, rows=3, columns=4):
    module = weights.lpips_network(net, "random")

    def of_all():
        return perceptual.pairwise_lpips(*(perceptual.lpips_points([z], module, len(z))
                                           for z in (x, y)))

    def pair_by_pair():
        p, q = x[:rows] / 127.5 - 1, y[:columns] / 127.5 - 1
        return torch.stack([torch.cat([module(i[None], j[None]).flatten() for j in q]) for i in p])

    row(f"LPIPS {net} {len(x)} x {len(y)}, pair by pair",
        of_all, pair_by_pair, repeats=1,
        scale=len(x) * len(y) / (rows * columns), relative=False)


def main(args):
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    (lpips_memory if args.lpips_memory else args.what)(args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/bedroom"),
                        help="folder with train/ and val/ (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--n", type=int, default=268, help="drawn images a side without data")
    parser.add_argument("--images", type=int, default=64, help="images to time Inception on")
    parser.add_argument("--lpips", type=int, default=1, choices=(1, 2),
                        help="how many of alex, vgg")
    for what, text in ((memorisation, "pieces"),
                       (intervals, "of 331 a set, both ways"),
                       (efficientnet, "README's first table beside one FID"),
                       (spectra, "of photos, blurred, with grids"),
                       (dinov2, "the full network beside timm's"),
                       (verdict, "beside the tools people use"),
                       (scaling, "memory over the number of points")):
        parser.add_argument(f"--{what.__name__}", action="store_const", dest="what", const=what,
                            default=compare, help=text)
    parser.add_argument("--lpips-memory", type=int, metavar="N", help="N x N at 1024x1024")
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
