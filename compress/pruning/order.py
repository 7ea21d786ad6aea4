"""The order in which units are removed, and in which steps. One order serves every budget (select.py)."""

import heapq
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels.groups import ChannelMap, Group
from ..rankers.scores import FilterScores
from .costs import GRAIN, Costs, unit_step

Step = tuple[tuple[bool, float, int], Tensor]  # what it is sorted by: whether it breaks a width, its key, layers; the units

PRICED = 200  # times, about, that a step's saving is measured anew on the way to the last one
DEEPER = 2.0  # how much deeper, or less deep, than uniform widths a group is cut for its time


class RemovalOrder:
    """Steps of removal (global unit numbers), first to go first.

    A step is a block that leaves an aligned width, or a single unit where the width is not aligned anyway. Breaking an
    aligned width saves MACs but costs time, so these steps come last of all. Between equals, filters of a layer on its own
    go before those of a residual stream, which many layers read.
    """

    def __init__(
        self, model: nn.Module, channels: ChannelMap, scores: FilterScores, scope: str, align: int, min_filters: int,
        cost: Callable[[Tensor], float], costs: Costs | None,
    ):  # fmt: skip
        self.model, self.channels, self.scores, self.scope, self.align = model, channels, scores, scope, align
        self.min_filters, self.cost, self.costs = min_filters, cost, costs
        self.nothing = channels.removed({})

    def steps(self, groups: list[Group]) -> list[Tensor]:
        if self.scope == "global" and self.scores.comparable:
            return self.priced(groups)
        steps = [step for group in groups for step in self.of(group)]
        return [units for _, units in sorted(steps, key=lambda step: step[0])]

    def priced(self, groups: list[Group]) -> list[Tensor]:
        """Steps of comparable scores: the next one loses least for what it saves in the network as it is by then.

        Narrower neighbours make a unit save less, so that prices rise: a step is priced anew when its turn comes, and goes
        back where another one has become cheaper. (Fixed prices cut what lies between narrow layers too deep.)
        """
        cost = (lambda gone: self.costs.share(self.model, self.channels, gone)) if self.costs else self.cost
        queues = [self.of(group)[::-1] for group in groups]
        at_first = [self.time(group) if self.costs else max(1, self.saved(self.cost, group)) for group in groups]
        total = sum(map(len, queues))
        gone, steps = self.nothing.clone(), list[Tensor]()
        heap = [(queue[-1][0], i, 0) for i, queue in enumerate(queues) if queue]
        heapq.heapify(heap)
        while heap:
            _, i, asked = heap[0]
            (breaks, key, layers), units = queues[i][-1]
            if len(steps) - asked > total // PRICED:
                without = gone.clone()
                without[units] = True
                now = max((cost(gone) - cost(without)) / len(units) / at_first[i], 1e-6)
                heapq.heapreplace(heap, ((breaks, key * now if key < 0 else key / now, layers), i, len(steps)))
                continue
            gone[units] = True
            steps.append(queues[i].pop()[1])
            if queues[i]:
                heapq.heapreplace(heap, (queues[i][-1][0], i, -total))
            else:
                heapq.heappop(heap)
        return steps

    def of(self, group: Group) -> list[Step]:
        score = torch.tensor(self.scores.scores[group.name], dtype=torch.float64)
        if len(score) != group.units:
            raise SlimrankError(
                f"scores for {group.name} count {len(score)} filters, the network has {group.units}; rank this checkpoint"
            )
        score[list(group.fixed)] = torch.inf
        order, kept = self.spared(group, [unit for unit in self.scores.order(group.name) if unit not in group.fixed])
        ranked = torch.tensor([*order, *kept, *group.fixed])
        floor = max(self.min_filters, round(0.1 * group.units) if self.scope == "global" else 1)
        removable = min(len(order), group.units - floor)
        key = self.key(group, score, ranked)
        block, grain = (unit_step(self.model, group, channels) for channels in (self.align, min(self.align, GRAIN)))
        if self.costs and self.time(group) * block < 1e-4:
            block = grain  # the clock says that a block saves nothing
        steps = []
        start, broken = 0, False
        while start < removable:
            step = (
                grain if self.costs and group.units - start <= block else block
            )  # within the first block inputs are paid singly
            end = start + ((group.units - start) % step or step)
            aligned = end <= removable
            end = end if aligned else start + 1
            breaks = not aligned and (group.units - start) % step == 0
            steps.append(((breaks or broken, float(key[start:end].max()), len(group.layers)), ranked[start:end] + group.offset))
            broken = broken or breaks
            start = end
        return steps

    def spared(self, group: Group, order: list[int]) -> tuple[list[int], list[int]]:
        """`order` without the units that must stay so that no layer runs empty, and these: the best `min_filters` of each layer
        that writes or reads some of the group's units and nothing else (a part of a concat that meets a sum)."""
        parts: list[set[int]] = []
        for units in (*self.channels.writes.values(), *self.channels.reads.values()):
            local = set((units - group.offset).tolist())
            if local and min(local) >= 0 and max(local) < group.units and len(local) < group.units and local not in parts:
                parts.append(local)
        left = [len(part) for part in parts]
        gone, kept = [], []
        for unit in order:
            mine = [i for i, part in enumerate(parts) if unit in part]
            if any(left[i] <= self.min_filters for i in mine):
                kept.append(unit)
                continue
            gone.append(unit)
            for i in mine:
                left[i] -= 1
        return gone, kept

    def key(self, group: Group, score: Tensor, ranked: Tensor) -> Tensor:
        """[units] in order of removal: what decides between groups."""
        if self.scope == "layer":  # the share of the group that is gone after it
            return (torch.arange(group.units, dtype=torch.float64) + 1) / group.units * self.shallower(group)
        if not self.scores.comparable:
            return score[ranked] / score[torch.isfinite(score)].abs().mean().clamp_min(1e-30)
        cost = self.time(group) if self.costs else max(1, self.saved(self.cost, group))
        # of what gains by going, too, the costly goes first
        return torch.where(score[ranked] < 0, score[ranked] * cost, score[ranked] / cost)

    def shallower(self, group: Group) -> float:
        """1 without costs; below 1 for a group whose MACs take more time than most."""
        if not self.costs:
            return 1.0
        macs = self.saved(lambda gone: self.channels.macs(self.model, gone), group)
        share = macs / self.channels.macs(self.model, self.nothing)
        return min(DEEPER, max(1 / DEEPER, share / self.time(group)))

    def saved(self, cost: Callable[[Tensor], float], group: Group) -> float:
        """What one unit of a group costs."""
        gone = self.nothing.clone()
        gone[group.offset] = True
        return cost(self.nothing) - cost(gone)

    def time(self, group: Group) -> float:
        """Share of the time that one unit of a group takes."""
        assert self.costs is not None
        return self.costs.saving(self.model, self.channels, group)
