"""What only a GPU can show: python -m pytest --gpu"""

import csv
import json
import math
import subprocess
import sys

import pytest
import tiny
import torch
from conftest import ROOT, digest
from test_devices import trainer
from test_resume import STATE
from untrained import write_checkpoint

from common import checkpoints, devices

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and --gpu")


def run(script, *arguments, cwd, code=0):
    """What a script says, by a process of its own: a forked one could not use the GPU."""
    command = [sys.executable, ROOT / script, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("model", tiny.SIZES)
def test_a_cuda_graph_goes_on_as_the_step_itself(model, deterministic, monkeypatch):
    results, replays, replay = [], [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay",
                        lambda graph: replays.append(graph) or replay(graph))
    for wrapped in (devices.cuda_graph, lambda step: step):
        rate = torch.tensor(0.02, device="cuda")
        step, state = trainer(model, rate, "cuda", "auto")
        step = wrapped(step)
        torch.manual_seed(2)
        losses = []
        for n in (4, 4, 4, 4, 3, 4, 4):
            losses.append(step(tiny.photos(model, n).cuda()))
            rate.mul_(0.5)
        results.append([torch.stack(losses), torch.rand(3, device="cuda"), *state()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert len(replays) == 3


@pytest.mark.parametrize("model", tiny.SCRIPTS)
def test_deterministic_runs_have_the_same_bits_resumed_ones_too(model, bedrooms, tmp_path):
    """Ten steps, and five and five: from the fourth of each on a CUDA graph; bf16."""
    arguments = [tiny.SCRIPTS[model], *tiny.SMALL[model], "--data", bedrooms, "--device",
                 "cuda", "--deterministic", "--batch-size", 2]
    run(*arguments, tiny.STEPS[model], 10, "--name", "whole", cwd=tmp_path)
    run(*arguments, tiny.STEPS[model], 5, "--name", "parts", cwd=tmp_path)
    run(arguments[0], "--resume", "runs/parts", tiny.STEPS[model], 10, cwd=tmp_path)
    whole, parts = (checkpoints.read(tmp_path / "runs" / name / "ckpt_000010.pth")
                    for name in ("whole", "parts"))
    assert whole["args"]["device"].startswith("cuda")
    for key in STATE:
        assert digest(whole[key]) == digest(parts[key]), key


@pytest.mark.parametrize("kind", [["published", "--reconstruction", "l1"], ["projected"],
                                  ["extended"]])
@pytest.mark.parametrize("flag", ["--graph", "--no-graph"])
def test_fastgan_goes_on_and_logs(kind, flag, bedrooms, tmp_path):
    """Steps, and between them D's logits, samples and checkpoints of what the steps change."""
    run("train_fastgan.py", *tiny.FASTGAN, "--discriminator", *kind, "--data", bedrooms, flag,
        "--batch-size", 2, "--iters", 6, "--log-every", 3, "--sample-every", 3, "--name", "one",
        cwd=tmp_path)
    said = run("train_fastgan.py", "--resume", "latest", "--iters", 12, cwd=tmp_path)
    assert "cuda" in said and "peak memory" in said
    with open(tmp_path / "runs" / "one" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["3", "6", "9", "12"]
    for row in rows:
        assert all(math.isfinite(float(value)) for value in row.values())
        assert 0 < float(row["d_hinge"]) < 4 and "d_validation" in row


def test_memory_that_runs_out_is_one_line(bedrooms, tmp_path):
    said = run("train_fastgan.py", "--size", 256, "--reconstruction", "l1", "--batch-size", 8192,
               "--data", bedrooms, cwd=tmp_path, code=2)
    assert said.count("\n") == 1 and "out of memory (CUDA" in said, said


def test_memory_that_runs_out_while_a_graph_is_recorded_is_one_line(tmp_path):
    (tmp_path / "record.py").write_text(f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        import torch
        from common import cli, devices
        sizes, one = iter([1, 1, 1, 2**48]), torch.ones((), device="cuda")
        step = devices.cuda_graph(lambda x: x + torch.empty(next(sizes), device="cuda")[0])
        with cli.system_errors("--size"):
            for _ in range(4):
                step(one)
        """)
    said = run(tmp_path / "record.py", cwd=tmp_path, code=2)
    assert said.count("\n") == 1 and "out of memory (CUDA" in said, said


def test_evaluation_says_what_it_says_on_the_cpu(bedrooms, tmp_path):
    write_checkpoint(tmp_path / "run", 10)
    columns = []
    for device in ("cuda", "cpu"):
        said = run("evaluate.py", "--run", "run", "--ckpt", 10, "--features", "efficientnet",
                   "--data", bedrooms, "--device", device, "--json", "-", "--out", device,
                   cwd=tmp_path)
        columns.append(json.loads(said)["columns"])
    for one, other in zip(*columns, strict=True):
        numbers = {key: value for key, value in other.items() if isinstance(value, float)}
        assert {key: one[key] for key in numbers} == pytest.approx(numbers, rel=0.02, abs=2e-3)


def test_an_exported_generator_runs_on_the_gpu(tmp_path):
    path, z = write_checkpoint(tmp_path / "run", 10), torch.randn(3, 64)
    checkpoints.export(checkpoints.load_generator(path), tmp_path / "generator.pt2")
    exported = torch.export.load(tmp_path / "generator.pt2").module().to("cuda")
    torch.testing.assert_close(exported(z.cuda()).cpu(), checkpoints.load_generator(path)(z)[0],
                               atol=0.02, rtol=0.02)
