"""Which filters of a network belong together: tracing, groups, masking."""

from .groups import ChannelMap, Group
from .masking import captured, masked
from .traced import channels_of
from .tracing import channel_map

__all__ = ["ChannelMap", "Group", "captured", "channel_map", "channels_of", "masked"]
