"""Are our samples as good as the published way's? FastGAN by ways, seeds and averages, judged.

    python tests/bench_quality.py --judge judge.py --data data/bedroom              # hours
    python tests/bench_quality.py --judge judge.py --ways fp32 published --at 500 1000

Trains FastGAN with L1 reconstruction for each way (our step in fp32 or bf16, or the published step)
and seed, all on the same random draws, and keeps several averages of the generator in one run. At
each step of --at it writes --n samples of each average to OUT/<way>-<seed>-<step>-<average>/; what
is there is not made again. Then it calls `python JUDGE DATA/train DATA/val FOLDERS ...`, which must
print a line for each folder: its name, a colon, and "FD" and a number among others. Printed: the
mean of FD over seeds ± its standard deviation.

Averages: ours (sampling.average_weight), published (0.001 throughout), power (Karras et al. 2024,
arXiv 2312.02696, of relative width 0.1) and raw (the generator as it is).
"""

import argparse
import re
import statistics
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import published
import tiny

import train_fastgan
from common import devices, photos, sampling

AVERAGES = {"ours": sampling.average_weight, "published": lambda step: 0.001,
            "power": lambda step: 1 - (1 - 1 / step) ** 7.94, "raw": lambda step: 1.0}


def folder_of(args, way, seed, step, average):
    return args.out / f"{way}-{seed}-{step}-{average}"


def train(args, way, seed, images):
    """One run, which leaves the folders of samples of its steps and averages."""
    device = devices.choose_device(args.device)
    numerics = devices.Numerics(device, "fp32" if way == "published" else way)
    networks = {name: network.to(device) for name, network in tiny.networks(
        "fastgan", args.size, 256, args.features, seed).items()}
    generator = networks["generator"]
    adams = {name: torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999))
             for name, network in networks.items()}
    averages = {name: [p.detach().clone() for p in generator.parameters()] for name in AVERAGES}
    distance = train_fastgan.perceptual_distance("l1", numerics)
    for step in range(1, max(args.at) + 1):
        order = photos.data_order(len(images), (step - 1) * args.batch_size, args.batch_size, seed)
        real = photos.mirror(photos.take_batch(images, order, device))
        if way == "published":
            published.published_step(*networks.values(), *adams.values(), averages["published"],
                                     0.999, real, published.published_l1)
        else:
            train_fastgan.train_step(networks, adams, numerics, averages["published"], 0.001, real,
                                     ["color", "translation"], distance)
        with torch.no_grad():
            for name in AVERAGES.keys() - {"published"}:
                torch._foreach_lerp_(averages[name], list(generator.parameters()),
                                     AVERAGES[name](step))
        if step in args.at:
            for name, average in averages.items():
                sampler = sampling.sampling_copy(generator, average)
                folder, making = folder_of(args, way, seed, step, name), args.out / "making"
                if not folder.exists():
                    photos.save_images(sampling.samples(sampler, 0, torch.arange(args.n), 32),
                                       making)
                    making.rename(folder)
            print(f"{way}, seed {seed}: step {step}", file=sys.stderr, flush=True)


def main(args):
    images, _ = photos.load_images(args.data, "train", args.size)
    args.out.mkdir(parents=True, exist_ok=True)
    runs = [(way, seed) for seed in range(args.seeds) for way in args.ways]
    for way, seed in runs:
        if not all(folder_of(args, way, seed, step, name).exists()
                   for step in args.at for name in AVERAGES):
            train(args, way, seed, images)
    folders = {(way, seed, step, name): folder_of(args, way, seed, step, name)
               for way, seed in runs for step in args.at for name in AVERAGES}
    done = subprocess.run([sys.executable, args.judge, args.data / "train", args.data / "val",
                           *folders.values()], check=True, capture_output=True, text=True)
    found = {line.split(": ")[0]: float(value[1]) for line in done.stdout.splitlines()
             if (value := re.search(r"\bFD ([\d.]+)", line))}
    print(done.stdout.splitlines()[0], f"\n\n| {args.seeds} seeds | " + " | ".join(
        f"step {step}" for step in args.at) + " |\n| --- |" + " ---: |" * len(args.at))
    for way in args.ways:
        for name in AVERAGES:
            cells = []
            for step in args.at:
                values = [found[str(folders[way, seed, step, name])] for seed in range(args.seeds)]
                spread = statistics.stdev(values) if len(values) > 1 else 0
                cells.append(f"{statistics.mean(values):.2f} ± {spread:.2f}")
            print(f"| {way}, {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--judge", required=True, help="a script, see above")
    parser.add_argument("--data", type=Path, default=Path("data/bedroom"))
    parser.add_argument("--ways", nargs="+", choices=["fp32", "bf16", "fp16", "published"],
                        default=["fp32", "bf16", "published"])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--at", type=int, nargs="+", default=[500, 1000, 2000, 3000])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--n", type=int, default=268, help="samples of each")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    main(parser.parse_args())
