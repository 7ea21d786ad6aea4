"""Small networks that hold one difficulty each."""

import torch
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


class PadsFirst(nn.Conv2d):
    """A conv of somebody's own class, as those of TensorFlow's ports are."""

    def __init__(self, *sizes: int, **settings: object) -> None:
        super().__init__(*sizes, **settings)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Aside(nn.Module):
    """The stem's channels beside themselves, after an operator whose output holds no real numbers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.mid = nn.Conv2d(16, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 5)

    def aside(self, x: Tensor) -> Tensor:
        if self.how == "fft":
            return torch.fft.ifft2(torch.fft.fft2(x) * 0.5).real
        if self.how == "rfft":
            return torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=x.shape[2:])
        if self.how == "complex":
            return torch.complex(x, x).abs()
        if self.how == "quantised":
            return torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8).dequantize().to(x.dtype)
        if self.how == "sorted":
            return x.flatten(2).argsort(-1).view(x.shape).to(x.dtype)
        return (x > 0.1).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.classifier(F.relu(self.mid(torch.cat([x, self.aside(x)], 1))).mean((2, 3)))


class Branching(nn.Module):
    """forward() that asks the image which way to go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.more = nn.Conv2d(8, 8, 3)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        if x.mean() > 0.1:
            x = self.more(x)
        return self.classifier(x.mean((2, 3)))


class TwoInputs(Branching):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return self.classifier(self.stem(x + y).mean((2, 3)))


def branching(**_: int) -> nn.Module:
    return Branching()


def two_inputs(**_: int) -> nn.Module:
    return TwoInputs()


def lively(model: nn.Module, images: Tensor) -> nn.Module:
    """Scale every conv and linear layer so that its output has standard deviation 1 on these images, layer after layer in
    one pass, and let BatchNorm's statistics be those of the images (Mishkin & Matas 2016, "All you need is a good init"):
    random weights alone give logits that do not differ, and agreement of such logits proves nothing."""

    def scale(module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        factor = 1 / out.std().clamp_min(1e-6)
        module.weight.mul_(factor)
        if module.bias is not None:
            module.bias.mul_(factor)
        return out * factor

    def settle(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        module.running_mean.copy_(x.mean(1))
        module.running_var.copy_(x.var(1) + 1e-3)
        module.weight.uniform_(0.7, 1.3)
        module.bias.uniform_(-0.3, 0.3)

    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):  # convnext's starts at 1e-6, which would hide the block
            parameter.data.uniform_(0.5, 1.0)
    hooks = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            hooks.append(module.register_forward_hook(scale))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_pre_hook(settle))
    model.eval()
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return model


def decomposed(dense: nn.Linear, index: Tensor, layout: str = "gather"):
    """The paper's head: the dense weights at the chosen features, [classes, k]."""
    from slimrank.compress.head.cluster import Subspaces
    from slimrank.compress.head.fit import assemble, truncated

    weight = dense.weight.detach()
    bias = torch.zeros(len(weight)) if dense.bias is None else dense.bias.detach()
    spaces = Subspaces(index)
    return assemble(*truncated(weight, bias, spaces), spaces, dense.in_features, layout).to(weight.dtype)
