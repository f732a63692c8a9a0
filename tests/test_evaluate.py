"""evaluate.py, run as its user runs it, on drawn bedrooms and random features."""

import csv
import functools
import json
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import evaluate
import metrics
import nets
import training

ROWS = set(evaluate.ROWS)
RANDOM = "random features: not comparable with published numbers"


def write_checkpoint(folder, step, size=256, seed=0, model="fastgan", fit="square", **config):
    """An untrained generator's checkpoint in a run folder."""
    torch.manual_seed(seed)
    config = {"image_size": size, "z_dim": 64, **({"features": 4} if model == "fastgan" else {}),
              **config}
    generator = evaluate.GENERATORS[model](**config)
    sampler = training.sampling_copy(generator).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps({"model": model}))
    return training.save_checkpoint(folder, {
        "model": model, "config": config, "step": step, "sampler": sampler, "fit": fit,
        "networks": {"generator": generator.state_dict()}, "optimizers": None,
        "data": None if step < 20 else "of other photos"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "runs" / "fastgan-drawn-1"
    write_checkpoint(folder, 10, seed=1)
    write_checkpoint(folder, 20, seed=2)
    return folder


@pytest.fixture(scope="module", autouse=True)
def networks_are_built_once():
    """Building random ones takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("inception_network", "resnet50_network", "lpips_network"):
            patch.setattr(metrics, name, functools.cache(getattr(metrics, name)))
        yield


@pytest.fixture
def evaluated(monkeypatch, capfd):
    """evaluated(arguments) -> (stdout, stderr) of evaluate.py run as __main__ in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--weights", "random",
                                          *map(str, arguments)])
        capfd.readouterr()
        runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
        return capfd.readouterr()

    return run


def check_numbers(column, fake, real, seed=0):
    """Against the metrics computed here, from images in files."""
    network = metrics.inception_network("random", torch.device("cpu"), "bilinear")
    x, y = (metrics.features(torch.from_numpy(training.decode_all(files, 256)), network)
            for files in (real, fake))
    expected = metrics.frechet_distance(x, y)
    assert abs(column["fid_train"] - expected) < 1e-3 * expected
    network = metrics.resnet50_network("random", torch.device("cpu"))
    x, y = (metrics.features(torch.from_numpy(training.decode_all(files, 256)), network)
            for files in (real, fake))
    assert column["aa_train"] == metrics.adversarial_accuracy(x, y)


def test_two_checkpoints_of_the_newest_run(script, evaluated, run, bedrooms, monkeypatch):
    samples = run.parents[1] / "samples"
    done = script("evaluate.py", "--ckpt", 10, "latest", "--data", bedrooms, "--weights", "random",
                  "--save-samples", samples, "--show", 0, 5, cwd=run.parents[1])
    assert done.returncode == 0 and done.stderr.count("\n") == 1, done.stderr
    assert "warning: fastgan 20 was trained on other photos" in done.stderr
    out = run / "eval"
    pictures = {f"{kind}_fastgan-{step}.png" for step in (10, 20)
                for kind in ("neighbours_cosine", "neighbours_lpips", "pca")}
    assert {path.name for path in out.iterdir()} == pictures | {
        "metrics.json", "metrics.csv", "table.md", "table.png", "pca_real.png", "curve.png",
        ".cache"}
    report = json.loads((out / "metrics.json").read_text())
    real, first, second = report["columns"]
    assert [real["name"], first["name"], second["name"]] == ["REAL", "fastgan 10", "fastgan 20"]
    too_few = {"fid_infinity_train", "fid_infinity_validation"}
    assert set(first) == {"name", "kind", "n", "path", "model", "step", "intervals", "suspects",
                          *ROWS - too_few}
    assert report["settings"]["n"] == 6 and report["settings"]["size"] == 256
    assert report["settings"]["fit"] == "square"
    for text in (done.stdout, (out / "table.md").read_text(), report["settings"]["note"]):
        assert RANDOM in text
    for row, (low, high) in first["intervals"].items():
        assert low <= first[row] <= high
    assert set(first["intervals"]) == ROWS - too_few - {  # halves of 6 have no 5th neighbour
        "precision", "recall", "density", "coverage"}
    assert first["privacy_loss"] == first["aa_test"] - first["aa_train"]
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert float(rows[1]["fid_train"]) == first["fid_train"] and rows[0]["fid_train"] == ""
    assert [float(rows[1][f"kid_train_{end}"]) for end in ("low", "high")] == (
        first["intervals"]["kid_train"])
    better = min(first, second, key=lambda column: column["fid_train"])
    line = next(x for x in (out / "table.md").read_text().splitlines() if "FID train" in x)
    assert f"**{better['fid_train']:.1f} ±" in line and line.count("**") == 2
    check_numbers(first, training.image_files(samples / "fastgan-10"),
                  training.image_files(bedrooms / "train"))
    check_numbers({"fid_train": real["fid_validation"], "aa_train": real["aa_train"]},
                  training.image_files(bedrooms / "val"), training.image_files(bedrooms / "train"))

    # Again: nothing is computed from an image, and the JSON alone is on stdout.
    arguments = ("--run", run, "--ckpt", 10, "--data", bedrooms, "--json", "-")
    computed, features = [], metrics.features
    monkeypatch.setattr(metrics, "features", lambda images, network: (
        computed.append(len(images)), features(images, network))[1])
    monkeypatch.setattr(metrics, "lpips_features", None)
    again = evaluated(*arguments)
    expected = [real, {**first, "path": str(run / "ckpt_000010.pth")}]
    assert json.loads(again.out)["columns"] == expected and "FID train" in again.err
    assert computed == [] and json.loads((out / "metrics.json").read_text()) == json.loads(
        again.out)

    # A damaged cache is made anew, and so is one under another's name.
    a, b = sorted((out / ".cache").glob("resnet_*.pt"))
    content = bytearray(a.read_bytes())
    content[len(content) // 2] ^= 1
    a.write_bytes(content)
    shutil.copy(a, b)
    assert json.loads(evaluated(*arguments).out)["columns"] == expected
    assert computed == [6]

    # A folder of the same images, from any generator, gives the same numbers.
    monkeypatch.undo()
    monkeypatch.chdir(run.parents[1])
    out, _ = evaluated("--samples", samples / "fastgan-20", "--data", bedrooms, "--json", "-")
    same = json.loads(out)["columns"][1]
    assert {row: same[row] for row in ROWS - too_few} == {
        row: second[row] for row in ROWS - too_few}
    assert same["intervals"] == second["intervals"]


def test_four_models_in_one_table(evaluated, tmp_path, bedrooms):
    paths = [write_checkpoint(tmp_path / "a", 50, 28, 1, "gan"),
             write_checkpoint(tmp_path / "b", 200, 64, 2, "dcgan", fit="crop", features=8),
             write_checkpoint(tmp_path / "c", 7, 64, 3, "vae"),
             write_checkpoint(tmp_path / "d", 1, 256, 4)]
    out, err = evaluated("--ckpt", *paths, "--data", bedrooms, "--out", tmp_path / "out",
                         "--json", "-", "--n", 2)
    report = json.loads(out)
    assert report["settings"]["size"] == 28 and report["settings"]["fit"] == "square"
    assert [column["name"] for column in report["columns"]] == [
        "REAL", "gan 50", "dcgan 200", "vae 7", "fastgan 1"]
    warnings = [line for line in err.splitlines() if line.startswith("warning: --fit square")]
    assert len(warnings) == 1 and "dcgan 200 trained on crop ones" in warnings[0]
    assert all(column["fid_train"] > 0 for column in report["columns"][1:])
    assert not (tmp_path / "out" / "curve.png").exists()  # one step of each run
    for path, column in zip(paths, report["columns"][1:], strict=True):
        assert column["path"] == str(path) and column["n"] == 2
    out, err = evaluated("--ckpt", paths[1], "--data", bedrooms, "--out", tmp_path / "out2",
                         "--json", tmp_path / "numbers.json", "--n", 2)
    settings = json.loads((tmp_path / "numbers.json").read_text())["settings"]
    assert settings["fit"] == "crop" and settings["size"] == 64
    assert "FID train" in out and "--fit" not in err


def test_training_photos_as_samples_are_found_out(evaluated, bedrooms, tmp_path):
    """Copies: FID 0, adversarial accuracy 0, and each named beside its own photo."""
    copies = tmp_path / "copies"
    shutil.copytree(bedrooms / "train", copies)
    out, _ = evaluated("--samples", copies, "--data", bedrooms, "--out", tmp_path / "out",
                       "--size", 28, "--study")
    _, column, *study = json.loads((tmp_path / "out" / "metrics.json").read_text())["columns"]
    assert [c["fid_validation"] for c in study if c["kind"] == "published"] == [63, 87, 74, 78, 77]
    assert (tmp_path / "out" / "metrics.csv").read_text().count(",published\n") == 5
    assert abs(column["fid_train"]) < 1e-3 * column["fid_validation"]
    assert column["aa_train"] == column["aa_train_lpips"] == 0
    assert column["privacy_loss"] > 0.2
    assert column["copies"] == column["copies_lpips"] == 1
    for kind in ("cosine", "lpips"):
        found = column["suspects"][kind]
        assert len(found) == 6 and all(s["name"] == s["photo"] for s in found)
        assert all(s["distance"] == 0 for s in found)
        assert f"copies: 6 of 6 nearer to a training photo than 99% of the validation photos " \
               f"by {kind}" in out


def test_what_a_thread_makes_ahead():
    assert list(evaluate.ahead(range(1, 8))) == list(range(1, 8))

    def breaks():
        yield 1
        raise SystemExit(2)

    made = evaluate.ahead(breaks())
    assert next(made) == 1
    with pytest.raises(SystemExit):
        next(made)


def test_cells_of_the_table():
    columns = [
        {"name": "REAL", "kind": "real", "fid_train": 1.0, "aa_train": 0.5},
        {"name": "a", "kind": "judged", "fid_train": 80.04, "aa_train": 0.41, "kid_train": -2.4e-6,
         "privacy_loss": -0.001, "intervals": {"aa_train": [0.3, 0.5], "kid_train": [0, 0.001]}},
        {"name": "b", "kind": "judged", "fid_train": 79.96, "aa_train": 0.6, "kid_train": 0.01234},
        {"name": "p", "kind": "published", "fid_train": 2.0}]
    assert [evaluate.cell(row, columns[1]) for row in (
        "fid_train", "aa_train", "privacy_loss", "recall")] == [
        "80.0", "0.41 ±0.11", "0.00", "–"]
    assert evaluate.cell("kid_train", columns[2]) == "0.0123"
    assert evaluate.cell("kid_train", {"kid_train": -2501.98}) == "-2502"
    assert [evaluate.best(row, columns) for row in ("fid_train", "aa_train", "recall")] == [
        {1, 2}, {1}, set()]
    assert [row[0] for row in evaluate.table_cells(columns)[1:]] == [
        "FID train", "KID train", "AA train", "privacy loss"]
    lines = evaluate.terminal(columns, "\033[1m{}\033[0m").splitlines()
    assert len({len(line.replace("\033[1m", "").replace("\033[0m", "")) for line in lines}) == 1


def test_names_of_checkpoints_and_columns(run):
    assert list(evaluate.checkpoint_paths(run, ["all"])) == training.find_checkpoints(run)
    columns = [evaluate.Column("fastgan 5", run, 256, {}),
               evaluate.Column("fastgan 5", run, 256, {}),
               evaluate.Column("s", run / "a", 64, []), evaluate.Column("s", run / "b", 64, [])]
    names = [column.name for column in evaluate.unique_names(columns)]
    assert names == [f"{run.name} fastgan 5", f"{run.name} fastgan 5 (2)", "s", "s (2)"]


def sample(path, n, seed, **options):
    generator = evaluate.load_generator(training.read_checkpoint(path), torch.device("cpu"))
    return torch.cat(list(evaluate.sample(generator, range(n), seed, **options)))


def test_sample_i_depends_on_the_seed_and_i_alone(run):
    path = run / "ckpt_000010.pth"
    few, many = (sample(path, n, 7) for n in (3, 35))
    assert torch.equal(few, many[:3]) and len(many) == 35
    other = sample(path, 35, 7, batch_size=5)
    assert (other.int() - many.int()).abs().max() <= 1  # a rounding may fall the other way
    assert not torch.equal(sample(path, 3, 8), few)


def test_published_checkpoints_are_sampled_by_statistics_of_their_own(tmp_path):
    torch.manual_seed(0)
    g, d = nets.FastGANGenerator(256, 256, 4), nets.FastGANDiscriminator(256, 4)
    g.init.init[1].running_mean.fill_(100)  # left by training, of no use
    path = tmp_path / "50000.pth"
    torch.save({"g": {f"module.{k}": v for k, v in g.state_dict().items()},
                "d": d.state_dict()}, path)
    images = sample(path, 2, 0)
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
        (["--run", run, *random, "--fit", "round"], "invalid choice"),
        (["--run", run, "--data", bedrooms], "--weights random"),
        (["--run", run, *random, "--save-samples", tmp_path / "full"], "is not empty"),
    ]
    offline = {"TORCH_HOME": str(tmp_path / "hub"), "https_proxy": "http://127.0.0.1:9"}
    for arguments, words in cases:
        line = refused("evaluate.py", *arguments, cwd=tmp_path, env=offline)
        assert words in line, line
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_interpolation_and_mixing(script, run, tmp_path):
    """Ends are the samples themselves, the way keeps their length; a mix with itself is itself."""
    out = tmp_path / "out"
    done = script("evaluate.py", "--ckpt", run / "ckpt_000010.pth", "--interpolate", 2, 5, "--mix",
                  4, 1, "--out", out)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {
        "interpolate_2_5_fastgan-10.png", "interpolate_2_5_fastgan-10.gif", "mix_fastgan-10.png"}
    generator = evaluate.load_generator(training.read_checkpoint(run / "ckpt_000010.pth"),
                                        torch.device("cpu"))
    samples = torch.cat(list(evaluate.sample(generator, range(6), 0))).int()

    def cells(name, rows, columns):
        grid = torch.from_numpy(np.array(Image.open(out / name))).permute(2, 0, 1).int()
        cut = grid.view(3, rows, 260, columns, 260).permute(1, 3, 0, 2, 4)[..., 2:-2, 2:-2]
        return cut.flatten(0, 1)

    strip = cells("interpolate_2_5_fastgan-10.png", 1, 8)
    for cell, i in ((strip[0], 2), (strip[-1], 5)):
        assert (cell - samples[i]).abs().max() <= 1
    mixed = cells("mix_fastgan-10.png", 3, 3)
    for cell, i in ((1, 4), (2, 1), (3, 4), (4, 4), (6, 1), (8, 1)):
        assert (mixed[cell] - samples[i]).abs().max() <= 1
    assert not torch.equal(mixed[5], mixed[4]) and not torch.equal(mixed[5], mixed[8])
    with Image.open(out / "interpolate_2_5_fastgan-10.gif") as picture:
        assert picture.size == (256, 256) and picture.n_frames > 40
    way = evaluate.between(*torch.randn(2, 500), 9).norm(dim=1)
    assert (way / way.mean() - 1).abs().max() < 0.1
