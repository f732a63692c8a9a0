"""Memory that runs out, skipped updates and CUDA graphs."""

import contextlib
import functools
import resource
from unittest import mock

import pytest
import tiny
import torch
from damage import refusal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_fastgan
from common import cli, devices, perceptual, weights


def test_memory_that_runs_out_is_one_line(script, bedrooms, tmp_path):
    done = script("train_dcgan.py", "--data", bedrooms, "--size", 32, "--features", 8, "--device",
                  "cpu", "--out", tmp_path, "--batch-size", 16384, code=2,
                  limits={resource.RLIMIT_DATA: 3 << 29})
    assert done.stderr.count("\n") == 1, done.stderr
    assert "out of memory (" in done.stderr
    assert "a smaller --batch-size, --size or --features helps" in done.stderr


@pytest.mark.parametrize("message", [
    "CUDA out of memory. Tried to allocate 64.00 GiB. GPU 0 has a total capacity of 79.11 GiB.",
    "CUDA error: out of memory\nCUDA kernel errors might be reported at some other call.",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"])
def test_gpu_memory_that_runs_out_is_one_line_in_all_its_words(message):
    """Also where they are said during a recording, whose end then fails in words of its own."""
    def runs(recorded):
        with cli.system_errors("--size"):
            try:
                raise RuntimeError(message)
            finally:
                if recorded:
                    raise RuntimeError("CUDA error: operation failed due to a previous error "
                                       "during capture")

    for recorded in (False, True):
        assert refusal(runs, recorded).endswith(
            f"out of memory ({message.splitlines()[0]}): a smaller --size helps")


def test_memory_that_runs_out_as_a_run_is_put_back_is_no_fault_of_its_checkpoint(
        script, refused, bedrooms, tmp_path, monkeypatch):
    """Such as when Adam's averages come back to a GPU that is too small for them."""
    script("train_gan.py", "--data", bedrooms, "--epochs", 1, *tiny.ARGUMENTS["gan"], "--device",
           "cpu", "--out", tmp_path, "--name", "run")

    def load_state_dict(optimizer, state):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB.")

    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", load_state_dict)
    line = refused("train_gan.py", "--resume", tmp_path / "run", "--epochs", 2, "--device", "cpu")
    assert "error: out of memory (CUDA out of memory. Tried" in line and "smaller" in line


@pytest.mark.parametrize("message", [
    "mat1 and mat2 shapes cannot be multiplied", "its data is not allocated yet",
    "endAllocatePool: not currently recording to mempool_id"])
def test_other_errors_keep_their_traceback(message):
    """Also after an error of memory that was dealt with."""
    def runs():
        with cli.system_errors():
            try:
                raise MemoryError("Unable to allocate 3 GiB")
            except MemoryError:
                raise RuntimeError(message)  # noqa: B904 (as a bug there would)

    with pytest.raises(RuntimeError, match=message):
        runs()


def test_updates_that_fp16_skips_are_counted():
    """Without waiting for the device: the count is a tensor there."""
    numerics = devices.Numerics(torch.device("cpu"), "fp16")
    parameter = torch.nn.Parameter(torch.ones(()))
    adam = torch.optim.Adam([parameter])
    for factor, skipped in ((1, 0), (1e38, 1), (1, 1), (float("inf"), 2), (float("nan"), 3)):
        before = parameter.item()
        numerics.update(adam, parameter * factor)
        assert int(numerics.skipped) == skipped
        assert (parameter.item() != before) == (factor == 1)


def test_an_end_of_another_process_is_told_from_a_bug(monkeypatch):
    def ends(message):
        with devices.others_may_end():
            raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="Connection closed"):  # of what? there is one process
        ends("Connection closed by peer")
    monkeypatch.setattr(devices, "processes", lambda: 2)
    assert "another of the 2 processes ended" in refusal(ends, "Connection closed by peer\nmore")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        ends("mat1 and mat2 shapes cannot be multiplied")


@functools.cache
def perceptual_network(device):
    return weights.lpips_network("vgg", "random", device)


def trainer(model, rate, device="cpu", precision="fp32"):
    """(a step of a small model, a function of photos; a function that gives what it changes).

    rate: the learning rate, a tensor.
    """
    numerics = devices.Numerics(torch.device(device), precision)
    lpips = perceptual_network(device) if model == "fastgan" else None
    with mock.patch.object(perceptual, "lpips_network", lambda *_, **__: lpips):
        distance = train_fastgan.reconstruction_loss("lpips" if lpips else "l1", numerics)
    networks = {name: net.to(device) for name, net in tiny.networks(model).items()}
    optimizer = torch.optim.AdamW if model == "gan" else torch.optim.Adam
    adams = {name: optimizer(network.parameters(), rate, fused=True, capturable=True)
             for name, network in networks.items()}
    step, average = tiny.training(model, networks, adams, numerics,
                                  ["color", "translation", "cutout"], distance)

    def state():
        return [*average, numerics.skipped, numerics.scaler.scale(torch.ones((), device=device)),
                *(t for net in networks.values() for t in net.state_dict().values()),
                *(t for adam in adams.values() for s in adam.state.values() for t in s.values())]

    return step, state


class NothingOnMeta(TorchDispatchMode):
    """Refuses tensors on the "meta" device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert not any(t.is_meta for t in tree_leaves(result) if isinstance(t, torch.Tensor))
        return result


class Recording(TorchDispatchMode):
    """What a CUDA graph does, on the CPU: the same operations again in the same places in memory,
    without the Python around them. Recording runs them once, which is the first replay.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # CUDA refuses to record what waits for the device or copies from the CPU.
        assert function not in (torch.ops.aten._local_scalar_dense.default,
                                torch.ops.aten.lift_fresh.default,
                                torch.ops.aten.nonzero.default), function
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for function, args, kwargs, result in self.calls if self.replays > 1 else ():
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)),
                                strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.mark.parametrize(("has", "precision"), [
    ("", "fp32"), ("_is_amx_tile_supported", "bf16"), ("_is_avx512_bf16_supported", "bf16")])
def test_auto_is_bf16_on_a_cpu_with_instructions_for_it(monkeypatch, has, precision):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == has, raising=False)
    assert devices.Numerics(torch.device("cpu"), "auto").precision == precision
    assert devices.Numerics(torch.device("cpu"), "fp32").precision == "fp32"


@pytest.mark.parametrize(("model", "precision"), [("gan", "fp32"), ("dcgan", "fp16"),
                                                  ("vae", "bf16"), ("fastgan", "auto"),
                                                  ("projected", "auto"), ("extended", "auto")])
def test_a_recorded_step_goes_on_as_the_step_itself(monkeypatch, model, precision):
    """Bit for bit: three calls as they are, the recording, a replay, another shape, a replay; small
    models come to the other shape's recording, too. A step makes nothing without naming a device:
    that would be on "meta".
    """
    torch.manual_seed(1)
    rate = torch.tensor(2e-4)

    def run(step):
        losses = []
        for i, real in enumerate(batches):
            rate.fill_(0.001 / (i + 1))
            with torch.device("meta"), NothingOnMeta():
                losses.append(step(real))
        return torch.stack(losses)

    step, state = trainer(model, rate, precision=precision)
    usual, other, again = (2, 3, 1) if tiny.SIZES[model] == 256 else (4, 3, 5)
    batches = [tiny.photos(model, n) for n in [*[usual] * 5, *[other] * again, usual]]
    torch.manual_seed(2)
    losses, expected = run(step), [tensor.clone() for tensor in state()]

    recordings = []
    for name, value in {"Stream": mock.MagicMock, "stream": lambda _: contextlib.nullcontext(),
                        "current_stream": mock.MagicMock, "graph": lambda graph, stream: graph,
                        "CUDAGraph": lambda: recordings.append(Recording()) or recordings[-1]
                        }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    step, state = trainer(model, rate, precision=precision)
    step = devices.cuda_graph(step)
    torch.manual_seed(2)
    assert torch.equal(run(step), losses)
    for one, other in zip(state(), expected, strict=True):
        assert torch.equal(one, other)
    assert [recording.replays for recording in recordings] == [3, max(0, again - 3)]
