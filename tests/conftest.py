"""What several tests need: running a script as its user does, and a few drawn bedrooms."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def script():
    """script("evaluate.py", "--n", 4, cwd=...) -> the finished process, its output as text."""

    def run(name, *arguments, **options):
        command = [sys.executable, str(ROOT / name), *map(str, arguments)]
        # One thread: on images this small the second would only wait for the first.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        return subprocess.run(command, capture_output=True, text=True, timeout=300,
                              env=environment, **options)

    return run


@pytest.fixture(scope="session")
def refused(script):
    """The same for input that must be refused, by one line on stderr and exit code 2: that line."""

    def run(name, *arguments, **options):
        done = script(name, *arguments, **options)
        lines = done.stderr.splitlines()
        assert done.returncode == 2 and len(lines) == 1, (done.returncode, done.stderr)
        return lines[0]

    return run


@pytest.fixture(scope="session")
def bedrooms(script, tmp_path_factory):
    """A data folder of twelve drawn bedrooms, six and six."""
    out = tmp_path_factory.mktemp("data") / "drawn"
    done = script("prepare_data.py", "--demo", 12, "--out", out)
    assert done.returncode == 0, done.stderr
    return out
