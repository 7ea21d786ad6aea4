"""Compress checkpoints: the stages, and what they are made of."""

from ..callable_package import callable_as

callable_as(__name__, "compress.pipeline")
