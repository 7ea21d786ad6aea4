"""Accuracy of many filter subsets (coalitions) of one layer, without rerunning what did not change.

A coalition is a row of booleans, one for each unit of a layer's group: the units that are present. The others read as zero
where `masked` zeroes them (channels/groups.py), so a count is the count of the network that surgery would leave. Why it is
fast, and where:

- the network before the mask runs once, and what crosses over is kept while `memory` lasts (activations.py);
- BatchNorm is folded, activations are channels last, chunks of images fit the caches (split.py, activations.py);
- where one conv or linear layer reads the units, its output is linear in them: each unit's contribution is computed once,
  and a coalition that differs from the one before by one unit costs one addition, then the layers behind (suffix.py);
- an image on which a unit is silent (all zero) keeps its decision when that unit goes (suffix.py);
- coalitions whose layers behind are small run together (suffix.py);
- parts of the images run side by side, each on a thread of its own (lanes.py);
- where bfloat16 is fast, it tells which images are near a change of decision, and only those run in float32 (screen.py);
- a coalition that can no longer win is dropped (`floor`), the images that decide it first (`hard_first`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels.groups import ChannelMap
from . import MEMORY
from .activations import Activations, Chunk, Memory, Relay
from .lanes import keep_freed_memory, side_by_side
from .screen import Screen, pays
from .split import split
from .suffix import Suffix

ROWS = 1024  # coalitions whose decisions are counted at once


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Counts of `play`. `by_class`: images decided correctly, int64 [coalitions, classes]; `likelihood`: the summed
    log-likelihood, float64 [coalitions], where asked for; `dropped`: coalitions given up on the way, whose counts stop there;
    `reach`: correct images that each could have had at most, int64 [coalitions]."""

    by_class: Tensor
    likelihood: Tensor | None
    dropped: Tensor
    reach: Tensor

    @property
    def correct(self) -> Tensor:
        """int64 [coalitions]."""
        return self.by_class.sum(1)


@dataclass(frozen=True, kw_only=True)
class Played:
    """What games cost: `evaluations` of coalitions, each over all `images`; `passes` that were really run; `notes`."""

    evaluations: int = 0
    images: int = 0
    passes: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def sum(cls, games: "Iterable[Played]") -> "Played":
        """Of games on the same images."""
        every = list(games)
        return cls(
            evaluations=sum(game.evaluations for game in every), images=every[-1].images if every else 0,
            passes=sum(game.passes for game in every), notes=tuple(note for game in every for note in game.notes),
        )  # fmt: skip


class Coalitions:
    """The game of one layer on the images of `batches`: (images, labels), read again where `memory` (bytes) is too small.

    `layer`: any member of a group, or the classifier's name for the features that it alone reads. `n` units play.
    `evaluations` counts coalitions, each over all images; `passes` the coalition-image pairs that were really run. `notes`
    says so where the network could not be split and every coalition runs all of it. `hard_first`: sort the images by their
    margin, for `floor`. `screened`: coalitions near a `base` may be decided in bfloat16 first (screen.py); counts are the same,
    likelihoods then partly estimates, some nats off in 2,000 images; `relay`: between games of one network on the same
    images, played one after the other. Raises SlimrankError for an unknown layer, for no images and for images of one class
    only.
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
        screened: bool = False,
        relay: Relay | None = None,
    ):
        if memory < 0:
            raise SlimrankError(f"`memory` is {memory}, must be 0 bytes or more")
        keep_freed_memory()
        self.classes, self.dtype = classes, dtype
        self.split = split(model, channels, layer, dtype)
        self.n = self.split.units
        why = self.split.whole
        self.notes = [f"{layer}: the network cannot be split here ({why}); every coalition runs all of it"] if why else []
        self.evaluations = self.plays = 0
        budget = Memory(memory)
        self.suffix = Suffix(self.split, budget, dtype)
        relay = relay or Relay()
        self.activations = Activations(self.split, batches, classes, budget, dtype, relay)
        self.class_images = self.activations.class_images
        self.images = int(self.class_images.sum())
        if classes > 1 and int((self.class_images > 0).sum()) == 1:
            only = int(self.class_images.argmax())
            raise SlimrankError(
                f"all images ({self.images}) are of class {only}: accuracy says nothing there; raise `limit`, "
                "or the share of `validation`"
            )
        if hard_first and self.activations.complete and 2 * budget.free >= memory:  # sorting needs a copy
            self.activations.hard_first()
        self.screen: Screen | None = None
        if screened and pays(self.split, self.n * self.images, dtype, next(model.parameters()).device):
            screen = Screen(self.suffix, model, channels, layer, relay)
            self.screen = screen if screen.works(next(self.chunks())) else None

    @property
    def passes(self) -> int:
        return self.suffix.passes + (self.screen.low.passes + self.screen.again if self.screen else 0)

    @property
    def played(self) -> Played:
        """What it has cost so far."""
        return Played(evaluations=self.evaluations, images=self.images, passes=self.passes, notes=tuple(self.notes))

    def chunks(self) -> Iterator[Chunk]:
        """All images, as what the layers behind the mask read."""
        return self.activations.chunks()

    @torch.no_grad()
    def play(self, masks: Tensor, *, base: Tensor | None = None, likelihood: bool = False, floor: int | None = None) -> Outcome:
        """Count the images that each coalition decides correctly. `masks`: bool [coalitions, units].

        `base` (bool [units]): a coalition near all of `masks`; each is then derived from it, else from the row before it.
        `floor`: a coalition is dropped once it cannot reach this many correct images.
        """
        masks = masks.bool().cpu()
        images_left = self.images
        by_class = torch.zeros(len(masks), self.classes, dtype=torch.int64)
        log_likelihood = torch.zeros(len(masks), dtype=torch.float64)
        alive = torch.ones(len(masks), dtype=torch.bool)
        reach = torch.full((len(masks),), self.images)
        self.evaluations += len(masks)
        self.plays += 1
        for chunk in self.chunks():
            images_left -= len(chunk)
            onehot = F.one_hot(chunk.labels, self.classes).float()
            for rows in torch.split(alive.nonzero().flatten(), ROWS):
                hits, lost = self._decide(chunk, masks[rows], base, likelihood)
                by_class[rows] += (hits @ onehot).round().long().cpu()
                log_likelihood[rows] -= lost
            reach[alive] = by_class[alive].sum(1) + images_left
            if floor is not None:
                alive &= reach >= floor
                if not bool(alive.any()):
                    break
        return Outcome(by_class=by_class, likelihood=log_likelihood if likelihood else None, dropped=~alive, reach=reach)

    def without_each(
        self, base: Tensor, units: Sequence[int], *, likelihood: bool = False, floor: int | None = None
    ) -> Outcome:
        """`play` for the coalitions that lack one of `units` each, beside what `base` lacks."""
        masks = base.bool().cpu().repeat(len(units), 1)
        masks[torch.arange(len(units)), torch.tensor(units, dtype=torch.long)] = False
        return self.play(masks, base=base.bool().cpu(), likelihood=likelihood, floor=floor)

    def _decide(self, chunk: Chunk, masks: Tensor, base: Tensor | None, likelihood: bool) -> tuple[Tensor, Tensor]:
        """Which images each coalition decides correctly (0 or 1, [coalitions, images]); cross-entropy summed over them,
        float64 [coalitions], zero unless asked for."""
        screened = None if self.screen is None or base is None else self.screen.logits(chunk, masks, base)
        if screened is not None:
            return _decided([screened], chunk.labels, len(masks), likelihood)

        def exactly(part: Chunk) -> tuple[Tensor, Tensor]:
            runs = self.suffix.logits(part, masks, base, repeated=self.plays > 1)
            return _decided(runs, part.labels, len(masks), likelihood)

        lanes = self.split.lanes
        hits, lost = zip(*side_by_side(exactly, chunk.cut(lanes), lanes), strict=True)
        return torch.cat(hits, 1), torch.stack(lost).sum(0)


def _decided(runs: Iterable[Tensor], labels: Tensor, coalitions: int, likelihood: bool) -> tuple[Tensor, Tensor]:
    """As Coalitions._decide, from logits [some coalitions, images, classes] at a time."""
    hits = torch.empty(coalitions, len(labels), device=labels.device)
    lost = torch.zeros(coalitions, dtype=torch.float64)
    done = 0
    for logits in runs:
        rows = slice(done, done + len(logits))
        hits[rows] = logits.argmax(2) == labels
        if likelihood:
            each = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
            lost[rows] = each.view(len(logits), -1).double().sum(1).cpu()
        done = rows.stop
    return hits, lost
