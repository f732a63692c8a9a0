"""Checkpoints come back as they were written, damaged and hostile ones are refused in one line."""

import os
import random
import resource
import time
import zipfile

import pytest
import torch
from conftest import digest
from damage import fuzz_count, mutations, refusal
from test_nets import read_fixture

import nets
from common import checkpoints

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, on damaged files


def write(folder, keep=None, **more):
    """A small checkpoint."""
    folder.mkdir(exist_ok=True)
    generator = nets.GANGenerator(4, 2)
    state = {"model": "gan", "config": {"image_size": 4, "z_dim": 2}, "step": 3,
             "args": {"data": "drawn"}, "sampler": generator.state_dict(), "networks": {},
             "optimizers": None, "data": None, **more}
    return checkpoints.save(folder, state, keep)


def test_checkpoints_come_back_and_only_the_newest_are_kept(tmp_path):
    state = {"networks": {"g": {"w": torch.arange(1000.0), "n": torch.tensor(4)}},
             "optimizers": {"state": {0: {"step": torch.tensor(1.0)}}, "betas": (0.5, 0.999)},
             "half": torch.ones(3, dtype=torch.bfloat16), "args": {"name": None}}
    for step in (9, 10, 11):
        path = write(tmp_path, keep=2, step=step, **state)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["ckpt_000010.pth", "ckpt_000011.pth"]
    saved = checkpoints.read(path)
    assert saved["step"] == checkpoints.step_of(path) == 11 and not saved["published"]
    for key, value in state.items():
        assert digest(saved[key]) == digest(value), key


def test_a_failed_write_leaves_the_earlier_checkpoint_and_no_rubbish(tmp_path, monkeypatch):
    path = write(tmp_path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "ckpt_000003.pth could not be written" in refusal(write, tmp_path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_damaged_checkpoints_are_refused(tmp_path):
    good = write(tmp_path, x=torch.arange(1000.0)).read_bytes()
    path = tmp_path / "bad.pth"
    at = good.index(torch.arange(1000.0).numpy().tobytes()) + 100
    damaged = [good[: len(good) * sixteenth // 16] for sixteenth in range(16)]
    for data in [*damaged, good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]]:
        path.write_bytes(data)
        assert "bad.pth" in refusal(checkpoints.read, path)
    for value, words in (([1, 2], "no checkpoint"), ({"g": {}, "d": {}}, "not a FastGAN")):
        torch.save(value, path)
        assert words in refusal(checkpoints.read, path)


def test_bombs_and_absurd_shapes(tmp_path):
    """Each is refused in well under a gigabyte and a few seconds."""
    good = write(tmp_path / "good")
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(2**28) if name.endswith("/0") else old.read(name))
    assert bomb.stat().st_size < 10**6
    deep = [1] * 10
    for _ in range(12):
        deep = [deep] * 10
    hostile = {"wide": torch.zeros(1).expand(10**12), "deep": deep, "set": {1, 2},
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
        line = refusal(checkpoints.read, path)
        assert line and path.name in line, path
    assert time.monotonic() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_size_that_a_checkpoint_only_claims_takes_no_memory(tmp_path):
    for size in ({"image_size": 2**15, "z_dim": 2**15}, {"image_size": 8, "z_dim": 2}):
        line = refusal(checkpoints.load_generator, write(tmp_path / str(size["z_dim"]),
                                                         config=size))
        assert "of another network" in line
    generator = checkpoints.load_generator(write(tmp_path / "right"))
    assert generator(torch.zeros(3, 2)).shape == (3, 3, 4, 4)


def test_fuzzed_checkpoints(request, tmp_path):
    """One line, or contents that the checksums confirm: ours, published, torch's old file format.
    """
    g, d = nets.FastGANGenerator(256, 4, 1), {"x": torch.ones(3)}
    torch.save({"g": g.state_dict(), "d": d}, tmp_path / "published.pth")
    torch.save({"g": {"a": torch.ones(9)}, "d": d}, tmp_path / "old.pth",
               _use_new_zipfile_serialization=False)
    ours = write(tmp_path)
    whole, each = digest(checkpoints.read(ours)["sampler"]), fuzz_count(request, 0.4 / 3)
    path, chance, refused = tmp_path / "fuzzed.pth", random.Random(1), 0
    for original in (ours, tmp_path / "published.pth", tmp_path / "old.pth"):
        damaged = mutations(chance, original.read_bytes())
        for _ in range(each):
            path.write_bytes(next(damaged))
            line = refusal(checkpoints.read, path)
            assert line is None or path.name in line
            refused += line is not None
            if line is None and original == ours:  # in what torch does not read
                assert digest(checkpoints.read(path)["sampler"]) == whole
    print(f"{refused} of {3 * each} damaged checkpoints refused")


# Adam's state


def test_fused_adam_goes_on_in_another_layout():
    """As when a run in bf16 is resumed in float32."""
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
        adam = torch.optim.Adam([weight], 0.1, fused=True)
        for _ in range(2):
            weight.grad = torch.empty_like(weight).copy_(torch.randn(4, 3, 2, 2))
            adam.step()
            weight.data = weight.data.contiguous(memory_format=layout)
            checkpoints.load_adam(adam, adam.state_dict(), "x.pth")
        results.append(weight.detach())
    assert torch.equal(*results)


def moments(**more):
    return {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.ones(2, 3),
            **more}


MOMENTS = [
    moments(exp_avg=torch.ones(3, 2)), moments(exp_avg_sq=None), moments(exp_avg="1"),
    moments(step=torch.ones(2)), moments(step=torch.ones(2, 3)), moments(more=torch.ones(2, 3)),
    {"step": torch.tensor(3.0)}, {}, [1], "x", None]


@pytest.mark.parametrize("saved", [
    *({"state": {0: state}, "param_groups": [{"params": [0]}]} for state in MOMENTS),
    None, {}, [], {"state": {}}, {"state": {0: moments()}, "param_groups": []},
    {"state": {}, "param_groups": [{"params": [0, 1]}]}, {"state": [], "param_groups": [{}]},
    {"state": 3, "param_groups": [{"params": [0]}]}, {"state": {}, "param_groups": 3}])
def test_malformed_optimisers_are_refused(saved):
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(2, 3))], fused=True)
    whole = {"state": {0: moments()}, "param_groups": [{"params": [0]}]}
    checkpoints.load_adam(adam, whole, "x.pth")
    assert "x.pth" in refusal(checkpoints.load_adam, adam, saved, "x.pth")


# Files of the published code


def published_file(path, g, d, prefix="", **more):
    def named(state):
        return {prefix + name: value for name, value in state.items()}

    torch.save({"g": named(g), "d": named(d), **more}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_weights_load(tmp_path, prefix):
    """At full width, by the fixture's recipe, averaged parameters in their own list."""
    fixture = read_fixture(256)
    shapes = [dict(fixture[name]["state_dict"]) for name in "GD"]
    g, d = ({name: torch.full(shape, float(i)) for i, (name, shape) in enumerate(net.items())}
            for net in shapes)
    network = nets.FastGANGenerator(256)
    average = [torch.full_like(p, -i - 1.0) for i, p in enumerate(network.parameters())]
    path = published_file(tmp_path / "all_50000.pth", g, d, prefix, g_ema=average)
    saved = checkpoints.read(path)
    assert saved["step"] == 50000 and saved["published"]
    assert saved["config"] == {"image_size": 256, "z_dim": 256, "features": 64}
    network.load_state_dict(saved["sampler"])
    for parameter, value in zip(network.parameters(), average, strict=True):
        assert torch.equal(parameter, value)
    assert digest(saved["networks"]) == digest({"generator": g, "discriminator": d})
    nets.FastGANDiscriminator(256).load_state_dict(saved["networks"]["discriminator"])
    plain = checkpoints.read(published_file(tmp_path / "20000.pth", g, d, prefix))
    assert plain["step"] == 20000 and plain["optimizers"] is None
    assert digest(plain["sampler"]) == digest(g)


def test_steps_in_the_names_of_published_files(tmp_path):
    """A number that is something else (256 pixels, the second one) is no step."""
    g, d = nets.FastGANGenerator(256, 4, 2), nets.FastGANDiscriminator(256, 2)
    steps = {"50000": 50000, "all_50000": 50000, "50000 (1)": 50000, "all_100 (12)": 100,
             "20000(2)": 20000, "room_50000": 50000, "0": 0, "all_0": 0}
    unknown = dict.fromkeys(["best", "bedroom2", "cat_256", "(1)", "50000-copy"], 0)
    for name, step in (steps | unknown).items():
        saved = checkpoints.read(published_file(tmp_path / f"{name}.pth", g.state_dict(),
                                                d.state_dict()))
        assert (saved["step"], saved["trained"] > 0) == (step, name in unknown), name
