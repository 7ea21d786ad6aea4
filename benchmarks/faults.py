"""Does a `compress` that was killed, or whose disk failed, come to the same result to the bit?

    python benchmarks/faults.py ../shared/checkpoints/resnet20-12fca82f.th --model resnet20-cifar --data folder:cifar10-small

Two runs, `--max-drop` and `--steps 2` (which exclude each other). `faults`: at every change that the run makes in a file
(create, write, chmod, fsync, rename, folders) a copy of it meets an error there, and another one a signal; each must end in one
line, with finished files as they were and nothing partial. `resumed`: the folder as a kill leaves it at every one of these
changes (one for each set of finished files, with what was half written) is gone on from. `killed`: SIGKILL at random moments,
again and again until a run gets to its end. `changes`: writes, fsyncs and renames below the folder that strace saw of the same
command, and the test layer. Files are compared by SHA-256, JSON without the clock's keys (tests/faults/forks.py: CLOCK).
"""

import argparse
import collections
import itertools
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rows import Rows

import slimrank.cli
import slimrank.compress.pipeline  # noqa: F401 (children are forked with everything imported)
from slimrank.evaluate.machine import machine
from slimrank.tests.faults.forks import ERRORS, Fault, forked, killed, resumed

RUNS = {"max-drop": ["--max-drop", "0.3"], "steps": ["--steps", "2", "--macs", "0.5"]}
CALLS = {"write": "write,pwrite64,writev,pwritev,sendfile,copy_file_range", "fsync": "fsync,fdatasync",
         "rename": "rename,renameat,renameat2"}  # fmt: skip


def faults(number: int, kind: str, path: str):
    """An error and a signal at each change; at removals none, for they are tolerated and signals wait: the run would go on."""
    if kind not in ("unlink", "rmdir"):
        yield Fault(error=ERRORS[number % len(ERRORS)])
        yield Fault(signal=(signal.SIGTERM, signal.SIGINT)[number % 2])


def seen_by_strace(words: list[str], folder: Path) -> dict[str, int]:
    """How many calls of each kind strace sees below DIR."""
    log, out = folder / "strace", folder / "traced"
    command = ["strace", "-f", "-y", "-e", f"trace={','.join(CALLS.values())}", "-o", log, sys.executable, "-m", "slimrank"]
    subprocess.run([*command, *words, "-o", out], check=True, capture_output=True)
    inside = [line for line in log.read_text(errors="replace").splitlines() if str(out) in line and " = -1 " not in line]
    return {
        kind: sum(bool(re.match(rf"\d+\s+({calls.replace(',', '|')})\(", line)) for line in inside)
        for kind, calls in CALLS.items()
    }


def trial(rows: Rows, name: str, words: list[str], kills: int, folder: Path) -> None:
    record = None

    def run_forked() -> dict:
        nonlocal record
        record = forked(words, folder, faults)
        kinds = collections.Counter(kind for kind, _ in record.events)
        ends = collections.Counter(end.kind for end in record.ends)
        return {
            "status": record.status, "changes": dict(kinds), "faults": dict(ends), "ended": len(record.ends),
            "signals": sum(end.fault.startswith("SIG") for end in record.ends),
            "wrong": record.wrong,
        }  # fmt: skip

    found = rows.row(f"{name}, faults", run_forked)
    if shutil.which("strace"):
        layer = {kind: found["changes"].get(kind, 0) for kind in CALLS}
        rows.row(f"{name}, changes", lambda: {"layer": layer, "strace": seen_by_strace(words, folder)})
    if f"{name}, resumed" not in rows or f"{name}, killed" not in rows:
        record = record or forked(words, folder, lambda *change: ())

    def run_resumed() -> dict:
        ends = [resumed(words, folder / "states" / state, folder).wrong(record.files) for state in record.states]
        return {"states": len(ends), "equal": ends.count(""), "wrong": [end for end in ends if end]}

    def run_killed() -> dict:
        began = time.monotonic()
        resumed(words, None, folder)
        whole, draw = time.monotonic() - began, random.Random(0)
        done, wrong, runs = 0, [], 0
        while done < kills:
            count, again = killed(words, folder, (draw.uniform(0, whole) for _ in itertools.count()))
            runs, done = runs + 1, done + count
            wrong += filter(None, [again.wrong(record.files)])
        return {"kills": done, "runs": runs, "equal": runs - len(wrong), "wrong": wrong, "seconds": round(whole, 1)}

    rows.row(f"{name}, resumed", run_resumed)
    rows.row(f"{name}, killed", run_killed)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("checkpoint")
    options.add_argument("--model")
    options.add_argument("--data", default="digits")
    options.add_argument("--limit", type=int, default=200)
    options.add_argument("--kills", type=int, default=50, help="of each of the two runs")
    options.add_argument("--name", default="faults", help="of the file in benchmarks/results")
    asked = options.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    words = ["compress", str(Path(asked.checkpoint).resolve()), "--data", asked.data, "--head", "linear", "--batch", "1"]
    words += [] if asked.model is None else ["--model", asked.model]
    words += ["--epochs", "1", "--lr", "0.01", "--limit", str(asked.limit)]
    rows = Rows(asked.name, None, processor=machine().processor, checkpoint=Path(asked.checkpoint).name)
    for name, budget in RUNS.items():
        folder = Path(tempfile.mkdtemp())  # a TemporaryDirectory would be removed by every child that ends
        trial(rows, name, [*words, *budget], asked.kills, folder.resolve())
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
