"""Our own format, the slim checkpoint: one .safetensors file with a JSON header.

Beside the tensors it holds the model's name and arguments, what changed in which module, the preprocessing, the class
names and the provenance. Reading builds the named network and fits it to the tensors' shapes: no tracing, no
torch-pruning, no pickle, and no code named by the file.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save as packed
from torch import nn

from ...errors import SlimrankError
from ...evaluate.data import Preprocessing
from ...files import whole
from . import zoo
from .adapt import adapt
from .inputs import image
from .papers import PadShortcut
from .plain import KINDS, become, settings_of
from .record import Checkpoint
from .resize import fit_attributes, replace_tensor
from .state import State, damaged, fill
from .subspace import SubspaceLinear

FORMAT = 1
HEADER = "slimrank"
GATES = "slimrank.gates"  # a tensor beside the network's own

Header = dict[str, Any]  # JSON, as it stands in the file


def write(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a slim checkpoint, whole or not at all."""
    model = checkpoint.model
    header = {
        "format": FORMAT,
        "model": checkpoint.name,
        "arguments": checkpoint.arguments,
        "modules": _changes(model, zoo.build(checkpoint.name, checkpoint.arguments)),
        "preprocessing": vars(checkpoint.preprocessing),
        "classes": checkpoint.classes,
        "history": checkpoint.history,
        "trained_on": checkpoint.trained_on,
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    if checkpoint.gates is not None:
        tensors[GATES] = checkpoint.gates.contiguous()
    with whole(path) as temporary:
        temporary.write_bytes(packed(tensors, {HEADER: json.dumps(header)}))  # save_file() tells a full disk as its own error


def header_of(path: Path, metadata: dict[str, str]) -> Header | None:
    """Parse the header out of a .safetensors file's metadata; None where the file is not ours."""
    text = metadata.get(HEADER)
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise damaged(path, error) from error


def rebuild(path: Path, state: State, header: Header, trusted: bool) -> Checkpoint:
    """Build the network that a header names, changed as it says, and fill in the tensors.

    `trusted`: the user named the model on the command line; only then is a user's own module imported. Raises
    SlimrankError where the header is not what `write` makes, or does not fit the tensors.
    """
    state = dict(state)
    gates = state.pop(GATES, None)
    try:
        if header["format"] != FORMAT:
            raise SlimrankError(f"{path} has slim format {header['format']}, this slimrank reads {FORMAT}; update slimrank")
        model = zoo.build(header["model"], header["arguments"], trusted=trusted)
        preprocessing = Preprocessing.from_dict(header["preprocessing"])
        adapt(model, image(model, preprocessing.shape), header["arguments"].get("num_classes"))  # as it was when it was read
        for name, change in header["modules"].items():
            _change(model, name, change, state)
        for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
            if name in state and state[name].shape != tensor.shape:
                replace_tensor(model, name, state[name])
        for module in model.modules():
            fit_attributes(module)
        fill(model, state, path, header["model"])
        checkpoint = Checkpoint(
            model=model.eval(),
            name=header["model"],
            arguments=header["arguments"],
            preprocessing=preprocessing,
            classes=header["classes"],
            history=header["history"],
            trained_on=_trained_on(header["trained_on"]),
            gates=gates,
        )
        checkpoint.outputs()  # a header that does not fit the tensors shows here, not in the user's hands
        return checkpoint
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
        raise SlimrankError(f"{path} has a header that slimrank did not write ({error!r}); make it again") from error


def _trained_on(value: Any) -> list[dict[str, Any]] | None:
    """The trainings in a header; those of 0.8.0 and before hold one."""
    if value is None:
        return None
    trainings = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) and isinstance(one.get("data"), str) for one in trainings):
        raise ValueError(f"trained_on is {value!r}")
    return trainings


def _changes(model: nn.Module, fresh: nn.Module) -> dict[str, Header]:
    """Collect, per module, what the tensors' shapes do not tell: another type, a conv's groups, a shortcut's sources."""
    original = dict(fresh.named_modules())
    changes: dict[str, Header] = {}
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


def _change(model: nn.Module, name: str, change: Header, state: State) -> None:
    """Change one module of a fresh network as the header says."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(name)
    if change.get("type") == "SubspaceLinear":
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        setattr(model.get_submodule(owner), leaf, _subspace_linear(change, own))
    elif change.get("type") in KINDS:
        settings = {key: value for key, value in change.items() if key not in ("type", "bias")}
        become(module, change["type"], state[f"{name}.weight"], state[f"{name}.bias"] if change["bias"] else None, settings)
    elif isinstance(module, PadShortcut):
        module.source = [int(s) for s in change["source"]]
        module.in_channels = int(change["in_channels"])
    elif isinstance(module, nn.Conv2d):
        module.groups = int(change["groups"])
        module.out_channels = state[f"{name}.weight"].shape[0]
    else:
        raise KeyError(f"unknown change of {name}")


def _subspace_linear(change: Header, own: State) -> SubspaceLinear:
    return SubspaceLinear(
        own["weight"], own["index"], own["bias"], int(change["in_features"]), change["layout"],
        order=own.get("order"), reorder=own.get("reorder"), rescore=int(change.get("rescore", 0)),
        full=(own["full_weight"], own["full_bias"]) if "full_weight" in own else None,
        coarse=(own["coarse_weight"], own["coarse_bias"]) if "coarse_weight" in own else None,
        probe=int(change.get("probe", 0)),
    )  # fmt: skip
