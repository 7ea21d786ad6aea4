"""The channel map of a checkpoint, traced once."""

from weakref import WeakKeyDictionary

from torch import nn

from ..network.checkpoint import Checkpoint
from .groups import ChannelMap
from .tracing import channel_map

_Structure = tuple[object, ...]
_TRACED: WeakKeyDictionary[nn.Module, tuple[_Structure, ChannelMap]] = WeakKeyDictionary()


def channels_of(checkpoint: Checkpoint) -> ChannelMap:
    """Trace a checkpoint's network on an image of its size, the first time only; the map lives as long as the network.

    Checkpoints of the same network share the map. A network whose modules, tensor shapes or image size have changed since
    is traced again; other weights or another device change no map. Raises SlimrankError as `channel_map` does.
    """
    structure = _structure(checkpoint)
    traced = _TRACED.get(checkpoint.model)
    if traced is None or traced[0] != structure:
        traced = structure, channel_map(checkpoint.model, checkpoint.example())
        _TRACED[checkpoint.model] = traced
    return traced[1]


def _structure(checkpoint: Checkpoint) -> _Structure:
    """What a channel map depends on: the image's shape, the type of every module, the shape of every tensor."""
    model = checkpoint.model
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    tensors = tuple((name, tuple(t.shape)) for name, t in [*model.named_parameters(), *model.named_buffers()])
    return checkpoint.preprocessing.shape, modules, tensors
