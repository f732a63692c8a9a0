"""Memory that runs out, compiled steps: what must not change what training computes."""

import resource

import pytest
import torch

import nets
import train_dcgan
import training


def test_a_batch_that_does_not_fit_is_answered_by_one_that_does(script, bedrooms, tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_DATA, (3 << 29, 3 << 29))

    command = ["train_dcgan.py", "--data", bedrooms, "--size", 32, "--features", 8, "--device",
               "cpu", "--out", tmp_path, "--name", "large", "--batch-size"]
    done = script(*command, 16384, "--epochs", 2, preexec_fn=limited)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    words = "--batch-size 16384 does not fit into memory, "
    assert words in done.stderr
    assert [path.name for path in (tmp_path / "large").iterdir()] == ["args.json"]
    smaller = int(done.stderr.split(words)[1].split()[0])
    done = script(*command, smaller, "--epochs", 1, preexec_fn=limited)
    assert done.returncode == 0, done.stderr  # into the same folder, where nothing was yet
    assert "peak memory" in done.stdout and training.find_checkpoints(tmp_path / "large")


def test_a_compiled_run_resumes_exactly_and_computes_what_the_eager_one_does(script, bedrooms,
                                                                             tmp_path):
    """Six iterations of a GAN on the CPU; convolutions and CUDA graphs, below, need a GPU."""
    common = ["--data", bedrooms, "--size", 8, "--device", "cpu", "--precision", "fp32", "--out",
              tmp_path, "--batch-size", 2, "--limit", 4, "--ckpt-every", 2]
    flags = ["--compile", "--deterministic"]
    for name, epochs, more in (("whole", 3, flags), ("part", 2, flags), ("eager", 3, [])):
        done = script("train_gan.py", *common, "--name", name, "--epochs", epochs, *more)
        assert done.returncode == 0, done.stderr
    done = script("train_gan.py", "--resume", tmp_path / "part", "--epochs", 3)
    assert done.returncode == 0, done.stderr
    whole, part, eager = (training.read_checkpoint(tmp_path / name / "ckpt_000003.pth")
                          for name in ("whole", "part", "eager"))
    assert part["args"]["compile"] and part["args"]["deterministic"]
    for key in ("networks", "optimizers", "random", "losses"):
        assert training.digest(whole[key]) == training.digest(part[key]), key
    rows = [torch.tensor([[float(cell) for cell in line.split(",")]
                          for line in (tmp_path / name / "log.csv").read_text().split()[1:]])
            for name in ("whole", "eager")]
    torch.testing.assert_close(*rows, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compiled_steps_on_a_gpu_are_the_eager_ones():
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        numerics = training.Numerics(torch.device("cuda"), "fp32")
        networks = {"generator": nets.DCGANGenerator(16, 16, 8).cuda(),
                    "discriminator": nets.DCGANDiscriminator(16, 8).cuda()}
        for network in networks.values():
            if compiled:
                training.compile_passes(network, numerics.device)
        optimizers = {name: torch.optim.SGD(net.parameters(), 0.01)
                      for name, net in networks.items()}
        real, losses = torch.rand(8, 3, 16, 16).cuda(), []
        for _ in range(5):
            losses.append(train_dcgan.train_step(networks, optimizers, numerics, real, []))
            torch.compiler.cudagraph_mark_step_begin()
        results.append(torch.stack(losses))
    torch.testing.assert_close(*results, atol=1e-2, rtol=1e-2)  # products are TF32


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
            training.match_layout(adam)
        results.append(weight.detach())
    assert torch.equal(*results)
