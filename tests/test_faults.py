"""Kills, full disks, strangers' files, numbers that blow up: nothing lost, nothing let in."""

import contextlib
import csv
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_resume import assert_same

import evaluate
import nets
import training

pytestmark = pytest.mark.filterwarnings("ignore")  # of Pillow and torch, on damaged files
TINY = ["train_dcgan.py", "--size", 8, "--features", 4, "--z-dim", 4, "--batch-size", 4,
        "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def data(bedrooms, tmp_path_factory):
    """The photos, with no cache yet."""
    folder = tmp_path_factory.mktemp("faults") / "drawn"
    shutil.copytree(bedrooms, folder, ignore=shutil.ignore_patterns(".cache"))
    return folder


def rows(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def newest(run):
    return int(training.find_checkpoints(run)[-1].stem[5:])


def one_line(process):
    assert process.wait() == 2, (process.code, process.stderr)
    (line,) = process.stderr.splitlines()
    assert ": error: " in line
    return line


# ---------------------------------------------------------------------------------------------
# Kills
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [55, pytest.param(200, marks=pytest.mark.long)])
def test_killed_at_any_moment(launch, data, tmp_path, kills):
    """At most the steps since the last checkpoint are lost, and the end is the same."""
    steps, chance = 8 * kills, random.Random(kills)
    photos, run = tmp_path / "data", tmp_path / "runs" / "run"
    shutil.copytree(data, photos, ignore=shutil.ignore_patterns(".cache"))
    options = [*TINY, "--data", photos, "--epochs", steps, "--ckpt-every", 5, "--log-every", 1,
               "--sample-every", 50]
    process, reached, killed, checked = None, 0, 0, set()
    while True:
        if not (run.exists() and training.find_checkpoints(run)):
            shutil.rmtree(run, ignore_errors=True)
            process = launch(*options, "--name", "run", cwd=tmp_path)
        else:
            process = launch(*options, "--resume", "latest", cwd=tmp_path)
        if killed < kills:
            # Half of them while it starts, half at a moment of a step, a save, a grid.
            goal = reached + chance.randrange(12)
            if chance.random() < 0.6:
                process.wait(lambda goal=goal: (run / "log.csv").exists()
                             and (run / "log.csv").read_text().count("\n") > goal)
            time.sleep(chance.random() * 0.06)
        else:
            process.wait()
        code = process.kill()
        if code == 0:
            break
        assert code == -signal.SIGKILL, process.stderr
        killed += 1
        found = training.find_checkpoints(run) if run.exists() else []
        for path in set(found) - checked:
            training.read_checkpoint(path)
        checked |= set(found)
        if found:
            assert newest(run) >= reached, "a checkpoint was lost"
            reached = newest(run)
        if (run / "log.csv").exists():
            assert int(rows(run)[-1]["step"] or 0) <= reached + 5, "more than five steps lost"
    assert killed >= kills
    assert not list(run.glob(".*")) and not list((photos / ".cache").glob(".*"))
    assert [int(row["step"]) for row in rows(run)] == list(range(1, steps + 1))
    whole = launch(*options, "--name", "whole", cwd=tmp_path)
    assert whole.wait() == 0, whole.stderr
    assert_same(tmp_path / "runs" / "whole", run, steps)
    print(f"{killed} kills survived")


def test_killed_while_photos_are_prepared(launch, tmp_path):
    """Nothing half done is published; another go gives the bytes of an undisturbed one."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert launch("prepare_data.py", "--demo", 2, "--out", whole, cwd=tmp_path).wait() == 0
    chance = random.Random(0)
    for _ in range(5):
        process = launch("prepare_data.py", "--demo", 2, "--out", out, cwd=tmp_path)
        time.sleep(chance.random() * 1.5)
        process.kill()
        if (out / "manifest.csv").exists():
            break
    assert launch("prepare_data.py", "--demo", 2, "--out", out, cwd=tmp_path).wait() == 0
    for path in whole.rglob("*.*"):
        assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes()
    assert not (out / ".staging").exists()


# ---------------------------------------------------------------------------------------------
# Full disks, folders that can't be written or go away
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(launch, data, tmp_path_factory):
    """Two hundred steps without any fault."""
    folder = tmp_path_factory.mktemp("whole")
    process = launch(*TINY, "--data", data, "--epochs", 200, "--ckpt-every", 20, "--log-every", 1,
                     "--sample-every", 200, "--name", "run", cwd=folder)
    assert process.wait() == 0, process.stderr
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
    before = {path: path.read_bytes() for path in training.find_checkpoints(run)}
    os.kill(process.pid, signal.SIGCONT)
    line = one_line(process)
    assert "File too large" in line or "ckpt_" in line, line
    assert which in line or which == "losses.png" and "samples_" in line, line
    assert before and all(path.read_bytes() == old for path, old in before.items())
    assert not list(run.glob(".*")) and set(training.find_checkpoints(run)) >= set(before)
    process = launch(*TINY[:1], "--resume", run, "--sample-every", 200, cwd=tmp_path)
    assert process.wait() == 0, process.stderr
    assert_same(whole, run, 200)


def test_disk_full_at_the_start(launch, data, tmp_path):
    process = launch(*TINY, "--data", data, "--name", "run", cwd=tmp_path, limit=100)
    assert "args.json" in one_line(process)
    process = launch("prepare_data.py", "--demo", 2, "--out", "new", cwd=tmp_path, limit=1000)
    assert "File too large" in one_line(process)
    assert not (tmp_path / "new").exists()


@contextlib.contextmanager
def small_disk(size):
    """In this process no file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_cache_that_does_not_fit_is_done_without(data, tmp_path, capfd):
    shutil.copytree(data, tmp_path / "d", ignore=shutil.ignore_patterns(".cache"))
    expected = training.load_images(data, "train", 32)
    with small_disk(5000):
        found = training.load_images(tmp_path / "d", "train", 32)
        evaluate.write_cache(tmp_path / "e" / "x.pt", torch.zeros(5000))
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]
    warnings = capfd.readouterr().err.splitlines()
    assert len(warnings) == 2 and all(" not written (" in line for line in warnings), warnings
    assert not list((tmp_path / "d" / ".cache").iterdir()) and not list((tmp_path / "e").iterdir())


def test_a_table_that_does_not_fit_leaves_the_old_one(tmp_path, capfd):
    (tmp_path / "table.md").write_text("old")
    with small_disk(5000), pytest.raises(SystemExit) as stop, training.system_errors(), \
            training.replacing(tmp_path / "table.md") as file:
        file.write(b"new" * 9000)
    assert stop.value.code == 2 and "table.md File too large" in capfd.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_device_is_not_replaced(tmp_path, capfd):
    os.mkfifo(tmp_path / "stdout")
    with pytest.raises(SystemExit), training.replacing(tmp_path / "stdout"):
        pass
    assert "is not a file that could be replaced" in capfd.readouterr().err
    assert (tmp_path / "stdout").is_fifo()


def test_read_only_folders(launch, whole, data, tmp_path):
    run, out, photos = tmp_path / "runs" / "run", tmp_path / "sealed", tmp_path / "photos"
    shutil.copytree(whole, run)
    shutil.copytree(data, photos, ignore=shutil.ignore_patterns(".cache"))
    out.mkdir()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for folder in (run, out, photos):
        folder.chmod(0o555)
    process = launch(*TINY[:1], "--resume", run, "--epochs", 210, cwd=tmp_path, powerless=True)
    line = one_line(process)
    assert "Permission denied" in line and str(run) in line
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}
    process = launch(*TINY, "--data", data, "--out", out / "runs", cwd=tmp_path, powerless=True)
    assert "Permission denied" in one_line(process)
    process = launch(*TINY, "--data", photos, "--epochs", 1, "--name", "done", cwd=tmp_path,
                     powerless=True)
    assert process.wait() == 0 and "not written (Permission denied)" in process.stderr
    for folder in (run, out, photos):
        folder.chmod(0o755)


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


# ---------------------------------------------------------------------------------------------
# Checkpoints are data
# ---------------------------------------------------------------------------------------------


def write(folder, **more):
    folder.mkdir(exist_ok=True)
    generator = nets.GANGenerator(4, 2)
    state = {"model": "gan", "config": {"image_size": 4, "z_dim": 2}, "step": 3,
             "args": {"data": "drawn"}, "sampler": generator.state_dict(), "networks": {},
             "optimizers": None, "data": None, **more}
    return training.save_checkpoint(folder, state)


def refusal(call, *arguments):
    """The one line with which a call ends; None where it returns."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            call(*arguments)
            return None
        except SystemExit as stop:
            assert stop.code == 2
    (line,) = stderr.getvalue().splitlines()
    return line


def repack(source, target, compression=zipfile.ZIP_STORED, **records):
    """A copy of a checkpoint, packed, with other records."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            data = old.read(entry)
            name = entry.filename.rpartition("/")[2]
            new.writestr(entry.filename, records.get(name, data))
    return target


def nested(levels):
    value = [1] * 10
    for _ in range(levels):
        value = [value] * 10
    return value


def test_bombs_and_absurd_shapes(tmp_path):
    """Each is refused in well under a gigabyte and a few seconds."""
    good = write(tmp_path / "good")
    bomb = repack(good, tmp_path / "bomb.pth", zipfile.ZIP_DEFLATED, **{"0": bytes(2**28)})
    assert bomb.stat().st_size < 10**6
    hostile = {"wide": torch.zeros(1).expand(10**12), "deep": nested(12), "set": {1, 2},
               "meta": torch.empty(10**13, device="meta"), "sparse": torch.eye(3).to_sparse(),
               "bytes": bytearray(100), "parameter": torch.zeros(1).expand(10**9)}
    paths = [bomb]
    for name, value in hostile.items():
        paths.append(tmp_path / f"{name}.pth")
        torch.save({"format": 1, "model": "gan", "step": 1, "x": value}, paths[-1])
        paths.append(tmp_path / f"published {name}.pth")
        torch.save({"g": {"feat_8.x": value}, "d": {}}, paths[-1])
    cycle = []
    cycle.append(cycle)
    paths.append(tmp_path / "cycle.pth")
    torch.save({"format": 1, "x": cycle}, paths[-1])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for path in paths:
        line = refusal(training.read_checkpoint, path)
        assert line and path.name in line, path
    assert time.monotonic() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_size_that_a_checkpoint_only_claims_takes_no_memory(tmp_path):
    for size in ({"image_size": 2**15, "z_dim": 2**15}, {"image_size": 8, "z_dim": 2}):
        saved = training.read_checkpoint(write(tmp_path / str(size["z_dim"]), config=size))
        line = refusal(evaluate.load_generator, saved, torch.device("cpu"))
        assert "of another network" in line
    saved = training.read_checkpoint(write(tmp_path / "right"))
    generator = evaluate.load_generator(saved, torch.device("cpu"))
    assert generator(torch.zeros(3, 2)).shape == (3, 3, 4, 4)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A checkpoint of ours, one of the published FastGAN's and one in torch's old file format."""
    folder = tmp_path_factory.mktemp("originals")
    g, d = nets.FastGANGenerator(256, 4, 1), {"x": torch.ones(3)}
    torch.save({"g": g.state_dict(), "d": d}, folder / "published.pth")
    torch.save({"g": {"a": torch.ones(9)}, "d": d}, folder / "old.pth",
               _use_new_zipfile_serialization=False)
    return [write(folder), folder / "published.pth", folder / "old.pth"]


def mutations(chance, data):
    """The bytes, endlessly, each time otherwise damaged."""
    while True:
        damaged, kind = bytearray(data), chance.randrange(5)
        at = chance.randrange(len(data))
        if kind == 0:  # a bit
            damaged[at] ^= 1 << chance.randrange(8)
        elif kind == 1:  # a few bytes, many of them in the part that gives structure
            for _ in range(chance.randrange(1, 30)):
                damaged[chance.randrange(min(len(data), 2000))] = chance.randrange(256)
        elif kind == 2:
            del damaged[at:]
        elif kind == 3:
            del damaged[at : at + chance.randrange(1, 200)]
        else:  # a piece of it once more
            piece = chance.randrange(len(data))
            damaged[at:at] = data[piece : piece + chance.randrange(1, 200)]
        if bytes(damaged) != data:
            yield bytes(damaged)


def fuzz_count(request, share):
    return max(10, int(request.config.getoption("--fuzz") * share))


def test_fuzzed_checkpoints(request, originals, tmp_path):
    """One line, or contents that the checksum confirms."""
    path, chance, refused = tmp_path / "fuzzed.pth", random.Random(1), 0
    whole = training.digest(training.read_checkpoint(originals[0])["sampler"])
    for original in originals:
        damaged = mutations(chance, original.read_bytes())
        for _ in range(fuzz_count(request, 0.4 / 3)):
            path.write_bytes(next(damaged))
            line = refusal(training.read_checkpoint, path)
            assert line is None or path.name in line
            refused += line is not None
            if line is None and original == originals[0]:  # in what torch does not read
                assert training.digest(training.read_checkpoint(path)["sampler"]) == whole
    print(f"{refused} of {3 * fuzz_count(request, 0.4 / 3)} damaged checkpoints refused")


def test_fuzzed_manifests(request, data, tmp_path):
    shutil.copytree(data, tmp_path / "d", ignore=shutil.ignore_patterns(".cache"))
    manifest = tmp_path / "d" / "manifest.csv"
    damaged, names = mutations(random.Random(2), manifest.read_bytes()), []
    for _ in range(fuzz_count(request, 0.3)):
        manifest.write_bytes(next(damaged))
        line = refusal(training.split_files, tmp_path / "d", "train")
        assert line is None or "d " in line or "manifest.csv" in line
        names.append(line)
    print(f"{len(names) - names.count(None)} of {len(names)} damaged manifests refused")


def test_fuzzed_photos(request, tmp_path):
    """Of a plain folder what decodes is let in; where a manifest lists checksums, nothing is."""
    chance = random.Random(3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
    kinds = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp",
             "WEBP": ".webp", "PPM": ".ppm"}
    folder, done, refused = tmp_path / "photos", 0, 0
    folder.mkdir()
    (tmp_path / "listed" / "train").mkdir(parents=True)
    for kind, suffix in kinds.items():
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        damaged = mutations(chance, buffer.getvalue())
        for i in range(fuzz_count(request, 0.3) // len(kinds) + 1):
            path, data = folder / f"x{suffix}", next(damaged)
            path.write_bytes(data)
            line = refusal(training.decode_all, training.image_files(folder), 8)
            assert line is None or "cannot be read" in line
            done, refused = done + 1, refused + (line is not None)
            path.unlink()
            if i % 20 == 0:
                photo = tmp_path / "listed" / "train" / f"x{suffix}"
                photo.write_bytes(data)
                digest = training.hashlib.sha256(buffer.getvalue()).hexdigest()
                (tmp_path / "listed" / "manifest.csv").write_text(
                    f"file,file_sha256\ntrain/{photo.name},{digest}\n")
                line = refusal(training.load_images, tmp_path / "listed", "train", 8)
                assert "is not the photo that" in line
                photo.unlink()
    print(f"{refused} of {done} damaged photos refused, the others decoded")


def test_fuzzed_caches(request, data, tmp_path):
    """A damaged cache or label gives the right photos all the same."""
    shutil.copytree(data, tmp_path / "d", copy_function=shutil.copy2)
    expected, _ = training.load_images(tmp_path / "d", "train", 8)
    for path in list((tmp_path / "d" / ".cache").glob("train_8_square.*")):
        damaged = mutations(random.Random(4), path.read_bytes())
        for _ in range(fuzz_count(request, 0.01)):
            path.write_bytes(next(damaged))
            assert torch.equal(training.load_images(tmp_path / "d", "train", 8)[0], expected)


def test_a_log_that_was_edited_by_hand(tmp_path):
    header = "step,iteration,loss\n"
    log = tmp_path / "log.csv"
    log.write_text(header + "1,2,0.5\nnonsense\n2,x,0.5\n3,6,0.25,9\n4,8,1e-05\n5,10,0.1")
    training.truncate_log(log, 9)
    assert log.read_text() == header + "1,2,0.5\n4,8,1e-05\n"
    log.write_bytes(b"\xff\xfe" + log.read_bytes())
    assert "is not as it was written" in refusal(training.truncate_log, log, 9)
    log.write_text(header + "1,2,0.5\n")
    training.append_row(log, {"step": 2, "iteration": 4, "loss": 1.0, "skipped_updates": 3})
    assert log.read_text() == "step,iteration,loss,skipped_updates\n1,2,0.5,\n2,4,1.0,3\n"
    training.append_row(log, {"step": 3, "iteration": 6, "loss": 2.0})
    assert log.read_text().endswith("2,4,1.0,3\n3,6,2.0,\n")
    training.truncate_log(log, 9)
    assert len(rows(tmp_path)) == 3
    training.plot_losses(tmp_path)


# ---------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------

BLOWN_UP = {
    "gan": ["--size", 8, "--epochs", 20], "dcgan": ["--size", 8, "--features", 4, "--epochs", 20],
    "vae": ["--size", 32, "--latent", 4, "--epochs", 20],
    "fastgan": ["--size", 256, "--features", 2, "--reconstruction", "l1", "--iters", 3]}


@pytest.mark.parametrize("model", BLOWN_UP)
def test_numbers_that_blow_up_stop_the_run(launch, data, tmp_path, model):
    process = launch(f"train_{model}.py", *BLOWN_UP[model], "--batch-size", 3, "--limit", 3,
                     "--data", data, "--lr", 1e38, "--ckpt-every", 1, "--precision", "fp32",
                     "--name", "run", "--sample-every", 1000, "--log-every", 1000, cwd=tmp_path)
    line = one_line(process)
    assert "(step " in line or "after step " in line
    assert "finite" in line or any(f"became {word}" in line for word in ("nan", "inf", "-inf"))
    for path in training.find_checkpoints(tmp_path / "runs" / "run"):
        for network in training.read_checkpoint(path)["networks"].values():
            assert all(value.isfinite().all() for value in network.values()), path


def test_updates_that_fp16_skips_are_counted():
    """Without waiting for the device: the count is a tensor there."""
    numerics = training.Numerics(torch.device("cpu"), "fp16")
    parameter = torch.nn.Parameter(torch.ones(()))
    adam = torch.optim.Adam([parameter])
    for factor, skipped in ((1, 0), (1e38, 1), (1, 1), (float("inf"), 2), (float("nan"), 3)):
        before = parameter.item()
        numerics.update(adam, parameter * factor)
        assert int(numerics.skipped) == skipped
        assert (parameter.item() != before) == (factor == 1)


def test_skipped_updates_are_in_the_log_and_go_on_after_a_stop(launch, data, tmp_path):
    """Scales start at 65536, which this learning rate soon makes overflow."""
    options = [*TINY[:-1], "fp16", "--data", data, "--log-every", 1, "--lr", 0.5]
    for name, steps in (("whole", 12), ("parts", 5)):
        process = launch(*options, "--epochs", steps, "--name", name, cwd=tmp_path)
        assert process.wait() == 0, process.stderr
    process = launch(TINY[0], "--resume", "latest", "--name", "parts", "--epochs", 12,
                     cwd=tmp_path)
    assert process.wait() == 0, process.stderr
    counts = [int(row["skipped_updates"]) for row in rows(tmp_path / "runs" / "whole")]
    assert counts == sorted(counts)
    assert_same(tmp_path / "runs" / "whole", tmp_path / "runs" / "parts", 12)
    process = launch(TINY[0], "--resume", tmp_path / "runs" / "parts", "--epochs", 14,
                     "--precision", "fp32", cwd=tmp_path)
    assert process.wait() == 0, process.stderr
    assert [row["skipped_updates"] for row in rows(tmp_path / "runs" / "parts")][-2:] == ["", ""]


def test_a_collapsed_run_says_so(tmp_path, capfd):
    run = training.Run.__new__(training.Run)
    run.folder, run.step, run.model = tmp_path, 7, "gan"
    run.args = Namespace(data="data/drawn", seed=0)
    apart = torch.zeros(4, 3, 8, 8)
    apart[2, 1, 3, 3] = 1 / 255 + 1e-3  # half a level of 255 is 1/255 of [-1, 1]
    run.save_grid(apart)
    assert "all samples of step 7 are equal to within 1/255" in capfd.readouterr().err
    apart[2, 1, 3, 3] = 5 / 255
    run.save_grid(apart)
    run.save_grid(torch.zeros(4, 3, 8, 8), "reconstructions")
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------------------------------------
# Two at once, few photos, strange paths, long runs
# ---------------------------------------------------------------------------------------------


def test_runs_that_start_together(launch, data, tmp_path):
    """Six at once, the cache not made yet: folders of their own, the same numbers, no complaint."""
    photos = tmp_path / "data"
    shutil.copytree(data, photos, ignore=shutil.ignore_patterns(".cache"))
    together = [launch(*TINY, "--data", photos, "--epochs", 3, "--sample-every", 3, cwd=tmp_path)
                for _ in range(6)]
    assert [(process.wait(), process.stderr) for process in together] == [(0, "")] * 6
    runs = list((tmp_path / "runs").iterdir())
    assert len(runs) == 6
    assert len({training.digest(training.read_checkpoint(run / "ckpt_000003.pth")["networks"])
                for run in runs}) == 1
    images, _ = training.load_images(photos, "train", 8, "crop")
    files = training.split_files(photos, "train")
    assert torch.equal(images, torch.from_numpy(training.decode_all(files, 8, "crop")))
    assert not list((photos / ".cache").glob(".*"))


def test_two_runs_of_one_second_have_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "-20260101-000000")
    args = Namespace(name=None, data="data/drawn", out=tmp_path)
    folders = [training.open_run(args, "gan", None).name for _ in range(3)]
    first = "gan-drawn-20260101-000000"
    assert folders == [first, f"{first}-2", f"{first}-3"]


def test_the_second_to_resume_a_run_is_refused(launch, data, tmp_path):
    run = tmp_path / "runs" / "run"
    first = launch(*TINY, "--data", data, "--epochs", 10**6, "--ckpt-every", 5, "--name", "run",
                   "--sample-every", 10**6, cwd=tmp_path)
    for _ in range(2):  # the second time after a kill: the lock goes with its process
        start = newest(run) if run.exists() and training.find_checkpoints(run) else 0
        first.wait(lambda start=start: run.exists() and training.find_checkpoints(run)
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


def test_two_that_prepare_the_same_folder(launch, tmp_path):
    both = [launch("prepare_data.py", "--demo", 2, "--out", "out", cwd=tmp_path)
            for _ in range(2)]
    assert [(process.wait(), process.stderr) for process in both] == [(0, "")] * 2
    assert sorted("nothing changed" in process.stdout for process in both) == [False, True]
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 2


@pytest.mark.parametrize("model", BLOWN_UP)
def test_one_photo_is_enough(launch, data, tmp_path, model):
    """Repeated until a batch is full; in folders with names that shells stumble over."""
    folder = tmp_path / "ein Zimmer, 'größer' & \"teurer\" [1] 🛏\n"
    folder.mkdir()
    shutil.copy(min((data / "train").iterdir()), folder / "ein Bett — 寝室 *.png")
    process = launch(f"train_{model}.py", *BLOWN_UP[model], "--epochs" if model != "fastgan" else
                     "--iters", 2, "--batch-size", 3, "--data", folder, "--out", folder / "läufe",
                     "--name", "é 1", cwd=tmp_path)
    assert process.wait() == 0, process.stderr
    process = launch(f"train_{model}.py", "--resume", folder / "läufe" / "é 1",
                     "--epochs" if model != "fastgan" else "--iters", 3, cwd=tmp_path)
    assert process.wait() == 0, process.stderr
    assert newest(folder / "läufe" / "é 1") == 3


def test_memory_and_file_handles_of_a_long_run(launch, data, tmp_path):
    """As much at step 2,000 as at step 200, with rows, grids and checkpoints on the way."""
    process = launch(*TINY, "--data", data, "--epochs", 2010, "--ckpt-every", 100, "--keep", 2,
                     "--sample-every", 200, "--log-every", 1, "--name", "run", cwd=tmp_path)
    log, seen = tmp_path / "runs" / "run" / "log.csv", []
    for step in (205, 2005):
        assert process.wait(lambda step=step: log.exists()
                            and log.read_text().count("\n") > step, seconds=240) is None
        os.kill(process.pid, signal.SIGSTOP)
        with open(f"/proc/{process.pid}/statm") as statm:
            resident = int(statm.read().split()[1]) * resource.getpagesize()
        seen.append((resident, len(os.listdir(f"/proc/{process.pid}/fd"))))
        os.kill(process.pid, signal.SIGCONT)
    (early, few), (late, many) = seen
    assert process.wait() == 0, process.stderr
    assert late - early < 6 * 2**20, (early, late)
    assert many <= few + 1  # a file may be open just then
    assert len(training.find_checkpoints(log.parent)) == 2


def test_a_process_that_is_stopped_leaves_no_other(data, tmp_path):
    """As its user runs it, without the tests' forks: SIGTERM twice ends at once."""
    command = [sys.executable, str(ROOT / TINY[0]), *map(str, TINY[1:]), "--data", str(data),
               "--epochs", "1000000", "--name", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)
    while not (tmp_path / "runs" / "run" / "log.csv").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (-signal.SIGTERM, 128 + signal.SIGTERM)
