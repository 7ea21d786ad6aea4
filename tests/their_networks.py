"""Small networks as people write them: what forward() returns, how weights are applied, how weights are computed."""

from collections import namedtuple
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

Pair = namedtuple("Pair", "features scores")


@dataclass
class Dataclass:
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 8, 3), nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


OUTPUTS = {
    "tuple": lambda logits, features: (logits, features),
    "features first": lambda logits, features: (features, logits),
    "list": lambda logits, features: [logits],
    "nested": lambda logits, features: ((logits, None), [features]),
    "dict": lambda logits, features: {"features": features, "logits": logits},
    "dict of one": lambda logits, features: {"y": logits},
    "dataclass": lambda logits, features: Dataclass(logits, (features,)),
    "namedtuple": lambda logits, features: Pair(features, logits),
    "fully convolutional": lambda logits, features: logits[:, :, None, None],
    "tensor": lambda logits, features: logits,
}


class Returns(Plain):
    def __init__(self, output: str) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        features = self.features(x)
        return OUTPUTS[self.output](self.fc(features), features)


class FunctionalLinear(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.features(x), self.fc.weight, self.fc.bias)


class ByKeyword(Plain):
    """Each layer called by keyword: those of PyTorch, one of the user's own, an activation, a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act = PadsFirst(3, 12, 3, 2), nn.ReLU()

    def features(self, x: Tensor) -> Tensor:
        return F.relu(input=self.b(input=self.act(input=self.a(picture=x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(input=self.features(x))


class FunctionalConv(Plain):
    def features(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.a.weight, self.a.bias, stride=2, padding=(1, 1))
        return F.relu(torch.conv2d(F.relu(x), self.b.weight, self.b.bias)).mean((2, 3))


class ForwardOfTheInstance(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.forward = lambda x: (self.fc(self.features(x)),)


class PadsFirst(nn.Conv2d):
    def forward(self, picture: Tensor) -> Tensor:
        return super().forward(F.pad(picture, (0, 1, 0, 1)))


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, w, self.bias)


class StandardisedSame(nn.Conv2d):
    """The same with a gain a filter, behind TensorFlow's padding, as timm's StdConv2dSame and ScaledStdConv2d."""

    def __init__(self, *sizes: int, **settings: int) -> None:
        super().__init__(*sizes, **settings)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        w = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, (self.gain * 2).view(-1), training=True)
        x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, w.reshape_as(self.weight), self.bias, self.stride)


class EqualLearningRate(nn.Module):
    """A conv of the user's own, its weight scaled as it is used (Karras et al. 2018)."""

    def __init__(self, a: int, b: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(b, a, kernel, kernel))
        self.shift = nn.Parameter(torch.randn(b))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel * 0.1, self.shift, self.stride)


class Branches(nn.Module):
    """A kernel summed from two convs, in groups."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(a, b, 3, groups=1), nn.Conv2d(a, b, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.wide.weight + F.pad(self.narrow.weight, (1, 1, 1, 1)), self.wide.bias, padding=1)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def parametrized(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Halved())


def masked_weight(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(layer, "weight", 0.3)


COMPUTED = {
    "weight_norm": lambda: weight_norm(nn.Conv2d(3, 12, 3, 2)),
    "weight_norm, parametrized": lambda: parametrizations.weight_norm(nn.Conv2d(3, 12, 3, 2)),
    "spectral_norm": lambda: spectral_norm(nn.Conv2d(3, 12, 3, 2)),
    "spectral_norm, parametrized": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 12, 3, 2)),
    "a parametrization": lambda: parametrized(nn.Conv2d(3, 12, 3, 2)),
    "pruning's mask": lambda: masked_weight(nn.Conv2d(3, 12, 3, 2)),
    "weight standardisation": lambda: Standardised(3, 12, 3, 2),
    "standardised, padded": lambda: StandardisedSame(3, 12, 3, stride=2),
    "equal learning rate": lambda: EqualLearningRate(3, 12, 3, 2),
    "branches": lambda: Branches(3, 12),
}


class Computes(Plain):
    """Two layers with computed weights: the first is cut along its outputs, the second along its inputs."""

    def __init__(self, weight: str) -> None:
        super().__init__()
        self.a = COMPUTED[weight]()
        self.b = Standardised(12, 8, 3)
        self.fc = weight_norm(nn.Linear(8, 5))


def computes(weight: str, **_: int) -> nn.Module:
    return Computes(weight)


def returns(output: str, **_: int) -> nn.Module:
    return Returns(output)


class DynamicWeight(Plain):
    """The weight depends on the image: nothing can be made plain."""

    def __init__(self) -> None:
        super().__init__()
        self.b = Dynamic()


class Dynamic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 12, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel * x.mean())
