"""Image classifiers of Hugging Face in a local folder: config.json says the network, nothing is downloaded, no code is run.

A slim file of one holds the configuration, not the folder's place: its name is `hf/` and the model type, as hf/resnet.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ...errors import SlimrankError
from ...evaluate.data import Preprocessing
from ...files import read_json
from .header import check_arguments
from .published import from_timm, from_transformers

FAMILIES = {  # model_type of config.json -> what its classes in transformers begin with
    "convnext": "ConvNext", "convnextv2": "ConvNextV2", "efficientnet": "EfficientNet", "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2", "regnet": "RegNet", "resnet": "ResNet",
}  # fmt: skip
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LEFT_OUT = ("architectures", "auto_map", "id2label", "label2id", "num_labels", "quantization_config", "transformers_version")
REMEDY = "take the folder that save_pretrained has written"


@dataclass(frozen=True)
class Folder:
    """What a folder says: the network's name and arguments, how it sees images, its classes' names where it has some."""

    name: str
    arguments: dict[str, Any]
    preprocessing: Preprocessing
    classes: list[str] | None


def weights(path: Path) -> Path:
    """Find the file of weights in a folder with a config.json; any other path stays."""
    if not (path / "config.json").is_file():
        return path
    found = [path / name for name in WEIGHTS if (path / name).is_file()]
    if not found:
        raise SlimrankError(f"{path} holds no weights: neither {' nor '.join(WEIGHTS)}; {REMEDY}")
    return found[0]


def read_folder(folder: Path) -> Folder:
    """Read a folder of transformers, or of timm (its config.json names an `architecture`).

    Raises SlimrankError for a network that is no CNN, or made for another task, and for files of other types and ranges.
    """
    try:
        found = _read(folder)
        check_arguments(found.arguments)
        if found.classes is not None and not all(isinstance(name, str) for name in found.classes):
            raise TypeError(f"a class is called {found.classes[:3]}")
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        said = f"{type(error).__name__}: {str(error)[:100]}"
        raise SlimrankError(f"{folder}: its config.json or preprocessor_config.json is damaged ({said}); {REMEDY}") from error
    return found


def _read(folder: Path) -> Folder:
    config = read_json(folder / "config.json", "the model's", REMEDY)
    if "architecture" in config:
        arguments = {**(config.get("model_args") or {}), "num_classes": config.get("num_classes", 1000)}
        seen = from_timm(config.get("pretrained_cfg") or config)
        return Folder(f"timm/{config['architecture']}", arguments, seen, config.get("label_names"))
    kind, made_for = config.get("model_type"), [str(name) for name in config.get("architectures") or ()]
    if kind not in FAMILIES:
        raise SlimrankError(f"{folder} holds a network of type {kind}; slimrank compresses these CNNs: {', '.join(FAMILIES)}")
    if made_for and not any(name.endswith("ForImageClassification") for name in made_for):
        raise SlimrankError(f"{folder} holds {made_for[0]}, no classifier; give a {FAMILIES[kind]}ForImageClassification")
    kept = {key: value for key, value in config.items() if key not in LEFT_OUT and not key.startswith("_")}
    said = folder / "preprocessor_config.json"
    seen = from_transformers(read_json(said, "the preprocessing", REMEDY) if said.is_file() else {}, config)
    return Folder(f"hf/{kind}", {"config": kept}, seen, _labels(config.get("id2label")))


def constructor(kind: str) -> Callable[..., nn.Module]:
    """Give the constructor of a type's network with random weights: it takes config.json's object and `num_classes`."""
    if kind not in FAMILIES:
        raise SlimrankError(f"no model hf/{kind}: give hf/DIR, a folder with config.json; known types: {', '.join(FAMILIES)}")
    transformers = _transformers()
    settings = getattr(transformers, f"{FAMILIES[kind]}Config")
    network: Callable[..., nn.Module] = getattr(transformers, f"{FAMILIES[kind]}ForImageClassification")

    known = set(inspect.signature(settings.__init__).parameters) - set(LEFT_OUT) - {"self", "kwargs", "dtype", "name_or_path"}

    def build(config: dict[str, Any] | None = None, num_classes: int = 1000) -> nn.Module:
        own = {key: value for key, value in (config or {}).items() if key in known}  # others name code, kernels, devices
        return network(settings(**own, num_labels=num_classes))

    return build


def _labels(names: Any) -> list[str] | None:
    """Class names in order; None where there are none, or those that transformers makes up."""
    if not isinstance(names, dict) or not names:
        return None
    ordered = [str(names[key]) for key in sorted(names, key=int)]
    return None if ordered == [f"LABEL_{i}" for i in range(len(ordered))] else ordered


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise SlimrankError(f"hf/ models need transformers ({error}); pip install 'slimrank[hf]'") from error
    module: ModuleType = transformers
    return module
