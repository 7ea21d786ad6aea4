"""Tensors by name: read from a .safetensors file, checked, put in a network."""

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...errors import SlimrankError

State = dict[str, Tensor]
Shape = tuple[int | None, ...] | None  # None: open


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """Read the tensors and the metadata of a .safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> SlimrankError:
    """Make the error for a .safetensors file that cannot be read."""
    return SlimrankError(f"{path} is damaged or no safetensors file ({error}); copy or make it again")


def check_finite(state: State, path: Path) -> None:
    """Raise SlimrankError where a tensor holds NaN or infinite values."""
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise SlimrankError(f"{path}: {key} holds NaN or infinite values; take an earlier checkpoint")


def optional(key: str) -> bool:
    """Tell whether a file may lack a tensor: BatchNorm's counter."""
    return key.endswith("num_batches_tracked")


def extra(key: str) -> bool:
    """Tell whether a tensor that the network lacks is too much; torchvision's auxiliary classifiers may be there."""
    return not key.startswith(("aux1.", "aux2.", "AuxLogits."))


def shapes(model: nn.Module) -> dict[str, Shape]:
    """The shape of each of a network's tensors; None for one that takes the shape of what it is filled with."""
    return {key: None if is_lazy(t) else tuple(t.shape) for key, t in model.state_dict(keep_vars=True).items()}


def fits(tensor: Tensor, shape: Shape) -> bool:
    """Tell whether a tensor has a shape, axes that are open aside."""
    if shape is None:
        return True
    return tensor.dim() == len(shape) and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=True))


def fill(model: nn.Module, state: State, path: Path, network: str) -> None:
    """Put the tensors of a file in a network. Raises SlimrankError, with the first three that differ, where names or shapes
    do not fit."""
    own = shapes(model)
    odd = [
        f"{key} is missing" if key not in state else f"{key} is {list(state[key].shape)}, not {list(shape or ())}"
        for key, shape in own.items()
        if not (optional(key) if key not in state else fits(state[key], shape))
    ]
    odd += [f"{key} is too much" for key in state if key not in own and extra(key)]
    if odd:
        fitting = sum(key in state and fits(state[key], shape) for key, shape in own.items())
        raise SlimrankError(
            f"{path} is no checkpoint of {network}: {fitting} of {len(own)} tensors fit; {'; '.join(odd[:3])}"
            f"{f'; {len(odd) - 3} more' if len(odd) > 3 else ''}; check `model` and `model_arg`"
        )
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # mnasnet refuses one without version
    model.load_state_dict(versioned, strict=False)
