"""Feature maps of filters: where the next conv layer reads them, after BatchNorm and activation.

A group that no conv layer reads (the last one of many networks is pooled first) is taken at the output of its last norm or
conv, negative values at zero.
"""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels.groups import ChannelMap
from ..channels.masking import captured
from ..network.resize import CONVS


class Responses:
    """`Responses(model, channels, layers)(images)` runs the model once: each layer's maps, [images, units, h, w].

    `layers`: any members of the groups wanted; results go by the groups' names. Raises SlimrankError for a layer of vectors.
    """

    def __init__(self, model: nn.Module, channels: ChannelMap, layers: list[str]):
        self.model = model.eval()
        self.read: dict[str, tuple[str, Tensor]] = {}
        self.written: dict[str, tuple[str, Tensor]] = {}
        for layer in layers:
            group = channels.group(layer)
            units = torch.arange(group.offset, group.offset + group.units)
            reader = next((r for r in channels.readers(group) if isinstance(model.get_submodule(r), nn.Conv2d)), None)
            if reader is not None:
                self.read[group.name] = (reader, _places(channels.reads[reader], units))
                continue
            writers = [
                (name, channels.axes[f"{name}.weight"][0])
                for name, module in model.named_modules()
                if isinstance(module, (*CONVS, nn.modules.batchnorm._BatchNorm))
                and 0 in channels.axes.get(f"{name}.weight", {})
            ]
            complete = [(name, written) for name, written in writers if bool(torch.isin(units, written).all())]
            if not complete:
                raise SlimrankError(f"layer {layer} answers with vectors, not with maps; name a conv layer")
            name, written = complete[-1]
            self.written[group.name] = (name, _places(written, units))

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        images = images.to(next(self.model.parameters()).device)
        with torch.inference_mode(), ExitStack() as stack:
            inputs = stack.enter_context(captured(self.model, [reader for reader, _ in self.read.values()]))
            for name, _ in self.written.values():
                hook = lambda _module, _inputs, out, name=name: seen.__setitem__(name, out)  # noqa: E731
                stack.callback(self.model.get_submodule(name).register_forward_hook(hook).remove)
            self.model(images)
            maps = {layer: inputs[reader][:, places] for layer, (reader, places) in self.read.items()}
            maps |= {layer: seen[name][:, places].clamp_min(0) for layer, (name, places) in self.written.items()}
        return {layer: layer_maps.cpu() for layer, layer_maps in maps.items()}


def _places(labels: Tensor, units: Tensor) -> Tensor:
    """Position of each unit's first channel among a layer's channels, whose units are `labels`."""
    place = {unit: i for i, unit in reversed(list(enumerate(labels.tolist())))}
    missing = [u for u in units.tolist() if u not in place]
    if missing:
        raise SlimrankError(f"{len(missing)} filters of a group are not read together; choose another layer")
    return torch.tensor([place[u] for u in units.tolist()])
