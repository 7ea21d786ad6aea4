"""Images by --data SPEC, their splits, and the preprocessing that travels with a model."""

from ..dataspec import DataSpec
from .images import Batches, Images
from .preprocessing import Preprocessing
from .splits import KINDS, Data, differing, open_data, readable

__all__ = ["KINDS", "Batches", "Data", "DataSpec", "Images", "Preprocessing", "differing", "open_data", "readable"]
