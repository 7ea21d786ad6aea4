"""Labels of channels and which of them are one: a union-find that also remembers why a label must stay."""

import torch
from torch import Tensor

NONE = -1  # the label of what no filter made: the image, constants, padding


class Ties:
    """A union-find over labels, integers from 0; NONE is no label. `why[root]`: the reason why a pinned label must stay."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.why: dict[int, str] = {}

    def fresh(self, n: int) -> Tensor:
        """Make n new labels, [n]."""
        start = len(self.parent)
        self.parent.extend(range(start, start + n))
        return torch.arange(start, start + n)

    def find(self, label: int) -> int:
        """Find the root of a label: the least of the labels that are tied to it."""
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def roots(self) -> Tensor:
        """Find the root of every label, [labels + 1]; the last element is NONE, so that indexing with NONE gives NONE."""
        return torch.tensor([self.find(label) for label in range(len(self.parent))] + [NONE])

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Make one label of those that meet in `a` and `b` (broadcast), element by element; what meets NONE is pinned."""
        a, b = torch.broadcast_tensors(a, b)
        for dim in range(a.dim()):  # expanded dimensions repeat themselves
            if a.shape[dim] > 1 and a.stride(dim) == 0 and b.stride(dim) == 0:
                a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
        for left, right in torch.stack([a.reshape(-1), b.reshape(-1)], 1).unique(dim=0).tolist():
            if left < 0 or right < 0:
                self.pin(torch.tensor([left, right]), "it is combined with channels that no filter makes")
                continue
            left, right = self.find(left), self.find(right)
            if left != right:
                self.parent[max(left, right)] = min(left, right)
                reason = self.why.get(left) or self.why.get(right)
                if reason:
                    self.why[min(left, right)] = reason

    def pin(self, labels: Tensor, why: str) -> None:
        """Mark labels that must stay; the first reason is kept."""
        for label in labels.reshape(-1).unique().tolist():
            if label >= 0:
                self.why.setdefault(self.find(label), why)
