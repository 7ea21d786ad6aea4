"""Several processes that do one job: each does a share of the work, and all have the results of one process.

Every process runs the same program on the same input. Work that divides is `shared` (batch by batch) or `dealt` (layer by
layer), and its results come back in the order in which one process would make them; what does not divide the first process
does `alone`, and the others receive what came of it. An error in a share is raised in every process. joining.py says how a job
begins and ends. In one process, and within a share, all of this is a plain loop.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from .errors import SlimrankError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 64  # results of each process that are sent together


@dataclass
class Job:
    """What this process knows of its job: its `rank` among `count` processes, and where each runs, (host, process id).

    `store`: what all of them read and write while they live. `within`: this process is doing a share.
    """

    rank: int
    count: int
    store: "Store"
    where: list[tuple[str, int]]
    within: bool = False
    deals: int = 0

    def gathered(self, own: T) -> list[T]:
        """What each process gives, in their order."""
        from torch.distributed import all_gather_object

        every: list[Any] = [None] * self.count
        all_gather_object(every, own)
        return every


class _Current:
    job: Job | None = None


def begin(job: Job | None) -> None:
    """Let this process belong to a job from now on; None: to none."""
    _Current.job = job


def current() -> Job | None:
    """The job of this process, whether or not it is doing a share; None where it is the only process."""
    return _Current.job


def together() -> Job | None:
    """The job whose processes are at this place together; None in one process, and within a share."""
    job = _Current.job
    return None if job is None or job.within else job


def count() -> int:
    """Processes that are at this place together."""
    job = together()
    return 1 if job is None else job.count


def first() -> bool:
    """Whether this process writes files and speaks."""
    return _Current.job is None or _Current.job.rank == 0


def agree(what: str, values: Mapping[str, str], remedy: str) -> None:
    """Raise SlimrankError, in every process, where one of them has other values than the first; `what`: in words."""
    job = together()
    if job is None:
        return
    everyone: list[Mapping[str, str]] = job.gathered(dict(values))
    for rank, theirs in enumerate(everyone):
        for name in dict.fromkeys((*everyone[0], *theirs)):
            ours, other = everyone[0].get(name, "nothing"), theirs.get(name, "nothing")
            if ours != other:
                raise SlimrankError(f"process {rank} has another {what} than process 0: {name} {other}, not {ours}; {remedy}")


def alone(work: Callable[[], R]) -> R:
    """Do `work` in the first process only; in the others, what it returned there. A failure is raised in all of them."""
    job = together()
    if job is None:
        return work()
    from torch.distributed import broadcast_object_list

    outcome = [_attempt(job, work) if job.rank == 0 else None]
    mine = outcome[0]
    if job.rank == 0:
        outcome = [_sendable(mine)]
    broadcast_object_list(outcome, 0)
    result: R = _result(mine if job.rank == 0 else outcome[0])
    return result


def shared(work: Callable[[T], R], items: Any, desc: str | None = None, at_once: int = AT_ONCE) -> Iterator[R]:
    """Yield `work` of each item, in order; of n processes each does every n-th and receives the results of the others.

    `items`: a sequence, or batches, of which every n-th can be taken by a slice. `at_once`: results of each process that
    are sent together, and held. `desc`: of a progress bar. Processes that are more than the items have nothing to do.
    """
    bar = _bar(desc)
    job = together()
    if job is None:
        yield from map(work, tqdm(items, **bar))
        return
    mine = iter(tqdm(items[job.rank :: job.count], **bar))
    for start in range(0, len(items), job.count * at_once):
        own = list(islice(_attempts(job, work, mine), at_once))
        turns = job.gathered([_sendable(outcome) for outcome in own])
        for number in range(min(job.count * at_once, len(items) - start)):
            turn, rank = divmod(number, job.count)
            yield _result(own[turn] if rank == job.rank else turns[rank][turn])


def dealt(work: Callable[[T], R], items: list[T], desc: str | None = None) -> list[R]:
    """Do `work` of each item; of several processes each takes the next item whenever it is ready. Results are in order.

    For few items that take long, and not equally long. `desc`: of a progress bar, where there is to be one.
    """
    bar = _bar(desc)
    job = together()
    if job is None:
        return [work(item) for item in tqdm(items, **bar)]
    own: dict[int, Any] = {}
    for number in tqdm(_drawn(job, len(items)), total=len(items), **bar):
        own[number] = _attempt(job, partial(work, items[number]))
        if isinstance(own[number], _Failed):
            break
    sent = {number: _sendable(outcome) for number, outcome in own.items()}
    every = {number: outcome for part in job.gathered(sent) for number, outcome in part.items()} | own
    return [_result(every[number]) for number in range(len(items))]


def _bar(desc: str | None) -> dict[str, Any]:
    return {"desc": desc, "leave": False, "disable": desc is None or None}


def _drawn(job: Job, n: int) -> Iterator[int]:
    """The numbers below `n` that fall to this process: the next one that nobody has, whenever it asks."""
    job.deals += 1
    while (number := job.store.add(f"deal {job.deals}", 1) - 1) < n:
        yield number


@dataclass(frozen=True)
class _Failed:
    error: Exception


def _attempt(job: Job, work: Callable[[], R]) -> R | _Failed:
    job.within = True
    try:
        return work()
    except Exception as error:  # whatever it is, it is raised again in every process
        return _Failed(error)
    finally:
        job.within = False


def _attempts(job: Job, work: Callable[[T], R], items: Iterator[T]) -> Iterator[R | _Failed]:
    """Outcomes of the items, up to the first failure: of the work, or of what reads the item."""

    def work_of_next() -> list[R]:
        return [work(item) for item in islice(items, 1)]

    while outcome := _attempt(job, work_of_next):
        if isinstance(outcome, _Failed):
            yield outcome
            return
        yield from outcome


def _sendable(outcome: Any) -> Any:
    """What other processes can be sent of an outcome: of an error that does not survive it, the text."""
    if not isinstance(outcome, _Failed):
        return outcome
    try:
        pickle.loads(pickle.dumps(outcome))
        return outcome
    except Exception:  # an error's class may raise anything when it is packed or unpacked
        return _Failed(RuntimeError(f"{type(outcome.error).__name__}: {outcome.error}"))


def _result(outcome: Any) -> Any:
    if isinstance(outcome, _Failed):
        raise outcome.error
    return outcome
