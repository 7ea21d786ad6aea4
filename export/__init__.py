"""ONNX out: export, parity, quantisation."""

from ..callable_package import callable_as

callable_as(__name__, "compress.stages.export")
