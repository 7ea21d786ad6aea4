"""slimrank: rank the filters of a CNN classifier, cut those that matter least, export and time what is left."""

__version__ = "0.7.0"
