"""A network of one output, as binary classifiers have it, as one of two."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SlimrankWarning
from .resize import CONVS, fit_attributes, replace_tensor

LAYERS = (*CONVS, nn.Linear)


def two_logits(model: nn.Module, images: Tensor) -> bool:
    """Give a network of one output z the two logits 0 and z, in place: its last layer gets a row of zeros before its own.

    Their softmax is the sigmoid of z, and the second class is decided where z is positive; behind a sigmoid inside the
    network the two are 0.5 and the probability, with the same decisions. Tells whether it was done: other networks stay as
    they are, and so does one whose second output would not be the one that it had. `images`: two or more.
    """
    if not any(isinstance(m, LAYERS) and m.weight.shape[0] == 1 for m in model.modules()):
        return False
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, _out, name=name: called.append(name))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        before = _outputs(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    layer: Any = model.get_submodule(called[-1]) if called else None
    if before is None or before.numel() != len(images) or layer is None or layer.weight.shape[0] != 1:
        return False
    own = {name: tensor.detach() for name, tensor in layer.named_parameters()}
    _put(layer, {name: torch.cat([torch.zeros_like(tensor), tensor]) for name, tensor in own.items()})
    after = _outputs(model, images)
    if after is None or after.shape != (len(images), 2) or not torch.allclose(after[:, 1], before.flatten(), atol=1e-5):
        _put(layer, own)
        return False
    warnings.warn(
        f"one output z is read as the two logits 0 and z ({called[-1]} has two rows now): z > 0 means the second class",
        SlimrankWarning,
        stacklevel=4,
    )
    return True


def _put(layer: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        replace_tensor(layer, name, tensor)
    fit_attributes(layer)


def _outputs(model: nn.Module, images: Tensor) -> Tensor | None:
    """The network's outputs; None where it fails on the images, which is told where it is used."""
    try:
        with torch.inference_mode():
            out = model.eval()(images)
    except Exception:  # a user's forward() raises whatever it likes
        return None
    return out if isinstance(out, Tensor) else None
