"""Layers that are called by keyword, as `self.fc(input=x)`: from now on called with a positional tensor, which hooks see."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class _Positional:
    """A forward pre-hook: what the caller gives under `keyword` alone becomes the first positional argument."""

    keyword: str

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args or self.keyword not in kwargs:
            return None
        rest = dict(kwargs)
        return (rest.pop(self.keyword),), rest


@contextmanager
def made_positional(model: nn.Module) -> Iterator[None]:
    """Note which modules are called by keyword while the network runs within the context, and change their calls after it."""
    found: dict[nn.Module, str] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if keyword := first_keyword(module, args, kwargs):
            found[module] = keyword

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield
    for module, keyword in found.items():
        module.register_forward_pre_hook(_Positional(keyword), prepend=True, with_kwargs=True)


def first_keyword(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The name of a module's first argument where a call gives it by keyword."""
    if args or not kwargs:
        return None
    first = next(iter(inspect.signature(module.forward).parameters), None)
    return first if first in kwargs else None


def exchange(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in a layer's place, in place; whoever called the layer by keyword calls the module as well."""
    for hook in model.get_submodule(name)._forward_pre_hooks.values():
        if isinstance(hook, _Positional):
            module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
    model.set_submodule(name, module)
