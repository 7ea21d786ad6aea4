"""Run commands in several processes each, as torchrun does, without its cost: one import of torch, then forks.

`python several.py JOBS.json`: a list of jobs, each a list of the words of one process. What process R of job J
printed is in J-R.out and J-R.err beside the file, its exit status in J-R.status. A process whose words are ["kill", ...] is
killed as soon as it is one of the job; one whose words are ["fail", ...] meets logits that are NaN.
"""

import json
import os
import signal
import socket
import sys
import traceback
from importlib import import_module
from pathlib import Path

from slimrank.cli import main
from slimrank.errors import SlimrankError
from slimrank.evaluate import accuracy
from slimrank.verbs import given

NEEDED = (  # by the commands, once: the processes are forks
    "torch.distributed.distributed_c10d", "torch.nn.parallel.distributed", "torch_pruning", "matplotlib.figure",
    "slimrank.compress.pipeline", "slimrank.evaluate.pages.plots", "sklearn.datasets",
    *(
        f"slimrank.compress.rankers.{name}"
        for name in ("car", "influential", "reconstruct", "sensitivity", "shapley", "switch", "torch_pruning_criteria")
    ),
)  # fmt: skip
for needed in NEEDED:
    import_module(needed)


def fail(_logits: object) -> None:
    raise SlimrankError("logits are NaN in this process alone")


def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def become(rank: int, count: int, place: int, words: list[str], into: Path) -> None:
    """Be one process of a job; never returns."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(place)}
    for stream, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(into.with_suffix(f".{end}"), os.O_WRONLY | os.O_CREAT), stream)
    status = 99
    try:
        if words[0] == "kill":
            given.agree = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        elif words[0] == "fail":
            accuracy._check_numbers = fail
        words = words[words[0] in ("kill", "fail") :]
        status = main(words)
    except SystemExit as usage:
        status = int(usage.code or 0)
    except BaseException:  # nothing may leave a forked copy of the tests' process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        into.with_suffix(".status").write_text(str(status))
        os._exit(0)


def run(jobs: list[list[list[str]]], folder: Path) -> None:
    for number, job in enumerate(jobs):
        place, children = port(), []
        for rank, words in enumerate(job):
            child = os.fork()
            if child == 0:
                signal.alarm(100)
                become(rank, len(job), place, words, folder / f"{number}-{rank}")
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    jobs = Path(sys.argv[1])
    run(json.loads(jobs.read_text()), jobs.parent)
