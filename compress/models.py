"""Where 0.7 had networks by name: `build(name, arguments)`."""

from .network.zoo import build

__all__ = ["build"]
