"""PruningPlan in, smaller network out: real slices, no masks left behind."""

import copy

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels.groups import CONVS, ChannelMap, masked, stays
from .plan import PruningPlan


def prune(model: nn.Module, channels: ChannelMap, plan: PruningPlan, example: Tensor) -> nn.Module:
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
            "please report the model, and keep --ratio off it"
        )
    return smaller


def cut(model: nn.Module, channels: ChannelMap, gone: Tensor) -> nn.Module:
    """The slicing alone: a copy without the units in `gone` (boolean, [all units])."""
    smaller = copy.deepcopy(model)
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


def replace_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor of another shape in a parameter's or buffer's place."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._buffers:
        module._buffers[leaf] = value.detach().clone()
    else:
        old = module._parameters[leaf]
        requires_grad = old is None or old.requires_grad
        module._parameters[leaf] = nn.Parameter(value.detach().clone(), requires_grad=requires_grad)


def fit_attributes(module: nn.Module) -> None:
    """Set a module's declared sizes from its tensors, so that it prints, exports and reloads as what it is."""
    if isinstance(module, CONVS):
        if module.groups > 1:  # conv groups go whole: filters a group stay what they were
            module.groups = module.weight.shape[0] // (module.out_channels // module.groups)
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        tensor = module.weight if module.weight is not None else module.running_mean
        module.num_features = len(tensor) if tensor is not None else module.num_features
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
