"""The shared harness: data order, augmentation, sampling, checkpoints, logs."""

import csv
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import training
from nets import FastGANGenerator


def test_data_order_is_an_endless_row_of_permutations():
    indices = training.data_order(7, 0, 21, seed=3)
    for epoch in indices.view(3, 7):
        assert sorted(epoch.tolist()) == list(range(7))
    assert not torch.equal(indices[:7], indices[7:14])
    pieces = [training.data_order(7, start, 3, seed=3) for start in range(0, 21, 3)]
    assert torch.equal(torch.cat(pieces), indices)
    assert not torch.equal(training.data_order(7, 0, 21, seed=4), indices)


def test_latents_depend_on_seed_and_index_alone():
    rows = training.latents(5, range(10), 64)
    assert torch.equal(training.latents(5, [7, 3], 64), rows[[7, 3]])
    assert not torch.equal(training.latents(6, range(10), 64), rows)
    many = training.latents(0, range(500), 256)
    assert abs(many.mean()) < 0.01 and abs(many.std() - 1) < 0.01


def test_batches_are_mirrored_half_the_time_and_span_minus_one_to_one():
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    images[0, :, :, 0] = 255
    batch = training.take_batch(images, torch.zeros(2000, dtype=torch.long), torch.device("cpu"))
    batch = training.mirror(batch)
    assert set(batch.unique().tolist()) == {-1.0, 1.0}
    share = (batch[:, 0, 0, 0] == -1).float().mean()
    assert 0.45 < share < 0.55


def translated(image, dy, dx):
    """Brute force: zeros come in where the image moved away."""
    moved = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                moved[:, y, x] = image[:, y + dy, x + dx]
    return moved


def test_translation_moves_each_image_by_up_to_an_eighth():
    x = torch.rand(200, 3, 16, 16) + 1
    moves = {(dy, dx): translated(x[0], dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    seen = set()
    for image in training.diff_augment(x[:1].expand(200, -1, -1, -1), ["translation"]):
        seen |= {move for move, moved in moves.items() if torch.equal(image, moved)}
    assert len(seen) >= 24  # all 25 are likely, and nothing else may come out
    y = training.diff_augment(x, ["translation"])
    assert all(any(torch.equal(b, translated(a, *move)) for move in moves)
               for a, b in zip(x[:10], y[:10], strict=True))


def test_color_augmentation_is_the_papers_formula():
    x = torch.rand(4, 3, 8, 8) * 2 - 1
    torch.manual_seed(0)
    y = training.diff_augment(x, ["color"])
    torch.manual_seed(0)
    brightness, saturation, contrast = torch.rand(3, 4)
    for i in range(4):
        image = x[i] + brightness[i] - 0.5
        grey = image.mean(0)
        image = grey + (image - grey) * saturation[i] * 2
        image = image.mean() + (image - image.mean()) * (contrast[i] + 0.5)
        torch.testing.assert_close(y[i], image)
    assert training.diff_augment(x, []) is x


def test_augmentation_lets_gradients_through():
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    training.diff_augment(x, ["color", "translation"]).square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_the_averages_decay_ends_at_the_published_one():
    assert training.average_weight(1) == 9 / 11
    assert 0.01 < training.average_weight(500) < 0.02
    assert training.average_weight(9000) == training.average_weight(50000) == 0.001


def test_one_process_trains_in_a_run_folder(tmp_path, capsys):
    training.lock(tmp_path)
    with pytest.raises(SystemExit) as stop:
        training.lock(tmp_path)
    assert stop.value.code == 2 and "another process" in capsys.readouterr().err


@torch.no_grad()
def test_an_image_depends_on_its_latent_alone():
    """16 latents give the same images in batches of 1, 5 and 16, noise injected and all."""
    torch.manual_seed(0)
    generator = FastGANGenerator(256, 64, 8)
    generator.feat_8[2].weight.fill_(0.5)  # a strength that would show
    before = torch.get_rng_state()
    average = [parameter * 1.1 for parameter in generator.parameters()]
    averaged = training.sampling_copy(generator, average)
    assert torch.equal(torch.get_rng_state(), before)
    z = training.latents(0, range(16), 64)
    with torch.enable_grad():
        assert not averaged(z[:1])[0].requires_grad  # a grid would hold every activation
    images = [torch.cat([averaged(part)[0] for part in z.split(size)]) for size in (1, 5, 16)]
    torch.testing.assert_close(images[0], images[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(images[1], images[2], atol=1e-5, rtol=1e-5)
    assert (images[0][0] - images[0][1]).abs().mean() > 1e-3
    torch.testing.assert_close(averaged.to_big.weight_orig, generator.to_big.weight_orig * 1.1)


@torch.no_grad()
def test_batch_norm_statistics_are_those_of_the_generators_own_samples():
    torch.manual_seed(0)
    generator = FastGANGenerator(256, 64, 8)
    generator.init.init[1].running_mean.fill_(9)  # what training would leave behind
    training.estimate_batch_norm(generator, batches=4, batch_size=16)
    norm, inputs = generator.init.init[1], []
    generator.init.init[0].register_forward_hook(lambda *call: inputs.append(call[-1]))
    generator(training.latents(0, range(64), 64))
    torch.testing.assert_close(norm.running_mean, inputs[0].mean((0, 2, 3)), atol=1e-2, rtol=0.02)
    torch.testing.assert_close(norm.running_var, inputs[0].var((0, 2, 3)), atol=1e-2, rtol=0.1)


def write_photos(folder, n=5, size=(40, 30)):
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = np.random.RandomState(i).randint(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_photos_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    write_photos(tmp_path / "a b é" / "train")
    images, fingerprint = training.load_images(tmp_path / "a b é", "train", 16)
    expected = Image.open(tmp_path / "a b é" / "train" / "2.png").resize((16, 16), 2)
    assert np.array_equal(images[2].permute(1, 2, 0), np.asarray(expected))
    with monkeypatch.context() as patch:
        patch.setattr(training, "decode", None)  # would fail if it were called
        again = training.load_images(tmp_path / "a b é", "train", 16)
    assert torch.equal(again[0], images) and again[1] == fingerprint
    Image.new("RGB", (40, 30)).save(tmp_path / "a b é" / "train" / "2.png")
    changed = training.load_images(tmp_path / "a b é", "train", 16)
    assert changed[0][2].max() == 0 and changed[1] != fingerprint


def test_a_damaged_cache_is_made_anew(tmp_path):
    write_photos(tmp_path / "train")
    images, _ = training.load_images(tmp_path, "train", 16)
    cache = tmp_path / ".cache" / "train_16_square.npy"
    cache.write_bytes(cache.read_bytes()[:200])
    assert torch.equal(training.load_images(tmp_path, "train", 16)[0], images)


def test_crop_keeps_proportions(tmp_path):
    image = Image.new("RGB", (60, 20))
    image.paste((255, 255, 255), (20, 0, 40, 20))
    image.save(tmp_path / "wide.png")
    assert training.decode(tmp_path / "wide.png", 20, "crop").min() > 250
    assert training.decode(tmp_path / "wide.png", 20, "square").min() == 0


def state(step=3):
    return {"model": "fastgan", "config": {"image_size": 256}, "step": step,
            "networks": {"g": {"w": torch.arange(1000.0), "n": torch.tensor(4)}},
            "optimizers": {"state": {0: {"step": torch.tensor(1.0)}}, "betas": (0.5, 0.999)},
            "half": torch.ones(3, dtype=torch.bfloat16), "args": {"name": None}}


def test_checkpoints_come_back_and_only_the_newest_are_kept(tmp_path):
    for step in (9, 10, 11):
        path = training.save_checkpoint(tmp_path, state(step), keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["ckpt_000010.pth", "ckpt_000011.pth"]
    saved = training.read_checkpoint(path)
    assert saved["step"] == 11 and saved["args"] == {"name": None} and not saved["published"]
    assert torch.equal(saved["networks"]["g"]["w"], torch.arange(1000.0))


def test_a_failed_write_leaves_the_earlier_checkpoint_and_no_rubbish(tmp_path, monkeypatch):
    training.save_checkpoint(tmp_path, state())
    before = (tmp_path / "ckpt_000003.pth").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as stop:
        training.save_checkpoint(tmp_path, state())
    assert stop.value.code == 2
    assert (tmp_path / "ckpt_000003.pth").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def assert_refused(path, capsys, words):
    with pytest.raises(SystemExit) as stop:
        training.read_checkpoint(path)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and words in line, line


def test_a_checkpoint_that_would_run_code_is_refused_unrun(tmp_path, capsys):
    torch.save({"format": 1, "x": Bomb(tmp_path / "marker")}, tmp_path / "evil.pth")
    assert_refused(tmp_path / "evil.pth", capsys, "evil.pth")
    assert not (tmp_path / "marker").exists()


def test_damaged_checkpoints_are_refused(tmp_path, capsys):
    good = training.save_checkpoint(tmp_path, state()).read_bytes()
    path = tmp_path / "bad.pth"
    for sixteenth in range(16):
        path.write_bytes(good[: len(good) * sixteenth // 16])
        assert_refused(path, capsys, "bad.pth")
    at = good.index(torch.arange(1000.0).numpy().tobytes()) + 100
    path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    assert_refused(path, capsys, "bad.pth")
    torch.save({"format": 99}, path)
    assert_refused(path, capsys, "format 99")
    torch.save([1, 2], path)
    assert_refused(path, capsys, "no checkpoint")
    torch.save({"g": {}, "d": {}}, path)
    assert_refused(path, capsys, "not a FastGAN checkpoint")
    assert_refused(tmp_path / "none.pth", capsys, "no checkpoint at")


def test_log_rows_after_the_checkpoint_and_torn_ones_go(tmp_path):
    log = tmp_path / "log.csv"
    for step in range(1, 6):
        training.append_row(log, {"step": step, "loss": step / 7})
    whole = log.read_text()
    log.write_text(whole + "6,0.")
    training.truncate_log(log, 5)
    assert log.read_text() == whole
    log.write_text(whole + "6")
    training.truncate_log(log, 3)
    rows = list(csv.DictReader(log.open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3] and float(rows[2]["loss"]) == 3 / 7
    training.truncate_log(log, 0)
    training.append_row(log, {"step": 1, "loss": 1})
    assert log.read_text() == "step,loss\n1,1\n"


def test_pixels_round_and_clamp():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 7.0])
    assert training.to_uint8(x).tolist() == [0, 0, 128, 255, 255, 255]


def test_decoding_depends_on_no_order(tmp_path):
    write_photos(tmp_path / "train", n=70)
    files = training.image_files(tmp_path / "train")
    shuffled = random.Random(0).sample(files, len(files))
    images = training.decode_all(shuffled, 8)
    for i in (0, 40, 69):
        assert np.array_equal(images[i], training.decode(shuffled[i], 8, "square"))


def test_grid_shows_images_row_by_row(tmp_path):
    images = torch.stack([torch.full((3, 4, 4), value) for value in (-1.0, 0.0, 1.0)])
    training.save_grid(images, tmp_path / "grid.png", columns=2)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (16, 16, 3)
    assert grid[4, 4, 0] == 0 and grid[4, 12, 0] == 128 and grid[12, 4, 0] == 255
    assert grid[12, 12, 0] == 0 == grid[0, 12, 0]


def test_nearest_shrinking_takes_every_second_pixel():
    """What the reconstruction targets rely on."""
    x = torch.rand(1, 3, 256, 256)
    assert torch.equal(F.interpolate(x, size=128), x[:, :, ::2, ::2])
