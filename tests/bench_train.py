"""Training speed: each step towards ours beside the published way, same process, taking turns.

    python tests/bench_train.py                                # FastGAN, 256×256, batch 8
    python tests/bench_train.py --size 1024 --steps 5
    python tests/bench_train.py --discriminator projected      # and where a step's time goes
    python tests/bench_train.py --model dcgan                  # or vae, gan: the plain way and ours
    python tests/bench_train.py --epochs --model vae           # with the photos: epochs a minute

On a CPU OMP_NUM_THREADS=1 gives the steadiest numbers. Photos and VGG are random (its speed is that
of the pretrained one); medians over --steps. TFLOP are counted in convolutions and matrix products.
Peak memory holds two sets of Adam's state and, with the projected discriminator, the networks and
Adam's state of the published one, whose step by L1 stands beside. For GAN, DCGAN and VAE it holds
all rows' networks, and Adam's state of the rows before.
"""

import argparse
import contextlib
import itertools
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

sys.path.insert(0, str(Path(__file__).parents[1]))
import published
import tiny

import nets
import train_fastgan
from common import devices, perceptual, photos, sampling, weights

POLICY = ["color", "translation"]
STUDY = {"fastgan": (256, 256, 8), "gan": (28, 50, 128), "dcgan": (64, 100, 128),
         "vae": (256, 512, 8)}  # size, length of a latent, batch size
GRAPH = "+ as a CUDA graph"


# Measuring -----------------------------------------------------------------------------------


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function, device):
    """Of the clock; with one CPU thread of that thread, so that other programs don't count."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    wait(device)
    start = clock()
    function()
    wait(device)
    return clock() - start


def machine_peaks(device):
    """{precision: FLOP/s of a large matrix product}, the best of five."""
    n = 8192 if device.type == "cuda" else 1536
    flops = {}
    for name in ("fp32", "bf16"):
        x = torch.randn(n, n, device=device, dtype=devices.DTYPES[name])
        flops[name] = 2 * n**3 / min(seconds(lambda x=x: x @ x, device) for _ in range(5))
    return flops


class Peak:
    """Of memory, in GiB, since it was made: torch's on a GPU, the process's on Linux, else 0."""

    def __init__(self, device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def read(self):
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        with contextlib.suppress(OSError):
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 2**20
        return 0.0


# The steps: [(what is new, precision, function)] ---------------------------------------------


def networks_of(args, device, model=None):
    z_dim = STUDY[args.model][1]
    networks = tiny.networks(model or args.model, args.size, z_dim, args.features)
    return {name: network.to(device) for name, network in networks.items()}


def adams_of(networks, fused):
    return {name: torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999), fused=fused,
                                   capturable=bool(fused)) for name, net in networks.items()}


def average_of(networks):
    return [p.detach().clone() for p in networks["generator"].parameters()]


def with_graph(device, rows):
    """The rows and, on a GPU, the last one once more, as a CUDA graph."""
    if device.type == "cuda":
        _, precision, step = rows[-1]

        def run(nothing):
            step()
            return nothing

        graph = devices.cuda_graph(run)
        rows = [*rows, (GRAPH, precision, lambda: graph(torch.zeros((), device=device)))]
    return rows


def fastgan_steps(args, device):
    networks = networks_of(args, device)
    real = tiny.photos(args.model, args.batch_size, args.size).to(device)
    plain_adams, fused = adams_of(networks, None), adams_of(networks, True)
    average = average_of(networks)
    fp32 = devices.Numerics(device, "fp32")
    fast = devices.Numerics(device, args.precision)
    lpips = weights.lpips_network("vgg", "random", device)
    with patch.object(perceptual, "lpips_network", lambda *_, **__: lpips):
        distance, fast_distance = map(perceptual.perceptual_loss, (fp32, fast))

    def plain(x, y):
        return lpips(x, y).sum()

    def pairs(xs, ys):
        return sum(map(plain, xs, ys))

    def published_way():
        published.published_step(*networks.values(), *plain_adams.values(), average, 0.999, real,
                                 plain)

    def ours(numerics, adams, distance, layout=False):
        with contextlib.ExitStack() as stack:
            if not layout:
                stack.enter_context(patch.object(nets, "channels_last", lambda x: x))
                stack.enter_context(patch.object(nets.GLU, "forward", lambda _, x: F.glu(x, 1)))
            train_fastgan.published_step(networks, adams, numerics, real, POLICY, distance)
            sampling.update_average(average, networks["generator"].parameters(), 0.001)

    name = fast.precision
    rows = [("published way", "fp32", published_way),
            ("D frozen in G's step, EMA in one", "fp32", partial(ours, fp32, plain_adams, pairs)),
            ("+ perceptual passes batched, their gradients by hand", "fp32",
             partial(ours, fp32, plain_adams, distance)),
            ("+ fused Adam", "fp32", partial(ours, fp32, fused, distance)),
            (f"+ networks in {name}", name, partial(ours, fast, fused, distance)),
            (f"+ perceptual network in {name}", name, partial(ours, fast, fused, fast_distance)),
            ("+ channels-last: ours", name, partial(ours, fast, fused, fast_distance, True))]
    return with_graph(device, rows)


def projected_way(args, device, networks, adams, precision):
    """(The numerics, their frozen network, a step of ours with the projected discriminator.)"""
    numerics = devices.Numerics(device, precision)
    levels = weights.critic_levels(device=device).to(memory_format=numerics.layout)
    real = tiny.photos(args.model, args.batch_size, args.size).to(device)
    average = average_of(networks)
    kind = args.discriminator
    settings = train_fastgan.AUGMENT[kind], levels, train_fastgan.VARIETY[kind]

    def step():
        train_fastgan.projected_step(networks, adams, numerics, real, *settings)
        sampling.update_average(average, networks["generator"].parameters(), 0.001)

    return numerics, levels, step


def projected_steps(args, device):
    """The published discriminator's step by L1, then the plain projected one and ours."""
    networks, others = (networks_of(args, device, model)
                        for model in (args.discriminator, "fastgan"))
    plain_adams, fused, theirs = (adams_of(nets, kind) for nets, kind in (
        (networks, None), (networks, True), (others, True)))
    real = tiny.photos(args.model, args.batch_size, args.size).to(device)
    average, other_average = average_of(networks), average_of(others)
    _, slow_levels, slow = projected_way(args, device, networks, fused, "fp32")
    fast, levels, ours = projected_way(args, device, networks, fused, args.precision)

    def plain():
        published.projected_step(*networks.values(), *plain_adams.values(), average, 0.999, real,
                                 slow_levels, train_fastgan.VARIETY[args.discriminator])

    def other():
        train_fastgan.published_step(others, theirs, fast, real, POLICY, train_fastgan.l1)
        sampling.update_average(other_average, others["generator"].parameters(), 0.001)

    name = fast.precision
    rows = [("plain way", "fp32", plain), ("ours, float32", "fp32", slow),
            (f"published discriminator by L1, {name}", name, other), (f"ours, {name}", name, ours)]
    return with_graph(device, rows)


def other_steps(args, device):
    """The plain tutorial's step, ours in float32, and ours: each with networks of its own, and a
    function of photos, of random ones without."""
    photos = tiny.photos(args.model, args.batch_size, args.size).to(device)
    networks = networks_of(args, device)
    adams = adams_of(networks, None)

    def plain(real=photos):
        if args.model == "vae":
            return published.plain_vae_step(*networks.values(), *adams.values(), real, 1)
        return published.plain_gan_step(*networks.values(), *adams.values(), real)

    rows = [("plain way", "fp32", plain)]
    for name, precision in (("float32", "fp32"), (None, args.precision)):
        numerics = devices.Numerics(device, precision)
        own = {key: network.to(memory_format=numerics.layout)
               for key, network in networks_of(args, device).items()}
        step, _ = tiny.training(args.model, own, adams_of(own, True), numerics)
        rows.append((f"ours, {name or numerics.precision}", numerics.precision,
                     lambda real=photos, step=step: step(real)))
    return with_graph(device, rows)


def step_table(args, device):
    kind = args.discriminator if args.model == "fastgan" else "other"
    rows = {"published": fastgan_steps, "projected": projected_steps, "extended": projected_steps,
            "other": other_steps}[kind](args, device)
    flops = machine_peaks(device)  # with TF32 where the steps' Numerics have allowed it
    print("measured peaks: " + ", ".join(f"{name} {value / 1e12:.2f} TFLOP/s"
                                         for name, value in flops.items()))
    count, times, peaks = {}, {name: [] for name, *_ in rows}, {}
    for name, _, step in rows:
        peak = Peak(device)
        if name == GRAPH:  # the same work as the row before, counted there
            for _ in range(5):  # the fourth records the CUDA graph
                step()
        else:
            with FlopCounterMode(display=False) as flop_counter:
                step()
        count[name] = flop_counter.get_total_flops()
        peaks[name] = peak.read()
    for _, (name, _, step) in itertools.product(range(args.steps), rows):
        times[name].append(seconds(step, device))
    print("| step | it/s | images/s | ratio | TFLOP/s | of peak | peak GiB |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    first = statistics.median(times[rows[0][0]])
    for name, precision, _ in rows:
        t = statistics.median(times[name])
        print(f"| {name} | {1 / t:.3g} | {args.batch_size / t:.3g} | {first / t:.2f} | "
              f"{count[name] / t / 1e12:.3g} | {count[name] / t / flops[precision]:.0%} | "
              f"{peaks[name]:.1f} |", flush=True)
    if kind in ("projected", "extended"):
        part_table(args, device)


def part_table(args, device):
    """Our step with the projected discriminator, beside what it spends its time on, each alone."""
    networks = networks_of(args, device, args.discriminator)
    numerics, levels, step = projected_way(args, device, networks, adams_of(networks, True),
                                           args.precision)
    generator, discriminator = networks.values()
    z = torch.randn(args.batch_size, generator.z_dim, device=device)
    image = tiny.photos(args.model, args.batch_size, args.size).to(device)
    with numerics.autocast(), torch.no_grad():
        found = levels(image)

    def generated():
        with numerics.autocast():
            fake, _ = generator(z)
        fake.backward(fake.detach())

    def seen():
        with numerics.autocast():
            with torch.no_grad():
                levels(image)
            maps = levels(image.clone().requires_grad_())
        torch.autograd.backward(maps, maps)

    def judged():
        for trains in (True, True, False):
            discriminator.requires_grad_(trains)
            *maps, shown = (one.clone().requires_grad_(not trains) for one in [*found, image])
            with numerics.autocast():
                logits = discriminator(maps, shown)
            logits.float().mean().backward()
        discriminator.requires_grad_(True)

    parts = {"a step": step, "G, forward and backward": generated,
             "frozen network on photos; on fakes, forward and backward": seen,
             "D on photos, on fakes, and for G": judged}
    times = {name: [] for name in parts}
    for turn, (name, run) in itertools.product(range(args.steps + 1), parts.items()):
        taken = seconds(run, device)
        times[name] += [taken] * (turn > 0)
        for network in networks.values():
            network.zero_grad()
    whole, *each = (statistics.median(values) for values in times.values())
    shares = dict(zip(parts, (whole, *each), strict=True))
    shares["the rest: augmentation, losses, Adam, average"] = whole - sum(each)
    print(f"\nours, {numerics.precision}\n| part | ms | share |\n| --- | --- | --- |")
    for name, t in shares.items():
        print(f"| {name} | {1000 * t:.3g} | {t / whole:.0%} |")


# With the photos -----------------------------------------------------------------------------


def tutorial_loader(args, files, fit):
    """Photos decoded and resized whenever they are asked for, by two workers."""
    whole = [transforms.Resize((args.size, args.size))]
    middle = [transforms.Resize(args.size), transforms.CenterCrop(args.size)]
    transform = transforms.Compose([*(middle if fit == "crop" else whole), transforms.ToTensor(),
                                    transforms.Normalize([0.5] * 3, [0.5] * 3)])
    folder = datasets.ImageFolder(args.data, transform, allow_empty=True,
                                  is_valid_file=lambda path: Path(path) in files)
    return torch.utils.data.DataLoader(folder, args.batch_size, shuffle=True, num_workers=2)


def epoch_table(args, device):
    """Our epoch, photos in memory, beside a DataLoader with two workers and the plain step."""
    fit = "crop" if args.model == "dcgan" else "square"
    files = photos.split_files(args.data, "train")[: args.limit]
    start = time.perf_counter()
    images = photos.decode_all(files, args.size, fit).to(device)
    cached = time.perf_counter() - start
    loader = tutorial_loader(args, files, fit)
    (_, _, plain), _, (name, _, ours), *_ = other_steps(args, device)
    if device.type == "cuda":
        name, ours = f"{name}, as a CUDA graph", devices.cuda_graph(ours)

    def alone():
        for batch, _ in loader:
            batch.to(device)

    def tutorial():
        for batch, _ in loader:
            plain(batch.to(device))

    def batches():
        for indices in photos.epoch_batches(len(files), args.batch_size, 0, 0):
            photos.take_batch(images, indices, device)

    def epoch():
        for indices in photos.epoch_batches(len(files), args.batch_size, 0, 0):
            ours(photos.take_batch(images, indices, device))

    rows = {"loader alone": alone, "batches from memory alone": batches,
            "loader and plain step": tutorial, f"{name}, in memory": epoch}
    for _ in range(4 if device.type == "cuda" else 1):  # a CUDA graph's fourth call records it
        epoch()
    times = {name: [] for name in rows}
    for _, (name, run) in itertools.product(range(args.steps), rows.items()):
        start = time.perf_counter()  # the workers are other processes
        run()
        wait(device)
        times[name].append(time.perf_counter() - start)
    print(f"{args.model}, {len(files)} photos of {args.data}, decoded once in {cached:.1f} s\n"
          "| epoch | seconds | epochs a minute | ratio |\n| --- | --- | --- | --- |")
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, t in median.items():
        print(f"| {name} | {t:.3g} | {60 / t:.3g} | {median['loader and plain step'] / t:.2f} |")


def main(args):
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as in training
    device = devices.choose_device(args.device)
    size, _, batch_size = STUDY[args.model]
    args.size, args.batch_size = args.size or size, args.batch_size or batch_size
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    name = (torch.cuda.get_device_name(device) if device.type == "cuda"
            else cpu[0].split(": ")[1] if cpu else platform.processor())
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; {args.model} at "
          f"{args.size}×{args.size}, batch {args.batch_size}")
    (epoch_table if args.epochs else step_table)(args, device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=STUDY, default="fastgan")
    parser.add_argument("--discriminator", choices=train_fastgan.LOSSES, default="published",
                        help="FastGAN's")
    parser.add_argument("--size", type=int, help="(default: the study's; FastGAN 256)")
    parser.add_argument("--batch-size", type=int, help="(default: the study's)")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="or epochs, with --epochs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--epochs", action="store_true", help="with the photos of --data")
    parser.add_argument("--data", default="data/bedroom")
    parser.add_argument("--limit", type=int, help="only so many photos")
    main(parser.parse_args())
