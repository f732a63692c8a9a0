"""Are our samples as good as the published way's? FastGAN by ways, seeds and averages, judged.

    python tests/bench_quality.py --judge judge.py --data data/bedroom              # hours
    python tests/bench_quality.py --judge judge.py --ways fp32 published --at 500 1000

Trains FastGAN with L1 reconstruction for each way (our step in fp32 or bf16, or the published step)
and seed, all on the same random draws, and keeps several averages of the generator in one run. At
each step of --at it writes --n samples of each average to OUT/<way>-<seed>-<step>-<average>/; what
is there is not made again, so several processes may share the seeds before one asks for all. Then
it calls `python JUDGE DATA/train DATA/val FOLDERS ...`, which must print a line for each folder:
its name, a colon, and names of measures, each followed by its numbers. Printed for each measure:
the mean over seeds ± the standard deviation.

Averages: ours (sampling.average_weight), published (0.001 throughout), power (Karras et al. 2024,
arXiv 2312.02696, of relative width 0.1) and raw (the generator as it is).
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import published
import tiny

import train_fastgan
from common import devices, photos, sampling

AVERAGES = {"ours": sampling.average_weight, "published": lambda step: 0.001,
            "power": lambda step: 1 - (1 - 1 / step) ** 7.94, "raw": lambda step: 1.0}


def folder_of(args, way, seed, step, average):
    return args.out / f"{way}-{seed}-{step}-{average}"


def emulate_bfloat16():
    """Convolutions under a CPU's autocast as bf16 hardware computes them, ten times faster.

    Products of rounded numbers, added in float32, rounded once: torch does it without a CPU's bf16
    instructions, too, but by slow loops.
    """
    def emulated(function):
        def run(*tensors, **options):
            if not torch.is_autocast_enabled("cpu"):
                return function(*tensors, **options)
            rounded = [value.bfloat16().float() if torch.is_tensor(value) else value
                       for value in tensors]
            with torch.autocast("cpu", enabled=False):
                return function(*rounded, **options).bfloat16()
        return run
    for name in "conv2d", "conv_transpose2d":
        setattr(F, name, emulated(getattr(F, name)))


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
    for step in range(1, max(args.at) + 1):
        order = photos.data_order(len(images), (step - 1) * args.batch_size, args.batch_size, seed)
        real = photos.mirror(photos.take_batch(images, order, device))
        if way == "published":
            published.published_step(*networks.values(), *adams.values(), averages["published"],
                                     0.999, real, published.published_l1)
        else:
            train_fastgan.published_step(networks, adams, numerics, real,
                                         ["color", "translation"], train_fastgan.l1)
            sampling.update_average(averages["published"], generator.parameters(), 0.001)
        with torch.no_grad():
            for name in AVERAGES.keys() - {"published"}:
                torch._foreach_lerp_(averages[name], list(generator.parameters()),
                                     AVERAGES[name](step))
        if step in args.at:
            for name, average in averages.items():
                sampler = sampling.sampling_copy(generator, average)
                folder = folder_of(args, way, seed, step, name)
                if not folder.exists():
                    making = Path(tempfile.mkdtemp(dir=args.out))
                    photos.save_images(sampling.samples(sampler, 0, torch.arange(args.n), 32),
                                       making)
                    making.rename(folder)
            print(f"{way}, seed {seed}: step {step}", file=sys.stderr, flush=True)


def judged(args, folders):
    """{folder: {measure: its numbers}} by the judge's lines "folder: FD 1.2 AA 0.5 / 0.6 ..."."""
    done = subprocess.run([sys.executable, args.judge, args.data / "train", args.data / "val",
                           *folders], check=True, capture_output=True, text=True)
    print(done.stdout.splitlines()[0])
    return {line.split(": ")[0]: {name: [float(number) for number in re.findall(r"[\d.]+", numbers)]
                                  for name, numbers in re.findall(r"([A-Za-z]+) ([\d. /]+)", line)}
            for line in done.stdout.splitlines()}


def main(args):
    images, _ = photos.load_images(args.data, "train", args.size)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.device == "cpu" and devices.fast_precision(torch.device("cpu")) != "bf16":
        emulate_bfloat16()
    runs = [(way, seed) for seed in args.seeds for way in args.ways]
    for way, seed in runs:
        if not all(folder_of(args, way, seed, step, name).exists()
                   for step in args.at for name in AVERAGES):
            train(args, way, seed, images)
    found = judged(args, [folder_of(args, way, seed, step, name) for way, seed in runs
                          for step in args.at for name in AVERAGES])
    for measure in args.measures:
        print(f"\n| {measure} | " + " | ".join(f"step {step}" for step in args.at)
              + " |\n| --- |" + " ---: |" * len(args.at))
        for way in args.ways:
            for name in AVERAGES:
                cells = []
                for step in args.at:
                    seeds = [found[str(folder_of(args, way, seed, step, name))][measure]
                             for seed in args.seeds]
                    cells.append(" / ".join(
                        f"{statistics.mean(values):.2f} ± "
                        f"{statistics.stdev(values) if len(values) > 1 else 0:.2f}"
                        for values in zip(*seeds, strict=True)))
                print(f"| {way}, {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--judge", required=True, help="a script, see above")
    parser.add_argument("--data", type=Path, default=Path("data/bedroom"))
    parser.add_argument("--ways", nargs="+", choices=["fp32", "bf16", "fp16", "published"],
                        default=["fp32", "bf16", "published"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--measures", nargs="+", default=["FD"])
    parser.add_argument("--at", type=int, nargs="+", default=[500, 1000, 2000, 3000])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--n", type=int, default=268, help="samples of each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    main(parser.parse_args())
