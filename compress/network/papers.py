"""The small networks of the papers: LeNet-5, VGG-16 and the ResNets for CIFAR."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Lenet5(nn.Module):
    """LeNet-5 as the neuron-ranking paper uses it: 5x5 conv, pool, 5x5 conv, pool, two hidden linear layers.

    `widths`: filters of conv1, conv2 and neurons of fc1, fc2; 10-20-100-25 is the paper's, 20-50-800-500 and 6-16-120-84
    are the classic ones. `padding` 0 (28 -> 24 -> 12 -> 8 -> 4 positions a side; widths 5-7-45-20 make 7,227 parameters and
    134,140 MACs, 137,543 with biases counted) or 2 (28 -> 28 -> 14 -> 14 -> 7; 17,622 parameters):
    Adamczewski & Park mix the two counts.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        widths: Sequence[int] = (10, 20, 100, 25),
        padding: int = 0,
        size: int = 28,
    ):
        super().__init__()
        a, b, c, d = widths
        side = size
        for _ in range(2):
            side = (side + 2 * padding - 4) // 2
        if side < 1:
            raise ValueError(f"images of {size} pixels are too small for lenet5 without padding")
        self.conv1 = nn.Conv2d(in_channels, a, 5, padding=padding)
        self.conv2 = nn.Conv2d(a, b, 5, padding=padding)
        self.fc1 = nn.Linear(b * side * side, c)
        self.fc2 = nn.Linear(c, d)
        self.fc3 = nn.Linear(d, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
        return logits


class Vgg16Cifar(nn.Module):
    """VGG-16 for 32x32 images: 13 convs with BatchNorm, two hidden linear layers with dropout (Zagoruyko 2015)."""

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512),
    ):
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for i, width in enumerate(widths[:13]):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            if i in (1, 3, 6, 9, 12):
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        a, b = widths[13:]
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(channels, a), nn.BatchNorm1d(a), nn.ReLU(inplace=True),
            nn.Dropout(0.5), nn.Linear(a, b), nn.ReLU(inplace=True), nn.Linear(b, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class PadShortcut(nn.Module):
    """Option-A shortcut (He et al. 2016, section 3.3): every second position, zero channels on both sides, no parameters.

    `source[j]` is the input channel that output channel j repeats, -1 for a zero channel. As built this is a plain slice
    and pad; surgery rewrites `source`, so either side of the shortcut can lose channels on its own.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.in_channels = in_channels
        before = (out_channels - in_channels) // 2
        after = out_channels - in_channels - before
        self.source = [-1] * before + list(range(in_channels)) + [-1] * after

    def slice_channels(self, keep_in: Tensor, keep_out: Tensor) -> None:
        """Keep the channels where the boolean masks [in], [out] are True; what pointed at a lost channel becomes zero."""
        new = (torch.cumsum(keep_in.long(), 0) - 1).masked_fill(~keep_in, -1).tolist()
        self.source = [new[s] if s >= 0 else -1 for s, kept in zip(self.source, keep_out.tolist(), strict=True) if kept]
        self.in_channels = int(keep_in.sum())

    def permute_channels(self, from_in: Tensor, from_out: Tensor) -> None:
        """Channel i of the input is what channel from_in[i] was; channel j of the output becomes what from_out[j] was."""
        place = from_in.argsort().tolist()
        self.source = [place[self.source[j]] if self.source[j] >= 0 else -1 for j in from_out.tolist()]

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        used = [s for s in self.source if s >= 0]
        before = next((i for i, s in enumerate(self.source) if s >= 0), 0)
        if self.source[before : before + len(used)] == list(range(self.in_channels)):
            return F.pad(x, (0, 0, 0, 0, before, len(self.source) - before - len(used)))
        index = [s if s >= 0 else self.in_channels for s in self.source]  # one zero channel behind the others
        return F.pad(x, (0, 0, 0, 0, 0, 1)).index_select(1, torch.tensor(index, device=x.device))


class CifarBlock(nn.Module):
    """Basic block (He et al. 2016): two 3x3 convs with BatchNorm beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = PadShortcut(in_channels, channels, stride) if stride > 1 else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class CifarResnet(nn.Module):
    """ResNet for CIFAR (He et al. 2016, section 4.2), option-A shortcuts, names of the public CIFAR checkpoints."""

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64)):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        channels = widths[0]
        for stage, width in enumerate(widths, 1):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(CifarBlock(channels, width, 2 if stage > 1 and i == 0 else 1))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
