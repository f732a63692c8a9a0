"""Files appear whole or not at all, folders are locked, damaged zip files are found out."""

import hashlib
import os
import zipfile

import numpy as np
import pytest
from damage import small_disk

from common import cli, files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, capfd):
    path = tmp_path / "table.md"
    with files.replacing(path) as file:
        file.write(b"old")
    with small_disk(5000), pytest.raises(SystemExit) as stop, cli.system_errors(), \
            files.replacing(path) as file:
        file.write(b"new" * 9000)
    assert stop.value.code == 2 and "table.md: File too large" in capfd.readouterr().err
    with pytest.raises(KeyError), files.replacing(path) as file:
        file.write(b"new")
        raise KeyError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_killed_processes_left_is_cleared_away(tmp_path):
    for pid in (2**30, os.getppid()):
        (tmp_path / f".x.csv.{pid}.tmp").touch()
    with files.replacing(tmp_path / "x.csv") as file:
        file.write(b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"x.csv", f".x.csv.{os.getppid()}.tmp"}


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "stdout")
    with pytest.raises(OSError, match="is not a file that could be replaced"), \
            files.replacing(tmp_path / "stdout"):
        pass
    assert (tmp_path / "stdout").is_fifo()


def test_a_lock_lasts_until_it_is_closed(tmp_path):
    descriptor = files.lock(tmp_path)
    with pytest.raises(BlockingIOError) as error:
        files.lock(tmp_path)
    assert error.value.filename == str(tmp_path)
    os.close(descriptor)
    os.close(files.lock(tmp_path, wait=True))


def test_fingerprints(tmp_path):
    data = np.random.default_rng(0).bytes(3 * 2**20)
    (tmp_path / "x").write_bytes(data)
    assert files.file_sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
    assert files.sha256("é") == hashlib.sha256("é".encode()).hexdigest()
    assert files.sha256(np.arange(3)) == hashlib.sha256(np.arange(3).tobytes()).hexdigest()


def test_zip_files_that_changed_or_were_packed(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", bytes(range(256)) * 9)
    files.check_zip(path)
    whole = path.read_bytes()
    at = whole.index(bytes(range(256))) + 1000
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match="checksum"):
        files.check_zip(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(9999))
    with pytest.raises(ValueError, match="packed"):
        files.check_zip(path)
