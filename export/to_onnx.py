"""nn.Module in, one ONNX file out, with everything `slimrank evaluate MODEL.onnx` needs in its metadata."""

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ..clone import clone
from ..errors import SlimrankError
from ..evaluate.external import weights_beside
from ..files import Scratch, ready, settle, unwritten

KEY = "slimrank"
OPSETS = range(18, 24)  # that the exporter writes itself; what it converts to older ones fails for most networks
ONE_FILE = 2**31 - 2**24  # bytes of weights; protobuf holds less than 2 GiB


def export(
    model: nn.Module, example: Tensor, path: str | Path, metadata: dict[str, Any], *, opset: int | None = None,
    outputs: Sequence[str] = ("logits",),
) -> Path:  # fmt: skip
    """Write `model` as ONNX (dynamo exporter): input `images` [batch, channels, height, width], output `logits`.

    The batch is dynamic, the weights lie inside the one file (from 2 GB on, which protobuf cannot hold, in FILE.onnx.data
    beside it), `metadata` is stored as JSON under the key `slimrank`. `outputs`: names of what the model gives. `opset`: of
    ONNX's operators (None: the exporter's own); the IR version is the oldest that this opset allows, so that older runtimes
    load the file.
    Raises SlimrankError where the exporter refuses the model's forward.
    """
    path = Path(path)
    check_opset(opset)
    model = clone(model).cpu().to(memory_format=torch.contiguous_format).eval()
    two = torch.cat([example[:1].cpu()] * 2)  # one image would be taken for a constant batch
    try:
        with _quiet():
            program = torch.onnx.export(
                model, (two,), dynamo=True, external_data=False, verbose=False, opset_version=opset,
                input_names=["images"], output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )  # fmt: skip
    except Exception as error:  # the exporter raises whatever the traced code raises
        report = str(error.__cause__ or error).strip()
        reason = report.splitlines()[0][:160]
        raise SlimrankError(f"the ONNX exporter refuses this model: {reason}; {_where(report)}") from error
    assert program is not None
    proto = program.model_proto
    _strip(proto.graph)
    proto.ir_version = onnx.helper.find_min_ir_version_for(list(proto.opset_import))
    onnx.helper.set_model_props(proto, {KEY: json.dumps(metadata)})
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    with replacing(path) as fresh, _writing(path):
        if weights < ONE_FILE:
            onnx.save(proto, fresh)
        else:
            onnx.save(proto, fresh, save_as_external_data=True, location=beside(fresh).name)
    return path


def check_opset(opset: int | None) -> None:
    """Raise SlimrankError for an opset that the exporter does not write."""
    if opset is not None and opset not in OPSETS:
        raise SlimrankError(f"`opset` is {opset}; the exporter writes {OPSETS[0]} (ONNX Runtime 1.14) to {OPSETS[-1]}")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield where to write an ONNX file, with its weights beside it or not; both take the place of `path`'s on success.

    On any failure the old file and its weights stay as they were.
    """
    path = ready(path)
    with _writing(path):
        scratch = Scratch(path)
    with scratch as folder:
        fresh = Path(folder) / path.name
        yield fresh
        with _writing(path):
            outdated = _weights_beside(path) and not beside(fresh).exists()
            if beside(fresh).exists():
                settle(beside(fresh), beside(path))
            settle(fresh, path)
            if outdated:
                beside(path).unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritten(path, error) from error


def beside(path: Path) -> Path:
    """Where the weights of an ONNX file lie that cannot hold them."""
    return path.with_name(f"{path.name}.data")


def _weights_beside(path: Path) -> bool:
    """Whether an ONNX file's weights are those beside it; not so where there is no readable file."""
    return beside(path).name in weights_beside(path)


def size(path: str | Path) -> int:
    """Bytes of an ONNX file, with those of the files beside it that hold its weights."""
    path = Path(path)
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in weights_beside(path))


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
    text = next((entry.value for entry in proto.metadata_props if entry.key == KEY), "{}")
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise SlimrankError(f"{path} holds damaged metadata under `{KEY}`; export it again")
    return stored


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
