"""The slicing itself: a copy of a network without some units."""

from torch import Tensor, nn

from ...clone import clone
from ..network.resize import fit_attributes, replace_tensor
from .groups import ChannelMap, stays


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
