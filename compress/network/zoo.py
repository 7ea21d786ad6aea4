"""Constructors by name: small networks of the papers, torchvision's, timm's and Hugging Face's CNNs, the user's own."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import SlimrankError, near
from ...evaluate.data import Preprocessing
from . import hf_models, published, timm_models
from .forward import told
from .papers import CifarResnet, Lenet5, Vgg16Cifar

# torchvision's classification models that are no CNNs
TRANSFORMERS = ("vit_", "swin_", "maxvit")

OWN: dict[str, tuple[Callable[..., nn.Module], int]] = {  # name -> constructor, input size
    "lenet5": (Lenet5, 28),
    "vgg16-cifar": (Vgg16Cifar, 32),
    **{f"resnet{d}-cifar": (partial(CifarResnet, d), 32) for d in (20, 32, 44, 56, 110)},
}
SOURCES = {"timm": timm_models.constructor, "hf": hf_models.constructor}  # what stands before the slash


def names() -> list[str]:
    """List every name that `build` knows, `timm/NAME`, `hf/DIR` and `package.module:function` aside."""
    import torchvision

    theirs = torchvision.models.list_models(module=torchvision.models)
    return [*OWN, *(n for n in theirs if not n.startswith(TRANSFORMERS))]


FETCH = ("weights", "pretrained", "checkpoint", "url")  # in the names of arguments that make a constructor read or download


def build(name: str, arguments: dict[str, Any] | None = None, *, trusted: bool = True) -> nn.Module:
    """Build a fresh network. `trusted` is False for names read from a file: those never name code to import.

    Raises SlimrankError for unknown names (with the near ones) and arguments that the constructor refuses.
    """
    arguments = dict(arguments or {})
    fetching = [
        key for key, value in arguments.items() if value and any(word in key for word in FETCH) and key != "init_weights"
    ]
    if fetching and ":" not in name:
        raise SlimrankError(f"model {name}: {fetching[0]} would fetch weights, and they come from the checkpoint; leave it out")
    constructor = _constructor(name, trusted)
    try:
        model = constructor(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SlimrankError(f"model {name} does not take {arguments}: {reason}; change `model_arg`") from error
    except SlimrankError:
        raise
    except Exception as error:  # a user's constructor raises whatever it likes
        raise SlimrankError(f"model {name} cannot be made with {arguments}: {told(error)}; check it and `model_arg`") from error
    if not isinstance(model, nn.Module):
        raise SlimrankError(f"model {name} made a {type(model).__name__}, not an nn.Module; name a function that makes one")
    scripted = [part or "it" for part, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise SlimrankError(f"model {name}: {scripted[0]} is compiled by torch.jit, and its code cannot be cut; leave that out")
    return model


def _constructor(name: str, trusted: bool) -> Callable[..., Any]:
    if ":" in name:
        if not trusted:
            raise SlimrankError(f"the checkpoint was made with the user's own model {name}; say `model` {name} to import it")
        module, _, function = name.partition(":")
        try:
            constructor: Callable[..., Any] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise SlimrankError(f"cannot import model {name}: {error}; check PYTHONPATH and the name") from error
        return constructor
    if name in OWN:
        return OWN[name][0]
    source, _, theirs = name.partition("/")
    if source in SOURCES:
        return SOURCES[source](theirs)
    if name not in names():
        if name.startswith(TRANSFORMERS):
            raise SlimrankError(f"{name} is a transformer; slimrank compresses CNN classifiers")
        raise SlimrankError(f"no model named {name!r}; {near(name, names())}")
    import torchvision

    builder: Callable[..., nn.Module] = torchvision.models.get_model_builder(name)
    if name in ("googlenet", "inception_v3"):  # random initialisation of these two takes a minute, and is overwritten
        return lambda **arguments: builder(**{"init_weights": False, "aux_logits": False, **arguments})
    return builder


def resolved(name: str, arguments: dict[str, Any] | None) -> hf_models.Folder | None:
    """Read the folder of `hf/DIR`, its arguments changed as these say; None for any other name."""
    source, _, place = name.partition("/")
    if source != "hf" or (place in hf_models.FAMILIES and not Path(place).is_dir()):
        return None
    folder = hf_models.read_folder(Path(place))
    return replace(folder, arguments={**folder.arguments, **(arguments or {})})


def accepts(name: str, argument: str, trusted: bool = True) -> bool:
    """Tell whether a constructor takes this argument; torchvision's pass `num_classes` on under **kwargs."""
    parameters = inspect.signature(_constructor(name, trusted)).parameters
    passes_on = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    return argument in parameters or (argument == "num_classes" and passes_on)


def preprocessing(name: str, channels: int, file: str = "") -> Preprocessing:
    """How a network of this name is used to see images of so many channels; 224 pixels a side where the name does not tell.

    torchvision's networks: as their published weights were measured, those of the checkpoint `file` where it is one of them.
    """
    if name in OWN:
        return Preprocessing.default(channels, OWN[name][1])
    theirs = None
    if name.startswith("timm/"):
        config = timm_models.config(name.removeprefix("timm/"))
        theirs = published.from_timm(config) if config else None
    elif ":" not in name and "/" not in name:
        theirs = published.from_torchvision(name, file)
    return published.in_channels(theirs or Preprocessing.default(channels, 224), channels)
