"""Files that appear whole or not at all, rows of a log, locks on folders, fingerprints."""

import contextlib
import csv
import fcntl
import glob
import hashlib
import io
import os
import re
import zipfile
from pathlib import Path


def slug(name):
    """Any text as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", name)


def readable(name):
    """A file's name as text that can be written: bytes that aren't UTF-8 become question marks."""
    return str(name).encode(errors="replace").decode()


@contextlib.contextmanager
def replacing(path):
    """A binary file to write that appears under its name whole and on disk, or not at all.

    Removes what killed processes left of earlier attempts. Raises OSError, which names the file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise FileExistsError(0, "is not a file that could be replaced", str(path))
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not _is_running(stale.suffixes[-2][1:]):
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
    """Adds the file's name to an OSError, which has none when a write fails.

    torch.save raises a RuntimeError on top of it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error


def append_row(path, row):
    """Appends a row to a CSV file in one write, so that rows are whole.

    A file keeps its columns: if a resumed run has others (its precision or --variety changed, or
    validation photos came), what has no column is left out.
    """
    text, columns, new = io.StringIO(), list(row), not path.exists()
    if not new:
        with open(path, newline="", encoding="utf-8") as file:
            columns = next(csv.reader(file), columns)
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    if new:
        writer.writeheader()
    writer.writerow(row)
    with naming(path), open(path, "a", encoding="utf-8") as file:
        file.write(text.getvalue())


def _is_running(pid):
    """Whether there is a process with this number, given as text."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:
        pass  # another user's
    return True


def lock(folder, wait=False):
    """Keeps other processes that ask for it out of a folder, until this one ends.

    Returns a file descriptor; to close it ends the lock earlier. Raises OSError where another
    process has the folder, unless it is to wait, and where the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        raise type(error)(error.errno, error.strerror, str(folder)) from None
    return descriptor


def sha256(data):
    """The SHA-256 of text, bytes or an array, as hexadecimal digits."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def file_sha256(path):
    """The SHA-256 of a file's contents, as hexadecimal digits."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            sha.update(block)
    return sha.hexdigest()


def check_zip(path):
    """Raises ValueError unless a zip file's records are as they were written, by their CRC-32.

    Packed records are refused unread: a small file could claim to hold any amount.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > Path(path).stat().st_size:
            raise ValueError("packed")
        if archive.testzip() is not None:
            raise ValueError("checksum")
