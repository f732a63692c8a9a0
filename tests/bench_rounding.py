"""How far bf16 turns the gradients of FastGAN's step, beside how far another batch does.

    python tests/bench_rounding.py --ckpt runs/NAME/ckpt_001000.pth --data data/bedroom

The step of the checkpoint's networks on --batches batches, each in float32 and in bf16 with the
same draws. Printed for each network, as shares of the mean gradient's length:

    batch      root mean square of what a batch's gradient differs by from the mean of all
    rounding   of what bf16's gradient differs by from float32's on the same batch
    bias       the length of the mean over batches of that difference. Errors without a tendency
               would have the length of rounding / sqrt(batches)

and the same with some layers in float32: those that bf16 harms most stand out.
"""

import argparse
import copy
import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import bench_quality

import nets
import train_fastgan
from common import checkpoints, devices, photos

LAYERS = {  # what stays in float32: names of modules, or a class
    "none": "-", "logits": "rf_.*", "images": "to_.*", "decoders": "decoder_.*",
    "excitation": "se_.*", "batch norm": torch.nn.BatchNorm2d}


class Kept(torch.optim.SGD):
    """Keeps the gradients of a step that changes nothing."""

    def step(self):
        self.gradients = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else
                                    p.grad.flatten() for p in self.param_groups[0]["params"]])


def in_float32(network, layers):
    """The network, these of its layers outside autocast."""
    for name, module in network.named_modules():
        if isinstance(module, layers) if isinstance(layers, type) else re.fullmatch(layers, name):
            def forward(*maps, inside=module.forward):
                with torch.autocast(maps[0].device.type, enabled=False):
                    return inside(*(x.float() for x in maps))
            module.forward = forward
    return network


def gradients(networks, numerics, real, seed, layers):
    """{network: its gradient (parameters,)} of a step on these photos with the seed's draws."""
    networks = {name: in_float32(copy.deepcopy(net), layers) for name, net in networks.items()}
    kept = {name: Kept(net.parameters(), lr=0.0) for name, net in networks.items()}
    torch.manual_seed(seed)
    train_fastgan.published_step(networks, kept, numerics, real, ["color", "translation"],
                                 train_fastgan.l1)
    return {name: optimizer.gradients for name, optimizer in kept.items()}


def main(args):
    device = torch.device(args.device)
    if args.device == "cpu" and devices.fast_precision(device) != "bf16":
        bench_quality.emulate_bfloat16()
    draw = torch.randn  # always in float32, so that both precisions get the same noise
    torch.randn = lambda *shape, dtype=torch.float32, **options: draw(*shape, **options).to(dtype)
    checkpoint = checkpoints.read(args.ckpt)
    config = checkpoint["config"]
    networks = {"generator": nets.FastGANGenerator(**config),
                "discriminator": nets.FastGANDiscriminator(config["image_size"],
                                                           config["features"])}
    for name, network in networks.items():
        network.load_state_dict(checkpoint["networks"][name])
        network.to(device)
    images, _ = photos.load_images(args.data, "train", config["image_size"])
    n = args.batch_size
    batches = [photos.take_batch(images, photos.data_order(len(images), i * n, n, 0), device)
               for i in range(args.batches)]
    exact, rounded = (devices.Numerics(device, precision) for precision in ("fp32", "bf16"))
    true = [gradients(networks, exact, real, i, "-") for i, real in enumerate(batches)]
    print("| network | in float32 | batch | rounding | bias |\n| --- | --- | ---: | ---: | ---: |")
    for kind, layers in LAYERS.items():
        found = [gradients(networks, rounded, real, i, layers) for i, real in enumerate(batches)]
        for name in networks:
            plain = torch.stack([one[name] for one in true]).double()
            errors = torch.stack([one[name] for one in found]).double() - plain
            mean = plain.mean(0)
            spread = (plain - mean).square().sum() / (len(batches) - 1)
            lengths = [spread.sqrt(), errors.square().sum(1).mean().sqrt(), errors.mean(0).norm()]
            print(f"| {name} | {kind} | " + " | ".join(
                f"{(length / mean.norm()).item():.3f}" for length in lengths) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ckpt", required=True, type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/bedroom"))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    main(parser.parse_args())
