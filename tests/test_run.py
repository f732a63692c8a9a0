"""Run folders and logs, disks that fill up, numbers that blow up, two runs at once."""

import csv
import os
import resource
import shutil
import signal
import time
from argparse import Namespace
from pathlib import Path

import pytest
import tiny
import torch
from conftest import digest
from damage import refusal
from test_resume import assert_same, newest, rows

from common import checkpoints, photos
from common.files import append_row
from common.run import Run, new_folder, plot_losses, truncate_log

TINY = ["train_dcgan.py", *tiny.ARGUMENTS["dcgan"], "--augment", "none", "--batch-size", 4,
        "--device", "cpu", "--precision", "fp32"]

@pytest.fixture(scope="module")
def data(bedrooms, tmp_path_factory):
    """The photos, with no cache yet."""
    folder = tmp_path_factory.mktemp("faults") / "drawn"
    shutil.copytree(bedrooms, folder, ignore=shutil.ignore_patterns(".cache"))
    return folder


def one_line(process):
    assert process.wait() == 2, (process.code, process.stderr)
    (line,) = process.stderr.splitlines()
    assert ": error: " in line
    return line


# The log


def test_log_rows_after_the_checkpoint_and_torn_ones_go(tmp_path):
    log = tmp_path / "log.csv"
    for step in range(1, 6):
        append_row(log, {"step": step, "loss": step / 7})
    whole = log.read_text()
    log.write_text(whole + "6,0.")
    truncate_log(log, 5)
    assert log.read_text() == whole
    log.write_text(whole + "6")
    truncate_log(log, 3)
    found = list(csv.DictReader(log.open()))
    assert [int(row["step"]) for row in found] == [1, 2, 3] and float(found[2]["loss"]) == 3 / 7
    truncate_log(log, 0)
    append_row(log, {"step": 1, "loss": 1})
    assert log.read_text() == "step,loss\n1,1\n"


def test_a_log_that_was_edited_by_hand(tmp_path):
    header = "step,iteration,loss\n"
    log = tmp_path / "log.csv"
    log.write_text(header + "1,2,0.5\nnonsense\n2,x,0.5\n3,6,0.25,9\n4,8,1e-05\n5,10,0.1")
    truncate_log(log, 9)
    assert log.read_text() == header + "1,2,0.5\n4,8,1e-05\n"
    log.write_bytes(b"\xff\xfe" + log.read_bytes())
    assert "is not as it was written" in refusal(truncate_log, log, 9)


def test_a_log_keeps_its_columns(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("step,iteration,loss,val\n1,2,0.5,0.5\n")
    append_row(log, {"step": 2, "iteration": 4, "loss": 1.0, "skipped_updates": 3})
    assert log.read_text() == "step,iteration,loss,val\n1,2,0.5,0.5\n2,4,1.0,\n"
    truncate_log(log, 9)
    assert len(rows(tmp_path)) == 2
    plot_losses(tmp_path)
    assert (tmp_path / "losses.png").stat().st_size > 5000


# Disks that fill up, folders that can't be written or go away


@pytest.fixture(scope="module")
def whole(launch, data, tmp_path_factory):
    """Two hundred steps without any fault."""
    folder = tmp_path_factory.mktemp("whole")
    launch(*TINY, "--data", data, "--epochs", 200, "--ckpt-every", 20, "--log-every", 1,
           "--sample-every", 200, "--name", "run", cwd=folder).finish()
    return folder / "runs" / "run"


@pytest.mark.parametrize(("which", "room"), [("log.csv", 10), ("losses.png", 2000),
                                             ("ckpt_", 20000)])
def test_disk_full_while_it_trains(launch, data, whole, tmp_path, which, room):
    """RLIMIT_FSIZE comes to lie `room` bytes above the log's size, after some checkpoints."""
    run = tmp_path / "runs" / "run"
    every = 30 if which == "losses.png" else 200
    process = launch(*TINY, "--data", data, "--epochs", 200, "--ckpt-every", 20, "--log-every", 1,
                     "--sample-every", every, "--name", "run", cwd=tmp_path)
    process.wait(lambda: (run / "ckpt_000040.pth").exists())
    os.kill(process.pid, signal.SIGSTOP)
    limit = (run / "log.csv").stat().st_size + room
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    before = {path: path.read_bytes() for path in checkpoints.find_all(run)}
    os.kill(process.pid, signal.SIGCONT)
    line = one_line(process)
    assert "File too large" in line or "ckpt_" in line, line
    assert which in line or which == "losses.png" and "samples_" in line, line
    assert before and all(path.read_bytes() == old for path, old in before.items())
    assert not list(run.glob(".*")) and set(checkpoints.find_all(run)) >= set(before)
    launch(*TINY[:1], "--resume", run, "--sample-every", 200, cwd=tmp_path).finish()
    assert_same(whole, run, 200)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_stop_when_nobody_hears_it(launch, data, tmp_path, number):
    """`train ... | tee log` and Ctrl-C, which ends tee, too; a terminal that is closed."""
    out, readers = Path(launch.folder.name, str(len(launch.started))), []
    for suffix in (".out", ".err"):
        os.mkfifo(out.with_suffix(suffix))
        readers.append(os.open(out.with_suffix(suffix), os.O_RDONLY | os.O_NONBLOCK))
    process = launch(*TINY, "--data", data, "--epochs", 10**6, "--log-every", 1, "--name", "run",
                     cwd=tmp_path)
    run = tmp_path / "runs" / "run"
    code = process.wait(lambda: (run / "log.csv").exists())
    assert code is None, os.read(readers[1], 2000)
    for reader in readers:
        os.close(reader)
    assert process.kill(number) == 128 + number
    assert len(checkpoints.find_all(run)) == 1 and not list(run.glob(".*"))


def test_disk_full_at_the_start(launch, data, tmp_path):
    process = launch(*TINY, "--data", data, "--name", "run", cwd=tmp_path,
                     limits={resource.RLIMIT_FSIZE: 100})
    assert "args.json" in one_line(process)
    process = launch("prepare_data.py", "--demo", 2, "--out", "new", cwd=tmp_path,
                     limits={resource.RLIMIT_FSIZE: 1000})
    assert "File too large" in one_line(process)
    assert not (tmp_path / "new").exists()


def test_read_only_folders(launch, whole, data, tmp_path):
    run, out, folder = tmp_path / "runs" / "run", tmp_path / "sealed", tmp_path / "photos"
    shutil.copytree(whole, run)
    shutil.copytree(data, folder, ignore=shutil.ignore_patterns(".cache"))
    out.mkdir()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for sealed in (run, out, folder):
        sealed.chmod(0o555)
    process = launch(*TINY[:1], "--resume", run, "--epochs", 210, cwd=tmp_path, powerless=True)
    line = one_line(process)
    assert "Permission denied" in line and str(run) in line
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}
    process = launch(*TINY, "--data", data, "--out", out / "runs", cwd=tmp_path, powerless=True)
    assert "Permission denied" in one_line(process)
    process = launch(*TINY, "--data", folder, "--epochs", 1, "--name", "done", cwd=tmp_path,
                     powerless=True)
    assert process.wait() == 0 and "photos/.cache (Permission denied)" in process.stderr
    for sealed in (run, out, folder):
        sealed.chmod(0o755)


@pytest.mark.parametrize("every", [1, 10**6])
def test_a_run_folder_that_goes_away(launch, data, tmp_path, every):
    """Found out by the next row or, without rows, by the next checkpoint."""
    run = tmp_path / "runs" / "run"
    process = launch(*TINY, "--data", data, "--epochs", 10**6, "--ckpt-every", 5, "--log-every",
                     every, "--sample-every", 10**6, "--name", "run", cwd=tmp_path)
    process.wait(lambda: (run / "ckpt_000005.pth").exists())
    run.rename(tmp_path / "gone")
    line = one_line(process)
    assert "No such file or directory" in line and ("log.csv" in line or "ckpt_" in line)


# Numbers


@pytest.mark.parametrize("model", tiny.SCRIPTS)
def test_numbers_that_blow_up_stop_the_run(launch, data, tmp_path, model):
    steps = 3 if tiny.SIZES[model] == 256 else 20
    process = launch(tiny.SCRIPTS[model], *tiny.ARGUMENTS[model], tiny.STEPS[model], steps,
                     "--batch-size", 3, "--limit", 3, "--data", data, "--lr", 1e38, "--ckpt-every",
                     1, "--precision", "fp32", "--name", "run", "--sample-every", 1000,
                     "--log-every", 1000, cwd=tmp_path)
    line = one_line(process)
    assert "(step " in line or "after step " in line
    assert "finite" in line or any(f"became {word}" in line for word in ("nan", "inf", "-inf"))
    for path in checkpoints.find_all(tmp_path / "runs" / "run"):
        for network in checkpoints.read(path)["networks"].values():
            assert all(value.isfinite().all() for value in network.values()), path


def test_skipped_updates_are_in_the_log_and_go_on_after_a_stop(launch, data, tmp_path):
    """Scales start at 65536, which this learning rate soon makes overflow."""
    options = [*TINY[:-1], "fp16", "--data", data, "--log-every", 1, "--lr", 0.5]
    for name, steps in (("whole", 12), ("parts", 5)):
        launch(*options, "--epochs", steps, "--name", name, cwd=tmp_path).finish()
    launch(TINY[0], "--resume", "latest", "--name", "parts", "--epochs", 12,
           cwd=tmp_path).finish()
    counts = [int(row["skipped_updates"]) for row in rows(tmp_path / "runs" / "whole")]
    assert counts == sorted(counts)
    assert_same(tmp_path / "runs" / "whole", tmp_path / "runs" / "parts", 12)
    launch(TINY[0], "--resume", tmp_path / "runs" / "parts", "--epochs", 14,
           "--precision", "fp32", cwd=tmp_path).finish()
    assert [row["skipped_updates"] for row in rows(tmp_path / "runs" / "parts")][-2:] == ["", ""]


def test_a_collapsed_run_says_so(tmp_path, capfd):
    run = Run.__new__(Run)
    run.folder, run.step, run.model = tmp_path, 7, "gan"
    run.args, run.apart = Namespace(data="data/drawn", seed=0), ()
    apart = torch.zeros(4, 3, 8, 8)
    apart[2, 1, 3, 3] = 1 / 255 + 1e-3  # half a level of 255 is 1/255 of [-1, 1]
    run.save_grid(apart)
    assert "all samples of step 7 are equal to within 1/255" in capfd.readouterr().err
    apart[2, 1, 3, 3] = 5 / 255
    run.save_grid(apart)
    run.save_grid(torch.zeros(4, 3, 8, 8), "reconstructions")
    assert capfd.readouterr().err == ""


# Two at once, few photos, strange paths, long runs


def test_runs_that_start_together(launch, data, tmp_path):
    """Six at once, the cache not made yet: folders of their own, the same numbers, no complaint."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder, ignore=shutil.ignore_patterns(".cache"))
    together = [launch(*TINY, "--data", folder, "--epochs", 3, "--sample-every", 3, cwd=tmp_path)
                for _ in range(6)]
    assert [(process.wait(), process.stderr) for process in together] == [(0, "")] * 6
    runs = list((tmp_path / "runs").iterdir())
    assert len(runs) == 6
    assert len({digest(checkpoints.read(run / "ckpt_000003.pth")["networks"])
                for run in runs}) == 1
    images, _ = photos.load_images(folder, "train", 8, "crop")
    assert torch.equal(images, photos.decode_all(photos.split_files(folder, "train"), 8, "crop"))
    assert not list((folder / ".cache").glob(".*"))


def test_two_runs_of_one_second_have_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "-20260101-000000")
    args = Namespace(name=None, data="data/drawn", out=tmp_path)
    folders = [new_folder(args, "gan").name for _ in range(3)]
    first = "gan-drawn-20260101-000000"
    assert folders == [first, f"{first}-2", f"{first}-3"]


def test_the_second_to_resume_a_run_is_refused(launch, data, tmp_path):
    run = tmp_path / "runs" / "run"
    first = launch(*TINY, "--data", data, "--epochs", 10**6, "--ckpt-every", 5, "--name", "run",
                   "--sample-every", 10**6, cwd=tmp_path)
    for _ in range(2):  # the second time after a kill: the lock goes with its process
        start = newest(run) if run.exists() and checkpoints.find_all(run) else 0
        first.wait(lambda start=start: run.exists() and checkpoints.find_all(run)
                   and newest(run) > start)
        os.kill(first.pid, signal.SIGSTOP)
        before = {path: path.read_bytes() for path in run.iterdir()}
        second = launch(TINY[0], "--resume", run, "--epochs", 10**6, cwd=tmp_path)
        assert f"another process is training in {run}" in one_line(second)
        assert before == {path: path.read_bytes() for path in run.iterdir()}
        os.kill(first.pid, signal.SIGCONT)
        first.kill()
        first = launch(TINY[0], "--resume", run, "--epochs", 10**6, cwd=tmp_path)
    first.kill()


@pytest.mark.parametrize("model", ["gan", "dcgan", "vae", "fastgan"])
def test_one_photo_is_enough(launch, data, tmp_path, model):
    """Repeated until a batch is full; in folders with names that shells stumble over."""
    folder = tmp_path / "ein Zimmer, 'größer' & \"teurer\" [1] 🛏\n"
    folder.mkdir()
    shutil.copy(min((data / "train").iterdir()), folder / "ein Bett — 寝室 *.png")
    name, steps = tiny.SCRIPTS[model], tiny.STEPS[model]
    launch(name, *tiny.ARGUMENTS[model], steps, 2, "--batch-size", 3, "--data", folder, "--out",
           folder / "läufe", "--name", "é 1", cwd=tmp_path).finish()
    launch(name, "--resume", folder / "läufe" / "é 1", steps, 3, cwd=tmp_path).finish()
    assert newest(folder / "läufe" / "é 1") == 3


def test_memory_and_file_handles_of_a_long_run(launch, data, tmp_path):
    """As much at step 300 as at step 100, with rows, grids and checkpoints on the way."""
    process = launch(*TINY, "--data", data, "--epochs", 310, "--ckpt-every", 25, "--keep", 2,
                     "--sample-every", 50, "--log-every", 1, "--name", "run", cwd=tmp_path)
    log, seen = tmp_path / "runs" / "run" / "log.csv", []
    for step in (105, 305):
        assert process.wait(lambda step=step: log.exists()
                            and log.read_text().count("\n") > step) is None
        os.kill(process.pid, signal.SIGSTOP)
        with open(f"/proc/{process.pid}/statm") as statm:
            resident = int(statm.read().split()[1]) * resource.getpagesize()
        seen.append((resident, len(os.listdir(f"/proc/{process.pid}/fd"))))
        os.kill(process.pid, signal.SIGCONT)
    (early, few), (late, many) = seen
    process.finish()
    assert late - early < 4 * 2**20, (early, late)
    assert many <= few + 1  # a file may be open just then
    assert len(checkpoints.find_all(log.parent)) == 2
