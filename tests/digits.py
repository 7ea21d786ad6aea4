"""A small trained network on digits, for the tests of the rankers."""

import torch
from torch import nn

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network import zoo
from slimrank.evaluate.data import open_data

from . import reference


class Digits:
    """A small LeNet trained for a moment on digits: a real accuracy to lose, and few enough filters to enumerate."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = zoo.build("lenet5", {"widths": [6, 8, 16, 7], "size": 16}).double()
        data = open_data("digits", models_preprocessing())
        self.x, self.y = next(iter(data.split("train").batches(600)))
        self.x = self.x.double()
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.y).backward()
            optimizer.step()
        self.model.eval()
        self.channels = channel_map(self.model, self.x[:1])
        self.x, self.y = (t[:120] for t in (self.x, self.y))
        self.batches = [(self.x[:70], self.y[:70]), (self.x[70:], self.y[70:])]

    def worth(self, layer: str):
        n = self.channels.group(layer).units
        known: dict[frozenset, float] = {}

        def v(members) -> float:
            key = frozenset(members)
            if key not in known:
                mask = [i in key for i in range(n)]
                right = reference.hits(self.model, self.channels, layer, mask, self.x, self.y)
                known[key] = int(right.sum()) / len(self.y)
            return known[key]

        return v


def models_preprocessing():
    from slimrank.evaluate.data import Preprocessing

    return Preprocessing.default(1, 16)
