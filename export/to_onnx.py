"""nn.Module in, one ONNX file out, with everything `slimrank evaluate MODEL.onnx` needs in its metadata."""

import contextlib
import copy
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ..errors import SlimrankError
from ..files import whole

KEY = "slimrank"
ONE_FILE = 2**31 - 2**24  # bytes of weights; protobuf holds less than 2 GiB


def export(model: nn.Module, example: Tensor, path: str | Path, metadata: dict[str, Any]) -> Path:
    """Write `model` as ONNX (dynamo exporter): input `images` [batch, channels, height, width], output `logits`.

    The batch is dynamic, the weights lie inside the one file (from 2 GB on, which protobuf cannot hold, in FILE.onnx.data
    beside it), `metadata` is stored as JSON under the key `slimrank`.
    Raises SlimrankError where the exporter refuses the model's forward.
    """
    path = Path(path)
    model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
    two = torch.cat([example[:1].cpu()] * 2)  # one image would be taken for a constant batch
    try:
        with _quiet():
            program = torch.onnx.export(
                model, (two,), dynamo=True, external_data=False, verbose=False,
                input_names=["images"], output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )  # fmt: skip
    except Exception as error:  # the exporter raises whatever the traced code raises
        report = str(error.__cause__ or error).strip()
        reason = report.splitlines()[0][:160]
        raise SlimrankError(f"the ONNX exporter refuses this model: {reason}; {_where(report)}") from error
    assert program is not None
    proto = program.model_proto
    _strip(proto.graph)
    onnx.helper.set_model_props(proto, {KEY: json.dumps(metadata)})
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    beside = path.with_name(f"{path.name}.data")
    beside.unlink(missing_ok=True)
    with whole(path) as temporary:
        if weights < ONE_FILE:
            onnx.save(proto, temporary)
        else:
            onnx.save(proto, temporary, save_as_external_data=True, location=beside.name)
    return path


def size(path: str | Path) -> int:
    """Bytes of an ONNX file, with those of the weights beside it where it has any."""
    path = Path(path)
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def _where(report: str) -> str:
    """The line of the user's code where export failed: the innermost one of the exporter's report outside site-packages."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s*(.+)', report)
    own = [frame for frame in frames if "site-packages" not in frame[0]]
    if not own:
        return "--debug shows where"
    file, line, code = own[-1]
    return f"at {file}:{line}, `{code.strip()[:80]}`; write it without control flow that depends on the image"


def metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata that `export` stored; an empty dict for a file that somebody else made."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions differ between versions
        raise SlimrankError(f"{path} is no ONNX file ({type(error).__name__}); export it again") from error
    for entry in proto.metadata_props:
        if entry.key == KEY:
            stored: dict[str, Any] = json.loads(entry.value)
            return stored
    return {}


def _strip(graph: onnx.GraphProto) -> None:
    """Remove the exporter's notes on every node (paths of this machine among them)."""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*graph.value_info, *graph.input, *graph.output]:
        del value.metadata_props[:]
    del graph.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings, logs and prints; its errors still come through as exceptions."""
    names = ("torch.onnx", "onnxscript", "torch.export", "onnx_ir", "torch.fx", "torch.fx.experimental", "torch._dynamo")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
