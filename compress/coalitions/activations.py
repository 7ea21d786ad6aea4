"""Images run once through the layers before a mask; what crosses over to the layers behind is kept while memory lasts."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...errors import SlimrankError
from .split import Split

CHUNK_BYTES = 6 * 2**20  # of the largest activation in one chunk for each thread, so that it stays in the processor's caches


@dataclass
class Memory:
    """Bytes that may still be kept."""

    free: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def claim(self, size: int) -> bool:
        """Take `size` bytes; False, and nothing taken, where fewer are left."""
        with self.lock:
            if size > self.free:
                return False
            self.free -= size
            return True


@dataclass
class Chunk:
    """Some images: the tensors that cross over to the layers behind the mask, and what has been derived from them."""

    crossing: tuple[Tensor, ...]
    labels: Tensor
    start: int | None = None  # number of its first image in the order of the data, where the images are in that order
    kept: bool = False  # in memory until the game ends, so that what is derived from it pays more than once
    contributions: Tensor | None = None  # of each unit to the reading layer's output, [units, images, ...]
    active: Tensor | None = None  # where a unit is not all zero, bool [units, images]
    parts: "list[Chunk]" = field(default_factory=list)  # its images again, for a thread each

    def __len__(self) -> int:
        return len(self.labels)

    def cut(self, count: int) -> "list[Chunk]":
        """The images in `count` parts of one size, or as many as there are images; the same ones whenever it is called."""
        count = min(count, len(self))
        if count > 1 and len(self.parts) != count:
            each = [torch.tensor_split(tensor, count) for tensor in (self.labels, *self.crossing)]
            self.parts = [Chunk(tuple(crossing), labels, kept=self.kept) for labels, *crossing in zip(*each, strict=True)]
        return self.parts if count > 1 else [self]


@dataclass
class Relay:
    """What games of one network on the same images hand on, each to the next.

    `chunks`: what crossed over at the last game's mask, if it kept all of it, `names` in the graph; `rows`: images a chunk.
    `logits`: of the whole network, by first image and number of images.
    """

    names: tuple[str, ...] = ()
    chunks: list[Chunk] = field(default_factory=list)
    rows: int | None = None
    logits: dict[tuple[int, int], Tensor] = field(default_factory=dict)


class Activations:
    """All images of `batches` in front of the mask, in chunks of `rows`; those that do not fit `memory` are run again.

    `relay`: the game before, whose activations are run on where this mask lies behind that one's; what is kept here is left
    there. `complete`: every chunk is kept. `class_images`: int64 [classes]. Raises SlimrankError for no images, and where the
    model's outputs or the labels are not `classes`.
    """

    def __init__(
        self, split: Split, batches: Iterable[tuple[Tensor, Tensor]], classes: int, memory: Memory, dtype: torch.dtype,
        relay: Relay,
    ):  # fmt: skip
        self.split, self.batches, self.classes, self.memory, self.dtype = split, batches, classes, memory, dtype
        self.rows = relay.rows = relay.rows or self._rows_that_fit_the_cache()
        self.kept: list[Chunk] = []
        self.class_images = torch.zeros(classes, dtype=torch.int64)
        self.complete = self._fill(relay)

    def chunks(self) -> Iterator[Chunk]:
        """All images; chunks that are not kept are computed again."""
        yield from self.kept
        if not self.complete:
            yield from self._compute(skip=len(self.kept))

    @torch.no_grad()
    def hard_first(self) -> None:
        """Put the images with the smallest margin first: they decide which coalition loses. Needs all of them kept."""
        self.split.scale(None)
        margins = []
        for chunk in self.kept:
            margins.append(margins_of(self.split.after(*chunk.crossing), chunk.labels))
        order = torch.cat(margins).argsort()
        columns = [torch.cat(column) for column in zip(*(chunk.crossing for chunk in self.kept), strict=True)]
        labels = torch.cat([chunk.labels for chunk in self.kept])
        self.kept = [
            Chunk(tuple(column[images] for column in columns), labels[images], kept=True)
            for images in torch.split(order, self.rows)
        ]

    @torch.no_grad()
    def _rows_that_fit_the_cache(self) -> int:
        """Images a chunk, from a trial run of at most seven, which also checks the number of outputs."""
        first = next(iter(self.batches), None)
        if first is None or len(first[1]) == 0:
            raise SlimrankError("no images to score filters on; check `data` and `limit`")
        images, labels = (part[:7] for part in first)
        largest = _LargestActivation(len(labels))
        with largest:
            chunk = self._before_mask(images, labels)
            logits = self.split.after(*chunk.crossing)
        if logits.shape[1] != self.classes:
            raise SlimrankError(f"the model has {logits.shape[1]} outputs, the data {self.classes} classes; they must match")
        return max(8, min(4096, CHUNK_BYTES * torch.get_num_threads() // largest.bytes))

    def _fill(self, relay: Relay) -> bool:
        """Count the images and keep chunks while memory lasts; True where all are kept."""
        complete = True
        onward = self.split.onward(relay.names) if relay.names else None
        for chunk in self._compute() if onward is None else self._run_on(relay, onward):
            if len(chunk.labels) and (int(chunk.labels.max()) >= self.classes or int(chunk.labels.min()) < 0):
                raise SlimrankError(f"label {int(chunk.labels.max())} in the data, the model has {self.classes} classes")
            self.class_images += torch.bincount(chunk.labels.cpu(), minlength=self.classes)
            complete = complete and self.memory.claim(sum(t.numel() * t.element_size() for t in chunk.crossing))
            if complete:
                chunk.kept = True
                self.kept.append(chunk)
        relay.names = self.split.crossing if complete else ()
        relay.chunks = [Chunk(chunk.crossing, chunk.labels, chunk.start) for chunk in self.kept] if relay.names else []
        return complete

    @torch.no_grad()
    def _run_on(self, relay: Relay, onward: Callable[..., tuple[Tensor, ...]]) -> Iterator[Chunk]:
        """The chunks of the game before, run from its mask to this one's; they are let go of one by one."""
        while relay.chunks:
            chunk = relay.chunks.pop(0)
            yield Chunk(tuple(onward(*chunk.crossing)), chunk.labels, chunk.start)

    def _compute(self, skip: int = 0) -> Iterator[Chunk]:
        """Chunks of `rows` images each (the last may be smaller), without the first `skip`."""
        pending: list[tuple[Tensor, Tensor]] = []
        start = 0
        for images, labels in self.batches:
            pending.append((images, labels))
            while sum(len(batch_labels) for _, batch_labels in pending) >= self.rows:
                x, y = (torch.cat(both) for both in zip(*pending, strict=True))
                pending = [(x[self.rows :], y[self.rows :])]
                if skip <= 0:
                    yield self._before_mask(x[: self.rows], y[: self.rows], start)
                skip -= 1
                start += self.rows
        if pending and len(pending[0][1]) and skip <= 0:
            x, y = (torch.cat(both) for both in zip(*pending, strict=True))
            yield self._before_mask(x, y, start)

    def _before_mask(self, images: Tensor, labels: Tensor, start: int = 0) -> Chunk:
        with torch.no_grad():
            images = images.to(self.dtype)
            if images.dim() == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            return Chunk(tuple(self.split.before(images)), labels, start)


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much each image's label is ahead of all other classes: [..., images] for logits [..., images, classes]."""
    own = labels.expand(logits.shape[:-1])[..., None]
    return (logits.gather(-1, own) - logits.scatter(-1, own, -torch.inf).amax(-1, keepdim=True))[..., 0]


class _LargestActivation(TorchDispatchMode):
    """Within the context, the largest tensor that an operation makes of `images` images: `bytes`, of one image."""

    def __init__(self, images: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.images, self.bytes = images, 1

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() and len(out) == self.images:
            self.bytes = max(self.bytes, out.numel() * out.element_size() // self.images)
        return out
