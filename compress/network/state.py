"""Tensors by name: read from a .safetensors file, checked, put in a network."""

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...errors import SlimrankError

State = dict[str, Tensor]


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


def fill(model: nn.Module, state: State, path: Path, network: str) -> None:
    """Put the tensors of a file in a network. Raises SlimrankError where names or shapes do not fit.

    BatchNorm's `num_batches_tracked` may be missing, torchvision's auxiliary classifiers may be too many.
    """
    own = model.state_dict()
    wrong = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    if wrong:
        raise SlimrankError(
            f"{path}: {wrong[0]} is {list(state[wrong[0]].shape)}, {network} has {list(own[wrong[0]].shape)}; "
            "check `model` and `model_arg`"
        )
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own and not k.startswith(("aux1.", "aux2.", "AuxLogits."))]
    if missing or extra:
        odd = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which the network lacks"
        raise SlimrankError(f"{path} is no checkpoint of {network}: it {odd}; check `model` and `model_arg`")
    versioned = OrderedDict(state)
    versioned._metadata = own._metadata  # type: ignore[attr-defined]  # some modules (mnasnet) refuse a state without version
    model.load_state_dict(versioned, strict=False)
