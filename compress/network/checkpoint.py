"""Read anybody's checkpoint; write and read the slim one."""

from pathlib import Path
from typing import Any

from ...errors import SlimrankError
from ...evaluate.imagespec import ImageSpec
from ...processes import alone
from . import foreign, hf_models, slim_file
from .contents import is_onnx, is_safetensors, refuse_others
from .header import Header
from .parts import Tree, tree
from .record import SEEN, Checkpoint
from .state import read_safetensors

__all__ = ["SEEN", "Checkpoint", "load", "save"]


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a slim checkpoint, whole or not at all; of several processes the first does."""
    alone(lambda: slim_file.write(checkpoint, path))


def load(
    path: str | Path,
    *,
    model: str | None = None,
    model_arg: dict[str, Any] | None = None,
    trust_pickle: bool = False,
    state_dict: str | None = None,
    **images: Any,
) -> Checkpoint:
    """Read a slim checkpoint, or a foreign one (.pt, .pth, .th, .safetensors) with the model's name.

    `model`: as `zoo.build` takes it, with `model_arg` for its constructor; `images`: how it sees them, the fields of
    `ImageSpec` (size, resize, crop_pct, interpolation, mean, std, range).
    Foreign files are unpickled with weights_only=True. The network's keys find its weights there, whatever they are nested
    under or prefixed with (parts.py); `state_dict`: which, where several fit. Without `num_classes` the classifier there tells
    how many. Raises SlimrankError for whatever does not fit.
    """
    folder, path = Path(path), hf_models.weights(Path(path))
    model = model or (f"hf/{folder}" if path != folder else None)
    if not path.is_file():
        what = "is a folder, not a checkpoint" if path.is_dir() else "is a pipe or a device, not a file"
        raise SlimrankError(f"no checkpoint at {path}: it {what if path.exists() else 'does not exist'}; check the path")
    if is_onnx(path):
        raise SlimrankError(f"{path} is an ONNX file; this verb takes a checkpoint (evaluate and bench take ONNX)")
    seen = ImageSpec(**images)
    header: Header | None = None
    if not is_safetensors(path):
        refuse_others(path)
    if is_safetensors(path) or path.suffix.lower() == ".safetensors":
        state, metadata = read_safetensors(path)
        header = slim_file.header_of(path, metadata)
        file: Tree = tree(state)
    else:
        file, name_in_file = foreign.read(path, trust_pickle)
        model = model or name_in_file
    if header is not None:
        other = {"model": bool(model) and model != header.model, "model_arg": bool(model_arg)}
        other["state_dict"] = state_dict is not None
        said = [*(name for name, given in other.items() if given), *seen.given]
        if said:
            raise SlimrankError(
                f"{path} carries its own model ({header.model}) and preprocessing; leave out "
                + ", ".join(f"`{name}`" for name in said)
            )
        return slim_file.rebuild(path, state, header, trusted=model is not None)
    if model is None:
        raise SlimrankError(f"{path} does not say what network it is; add `model` NAME, as `model` resnet18")
    return foreign.build(path, file, model, model_arg, seen, state_dict)
