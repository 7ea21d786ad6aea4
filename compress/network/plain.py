"""Layers whose weight is computed before it is used, made plain: what they compute from parameters alone is a constant.

Weight norm (of a hook or a parametrization), spectral norm, pruning masks, weight standardisation, equalised learning rates,
kernels summed from branches: once trained, each is a conv, transposed conv or linear layer with one weight, perhaps behind a
padding. Such a layer shrinks with its channels; the computation would be another one on fewer of them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forward import forward
from .layers import WEIGHTED, Applied, watched
from .positional import made_positional


class PaddedConv2d(nn.Conv2d):
    """A conv behind a padding with zeros that its own `padding` cannot say: `before` is that of F.pad."""

    before: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.before))


KINDS: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in (*WEIGHTED, PaddedConv2d)}
# of the module that is made plain: its hooks are of use
KEPT = ("training", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks")


def fuse(model: nn.Module, example: Tensor) -> nn.Module:
    """Make the layers plain whose weights are computed from parameters alone, in place, and keep their names.

    `example`: [1, channels, height, width]; the network is run, and each layer on what it read there and on another input:
    where the plain layer gives another output than the layer itself, that one is left as it is. Raises SlimrankError where
    the network does not run.
    """
    own = {id(tensor) for module in model.modules() if isinstance(module, WEIGHTED) for tensor in _weights(module)}
    with made_positional(model), watched(model, lambda call: id(call.weight) not in own) as watch:
        forward(model, example)
    names = dict.fromkeys(call.within[-1] for call in watch.calls if len(call.within) > 1)
    if not names:
        return model
    inputs: dict[str, tuple[Any, ...]] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _m, x, name=name: inputs.__setitem__(name, x))
        for name in names
    ]
    try:
        forward(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        if len(inputs[name]) == 1 and isinstance(inputs[name][0], Tensor):
            _fuse(model.get_submodule(name), inputs[name][0])
    return model


def become(module: nn.Module, kind: str, weight: Tensor, bias: Tensor | None, settings: dict[str, Any]) -> None:
    """Turn a module, in place, into the plain layer of this kind: its tensors, submodules and computation are gone.

    `settings`: what the kind's constructor takes beside sizes (stride, padding, dilation, groups, output_padding); `before`.
    """
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    before = settings.pop("before", None)
    constructor = KINDS[kind]
    if constructor is nn.Linear:
        sizes: tuple[Any, ...] = (weight.shape[1], weight.shape[0])
    else:
        groups, one, other = settings.get("groups", 1), weight.shape[1] * settings.get("groups", 1), weight.shape[0]
        assert other % groups == 0
        sizes = ((other, one) if "Transpose" in kind else (one, other)) + (tuple(weight.shape[2:]),)
    plain = constructor(*sizes, bias=bias is not None, device="meta", **settings)
    plain.register_parameter("weight", nn.Parameter(weight.detach().clone()))
    plain.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
    kept = {key: vars(module)[key] for key in KEPT}
    for key, hook in list(kept["_forward_pre_hooks"].items()):
        if type(hook).__module__.startswith("torch.nn.utils."):  # weight_norm, spectral_norm and prune compute weights in them
            del kept["_forward_pre_hooks"][key]
    module.__class__ = constructor
    vars(module).clear()
    vars(module).update({**vars(plain), **kept})
    if before is not None:
        module.before = before


def settings_of(module: nn.Module) -> dict[str, Any]:
    """The settings that `become` takes, of a plain layer."""
    names = ["stride", "padding", "dilation", "groups", "before"]
    names += ["output_padding"] if "Transpose" in type(module).__name__ else []
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def _weights(module: nn.Module) -> list[Tensor]:
    weight = module._parameters.get("weight")
    return [] if weight is None else [weight]


def _fuse(module: nn.Module, x: Tensor) -> None:
    """Make one module plain where that changes nothing."""
    other = 0.5 * x.flip(-1) + 0.25
    with torch.no_grad():
        first, second = _call(module, x), _call(module, other)
        if first is None or second is None or not torch.equal(first[0].weight, second[0].weight):
            return
        call = first[0]
        settings = dict(call.settings)
        kind = call.kind.__name__
        if call.x.shape != x.shape:
            padding = _padding(x, call.x)
            if padding is None or kind != "Conv2d":
                return
            kind, settings["before"] = "PaddedConv2d", padding
        before = (module.__class__, dict(vars(module)), dict(module._forward_pre_hooks))
        become(module, kind, call.weight.clone(), None if call.bias is None else call.bias.clone(), settings)
        try:
            same = all(torch.allclose(module(image), one[1], 1e-4, 1e-5) for image, one in ((x, first), (other, second)))
        except Exception:  # a hook of the user's own may need what is gone
            same = False
        if not same:
            module.__class__ = before[0]
            vars(module).clear()
            vars(module).update(before[1])
            module._forward_pre_hooks.clear()
            module._forward_pre_hooks.update(before[2])


def _call(module: nn.Module, x: Tensor) -> tuple[Applied, Tensor] | None:
    """The one call of a layer's operator in a module, and what the module gives; None where there are several or it fails."""
    with watched(module) as watch:
        try:
            out = module(x)
        except Exception:  # another input may be none to the user's own module
            return None
    return (watch.calls[0], out) if len(watch.calls) == 1 and isinstance(out, Tensor) else None


def _padding(x: Tensor, padded: Tensor) -> tuple[int, ...] | None:
    """Find the zeros around an input that was padded, as F.pad takes them; None where it was not."""
    if x.dim() != 4 or padded.shape[:2] != x.shape[:2]:
        return None
    more = [padded.shape[axis] - x.shape[axis] for axis in (3, 2)]
    if min(more) < 0:
        return None
    for left in dict.fromkeys((more[0] // 2, 0, more[0])):
        for top in dict.fromkeys((more[1] // 2, 0, more[1])):
            sides = (left, more[0] - left, top, more[1] - top)
            if torch.equal(F.pad(x, sides), padded):
                return sides
    return None
