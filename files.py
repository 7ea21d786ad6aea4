"""Files appear whole or not at all."""

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .errors import SlimrankError
from .processes import alone

LARGEST = 2**26  # bytes of a file that is read whole
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk, a quota and a limit on file sizes raise
OURS = re.compile(r"\..+\.(\d+|[a-z0-9_]{8})\.tmp")  # of `_temporary` and Scratch: a process's number, or a random name
T = TypeVar("T")


def output(path: str | Path, suffix: str, *inputs: str | Path | None) -> Path:
    """Check before long work: `path` ends in `suffix`, is none of the files read, and can be written; make its folder."""
    path = Path(path)
    if path.suffix != suffix:
        raise SlimrankError(f"`out` {path} must end in {suffix}, as {path.with_suffix(suffix).name}")
    unread(path, *inputs)
    return ready(path)


def unread(path: Path, *inputs: str | Path | None) -> None:
    """Check that a file to be written is none of those that are read."""
    for given in inputs:
        if given is not None and path.exists() and Path(given).exists() and path.samefile(given):
            raise SlimrankError(f"`out` {path} is the file that is read; name another one")


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` on success, remove it on any failure."""
    path = ready(path)
    temporary = _temporary(path)
    try:
        yield temporary
        if temporary.exists():  # some writers make files that nobody else may read
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
        settle(temporary, path)
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        clear(temporary)


def settle(written: Path, path: Path) -> None:
    """Rename a file that was written to `path`, once the disk has it: a power cut leaves the old file or the new one."""
    with open(written, "r+b") as file:
        os.fsync(file.fileno())
    os.replace(written, path)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed were writing in a folder; nobody else may be at work there."""
    for left in folder.glob(".*.tmp"):
        if OURS.fullmatch(left.name):
            clear(left)


def clear(path: Path) -> None:
    """Remove a temporary file or folder, as far as the system lets us; whoever takes over sweeps what is left."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder, beside a file that is written in it or where the system has such; goes without a word."""

    def __init__(self, beside: Path | None = None):
        if beside is None:
            super().__init__(prefix="slimrank-", ignore_cleanup_errors=True)
        else:
            super().__init__(prefix=f".{beside.name}.", suffix=".tmp", dir=beside.parent, ignore_cleanup_errors=True)


def unwritten(path: Path, error: OSError) -> SlimrankError:
    """The line for a file that the system would not have written."""
    remedy = "make room, and run it again" if error.errno in FULL else "choose another place with `out`"
    return SlimrankError(f"cannot write {path}: {error.strerror or error}; {remedy}")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def ready(path: str | Path) -> Path:
    """Check before long work that `path` can be written; make its folder."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise SlimrankError(f"cannot write {path}: it is a folder; name a file with `out`")
        probe = _temporary(path)
        try:
            probe.touch()
        finally:
            clear(probe)
    except OSError as error:
        raise unwritten(path, error) from error
    return path


def write_text(path: str | Path, text: str) -> None:
    """Write a text; of several processes (processes.py) the first does."""

    def write() -> None:
        with whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    alone(write)


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_file(path: str | Path, what: str, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file (a pipe waits for ever), or one line that says why there are none."""
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise SlimrankError(f"cannot read {what} {path}: it is no file; check the path")
        if about.st_size > largest:
            raise SlimrankError(f"{what} {path} has {about.st_size:,} bytes, {largest:,} is the limit; check the path")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise SlimrankError(f"cannot read {what} {path}: {reason or error}; check the path") from error


def read_json(path: str | Path, what: str, remedy: str = "make it again", largest: int = LARGEST) -> Any:
    """The JSON object in a file, or one line that says what is wrong with it, and what to do."""
    raw = read_file(path, what, largest)
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise SlimrankError(f"{what} {path} is not JSON ({why}); {remedy}") from error
    if not isinstance(value, dict):
        raise SlimrankError(f"{what} {path} holds no JSON object; {remedy}")
    return value


def read_as(kind: type[T], value: Any, what: str, remedy: str = "make it again") -> T:
    """JSON as an object of a type, every field checked; raises SlimrankError, `what` (why); `remedy`, where it is none."""
    try:
        return msgspec.convert(value, kind)
    except (ValueError, RecursionError) as error:  # msgspec's own error is a ValueError
        raise SlimrankError(f"{what} ({' '.join(str(error).split())[:200]}); {remedy}") from error
