"""A training run: its arguments, its folder and log, and how it stops and goes on exactly.

A training script is one loop over `Run.steps`. A step is an epoch for GAN, DCGAN and VAE and an
iteration for FastGAN; a stop takes effect after the iteration in hand, within an epoch too.
"""

import csv
import gc
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from tqdm import tqdm

from common import checkpoints, cli, devices, figures, files, photos, sampling

SKIPPED = "skipped_updates"  # column of the log with fp16: their number since the run began


# Start ---------------------------------------------------------------------------------------


def launch(main, parser, model, **presets):
    """Runs a training script: main(args, checkpoint), errors of the user's in one line; `presets`
    are what flags set at once, demo={...} the defaults with --demo."""
    with cli.system_errors("--batch-size, --size or --features"), devices.others_may_end():
        main(*parse_arguments(parser, model, presets))


def parse_arguments(parser, model, presets):
    """(arguments, the checkpoint of --resume or --init, or None).

    The command line wins over the checkpoint's arguments, these over the presets, these over the
    defaults. So `--resume PATH` alone goes on as the run began. With --init only the networks'
    sizes are the checkpoint's.
    """
    args = parser.parse_args()
    init, checkpoint, saved = vars(args).get("init"), None, []
    if args.resume and init:
        cli.fail("--init begins a new run, --resume goes on with one: give one of them")
    if path := args.resume or init:
        path = checkpoints.to_resume(path, args.out, args.name if args.resume else None, model)
        checkpoint = checkpoints.read(path)
        if checkpoint["model"] != model:
            cli.fail(f"{path} is a {checkpoint['model']} checkpoint, not {model}")
        kept = {"size", "z_dim", "features"}
        if args.resume:
            kept = set(vars(args)) - {"resume", "init", "device", "out", "name"}
        saved = [as_typed(name.replace("_", "-"), value) for name, value
                 in checkpoint["args"].items() if name in kept and value is not None
                 and (value or name not in presets)]
        parser.source = f"{path}: "  # as if they were typed first: checked like it
        parser.parse_args(saved)
        parser.source = ""
    for name, settings in presets.items():
        # A run of ours has its own settings, those that older code did not know by default.
        if vars(args)[name] and (not args.resume or checkpoint["published"]):
            parser.set_defaults(**settings)
    return parser.parse_args([*saved, *sys.argv[1:]]), checkpoint


def as_typed(name, value):
    """An argument in the form in which it is typed."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={(','.join(map(str, value)) or 'none') if isinstance(value, list) else value}"


def start(args, checkpoint, demo, **config):
    """The Numerics, after what every script does first: processes, demo scenes, seed.

    checkpoint: of --resume or --init, if any; config: the networks' arguments, which must be its.
    """
    device = devices.choose_device(args.device)
    args.device = str(device)
    devices.join(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS wants it to be repeatable
    torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.benchmark = not args.deterministic
    numerics = devices.Numerics(device, args.precision)
    args.precision = numerics.precision  # a resumed run keeps what `auto` became
    if args.demo and args.data == demo["data"]:
        if devices.rank() == 0 and not Path(args.data, "manifest.csv").exists():
            script = Path(__file__).parents[1] / "prepare_data.py"
            command = [sys.executable, script, "--demo", "256", "--out", args.data]
            if subprocess.run(command).returncode:
                cli.fail(f"the demo scenes could not be drawn into {args.data}")
        devices.together(distributed.barrier)
    for name, value in config.items() if checkpoint else ():
        saved = checkpoint["config"].get(name)
        if saved != value:
            cli.fail(f"the networks keep their {name}: {saved} in {checkpoint['path']}, "
                     f"{value} now")
    torch.manual_seed(args.seed)
    return numerics


def load_photos(args, device, split="train"):
    """(uint8 tensor (n, 3, size, size), its SHA-256) as a script's arguments ask for.

    The first --limit photos of train. On the device if half of its free memory holds them.
    """
    if devices.rank() > 0:
        devices.together(distributed.barrier)  # the first process makes the cache for the others
    images, fingerprint = photos.load_images(args.data, split, args.size, args.fit)
    if devices.rank() == 0:
        devices.together(distributed.barrier)
    if split == "train" and args.limit and args.limit < len(images):
        images = images[: args.limit].clone()
        fingerprint = files.sha256(images.numpy())
    if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return images, fingerprint
    return images.to(device), fingerprint


def load_sets(args, device):
    """([training photos, validation photos where there are any], the SHA-256 of the first)."""
    images, fingerprint = load_photos(args, device)
    validation = [load_photos(args, device, "val")[0]] if photos.has_validation(args.data) else []
    return [images, *validation], fingerprint


# Folder, log and curves ----------------------------------------------------------------------


def versions():
    """Versions of what the numbers depend on."""
    packages = ("torch", "torchvision", "numpy", "Pillow", "lpips")
    return {"python": platform.python_version(),
            **{name: metadata.version(name) for name in packages}}


def git_commit():
    command = ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def open_folder(args, model, checkpoint):
    """The run's folder, locked: a new one, or that of the resumed checkpoint."""
    record = {"model": model, "arguments": vars(args), "git_commit": git_commit(),
              "versions": versions(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
    path = checkpoint["path"] if checkpoint else None
    there = checkpoints.find_all(path.parent) if checkpoint else []
    if path in there and any((path.parent / name).exists() for name in ("args.json", "log.csv")):
        folder = reopen_folder(args, checkpoint, there)
        first = read_record(folder) or {"model": model}
        before = first.get("resumed", [])
        record = {**first, "resumed": [*before, {"step": checkpoint["step"], **record}]}
    else:
        folder = new_folder(args, model)
    with files.replacing(folder / "args.json") as file:
        file.write(json.dumps(record, indent=1, default=str).encode())
    return folder


def read_record(folder):
    """args.json of a run; {} if it is lost or damaged."""
    try:
        record = json.loads((folder / "args.json").read_text())
        for resumed in record.get("resumed", []):
            int(resumed["step"])
        return record
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def reopen_folder(args, checkpoint, there):
    """The folder of the checkpoint, which must be the newest of `there`; its log is cut back."""
    path, folder = checkpoint["path"], checkpoint["path"].parent
    if args.name not in (None, folder.resolve().name):
        cli.fail(f"--resume goes on in {folder}; --name {args.name} is for a new run")
    if path != there[-1]:
        cli.fail(f"{path} is not the newest of its run: delete {there[-1].name} and what lies "
                 f"between, or copy {path.name} elsewhere and resume the copy, as a new run")
    lock(folder)
    if checkpoints.find_all(folder) != there:
        cli.fail(f"another process has just gone on in {folder}: --resume {folder} finds where")
    for stale in folder.glob(".*.tmp"):
        stale.unlink()
    unfinished = checkpoint.get("taken", 0) > 0
    truncate_log(folder / "log.csv", checkpoint["step"] - unfinished)
    return folder


def new_folder(args, model):
    """A folder of --name or, without, of a name that is not taken yet."""
    if args.name and (Path(args.name).name != args.name or args.name == ".."):
        cli.fail(f"--name {args.name} is not the name of a folder; --out says where it goes")
    name = args.name or (f"{model}-{Path(args.data).resolve().name}"
                         f"{time.strftime('-%Y%m%d-%H%M%S')}")
    folder, again = Path(args.out, name), 2
    Path(args.out).mkdir(parents=True, exist_ok=True)
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            if args.name and os.listdir(folder) == ["args.json"]:
                break  # its run ended before it got anywhere
            if args.name:
                cli.fail(f"{folder} exists: --resume {folder} goes on with it")
            folder, again = Path(args.out, f"{name}-{again}"), again + 1
    lock(folder)
    return folder


def lock(folder):
    """Keeps other training scripts out of a run folder."""
    try:
        files.lock(folder)
    except BlockingIOError:
        cli.fail(f"another process is training in {folder}")
    except OSError as error:  # some network file systems have no locks for folders
        cli.warn(f"{folder} can't be locked ({error.strerror}): let one process at a time train "
                 "there")


def truncate_log(path, step):
    """Drops the rows after `step`, a torn last one, and what is no row of numbers."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    header, *rows = text.splitlines(keepends=True) or [""]
    whole = re.compile(rf"\d+(,[-+.e\d]*){{{header.count(',')}}}\n")
    kept = [row for row in rows if whole.fullmatch(row) and int(row.split(",")[0]) <= step]
    if not kept:
        path.unlink()  # a header alone may be torn; the next row writes a new one
        return
    if not header.startswith("step,"):
        cli.fail(f"{path} is not as it was written ({header.strip()}): move it away")
    with files.replacing(path) as file:
        file.write("".join([header, *kept]).encode())


def plot_losses(folder, apart=()):
    """losses.png from log.csv and args.json; `apart`: columns of a panel of their own."""
    if not (folder / "log.csv").exists():
        return
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    resumed = [record["step"] for record in read_record(folder).get("resumed", ())]
    figures.loss_curves(rows, resumed, folder.name, folder / "losses.png", (SKIPPED,), apart)


# The run -------------------------------------------------------------------------------------


class Run:
    """Where a training run stands: what is logged, saved and resumed, and in which folder.

    config: the generator's arguments; networks, optimizers: dicts; data: (how many training
    photos, their SHA-256); names: of the losses; apart: columns of the log that are drawn in a
    panel of their own; fresh: networks that begin anew though there is a checkpoint.
    """

    def __init__(self, model, args, checkpoint, numerics, config, networks, optimizers, data,
                 names, apart=(), fresh=()):
        self.model, self.args, self.config = model, args, config
        self.numerics, self.device = numerics, numerics.device
        self.networks, self.optimizers, self.names = networks, optimizers, names
        self.photos, self.fingerprint = data
        self.checkpoint, self.apart, self.fresh = checkpoint, apart, fresh
        self.aspect = 1.0  # of photos that were cropped to squares
        if args.fit == "square" and devices.rank() == 0:
            self.aspect = photos.median_aspect(args.data, args.limit)
        self.step = self.iteration = self.logged = 0  # logged: the iteration of the last row
        self.seen = 0  # photos taken by `draw` so far
        self.trained = 0  # steps before those that are counted
        self.taken = 0  # photos taken of the epoch in hand, where it is not finished
        self.stop = 0  # the signal that all processes have agreed to stop for
        self.losses = []  # of each iteration since the last row, on the device
        self.folder = None  # of the first process, once it runs
        if devices.rank() > 0:  # the others draw other latents, from here on
            words = np.random.SeedSequence([args.seed, devices.rank()]).generate_state(1)
            torch.manual_seed(int(words[0]))
        if checkpoint:
            try:
                self.restore(checkpoint)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                if cli.out_of_memory(error):
                    raise
                cli.fail(f"{checkpoint['path']} is not what a {model} run goes on from "
                         f"({type(error).__name__}: {error})")

    def restore(self, saved):
        """Puts the checkpoint's state into the networks, the optimisers and every generator."""
        self.step, path, self.trained = saved["step"], saved["path"], saved.get("trained", 0)
        if saved["data"] not in (None, self.fingerprint):
            cli.fail(f"a resumed run keeps its photos: {saved['args'].get('data')} "
                     f"({saved['data'][:12]}) in {path}, {self.args.data} "
                     f"({self.fingerprint[:12]}) now")
        for name, network in self.networks.items():
            if name not in self.fresh:
                checkpoints.load_weights(network, saved["networks"][name], path)
        if saved["optimizers"]:
            for name, optimizer in self.optimizers.items():
                if name not in self.fresh:
                    checkpoints.load_adam(optimizer, saved["optimizers"][name], path)
        else:
            cli.warn(f"{path} holds no optimisers: Adam starts afresh")
        self.iteration = self.logged = self.step
        self.seen = self.step * self.args.batch_size * devices.processes()
        if saved["published"] and self.trained:
            cli.warn(f"{path} does not say its step: taken as trained long, and counted from 0")
        if not saved["published"]:
            self.iteration = saved.get("iteration", self.step)
            self.logged, self.seen = saved["logged"], saved["seen"]
            self.taken = saved.get("taken", 0)
            if saved.get("scaler"):  # empty but for fp16
                self.numerics.scaler.load_state_dict(saved["scaler"])
            self.numerics.skipped.fill_(saved.get("skipped", 0))
            states = [saved, *saved.get("others", ())]  # of one process each
            if devices.rank() < len(states):
                devices.set_random_state(states[devices.rank()]["random"], self.device)
            own = states[min(devices.rank(), len(states) - 1)]
            self.losses = [row.to(self.device) for row in own.get("losses", ())
                           if len(row) == len(self.names)]  # --variety has one more

    def recorded(self, step):
        """On one GPU a function of tensors there as a CUDA graph (--no-graph: as it is)."""
        one_gpu = self.device.type == "cuda" and devices.processes() == 1
        return devices.cuda_graph(step) if self.args.graph and one_gpu else step

    def steps(self, total):
        """The steps from here to `total`, with a progress bar; ends early after a signal."""
        say = cli.say if devices.rank() == 0 else lambda *_, **__: None
        first = self.step if self.taken else self.step + 1
        if first > total:
            say(f"{self.checkpoint['path']} is at step {self.step} of {total}: nothing to do")
            return
        if devices.rank() == 0:
            self.folder = open_folder(self.args, self.model, self.checkpoint)
        say(f"{self.model} on {self.photos} photos at {self.args.size}×{self.args.size}, "
            f"{self.device}, {self.args.precision}; run folder {self.folder}")
        self.total, self.caught = total, cli.catch_signals()
        self.bar = tqdm(range(first, total + 1), initial=first - 1, total=total, unit="step",
                        disable=True if devices.rank() > 0 else None)
        with self.bar:
            for step in self.bar:
                self.step = step
                yield step
                if self.stop:
                    break
        say(f"step {self.step}: {self.path}; peak memory "
            f"{devices.peak_memory(self.device):.1f} GiB")
        if self.stop:
            say(f"stopped by a signal; --resume {self.folder} goes on", sys.stderr)
        # torchrun ends all processes when one ends: not before all is written.
        devices.together(distributed.barrier)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        if self.stop:
            sys.exit(128 + self.stop)

    def batches(self):
        """This process's indices of each batch of the epoch in hand, from where the run stands.

        Ends early after a signal: the epoch's remaining batches, its row of the log and its grid
        are left to the run that resumes this one.
        """
        several = devices.processes()
        size = self.args.batch_size * several
        for batch in photos.epoch_batches(self.photos, size, self.step - 1, self.args.seed,
                                          self.taken, several):
            yield batch.chunk(several)[devices.rank()]
            self.taken += len(batch)
            if self.stopping():
                return

    def draw(self):
        """This process's indices of the next batch, of an endless row of permutations."""
        n = self.args.batch_size
        start = self.seen + n * devices.rank()
        self.seen += n * devices.processes()
        return photos.data_order(self.photos, start, n, self.args.seed)

    def add(self, losses):
        """Counts an iteration and its losses, a tensor (len(names),)."""
        self.losses.append(losses)
        self.iteration += 1

    def stopping(self):
        """Whether a process has caught a signal: the same answer in all of them."""
        stop = torch.tensor(self.caught[0] if self.caught else 0)
        devices.together(distributed.all_reduce, stop, distributed.ReduceOp.MAX)
        if stop and not self.stop and devices.rank() == 0:
            cli.say("stopping: a checkpoint is being saved; a second signal exits without saving",
                    sys.stderr)
        self.stop = int(stop)
        return bool(self.stop)

    @property
    def log_due(self):
        return not self.stop and self.step % self.args.log_every == 0

    @property
    def sample_due(self):
        return not self.taken and (self.step % self.args.sample_every == 0
                                   or self.step == self.total)

    @property
    def save_due(self):
        return self.stop or self.step % self.args.ckpt_every == 0 or self.step == self.total

    def unlogged(self):
        """The losses since the last row of the log, (iterations, len(names))."""
        return torch.stack(self.losses) if self.losses else torch.empty(0, len(self.names))

    def log(self, **more):
        """Ends a step: checks that losses are finite, and logs their means and `more` when due."""
        if self.stop:  # within an epoch
            self.check_finite(self.unlogged().cpu())
            return
        due, self.taken = self.log_due, 0
        self.stopping()
        if not (due or self.save_due):
            return
        losses = self.unlogged().cpu()
        devices.together(distributed.all_reduce, losses)
        losses /= devices.processes()
        self.check_finite(losses, **more)
        if due:
            means = dict(zip(self.names, losses.double().mean(0).tolist(), strict=True)) | more
            if self.numerics.scaler.is_enabled():
                means[SKIPPED] = int(self.numerics.skipped)
            if devices.rank() == 0:
                row = {"step": self.step, "iteration": self.iteration, **means}
                files.append_row(self.folder / "log.csv", row)
            self.bar.set_postfix({name: f"{loss:.3f}" for name, loss in means.items()})
            self.losses, self.logged = [], self.iteration

    def check_finite(self, losses, **more):
        """Ends the run where one of the losses since the last row, or of `more`, is not finite."""
        bad = (~losses.isfinite()).nonzero().tolist()
        bad = [(self.logged + 1 + row, self.names[column], losses[row, column].item())
               for row, column in bad[:1]]
        bad += [(self.iteration, *item) for item in more.items() if not math.isfinite(item[1])]
        for iteration, name, value in bad[:1]:
            cli.fail(f"{name} became {value:g} in iteration {iteration} (step {self.step}): "
                     "stopped; the checkpoints written before are good")

    def save_grid(self, images, kind="samples", columns=8):
        """<kind>_<step>.png; with samples losses.png anew, and a line where all are one image."""
        if devices.rank() == 0:
            pixels = sampling.to_uint8(images).cpu()
            spread = pixels.amax(0).int() - pixels.amin(0).int()
            if kind == "samples" and spread.max() <= 1:
                cli.warn(f"all samples of step {self.step} are equal to within 1/255: collapsed, "
                         "or hardly trained")
            caption = (f"{self.model} on {Path(self.args.data).resolve().name}, seed "
                       f"{self.args.seed}, step {self.step}")
            path = self.folder / f"{kind}_{self.step:06d}.png"
            photos.save_grid(pixels, path, columns, caption)
            if kind == "samples":
                plot_losses(self.folder, self.apart)
                gc.collect()  # a figure is a knot of cycles, a megabyte that may lie there long

    def save(self, sampler):
        """ckpt_<step>.pth, and at a stop losses.png anew; sampler: the generator to sample from, in
        evaluation mode."""
        # What each process has of its own; all else is the same in all of them.
        own, *others = devices.gathered({"random": devices.random_state(self.device),
                                         "losses": self.unlogged().cpu()})
        if devices.rank() > 0:
            self.path = None
            return
        for name, network in self.networks.items():
            for key, value in network.state_dict().items():
                if not value.isfinite().all():  # the losses were, before the last update
                    cli.fail(f"{key} of the {name} is not finite after step {self.step}: stopped; "
                             "the checkpoints written before are good")
        self.path = checkpoints.save(self.folder, {
            "model": self.model, "config": self.config, "fit": self.args.fit, "step": self.step,
            "args": vars(self.args), "sampler": sampler.state_dict(),
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
            "optimizers": {name: adam.state_dict() for name, adam in self.optimizers.items()},
            "scaler": self.numerics.scaler.state_dict(), "skipped": int(self.numerics.skipped),
            "data": self.fingerprint, "aspect": self.aspect, "iteration": self.iteration,
            "logged": self.logged, "seen": self.seen, "taken": self.taken, "trained": self.trained,
            **own, "others": others,
        }, self.args.keep)
        if self.stop:
            plot_losses(self.folder, self.apart)
