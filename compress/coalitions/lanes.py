"""Parts of the images side by side, a thread each: small layers share out worse among threads than images do."""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")
SOON = 0.2  # seconds within which the caller hears of an interrupt, which may not wake one who waits
_lane = threading.local()


class Stopped(Exception):
    """Another part has failed, or the run was interrupted."""


def side_by_side(work: Callable[[Part], Result], parts: Sequence[Part], lanes: int) -> list[Result]:
    """What `work` makes of each part, in order, without gradients; `lanes` run at a time, where these are several in one thread
    each.

    What is raised in a part, or in the caller meanwhile, ends the others at their next `give_way`.
    """
    if lanes == 1 or len(parts) == 1:
        with torch.no_grad():
            return [work(part) for part in parts]
    stop = threading.Event()

    def run(part: Part) -> Result:
        _lane.stop = stop
        give_way()
        with torch.no_grad():
            return work(part)

    pool = _pool(lanes)
    futures: list[Future[Result]] = []
    try:
        futures.extend(pool.submit(run, part) for part in parts)
        while (ended := wait(futures, SOON, FIRST_EXCEPTION)).not_done and not any(f.exception() for f in ended.done):
            pass
    finally:
        stop.set()
        wait(futures)
    for error in (future.exception() for future in futures):
        if error is not None and not isinstance(error, Stopped):
            raise error
    return [future.result() for future in futures]


def keep_freed_memory() -> None:
    """Let the C library keep what one layer frees for the next, instead of handing pages back and asking for them again, which
    can cost a seventh of the time: glibc keeps twice the largest block that was ever freed, up to this size."""
    torch.empty(2**25 - 2**16, dtype=torch.uint8)  # not touched, so it takes no memory


def give_way() -> None:
    """Called within a part now and then. Raises Stopped where nobody waits for its result any more."""
    stop = getattr(_lane, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that run PyTorch's operators alone."""
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "slimrank-lane", _alone)
    started = threading.Barrier(threads)
    wait([pool.submit(started.wait) for _ in range(threads)])
    torch.set_num_threads(own)  # of threads to come; that of running ones is their own
    return pool


def _alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # or the thread would take over, at its first operator, what others have set by then


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay behind
