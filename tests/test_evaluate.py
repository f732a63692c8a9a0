"""evaluate.py, run as its user runs it, on drawn bedrooms.

Mostly by EfficientNet-Lite2, which comes with pip; the networks whose weights would have to be
downloaded have random ones.
"""

import csv
import functools
import html
import json
import re
import runpy
import shutil
import sys

import pytest
import torch
from conftest import ROOT
from drawn import smooth
from PIL import Image
from untrained import sample, write_checkpoint

import evaluate
import metrics
import nets
from common import checkpoints, features, imagefiles, photos, sampling, weights
from common.rows import DETAILS, Row, rows

ROWS = {row.name for row in rows("efficientnet")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "runs" / "fastgan-drawn-1"
    write_checkpoint(folder, 10, seed=1)
    write_checkpoint(folder, 20, seed=2)
    return folder


@pytest.fixture(scope="module")
def networks():
    """{name: a function that makes a network}, by seeded random weights but EfficientNet-Lite2's;
    each network is built once, since building it takes seconds."""
    made = {f"{name}_network": functools.cache(functools.partial(
        getattr(weights, f"{name}_network"), *arguments)) for name, *arguments in (
            ("efficientnet_lite2",), ("inception", "random"), ("resnet50", "random"))}
    lpips = weights.lpips_network
    return made | {"lpips_network": functools.cache(
        lambda net, device: lpips(net, "random", device))}


@pytest.fixture
def evaluated(networks, monkeypatch, capfd):
    """evaluated(arguments) -> (stdout, stderr) of evaluate.py run as __main__ in this process, by
    `features` if no --features are among them."""

    def run(*arguments, by="efficientnet"):
        with monkeypatch.context() as patch:
            for name, make in networks.items():
                patch.setattr(weights, name, make)
            patch.setattr(sys, "argv", ["evaluate.py", "--features", by, *map(str, arguments)])
            capfd.readouterr()
            runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
        return capfd.readouterr()

    return run


def check_numbers(distance, accuracy, fake, real):
    """Against the metrics computed here, from images in folders."""
    network = weights.efficientnet_lite2_network()
    fake, real = (features.features(photos.decode_all(imagefiles.find(folder), 256), network)
                  for folder in (fake, real))
    assert distance == pytest.approx(metrics.frechet_distance(real, fake), rel=1e-3)
    assert accuracy == metrics.adversarial_accuracy(real, fake)


@pytest.fixture(scope="module")
def first_evaluation(script, run, bedrooms):
    """(its process, the samples that it judged, made without photos and feature networks). Without
    a network: EfficientNet's weights come with pip."""
    judged = "--ckpt", 10, "latest"
    done = script("evaluate.py", *judged, "--data", bedrooms, "--features", "efficientnet",
                  "--show", 0, 5, cwd=run.parents[1])
    samples = run.parents[1] / "samples"
    script("evaluate.py", *judged, "--generate", 6, "--out", samples, cwd=run.parents[1])
    return done, samples


def test_two_checkpoints_of_the_newest_run(first_evaluation, run, bedrooms):
    done, samples = first_evaluation
    assert done.stderr.count("\n") == 1, done.stderr
    assert "warning: fastgan 20 was trained on other photos" in done.stderr
    out = run / "eval"
    pictures = {f"{kind}_fastgan-{step}.png" for step in (10, 20)
                for kind in ("neighbours_cosine", "pca", "pieces")}
    assert {path.name for path in out.iterdir()} == pictures | {
        "report.html", "metrics.json", "metrics.csv", "table.md", "pca_real.png", "curve.png",
        "spectrum.png", ".cache"}
    assert done.stdout.splitlines()[-1] == f"{out.relative_to(run.parents[1])}/report.html"
    page = (out / "report.html").read_text()
    for title in ("Over steps", "Power spectra", "fastgan 10", "fastgan 20"):
        assert f">{title}<" in page, title
    assert "<h3>No verdict" in page
    assert len(re.findall("<figure class=plot>", page)) == 2 * 3 + 3
    assert len(re.findall(r"<figcaption>sample \d<", page)) == 12 + sum(
        len(column["suspects"]["cosine"]) for column in json.loads(
            (out / "metrics.json").read_text())["columns"][1:])
    assert {path.name for path in samples.iterdir()} == {"fastgan-10", "fastgan-20"}
    written = json.loads((out / "metrics.json").read_text())
    real, first, second = written["columns"]
    assert [real["name"], first["name"], second["name"]] == ["REAL", "fastgan 10", "fastgan 20"]
    # Too few photos for some, and --recover was not asked for.
    rows = ROWS - {"fd_efficientnet_infinity_validation", "recovery_gap"}
    details = {row.name for row in DETAILS if row.space != "all lpips"}
    assert set(first) == {"name", "kind", "n", "path", "model", "step", "intervals", "suspects",
                          "other_photos", *rows, *details}
    assert not first["other_photos"] and second["other_photos"]
    assert written["verdict"]["note"].startswith("6 images a set are too few for a verdict")
    assert [written["settings"][key] for key in ("n", "size", "fit")] == [6, 256, "square"]
    table = (out / "table.md").read_text()
    assert "by EfficientNet-Lite2" in table and done.stdout.startswith(table)
    assert "random" not in table + json.dumps(written)
    for row, (low, high) in first["intervals"].items():
        assert low <= first[row] <= high
    assert set(first["intervals"]) == (rows | details) - {  # halves of 6 have no 5th neighbour
        "precision", "recall"}
    assert first["privacy_loss"] == first["aa_test"] - first["aa_train"]
    lines = list(csv.DictReader((out / "metrics.csv").open()))
    row = "fd_efficientnet_train"
    assert float(lines[1][row]) == first[row] and lines[0][row] == ""
    better = min(first, second, key=lambda column: column[row])
    line = next(x for x in table.splitlines() if "FD-EfficientNet train" in x)
    assert f"**{better[row]:.1f} ±" in line and line.count("**") == 2
    check_numbers(first[row], first["aa_train"], samples / "fastgan-10", bedrooms / "train")
    check_numbers(real["fd_efficientnet_validation"], real["aa_train"], bedrooms / "val",
                  bedrooms / "train")


def test_a_second_evaluation_takes_features_from_the_cache(first_evaluation, evaluated, run,
                                                           bedrooms, monkeypatch):
    """No image passes a network."""
    out, samples = run / "eval", first_evaluation[1]
    real, first, second = json.loads((out / "metrics.json").read_text())["columns"]
    arguments = ("--run", run, "--ckpt", 10, "--data", bedrooms, "--json", "-")
    computed, compute = [], features._extracted
    monkeypatch.setattr(features, "_extracted", lambda images, *more: (
        computed.append(len(images)), compute(images, *more))[1])
    again = evaluated(*arguments)
    expected = [real, {**first, "path": str(run / "ckpt_000010.pth")}]
    assert json.loads(again.out)["columns"] == expected  # the JSON alone is on stdout
    assert "FD-EfficientNet train" in again.err
    assert computed == [] and (out / "metrics.json").read_text() + "\n" == again.out

    # A damaged cache is made anew, and so is one under another's name.
    a, b = sorted((out / ".cache").glob("embeddings_*.pt"))
    content = bytearray(a.read_bytes())
    content[len(content) // 2] ^= 1
    for path in (a, b):
        path.write_bytes(content if path == a else a.read_bytes())
    assert json.loads(evaluated(*arguments).out)["columns"] == expected
    assert computed == [6]

    # A folder of the same images, from any generator, gives the same numbers.
    monkeypatch.undo()
    monkeypatch.chdir(run.parents[1])
    same = json.loads(evaluated("--samples", samples / "fastgan-20", "--data", bedrooms, "--json",
                                "-").out)["columns"][1]
    assert all(same[key] == second[key] for key in {*(ROWS & set(second)), "intervals"})


def test_dinov2_in_the_place_of_inception(evaluated, bedrooms, tmp_path, monkeypatch):
    """A small vision transformer's random features give the rows, the table and the curve."""
    monkeypatch.setattr(weights, "_vision_transformer", functools.partial(
        weights._vision_transformer, width=32, depth=2, heads=2))
    monkeypatch.setattr(weights, "dinov2_network", functools.partial(
        weights.dinov2_network, "random"))
    paths = [write_checkpoint(tmp_path / "gan", step, 28, step, "gan") for step in (1, 2)]
    out, _ = evaluated("--ckpt", *paths, "--data", bedrooms, "--json", "-", "--out",
                       tmp_path / "out", by="dinov2")
    written = json.loads(out)
    assert written["settings"]["features"] == "dinov2"
    _, *columns = written["columns"]
    network = weights.dinov2_network()
    photo, fake = (features.features(x, network) for x in (
        photos.load_images(bedrooms, "train", 28)[0], sample(paths[0], 6)))
    assert columns[0]["fd_dinov2_train"] == pytest.approx(
        metrics.frechet_distance(photo, fake), rel=1e-3)
    unseen = features.features(photos.load_images(bedrooms, "val", 28)[0], network)
    assert columns[0]["kd_dinov2_validation"] == pytest.approx(
        metrics.kernel_distance(unseen, fake), rel=1e-3, abs=1e-6)
    assert "aa_train_lpips" in columns[0] and not any("fid" in row for row in columns[0])
    assert "FD-DINOv2 train" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "curve.png").exists()


def test_four_models_in_one_table(evaluated, tmp_path, bedrooms):
    paths = [write_checkpoint(tmp_path / "a", 50, 28, 1, "gan"),
             write_checkpoint(tmp_path / "b", 200, 64, 2, "dcgan", fit="crop", features=8),
             write_checkpoint(tmp_path / "c", 7, 64, 3, "vae"),
             write_checkpoint(tmp_path / "d", 1, 256, 4)]
    out, err = evaluated("--ckpt", *paths, "--data", bedrooms, "--out", tmp_path / "out",
                         "--json", "-", "--n", 2)
    written = json.loads(out)
    assert written["settings"]["size"] == 28 and written["settings"]["fit"] == "square"
    columns = written["columns"][1:]
    assert [column["name"] for column in columns] == ["gan 50", "dcgan 200", "vae 7", "fastgan 1"]
    warnings = [line for line in err.splitlines() if "warning: --fit square" in line]
    assert len(warnings) == 1 and "dcgan 200 trained on crop ones" in warnings[0]
    assert not (tmp_path / "out" / "curve.png").exists()  # one step of each run
    for path, column in zip(paths, columns, strict=True):
        assert column["path"] == str(path) and column["n"] == 2
        assert column["fd_efficientnet_train"] > 0
    out, err = evaluated("--ckpt", paths[1], "--data", bedrooms, "--out", tmp_path / "out2",
                         "--json", tmp_path / "numbers.json", "--n", 2)
    settings = json.loads((tmp_path / "numbers.json").read_text())["settings"]
    assert settings["fit"] == "crop" and settings["size"] == 64
    assert "FD-EfficientNet train" in out and "--fit" not in err


def test_recovery_of_a_generator_that_knows_its_training_photos(evaluated, bedrooms, tmp_path):
    """A linear one whose images are mixtures of the training photos."""
    path = write_checkpoint(tmp_path / "gan", 5, 28, 1, "gan", z_dim=6)
    checkpoint = torch.load(path, weights_only=True)
    generator = nets.GANGenerator(28, 6)
    layers = [layer for layer in generator.modules() if isinstance(layer, torch.nn.Linear)]
    images, _ = photos.load_images(bedrooms, "train", 28, "square")
    with torch.no_grad():
        for layer in layers[:-1]:  # z and -z, through the LeakyReLUs
            layer.weight.zero_()
        layers[0].weight[:12] = torch.cat([torch.eye(6), -torch.eye(6)])
        for layer in layers[1:-1]:
            layer.weight[:12, :12] = torch.eye(12)
        logits = torch.atanh((images.flatten(1).float() / 127.5 - 1).clamp(-0.99, 0.99))
        layers[-1].weight.zero_()
        layers[-1].weight[:, :6], layers[-1].weight[:, 6:12] = logits.T / 2, -logits.T / 2
    checkpoint["sampler"] = generator.eval().state_dict()
    checkpoints.save(path.parent, checkpoint | {"step": 6})
    out, _ = evaluated("--run", path.parent, "--ckpt", 6, "--data", bedrooms, "--n", 4,
                       "--recover", 6, "--out", tmp_path / "out", "--json", "-")
    column = json.loads(out)["columns"][1]
    low, high = column["intervals"]["recovery_gap"]
    assert 0 < low < column["recovery_gap"] < high and column["recovery_gap"] > 0.01
    picture = Image.open(tmp_path / "out" / "recovered_gan-6.png")
    assert picture.width > 1000 and picture.height > 900


def test_training_photos_as_samples_are_found_out(evaluated, bedrooms, tmp_path):
    """Copies: FID 0, adversarial accuracy 0, and each named beside its own photo."""
    copies = tmp_path / "copies"
    shutil.copytree(bedrooms / "train", copies)
    out, _ = evaluated("--samples", copies, "--data", bedrooms, "--out", tmp_path / "out",
                       "--size", 28, "--study", by="inception")
    _, column, *study = json.loads((tmp_path / "out" / "metrics.json").read_text())["columns"]
    assert [c["fid_validation"] for c in study if c["kind"] == "published"] == [63, 87, 74, 78, 77]
    assert abs(column["fid_train"]) < 1e-3 * column["fid_validation"]
    assert column["aa_train"] == column["aa_train_lpips"] == 0
    assert column["privacy_loss"] > 0.2
    assert column["copies"] == column["pieces"] == 1
    for kind in ("cosine", "lpips"):
        found = column["suspects"][kind]
        assert len(found) == 6 and all(s["name"] == s["photo"] for s in found)
        assert all(s["distance"] == 0 for s in found)
    assert ("- copying: 6 of 6 images lie suspiciously near to a training photo (0.9 by chance): "
            f"{found[0]['name']}, ") in out and "near to a training photo by LPIPS (0.9" in out


def write_images(out, images, folders):
    """Folders {name: numbers of the uint8 images}."""
    for folder, chosen in folders.items():
        (out / folder).mkdir(parents=True)
        for number, i in enumerate(chosen):
            image = Image.fromarray(images[i].permute(1, 2, 0).numpy())
            image.save(out / folder / f"{number:02d}.png")


def test_the_verdict_in_words(evaluated, tmp_path):
    """Of copies and of images repeated, beside photos: on the terminal, in table.md, in the JSON
    and on the page."""
    write_images(tmp_path, smooth(84, 32), {
        "data/train": range(28), "data/val": range(28, 56), "honest": range(56, 84),
        "copied": [*range(8), *range(56, 76)], "repeated": [56, 57] * 14})
    sets = [tmp_path / name for name in ("copied", "honest", "repeated")]
    out, _ = evaluated("--samples", *sets, "--data", tmp_path / "data", "--out", tmp_path / "out")
    words = json.loads((tmp_path / "out" / "metrics.json").read_text())["verdict"]
    copied, honest, repeated = (words["columns"][path.name] for path in sets)
    assert re.match(r"Photos may be copied: (8|9) of 28 images lie suspiciously near to a training "
                    r"photo \(1.2 by chance\): 0", copied["copying"])
    assert honest["copying"].startswith("No sign beyond chance: ")
    assert honest["quality"].startswith("No difference from photos is seen: ")
    assert repeated["variety"].startswith("Collapsed, hardly any variety: they cover 0%")
    assert "repeated" not in words["best"].partition(";")[0] and "steps" not in words
    page = html.unescape((tmp_path / "out" / "report.html").read_text().replace("&nbsp;", " "))
    page = re.sub("</?strong>", "", page)
    for text in (*copied.values(), *honest.values(), *repeated.values(), words["best"]):
        assert text in page and text in out
    assert out.startswith((tmp_path / "out" / "table.md").read_text())


def test_few_shot_protocol_rewards_copying(evaluated, refused, tmp_path):
    """Many samples against all photos of training: 0 for these photos themselves, which the table
    finds no nearer to validation photos. Of checkpoints the photos are those that they saw."""
    images, out = smooth(96, 32), tmp_path / "out"
    write_images(tmp_path, images, {"data/train": range(28), "data/val": range(28, 56),
                                    "copied": [*range(28)] * 2, "honest": range(56, 96)})
    gan = write_checkpoint(tmp_path / "gan", 1, 32, model="gan", limit=3)
    network = weights.efficientnet_lite2_network()
    of = functools.partial(features.features, network=network)
    samples = ["--samples", tmp_path / "copied", tmp_path / "honest", "--data", tmp_path / "data"]
    text, _ = evaluated(*samples, "--n", 20, "--few-shot", 40, "--out", out)
    written = json.loads((out / "metrics.json").read_text())
    real, copied, honest = written["columns"]
    row = "fd_efficientnet_few_shot"
    expected = metrics.frechet_distance(of(images[:28]), of(images[56:]))
    assert honest[row] == pytest.approx(expected, rel=1e-3)
    assert copied[row] < 0.2 * honest[row]  # 40 of 56 copies are not all photos equally often
    assert copied["fd_efficientnet_validation"] > 0.8 * honest["fd_efficientnet_validation"]
    assert row not in real and row not in honest["intervals"]
    assert written["settings"]["few_shot"] == 40
    lines = list(csv.DictReader((out / "metrics.csv").open()))
    assert [line[row] for line in lines] == ["", str(copied[row]), str(honest[row])]
    words = f"FD-EfficientNet, few-shot: copied {copied[row]:.1f}, honest {honest[row]:.1f}. This "
    assert words in text and "distance of 40 samples from all training photos, at 32×32, as" in text
    assert words in (out / "report.html").read_text() and "| FD-EfficientNet, few" not in text

    _, column = json.loads(evaluated("--ckpt", gan, "--data", tmp_path / "data", "--few-shot", 50,
                                     "--json", "-").out)["columns"]
    expected = metrics.frechet_distance(of(images[:3]), of(sample(gan, 50)))
    assert column[row] == pytest.approx(expected, rel=1e-3)
    assert "honest has 40 images; --few-shot 40 takes them all" in refused(
        "evaluate.py", *samples[:1], *samples[2:], "--few-shot")


def test_a_row_more_is_in_table_csv_and_json(evaluated, bedrooms, run, monkeypatch):
    """To add a number takes a Row and its function."""
    row = Row("mean_gap", "mean gap", "variety", "how far the means are apart", 0, 2, "features",
              lambda train, validation, fake: (train.features.mean() - fake.features.mean()).item(),
              lambda train, validation: 0.125)
    monkeypatch.setattr("common.rows.ROWS", [row, *rows("inception")])
    out, _ = evaluated("--run", run, "--ckpt", 10, "--data", bedrooms, "--out",
                       run.parent / "more")
    written = json.loads((run.parent / "more" / "metrics.json").read_text())
    real, column = written["columns"]
    assert real["mean_gap"] == 0.125 and isinstance(column["mean_gap"], float)
    assert real["intervals"]["mean_gap"] == [0.125, 0.125]
    lines = list(csv.DictReader((run.parent / "more" / "metrics.csv").open()))
    assert float(lines[1]["mean_gap"]) == column["mean_gap"] and lines[0]["mean_gap_low"] == "0.125"
    table = (run.parent / "more" / "table.md").read_text()
    assert table in out and f"{column['mean_gap']:.2f} ±" in next(
        line for line in table.splitlines() if line.startswith("| mean gap"))
    group = table.index("**variety**")
    assert group < table.index("| mean gap") < table.index("**copying**")


def test_names_of_checkpoints_and_columns(run):
    assert list(checkpoints.named(run, ["all"])) == checkpoints.find_all(run)
    columns = [evaluate.Column(name, run / folder, 64, "", None, checkpoint)
               for name, folder, checkpoint in [("fastgan 5", "", {"model": "fastgan"})] * 2 + [
                   ("s", "a", None), ("s", "b", None), ("REAL", "c", None),
                   ("gan 1", "d", {"model": "gan"}), ("gan 2", "d", {"model": "gan"})]]
    names = [column.name for column in evaluate.unique_names(columns)]
    assert names == ["fastgan 5", "fastgan 5 (2)", "s", "s (2)", "REAL (2)", "gan 1", "gan 2"]
    columns = [columns[0], columns[0]._replace(name="fastgan 9", home=run / "e")]
    names = [column.name for column in evaluate.unique_names(columns)]
    assert names == [f"{run.name} fastgan 5", "e fastgan 9"]


def test_published_checkpoints_are_sampled_by_statistics_of_their_own(tmp_path):
    g, d = nets.FastGANGenerator(256, 256, 4), nets.FastGANDiscriminator(256, 4)
    g.init.init[1].running_mean.fill_(100)  # left by training, of no use
    torch.save({"g": g.state_dict(), "d": d.state_dict()}, tmp_path / "50000.pth")
    z = sampling.latents(0, range(2), 256)
    assert torch.equal(sample(tmp_path / "50000.pth", 2),
                       sampling.generate(sampling.estimate_batch_norm(g), z))


def test_bad_input(refused, run, bedrooms, tmp_path):
    """What tests/test_bad_input.py does not ask."""
    mixed, gan = tmp_path / "mixed", write_checkpoint(tmp_path / "gan", 1, 28, model="gan")
    mixed.mkdir()
    for name, size in (("a.png", (64, 64)), ("b.png", (48, 32))):
        Image.new("RGB", size).save(mixed / name)
    offline = {"TORCH_HOME": str(tmp_path / "hub"), "https_proxy": "http://127.0.0.1:9"}
    for arguments, words in [
            (["--ckpt", "latest"], "no run with a checkpoint"),
            (["--ckpt", gan, run / "ckpt_000010.pth"], "trained on different data (fastgan, gan)"),
            (["--samples", mixed, "--data", bedrooms], "--size"),
            (["--run", run, "--data", bedrooms], "--features efficientnet"),
            (["--run", run, "--data", bedrooms, "--features", "dinov2", "--study"], "--study"),
            (["--ckpt", gan, "--mix", 0, 1], "gan"),
            (["--samples", mixed, "--size", 64, "--mix", 0, 1], "--samples is of the table"),
            (["--samples", mixed, "--size", 64, "--recover", 2], "needs checkpoints"),
            (["--run", run, "--data", bedrooms, "--recover", 7], "train has 6 photos")]:
        line = refused("evaluate.py", *arguments, "--out", tmp_path / "out", cwd=tmp_path,
                       env=offline)
        assert words in line, line
    assert not (tmp_path / "out" / "metrics.json").exists()
