"""Cuts on trial: sizes written into forward() pin the group they are about, and no other."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimrank.compress.channels import channel_map
from slimrank.compress.pruning.select import select
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.rankers import RANKERS
from slimrank.errors import SlimrankError

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Sized(nn.Module):
    """Three convs; what comes of the second passes `use`, which knows its 16 channels by number."""

    def __init__(self, use) -> None:
        super().__init__()
        self.use = use
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 3)
        self.vector = nn.Parameter(torch.rand(16))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.use(self, F.relu(self.b(F.relu(self.a(x)))))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


SIZES = {
    "view": lambda s, y: y.view(-1, 16 * 12 * 12).view(-1, 16, 12, 12),
    "reshape behind a flatten": lambda s, y: y.flatten(1).reshape(y.shape[0], 16, 12, 12),
    "expand": lambda s, y: y * s.vector.view(1, 16, 1, 1).expand(1, 16, 12, 12),
    "a constant": lambda s, y: y * torch.ones(1, 16, 1, 1),
    "an assertion": lambda s, y: y if y.shape[1] == 16 else 1 / 0,
    "copied into a buffer": lambda s, y: torch.zeros(len(y), 16, 12, 12).copy_(y),
}


@pytest.mark.parametrize("size", SIZES)
def test_a_size_in_forward_pins_one_group(size):
    torch.manual_seed(0)
    model = Sized(SIZES[size]).eval()
    channels = channel_map(model, X[:1])
    assert [group.name for group in channels.groups if group.prunable] == ["a", "c"]
    assert channels.group("b").why
    plan = select(model, channels, RANKERS["l1"](model, channels), macs=0.7)
    assert apply_plan(model, channels, plan, X)(X).shape == (2, 5)


def test_a_network_that_draws_random_numbers_is_told():
    model = Sized(lambda _s, y: F.dropout(y, 0.3)).eval()
    channels = channel_map(model, X[:1])
    plan = select(model, channels, RANKERS["l1"](model, channels), macs=0.7)
    with pytest.raises(SlimrankError, match="other logits each time"):
        apply_plan(model, channels, plan, X)
