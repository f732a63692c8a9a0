"""The format of checkpoints, which are data and never code: write, read, find.

A checkpoint is one torch.save of plain values, tensors, lists and dicts; what is in it is said by
run.Run.save. The files of the published FastGAN code are read, too.
"""

import io
import json
import re
import zipfile
from pathlib import Path

import torch
from torch import nn

from common import cli, files, sampling
from nets import DCGANGenerator, FastGANGenerator, GANGenerator, SpectralConv2d, VAEDecoder

GENERATORS = {"gan": GANGenerator, "dcgan": DCGANGenerator, "vae": VAEDecoder,
              "fastgan": FastGANGenerator}
FORMAT = 2  # 1 had a checksum of its own and only whole epochs; newer ones than this are refused
LONG = 9000  # steps after which the average has its lasting weight
FIELDS = {  # what every reader relies on
    "model": str, "step": int, "config": dict, "args": dict, "networks": dict, "sampler": dict,
    "fit": str, "data": (str, type(None))}


# Write and find ------------------------------------------------------------------------------


def save(folder, state, keep=None):
    """Writes ckpt_<step>.pth, whole or not at all, then removes all but the newest `keep`."""
    path = folder / f"ckpt_{state['step']:06d}.pth"
    try:
        with files.replacing(path) as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:
        cli.fail(f"{path} could not be written ({error}); earlier checkpoints are as they were")
    for old in find_all(folder)[:-keep] if keep else []:
        old.unlink()
    return path


def step_of(path):
    """The step in the name of a checkpoint of a run."""
    return int(path.stem[5:])


def find_all(run):
    """The ckpt_<step>.pth of a run folder, by step."""
    return sorted((path for path in Path(run).glob("ckpt_*.pth") if path.stem[5:].isdecimal()),
                  key=step_of)


def newest_run(out, model=None):
    """The run folder in `out` that has the newest checkpoint, of `model` if one is given."""
    runs = []
    for record in Path(out).glob("*/args.json"):
        try:
            trained = json.loads(record.read_text())["model"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found = find_all(record.parent)
        if found and model in (None, trained):
            runs.append((found[-1].stat().st_mtime, record.parent))
    if not runs:
        cli.fail(f"no {model + ' ' if model else ''}run with a checkpoint in {out}/")
    return max(runs)[1]


def to_resume(resume, out, name, model):
    """The checkpoint that --resume names: a file, a run folder's newest, or `latest`."""
    path = Path(resume)
    if resume == "latest":
        path = Path(out, name) if name else newest_run(out, model)
    if path.is_dir():
        found = find_all(path)
        if not found:
            cli.fail(f"{path} has no checkpoint")
        return found[-1]
    return path


def named(run, wanted):
    """The checkpoints that `wanted` names: any files, and steps, latest or all of a run folder."""
    found = None
    for name in wanted:
        if not (name in ("latest", "all") or name.isdecimal()):
            yield Path(name)
            continue
        if found is None:
            run = run or newest_run("runs")
            found = {step_of(path): path for path in find_all(run)}
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


# Read ----------------------------------------------------------------------------------------


def read(path):
    """What `save` wrote, tensors on the CPU, with `path` and `published` (False) added.

    The files of the published FastGAN code (N.pth, all_N.pth) come out in the same form, with
    published True: their batch-norm statistics are not those of the averaged weights.
    Fails, in one line, on any file that is not a whole checkpoint.
    """
    path = Path(path)
    if not path.is_file():  # a pipe would never end
        cli.fail(f"no checkpoint at {path}")
    try:
        saved = load(path)
    except OSError as error:
        cli.fail(f"{path} cannot be read: {error.strerror or error}")
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        cli.fail(f"{path} is not a checkpoint, or a damaged one ({reason})")
    if isinstance(saved, dict) and {"g", "d"} <= set(saved):
        saved = from_published(saved, path)
    elif not isinstance(saved, dict) or not isinstance(saved.get("format"), int):
        cli.fail(f"{path} holds no checkpoint of this project, nor one of the published FastGAN")
    elif saved["format"] > FORMAT:
        cli.fail(f"{path} has format {saved['format']}; this version reads up to {FORMAT}")
    if "averaged" in saved:  # the sampler's name in the first files of format 1
        saved["sampler"] = saved.pop("averaged")
    saved = {"args": {}, "fit": "square", "data": None, "sampler": {}, **saved}
    for name, kind in FIELDS.items():
        if not isinstance(saved.get(name), kind) or name == "step" and saved[name] < 0:
            cli.fail(f"{path} has no usable {name!r}: not written by this project")
    for name, value in {"image_size": None, **saved["config"]}.items():
        if not isinstance(value, int) or not 0 < value < 2**16:
            cli.fail(f"{path} claims a network of {name} {value}: 1 to {2**16 - 1} can be")
    return {**saved, "published": saved.get("published") is True, "path": path}


def load(path):
    """What torch.save wrote: plain values, and tensors on the CPU. Raises whatever damage raises.

    weights_only: a pickle that would run code is refused. So is, before memory is taken for it, a
    small file that claims to hold much: packed, or one value that is seen from many places.
    """
    if zipfile.is_zipfile(path):
        files.check_zip(path)
    saved = torch.load(path, map_location="cpu", weights_only=True)
    room = 4 * path.stat().st_size  # 4: networks share tensors with what is sampled from
    waiting = [saved]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            parts = [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            parts = list(value)
        elif isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu":
                raise ValueError("a tensor of another kind")
            parts, room = [], room - value.nbytes
        elif isinstance(value, (str, int, float, type(None))):
            parts = []
        else:
            raise ValueError(f"a {type(value).__name__}")
        room -= len(parts)
        if room < 0:
            raise ValueError("larger than its file")
        waiting += parts
    return saved


def from_published(saved, path):
    """A file of the published FastGAN code, {g, d} or {g, d, g_ema, opt_g, opt_d}, in our form."""
    try:
        g, d = ({name.removeprefix("module."): value for name, value in saved[key].items()}
                for key in "gd")
        sizes = [int(name[5:].split(".")[0]) for name in g if name.startswith("feat_")]
        z_dim = g["init.init.0.weight_orig"].shape[0]
        features = len(g["feat_128.3.weight"]) // 2
        config = {"image_size": max(sizes), "z_dim": z_dim, "features": features}
        sampler = dict(g)
        if "g_ema" in saved:
            buffers = ("weight_u", "weight_v", "running_mean", "running_var", "num_batches_tracked")
            names = [name for name in g if not name.endswith(buffers)]
            sampler.update(zip(names, saved["g_ema"], strict=True))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        cli.fail(f"{path} is not a FastGAN checkpoint ({type(error).__name__}: {error})")
    named = re.fullmatch(r"(.*?)(\d+)( ?\(\d+\))?", path.stem)  # (1): of a second download
    if named and named[1] not in ("", "all_") and int(named[2]) <= 1024:
        named = None  # a version, or the images' size
    optimizers = {"generator": saved.get("opt_g"), "discriminator": saved.get("opt_d")}
    args = {"size": config["image_size"], "z_dim": z_dim, "features": features}
    return {"model": "fastgan", "config": config, "args": args,
            "step": int(named[2]) if named else 0, "trained": 0 if named else LONG,
            "networks": {"generator": g, "discriminator": d}, "sampler": sampler,
            "optimizers": optimizers if saved.get("opt_g") else None, "published": True}


# Into networks and optimisers ----------------------------------------------------------------


def load_weights(module, state, path, **options):
    """Loads a network's or an optimiser's state; fails in one line if it is another one's."""
    try:
        module.load_state_dict(state, **options)
    except (RuntimeError, AttributeError, TypeError, ValueError, LookupError) as error:
        if cli.out_of_memory(error):
            raise
        line = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        cli.fail(f"{path}: of another network or optimiser ({line})")


def known_step(checkpoint):
    """The step of a checkpoint of read; None of a published one that has none in its name."""
    return None if checkpoint["published"] and checkpoint["trained"] else checkpoint["step"]


def load_generator(path, device="cpu"):
    """The network to sample from of a checkpoint, in evaluation mode, without gradients.

    It turns latents (n, z_dim) into images (n, 3, s, s) in [-1, 1]; see sampling.py. A file that is
    no checkpoint ends the program by one line.
    """
    checkpoint = read(path)
    if checkpoint["model"] not in GENERATORS:
        cli.fail(f"{path}: unknown model {checkpoint['model']}")
    try:
        with torch.device("meta"):  # no memory for a size that the file only claims
            generator = GENERATORS[checkpoint["model"]](**checkpoint["config"])
    except (TypeError, ValueError) as error:
        cli.fail(f"{path}: {error}")
    load_weights(generator, checkpoint["sampler"], path, assign=True)
    generator = generator.to(device).float().eval().requires_grad_(False)
    return sampling.estimate_batch_norm(generator) if checkpoint["published"] else generator


def export(generator, path):
    """Writes a generator as one file that torch alone reads, of the same version or a newer one:

        images = torch.export.load(path).module()(torch.randn(n, z_dim))

    The images (n, 3, s, s) are float32 in [-1, 1]; n is any. Changes the generator: its
    convolutions' weights are normalised for good.
    """
    with_plain_convolutions(generator)
    some = {0: torch.export.Dim("n", max=2**31)}  # torch 2.6 doesn't take it without a bound
    program = torch.export.export(ImageAlone(generator).eval(), (torch.randn(2, generator.z_dim),),
                                  dynamic_shapes=(some,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # of this machine's folders
    content = io.BytesIO()
    torch.export.save(program, content)
    with files.replacing(path) as file:
        file.write(content.getbuffer())


class ImageAlone(nn.Module):
    """A generator without FastGAN's small image, its images clamped."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, z):
        images = self.generator(z)
        return (images[0] if isinstance(images, tuple) else images).clamp(-1, 1)


def with_plain_convolutions(module):
    """Puts a plain convolution of the same weight in the place of each SpectralConv2d."""
    for name, child in module.named_children():
        if isinstance(child, SpectralConv2d):
            weight = child.weight()
            kind = nn.ConvTranspose2d if child.transposed else nn.Conv2d
            inputs, outputs = weight.shape[:2] if child.transposed else weight.shape[1::-1]
            plain = kind(inputs, outputs, weight.shape[-1], child.stride, child.padding, bias=False)
            plain.weight = nn.Parameter(weight, requires_grad=False)
            setattr(module, name, plain)
        else:
            with_plain_convolutions(child)


def load_adam(optimizer, saved, path):
    """Loads Adam's moments from a saved state; learning rate and the like stay the script's.

    Lays them out in memory as the parameters are: fused Adam pairs the two by their place in
    memory, without a check. Fails in one line on the moments of other parameters.
    """
    try:
        groups = zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
        groups = [{**ours, "params": theirs["params"]} for ours, theirs in groups]
        state = {"state": saved["state"], "param_groups": groups}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        cli.fail(f"{path} holds no state of Adam ({type(error).__name__}: {error})")
    load_weights(optimizer, state, path)
    for parameter, moments in optimizer.state.items():
        shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        for name, shape in shapes.items():
            value = moments.get(name)
            if not isinstance(value, torch.Tensor) or value.shape != shape:
                cli.fail(f"{path}: Adam's {name} of a {tuple(parameter.shape)} parameter is not "
                         f"of its shape")
            if name != "step":
                moments[name] = torch.empty_like(parameter).copy_(value)
        if set(moments) != set(shapes):
            cli.fail(f"{path}: Adam's state has {', '.join(map(str, moments))}")
