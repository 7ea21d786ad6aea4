"""A layer between Python and the files below a folder: it tells of every change, just before the system is asked for it.

What is told: `open` (of a file to be written), `write` (when half of it is done), `fsync`, `rename`, `mkdir`, `unlink`, `rmdir`
and `chmod`. Whoever is told may raise, and the change has failed, or end the process. Writes by C and C++ are not seen:
benchmarks/faults.py compares with what strace sees.
"""

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tell = Callable[[str, str], None]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def install(root: Path, tell: Tell) -> None:
    """Tell of changes below `root`, an absolute path, from now on; for the rest of the process."""
    inside = f"{os.path.realpath(root)}{os.sep}"

    def where(path: Any, dir_fd: int | None = None) -> str:
        """The absolute path where it lies below the folder, else nothing."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        folder = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        full = os.path.normpath(os.path.join(folder, os.fsdecode(path)))
        return full if full.startswith(inside) else ""

    def telling(kind: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def told(path: Any, *more: Any, **named: Any) -> Any:
            full = where(path, named.get("src_dir_fd", named.get("dir_fd")))
            if full and not (kind == "mkdir" and os.path.isdir(full)):
                tell(kind, full)
            return change(path, *more, **named)

        return told

    class Told(io.FileIO):
        """A file of which every write is told when half of it is done."""

        def write(self, data: Any, /) -> int:
            view = memoryview(data).cast("B")
            done = super().write(view[: len(view) // 2])
            place = self.tell()
            tell("write", str(self.name))
            self.truncate(place)  # a child that was told may have written on
            self.seek(place)
            return done + super().write(view[done:])

    plain_open, plain_os_open = io.open, os.open

    def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *more: Any, **named: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or not (full := where(file)):
            return plain_open(file, mode, buffering, encoding, *more, **named)
        tell("open", full)
        raw = Told(full, mode.replace("b", "").replace("t", ""))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, *more, **named)

    def os_opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & WRITES and (full := where(path, named.get("dir_fd"))):
            tell("open", full)
        return plain_os_open(path, flags, *more, **named)

    builtins.open = io.open = opened  # type: ignore[assignment]
    os.open = os_opened
    for kind, names in {
        "fsync": ("fsync", "fdatasync"), "rename": ("rename", "replace"), "mkdir": ("mkdir",), "unlink": ("unlink", "remove"),
        "rmdir": ("rmdir",), "chmod": ("chmod",),
    }.items():  # fmt: skip
        for name in names:
            setattr(os, name, telling(kind, getattr(os, name)))
