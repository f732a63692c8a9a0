"""train_fastgan.py, run as its user runs it, and its step beside the published algorithm."""

import json
import runpy
import sys
from argparse import Namespace

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT, digest
from published import projected_step, published_l1, published_step
from test_checkpoints import published_file
from test_resume import rows
from torch.nn import functional as F

import evaluate
import nets
import train_fastgan
from common import checkpoints, devices, photos, sampling
from common.run import parse_arguments

TINY = ["--size", 256, "--features", 4, "--batch-size", 3, "--reconstruction", "l1",
        "--precision", "fp32"]
PROJECTED = [*tiny.ARGUMENTS["projected"], "--batch-size", 2, "--precision", "fp32",
             "--iters", 3, "--log-every", 1]
LOSSES = ["d_hinge", "g_loss"]
CPU = devices.Numerics(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def whole_run(script, bedrooms, tmp_path_factory):
    """Seven steps in one go; every other test's reference."""
    out = tmp_path_factory.mktemp("runs")
    done = script("train_fastgan.py", *TINY, "--data", bedrooms, "--iters", 7, "--out", out,
                  "--name", "whole", "--log-every", 2, "--ckpt-every", 3, "--sample-every", 7)
    assert done.stderr == ""  # no bar where there is no terminal
    return out / "whole"


@pytest.fixture(scope="module")
def projected_run(script, bedrooms, tmp_path_factory):
    """Three steps with the projected discriminator, a row of the log for each."""
    out = tmp_path_factory.mktemp("projected")
    script("train_fastgan.py", *PROJECTED, "--data", bedrooms, "--out", out, "--name", "run")
    return out / "run"


def test_run_folder(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    assert names == {"args.json", "log.csv", "losses.png", "samples_000007.png",
                     "reconstructions_000007.png", "ckpt_000003.pth", "ckpt_000006.pth",
                     "ckpt_000007.pth"}
    log = rows(whole_run)
    assert [int(row["step"]) for row in log] == [2, 4, 6]
    assert [*log[0]][2:] == ["d_hinge", "d_reconstruction", "g_loss", *train_fastgan.LOGITS]
    record = json.loads((whole_run / "args.json").read_text())
    assert record["arguments"]["features"] == 4 and record["versions"]["torch"]


def test_demo(script, tmp_path):
    """Of its 256 scenes four are drawn here; with narrower networks and in smaller batches."""
    (tmp_path / "demo.py").write_text(
        "import runpy, subprocess\n"
        "run = subprocess.run\n"
        "subprocess.run = lambda command, **options: run(\n"
        "    ['4' if part == '256' else part for part in command], **options)\n"
        f"runpy.run_path({str(ROOT / 'train_fastgan.py')!r}, run_name='__main__')\n")
    script(tmp_path / "demo.py", "--demo", "--features", 4, "--iters", 2, "--batch-size", 2,
           cwd=tmp_path)
    assert len(list((tmp_path / "data" / "demo" / "train").iterdir())) == 2
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("fastgan-demo-20")
    saved = checkpoints.read(run / "ckpt_000002.pth")
    assert saved["config"]["features"] == 4  # as given; the rest is the demo's
    expected = {**train_fastgan.DEMO, "features": 4, "iters": 2, "batch_size": 2}
    assert saved["args"] == {**saved["args"], **expected}


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


def test_three_projected_steps_are_the_plain_algorithm(projected_run, bedrooms):
    """The photos in their order, the same draws, gradients by separate passes, Adam's betas."""
    images, _ = photos.load_images(bedrooms, "train", 256)
    torch.manual_seed(0)
    g, d = nets.FastGANGenerator(256, 8, 2), nets.ProjectedDiscriminator(2)
    adams = [torch.optim.Adam(net.parameters(), 2e-4, (0.0, 0.99), fused=True) for net in (g, d)]
    average = [p.detach().clone() for p in g.parameters()]
    for step in range(3):
        order = photos.data_order(len(images), 2 * step, 2, seed=0)
        real = photos.mirror(photos.take_batch(images, order, torch.device("cpu")))
        losses = projected_step(g, d, *adams, average, (2 + step) / (11 + step), real,
                                tiny.critic_levels())
        row = rows(projected_run)[step]
        np.testing.assert_allclose(losses, [float(row[name]) for name in LOSSES], rtol=1e-4)
    saved = checkpoints.read(projected_run / "ckpt_000003.pth")
    for name, network in {"generator": g, "discriminator": d}.items():
        assert saved["networks"][name].keys() == network.state_dict().keys()
        for key, value in network.state_dict().items():
            torch.testing.assert_close(saved["networks"][name][key], value, atol=2e-5, rtol=1e-3)
    for (name, _), value in zip(g.named_parameters(), average, strict=True):
        torch.testing.assert_close(saved["sampler"][name], value, atol=1e-6, rtol=1e-4)


def test_variety_adds_the_energy_distances_gradients():
    """One step of plain gradient descent from the same networks, draws and photos."""
    real, ends = tiny.photos("projected", 3), []
    for step in (train_fastgan.projected_step, projected_step):
        networks = tiny.networks("projected", features=2)
        descents = [torch.optim.SGD(net.parameters(), 0.1) for net in networks.values()]
        torch.manual_seed(1)
        if step is projected_step:
            average = [p.detach().clone() for p in networks["generator"].parameters()]
            losses = step(*networks.values(), *descents, average, 0, real, tiny.critic_levels(), 5)
        else:
            losses = step(networks, dict(zip(networks, descents, strict=True)), CPU, real,
                          ["color", "translation", "cutout"], tiny.critic_levels(), 5)
        ends.append([losses, *networks["generator"].parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_energy_distance_sees_what_is_off_and_what_is_alike():
    """Mean over 2,000 batches of four: of one distribution (with pairs of an image and itself it
    would be 0.7); of another mean; with half of the variety; all equal."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 2000, 4, 3, 2, 2)

    def mean(fakes):
        return np.mean([train_fastgan.energy_distance([a], [b]).item()
                        for a, b in zip(x, fakes, strict=True)])

    assert abs(mean(y)) < 0.03
    assert mean(y + 1) > 0.5 and mean(y / 2) > 0.07 and mean(y[:, :1].expand_as(y)) > 0.3
    equal = torch.zeros(2, 5, 1, 1, requires_grad=True)  # photos that are one photo, so are fakes
    train_fastgan.energy_distance([equal.detach() + 1], [equal + 1]).backward()
    assert not equal.grad.any()
    twins = 1 + 1e-3 * torch.randn(2, 2, 5, 1, 1)  # their distance is not what it is divided by
    assert train_fastgan.energy_distance([twins[0]], [twins[1] + 1]) < 11


def test_hinge_margins_are_drawn_between_0_8_and_1():
    zeros = torch.zeros(100000)
    for hinge in (train_fastgan.hinge_real, train_fastgan.hinge_fake):
        assert abs(hinge(zeros).item() - 0.9) < 1e-3
    assert train_fastgan.hinge_real(zeros + 1.1) == 0 == train_fastgan.hinge_fake(zeros - 1.1)
    assert abs(train_fastgan.hinge_real(zeros - 2).item() - 2.9) < 1e-3


def test_l1_reconstruction_is_a_mean_over_pixels_summed_over_images():
    x, y = torch.randn(2, 5, 3, 8, 8)
    distance = train_fastgan.reconstruction_loss("l1", CPU)
    expected = sum(F.l1_loss(a, b) for a, b in zip(x, y, strict=True))
    torch.testing.assert_close(distance([x[:2], x[2:]], [y[:2], y[2:]]), expected)


# What is logged and kept


def test_a_projected_runs_folder_and_checkpoint(projected_run):
    assert {path.name for path in projected_run.iterdir()} == {
        "args.json", "log.csv", "losses.png", "samples_000003.png", "ckpt_000003.pth"}
    assert [[*row][2:] for row in rows(projected_run)] == [
        [*LOSSES, *train_fastgan.LOGITS]] * 3
    saved = checkpoints.read(projected_run / "ckpt_000003.pth")
    assert saved["args"]["discriminator"] == "projected"
    assert saved["args"]["augment"] == ["color", "translation", "cutout"]
    assert saved["config"] == {"image_size": 256, "z_dim": 8, "features": 2}
    g, d = nets.FastGANGenerator(256, 8, 2), nets.ProjectedDiscriminator(2)
    # The frozen network is not in it, and what it never looks at has no moments.
    for name, network in {"generator": g, "discriminator": d}.items():
        assert saved["networks"][name].keys() == network.state_dict().keys()
        looked_at = [i for i, (key, _) in enumerate(network.named_parameters())
                     if not key.startswith("to_128")]
        assert list(saved["optimizers"][name]["state"]) == looked_at
    sampler = checkpoints.load_generator(projected_run / "ckpt_000003.pth")
    assert sampler(torch.randn(2, 8))[0].shape == (2, 3, 256, 256)


@pytest.mark.parametrize(("name", "step", "row"), [("whole_run", 6, 3), ("projected_run", 3, 3)])
@torch.no_grad()
def test_logged_logits_are_the_checkpoints(request, bedrooms, name, step, row):
    """Means over a batch of training photos, of validation photos, of samples, others for each row,
    by networks in evaluation mode."""
    run = request.getfixturevalue(name)
    saved = checkpoints.read(run / f"ckpt_{step:06d}.pth")
    config, n = saved["config"], saved["args"]["batch_size"]
    g = nets.FastGANGenerator(**config).eval()
    if name == "projected_run":
        d = nets.ProjectedDiscriminator(config["features"]).eval()
    else:
        d = nets.FastGANDiscriminator(256, config["features"]).eval()
    g.load_state_dict(saved["networks"]["generator"])
    d.load_state_dict(saved["networks"]["discriminator"])

    def logit(image, image_128):
        if name == "projected_run":
            return d(tiny.critic_levels()(image), image).mean().item()
        return d(image, image_128)[0].mean().item()

    places, expected = range(n * row, n * row + n), []
    for split in ("train", "val"):
        images, _ = photos.load_images(bedrooms, split, 256)
        orders = np.stack([np.random.default_rng([0, i]).permutation(6) for i in range(9)])
        image = images[orders.flatten()[places]] / 127.5 - 1
        expected.append(logit(image, image[:, :, ::2, ::2]))
    expected.append(logit(*g(sampling.latents(0, places, config["z_dim"]))))
    (logged,) = [line for line in rows(run) if int(line["step"]) == step]
    np.testing.assert_allclose([float(logged[key]) for key in train_fastgan.LOGITS], expected,
                               rtol=1e-4, atol=1e-5)
    assert len(set(expected)) == 3


def test_without_validation_photos_no_logits_are_logged_and_nothing_else_changes(
        script, projected_run, bedrooms, tmp_path):
    """A plain folder of the same photos, and one row of the log for three."""
    script("train_fastgan.py", *PROJECTED, "--log-every", 3, "--data", bedrooms / "train", "--out",
           tmp_path, "--name", "run")
    (row,), before = rows(tmp_path / "run"), rows(projected_run)
    assert [*row] == ["step", "iteration", *LOSSES]
    for name in LOSSES:
        assert abs(float(row[name]) - np.mean([float(one[name]) for one in before])) < 1e-6
    one, other = (checkpoints.read(run / "ckpt_000003.pth")
                  for run in (projected_run, tmp_path / "run"))
    for key in ("networks", "optimizers", "sampler", "random", "seen", "data"):
        assert digest(one[key]) == digest(other[key]), key


# Settings at once, and networks of another run


@pytest.fixture
def parsed(monkeypatch):
    """parsed("--small", ...) -> the arguments that main would be given."""
    def parse(*typed):
        found = []
        with monkeypatch.context() as patch:
            patch.setattr("common.run.launch", lambda main, parser, model, **presets: found.append(
                vars(parse_arguments(parser, model, presets)[0])))
            patch.setattr(sys, "argv", ["train_fastgan.py", *map(str, typed)])
            runpy.run_path(str(ROOT / "train_fastgan.py"), run_name="__main__")
        return found[0]

    return parse


def test_small_sets_what_is_not_typed(parsed, projected_run):
    small, plain = train_fastgan.SMALL, parsed()
    assert small.keys() < plain.keys() and small != {name: plain[name] for name in small}
    assert parsed("--small") == {**plain, **small, "small": True}
    typed = parsed("--features", 9, "--small", "--discriminator", "published")
    assert typed == {**plain, **small, "small": True, "features": 9, "discriminator": "published"}
    assert parsed("--demo") == {**plain, **train_fastgan.DEMO, "demo": True}
    resumed = parsed("--resume", projected_run, "--small")
    assert (resumed["batch_size"], resumed["features"]) == (2, 2)


def test_a_resumed_run_keeps_its_arguments(parsed, script, projected_run, tmp_path):
    """That it is small, too. Older versions kept a reconstruction loss that was not used."""
    saved = checkpoints.read(projected_run / "ckpt_000003.pth")
    saved["args"] |= {"small": True, "demo": True, "reconstruction": "lpips"}
    path = checkpoints.save(tmp_path, {key: saved[key] for key in saved.keys() - {"path"}})
    resumed = parsed("--resume", path)
    assert resumed == parsed("--resume", projected_run) | {
        "small": True, "demo": True, "reconstruction": "lpips", "resume": str(path)}
    script("train_fastgan.py", "--resume", path, "--iters", 4, "--out", tmp_path, "--name", "run")
    assert (tmp_path / "run" / "ckpt_000004.pth").exists()
    done = script("train_fastgan.py", "--resume", path, "--reconstruction", "l1", code=2)
    assert "--reconstruction is for" in done.stderr


def unwarned(process):
    """Its lines on stderr but for that of samples that are all one image."""
    return [line for line in process.stderr.splitlines() if "hardly trained" not in line]


def unmoved(one, other):
    """But for steps of the learning rate of the runs below."""
    return (one - other).abs().max() < 1e-20


INIT = ["--iters", 1, "--lr", 1e-30, "--batch-size", 2, "--precision", "fp32"]


@pytest.mark.parametrize("kind", ["projected", "published", "extended"])
def test_a_run_begins_with_the_networks_of_a_checkpoint(script, projected_run, bedrooms, tmp_path,
                                                        kind):
    """Its sizes, too, with new optimisers at step 0, and its discriminator if it is of the kind."""
    path = projected_run / "ckpt_000003.pth"
    loss = ["--reconstruction", "l1"] if kind == "published" else []
    done = script("train_fastgan.py", "--init", path, *INIT, "--discriminator", kind, *loss,
                  "--data", bedrooms / "val", "--seed", 5, "--out",
                  tmp_path, "--name", "run")
    before, saved = (checkpoints.read(file) for file in (path, tmp_path / "run/ckpt_000001.pth"))
    assert saved["config"] == before["config"] and saved["data"] != before["data"]
    assert saved["args"]["init"] == str(path) and saved["args"]["seed"] == 5
    torch.manual_seed(5)
    new = {"generator": nets.FastGANGenerator(256, 8, 2),
           "discriminator": nets.FastGANDiscriminator(256, 2) if kind == "published" else
           nets.ProjectedDiscriminator(2, kind == "extended")}
    for name, network in new.items():
        theirs = network.state_dict()
        if name == "generator" or kind == "projected":
            theirs = before["networks"][name]
        learned = [key for key, _ in network.named_parameters()]
        kept = [key for key in theirs if key.startswith("mix_")]
        for key in [*learned, *kept]:
            assert unmoved(saved["networks"][name][key], theirs[key]), key
            assert name != "generator" or unmoved(saved["sampler"][key], theirs[key]), key
        assert {int(state["step"]) for state in saved["optimizers"][name]["state"].values()} == {1}
    warnings = unwarned(done)
    assert len(warnings) == (kind != "projected")
    assert all(f"{path} was trained with the projected discriminator: the {kind} one begins anew"
               in line for line in warnings)


# Checkpoints of the published code


def published_networks(folder):
    """Of a generator and an average that lies 5 above it, in two files: with and without state."""
    torch.manual_seed(1)
    g, d = nets.FastGANGenerator(256, 256, 4), nets.FastGANDiscriminator(256, 4)
    adams = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (g, d)]
    for net, adam in zip((g, d), adams, strict=True):
        sum(p.square().sum() for p in net.parameters()).backward()
        for _ in range(41):
            adam.step()
    average = [p.detach() + 5 for p in g.parameters()]
    published_file(folder / "all_20041.pth", g.state_dict(), d.state_dict(), "module.",
                   g_ema=average, opt_g=adams[0].state_dict(), opt_d=adams[1].state_dict())
    published_file(folder / "20041.pth", g.state_dict(), d.state_dict())
    return g


def test_resume_from_published_files(script, bedrooms, tmp_path):
    """Optimisers and averages go on where they were; a file without them starts Adam afresh."""
    g = published_networks(tmp_path)
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


def test_resume_from_a_published_file_whose_name_holds_no_step(script, bedrooms, tmp_path):
    """Its average goes on as that of networks trained long, in the run that resumes it, too."""
    g = published_networks(tmp_path)
    path = (tmp_path / "all_20041.pth").rename(tmp_path / "bedroom_best2.pth")
    for resume, step in ((path, 1), (tmp_path / "run", 2)):
        more = ["--data", bedrooms, "--reconstruction", "l1", "--batch-size", 2, "--name", "run"]
        done = script("train_fastgan.py", "--resume", resume, "--iters", step, "--out", tmp_path,
                      *(more if step == 1 else []))
        assert ("best2.pth does not say its step" in done.stderr) == (step == 1)
        saved = checkpoints.read(tmp_path / "run" / f"ckpt_00000{step}.pth")
        shift = saved["sampler"]["to_big.weight_orig"] - g.to_big.weight_orig.detach()
        assert (shift - 5).abs().max() < 0.02
    assert evaluate.checkpoint_columns(Namespace(run=None, ckpt=[str(path)]))[0].name == (
        "fastgan bedroom_best2")


def test_a_published_generator_goes_on_with_the_projected_discriminator(script, bedrooms, tmp_path):
    """With its average and its Adam, and with a new discriminator."""
    published_networks(tmp_path)
    done = script("train_fastgan.py", "--resume", tmp_path / "all_20041.pth", "--iters", 20042,
                  "--data", bedrooms, "--discriminator", "projected", "--batch-size", 2, "--lr",
                  1e-30, "--precision", "fp32", "--out", tmp_path, "--name", "run")
    (line,) = unwarned(done)
    assert "the published discriminator: the projected one begins anew" in line
    before, saved = (checkpoints.read(tmp_path / name)
                     for name in ("all_20041.pth", "run/ckpt_020042.pth"))
    torch.manual_seed(0)
    g, d = nets.FastGANGenerator(256, 256, 4), nets.ProjectedDiscriminator(4)
    for name, net, theirs in (("generator", g, before["networks"]["generator"]),
                              ("discriminator", d, d.state_dict())):
        for key, _ in net.named_parameters():
            assert unmoved(saved["networks"][name][key], theirs[key]), key
    steps = {name: {int(state["step"]) for state in saved["optimizers"][name]["state"].values()}
             for name in saved["optimizers"]}
    assert steps == {"generator": {41, 42}, "discriminator": {1}}  # 41: it doesn't look at to_128
    weight = sampling.average_weight(20042)
    for key, _ in g.named_parameters():
        average, present = before["sampler"][key], before["networks"]["generator"][key]
        torch.testing.assert_close(saved["sampler"][key], average + weight * (present - average))
    assert saved["args"]["augment"] == ["color", "translation", "cutout"]
