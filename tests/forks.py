"""Scripts run as their users run them, but each forked from one process that has torch imported.

Run as a program it is that process: it reads one request a line and answers in one line. Run with
two pipes of a Launcher and a script with its arguments, it has that Launcher's process run these.
"""

import atexit
import contextlib
import ctypes
import functools
import itertools
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Launcher:
    """launcher("train_gan.py", "--size", 8, cwd=folder) -> a Process."""

    def __init__(self, pipes=()):
        """pipes: descriptors of another Launcher's; without them it has a server of its own."""
        self.folder, self.started, self.server = tempfile.TemporaryDirectory(), [], None
        if pipes:
            self.requests, self.answers = open(pipes[0], "w"), open(pipes[1])  # noqa: SIM115
            return
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
        self.server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, text=True, env=environment)
        self.requests, self.answers = self.server.stdin, self.server.stdout

    def ask(self, **request):
        print(json.dumps(request), file=self.requests, flush=True)
        return json.loads(self.answers.readline())

    def __call__(self, script, *arguments, cwd=ROOT, limits=(), powerless=False, stop_at=None,
                 env=()):
        """limits: {a resource.RLIMIT_...: bytes}. powerless: even root keeps to file permissions.
        stop_at: just before the run asks for signals for the n-th time one comes: SIGTERM if n is
        odd, else SIGINT. env: more environment variables, {name: text}.
        """
        out = Path(self.folder.name, str(len(self.started)))
        pid = self.ask(argv=[str(ROOT / script), *map(str, arguments)], cwd=str(cwd), out=str(out),
                       limits=list(dict(limits).items()), powerless=powerless, stop_at=stop_at,
                       env=dict(env))
        self.started.append(Process(self, pid, out))
        return self.started[-1]

    def close(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
        self.requests.close()
        self.server.wait(60)
        self.folder.cleanup()


@functools.cache
def shared():
    """The Launcher of all tests in this process."""
    launcher = Launcher()
    atexit.register(launcher.close)
    return launcher


class Process:
    def __init__(self, launcher, pid, out):
        self.launcher, self.pid, self.out, self.code = launcher, pid, out, None

    def poll(self):
        """The exit code, negative after a signal; None while it runs."""
        if self.code is None:
            self.code = self.launcher.ask(poll=self.pid)
        return self.code

    def wait(self, until=lambda: False, seconds=300):
        """The exit code, or None as soon as `until()` is true."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and not until():
            assert time.monotonic() < deadline, f"still running: {self.stderr}"
            time.sleep(0.002)
        return self.code

    def kill(self, number=signal.SIGKILL):
        """Sends a signal and waits for the end."""
        if self.poll() is None:
            os.kill(self.pid, number)
        return self.wait()

    def finish(self, code=0):
        """Waits for its end, which must be a success unless another code is given; returns itself.
        """
        assert self.wait() == code, self.stderr
        return self

    @property
    def stdout(self):
        return self.out.with_suffix(".out").read_text()

    @property
    def stderr(self):
        return self.out.with_suffix(".err").read_text()


def run(request):
    """What the forked process does, without return."""
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            path = f"{request['out']}.{name[3:]}"
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
            setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        sys.argv = request["argv"]
        if request["powerless"]:
            drop_power()
        for kind, most in request["limits"]:
            resource.setrlimit(kind, (most, most))
        if request["stop_at"]:
            stop_at(request["stop_at"])
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def stop_at(number):
    from common.run import Run

    stopping, calls = Run.stopping, itertools.count(1)

    def signalled(run):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM if number % 2 else signal.SIGINT)
        return stopping(run)

    Run.stopping = signalled


def drop_power():
    """Takes from root what lets it pass by file permissions (CAP_DAC_*, CAP_FOWNER)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b1110
    assert libc.capset(header, sets) == 0


def serve():
    import matplotlib.pyplot  # noqa: F401
    import torch

    import nets  # noqa: F401
    from common import run as _  # noqa: F401

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports torch._dynamo
    ended = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            with contextlib.suppress(ChildProcessError):
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    ended[found[0]] = os.waitstatus_to_exitcode(found[1])
            answer = ended.get(request["poll"])
        else:
            answer = os.fork()
            if not answer:
                run(request)
        print(json.dumps(answer), flush=True)


def forward(requests, answers, *command):
    """The exit code of a script that the server of another Launcher ran; passes its output on."""
    process = Launcher((int(requests), int(answers)))(*command, cwd=os.getcwd())
    code = process.wait()
    print(process.stdout, end="")
    print(process.stderr, end="", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(forward(*sys.argv[1:]) if sys.argv[1:] else serve())
