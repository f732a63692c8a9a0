"""How good generated images are, and whether they are copies: one table and its figures.

    python evaluate.py                                   # newest checkpoint of the newest run
    python evaluate.py --ckpt 10000 50000                # steps of that run, a column each
    python evaluate.py --run runs/NAME --ckpt all        # and the curve over its steps
    python evaluate.py --ckpt runs/*/ckpt_*.pth          # several runs in one table
    python evaluate.py --samples DIR --data data/bedroom # images of any generator
    python evaluate.py --json - > numbers.json           # for shell loops
    python evaluate.py --interpolate 3 7                 # from sample 3 to sample 7, no table
    python evaluate.py --mix 0 1 2 3                     # FastGAN: layouts × styles, no table

Writes metrics.json, metrics.csv, table.md, table.png, pca_real.png, for each column
pca_<name>.png and neighbours_<cosine|lpips>_<name>.png, curve.png where a run has two columns or
more, and fit_<name>.png on request to <run>/eval/. Features are kept in <data>/.cache/ and in
.cache/ beside these files: the next call computes only what is new. The REAL column compares
training with validation photos: the best that can be had.

In this order: what to judge; images; features and neighbours, cached; from photos to numbers; the
table; figures; a look into latent space; all of it.
"""

import csv
import functools
import hashlib
import io
import json
import math
import re
import sys
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

import metrics
import training
from nets import DCGANGenerator, FastGANGenerator, GANGenerator, VAEDecoder

GENERATORS = {"gan": GANGenerator, "dcgan": DCGANGenerator, "vae": VAEDecoder,
              "fastgan": FastGANGenerator}
BATCH = 32  # images on their way at once
CACHE = 1  # raised when features or lists change their meaning: older caches are then made anew


class Column(NamedTuple):
    """What is judged: a checkpoint's samples or a folder of images."""

    name: str
    home: Path  # the run folder or the folder of images: eval/ goes there
    size: int  # of its images, in pixels
    source: dict | list  # a checkpoint without its networks, or image files
    key: str = ""  # digest of what determines its images
    fit: str | None = None  # how its training photos were made square; None of a folder

    @property
    def is_checkpoint(self):
        return isinstance(self.source, dict)


# What to judge --------------------------------------------------------------------------


def checkpoint_paths(run, wanted):
    """The checkpoints of a run folder that `wanted` names: a step, latest, all, or any file."""
    found = {int(path.stem[5:]): path for path in training.find_checkpoints(run)} if run else {}
    for name in wanted:
        if not (name in ("latest", "all") or name.isdecimal()):
            yield Path(name)
        elif not found:
            training.fail(f"{run} has no checkpoint")
        elif name == "all":
            yield from found.values()
        elif name == "latest":
            yield found[max(found)]
        elif int(name) in found:
            yield found[int(name)]
        else:
            steps = ", ".join(map(str, found))
            training.fail(f"{run} has no checkpoint of step {name}; there are {steps}")


def checkpoint_columns(args):
    """A Column of each checkpoint that --ckpt and --run name, without repeats."""
    by_step = any(name in ("latest", "all") or name.isdecimal() for name in args.ckpt)
    run = args.run or (training.find_run("runs") if by_step else None)
    if args.run and not Path(args.run).is_dir():
        training.fail(f"--run {args.run} is not a folder")
    columns = []
    for path in dict.fromkeys(checkpoint_paths(run, args.ckpt)):
        checkpoint = training.read_checkpoint(path)
        if checkpoint["model"] not in GENERATORS:
            training.fail(f"{path}: unknown model {checkpoint['model']}")
        key = training.digest([checkpoint[name] for name in
                               ("model", "config", "sampler", "published")])
        for large in ("networks", "optimizers", "sampler"):  # read again when it samples
            checkpoint.pop(large, None)
        name = f"{checkpoint['model']} {checkpoint['step']}"
        size = checkpoint["config"]["image_size"]
        fit = checkpoint.get("fit", "square")
        columns.append(Column(name, path.parent, size, checkpoint, key, fit))
    return columns


def slug(name):
    """A column's name as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name)


def unique_names(columns):
    """The columns, those of one name told apart by their folders, and then by numbers."""
    names = Counter(slug(column.name) for column in columns)
    columns = [column._replace(name=f"{column.home.resolve().parts[-1]} {column.name}")
               if column.is_checkpoint and names[slug(column.name)] > 1 else column
               for column in columns]
    seen, unique = Counter(), []
    for column in columns:
        seen[slug(column.name)] += 1
        number = seen[slug(column.name)]
        unique.append(column._replace(name=f"{column.name} ({number})") if number > 1 else column)
    return unique


def folder_column(folder, size):
    """A folder of images, at its images' size where they have one."""
    files = training.image_files(folder)
    if len(files) < 2:
        training.fail(f"--samples {folder} holds {len(files)} images; at least 2 are needed")
    sizes, contents = {}, []
    for file in files:
        try:
            with Image.open(file, formats=training.IMAGE_FORMATS) as image:
                sizes.setdefault(image.size, file)
            contents.append(hashlib.sha256(file.read_bytes()).hexdigest())
        except Exception as error:  # Pillow answers broken bytes with nearly every type there is
            training.fail(f"{file} cannot be read: {error}")
    if len(sizes) > 1 and not size:
        (one, a), (other, b) = list(sizes.items())[:2]
        training.fail(f"images of several sizes ({a} is {one[0]}×{one[1]}, {b.name} "
                      f"{other[0]}×{other[1]}); --size N brings all to one")
    key = training.digest(contents)
    return Column(Path(folder).resolve().name, Path(folder), min(next(iter(sizes))), files, key)


def common_data(columns):
    """The data folder that the columns' checkpoints were trained on; data/bedroom for others."""
    folders = [str(column.source["args"].get("data", "data/bedroom"))
               if column.is_checkpoint else "data/bedroom" for column in columns]
    if len({Path(folder).resolve() for folder in folders}) > 1:
        named = ", ".join(sorted(set(folders)))
        training.fail(f"trained on different data ({named}): choose by --data")
    return folders[0]


def common_fit(columns):
    """How the columns' photos were made square; by stretching where they differ."""
    fits = {column.fit for column in columns if column.fit}
    return fits.pop() if len(fits) == 1 else "square"


# Images ---------------------------------------------------------------------------------


def load_generator(checkpoint, device):
    """The network to sample from of a checkpoint, in evaluation mode."""
    try:
        with torch.device("meta"):  # no memory for a size that the file only claims
            generator = GENERATORS[checkpoint["model"]](**checkpoint["config"])
    except (TypeError, ValueError) as error:
        training.fail(f"{checkpoint['path']}: {error}")
    state = training.read_checkpoint(checkpoint["path"])["sampler"]
    training.load_weights(generator, state, checkpoint["path"], assign=True)
    generator = generator.to(device).float().eval()
    return training.estimate_batch_norm(generator) if checkpoint["published"] else generator


@torch.no_grad()
def sample(generator, rows, seed, batch_size=8):
    """Batches of uint8 images (b, 3, h, w) on the CPU; image i is of latent rows[i] alone.

    The last batch is filled up: an image is the same, to the bit, however many there are.
    """
    device = next(generator.parameters()).device
    for some in torch.as_tensor(rows).split(BATCH):
        images = []
        for part in some.split(batch_size):
            filled = F.pad(part, (0, batch_size - len(part))).tolist()
            batch = generator(training.latents(seed, filled, generator.z_dim).to(device))
            batch = batch[0] if isinstance(batch, tuple) else batch  # FastGAN's small image
            images.append(training.to_uint8(batch).cpu())
        yield torch.cat(images)[: len(some)]


def decoded(files, size, fit):
    """Batches of uint8 images (b, 3, size, size) of files, made square by `fit`."""
    read = functools.partial(training.decode, size=size, fit=fit)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), BATCH):
            try:
                images = np.stack(list(pool.map(read, files[start : start + BATCH])))
            except ValueError as error:
                training.fail(error)
            yield torch.from_numpy(images)


def resized(images, size):
    """uint8 images (n, 3, h, w) at size × size, by antialiased bilinear interpolation."""
    if images.shape[2:] == (size, size):
        return images
    images = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).byte()


def draw(total, n, seed):
    """n of the rows 0 ... total - 1, drawn by seed, in their order: a tensor (n,)."""
    return torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(total)[:n]))


def ahead(batches, depth=2):
    """The same batches, made by a thread while those before them are in use."""
    batches = iter(batches)
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, batches, None) for _ in range(depth))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, batches, None))
            yield batch


def saving(batches, folder):
    """The same batches, written to a folder as 00000.png, ... on their way."""
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    for batch in batches:
        for image in batch:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{done:05d}.png")
            done += 1
        yield batch


# Features and neighbours, cached --------------------------------------------------------


def cache_path(folder, kind, key):
    """The file in which a value of this kind, made from what `key` lists, is cached."""
    return folder / f"{kind}_{training.digest(key)[:32]}.pt"


def read_cache(path):
    """What write_cache wrote under this name; None if nothing whole is there."""
    try:
        saved = torch.load(path, weights_only=True)
        whole = saved["sha256"] == training.digest([path.name, saved["value"]])
    except Exception:  # a damaged file can raise anything
        return None
    return saved["value"] if whole else None


def write_cache(path, value):
    """Tensors, lists and dicts of them into a file; a warning where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with training.replacing(path) as file:
            torch.save({"value": value, "sha256": training.digest([path.name, value])}, file)
    except OSError as error:
        print(f"warning: {path} not written ({error.strerror})", file=sys.stderr)


class Extractors:
    """The feature networks, each built when first needed, and what their features depend on."""

    def __init__(self, args, device, size):
        self.lpips_size = max(64, min(args.lpips_size, size))  # AlexNet needs 35
        versions = [training.versions()[name] for name in ("torch", "torchvision", "lpips")]
        self.keys = {
            "inception": [CACHE, args.weights, versions, args.resize],
            "resnet": [CACHE, args.weights, versions],
            "lpips": [CACHE, args.weights, versions, args.lpips, self.lpips_size]}
        self._makers = {
            "inception": lambda: metrics.inception_network(args.weights, device, args.resize),
            "resnet": lambda: metrics.resnet50_network(args.weights, device),
            "lpips": lambda: metrics.lpips_network(args.lpips, args.weights, device)}

    @functools.cache  # noqa: B019 (there is one, as long as the program runs)
    def network(self, space):
        try:
            return self._makers[space]()
        except metrics.WeightsError as error:
            training.fail(error)

    def extract(self, batches, n, spaces, name):
        """{space: features} of n images, in one pass over their batches."""
        networks = {space: self.network(space) for space in spaces}  # before the thread starts
        parts = {space: [] for space in spaces if space != "lpips"}
        bar = tqdm(total=n, desc=f"features of {name}", unit="img", disable=None, leave=False)

        def passing():
            for batch in ahead(batches):
                for space, rows in parts.items():
                    rows.append(metrics.features(batch, networks[space]))
                bar.update(len(batch))
                yield resized(batch, self.lpips_size)

        points = {}
        with bar:
            if "lpips" in spaces:
                points["lpips"] = metrics.lpips_features(passing(), networks["lpips"], total=n)
            else:
                deque(passing(), maxlen=0)
        return {space: torch.cat(rows) for space, rows in parts.items()} | points


class ImageSet:
    """Images at the size of the comparison, and their features in the spaces asked for so far.

    key: a digest of what determines their pixels. batches(): yields them as uint8 tensors.
    cache: a folder. Features are a tensor each; for LPIPS, points in a temporary file. made:
    whether there was a pass over the images.
    """

    def __init__(self, name, key, n, batches, cache):
        self.name, self.key, self.n = name, key, n
        self.batches, self.cache, self.features, self.made = batches, cache, {}, False

    def load(self, spaces, extractors):
        """Fills `features`, from the cache or else by one pass over the images."""
        paths = {}
        for space in set(spaces) - set(self.features):
            paths[space] = cache_path(self.cache, space, [extractors.keys[space], self.key])
            self.features[space] = read_cache(paths[space])
        missing = [space for space in paths if self.features[space] is None]
        if missing:
            self.features |= extractors.extract(self.batches(), self.n, missing, self.name)
            self.made = True
            for space in missing:
                if space != "lpips":  # a gigabyte for 400 images: only its neighbours are kept
                    write_cache(paths[space], self.features[space])


def neighbors(pairs, sets, n, space, distance, extractors, cache):
    """{pair: Neighbors} of pairs of sets and the reverse of each.

    "TF" is of the training photos T among the samples F, V are the validation photos. sets:
    {letter: ImageSet}, the samples last. n: the size of the sets compared. What is by LPIPS is
    cached.
    """
    key = [extractors.keys[space], pairs, n, metrics.LISTED, *(x.key for x in sets.values())]
    path = cache_path(cache, f"neighbours_{space}", key)
    lists = read_cache(path) if space == "lpips" else None
    if lists is None:
        # The samples first: what else is missing of their features comes in the same pass.
        for images in reversed(sets.values()):
            images.load(["inception", "resnet", space], extractors)
        points = {letter: images.features[space] for letter, images in sets.items()}
        lists = {}
        for x, y in tqdm(pairs, desc=f"neighbours by {space}", disable=None, leave=False):
            lists |= metrics.neighbor_lists(x, y, points[x], points[y], n, distance)
        if space == "lpips":
            write_cache(path, {name: tuple(pair) for name, pair in lists.items()})
    return {name: metrics.Neighbors(*pair) for name, pair in lists.items()}


# From photos to numbers -----------------------------------------------------------------


def photo_set(data, split, size, fit):
    """The photos of a split; they are read for each pass, not held."""
    images, fingerprint = training.load_images(data, split, size, fit)

    def batches():
        return training.load_images(data, split, size, fit)[0].split(BATCH)

    return ImageSet(split, fingerprint, len(images), batches, Path(data) / ".cache")


def sample_set(column, comparison):
    """(the ImageSet of a column's samples, a function that gives some of them by their rows)."""
    args, n, size = comparison.args, comparison.n, comparison.size
    folder = args.save_samples and Path(args.save_samples) / slug(column.name)
    if not column.is_checkpoint:
        files = [column.source[row] for row in draw(len(column.source), n, args.seed)]
        key = training.digest([column.key, args.seed, n, size, comparison.fit])

        def made(rows):
            return decoded([files[row] for row in rows], size, comparison.fit)
    else:
        key = training.digest([column.key, args.seed, n, size])
        generator = functools.cache(lambda: load_generator(column.source, comparison.device))

        def made(rows):
            # The generator is made here, not in the thread that samples: it draws numbers.
            return sample(generator(), rows, args.seed)

    def batches():
        images = made(range(n))
        return (resized(batch, size) for batch in (saving(images, folder) if folder else images))

    def some(rows):
        return resized(torch.cat(list(made(rows))), size)

    return ImageSet(column.name, key, n, batches, comparison.out / ".cache"), some


def numbers(measures, n, name):
    """{"n", row: number, ..., "intervals": {row: [low, high]}} of measures and their sets."""
    values, intervals = {}, {}
    for measure, sets in tqdm(measures, desc=f"numbers of {name}", disable=None, leave=False):
        values |= measure.values(n, *sets)
        intervals |= measure.intervals(n, *sets)
    return {"n": n, **values, "intervals": intervals}


class Comparison:
    """The photos, and what is measured of samples against them at one size and in equal number."""

    def __init__(self, args, data, columns, device):
        self.args, self.data, self.device = args, data, device
        self.size = args.size or min(column.size for column in columns)
        self.fit = args.fit or common_fit(columns)
        self.train, self.validation = (photo_set(data, split, self.size, self.fit)
                                       for split in ("train", "val"))
        self.files = training.split_files(data, "train")
        counts = [self.train.n, self.validation.n, args.n or self.train.n]
        counts += [len(column.source) for column in columns if not column.is_checkpoint]
        self.n = min(counts)
        if self.n < 2:
            training.fail(f"sets of {self.n} are too small to compare; at least 2 images each")
        if args.show and max(args.show) >= self.n:
            training.fail(f"--show {max(args.show)}: the samples are 0 to {self.n - 1}")
        self.out = Path(args.out or columns[0].home / "eval")
        self.note = ("random features: not comparable with published numbers"
                     if args.weights == "random" else None)
        self.caption = (f"{Path(data).resolve().name}, {self.n} images a set at {self.size}×"
                        f"{self.size} ({self.fit}), seed {args.seed}")
        self.caption += f"; {self.note}" if self.note else ""
        self.extractors = Extractors(args, device, self.size)
        self.distances = {
            "lpips": ("lpips", "_lpips", lambda x, y: metrics.pairwise_lpips(
                x, y, self.extractors.network("lpips"))),
            "cosine": ("resnet", "", metrics.pairwise_cosine)}

    def load_photos(self):
        """Features, lists of neighbours and components of the photos."""
        n, sets = self.n, (self.train, self.validation)
        # Sets are compared at equal size; copies are looked for among all training photos.
        self.rows = [draw(images.n, n, self.args.seed) for images in sets]
        self.lists = {
            name: neighbors(["TT", "VV", "TV"], dict(zip("TV", sets, strict=True)), n, space,
                            distance, self.extractors, self.train.cache)
            for name, (space, _, distance) in self.distances.items()}
        for images in sets:
            images.load(["inception", "resnet"], self.extractors)
        self.inception, self.resnet = (
            [images.features[space][rows] for images, rows in zip(sets, self.rows, strict=True)]
            for space in ("inception", "resnet"))
        self.pca = metrics.principal_components(self.resnet[0]) if n > 2 else None

    def warn(self, columns):
        """Of columns that were trained on other photos, or on photos of another shape."""
        others = [column.name for column in columns if column.fit not in (None, self.fit)]
        if others:
            print(f"warning: --fit {self.fit} for all photos, but {', '.join(others)} trained on "
                  f"{'crop' if self.fit == 'square' else 'square'} ones", file=sys.stderr)
        for column in columns:
            trained_on = column.source.get("data") if column.fit else None
            same_form = (column.size, column.fit) == (self.size, self.fit)
            if same_form and trained_on not in (None, self.train.key):
                print(f"warning: {column.name} was trained on other photos than {self.data}/train:"
                      " its train rows and privacy loss say nothing of copying", file=sys.stderr)

    def real(self):
        """The REAL column: validation photos in the place of samples."""
        measures = [(measure, self.inception)
                    for measure in metrics.inception_measures(["validation"])]
        measures += [(metrics.real_measure(self.lists[name], suffix), self.rows)
                     for name, (_, suffix, _) in self.distances.items()]
        return {"name": "REAL", "kind": "real", **numbers(measures, self.n, "REAL")}

    def judge(self, column):
        """(the numbers of a column, what its figures show)."""
        fake, some = sample_set(column, self)
        everything = [torch.arange(images.n) for images in (self.train, self.validation, fake)]
        labels = [f"sample {row}" for row in range(self.n)]
        result = {"name": column.name, "kind": "judged"}
        if not column.is_checkpoint:
            labels = [column.source[row].name
                      for row in draw(len(column.source), self.n, self.args.seed)]
            result["path"] = str(column.home)
        else:
            result |= {"path": str(column.source["path"]), "model": column.source["model"],
                       "step": column.source["step"]}
        measures, tests, shown = [], {}, {}
        for name, (space, suffix, distance) in self.distances.items():
            lists = self.lists[name] | neighbors(
                ["FF", "TF", "VF"], {"T": self.train, "V": self.validation, "F": fake}, self.n,
                space, distance, self.extractors, fake.cache)
            measures += [(metrics.neighbor_measure(lists, suffix), [*self.rows, everything[2]]),
                         (metrics.copy_measure(lists, suffix), everything)]
            tests[name] = test = metrics.listed_copies(lists["FT"], lists["VT"])
            nearest = test.distances.argsort(stable=True)[:4].tolist()
            shown[name] = lists["FT"], self.args.show or nearest
        if self.args.save_samples and not fake.made:  # all features were in the cache
            deque(ahead(fake.batches()), maxlen=0)
        inception = [*self.inception, fake.features["inception"]]
        measures += [(measure, inception)
                     for measure in metrics.inception_measures(["train", "validation"])]
        result |= numbers(measures, self.n, column.name)
        result["suspects"] = {
            name: [{"sample": i, "name": labels[i], "photo": self.files[test.nearest[i]].name,
                    "distance": test.distances[i].item()} for i in test.indices]
            for name, test in tests.items()}
        return result, (fake, some, labels, shown)


# The table ------------------------------------------------------------------------------

ROWS = {  # name in JSON and CSV: (in the table, the ideal, digits; None: 3 in all)
    "fid_train": ("FID train", 0, 1),
    "fid_validation": ("FID validation", 0, 1),
    "fid_infinity_train": ("FID∞ train", 0, 1),
    "fid_infinity_validation": ("FID∞ validation", 0, 1),
    "kid_train": ("KID train", 0, None),
    "kid_validation": ("KID validation", 0, None),
    "precision": ("precision", 1, 2),
    "recall": ("recall", 1, 2),
    "density": ("density", 1, 2),
    "coverage": ("coverage", 1, 2),
    "aa_train": ("AA train", 0.5, 2),
    "aa_test": ("AA test", 0.5, 2),
    "privacy_loss": ("privacy loss", 0, 2),
    "copies": ("suspected copies", 0, 2),
    "aa_train_lpips": ("AA train, LPIPS", 0.5, 2),
    "aa_test_lpips": ("AA test, LPIPS", 0.5, 2),
    "privacy_loss_lpips": ("privacy loss, LPIPS", 0, 2),
    "copies_lpips": ("suspected copies, LPIPS", 0, 2),
}
STUDY = [  # published, not ours: 331 images a set at 1024×1024
    {"name": f"published {name}", **dict(zip(
        ("fid_train", "fid_validation", "aa_train", "aa_test", "privacy_loss"), numbers,
        strict=True))}
    for name, *numbers in [
        ("REAL", None, 63, 0.55, None, None), ("10K", 89, 87, 0.91, 0.91, 0.00),
        ("50K", 76, 74, 0.86, 0.85, -0.01), ("100K", 79, 78, 0.86, 0.84, -0.02),
        ("150K", 77, 77, 0.86, 0.85, -0.01)]
]


def rounded(row, value):
    """(the value, rounded to its row's digits after the point, their number)."""
    digits = ROWS[row][2]
    if digits is None:  # KID's scale is the features' own
        digits = max(0, 2 - math.floor(math.log10(abs(value) or 1)))
    return round(value, digits) + 0, digits  # never -0.00


def cell(row, result):
    """A number as the table shows it, ± half its interval; a dash for none."""
    if result.get(row) is None:
        return "–"
    value, digits = rounded(row, result[row])
    low, high = result.get("intervals", {}).get(row, (None, None))
    if low is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ±{max(high - result[row], result[row] - low):.{digits}f}"


def best(row, results):
    """Which columns to set in bold: of two or more that are judged, the nearest to the ideal."""
    off = {i: abs(rounded(row, result[row])[0] - ROWS[row][1]) for i, result in enumerate(results)
           if result.get(row) is not None and result["kind"] == "judged"}
    return {i for i in off if len(off) > 1 and off[i] < min(off.values()) + 1e-9}


def shown_rows(results):
    """The rows of the table: those that any column has."""
    return [row for row in ROWS if any(result.get(row) is not None for result in results)]


def table_cells(results, bold="{}"):
    """The table as rows of text, its header first; the best numbers are put into `bold`."""
    table = [["", *(result["name"] for result in results)]]
    for row in shown_rows(results):
        winners = best(row, results)
        texts = [cell(row, result) for result in results]
        table.append([ROWS[row][0], *(bold.format(text) if i in winners else text
                               for i, text in enumerate(texts))])
    return table


def markdown(cells, caption):
    lines = [" | ".join(["", *row, ""]).strip() for row in cells]
    return "\n".join([caption, "", lines[0], "| --- " * len(cells[0]) + "|", *lines[1:], ""])


def terminal(results, bold):
    """The table in aligned columns."""
    plain, marked = table_cells(results), table_cells(results, bold)
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    lines = []
    for texts, shown in zip(plain, marked, strict=True):
        pads = [" " * (width - len(text)) for width, text in zip(widths, texts, strict=True)]
        lines.append("  ".join([shown[0] + pads[0], *(
            pad + text for pad, text in zip(pads[1:], shown[1:], strict=True))]))
    return "\n".join(lines)


def csv_table(results, note):
    """One line a column of the table: its numbers, and the ends of their intervals."""
    ends = [f"{row}_{end}" for row in ROWS for end in ("low", "high")]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", "n", *ROWS, *ends, "note"], lineterminator="\n",
                            extrasaction="ignore")
    writer.writeheader()
    for result in results:
        spread = {f"{row}_{end}": value for row, pair in result.get("intervals", {}).items()
                  for end, value in zip(("low", "high"), pair, strict=True)}
        remark = "published" if result["kind"] == "published" else note
        writer.writerow({"note": remark, **result, **spread})
    return text.getvalue()


# Figures --------------------------------------------------------------------------------


def new_figure(width, height, rows=1, columns=1, **sharing):
    """(a figure of so many inches, its axes (rows, columns)); it needs no display."""
    from matplotlib.figure import Figure  # slow to import, and --interpolate does without

    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def save_figure(figure, title, path):
    figure.suptitle(title.replace("; ", "\n"), fontsize=10)
    with training.replacing(path) as file:
        figure.savefig(file, format="png", dpi=100)


def table_figure(results, caption, path):
    cells, rows = table_cells(results), shown_rows(results)
    figure, ((axes,),) = new_figure(2.2 + 1.7 * len(results), 0.6 + 0.28 * len(cells))
    axes.axis("off")
    table = axes.table(cells[1:], colLabels=cells[0], bbox=[0, 0, 1, 1], cellLoc="center",
                       colWidths=[2.2] + [1.7] * len(results))
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (i, j), box in table.get_celld().items():
        box.set_edgecolor("0.8")
        if i == 0 or (j and j - 1 in best(rows[i - 1], results)):
            box.set_text_props(weight="bold")
    save_figure(figure, caption, path)


def neighbours_figure(samples, lists, photos, names, suspected, title, path):
    """A row a sample, {its index: (its label, the image)}: the sample, then its nearest photos.

    photos: {index: image} of the training photos that are shown.
    """
    columns = 1 + min(4, lists.indices.shape[1])
    figure, axes = new_figure(2.2 * columns, 2.4 * len(samples) + 0.6, len(samples), columns)
    for row, (i, (label, image)) in zip(axes, samples.items(), strict=True):
        row[0].imshow(image)
        row[0].set_title(label[-20:] + (": suspect" if i in suspected else ""), fontsize=9)
        for axis, d, j in zip(row[1:], lists.distances[i], lists.indices[i].tolist(),
                              strict=False):
            axis.imshow(photos[j])
            axis.set_title(f"{names[j][-20:]}: {d:.3f}", fontsize=9)
        for axis in row:
            axis.axis("off")
    save_figure(figure, title, path)


def pca_figure(pca, panels, title, path):
    """Panels of two embedding sets each on the axes of the training photos' components."""
    figure, axes = new_figure(6 * len(panels), 5, 1, len(panels), sharex=True, sharey=True)
    explained = " + ".join(f"{100 * share:.1f}%" for share in pca.explained)
    for axis, (subtitle, sets) in zip(axes[0], panels, strict=True):
        for (label, embeddings), marker in zip(sets.items(), "ox", strict=True):
            axis.scatter(*pca.project(embeddings).T, s=16, marker=marker, label=label, alpha=0.7)
        axis.set(title=f"{subtitle}, variance {explained}", xlabel="component 1",
                 ylabel="component 2")
        axis.legend()
    save_figure(figure, title, path)


def curve_figure(runs, real, caption, path):
    """FID and adversarial accuracy over the steps of runs, {(folder, model): results}."""
    figure, (axes,) = new_figure(12, 4.5, 1, 2)
    panels = [("FID", {"fid_train": "-", "fid_validation": "--"}, real["fid_validation"]),
              ("adversarial accuracy", {"aa_train": "-", "aa_test": "--"}, real["aa_train"])]
    for axis, (label, rows, reference) in zip(axes, panels, strict=True):
        for number, ((folder, model), results) in enumerate(runs.items()):
            results = sorted(results, key=lambda result: result["step"])
            steps = [result["step"] for result in results]
            for row, style in rows.items():
                axis.plot(steps, [result[row] for result in results], style, marker="o",
                          color=f"C{number}",
                          label=f"{folder.name} ({model}), {ROWS[row][0].split()[1]}")
                if all(row in result["intervals"] for result in results):
                    ends = zip(*(result["intervals"][row] for result in results), strict=True)
                    axis.fill_between(steps, *ends, alpha=0.12, color=f"C{number}", linewidth=0)
        axis.axhline(reference, color="0.4", linewidth=1, linestyle=":", label="REAL")
        axis.set(xlabel="step (FastGAN: iterations, others: epochs)", ylabel=label)
        axis.legend(fontsize=8)
    axes[1].set_ylim(-0.03, 1.03)
    save_figure(figure, f"{caption}\nbands: 95% intervals", path)


def fit_figure(fits, title, path):
    """The fits behind FID∞, {name: Extrapolation}: distances over 1 / n, down to 0."""
    figure, ((axes,),) = new_figure(6, 4.5)
    for number, (name, fit) in enumerate(fits.items()):
        x = 1 / np.array(fit.sizes)
        axes.plot(x, fit.distances, "o", color=f"C{number}", label=f"{name}: {fit.value:.1f}")
        slope = (np.mean(fit.distances) - fit.value) / x.mean()  # a regression meets the means
        ends = np.array([0, x.max()])
        axes.plot(ends, fit.value + slope * ends, color=f"C{number}", linewidth=1)
    axes.set(xlabel="1 / images a set", ylabel="FID", xlim=(0, None))
    axes.legend(title="FID∞", fontsize=9)
    save_figure(figure, title, path)


def column_figures(comparison, result, fake, some, labels, shown):
    """neighbours_*.png, pca_*.png and fit_*.png of a column."""
    name, files = result["name"], comparison.files
    for kind, (lists, rows) in shown.items():
        photos = {}
        for j in lists.indices[rows, :4].flatten().tolist():
            photo = training.decode(files[j], comparison.size, comparison.fit)
            photos[j] = photo.transpose(1, 2, 0)
        samples = {i: (labels[i], image.permute(1, 2, 0).numpy())
                   for i, image in zip(rows, some(rows), strict=True)}
        suspected = {suspect["sample"] for suspect in result["suspects"][kind]}
        neighbours_figure(
            samples, lists, photos, [file.name for file in files], suspected,
            f"{name}: nearest training photos by {kind}\n{comparison.caption}",
            comparison.out / f"neighbours_{kind}_{slug(name)}.png")
    if comparison.pca:
        embeddings = fake.features["resnet"]
        panels = [(f"{label} + synthetic, AA {result[f'aa_{label}']:.2f}",
                   {label: photos, "synthetic": embeddings})
                  for label, photos in zip(("train", "test"), comparison.resnet, strict=True)]
        pca_figure(comparison.pca, panels, f"{name}: ResNet-50 embeddings\n{comparison.caption}",
                   comparison.out / f"pca_{slug(name)}.png")
    if comparison.args.show_fit and comparison.n >= metrics.FEWEST_FOR_INFINITY:
        fits = {label: metrics.frechet_distance_infinity(x, fake.features["inception"])
                for label, x in zip(("train", "validation"), comparison.inception, strict=True)}
        fit_figure(fits, f"{name}: FID∞\n{comparison.caption}",
                   comparison.out / f"fit_{slug(name)}.png")


# A look into latent space ---------------------------------------------------------------


def between(a, b, steps):
    """Latents (steps, z_dim) along the great circle from a to b, (z_dim,) each.

    The straight line passes nearer to the origin than N(0, 1) latents ever are (White 2016,
    arXiv 1609.04468).
    """
    t = torch.linspace(0, 1, steps)[:, None]
    angle = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if angle < 1e-3:
        return a + t * (b - a)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


@torch.no_grad()
def generated(generator, *latents):
    """Images (n, 3, h, w) on the CPU of latents (n, z_dim), eight at a time."""
    device = next(generator.parameters()).device
    images = []
    for parts in zip(*(z.split(8) for z in latents), strict=True):
        batch = generator(*(part.to(device) for part in parts))
        images.append((batch[0] if isinstance(batch, tuple) else batch).float().cpu())
    return torch.cat(images)


def interpolate(generator, ends, seed, path, frames=48):
    """path.gif, from one sample to another and back, and path.png, eight stages of the way."""
    images = generated(generator, between(*training.latents(seed, ends, generator.z_dim), frames))
    stages = torch.linspace(0, frames - 1, 8).round().long()
    training.save_grid(images[stages], path.with_name(f"{path.name}.png"))
    pixels = training.to_uint8(images).permute(0, 2, 3, 1).numpy()
    first, *others = [Image.fromarray(image) for image in [*pixels, *pixels[-2:0:-1]]]
    with training.replacing(path.with_name(f"{path.name}.gif")) as file:
        first.save(file, "GIF", save_all=True, append_images=others, duration=60, loop=0)


def mix(generator, rows, seed, path):
    """path.png: in each row the layout of one sample, in each column the style of another.

    The samples themselves stand above and to the left.
    """
    z = training.latents(seed, rows, generator.z_dim)
    n = len(z)
    plain = generated(generator, z)
    mixed = generated(generator, z.repeat_interleave(n, 0), z.repeat(n, 1))
    cells = [torch.full_like(plain[0], -1), *plain]
    for i in range(n):
        cells += [plain[i], *mixed[i * n : (i + 1) * n]]
    training.save_grid(torch.stack(cells), path.with_name(f"{path.name}.png"), n + 1)


def explore(args, columns, device):
    """The pictures of --interpolate and --mix, of each checkpoint."""
    for column in columns:
        if not column.is_checkpoint:
            training.fail("--interpolate and --mix need checkpoints, not --samples")
        if args.mix and column.source["model"] != "fastgan":
            training.fail(f"--mix is for FastGAN; {column.source['path']} is of "
                          f"{column.source['model']}")
    out = Path(args.out or columns[0].home / "eval")
    out.mkdir(parents=True, exist_ok=True)
    for column in columns:
        generator = load_generator(column.source, device)
        if args.interpolate:
            ends = "_".join(map(str, args.interpolate))
            interpolate(generator, args.interpolate, args.seed,
                        out / f"interpolate_{ends}_{slug(column.name)}")
        if args.mix:
            mix(generator, args.mix, args.seed, out / f"mix_{slug(column.name)}")
    print(f"written to {out}/")


# All of it ------------------------------------------------------------------------------


def main(args):
    # For the thread that samples, too: features must not switch its precision on and off.
    torch.backends.cudnn.allow_tf32 = False
    device = training.choose_device(args.device)
    columns = unique_names([folder_column(folder, args.size) for folder in args.samples]
                           if args.samples else checkpoint_columns(args))
    if args.interpolate or args.mix:
        explore(args, columns, device)
        return
    for folder in [Path(args.save_samples or "") / slug(column.name) for column in columns]:
        if args.save_samples and folder.exists() and any(folder.iterdir()):
            training.fail(f"--save-samples: {folder} is not empty")
    data = args.data or common_data(columns)
    comparison = Comparison(args, data, columns, device)
    out, caption = comparison.out, comparison.caption
    comparison.load_photos()
    comparison.warn(columns)
    out.mkdir(parents=True, exist_ok=True)

    real = comparison.real()
    results, runs = [real], {}
    if comparison.pca:
        sets = dict(zip(("train", "test"), comparison.resnet, strict=True))
        pca_figure(comparison.pca, [(f"train + test, AA {real['aa_train']:.2f}", sets)],
                   f"REAL: ResNet-50 embeddings\n{caption}", out / "pca_real.png")
    for column in columns:
        result, details = comparison.judge(column)
        column_figures(comparison, result, *details)
        results.append(result)
        if "step" in result:
            runs.setdefault((column.home.resolve(), result["model"]), []).append(result)
    runs = {run: of_run for run, of_run in runs.items() if len({r["step"] for r in of_run}) > 1}
    if runs:
        curve_figure(runs, real, caption, out / "curve.png")
    results += [{**column, "kind": "published", "n": 331} for column in STUDY if args.study]
    caption += "; ± half a 95% interval"

    settings = {"data": str(data), "n": comparison.n, "size": comparison.size,
                "fit": comparison.fit, "seed": args.seed, "weights": args.weights,
                "note": comparison.note, "resize": args.resize, "lpips": args.lpips,
                "lpips_size": comparison.extractors.lpips_size, "level": 0.95,
                "versions": training.versions()}
    report = json.dumps({"settings": settings, "columns": results}, indent=1)
    written = {"metrics.json": report, "metrics.csv": csv_table(results, comparison.note),
               "table.md": markdown(table_cells(results, "**{}**"), caption)}
    for name, content in written.items():
        with training.replacing(out / name) as file:
            file.write(content.encode())
    table_figure(results, caption, out / "table.png")

    messages = sys.stderr if args.json == "-" else sys.stdout
    print(caption, file=messages)
    bold = "\033[1m{}\033[0m" if messages.isatty() else "{}"
    print(terminal(results, bold), file=messages)
    for result in results:
        for kind, found in result.get("suspects", {}).items():
            if found:
                few = ", ".join(suspect["name"] for suspect in found[:5])
                dots = ", ..." if len(found) > 5 else ""
                print(f"{result['name']}: {len(found)} of {comparison.n} nearer to a training "
                      f"photo than 99% of the validation photos by {kind}: {few}{dots}",
                      file=messages)
    print(f"written to {out}/", file=messages)
    if args.json == "-":
        print(report)
    elif args.json:
        with training.replacing(args.json) as file:
            file.write(report.encode())


if __name__ == "__main__":
    parser = training.Parser(__doc__)
    group = parser.add_argument_group("what to judge")
    group.add_argument("--ckpt", nargs="+", default=["latest"], metavar="CKPT",
                       help="steps of the run, latest, all, or checkpoint files of any runs")
    group.add_argument("--run", help="run folder (default: the newest in runs/)")
    group.add_argument("--samples", nargs="+", metavar="DIR", help="folders of images instead")
    group.add_argument("--data", help="data folder (default: the checkpoint's, or data/bedroom)")
    group = parser.add_argument_group("how")
    group.add_argument("--n", type=training.count, metavar="N",
                       help="images a set (default: training photos)")
    group.add_argument("--size", type=training.count, metavar="N", help="compare at this size "
                       "(default: the smallest size among what is judged)")
    group.add_argument("--fit", choices=["square", "crop"], help="photos are stretched to a "
                       "square or centre-cropped (default: as the checkpoints' photos were)")
    group.add_argument("--seed", type=training.seed, default=0, metavar="N",
                       help="of latents and subsets")
    group.add_argument("--weights", choices=["pretrained", "random"], default="pretrained",
                       help="of the feature networks; random needs no download but gives numbers "
                       "comparable only with each other")
    group.add_argument("--resize", choices=["bilinear", "clean"], default="bilinear",
                       help="to Inception's 299: as pytorch-fid or as clean-fid does")
    group.add_argument("--lpips", choices=["alex", "vgg", "squeeze"], default="alex",
                       help="LPIPS network")
    group.add_argument("--lpips-size", type=training.number(int, 64), default=256,
                       metavar="N", help="larger images are shrunk to it for LPIPS, pixels")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    group = parser.add_argument_group("what to write")
    group.add_argument("--out", help="folder (default: eval/ beside what is judged)")
    group.add_argument("--json", metavar="PATH|-", help="the JSON here, too; -: alone on stdout")
    group.add_argument("--show", type=training.seed, nargs="+", metavar="I",
                       help="samples in the neighbour figures (default: the four nearest ones)")
    group.add_argument("--show-fit", action="store_true", help="a picture of the fit behind FID∞")
    group.add_argument("--study", action="store_true", help="add the study's published columns")
    group.add_argument("--save-samples", metavar="DIR", help="also write the samples as PNG files")
    group.add_argument("--interpolate", type=training.seed, nargs=2, metavar=("A", "B"),
                       help="instead: the way from sample A to sample B, animated and as a strip")
    group.add_argument("--mix", type=training.seed, nargs="+", metavar="I", help="instead, for "
                       "FastGAN: a grid of these samples' layouts and styles")
    with training.system_errors():
        main(parser.parse_args())
