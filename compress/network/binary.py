"""A network of one output, as binary classifiers have it, as one of two."""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...clone import clone
from ...errors import SlimrankWarning
from .record import Checkpoint
from .resize import CONVS, fit_attributes, replace_tensor

LAYERS = (*CONVS, nn.Linear)


def two_logits(checkpoint: Checkpoint) -> Checkpoint:
    """Give a network of one output z the two logits 0 and z: its last layer gets a row of zeros before its own.

    Their softmax is the sigmoid of z, and the second class is decided where z is positive; behind a sigmoid inside the
    network the two are 0.5 and the probability, with the same decisions. Other networks stay as they are; so does one whose
    second output would not be the one that it had.
    """
    model, images = checkpoint.model, checkpoint.example(2)
    if not any(isinstance(m, LAYERS) and m.weight.shape[0] == 1 for m in model.modules()):
        return checkpoint
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
    wider = clone(model)
    layer: Any = wider.get_submodule(called[-1]) if called else None
    if before is None or before.numel() != len(images) or layer is None or len(layer.weight) != 1:
        return checkpoint
    for name, tensor in list(layer.named_parameters()):
        replace_tensor(layer, name, torch.cat([torch.zeros_like(tensor), tensor.detach()]))
    fit_attributes(layer)
    after = _outputs(wider, images)
    if after is None or after.shape != (len(images), 2) or not torch.allclose(after[:, 1], before.flatten(), atol=1e-5):
        return checkpoint
    warnings.warn(
        f"one output z is read as the two logits 0 and z ({called[-1]} has two rows now): z > 0 means the second class",
        SlimrankWarning,
        stacklevel=4,
    )
    return replace(checkpoint, model=wider.eval())


def _outputs(model: nn.Module, images: Tensor) -> Tensor | None:
    """The network's outputs; None where it fails on the images, which is told where it is used."""
    try:
        with torch.inference_mode():
            out = model.eval()(images)
    except Exception:
        return None
    return out if isinstance(out, Tensor) else None
