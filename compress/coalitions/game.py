"""Accuracy of many filter subsets (coalitions) of one layer, without rerunning what did not change.

A coalition is a row of booleans, one for each unit of a layer's group: the units that are present; the others read as zero
where `masked` zeroes them (layers.py), so a count is the count of the network that surgery would leave. What makes it fast:

- the network before the filters runs once, and what crosses over is kept while `memory` lasts (split.py);
- BatchNorm is folded, activations are channels last, batches fit the caches;
- where one conv or linear layer reads the filters, its output is linear in them: each unit's share is computed once, and a
  coalition that differs from the one before it by one unit costs one addition, then the layers behind;
- an image on which a unit is silent (all zero) keeps its decision when that unit goes;
- a coalition that can no longer win is dropped (`floor`), the images that decide it first (`hard_first`);
- coalitions whose layers behind are small run together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...errors import SlimrankError
from ..channels.groups import ChannelMap
from . import MEMORY
from .split import split

CACHE = 6 * 2**20  # bytes of the largest activation in one batch
RESTART = 256  # coalitions after which a running sum is taken anew
ROWS = 1024  # coalitions whose decisions are counted at once
SILENT = 0.8  # share of images on which a unit must be heard for the others to be worth leaving out


@dataclass(frozen=True)
class Outcome:
    """What `play` counts: images decided rightly, [coalitions, classes] int64; the summed log-likelihood, [coalitions]
    float64, where asked for; which coalitions were dropped on the way (their counts stop there), and how many images each
    could have reached, int64 [coalitions]."""

    by_class: Tensor
    likelihood: Tensor | None
    dropped: Tensor
    most: Tensor

    @property
    def correct(self) -> Tensor:
        """int64 [coalitions]."""
        return self.by_class.sum(1)


@dataclass
class Chunk:
    """Some images: what crosses over to the layers behind the filters, and what has been derived from it."""

    crossing: tuple[Tensor, ...]
    labels: Tensor
    parts: Tensor | None = None  # each unit's share of the reading layer's output, [units, images, ...]
    active: Tensor | None = None  # where a unit is not all zero, bool [units, images]

    def __len__(self) -> int:
        return len(self.labels)


class Coalitions:
    """The game of one layer on the images of `batches` (an iterable of (images, labels), which is read again where `memory`,
    in bytes, does not hold what it made).

    `layer`: any member of a group, or the classifier's name for the features that it alone reads. `evaluations` counts
    coalitions, each over all images; `passes` counts the coalition-image pairs that were really run. `split.whole`: this
    network could not be split, and every coalition runs all of it. Raises SlimrankError for an unknown layer, for no images
    and for images of one class only.
    """

    def __init__(
        self,
        model: nn.Module,
        channels: ChannelMap,
        layer: str,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        classes: int,
        memory: int = MEMORY,
        dtype: torch.dtype = torch.float32,
        hard_first: bool = False,
    ):
        if memory < 0:
            raise SlimrankError(f"--memory is {memory}, must be 0 bytes or more")
        self.classes, self.dtype, self.batches = classes, dtype, batches
        self.split = split(model, channels, layer, dtype)
        self.n = self.split.players
        why = self.split.whole
        self.notes = [f"{layer}: the network cannot be split here ({why}); every coalition runs all of it"] if why else []
        self.evaluations = self.passes = self.plays = 0
        self.free = memory
        self.cache: list[Chunk] = []
        self.rows, self.linear, self.cheap = 1, self.split.linear, False
        self._plan()
        self.class_images = torch.zeros(classes, dtype=torch.int64)
        self.cached = self._fill()
        self.images = int(self.class_images.sum())
        if self.images == 0:
            raise SlimrankError("no images to score filters on; check --data and --limit")
        if classes > 1 and int((self.class_images > 0).sum()) == 1:
            only = int(self.class_images.argmax())
            raise SlimrankError(f"all images ({self.images}) are of class {only}: accuracy says nothing there; raise --limit")
        if hard_first and self.cached and 2 * self.free >= memory:  # sorting needs a copy
            self._hard_first()

    # -- counting ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def play(self, masks: Tensor, *, base: Tensor | None = None, likelihood: bool = False, floor: int | None = None) -> Outcome:
        """Count the images that each coalition decides rightly. `masks`: bool [coalitions, units].

        `base` (bool [units]): a coalition near all of `masks`; each is then derived from it, else from the row before it.
        `floor`: a coalition is dropped once it cannot reach this many correct images.
        """
        masks = masks.bool().cpu()
        left = self.images
        by_class = torch.zeros(len(masks), self.classes, dtype=torch.int64)
        logs = torch.zeros(len(masks), dtype=torch.float64)
        alive = torch.ones(len(masks), dtype=torch.bool)
        most = torch.full((len(masks),), self.images)
        self.evaluations += len(masks)
        self.plays += 1
        for chunk in self.chunks():
            left -= len(chunk)
            onehot = F.one_hot(chunk.labels, self.classes).float()
            for rows in alive.nonzero().flatten().split(ROWS):
                done = 0
                hits = torch.empty(len(rows), len(chunk), device=chunk.labels.device)
                for logits in self._logits(chunk, masks[rows], base):
                    some = slice(done, done + len(logits))
                    hits[some] = logits.argmax(2) == chunk.labels
                    if likelihood:
                        labels = chunk.labels.expand(len(logits), -1)
                        lost = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
                        logs[rows[some]] -= lost.view(len(logits), -1).double().sum(1).cpu()
                    done = some.stop
                by_class[rows] += (hits @ onehot).round().long().cpu()
            most[alive] = by_class[alive].sum(1) + left
            if floor is not None:
                alive &= most >= floor
                if not bool(alive.any()):
                    break
        return Outcome(by_class, logs if likelihood else None, ~alive, most)

    def without_each(self, base: Tensor, units: Sequence[int], **options: Any) -> Outcome:
        """`play` for the coalitions that lack one of `units` each, beside what `base` lacks."""
        masks = base.bool().cpu().repeat(len(units), 1)
        masks[torch.arange(len(units)), torch.tensor(units, dtype=torch.long)] = False
        return self.play(masks, base=base.bool().cpu(), **options)

    # -- logits of coalitions, one chunk of images -------------------------------------------------------------------

    def _logits(self, chunk: Chunk, masks: Tensor, base: Tensor | None) -> Iterator[Tensor]:
        """[some coalitions, images, classes], in the order of `masks`."""
        if not self.linear:
            for mask in masks:
                self.split.scale(mask.to(chunk.labels.device, self.dtype))
                self.passes += len(chunk)
                yield self.split.after(*chunk.crossing)[None]
            return
        others, tail = chunk.crossing[1:], self.split.tail
        assert tail is not None
        gathered: list[Tensor] = []  # outputs of the reading layer, run together where they are small
        most = 1
        logits0: Tensor | None = None  # those of the base
        for z, some in self._outputs(chunk, masks, base):
            if some is None and not others:
                most = max(1, CACHE // (z.numel() * z.element_size()))
                gathered.append(z.clone() if most > 1 else z)
            if gathered and (some is not None or len(gathered) >= most):
                yield self._together(gathered)
                gathered = []
            if some is not None and base is not None:  # the other images decide as they do for the base
                logits0 = tail(self._read_by(chunk.crossing[0], base), *others) if logits0 is None else logits0
                logits = logits0.clone()
                if len(some):
                    logits[some] = tail(z, *(o[some] for o in others))
                yield logits[None]
            elif others:
                yield tail(z, *others)[None]
            self.passes += len(z)
        if gathered:
            yield self._together(gathered)

    def _together(self, outputs: list[Tensor]) -> Tensor:
        assert self.split.tail is not None
        z = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return self.split.tail(z).unflatten(0, (len(outputs), -1))

    def _outputs(self, chunk: Chunk, masks: Tensor, base: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What the reading layer gives for each coalition, and for which images (None: all); overwritten by the next."""
        x = chunk.crossing[0]
        self._keep_parts(chunk, len(masks))
        shared = chunk.parts is not None or self.cheap
        changes = _changes(masks, base)
        z0 = z = None if base is None else self._read_by(x, base)
        for k, mask in enumerate(masks):
            some = self._heard(chunk, changes[k][0][0]) if z0 is not None and len(changes[k]) == 1 else None
            if some is not None and not shared:
                yield self._read_by(x[some], mask), some
            elif some is not None and z0 is not None:
                unit, sign = changes[k][0]
                yield torch.add(z0[some], self.part(chunk, unit, some), alpha=sign), some
            elif not shared or z is None or (base is None and (k % RESTART == 0 or len(changes[k]) > max(2, self.n // 4))):
                z = self._read_by(x, mask)
                yield z, None
            elif z0 is None:
                for unit, sign in changes[k]:
                    z.add_(self.part(chunk, unit), alpha=sign)
                yield z, None
            else:
                z = z0
                for unit, sign in changes[k]:
                    z = torch.add(z, self.part(chunk, unit), alpha=sign)
                yield z, None

    def _read_by(self, x: Tensor, mask: Tensor) -> Tensor:
        """Output of the layer that reads the filters, for one coalition."""
        self.split.scale(mask.to(x.device, self.dtype))
        return self.split.sites[0](x)

    def part(self, chunk: Chunk, unit: int, some: Tensor | None = None) -> Tensor:
        """What a unit adds to the output of the layer that reads it; of all images, or of `some`."""
        if chunk.parts is not None:
            return chunk.parts[unit] if some is None else chunk.parts[unit][some]
        site = self.split.sites[0]
        mine = (site.player == unit).nonzero().flatten()
        x = chunk.crossing[0] if some is None else chunk.crossing[0][some]
        return site.apply_weight(x.index_select(site.axis, mine), site.layer.weight.index_select(1, mine), bias=False)

    def _keep_parts(self, chunk: Chunk, coalitions: int) -> None:
        """Compute all parts at once and keep them, where they will be used often and fit the memory."""
        often = self.plays > 1 or coalitions > 2 * self.n
        if chunk.parts is not None or not often or not any(chunk is c for c in self.cache):
            return
        first = self.part(chunk, 0)
        size = self.n * first.numel() * first.element_size()
        if size > self.free:
            return
        self.free -= size
        made = first.new_empty(self.n * len(first), *first.shape[1:])
        if first.dim() == 4:  # as the layers behind want it
            made = made.contiguous(memory_format=torch.channels_last)
        for unit, out in enumerate(made.split(len(first))):
            out.copy_(self.part(chunk, unit))
        chunk.parts = made.unflatten(0, (self.n, len(first)))

    def _heard(self, chunk: Chunk, unit: int) -> Tensor | None:
        """The images on which a unit is not silent, where leaving the others out pays; else None."""
        if chunk.active is None:
            site, x = self.split.sites[0], chunk.crossing[0]
            x = x.movedim(site.axis, 1)
            alive = (x.flatten(2).abs().amax(2) if x.dim() > 2 else x.abs()) > 0
            active = torch.zeros(self.n, len(x), dtype=torch.int32, device=x.device)
            mine = site.player >= 0
            chunk.active = active.index_add_(0, site.player[mine], alive.T[mine].int()) > 0
        some = chunk.active[unit]
        return some.nonzero().flatten() if int(some.sum()) < SILENT * len(some) else None

    # -- images ------------------------------------------------------------------------------------------------------

    def chunks(self) -> Iterator[Chunk]:
        """All images, in chunks; what does not fit the memory is made again."""
        yield from self.cache
        if not self.cached:
            yield from self._read(skip=len(self.cache))

    def _read(self, skip: int = 0) -> Iterator[Chunk]:
        pending: list[tuple[Tensor, Tensor]] = []
        for images, labels in self.batches:
            pending.append((images, labels))
            while sum(len(its) for _, its in pending) >= self.rows:
                x, y = (torch.cat(both) for both in zip(*pending, strict=True))
                pending = [(x[self.rows :], y[self.rows :])]
                if skip <= 0:
                    yield self._before(x[: self.rows], y[: self.rows])
                skip -= 1
        if pending and len(pending[0][1]) and skip <= 0:
            yield self._before(*(torch.cat(both) for both in zip(*pending, strict=True)))

    def _before(self, images: Tensor, labels: Tensor) -> Chunk:
        with torch.no_grad():
            images = images.to(self.dtype)
            if images.dim() == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            return Chunk(tuple(self.split.before(images)), labels)

    def _fill(self) -> bool:
        """Count the images and keep chunks while the memory lasts; whether all were kept."""
        whole = True
        for chunk in self._read():
            if len(chunk.labels) and (int(chunk.labels.max()) >= self.classes or int(chunk.labels.min()) < 0):
                raise SlimrankError(f"label {int(chunk.labels.max())} in the data, the model has {self.classes} classes")
            self.class_images += torch.bincount(chunk.labels.cpu(), minlength=self.classes)
            whole = whole and self._claim(*chunk.crossing)
            if whole:
                self.cache.append(chunk)
        return whole

    def _claim(self, *tensors: Tensor) -> bool:
        size = sum(t.numel() * t.element_size() for t in tensors)
        if size > self.free:
            return False
        self.free -= size
        return True

    @torch.no_grad()
    def _plan(self) -> None:
        """Images a chunk, so that activations stay in the caches, and whether one unit's part costs less than all."""
        first = next(iter(self.batches), None)
        if first is None or len(first[1]) == 0:
            raise SlimrankError("no images to score filters on; check --data and --limit")
        widest = _Widest(len(first[1][:7]))
        with widest:
            chunk = self._before(first[0][:7], first[1][:7])
            logits = self.split.after(*chunk.crossing)
        if logits.shape[1] != self.classes:
            raise SlimrankError(f"the model has {logits.shape[1]} outputs, the data {self.classes} classes; they must match")
        self.rows = max(8, min(4096, CACHE // widest.bytes))
        if self.linear:  # convolutions compute 16 input channels at once: one costs as much
            site = self.split.sites[0]
            width = max(1, int((site.player == 0).sum()))
            block = 1 if isinstance(site.layer, nn.Linear) else 16
            self.cheap = 2 * (-(-width // block) * block) <= len(site.player)

    @torch.no_grad()
    def _hard_first(self) -> None:
        """Put the images with the smallest margin first: they decide who loses."""
        self.split.scale(None)
        margins = []
        for chunk in self.cache:
            logits = self.split.after(*chunk.crossing)
            own = logits.gather(1, chunk.labels[:, None])
            margins.append((own - logits.scatter(1, chunk.labels[:, None], -torch.inf).amax(1, keepdim=True))[:, 0])
        order = torch.cat(margins).argsort()
        columns = [torch.cat(column) for column in zip(*(c.crossing for c in self.cache), strict=True)]
        labels = torch.cat([c.labels for c in self.cache])
        self.cache = [Chunk(tuple(c[i] for c in columns), labels[i]) for i in order.split(self.rows)]


def _changes(masks: Tensor, base: Tensor | None) -> list[list[tuple[int, int]]]:
    """For each row the units that come (+1) or go (-1), against `base` or the row before."""
    before = torch.cat([masks[:1], masks[:-1]]) if base is None else base
    found: list[list[tuple[int, int]]] = [[] for _ in masks]
    for row, unit in (masks != before).nonzero().tolist():
        found[row].append((unit, 1 if masks[row, unit] else -1))
    return found


class _Widest(TorchDispatchMode):
    """Remembers the largest activation that an operation makes of `images` images: `bytes`, of one image."""

    def __init__(self, images: int):
        super().__init__()
        self.images, self.bytes = images, 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() and len(out) == self.images:
            self.bytes = max(self.bytes, out.numel() * out.element_size() // self.images)
        return out
