"""What several tests need: running a script as its user does, and a few drawn bedrooms."""

import hashlib
import os
import runpy
import sys

# Before torch is imported, here or in a script that a test runs: on images as small as the tests'
# a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from forks import ROOT, shared  # noqa: E402

sys.path.insert(0, str(ROOT))


def digest(value):
    """A SHA-256 over nested dicts, lists, tensors and plain values: equal where all bits are."""
    sha = hashlib.sha256()

    def visit(value):
        if isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, (dict, list, tuple)):
            items = value.items() if isinstance(value, dict) else value
            sha.update(f"{len(value)}".encode())
            for item in items:
                visit(item)
        else:
            sha.update(repr(value).encode())

    visit(value)
    return sha.hexdigest()


@pytest.fixture
def random_state_untouched():
    """For modules that promise to leave numpy's and torch's global random state alone."""
    torch.manual_seed(1234)  # a state that no function would leave behind by chance
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


@pytest.fixture(scope="session")
def launch():
    """launch("train_gan.py", "--size", 8, cwd=...) -> a forks.Process: quick, to be killed."""
    return shared()


@pytest.fixture(scope="session")
def script(launch):
    """script("evaluate.py", "--n", 4, cwd=...) -> its forks.Process, once it has ended well."""
    return lambda *command, code=0, **options: launch(*command, **options).finish(code)


@pytest.fixture
def refused(monkeypatch, capfd):
    """Input that must be refused by one line on stderr and exit code 2: returns that line.

    The script runs as __main__ in this process, which spares the imports for each of many cases.
    """

    def run(name, *arguments, cwd=ROOT, env=()):
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "argv", [str(ROOT / name), *map(str, arguments)])
            for key, value in dict(env).items():
                patch.setenv(key, value)
            capfd.readouterr()
            with pytest.raises(SystemExit) as stop:
                runpy.run_path(str(ROOT / name), run_name="__main__")
        lines = capfd.readouterr().err.splitlines()
        assert stop.value.code == 2 and len(lines) == 1, (arguments, stop.value.code, lines)
        return lines[0]

    return run


@pytest.fixture(scope="session")
def bedrooms(script, tmp_path_factory):
    """A data folder of twelve drawn bedrooms, six and six."""
    out = tmp_path_factory.mktemp("data") / "drawn"
    script("prepare_data.py", "--demo", 12, "--out", out)
    return out


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=1200, help="damaged inputs of the tests that fuzz")
    parser.addoption("--gpu", action="store_true", help="run tests/test_gpu.py, and nothing else")


def pytest_configure(config):
    """Tests are about the CPU, whatever the machine has, but for those of --gpu."""
    if not config.getoption("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config, items):
    if config.getoption("gpu"):
        items[:] = [item for item in items if item.path.name == "test_gpu.py"]
