"""The commands of README and docs/: all are parsed by their scripts, and quick ones run."""

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile

import forks
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from untrained import sample, write_checkpoint

import metrics
from common import features, photos, weights
from common.rows import rows

PAGES = {path: path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
ALL = "\n\n".join(PAGES.values())
BLOCKS = re.findall(r"```sh\n(.*?)```", ALL, re.S)
INLINE = [" ".join(text.split()) for text in
          re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", ALL, flags=re.S))]
COMMANDS = [found.strip() for found in re.findall(
    r"(?:python|torchrun [^\n]*?) ((?:tests/)?\w+\.py[^\n#&;|>]*)",
    "\n".join([*BLOCKS, *INLINE]))]
PYTHON = re.findall(r"```python\n(.*?)```", ALL, re.S)
# Blocks that run as they stand, but that `python` adds SMALL: a flag given twice counts as it is
# given last. The rest take hours, a network or a GPU.
RUN = [block for block in BLOCKS if "\ndone" in block or "--images" in block]
TOO_LONG = ("--download", "--ckpt 10000", "--samples DIR")  # their lines are left out
SMALL = {
    "train_gan.py": "--batch-size 4 --epochs 1",
    "train_dcgan.py": "--features 4 --batch-size 4 --epochs 1",
    "train_vae.py": "--size 32 --latent 8 --batch-size 4 --epochs 1",
    "train_fastgan.py": "--size 256 --features 4 --batch-size 2 --iters 2",
    "train_fastgan.py --size": "--features 4 --batch-size 2 --iters 2 --reconstruction l1",
    "train_fastgan.py --resume": "--iters 3",
    "evaluate.py": "--features efficientnet --n 2",
    "evaluate.py --generate": "--generate 3",
}


def headings(text):
    """What a link may have after its #, as GitHub makes it of a heading."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)", text, re.M)}


def test_its_links_and_its_scripts_are_there():
    for path, text in PAGES.items():
        for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
            name, _, heading = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.is_file(), link
            assert not heading or heading in headings(PAGES[target]), link
    named = {command.split()[0] for command in COMMANDS}
    scripts = {path.name for path in ROOT.glob("*.py")} - {"nets.py", "metrics.py"}
    assert named >= scripts | {"tests/bench_train.py", "tests/bench_metrics.py"}


@pytest.mark.parametrize("command", sorted({c for c in COMMANDS if "$" not in c}))
def test_a_command_is_understood(monkeypatch, command):
    """Its script parses its arguments, and is stopped before it does anything; loops run, below."""
    name, *arguments = shlex.split(command)
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser, *given):
        parse(parser, *given)
        raise StopIteration

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(sys, "path", sys.path[:])
    with pytest.raises(StopIteration):
        runpy.run_path(str(ROOT / name), run_name="__main__")


def test_the_tables_flags_are_its_scripts_flags(script):
    """The table in docs/flags.md has all that the four training scripts have, and no others."""
    helps = [script(f"train_{model}.py", "--help").stdout
             for model in ("gan", "dcgan", "vae", "fastgan")]
    flags = set(re.findall(r"^  (--[\w-]+)", "".join(helps), re.M))
    listed = set(re.findall(r"`(--[\w-]+)", ALL.split("| flag |")[1].split("\n\n")[0]))
    assert listed == flags - {"--help"}


def test_the_tables_rows_are_those_of_rows_py():
    """README says of each row what common/rows.py says."""
    found = [line for line in PAGES[ROOT / "README.md"].split("| row | what it says |")[1].split(
        "\n\n")[0].splitlines()[2:] if not line.startswith("| **")]
    assert found == [f"| {row.label} | {row.says} |" for row in rows("efficientnet")]


@pytest.fixture
def clone(bedrooms, tmp_path):
    """A folder that looks like a clone, with drawn photos where README has real ones."""
    for path in (*ROOT.glob("*.py"), ROOT / "common"):
        (tmp_path / path.name).symlink_to(path)
    shutil.copytree(bedrooms, tmp_path / "data" / "bedroom")
    photos = sorted(bedrooms.glob("*/*.png"))
    (tmp_path / "photos").mkdir()
    for photo in photos:
        (tmp_path / "photos" / photo.name).symlink_to(photo)
    with tarfile.open(tmp_path / "data" / "indoorCVPR_09.tar", "w") as archive:
        for i, photo in enumerate(photos):
            archive.add(photo, f"Images/{('bedroom', 'kitchen')[i % 2]}/{photo.name}")
    shutil.copy(tmp_path / "data" / "indoorCVPR_09.tar", tmp_path / "indoor_houses.tar")
    return tmp_path


@pytest.mark.parametrize("block", RUN, ids=range(len(RUN)))
def test_a_block_runs(clone, launch, block):
    """Evaluations of runs, and training, in forks, which spare importing torch and making random
    networks for each; the rest as it is, evaluate.py --samples among it."""
    cases = "".join(f'"{name}"*) set -- "$@" {flags} ;;\n'
                    for name, flags in reversed(SMALL.items()))
    pipes = [pipe.fileno() for pipe in (launch.requests, launch.answers)]
    shim = clone / "bin" / "python"
    shim.parent.mkdir()
    shim.write_text(f'''#!/bin/sh
        case "$1 $2" in {cases} esac
        case "$1 $2" in
            train_*|"evaluate.py --"[!s]*)
                set -- "{forks.__file__}" {pipes[0]} {pipes[1]} "$@" ;;
        esac
        exec "{sys.executable}" "$@"
        ''')
    shim.chmod(0o755)
    environment = {**os.environ, "HOME": str(clone), "PATH": f"{shim.parent}:{os.environ['PATH']}"}
    lines = [line for line in block.splitlines() if not any(words in line for words in TOO_LONG)]
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(lines)], cwd=clone,
                          env=environment, pass_fds=pipes, capture_output=True, text=True,
                          timeout=600)
    assert done.returncode == 0, done.stderr
    for name in re.findall(r"--(?:out|json) (\S+)", "\n".join(lines)):
        if "$" not in name and name != "-":
            assert (clone / name).exists(), name
    assert list(clone.glob("runs/*/ckpt_*.pth")) or "train_" not in block


def test_from_python(bedrooms, tmp_path, monkeypatch, capsys):
    """The two blocks of README: eight samples of a checkpoint, and a number for two folders."""
    path = write_checkpoint(tmp_path / "runs" / "mine", 2_000, 128)
    shutil.copytree(bedrooms, tmp_path / "data" / "mine")
    shutil.copytree(bedrooms / "train", tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    first, second = PYTHON
    exec(first, {})
    with Image.open("eight.png") as picture:
        grid = torch.from_numpy(np.array(picture)).permute(2, 0, 1).view(3, 132, 8, 132)
    assert torch.equal(grid.permute(2, 0, 1, 3)[..., 2:-2, 2:-2], sample(path, 8))
    exec(second, {})
    network = weights.efficientnet_lite2_network()
    x, y = (features.features(photos.load_images(bedrooms, split, 256)[0], network)
            for split in ("train", "val"))
    assert float(capsys.readouterr().out) == pytest.approx(metrics.frechet_distance(x, y))


def test_there_are_blocks_that_run():
    assert len(RUN) >= 4
