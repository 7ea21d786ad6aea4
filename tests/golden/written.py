"""What the files that a command wrote hold, for the record."""

import json
from pathlib import Path
from typing import Any

from .compare import skeleton


def written(folder: Path, before: set[str], *, names_only: bool) -> dict[str, Any]:
    """Every new file below `folder`; slim checkpoints, ONNX and JSON files with their keys, names and shapes."""
    new = sorted(files_below(folder) - before)
    return {name: None if names_only else _contents(folder / name) for name in new}


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _contents(path: Path) -> Any:
    if path.suffix == ".json":
        return skeleton(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".safetensors":
        return _slim(path)
    return _onnx(path) if path.suffix == ".onnx" else None


def _slim(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        headers = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
        shapes = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    for header in headers.values():
        header["history"] = {str(i): step for i, step in enumerate(header["history"])}  # every step counts, not the first alone
    return {"headers": skeleton(headers), "tensors": shapes}


def _onnx(path: Path) -> dict[str, Any]:
    import onnx

    model = onnx.load(path)
    ends = {
        end: {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in getattr(model.graph, end)
        }
        for end in ("input", "output")
    }
    return {**ends, "metadata": sorted(entry.key for entry in model.metadata_props)}
