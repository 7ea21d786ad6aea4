"""Every kind of file: how a sound one becomes a case, and how slimrank reads it."""

import contextlib
import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision.models  # noqa: F401  (the import is not a case's own time)
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import load as unpacked
from safetensors.torch import save as packed

from ...compress.folder import Folder, _digest
from ...compress.network.checkpoint import load
from ...compress.network.hf_models import read_folder
from ...compress.rankers.scores import FilterScores
from ...compress.recipes.recipe import read_recipe
from ...compress.stages.evaluate import _stored
from ...evaluate.concepts import Concepts, generate
from ...evaluate.data import Preprocessing
from ...evaluate.data.decode import opened
from ...evaluate.runner import Runner
from ...export.to_onnx import metadata
from .mutators import ODD, json_value, raw, text

GOLDEN = Path(__file__).parents[1] / "golden" / "files"
SLIM = ("dense", "pruned", "gather", "tiled", "probed", "int8", "gates", "resnet-pruned")


@dataclass(frozen=True)
class Format:
    """`write` leaves a case, drawn by a generator, in a folder; `read` takes it in."""

    write: Callable[[Path, random.Random], None]
    read: Callable[[Path], Any]


def _slim(rng: random.Random) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    content = (GOLDEN / f"{rng.choice(SLIM)}.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["slimrank"]), _ordered(content)


def _ordered(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name: the library gives them in any order."""
    return dict(sorted(unpacked(content).items()))


def write_header(folder: Path, rng: random.Random) -> None:
    header, tensors = _slim(rng)
    words = json.dumps(json_value(header, rng))
    (folder / "x.safetensors").write_bytes(
        packed(tensors, {"slimrank": words if rng.random() < 0.9 else text(words, rng).encode("utf-8", "replace").decode()})
    )


def odd_tensor(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    kinds: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: tensor[:1].clone() if tensor.dim() else tensor,
        lambda: torch.cat([tensor, tensor]) if tensor.dim() else tensor,
        lambda: tensor.unsqueeze(0), lambda: tensor.flatten(), lambda: tensor.double(), lambda: tensor.half(),
        lambda: tensor.int(),
        lambda: torch.full_like(tensor, rng.choice((0, 1, -1, 100))), lambda: tensor.new_zeros(0),
        lambda: tensor.new_zeros(rng.choice((1, 3, 1000)), rng.choice((1, 3, 1000))), lambda: tensor.bool(),
        lambda: torch.full(tensor.shape, rng.choice((float("nan"), float("inf"), 1e38))), 
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.to(torch.complex64),
    )  # fmt: skip
    return rng.choice(kinds)()


def write_tensors(folder: Path, rng: random.Random) -> None:
    header, tensors = _slim(rng)
    if rng.random() < 0.4:
        content = packed(tensors, {"slimrank": json.dumps(header)})
        (folder / "x.safetensors").write_bytes(raw(content, rng))
        return
    for _ in range(rng.choice((1, 2))):
        key = rng.choice([*tensors])
        tensor = tensors.pop(key)
        if rng.random() < 0.8:
            renamed = key if rng.random() < 0.8 else rng.choice((key + ".x", "", "." * 300, key.upper()))
            tensors[renamed] = odd_tensor(tensor, rng).contiguous()
    (folder / "x.safetensors").write_bytes(packed(tensors, {"slimrank": json.dumps(header)}))


def write_pt(folder: Path, rng: random.Random) -> None:
    state: dict[Any, Any] = _ordered((GOLDEN / "dense.safetensors").read_bytes())
    odd: tuple[Callable[[torch.Tensor], Any], ...] = (
        lambda t: t.to_sparse(), lambda t: t.to("meta"), lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        lambda t: t[:1].expand(3, *t.shape[1:]), lambda t: torch.zeros(1).expand(10**5, 10**5), lambda t: odd_tensor(t, rng),
        lambda t: rng.choice(ODD), lambda t: np.ones((2, 2)), lambda t: torch.nn.Parameter(t), lambda t: [t, t],
    )  # fmt: skip
    for _ in range(rng.randrange(3)):
        key = rng.choice([*state])
        value = state.pop(key)
        small = isinstance(value, torch.Tensor) and value.numel() < 10**6  # what was expanded is not made to fill memory
        if small and rng.random() < 0.9:
            with contextlib.suppress(RuntimeError, NotImplementedError):  # what is odd already cannot become all of these
                value = rng.choice(odd)(value)
            state[rng.choice((key, key, key, f"module.{key}", 5, f"{key}.x"))] = value
    value = state
    for _ in range(rng.randrange(4)):
        value = rng.choice(
            ({"state_dict": value}, {"model": value, "epoch": rng.choice(ODD)}, [value, value], {"ema": value, "m": value})
        )
    if rng.random() < 0.1 and isinstance(value, dict):
        value["again"] = value
    torch.save(value, held := io.BytesIO(), _use_new_zipfile_serialization=rng.random() < 0.7)
    content = held.getvalue()
    (folder / "x.pt").write_bytes(raw(content, rng) if rng.random() < 0.5 else content)


def write_onnx(folder: Path, rng: random.Random) -> None:
    model = onnx.load(GOLDEN / "tiled.onnx")
    kind, graph = rng.randrange(8), model.graph
    if kind == 0:
        (folder / "x.onnx").write_bytes(raw(model.SerializeToString(), rng))
        return
    if kind <= 2:
        entry = model.metadata_props[0]
        entry.value = (
            json.dumps(json_value(json.loads(entry.value), rng))
            if kind == 1
            else raw(entry.value.encode(), rng).decode("utf-8", "replace")
        )
    elif kind == 3:
        dims = rng.choice([*graph.input, *graph.output]).type.tensor_type.shape.dim
        if len(dims):
            rng.choice(dims).dim_value = rng.choice((0, 1, 3, 7, 29, 10**4, 10**6, 2**31, 2**62, -1))
    elif kind == 4:
        tensor = rng.choice(graph.initializer)
        array = numpy_helper.to_array(tensor)
        changed = rng.choice(
            (
                array[:1],
                array.astype(np.float64),
                array.reshape(-1),
                array * np.float32("nan") if array.dtype.kind == "f" else -array,
            )
        )
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))
    elif kind == 5:
        node = rng.choice(graph.node)
        node.op_type = rng.choice([other.op_type for other in graph.node] + ["Nothing", "Loop", "Identity"])
    elif kind == 6:
        node = rng.choice(graph.node)
        at = rng.randrange(len(node.input))
        node.input[at] = rng.choice(["", "nowhere", *(value for other in graph.node for value in other.output)])
    else:
        tensor = rng.choice(graph.initializer)
        place = rng.choice(("../../etc/passwd", "/etc/hostname", "x.onnx", "other", ""))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        for key, value in (("location", place), ("offset", "0"), ("length", str(rng.choice((1, 100, 2**40))))):
            tensor.external_data.add(key=key, value=value)
    (folder / "x.onnx").write_bytes(model.SerializeToString())


def read_onnx(folder: Path) -> None:
    path = folder / "x.onnx"
    runner, known = Runner(path, threads=1), metadata(path)
    if "preprocessing" in known:
        runner(torch.zeros(2, *_stored(path, known).shape))
    runner.bound(1)


CONFIG = {
    "model_type": "resnet", "architectures": ["ResNetForImageClassification"], "image_size": 64, "num_channels": 3,
    "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "id2label": {"0": "ant", "1": "bee"},
}  # fmt: skip
TIMM = {
    "architecture": "resnet18", "num_classes": 2, "label_names": ["ant", "bee"],
    "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0, 0, 0], "std": [1, 1, 1], "crop_pct": 0.9, "crop_mode": "center"},
}  # fmt: skip
SEEN = {"size": {"shortest_edge": 64}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1], "do_rescale": True, "resample": 3}
ROW = {"name": "baseline", "macs": 5, "seconds": 0.1, "says": "5 MACs"}
STATE = {"asked": {"macs": 0.5}, "stages": [ROW], "data": "", "files": {}, "rows": {"baseline": _digest(ROW)}}


def write_json(folder: Path, rng: random.Random) -> None:
    (folder / "c").mkdir(exist_ok=True)
    (folder / "c" / "given").write_bytes(b"weights")
    sound: dict[str, Any] = {
        "scores.json": json.loads((GOLDEN / "influential.json").read_text()), "config.json": rng.choice((CONFIG, TIMM)),
        "preprocessor_config.json": SEEN, "c/state.json": STATE,
    }  # fmt: skip
    chosen = rng.choice([*sound])
    for name, value in sound.items():
        words = json.dumps(json_value(value, rng) if name == chosen else value)
        (folder / name).write_bytes(raw(words.encode(), rng) if name == chosen and rng.random() < 0.2 else words.encode())
    recipe = 'seed = 1\n[prune]\nranker = "l1"\nlatency = 0.5\n[timing]\nbatch = [1, 8]\n[finetune]\nepochs = 2\nlr = 0.1\n'
    recipe = text(recipe, rng) if rng.random() < 0.3 else recipe
    (folder / "x.toml").write_text(recipe, encoding="utf-8", errors="replace")


def read_json(folder: Path) -> None:
    from ...errors import SlimrankError

    told = []
    stages = "baseline", "rank"
    for read in (
        lambda: FilterScores.load(folder / "scores.json"), lambda: read_folder(folder),
        lambda: read_recipe(str(folder / "x.toml")),
        lambda: Folder.open(folder / "c", {"macs": 0.5}, "", stages, folder / "c" / "given").lock.release(),
    ):  # fmt: skip
        try:
            read()
        except SlimrankError as error:
            told.append(error)
    if told:
        raise told[0]


def write_image(folder: Path, rng: random.Random) -> None:
    mode = rng.choice(("RGB", "L", "RGBA", "P", "1", "I;16", "LA", "CMYK"))
    noise = np.random.default_rng(rng.randrange(99)).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture = Image.new(mode, (24, 20), 77) if mode == "I;16" else picture.convert(mode)
    kind = rng.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "QOI", "JPEG2000"))
    try:
        picture.save(held := io.BytesIO(), kind)
    except (OSError, ValueError, KeyError):  # not every format has every mode
        Image.fromarray(noise).save(held := io.BytesIO(), "PNG")
    (folder / f"x.{kind.lower()}").write_bytes(raw(held.getvalue(), rng))


def read_image(folder: Path) -> None:
    (path,) = folder.iterdir()
    with opened(path) as picture:
        Preprocessing.default(3, 16).pixels(picture)


def write_broden(folder: Path, rng: random.Random) -> None:
    generate(folder, 3, 16)
    chosen = rng.choice(("index.csv", "label.csv", "index.csv", "label.csv", "image"))
    if chosen == "image":
        path = rng.choice(sorted((folder / "images").iterdir()))
        path.write_bytes(raw(path.read_bytes(), rng))
    else:
        (folder / chosen).write_text(text((folder / chosen).read_text(), rng), encoding="utf-8", errors="replace")


def read_broden(folder: Path) -> None:
    concepts = Concepts(folder)
    for i in range(len(concepts)):
        concepts.pixels(i, Preprocessing.default(3, 16))
        concepts.annotation(i)


FORMATS = {
    "header": Format(write_header, lambda folder: load(folder / "x.safetensors")),
    "tensors": Format(write_tensors, lambda folder: load(folder / "x.safetensors")),
    "pt": Format(write_pt, lambda folder: load(folder / "x.pt", model="lenet5")),
    "onnx": Format(write_onnx, read_onnx),
    "json": Format(write_json, read_json),
    "image": Format(write_image, read_image),
    "broden": Format(write_broden, read_broden),
}
