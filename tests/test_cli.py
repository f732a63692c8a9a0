"""The command line: any terminal, what shells leave of a path, what is said to nobody."""

import io
import os
import re
import runpy
import signal
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from tqdm import tqdm

from common import cli

SCRIPTS = ["train_gan.py", "train_dcgan.py", "train_vae.py", "train_fastgan.py", "evaluate.py",
           "prepare_data.py"]


class Shown(io.BytesIO):
    def close(self):
        """Not with the stream that wrote to it."""


def terminal(monkeypatch, encoding):
    """Stdout and stderr of a terminal that shows this encoding alone, as bytes to read."""
    shown = Shown()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(shown, encoding, write_through=True))
    return shown


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_on_any_terminal(monkeypatch, name):
    texts = {}
    for encoding in ("utf-8", "latin-1", "ascii"):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            shown = terminal(patch, encoding)
            patch.setattr(sys, "argv", [str(ROOT / name), "--help"])
            runpy.run_path(str(ROOT / name), run_name="__main__")
        assert stop.value.code == 0
        texts[encoding] = shown.getvalue().decode(encoding)
    assert texts["utf-8"].translate({ord("×"): "x"}).isascii()
    assert texts["ascii"] == texts["utf-8"].replace("×", "x")  # and no question marks
    assert texts["latin-1"] == texts["utf-8"]


def test_signs_of_the_table_on_any_terminal(monkeypatch):
    shown = terminal(monkeypatch, "ascii")
    cli.Parser("")
    cli.say("FD∞ 64×64 1.0 ±0.5 – −3 ü \udcff")
    cli.warn("×")
    assert shown.getvalue().splitlines()[0] == b"FDinf 64x64 1.0 +-0.5 - -3 ? ?"
    assert shown.getvalue().endswith(b"warning: x\n")


def test_home_folders_that_shells_leave(monkeypatch):
    parser = cli.Parser("")
    parser.add_argument("--out", type=Path)
    monkeypatch.setenv("HOME", "/home/me")
    for typed, path in (("~/x", "/home/me/x"), ("a~/x", "a~/x"), ("/~", "/~"), ("", ".")):
        assert parser.parse_args([f"--out={typed}"]).out == Path(path)


def test_a_closed_pipe_swallows_what_is_said_but_a_full_disk_does_not():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        cli.say("to nobody", pipe)
        cli.say("again", pipe)
    with open("/dev/full", "w") as full, pytest.raises(OSError, match="No space left"):
        try:
            cli.say("too much", full)
        finally:
            os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # so that it can be closed


def test_scripts_whose_streams_are_closed(monkeypatch, capfd):
    """As by `>&-`."""
    monkeypatch.setattr(sys, "stdout", None)
    cli.Parser("")
    cli.say("to nobody")
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit):
        cli.fail("to nobody")
    assert capfd.readouterr() == ("", "")


def test_nohup_stays_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert set(cli.stop_signals()) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert set(cli.stop_signals()) == {signal.SIGINT, signal.SIGTERM}
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_said_stands_above_a_progress_bar(capsys):
    with tqdm(total=2, file=sys.stderr):
        cli.say("a line", sys.stderr)
    assert "a line" in re.split("[\r\n]", capsys.readouterr().err)


def test_a_warning_that_many_places_have_is_printed_once(capfd):
    for place in "aab":
        cli.warn_once(f"nothing is kept in {place}")
    assert len(capfd.readouterr().err.splitlines()) == 2
