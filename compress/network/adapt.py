"""Anybody's network as the rest of slimrank takes it: one tensor of images in, one matrix of logits out.

What forward() returns beside the logits is dropped here and nowhere else, so that tracing, ranking, training, evaluation and
export see one network. Modules keep their names and the network its class's name; a file of it needs to know nothing of this.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from .forward import Keys, at, flat, forward, logits_of, place
from .layers import OPERATORS, WEIGHTED, Applied, applied, sided, watched
from .positional import made_positional

OWN, READ = "_slimrank_forward", "_slimrank_read"  # of the instance: the forward() it was given, how its network is read


@dataclass(frozen=True)
class Read:
    """Where the logits lie in what forward() returns, whether axes of one position follow their classes, and which layers'
    weights are applied without calling the layer."""

    logits: Keys
    spatial: bool
    classes: int
    strays: tuple[str, ...]


def adapt(model: nn.Module, example: Tensor, classes: int | None = None) -> nn.Module:
    """Let a network give logits [images, classes] and call its layers with one tensor, in place, where its own forward() does
    otherwise.

    `example`: [1, channels, height, width]; `classes`: how many logits there are, where that is known. The network is run.
    Raises SlimrankError for a forward() that fails (with its own error) or gives no logits.
    """
    owners = {id(module.weight): name for name, module in model.named_modules() if type(module) in WEIGHTED}

    def astray(call: Applied) -> bool:
        return id(call.weight) in owners and owners[id(call.weight)] not in call.within

    with made_positional(model), watched(model, astray) as watch:
        output = forward(model, example)
    keys = place(output, classes)
    logits = at(output, keys)
    strays = {owners[id(call.weight)] for call in watch.calls if _is_own(model.get_submodule(owners[id(call.weight)]), call)}
    own = vars(model).pop("forward", None)
    if own is None and output is flat(logits) and not strays:
        return model
    vars(model).update({OWN: own, READ: Read(keys, logits.dim() > 2, classes or logits.shape[-1], tuple(sorted(strays)))})
    kind = type(model)
    model.__class__ = type(
        kind.__name__, (kind,), {"forward": _forward, "__module__": kind.__module__, "__doc__": kind.__doc__}
    )
    return model


def _forward(self: nn.Module, images: Tensor) -> Tensor:
    """The network's own forward(), its layers' weights applied by their modules, and of what it returns the logits."""
    kind: Any = type(self).__mro__[1]
    own, read = vars(self)[OWN] or partial(kind.forward, self), vars(self)[READ]
    if not read.strays:
        return _logits(own(images), read)
    with _ByModules({id(self.get_submodule(name).weight): self.get_submodule(name) for name in read.strays}):
        return _logits(own(images), read)


def _logits(output: Any, read: Read) -> Tensor:
    """The logits where they were found when the network was read; in training it may return other things."""
    if not isinstance(output, (Tensor, fx.Proxy)):
        try:
            output = at(output, read.logits)
        except (KeyError, IndexError, AttributeError, TypeError):
            return logits_of(output, read.classes)
    if isinstance(output, fx.Proxy):  # torch.fx follows the network: nothing can be asked of its shape
        proxy: Any = output
        return proxy.flatten(1) if read.spatial else proxy  # type: ignore[no-any-return]
    return flat(output)


class _ByModules(TorchFunctionMode):
    """Call the module where its operator is applied to its weight from outside: hooks see it, and it can be exchanged."""

    def __init__(self, modules: dict[int, nn.Module]):
        super().__init__()
        self.modules = modules

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in OPERATORS:
            call = applied((), func, args, kwargs or {})
            if id(call.weight) in self.modules:
                return self.modules[id(call.weight)](call.x)
        return func(*args, **(kwargs or {}))


def _is_own(module: nn.Module, call: Applied) -> bool:
    """Tell whether a call from outside computes what the module would: the same bias, the same settings."""
    if call.kind is not type(module) or getattr(module, "padding_mode", "zeros") != "zeros":
        return False
    default = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0}
    own = {name: getattr(module, name) for name in default if hasattr(module, name)}
    asked = {**{name: default[name] for name in own}, **call.settings}
    sides = call.weight.dim() - 2
    same = all(sided(own[name], sides) == sided(asked[name], sides) for name in own)
    return same and call.bias is getattr(module, "bias", None)
