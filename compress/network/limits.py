"""What a file may cost: networks, and images in them, in proportion to the tensors that the file holds.

A few bytes can ask for a million channels or a photograph of a whole country. Both are seen before memory is touched: layers
are counted as they are registered, which is before their values are drawn, and what a layer will give before it is run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from ...errors import SlimrankError
from .layers import OPERATORS, Applied, applied, sided
from .resize import TRANSPOSED

SMALL, SHARE = 2**26, 100  # numbers that any network may have; of a larger one, how often as many as the file holds
FEW, EACH = 2000, 20  # modules and tensors of any network; of a larger one, for each tensor of the file
ACTIVATION = 2**26  # numbers in the largest activation of one image


@contextmanager
def in_proportion(state: Mapping[str, Tensor], path: Path) -> Iterator[None]:
    """Within the context no network can be built that is out of all proportion to the tensors of its file.

    A cut network is built as large as it was; it has lost filters, but hardly a layer.
    """
    parts, numbers = FEW + EACH * len(state), max(SMALL, SHARE * sum(tensor.numel() for tensor in state.values()))
    counted = {"parts": 0, "numbers": 0}

    def count(_module: nn.Module, _name: str, part: object) -> None:
        counted["parts"] += 1
        counted["numbers"] += part.numel() if isinstance(part, Tensor) and not nn.parameter.is_lazy(part) else 0
        if counted["parts"] > parts or counted["numbers"] > numbers:
            raise SlimrankError(f"{path} asks for a network out of all proportion to the tensors in it; make it again")

    register: tuple[Callable[..., Any], ...] = (
        hooks.register_module_module_registration_hook, hooks.register_module_parameter_registration_hook,
        hooks.register_module_buffer_registration_hook,
    )  # fmt: skip
    with ExitStack() as stack:
        for one in register:
            stack.callback(one(count).remove)
        yield


@contextmanager
def small_images(shape: Sequence[int], path: Path, weights: int) -> Iterator[None]:
    """Within the context no network can take much memory for an image [channels, height, width], nor can the image itself.

    What a layer with a weight, or a padding, will give is computed before it is run. `weights`: numbers in the largest weight
    of the network, as many as which may be made, too: a class-specific head may be written out dense.
    """

    limit = max(ACTIVATION, weights)

    def check(numbers: int) -> None:
        if numbers > limit:
            raise SlimrankError(
                f"{path}: an image of {' x '.join(map(str, shape))} takes more than {4 * limit >> 20} MB in one of the "
                "network's layers; make it again for smaller images"
            )

    check(torch.Size(shape).numel())
    with _Checked(check):
        yield


class _Checked(TorchFunctionMode):
    """Within the context `check` is told how many numbers each operator will give, and has given."""

    def __init__(self, check: Callable[[int], None]):
        super().__init__()
        self.check = check

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in OPERATORS:
            self.check(_numbers(applied((), func, args, kwargs)))
        elif func is F.pad and len(args) > 1:
            image, before = args[0], list(args[1])
            sides = [side + sum(before[2 * i : 2 * i + 2]) for i, side in enumerate(reversed(image.shape))]
            self.check(torch.Size([max(side, 0) for side in sides]).numel())
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self.check(out.numel())
        return out


def _numbers(call: Applied) -> int:
    """How many numbers a layer's operator will give, at most."""
    x, weight, asked = call.x, call.weight, call.settings
    if call.kind is nn.Linear:
        return x.shape[:-1].numel() * len(weight)
    transposed = call.kind in TRANSPOSED
    channels = weight.shape[1] * asked.get("groups", 1) if transposed else weight.shape[0]
    sides = [
        side * stride + kernel * dilation + more if transposed else (side + 2 * more) // stride + 1
        for side, kernel, stride, dilation, more in zip(
            x.shape[-weight.dim() + 2 :],
            weight.shape[2:],
            sided(asked.get("stride", 1), weight.dim() - 2),
            sided(asked.get("dilation", 1), weight.dim() - 2),
            sided(_padding(asked.get("output_padding" if transposed else "padding", 0)), weight.dim() - 2),
            strict=False,
        )
    ]
    return channels * torch.Size(sides).numel()


def _padding(said: Any) -> Any:
    return 0 if isinstance(said, str) else said  # "same" and "valid" make nothing larger
