"""Where 0.7 had the trace of a network's channels: `channel_map(model, example)`, no checkpoint read."""

from .channels.tracing import channel_map

__all__ = ["channel_map"]
