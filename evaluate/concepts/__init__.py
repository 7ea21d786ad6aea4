"""Which concepts units detect: images with pixel-wise labels (read, or generated), and network dissection on them."""

from .broden import Concepts
from .dissection import Dissection, dissect
from .generated import generate

__all__ = ["Concepts", "Dissection", "dissect", "generate"]
