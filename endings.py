"""How a run ends that was stopped or failed: one line for people, and an exit status."""

import errno
import os
import sys
from collections.abc import Callable

from .errors import SlimrankError, Terminated
from .files import FULL

DISK = (errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO)  # what a disk raises that fails or is taken away


def ending(error: BaseException, goes_on: str = "") -> tuple[str, int]:
    """The line, empty where there is nobody to read it, and the status. `goes_on`: the command that takes the run up again."""
    if isinstance(error, KeyboardInterrupt):
        terminated = isinstance(error, Terminated)
        told = "terminated" if terminated else "interrupted"
        return f"error: {told}{f'; `{goes_on}` goes on when run again' if goes_on else ''}", 143 if terminated else 130
    if isinstance(error, BrokenPipeError):
        return "", 1
    words = " ".join(str(error).split())
    if isinstance(error, SlimrankError):
        return f"error: {words}", 1
    if isinstance(error, OSError) and error.errno in FULL:
        return f"error: cannot write {error.filename or 'a file'}: {error.strerror}; make room, and run it again", 1
    if isinstance(error, OSError) and error.errno in DISK:
        return f"error: {error.filename or 'a file'}: {error.strerror}; check the disk, and run it again", 1
    if isinstance(error, OSError) and error.filename is not None:  # what the system says of a path is no defect
        return f"error: {str(error.filename)[:200]}: {error.strerror}; check the path, and that it may be read", 1
    return f"error: {type(error).__name__}: {words[:300]}; this is a defect, --debug shows where", 1


def written_out(write: Callable[[], None], say: Callable[[str], None]) -> int:
    """Write the result to standard output; the status: 1 where it cannot be written, 0 where nobody wants it, as `| head`."""
    try:
        write()
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails at its end once more
        if not isinstance(error, BrokenPipeError):
            say(f"error: cannot write to standard output: {error.strerror}; the work itself is done")
            return 1
    return 0
