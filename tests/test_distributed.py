"""Two processes train as one: gradients, runs, resume, signals, and what ends when one is killed.

Started by torchrun, this file is what each process runs: the check of gradients where it is asked
for, then training scripts one after the other, which spares importing torch for each.
"""

import csv
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, digest

import nets
import train_dcgan
import train_fastgan
import train_gan
import train_vae
from common import checkpoints, devices

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
COMMON = ["--device", "cpu", "--precision", "fp32", "--batch-size", "2"]
TINY = {
    "fastgan": ["--size", "256", "--features", "4", "--reconstruction", "l1", "--iters"],
    "gan": ["--size", "8", "--epochs"],
    "dcgan": ["--size", "16", "--features", "4", "--augment", "color,translation", "--epochs"],
    "vae": ["--size", "32", "--latent", "8", "--epochs"],
}


# In each process -----------------------------------------------------------------------------


def steps(n, device="cpu"):
    """Of each model: a function that makes its networks and one that takes one step of them on
    n photos; all in evaluation mode, where an image depends on no other in its batch.
    """
    numerics = devices.Numerics(torch.device(device), "fp32")
    l1 = train_fastgan.perceptual_distance("l1", numerics)
    torch.manual_seed(1)
    photos = torch.rand(2 * n, 3, 256, 256) * 2 - 1

    def fastgan(networks, descents, part, share):
        average = list(map(torch.clone, networks["generator"].parameters()))
        train_fastgan.train_step(networks, descents, numerics, average, 0.1, photos[part], [],
                                 lambda xs, ys: share * l1(xs, ys))

    def vae(networks, descents, part, share):
        train_vae.train_step(networks["vae"], descents["vae"], numerics,
                             photos[part, :, :32, :32], 1)

    def gan(networks, descents, part, share):
        train_gan.train_step(networks, descents, numerics, photos[part, :, :8, :8])

    def dcgan(networks, descents, part, share):
        train_dcgan.train_step(networks, descents, numerics, photos[part, :, :16, :16], [])

    return {
        "fastgan": (fastgan, lambda: {"generator": nets.FastGANGenerator(256, 16, 4),
                                      "discriminator": nets.FastGANDiscriminator(256, 4)}),
        "vae": (vae, lambda: {"vae": nets.VAE(32, 8)}),
        "gan": (gan, lambda: {"generator": nets.GANGenerator(8, 16),
                              "discriminator": nets.GANDiscriminator(8)}),
        "dcgan": (dcgan, lambda: {"generator": nets.DCGANGenerator(16, 16, 4),
                                  "discriminator": nets.DCGANDiscriminator(16, 4)}),
    }


def gradients(model, n, part, share):
    """Those of one step from seeded weights on photos[part]; random draws are made for all 2 n
    images, of which this process takes its part."""
    step, build = steps(n)[model]
    torch.manual_seed(0)
    networks, found = build(), []
    if model == "fastgan":  # spectral norms and batch norms find their statistics
        with torch.no_grad():
            for _ in range(20):
                networks["discriminator"].reconstruct(
                    networks["discriminator"](*networks["generator"](torch.randn(4, 16)))[1], 0)
    # Not Adam, whose first step is the gradient's sign: where it is 0, rounding would decide.
    descents = {name: torch.optim.SGD(net.eval().parameters()) for name, net in networks.items()}
    for descent in descents.values():
        descent.register_step_pre_hook(lambda descent, *_: found.extend(
            p.grad.clone() for p in descent.param_groups[0]["params"]))
    shared = {name: devices.parallel(net, find_unused_parameters=name == "discriminator"
                                     and model == "fastgan") for name, net in networks.items()}
    randn, rand_like = torch.randn, torch.rand_like
    torch.randn = lambda _, *rest, **more: randn(2 * n, *rest, **more)[part]
    torch.rand_like = lambda x: torch.rand(2 * n, *x.shape[1:])[part]
    try:
        step(shared, descents, part, share)
    finally:
        torch.randn, torch.rand_like = randn, rand_like
    return found


def check_gradients():
    """Fails unless two processes, each with its half of a batch, have the gradients of one."""
    n, rank = 3, int(os.environ["RANK"])
    single = {model: gradients(model, n, slice(None), 0.5) for model in TINY}
    devices.join(torch.device("cpu"))
    for model, expected in single.items():
        found = gradients(model, n, slice(rank * n, (rank + 1) * n), 1.0)
        assert len(found) == len(expected) > 10, model
        for one, other in zip(found, expected, strict=True):
            assert (one - other).abs().max() <= 1e-4 * other.abs().max(), model


def run_scripts(commands):
    for command in commands:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


# The tests -----------------------------------------------------------------------------------


def launch(commands):
    done = subprocess.run([*TORCHRUN, __file__, json.dumps(commands)], capture_output=True,
                          text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def whole_runs(bedrooms, tmp_path_factory):
    """Four steps of each script by two processes, after the check of the gradients."""
    out = tmp_path_factory.mktemp("runs")
    commands = [[str(ROOT / f"train_{model}.py"), *COMMON, *tiny, "4", "--data", str(bedrooms),
                 "--out", str(out), "--name", model, "--ckpt-every", "2", "--sample-every", "4",
                 "--log-every", "3"] for model, tiny in TINY.items()]
    done = launch(["gradients", *commands])
    assert done.stdout.count("run folder") == 4 == done.stdout.count("step 4:")  # said once
    return out


@pytest.mark.parametrize("model", TINY)
def test_one_process_writes_and_each_draws_its_own(whole_runs, model):
    """The gradients were compared before: GAN's D has no batch norm; the others' was fixed."""
    names = {path.name for path in (whole_runs / model).iterdir()} - {"reconstructions_000004.png"}
    assert names == {"args.json", "log.csv", "losses.png", "samples_000004.png", "ckpt_000002.pth",
                     "ckpt_000004.pth"}
    (row,) = csv.DictReader((whole_runs / model / "log.csv").open())
    assert row["step"] == "3"
    saved = checkpoints.read(whole_runs / model / "ckpt_000004.pth")
    (other,) = saved["others"]
    assert len(saved["losses"]) == len(other["losses"]) > 0
    assert not torch.equal(saved["losses"], other["losses"])
    assert not torch.equal(saved["random"]["cpu"], other["random"]["cpu"])


def test_resume_with_as_many_is_exact_and_with_fewer_or_more_works(whole_runs):
    commands = {2: [], 1: []}
    for model in TINY:
        for number in commands:
            part = whole_runs / f"{model}{number}"
            shutil.copytree(whole_runs / model, part)
            for stale in ("ckpt_000004.pth", "samples_000004.png"):
                (part / stale).unlink()
            commands[number].append([str(ROOT / f"train_{model}.py"), "--resume", str(part)])
    launch(commands[2])
    run_in_this_process(commands[1])
    more = []
    for model, tiny in TINY.items():  # copied: this process locks the folder
        shutil.copytree(whole_runs / f"{model}1", whole_runs / f"{model}more")
        more.append([str(ROOT / f"train_{model}.py"), "--resume", str(whole_runs / f"{model}more"),
                     tiny[-1], "5"])
    launch(more)
    for model in TINY:
        saved = checkpoints.read(whole_runs / f"{model}more" / "ckpt_000005.pth")
        assert len(saved["others"]) == 1, model  # of the second process
        first, second, alone = (checkpoints.read(whole_runs / f"{model}{number}" /
                                                         "ckpt_000004.pth")
                                for number in ("", 2, 1))
        for key in ("networks", "sampler", "optimizers", "random", "seen", "losses", "others"):
            assert digest(first[key]) == digest(second[key]), (model, key)
        for name in ("log.csv", "samples_000004.png"):
            assert ((whole_runs / model / name).read_bytes()
                    == (whole_runs / f"{model}2" / name).read_bytes()), model
        assert alone["step"] == 4 and alone["others"] == []
        assert digest(first["networks"]) != digest(alone["networks"])


def test_two_nodes_are_two_processes(whole_runs, bedrooms, tmp_path):
    """Two launchers with an address between them; bit for bit what one launcher's processes do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [ROOT / "train_gan.py", *COMMON, *TINY["gan"], 4, "--data", bedrooms, "--out",
               tmp_path, "--name", "gan"]
    nodes = [subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={node}",
         "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}",
         *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for node in range(2)]
    try:
        for node in nodes:
            _, errors = node.communicate(timeout=180)
            assert node.returncode == 0, errors
    finally:
        for node in nodes:
            node.kill()
    one, two = (checkpoints.read(out / "gan" / "ckpt_000004.pth")
                for out in (whole_runs, tmp_path))
    assert digest(one["networks"]) == digest(two["networks"])


def run_in_this_process(commands):
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    arguments = sys.argv
    try:
        run_scripts(commands)
    finally:
        sys.argv = arguments
        for name, handler in handlers.items():
            signal.signal(name, handler)


def workers(launcher):
    """{rank: process id} of a torchrun's processes."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher:
                entries = (path / "environ").read_bytes().split(b"\0")
                (rank,) = [int(entry[5:]) for entry in entries if entry.startswith(b"RANK=")]
                found[rank] = int(path.name)
        except (OSError, ValueError):
            continue  # it has just ended, or not yet begun
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_to_one_process_stops_both(bedrooms, tmp_path, number):
    """Killed: the other says so and ends within a minute. Asked to stop: both do, and save."""
    command = [ROOT / "train_gan.py", *COMMON, *TINY["gan"], 100000, "--data", bedrooms, "--out",
               tmp_path, "--name", "run", "--ckpt-every", 10]
    launcher = subprocess.Popen([*TORCHRUN, *map(str, command)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.time() + 120
        while not list((tmp_path / "run").glob("ckpt_*")) and time.time() < deadline:
            time.sleep(0.05)
        processes = workers(launcher.pid)
        os.kill(processes[1], number)
        sent = time.time()
        output, errors = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert time.time() - sent < 60 and launcher.returncode != 0
    assert not any(Path(f"/proc/{process}").exists() for process in processes.values())
    newest = checkpoints.find_all(tmp_path / "run")[-1]
    step = checkpoints.read(newest)["step"]
    if number == signal.SIGKILL:
        assert "process 0: error: another of the 2 processes ended" in errors
        assert step % 10 == 0
    else:
        assert "stopped by a signal; --resume" in errors and f"step {step}: " in output
        assert "exitcode  : 143" in errors


if __name__ == "__main__":
    tasks = json.loads(sys.argv[1])
    torch.distributed.destroy_process_group = lambda: None  # the next script goes on with it
    if tasks[0] == "gradients":
        check_gradients()
        del tasks[0]
    run_scripts(tasks)
