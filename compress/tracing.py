"""Trace which channels of a network belong together, without reading a checkpoint: `channel_map(model, example)`."""

from .channels.tracing import channel_map

__all__ = ["channel_map"]
