"""Damaged bytes, full disks, and the one line with which a call refuses them."""

import contextlib
import io
import resource


def refusal(call, *arguments):
    """The one line with which a call ends the program; None where it returns."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            call(*arguments)
            return None
        except SystemExit as stop:
            assert stop.code == 2
    (line,) = stderr.getvalue().splitlines()
    return line


def mutations(chance, data):
    """The bytes, endlessly, each time otherwise damaged."""
    while True:
        damaged, kind = bytearray(data), chance.randrange(5)
        at = chance.randrange(len(data))
        if kind == 0:  # a bit
            damaged[at] ^= 1 << chance.randrange(8)
        elif kind == 1:  # a few bytes, many of them in the part that gives structure
            for _ in range(chance.randrange(1, 30)):
                damaged[chance.randrange(min(len(data), 2000))] = chance.randrange(256)
        elif kind == 2:
            del damaged[at:]
        elif kind == 3:
            del damaged[at : at + chance.randrange(1, 200)]
        else:  # a piece of it once more
            piece = chance.randrange(len(data))
            damaged[at:at] = data[piece : piece + chance.randrange(1, 200)]
        if bytes(damaged) != data:
            yield bytes(damaged)


def fuzz_count(request, share):
    """How many damaged inputs a test tries: its share of --fuzz."""
    return max(10, int(request.config.getoption("--fuzz") * share))


@contextlib.contextmanager
def small_disk(size):
    """In this process no file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
