"""evaluate.py, run as its user runs it, on drawn bedrooms and random features."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import metrics
import nets
import training

ROWS = set(evaluate.ROWS)


def write_checkpoint(folder, step, size=256, seed=0):
    """An untrained FastGAN's checkpoint in a run folder."""
    torch.manual_seed(seed)
    config = {"image_size": size, "z_dim": 64, "features": 4}
    generator = nets.FastGANGenerator(**config)
    average = [p.detach() for p in generator.parameters()]
    averaged = training.sampling_copy(generator, average).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text('{"model": "fastgan"}')
    return training.save_checkpoint(folder, {
        "model": "fastgan", "config": config, "step": step, "sampler": averaged,
        "networks": {"generator": generator.state_dict()}, "optimizers": None,
        "data": None if step < 20 else "of other photos"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "runs" / "fastgan-drawn-1"
    write_checkpoint(folder, 10, seed=1)
    write_checkpoint(folder, 20, seed=2)
    return folder


def check_numbers(column, fake, real, seed=0):
    """Against the metrics computed here, from images in files."""
    network = metrics.inception_network("random")
    x, y = (metrics.features(torch.from_numpy(training.decode_all(files, 256)), network)
            for files in (real, fake))
    expected = metrics.frechet_distance(x, y)
    assert abs(column["fid_train"] - expected) < 1e-3 * expected
    network = metrics.resnet50_network("random")
    x, y = (metrics.features(torch.from_numpy(training.decode_all(files, 256)), network)
            for files in (real, fake))
    assert column["aa_train"] == metrics.adversarial_accuracy(x, y)


def test_two_checkpoints_of_the_newest_run(script, run, bedrooms):
    samples = run.parents[1] / "samples"
    done = script("evaluate.py", "--ckpt", 10, "latest", "--data", bedrooms, "--weights", "random",
                  "--save-samples", samples, "--show", 0, 5, cwd=run.parents[1])
    assert done.returncode == 0 and done.stderr.count("\n") == 1, done.stderr
    assert "warning: fastgan 20 was trained on other photos" in done.stderr
    out = run / "eval"
    pictures = {f"{kind}_fastgan-{step}.png" for step in (10, 20)
                for kind in ("neighbours_cosine", "neighbours_lpips", "pca")}
    assert {path.name for path in out.iterdir()} == pictures | {
        "metrics.json", "metrics.csv", "table.md", "table.png", "pca_real.png"}
    report = json.loads((out / "metrics.json").read_text())
    real, first, second = report["columns"]
    assert [real["name"], first["name"], second["name"]] == ["REAL", "fastgan 10", "fastgan 20"]
    assert set(first) == {"name", "n", *ROWS}
    assert report["settings"]["n"] == 6 and report["settings"]["size"] == 256
    for text in (done.stdout, (out / "table.md").read_text(), report["settings"]["note"]):
        assert "random features: not comparable with published numbers" in text
    assert first["privacy_loss"] == first["aa_test"] - first["aa_train"]
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert float(rows[1]["fid_train"]) == first["fid_train"] and rows[0]["fid_train"] == ""
    check_numbers(first, training.image_files(samples / "fastgan-10"),
                  training.image_files(bedrooms / "train"))
    check_numbers({"fid_train": real["fid_validation"], "aa_train": real["aa_train"]},
                  training.image_files(bedrooms / "val"), training.image_files(bedrooms / "train"))

    # A folder of the same images, from any generator, gives the same numbers.
    done = script("evaluate.py", "--samples", samples / "fastgan-20", "--data", bedrooms,
                  "--weights", "random")
    assert done.returncode == 0, done.stderr
    again = json.loads((samples / "fastgan-20" / "eval" / "metrics.json").read_text())
    assert {**again["columns"][1], "name": ""} == {**second, "name": ""}


def test_training_photos_as_samples_are_found_out(script, bedrooms, tmp_path):
    """Copies: FID 0, adversarial accuracy 0, and each its own nearest photo."""
    copies = tmp_path / "copies"
    shutil.copytree(bedrooms / "train", copies)
    done = script("evaluate.py", "--samples", copies, "--data", bedrooms, "--weights", "random",
                  "--out", tmp_path / "out", "--size", 28, "--study")
    assert done.returncode == 0, done.stderr
    _, column, *study = json.loads((tmp_path / "out" / "metrics.json").read_text())["columns"]
    assert [c["fid_validation"] for c in study if c["published"]] == [63, 87, 74, 78, 77]
    assert (tmp_path / "out" / "metrics.csv").read_text().count(",published\n") == 5
    assert abs(column["fid_train"]) < 1e-3 * column["fid_validation"]
    assert column["aa_train"] == column["aa_train_lpips"] == 0
    assert column["privacy_loss"] > 0.2


def test_names_of_checkpoints_and_columns(run):
    assert list(evaluate.checkpoint_paths(run, ["all"])) == training.find_checkpoints(run)
    columns = [evaluate.Column("fastgan 5", run, 256, {}),
               evaluate.Column("fastgan 5", run, 256, {}),
               evaluate.Column("s", run / "a", 64, []), evaluate.Column("s", run / "b", 64, [])]
    names = [column.name for column in evaluate.unique_names(columns)]
    assert names == [f"{run.name} fastgan 5", f"{run.name} fastgan 5 (2)", "s", "s (2)"]


def test_sample_i_depends_on_the_seed_and_i_alone(run):
    checkpoint = training.read_checkpoint(run / "ckpt_000010.pth")
    device = torch.device("cpu")
    few, many = (evaluate.sample(checkpoint, n, 7, device) for n in (3, 11))
    assert torch.equal(few, many[:3])
    other = evaluate.sample(checkpoint, 11, 7, device, batch_size=5)
    assert (other.int() - many.int()).abs().max() <= 1  # a rounding may fall the other way
    assert not torch.equal(evaluate.sample(checkpoint, 3, 8, device), few)


def test_published_checkpoints_are_sampled_by_statistics_of_their_own(tmp_path):
    torch.manual_seed(0)
    g, d = nets.FastGANGenerator(256, 256, 4), nets.FastGANDiscriminator(256, 4)
    g.init.init[1].running_mean.fill_(100)  # left by training, of no use
    path = tmp_path / "50000.pth"
    torch.save({"g": {f"module.{k}": v for k, v in g.state_dict().items()},
                "d": d.state_dict()}, path)
    images = evaluate.sample(training.read_checkpoint(path), 2, 0, torch.device("cpu"))
    training.estimate_batch_norm(g)
    with torch.no_grad():
        expected = training.to_uint8(g(training.latents(0, range(2), 256))[0])
    assert (images.int() - expected.int()).abs().max() <= 1


def test_bad_input(refused, run, bedrooms, tmp_path):
    mixed, text, alone = tmp_path / "mixed", tmp_path / "text", tmp_path / "alone"
    for folder in (mixed, text, alone):
        folder.mkdir()
        Image.new("RGB", (64, 64)).save(folder / "a.png")
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(mixed / "b.png")
    (text / "b.png").write_text("no image")
    write_checkpoint(tmp_path / "empty", 1).unlink()
    (tmp_path / "full" / "fastgan-20" / "x").mkdir(parents=True)
    random = ["--weights", "random", "--data", bedrooms, "--out", tmp_path / "out"]
    cases = [
        (["--run", run, "--ckpt", 30, *random], "10, 20"),
        (["--run", tmp_path / "none", *random], "is not a folder"),
        (["--run", tmp_path / "empty", *random], "has no checkpoint"),
        (["--ckpt", tmp_path / "none.pth", *random], "no checkpoint at"),
        (["--ckpt", "latest", *random], "no run with a checkpoint"),
        (["--ckpt", text / "b.png", *random], "b.png is not a checkpoint"),
        (["--samples", mixed, *random], "--size"),
        (["--samples", text, *random], "b.png cannot be read"),
        (["--samples", alone, *random], "at least 2"),
        (["--samples", tmp_path / "none", *random], "none"),
        (["--run", run, *random, "--data", tmp_path / "none"], "is not a folder"),
        (["--run", run, *random, "--data", mixed], "has no val/"),
        (["--run", run, *random, "--n", 1], "at least 2"),
        (["--run", run, *random, "--n", 0], "not in [1, inf)"),
        (["--run", run, *random, "--show", 99], "0 to 5"),
        (["--run", run, "--data", bedrooms], "--weights random"),
        (["--run", run, *random, "--save-samples", tmp_path / "full"], "is not empty"),
    ]
    offline = {"TORCH_HOME": str(tmp_path / "hub"), "https_proxy": "http://127.0.0.1:9"}
    for arguments, words in cases:
        line = refused("evaluate.py", *arguments, cwd=tmp_path, env=offline)
        assert words in line, line
    assert not (tmp_path / "out" / "metrics.json").exists()
