"""timm's networks by name, built without weights: those come from the user's file."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from ...errors import SlimrankError, near

# timm's architectures without convs beyond the patches they are fed
TRANSFORMERS = (
    "aimv2", "beit", "cait", "convit", "crossvit", "deit", "eva", "flexivit", "gmixer", "gmlp", "hiera", "mixer", "naflexvit",
    "pit_", "resmlp", "sam2_", "samvit", "swin", "tiny_vit", "tnt_", "twins", "vit_", "volo", "xcit",
)  # fmt: skip


def constructor(name: str) -> Callable[..., nn.Module]:
    """Give the constructor of a network with random weights; raises SlimrankError for names that timm lacks."""
    timm = _timm()
    if not timm.is_model(name):
        raise SlimrankError(f"timm has no model named {name!r}; {near(name, timm.list_models())}")
    if name.startswith(TRANSFORMERS):
        raise SlimrankError(f"timm/{name} is a transformer; slimrank compresses CNN classifiers")
    entrypoint: Callable[..., nn.Module] = timm.model_entrypoint(name)

    def build(num_classes: int = 1000, **arguments: Any) -> nn.Module:
        return entrypoint(pretrained=False, num_classes=num_classes, **arguments)

    return build


def config(name: str) -> dict[str, Any]:
    """Look up how timm's own weights of a name see images, its `pretrained_cfg`; empty where timm has none."""
    found = _timm().models.get_pretrained_cfg(name)
    known: dict[str, Any] = {} if found is None else found.to_dict()
    return known


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise SlimrankError(f"timm/ models need timm ({error}); pip install 'slimrank[timm]'") from error
    module: ModuleType = timm
    return module
