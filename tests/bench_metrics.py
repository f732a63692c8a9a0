"""One table: each metric beside its reference implementation, on the same images, in one run.

    python tests/bench_metrics.py                      # data/bedroom if it is there, else drawn
    python tests/bench_metrics.py --data DIR --size 256 --threads 2
    python tests/bench_metrics.py --scaling            # memory at 2,500, 5,000, 10,000 points
    python tests/bench_metrics.py --lpips-memory 331   # 331 x 331 images of 1024x1024
    python tests/bench_metrics.py --memorisation       # AuthPct, C_T and pieces of 331 a set
    python tests/bench_metrics.py --intervals          # of 331 a set
    python tests/bench_metrics.py --verdict            # evaluate.py beside the tools people use
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
from unittest import mock

import numpy as np
import prdc
import pytorch_fid.inception
import sklearn.cluster
import sklearn.decomposition
import sklearn.metrics.pairwise
import sklearn.neighbors
import torch
import torch.nn.functional as F
import torch_fidelity
from cleanfid.resize import build_resizer
from pytorch_fid.fid_score import calculate_fid_given_paths
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu
from torch_fidelity.metric_kid import kid_features_to_metric

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench_train import Peak
from published import older_scipy, pytorch_fid_distance

import metrics
from common import features, photos

CPU = torch.device("cpu")


def drawn(n, size, seed):
    coarse = torch.rand(n, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 255).byte()


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
    features themselves, 8 kB a point and side, and 32 neighbours of each point, 512 bytes.
    """
    numbers = {
        "Frechet distance": metrics.frechet_distance,
        "kernel distance": metrics.kernel_distance,
        "precision, recall, density, coverage": metrics.precision_recall_density_coverage,
        "32 neighbours, of all lists": lambda x, y: metrics.neighbor_lists(
            ["TT", "FF", "TF"], {"T": x, "F": y}),
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
        module = features.lpips_network(net, "random")
        start, peak = time.perf_counter(), Peak(CPU)
        x, y = (features.lpips_features((drawn(1, size, seed + i) for i in range(n)), module,
                                       total=n) for seed in (0, n))
        made, features_peak, peak = time.perf_counter() - start, 1024 * peak.read(), Peak(CPU)
        features.pairwise_lpips(x, y, module)
        print(f"LPIPS {net}, {n} x {n} at {size}x{size}: features {made:.0f} s, peak "
              f"{features_peak:,.0f} MB; distances {time.perf_counter() - start - made:.0f} s, "
              f"peak {1024 * peak.read():,.0f} MB", flush=True)


def memorisation(args, n=331, cells=196):
    """AuthPct, C_T and pieces, of points, beside a few lines of scikit-learn, scipy and torch."""
    train, test, fake = torch.randn(3, n, 2048, generator=torch.Generator().manual_seed(0))

    def authentic():
        own = cdist(train, train)
        np.fill_diagonal(own, np.inf)
        across = cdist(fake, train)
        return 100 * (across.min(1) > own.min(1)[across.argmin(1)]).mean()

    def copying():
        project = sklearn.decomposition.PCA(64, random_state=0).fit(train.double().numpy())
        sets = [project.transform(x.double().numpy()) for x in (train, test, fake)]
        kmeans = sklearn.cluster.KMeans(3, n_init=10, random_state=0).fit(sets[0])
        total = weight = 0
        for cell in range(3):
            t, v, f = (x[kmeans.predict(x) == cell] for x in sets)
            if min(len(v), len(f)) >= 20:
                u = mannwhitneyu(cdist(f, t).min(1), cdist(v, t).min(1)).statistic
                product = len(v) * len(f)
                total += len(v) * (u - product / 2 + 0.5) / (
                    product * (len(v) + len(f) + 1) / 12) ** 0.5
                weight += len(v)
        return total / weight

    rows = torch.arange(n)

    def authenticity():
        lists = metrics.neighbor_lists(["TT", "TF"], {"T": train, "F": fake},
                                       distance=metrics.pairwise_euclidean)
        return metrics.authenticity(lists, "TF", rows, rows)

    row(f"AuthPct of {n}, scipy", authenticity, authentic)
    row(f"C_T of {n}, scikit-learn and scipy",
        lambda: metrics.copying_score(train, test, fake)(), copying)
    generator = torch.Generator().manual_seed(1)
    maps = F.normalize(torch.randn(n, cells, 128, generator=generator), dim=2)
    few = maps[:8].flatten(0, 1)
    row(f"pieces: {few.shape[0]} cells of {n * cells} near {n} photos, all at once",
        lambda: metrics.nearest_pieces(few, maps, 32).distances[:, 0],
        lambda: 1 - (few @ maps.flatten(0, 1).T).amax(1), relative=False)
    near = [metrics.Neighbors(*torch.rand(n * cells, n, generator=generator).double().topk(
        32, largest=False)) for _ in range(2)]
    measure = metrics.piece_measure(*near, [torch.arange(n)] * 3, cells)
    _, seconds = timed(lambda: metrics.numbers([measure], n), 1)
    print(f"pieces of {n} images, from neighbours on, with the interval: {seconds:.1f} s")


def intervals(args, n=331, d=2048):
    """Seconds of all numbers of features with their intervals, of REAL and one column: each half's
    looked up in a matrix of inner products, and each anew from its features."""

    def by_features(x, y):
        (a, b), means = ((z.double() - z.double().mean(0) for z in (x, y)), (x.mean(0), y.mean(0)))
        a, b = a / (len(x) - 1) ** 0.5, b / (len(y) - 1) ** 0.5
        apart = (means[0].double() - means[1].double()).square().sum()
        root = torch.linalg.svdvals(a @ b.T).sum()
        return (apart + a.square().sum() + b.square().sum() - 2 * root).item()

    train, validation, fake = torch.randn(3, n, d, generator=torch.Generator().manual_seed(0)).abs()
    seconds, ends = [0, 0], [[], []]
    for references, x in (({"validation": train}, validation),
                          ({"train": train, "validation": validation}, fake)):
        start = time.perf_counter()
        fast = metrics.distribution_measures(references, x)
        seconds[0] += time.perf_counter() - start
        start = time.perf_counter()
        ends[0] += metrics.numbers(fast, n)["intervals"].values()
        seconds[0] += time.perf_counter() - start
        with mock.patch.multiple(metrics, GRAM_POINTS=0, frechet_distance=by_features):
            start = time.perf_counter()
            plain = metrics.distribution_measures(references, x)
            ends[1] += metrics.numbers(plain, n)["intervals"].values()
            seconds[1] += time.perf_counter() - start
    apart = np.abs(np.divide(*ends) - 1).max()
    print(f"intervals of {n} x {d}, REAL and a column: {seconds[0]:.1f} s, {seconds[1]:.1f} s by "
          f"features, {seconds[1] / seconds[0]:.1f}x, ends apart by {apart:.1e}", flush=True)
    lists = metrics.neighbor_lists(["TT", "VV", "FF", "TV", "TF", "VF"],
                                   {"T": train, "V": validation, "F": fake})
    rows, start = [torch.arange(n)] * 3, time.perf_counter()
    for _ in range(2):  # by two distances
        metrics.numbers([metrics.neighbor_measure(lists, rows), metrics.copy_measure(lists, rows),
                         metrics.neighbor_measure(lists, rows[:2], "_real", "V")], n)
    print(f"those of neighbours: {time.perf_counter() - start:.1f} s", flush=True)


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
        measure = metrics.spectrum_measure(power, features.features(images[:n], network))
        found = metrics.numbers([measure], n)
        print(f"| {kind} | " + " | ".join(f"{found[row]:.2f} ±{high - found[row]:.2f}" for row, (
            _, high) in found["intervals"].items()) + " |", flush=True)


def dinov2(args):
    """DINOv2's ViT-L/14 at its native 518x518 beside timm's, with timm's random weights."""
    import timm

    peak, network = Peak(CPU), features.dinov2_network("random")
    _, seconds = timed(lambda: features.features(drawn(8, 256, 0), network), 1)
    print(f"an image at 224x224: {seconds / 8:.1f} s, peak {1024 * peak.read():,.0f} MB")
    theirs = timm.create_model("vit_large_patch14_dinov2.lvd142m", pretrained=False).eval()
    for name, value in theirs.named_parameters():
        if name.endswith("gamma"):  # 1e-5 would leave nothing of the blocks
            torch.nn.init.uniform_(value.data, 0.5, 1.5)
    with torch.device("meta"):
        ours = features._vision_transformer(37).eval()
    ours.load_state_dict(features._from_dinov2(theirs.state_dict(), 37), assign=True)
    image = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    row("DINOv2 of one image of 518x518, timm", lambda: ours(image), lambda: theirs(image),
        repeats=1, relative=False)


WITHOUT_LPIPS = """
import runpy, sys, torch
from common import features
def no_features(batches, network, total):
    return torch.zeros(sum(map(len, batches)), 1)
features.lpips_features = no_features
features.pairwise_lpips = lambda x, y, network: torch.rand(len(x), len(y))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def evaluation(folder, threads, program):
    """Seconds of evaluate.py of the folders a, b, c, d, random weights, in a process of its own."""
    script = Path(__file__).resolve().parents[1] / "evaluate.py"
    command = ["--samples", *"abcd", "--data", "data", "--weights", "random", "--out", "out"]
    program = [script] if program is None else ["-c", f"import sys; sys.argv[0] = r'{script}'"
                                                + program]
    start = time.perf_counter()
    subprocess.run([sys.executable, *program, *command], cwd=folder, check=True,
                   stdout=subprocess.DEVNULL, env={
                       **os.environ, "OMP_NUM_THREADS": str(threads),
                       "PYTHONPATH": str(script.parent)})
    return time.perf_counter() - start


def verdict(args, n=331, columns=4, pairs=30):
    """evaluate.py, from files to table, beside pytorch-fid, torch-fidelity, prdc and lpips.

    pytorch-fid and torch-fidelity are run on the files of two sets, and their seconds multiplied by
    the pairs of sets that evaluate.py compares. prdc needs features, and gets them for nothing.
    LPIPS is scaled from a few pairs to all.
    """
    state = features._network("inception", features._fid_inception, "random").state_dict()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = [folder / "data" / "train", folder / "data" / "val", *(folder / c for c in "abcd")]
        for seed, where in enumerate(sets):
            photos.save_images([drawn(n, 256, seed)], where)
        two = str(sets[0]), str(sets[2])
        torch.save(state, folder / "inception.pth")
        pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
        with older_scipy():
            _, fid = timed(lambda: calculate_fid_given_paths(two, 50, "cpu", 2048), 1)
        _, kid = timed(lambda: torch_fidelity.calculate_metrics(
            input1=two[0], input2=two[1], kid=True, kid_subset_size=n, cuda=False, cache=False,
            verbose=False, feature_extractor_weights_path=str(folder / "inception.pth")), 1)
        ours = {"cold": evaluation(folder, args.threads, None),
                "warm": evaluation(folder, args.threads, None)}
        for cache in folder.rglob(".cache"):
            cache.rename(folder / f"cache_{cache.parent.name}")
        ours["cold, without LPIPS"] = evaluation(folder, args.threads, WITHOUT_LPIPS)
        ours["warm, without LPIPS"] = evaluation(folder, args.threads, WITHOUT_LPIPS)

    x, y = (torch.randn(n, 2048, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    _, manifold = timed(lambda: prdc.compute_prdc(x.numpy(), y.numpy(), 5), 1)
    some, module = drawn(2 * pairs, 256, 0) / 127.5 - 1, features.lpips_network("alex", "random")
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
    network = features.inception_network("random")
    compare_numbers(features.features(x, network), features.features(y, network))
    for net in ("alex", "squeeze", "vgg")[: args.lpips]:
        compare_lpips(net, x, y)


def compare_inception(images):
    network = features.inception_network("random")
    state = features._network("inception", features._fid_inception, "random").state_dict()
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    reference = pytorch_fid.inception.InceptionV3([3]).eval()
    row(f"Inception features of {len(images)}, pytorch-fid",
        lambda: features.features(images, network),
        lambda: torch.cat([reference(b / 255)[0] for b in images.split(32)])[:, :, 0, 0],
        reference_repeats=3)
    resize = build_resizer("clean")
    row(f"clean resize of {len(images)}, clean-fid (of 255)",
        lambda: torch.cat([features._prepare_clean_fid(b.float()) for b in images.split(32)]) * 128,
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
    module = features.lpips_network(net, "random")

    def pair_by_pair():
        p, q = x[:rows] / 127.5 - 1, y[:columns] / 127.5 - 1
        return torch.stack([torch.cat([module(i[None], j[None]).flatten() for j in q]) for i in p])

    row(f"LPIPS {net} {len(x)} x {len(y)}, pair by pair",
        partial(features.pairwise_lpips, x, y, module), pair_by_pair, repeats=1,
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
    parser.add_argument("--lpips", type=int, default=1, choices=(1, 2, 3),
                        help="how many of alex, squeeze, vgg")
    for what, text in ((memorisation, "AuthPct, C_T and pieces"),
                       (intervals, "of 331 a set, both ways"),
                       (spectra, "of photos, blurred, with grids"),
                       (dinov2, "the full network beside timm's"),
                       (verdict, "beside the tools people use"),
                       (scaling, "memory over the number of points")):
        parser.add_argument(f"--{what.__name__}", action="store_const", dest="what", const=what,
                            default=compare, help=text)
    parser.add_argument("--lpips-memory", type=int, metavar="N", help="N x N at 1024x1024")
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
