"""A package that is a verb as well: `slimrank.export(...)` and `slimrank.export.to_onnx`."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def callable_as(package: str, module: str) -> None:
    """Let a package be called; the call goes to the function of the package's own name in `module` (below slimrank)."""
    root, _, name = package.rpartition(".")

    class Verb(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return getattr(import_module(f"{root}.{module}"), name)(*arguments, **options)

    sys.modules[package].__class__ = Verb
