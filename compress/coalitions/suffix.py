"""Logits of many coalitions behind a mask, each derived from another one where that costs less than running it."""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from .activations import CHUNK_BYTES, Chunk, Memory
from .lanes import give_way, side_by_side
from .split import Split

RESTART = 256  # coalitions after which a running sum is computed anew, so that rounding errors do not add up
SILENT = 0.8  # the other images are left out only where a unit is active on a smaller share of them

Change = tuple[int, int]  # a unit, and +1 where it comes or -1 where it goes


class Suffix:
    """The layers behind the mask. `passes` counts the coalition-image pairs that were really run."""

    def __init__(self, split: Split, memory: Memory, dtype: torch.dtype):
        self.split, self.memory, self.dtype = split, memory, dtype
        self.passes = 0
        self._counting = threading.Lock()
        self._one_is_cheap = split.linear and _one_unit_costs_half(split)

    def logits(self, chunk: Chunk, masks: Tensor, base: Tensor | None, repeated: bool) -> Iterator[Tensor]:
        """Logits of the coalitions `masks` (bool [coalitions, units]) in order, [some coalitions, images, classes] at a time.

        `base` (bool [units]): a coalition near all of them. `repeated`: the chunk is read many times.
        """
        if not self.split.linear:
            for mask in masks:
                self.split.scale(mask.to(chunk.labels.device, self.dtype))
                self._pass(len(chunk))
                yield self.split.after(*chunk.crossing)[None]
            return
        if repeated or len(masks) > 2 * self.split.units:
            self._keep_contributions(chunk)
        others, tail = chunk.crossing[1:], self.split.tail
        assert tail is not None
        outputs = self._outputs_in_sequence(chunk, masks) if base is None else self._outputs_near(base, chunk, masks)
        together: list[Tensor] = []  # outputs of the reading layer that are small enough to run the rest on all at once
        base_logits: Tensor | None = None
        for z, images in outputs:
            limit = 1
            if images is None and not others:
                limit = max(1, CHUNK_BYTES * torch.get_num_threads() // (z.numel() * z.element_size()))
                together.append(z.clone() if limit > 1 else z)
            if len(together) >= limit:
                yield self._tail_of_all(together)
                together = []
            if images is not None:  # all other images decide as they do for the base
                assert base is not None
                if base_logits is None:
                    base_logits = tail(self._read(chunk.crossing[0], base), *others)
                logits = base_logits.clone()
                if len(images):
                    logits[images] = tail(z, *(other[images] for other in others))
                yield logits[None]
            elif others:
                yield tail(z, *others)[None]
            self._pass(len(z))
        if together:
            yield self._tail_of_all(together)

    def at_once(self, chunk: Chunk, masks: Tensor, base: Tensor | None) -> Tensor:
        """As `logits` of a chunk that is read once, [coalitions, images, classes]; images are run side by side."""

        def of(part: Chunk) -> Tensor:
            return torch.cat(list(self.logits(part, masks, base, repeated=False)))

        return torch.cat(side_by_side(of, chunk.cut(self.split.lanes), self.split.lanes), 1)

    def _pass(self, images: int) -> None:
        """Count the images of one coalition, whichever thread runs it."""
        give_way()
        with self._counting:
            self.passes += images

    def contribution(self, chunk: Chunk, unit: int, images: Tensor | None = None) -> Tensor:
        """What a unit adds to the output of the layer that reads it; of all images, or of those numbered `images`."""
        if chunk.contributions is not None:
            return chunk.contributions[unit] if images is None else chunk.contributions[unit][images]
        site = self.split.sites[0]
        columns = (site.unit == unit).nonzero().flatten()
        x = chunk.crossing[0] if images is None else chunk.crossing[0][images]
        part, weight = x.index_select(site.axis, columns), site.layer.weight.index_select(1, columns)
        return site.apply_weight(_channels_last(part), _channels_last(weight), bias=False)

    def _tail_of_all(self, outputs: list[Tensor]) -> Tensor:
        assert self.split.tail is not None
        z = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return torch.unflatten(self.split.tail(z), 0, (len(outputs), -1))

    def _outputs_in_sequence(self, chunk: Chunk, masks: Tensor) -> Iterator[tuple[Tensor, None]]:
        """Output of the reading layer for each coalition, from that of the one before; overwritten by the next."""
        x, z = chunk.crossing[0], None
        incremental = chunk.contributions is not None or self._one_is_cheap
        changes = _differences(masks, torch.cat([masks[:1], masks[:-1]]))
        for row, (mask, change) in enumerate(zip(masks, changes, strict=True)):
            if not incremental or z is None or row % RESTART == 0 or len(change) > max(2, self.split.units // 4):
                z = self._read(x, mask)
            else:
                for unit, sign in change:
                    z.add_(self.contribution(chunk, unit), alpha=sign)
            yield z, None

    def _outputs_near(self, base: Tensor, chunk: Chunk, masks: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Output of the reading layer for each coalition, from that of `base`, and for which images (None: all)."""
        x = chunk.crossing[0]
        incremental = chunk.contributions is not None or self._one_is_cheap
        base_output = self._read(x, base)
        for mask, change in zip(masks, _differences(masks, base), strict=True):
            images = self._active_images(chunk, change[0][0]) if len(change) == 1 else None
            if not change:  # the base itself
                yield base_output[:0], torch.zeros(0, dtype=torch.long, device=base_output.device)
            elif not incremental:
                yield self._read(x if images is None else x[images], mask), images
            elif images is not None:
                unit, sign = change[0]
                yield torch.add(base_output[images], self.contribution(chunk, unit, images), alpha=sign), images
            else:
                z = base_output
                for unit, sign in change:
                    z = torch.add(z, self.contribution(chunk, unit), alpha=sign)
                yield z, None

    def _read(self, x: Tensor, mask: Tensor) -> Tensor:
        """Output of the layer that reads the units, for one coalition."""
        self.split.scale(mask.to(x.device, self.dtype))
        output: Tensor = self.split.sites[0](x)
        return output

    def _keep_contributions(self, chunk: Chunk) -> None:
        """Compute every unit's contribution at once and keep them, where they fit the memory."""
        if chunk.contributions is not None or not chunk.kept:
            return
        n = self.split.units
        first = self.contribution(chunk, 0)
        if not self.memory.claim(n * first.numel() * first.element_size()):
            return
        contributions = first.new_empty(n * len(first), *first.shape[1:])
        if first.dim() == 4:  # the layout that the layers behind want
            contributions = contributions.contiguous(memory_format=torch.channels_last)
        for unit, out in enumerate(torch.split(contributions, len(first))):
            out.copy_(self.contribution(chunk, unit))
        chunk.contributions = torch.unflatten(contributions, 0, (n, len(first)))

    def _active_images(self, chunk: Chunk, unit: int) -> Tensor | None:
        """Numbers of the images on which a unit is not silent, where leaving the others out pays; else None."""
        if chunk.active is None:
            site, x = self.split.sites[0], chunk.crossing[0]
            x = x.movedim(site.axis, 1)
            nonzero = (x.flatten(2).abs().amax(2) if x.dim() > 2 else x.abs()) > 0
            active = torch.zeros(self.split.units, len(x), dtype=torch.int32, device=x.device)
            played = site.unit >= 0
            chunk.active = active.index_add_(0, site.unit[played], nonzero.T[played].int()) > 0
        active_here = chunk.active[unit]
        return active_here.nonzero().flatten() if int(active_here.sum()) < SILENT * len(active_here) else None


def _one_unit_costs_half(split: Split) -> bool:
    """Whether computing one unit's contribution costs at most half of the reading layer."""
    site = split.sites[0]
    return 2 * max(1, int((site.unit == 0).sum())) <= len(site.unit)


def _channels_last(x: Tensor) -> Tensor:
    """An image tensor in the layout of the layers behind; one channel is of both layouts, and is taken for the other if not
    told."""
    if x.dim() != 4:
        return x
    x = x.contiguous(memory_format=torch.channels_last)
    return x if x.shape[1] > 1 else x.as_strided(x.shape, (x.stride(0), 1, x.stride(2), x.stride(3)))


def _differences(masks: Tensor, before: Tensor) -> list[list[Change]]:
    """For each row of `masks` the units that differ from `before` ([units], or a row each)."""
    changes: list[list[Change]] = [[] for _ in masks]
    for row, unit in (masks != before).nonzero().tolist():
        changes[row].append((unit, 1 if masks[row, unit] else -1))
    return changes
