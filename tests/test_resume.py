"""A run that was stopped and went on ends with the bits of one that was not: all four scripts."""

import csv
import random
import shutil
import signal
import time

import pytest

import training

TINY = {  # arguments, option and number of all steps, where to stop; steps a checkpoint, grid, row
    "gan": (["--size", 8, "--z-dim", 4, "--batch-size", 4], "--epochs", 24, 13, (7, 12, 2)),
    "dcgan": (["--size", 8, "--features", 4, "--z-dim", 4, "--batch-size", 4,
               "--augment", "color,translation"], "--epochs", 24, 13, (7, 12, 2)),
    "vae": (["--size", 32, "--latent", 4, "--batch-size", 4, "--lr-decay", 0.9], "--epochs", 9, 5,
            (4, 5, 2)),
    "fastgan": (["--size", 256, "--features", 2, "--z-dim", 8, "--batch-size", 2,
                 "--reconstruction", "l1"], "--iters", 5, 3, (3, 3, 2)),
}
STATE = ("networks", "sampler", "optimizers", "scaler", "skipped", "random", "others", "data",
         "step", "iteration", "logged", "seen", "losses")


class Case:
    """A model's tiny run, started anew or gone on with."""

    def __init__(self, launch, data, model, precision, folder):
        self.launch, self.model, self.folder = launch, model, folder
        options, self.steps, self.total, self.stop, every = TINY[model]
        names = ("--ckpt-every", "--sample-every", "--log-every")
        self.options = [*options, "--data", data, "--precision", precision, "--device", "cpu",
                        *(item for pair in zip(names, every, strict=True) for item in pair)]

    def start(self, *arguments, total=None):
        return self.launch(f"train_{self.model}.py", *arguments, self.steps, total or self.total,
                           cwd=self.folder)

    def new(self, name, total=None):
        return self.start(*self.options, "--name", name, total=total)

    def finish(self, process):
        assert process.wait() == 0, process.stderr
        complaints = [line for line in process.stderr.splitlines() if "hardly trained" not in line]
        assert not complaints


def whole(launch, data, model, precision, folder):
    """A case whose run in one go is in runs/whole."""
    case = Case(launch, data, model, precision, folder)
    case.finish(case.new("whole"))
    return case


@pytest.fixture(scope="module", params=TINY)
def case(request, launch, bedrooms, tmp_path_factory):
    return whole(launch, bedrooms, request.param, "fp32", tmp_path_factory.mktemp("resume"))


@pytest.fixture(params=TINY)
def bf16(request, launch, bedrooms, tmp_path):
    return whole(launch, bedrooms, request.param, "bf16", tmp_path)


def rows(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same(whole, run, total, since=0):
    """The same final state, rows and grids; of a run that branched off after step `since`."""
    one, other = (training.read_checkpoint(folder / f"ckpt_{total:06d}.pth")
                  for folder in (whole, run))
    for key in STATE:
        assert training.digest(one[key]) == training.digest(other[key]), key
    assert rows(run) == [row for row in rows(whole) if int(row["step"]) > since]
    grids = [path for path in whole.glob("*_*.png") if int(path.stem[-6:]) > since]
    assert grids
    for path in grids:
        assert path.read_bytes() == (run / path.name).read_bytes(), path.name
    assert not list(run.glob(".*"))


def test_n_steps_and_m_steps_are_n_plus_m_steps(case):
    """Stopped by its own end, in the middle of a log interval."""
    case.finish(case.new("parts", case.stop))
    case.finish(case.start("--resume", "latest", "--name", "parts"))
    assert_same(case.folder / "runs" / "whole", case.folder / "runs" / "parts", case.total)


def test_a_checkpoint_that_was_moved_goes_on_elsewhere(case):
    runs, moved = case.folder / "runs", case.folder / "moved é" / "any name.pth"
    first = training.find_checkpoints(runs / "whole")[0]
    moved.parent.mkdir()
    shutil.copy(first, moved)
    case.finish(case.start("--resume", moved, "--name", "branch"))
    assert_same(runs / "whole", runs / "branch", case.total, since=int(first.stem[5:]))
    if case.model != "gan":  # a whole folder is found in the same way for all
        return
    shutil.copytree(runs / "whole", case.folder / "elsewhere")
    for path in training.find_checkpoints(case.folder / "elsewhere")[1:]:
        path.unlink()
    case.finish(case.start("--resume", case.folder / "elsewhere"))
    assert_same(runs / "whole", case.folder / "elsewhere", case.total)


def stop_twice(case):
    """Signals at random moments, and what became of it."""
    runs = case.folder / "runs"
    run, stops = runs / "stopped", []
    log = run / "log.csv"
    chance = random.Random(f"{case.model} {case.options}")
    process = case.new("stopped")
    for _ in range(2):
        enough = len(rows(run)) + 1 if log.exists() else 1
        process.wait(lambda enough=enough: log.exists() and len(rows(run)) >= enough)
        time.sleep(chance.random() / 20)
        code = process.kill(chance.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGINT]))
        if code:
            assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT), process.stderr
            assert "stopped by a signal; --resume" in process.stderr.splitlines()[-1]
            stops.append(int(training.find_checkpoints(run)[-1].stem[5:]))
        process = case.start("--resume", run)
    case.finish(process)
    assert stops, "it ended before any signal"
    assert_same(runs / "whole", run, case.total)


def test_stopped_by_signals_twice_at_random_moments(case):
    stop_twice(case)


def test_stopped_by_signals_twice_in_bf16(bf16):
    stop_twice(bf16)
