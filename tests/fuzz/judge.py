"""Run cases and judge how each ends: read, refused in one line, or in a way that no file may bring about."""

import contextlib
import faulthandler
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import SlimrankError
from .formats import FORMATS

SECONDS = 20
MEMORY = 2 * 2**30  # bytes more than there were
LINE = 2000  # characters of an error
ACTS = ("subprocess.Popen", "os.exec", "os.system", "os.posix_spawn", "socket.connect", "socket.getaddrinfo", "urllib.Request")
_seen: list[str] = []
_watching: list[bool] = []


class Hung(BaseException):
    """A case that takes longer than SECONDS; not an Exception, so that nothing takes it for an error of the file."""


def _watch(event: str, _arguments: tuple[Any, ...]) -> None:
    if _watching and event in ACTS:
        _seen.append(event)


sys.addaudithook(_watch)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Within the context no case hangs, and none takes more than MEMORY of address space."""

    def hung(_signal: int, _frame: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, hung)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def ending(name: str, seed: int, keep: Path | None = None) -> str:
    """How slimrank ends on one case: `read`, `refused`, or what is wrong. `keep`: where a case that is wrong is left."""
    folder = Path(tempfile.mkdtemp(prefix="slimrank-fuzz-"))
    rng = random.Random(f"{name} {seed}")
    one = FORMATS[name]
    one.write(folder, rng)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    _seen.clear()
    try:
        with warnings.catch_warnings(), limits():
            warnings.simplefilter("ignore")
            _watching.append(True)
            one.read(folder)
        told = "read"
    except SlimrankError as error:
        told = "refused" if len(str(error)) < LINE else f"a line of {len(str(error)):,} characters: {str(error)[:80]}"
    except Hung:
        told = f"hung for {SECONDS} s"
    except MemoryError:
        told = "took too much memory"
    except BaseException as error:
        told = f"{type(error).__name__}: {str(error)[:100]}"
    finally:
        _watching.clear()
    changed = [path.name for path, content in files.items() if not path.exists() or path.read_bytes() != content]
    if _seen:
        told = f"acted: {_seen[0]}"
    elif changed:
        told = f"changed {changed[0]}"
    if told not in ("read", "refused") and keep is not None:
        shutil.copytree(folder, keep / f"{name}-{seed}", dirs_exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return told


def count(name: str, seeds: range, keep: Path | None = None) -> dict[str, Any]:
    """How often the cases of a format end in which way, the seeds of those that are wrong, seconds and peak memory."""
    faulthandler.enable()
    began, endings, wrong = time.perf_counter(), Counter[str](), []
    slowest = 0.0
    for seed in seeds:
        at = time.perf_counter()
        told = ending(name, seed, keep)
        slowest = max(slowest, time.perf_counter() - at)
        endings[told if told in ("read", "refused") else "wrong"] += 1
        if told not in ("read", "refused"):
            wrong.append([seed, told])
    return {
        "format": name, "cases": len(seeds), "read": endings["read"], "refused": endings["refused"], "wrong": wrong,
        "slowest_s": round(slowest, 2), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
