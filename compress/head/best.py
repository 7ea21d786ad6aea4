"""The best few of very many classes, as a search gives them: a shortlist that is always computed, and probed groups.

What is asked of a layer of 100,000 classes falls on few of them. Those that calibration queries bring near the top are one
dense product for every query (the head of Grave et al.'s adaptive softmax, 2017); all others are found by the two levels of
`SubspaceLinear`. Writing a logit for each class would take longer than finding the best.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network import layouts
from ..network.subspace import SubspaceLinear, candidates

CLASSES = "classes"  # name of the second ONNX output
NEAR = 128  # a class among so many best ones is near the top of a query


def frequent(weight: Tensor, bias: Tensor, queries: Tensor, count: int) -> Tensor:
    """List the `count` classes that come nearest to the top of some query: by their best place, then by the sum of 1 / place.

    weight [classes, features], bias [classes], queries [n, features]; returns classes, rising.
    """
    depth = min(NEAR, len(weight))
    rank, often = torch.full((len(weight),), depth), torch.zeros(len(weight))
    for x in queries.split(NEAR):
        best = F.linear(x, weight, bias).topk(depth, 1).indices
        places = torch.arange(depth).expand_as(best).flatten()
        rank.scatter_reduce_(0, best.flatten(), places, "amin")
        often.index_add_(0, best.flatten(), 1 / (1 + places))
    order = torch.argsort(often, descending=True, stable=True)
    return order[torch.argsort(rank[order], stable=True)][:count].sort().values


class Best(nn.Module):
    """The `count` best classes of a two-level head, and nothing of the others: logits and classes, both [images, count].

    `shortlist` [n]: classes that are computed for every image, from the dense layer's weight [classes, features] and bias; the
    head gives them up.
    """

    outputs = ("logits", CLASSES)
    shortlist: Tensor

    def __init__(
        self, head: SubspaceLinear, count: int, shortlist: Tensor | None = None, dense: tuple[Tensor, Tensor] | None = None
    ):
        super().__init__()
        self.head, self.count, self.short = head, count, None
        if shortlist is None or not len(shortlist):
            return
        assert dense is not None
        self.head, rows = copy.deepcopy(head), shortlist if head.order is None else head.order.argsort()[shortlist]
        self.head.bias.data[rows] = -torch.inf
        self.short = nn.Linear(dense[0].shape[1], len(shortlist))
        self.short.weight.data, self.short.bias.data = dense[0][shortlist].clone(), dense[1][shortlist].clone()
        self.register_buffer("shortlist", shortlist.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        placed = x if self.head.reorder is None else layouts.moved(x, self.head.reorder)
        logits, rows = candidates(self.head, placed)
        values, at = logits.topk(self.count, 1)
        rows = rows.gather(1, at)
        classes = rows if self.head.order is None else self.head.order[rows]
        if self.short is None:
            return values, classes
        short = self.short(x).topk(min(self.count, len(self.shortlist)), 1)
        best = torch.cat([short.values, values], 1).topk(self.count, 1)
        return best.values, torch.cat([self.shortlist[short.indices], classes], 1).gather(1, best.indices)

    def macs(self, input_shape: tuple[int, ...]) -> int:
        return self.head.macs(input_shape) + (0 if self.short is None else self.short.weight.numel())
