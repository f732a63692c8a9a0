"""How good generated images are, and whether they are copies: one table and its figures.

    python evaluate.py                                   # newest checkpoint of the newest run
    python evaluate.py --features efficientnet           # the same without any download
    python evaluate.py --ckpt 10000 50000                # steps of that run, a column each
    python evaluate.py --run runs/NAME --ckpt all        # and the curve over its steps
    python evaluate.py --ckpt runs/*/ckpt_*.pth          # several runs in one table
    python evaluate.py --samples DIR --data data/bedroom # images of any generator
    python evaluate.py --json - > numbers.json           # for shell loops
    python evaluate.py --recover 100                     # and: does it know photos by heart?
    python evaluate.py --few-shot                        # and: FID as few-shot papers report it
    python evaluate.py --generate 1000 --out DIR         # DIR/00000.png, ..., no table
    python evaluate.py --interpolate 3 7 mine.jpg        # from sample to sample to photo, no table
    python evaluate.py --mix 0 1 2 3                     # FastGAN: layouts × styles, no table
    python evaluate.py --recover-photo mine.jpg          # the nearest image to it, no table
    python evaluate.py --export generator.pt2            # for torch alone, no table

Writes report.html to <run>/eval/: the verdict in words, the table, samples and figures (nearest
photos, pieces of photos, PCA, spectra, FID over steps), one file to copy and open anywhere. Beside
it: metrics.json, metrics.csv, table.md and the figures. Features are kept in .cache/ there and in
the data folder. The REAL column compares training with validation photos: the best there is.

--features: efficientnet is EfficientNet-Lite2, which comes with pip; inception, the study's, is
Inception for FID, ResNet-50 and LPIPS for distances between images; dinov2 has DINOv2 for FID.
"""

import functools
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F
from tqdm import tqdm

import metrics
from common import (
    checkpoints,
    cli,
    devices,
    features,
    figures,
    files,
    imagefiles,
    page,
    photos,
    pictures,
    recovery,
    report,
    rows,
    sampling,
    verdict,
)
from common.run import versions

DISTANCES = {"cosine": "all embeddings", "lpips": "all lpips"}  # between single images: the spaces


# What is judged ------------------------------------------------------------------------------


class Column(NamedTuple):
    """What is judged, a column of the table: a checkpoint's samples or a folder of images."""

    name: str
    home: Path  # the run folder or the folder of images: eval/ goes there
    size: int  # of its images, in pixels
    key: str  # a hash of what determines its images
    fit: str | None = None  # how a checkpoint's training photos were made square
    checkpoint: dict | None = None  # without its networks
    paths: list[Path] | None = None  # of a folder's images


def checkpoint_columns(args):
    """A Column of each checkpoint that --ckpt and --run name, without repeats."""
    if args.run and not Path(args.run).is_dir():
        cli.fail(f"--run {args.run} is not a folder")
    columns = []
    for path in dict.fromkeys(checkpoints.named(args.run, args.ckpt)):
        checkpoint = checkpoints.read(path)
        if checkpoint["model"] not in checkpoints.GENERATORS:
            cli.fail(f"{path}: unknown model {checkpoint['model']}")
        for large in ("networks", "optimizers", "sampler"):  # read again when it samples
            checkpoint.pop(large, None)
        step = checkpoints.known_step(checkpoint)
        step = path.stem if step is None else step
        columns.append(Column(f"{checkpoint['model']} {step}", path.parent,
                              checkpoint["config"]["image_size"], files.file_sha256(path),
                              checkpoint["fit"], checkpoint))
    return columns


def folder_column(folder, size):
    """The Column of a folder of images; without --size they must be of one size."""
    paths = imagefiles.find(folder)
    if len(paths) < 2:
        cli.fail(f"--samples {folder} holds {len(paths)} images; at least 2 are needed")
    sizes, hashes = {}, []
    for path in paths:
        try:
            sizes.setdefault(imagefiles.size(path), path)
            hashes.append(files.file_sha256(path))
        except (OSError, ValueError) as error:
            cli.fail(f"{path} cannot be read: {imagefiles.reason(error)}")
    if len(sizes) > 1 and not size:
        (one, a), (other, b) = list(sizes.items())[:2]
        cli.fail(f"images of several sizes ({a} is {one[0]}×{one[1]}, {b.name} "
                 f"{other[0]}×{other[1]}); --size N brings all to one")
    return Column(files.readable(Path(folder).resolve().name), Path(folder), min(next(iter(sizes))),
                  files.sha256(json.dumps(hashes)), paths=paths)


def unique_names(columns):
    """The columns, those of a model with several runs named for their folders, too, and then those
    of one name numbered."""
    homes = {(column.checkpoint["model"], column.home.resolve())
             for column in columns if column.checkpoint}
    runs, unique = Counter(model for model, _ in homes), []
    seen = Counter(map(files.slug, ["REAL", "training photos", "Which is best?", "No verdict"]))
    for column in columns:
        name = column.name
        if column.checkpoint and runs[column.checkpoint["model"]] > 1:
            name = f"{column.home.resolve().name} {name}"
        seen[files.slug(name)] += 1
        number = f" ({seen[files.slug(name)]})" if seen[files.slug(name)] > 1 else ""
        unique.append(column._replace(name=name + number))
    return unique


def common_data(columns):
    """The data folder that the columns' checkpoints were trained on; data/bedroom for others."""
    trained = [column.checkpoint["args"] if column.checkpoint else {} for column in columns]
    folders = {str(args.get("data", "data/bedroom")) for args in trained}
    if len({Path(folder).resolve() for folder in folders}) > 1:
        cli.fail(f"trained on different data ({', '.join(sorted(folders))}): choose by --data")
    return min(folders)


# Against what --------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """The photos that all columns are compared with, at one size and in equal number."""

    data: Path
    train: features.ImageSet
    validation: features.ImageSet
    paths: list[Path]  # of the training photos
    n: int
    size: int
    fit: str
    seed: int
    caption: str
    margins: str  # what ± is in the table
    out: Path


def compare(args, columns):
    """The Comparison that the arguments and the columns ask for."""
    data = Path(args.data or common_data(columns))
    size = args.size or min(column.size for column in columns)
    fits = {column.fit for column in columns if column.fit}
    fit = args.fit or (fits.pop() if len(fits) == 1 else "square")
    train, validation = (features.photo_set(data, split, size, fit) for split in ("train", "val"))
    n = min(train.n, validation.n, args.n or train.n,
            *(len(column.paths) for column in columns if column.paths))
    if n < 2:
        cli.fail(f"sets of {n} are too small to compare; at least 2 images each")
    if args.show and max(args.show) >= n:
        cli.fail(f"--show {max(args.show)}: the samples are 0 to {n - 1}")
    if args.few_shot:
        for column in columns:
            if column.paths and len(column.paths) < args.few_shot:
                cli.fail(f"--few-shot {args.few_shot}: {column.home} has {len(column.paths)} "
                         f"images; --few-shot {len(column.paths)} takes them all")
    few = photos.draw_rows(n, features.FEW, args.seed)
    for split, images in (("train", train), ("val", validation)):
        if args.recover and args.recover > images.n:
            cli.fail(f"--recover {args.recover}: {data}/{split} has {images.n} photos")
        # Sets are compared at equal size; copies are looked for among all training photos.
        images.choose(photos.draw_rows(images.n, n, args.seed), few)
    caption = (f"{data.resolve().name}, {n} images a set at {size}×{size} ({fit}), seed "
               f"{args.seed}; judged by {features.KINDS[args.features][0]}")
    margins = ("± half a 95% interval" if 3 * n <= metrics.VIEWED else
               f"± half a 95% interval; above {metrics.VIEWED // 3:,} images only pieces and "
               "spectra have one")
    return Comparison(data, train, validation, photos.split_files(data, "train"), n, size, fit,
                      args.seed, caption, margins, Path(args.out or columns[0].home / "eval"))


def limit_of(column):
    """How many of the training photos, the first ones, a column was trained on at most."""
    limit = column.checkpoint and column.checkpoint["args"].get("limit")
    return limit if isinstance(limit, int) and limit > 0 else sys.maxsize


def trained_on_others(columns, compared):
    """The names of the columns that were trained on other photos, with a warning of each, and of
    those trained on photos of another shape."""

    @functools.cache
    def fingerprint_of(size, fit, limit):
        images, fingerprint = photos.load_images(compared.data, "train", size, fit)
        return fingerprint if limit >= len(images) else files.sha256(images[:limit].numpy())

    others = [column.name for column in columns if column.fit not in (None, compared.fit)]
    if others:
        cli.warn(f"--fit {compared.fit} for all photos, but {', '.join(others)} trained on "
                 f"{'crop' if compared.fit == 'square' else 'square'} ones")
    names = []
    for column in columns:
        known = column.checkpoint and column.checkpoint["data"]  # not of a published checkpoint
        if known and known != fingerprint_of(column.size, column.fit, limit_of(column)):
            names.append(column.name)
            cli.warn(f"{column.name} was trained on other photos than {compared.data}/train: its "
                     "train rows and privacy loss say nothing of copying")
    return names


def sample_set(column, compared, n, device):
    """(the ImageSet of n samples of a column, their labels)."""
    seed, size = compared.seed, compared.size
    if column.checkpoint:
        key, labels = [column.key, seed, n, size], [f"sample {row}" for row in range(n)]
        path = column.checkpoint["path"]
        generator = functools.cache(lambda: checkpoints.load_generator(path, device))

        def originals(rows):
            # The generator is made here, not in the thread that samples: it may draw numbers.
            return sampling.samples(generator(), seed, rows)
    else:
        key = [column.key, seed, n, size, compared.fit]
        paths = [column.paths[row] for row in photos.draw_rows(len(column.paths), n, seed)]
        labels = [files.readable(path.relative_to(column.home).as_posix()) for path in paths]

        def originals(rows):
            return photos.decoded([paths[row] for row in rows], size, compared.fit)

    def batches(rows):
        return photos.ahead(features.resized(batch, size) for batch in originals(rows))

    samples = features.ImageSet(column.name, files.sha256(json.dumps(key)), n, batches,
                                compared.out / ".cache")
    return samples.choose(torch.arange(n), photos.draw_rows(n, features.FEW, seed)), labels


# Measured: nothing is drawn here -------------------------------------------------------------


class Measured(NamedTuple):
    """A column of the table, and what its figures show."""

    result: dict  # as report.py describes it
    spectra: dict  # {name: logarithm of the mean power spectrum}
    points: dict  # {name: embeddings in the training photos' principal components, (n, 2)}
    images: dict = {}  # {number: (label, image)} of the samples in figures
    near: dict = {}  # {distance: (Neighbors, the samples' nearest training photos; those to show)}
    pieces: dict = {}  # as figures.pieces takes them
    cells: int = 0  # along a side of an image
    recovered: list = ()  # rows of (label, image)


def measure_real(compared, networks, chosen):
    """(REAL, validation photos in the place of samples; the training embeddings' principal
    components)."""
    splits = {"train": compared.train, "test": compared.validation}
    spaces = features.spaces(networks, *splits.values())
    values, intervals = rows.numbers(chosen, spaces, real=True)
    result = {"name": "REAL", "kind": "real", "n": compared.n, **values, "intervals": intervals}
    embeddings = {split: images.features["embeddings"][images.rows]
                  for split, images in splits.items()}
    components = features.principal_components(embeddings["train"])
    spectra = {name: metrics.log_spectrum(images.features["spectra"]) for name, images in zip(
        ("training photos", "REAL"), splits.values(), strict=True)}
    return Measured(result, spectra, {split: components.project(x)
                                      for split, x in embeddings.items()}), components


def measure(column, compared, networks, chosen, components, args):
    """The numbers of a column, and what its figures will show."""
    samples, labels = sample_set(column, compared, compared.n, networks.device)
    spaces = features.spaces(networks, compared.train, compared.validation, samples)
    if args.few_shot:
        spaces["few-shot"] = few_shot(column, compared, networks, args.few_shot)
    recovered = ()
    if args.recover:
        spaces["recovery"], recovered = recover(column, compared, networks, args.recover)
    values, intervals = rows.numbers(chosen, spaces)
    near = nearest_photos(spaces, args.show)
    sides, nearest = metrics.piece_sides(*spaces["cells"])
    pieces = features.piece_sources(compared.train, samples, sides, nearest)
    result = {"name": column.name, "kind": "judged", "path": str(column.home)}
    if column.checkpoint:
        result |= {"path": str(column.checkpoint["path"]), "model": column.checkpoint["model"]}
        step = checkpoints.known_step(column.checkpoint)
        result |= {} if step is None else {"step": step}
    result |= {"n": compared.n, **values, "intervals": intervals,
               "suspects": suspects(spaces, near, labels, compared.paths)}
    shown = sorted({*range(min(page.SAMPLES, compared.n)), *pieces,
                    *(i for _, numbers in near.values() for i in numbers),
                    *(suspect["sample"] for found in result["suspects"].values()
                      for suspect in found[:page.SUSPECTS])})
    images = torch.cat(list(samples.batches(torch.tensor(shown))))
    return Measured(
        result, {column.name: metrics.log_spectrum(samples.features["spectra"])},
        {"synthetic": components.project(samples.features["embeddings"])},
        {i: (labels[i], image) for i, image in zip(shown, images, strict=True)}, near, pieces,
        math.isqrt(sides.shape[1]), recovered)


def few_shot(column, compared, networks, n):
    """Features of all photos that a column was trained on, and of n samples."""
    name = "features" if "features" in networks.names else "embeddings"
    samples, _ = sample_set(column, compared, n, networks.device)
    samples.load([name], networks)
    return compared.train.features[name][:limit_of(column)], samples.features[name]


def nearest_photos(spaces, show):
    """{distance: (Neighbors, the four nearest training photos of each sample; the numbers of the
    samples to show: those given, or the four nearest to a photo)}."""
    found = {}
    for name, space in DISTANCES.items():
        if space in spaces:
            train, _, samples = spaces[space]
            near = metrics.nearest_neighbors(samples, train, min(4, len(train)))
            order = near.distances[:, 0].argsort(stable=True)
            found[name] = near, show or order[:4].tolist()
    return found


def suspects(spaces, near, labels, paths):
    """{distance: the suspected copies, the nearest first}, for the JSON."""
    found = {}
    for name, (neighbors, _) in near.items():
        order = neighbors.distances[:, 0].argsort(stable=True)
        suspected = metrics.suspected_copies(*spaces[DISTANCES[name]])[order]
        found[name] = [
            {"sample": i, "name": labels[i],
             "photo": files.readable(paths[neighbors.indices[i, 0]].name),
             "distance": neighbors.distances[i, 0].item()} for i in order[suspected].tolist()]
    return found


def recover(column, compared, networks, n):
    """([errors of n training photos, of n validation photos], rows of labelled images)."""
    generator = checkpoints.load_generator(column.checkpoint["path"], networks.device)
    side = max(64, min(networks.lpips_size, column.size))

    def distance(images, targets):
        error = (images - targets).square().flatten(1).mean(1)
        if not networks.lpips:
            return error
        images, targets = (F.interpolate(x, (side, side), mode="bilinear", antialias=True)
                           for x in (images, targets))
        return error + networks["lpips"](images, targets).flatten()

    sets = {}
    for split, limit in (("train", limit_of(column)), ("val", sys.maxsize)):
        images, _ = photos.load_images(compared.data, split, column.size, column.fit)
        images = images[:limit]
        sets[split] = images[photos.draw_rows(len(images), n, compared.seed)]
    with tqdm(total=sum(map(len, sets.values())), desc=f"recovering by {column.name}", unit="img",
              disable=None, leave=False) as bar:
        return recovery.compare(generator, sets, distance, compared.seed, bar.update)


# Drawn: nothing is measured here -------------------------------------------------------------


def draw(real, judged, photo, compared, components, kind):
    """All figures, as figures.evaluation gives them back."""
    train, validation = (rows.name_of(f"fid_{side}", kind)
                         for side in ("train", "validation"))
    panels = [(rows.label_of("FID", kind), {"train": train, "validation": validation},
               real.result[validation]),
              ("adversarial accuracy", {"train": "aa_train", "test": "aa_test"},
               real.result["aa_train"])]
    return figures.evaluation(real, judged, photo, components.shares, panels, compared.caption,
                              compared.out)


def main(args):
    # For the thread that samples, too: features must not switch its precision on and off.
    torch.backends.cudnn.allow_tf32 = False
    device = devices.choose_device(args.device)
    if args.study and args.features != "inception":
        cli.fail(f"--study: the study's numbers are Inception's, not --features {args.features}")
    columns = unique_names([folder_column(folder, args.size) for folder in args.samples]
                           if args.samples else checkpoint_columns(args))
    if pictures.wanted(args):
        return pictures.draw(args, columns, device)
    if args.aspect:
        cli.fail("--aspect is for --generate, --interpolate, --mix and --recover-photo")
    if args.recover and args.samples:
        cli.fail("--recover needs checkpoints, and goes with no --samples")

    compared = compare(args, columns)
    # Each image once through each network; from its features the numbers; then what is shown.
    networks = features.FeatureNetworks(args.features, device, args.resize,
                                        max(64, min(args.lpips_size, compared.size)))
    chosen = rows.rows(args.features)
    if args.few_shot:
        chosen.append(rows.few_shot(args.features, args.few_shot, compared.size))
    measured = [*chosen, *rows.DETAILS]
    real, components = measure_real(compared, networks, measured)
    others = trained_on_others(columns, compared)
    compared.out.mkdir(parents=True, exist_ok=True)
    judged = [measure(column, compared, networks, measured, components, args) for column in columns]
    for found in judged:
        found.result["other_photos"] = found.result["name"] in others
    results = [found.result for found in (real, *judged)] + (report.STUDY if args.study else [])
    settings = {**{key: getattr(compared, key) for key in ("n", "size", "fit", "seed")},
                "validation_photos": compared.validation.n,
                "data": str(compared.data), "features": args.features,
                "resize": args.resize if args.features == "inception" else None,
                "lpips_size": networks.lpips_size if networks.lpips else None,
                "recover": args.recover, "few_shot": args.few_shot, "level": 0.95,
                "versions": versions()}
    words, caption = verdict.verdict(results, settings), f"{compared.caption}; {compared.margins}"
    report.write(chosen, results, words, verdict.markdown(words), settings, caption, compared.out,
                 args.json)

    def photo(j):  # of training
        path = compared.paths[j]
        return files.readable(path.name), photos.decode(path, compared.size, compared.fit)

    drawn = draw(real, judged, photo, compared, components, args.features)
    page.write(compared.out / "report.html", caption, verdict.parts(words), chosen, results, judged,
               photo, drawn)
    cli.say(f"{compared.out}/report.html", sys.stderr if args.json == "-" else sys.stdout)


if __name__ == "__main__":
    parser = cli.Parser(__doc__)
    group = parser.add_argument_group("what to judge")
    group.add_argument("--ckpt", nargs="+", default=["latest"], metavar="CKPT",
                       help="steps of the run, latest, all, or checkpoint files of any runs")
    group.add_argument("--run", help="run folder (default: the newest in runs/)")
    group.add_argument("--samples", nargs="+", metavar="DIR",
                       help="folders of images instead, of one size or with --size")
    group.add_argument("--data", help="data folder (default: the checkpoint's, or data/bedroom)")
    group = parser.add_argument_group("how")
    group.add_argument("--n", type=cli.count, help="images a set (default: all of the smallest)")
    group.add_argument("--size", type=cli.count, metavar="N",
                       help="image side, pixels (default: the smallest of what is judged)")
    group.add_argument("--fit", choices=["square", "crop"],
                       help="stretch or crop photos (default: as the checkpoints' photos were)")
    group.add_argument("--seed", type=cli.seed, default=0, metavar="N", help="random seed")
    group.add_argument("--features", choices=list(features.KINDS), default="inception",
                       help="efficientnet, which needs no download; inception, the study's; "
                       "dinov2")
    group.add_argument("--resize", choices=["bilinear", "clean"], default="bilinear",
                       help="to Inception's 299: as pytorch-fid or as clean-fid does")
    group.add_argument("--lpips-size", type=cli.number(int, 64), default=256, metavar="N",
                       help="larger images are shrunk to it for LPIPS, pixels")
    group.add_argument("--recover", type=cli.number(int, 2), metavar="N",
                       help="also look for the latents of N training and N validation photos, 200 "
                       "passes each: with N 100 and FastGAN at 1024, a day or two on a CPU")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    group.add_argument("--few-shot", type=cli.number(int, 2), nargs="?", const=5000, metavar="N",
                       help="also the FID of N samples (5000) against all training "
                       "photos, as papers on few-shot generators report it")
    group = parser.add_argument_group("what to write")
    group.add_argument("--out", help="folder (default: eval/ beside what is judged)")
    group.add_argument("--json", metavar="PATH|-", help="also write the JSON; -: alone on stdout")
    group.add_argument("--show", type=cli.seed, nargs="+", metavar="I",
                       help="samples in the neighbour figures, by number (default: the nearest)")
    group.add_argument("--study", action="store_true", help="add the study's published columns")
    group = parser.add_argument_group(
        "pictures instead of a table",
        "a POINT is a sample's number, or a photo's file (./7 if it is named 7), whose nearest "
        "image is looked for: a minute for each at 256×256 on a CPU core")
    group.add_argument("--generate", type=cli.count, metavar="N",
                       help="N samples as PNG files into the empty folder of --out")
    group.add_argument("--interpolate", type=pictures.point, nargs="+", metavar="POINT",
                       help="the way from point to point, as a video (a GIF without ffmpeg) and as "
                       "a strip")
    group.add_argument("--mix", type=pictures.point, nargs="+", metavar="POINT",
                       help="of FastGAN: a grid of these points' layouts and styles")
    group.add_argument("--recover-photo", type=pictures.photo, nargs="+", metavar="FILE",
                       help="photos, and the nearest images that it can make")
    group.add_argument("--aspect", type=pictures.aspect, metavar="photos|W:H",
                       help="the pictures' shape: the training photos' or this one (default: "
                       "squares); --size is their shorter side")
    group.add_argument("--export", metavar="FILE.pt2",
                       help="the generator as a file for torch.export.load, which needs nothing of "
                       "this project")
    with cli.system_errors("--size, --lpips-size or --n"):
        main(parser.parse_args())
