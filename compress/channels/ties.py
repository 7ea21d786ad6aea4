"""Labels of channels and which of them are one: a union-find that also remembers why a label must stay."""

import torch
from torch import Tensor


class Ties:
    """Labels are integers from 0; a negative one means "no filter made this". `why[root]`: the reason of a pinned label."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.why: dict[int, str] = {}

    def fresh(self, n: int) -> Tensor:
        start = len(self.parent)
        self.parent.extend(range(start, start + n))
        return torch.arange(start, start + n)

    def find(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Element by element, the labels of `a` and `b` (broadcast) become one; a label that meets NONE is pinned."""
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
        for label in labels.reshape(-1).unique().tolist():
            if label >= 0:
                self.why.setdefault(self.find(label), why)
