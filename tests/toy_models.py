"""Small networks that hold one difficulty each."""

import torch.nn.functional as F
from torch import Tensor, nn


class FixedPadNet(nn.Module):
    """The common way to write the option-A shortcut: slice, pad by planes // 4 on each side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.norm2(self.down(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.classifier(x.mean((2, 3)))


def fixed_pad_net(**_: int) -> nn.Module:
    return FixedPadNet()


class PickingNet(nn.Module):
    """forward() that takes channels apart: by number, in equal chunks, rolled; PReLU with a weight a channel."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.act = nn.PReLU(12)
        self.left = nn.Conv2d(6, 8, 3, padding=1)
        self.right = nn.Conv2d(6, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        if self.how == "chunk":
            a, b = x.chunk(2, 1)
        elif self.how == "split":
            a, b = x.split(6, 1)
        elif self.how == "roll":
            a, b = x.roll(1, 1).chunk(2, 1)
        else:
            a, b = x[:, :6], x[:, 6:]
        return self.classifier(F.relu(self.left(a) * self.right(b).sigmoid()).mean((2, 3)))
