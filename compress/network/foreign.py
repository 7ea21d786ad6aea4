"""Other people's checkpoints: .pt, .pth, .th and .safetensors files that hold a state_dict somewhere."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ...evaluate.imagespec import ImageSpec
from . import zoo
from .record import Checkpoint
from .state import State, fill

NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module")


def read_pickle(path: Path, trust_pickle: bool) -> tuple[State, str | None]:
    """Read a pickled file: its tensors, and the network's name where the file gives one that we know.

    Only tensors are unpickled unless `trust_pickle`; nesting under state_dict, model and the like is undone.
    """
    value = _unpickled(path, trust_pickle)
    named = value.get("arch") if isinstance(value, dict) else None
    if isinstance(value, nn.Module):
        value = value.state_dict()
    while isinstance(value, dict) and not any(isinstance(v, Tensor) for v in value.values()):
        inner = next((value[k] for k in NESTS if isinstance(value.get(k), (dict, nn.Module))), None)
        if inner is None:
            break
        value = inner.state_dict() if isinstance(inner, nn.Module) else inner
    if not isinstance(value, dict) or not any(isinstance(v, Tensor) for v in value.values()):
        raise SlimrankError(f"{path} holds no state_dict (looked under {', '.join(NESTS)}); save model.state_dict()")
    known = isinstance(named, str) and ":" not in named and named in zoo.names()
    return without_prefix({k: v for k, v in value.items() if isinstance(v, Tensor)}), named if known else None


def _unpickled(path: Path, trust_pickle: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:  # torch has one type for damaged files and for files that would run code
        if "weights_only" in str(error).lower() or "WeightsUnpickler" in str(error) or "Unsupported" in str(error):
            raise SlimrankError(
                f"{path} holds more than tensors and would run code when read; save model.state_dict() instead, "
                "or add `trust_pickle` if you made the file yourself"
            ) from error
        raise SlimrankError(f"{path} is damaged or no PyTorch checkpoint; copy or make it again") from error
    except Exception as error:  # of other bytes the unpickler makes Index-, Type-, Assertion- or struct.error, too
        reason = f"{type(error).__name__}: {str(error)[:100]}".splitlines()[0]
        raise SlimrankError(f"{path} is damaged or no PyTorch checkpoint ({reason}); copy or make it again") from error


def without_prefix(state: State) -> State:
    """Undo the `module.` that DataParallel puts before every name."""
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state


def build(
    path: Path,
    state: State,
    name: str,
    arguments: dict[str, Any] | None,
    images: ImageSpec,
) -> Checkpoint:
    """Build the named network and fill in a file's tensors; without `num_classes` the last bias tells how many.

    `images` says how the network sees images; what it leaves open is as usual for the network.
    """
    arguments = dict(arguments or {})
    last = next((t for t in reversed(state.values()) if t.dim() == 1), None)
    if "num_classes" not in arguments and last is not None and zoo.accepts(name, "num_classes"):
        arguments["num_classes"] = len(last)
    model = zoo.build(name, arguments)
    fill(model, state, path, f"{name} {arguments}")
    channels = zoo.input_channels(model)
    preprocessing = images.over(zoo.preprocessing(name, channels, path.name))
    if len(preprocessing.mean) != channels:
        raise SlimrankError(f"`mean` has {len(preprocessing.mean)} values, the model reads {channels} channels")
    return Checkpoint(model.eval(), name, arguments, preprocessing, None, [{"step": "read", "file": path.name}])
