"""train_fastgan.py, run as its user runs it, and its step beside the published algorithm."""

import csv
import json

import pytest
import torch
from conftest import ROOT
from published import published_l1, published_step
from test_checkpoints import published_file
from torch.nn import functional as F

import nets
import train_fastgan
from common import checkpoints, devices, photos, weights

TINY = ["--size", 256, "--features", 4, "--batch-size", 3, "--reconstruction", "l1",
        "--precision", "fp32"]
CPU = devices.Numerics(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def whole_run(script, bedrooms, tmp_path_factory):
    """Seven steps in one go; every other test's reference."""
    out = tmp_path_factory.mktemp("runs")
    done = script("train_fastgan.py", *TINY, "--data", bedrooms, "--iters", 7, "--out", out,
                  "--name", "whole", "--log-every", 2, "--ckpt-every", 3, "--sample-every", 7)
    assert done.stderr == ""  # no bar where there is no terminal
    return out / "whole"


def test_run_folder(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    assert names == {"args.json", "log.csv", "losses.png", "samples_000007.png",
                     "reconstructions_000007.png", "ckpt_000003.pth", "ckpt_000006.pth",
                     "ckpt_000007.pth"}
    rows = list(csv.DictReader((whole_run / "log.csv").open()))
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    record = json.loads((whole_run / "args.json").read_text())
    assert record["arguments"]["features"] == 4 and record["versions"]["torch"]


def test_demo(script, tmp_path):
    """Of its 64 scenes four are drawn here."""
    (tmp_path / "demo.py").write_text(
        "import runpy, subprocess\n"
        "run = subprocess.run\n"
        "subprocess.run = lambda command, **options: run(\n"
        "    ['4' if part == '64' else part for part in command], **options)\n"
        f"runpy.run_path({str(ROOT / 'train_fastgan.py')!r}, run_name='__main__')\n")
    script(tmp_path / "demo.py", "--demo", "--features", 4, "--iters", 2, cwd=tmp_path)
    assert len(list((tmp_path / "data" / "demo" / "train").iterdir())) == 2
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("fastgan-demo-20")
    saved = checkpoints.read(run / "ckpt_000002.pth")
    assert saved["config"]["features"] == 4  # as given; the rest is the demo's
    assert [saved["args"][name] for name in ("batch_size", "augment")] == [6, ["translation"]]


def test_latest_is_found_and_a_finished_run_stays_as_it_is(script, whole_run):
    before = {path: path.stat().st_mtime_ns for path in whole_run.iterdir()}
    done = script("train_fastgan.py", "--resume", "latest", "--name", "whole", "--out",
                  whole_run.parent)
    assert "nothing to do" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in whole_run.iterdir()}


def test_three_steps_are_the_published_algorithm(whole_run, bedrooms):
    images, _ = photos.load_images(bedrooms, "train", 256)
    torch.manual_seed(0)
    g, d = nets.FastGANGenerator(256, 256, 4), nets.FastGANDiscriminator(256, 4)
    # Fused as in the script: where a gradient is about 0, rounding decides over a whole step.
    adams = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999), fused=True) for net in (g, d)]
    average = [p.detach().clone() for p in g.parameters()]
    for step in range(3):
        order = photos.data_order(len(images), 3 * step, 3, seed=0)
        real = photos.mirror(photos.take_batch(images, order, torch.device("cpu")))
        published_step(g, d, *adams, average, (2 + step) / (11 + step), real, published_l1)
    saved = checkpoints.read(whole_run / "ckpt_000003.pth")
    for name, network in {"generator": g, "discriminator": d}.items():
        for key, value in network.state_dict().items():
            torch.testing.assert_close(saved["networks"][name][key], value, atol=2e-5, rtol=1e-3)
    for (name, _), value in zip(g.named_parameters(), average, strict=True):
        torch.testing.assert_close(saved["sampler"][name], value, atol=1e-6, rtol=1e-4)


def test_hinge_margins_are_drawn_between_0_8_and_1():
    zeros = torch.zeros(100000)
    for hinge in (train_fastgan.hinge_real, train_fastgan.hinge_fake):
        assert abs(hinge(zeros).item() - 0.9) < 1e-3
    assert train_fastgan.hinge_real(zeros + 1.1) == 0 == train_fastgan.hinge_fake(zeros - 1.1)
    assert abs(train_fastgan.hinge_real(zeros - 2).item() - 2.9) < 1e-3


def test_l1_reconstruction_is_a_mean_over_pixels_summed_over_images():
    x, y = torch.randn(2, 5, 3, 8, 8)
    distance = train_fastgan.perceptual_distance("l1", CPU)
    expected = sum(F.l1_loss(a, b) for a, b in zip(x, y, strict=True))
    torch.testing.assert_close(distance([x[:2], x[2:]], [y[:2], y[2:]]), expected)


@pytest.mark.parametrize("chunked", [True, False])
def test_lpips_reconstruction_is_the_modules_distance_summed_over_images(monkeypatch, chunked):
    """And its gradient is the one that autograd finds for the module; image by image as on a CPU
    or all at once as on a GPU; one target for two."""
    network = weights.lpips_network("vgg", weights="random").double()
    monkeypatch.setattr(weights, "lpips_network", lambda name, device: {"vgg": network}[name])
    if not chunked:
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    x, y = (torch.rand(6, 3, 64, 64, dtype=torch.float64) * 2 - 1 for _ in range(2))
    y[2:4] = y[:2]
    x.requires_grad_()
    distance = train_fastgan.perceptual_distance("lpips", CPU)
    parts = list(y.split(2))
    found = distance(list(x.split(2)), [parts[0], parts[0], parts[2]])
    expected = network(x, y).sum()
    assert abs(found.item() - expected.item()) < 1e-6 * expected.item()
    one, other = (torch.autograd.grad(loss, x)[0] for loss in (found, expected))
    assert (one - other).norm() < 1e-5 * other.norm() and other.norm() > 0


def test_resume_from_published_files(script, bedrooms, tmp_path):
    """Optimisers and averages go on where they were; a file without them starts Adam afresh."""
    torch.manual_seed(1)
    g, d = nets.FastGANGenerator(256, 256, 4), nets.FastGANDiscriminator(256, 4)
    adams = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (g, d)]
    for net, adam in zip((g, d), adams, strict=True):
        sum(p.square().sum() for p in net.parameters()).backward()
        for _ in range(41):
            adam.step()
    average = [p.detach() + 5 for p in g.parameters()]
    published_file(tmp_path / "all_20041.pth", g.state_dict(), d.state_dict(), "module.",
                   g_ema=average, opt_g=adams[0].state_dict(), opt_d=adams[1].state_dict())
    published_file(tmp_path / "20041.pth", g.state_dict(), d.state_dict())
    # float16 leaves updates out until its scale is found.
    for name, precision, updates in (("all_20041", "fp32", {42}), ("20041", "fp32", {1}),
                                     ("all_20041", "fp16", {41, 42})):
        done = script("train_fastgan.py", "--resume", tmp_path / f"{name}.pth", "--iters", 20042,
                      "--data", bedrooms, "--reconstruction", "l1", "--batch-size", 2,
                      "--out", tmp_path, "--name", f"run {name} {precision}", "--precision",
                      precision)
        assert ("afresh" in done.stderr) == (name == "20041")
        saved = checkpoints.read(tmp_path / f"run {name} {precision}" / "ckpt_020042.pth")
        for optimizer in saved["optimizers"].values():
            assert {state["step"].item() for state in optimizer["state"].values()} <= updates
        shift = saved["sampler"]["to_big.weight_orig"] - g.to_big.weight_orig.detach()
        assert (shift - (5 if name == "all_20041" else 0)).abs().max() < 0.01
