"""Seconds an iteration of FastGAN: our step beside the published one, same process, same batch.

    python tests/bench_train.py                       # 256×256, 64 features, 8 images
    python tests/bench_train.py --size 1024 --batch-size 2 --steps 1

Both in float32 on the CPU with the L1 reconstruction loss, taking turns; the median of each.
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from published import published_l1, published_step

import nets
import train_fastgan


def main(args):
    torch.manual_seed(0)
    real = torch.rand(args.batch_size, 3, args.size, args.size) * 2 - 1
    distance = train_fastgan.perceptual_distance("l1", real.device)
    networks = {"generator": nets.FastGANGenerator(args.size, 256, args.features),
                "discriminator": nets.FastGANDiscriminator(args.size, args.features)}
    adams = {name: torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999))
             for name, network in networks.items()}
    average = [p.detach().clone() for p in networks["generator"].parameters()]

    def published():
        published_step(*networks.values(), *adams.values(), average, 0.999, real, published_l1)

    def ours():
        train_fastgan.train_step(networks, adams, average, 0.999, real, ["color", "translation"],
                                 distance)

    seconds = {published: [], ours: []}
    for step in range(1 + args.steps):
        for function, times in seconds.items():
            start = time.perf_counter()
            function()
            if step:  # the first one allocates
                times.append(time.perf_counter() - start)
    median = {function: statistics.median(times) for function, times in seconds.items()}
    print(f"{args.size}×{args.size}, {args.features} features, {args.batch_size} images, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("step        s/iteration  ratio")
    for function, value in median.items():
        print(f"{function.__name__:<10}  {value:11.2f}  {median[published] / value:5.2f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of both: {peak:.1f} GiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    main(parser.parse_args())
