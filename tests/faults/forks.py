"""A run that is forked wherever it changes a file: the child meets a fault there and ends as it may, the run goes on.

So every fault costs what its end costs, and all of them see one and the same run. Folders are remembered as they were and put
back by hard links: what a child renames or removes is back in place when the run goes on, open files and locks included.
"""

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .layer import install

SECONDS = 900  # of a run, before it counts as hung
TEMPORARY = re.compile(r"^\.(?!lock$|running$)")
CLOCK = {  # keys of JSON, at any depth, whose values are of the clock
    "seconds", "latency", "results", "speedups", "table", "remarks", "machine", "mean_ms", "rows", "report",
}  # fmt: skip
TIMED = re.compile(r"\d+(\.\d+)?(?= s\b)|\d+\.\d+x")  # in texts
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT)


@dataclass(frozen=True)
class Fault:
    """What a child meets: an errno, or a signal."""

    error: int = 0
    signal: int = 0

    @property
    def name(self) -> str:
        return errno.errorcode[self.error] if self.error else signal.Signals(self.signal).name


@dataclass(frozen=True)
class End:
    """How a child ended. `before`: the files when it met the fault; `after`: what it left; both without temporary ones."""

    number: int
    kind: str
    path: str
    fault: str
    status: int
    said: str
    before: dict[str, str]
    after: dict[str, str]
    leftovers: list[str]

    def wrong(self, whole: list[list[str]]) -> str:
        """What is wrong with it, empty where nothing is: one line, finished files as they were, nothing temporary.

        A signal may wait until a file or a stage is finished. `whole`: every file that the undisturbed run finished, with its
        SHA-256.
        """
        lines = self.said.strip().splitlines()
        expected = {"SIGTERM": (143, "error: terminated"), "SIGINT": (130, "error: interrupted")}
        status, begins = expected.get(self.fault, (1, "error: "))
        errors = [line for line in lines if line.startswith("error: ")]
        alone = lines == errors or self.fault in expected
        whys = {
            f"status {self.status}": self.status != status,
            "not one line": not (alone and len(errors) == 1 and lines[-1].startswith(begins)),
            "a defect": "defect" in self.said or "Traceback" in self.said,
            "files changed": self.before != self.after and not self.fault.startswith("SIG"),
            "files damaged": any([*item] not in whole for item in self.after.items()),
            f"left {self.leftovers}": bool(self.leftovers),
        }
        why = "; ".join(why for why, holds in whys.items() if holds)
        return why and f"{self.fault} at {self.kind} of {self.path}: {why}; it said {self.said[-300:]!r}"


@dataclass(frozen=True)
class Again:
    """How a run ended that went on from what was left."""

    status: int
    said: str
    files: dict[str, str]
    leftovers: list[str]

    def wrong(self, undisturbed: dict[str, str]) -> str:
        """What differs from the undisturbed run, empty where nothing does."""
        differ = [name for name in {*self.files, *undisturbed} if self.files.get(name) != undisturbed.get(name)]
        if self.status or differ or self.leftovers:
            return f"status {self.status}, differs in {differ}, left {self.leftovers}; it said {self.said[-300:]!r}"
        return ""


@dataclass
class Place:
    """Where a run works: DIR as `out`, temporary files beside it."""

    root: Path

    def __post_init__(self) -> None:
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)

    @property
    def out(self) -> Path:
        return self.root / "out"


@dataclass
class Record:
    """What a run that was forked came to. `states`: folders of what a kill leaves, one for each set of finished files."""

    status: int = -1
    said: str = ""
    ends: list[End] = field(default_factory=list)
    events: list[list[str]] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    whole: list[list[str]] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """What is wrong with the ends of children."""
        return [why for end in self.ends if (why := end.wrong(self.whole))]


def forked(
    words: list[str], folder: Path, faults: Callable[[int, str, str], Iterable[Fault]], keep_states: bool = True
) -> Record:
    """Run `words` with DIR in a child that forks at its N-th change of a file, for each of `faults(N, kind, path)`.

    The lock of DIR is left out: it knows that it was forked. A child that goes on in spite of its fault must not train, once
    the run has trained: PyTorch refuses.
    """
    place, record = Place(folder / "run"), Record()

    def run() -> int:
        run_pid, counted, told = os.getpid(), itertools.count(), False

        def tell(kind: str, path: str) -> None:
            nonlocal told
            shown = _shown(path, place.root)
            if told or os.getpid() != run_pid or shown in ("out", "out/.lock"):
                return
            told = True
            number = next(counted)
            record.events.append([kind, shown])
            if keep_states and kind in ("write", "rename"):  # there is something half done beside what is finished
                _remember(place, folder / "states", record)
            for fault in faults(number, kind, shown):
                with _put_back(place.root):
                    before = tree(place.out)
                    pid, log = _fork(folder)
                    if not pid:
                        if fault.error:
                            raise OSError(fault.error, os.strerror(fault.error), path if kind != "write" else None)
                        os.kill(os.getpid(), fault.signal)
                        return
                    status = waited(pid)
                    after = tree(place.out)
                    record.ends.append(End(
                        number, kind, shown, fault.name, status, log.read_text(errors="replace"), before, after,
                        leftovers(place.root),
                    ))  # fmt: skip
            told = False

        install(place.root, tell)
        status = _main([*words, "-o", str(place.out)], place)
        if os.getpid() == run_pid:
            told = True
            record.status, record.files = status, tree(place.out)
            _finished(record, record.files)
            (folder / "record.json").write_text(json.dumps(asdict(record)))
        return status

    pid, log = _fork(folder)
    if not pid:
        _ended(run)
    status = waited(pid)
    if not (folder / "record.json").exists():
        raise RuntimeError(f"the run ended with {status}: {log.read_text()[-2000:]}")
    told = json.loads((folder / "record.json").read_text())
    found = Record(**{**told, "ends": [End(**end) for end in told["ends"]]})
    found.said = log.read_text()
    return found


def resumed(words: list[str], state: Path | None, folder: Path) -> Again:
    """Run `words` on a copy of DIR as a kill left it, or on none."""
    root = folder / "again"
    shutil.rmtree(root, ignore_errors=True)
    place = Place(root)
    if state is not None:
        shutil.copytree(state, place.out)
    pid, log = started([*words, "-o", str(place.out)], place, folder)
    status = waited(pid)
    return Again(status, log.read_text(errors="replace"), tree(place.out), leftovers(place.out))


def killed(words: list[str], folder: Path, moments: Iterator[float]) -> tuple[int, Again]:
    """Run `words` again and again, each time killed after the next of `moments` seconds, until a run ends: kills, its end."""
    shutil.rmtree(folder / "killed", ignore_errors=True)
    place, kills = Place(folder / "killed"), 0
    while True:
        pid, log = started([*words, "-o", str(place.out)], place, folder)
        status = waited(pid, next(moments))
        if status == -signal.SIGKILL:
            kills += 1
            continue
        return kills, Again(status, log.read_text(errors="replace"), tree(place.out), leftovers(place.out))


def started(words: list[str], place: Place, folder: Path) -> tuple[int, Path]:
    """Run `words` in a child that leads a group of processes: its number, and the file in `folder` for what it says."""
    pid, log = _fork(folder)
    if not pid:
        os.setsid()
        _ended(lambda: _main(words, place))
    return pid, log


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that is not temporary; of JSON and texts, without what the clock says."""
    if not folder.exists():
        return {}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    parts = {path: path.relative_to(folder).parts for path in files}
    return {
        "/".join(parts[path]): hashlib.sha256(_timeless(path)).hexdigest()[:16]
        for path in files
        if not any(TEMPORARY.match(part) for part in parts[path]) and path.name not in (".running", ".lock")
    }


def leftovers(root: Path) -> list[str]:
    """Temporary files and folders that are still there."""
    found = [path for path in root.rglob("*") if TEMPORARY.match(path.name)] if root.exists() else []
    return [_shown(str(path), root) for path in [*found, *(root / "tmp").glob("*")]]


def _timeless(path: Path) -> bytes:
    if path.suffix not in (".json", ".html"):
        return path.read_bytes()
    if path.suffix == ".html":  # made of report.json alone
        return path.read_bytes()[-9:]
    return json.dumps(_without_clock(json.loads(path.read_bytes())), sort_keys=True).encode()


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("name") == "bench":
            return "bench"
        return {
            key: _without_clock(part) for key, part in value.items() if key not in CLOCK and not key.endswith("scores.json")
        }
    if isinstance(value, list):
        return [_without_clock(part) for part in value]
    return TIMED.sub("", value) if isinstance(value, str) else value


def _shown(path: str, root: Path) -> str:
    """A path without what differs between runs: the folder, and names of temporary files."""
    name = os.path.relpath(path, os.path.realpath(root))
    return re.sub(r"(^|/)\.([\w.-]+?)\.(?:\d+|[a-z0-9_]{8})(?=\.tmp|\.probe|/|$)", r"\1.\2", name)


@contextmanager
def _put_back(root: Path) -> Iterator[None]:
    kept = root.with_name("kept")
    shutil.copytree(root, kept, copy_function=os.link)
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == pid:
            shutil.rmtree(root)
            kept.rename(root)


def _remember(place: Place, states: Path, record: Record) -> None:
    """Keep a copy of DIR as a kill would leave it now, in the place of the one with the same finished files."""
    if not place.out.exists():
        return
    files = tree(place.out)
    _finished(record, files)
    name = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    if name not in record.states:
        record.states.append(name)
    shutil.rmtree(states / name, ignore_errors=True)
    shutil.copytree(place.out, states / name)


def _finished(record: Record, files: dict[str, str]) -> None:
    record.whole += [[*item] for item in files.items() if [*item] not in record.whole]


def _main(words: list[str], place: Place) -> int:
    from slimrank import __main__

    tempfile.tempdir = str(place.root / "tmp")
    sys.argv = ["slimrank", *words]
    return __main__.main()


def _fork(folder: Path) -> tuple[int, Path]:
    """0 in the child, whose output goes to the file."""
    log = folder / f"said-{os.getpid()}"
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with open(log, "wb") as file:
        pid = os.fork()
        if not pid:
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(file.fileno(), number)
                setattr(sys, name, os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False))
    return pid, log


def _ended(run: Callable[[], int]) -> None:
    """End this process with the status of a run."""
    status = 99
    try:
        status = run()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 98
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _status(pid: int, how: int = 0) -> int | None:
    """The exit status of a child, a signal's number below zero; None while it runs."""
    found, status = os.waitpid(pid, how)
    return os.waitstatus_to_exitcode(status) if found else None


def waited(pid: int, seconds: float = SECONDS) -> int:
    """The exit status of a child, which is killed where it takes longer."""
    end = time.monotonic() + seconds
    while (status := _status(pid, os.WNOHANG)) is None:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            return _status(pid) or 0
        time.sleep(0.002)
    return status
