"""Where and how a step is computed: device, precision, several processes, CUDA graphs.

Several processes: torchrun --nproc_per_node=N train_<model>.py ... Each has the same weights and
draws of its own, and takes its part of every batch of N · --batch-size photos; torch's
DistributedDataParallel averages the gradients, and the first process writes. Batch norm sees the
images of its own process alone, so --batch-size means the same for it whatever N is; its running
statistics are those of the first process.
"""

import contextlib
import os
import resource
import sys
from datetime import timedelta

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from common import cli

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name):
    """The torch device that --device names; for `auto` CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.empty(1, device=name).device  # with its number, which set_device wants
        if device.type == "cuda":  # a CUDA graph takes the current device's streams
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        cli.fail(f"--device {name}: {str(error).splitlines()[0]}; --device cpu works everywhere")
    return device


def random_state(device):
    """The state of every generator that training draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state, device):
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def peak_memory(device):
    """GiB: the most that torch held on the GPU or, without one, that the process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


# Several processes ---------------------------------------------------------------------------


def rank():
    """This process among all that train, 0 for the first or only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def processes():
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def join(device):
    """Waits for the other processes where torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # What is on the CPU (flags, random states) goes through gloo and waits for no GPU. An hour:
        # one process may write grids and checkpoints while the others wait.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(hours=1))


@contextlib.contextmanager
def others_may_end():
    """Ends this process in one line when another one that it waits for has ended."""
    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "NCCL", "TCPStore", "onnection")
        if processes() == 1 or not any(word in str(error) for word in words):
            raise
        cli.fail(f"another of the {processes()} processes ended or can't be reached, so this one "
                 f"stops; the checkpoints written before are good ({str(error).splitlines()[0]})")


def together(collective, *args):
    """Calls one of torch.distributed's functions where there are several processes."""
    if processes() > 1:
        collective(*args)


def gathered(value):
    """A list of every process's `value`."""
    values = [value] * processes()
    together(distributed.all_gather_object, values, value)
    return values


def parallel(network, **options):
    """The network as several processes train it together; itself where there is one process.

    options: of DistributedDataParallel. A gradient is the mean over all processes after a backward
    pass, unless the forward pass was `unsynchronized` or by the `plain` network.
    """
    if processes() == 1:
        return network
    shared = DistributedDataParallel(network, **options)
    shared.broadcast_buffers = False  # as an argument it would leave them unequal at the start, too
    return shared


def plain(network):
    """The network itself, without what `parallel` put around it."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def unsynchronized(network):
    """with unsynchronized(network): gradients of its passes are shared after a later pass."""
    several = isinstance(network, DistributedDataParallel)
    return network.no_sync() if several else contextlib.nullcontext()


# Precision -----------------------------------------------------------------------------------


def fast_precision(device):
    """bf16 where the device has instructions for it, fp16 on older GPUs, else fp32."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    instructions = "_is_amx_tile_supported", "_is_avx512_bf16_supported"  # no public names yet
    fast = device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in instructions)
    return "bf16" if fast else "fp32"


class Numerics:
    """How a step computes: the networks' passes in `precision`, everything else in float32.

    with numerics.autocast(): a network's pass; its result goes through .float() to a loss
    numerics.backward(loss): gradients of a first loss, if there are two
    numerics.update(optimizer, loss)
    """

    def __init__(self, device, precision="auto"):
        self.device = device
        self.precision = fast_precision(device) if precision == "auto" else precision
        if device.type == "cuda":
            # Products rounded to TF32's 10 bits, sums in float32: convolutions in torch do it by
            # default. Losses, spectral norms, averages and Adam have no matrix products.
            torch.set_float32_matmul_precision("high")
        # Convolutions are fast in channels-last; in float32 a CPU's batch norm sums badly in it.
        self.layout = torch.contiguous_format if self.precision == "fp32" else torch.channels_last
        # float16 has few exponents: its losses are scaled up, and updates that overflow skipped.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.skipped = torch.zeros((), dtype=torch.long, device=device)  # updates so far

    def autocast(self):
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def backward(self, loss):
        """Adds the gradients of a loss to its parameters', for the update to come."""
        self.scaler.scale(loss).backward()

    def update(self, optimizer, loss):
        """One step along the gradients of this loss and those before, which are then gone."""
        one = torch.ones((), device=self.device)
        before = self.scaler.scale(one)
        self.backward(loss)
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.is_enabled():  # a lower scale says it, on the device: nothing waits for it
            self.skipped += self.scaler.scale(one) < before
        optimizer.zero_grad(set_to_none=True)


# Many launches as one ------------------------------------------------------------------------


def cuda_graph(step, warm_up=3):
    """A function of CUDA tensors, recorded as a CUDA graph for each of their shapes: one launch a
    call.

    It runs as it is `warm_up` times, until all is chosen and allocated that is so at first use.
    What it keeps in Python stays as it was when it was recorded; what it keeps in tensors, and the
    default generator's draws, go on.
    """
    stream, launches = torch.cuda.Stream(), {}

    def launch(*tensors):
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in launches:
            launches[shapes] = _cuda_graph(step, warm_up, stream)
        return launches[shapes](*tensors)

    return launch


def _cuda_graph(step, warm_up, stream):
    """The same for one shape."""
    graph, calls, inputs, output = torch.cuda.CUDAGraph(), 0, (), None

    def launch(*tensors):
        nonlocal calls, inputs, output
        inputs = inputs or [tensor.clone() for tensor in tensors]
        calls += 1
        if calls <= warm_up:  # on the stream of the recording, which autograd remembers
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                result = step(*tensors)
            torch.cuda.current_stream().wait_stream(stream)
            return result
        torch._foreach_copy_(inputs, list(tensors))
        if output is None:
            with torch.cuda.graph(graph, stream=stream):
                output = step(*inputs)
        graph.replay()
        return output.clone()

    return launch
