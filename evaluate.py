"""How good generated images are, and whether they are copies: one table and its figures.

    python evaluate.py                                   # newest checkpoint of the newest run
    python evaluate.py --ckpt 10000 50000                # steps of that run, a column each
    python evaluate.py --run runs/NAME --ckpt all        # and the curve over its steps
    python evaluate.py --ckpt runs/*/ckpt_*.pth          # several runs in one table
    python evaluate.py --samples DIR --data data/bedroom # images of any generator
    python evaluate.py --features dinov2                 # FD-DINOv2 in the place of FID
    python evaluate.py --json - > numbers.json           # for shell loops
    python evaluate.py --recover 100                     # and: does it know photos by heart?
    python evaluate.py --generate 1000 --out DIR         # DIR/00000.png, ..., no table
    python evaluate.py --interpolate 3 7                 # from sample 3 to sample 7, no table
    python evaluate.py --mix 0 1 2 3                     # FastGAN: layouts × styles, no table

Writes metrics.json, metrics.csv, table.md, table.png and figures (nearest photos, pieces of photos,
PCA, spectra, FID over steps) to <run>/eval/. Features are kept in .cache/ there and in the
data folder. The REAL column compares training with validation photos: the best there is.
"""

import functools
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

import metrics
from common import checkpoints, cli, devices, features, files, photos, report, sampling
from common.run import versions
from nets import DCGANGenerator, FastGANGenerator, GANGenerator, VAEDecoder

GENERATORS = {"gan": GANGenerator, "dcgan": DCGANGenerator, "vae": VAEDecoder,
              "fastgan": FastGANGenerator}
BATCH = 32  # images on their way at once
FEW = 500  # images a set at most whose pieces and spectra are compared: they are large
FEATURES = {"inception": ("fid", "kid"), "dinov2": ("fd_dinov2", "kd_dinov2")}  # names of rows


# What to judge -------------------------------------------------------------------------------


class Column(NamedTuple):
    """What is judged, a column of the table: a checkpoint's samples or a folder of images."""

    name: str
    home: Path  # the run folder or the folder of images: eval/ goes there
    size: int  # of its images, in pixels
    key: str  # a hash of what determines its images
    fit: str | None = None  # how a checkpoint's training photos were made square
    checkpoint: dict | None = None  # without its networks
    paths: list[Path] | None = None  # of a folder's images


def checkpoint_paths(run, wanted):
    """The checkpoints that `wanted` names: any files, and steps, latest or all of a run folder."""
    found = None
    for name in wanted:
        if not (name in ("latest", "all") or name.isdecimal()):
            yield Path(name)
            continue
        if found is None:
            run = run or checkpoints.newest_run("runs")
            found = {checkpoints.step_of(path): path for path in checkpoints.find_all(run)}
            if not found:
                cli.fail(f"{run} has no checkpoint")
        if name == "all":
            yield from found.values()
        elif name == "latest":
            yield found[max(found)]
        elif int(name) in found:
            yield found[int(name)]
        else:
            steps = ", ".join(map(str, found))
            cli.fail(f"{run} has no checkpoint of step {name}; there are {steps}")


def checkpoint_columns(args):
    """A Column of each checkpoint that --ckpt and --run name, without repeats."""
    if args.run and not Path(args.run).is_dir():
        cli.fail(f"--run {args.run} is not a folder")
    columns = []
    for path in dict.fromkeys(checkpoint_paths(args.run, args.ckpt)):
        checkpoint = checkpoints.read(path)
        if checkpoint["model"] not in GENERATORS:
            cli.fail(f"{path}: unknown model {checkpoint['model']}")
        for large in ("networks", "optimizers", "sampler"):  # read again when it samples
            checkpoint.pop(large, None)
        columns.append(Column(f"{checkpoint['model']} {checkpoint['step']}", path.parent,
                              checkpoint["config"]["image_size"], files.file_sha256(path),
                              checkpoint["fit"], checkpoint))
    return columns


def folder_column(folder, size):
    """The Column of a folder of images; without --size they must be of one size."""
    paths = photos.image_files(folder)
    if len(paths) < 2:
        cli.fail(f"--samples {folder} holds {len(paths)} images; at least 2 are needed")
    sizes, hashes = {}, []
    for path in paths:
        try:
            with Image.open(path, formats=files.IMAGE_FORMATS) as image:
                sizes.setdefault(image.size, path)
            hashes.append(files.file_sha256(path))
        except Exception as error:  # Pillow answers broken bytes with nearly every type there is
            cli.fail(f"{path} cannot be read: {error}")
    if len(sizes) > 1 and not size:
        (one, a), (other, b) = list(sizes.items())[:2]
        cli.fail(f"images of several sizes ({a} is {one[0]}×{one[1]}, {b.name} "
                 f"{other[0]}×{other[1]}); --size N brings all to one")
    return Column(Path(folder).resolve().name, Path(folder), min(next(iter(sizes))),
                  files.sha256(json.dumps(hashes)), paths=paths)


def slug(name):
    """A column's name as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name)


def unique_names(columns):
    """The columns, those of one name told apart by their folders, and then by numbers."""
    names, unique = Counter(slug(column.name) for column in columns), []
    seen = Counter(["REAL", "training-photos"])  # are there already
    for column in columns:
        name = column.name
        if column.checkpoint and names[slug(name)] > 1:
            name = f"{column.home.resolve().name} {name}"
        seen[slug(name)] += 1
        number = f" ({seen[slug(name)]})" if seen[slug(name)] > 1 else ""
        unique.append(column._replace(name=name + number))
    return unique


def common_data(columns):
    """The data folder that the columns' checkpoints were trained on; data/bedroom for others."""
    trained = [column.checkpoint["args"] if column.checkpoint else {} for column in columns]
    folders = {str(args.get("data", "data/bedroom")) for args in trained}
    if len({Path(folder).resolve() for folder in folders}) > 1:
        cli.fail(f"trained on different data ({', '.join(sorted(folders))}): choose by --data")
    return min(folders)


# Photos and samples, and their numbers -------------------------------------------------------


def limit_of(column):
    """How many of the training photos, the first ones, a checkpoint was trained on at most."""
    limit = column.checkpoint["args"].get("limit")
    return limit if isinstance(limit, int) and limit > 0 else sys.maxsize


def photo_set(data, split, size, fit):
    """The ImageSet of a split's photos; they are read for each pass, not held."""
    images, fingerprint = photos.load_images(data, split, size, fit)

    def batches(rows):
        images, _ = photos.load_images(data, split, size, fit)
        return photos.ahead(images[part] for part in rows.split(BATCH))

    return features.ImageSet(split, fingerprint, len(images), batches, Path(data) / ".cache")


def load_generator(checkpoint, device):
    """The network to sample from of a checkpoint, in evaluation mode."""
    try:
        with torch.device("meta"):  # no memory for a size that the file only claims
            generator = GENERATORS[checkpoint["model"]](**checkpoint["config"])
    except (TypeError, ValueError) as error:
        cli.fail(f"{checkpoint['path']}: {error}")
    state = checkpoints.read(checkpoint["path"])["sampler"]
    checkpoints.load_weights(generator, state, checkpoint["path"], assign=True)
    generator = generator.to(device).float().eval()
    return sampling.estimate_batch_norm(generator) if checkpoint["published"] else generator


class Comparison:
    """The photos, and what is measured of samples against them at one size and in equal number."""

    def __init__(self, args, data, columns, device):
        self.args, self.data, self.device = args, data, device
        self.size = args.size or min(column.size for column in columns)
        fits = {column.fit for column in columns if column.fit}
        self.fit = args.fit or (fits.pop() if len(fits) == 1 else "square")
        self.train, self.validation = (photo_set(data, split, self.size, self.fit)
                                       for split in ("train", "val"))
        self.photo_paths = photos.split_files(data, "train")
        self.n = min(self.train.n, self.validation.n, args.n or self.train.n,
                     *(len(column.paths) for column in columns if column.paths))
        if self.n < 2:
            cli.fail(f"sets of {self.n} are too small to compare; at least 2 images each")
        if args.show and max(args.show) >= self.n:
            cli.fail(f"--show {max(args.show)}: the samples are 0 to {self.n - 1}")
        for split, images in (("train", self.train), ("val", self.validation)):
            if args.recover and args.recover > images.n:
                cli.fail(f"--recover {args.recover}: {data}/{split} has {images.n} photos")
        self.out = Path(args.out or columns[0].home / "eval")
        self.note = ("random features: not comparable with published numbers"
                     if args.weights == "random" else None)
        self.caption = (f"{Path(data).resolve().name}, {self.n} images a set at {self.size}×"
                        f"{self.size} ({self.fit}), seed {args.seed}"
                        + ("; DINOv2 features" if args.features == "dinov2" else "")
                        + (f"; {self.note}" if self.note else ""))
        lpips_size = max(64, min(args.lpips_size, self.size))  # AlexNet needs 35
        self.networks = features.FeatureNetworks(args.weights, device, args.resize, args.lpips,
                                                 lpips_size)
        self.distances = {  # name: (network, suffix of its rows, distance)
            "lpips": ("lpips", "_lpips", lambda x, y: features.pairwise_lpips(
                x, y, self.networks["lpips"])),
            "cosine": ("resnet", "", metrics.pairwise_cosine)}

    def warn(self, columns):
        """Of columns that were trained on other photos, or on photos of another shape."""
        others = [column.name for column in columns if column.fit not in (None, self.fit)]
        if others:
            cli.warn(f"--fit {self.fit} for all photos, but {', '.join(others)} trained on "
                     f"{'crop' if self.fit == 'square' else 'square'} ones")
        for column in columns:
            if (column.size, column.fit) != (self.size, self.fit):
                continue
            fingerprint, limit = self.train.key, limit_of(column)
            if limit < self.train.n:
                images, _ = photos.load_images(self.data, "train", self.size, self.fit)
                fingerprint = files.sha256(images[:limit].numpy())
            if column.checkpoint["data"] not in (None, fingerprint):
                cli.warn(f"{column.name} was trained on other photos than {self.data}/train: its "
                         "train rows and privacy loss say nothing of copying")

    def sample_set(self, column):
        """(the ImageSet of a column's samples, their labels)."""
        seed, n = self.args.seed, self.n
        if column.checkpoint:
            key, labels = [column.key, seed, n, self.size], [f"sample {row}" for row in range(n)]
            generator = functools.cache(lambda: load_generator(column.checkpoint, self.device))

            def originals(rows):
                # The generator is made here, not in the thread that samples: it may draw numbers.
                return sampling.samples(generator(), seed, rows, BATCH)
        else:
            key = [column.key, seed, n, self.size, self.fit]
            paths = [column.paths[row] for row in photos.draw_rows(len(column.paths), n, seed)]
            labels = [path.name for path in paths]

            def originals(rows):
                return photos.decoded([paths[row] for row in rows], self.size, self.fit)

        def batches(rows):
            return photos.ahead(features.resized(batch, self.size) for batch in originals(rows))

        key = files.sha256(json.dumps(key))
        return features.ImageSet(column.name, key, n, batches, self.out / ".cache"), labels

    def load_photos(self):
        """Features, lists of neighbours and components of the photos."""
        sets = {"T": self.train, "V": self.validation}
        # Sets are compared at equal size; copies are looked for among all training photos.
        self.rows = [photos.draw_rows(images.n, self.n, self.args.seed) for images in sets.values()]
        few = photos.draw_rows(self.n, FEW, self.args.seed)
        self.few_rows = [*(rows[few] for rows in self.rows), few]
        self.few_sets = [images.subset(rows) for images, rows in zip(
            sets.values(), self.few_rows, strict=False)]
        self.lists = {name: self.neighbors(name, ["TT", "VV", "TV"], sets, self.train.cache)
                      for name in self.distances}
        self.points, self.resnet = (
            [images.features[space][rows]
             for images, rows in zip(sets.values(), self.rows, strict=True)]
            for space in (self.args.features, "resnet"))
        self.spectra = {}
        self.powers = [self.power(name, images) for name, images in
                       zip(("training photos", "REAL"), self.few_sets, strict=True)]
        self.pca = None
        if self.n > 2:
            from sklearn.decomposition import PCA  # slow to import

            self.pca = PCA(2, svd_solver="full").fit(self.resnet[0])

    def power(self, name, images):
        """The power spectra of a set; their mean is kept for the figure."""
        images.load(["spectrum"], self.networks)
        self.spectra[name] = metrics.log_spectrum(images.features["spectrum"])
        return images.features["spectrum"]

    def neighbors(self, name, pairs, sets, cache):
        """{pair: Neighbors by a distance} of pairs of sets and the reverse of each.

        "TF" is of the training photos T among the samples F, V are the validation photos. sets:
        {letter: ImageSet}, the samples last. What is by LPIPS is cached.
        """
        space, _, distance = self.distances[name]
        key = [self.networks.keys[space], pairs, self.n, metrics.NEIGHBORS_KEPT,
               *(images.key for images in sets.values())]
        path = features.cache_path(cache, f"neighbours_{space}", key)
        lists = features.read_cache(path) if space == "lpips" else None
        if lists is None:
            # The samples first: what else is missing of their features comes in the same pass.
            for images in reversed(sets.values()):
                spaces = {self.args.features, "resnet", space}
                if space == "lpips" and images.n == len(self.few_rows[0]):  # all in one pass
                    spaces |= {"pieces", "spectrum"}
                images.load(spaces, self.networks)
            points = {letter: images.features[space] for letter, images in sets.items()}
            bar = tqdm(pairs, desc=f"neighbours by {name}", disable=None, leave=False)
            lists = metrics.neighbor_lists(bar, points, self.n, distance)
            if space == "lpips":
                features.write_cache(path, {pair: tuple(found) for pair, found in lists.items()})
        return {pair: metrics.Neighbors(*found) for pair, found in lists.items()}

    def pieces(self, samples):
        """[the nearest training photos to each cell of the samples, the nearest validation photos],
        as Neighbors, cached."""
        sets = [*self.few_sets, samples]
        path = features.cache_path(samples.cache, "pieces", [
            self.networks.keys["pieces"], metrics.NEIGHBORS_KEPT, *(images.key for images in sets)])
        lists = features.read_cache(path)
        if lists is None:
            for images in reversed(sets):
                images.load(["pieces", "spectrum"], self.networks)
            lists = []
            k = min(metrics.NEIGHBORS_KEPT, len(self.few_rows[0]))
            for images in self.few_sets:
                photo_cells = images.features["pieces"].to(self.device)
                bar = tqdm(samples.features["pieces"].split(8), disable=None, leave=False,
                           desc=f"pieces near {images.name}")
                parts = [metrics.nearest_pieces(part.flatten(0, 1), photo_cells, k)
                         for part in bar]
                distances, indices = map(torch.cat, zip(*parts, strict=True))
                lists.append((distances.float(), indices.int()))
            features.write_cache(path, lists)
        return [metrics.Neighbors(distances.double(), indices.long())
                for distances, indices in lists]

    def real(self):
        """The REAL column: validation photos in the place of samples."""
        train, validation = self.points
        measures = metrics.distribution_measures({"validation": train}, validation,
                                                 *FEATURES[self.args.features])
        measures += [metrics.spectrum_measure(*self.powers)]
        measures += [metrics.neighbor_measure(self.lists[name], self.rows, suffix, "V")
                     for name, (_, suffix, _) in self.distances.items()]
        bar = tqdm(measures, desc="numbers of REAL", disable=None, leave=False)
        result = {"name": "REAL", "kind": "real", **metrics.numbers(bar, self.n)}
        sets = dict(zip(("train", "test"), self.resnet, strict=True))
        self.draw_components("REAL", [(f"train + test, AA {result['aa_train']:.2f}", sets)])
        return result

    def judge(self, column):
        """The numbers of a column; draws its figures."""
        samples, labels = self.sample_set(column)
        sets = {"T": self.train, "V": self.validation, "F": samples}
        everything = [torch.arange(images.n) for images in sets.values()]
        result = {"name": column.name, "kind": "judged", "path": str(column.home)}
        if column.checkpoint:
            result |= {key: column.checkpoint[key] for key in ("model", "step")}
            result["path"] = str(column.checkpoint["path"])
        measures, suspects = [], {}
        for name, (_, suffix, _) in self.distances.items():
            lists = self.lists[name] | self.neighbors(name, ["FF", "TF", "VF"], sets, samples.cache)
            measures += [metrics.neighbor_measure(lists, [*self.rows, everything[2]], suffix),
                         metrics.copy_measure(lists, everything, suffix)]
            nearest, suspected = lists["FT"], metrics.suspected_copies(lists, *everything)
            order = nearest.distances[:, 0].argsort(stable=True)
            found = order[suspected[order]].tolist()
            suspects[name] = [{"sample": i, "name": labels[i],
                               "photo": self.photo_paths[nearest.indices[i, 0]].name,
                               "distance": nearest.distances[i, 0].item()} for i in found]
            self.draw_neighbours(name, column, samples, labels, nearest, found)
        few = samples.subset(self.few_rows[2])
        pieces, rows = self.pieces(few), [torch.arange(len(some)) for some in self.few_rows]
        measures += [metrics.copying_measure(*self.resnet, samples.features["resnet"]),
                     metrics.spectrum_measure(self.powers[0], self.power(column.name, few)),
                     metrics.piece_measure(*pieces, rows, features.CELLS**2)]
        self.draw_pieces(column, samples, labels,
                         *metrics.pieces_of_neighbors(*pieces, *rows, features.CELLS**2))
        references = dict(zip(("train", "validation"), self.points, strict=True))
        measures += metrics.distribution_measures(
            references, samples.features[self.args.features], *FEATURES[self.args.features])
        bar = tqdm(measures, desc=f"numbers of {column.name}", disable=None, leave=False)
        result |= {**metrics.numbers(bar, self.n), "suspects": suspects}
        if self.args.recover:
            result = self.recover(column, result)
        self.draw_components(column.name, [
            (f"{label} + synthetic, AA {result[f'aa_{label}']:.2f}",
             {label: real, "synthetic": samples.features["resnet"]})
            for label, real in zip(("train", "test"), self.resnet, strict=True)])
        return result

    def recover(self, column, result):
        """The result with the rows of --recover; draws its figure."""
        generator = load_generator(column.checkpoint, self.device).requires_grad_(False)
        lpips = self.networks["lpips"] if self.args.weights == "pretrained" else None
        side = max(64, min(self.args.lpips_size, column.size))

        def distance(images, targets):
            error = (images - targets).square().flatten(1).mean(1)
            if not lpips:
                return error
            images, targets = (F.interpolate(x, (side, side), mode="bilinear", antialias=True)
                               for x in (images, targets))
            return error + lpips(images, targets).flatten()

        wanted = {"train": min(self.args.recover, limit_of(column)), "val": self.args.recover}
        errors, figure = [], []
        with tqdm(total=sum(wanted.values()), desc=f"recovering by {column.name}", unit="img",
                  disable=None, leave=False) as bar:
            for split, n in wanted.items():
                images, _ = photos.load_images(self.data, split, column.size, column.fit)
                rows = photos.draw_rows(min(len(images), limit_of(column)) if split == "train"
                                 else len(images), n, self.args.seed)
                z, found = sampling.recover(generator, images[rows], distance,
                                            seed=self.args.seed, update=bar.update)
                errors.append(found)
                for which, order in (("best", found.argsort()), ("worst", found.argsort().flip(0))):
                    order = order.repeat(3)[:3]
                    pairs = zip(images[rows[order]], sampling.generate(generator, z[order]),
                                found[order], strict=True)
                    figure.append([item for photo, image, error in pairs for item in (
                        (f"{split}, {which}", photo), (f"recovered: {error:.4f}", image))])
        report.images_figure(
            figure, f"{column.name}: {wanted['train']} + {wanted['val']} photos at {column.size}×"
            f"{column.size} ({column.fit}), and the nearest images there are by mean squared error"
            + (" + LPIPS" if lpips else ""), self.out / f"recovered_{slug(column.name)}.png")
        gap, p = metrics.recovery_gap(*errors)
        ends = metrics.interval(lambda *halves: metrics.recovery_gap(*halves)[0], *errors)
        intervals = result["intervals"] | {"recovery_gap": list(ends)}
        return result | {"recovery_gap": gap, "recovery_p": p, "intervals": intervals}

    def draw_neighbours(self, name, column, samples, labels, nearest, suspects):
        """neighbours_*.png of a column by one distance: --show, or the four nearest to a photo."""
        shown = self.args.show or nearest.distances[:, 0].argsort(stable=True)[:4].tolist()
        images = torch.cat(list(samples.batches(torch.tensor(shown))))
        rows = []
        for i, image in zip(shown, images, strict=True):
            rows.append([(labels[i][-20:] + (": suspect" if i in suspects else ""), image)])
            for distance, j in zip(nearest.distances[i, :4], nearest.indices[i, :4], strict=True):
                path = self.photo_paths[j]
                rows[-1].append((f"{path.name[-20:]}: {distance:.3f}",
                                 photos.decode(path, self.size, self.fit)))
        report.images_figure(
            rows, f"{column.name}: nearest training photos by {name}\n{self.caption}",
            self.out / f"neighbours_{name}_{slug(column.name)}.png")

    def draw_pieces(self, column, samples, labels, sides, nearest):
        """pieces_*.png of a column: the four samples with the most pieces nearer to training, each
        beside the three photos that most of these come from."""
        network, figure = self.networks["pieces"], []
        for i in (sides > 0).sum(1).argsort(descending=True, stable=True)[:4].tolist():
            nearer, row = sides[i] > 0, self.few_rows[2][i : i + 1]
            most = Counter(nearest[i][nearer].tolist()).most_common(3)
            paths = [self.photo_paths[self.few_rows[0][j]] for j, _ in most]
            images = torch.cat([*samples.batches(row),
                                photos.decode_all(paths, self.size, self.fit)])
            cells, *others = features.features(images, network)
            label = f"{labels[row][-20:]}: {nearer.sum()} pieces"
            outlined = [(nearer & (nearest[i] == j)).nonzero()[:, 0] for j, _ in most]
            figure.append([(label, images[0], dict(enumerate(outlined)))])
            for color, (own, other) in enumerate(zip(outlined, others, strict=True)):
                places = (cells[own] @ other.T).argmax(1)
                figure[-1].append((f"{paths[color].name[-20:]}: {len(own)}", images[color + 1],
                                   {color: places}))
        report.images_figure(
            figure, f"{column.name}: pieces that are nearer to a training photo than to any "
            f"validation photo\n{self.caption}", self.out / f"pieces_{slug(column.name)}.png",
            features.CELLS)

    def draw_components(self, name, panels):
        """pca_*.png of a column."""
        if self.pca:
            file = "real" if name == "REAL" else slug(name)
            report.pca_figure(self.pca, panels, f"{name}: ResNet-50 embeddings\n{self.caption}",
                              self.out / f"pca_{file}.png")


# Pictures without a table --------------------------------------------------------------------


def generate(args, columns, device):
    """--generate: the samples that an evaluation judges, as files; a folder each for several."""
    if args.samples or args.interpolate or args.mix or not args.out:
        cli.fail("--generate needs a folder by --out, and goes with no --samples, --interpolate or "
                 "--mix")
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        cli.fail(f"--out {out} is not an empty folder")
    for column in columns:
        generator = load_generator(column.checkpoint, device)
        batches = sampling.samples(generator, args.seed, torch.arange(args.generate), BATCH)
        images = (features.resized(batch, args.size or column.size)
                  for batch in photos.ahead(batches))
        with tqdm(total=args.generate, desc=column.name, unit="img", disable=None) as bar:
            photos.save_images(images, out / slug(column.name) if columns[1:] else out, bar.update)
    print(f"written to {out}/")


def explore(args, columns, device):
    """The pictures of each checkpoint: --interpolate, as a GIF and in eight stages, and --mix."""
    if args.samples:
        cli.fail("--interpolate and --mix need checkpoints, not --samples")
    for column in columns:
        if args.mix and column.checkpoint["model"] != "fastgan":
            cli.fail(f"--mix is for FastGAN; {column.checkpoint['path']} is of "
                     f"{column.checkpoint['model']}")
    out = Path(args.out or columns[0].home / "eval")
    out.mkdir(parents=True, exist_ok=True)
    for column in columns:
        generator = load_generator(column.checkpoint, device)
        if args.interpolate:
            ends = sampling.latents(args.seed, args.interpolate, generator.z_dim)
            images = sampling.generate(generator, sampling.between(*ends, 48))
            name = "interpolate_{}_{}_{}".format(*args.interpolate, slug(column.name))
            photos.save_animation(images, out / f"{name}.gif")
            photos.save_grid(images[torch.linspace(0, 47, 8).round().long()], out / f"{name}.png")
        if args.mix:
            z = sampling.latents(args.seed, args.mix, generator.z_dim)
            photos.save_grid(sampling.mixed(generator, z), out / f"mix_{slug(column.name)}.png",
                             len(z) + 1)
    print(f"written to {out}/")


def main(args):
    # For the thread that samples, too: features must not switch its precision on and off.
    torch.backends.cudnn.allow_tf32 = False
    device = devices.choose_device(args.device)
    columns = unique_names([folder_column(folder, args.size) for folder in args.samples]
                           if args.samples else checkpoint_columns(args))
    pictures = args.generate or args.interpolate or args.mix
    if args.recover and (args.samples or pictures):
        cli.fail("--recover needs checkpoints, and goes with no --samples, --generate, "
                 "--interpolate or --mix")
    if pictures:
        return (generate if args.generate else explore)(args, columns, device)
    comparison = Comparison(args, args.data or common_data(columns), columns, device)
    comparison.load_photos()
    comparison.warn(columns)
    comparison.out.mkdir(parents=True, exist_ok=True)
    real = comparison.real()
    judged = [comparison.judge(column) for column in columns]
    settings = {"data": str(comparison.data), "n": comparison.n, "size": comparison.size,
                "fit": comparison.fit, "seed": args.seed, "features": args.features,
                "weights": args.weights, "note": comparison.note, "resize": args.resize,
                "lpips": args.lpips, "lpips_size": comparison.networks.lpips_size,
                "recover": args.recover, "level": 0.95, "versions": versions()}
    report.write([real, *judged, *(report.STUDY if args.study else [])], settings,
                 comparison.caption, comparison.out, args.json)
    report.curve_figure(judged, real, comparison.caption, comparison.out / "curve.png")
    report.spectrum_figure(comparison.spectra, comparison.caption, comparison.out / "spectrum.png")


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
    group.add_argument("--features", choices=list(FEATURES), default="inception",
                       help="for FID, KID, precision, recall, density and coverage")
    group.add_argument("--weights", choices=["pretrained", "random"], default="pretrained",
                       help="of the feature networks; random ones need no download, but their "
                       "numbers compare within one table only")
    group.add_argument("--resize", choices=["bilinear", "clean"], default="bilinear",
                       help="to Inception's 299: as pytorch-fid or as clean-fid does")
    group.add_argument("--lpips", choices=["alex", "vgg", "squeeze"], default="alex",
                       help="LPIPS network")
    group.add_argument("--lpips-size", type=cli.number(int, 64), default=256, metavar="N",
                       help="larger images are shrunk to it for LPIPS, pixels")
    group.add_argument("--recover", type=cli.number(int, 2), metavar="N",
                       help="also look for the latents of N training and N validation photos, 200 "
                       "passes each: with N 100 and FastGAN at 1024, a day or two on a CPU")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    group = parser.add_argument_group("what to write")
    group.add_argument("--out", help="folder (default: eval/ beside what is judged)")
    group.add_argument("--json", metavar="PATH|-", help="also write the JSON; -: alone on stdout")
    group.add_argument("--show", type=cli.seed, nargs="+", metavar="I",
                       help="samples in the neighbour figures, by number (default: the nearest)")
    group.add_argument("--study", action="store_true", help="add the study's published columns")
    group.add_argument("--generate", type=cli.count, metavar="N",
                       help="instead: N samples as PNG files into the empty folder of --out")
    group.add_argument("--interpolate", type=cli.seed, nargs=2, metavar=("A", "B"),
                       help="instead: the way from sample A to sample B, animated and as a strip")
    group.add_argument("--mix", type=cli.seed, nargs="+", metavar="I",
                       help="instead, of FastGAN: a grid of these samples' layouts and styles")
    with cli.system_errors("--size, --lpips-size or --n"):
        main(parser.parse_args())
