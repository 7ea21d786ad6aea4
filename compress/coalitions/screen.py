"""Coalitions near a known one, decided in bfloat16 wherever that is safe, and again in float32 where it is not.

A processor with bfloat16 instructions runs the layers behind the mask in half the time, and its logits are off by a few
hundredths of their spread. What a removal changes is known better than the logits themselves: the estimate is the base
coalition's logits in float32, plus the difference of the two in bfloat16. An image whose label is ahead or behind by less
than a tolerance runs again in float32, and its exact logits are taken. The tolerance is a share of the spread of the
image's logits and of their change; every image that runs again shows how far its estimate was off, and the tolerance is
never less than twice the worst seen. That is evidence, not proof: a decision can be wrong only where an estimate is off by
twice as much as any that was looked at. (Bounds that hold for certain, layer by layer, would leave every image open.)
"""

from functools import partial

import torch
from torch import Tensor, fx, nn

from ..channels.groups import ChannelMap
from ..network.resize import CONVS
from .activations import Chunk, Relay, margins_of
from .fused import available, fuse
from .lanes import give_way, side_by_side
from .split import Split, split
from .suffix import Suffix

LOW = torch.bfloat16
TOLERANCE = 0.05  # of the standard deviation of an image's logits and of their change, to start with
FEWEST_CONVS = 2  # behind the mask, or else there is nothing to save
FEWEST_PAIRS = 2**12  # coalitions times images, or else a second network is not worth its making


def pays(split: Split, pairs: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether screening saves time: bfloat16 instructions, and enough to run on them."""
    if dtype != torch.float32 or device.type != "cpu" or split.whole or pairs < FEWEST_PAIRS:
        return False
    behind: object = split.tail if split.linear else split.after
    convs = sum(isinstance(module, CONVS) for module in behind.modules()) if isinstance(behind, nn.Module) else 0
    return convs >= FEWEST_CONVS and bool(torch.cpu._is_avx512_bf16_supported())


class Screen:
    """Logits as those of `exact`, estimated in bfloat16 where the decision is clear.

    `tolerance`: share of the standard deviation of an image's logits; `again`: pairs of a coalition and an image that were run
    once more in float32. `relay`: keeps the exact logits of the whole network.
    """

    def __init__(self, exact: Suffix, model: nn.Module, channels: ChannelMap, layer: str, relay: Relay):
        self.exact, self.relay = exact, relay
        self.tolerance = TOLERANCE
        self.again = 0
        self._low_split = partial(split, model, channels, layer, LOW)
        self.low = Suffix(self._low_split(), exact.memory, LOW)

    def works(self, chunk: Chunk) -> bool:
        """Whether the layers behind the mask run in bfloat16, fused where that can be: not every operator of every network
        does."""
        if available():
            for part in (self.low.split.after, self.low.split.tail):
                if isinstance(part, fx.GraphModule):
                    fuse(part)
            if self._runs(chunk):
                return True
            self.low = Suffix(self._low_split(), self.exact.memory, LOW)
        return self._runs(chunk)

    def _runs(self, chunk: Chunk) -> bool:
        everyone = torch.ones(1, self.exact.split.units, dtype=torch.bool)
        try:
            return bool(self._rough(chunk, everyone, None).isfinite().all())
        except (RuntimeError, TypeError):  # of the user's own forward pass
            return False

    @torch.no_grad()
    def logits(self, chunk: Chunk, masks: Tensor, base: Tensor) -> Tensor | None:
        """Of the coalitions `masks`, [coalitions, images, classes]; None where most images are so near that it does not pay."""
        base_logits = self._exact_base(chunk, base)
        spread = base_logits.std(1)
        if float((margins_of(base_logits, chunk.labels).abs() < self.tolerance * spread).float().mean()) > 0.5:
            return None
        logits = base_logits.repeat(len(masks), 1, 1)
        others = (masks != base).any(1)
        if bool(others.any()):
            rough = self._rough(chunk, torch.cat([base[None], masks[others]]), base)
            change = rough[1:] - rough[0]
            logits[others] = self._settled(chunk, masks[others], base_logits + change, spread + change.std(2))
        return logits

    def _settled(self, chunk: Chunk, masks: Tensor, logits: Tensor, scale: Tensor) -> Tensor:
        """Estimates, exact where the margin is within the tolerance times `scale` ([coalitions, images])."""
        margins = margins_of(logits, chunk.labels)
        exact = torch.zeros_like(margins, dtype=torch.bool)
        wanted = exact.clone()
        wanted[-1] = self.again == 0  # an honest look at one coalition, near or not
        while True:
            wanted |= ~(margins.abs() >= self.tolerance * scale)  # NaN among them
            pairs = (wanted & ~exact).nonzero()
            if not len(pairs):
                return logits
            rows, images = pairs.unbind(1)
            logits[rows, images] = self._run(chunk, masks[rows], images)
            exact |= wanted
            off = (margins_of(logits, chunk.labels) - margins).abs() / scale
            self.tolerance = max(self.tolerance, 2 * float(off.nan_to_num(0).max()))
            self.again += len(pairs)

    def _exact_base(self, chunk: Chunk, base: Tensor) -> Tensor:
        """Logits of the base, [images, classes]; once for all games of a network where every unit is present."""
        key = (chunk.start, len(chunk)) if chunk.start is not None and bool(base.all()) else None
        if key is not None and key in self.relay.logits:
            return self.relay.logits[key]
        self.exact.split.scale(base.to(chunk.labels.device, self.exact.dtype))
        alone: Tensor = self.exact.split.after(*chunk.crossing)  # not counted: another process may have run it for this game
        if key is not None:
            self.relay.logits[key] = alone
        return alone

    def _rough(self, chunk: Chunk, masks: Tensor, base: Tensor | None) -> Tensor:
        """Logits in bfloat16, [coalitions, images, classes]."""
        low = Chunk(tuple(tensor.to(LOW) for tensor in chunk.crossing), chunk.labels)
        return self.low.at_once(low, masks, base).float()

    def _run(self, chunk: Chunk, masks: Tensor, images: Tensor) -> Tensor:
        """Exact logits of pairs of a coalition and an image, [pairs, classes]."""
        own = self.exact.split

        def of(part: tuple[Tensor, Tensor]) -> Tensor:
            give_way()
            some, its = part
            own.scale(some.to(chunk.labels.device, self.exact.dtype))
            logits: Tensor = own.after(*(tensor[its] for tensor in chunk.crossing))
            return logits

        count = min(len(images), own.lanes * -(-len(images) // len(chunk)))
        parts = list(zip(torch.tensor_split(masks, count), torch.tensor_split(images, count), strict=True))
        return torch.cat(side_by_side(of, parts, own.lanes))
