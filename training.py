"""What the training scripts share: arguments, photos in memory, run folders, exact resume.

In this order: arguments and errors; several processes; precision and CUDA graphs; photos;
sampling; run folders and their log; checkpoints; a run. A training script reads its arguments
with `parse_arguments` and its photos with `load_photos`, and then is one loop over `Run.steps`.
No losses and no networks.
"""

import argparse
import contextlib
import copy
import csv
import fcntl
import functools
import gc
import glob
import hashlib
import io
import json
import math
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import distributed
from torch.nn import functional as F
from tqdm import tqdm

FORMAT = 1  # of checkpoints; a reader refuses newer ones
warnings.filterwarnings("ignore", module="PIL")  # of a photo that decodes all the same
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SKIPPED = "skipped_updates"  # column of the log: of fp16, since the run began
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # EPS runs ghostscript
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}


# ---------------------------------------------------------------------------------------------
# Arguments and errors
# ---------------------------------------------------------------------------------------------


def fail(message):
    """One line on stderr, exit code 2: the user's input was wrong, not the program."""
    line = " ".join(str(message).split())
    who = f"process {rank()}: " if processes() > 1 else ""
    print(f"{Path(sys.argv[0]).name}: error: {who}{line}", file=sys.stderr, flush=True)
    sys.exit(2)


@contextlib.contextmanager
def system_errors():
    """A full disk, too little memory, Ctrl-C and their like end the script in one line."""
    try:
        yield
    except OSError as error:
        fail(f"{error.filename or ''} {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(f"too little memory ({error}): a smaller --batch-size, --size or --features helps")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def is_out_of_memory(error):
    words = ("llocate", "overflowed", "bad_alloc")  # in what torch says where there is no CUDA
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words))


class Fits(Exception):
    """The iterations of a trial went through."""


def train(main, args, checkpoint):
    """main(args, checkpoint); where --batch-size doesn't fit into memory, says which one does.

    It is found by trying a few iterations with its half, its quarter, ...
    """
    try:
        main(args, checkpoint)
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)
    # From here on nothing holds what the failed try had allocated.
    size = args.batch_size
    while size > 2 and processes() == 1:
        size = max(2, size // 2)
        if fits(main, args, size):
            fail(f"--batch-size {args.batch_size} does not fit into memory, {size} does")
    fail(f"too little memory ({reason}): a smaller --batch-size, --size or --features helps")


def fits(main, args, batch_size):
    """Whether main goes through a few iterations at a batch size; leaves nothing behind."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    quiet = io.StringIO()
    with (tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(quiet),
          contextlib.redirect_stderr(quiet)):
        try:
            main(argparse.Namespace(**{**vars(args), "batch_size": batch_size, "out": out,
                                       "name": None, "sample_every": 1, "trial": True}), None)
        except Fits:
            return True
        except SystemExit as stop:
            if stop.code != 2:
                raise
            return False
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return False
    return True


def limit_memory(device):
    """Lets the CPU's memory run out with an error; else the system would kill without a word."""
    try:
        lines = Path("/proc/meminfo").read_text() + Path("/proc/self/status").read_text()
    except OSError:
        return  # not Linux
    found = dict(line.split()[:2] for line in lines.splitlines() if line.endswith(" kB"))
    free = sum(int(found[f"{name}:"]) for name in ("MemAvailable", "VmData")) * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if device.type == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA,
                           (free if hard == resource.RLIM_INFINITY else min(free, hard), hard))


def peak_memory(device):
    """GiB: the most that torch held on the GPU or, without one, that the process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """One line a flag where it fits; no default where there is none to show."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=30, width=100)

    def _get_help_string(self, action):
        if action.default is None or action.default is False or "default" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows defaults and whose errors are one line."""

    def __init__(self, doc):
        super().__init__(description=doc.split("\n")[0], usage="%(prog)s [flags]",
                         formatter_class=Help, allow_abbrev=False)

    origin = ""  # where the arguments come from if they were not typed

    def error(self, message):
        fail(f"{self.origin}{message}")


def number(kind, low, high=math.inf):
    """An argparse type: an int or float in [low, high); NaN is in no interval."""

    def parse(text):
        value = kind(text)
        if not low <= value < high:
            raise argparse.ArgumentTypeError(f"{text} is not in [{low}, {high})")
        return value

    parse.__name__ = kind.__name__  # argparse shows it
    return parse


count = number(int, 1)
width = number(int, 1, 2**16)  # of images, batches and layers: more is a slip
seed = number(int, 0, 2**63)
positive = number(float, torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max)


def augmentation(text):
    """An argparse type: the names in --augment, as a list."""
    names = [] if text == "none" else text.split(",")
    if not set(names) <= {"color", "translation"}:
        raise ValueError
    return names


def add_common_arguments(parser, *, data, size, fit, batch_size, lr, every):
    """The flags every training script has; the values given are the study's.

    every: (checkpoint, samples, log), in steps.
    """
    group = parser.add_argument_group("data and model")
    group.add_argument("--data", default=data, metavar="DIR",
                       help="folder prepare_data.py wrote, or of photos")
    group.add_argument("--limit", type=count, metavar="N", help="only the first N training photos")
    group.add_argument("--size", type=width, default=size, metavar="N", help="image side, pixels")
    group.add_argument("--fit", choices=["square", "crop"], default=fit,
                       help="photos to squares: stretched, or the middle cut out")
    group.add_argument("--batch-size", type=width, default=batch_size, metavar="N",
                       help="images an update")
    group.add_argument("--lr", type=positive, default=lr, metavar="X",
                       help="Adam's learning rate")
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="of every random draw")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    group.add_argument("--precision", choices=["auto", *PRECISIONS], default="auto",
                       help="of the networks' passes; auto is bf16 where the device is fast at it; "
                            "fp32 is TF32 on GPUs that have it")
    group.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False,
                       help="for GPUs: torch.compile, and a step as one CUDA graph; takes minutes "
                            "at the start")
    group.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=False,
                       help="only kernels that give the same bits every time (the CPU's do anyway)")
    group.add_argument("--demo", action="store_true", help="small and quick, on drawn scenes")
    group = parser.add_argument_group("run folder")
    group.add_argument("--out", default="runs", metavar="DIR", help="folder of run folders")
    group.add_argument("--name", help="of the run folder (default: <model>-<data>-<time>)")
    group.add_argument("--resume", metavar="PATH|latest", help="go on from a checkpoint")
    group.add_argument("--ckpt-every", type=count, default=every[0], metavar="N", help="steps")
    group.add_argument("--sample-every", type=count, default=every[1], metavar="N", help="steps")
    group.add_argument("--log-every", type=count, default=every[2], metavar="N", help="steps")
    group.add_argument("--keep", type=count, metavar="N",
                       help="only the newest N checkpoints (default: all)")


def parse_arguments(parser, model, demo):
    """(arguments, the checkpoint to resume from or None).

    What the command line says wins over the checkpoint's arguments, these over `demo` (with
    --demo), these over the defaults. So `--resume PATH` alone goes on as the run began.
    """
    args = parser.parse_args()
    if args.demo:
        parser.set_defaults(**demo)
    checkpoint = None
    if args.resume:
        checkpoint = read_checkpoint(find_resume(args.resume, Path(args.out), args.name, model))
        if checkpoint["model"] != model:
            fail(f"{checkpoint['path']} is a {checkpoint['model']} checkpoint, not {model}")
        kept = set(vars(args)) - {"resume", "device", "out", "name", "demo"}
        saved = [typed(key.replace("_", "-"), value) for key, value in checkpoint["args"].items()
                 if key in kept and value is not None]
        parser.origin = f"{checkpoint['path']}: "  # as if they were typed first: checked like it
        parser.parse_args(saved)
        parser.origin = ""
        args = parser.parse_args([*saved, *sys.argv[1:]])
    elif args.demo:
        args = parser.parse_args()
    return args, checkpoint


def typed(name, value):
    """An argument as it is typed."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={(','.join(map(str, value)) or 'none') if isinstance(value, list) else value}"


def start(args, checkpoint, demo, **config):
    """The Numerics, after what every script does first: demo scenes, architecture, seed.

    config: the networks' arguments, which a resumed run must not change.
    """
    device = choose_device(args.device)
    args.device = str(device)
    limit_memory(device)
    meet(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS wants it to be repeatable
    torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.benchmark = not args.deterministic
    numerics = Numerics(device, args.precision)
    args.precision = numerics.precision  # a resumed run keeps what `auto` became
    if args.demo and args.data == demo["data"]:
        if rank() == 0:
            make_demo_data(args.data)
        together(distributed.barrier)
    for name, value in config.items() if checkpoint else ():
        saved = checkpoint["config"].get(name)
        if saved != value:
            fail(f"a resumed run keeps its {name}: {saved} in {checkpoint['path']}, {value} now")
    torch.manual_seed(args.seed)
    return numerics


def choose_device(name):
    """The torch device that --device names, CUDA where there is one for `auto`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "cuda":  # whose streams and generator a CUDA graph takes
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name}: {str(error).splitlines()[0]}; --device cpu works everywhere")
    return device


# ---------------------------------------------------------------------------------------------
# Several processes: torchrun --nproc_per_node=N train_<model>.py ...
#
# Each has the same weights, draws latents and augmentations of its own, and takes its part of
# every batch of N · --batch-size photos; Numerics averages the gradients; the first one writes.
# Batch norm sees its own process's images alone, on CPU and GPU alike, so that --batch-size
# means the same for it whatever N is; its running statistics are the first process's.
# ---------------------------------------------------------------------------------------------


def rank():
    """This process among all that train, 0 for the first or only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def processes():
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def meet(device):
    """Waits for the other processes that torchrun started, where it did."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
        # What is on the CPU (flags, random states) goes through gloo and waits for no GPU. An hour:
        # one process may write grids and checkpoints while the others wait.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(hours=1))


def together(collective, *args, **kwargs):
    """What one of torch.distributed's functions gives, called where there are several processes.

    Ends this one in a line where another one has ended.
    """
    if processes() > 1:
        try:
            return collective(*args, **kwargs)
        except RuntimeError as error:
            fail(f"another of the {processes()} processes ended or can't be reached, so this one "
                 f"stops; the checkpoints written before are good ({str(error).splitlines()[0]})")


def sum_over_processes(tensors):
    """Starts to add tensors up over all processes, in one transfer.

    The function returned waits for it and puts the means into the tensors.
    """
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    work = together(distributed.all_reduce, flat, async_op=True)

    def mean():
        together(work.wait)
        parts = (flat / processes()).split([tensor.numel() for tensor in tensors])
        parts = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
        torch._foreach_copy_(tensors, parts)

    return mean


def backward(loss, parameters, at_once=2**20):
    """loss.backward(), then the means over all processes in the parameters' gradients.

    They travel while the pass goes on, once there are `at_once` numbers, in the order in which
    they become ready: the same in all processes, which run the same graph.
    """
    if processes() == 1:
        loss.backward()
        return
    waiting, sent, means = [], set(), []

    def send():
        means.append(sum_over_processes([parameter.grad for parameter in waiting]))
        sent.update(waiting)
        waiting.clear()

    def ready(parameter):
        waiting.append(parameter)
        if sum(one.numel() for one in waiting) >= at_once:
            send()

    hooks = [parameter.register_post_accumulate_grad_hook(ready) for parameter in parameters]
    loss.backward()
    for hook in hooks:
        hook.remove()
    # What remains, and the gradients that only an earlier pass has given.
    sent.update(waiting)
    waiting += [p for p in parameters if p.grad is not None and p not in sent]
    if waiting:
        send()
    for mean in means:
        mean()


def gathered(value):
    """A list of every process's `value`, in the first process."""
    values = [value] * processes()
    together(distributed.all_gather_object, values, value)
    return values


# ---------------------------------------------------------------------------------------------
# Precision, and many launches as one
# ---------------------------------------------------------------------------------------------


def fast_precision(device):
    """bf16 where matrix units compute it, fp16 on older GPUs, else fp32."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)  # no public name for it yet
    return "bf16" if device.type == "cpu" and amx() else "fp32"


class Numerics:
    """How a step computes: networks' passes in `precision`, everything else in float32.

    with numerics.autocast(): a network's pass; its result goes through .float() to a loss
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
        self.skipped = torch.zeros((), dtype=torch.long, device=device)  # how many, so far

    def autocast(self):
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def backward(self, loss):
        """Adds the gradients of a loss to its parameters', for the update to come."""
        self.scaler.scale(loss).backward()

    def update(self, optimizer, loss):
        """One step along the gradients (means over all processes) of a loss and of those before.

        The gradients are then gone.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        one = torch.ones((), device=self.device)
        before = self.scaler.scale(one)
        backward(self.scaler.scale(loss), parameters)
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.is_enabled():  # a lower scale says it, on the device: nothing waits for it
            self.skipped += self.scaler.scale(one) < before
        optimizer.zero_grad(set_to_none=True)


def cuda_graph(step, warm_up=3):
    """A function of CUDA tensors of fixed shapes, recorded as one CUDA graph: a launch a call.

    It runs as it is `warm_up` times, until all is chosen and allocated that is so at first use,
    and whenever the shapes are others than at first. What it keeps in Python counts as it was when
    it was recorded; what it keeps in tensors, and the default generator's draws, go on.
    """
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    calls, inputs, output = 0, (), None

    def launch(*tensors):
        nonlocal calls, inputs, output
        inputs = inputs or [tensor.clone() for tensor in tensors]
        if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in inputs]:
            return step(*tensors)
        calls += 1
        if calls <= warm_up:  # on another stream, as the recording: autograd remembers it
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


# ---------------------------------------------------------------------------------------------
# Photos: a folder becomes one uint8 tensor, once
# ---------------------------------------------------------------------------------------------


def make_demo_data(folder):
    """Draws the demo scenes where they are missing, by prepare_data.py."""
    if not (Path(folder) / "manifest.csv").exists():
        script = Path(__file__).with_name("prepare_data.py")
        command = [sys.executable, script, "--demo", "64", "--out", folder]
        if subprocess.run(command).returncode:
            fail(f"the demo scenes could not be drawn into {folder}")


def image_files(folder):
    """The image files of a folder, sorted by name; folders in it and hidden files are passed by."""
    folder = Path(folder)
    try:
        files = [path for path in folder.iterdir() if path.is_file()]
    except OSError as error:
        fail(f"{folder}: {error.strerror}; prepare_data.py makes data folders")
    named = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(path for path in named if not path.name.startswith("."))


def split_files(data, split):
    """The files of data/<split>/ ("train" or "val"), or of `data` itself for a plain folder."""
    data = Path(data)
    if not data.is_dir():
        fail(f"{data} is not a folder; prepare_data.py makes one (--demo 64 needs no photos)")
    folder = data / split
    if not folder.is_dir():
        if split != "train" or (data / "manifest.csv").exists():
            fail(f"{data} has no {split}/ folder; prepare_data.py --images splits photos in two")
        folder = data
    files = image_files(folder)
    if not files:
        fail(f"no images in {folder}")
    if (data / "manifest.csv").exists():
        listed = {name for name in listed_hashes(data) if name.startswith(f"{split}/")}
        changed = listed ^ {f"{split}/{path.name}" for path in files}
        if changed:
            fail(f"{data} is not what its manifest lists ({min(changed)}): prepare it again")
    return files


def listed_hashes(data):
    """{<split>/<name>: its file's sha256} as a data folder's manifest says, if it has one."""
    manifest = Path(data) / "manifest.csv"
    if not manifest.exists():
        return {}
    with open(manifest, newline="", encoding="utf-8", errors="replace") as file:
        try:
            return {row.get("file") or "": row.get("file_sha256") for row in csv.DictReader(file)}
        except csv.Error as error:
            fail(f"{manifest} cannot be read ({error}): prepare it again")


def has_validation(data):
    """Whether a data folder has a val/; a plain folder of photos has none."""
    return (Path(data) / "val").is_dir()


def decode(path, size, fit):
    """uint8 (3, size, size): stretched to a square, or its shorter side fitted and centre-cropped.

    Antialiased bilinear, as torchvision's Resize on PIL images. Raises ValueError.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("over 8 bits a channel; prepare_data.py --images converts it")
            image = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow answers broken bytes with nearly every type there is
        raise ValueError(f"{path} cannot be read: {error or type(error).__name__}") from error
    if fit == "square":
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    else:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def decode_all(files, size, fit="square"):
    """uint8 array (n, 3, size, size) of the files, decoded by a pool of threads."""
    images = np.empty((len(files), 3, size, size), np.uint8)
    bar = tqdm(total=len(files), desc="decoding", unit="img", disable=None, leave=False)
    with ThreadPoolExecutor() as pool, bar:
        # A bounded number in flight: `map` would hold what it decodes faster than we store it.
        for start in range(0, len(files), 64):
            part = files[start : start + 64]
            try:
                for i, image in enumerate(pool.map(lambda path: decode(path, size, fit), part)):
                    images[start + i] = image
            except ValueError as error:
                fail(error)
            bar.update(len(part))
    return images


def load_images(data, split, size, fit="square"):
    """(uint8 tensor (n, 3, size, size), its fingerprint), through data/.cache/.

    The cache is keyed by the files' names, sizes, times and the manifest; where the folder can't
    be written the photos are decoded each time.
    """
    files = split_files(data, split)
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    manifest = Path(data) / "manifest.csv"
    text = manifest.read_bytes().hex() if manifest.exists() else ""
    key = hashlib.sha256(json.dumps([stats, text]).encode()).hexdigest()
    cache = Path(data) / ".cache" / f"{split}_{size}_{fit}.npy"
    label = cache.with_suffix(".json")
    try:
        saved = json.loads(label.read_text())
        if saved["key"] == key:
            images = np.load(cache)
            whole = images.shape == (len(files), 3, size, size) and images.dtype == np.uint8
            if whole and hashlib.sha256(images).hexdigest() == saved["sha256"]:
                return torch.from_numpy(images), saved["sha256"]
    except Exception:  # a damaged file may raise anything
        pass  # no cache, or not a whole one: made anew below
    listed = listed_hashes(data)
    for path in files:
        expected = listed.get(f"{split}/{path.name}")
        if expected is not None and hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            fail(f"{path} is not the photo that {manifest} lists: prepare {data} again")
    images = decode_all(files, size, fit)
    fingerprint = hashlib.sha256(images).hexdigest()
    try:
        cache.parent.mkdir(exist_ok=True)
        # The label goes first and comes back last: a label never stands beside other images.
        label.unlink(missing_ok=True)
        with replacing(cache) as file:
            np.save(file, images)
        with replacing(label) as file:
            file.write(json.dumps({"key": key, "sha256": fingerprint}).encode())
    except OSError as error:
        print(f"warning: {cache} not written ({error.strerror or error})", file=sys.stderr)
    return torch.from_numpy(images), fingerprint


def load_photos(args, device, split="train"):
    """load_images as a training script's arguments say, the first --limit photos of train.

    On the device if half of its free memory takes them.
    """
    if rank() > 0:
        together(distributed.barrier)  # the first process makes the cache that the others read
    images, fingerprint = load_images(args.data, split, args.size, args.fit)
    if rank() == 0:
        together(distributed.barrier)
    if split == "train" and args.limit and args.limit < len(images):
        images = images[: args.limit].clone()
        fingerprint = hashlib.sha256(images.numpy()).hexdigest()
    if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return images, fingerprint
    return images.to(device), fingerprint


@functools.lru_cache(maxsize=2)
def permutation(n, seed, epoch):
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))


def data_order(n, start, length, seed):
    """Indices (length,) of entries start, start + 1, ... of an endless row of permutations of n.

    A function of its arguments alone: where a run stands in its data is one number.
    """
    parts = []
    while length:
        epoch, position = divmod(start, n)
        part = permutation(n, seed, epoch)[position : position + length]
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return torch.cat(parts)


def epoch_batches(n, batch_size, epoch, seed):
    """Index tensors that go once through n photos in the order of `epoch` (0, 1, ...).

    The last batch is what remains; a single photo joins the batch before it, since batch norm
    needs two. Fewer photos than a batch holds are repeated until it is full. Of several processes
    each gets its part of batches N times as large, the last one filled up until N divides it.
    """
    together_size = batch_size * processes()
    if n <= together_size:
        batches = [data_order(n, epoch * together_size, together_size, seed)]
    else:
        batches = list(permutation(n, seed, epoch).split(together_size))
        if len(batches[-1]) < 2 * processes():
            batches[-2:] = [torch.cat(batches[-2:])]
        missing = -len(batches[-1]) % processes()
        batches[-1] = torch.cat([batches[-1], batches[0][:missing]])
    return [batch.chunk(processes())[rank()] for batch in batches]


def take_batch(images, indices, device):
    """float (batch, 3, h, w) in [-1, 1] on the device."""
    if device.type == "cuda":  # out of pinned memory: neither waits for the other
        if images.is_cuda:
            indices = indices.pin_memory().to(device, non_blocking=True)
        else:
            images = images[indices].pin_memory().to(device, non_blocking=True)
            indices = slice(None)
    return images[indices].float() / 127.5 - 1


def mirror(batch):
    """The images, each mirrored left to right with chance 1/2."""
    mirrored = torch.rand(len(batch), 1, 1, 1, device=batch.device) < 0.5
    return torch.where(mirrored, batch.flip(3), batch)


def diff_augment(x, policy):
    """Differentiable augmentation of (n, 3, h, w), drawn anew for each image.

    `policy` holds "color" (brightness ±1/2, saturation 0..2, contrast 1/2..3/2) and "translation"
    (up to 1/8 of a side, zeros come in), after Zhao et al. 2020 (arXiv 2006.10738).
    """
    n, _, height, width = x.shape
    if "color" in policy:
        brightness, saturation, contrast = torch.rand(3, n, 1, 1, 1, device=x.device)
        x = x + (brightness - 0.5)
        mean = x.mean(1, keepdim=True)
        x = (x - mean) * (2 * saturation) + mean
        mean = x.mean((1, 2, 3), keepdim=True)
        x = (x - mean) * (contrast + 0.5) + mean
    if "translation" in policy:
        shifts = [((2 * reach + 1) * uniform).long() - reach for reach, uniform in
                  zip((int(height / 8 + 0.5), int(width / 8 + 0.5)),
                      torch.rand(2, n, device=x.device), strict=True)]
        # One border pixel of zeros: every index that falls outside is clamped onto it.
        rows, columns = (torch.arange(side, device=x.device) + shift[:, None] + 1
                         for side, shift in zip((height, width), shifts, strict=True))
        image = torch.arange(n, device=x.device)[:, None, None]
        padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        rows, columns = rows.clamp(0, height + 1), columns.clamp(0, width + 1)
        x = padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return x


# ---------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------


def latents(seed, indices, z_dim):
    """float (len(indices), z_dim), N(0, 1): row i depends on the seed and its index alone."""
    rows = [np.random.default_rng([seed, i]).standard_normal(z_dim, np.float32) for i in indices]
    return torch.from_numpy(np.stack(rows))


def average_weight(step):
    """Of a step's parameters in their average: the published 0.001 from step 9,000 on, more before.

    With 0.001 alone the average still holds 60% of the initial weights at step 500.
    """
    return max(0.001, 9 / (10 + step))


def sampling_copy(generator, average=None):
    """A copy to sample from, in evaluation mode, with batch-norm statistics of its own.

    average: the parameters that it gets instead, in their order.
    """
    sampler = copy.deepcopy(generator)
    if average:
        with torch.no_grad():
            for parameter, value in zip(sampler.parameters(), average, strict=True):
                parameter.copy_(value)
    return estimate_batch_norm(sampler).requires_grad_(False)


def estimate_batch_norm(generator, batches=8, batch_size=16):
    """The generator in evaluation mode, its batch norms measured over its own samples.

    Running statistics gathered while the weights changed fit neither averaged nor final weights.
    Leaves the random state as it was; depends on the weights alone.
    """
    device = next(generator.parameters()).device
    norms = [m for m in generator.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    generator.train()
    cuda = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(0)
        for batch in range(batches):
            rows = range(batch * batch_size, (batch + 1) * batch_size)
            generator(latents(0, rows, generator.z_dim).to(device))
    for norm in norms:
        norm.momentum = 0.1
    return generator.eval()


def to_uint8(images):
    """[-1, 1] -> uint8, what lies outside clamped; the pixels that a PNG would hold."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def save_grid(images, path, columns=8, caption=""):
    """A PNG of images (n, 3, h, w) in [-1, 1], row by row, a black line around each.

    The caption, if there is one, stands below them.
    """
    images = F.pad(to_uint8(images.cpu()), (2, 2, 2, 2))
    blank = -len(images) % columns
    images = torch.cat([images, images.new_zeros(blank, *images.shape[1:])])
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns)]
    grid = F.pad(torch.cat(rows, dim=1), (0, 0, 0, 14 if caption else 0))
    picture = Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())
    ImageDraw.Draw(picture).text((3, grid.shape[1] - 13), caption, "white")
    with replacing(path) as file:
        picture.save(file, format="PNG")


# ---------------------------------------------------------------------------------------------
# Run folders and their log
# ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path):
    """A binary file to write that appears under its name whole and on disk, or not at all.

    Clears away what killed processes left of their attempts. An OSError names the file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        fail(f"{path} is not a file that could be replaced")
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not running(stale.suffixes[-2][1:]):
            stale.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path):
    """Lets an OSError, which names no file when a write fails, name this one.

    torch.save answers a full disk with a RuntimeError on top of it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error


def running(pid):
    """Whether there is a process of this number, given as text."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:
        pass  # another user's
    return True


def git_commit():
    command = ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def versions():
    """Of what the numbers depend on."""
    packages = ("torch", "torchvision", "numpy", "Pillow", "lpips")
    found = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def open_run(args, model, checkpoint):
    """The run's folder: a new one, or the resumed checkpoint's own, its log cut back to it."""
    record = {"model": model, "arguments": vars(args), "git_commit": git_commit(),
              "versions": versions(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
    path = checkpoint["path"] if checkpoint else None
    there = find_checkpoints(path.parent) if checkpoint else []
    if path in there and any((path.parent / name).exists() for name in ("args.json", "log.csv")):
        folder = path.parent
        if args.name not in (None, folder.resolve().name):
            fail(f"--resume goes on in {folder}; --name {args.name} is for a new run")
        if path != there[-1]:
            fail(f"{path} is not the newest of its run: delete {there[-1].name} and what lies "
                 f"between, or copy {path.name} elsewhere and resume the copy, as a run of its own")
        lock(folder)
        if find_checkpoints(folder) != there:
            fail(f"another process has just gone on in {folder}: --resume {folder} finds where")
        for stale in folder.glob(".*.tmp"):
            stale.unlink()
        truncate_log(folder / "log.csv", checkpoint["step"])
        try:
            first = dict(json.loads((folder / "args.json").read_text()))
            before = list(first.get("resumed", []))
        except (OSError, ValueError, TypeError):
            first, before = {"model": model}, []  # lost or damaged: written anew from here
        record = {**first, "resumed": [*before, {"step": checkpoint["step"], **record}]}
    else:
        if args.name and (Path(args.name).name != args.name or args.name == ".."):
            fail(f"--name {args.name} is not the name of a folder; --out says where it goes")
        name = args.name or f"{model}-{Path(args.data).resolve().name}"
        stamp = "" if args.name else time.strftime("-%Y%m%d-%H%M%S")
        folder, again = Path(args.out) / f"{name}{stamp}", 2
        Path(args.out).mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                break
            except FileExistsError:
                if args.name and os.listdir(folder) == ["args.json"]:
                    break  # its run ended before it got anywhere
                if args.name:
                    fail(f"{folder} exists: --resume {folder} goes on with it")
                folder, again = Path(args.out) / f"{name}{stamp}-{again}", again + 1
        lock(folder)
    with replacing(folder / "args.json") as file:
        file.write(json.dumps(record, indent=1, default=str).encode())
    return folder


def lock(folder):
    """Keeps a second process out of a run folder until this one ends, however it ends."""
    try:
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another process is training in {folder}")
    except OSError as error:  # some network file systems have no locks for folders
        print(f"warning: {folder} can't be locked ({error.strerror}): let one process at a time "
              "train there", file=sys.stderr)


def append_row(path, row):
    """One CSV row, with a header if the file is new; one write, so that rows are whole.

    Columns that the file has not (the precision or the validation photos changed on resume) are
    added to it, empty in the rows before.
    """
    columns, rows = list(row), []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = list(dict.fromkeys([*(reader.fieldnames or ()), *row]))
            rows = None if columns == reader.fieldnames else list(reader)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if rows is None:
        writer.writerow(row)
        with naming(path), open(path, "a", encoding="utf-8") as file:
            file.write(text.getvalue())
    else:
        writer.writeheader()
        writer.writerows([*rows, row])
        with replacing(path) as file:
            file.write(text.getvalue().encode())


def truncate_log(path, step):
    """Drops the rows after `step`, a torn last one and what is no row of numbers."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    header, *rows = text.splitlines(keepends=True) or [""]
    whole = re.compile(rf"\d+(,[-+.e\d]*){{{header.count(',')}}}\n")
    kept = [row for row in rows if whole.fullmatch(row) and int(row.split(",")[0]) <= step]
    if kept and not header.startswith("step,"):
        fail(f"{path} is not as it was written ({header.strip()}): move it away")
    if not kept:
        path.unlink()  # a header alone may be torn; the next row writes a new one
        return
    with replacing(path) as file:
        file.write("".join([header, *kept]).encode())


def plot_losses(folder):
    """losses.png from log.csv."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not (folder / "log.csv").exists():
        return
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    iterations = [int(row.get("iteration") or row["step"]) for row in rows]
    # A mean over 1/25 of the rows, the rows themselves behind it: GANs' losses are noise mostly.
    width = max(1, len(rows) // 25)
    for name in [name for name in rows[0] if name not in ("step", "iteration", SKIPPED)]:
        losses = np.array([float(row[name] or "nan") for row in rows])
        smooth = np.convolve(losses, np.full(width, 1 / width), "valid")
        (line,) = axes.plot(iterations[width - 1 :], smooth, label=name, linewidth=1.5)
        axes.plot(iterations, losses, color=line.get_color(), alpha=0.25, linewidth=0.7)
    for step in resumed_steps(folder):
        before = [i for i, row in zip(iterations, rows, strict=True) if int(row["step"]) <= step]
        axes.axvline(before[-1] if before else 0, color="grey", linestyle=":", linewidth=1)
    if all(float(row[name] or 1) > 0 for row in rows for name in row):
        axes.set_yscale("log")  # a KL divergence is hundreds of times a squared error
    axes.set(xlabel="iteration (dotted: resumed)", ylabel="loss", title=folder.name)
    axes.legend()
    with replacing(folder / "losses.png") as file:
        figure.savefig(file, format="png", dpi=100)
    plt.close(figure)
    gc.collect()  # a figure is a knot of cycles, a megabyte that may lie there for long


def resumed_steps(folder):
    """The steps at which a run was resumed, from args.json."""
    try:
        record = json.loads((folder / "args.json").read_text())
        return [resume["step"] for resume in record["resumed"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def catch_signals():
    """A list that the first SIGINT or SIGTERM enters; the second one ends the process."""
    caught = []

    def note(number, frame):
        caught.append(number)
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_DFL)

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, note)
    return caught


# ---------------------------------------------------------------------------------------------
# Checkpoints: data, never code
# ---------------------------------------------------------------------------------------------


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


def digest(value):
    """A sha256 over nested dicts, lists, tensors and plain values, as hexadecimal digits."""
    sha = hashlib.sha256()

    def visit(value):
        if isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, dict):
            sha.update(f"dict{len(value)}".encode())
            for key, item in value.items():
                visit(key)
                visit(item)
        elif isinstance(value, (list, tuple)):
            sha.update(f"list{len(value)}".encode())
            for item in value:
                visit(item)
        else:
            sha.update(repr(value).encode())

    visit(value)
    return sha.hexdigest()


def save_checkpoint(folder, state, keep=None):
    """Writes ckpt_<step>.pth, whole or not at all, and then removes all but the newest `keep`.

    `state`: what Run.save says; plain values, tensors, lists and dicts.
    """
    path = folder / f"ckpt_{state['step']:06d}.pth"
    state = {"format": FORMAT, **state}
    try:
        with replacing(path) as file:
            torch.save({**state, "sha256": digest(state)}, file)
    except (OSError, RuntimeError) as error:
        fail(f"{path} could not be written ({error}); earlier checkpoints are as they were")
    for old in find_checkpoints(folder)[:-keep] if keep else []:
        old.unlink()
    return path


def find_checkpoints(folder):
    """The ckpt_<step>.pth of a run folder, by step."""
    found = [path for path in Path(folder).glob("ckpt_*.pth") if path.stem[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.stem[5:]))


def find_run(out, model=None):
    """The run folder under `out` whose newest checkpoint is the newest, of `model` if one is given.

    Fails where there is none.
    """
    runs = []
    for record in Path(out).glob("*/args.json"):
        try:
            saved = json.loads(record.read_text())["model"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        checkpoints = find_checkpoints(record.parent)
        if checkpoints and model in (None, saved):
            runs.append((checkpoints[-1].stat().st_mtime, record.parent))
    if not runs:
        fail(f"no {model + ' ' if model else ''}run with a checkpoint in {out}/")
    return max(runs)[1]


def find_resume(resume, out, name, model):
    """The checkpoint that --resume names: a file, a run folder's newest, or `latest`."""
    path = Path(resume)
    if resume == "latest":
        path = out / name if name else find_run(out, model)
    if path.is_dir():
        checkpoints = find_checkpoints(path)
        if not checkpoints:
            fail(f"{path} has no checkpoint")
        return checkpoints[-1]
    return path


FIELDS = {  # of a checkpoint, what every reader relies on
    "model": str, "step": int, "config": dict, "args": dict, "networks": dict, "sampler": dict,
    "fit": str, "data": (str, type(None))}


def load_data(path):
    """What torch.save wrote, tensors on the CPU. Raises whatever damage raises.

    weights_only: a pickle that would run code is refused unread. Only plain values and tensors
    come out, no more than a few times the file's size: a small file that claims to hold much
    (packed, or one value seen from many places) is refused before memory is taken for it.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise ValueError("packed")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    room, waiting = 4 * size, [saved]  # 4: networks share tensors with what is sampled from
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            parts = [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            parts = list(value)
        elif isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu":
                raise ValueError("a tensor of another kind")
            parts, room = [], room - value.nbytes
        elif isinstance(value, (str, int, float, type(None))):
            parts = []
        else:
            raise TypeError(type(value).__name__)
        room -= len(parts)
        if room < 0:
            raise ValueError("larger than its file")
        waiting += parts
    return saved


def read_checkpoint(path):
    """The dict that save_checkpoint wrote, tensors on the CPU, with `path` and `published` added.

    The files of the published FastGAN code (N.pth, all_N.pth) come out in the same form, with
    published=True: their batch-norm statistics are not the averaged weights' own.
    Fails, in one line, on any file that is not a whole checkpoint.
    """
    path = Path(path)
    if not path.is_file():  # a pipe would never end
        fail(f"no checkpoint at {path}")
    try:
        saved = load_data(path)
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror or error}")
    except Exception as error:  # a damaged pickle may raise anything
        fail(f"{path} is not a checkpoint, or a damaged one ({type(error).__name__})")
    if isinstance(saved, dict) and {"g", "d"} <= set(saved):
        saved = from_published(saved, path)
    elif not isinstance(saved, dict) or not isinstance(saved.get("format"), int):
        fail(f"{path} holds no checkpoint of this project, nor one of the published FastGAN")
    elif saved["format"] > FORMAT:
        fail(f"{path} has format {saved['format']}; this version reads up to {FORMAT}")
    elif saved.pop("sha256", None) != digest(saved):
        fail(f"{path} is damaged: its contents do not match their checksum")
    if "averaged" in saved:  # its name in the first files of this format
        saved["sampler"] = saved.pop("averaged")
    saved = {"args": {}, "fit": "square", "data": None, "sampler": {}, **saved}
    for name, kind in FIELDS.items():
        if not isinstance(saved.get(name), kind) or name == "step" and saved[name] < 0:
            fail(f"{path} has no usable {name!r}: not written by this project")
    for name, value in {"image_size": None, **saved["config"]}.items():
        if not isinstance(value, int) or not 0 < value < 2**16:
            fail(f"{path} claims a network of {name} {value}: 1 to {2**16 - 1} can be")
    return {**saved, "published": saved.get("published") is True, "path": path}


def from_published(saved, path):
    """A published FastGAN file, {g, d} or {g, d, g_ema, opt_g, opt_d}, in this project's form."""
    try:
        g, d = ({name.removeprefix("module."): value for name, value in saved[key].items()}
                for key in "gd")
        sizes = [int(name[5:].split(".")[0]) for name in g if name.startswith("feat_")]
        z_dim = g["init.init.0.weight_orig"].shape[0]
        features = len(g["feat_128.3.weight"]) // 2
        config = {"image_size": max(sizes), "z_dim": z_dim, "features": features}
        sampler = dict(g)
        if "g_ema" in saved:
            buffers = ("weight_u", "weight_v", "running_mean", "running_var", "num_batches_tracked")
            names = [name for name in g if not name.endswith(buffers)]
            sampler.update(zip(names, saved["g_ema"], strict=True))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        fail(f"{path} is not a FastGAN checkpoint ({type(error).__name__}: {error})")
    step = re.search(r"\d+$", path.stem)
    optimizers = {"generator": saved.get("opt_g"), "discriminator": saved.get("opt_d")}
    args = {"size": config["image_size"], "z_dim": z_dim, "features": features}
    return {"model": "fastgan", "config": config, "args": args,
            "step": int(step.group()) if step else 0,
            "networks": {"generator": g, "discriminator": d}, "sampler": sampler,
            "optimizers": optimizers if saved.get("opt_g") else None, "published": True}


def load_weights(module, state, path, **options):
    """Loads a network's or optimiser's state, or fails in one line if it is another one's."""
    try:
        module.load_state_dict(state, **options)
    except (RuntimeError, AttributeError, TypeError, ValueError, KeyError) as error:
        fail(f"{path}: of another network or optimiser ({str(error).splitlines()[-1].strip()})")


def match_layout(optimizer):
    """Lays an optimiser's state out in memory as its parameters are.

    Fused Adam pairs them by their place in memory, without a check.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


# ---------------------------------------------------------------------------------------------
# A run: what has to go on exactly after a stop
# ---------------------------------------------------------------------------------------------


class Run:
    """Where a training run stands: what is logged, saved and resumed, and in which folder.

        run = Run("gan", args, checkpoint, numerics, config, networks, optimizers, photos, names)
        for step in run.steps(args.epochs):
            run.add(losses)                    # of every iteration
            run.log()                          # once a step
            if run.sample_due: ...
            if run.save_due:
                run.save(sampler)

    config: the generator's arguments; networks, optimizers: dicts; photos: (their number, their
    fingerprint); names: of the losses.
    """

    def __init__(self, model, args, checkpoint, numerics, config, networks, optimizers, photos,
                 names):
        self.model, self.args, self.config = model, args, config
        self.numerics, self.device = numerics, numerics.device
        self.networks, self.optimizers, self.names = networks, optimizers, names
        self.photos, self.fingerprint = photos
        self.checkpoint = checkpoint
        self.step = self.iteration = self.logged = 0  # logged: the iteration of the last row
        self.seen = 0  # photos taken so far by `draw`
        self.losses = []  # of each iteration since that row, on the device
        self.folder = None  # of the first process, once it runs
        if rank() > 0:  # the others draw other latents, from here on
            torch.manual_seed(int(np.random.SeedSequence([args.seed, rank()]).generate_state(1)[0]))
        if checkpoint:
            try:
                self.restore(checkpoint)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                fail(f"{checkpoint['path']} is not what a {model} run goes on from "
                     f"({type(error).__name__}: {error})")
        for network in networks.values():
            for tensor in network.state_dict().values():
                together(distributed.broadcast, tensor, 0)
            if args.compile:  # passes in training; state, copies and gradients stay as they are
                network.compile(dynamic=False)

    def restore(self, saved):
        """Puts the checkpoint's state into the networks, the optimisers and every generator."""
        self.step, path = saved["step"], saved["path"]
        if saved["data"] not in (None, self.fingerprint):
            fail(f"a resumed run keeps its photos: {saved['args'].get('data')} "
                 f"({saved['data'][:12]}) in {path}, {self.args.data} "
                 f"({self.fingerprint[:12]}) now")
        for name, network in self.networks.items():
            load_weights(network, saved["networks"][name], path)
        if saved["optimizers"]:
            for name, optimizer in self.optimizers.items():
                state = saved["optimizers"][name]
                # The file says where its averages stand; how to step is this script's.
                groups = zip(optimizer.state_dict()["param_groups"], state["param_groups"],
                             strict=True)
                groups = [{**ours, "params": theirs["params"]} for ours, theirs in groups]
                load_weights(optimizer, {"state": state["state"], "param_groups": groups}, path)
                match_layout(optimizer)
        else:
            print(f"{path} holds no optimisers: Adam starts afresh", file=sys.stderr)
        self.iteration = self.logged = self.step
        self.seen = self.step * self.args.batch_size * processes()
        if not saved["published"]:
            self.iteration = saved.get("iteration", self.step)
            self.logged, self.seen = saved["logged"], saved["seen"]
            if saved.get("scaler"):  # empty but of fp16
                self.numerics.scaler.load_state_dict(saved["scaler"])
            self.numerics.skipped.fill_(saved.get("skipped", 0))
            states = [saved, *saved.get("others", ())]
            if rank() < len(states):
                set_random_state(states[rank()]["random"], self.device)
            own = states[min(rank(), len(states) - 1)]
            self.losses = [row.to(self.device) for row in own.get("losses", ())]

    def steps(self, total):
        """The steps from here to `total`, with a progress bar; ends early after a signal."""
        say = print if rank() == 0 else lambda *_, **__: None
        if self.step >= total:
            say(f"{self.checkpoint['path']} is at step {self.step} of {total}: nothing to do")
            return
        if rank() == 0:
            self.folder = open_run(self.args, self.model, self.checkpoint)
        say(f"{self.model} on {self.photos} photos at {self.args.size}×{self.args.size}, "
            f"{self.device}; run folder {self.folder}", flush=True)
        self.total, self.stop, self.caught = total, 0, catch_signals()
        self.bar = tqdm(range(self.step + 1, total + 1), initial=self.step, total=total,
                        unit="step", disable=True if rank() > 0 else None)
        with self.bar:
            for step in self.bar:
                self.step = step
                yield step
                if self.stop:
                    break
        say(f"step {self.step}: {self.path}; peak memory {peak_memory(self.device):.1f} GiB")
        if self.stop:
            say(f"stopped by a signal; --resume {self.folder} goes on", file=sys.stderr)
        together(distributed.barrier)  # torchrun ends all when one ends: not before all is written
        if distributed.is_initialized():
            distributed.destroy_process_group()
        if self.stop:
            sys.exit(128 + self.stop)

    def compiled(self, step):
        """With --compile on one GPU, a function of tensors there as a CUDA graph; else as it is."""
        one_gpu = self.device.type == "cuda" and processes() == 1
        return cuda_graph(step) if self.args.compile and one_gpu else step

    def draw(self):
        """Indices of the next batch of photos (of this process's part of it), of an endless row
        of permutations."""
        n = self.args.batch_size
        start = self.seen + n * rank()
        self.seen += n * processes()
        return data_order(self.photos, start, n, self.args.seed)

    def add(self, losses):
        """Counts an iteration and its losses, a tensor (len(names),)."""
        self.losses.append(losses)
        self.iteration += 1
        # A CUDA graph is recorded in the fourth of full size.
        if self.iteration == (9 if self.args.compile else 2) and getattr(self.args, "trial", False):
            raise Fits

    def unlogged(self):
        """The losses since the last row of the log, (iterations, len(names))."""
        return torch.stack(self.losses) if self.losses else torch.empty(0, len(self.names))

    @property
    def log_due(self):
        return self.step % self.args.log_every == 0

    @property
    def sample_due(self):
        return self.step % self.args.sample_every == 0 or self.step == self.total

    @property
    def save_due(self):
        return self.stop or self.step % self.args.ckpt_every == 0 or self.step == self.total

    def log(self, **more):
        """A row of mean losses where one is due, with `more` columns; losses must be finite."""
        # Asked for once a step and agreed on by all, so that all of it sees the same.
        stop = torch.tensor(self.caught[0] if self.caught else 0)
        together(distributed.all_reduce, stop, distributed.ReduceOp.MAX)
        self.stop = int(stop)
        if not (self.log_due or self.save_due):
            return
        losses = self.unlogged().cpu()
        if processes() > 1:
            sum_over_processes([losses])()
        bad = (~losses.isfinite()).nonzero().tolist()
        bad = [(self.logged + 1 + row, self.names[column], losses[row, column].item())
               for row, column in bad[:1]]
        bad += [(self.iteration, *item) for item in more.items() if not math.isfinite(item[1])]
        for iteration, name, value in bad[:1]:
            fail(f"{name} became {value:g} in iteration {iteration} (step {self.step}): stopped; "
                 "the checkpoints written before are good")
        if self.log_due:
            means = dict(zip(self.names, losses.double().mean(0).tolist(), strict=True)) | more
            if self.numerics.scaler.is_enabled():
                means[SKIPPED] = int(self.numerics.skipped)
            if rank() == 0:
                append_row(self.folder / "log.csv",
                           {"step": self.step, "iteration": self.iteration, **means})
            self.bar.set_postfix({name: f"{loss:.3f}" for name, loss in means.items()})
            self.losses, self.logged = [], self.iteration

    def save_grid(self, images, kind="samples", columns=8):
        """<kind>_<step>.png, and losses.png anew; says so where all samples are one image."""
        if rank() == 0:
            pixels = to_uint8(images).int()
            if kind == "samples" and (pixels.amax(0) - pixels.amin(0)).max() <= 1:
                print(f"warning: all samples of step {self.step} are equal to within 1/255: "
                      "collapsed, or hardly trained", file=sys.stderr)
            caption = (f"{self.model} on {Path(self.args.data).resolve().name}, seed "
                       f"{self.args.seed}, step {self.step}")
            save_grid(images, self.folder / f"{kind}_{self.step:06d}.png", columns, caption)
            plot_losses(self.folder)

    def save(self, sampler):
        """ckpt_<step>.pth; sampler: the generator to sample from, in evaluation mode."""
        # What each process has of its own; all else is the same in all of them.
        own, *others = gathered({"random": random_state(self.device),
                                 "losses": self.unlogged().cpu()})
        if rank() > 0:
            self.path = None
            return
        for name, network in self.networks.items():
            for key, value in network.state_dict().items():
                if not value.isfinite().all():  # the losses were, before the last update
                    fail(f"{key} of the {name} is not finite after step {self.step}: stopped; the "
                         "checkpoints written before are good")
        self.path = save_checkpoint(self.folder, {
            "model": self.model, "config": self.config, "fit": self.args.fit, "step": self.step,
            "args": vars(self.args), "sampler": sampler.state_dict(),
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
            "optimizers": {name: adam.state_dict() for name, adam in self.optimizers.items()},
            "scaler": self.numerics.scaler.state_dict(), "skipped": int(self.numerics.skipped),
            "data": self.fingerprint, "iteration": self.iteration, "logged": self.logged,
            "seen": self.seen, **own, "others": others,
        }, self.args.keep)
