"""PruningPlan in, smaller network out: real slices, no masks left behind."""

import torch
from torch import Tensor, nn

from ...clone import clone
from ...errors import SlimrankError
from ..channels.groups import ChannelMap, stays
from ..channels.masking import masked
from ..network.resize import fit_attributes, replace_tensor
from .plan import PruningPlan


def apply_plan(model: nn.Module, channels: ChannelMap, plan: PruningPlan, example: Tensor) -> nn.Module:
    """A copy of `model` without the units that `plan` drops; the model itself is left alone.

    `example`: [images, channels, height, width]. The copy is run on it and must give the logits of the masked original:
    a cut that changes anything else is an error, not a result. Raises SlimrankError for a plan that does not fit the
    network or empties a layer, and for a forward pass with sizes written into it.
    """
    plan.check(channels)
    gone = channels.removed(plan.keep)
    smaller = cut(model, channels, gone)
    training = smaller.training
    smaller.eval()
    model_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            smaller(torch.zeros_like(example))  # forward() may take another way on another image
            after = smaller(example)
            with masked(model, channels, gone):
                before = model(example)
    except (RuntimeError, ValueError) as error:
        raise SlimrankError(
            f"the pruned network does not run ({str(error).splitlines()[0]}): its forward() has sizes written into it "
            "or goes ways that depend on the image; use flatten(1) and sizes of the tensors"
        ) from error
    finally:
        model.train(model_training)
        smaller.train(training)
    spread = before.std().clamp_min(1e-12)
    if after.shape != before.shape or not bool((after - before).abs().max() <= 1e-2 * spread):
        raise SlimrankError(
            "the pruned network computes something else than the masked one: slimrank misread this model's channels; "
            "please report the model, and leave it whole"
        )
    return smaller


def cut(model: nn.Module, channels: ChannelMap, gone: Tensor) -> nn.Module:
    """The slicing alone: a copy without the units in `gone` (boolean, [all units])."""
    smaller = clone(model)
    tensors = {**dict(smaller.named_parameters()), **dict(smaller.named_buffers())}
    touched = set()
    for name, axes in channels.axes.items():
        tensor = tensors[name]
        for axis, units in axes.items():
            keep = stays(units, gone)
            if not bool(keep.all()):
                tensor = tensor.detach().index_select(axis, keep.nonzero().flatten().to(tensor.device))
                touched.add(name)
        if name in touched:
            replace_tensor(smaller, name, tensor)
    for owner in {name.rpartition(".")[0] for name in touched}:
        fit_attributes(smaller.get_submodule(owner))
    for name, module in smaller.named_modules():
        if hasattr(module, "slice_channels") and name in channels.reads:
            module.slice_channels(stays(channels.reads[name], gone), stays(channels.writes[name], gone))
    return smaller
