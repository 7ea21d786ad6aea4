"""How several processes, as torchrun starts them, become one job, and how it ends where one of them fails."""

import itertools
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from . import processes
from .errors import SlimrankError
from .processes import Job

NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = 120.0  # seconds that the processes have to find each other
LONGEST = timedelta(days=20)  # that one may work while the others wait; one that dies is told at once
ANSWER = 5.0  # seconds that another machine has to say that it lives
STREAMS: dict[int, int] = {}  # where a quiet process's output went before
NUMBER = itertools.count()  # of the jobs of this process


def several() -> bool:
    """Whether the environment says that other processes do this job, too. Raises SlimrankError where it makes no sense."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or text == "0":
        raise SlimrankError(f"WORLD_SIZE is {text!r} in the environment, must be a number of processes; unset it for one")
    return int(text) > 1


def hush() -> None:
    """Send what this process prints nowhere, from here on; what it says last is heard (`last_word`)."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stream not in STREAMS:
            STREAMS[stream] = os.dup(stream)
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _heard() -> None:
    sys.stderr.flush()
    for stream, before in STREAMS.items():
        os.dup2(before, stream)


def prepare() -> None:
    """Before torch is imported: of the processes on a machine one speaks until they are a job, and torch says less."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # not a line for every attempt to connect
        if os.environ.get("LOCAL_RANK", "0") != "0":
            hush()


def join(device: str) -> None:
    """Find the other processes; from then on they are one job, and all but the first are quiet.

    On `device` cuda each has the GPU of its local rank. Raises SlimrankError for a rendezvous that is not said, or where not
    all processes come.
    """
    rank, count = _environment()
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    backend = _gpu(device) if device.startswith("cuda") else "gloo"
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        reached, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=PATIENCE))))
        store = PrefixStore(f"slimrank {os.environ.get('TORCHELASTIC_RESTART_COUNT')} {next(NUMBER)}", reached)
        _all_here(store, rank, count)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=LONGEST)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SlimrankError(
            f"process {rank} of {count} found no others at {place} ({reason}); start all of them, as torchrun does"
        ) from error
    where: list[Any] = [None] * count
    dist.all_gather_object(where, (socket.gethostname(), os.getpid()))
    processes.begin(Job(rank, count, store, where))
    if rank:
        hush()


def _environment() -> tuple[int, int]:
    """Rank and number of processes, checked."""
    count = int(os.environ["WORLD_SIZE"])
    absent = [name for name in NEEDED if not os.environ.get(name)]
    if absent:
        raise SlimrankError(
            f"WORLD_SIZE is {count}, but the environment lacks {', '.join(absent)}, without which processes do not find each "
            f"other; start them with `torchrun --nproc-per-node {count} -m slimrank`, or unset WORLD_SIZE"
        )
    rank, port = os.environ["RANK"], os.environ["MASTER_PORT"]
    if not rank.isdecimal() or int(rank) >= count:
        raise SlimrankError(f"RANK is {rank!r} in the environment, must lie in 0..{count - 1} (WORLD_SIZE is {count})")
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SlimrankError(f"MASTER_PORT is {port!r} in the environment, must be a port, 1 to 65535")
    return int(rank), count


def _gpu(device: str) -> str:
    """Take the GPU of this process's local rank; the backends that work with it."""
    import torch

    if device != "cuda":
        raise SlimrankError(f"`device` is {device}, but each process takes a GPU of its own; say cuda")
    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if local >= torch.cuda.device_count():
        raise SlimrankError(
            f"process {local} of this machine has no GPU, there are {torch.cuda.device_count()}; start fewer processes"
        )
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


def _all_here(store: Any, rank: int, count: int) -> None:
    store.set(f"here {rank}", "")
    end = time.monotonic() + PATIENCE
    while missing := [other for other in range(count) if not store.check([f"here {other}"])]:
        if time.monotonic() > end:
            raise RuntimeError(f"process {missing[0]} did not come within {PATIENCE:.0f} s")
        time.sleep(0.05)


def leave() -> None:
    """End the job, when all processes have come to its end."""
    if processes.current() is not None:
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()
        processes.begin(None)


def last_word(error: BaseException, line: str, goes_on: str = "") -> str:
    """The line that this process prints at its end by `error`, which alone would be `line`; empty where another one speaks.

    Where a process has died, the first of those that live names it. `goes_on`: the command that takes the run up again.
    """
    job = processes.current()
    if job is None:
        return line
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of torchrun, which ends the others as well; this one is ending
    try:
        told = _told(job, error, line, goes_on)
        job.store.set(f"told {job.rank}", "")
        if not job.rank and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # it keeps the store, where others look
            others = range(1, job.count)
            _until(lambda: all(job.store.check([f"told {rank}"]) or _gone(job, rank) for rank in others), ANSWER)
    except RuntimeError:  # the store is gone, with the process that kept it
        told = f"{_died(job, 0, goes_on)}" if job.rank == 1 else ""
    if told:
        _heard()
    return told


def _told(job: Job, error: BaseException, line: str, goes_on: str) -> str:
    others = [rank for rank in range(job.count) if rank != job.rank]
    ours = not isinstance(error, (RuntimeError, KeyboardInterrupt)) or isinstance(error, SlimrankError)
    job.store.set(f"ended {job.rank}", line if ours else "")
    if ours:
        if job.rank:  # an error of all processes is told by the first
            _until(lambda: _word(job, 0) is not None, ANSWER)
            return "" if _word(job, 0) else f"{line} (process {job.rank} of {job.count})"
        return line
    patience = 1.0 if isinstance(error, KeyboardInterrupt) else ANSWER
    _until(lambda: any(_word(job, rank) or _gone(job, rank) for rank in others), patience)
    if any(_word(job, rank) for rank in others):
        return ""
    dead = [rank for rank in others if _gone(job, rank)]
    elsewhere = [rank for rank in others if job.where[rank][0] != job.where[job.rank][0]]
    if not dead and elsewhere and not isinstance(error, KeyboardInterrupt):
        _until(lambda: all(_word(job, rank) is not None for rank in elsewhere), ANSWER)
        dead = [rank for rank in elsewhere if _word(job, rank) is None]
    if not dead:
        return "" if job.rank else line
    living = min(rank for rank in range(job.count) if rank not in dead)
    return _died(job, dead[0], goes_on) if job.rank == living else ""


def _died(job: Job, rank: int, goes_on: str) -> str:
    host, pid = job.where[rank]
    again = f"`{goes_on}` goes on when run again, in any number of processes" if goes_on else "run it again"
    return f"error: process {rank} of {job.count} (pid {pid} on {host}) died, and the job with it; {again}"


def _word(job: Job, rank: int) -> str | None:
    """What a process said at its end; None where it has not ended."""
    key = f"ended {rank}"
    return job.store.get(key).decode() if job.store.check([key]) else None


def _gone(job: Job, rank: int) -> bool:
    """Whether a process of this machine is no more; one that waits for its parent to notice is none."""
    host, pid = job.where[rank]
    if host != job.where[job.rank][0] or _word(job, rank) is not None:
        return False
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except ProcessLookupError:
        return True
    except OSError:
        return False


def _until(holds: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (true := holds()) and time.monotonic() < end:
        time.sleep(0.05)
    return bool(true)
