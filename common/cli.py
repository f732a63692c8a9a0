"""The command line: parser, types of numbers, the training scripts' flags, errors in one line."""

import argparse
import codecs
import contextlib
import errno
import functools
import math
import os
import signal
import sys
from pathlib import Path

from tqdm import tqdm

FLOAT32_MIN, FLOAT32_MAX = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # the normal ones


def _speaker():
    """The script's name; of several processes that torchrun started, which one it is, too."""
    script = Path(sys.argv[0]).name
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return f"{script}: process {os.environ['RANK']}" if several else script


@contextlib.contextmanager
def _heard(stream):
    """Lets a pipe or a terminal that is gone swallow what is said (`| tee log`, then Ctrl-C)."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise OSError(error.errno, error.strerror, stream.name) from error
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(message, file=None):
    """Prints a line at once, above a progress bar, for as long as somebody hears it."""
    file = file or sys.stdout
    with _heard(file), tqdm.external_write_mode(file):
        print(message, file=file, flush=True)


def fail(message):
    """Prints one line to stderr and exits with code 2: the input was wrong, not the program."""
    say(f"{_speaker()}: error: {' '.join(str(message).split())}", sys.stderr)
    sys.exit(2)


def warn(message):
    """Prints one line to stderr."""
    say(f"{_speaker()}: warning: {' '.join(str(message).split())}", sys.stderr)


@functools.cache
def warn_once(message):
    """As warn, but once."""
    warn(message)


def _in_ascii(error):
    """What stands for characters that a terminal's encoding lacks."""
    names = {"×": "x", "±": "+-", "∞": "inf", "–": "-", "−": "-", "²": "2", "…": "..."}
    return "".join(names.get(c, "?") for c in error.object[error.start : error.end]), error.end


codecs.register_error("in_ascii", _in_ascii)


def stop_signals():
    """The signals that ask a script to stop; SIGHUP, of a closed terminal, unless it is ignored (by
    nohup)."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


def interrupt(number, frame):
    """A signal's handler: as Ctrl-C, but with its own exit code."""
    raise KeyboardInterrupt(number)


def catch_signals():
    """A list that the first signal to stop enters; a second SIGINT or SIGTERM ends the process."""
    caught = []

    def note(number, frame):
        caught.append(number)
        for name in stop_signals():  # a terminal that closes sends SIGHUP more than once
            signal.signal(name, signal.SIG_IGN if name == signal.SIGHUP else signal.SIG_DFL)

    for name in stop_signals():
        signal.signal(name, note)
    return caught


def out_of_memory(error):
    """The exception that says that memory ran out: this one, or what led to it; None if neither.

    torch has a type of its own for one of a GPU's several ways to run out of memory. If it does
    while a CUDA graph is recorded (captured), the end of that fails, too.
    """
    words = ("to allocate", "n't allocate", "annot allocate", "overflowed", "bad_alloc",
             "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
    for cause in (error, error.__context__ if "captur" in str(error) else None):
        if isinstance(cause, MemoryError) or any(word in str(cause) for word in words):
            return cause
    return None


@contextlib.contextmanager
def system_errors(smaller=""):
    """Turns what the system refuses (a full disk, memory) and Ctrl-C into one line and an exit.

    smaller: the flags that help where memory runs out.
    """
    try:
        yield
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else error)
    except (MemoryError, RuntimeError) as error:
        cause = out_of_memory(error)
        if not cause:
            raise
        text = str(cause).strip()
        reason = f" ({text.splitlines()[0]})" if text else ""
        fail(f"out of memory{reason}" + (f": a smaller {smaller} helps" if smaller else ""))
    except KeyboardInterrupt as stop:
        say(f"{_speaker()}: interrupted", sys.stderr)
        sys.exit(128 + (stop.args or [signal.SIGINT])[0])


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """One line for each flag where it fits; defaults are shown only where there are any."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=30, width=100)

    def _get_help_string(self, action):
        if action.default is None or action.default is False or "default" in action.help:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows the script's docstring and whose errors are one line.

    source: where the arguments come from if they were not typed, a prefix of error messages.
    """

    source = ""

    def __init__(self, doc):
        super().__init__(description=doc, usage="%(prog)s [flags]", formatter_class=_Help,
                         allow_abbrev=False)
        for stream in filter(None, (sys.stdout, sys.stderr)):  # from its first line on, --help
            stream.reconfigure(errors="in_ascii")

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's; the ~ of --out=~/x, which shells leave, becomes the home folder."""
        args = sys.argv[1:] if args is None else args
        args = [flag + equals + os.path.expanduser(value) if flag.startswith("--") else arg
                for arg in args for flag, equals, value in [arg.partition("=")]]
        return super().parse_known_args(args, namespace)

    def error(self, message):
        fail(f"{self.source}{message}")


def number(kind, low, high=math.inf):
    """An argparse type: an int or float in [low, high); NaN lies in no interval."""

    def parse(text):
        value = kind(text)
        if not low <= value < high:
            raise argparse.ArgumentTypeError(f"{text} is not in [{low}, {high})")
        return value

    parse.__name__ = kind.__name__  # argparse shows it
    return parse


count = number(int, 1)
width = number(int, 1, 2**16)  # of images, batches and layers: more is a typing error
seed = number(int, 0, 2**63)
positive = number(float, FLOAT32_MIN, FLOAT32_MAX)
weight = number(float, 0, FLOAT32_MAX)


def augmentation(text):
    """An argparse type: the names in --augment, as a list."""
    names = [] if text == "none" else text.split(",")
    if not set(names) <= {"color", "translation", "cutout"}:
        raise ValueError
    return names


def add_training_flags(parser, *, data, size, fit, batch_size, lr, every):
    """Adds the flags that all training scripts have; the values given are the study's.

    every: steps between checkpoints, between sample grids, and between rows of the log.
    """
    group = parser.add_argument_group("data and model")
    group.add_argument("--data", default=data, metavar="DIR",
                       help="folder of prepare_data.py, or any folder of photos (but "
                       "evaluate.py needs one of prepare_data.py)")
    group.add_argument("--limit", type=count, metavar="N", help="only the first N training photos")
    group.add_argument("--size", type=width, default=size, metavar="N", help="image side, pixels")
    group.add_argument("--fit", choices=["square", "crop"], default=fit,
                       help="stretch photos to squares, or cut out the middle")
    group.add_argument("--batch-size", type=width, default=batch_size, metavar="N",
                       help="images per step and process")
    group.add_argument("--lr", type=positive, default=lr, metavar="X", help="learning rate")
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="random seed")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    group.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto",
                       help="number format of the networks; auto is bf16 where the device is fast "
                            "at it; fp32 is TF32 on GPUs that have it")
    group.add_argument("--graph", action=argparse.BooleanOptionalAction, default=True,
                       help="on one GPU, each step as one CUDA graph: one launch, not thousands")
    group.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=False,
                       help="only kernels that give the same bits every time, as a CPU's always do")
    group.add_argument("--demo", action="store_true", help="quick test: small settings, 256 drawn "
                       "bedrooms")
    group = parser.add_argument_group("run folder")
    group.add_argument("--out", default="runs", metavar="DIR", help="folder of run folders")
    group.add_argument("--name", help="run folder in --out (default: <model>-<data>-<time>)")
    group.add_argument("--resume", metavar="PATH|latest", 
                       help="continue from a checkpoint, a run folder, or the newest run")
    group.add_argument("--ckpt-every", type=count, default=every[0], metavar="N",
                       help="a checkpoint every N steps")
    group.add_argument("--sample-every", type=count, default=every[1], metavar="N",
                       help="sample images every N steps")
    group.add_argument("--log-every", type=count, default=every[2], metavar="N",
                       help="a row of the log every N steps")
    group.add_argument("--keep", type=count, metavar="N",
                       help="only the newest N checkpoints (default: all)")
