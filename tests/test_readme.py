"""README's commands: their flags are known, and its shell loops run, on drawn photos."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
LOOPS = [block for block in BLOCKS if "\ndone" in block]
# What makes a loop's commands quick; a flag given twice counts as it is given last.
SMALL = {
    "train_fastgan.py": "--size 256 --features 4 --batch-size 2 --iters 2 "
                        "--reconstruction l1",
    "train_dcgan.py": "--features 4 --batch-size 4 --epochs 1",
    "evaluate.py": "--weights random --n 4",
}


def test_every_command_has_flags_that_its_script_knows(script):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).is_file(), link
    commands = re.findall(r"(?:python|torchrun [^\n]*?) ((?:tests/)?\w+\.py[^\n#&;|]*)",
                          "\n".join(BLOCKS))
    assert len(commands) >= 15
    helps = {}
    for name, *arguments in map(shlex.split, commands):
        if name not in helps:
            helps[name] = script(name, "--help").stdout
        for flag in [word for word in arguments if word.startswith("--")]:
            assert re.search(rf"{flag}\b", helps[name]), (name, flag)


def test_there_are_loops():
    assert len(LOOPS) >= 2


@pytest.mark.parametrize("loop", LOOPS, ids=range(len(LOOPS)))
def test_loops_run(bedrooms, tmp_path, loop):
    """As they stand, but that `python` adds SMALL, in a folder that looks like a clone."""
    for path in ROOT.glob("*.py"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bedroom").symlink_to(bedrooms)
    cases = "".join(f"{name}) set -- \"$@\" {flags} ;;\n" for name, flags in SMALL.items())
    shim = tmp_path / "bin" / "python"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}esac\nexec "{sys.executable}" "$@"\n')
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", loop], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name in re.findall(r"--(?:out|json) (\S+)", loop):
        if "$" not in name and name != "-":
            assert (tmp_path / name).exists(), name
    assert list(tmp_path.glob("runs/*/ckpt_*.pth"))
