"""Decode batches in worker processes. What comes out is the same for any number of them."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import SlimrankError

Batch = tuple[list[int], list[int] | None]  # positions of images, and a seed for each where they are cropped at random
MAX_WORKERS = 256
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Decoding(Dataset[Tensor | str]):
    """Batches in, their pixels out; an error's text where a picture cannot be read.

    An exception that leaves a worker comes back with the worker's traceback for a message.
    """

    def __init__(self, read: Callable[[Batch], Tensor]):
        self.read = read

    def __getitem__(self, batch: Batch) -> Tensor | str:
        try:
            return self.read(batch)
        except SlimrankError as error:
            return str(error)


def decoded(read: Callable[[Batch], Tensor], batches: Sequence[Batch], workers: int) -> Iterator[Tensor]:
    """The pixels of each batch, in order, as `read` gives them in one of `workers` processes (0: in this one).

    Two batches a worker lie ready. Raises SlimrankError for what `read` raises, and where a worker dies.
    """
    if not workers:
        yield from map(read, batches)
        return
    loader = DataLoader(
        Decoding(read), batch_size=None, sampler=batches, num_workers=workers, collate_fn=_as_it_is,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # else it draws from the global one, which dropout draws from
    )  # fmt: skip
    running = _started(loader)
    while True:
        try:
            pixels = next(running, None)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise SlimrankError(
                f"a process that decodes images died ({reason}); take fewer `workers`: memory, or /dev/shm, may be too small"
            ) from error
        if pixels is None:
            return
        if isinstance(pixels, str):
            raise SlimrankError(pixels)
        yield pixels


def _started(loader: Iterable[Any]) -> Iterator[Any]:
    """Start the processes; from their first moment they leave Ctrl-C to this one, which ends them."""
    own = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, own)


def _leave_signals(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _as_it_is(batch: Any) -> Any:
    return batch
