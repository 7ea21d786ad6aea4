"""Measure: accuracy, MACs, latency, concepts; data and pages."""

from ..callable_package import callable_as

callable_as(__name__, "compress.stages.evaluate")
