"""Our own format, the slim checkpoint: one .safetensors file with a JSON header.

Beside the tensors it holds the model's name and arguments, what changed in which module, the preprocessing, the class
names and the provenance. Reading builds the named network and fits it to the tensors' shapes: no tracing, no
torch-pruning, no pickle, and no code named by the file.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save as packed
from torch import nn

from ...errors import SlimrankError
from ...files import whole
from . import zoo
from .adapt import adapt
from .header import Change, Grouped, Header, Plain, Shortcut, Subspaces, parse
from .inputs import image
from .limits import in_proportion, small_images
from .papers import PadShortcut
from .plain import KINDS, become, settings_of
from .positional import exchange
from .record import Checkpoint
from .resize import fit_attributes, replace_tensor
from .state import State, check_sound, fill
from .subspace import SubspaceLinear

FORMAT = 1
KEY = "slimrank"
GATES = "slimrank.gates"  # a tensor beside the network's own


def write(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a slim checkpoint, whole or not at all."""
    model = checkpoint.model
    header = {
        "format": FORMAT,
        "model": checkpoint.name,
        "arguments": checkpoint.arguments,
        "modules": _changes(model, zoo.build(checkpoint.name, checkpoint.arguments)),
        "preprocessing": asdict(checkpoint.preprocessing),
        "classes": checkpoint.classes,
        "history": checkpoint.history,
        "trained_on": checkpoint.trained_on,
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    if checkpoint.gates is not None:
        tensors[GATES] = checkpoint.gates.contiguous()
    with whole(path) as temporary:
        temporary.write_bytes(packed(tensors, {KEY: json.dumps(header)}))  # save_file() tells a full disk as its own error


def header_of(path: Path, metadata: dict[str, str]) -> Header | None:
    """Parse the header out of a .safetensors file's metadata; None where the file is not ours."""
    text = metadata.get(KEY)
    try:
        return None if text is None else parse(text)
    except (ValueError, SlimrankError) as error:
        raise _foreign_header(path, error) from error


def rebuild(path: Path, state: State, header: Header, trusted: bool) -> Checkpoint:
    """Build the network that a header names, changed as it says, and fill in the tensors.

    `trusted`: the user named the model on the command line; only then is a user's own module imported. Raises
    SlimrankError where the header is not what `write` makes, or does not fit the tensors.
    """
    if header.format != FORMAT:
        raise SlimrankError(f"{path} has slim format {header.format}, this slimrank reads {FORMAT}; update slimrank")
    if empty := next((name for name, tensor in state.items() if not tensor.numel()), None):
        raise SlimrankError(f"{path}: {empty} is empty; make the file again")
    check_sound(state, path)
    state = dict(state)
    gates = state.pop(GATES, None)
    shape = header.preprocessing.shape
    try:
        with in_proportion(state, path):
            model = zoo.build(header.model, header.arguments, trusted=trusted)
        largest = max((tensor.numel() for tensor in model.parameters()), default=0)
        with small_images(shape, path, largest):
            adapt(model, image(model, shape), header.arguments.get("num_classes"))  # as it was when it was read
        for name, change in header.changes.items():
            _change(model, name, change, state)
        for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
            if name in state and state[name].shape != tensor.shape:
                replace_tensor(model, name, state[name])
        for module in model.modules():
            fit_attributes(module)
        fill(model, state, path, header.model)
        checkpoint = Checkpoint(
            model=model.eval(),
            name=header.model,
            arguments=header.arguments,
            preprocessing=header.preprocessing,
            classes=header.classes,
            history=header.history,
            trained_on=header.trainings,
            gates=gates,
        )
        with small_images(shape, path, largest):
            _check_classes(checkpoint)
        return checkpoint
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        IndexError,
        RuntimeError,
        AssertionError,
        ArithmeticError,
    ) as error:
        raise _foreign_header(path, error) from error


def _foreign_header(path: Path, error: Exception) -> SlimrankError:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return SlimrankError(f"{path} has a header that slimrank did not write ({why}); make it again")


def _check_classes(checkpoint: Checkpoint) -> None:
    """Raise ValueError where class names or gates are not as many as the network has outputs, which is run for it."""
    outputs = checkpoint.outputs()
    if checkpoint.classes is not None and len(checkpoint.classes) != outputs:
        raise ValueError(f"{len(checkpoint.classes)} class names for {outputs} outputs")
    gates = checkpoint.gates
    if gates is not None and (gates.dim() != 2 or gates.shape[1] != outputs or not gates.is_floating_point()):
        raise ValueError(f"gates of {list(gates.shape)} for {outputs} outputs")


def _changes(model: nn.Module, fresh: nn.Module) -> dict[str, dict[str, Any]]:
    """Collect, per module, what the tensors' shapes do not tell: another type, a conv's groups, a shortcut's sources."""
    original = dict(fresh.named_modules())
    changes: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        if isinstance(module, SubspaceLinear):
            kept = {key: getattr(module, key) for key in ("layout", "in_features", "rescore", "probe")}
            changes[name] = {"type": "SubspaceLinear", **kept}
        elif isinstance(module, PadShortcut):
            if module.source != original[name].source:
                changes[name] = {"source": module.source, "in_channels": module.in_channels}
        elif _made_plain(module, original.get(name)):
            changes[name] = {"type": type(module).__name__, "bias": module.bias is not None, **settings_of(module)}
        elif getattr(module, "groups", 1) != getattr(original.get(name), "groups", 1):
            changes[name] = {"groups": module.groups}
    return changes


def _made_plain(module: nn.Module, original: nn.Module | None) -> bool:
    """Tell whether a layer is plain that its constructor does not make so (plain.py)."""
    if type(module).__name__ not in KINDS or original is None:
        return False
    own = {name for name, _ in original.named_parameters()}
    return type(module) is not type(original) or own != {name for name, _ in module.named_parameters()}


def _change(model: nn.Module, name: str, change: Change, state: State) -> None:
    """Change one module of a fresh network as the header says."""
    module = model.get_submodule(name)
    if isinstance(change, Subspaces):
        if not isinstance(module, nn.Linear) or change.in_features > module.in_features:
            raise ValueError(f"{name} was no linear layer of {change.in_features} features")
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        exchange(model, name, _subspace_linear(change, own))
    elif isinstance(change, Plain):
        bias = state[f"{name}.bias"] if change.bias else None
        become(module, change.type, state[f"{name}.weight"], bias, change.settings)
    elif isinstance(change, Shortcut) and isinstance(module, PadShortcut):
        module.source, module.in_channels = change.source, change.in_channels
    elif isinstance(change, Grouped) and isinstance(module, nn.Conv2d):
        module.groups = change.groups
        module.out_channels = state[f"{name}.weight"].shape[0]
    else:
        raise ValueError(f"{name} is no {type(change).__name__.lower()} layer")


def _subspace_linear(change: Subspaces, own: State) -> SubspaceLinear:
    return SubspaceLinear(
        own["weight"], own["index"], own["bias"], change.in_features, change.layout,
        order=own.get("order"), reorder=own.get("reorder"), rescore=change.rescore,
        full=(own["full_weight"], own["full_bias"]) if "full_weight" in own else None,
        coarse=(own["coarse_weight"], own["coarse_bias"]) if "coarse_weight" in own else None,
        probe=change.probe,
    )  # fmt: skip
