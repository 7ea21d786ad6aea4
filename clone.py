"""A copy of a network with copies of the functions that it holds.

copy.deepcopy leaves functions as they are. A hook or a forward() made inside the constructor remembers the network that it was
made for (a closure); in the copy it would go on to read and write the original.
"""

import copy
import types
from typing import Any

from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def clone(model: nn.Module) -> nn.Module:
    """Copy a network; functions among its modules' attributes and hooks that remember parts of it remember the copy's."""
    memo: dict[int, Any] = {}
    copied: nn.Module = copy.deepcopy(model, memo)
    for module in copied.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType):
                vars(module)[name] = _bound_anew(value, memo)
        for hooks in (vars(module).get(name) or {} for name in HOOKS):
            for key, hook in list(hooks.items()):
                hooks[key] = _bound_anew(hook, memo)
    return copied


def _bound_anew(function: Any, memo: dict[int, Any]) -> Any:
    """Copy a function that remembers or has as a default what was copied; any other one is given back as it is."""
    if not isinstance(function, types.FunctionType):
        return function
    if id(function) in memo:
        return memo[id(function)]
    held = [*(function.__closure__ or ()), *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if not held:
        return function
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
    memo[id(function)] = made  # before its cells: a function may remember itself
    for cell, old in zip(cells, function.__closure__ or (), strict=True):
        try:
            cell.cell_contents = _copied(old.cell_contents, memo)
        except ValueError:  # the name was never given a value
            continue
    made.__defaults__ = tuple(_copied(value, memo) for value in function.__defaults__ or ()) or None
    made.__kwdefaults__ = {key: _copied(value, memo) for key, value in (function.__kwdefaults__ or {}).items()} or None
    made.__dict__.update(function.__dict__)
    return made


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """What stands for a value in the copy: the copied one, or a copy where it holds parts of the network or keeps results."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, types.FunctionType):
        return _bound_anew(value, memo)
    if isinstance(value, (nn.Module, Tensor, types.MethodType, list, dict, tuple, set)):
        try:
            return copy.deepcopy(value, memo)
        except (RuntimeError, TypeError):  # results that still hold their gradient's graph, open files and the like
            return value
    return value
