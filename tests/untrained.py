"""Checkpoints of generators that have learnt nothing, for evaluate.py."""

import json

import torch

from common import checkpoints, sampling


def write_checkpoint(folder, step, size=256, seed=0, model="fastgan", fit="square", aspect=None,
                     limit=None, **config):
    """The path of one in a run folder; without an aspect as older versions wrote it."""
    torch.manual_seed(seed)
    config = {"image_size": size, "z_dim": 64, **({"features": 4} if model == "fastgan" else {}),
              **config}
    generator = checkpoints.GENERATORS[model](**config)
    with torch.no_grad():  # noise, as training would add it
        for parameter in generator.parameters():
            if parameter.shape == (1,):
                parameter.fill_(0.2)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps({"model": model}))
    return checkpoints.save(folder, {
        "model": model, "config": config, "step": step, "fit": fit, "networks": {},
        "sampler": sampling.sampling_copy(generator).state_dict(),
        "args": {"data": model, **({"limit": limit} if limit else {})},
        "data": None if step < 20 else "of other photos",
        **({"aspect": aspect} if aspect else {})})


def sample(path, n, seed=0):
    """The first n samples of a checkpoint."""
    generator = checkpoints.load_generator(path)
    return sampling.generate(generator, sampling.latents(seed, range(n), generator.z_dim))
