"""DIR of a `compress`: what its stages came to and left there, and the lock that keeps a second run out."""

import contextlib
import errno
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import SlimrankError
from ..files import read_json, ready, sweep, unread, unwritten, write_json, write_text
from ..processes import alone, first
from .stages.place import Place, difference

LEFT = {  # the files of each stage that later ones read, or users
    "baseline": ("stages/dense.onnx",), "rank": ("stages/scores.json",), "prune": ("stages/pruned.safetensors",),
    "finetune": ("stages/finetuned.safetensors",), "specialize": ("slim.safetensors",),
    "export": ("model.onnx", "model-float.onnx"),
}  # fmt: skip
RUNNING = ".running"  # names the process at work; where it is found though the folder is free, that process was killed
UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # of file systems that have no locks
KEPT = ("specialize", "export")  # whose files are the result: those of the others are for stages to come


@dataclass
class Folder:
    """DIR, opened for one checkpoint and its options (`asked`); nobody else can open it until it is closed.

    `done`: rows of finished stages by name, in their order. `data`: what the images were when the run began.
    """

    path: Path
    asked: Mapping[str, Any]
    lock: FileLock
    data: str = ""
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of what stages left
    taken_over: str = ""  # from a run that was killed, in words

    @classmethod
    def open(cls, path: Path, asked: Mapping[str, Any], data: str, stages: tuple[str, ...], checkpoint: Path) -> "Folder":
        """Take DIR, with the stages that are done there; those whose files are gone, and all after them, are not.

        Raises SlimrankError where another run is in it, where it is of another checkpoint, other options or images that have
        changed, where a file is not as its stage left it, and where the checkpoint is one of those that would be replaced.
        """
        if path.exists() and not path.is_dir():
            raise SlimrankError(f"cannot write into {path}: it is a file; name a folder with `out`")
        ready(path / "state.json")
        ready(path / "stages" / "state.json")
        folder = cls(path, asked, _locked(path), data)
        try:
            folder._take_over()
            folder._read(stages)
            if not folder.done:
                for name in (name for names in LEFT.values() for name in names):
                    unread(path / name, checkpoint)
        except BaseException:
            folder.close()
            raise
        return folder

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the folder to whoever comes next."""
        if first():
            with contextlib.suppress(OSError):
                (self.path / RUNNING).unlink()
        self.lock.release()

    @property
    def place(self) -> Place:
        return Place(self.path / "stages")

    @property
    def anew(self) -> str:
        return f"remove the folder {self.path} to start anew, or name another `out`"

    def _take_over(self) -> None:
        """Note who is at work; what a run that was killed was writing goes."""

        def take() -> str:
            killed = (self.path / RUNNING).exists()
            for folder in (self.path, self.path / "stages"):
                sweep(folder)
            return f"the run in {self.path}{_process(self.path)} was killed; going on from what it left" if killed else ""

        self.taken_over = alone(take)
        write_text(self.path / RUNNING, f"{os.getpid()}\n")

    def _read(self, stages: tuple[str, ...]) -> None:
        if not (self.path / "state.json").exists():
            return
        state = read_json(self.path / "state.json", "the state in", self.anew)
        old, rows, files, known = (state.get(key) for key in ("asked", "stages", "files", "rows"))
        named = isinstance(rows, list) and all(isinstance(row, dict) and row.get("name") in stages for row in rows)
        if not named or not all(isinstance(one, dict) for one in (old, files, known)):
            raise SlimrankError(f"{self.path / 'state.json'} is damaged; {self.anew}")
        if other := difference(old, self.asked):
            raise SlimrankError(f"{self.path} was made with {other}; name another `out`, or remove the folder")
        if state.get("data", self.data) != self.data:
            raise SlimrankError(f"the images behind `data` have changed since the run in {self.path} began; {self.anew}")
        if changed := next((row["name"] for row in rows if known.get(row["name"]) != _digest(row)), None):
            raise SlimrankError(f"{self.path / 'state.json'} is damaged ({changed} is not as it was left); {self.anew}")
        finished = len(rows) == len(stages)
        for row in rows:
            left = LEFT.get(row["name"], ()) if not finished or row["name"] in KEPT else ()
            names = [name for name in left if name in files]
            if not all((self.path / name).exists() for name in names):
                break
            for name in names:
                if _hashed(self.path / name) != files[name]:
                    raise SlimrankError(f"{self.path / name} is not as this run left it; {self.anew}")
            self.done[row["name"]] = row
        if finished and len(self.done) < len(stages):  # stages before them are wanted again, with their files
            self._forget_from_the_first_lost(files)
        self.files = {name: files[name] for stage in self.done for name in LEFT.get(stage, ()) if name in files}

    def _forget_from_the_first_lost(self, files: Mapping[str, str]) -> None:
        lost = False
        for stage in list(self.done):
            lost = lost or not all((self.path / name).exists() for name in LEFT.get(stage, ()) if name in files)
            if lost:
                del self.done[stage]

    def finish(self, stage: str, row: dict[str, Any]) -> None:
        """Note that a stage is done, with the files that it left."""
        self.done[stage] = row
        self.files |= {name: _hashed(self.path / name) for name in LEFT.get(stage, ()) if (self.path / name).exists()}
        write_json(
            self.path / "state.json",
            {
                "asked": self.asked,
                "stages": list(self.done.values()),
                "data": self.data,
                "files": self.files,
                "rows": {name: _digest(row) for name, row in self.done.items()},
            },
        )


def _locked(path: Path) -> FileLock:
    """Lock a folder, for all processes of a run; the system takes the lock back from a process that ends, however it ends."""
    lock = FileLock(path / ".lock", timeout=0)

    def take() -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # that a file stands in for a lock: nobody takes it from the dead
                lock.acquire()
        except Timeout as error:
            raise SlimrankError(
                f"another run is at work in {path}{_process(path)}; wait for it, or name another `out`"
            ) from error
        except (OSError, NotImplementedError, UserWarning) as error:
            if isinstance(error, OSError) and error.errno not in UNLOCKABLE:
                raise unwritten(path / ".lock", error) from error
            raise SlimrankError(
                f"{path} lies on a file system that cannot lock files ({error}); name an `out` on a local disk"
            ) from error

    alone(take)
    return lock


def _process(path: Path) -> str:
    """Who is, or was, at work in a folder, in brackets."""
    try:
        number = (path / RUNNING).read_text()[:20].strip()
    except (OSError, ValueError):
        number = ""
    return f" (process {number})" if number.isdigit() else ""


def _digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _hashed(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
