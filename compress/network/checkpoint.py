"""Read anybody's checkpoint; write and read the slim one.

A slim checkpoint is one .safetensors file: the tensors, and in its header JSON the model's name and arguments, what
changed in which module, the preprocessing, the class names and the provenance. Loading builds the named network and
fits it to the tensors' shapes: no tracing, no torch-pruning, no pickle, and no code named by the file.
"""

import json
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import SlimrankError
from ...evaluate.data import Data, Preprocessing
from ...files import whole
from . import models
from .resize import fit_attributes, replace_tensor
from .subspace import SubspaceLinear

FORMAT = 1
MAX_SIZE = 4096  # pixels a side; what is larger is a slip of the keyboard
HEADER = "slimrank"
GATES = "slimrank.gates"  # a tensor beside the network's own
SEEN = (
    "warning: whoever trained this checkpoint may have trained on the validation images, and accuracy there is then memory; "
    "--validation test:0.2 takes them from the test split"
)
NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module")


@dataclass(frozen=True)
class Checkpoint:
    """A network and everything that must travel with it. `history`: what was done to it, for people."""

    model: nn.Module
    name: str
    arguments: dict[str, Any]
    preprocessing: Preprocessing
    classes: list[str] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    trained_on: dict[str, Any] | None = None  # Data.identity of our own training; None for anybody else's
    gates: Tensor | None = None  # class-specific gates, [features, classes], of the network as it was trained

    def then(self, model: nn.Module, **step: Any) -> "Checkpoint":
        """The same checkpoint one step on. Gates belong to the weights that they were trained with: they are left behind."""
        return replace(self, model=model, history=[*self.history, step], gates=None)

    def example(self, images: int = 1) -> Tensor:
        """Random images, [images, channels, size, size], for tracing."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(images, *self.preprocessing.shape, generator=generator).to(next(self.model.parameters()).device)

    def with_classes(self, data: Data) -> "Checkpoint":
        """Check that model and data name the same classes; a model without names takes the data's."""
        outputs = self.outputs()
        if outputs != len(data.classes):
            raise SlimrankError(
                f"the model has {outputs} classes, --data {data.spec} has {len(data.classes)}; give the data it was trained on"
            )
        if self.classes is not None and self.classes != data.classes:
            pairs = zip(self.classes, data.classes, strict=True)
            mine, other = next((a, b) for a, b in pairs if a != b)
            raise SlimrankError(
                f"class names differ: the model's {mine!r} is {other!r} in --data {data.spec}; use data with the same classes"
            )
        return replace(self, classes=data.classes)

    def validation_seen(self, data: Data) -> bool | None:
        """Whether training saw what `data` calls validation: known for our own training, else None."""
        if self.trained_on is None or self.trained_on["data"] != data.spec:
            return None
        return data.validation_from.startswith("train") and self.trained_on != data.identity

    def outputs(self) -> int:
        """Classes that the network tells apart; raises SlimrankError where it does not run on one tensor of images."""
        self.model.eval()
        try:
            with torch.inference_mode():
                return self.model(self.example()).shape[1]
        except (TypeError, RuntimeError, ValueError, AttributeError, IndexError) as error:
            raise SlimrankError(
                f"the model does not run on one tensor of images, {list(self.example().shape)}: {str(error).splitlines()[0]}; "
                "check --size and --model, wrap a model of several inputs in a module that fills in the rest"
            ) from error


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a slim checkpoint, whole or not at all."""
    model = checkpoint.model
    header = {
        "format": FORMAT,
        "model": checkpoint.name,
        "arguments": checkpoint.arguments,
        "modules": _changes(model, models.build(checkpoint.name, checkpoint.arguments)),
        "preprocessing": vars(checkpoint.preprocessing),
        "classes": checkpoint.classes,
        "history": checkpoint.history,
        "trained_on": checkpoint.trained_on,
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    if checkpoint.gates is not None:
        tensors[GATES] = checkpoint.gates.contiguous()
    with whole(path) as temporary:
        save_file(tensors, temporary, {HEADER: json.dumps(header)})


def _changes(model: nn.Module, fresh: nn.Module) -> dict[str, dict[str, Any]]:
    """Per module, what tensors' shapes do not tell: another type, the groups of a conv, a shortcut's sources."""
    original = dict(fresh.named_modules())
    changes: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        if isinstance(module, SubspaceLinear):
            kept = {key: getattr(module, key) for key in ("layout", "in_features", "rescore", "probe")}
            changes[name] = {"type": "SubspaceLinear", **kept}
        elif isinstance(module, models.PadShortcut):
            if module.source != original[name].source:
                changes[name] = {"source": module.source, "in_channels": module.in_channels}
        elif getattr(module, "groups", 1) != getattr(original.get(name), "groups", 1):
            changes[name] = {"groups": module.groups}
    return changes


def load(
    path: str | Path,
    *,
    name: str | None = None,
    arguments: dict[str, Any] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    size: int | None = None,
    trust_pickle: bool = False,
) -> Checkpoint:
    """Read a slim checkpoint, or a foreign one (.pt, .pth, .th, .safetensors) with the model's name.

    Foreign files are unpickled with weights_only=True; nesting under state_dict or model and `module.` prefixes are
    undone; without `num_classes` the last bias tells how many. Raises SlimrankError for whatever does not fit.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a checkpoint" if path.is_dir() else "does not exist"
        raise SlimrankError(f"no checkpoint at {path}: it {what}; check the path")
    if path.suffix == ".onnx":
        raise SlimrankError(f"{path} is an ONNX file; this verb takes a checkpoint (evaluate and bench take ONNX)")
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise SlimrankError(f"--size is {size}, must lie in 1..{MAX_SIZE} pixels")
    header: dict[str, Any] | None = None
    if path.suffix == ".safetensors":
        state, header = _read_safetensors(path)
    else:
        state, named = _read_pickle(path, trust_pickle)
        name = name or named
    _check_finite(state, path)
    if header is not None:
        if mean or std or size is not None or arguments or (name and name != header.get("model")):
            raise SlimrankError(
                f"{path} carries its own model ({header.get('model')}) and preprocessing; leave out --model, --model-arg, "
                "--mean, --std and --size"
            )
        gates = state.pop(GATES, None)
        return replace(_from_header(path, state, header, trusted=name is not None), gates=gates)
    if name is None:
        raise SlimrankError(f"{path} does not say what network it is; add --model NAME, as --model resnet18")
    arguments = dict(arguments or {})
    last = next((t for t in reversed(state.values()) if t.dim() == 1), None)
    if "num_classes" not in arguments and last is not None and models.accepts(name, "num_classes"):
        arguments["num_classes"] = len(last)
    model = models.build(name, arguments)
    _fill(model, state, path, f"{name} {arguments}")
    channels = models.input_channels(model)
    default = Preprocessing.default(channels, models.input_size(name) if size is None else size)
    preprocessing = Preprocessing(default.size, mean or default.mean, std or default.std)
    if len(preprocessing.mean) != channels:
        raise SlimrankError(f"--mean has {len(preprocessing.mean)} values, the model reads {channels} channels")
    history = [{"step": "read", "file": path.name}]
    return Checkpoint(model.eval(), name, arguments, preprocessing, None, history)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(HEADER)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = None if text is None else json.loads(text)
    except (SafetensorError, OSError, ValueError) as error:
        raise SlimrankError(f"{path} is damaged or no safetensors file ({error}); copy or make it again") from error
    return (state, header) if header is not None else (_plain(state), None)


def _read_pickle(path: Path, trust_pickle: bool) -> tuple[dict[str, Tensor], str | None]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "WeightsUnpickler" in str(error) or "Unsupported" in str(error):
            raise SlimrankError(
                f"{path} holds more than tensors and would run code when read; save model.state_dict() instead, "
                "or add --trust-pickle if you made the file yourself"
            ) from error
        raise SlimrankError(f"{path} is damaged or no PyTorch checkpoint; copy or make it again") from error
    except Exception as error:  # of other bytes the unpickler makes Index-, Type-, Assertion- or struct.error, too
        reason = f"{type(error).__name__}: {str(error)[:100]}".splitlines()[0]
        raise SlimrankError(f"{path} is damaged or no PyTorch checkpoint ({reason}); copy or make it again") from error
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
    known = isinstance(named, str) and ":" not in named and named in models.names()
    return _plain({k: v for k, v in value.items() if isinstance(v, Tensor)}), named if known else None


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _check_finite(state: dict[str, Tensor], path: Path) -> None:
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise SlimrankError(f"{path}: {key} holds NaN or infinite values; take an earlier checkpoint")


def _from_header(path: Path, state: dict[str, Tensor], header: dict[str, Any], trusted: bool) -> Checkpoint:
    try:
        if header["format"] != FORMAT:
            raise SlimrankError(f"{path} has slim format {header['format']}, this slimrank reads {FORMAT}; update slimrank")
        model = models.build(header["model"], header["arguments"], trusted=trusted)
        for name, change in header["modules"].items():
            _change(model, name, change, state)
        for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
            if name in state and state[name].shape != tensor.shape:
                replace_tensor(model, name, state[name])
        for module in model.modules():
            fit_attributes(module)
        _fill(model, state, path, header["model"])
        preprocessing = Preprocessing.from_dict(header["preprocessing"])
        made = Checkpoint(
            model.eval(),
            header["model"],
            header["arguments"],
            preprocessing,
            header["classes"],
            header["history"],
            header["trained_on"],
        )
        made.outputs()  # a header that does not fit the tensors shows here, not in the user's hands
        return made
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
        raise SlimrankError(f"{path} has a header that slimrank did not write ({error!r}); make it again") from error


def _change(model: nn.Module, name: str, change: dict[str, Any], state: dict[str, Tensor]) -> None:
    owner, _, leaf = name.rpartition(".")
    parent = model.get_submodule(owner)
    module = model.get_submodule(name)
    if change.get("type") == "SubspaceLinear":
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        head = SubspaceLinear(
            own["weight"], own["index"], own["bias"], int(change["in_features"]), change["layout"],
            order=own.get("order"), reorder=own.get("reorder"), rescore=int(change.get("rescore", 0)),
            full=(own["full_weight"], own["full_bias"]) if "full_weight" in own else None,
            coarse=(own["coarse_weight"], own["coarse_bias"]) if "coarse_weight" in own else None,
            probe=int(change.get("probe", 0)),
        )  # fmt: skip
        setattr(parent, leaf, head)
    elif isinstance(module, models.PadShortcut):
        module.source = [int(s) for s in change["source"]]
        module.in_channels = int(change["in_channels"])
    elif isinstance(module, nn.Conv2d):
        weight = state[f"{name}.weight"]
        module.groups = int(change["groups"])
        module.out_channels = weight.shape[0]
    else:
        raise KeyError(f"unknown change of {name}")


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    own = model.state_dict()
    wrong = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    if wrong:
        raise SlimrankError(
            f"{path}: {wrong[0]} is {list(state[wrong[0]].shape)}, {what} has {list(own[wrong[0]].shape)}; "
            "check --model and --model-arg"
        )
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own and not k.startswith(("aux1.", "aux2.", "AuxLogits."))]
    if missing or extra:
        odd = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which the network lacks"
        raise SlimrankError(f"{path} is no checkpoint of {what}: it {odd}; check --model and --model-arg")
    versioned = OrderedDict(state)
    versioned._metadata = own._metadata  # type: ignore[attr-defined]  # some modules (mnasnet) refuse a state without version
    model.load_state_dict(versioned, strict=False)
