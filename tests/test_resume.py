"""A run that was stopped or killed, and went on, ends with the bits of one that was not."""

import csv
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT, digest
from PIL import Image
from test_nets import FIXTURES

from common import checkpoints

PLANS = {  # number of all steps, where to stop; steps a checkpoint, grid, row
    "gan": (24, 13, (7, 12, 2)), "dcgan": (24, 13, (7, 12, 2)), "vae": (9, 5, (4, 5, 2)),
    "fastgan": (5, 3, (3, 3, 2)), "projected": (2, 1, (2, 2, 2))}
STATE = ("networks", "sampler", "optimizers", "scaler", "skipped", "random", "others", "data",
         "step", "iteration", "logged", "seen", "taken", "losses")


class Case:
    """A model's tiny run, of three iterations an epoch, started anew or gone on with.

    In float32 "projected" is the paper's discriminator, else the extended one.
    """

    def __init__(self, launch, data, model, precision, folder):
        self.launch, self.model, self.folder = launch, model, folder
        self.total, self.stop, (checkpoint, grid, row) = PLANS[model]
        settings = tiny.ARGUMENTS if precision == "fp32" else tiny.SMALL
        self.options = [*settings[model], "--data", data, "--precision", precision,
                        "--device", "cpu", "--batch-size", 2, "--ckpt-every", checkpoint,
                        "--sample-every", grid, "--log-every", row]

    def start(self, *arguments, total=None, **how):
        return self.launch(tiny.SCRIPTS[self.model], *arguments, tiny.STEPS[self.model],
                           total or self.total, cwd=self.folder, **how)

    def new(self, name, total=None, **how):
        return self.start(*self.options, "--name", name, total=total, **how)

    def finish(self, process):
        lines = process.finish().stderr.splitlines()
        assert all("hardly trained" in line for line in lines), lines


def whole(launch, data, model, precision, folder):
    """A case whose run in one go is in runs/whole."""
    case = Case(launch, data, model, precision, folder)
    case.finish(case.new("whole"))
    return case


@pytest.fixture(scope="module", params=tiny.SCRIPTS)
def case(request, launch, bedrooms, tmp_path_factory):
    return whole(launch, bedrooms, request.param, "fp32", tmp_path_factory.mktemp("resume"))


def rows(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def newest(run):
    return checkpoints.step_of(checkpoints.find_all(run)[-1])


def assert_same(whole, run, total, since=0):
    """The same final state, rows and grids; of a run that branched off after step `since`."""
    one, other = (checkpoints.read(folder / f"ckpt_{total:06d}.pth") for folder in (whole, run))
    for key in STATE:
        assert digest(one[key]) == digest(other[key]), key
    assert rows(run) == [row for row in rows(whole) if int(row["step"]) > since]
    grids = [path for path in whole.glob("*_*.png") if int(path.stem[-6:]) > since]
    assert grids
    for path in grids:
        assert path.read_bytes() == (run / path.name).read_bytes(), path.name
    assert not list(run.glob(".*"))


# The projected discriminator's run is stopped below; what else there is, is FastGAN's.
of_four = pytest.mark.parametrize("case", ["gan", "dcgan", "vae", "fastgan"], indirect=True)


@of_four
def test_n_steps_and_m_steps_are_n_plus_m_steps(case):
    """Stopped by its own end, in the middle of a log interval."""
    case.finish(case.new("parts", case.stop))
    case.finish(case.start("--resume", "latest", "--name", "parts"))
    assert_same(case.folder / "runs" / "whole", case.folder / "runs" / "parts", case.total)


@of_four
def test_a_checkpoint_that_was_moved_goes_on_elsewhere(case):
    runs, moved = case.folder / "runs", case.folder / "moved é" / "any name.pth"
    first = checkpoints.find_all(runs / "whole")[0]
    moved.parent.mkdir()
    shutil.copy(first, moved)
    case.finish(case.start("--resume", moved, "--name", "branch"))
    assert_same(runs / "whole", runs / "branch", case.total, since=checkpoints.step_of(first))
    if case.model != "gan":  # a whole folder is found in the same way for all
        return
    shutil.copytree(runs / "whole", case.folder / "elsewhere")
    for path in checkpoints.find_all(case.folder / "elsewhere")[1:]:
        path.unlink()
    case.finish(case.start("--resume", case.folder / "elsewhere"))
    assert_same(runs / "whole", case.folder / "elsewhere", case.total)


def stopped(case, process):
    """(step, updates of its epoch) of the checkpoint with which it ended after a signal."""
    assert process.wait() in (128 + signal.SIGTERM, 128 + signal.SIGINT), process.stderr
    assert "stopped by a signal; --resume" in process.stderr.splitlines()[-1]
    run = case.folder / "runs" / "within"
    if (run / "log.csv").exists():
        assert (run / "losses.png").stat().st_mtime >= (run / "log.csv").stat().st_mtime
    saved = checkpoints.read(checkpoints.find_all(run)[-1])
    return saved["step"], saved["taken"]


def test_stopped_within_epochs(case):
    """Between batches, after the last one, at an epoch's end, while the VAE validates, ..."""
    run, positions = case.folder / "runs" / "within", []
    process = case.new("within", stop_at=1)
    for asked in (2, 1, 5, 3, 99) if case.model != "projected" else (99,):
        positions.append(stopped(case, process))
        process = case.start("--resume", run, stop_at=asked)
        if case.model == "fastgan" and asked == 5:  # it asks once a step: two are left
            break
    case.finish(process)
    assert positions == {"fastgan": [(1, 0), (3, 0), (4, 0)], "projected": [(1, 0)],
                         "vae": [(1, 2), (1, 6), (1, 0), (2, 6), (2, 6)]}.get(
        case.model, [(1, 2), (1, 6), (1, 0), (3, 2), (3, 0)])
    assert_same(case.folder / "runs" / "whole", run, case.total)


@pytest.mark.parametrize("model", ["dcgan", "projected"])
def test_stopped_in_bf16(launch, bedrooms, tmp_path, model):
    """Where Adam's state has another layout."""
    case = whole(launch, bedrooms, model, "bf16", tmp_path)
    stopped(case, case.new("within", stop_at=1))
    case.finish(case.start("--resume", tmp_path / "runs" / "within"))
    assert_same(tmp_path / "runs" / "whole", tmp_path / "runs" / "within", case.total)


def test_gone_on_with_one_loss_less(launch, bedrooms, tmp_path):
    """Between two rows of the log: the energy distance is logged where it has a weight."""
    case = Case(launch, bedrooms, "projected", "bf16", tmp_path)
    case.finish(case.new("run", 1))
    case.finish(case.start("--resume", "latest", "--variety", 0))
    (row,) = rows(tmp_path / "runs" / "run")
    assert row["step"] == "2" and [*row][2:4] == ["d_hinge", "g_loss"] and "g_distance" not in row


@pytest.mark.parametrize(("model", "kills", "steps"), [
    ("dcgan", 15, 120), ("gan", 6, 48), ("vae", 3, 24),
    pytest.param("dcgan", 200, 1600, marks=pytest.mark.long)])
def test_killed_at_any_moment(launch, bedrooms, tmp_path, model, kills, steps):
    """At most the steps since the last checkpoint are lost, and the end is the same. One in four
    goes on from a stop by a signal, mostly in the middle of an epoch."""
    photos = tmp_path / "data"
    shutil.copytree(bedrooms, photos, ignore=shutil.ignore_patterns(".cache"))
    case, chance = Case(launch, photos, model, "fp32", tmp_path), random.Random(kills)
    case.total, run = steps, tmp_path / "runs" / "run"
    case.options += ["--ckpt-every", 5, "--log-every", 1, "--sample-every", 50]
    reached, killed, within, checked = 0, 0, 0, set()
    while True:
        if not (run.exists() and checkpoints.find_all(run)):
            shutil.rmtree(run, ignore_errors=True)
            process = case.new("run")
        else:
            process = case.start("--resume", "latest")
        if killed < kills:
            # Half of them while it starts, half at a moment of a step, a save, a grid.
            goal = reached + chance.randrange(12)
            if chance.random() < 0.6:
                process.wait(lambda goal=goal: (run / "log.csv").exists()
                             and (run / "log.csv").read_text().count("\n") > goal)
            time.sleep(chance.random() * 0.06)
        else:
            process.wait()
        code = process.kill(signal.SIGTERM if chance.random() < 0.25 else signal.SIGKILL)
        if code == 0:
            break
        if code == 128 + signal.SIGTERM:
            within += checkpoints.read(checkpoints.find_all(run)[-1])["taken"] > 0
        else:  # a signal that comes before the run catches it ends the process at once
            assert code in (-signal.SIGKILL, -signal.SIGTERM), process.stderr
            killed += 1
        found = checkpoints.find_all(run) if run.exists() else []
        for path in set(found) - checked:
            checkpoints.read(path)
        checked |= set(found)
        if found:
            assert newest(run) >= reached, "a checkpoint was lost"
            reached = newest(run)
        if (run / "log.csv").exists():
            assert int(rows(run)[-1]["step"] or 0) <= reached + 5, "more than five steps lost"
    assert killed >= kills and (within or kills < 30)
    assert not list(run.glob(".*")) and not list((photos / ".cache").glob(".*"))
    assert [int(row["step"]) for row in rows(run)] == list(range(1, steps + 1))
    case.finish(case.new("whole"))
    assert_same(tmp_path / "runs" / "whole", run, steps)


def test_another_batch_size_within_an_epoch(launch, bedrooms, tmp_path):
    """What is left of the epoch comes in batches of the new size."""
    case = Case(launch, bedrooms, "gan", "fp32", tmp_path)
    case.new("run", stop_at=1).wait()
    case.finish(case.start("--resume", "latest", "--batch-size", 3, "--log-every", 1))
    found = rows(tmp_path / "runs" / "run")
    assert [row["iteration"] for row in found[:3]] == ["2", "4", "6"]  # 2 + 4, 3 + 3, 3 + 3


def test_a_checkpoint_of_format_1_goes_on(launch, tmp_path):
    """dcgan_format1.pth: three epochs on these photos, of the code before there was format 2."""
    (tmp_path / "photos").mkdir()
    for i in range(4):
        pixels = np.random.RandomState(i).randint(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    old = checkpoints.read(FIXTURES / "dcgan_format1.pth")
    assert old["format"] == 1 and old["step"] == 3 and old["iteration"] == 6
    launch("train_dcgan.py", "--resume", FIXTURES / "dcgan_format1.pth", "--name", "run",
           "--data", "photos", "--epochs", 4, "--lr", 1e-6, cwd=tmp_path).finish()
    new = checkpoints.read(tmp_path / "runs" / "run" / "ckpt_000004.pth")
    assert new["format"] == 2 and new["iteration"] == 8
    assert new["optimizers"]["generator"]["state"][0]["step"] == 8
    for name, network in old["networks"].items():
        for key, value in network.items():
            if key.endswith("weight"):
                torch.testing.assert_close(new["networks"][name][key], value, atol=1e-5, rtol=0)
    generator = checkpoints.load_generator(old["path"])
    assert torch.equal(generator.state_dict()["main.0.weight"], old["sampler"]["main.0.weight"])


def test_a_process_that_is_stopped_leaves_no_other(bedrooms, tmp_path):
    """As its user runs it, without the tests' forks: SIGTERM twice ends at once."""
    command = [sys.executable, ROOT / "train_gan.py", "--size", 8, "--data", bedrooms, "--epochs",
               1000000, "--name", "run"]
    process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)
    while not (tmp_path / "runs" / "run" / "log.csv").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (-signal.SIGTERM, 128 + signal.SIGTERM)
