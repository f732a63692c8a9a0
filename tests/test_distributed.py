"""Two processes train as one: gradients, runs, resume, signals, and what ends when one is killed.

Run as a program, by two processes, this file checks the gradients.
"""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from conftest import ROOT, digest

import train_fastgan
from common import checkpoints, devices

COMMON = ["--device", "cpu", "--precision", "fp32", "--batch-size", 2]


# In each process -----------------------------------------------------------------------------


def gradients(model, n, part, share):
    """Those of one step on photos[part], networks in evaluation mode, where an image depends on no
    other in its batch; random draws are made for all 2 n images, of which this process takes its
    part."""
    networks, found = tiny.networks("extended" if model == "projected" else model), []
    numerics = devices.Numerics(torch.device("cpu"), "fp32")
    if model in ("fastgan", "projected"):  # spectral and batch norms find their statistics
        with torch.no_grad():
            for _ in range(20):
                image, image_128 = networks["generator"](torch.randn(4, 16))
                if model == "projected":
                    networks["discriminator"](tiny.critic_levels()(image), image)
                else:
                    _, maps = networks["discriminator"](image, image_128)
                    networks["discriminator"].reconstruct(maps, 0)
    # Not Adam, whose first step is the gradient's sign: where it is 0, rounding would decide.
    descents = {name: torch.optim.SGD(net.eval().parameters()) for name, net in networks.items()}
    for descent in descents.values():
        descent.register_step_pre_hook(lambda descent, *_: found.extend(
            p.grad.clone() for p in descent.param_groups[0]["params"] if p.grad is not None))
    if model == "projected":
        networks["generator"].to_128.requires_grad_(False)
    shared = {name: devices.parallel(net, find_unused_parameters=name == "discriminator"
                                     and model == "fastgan") for name, net in networks.items()}
    randn, rand_like = torch.randn, torch.rand_like
    torch.randn = lambda _, *rest, **more: randn(2 * n, *rest, **more)[part]
    torch.rand_like = lambda x: torch.rand(2 * n, *x.shape[1:])[part]
    step, _ = tiny.training(model, shared, descents, numerics,
                            distance=lambda xs, ys: share * train_fastgan.l1(xs, ys))
    real = tiny.photos(model, 2 * n)
    try:
        step(real[part])
    finally:
        torch.randn, torch.rand_like = randn, rand_like
    return found


def check_gradients():
    """Fails unless two processes, each with its half of a batch, have the gradients of one."""
    n, rank = 3, int(os.environ["RANK"])
    # What rounds otherwise has 50 layers more to grow in, and the noise weights' gradients cancel.
    close = {"projected": 2e-2}
    single = {model: gradients(model, n, slice(None), 0.5) for model in tiny.SCRIPTS}
    devices.join(torch.device("cpu"))
    for model, expected in single.items():
        found = gradients(model, n, slice(rank * n, (rank + 1) * n), 1.0)
        assert len(found) == len(expected) > 10, model
        for one, other in zip(found, expected, strict=True):
            assert (one - other).abs().max() <= close.get(model, 1e-4) * other.abs().max(), model


# The tests -----------------------------------------------------------------------------------


def command(model, *arguments):
    return [*map(str, (ROOT / tiny.SCRIPTS[model], *arguments))]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def pair(launch):
    """pair("train_gan.py", ...) -> what two processes said that find each other as torchrun's do,
    in forks, which spare three imports of torch."""
    def run(*command):
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
        both = [launch(*command, env={**address, "RANK": rank, "LOCAL_RANK": rank})
                for rank in "01"]
        return "".join(process.finish().stdout for process in both)

    return run


def test_gradients_are_those_of_one_process_on_the_joined_batch(pair):
    pair(__file__)


@pytest.fixture(scope="module")
def whole_runs(pair, bedrooms, tmp_path_factory):
    """Four steps of each script by two processes."""
    out = tmp_path_factory.mktemp("runs")
    for model, steps in tiny.STEPS.items():
        said = pair(*command(model, *COMMON, *tiny.SMALL[model], steps, 4, "--data", bedrooms,
                             "--out", out, "--name", model, "--ckpt-every", 2, "--sample-every", 4,
                             "--log-every", 3))
        assert said.count("run folder") == 1 == said.count("step 4:")
    return out


@pytest.mark.parametrize("model", tiny.SCRIPTS)
def test_one_process_writes_and_each_draws_its_own(whole_runs, model):
    """The gradients were compared before: GAN's D has no batch norm; the others' was fixed."""
    names = {path.name for path in (whole_runs / model).iterdir()} - {"reconstructions_000004.png"}
    assert names == {"args.json", "log.csv", "losses.png", "samples_000004.png", "ckpt_000002.pth",
                     "ckpt_000004.pth"}
    (row,) = csv.DictReader((whole_runs / model / "log.csv").open())
    assert row["step"] == "3"
    saved = checkpoints.read(whole_runs / model / "ckpt_000004.pth")
    if model == "projected":
        assert saved["args"]["augment"] == ["translation", "cutout"]
        assert saved["optimizers"]["discriminator"]["param_groups"][0]["betas"] == (0, 0.99)
    (other,) = saved["others"]
    assert len(saved["losses"]) == len(other["losses"]) > 0
    assert not torch.equal(saved["losses"], other["losses"])
    assert not torch.equal(saved["random"]["cpu"], other["random"]["cpu"])


def test_resume_with_as_many_is_exact_and_with_fewer_or_more_works(pair, script, whole_runs):
    # DCGAN keeps what the GAN keeps, the projected discriminator what the published one does.
    resumed = {model: tiny.STEPS[model] for model in ("gan", "vae", "fastgan")}
    for model, steps in resumed.items():
        alone, two = (whole_runs / f"{model} of {number}" for number in (1, 2))
        for part in (alone, two):
            shutil.copytree(whole_runs / model, part)
            (part / "ckpt_000004.pth").unlink()
            (part / "samples_000004.png").unlink()
        script(tiny.SCRIPTS[model], "--resume", alone)
        pair(tiny.SCRIPTS[model], "--resume", two)
        pair(tiny.SCRIPTS[model], "--resume", alone, steps, 5)
        saved = checkpoints.read(whole_runs / f"{model} of 1" / "ckpt_000005.pth")
        assert len(saved["others"]) == 1, model  # of the second process
        first, alone, second = (checkpoints.read(whole_runs / name / "ckpt_000004.pth")
                                for name in (model, f"{model} of 1", f"{model} of 2"))
        for key in ("networks", "sampler", "optimizers", "random", "seen", "losses", "others"):
            assert digest(first[key]) == digest(second[key]), (model, key)
        for name in ("log.csv", "samples_000004.png"):
            assert ((whole_runs / model / name).read_bytes()
                    == (whole_runs / f"{model} of 2" / name).read_bytes()), model
        assert alone["step"] == 4 and alone["others"] == []
        assert digest(first["networks"]) != digest(alone["networks"])


def torchrun(folder, *arguments):
    """The launcher, its logs in folder: without one it leaves empty folders in /tmp."""
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", f"--log_dir={folder}",
                             *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_nodes_are_two_processes(whole_runs, bedrooms, tmp_path):
    """Two launchers with an address between them; bit for bit what one launcher's processes do."""
    port = free_port()
    gan = command("gan", *COMMON, *tiny.ARGUMENTS["gan"], "--epochs", 4, "--data", bedrooms,
                  "--out", tmp_path, "--name", "gan")
    nodes = [torchrun(tmp_path / f"logs {node}", "--nnodes=2", f"--node_rank={node}",
                      "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}",
                      *gan) for node in range(2)]
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


def workers(launcher):
    """{rank: process id} of a torchrun's processes."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    environments = {int(pid): Path(f"/proc/{pid}/environ").read_bytes() for pid in children}
    return {int(text.split(b"\0RANK=")[1].split(b"\0")[0]): pid
            for pid, text in environments.items()}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_to_one_process_stops_both(bedrooms, tmp_path, number):
    """Killed: the other says so and ends within a minute. Asked to stop: both do, and save."""
    gan = command("gan", *COMMON, *tiny.ARGUMENTS["gan"], "--epochs", 100000, "--data", bedrooms,
                  "--out", tmp_path, "--name", "run", "--ckpt-every", 10)
    launcher = torchrun(tmp_path / "logs", "--nproc_per_node=2", "--standalone", *gan)
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
    check_gradients()
