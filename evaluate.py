"""How good generated images are, and whether they are copies: one table and its figures.

    python evaluate.py                                   # newest checkpoint of the newest run
    python evaluate.py --ckpt 10000 50000                # steps of that run, a column each
    python evaluate.py --run runs/NAME --ckpt all
    python evaluate.py --ckpt a/ckpt_050000.pth all_50000.pth
    python evaluate.py --samples DIR --data data/bedroom # images of any generator

Writes metrics.json, metrics.csv, table.md, table.png, neighbours_*.png and pca_*.png to
<run>/eval/. The REAL column compares training with validation photos: the best that can be had.
"""

import csv
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

import metrics
import training
from nets import FastGANGenerator

GENERATORS = {"fastgan": FastGANGenerator}
RANDOM = "random features: not comparable with published numbers"
ROWS = {
    "fid_train": "FID train",
    "fid_validation": "FID validation",
    "aa_train": "AA train",
    "aa_test": "AA test",
    "privacy_loss": "privacy loss",
    "aa_train_lpips": "AA train, LPIPS",
    "aa_test_lpips": "AA test, LPIPS",
    "privacy_loss_lpips": "privacy loss, LPIPS",
}
STUDY = [  # published, not ours: 331 images a set at 1024×1024
    {"name": f"published {name}", **dict(zip(list(ROWS)[:5], numbers, strict=True))}
    for name, *numbers in [
        ("REAL", None, 63, 0.55, None, None), ("10K", 89, 87, 0.91, 0.91, 0.00),
        ("50K", 76, 74, 0.86, 0.85, -0.01), ("100K", 79, 78, 0.86, 0.84, -0.02),
        ("150K", 77, 77, 0.86, 0.85, -0.01)]
]


class Column(NamedTuple):
    """What is judged: a checkpoint's samples or a folder of images. `home` is where eval/ goes."""

    name: str
    home: Path
    size: int
    source: dict | list  # a checkpoint, or image files


# ---------------------------------------------------------------------------------------------
# What to judge
# ---------------------------------------------------------------------------------------------


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
    by_step = any(name in ("latest", "all") or name.isdecimal() for name in args.ckpt)
    run = args.run or (training.find_run("runs") if by_step else None)
    if args.run and not Path(args.run).is_dir():
        training.fail(f"--run {args.run} is not a folder")
    columns = []
    for path in dict.fromkeys(checkpoint_paths(run, args.ckpt)):
        checkpoint = training.read_checkpoint(path)
        if checkpoint["model"] not in GENERATORS:
            training.fail(f"{path}: unknown model {checkpoint['model']}")
        for unused in ("networks", "optimizers"):  # most of its memory
            checkpoint.pop(unused, None)
        name = f"{checkpoint['model']} {checkpoint['step']}"
        columns.append(
            Column(name, path.parent, checkpoint["config"]["image_size"], checkpoint))
    return columns


def unique_names(columns):
    """The columns, those of one name told apart by their folders, and then by numbers."""
    names = Counter(slug(column.name) for column in columns)
    columns = [column._replace(name=f"{column.home.resolve().parts[-1]} {column.name}")
               if isinstance(column.source, dict) and names[slug(column.name)] > 1 else column
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
    sizes = {}
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.setdefault(image.size, file)
        except OSError as error:
            training.fail(f"{file} cannot be read: {error}")
    if len(sizes) > 1 and not size:
        (one, a), (other, b) = list(sizes.items())[:2]
        training.fail(f"images of several sizes ({a} is {one[0]}×{one[1]}, {b.name} "
                      f"{other[0]}×{other[1]}); --size N brings all to one")
    return Column(Path(folder).resolve().name, Path(folder), min(next(iter(sizes))), files)


def common_data(columns):
    """The data folder that the columns' checkpoints were trained on; data/bedroom for others."""
    folders = {column.source.get("args", {}).get("data", "data/bedroom")
               if isinstance(column.source, dict) else "data/bedroom" for column in columns}
    if len(folders) > 1:
        training.fail(f"trained on different data ({', '.join(sorted(folders))}): choose by --data")
    return folders.pop()


# ---------------------------------------------------------------------------------------------
# Images and features
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(checkpoint, n, seed, device, batch_size=8):
    """uint8 (n, 3, size, size) of a checkpoint's averaged generator; image i is of latent i.

    The last batch is filled up: an image is the same, to the bit, whatever n is.
    """
    config = checkpoint["config"]
    try:
        generator = GENERATORS[checkpoint["model"]](**config)
    except (TypeError, ValueError) as error:
        training.fail(f"{checkpoint['path']}: {error}")
    training.load_weights(generator, checkpoint["averaged"], checkpoint["path"])
    generator = generator.to(device).eval()
    if checkpoint["published"]:
        training.estimate_batch_norm(generator)
    images = []
    bar = tqdm(total=n, desc="sampling", unit="img", disable=None, leave=False)
    with bar:
        for start in range(0, n, batch_size):
            rows = range(start, start + batch_size)
            batch = generator(training.latents(seed, rows, config["z_dim"]).to(device))[0]
            images.append(training.to_uint8(batch).cpu())
            bar.update(batch_size)
    return torch.cat(images)[:n]


def resized(images, size):
    """uint8 images at size × size, antialiased bilinear."""
    if images.shape[2:] == (size, size):
        return images
    batches = [F.interpolate(batch.float(), (size, size), mode="bilinear", antialias=True)
               .round().clamp(0, 255).byte() for batch in images.split(64)]
    return torch.cat(batches)


def draw(total, n, seed):
    """n of the rows 0 ... total - 1, drawn by seed, in their order."""
    return torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(total)[:n]))


def column_images(column, n, size, args, device):
    """n images of a column at `size`, written out where --save-samples says so."""
    if isinstance(column.source, list):
        files = [column.source[i] for i in draw(len(column.source), n, args.seed)]
        images = torch.from_numpy(training.decode_all(files, size))
    else:
        images = sample(column.source, n, args.seed, device)
    if args.save_samples:
        save_samples(images, Path(args.save_samples) / slug(column.name))
    return resized(images, size)


def save_samples(images, folder):
    """PNG files 00000.png, ... in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:05d}.png")


class Features(NamedTuple):
    """One set of images in the three spaces that the metrics compare."""

    inception: torch.Tensor
    resnet: torch.Tensor
    lpips: metrics.LpipsFeatures


def load_networks(args, device):
    """The three networks of Features."""
    try:
        return Features(metrics.inception_network(args.weights, device, args.resize),
                        metrics.resnet50_network(args.weights, device),
                        metrics.lpips_network(args.lpips, args.weights, device))
    except metrics.WeightsError as error:
        training.fail(error)


def extract(images, networks, lpips_size, name):
    """The Features of uint8 images."""
    small = resized(images, max(64, min(lpips_size, images.shape[2])))  # AlexNet needs 35
    with tqdm(total=3 * len(images), desc=f"features of {name}", unit="img", disable=None,
              leave=False) as bar:
        return Features(metrics.features(images, networks.inception, progress=bar.update),
                        metrics.features(images, networks.resnet, progress=bar.update),
                        metrics.lpips_features(small, networks.lpips, progress=bar.update))


# ---------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------


def judge(fake, train, validation, distances):
    """The numbers of one column, by the names in ROWS."""
    numbers = {"fid_train": metrics.frechet_distance(train.inception, fake.inception),
               "fid_validation": metrics.frechet_distance(validation.inception, fake.inception)}
    for name, (space, distance) in distances.items():
        x, y, z = (getattr(features, space) for features in (train, validation, fake))
        suffix = "" if name == "cosine" else f"_{name}"
        aa_train = metrics.adversarial_accuracy(x, z, distance)
        aa_test = metrics.adversarial_accuracy(y, z, distance)
        numbers |= {f"aa_train{suffix}": aa_train, f"aa_test{suffix}": aa_test,
                    f"privacy_loss{suffix}": aa_test - aa_train}
    return numbers


def judge_real(train, validation, distances):
    """The same where validation photos stand in for generated ones: only two rows have a sense."""
    numbers = {"fid_validation": metrics.frechet_distance(train.inception, validation.inception)}
    for name, (space, distance) in distances.items():
        x, y = getattr(train, space), getattr(validation, space)
        suffix = "" if name == "cosine" else f"_{name}"
        numbers[f"aa_train{suffix}"] = metrics.adversarial_accuracy(x, y, distance)
    return numbers


def cell(row, value):
    """A number as the table shows it: FID with one decimal, shares with two, a dash for none."""
    digits = 1 if row.startswith("fid") else 2
    return "–" if value is None else f"{round(value, digits) + 0:.{digits}f}"  # never -0.00


def table_cells(results):
    """The table as rows of text, its header first."""
    header = ["", *(result["name"] for result in results)]
    return [header, *([label, *(cell(row, result.get(row)) for result in results)]
                      for row, label in ROWS.items())]


def markdown(cells, caption):
    lines = [" | ".join(["", *row, ""]).strip() for row in cells]
    return "\n".join([caption, "", lines[0], "| --- " * len(cells[0]) + "|", *lines[1:], ""])


# ---------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------


def save_figure(figure, path):
    with training.replacing(path) as file:
        figure.savefig(file, format="png", dpi=100)


def table_figure(plt, cells, caption, path):
    figure, axes = plt.subplots(figsize=(2 + 1.6 * len(cells[0]), 0.5 + 0.3 * len(cells)),
                                layout="constrained")
    axes.axis("off")
    axes.set_title(caption.replace("; ", "\n"), fontsize=9)
    table = axes.table(cells[1:], colLabels=cells[0], bbox=[0, 0, 1, 1], cellLoc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    save_figure(figure, path)
    plt.close(figure)


def neighbours_figure(plt, images, train, names, indices, nearest, title, path):
    """A row a sample: the sample, then its nearest training photos, their names and distances."""
    distance, neighbour = nearest
    columns = 1 + neighbour.shape[1]
    figure, axes = plt.subplots(len(indices), columns, squeeze=False, layout="constrained",
                                figsize=(2.2 * columns, 2.4 * len(indices) + 0.5))
    for row, i in zip(axes, indices, strict=True):
        row[0].imshow(images[i].permute(1, 2, 0))
        row[0].set_title(f"sample {i}", fontsize=9)
        for axis, d, j in zip(row[1:], distance[i], neighbour[i], strict=True):
            axis.imshow(train[j].permute(1, 2, 0))
            axis.set_title(f"{names[j][-20:]}: {d:.3f}", fontsize=9)
        for axis in row:
            axis.axis("off")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
    plt.close(figure)


def pca_figure(plt, pca, panels, title, path):
    """Panels of two embedding sets each on the axes of the training photos' components."""
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 5), squeeze=False,
                                sharex=True, sharey=True, layout="constrained")
    explained = " + ".join(f"{100 * share:.1f}%" for share in pca.explained)
    for axis, (subtitle, sets) in zip(axes[0], panels, strict=True):
        for (label, embeddings), marker in zip(sets.items(), "ox", strict=True):
            axis.scatter(*pca.project(embeddings).T, s=16, marker=marker, label=label, alpha=0.7)
        axis.set(title=f"{subtitle}, variance {explained}", xlabel="component 1",
                 ylabel="component 2")
        axis.legend()
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
    plt.close(figure)


def slug(name):
    return re.sub(r"[^\w.-]+", "-", name)


# ---------------------------------------------------------------------------------------------


def main(args):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    device = training.choose_device(args.device)
    if args.samples:
        columns = [folder_column(folder, args.size) for folder in args.samples]
    else:
        columns = checkpoint_columns(args)
    columns = unique_names(columns)
    data = args.data or common_data(columns)
    size = args.size or min(column.size for column in columns)
    if args.save_samples:
        for folder in [Path(args.save_samples) / slug(column.name) for column in columns]:
            if folder.exists() and any(folder.iterdir()):
                training.fail(f"--save-samples: {folder} is not empty")
    train, fingerprint = training.load_images(data, "train", size)
    validation, _ = training.load_images(data, "val", size)
    names = [path.name for path in training.split_files(data, "train")]

    counts = [len(train), len(validation), args.n or len(train)]
    counts += [len(column.source) for column in columns if isinstance(column.source, list)]
    n = min(counts)
    if n < 2:
        training.fail(f"sets of {n} are too small to compare; at least 2 images each")
    if args.show and max(args.show) >= n:
        training.fail(f"--show {max(args.show)}: the samples are 0 to {n - 1}")
    networks = load_networks(args, device)
    distances = {"cosine": ("resnet", metrics.pairwise_cosine),
                 "lpips": ("lpips", lambda x, y: metrics.pairwise_lpips(x, y, networks.lpips))}
    out = Path(args.out or columns[0].home / "eval")
    out.mkdir(parents=True, exist_ok=True)
    for column in columns:
        trained_on = column.source.get("data") if isinstance(column.source, dict) else None
        if column.size == size and trained_on not in (None, fingerprint):
            print(f"warning: {column.name} was trained on other photos than {data}/train: "
                  "its train rows and privacy loss say nothing of copying", file=sys.stderr)
    note = RANDOM if args.weights == "random" else None
    caption = f"{Path(data).resolve().name}, {n} images a set at {size}×{size}, seed {args.seed}"
    caption += f"; {note}" if note else ""

    # Sets are compared at equal size, but neighbours are looked for among all training photos.
    all_train = extract(train, networks, args.lpips_size, "train")
    of_train = Features(*(space[draw(len(train), n, args.seed)] for space in all_train))
    chosen = validation[draw(len(validation), n, args.seed)]
    of_validation = extract(chosen, networks, args.lpips_size, "validation")
    real = judge_real(of_train, of_validation, distances)
    results = [{"name": "REAL", "n": n, **real}]
    pca = metrics.principal_components(of_train.resnet) if n > 2 else None
    if pca:
        sets = {"train": of_train.resnet, "validation": of_validation.resnet}
        pca_figure(plt, pca, [(f"train + test, AA {real['aa_train']:.2f}", sets)],
                   f"REAL: ResNet-50 embeddings\n{caption}", out / "pca_real.png")

    for column in columns:
        images = column_images(column, n, size, args, device)
        of_fake = extract(images, networks, args.lpips_size, column.name)
        numbers = judge(of_fake, of_train, of_validation, distances)
        results.append({"name": column.name, "n": n, **numbers})
        for name, (space, distance) in distances.items():
            nearest = metrics.nearest_neighbors(
                getattr(of_fake, space), getattr(all_train, space), min(4, len(train)), distance)
            closest = nearest[0][:, 0].argsort(stable=True)[:4].tolist()
            neighbours_figure(plt, images, train, names, args.show or closest, nearest,
                              f"{column.name}: nearest training photos by {name}\n{caption}",
                              out / f"neighbours_{name}_{slug(column.name)}.png")
        if pca:
            panels = [(f"train + synthetic, AA {numbers['aa_train']:.2f}",
                       {"train": of_train.resnet, "synthetic": of_fake.resnet}),
                      (f"test + synthetic, AA {numbers['aa_test']:.2f}",
                       {"test": of_validation.resnet, "synthetic": of_fake.resnet})]
            pca_figure(plt, pca, panels, f"{column.name}: ResNet-50 embeddings\n{caption}",
                       out / f"pca_{slug(column.name)}.png")

    settings = {"data": str(data), "n": n, "size": size, "seed": args.seed,
                "weights": args.weights, "note": note, "resize": args.resize,
                "lpips": args.lpips, "lpips_size": min(args.lpips_size, size),
                "versions": training.versions()}
    if args.study:
        results += [{**column, "n": 331, "published": True} for column in STUDY]
    cells = table_cells(results)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", "n", *ROWS, "note"], lineterminator="\n",
                            extrasaction="ignore")
    writer.writeheader()
    writer.writerows({"note": "published" if "published" in result else note, **result}
                     for result in results)
    written = {"metrics.json": json.dumps({"settings": settings, "columns": results}, indent=1),
               "metrics.csv": text.getvalue(), "table.md": markdown(cells, caption)}
    for name, content in written.items():
        with training.replacing(out / name) as file:
            file.write(content.encode())
    table_figure(plt, cells, caption, out / "table.png")
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(caption)
    for row in cells:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    print(f"written to {out}/")


if __name__ == "__main__":
    parser = training.Parser(__doc__)
    group = parser.add_argument_group("what to judge")
    group.add_argument("--ckpt", nargs="+", default=["latest"], metavar="CKPT",
                       help="steps of the run, latest, all, or checkpoint files")
    group.add_argument("--run", help="run folder (default: the newest in runs/)")
    group.add_argument("--samples", nargs="+", metavar="DIR", help="folders of images instead")
    group.add_argument("--data", help="data folder (default: the checkpoint's, or data/bedroom)")
    group = parser.add_argument_group("how")
    group.add_argument("--n", type=training.count, help="images a set (default: training photos)")
    group.add_argument("--size", type=training.count, help="compare at this size (default: the "
                       "smallest size among what is judged)")
    group.add_argument("--seed", type=training.seed, default=0, help="of latents and subsets")
    group.add_argument("--weights", choices=["pretrained", "random"], default="pretrained",
                       help="of the feature networks; random needs no download but gives numbers "
                       "comparable only with each other")
    group.add_argument("--resize", choices=["bilinear", "clean"], default="bilinear",
                       help="to Inception's 299: as pytorch-fid or as clean-fid does")
    group.add_argument("--lpips", choices=["alex", "vgg", "squeeze"], default="alex",
                       help="LPIPS network")
    group.add_argument("--lpips-size", type=training.number(int, 64), default=256,
                       help="larger images are shrunk to it for LPIPS, pixels")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    group = parser.add_argument_group("what to write")
    group.add_argument("--out", help="folder (default: eval/ beside what is judged)")
    group.add_argument("--show", type=training.seed, nargs="+", metavar="I",
                       help="samples in the neighbour figures (default: the four nearest ones)")
    group.add_argument("--study", action="store_true", help="add the study's published columns")
    group.add_argument("--save-samples", metavar="DIR", help="also write the samples as PNG files")
    with training.system_errors():
        main(parser.parse_args())
