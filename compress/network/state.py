"""Tensors by name: read from a .safetensors file, checked, put in a network."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...errors import SlimrankError

State = dict[str, Tensor]
Shape = tuple[int | None, ...] | None  # None: open
USUAL = {
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.bool,
}  # fmt: skip
MOST, LONGEST = 100_000, 2**25  # tensors in a .safetensors file, and bytes of its header


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """Read the tensors and the metadata of a .safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if LONGEST < length < path.stat().st_size:
            raise ValueError(f"its header has {length:,} bytes, {LONGEST:,} is the limit")
        with safe_open(path, "pt") as opened:
            metadata, keys = dict(opened.metadata() or {}), list(opened.keys())
            if len(keys) > MOST:
                raise ValueError(f"it holds {len(keys):,} tensors, {MOST:,} is the limit")
            return {key: opened.get_tensor(key) for key in keys}, metadata
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise damaged(path, error) from error  # the last four: of types of numbers that this torch lacks


def damaged(path: Path, error: Exception) -> SlimrankError:
    """Make the error for a .safetensors file that cannot be read."""
    return SlimrankError(f"{path} is damaged or no safetensors file ({error}); copy or make it again")


def oddity(tensor: Tensor) -> str:
    """What makes a tensor one that a network cannot be filled with, whatever its shape; empty for usual ones.

    A tensor that repeats its values is small in its file, and takes any amount of memory wherever it is used.
    """
    if tensor.is_meta:
        return "has no values (it is on the meta device)"
    if tensor.is_quantized or tensor.dtype not in USUAL:
        return f"is quantised ({tensor.dtype})" if tensor.is_quantized else f"holds {tensor.dtype}"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "is nested" if tensor.is_nested else f"is sparse ({tensor.layout})"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"is {list(tensor.shape)} out of {tensor.untyped_storage().nbytes():,} bytes, repeated"
    return ""


def check_sound(state: State, path: Path) -> None:
    """Raise SlimrankError for a tensor that no network can be filled with, and one that holds NaN or infinite values."""
    for key, tensor in state.items():
        if odd := oddity(tensor):
            raise SlimrankError(f"{path}: {key} {odd}; save it as dense float32, as tensor.dequantize() or .to_dense() make it")
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


def check_fits(own: Mapping[str, Shape], state: State, path: Path, network: str) -> None:
    """Raise SlimrankError, with the first three that differ, where the tensors of a file are not a network's by name and
    shape; `own`: the network's."""
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


def fill(model: nn.Module, state: State, path: Path, network: str) -> None:
    """Put the tensors of a file in a network. Raises SlimrankError where names or shapes do not fit."""
    check_fits(shapes(model), state, path, network)
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # mnasnet refuses one without version
    model.load_state_dict(versioned, strict=False)
